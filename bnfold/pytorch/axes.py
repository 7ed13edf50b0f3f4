"""Calls that move, merge, divide and reduce axes, as operators of ONNX: see `layers`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import onnx_ir as ir
from torch import fx

from .shadow import Arguments, Builder, Dims, Unknown


def flatten(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    dims = b.need_dims(x)
    start, end = a.get("start_dim", 0) % len(dims), a.get("end_dim", -1) % len(dims)
    joined = _rest(b, dims[start : end + 1], ())
    return _reshaped(b, x, (*dims[:start], joined, *dims[end + 1 :]))


def reshape(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    wanted = [_size(b, size) for size in a["shape"]]
    if _ANY in wanted:
        k = wanted.index(_ANY)
        wanted[k] = _rest(b, b.dims(x), (*wanted[:k], *wanted[k + 1 :]))
    return _reshaped(b, x, tuple(wanted))


def reshape_as(b: Builder, a: Arguments) -> ir.Value:
    return _reshaped(b, b.data(a["input"]), b.need_dims(b.data(a["other"])))


_ANY = -1


def _size(b: Builder, argument: Any) -> int | str:
    """A size that a call is given: a number, or what stands for it."""
    if isinstance(argument, int):
        return argument
    if not isinstance(argument, fx.Node):
        raise Unknown
    found = _axis_of(argument)
    dims = None if found is None else b.dims(b.data(found[0]))
    return str(argument.name) if found is None or dims is None else dims[found[1]]


def _axis_of(size: fx.Node) -> tuple[fx.Node, int] | None:
    """The data, and the axis of them, that a node is the size of."""
    if size.target == "size" and len(size.args) == 2:
        return size.args[0], size.args[1]
    whole = size.args[0] if size.target is operator.getitem else None
    if not isinstance(whole, fx.Node) or not isinstance(size.args[1], int):
        return None
    if (whole.target is getattr and whole.args[1] == "shape") or (
        whole.target == "size" and len(whole.args) == 1
    ):
        return whole.args[0], size.args[1]
    return None


def _rest(b: Builder, dims: Sequence[int | str] | None, taken: Sequence[int | str]) -> int | str:
    """How many elements of each index of the axes taken there are."""
    if dims is None:
        return b.free(1)[0]
    left, divisor = list(dims), 1
    for size in taken:
        if size in left:
            left.remove(size)
        elif isinstance(size, int):
            divisor *= size
        else:
            return b.free(1)[0]
    symbols = [d for d in left if isinstance(d, str)]
    number = prod(d for d in left if isinstance(d, int))
    if symbols and (len(symbols) > 1 or number != divisor):
        return b.free(1)[0]
    return symbols[0] if symbols else number // divisor


def _reshaped(b: Builder, x: ir.Value, out: Dims) -> ir.Value:
    """A Reshape.

    Where all axes behind the channels become one with them, how many positions there are of each channel
    follows from what the reader takes, whatever the sizes may be.
    """
    dims = b.dims(x)
    shape = b.emit("Shape", [x], (len(out),))
    if dims is None or len(out) != 2 or len(dims) < 3 or out[0] != dims[0] or not isinstance(dims[1], int):
        return b.emit("Reshape", [x, shape], out)
    width = out[1] if isinstance(out[1], int) else b.width_after()
    if width is None:
        return b.emit("Reshape", [x, shape], out)
    x = b.emit("Reshape", [x, shape], (dims[0], dims[1], width // dims[1]))
    return b.emit("Reshape", [x, shape], (dims[0], width))


def permute(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    dims = b.need_dims(x)
    return _transposed(b, x, dims, [d % len(dims) for d in a["dims"]])


def transpose(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    dims = b.need_dims(x)
    order = list(range(len(dims)))
    i, j = (a[name] % len(dims) for name in ("dim0", "dim1"))
    order[i], order[j] = order[j], order[i]
    return _transposed(b, x, dims, order)


def _transposed(b: Builder, x: ir.Value, dims: Dims, order: list[int]) -> ir.Value:
    return b.emit("Transpose", [x], tuple(dims[i] for i in order), perm=order)


def squeeze(b: Builder, a: Arguments) -> ir.Value:
    """Along one axis; it goes only where its size is 1, which must be known."""
    x = b.data(a["input"])
    dims = b.need_dims(x)
    axis = a["dim"] % len(dims)
    if dims[axis] != 1:
        raise Unknown
    return b.emit("Squeeze", [x, b.number([axis])], (*dims[:axis], *dims[axis + 1 :]))


def unsqueeze(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    dims = b.need_dims(x)
    axis = a["dim"] % (len(dims) + 1)
    return b.emit("Unsqueeze", [x, b.number([axis])], (*dims[:axis], 1, *dims[axis:]))


def cat(b: Builder, a: Arguments) -> ir.Value:
    values = [b.data(t) for t in a["tensors"]]
    known = [b.need_dims(v) for v in values]
    axis = a.get("dim", 0) % len(known[0])
    sizes = [dims[axis] for dims in known]
    fixed = [n for n in sizes if isinstance(n, int)]
    total = sum(fixed) if len(fixed) == len(sizes) else b.free(1)[0]
    out = (*known[0][:axis], total, *known[0][axis + 1 :])
    return b.emit("Concat", values, out, axis=axis)


def chunk(b: Builder, a: Arguments) -> ir.Value:
    x, chunks = b.data(a["input"]), a["chunks"]
    axis, size = _known_size(b, x, a.get("dim", 0))
    if size % chunks:
        raise Unknown
    return _divided(b, x, axis, [size // chunks] * chunks)


def split(b: Builder, a: Arguments) -> ir.Value:
    x, sizes = b.data(a["input"]), a["sizes"]
    axis, size = _known_size(b, x, a.get("dim", 0))
    if isinstance(sizes, int):
        sizes = [sizes] * (size // sizes) + [size % sizes] * bool(size % sizes)
    return _divided(b, x, axis, list(sizes))


def _known_size(b: Builder, x: ir.Value, dim: int) -> tuple[int, int]:
    """An axis that is counted from the front, and its size."""
    dims = b.need_dims(x)
    axis = dim % len(dims)
    size = dims[axis]
    if not isinstance(size, int):
        raise Unknown
    return axis, size


def _divided(b: Builder, x: ir.Value, axis: int, sizes: Sequence[int]) -> ir.Value:
    dims = b.need_dims(x)
    return b.split(x, [(*dims[:axis], size, *dims[axis + 1 :]) for size in sizes], axis)


_FAR = (1 << 63) - 1


def getitem(b: Builder, a: Arguments) -> ir.Value:
    """A part of what was split, or a slice."""
    whole, index = a["input"], a["index"]
    if b.is_split(whole):
        return b.part(whole, index)
    x = b.data(whole)
    dims = list(b.need_dims(x))
    slices = index if isinstance(index, tuple) else (index,)
    starts, ends, axes = [], [], []
    for axis, cut in enumerate(slices):
        if not isinstance(cut, slice) or cut.step not in (None, 1):
            raise Unknown
        if cut == slice(None):
            continue
        starts.append(cut.start or 0)
        ends.append(_FAR if cut.stop is None else cut.stop)
        axes.append(axis)
        size = dims[axis]
        dims[axis] = len(range(size)[cut]) if isinstance(size, int) else b.free(1)[0]
    return b.emit("Slice", [x, *map(b.number, (starts, ends, axes))], tuple(dims))


def shape(b: Builder, a: Arguments) -> ir.Value:
    """What looks at no number of its data."""
    return b.emit("Shape", [b.data(a["input"])], None)


def attribute(b: Builder, a: Arguments) -> ir.Value:
    if a["name"] not in ("shape", "ndim", "dtype", "device"):
        raise Unknown
    return shape(b, a)


def reduce(op_type: str) -> Callable[[Builder, Arguments], ir.Value]:
    def handler(b: Builder, a: Arguments) -> ir.Value:
        x = b.data(a["input"])
        dims = b.need_dims(x)
        given = a["dim"]
        axes = sorted(d % len(dims) for d in ([given] if isinstance(given, int) else given))
        keep = bool(a.get("keepdim", False))
        out = (1 if i in axes else d for i, d in enumerate(dims) if keep or i not in axes)
        return b.emit(op_type, [x, b.number(axes)], tuple(out), keepdims=int(keep))

    return handler
