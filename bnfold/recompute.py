"""Evaluates the formulas of a fold at chosen elements, from the constants of the original file.

Only what is asked for is computed: what moves numbers around is a map from places of the result to places of
its operand, so that a sum over millions of weights can be taken in blocks, and a single doubtful number of a
large tensor can be computed alone. Places are counted in row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Sequence
from itertools import accumulate
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from .formulas import Program, Step
from .tensors import Tensors, Unavailable

Array = NDArray[Any]
Places = NDArray[np.int64]
Shape = tuple[int, ...]


class Numbers(Protocol):
    """Arrays of one axis that formulas can be evaluated in; see `enclosures`."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self: ...
    def __neg__(self) -> Self: ...
    def __add__(self, other: Self) -> Self: ...
    def __mul__(self, other: Self) -> Self: ...
    def __truediv__(self, other: Self) -> Self: ...
    def sqrt(self) -> Self: ...
    def sum(self, axis: int) -> Self: ...
    def moved(self, f: Callable[[Array], Array]) -> Self: ...


N = TypeVar("N", bound=Numbers)
Of = Callable[[Array], N]
"""Makes numbers of an array of floats."""


class Recomputation:
    """The numbers that a program makes of the constants of a file.

    Args:
        program: The formulas.
        original: The file.
    """

    def __init__(self, program: Program, original: Tensors) -> None:
        self.steps = program.steps
        self.original = original
        self._shapes: dict[int, Shape] = {}
        self._open: dict[int, Array] = {}

    def close(self) -> None:
        """Let go of the constants that were read."""
        self._open.clear()

    def shape(self, result: int) -> Shape:
        """The shape of what a step makes.

        Raises:
            Unavailable: A constant is not to be had, or the shapes do not fit.
        """
        for number in self._needed(result, known=self._shapes):
            step = self.steps[number]
            try:
                self._shapes[number] = self._shape_of(step, [self._shapes[i] for i in step.operands])
            except (ValueError, IndexError, KeyError, TypeError) as error:
                message = f"the formula does not fit its constants: {step.operation} {error}"
                raise Unavailable(message) from error
        return self._shapes[result]

    def stored(self, number: int) -> Array:
        """The numbers of a step that reads a constant."""
        if number not in self._open:
            self._open[number] = self.original.constant(*self.steps[number].rest)
        return self._open[number]

    def terms(self, result: int) -> int:
        """How many numbers the largest sum on the way to one number adds up."""
        self.shape(result)
        sums = [s for n in self._needed(result) if (s := self.steps[n]).operation == "sum"]
        return max((self._shapes[s.operands[0]][s.rest[0]] for s in sums), default=1)

    def at(self, result: int, places: Places | None, of: Of[N]) -> N:
        """Some numbers of what a step makes.

        Args:
            result: The step.
            places: Which; None is all of them.
            of: Into which arithmetic constants are read.

        Raises:
            Unavailable: As for `shape`.
        """
        self.shape(result)
        order = self._needed(result)
        plans = self._planned(order, places)
        made: dict[int, N] = {}
        for number in order:
            step, plan = self.steps[number], plans[number]
            parts = []
            for i, slot in zip(step.operands, plan.slots, strict=True):
                parts.append(_chosen(made[i], plans[i].handed[slot]))
            made[number] = self._apply(number, plan.places, parts, of)
        return _chosen(made[result], plans[result].handed[0])

    def _planned(self, order: Sequence[int], places: Places | None) -> dict[int, _Plan]:
        """Which numbers of each step are needed, users first."""
        plans = {number: _Plan(math.prod(self._shapes[number])) for number in order}
        plans[order[-1]].wishes.append(places)
        for number in reversed(order):
            step, plan = self.steps[number], plans[number]
            plan.settle()
            shapes = [self._shapes[i] for i in step.operands]
            sources = _sources(step, self._shapes[number], shapes, plan.places)
            for i, source in zip(step.operands, sources, strict=True):
                plan.slots.append(len(plans[i].wishes))
                plans[i].wishes.append(source)
        return plans

    def _apply(self, number: int, places: Places | None, parts: Sequence[N], of: Of[N]) -> N:
        step, shape = self.steps[number], self._shapes[number]
        count = math.prod(shape) if places is None else len(places)
        match step.operation, parts:
            case "constant", _:
                flat = self.stored(number).reshape(-1)
                return of(flat if places is None else flat[places])
            case "number", _:
                return of(np.full(count, step.rest[0], np.float64))
            case "deviation", _:
                var, epsilon = self.original.variance(*step.rest)
                flat = var.reshape(-1)
                return (of(flat if places is None else flat[places]) + of(np.full(count, epsilon))).sqrt()
            case "neg", [a]:
                return -a
            case "add", [a, b]:
                return a + b
            case "mul", [a, b]:
                return a * b
            case "div", [a, b]:
                return a / b
            case "sum", [a]:
                return a.moved(lambda flat: flat.reshape(count, -1)).sum(1)
            case "concat", _:
                whole = np.arange(count) if places is None else places
                part = np.searchsorted(_ends(self._shapes[i] for i in step.operands), whole, "right")
                rank = np.empty(count, np.int64)
                rank[np.argsort(part, kind="stable")] = np.arange(count)
                return parts[0].joined(parts).moved(lambda flat: flat[rank])
            case _, [a]:  # all else moves numbers around
                return a
        raise AssertionError(step)

    def _needed(self, result: int, known: Container[int] = ()) -> list[int]:
        """The steps that a result needs, in order, itself last; without those that are known."""
        found: set[int] = set()
        waiting = [result]
        while waiting:
            number = waiting.pop()
            if number not in found and number not in known:
                found.add(number)
                waiting += self.steps[number].operands
        return sorted(found)

    def _shape_of(self, step: Step, shapes: Sequence[Shape]) -> Shape:
        match step.operation, shapes:
            case "constant", _:
                return self.original.shape(*step.rest)
            case "number", _:
                return ()
            case "deviation", _:
                return self.original.variance(*step.rest)[0].shape
            case "neg", [a]:
                return a
            case "add" | "mul" | "div", [a, b]:
                return np.broadcast_shapes(a, b)
            case "sum", [a] if step.rest[0] < len(a):
                return (*a[: step.rest[0]], *a[step.rest[0] + 1 :])
            case "reshape", [a]:
                return _reshaped(a, step.rest[0])
            case "broadcast", [a] if np.broadcast_shapes(a, step.rest[0]) == step.rest[0]:
                return tuple(step.rest[0])
            case "moveaxis", [a]:
                return tuple(a[axis] for axis in _permutation(len(a), *step.rest))
            case "line", [a]:
                return () if step.rest[0] is None else (a[step.rest[0]],)
            case "take", [(n,)] if all(0 <= i < n for i in step.rest[0]):
                return (len(step.rest[0]),)
            case "concat", _:
                return (sum(n for (n,) in shapes),)
        raise ValueError(f"of shapes {[list(shape) for shape in shapes]}")


