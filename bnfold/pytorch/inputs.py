"""What a module is to be called with: `name:float32[N,3,224,224]`, and how that meets its `forward`.

A number is a fixed size, a name a free one; the same name means the same size everywhere.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import InputError

DTYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}
EXAMPLE = "x:float32[N,3,224,224]"

_FORM = re.compile(r"\s*(?P<name>[^:\[\]\s]+)\s*:\s*(?P<dtype>\w*)\s*\[(?P<dims>[^\[\]]*)\]\s*")
_POSITIONAL = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
_NAMED = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY

# Sizes for free dimensions, tried in turn. Most networks run at different multiples of 32; one that does not
# has a size of its own built in, which it tells when it is met.
_DIFFERENT = range(64, 64 + 32 * 1000, 32)
_ALIKE = (224, 32, 256, 28, 128, 64, 512, 299, 384, 16, 8, 4, 2)
_BATCH = 2  # a size of 1 would be taken for one that never changes


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
        name: Its name.
        dtype: Element type, a key of `DTYPES`.
        shape: A size, or the name of a free one, per axis.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}:{self.dtype}[{','.join(map(str, self.shape))}]"

    def tensor(self, sizes: Mapping[str, int]) -> torch.Tensor:
        """An example: numbers of N(0, 1), zeros for integers (which may be indices), True for booleans.

        Raises:
            InputError: There is no room for it.
        """
        shape = [d if isinstance(d, int) else sizes[d] for d in self.shape]
        dtype = DTYPES[self.dtype]
        try:
            if dtype.is_floating_point:
                return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
            return torch.full(shape, dtype is torch.bool, dtype=dtype)
        except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
            raise InputError(
                f"input '{self}': an example of the sizes {shape} does not fit into memory; give smaller "
                "sizes, or a name in place of a size that is free"
            ) from error


def parse(text: str) -> Input:
    """Read `name:dtype[dim,...]`; `[]` is a scalar.

    Raises:
        InputError: It has another form, an unknown dtype, or a size that is none.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise InputError(f"input '{text}': is not of the form NAME:DTYPE[SIZE,...]; an example is {EXAMPLE}")
    name, dtype, dims = match["name"], match["dtype"], match["dims"].strip()
    if dtype not in DTYPES:
        raise InputError(f"input '{name}': the dtype '{dtype}' is not known; it may be {', '.join(DTYPES)}")
    return Input(name, dtype, tuple(_size(name, d.strip()) for d in dims.split(",")) if dims else ())


def _size(name: str, text: str) -> int | str:
    if text.isidentifier():
        return text
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise InputError(
        f"input '{name}': the size '{text}' is neither a positive number nor the name of a free size, as N is"
    )


@dataclass(frozen=True, eq=False)
class Call:
    """How inputs become arguments of `forward`.

    Attributes:
        inputs: In the order of the arguments.
        parameters: The parameter that each goes to.
        positional: How many are given by position; the others are given by name.
    """

    inputs: tuple[Input, ...]
    parameters: tuple[str, ...]
    positional: int

    def arguments(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments of `forward`, one value per input."""
        names = self.parameters[self.positional :]
        return tuple(values[: self.positional]), dict(zip(names, values[self.positional :], strict=True))

    def examples(self) -> Iterator[list[torch.Tensor]]:
        """Sets of example tensors, the most telling sizes first.

        Raises:
            InputError: There is no room for them.
        """
        free = list(dict.fromkeys(d for i in self.inputs for d in i.shape if isinstance(d, str)))
        leading = {i.shape[0] for i in self.inputs if i.shape}
        rows = [d for d in free if d in leading]
        others = [d for d in free if d not in leading]
        plans = [dict(zip(others, _DIFFERENT, strict=False))]
        if others:
            plans += [dict.fromkeys(others, size) for size in _ALIKE]
        for plan in plans:
            yield [i.tensor(plan | dict.fromkeys(rows, _BATCH)) for i in self.inputs]

    def note(self) -> str | None:
        """What a user should know of it: inputs that are called otherwise than their parameters."""
        other = [(i.name, p) for i, p in zip(self.inputs, self.parameters, strict=True) if i.name != p and p]
        told = ", ".join(f"'{name}' is the argument '{parameter}'" for name, parameter in other)
        return f"inputs by position: {told}" if told else None


def bind(source: str, inputs: Sequence[str | Input], signature: inspect.Signature) -> Call:
    """Match inputs with the parameters of `forward`: by name if they are its parameters' names, else by
    position, where any names will do.

    Args:
        source: What the user calls the module, for messages.
        inputs: The inputs, or their text.
        signature: Of `forward`, without `self`.

    Raises:
        InputError: There is none where some are needed, two have one name, or they do not fit.
    """
    given = [parse(i) if isinstance(i, str) else i for i in inputs]
    parameters = list(signature.parameters.values())
    needed = [p.name for p in parameters if p.kind in (*_POSITIONAL, *_NAMED) and p.default is p.empty]
    if not given and needed:
        raise InputError(
            f"{source}: what it is called with has to be told; its forward{_shown(signature)} takes "
            f"{_listed(needed)}; for example --input {_example(needed)}"
        )
    names = [i.name for i in given]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"{source}: two inputs are called '{min(twice)}'; give each a name of its own")
    named = {p.name for p in parameters if p.kind in _NAMED}
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if any(name in named for name in names) or (
        any_name and not any(p.kind in _POSITIONAL for p in parameters)
    ):
        call = _by_name(source, given, signature, named, any_name)
    else:
        call = _by_position(source, given, signature)
    if missing := [name for name in needed if name not in call.parameters]:
        raise InputError(
            f"{source}: its forward{_shown(signature)} also needs {_listed(missing)}; for example "
            f"--input {_example(missing)}"
        )
    return call


def _by_name(
    source: str, given: Sequence[Input], signature: inspect.Signature, named: set[str], any_name: bool
) -> Call:
    if unknown := [i.name for i in given if i.name not in named and not any_name]:
        raise InputError(
            f"{source}: its forward{_shown(signature)} has no parameter '{unknown[0]}'; correct the name of "
            "that input, or give none of the inputs a parameter's name to have them taken by position"
        )
    order = {name: place for place, name in enumerate(signature.parameters)}
    inputs = sorted(given, key=lambda i: order.get(i.name, len(order)))
    positional = 0
    for i, parameter in zip(inputs, signature.parameters.values(), strict=False):
        if i.name != parameter.name or parameter.kind not in _POSITIONAL:
            break
        positional += 1
    return Call(tuple(inputs), tuple(i.name for i in inputs), positional)


def _by_position(source: str, given: Sequence[Input], signature: inspect.Signature) -> Call:
    places = [p.name for p in signature.parameters.values() if p.kind in _POSITIONAL]
    more = any(p.kind is p.VAR_POSITIONAL for p in signature.parameters.values())
    if len(given) > len(places) and not more:
        raise InputError(
            f"{source}: {len(given)} inputs are given, but its forward{_shown(signature)} takes "
            f"{len(places) or 'none'}; leave out '{given[len(places)].name}'"
        )
    places += [""] * (len(given) - len(places))
    return Call(tuple(given), tuple(places[: len(given)]), len(given))


def _shown(signature: inspect.Signature) -> str:
    """The parameters, without annotations, which may be long."""
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    text = str(inspect.Signature(bare))
    return text if len(text) <= 200 else f"{text[:196]}...)"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _example(names: Sequence[str]) -> str:
    return " --input ".join(f"{name}:float32[N,3,224,224]" for name in names[:3])
