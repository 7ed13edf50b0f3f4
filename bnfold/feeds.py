"""Chooses what to feed a model that nobody told us anything about: sizes, types and numbers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import product
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]


class Unfeedable(InputError):
    """No arrays can be made for the inputs of a model: strings, sequences, or too large."""


class Values(Enum):
    """Distributions of floating inputs; the rows of a batch take them in turn."""

    NORMAL = "N(0, 1)"
    UNIFORM = "U[0, 1)"
    WIDE = "3 N(0, 1)"
    ZERO = "0"


class Integers(Enum):
    """Range of the integer inputs: they may be indices, lengths or flags; [low, high)."""

    SMALL = (0, 3)
    ONE = (1, 2)
    ZERO = (0, 1)


@dataclass(frozen=True, eq=False)
class Feed:
    """Arrays for the inputs of a model, by name, and what they are, in words."""

    arrays: Mapping[str, Array]
    description: str


@dataclass(frozen=True)
class Input:
    """One input of a graph that has to be fed.

    Attributes:
        name: Its name.
        dtype: Numpy dtype of its elements; bfloat16 and smaller types are those of ml_dtypes.
        shape: A size, or the name of a free one, per axis; None when not even the rank is known. A
            free size without a name is called by input and axis: "x[0]".
        bound: How many rows the table has that it is an index into; None if it is no such index.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...] | None
    bound: int | None = None

    @property
    def is_integer(self) -> bool:
        """Whether its elements are integers; those of ml_dtypes say so by name only."""
        return self.dtype.kind in "iu" or "int" in self.dtype.name


@dataclass(frozen=True)
class Binding:
    """Inputs with every free size decided but that of the batch.

    Attributes:
        inputs: All of known rank.
        sizes: By name of the free dimension, those that the caller fixed among them.
        batch: Names of the free leading dimensions; they share one size. Empty where there is none.
        rows: Names of all leading dimensions, also those that the caller fixed.
        integers: What integer inputs hold that are no index into a table.
        others: Other values for some of `sizes`.
    """

    inputs: tuple[Input, ...]
    sizes: Mapping[str, int]
    batch: frozenset[str]
    rows: frozenset[str]
    integers: Integers
    others: Mapping[str, int] = field(default_factory=dict)

    def feed(self, rng: np.random.Generator, batch: int | None = None, offset: int = 0) -> dict[str, Array]:
        """Arrays for all inputs, drawn from `rng`.

        Args:
            rng: Where all numbers come from.
            batch: Size of the free leading dimensions; None for a row of each distribution.
            offset: Row i of a floating input is drawn from the distribution offset + i, modulo their
                number; the whole of an input without a batch from the distribution `offset`.
        """
        rows = len(Values) if batch is None else batch
        return {i.name: self._draw(rng, i, self.shape(i, rows), offset) for i in self.inputs}

    def describe(self, batch: int | None = None, offset: int = 0) -> str:
        """What `feed` makes, in words."""
        rows = len(Values) if batch is None else batch
        sizes = [
            f"{name}={size}"
            for name, size in {**dict.fromkeys(sorted(self.batch), rows), **self.sizes}.items()
        ]
        floats = [i for i in self.inputs if i.bound is None and not i.is_integer and i.dtype.kind != "b"]
        kinds = [v for i in floats for v in self._distributions(i, self.shape(i, rows), offset)]
        numbers = [" | ".join(dict.fromkeys(v.value for v in kinds))] if kinds else []
        if any(_is_vague(i) for i in self.inputs):
            numbers.append("integers of [{}, {})".format(*self.integers.value))
        return ", ".join([*sizes, *numbers])

    def resized(self) -> Binding | None:
        """The same with other free sizes (not those of the batch), all even, where those of the first
        choice are odd: some paddings and roundings tell at the one, some at the other. None if no size is
        free, or the inputs get too large."""
        own = {name: self.sizes[name] for name in self.others}
        other = replace(self, sizes={**self.sizes, **self.others}, others=own)
        return other if self.others and _fits(other) else None

    def shape(self, target: Input, batch: int) -> tuple[int, ...]:
        """The sizes of an input, for that size of the batch."""
        dims = target.shape or ()
        return tuple(d if isinstance(d, int) else batch if d in self.batch else self.sizes[d] for d in dims)

    def _distributions(self, target: Input, shape: Sequence[int], offset: int) -> list[Values]:
        """Those of the rows, or the one of the whole."""
        every = list(Values)
        count = shape[0] if target.shape and target.shape[0] in self.rows else 1
        return [every[(offset + i) % len(every)] for i in range(count)]

    def _range(self, target: Input) -> tuple[int, int]:
        """[low, high) of an input that holds integers."""
        if target.bound is not None:
            return 0, target.bound
        if _is_vague(target):
            return self.integers.value
        limits = np.iinfo(target.dtype)
        return limits.min, limits.max + 1

    def _draw(self, rng: np.random.Generator, target: Input, shape: tuple[int, ...], offset: int) -> Array:
        if target.dtype.kind == "b":
            return rng.integers(0, 2, shape).astype(bool)
        if target.bound is not None or target.is_integer:
            low, high = self._range(target)
            return rng.integers(low, high, shape).astype(target.dtype)
        kinds = self._distributions(target, shape, offset)
        if len(kinds) == 1:
            return _numbers(rng, kinds[0], shape, target.dtype)
        return np.stack([_numbers(rng, kind, shape[1:], target.dtype) for kind in kinds])


