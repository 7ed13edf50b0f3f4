"""Chooses what to feed a model that nobody told us anything about: sizes, types and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .session import Unrunnable

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]


class Values(Enum):
    """Distribution of the floating inputs of one feed."""

    NORMAL = "N(0, 1)"
    UNIFORM = "U[0, 1)"
    WIDE = "3 N(0, 1)"


class Integers(Enum):
    """Range of the integer inputs: they may be indices, lengths or pixels; [low, high)."""

    SMALL = (0, 3)
    ONE = (1, 2)
    ZERO = (0, 1)


@dataclass(frozen=True)
class Input:
    """One input of a graph that has to be fed.

    Attributes:
        name: Its name.
        dtype: Numpy dtype of its elements.
        shape: A size, or the name of a free one, per axis; None when not even the rank is known.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...] | None


@dataclass(frozen=True)
class Binding:
    """Inputs with every free size decided but that of the batch.

    Attributes:
        inputs: All of known rank.
        sizes: By name of the free dimension.
        batch: Names of the free leading dimensions; they share one size.
        integers: What integer inputs hold.
    """

    inputs: tuple[Input, ...]
    sizes: Mapping[str, int]
    batch: frozenset[str]
    integers: Integers

    def feed(self, rng: np.random.Generator, batch: int, values: Values) -> dict[str, Array]:
        """Arrays for all inputs, drawn from `rng`.

        Raises:
            Unrunnable: They would be larger than the memory.
        """
        try:
            return {i.name: self._draw(rng, i, batch, values) for i in self.inputs}
        except (MemoryError, ValueError) as error:
            raise Unrunnable(f"its inputs are too large to be made here: {error}") from error

    def _draw(self, rng: np.random.Generator, target: Input, batch: int, values: Values) -> Array:
        shape = [self._size(dim, batch) for dim in target.shape or ()]
        if target.dtype.kind == "b":
            return rng.integers(0, 2, shape).astype(bool)
        if target.dtype.kind in "iu":
            # Eight bits are pixels, never an index or a length.
            low, high = (0, 128) if target.dtype.itemsize == 1 else self.integers.value
            return rng.integers(low, high, shape).astype(target.dtype)
        match values:
            case Values.NORMAL:
                drawn = rng.standard_normal(shape)
            case Values.UNIFORM:
                drawn = rng.random(shape)
            case Values.WIDE:
                drawn = 3 * rng.standard_normal(shape)
        return np.asarray(drawn, dtype=target.dtype)

    def _size(self, dim: int | str, batch: int) -> int:
        return dim if isinstance(dim, int) else batch if dim in self.batch else self.sizes[dim]


# Sizes for all free dimensions alike: what images, sequences and small tables usually have.
_COINCIDING: tuple[int, ...] = (32, 64, 224, 1, 2, 3, 4, 8, 16, 5, 7, 10, 20, 50, 100)
_COINCIDING += (48, 96, 128, 192, 256, 299, 320, 416, 512, 640)


def inputs_of(model: onnx.ModelProto) -> tuple[Input, ...]:
    """The inputs of the main graph that no initializer provides.

    Raises:
        Unrunnable: One is not a tensor of numbers that numpy knows.
    """
    provided = {t.name for t in model.graph.initializer}
    provided |= {t.values.name for t in model.graph.sparse_initializer}
    return tuple(_input(value) for value in model.graph.input if value.name not in provided)


