"""What a chain of nodes over constants computes: one numpy expression per operator.

The arithmetic is that of the model's own dtype, as any runtime does it. Nothing is computed that would
exceed `LIMIT`: a file of a hundred bytes can ask for terabytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .nodes import NodeView
from .report import Declined, Reason

Array = NDArray[Any]
LIMIT = 1 << 28
"""The most elements of a computed constant."""

SEES: dict[str, tuple[int, ...]] = {"Shape": (), "Size": (), "CastLike": (0,)}
"""The inputs whose values an operator reads, where it is not all of them: of the others it reads the
shape or the dtype only, and they may be data."""

# The Cast of opset 1 names its target by a string.
_LEGACY_CAST = {
    "FLOAT": "FLOAT",
    "FLOAT16": "FLOAT16",
    "DOUBLE": "DOUBLE",
    "INT32": "INT32",
    "INT64": "INT64",
}


def evaluate(view: NodeView, inputs: Sequence[Array | None]) -> Array:
    """The first output of a node, from the values of its inputs.

    Raises:
        Declined: The operator is not one of `EVALUATE`, the result is too large, or the node is invalid.
    """
    if inputs and inputs[0] is None:
        raise Declined(Reason.MALFORMED, f"{view.type} {view.name!r} lacks its first input")
    try:
        with np.errstate(all="ignore"):
            return np.asarray(EVALUATE[view.node.op_type](view, *inputs))
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise Declined(Reason.NOT_STATIC, f"{view.type} {view.name!r} cannot be computed: {error}") from error


def broadcast_legacy(view: NodeView, a: Array, b: Array) -> Array:
    """b shaped so that numpy broadcasts it as the attributes of opset 1 to 6 say."""
    if view.opset >= 7 or not view.integer("broadcast", 0):
        return b
    axis = view.integer("axis", a.ndim - b.ndim)
    axis += a.ndim if axis < 0 else 0
    return b.reshape(b.shape + (1,) * (a.ndim - axis - b.ndim))


def _arithmetic(f: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def apply(view: NodeView, a: Array, b: Array) -> Array:
        b = broadcast_legacy(view, a, b)
        _need_room(np.broadcast_shapes(a.shape, b.shape))
        return np.asarray(f(a, b)).astype(a.dtype, copy=False)

    return apply


def _divide(a: Array, b: Array) -> Array:
    if np.issubdtype(a.dtype, np.integer):  # towards zero, unlike numpy's //
        return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))
    return np.asarray(a / b)


def _cast(view: NodeView, x: Array) -> Array:
    if view.opset < 6:
        return x.astype(ir.DataType[_LEGACY_CAST[view.text("to", "")]].numpy())
    target = ir.DataType(view.integer("to", 0))
    if target.bitwidth < 16 and target.is_floating_point():
        raise TypeError(f"whether {target.name} saturates is up to the runtime")
    return x.astype(target.numpy())


def _clip(view: NodeView, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """Bounds are attributes up to opset 10; a lower bound above the upper one gives the upper one."""
    if view.opset < 11:
        low, high = (np.asarray(view.real(n, b), x.dtype) for n, b in (("min", -np.inf), ("max", np.inf)))
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _extreme(f: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    def apply(view: NodeView, *parts: Array) -> Array:
        _need_room(np.broadcast_shapes(*(p.shape for p in parts)))
        return reduce(f, parts)

    return apply


def _constant(view: NodeView) -> Array:
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32)):
        if view.has(name):
            value = view.real(name, 0.0) if name == "value_float" else view.reals(name)
            return np.asarray(value, dtype)
    if view.has("value_int"):
        return np.asarray(view.integer("value_int", 0), np.int64)
    if view.has("value_ints"):
        return np.asarray(view.integers("value_ints"), np.int64)
    tensor = view.tensor("value")
    if tensor is None:
        raise KeyError("it holds no tensor of numbers")
    return tensor.numpy()


def _constant_of_shape(view: NodeView, shape: Array) -> Array:
    value = view.tensor("value")
    fill = np.zeros(1, np.float32) if value is None else value.numpy()
    _need_room(shape.tolist())
    return np.broadcast_to(fill.reshape(()), shape.tolist())


def _reshape(view: NodeView, x: Array, shape: Array | None = None) -> Array:
    target = list(view.integers("shape") or ()) if shape is None else [int(n) for n in shape]
    if not view.integer("allowzero", 0):
        target = [x.shape[i] if n == 0 else n for i, n in enumerate(target)]
    return x.reshape(target)


def _flatten(view: NodeView, x: Array) -> Array:
    axis = view.integer("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(view: NodeView, x: Array, axes: Array | None = None) -> Array:
    given = view.integers("axes") if axes is None else tuple(int(a) for a in axes)
    return np.squeeze(x, given)


def _unsqueeze(view: NodeView, x: Array, axes: Array | None = None) -> Array:
    given = view.integers("axes") if axes is None else tuple(int(a) for a in axes)
    return np.expand_dims(x, given or ())


def _expand(view: NodeView, x: Array, shape: Array) -> Array:
    target = np.broadcast_shapes(x.shape, tuple(int(n) for n in shape))
    _need_room(target)
    return np.broadcast_to(x, target)


def _tile(view: NodeView, x: Array, repeats: Array) -> Array:
    _need_room([n * int(r) for n, r in zip(x.shape, repeats, strict=True)])
    return np.tile(x, repeats.tolist())


def _concat(view: NodeView, *parts: Array) -> Array:
    return np.concatenate(parts, view.integer("axis", 1))


def _gather(view: NodeView, x: Array, index: Array) -> Array:
    axis = view.integer("axis", 0)
    _need_room([*index.shape, x.size // max(1, x.shape[axis])])
    return np.take(x, index, axis)


def _slice(
    view: NodeView,
    x: Array,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    if starts is None or ends is None:
        starts, ends = np.array(view.integers("starts")), np.array(view.integers("ends"))
        given = view.integers("axes")
        axes = None if given is None else np.array(given)
    index = [slice(None)] * x.ndim
    for i, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        step = 1 if steps is None else int(steps[i])
        axis = i if axes is None else int(axes[i])
        index[axis] = slice_of(start, end, step, x.shape[axis])
    return x[tuple(index)]


def slice_of(start: int, end: int, step: int, size: int) -> slice:
    """The bounds of Slice as numpy's: backwards, ONNX begins at the first element at the latest, and an end
    below -size includes it."""
    if step > 0:
        return slice(start, end, step)
    start = max(start + size, 0) if start < 0 else start
    return slice(start, None if end < -size else end, step)


def _transpose(view: NodeView, x: Array) -> Array:
    return x.transpose(view.integers("perm"))


def _need_room(shape: Sequence[int]) -> None:
    if math.prod(int(n) for n in shape) > LIMIT:
        raise Declined(
            Reason.TOO_LARGE, f"a computed constant of shape {list(shape)} is over {LIMIT} elements"
        )


EVALUATE: dict[str, Callable[..., Array]] = {
    "Abs": lambda view, x: np.abs(x),
    "Add": _arithmetic(lambda a, b: a + b),
    "Cast": _cast,
    "CastLike": lambda view, x, like: x.astype(like.dtype),
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _arithmetic(_divide),
    "Exp": lambda view, x: np.exp(x),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda view, x: x,
    "Max": _extreme(np.maximum),
    "Min": _extreme(np.minimum),
    "Mul": _arithmetic(lambda a, b: a * b),
    "Neg": lambda view, x: -x,
    "Pow": _arithmetic(lambda a, b: a**b),
    "Reciprocal": lambda view, x: (1 / x).astype(x.dtype),
    "Relu": lambda view, x: np.maximum(x, np.zeros((), x.dtype)),
    "Reshape": _reshape,
    "Shape": lambda view, x: np.asarray(
        x.shape[slice(view.integer("start", 0), view.integer("end", len(x.shape)))], np.int64
    ),
    "Size": lambda view, x: np.asarray(math.prod(x.shape), np.int64),
    "Slice": _slice,
    "Sqrt": lambda view, x: np.sqrt(x).astype(x.dtype, copy=False),
    "Squeeze": _squeeze,
    "Sub": _arithmetic(lambda a, b: a - b),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
