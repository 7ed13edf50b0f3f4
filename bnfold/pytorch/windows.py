"""Calls that pool, pad and resize, as operators of ONNX: see `layers`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .shadow import Arguments, Builder, Dims, Unknown, per_axis


def max_pool(b: Builder, a: Arguments) -> ir.Value:
    if a.get("return_indices"):
        raise Unknown
    x = b.data(a["input"])
    k = _need_spatial(b, x, a)
    kernel = per_axis(a["kernel_size"], k)
    return b.emit(
        "MaxPool",
        [x],
        _pooled(b, x),
        kernel_shape=kernel,
        strides=per_axis(a.get("stride") or kernel, k),
        pads=per_axis(a.get("padding", 0), k) * 2,
        dilations=per_axis(a.get("dilation", 1), k),
        ceil_mode=int(a.get("ceil_mode", False)),
    )


def avg_pool(b: Builder, a: Arguments) -> ir.Value:
    if a.get("divisor_override") is not None:
        raise Unknown
    x = b.data(a["input"])
    k = _need_spatial(b, x, a)
    kernel = per_axis(a["kernel_size"], k)
    return b.emit(
        "AveragePool",
        [x],
        _pooled(b, x),
        kernel_shape=kernel,
        strides=per_axis(a.get("stride") or kernel, k),
        pads=per_axis(a.get("padding", 0), k) * 2,
        ceil_mode=int(a.get("ceil_mode", False)),
        count_include_pad=int(a.get("count_include_pad", True)),
    )


def adaptive_avg_pool(b: Builder, a: Arguments) -> ir.Value:
    """Each result is an average of data, so as for an affine it is a Resize."""
    x = b.data(a["input"])
    dims = b.need_dims(x)
    sizes = per_axis(a["output_size"], _need_spatial(b, x, a))
    if all(size == 1 for size in sizes):
        return b.emit("GlobalAveragePool", [x], (*dims[:2], *sizes))
    out = (*dims[:2], *(b.free(1)[0] if size is None else size for size in sizes))
    return _resized(b, x, out)


def adaptive_max_pool(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    dims = b.need_dims(x)
    sizes = per_axis(a["output_size"], _need_spatial(b, x, a))
    if a.get("return_indices") or any(size != 1 for size in sizes):
        raise Unknown
    return b.emit("GlobalMaxPool", [x], (*dims[:2], *sizes))


def interpolate(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    dims = b.need_dims(x)
    if a.get("mode", "nearest") not in (
        "nearest",
        "nearest-exact",
        "linear",
        "bilinear",
        "trilinear",
        "bicubic",
        "area",
    ):
        raise Unknown
    return _resized(b, x, (*dims[:2], *b.free(len(dims) - 2)))


def _resized(b: Builder, x: ir.Value, out: Dims) -> ir.Value:
    spatial = list(range(2, len(out)))
    scales = b.number([1.0] * len(spatial), np.float32)  # of no interest to an affine
    return b.emit("Resize", [x, None, scales], out, axes=spatial)


def pixel_shuffle(b: Builder, a: Arguments) -> ir.Value:
    x, factor = b.data(a["input"]), a["upscale_factor"]
    n, channels, *rest = b.need_dims(x)
    if not isinstance(channels, int) or len(rest) != 2:
        raise Unknown
    out = (n, channels // factor**2, *b.free(2))
    return b.emit("DepthToSpace", [x], out, blocksize=factor, mode="CRD")


def pad(b: Builder, a: Arguments) -> ir.Value:
    x, padding = b.data(a["input"]), list(a["padding"])
    dims = b.need_dims(x)
    mode = a.get("mode", "constant")
    pairs = len(padding) // 2
    before, after = ([0] * (len(dims) - pairs) + padding[i::2][::-1] for i in (0, 1))
    value = b.scalar(float(a.get("value") or 0.0)) if mode == "constant" else None
    padded = (d if not p and not q else b.free(1)[0] for d, p, q in zip(dims, before, after, strict=True))
    inputs = [x, b.number(before + after), *([] if value is None else [value])]
    return b.emit("Pad", inputs, tuple(padded), mode=_PAD_MODES[mode])


_PAD_MODES = {
    "constant": "constant",
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}


_PAD_MODES = {
    "constant": "constant",
    "zeros": "constant",
    "reflect": "reflect",
    "replicate": "edge",
    "circular": "wrap",
}


def padded(b: Builder, x: ir.Value, pads: list[int], mode: str, k: int) -> ir.Value:
    every = [0, 0, *pads[:k], 0, 0, *pads[k:]]
    dims = b.dims(x)
    out = None if dims is None else (*dims[:2], *b.free(k))
    return b.emit("Pad", [x, b.number(every)], out, mode=_PAD_MODES[mode])


def _need_spatial(b: Builder, x: ir.Value, a: Arguments) -> int:
    """The number of axes behind the channels, if it is what the call is for: torch takes an axis less for
    data without a batch."""
    dims = b.need_dims(x)
    if a.get("dimensions") != len(dims) - 2:
        raise Unknown
    return len(dims) - 2


def _pooled(b: Builder, x: ir.Value) -> Dims:
    dims = b.need_dims(x)
    return (*dims[:2], *b.free(len(dims) - 2))