# Sizes for all free dimensions alike: what images, sequences and small tables usually have.
_COINCIDING: tuple[int, ...] = (32, 64, 224, 1, 2, 3, 4, 8, 16, 5, 7, 10, 20, 50, 100)
_COINCIDING += (48, 96, 128, 192, 256, 299, 320, 416, 512, 640)

# Operators whose first input's values are those of the output, or some of them (Concat: all inputs').
_SELECTING = {"Cast", "CastLike", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice"}
_SELECTING |= {"Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
# Operators after which a table is still as long.
_CONVERTING = {"Cast", "CastLike", "DequantizeLinear", "Identity"}


def inputs_of(model: onnx.ModelProto) -> tuple[Input, ...]:
    """The inputs of the main graph that no initializer provides.

    Raises:
        Unfeedable: One is not a tensor of numbers that numpy or ml_dtypes know.
    """
    provided = {t.name for t in model.graph.initializer}
    provided |= {t.values.name for t in model.graph.sparse_initializer}
    values = [value for value in model.graph.input if value.name not in provided]
    bounds = _bounds(model, {value.name for value in values})
    return tuple(replace(_input(value), bound=bounds.get(value.name)) for value in values)


def bindings(model: onnx.ModelProto, sizes: Mapping[str, int] = MappingProxyType({})) -> Iterator[Binding]:
    """Ways to feed a model, the most telling first; the first that runs is to be taken.

    Free sizes differ from one another and from every size of a weight, so that a mistaken axis
    shows. Many networks run at some sizes only (multiples of 32, a length that is a constant inside):
    those come later, and in the end sizes that do coincide.

    Args:
        model: Its weights need not be loaded.
        sizes: What free dimensions are to be, by name.

    Raises:
        InputError: `sizes` names a dimension that is not free, or its size is below 1.
        Unfeedable: An input is no tensor of numbers, or larger than the memory.
    """
    inputs = inputs_of(model)
    asked = _sizes_read_by_weights(model)
    unranked = any(i.shape is None and i.name not in asked for i in inputs)
    ranks = (4, 3, 2, 1, 5, 0) if unranked else (0,)
    plans = [_asked_by_weights([_ranked(i, asked, rank) for i in inputs], asked, sizes) for rank in ranks]
    _need_free(sizes, [_ranked(i, asked, rank) for rank in ranks for i in inputs])
    plans = [plan for plan in plans if sizes.keys() <= set(_free(plan))] or plans
    _need_room(plans[0], sizes)
    taken = {int(d) for t in model.graph.initializer for d in t.dims}
    ranges = list(Integers) if any(_is_vague(i) for i in inputs) else [Integers.SMALL]
    every = (_bound(plan, sizes, taken, integers) for integers, plan in product(ranges, plans))
    return (binding for some in every for binding in some if _fits(binding))


def _input(value: onnx.ValueInfoProto) -> Input:
    import onnx

    kind = value.type.WhichOneof("value")
    tensor = value.type.tensor_type
    known = tensor.elem_type in onnx.helper.get_all_tensor_dtypes()
    if kind is None or (kind == "tensor_type" and not known):
        told = "no type" if kind is None else f"an unknown element type ({tensor.elem_type})"
        raise InputError(f"input '{value.name}' declares {told}; export the model again")
    if kind != "tensor_type":
        kind = kind.removesuffix("_type")
        raise Unfeedable(f"input '{value.name}' is a {kind}; only tensors of numbers can be fed")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if dtype.kind not in "fiubV":
        name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise Unfeedable(f"input '{value.name}' has elements of type {name}; only numbers can be fed")
    if not tensor.HasField("shape"):
        return Input(value.name, dtype, None)
    dims = enumerate(tensor.shape.dim)
    return Input(value.name, dtype, tuple(_dimension(value.name, axis, dim) for axis, dim in dims))


def _dimension(name: str, axis: int, dim: onnx.TensorShapeProto.Dimension) -> int | str:
    if dim.HasField("dim_value") and dim.dim_value >= 0:  # negative: an old spelling of "free"
        return dim.dim_value
    return dim.dim_param or f"{name}[{axis}]"


def _is_vague(target: Input) -> bool:
    """Whether nothing says what its integers are for: eight bits are pixels, never an index or a length."""
    pixels = target.dtype.kind in "iu" and target.dtype.itemsize == 1
    return target.is_integer and target.bound is None and not pixels


def _bounds(model: onnx.ModelProto, inputs: Iterable[str]) -> dict[str, int]:
    """For inputs that are read as indices into a table among the constants: the number of its rows."""
    tables = {t.name: tuple(t.dims) for t in model.graph.initializer}
    sources = {name: {name} for name in inputs}  # of a value's elements
    bounds: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type == "Gather" and len(node.input) == 2 and (table := tables.get(node.input[0])):
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            for name in sources.get(node.input[1], ()) if -len(table) <= axis < len(table) else ():
                bounds[name] = min(table[axis], bounds.get(name, table[axis]))
        elif node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    tables[node.output[0]] = tuple(attribute.t.dims)
        elif node.op_type in _SELECTING:
            read = node.input if node.op_type == "Concat" else node.input[:1]
            found = set().union(*(sources.get(name, set()) for name in read))
            sources |= dict.fromkeys(node.output, found) if found else {}
            if node.op_type in _CONVERTING and node.input[0] in tables:
                tables[node.output[0]] = tables[node.input[0]]
    return {name: rows for name, rows in bounds.items() if rows}


def _sizes_read_by_weights(model: onnx.ModelProto) -> dict[str, tuple[int | None, int, int]]:
    """For inputs read by an operator with a stored weight: (rank or None, axis, size) it asks for."""
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    found: dict[str, tuple[int | None, int, int]] = {}
    for node in model.graph.node:
        shape = weights.get(node.input[1]) if len(node.input) > 1 else None
        if not shape:
            continue
        if node.op_type == "Conv" and len(shape) > 2:
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            found[node.input[0]] = (len(shape), 1, shape[1] * group)
        elif node.op_type == "ConvTranspose" and len(shape) > 2:
            found[node.input[0]] = (len(shape), 1, shape[0])
        elif node.op_type == "BatchNormalization":
            found[node.input[0]] = (None, 1, shape[0])
        elif node.op_type == "MatMul" and len(shape) > 1:
            found[node.input[0]] = (None, -1, shape[-2])
        elif node.op_type == "Gemm" and len(shape) == 2:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            found[node.input[0]] = (2, -1, shape[1 if transposed else 0])
    return found


def _ranked(target: Input, asked: Mapping[str, tuple[int | None, int, int]], rank: int) -> Input:
    """The input with a rank: its own, or what its reader's weight asks for, or this one."""
    if target.shape is not None:
        return target
    known = asked.get(target.name)
    length = rank if known is None else known[0] or max(rank, 2)
    return replace(target, shape=tuple(f"{target.name}[{axis}]" for axis in range(length)))


def _asked_by_weights(
    inputs: Sequence[Input], asked: Mapping[str, tuple[int | None, int, int]], sizes: Mapping[str, int]
) -> tuple[Input, ...]:
    """The inputs with the sizes that their readers' weights ask for, where the caller asks for none."""
    found = list(inputs)
    for i, target in enumerate(found):
        shape = target.shape or ()
        _, axis, size = asked.get(target.name, (None, 0, 0))
        if not size or len(shape) < 2 or isinstance(shape[axis], int) or shape[axis] in sizes:
            continue
        name, axis = shape[axis], axis % len(shape)
        if shape.count(name) > 1:  # a name for every free size says nothing
            found[i] = replace(target, shape=(*shape[:axis], size, *shape[axis + 1 :]))
            continue
        for j, other in enumerate(found):
            found[j] = replace(other, shape=tuple(size if d == name else d for d in other.shape or ()))
    return tuple(found)


def _free(inputs: Iterable[Input]) -> list[str]:
    """Names of the free dimensions, each once."""
    return list(dict.fromkeys(d for i in inputs for d in i.shape or () if isinstance(d, str)))


def _need_free(sizes: Mapping[str, int], inputs: Sequence[Input]) -> None:
    free = _free(inputs)
    for name, size in sizes.items():
        if name not in free:
            have = f"its free dimensions are {', '.join(free)}" if free else "all its dimensions are fixed"
            raise InputError(f"the model has no free dimension '{name}' in its inputs; {have}")
        if size < 1:
            raise InputError(f"dimension '{name}' cannot have size {size}; give 1 or more")


def _need_room(inputs: Iterable[Input], sizes: Mapping[str, int]) -> None:
    """Refuse declared sizes that no choice of the free ones can make up for."""
    for target in inputs:
        shape = [d if isinstance(d, int) else sizes.get(d, 1) for d in target.shape or ()]
        if _bytes(shape) > room():
            raise Unfeedable(
                f"input '{target.name}' of shape {shape} would take {_bytes(shape) / 2**30:,.0f} GiB in "
                f"float64, more than a quarter of the memory here ({room() / 2**30:,.1f} GiB); declare a "
                "smaller shape in the model, or make its large dimensions free and fix them with --shape"
            )


def _fits(binding: Binding) -> bool:
    return sum(_bytes(binding.shape(i, len(Values))) for i in binding.inputs) <= room()


def _bytes(shape: Iterable[int]) -> int:
    return 8 * math.prod(shape)


def room() -> int:
    """A quarter of the memory, in bytes: what a model computes needs several times its inputs."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, ValueError, OSError):  # not every system tells
        return 2 << 30


def _bound(
    inputs: tuple[Input, ...], fixed: Mapping[str, int], taken: set[int], integers: Integers
) -> Iterator[Binding]:
    """One way to feed after the other for inputs of known rank."""
    elsewhere = {d for i in inputs for d in (i.shape or ())[1:]}  # some call every free size N
    rows = frozenset(i.shape[0] for i in inputs if i.shape and isinstance(i.shape[0], str)) - elsewhere
    free = [name for name in _free(inputs) if name not in rows and name not in fixed]
    for sizes, others in _sizes(len(free), taken):
        yield Binding(
            inputs=inputs,
            sizes={**fixed, **dict(zip(free, sizes, strict=True))},
            batch=rows - fixed.keys(),
            rows=rows,
            integers=integers,
            others=dict(zip(free, others, strict=True)),
        )


def _sizes(count: int, taken: set[int]) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Sizes for so many free dimensions, and others that are much alike."""
    if count == 0:
        yield (), ()
        return
    odd = [n for n in range(37, 10_000, 2) if n not in taken]
    even = sorted((n for n in range(38, 10_000, 2) if n not in taken), key=_halves_late)
    by_32 = [n for n in range(64, 10_000 * 32, 32) if n not in taken]
    yield odd[:count], even[:count]
    yield by_32[:count], by_32[1 : count + 1]
    for size in _COINCIDING:
        other = 2 * size if size < 32 else size + 32 + size % 2
        yield [size] * count, [other] * count


def _halves_late(size: int) -> tuple[int, int]:
    """Orders even sizes: those of alike magnitude by how often they can be halved before they are odd, so
    that behind strides sizes are even as well."""
    return size // 32, -(size & -size)


def _numbers(rng: np.random.Generator, values: Values, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    drawn: Array
    wide = np.float64 if dtype.itemsize > 4 else np.float32
    match values:
        case Values.NORMAL:
            drawn = rng.standard_normal(shape, wide)
        case Values.UNIFORM:
            drawn = rng.random(shape, wide)
        case Values.WIDE:
            drawn = 3 * rng.standard_normal(shape, wide)
        case Values.ZERO:
            drawn = np.zeros(shape, wide)
    return np.asarray(drawn, dtype=dtype)
