"""Pools over windows and over whole spatial axes."""

from __future__ import annotations

import numpy as np

from .node import Array, Node, Operator, is_float
from .windows import Windows


def average_pool(node: Node) -> Array:
    x = node[0]
    windows = Windows.of(node, x.shape[2:], node.attributes["kernel_shape"])
    padded = windows.pad(x, 0, 0)
    # What a window reaches beyond the padding never counts, the padding itself only if asked for.
    counted = windows.pad(np.ones_like(x[:1, :1]), node.attributes.get("count_include_pad", 0), 0)
    return np.asarray(_stack(windows, padded).sum(axis=0) / _stack(windows, counted).sum(axis=0))


def max_pool(node: Node) -> tuple[Array, ...]:
    x = node[0]
    windows = Windows.of(node, x.shape[2:], node.attributes["kernel_shape"])
    low = -np.inf if is_float(x) else np.iinfo(x.dtype).min
    padded = windows.pad(x, low, low)
    seen = _stack(windows, padded)

    places = np.arange(x[0, 0].size)
    if node.attributes.get("storage_order", 0):  # column-major
        places = places.reshape(x.shape[:1:-1]).T
    else:
        places = places.reshape(x.shape[2:])
    planes = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *[1] * (x.ndim - 2)) * x[0, 0].size
    # Padding has the place -1 and must lose against data that is as low as itself.
    padded_places = windows.pad(np.broadcast_to(places, (1, 1, *places.shape)), -1, -1)
    candidates = _stack(windows, padded_places)
    largest = seen.max(axis=0)
    first = np.argmax((seen == largest) & (candidates >= 0), axis=0)[np.newaxis]
    indices = np.take_along_axis(np.broadcast_to(candidates, seen.shape), first, axis=0)[0]
    return largest, indices + planes


def lp_pool(node: Node) -> Array:
    x, p = node[0], node.attributes["p"]
    windows = Windows.of(node, x.shape[2:], node.attributes["kernel_shape"])
    padded = np.abs(windows.pad(x, 0, 0)) ** p
    return np.asarray(_stack(windows, padded).sum(axis=0) ** (1 / p))


def global_average_pool(node: Node) -> Array:
    return np.asarray(node[0].mean(axis=tuple(range(2, node[0].ndim)), keepdims=True))


def global_max_pool(node: Node) -> Array:
    return np.asarray(node[0].max(axis=tuple(range(2, node[0].ndim)), keepdims=True))


def _stack(windows: Windows, padded: Array) -> Array:
    """[kernel positions, N, C, windows...]"""
    return np.stack([seen for _, seen in windows.views(padded)])


OPERATORS: dict[str, Operator] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "LpPool": lp_pool,
    "MaxPool": max_pool,
}
