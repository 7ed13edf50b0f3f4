"""Pools over windows and over whole spatial axes.

The largest value and the sum of a window are those of its rows' largest values and sums: one axis after the
other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .node import Array, Node, Operator, is_float
from .windows import Windows


def average_pool(node: Node) -> Array:
    x = node[0]
    windows = _windows(node)
    y = _reduced(windows, windows.pad(x, 0, 0), np.add)
    # What a window reaches beyond the padding never counts, the padding itself only if asked for.
    ones = np.ones((1, 1, *x.shape[2:]))
    y /= _reduced(windows, windows.pad(ones, node.attributes.get("count_include_pad", 0), 0), np.add)
    return y


def max_pool(node: Node) -> tuple[Array, ...]:
    x = node[0]
    windows = _windows(node)
    low = -np.inf if is_float(x) else np.iinfo(x.dtype).min
    padded = windows.pad(x, low, low)
    largest = _reduced(windows, padded, np.maximum)
    if len(node.outputs) < 2 or not node.outputs[1]:
        return (largest,)
    return largest, _indices(windows, x, padded, largest, bool(node.attributes.get("storage_order", 0)))


def _indices(windows: Windows, x: Array, padded: Array, largest: Array, column_major: bool) -> Array:
    """Where the largest value of each window is first found, as an index into the data."""
    plane = math.prod(x.shape[2:])
    order = np.arange(plane)
    places = order.reshape(x.shape[:1:-1]).T if column_major else order.reshape(x.shape[2:])
    # Padding has the place -1 and must lose against data that is as low as itself.
    padded_places = windows.pad(places[np.newaxis, np.newaxis], -1, -1)
    indices = np.full(largest.shape, -1)
    candidates = windows.views(padded_places)
    for (_, seen), (_, place) in zip(windows.views(padded), candidates, strict=True):
        np.copyto(indices, place, where=(indices < 0) & (place >= 0) & (seen == largest))
    planes = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
    return np.asarray(indices + planes * plane)


def lp_pool(node: Node) -> Array:
    windows, p = _windows(node), node.attributes["p"]
    return np.asarray(_reduced(windows, np.abs(windows.pad(node[0], 0, 0)) ** p, np.add) ** (1 / p))


def global_average_pool(node: Node) -> Array:
    return np.asarray(_planes(node[0]).mean(axis=2)).reshape(_pooled(node[0]))


def global_max_pool(node: Node) -> Array:
    return np.asarray(_planes(node[0]).max(axis=2)).reshape(_pooled(node[0]))


def global_lp_pool(node: Node) -> Array:
    p = node.attributes["p"]
    return np.asarray((np.abs(_planes(node[0])) ** p).sum(axis=2) ** (1 / p)).reshape(_pooled(node[0]))


def _windows(node: Node) -> Windows:
    kernel = node.attributes.get("kernel_shape")
    if kernel is None:
        raise ValueError("kernel_shape is not given")
    return Windows.of(node, node[0].shape[2:], kernel)


def _reduced(windows: Windows, padded: Array, function: Callable[..., Any]) -> Array:
    """What `function` makes of the values in each window; a fresh array."""
    y = padded
    for axis in reversed(range(len(windows.kernel))):
        stride, dilation, count = windows.strides[axis], windows.dilations[axis], windows.counts[axis]
        source = np.moveaxis(y, axis + 2, 0)
        rows = [
            source[at : at + (count - 1) * stride + 1 : stride]
            for at in range(0, windows.kernel[axis] * dilation, dilation)
        ]
        fresh = np.empty((*y.shape[: axis + 2], count, *y.shape[axis + 3 :]), y.dtype)
        result = np.moveaxis(fresh, axis + 2, 0)
        result[...] = rows[0]
        for row in rows[1:]:
            function(result, row, out=result)
        y = fresh
    return y


def _planes(x: Array) -> Array:
    if x.ndim < 3:
        raise ValueError(f"data of rank {x.ndim} have no spatial axes")
    return x.reshape(*x.shape[:2], -1)


def _pooled(x: Array) -> tuple[int, ...]:
    return (*x.shape[:2], *[1] * (x.ndim - 2))


OPERATORS: dict[str, Operator] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalLpPool": global_lp_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}