class _Plan:
    """Which numbers of a step are computed, and who gets which of them.

    Attributes:
        wishes: What each user asks for; None is all.
        places: What is computed; None is all.
        handed: Per wish, where it is in what is computed; None if it is just that.
        slots: Per operand, the number of the wish that this step has of it.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.wishes: list[Places | None] = []
        self.places: Places | None = None
        self.handed: list[Places | slice | None] = []
        self.slots: list[int] = []

    def settle(self) -> None:
        """Compute all if that is no more than what is asked for, else just that."""
        asked = [wish for wish in self.wishes if wish is not None]
        if len(asked) < len(self.wishes) or sum(map(len, asked)) >= self.size:
            self.handed = [*self.wishes]
        elif len(asked) == 1:
            self.places, self.handed = asked[0], [None]
        else:
            self.places = np.concatenate(asked)
            ends = np.cumsum([len(wish) for wish in asked])
            self.handed = [slice(end - len(wish), end) for end, wish in zip(ends, asked, strict=True)]


def _chosen(numbers: N, places: Places | slice | None) -> N:
    return numbers if places is None else numbers.moved(lambda a: a[places])


# Where numbers come from


def _sources(
    step: Step, shape: Shape, operands: Sequence[Shape], places: Places | None
) -> Sequence[Places | None]:
    """The places of each operand that some places of the result come from."""
    moves = step.operation in ("take", "concat", "moveaxis")
    if step.operation == "reshape" or (not moves and all(o == shape for o in operands)):
        return [places] * len(operands)
    if places is None:
        places = np.arange(math.prod(shape))
    match step.operation:
        case "take":
            return [np.array(step.rest[0], np.int64)[places]]
        case "line":
            axis = step.rest[0]
            return [places * (0 if axis is None else _strides(operands[0])[axis])]
        case "moveaxis":
            strides = _strides(operands[0])
            order = _permutation(len(shape), *step.rest)
            return [_strided(places, shape, [strides[axis] for axis in order])]
        case "sum":
            axis, strides = step.rest[0], list(_strides(operands[0]))
            along = np.arange(operands[0][axis]) * strides.pop(axis)
            return [(_strided(places, shape, strides)[:, None] + along).reshape(-1)]
        case "concat":
            ends = _ends(operands)
            starts = [0, *ends[:-1]]
            inside = (places[(places >= s) & (places < e)] - s for s, e in zip(starts, ends, strict=True))
            return list(inside)
    return [_strided(places, shape, _broadcast_strides(o, len(shape))) for o in operands]


def _strides(shape: Shape) -> list[int]:
    """How far apart neighbours along each axis are."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _broadcast_strides(shape: Shape, rank: int) -> list[int]:
    """The same in an array of more axes that it is broadcast to."""
    own = [0 if n == 1 else stride for n, stride in zip(shape, _strides(shape), strict=True)]
    return [0] * (rank - len(shape)) + own


def _strided(places: Places, shape: Shape, strides: Sequence[int]) -> Places:
    """Places of a shape as places of the array that has these strides along its axes."""
    result = np.zeros_like(places)
    for size, inner, stride in zip(shape, _strides(shape), strides, strict=True):
        if stride:
            result += places // inner % size * stride
    return result


def _permutation(rank: int, source: int, target: int) -> list[int]:
    order = [axis for axis in range(rank) if axis != source]
    order.insert(target, source)
    return order


def _reshaped(shape: Shape, target: Sequence[int]) -> Shape:
    size = math.prod(shape)
    rest = math.prod(n for n in target if n != -1)
    found = tuple(size // rest if n == -1 else n for n in target)
    if math.prod(found) != size:
        raise ValueError(f"{list(shape)} has not the size of {list(target)}")
    return found


def _ends(shapes: Iterable[Shape]) -> list[int]:
    return list(accumulate(n for (n,) in shapes))
