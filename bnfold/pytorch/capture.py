"""A module as a `torch.export.ExportedProgram`, in evaluation mode, without a trace on the module itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.utils import _pytree

from ..errors import InputError
from .duplicate import at_rest, cloned, duplicate
from .failure import RAISED, causes, told, where
from .guards import Beyond, beyond
from .inputs import Call, Input, bind
from .quiet import quiet

# What torch says when a size that was to be free has one value in the module.
_FIXED = re.compile(
    r"marked (?P<place>L\[.*?\])\.size\(\)\[(?P<axis>\d+)\].*?be a constant \((?P<size>\d+)\)", re.S
)
_SIZE = re.compile(r"L\['(?P<name>\w+)'\](?:\[\d+\])*\.size\(\)\[(?P<axis>\d+)\]")
_TOLD = 3  # guards, in a note
# Failures that other sizes may not have. What depends on data is no matter of sizes.
_OF_SIZES = (RuntimeError, ValueError, IndexError, AssertionError)
_OF_DATA = ("GuardOnDataDependentSymNode", "UserError", "DataDependentOutputException")


@dataclass(frozen=True, eq=False)
class Captured:
    """What is to be exported, and what it was made from.

    Attributes:
        name: What the user calls it.
        program: The program; None for TorchScript, which has none.
        call: How the module is to be called; None for a program that was there already.
        module: Whose values are the truth. It is nobody else's.
        inputs: Names of the program's tensor inputs, in order.
        symbols: What the program's free sizes are called, by its own names for them.
        arguments: Makes positional and named arguments of `module` from a tensor per input.
        notes: One line each for the user.
        assumed: What the program takes for granted of free sizes; it matters where nothing was compared.
    """

    name: str
    program: ExportedProgram | None
    call: Call | None
    module: nn.Module
    inputs: tuple[str, ...]
    symbols: Mapping[str, str]
    arguments: Callable[[Sequence[torch.Tensor]], tuple[tuple[Any, ...], dict[str, Any]]]
    notes: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()

    def admits(self) -> Callable[[Sequence[Sequence[int]]], bool]:
        """A function that says whether the program holds for inputs of these shapes."""
        failed = self._failed()
        return lambda shapes: not failed(shapes)

    def beyond(self) -> Iterator[Beyond]:
        """Sizes that were to be free and that the program does not hold for."""
        if self.program is not None and self.call is not None:
            guards = getattr(self.program, "_guards_code", None) or ()
            yield from beyond(self.call, list(placeholders(self.program)), guards, self._failed())

    def _failed(self) -> Callable[[Sequence[Sequence[int]]], str]:
        """A function that says which guard of the program does not take inputs of these shapes, or ""."""
        guards = None if self.program is None else getattr(self.program.module(), "_guards_fn", None)

        def failed(shapes: Sequence[Sequence[int]]) -> str:
            if guards is None:
                return ""
            tensors = [torch.empty(tuple(shape), device="meta") for shape in shapes]
            args, kwargs = self.arguments(tensors)
            try:
                guards(*_pytree.tree_leaves((args, kwargs)))
            except (ArithmeticError, AssertionError, RuntimeError) as error:
                return told(error).removeprefix("Guard failed: ")
            return ""

        return failed


def capture(name: str, source: nn.Module | ExportedProgram, inputs: Sequence[str | Input] = ()) -> Captured:
    """Make an ExportedProgram of a module; one that is there already is taken as it is.

    Args:
        name: What the user calls it, for messages.
        source: The module, in any mode, or the program.
        inputs: What the module is called with; a program knows that by itself.

    Raises:
        InputError: The inputs do not fit, or torch cannot export the module.
    """
    if isinstance(source, ExportedProgram):
        if inputs:
            raise InputError(
                f"{name}: is an exported program, which has inputs of its own; leave out --input"
            )
        return _ready(name, source)
    call = bind(name, inputs, inspect.signature(source.forward))
    module = at_rest(duplicate(source, name))
    with torch.no_grad(), quiet():
        # Not the copy that is compared: what code keeps of a trace is no tensor.
        program = _export(name, at_rest(duplicate(source, name)), call)
        _need_runs(name, at_rest(duplicate(source, name, cloned)), call)
    placed = list(placeholders(program))
    wanted = [i.shape for i in call.inputs]
    symbols: dict[str, str] = {}
    for shape, value in zip(wanted, placed, strict=True):
        for size, dim in zip(shape, value.shape, strict=True):
            symbols.setdefault(str(dim), str(size))
    return Captured(
        name,
        program,
        call,
        module,
        tuple(i.name for i in call.inputs),
        {symbol: size for symbol, size in symbols.items() if not symbol.isdecimal()},
        call.arguments,
        tuple(filter(None, (_modes(source), call.note(), *_demands(program, call, placed)))),
        tuple(_assumptions(program, call)),
    )


def _ready(name: str, program: ExportedProgram) -> Captured:
    specs = [s.arg for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    names = tuple(arg.name for arg in specs if not isinstance(arg, ConstantArgument))

    def arguments(values: Sequence[torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = iter(values)
        leaves = [arg.value if isinstance(arg, ConstantArgument) else next(given) for arg in specs]
        args, kwargs = _pytree.tree_unflatten(leaves, program.call_spec.in_spec)
        return args, kwargs

    symbols: dict[str, str] = {}
    for input_name, value in zip(names, placeholders(program), strict=True):
        for axis, dim in enumerate(getattr(value, "shape", ())):
            if not str(dim).isdecimal():
                symbols.setdefault(str(dim), f"{input_name}_dim_{axis}")
    return Captured(name, program, None, program.module(check_guards=False), names, symbols, arguments)


def placeholders(program: ExportedProgram) -> Iterator[Any]:
    """What the program knows of its tensor inputs."""
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT and not isinstance(spec.arg, ConstantArgument):
            assert isinstance(spec.arg, TensorArgument) or values[spec.arg.name] is not None
            yield values[spec.arg.name]


def _export(name: str, module: nn.Module, call: Call) -> ExportedProgram:
    """`torch.export`, at the first sizes that the module takes."""
    failures: list[BaseException] = []
    for values in call.examples():
        args, kwargs = call.arguments(values)
        shapes = ShapesCollection()
        for value, given in zip(values, call.inputs, strict=True):
            free = {axis: Dim.DYNAMIC for axis, size in enumerate(given.shape) if isinstance(size, str)}
            if free:
                shapes[value] = free
        try:
            return torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
        except RAISED as error:  # a module may raise anything
            fixed = _fixed(name, error, call)
            if fixed is not None:
                raise fixed from error
            failures.append(error)
            if not isinstance(error, _OF_SIZES) or type(error).__name__ in _OF_DATA:
                break
    raise refusal(name, failures[0], module, call) from failures[0]


def _need_runs(name: str, module: nn.Module, call: Call) -> None:
    """A module must run on what it is called with: some operators are traced on what they cannot compute."""
    failures: list[BaseException] = []
    for values in call.examples():
        args, kwargs = call.arguments(values)
        try:
            module(*args, **kwargs)
            return
        except NotImplementedError:
            return  # no kernel of that type for this processor is nobody's mistake
        except RAISED as error:
            failures.append(error)
            if not isinstance(error, _OF_SIZES):
                break
    if "not implemented for" not in str(failures[0]):
        raise refusal(name, failures[0], module, call) from failures[0]


def _fixed(name: str, error: BaseException, call: Call) -> InputError | None:
    """The message for a free size that the module fixes."""
    match = _FIXED.search(str(error))
    if match is None:
        return None
    given = _input_at(match["place"], call)
    axis, size = int(match["axis"]), match["size"]
    if given is None:
        return InputError(
            f"{name}: a size that is to be free must be {size}: the module fixes it; write {size}"
        )
    return InputError(
        f"{name}: input '{given.name}' axis {axis} must be {size}: the module fixes it; write {size} instead "
        f"of {given.shape[axis]}"
    )


def _input_at(place: str, call: Call) -> Input | None:
    """The input that torch calls so: L['x'], or L['args'][0]."""
    words = re.findall(r"\['?(\w+)'?\]", place)
    found = [i for i, p in zip(call.inputs, call.parameters, strict=True) if p and p in words]
    loose = [i for i, p in zip(call.inputs, call.parameters, strict=True) if not p]
    if not found and loose and words[-1].isdecimal() and int(words[-1]) < len(loose):
        found = [loose[int(words[-1])]]
    return found[0] if found else None


def refusal(name: str, error: BaseException, module: nn.Module, call: Call) -> InputError:
    """The error for a module that does not run on, or cannot be traced with, what it is to be called with."""
    place = where(error, module)
    given = " ".join(f"--input {i}" for i in call.inputs)
    at = f"; {place}" if place else ""
    if type(error).__name__ in _OF_DATA or any("data-dependent" in str(e) for e in causes(error)):
        remedy = "what a module does may not depend on the numbers: use torch.where or torch.cond"
        what = f"{told(error)}{at}; {remedy}"
    elif isinstance(error, (*_OF_SIZES, TypeError)):
        what = f"the module does not take {given or 'no inputs'}: {type(error).__name__}: {told(error)}{at}"
    else:
        what = f"torch.export cannot export it: {type(error).__name__}: {told(error)}{at}"
    return InputError(f"{name}: {what}")


# Notes


def _modes(module: nn.Module) -> str | None:
    modes = [part.training for part in module.modules()]
    if not any(modes):
        return None
    were = "was" if sum(modes) == 1 else "were"
    return f"{sum(modes)} of {len(modes)} modules {were} in training mode; exported in evaluation mode"


def _demands(program: ExportedProgram, call: Call, placed: Sequence[Any]) -> Iterator[str]:
    """What the program asks of free sizes beside what their names say."""
    sizes: dict[str, list[str]] = {}
    for given, value in zip(call.inputs, placed, strict=True):
        for size, dim in zip(given.shape, value.shape, strict=True):
            if isinstance(size, str) and size not in sizes.setdefault(str(dim), []):
                sizes[str(dim)].append(size)
    for alike in sizes.values():
        if len(alike) > 1:
            yield f"sizes {' and '.join(alike)} must be equal: the module asks for it"
    for guard in _guards(program, call):
        left, equal, right = guard.partition(" == ")
        if equal and left != right and not left.isidentifier():
            yield f"sizes must satisfy {guard}: the module asks for it"


def _assumptions(program: ExportedProgram, call: Call) -> Iterator[str]:
    others = [guard for guard in _guards(program, call) if " == " not in guard]
    if others:
        more = len(others) - _TOLD
        rest = f", and {more} more" if more > 0 else ""
        yield f"traced for sizes with {', '.join(others[:_TOLD])}{rest}: the module asks for it"


def _guards(program: ExportedProgram, call: Call) -> Iterator[str]:
    """What must hold of the sizes, in the user's names."""
    parameters = {p: i for i, p in zip(call.inputs, call.parameters, strict=True)}

    def named(match: re.Match[str]) -> str:
        given = parameters.get(match["name"])
        return match[0] if given is None else str(given.shape[int(match["axis"])])

    shown = (_SIZE.sub(named, guard) for guard in getattr(program, "_guards_code", None) or ())
    return (guard for guard in shown if "L[" not in guard)
