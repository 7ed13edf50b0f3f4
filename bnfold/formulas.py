"""The account that a fold gives of its constants: each as a formula of constants of the original.

A formula is plain data: a tuple of an operation, its operands (formulas again), and what else it takes.
Formulas share parts, and hold names and shapes but none of the fold's numbers. Operands broadcast and axes
count as in NumPy; `path` is "" for the main graph, else where the inner graph or function is, as in
`Decision`.

    ("constant", path, name)       a constant of the original: stored there, or computed from others alone
    ("number", x)                  a number that an operator means by itself
    ("deviation", path, output)    √(var + ε) of the original's BatchNormalization that computes `output`
    ("add", a, b)  ("mul", a, b)  ("div", a, b)  ("neg", a)
    ("sum", a, axis)               over one axis
    ("reshape", a, shape)  ("broadcast", a, shape)  ("moveaxis", a, source, target)
    ("line", a, axis)              the numbers along one axis (None: just one), at the start of all others
    ("take", a, index)             numbers index[0], index[1], ... of a vector
    ("concat", a, b, ...)          vectors behind each other

None in the place of a formula says that there is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Formula = tuple[Any, ...]

_OPERANDS = {"constant": 0, "number": 0, "deviation": 0, "add": 2, "mul": 2, "div": 2}


def combined(operation: str, parts: Iterable[Formula | None]) -> Formula | None:
    """The formula of an operation on several parts; None if that of any part is not known."""
    known = tuple(parts)
    return None if None in known else (operation, *known)


def operands(formula: Formula) -> tuple[Formula, ...]:
    """The formulas that a formula is made of."""
    operation = formula[0]
    return formula[1:] if operation == "concat" else formula[1 : 1 + _OPERANDS.get(operation, 1)]


@dataclass(frozen=True)
class Step:
    """One operation of a program.

    Attributes:
        operation: As in a formula.
        operands: The numbers of earlier steps.
        rest: What else it takes.
    """

    operation: str
    operands: tuple[int, ...]
    rest: tuple[Any, ...]


@dataclass(frozen=True)
class Program:
    """Formulas written out as steps, each part once, however often it is used.

    Attributes:
        steps: Operands come before their users.
        results: The step that computes each constant, by the constant's name.
    """

    steps: tuple[Step, ...]
    results: Mapping[str, int]


def written_out(formulas: Mapping[str, Formula]) -> Program:
    """The formulas as a program. Not recursive, as formulas may be as deep as a model."""
    steps: list[Step] = []
    numbers: dict[int, int] = {}  # by identity: comparing formulas would walk through all they share
    for formula in formulas.values():
        waiting = [formula]
        while waiting:
            current = waiting[-1]
            parts = operands(current)
            missing = [part for part in parts if id(part) not in numbers]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if id(current) not in numbers:
                rest = current[1 + len(parts) :]
                numbers[id(current)] = len(steps)
                steps.append(Step(current[0], tuple(numbers[id(part)] for part in parts), rest))
    return Program(tuple(steps), {name: numbers[id(formula)] for name, formula in formulas.items()})