def bindings(model: onnx.ModelProto) -> Iterator[Binding]:
    """Ways to feed a model, the most telling first; the first that runs is to be taken.

    Free sizes differ from one another and from every size of a weight, so that a mistaken axis
    shows. Many networks run at some sizes only (multiples of 32, a length that is a constant inside):
    those come later, and in the end sizes that do coincide.
    """
    inputs = inputs_of(model)
    known = _sizes_read_by_weights(model)
    taken = {int(d) for t in model.graph.initializer for d in t.dims}
    has_integers = any(i.dtype.kind in "iu" and i.dtype.itemsize > 1 for i in inputs)
    unranked = any(i.shape is None and i.name not in known for i in inputs)
    ranges = list(Integers) if has_integers else [Integers.SMALL]
    for integers, rank in product(ranges, (4, 3, 2, 1, 5, 0) if unranked else (0,)):
        ranked = tuple(_ranked(i, known.get(i.name), rank) for i in inputs)
        names = list(dict.fromkeys(d for i in ranked for d in i.shape or () if isinstance(d, str)))
        elsewhere = {d for i in ranked for d in (i.shape or ())[1:]}  # some call every free size N
        leading = {i.shape[0] for i in ranked if i.shape and isinstance(i.shape[0], str)}
        batch = frozenset(name for name in leading if isinstance(name, str) and name not in elsewhere)
        free = [name for name in names if name not in batch]
        for sizes in _sizes(len(free), taken):
            yield Binding(ranked, dict(zip(free, sizes, strict=True)), batch, integers)


def _input(value: onnx.ValueInfoProto) -> Input:
    import onnx

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        kind = str(kind).removesuffix("_type")
        raise Unrunnable(f"input '{value.name}' is a {kind}; only tensors can be fed")
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if dtype.kind not in "fiub":
        name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
        raise Unrunnable(f"input '{value.name}' has elements of type {name}, which cannot be fed")
    if not tensor.HasField("shape"):
        return Input(value.name, dtype, None)
    dims = enumerate(tensor.shape.dim)
    return Input(value.name, dtype, tuple(_dimension(value.name, axis, dim) for axis, dim in dims))


def _dimension(name: str, axis: int, dim: onnx.TensorShapeProto.Dimension) -> int | str:
    if dim.HasField("dim_value") and dim.dim_value >= 0:  # negative: an old spelling of "free"
        return dim.dim_value
    return dim.dim_param or f"{name}[{axis}]"


def _sizes_read_by_weights(model: onnx.ModelProto) -> dict[str, tuple[int | None, int, int]]:
    """For inputs read by an operator with a stored weight: (rank or None, axis, size) it asks for."""
    weights = {t.name: tuple(t.dims) for t in model.graph.initializer}
    found: dict[str, tuple[int | None, int, int]] = {}
    for node in model.graph.node:
        shape = weights.get(node.input[1]) if len(node.input) > 1 else None
        if not shape:
            continue
        if node.op_type == "Conv":
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            found[node.input[0]] = (len(shape), 1, shape[1] * group)
        elif node.op_type == "ConvTranspose":
            found[node.input[0]] = (len(shape), 1, shape[0])
        elif node.op_type == "BatchNormalization":
            found[node.input[0]] = (None, 1, shape[0])
        elif node.op_type == "MatMul" and len(shape) > 1:
            found[node.input[0]] = (None, -1, shape[-2])
        elif node.op_type == "Gemm":
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            found[node.input[0]] = (2, -1, shape[1 if transposed else 0])
    return found


def _ranked(target: Input, known: tuple[int | None, int, int] | None, rank: int) -> Input:
    """The input with a rank, and with the size that its reader's weight asks for."""
    shape = target.shape
    if shape is None:
        length = rank if known is None else known[0] or max(rank, 2)
        shape = tuple(f"{target.name}[{axis}]" for axis in range(length))
    if known is not None and len(shape) > 1 and isinstance(shape[known[1]], str):
        axis = known[1] % len(shape)
        shape = (*shape[:axis], known[2], *shape[axis + 1 :])
    return replace(target, shape=shape)


def _sizes(count: int, taken: set[int]) -> Iterator[Sequence[int]]:
    """Sizes for so many free dimensions."""
    if count == 0:
        yield ()
        return
    odd = [n for n in range(37, 10_000, 2) if n not in taken]
    even = [n for n in range(64, 10_000 * 32, 32) if n not in taken]
    yield odd[:count]
    yield even[:count]
    for size in _COINCIDING:
        yield [size] * count
