"""Calls that have weights, as operators of ONNX: convolutions, Linear, tables, normalizations.

Each function reads the arguments by the names that torch has for them, and says the same with operators of
ONNX, or raises `Unknown`. Then the call is a node of its own, which no affine passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from ..report import Declined, Reason
from .calls import Stored
from .shadow import Arguments, Builder, Slot, Unknown, need_stored, per_axis
from .windows import padded


def conv(b: Builder, a: Arguments) -> ir.Value:
    x, weight = b.data(a["input"]), need_stored(a["weight"])
    k = weight.tensor.ndim - 2
    stride, dilation = (per_axis(a.get(name, 1), k) for name in ("stride", "dilation"))
    pads = _conv_pads(a.get("padding", 0), weight.tensor.shape[2:], dilation)
    mode = a.get("padding_mode", "zeros")
    if mode != "zeros":
        x = padded(b, x, pads, mode, k)
        pads = [0] * 2 * k
    out = (_need_batch(b, x, k), int(weight.tensor.shape[0]), *b.free(k))
    return b.emit(
        "Conv",
        [x, b.tensor(weight), *_bias(b, a)],
        out,
        absent=_absent_bias(b, a),
        strides=stride,
        dilations=dilation,
        pads=pads,
        group=a.get("groups", 1),
    )


def conv_transpose(b: Builder, a: Arguments) -> ir.Value:
    x, weight = b.data(a["input"]), need_stored(a["weight"])
    k, groups = weight.tensor.ndim - 2, a.get("groups", 1)
    pads = per_axis(a.get("padding", 0), k)
    out = (_need_batch(b, x, k), int(weight.tensor.shape[1]) * groups, *b.free(k))
    return b.emit(
        "ConvTranspose",
        [x, b.tensor(weight), *_bias(b, a)],
        out,
        absent=_absent_bias(b, a),
        strides=per_axis(a.get("stride", 1), k),
        dilations=per_axis(a.get("dilation", 1), k),
        pads=[*pads, *pads],
        output_padding=per_axis(a.get("output_padding", 0), k),
        group=groups,
    )


def linear(b: Builder, a: Arguments) -> ir.Value:
    """Gemm where the data are known to be rows, else MatMul and Add."""
    x, weight = b.data(a["input"]), need_stored(a["weight"])
    if weight.tensor.ndim != 2:
        raise Unknown
    width = int(weight.tensor.shape[0])
    dims = b.dims(x)
    out = None if dims is None else (*dims[:-1], width)
    table = b.tensor(weight, transposed=True)
    if dims is not None and len(dims) == 2:
        return b.emit("Gemm", [x, table, *_bias(b, a)], out, absent=_absent_bias(b, a))
    b.shadow.widths[b.node] = width
    product = b.emit("MatMul", [x, table], out)
    bias = _bias(b, a)
    return b.emit("Add", [product, *bias], out) if bias else product


def matmul(b: Builder, a: Arguments) -> ir.Value:
    x, weight = b.data(a["input"]), a["other"]
    dims = b.dims(x)
    if not isinstance(weight, Stored):
        others = b.need_dims(b.data(weight))
        return b.opaque(
            (*b.need_dims(x)[:-1], others[-1]) if len(others) == len(b.need_dims(x)) > 1 else None
        )
    if weight.tensor.ndim != 2:
        raise Unknown
    out = None if dims is None else (*dims[:-1], int(weight.tensor.shape[1]))
    return b.emit("MatMul", [x, b.tensor(weight)], out)


def embedding(b: Builder, a: Arguments) -> ir.Value:
    x, table = b.data(a["input"]), need_stored(a["weight"])
    if a.get("max_norm") is not None:
        raise Unknown  # it changes the table when it is used
    dims = b.dims(x)
    out = None if dims is None else (*dims, int(table.tensor.shape[1]))
    return b.emit("Gather", [b.tensor(table), x], out, axis=0)


def batch_norm(b: Builder, a: Arguments) -> ir.Value:
    """In inference mode if it uses the statistics that are stored."""
    x = b.data(a["input"])
    mean, var = a.get("running_mean"), a.get("running_var")
    if mean is None or var is None:
        raise Declined(Reason.TRAINING_MODE, f"{b.called!r} keeps no running statistics")
    if a.get("training", False):
        raise Declined(Reason.TRAINING_MODE, f"{b.called!r} is in training mode")
    if not all(isinstance(t, Stored) for t in (mean, var)):
        raise Declined(Reason.RUNTIME_PARAMETERS, f"{b.called!r} computes its statistics")
    count, dtype = mean.tensor.numel(), mean.tensor.dtype
    dims = b.dims(x) or (b.free(a["rank"]) if a.get("rank") else None)
    if dims is not None and len(dims) > 1:
        dims = (dims[0], count, *dims[2:])
        b.learn(x, dims)
    parameters = [
        b.parameter(a.get("weight"), "weight", 1.0, count, dtype),
        b.parameter(a.get("bias"), "bias", 0.0, count, dtype),
        b.tensor(mean),
        b.tensor(var),
    ]
    epsilon = float(a.get("eps", 1e-5))
    return b.emit("BatchNormalization", [x, *parameters], dims, epsilon=epsilon)


def instance_norm(b: Builder, a: Arguments) -> ir.Value:
    if a.get("track_running_stats") and a.get("running_mean") is not None:
        raise Unknown  # normalizes with those
    x, scale = b.data(a["input"]), need_stored(a["weight"])
    if len(b.need_dims(x)) != a["dimensions"] + 2:
        raise Unknown  # without a batch
    inputs = [x, b.tensor(scale), b.tensor(need_stored(a["bias"]))]
    return b.emit("InstanceNormalization", inputs, b.dims(x), epsilon=a["eps"])


def group_norm(b: Builder, a: Arguments) -> ir.Value:
    x, scale = b.data(a["input"]), need_stored(a["weight"])
    inputs = [x, b.tensor(scale), b.tensor(need_stored(a["bias"]))]
    attributes = {"epsilon": float(a.get("eps", 1e-5)), "num_groups": a["num_groups"]}
    return b.emit("GroupNormalization", inputs, b.dims(x), **attributes)


def layer_norm(b: Builder, a: Arguments) -> ir.Value:
    x, scale = b.data(a["input"]), need_stored(a["weight"])
    if scale.tensor.ndim != 1:
        raise Unknown
    return b.emit(
        "LayerNormalization",
        [x, b.tensor(scale), *_bias(b, a)],
        b.dims(x),
        absent=_absent_bias(b, a),
        axis=-1,
        epsilon=float(a.get("eps", 1e-5)),
    )


# What they share


def _bias(b: Builder, a: Arguments) -> list[ir.Value]:
    return [] if a.get("bias") is None else [b.tensor(need_stored(a["bias"]))]


def _absent_bias(b: Builder, a: Arguments) -> dict[int, Slot]:
    return {2: Slot(b.node, "bias")} if a.get("bias") is None else {}


def _conv_pads(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    if padding == "valid":
        return [0] * 2 * len(kernel)
    if padding == "same":  # what is odd goes to the end
        total = [d * (n - 1) for n, d in zip(kernel, dilation, strict=True)]
        return [t // 2 for t in total] + [t - t // 2 for t in total]
    return per_axis(padding, len(kernel)) * 2


def _need_batch(b: Builder, x: ir.Value, k: int) -> int | str:
    """The first axis of what a convolution reads: a batch, unless it is known that there is none."""
    dims = b.dims(x)
    if dims is None:
        return b.free(1)[0]
    if len(dims) != k + 2:
        raise Unknown
    return dims[0]
