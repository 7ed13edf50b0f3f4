"""Operators that move, select, repeat or create values without computing with them."""

from __future__ import annotations

import math

import numpy as np

from .elementwise import carried_dtype
from .node import Array, Node, Operator, along
from .outcome import Unsupported
from .stored import dense, tensor


def concat(node: Node) -> Array:
    return np.concatenate([node[i] for i in range(len(node.inputs))], axis=node.attributes.get("axis", 1))


def split(node: Node) -> tuple[Array, ...]:
    x, axis = node[0], node.attributes.get("axis", 0)
    size, parts = x.shape[axis], len(node.outputs)
    sizes = node.ints("split", 1)
    if sizes is None and "num_outputs" in node.attributes:
        chunk = math.ceil(size / parts)
        sizes = [min(chunk, size - i * chunk) for i in range(parts)]
    elif sizes is None:
        sizes = [size // parts] * parts
    if sum(sizes) != size or len(sizes) != parts:
        raise ValueError(f"Split of {size} along axis {axis} into {sizes} for {parts} outputs")
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


def slice_(node: Node) -> Array:
    x, starts, ends = node[0], node.ints("starts", 1), node.ints("ends", 2)
    assert starts is not None and ends is not None
    axes = node.ints("axes", 3) or range(len(starts))
    steps = node.ints("steps", 4) or [1] * len(starts)
    where = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # Unlike in Python, a start before the first value is the first value, backwards as well.
        where[axis] = slice(max(start, -x.shape[axis]), end, step)
    return x[tuple(where)]


def gather(node: Node) -> Array:
    return np.asarray(np.take(node[0], node[1], axis=node.attributes["axis"]))


def scatter(node: Node) -> Array:
    """What is called ScatterElements from opset 11 on, with fewer options."""
    y = node[0].copy()
    y[_elements(node)] = node[2]
    return y


def gather_elements(node: Node) -> Array:
    return np.asarray(node[0][_elements(node)])


def _elements(node: Node) -> tuple[Array, ...]:
    """Where each of the indices points: along `axis` by its value, along the others by its own place."""
    where: list[Array] = list(np.indices(node[1].shape))
    where[node.attributes["axis"]] = node[1]
    return tuple(where)


def transpose(node: Node) -> Array:
    return np.transpose(node[0], node.attributes.get("perm"))


def squeeze(node: Node) -> Array:
    axes = node.ints("axes", 1)
    return np.squeeze(node[0], None if axes is None else tuple(axes))


def unsqueeze(node: Node) -> Array:
    axes = node.ints("axes", 1)
    assert axes is not None
    return np.expand_dims(node[0], tuple(axes))


def flatten(node: Node) -> Array:
    x, axis = node[0], node.attributes["axis"]
    outer = math.prod(x.shape[: axis + x.ndim if axis < 0 else axis])
    return x.reshape(outer, x.size // outer if outer else math.prod(x.shape[axis:]))


def reshape(node: Node) -> Array:
    x, shape = node[0], node.ints("shape", 1)
    assert shape is not None
    if not node.attributes.get("allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def pad(node: Node) -> Array:
    x = node[0]
    pads = node.ints("paddings" if node.opset < 2 else "pads", 1)
    assert pads is not None
    axes = node.ints("axes", 3) or range(x.ndim)
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(axes):
        widths[axis] = (pads[i], pads[i + len(pads) // 2])
    # Negative padding crops.
    x = x[tuple(slice(max(-a, 0), size - max(-b, 0)) for (a, b), size in zip(widths, x.shape, strict=True))]
    widths = [(max(a, 0), max(b, 0)) for a, b in widths]
    mode = node.attributes["mode"]
    if mode != "constant":
        return np.pad(x, widths, mode=mode)
    value = node.optional(2)
    fill = node.attributes.get("value", 0) if value is None else value.item()
    return np.pad(x, widths, constant_values=fill)


def depth_to_space(node: Node) -> Array:
    x, b = node[0], node.attributes["blocksize"]
    n, c, h, w = x.shape
    if node.attributes.get("mode", "DCR") == "DCR":
        blocks = x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, c // b**2, h * b, w * b)


def space_to_depth(node: Node) -> Array:
    x, b = node[0], node.attributes["blocksize"]
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if node.attributes.get("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.transpose(order).reshape(n, c * b**2, h // b, w // b)


def expand(node: Node) -> Array:
    shape = node.ints("shape", 1)
    assert shape is not None
    return np.broadcast_to(node[0], np.broadcast_shapes(node[0].shape, tuple(shape)))


def tile(node: Node) -> Array:
    if node.opset >= 6:
        return np.tile(node[0], node[1].astype(np.int64))
    repeats = [1] * node[0].ndim
    repeats[int(node[2].item())] = int(node[1].item())
    return np.tile(node[0], repeats)


def shape(node: Node) -> Array:
    return np.array(node[0].shape[node.attributes.get("start", 0) : node.attributes.get("end")], np.int64)


def size(node: Node) -> Array:
    return np.array(node[0].size, np.int64)


def constant(node: Node) -> Array:
    ((name, value),) = node.attributes.items()
    if name == "value":
        return node.constant(tensor(value))
    if name == "sparse_value":
        return node.constant(dense(value))
    if name.startswith("value_string"):
        raise Unsupported("it holds strings")
    return node.constant(np.array(value, np.float32 if name.startswith("value_float") else np.int64))


def constant_of_shape(node: Node) -> Array:
    value = tensor(node.attributes["value"]) if "value" in node.attributes else np.zeros(1, np.float32)
    return node.constant(np.full(node[0].astype(np.int64), value.item(), value.dtype))


def eye_like(node: Node) -> Array:
    rows, columns = node[0].shape
    dtype = carried_dtype(node.attributes["dtype"]) if "dtype" in node.attributes else node[0].dtype
    return np.eye(rows, columns, node.attributes["k"], dtype)


def one_hot(node: Node) -> Array:
    """Indices count from the end where they are negative; beyond the depth, nothing is hot."""
    indices, depth, (off, on) = node[0].astype(np.int64), int(node[1].item()), node[2]
    axis = node.attributes["axis"]
    places = along(np.arange(depth), axis, indices.ndim + 1)
    hot = np.expand_dims(np.where(indices < 0, indices + depth, indices), axis) == places
    return np.asarray(np.where(hot, on, off))


def range_(node: Node) -> Array:
    start, limit, delta = (node[i].item() for i in range(3))
    count = max(math.ceil((limit - start) / delta), 0)
    return np.asarray(start + np.arange(count) * delta, node[0].dtype)


OPERATORS: dict[str, Operator] = {
    "Concat": concat,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "OneHot": one_hot,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "Scatter": scatter,
    "Shape": shape,
    "Size": size,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
}
