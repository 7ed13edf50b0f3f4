"""The operators with weights: MatMul, Gemm, Conv, ConvTranspose."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .node import Array, Node, Operator, along
from .windows import Windows, per_axis, split_padding, taps


def matmul(node: Node) -> Array:
    return np.asarray(np.matmul(node[0], node[1]))


def gemm(node: Node) -> Array:
    a = node[0].T if node.attributes["transA"] else node[0]
    b = node[1].T if node.attributes["transB"] else node[1]
    product = node.attributes["alpha"] * (a @ b)
    c = node.optional(2)
    if c is None:
        return np.asarray(product)
    if node.opset < 7 and not node.attributes["broadcast"] and c.shape != product.shape:
        raise ValueError(f"Gemm without broadcast=1: C has shape {c.shape}, not {product.shape}")
    return np.asarray(product + node.attributes["beta"] * np.broadcast_to(c, product.shape))


def conv(node: Node) -> Array:
    """Y[n, g, m] = Σ over input channels and kernel positions of W[g, m, c, k] · X[n, g, c, window at k]."""
    x, w, groups = node[0], node[1], node.attributes["group"]
    _check_kernel_shape(node, w)
    windows = Windows.of(node, x.shape[2:], w.shape[2:])
    padded = windows.pad(x, 0, 0)
    padded = padded.reshape(x.shape[0], groups, x.shape[1] // groups, *padded.shape[2:])
    weights = _kernel_first(w.reshape(groups, w.shape[0] // groups, x.shape[1] // groups, *windows.kernel))
    y = np.zeros((x.shape[0], groups, w.shape[0] // groups, math.prod(windows.counts)))
    for position, seen in windows.views(padded):
        y += weights[position] @ seen.reshape(*seen.shape[:3], -1)
    return _with_bias(y.reshape(x.shape[0], w.shape[0], *windows.counts), node.optional(2))


def conv_transpose(node: Node) -> Array:
    """The adjoint of Conv: every x adds a weighted kernel to the output; the padding is cropped away."""
    x, w, groups = node[0], node[1], node.attributes["group"]
    _check_kernel_shape(node, w)
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
    kept: tuple[Any, ...] = (..., *(slice(b, b + o) for b, o in zip(begin, out, strict=True)))
    return _with_bias(y[kept].reshape(x.shape[0], -1, *out), node.optional(2))


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


def _check_kernel_shape(node: Node, w: Array) -> None:
    declared = per_axis(node, "kernel_shape", w.ndim - 2, 0)
    if any(declared) and tuple(declared) != w.shape[2:]:
        raise ValueError(f"{node.op_type}: kernel_shape {declared}, but W has shape {w.shape}")


def _with_bias(y: Array, bias: Array | None) -> Array:
    if bias is None:
        return y
    if bias.shape != y.shape[1:2]:
        raise ValueError(f"a bias of shape {bias.shape} does not fit {y.shape[1]} channels")
    return np.asarray(y + along(bias, 1, y.ndim))


OPERATORS: dict[str, Operator] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
}
