"""Conv and ConvTranspose, as matrix products.

Y[n, g, m] = Σ over input channels and kernel positions of W[g, m, c, k] · X[n, g, c, window at k]: what the
windows see is copied into a matrix, a few MB at a time so that it stays in the cache. A depthwise kernel
has no sum over channels to make a product of; there each kernel position adds to the result in turn.
"""

from __future__ import annotations

import math

import numpy as np

from .node import Array, Node, Operator, along
from .windows import Windows, blocks, last, per_axis, split_padding, taps

UNFOLDED = 1 << 19
"""Elements of the matrix of windows: 4 MB."""
COLUMNS = 256
"""Its least width; with fewer columns a product takes as long."""
DEPTHWISE = 1 << 15
"""Elements of the result that a depthwise kernel works on at a time: 256 KB, thrice."""


def conv(node: Node) -> Array:
    x, w, groups = node[0], node[1], node.attributes["group"]
    _check(node, x, w)
    if x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:
        raise ValueError(f"W does not fit {x.shape[1]} channels in {groups} groups")
    windows = Windows.of(node, x.shape[2:], w.shape[2:])
    padded = windows.pad(x, 0, 0)
    if w.shape[1] == 1 and w.shape[0] == groups:
        y = np.empty((x.shape[0], groups, *windows.counts))
        for data, result in zip(padded, y, strict=True):
            _depthwise(windows, data, w[:, 0], result)
    else:
        y = np.empty((x.shape[0], groups, w.shape[0] // groups, math.prod(windows.counts)))
        weights = w.reshape(groups, w.shape[0] // groups, -1)
        for data, result in zip(padded, y, strict=True):
            _product(windows, data.reshape(groups, -1, *data.shape[1:]), weights, result)
    return _with_bias(y.reshape(x.shape[0], w.shape[0], *windows.counts), node.optional(2))


def _product(windows: Windows, padded: Array, weights: Array, y: Array) -> None:
    """X [groups, channels, sizes...], W [groups, outputs, channels·kernel], Y [groups, outputs, windows]"""
    groups, _, depth = weights.shape
    if math.prod(windows.kernel) == 1:
        seen = padded[last(slice(None, None, s) for s in windows.strides)]
        np.matmul(weights, seen.reshape(groups, depth, -1), out=y)
        return
    start = 0
    for block in blocks(windows.counts, max(UNFOLDED // (groups * depth), COLUMNS)):
        matrix = windows.unfolded(padded, block).reshape(groups, depth, -1)
        stop = start + matrix.shape[2]
        np.matmul(weights, matrix, out=y[..., start:stop])
        start = stop


def _depthwise(windows: Windows, padded: Array, weights: Array, y: Array) -> None:
    """X [channels, spatial...], W [channels, kernel...]: Y [channels, windows...]."""
    for channels, *block in blocks(y.shape, DEPTHWISE):
        result = y[channels, *block]
        part = _Phases(windows, windows.part(padded[channels], block))
        scratch = np.empty_like(result)
        for index, position in enumerate(np.ndindex(*windows.kernel)):
            weight = weights[(channels, *position)].reshape(-1, *[1] * len(block))
            seen = part.seen(position, result.shape[1:])
            if index == 0:
                np.multiply(seen, weight, out=result)
            else:
                np.add(result, np.multiply(seen, weight, out=scratch), out=result)


class _Phases:
    """Data taken apart by stride, so that what all windows see at a position is without gaps."""

    def __init__(self, windows: Windows, data: Array) -> None:
        self._windows = windows
        self._data = data
        self._phases: dict[tuple[int, ...], Array] = {}

    def seen(self, position: tuple[int, ...], counts: tuple[int, ...]) -> Array:
        """What `counts` windows see at a kernel position."""
        strides = self._windows.strides
        offsets = [p * d for p, d in zip(position, self._windows.dilations, strict=True)]
        phase = tuple(offset % s for offset, s in zip(offsets, strides, strict=True))
        if phase not in self._phases:
            gaps = last(slice(at, None, s) for at, s in zip(phase, strides, strict=True))
            self._phases[phase] = np.ascontiguousarray(self._data[gaps])
        starts = [offset // s for offset, s in zip(offsets, strides, strict=True)]
        seen: Array = self._phases[phase][last(slice(a, a + n) for a, n in zip(starts, counts, strict=True))]
        return seen


def conv_transpose(node: Node) -> Array:
    """The adjoint of Conv: every x adds a weighted kernel to the output; the padding is cropped away."""
    x, w, groups = node[0], node[1], node.attributes["group"]
    _check(node, x, w)
    if x.shape[1] != w.shape[0] or w.shape[0] % groups:
        raise ValueError(f"W does not fit {x.shape[1]} channels in {groups} groups")
    sizes, kernel, axes = x.shape[2:], w.shape[2:], x.ndim - 2
    strides = per_axis(node, "strides", axes, 1)
    dilations = per_axis(node, "dilations", axes, 1)
    extra = per_axis(node, "output_padding", axes, 0)
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(sizes, strides, kernel, dilations, extra, strict=True)
    ]
    begin, out = _crop(node, full, [n * s for n, s in zip(sizes, strides, strict=True)])

    data = x.reshape(x.shape[0], groups, x.shape[1] // groups, -1)
    weights = _kernel_first(w.reshape(groups, w.shape[0] // groups, w.shape[1], *kernel).swapaxes(1, 2))
    # An `output_shape` larger than what the kernel reaches is filled with zeros at the end.
    canvas = [max(f, b + o) for f, b, o in zip(full, begin, out, strict=True)]
    y = np.zeros((x.shape[0], groups, w.shape[1], *canvas))
    for position, window in taps(kernel, strides, dilations, sizes):
        spread = weights[position] @ data
        y[window] += spread.reshape(*spread.shape[:3], *sizes)
    kept = last(slice(b, b + o) for b, o in zip(begin, out, strict=True))
    return _with_bias(np.ascontiguousarray(y[kept]).reshape(x.shape[0], -1, *out), node.optional(2))


def _crop(node: Node, full: list[int], same: list[int]) -> tuple[list[int], list[int]]:
    """Where ConvTranspose's output begins in the full one, and its sizes."""
    axes, auto_pad = len(full), node.attributes["auto_pad"]
    if node.attributes.get("output_shape"):
        out = list(node.attributes["output_shape"])[-axes:]
    elif auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        out = same
    else:
        pads = [0] * 2 * axes if auto_pad == "VALID" else per_axis(node, "pads", 2 * axes, 0)
        return pads[:axes], [f - pads[i] - pads[axes + i] for i, f in enumerate(full)]
    return [split_padding(auto_pad, max(f - o, 0))[0] for f, o in zip(full, out, strict=True)], out


def _kernel_first(weights: Array) -> Array:
    """[groups, outputs, inputs, kernel...] to [kernel..., groups, outputs, inputs]."""
    return np.moveaxis(weights, (0, 1, 2), (-3, -2, -1))


def _check(node: Node, x: Array, w: Array) -> None:
    if x.ndim < 3 or w.ndim != x.ndim:
        raise ValueError(f"X of rank {x.ndim} and W of rank {w.ndim}")
    declared = per_axis(node, "kernel_shape", w.ndim - 2, 0)
    if any(declared) and tuple(declared) != w.shape[2:]:
        raise ValueError(f"kernel_shape is {declared}, but W has shape {w.shape}")


def _with_bias(y: Array, bias: Array | None) -> Array:
    """Adds a bias of shape [channels] to a fresh result, in place."""
    if bias is None:
        return y
    if bias.shape != y.shape[1:2]:
        raise ValueError(f"a bias of shape {bias.shape} does not fit {y.shape[1]} channels")
    y += along(bias, 1, y.ndim)
    return y


OPERATORS: dict[str, Operator] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
}
