"""Calls of torch as operators of ONNX.

One function per call: it reads the arguments by the names that torch has for them, and says the same with
operators of ONNX, or raises `Unknown`. Then the call is a node of its own, which no affine passes.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from ..report import Declined, Reason
from .calls import Call, Stored
from .shadow import Builder, Dims, Shadow, Slot, Unknown
from .trace import Traced

Arguments = Mapping[str, Any]


def translate(
    traced: Traced,
    calls: Mapping[fx.Node, Call | None],
    barred: Mapping[fx.Node, Declined],
    examples: Mapping[str, Any],
    path: str = "",
) -> Shadow:
    """The ONNX model of a traced graph.

    Args:
        traced: The graph.
        calls: What its nodes call.
        barred: Nodes that have to stay what they are, and why.
        examples: Arguments by name, as far as there are any; of tensors, the rank and the type count.
        path: Where the module is within another one; names in reports begin with it.
    """
    builder = Builder(traced.root, calls, path)
    for node in traced.graph.nodes:
        builder.node, call = node, calls[node]
        if node.op == "placeholder":
            example = examples.get(node.target)
            value = builder.argument(node, example if isinstance(example, torch.Tensor) else None)
        else:
            try:
                if node in barred:
                    raise barred[node]
                value = _HANDLERS[call.name](builder, call.arguments) if call else builder.opaque()
            except Declined as declined:
                if call is not None and call.name == "batch_norm":
                    builder.shadow.declined[node] = declined
                value = builder.opaque()
            except (Unknown, KeyError, TypeError, ValueError, IndexError):  # written in a way of its own
                value = builder.opaque()
        builder.finish(value)
    return builder.shadow


# Weighted calls


def _conv(b: Builder, a: Arguments) -> ir.Value:
    x, weight = b.data(a["input"]), _stored(a["weight"])
    k = weight.tensor.ndim - 2
    stride, dilation = (_each(a.get(name, 1), k) for name in ("stride", "dilation"))
    pads = _conv_pads(a.get("padding", 0), weight.tensor.shape[2:], dilation)
    mode = a.get("padding_mode", "zeros")
    if mode != "zeros":
        x = _padded(b, x, pads, mode, k)
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


def _conv_transpose(b: Builder, a: Arguments) -> ir.Value:
    x, weight = b.data(a["input"]), _stored(a["weight"])
    k, groups = weight.tensor.ndim - 2, a.get("groups", 1)
    pads = _each(a.get("padding", 0), k)
    out = (_need_batch(b, x, k), int(weight.tensor.shape[1]) * groups, *b.free(k))
    return b.emit(
        "ConvTranspose",
        [x, b.tensor(weight), *_bias(b, a)],
        out,
        absent=_absent_bias(b, a),
        strides=_each(a.get("stride", 1), k),
        dilations=_each(a.get("dilation", 1), k),
        pads=[*pads, *pads],
        output_padding=_each(a.get("output_padding", 0), k),
        group=groups,
    )


def _linear(b: Builder, a: Arguments) -> ir.Value:
    """Gemm where the data are known to be rows, else MatMul and Add."""
    x, weight = b.data(a["input"]), _stored(a["weight"])
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


def _matmul(b: Builder, a: Arguments) -> ir.Value:
    x, weight = b.data(a["input"]), a["other"]
    dims = b.dims(x)
    if not isinstance(weight, Stored):
        others = b.need_dims(b.data(weight))
        return b.opaque((*b.need_dims(x)[:-1], others[-1]) if len(others) > 1 else None)
    if weight.tensor.ndim != 2:
        raise Unknown
    out = None if dims is None else (*dims[:-1], int(weight.tensor.shape[1]))
    return b.emit("MatMul", [x, b.tensor(weight)], out)


def _embedding(b: Builder, a: Arguments) -> ir.Value:
    x, table = b.data(a["input"]), _stored(a["weight"])
    if a.get("max_norm") is not None:
        raise Unknown  # it changes the table when it is used
    dims = b.dims(x)
    out = None if dims is None else (*dims, int(table.tensor.shape[1]))
    return b.emit("Gather", [b.tensor(table), x], out, axis=0)


def _batch_norm(b: Builder, a: Arguments) -> ir.Value:
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


def _instance_norm(b: Builder, a: Arguments) -> ir.Value:
    if a.get("track_running_stats") and a.get("running_mean") is not None:
        raise Unknown  # normalizes with those
    x, scale = b.data(a["input"]), _stored(a["weight"])
    inputs = [x, b.tensor(scale), b.tensor(_stored(a["bias"]))]
    return b.emit("InstanceNormalization", inputs, b.dims(x), epsilon=a["eps"])


def _group_norm(b: Builder, a: Arguments) -> ir.Value:
    x, scale = b.data(a["input"]), _stored(a["weight"])
    inputs = [x, b.tensor(scale), b.tensor(_stored(a["bias"]))]
    attributes = {"epsilon": float(a.get("eps", 1e-5)), "num_groups": a["num_groups"]}
    return b.emit("GroupNormalization", inputs, b.dims(x), **attributes)


def _layer_norm(b: Builder, a: Arguments) -> ir.Value:
    x, scale = b.data(a["input"]), _stored(a["weight"])
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


# Elementwise calls


def _relu(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    return b.emit("Relu", [x], b.dims(x))


def _leaky_relu(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    return b.emit("LeakyRelu", [x], b.dims(x), alpha=float(a.get("negative_slope", 0.01)))


def _prelu(b: Builder, a: Arguments) -> ir.Value:
    x, slope = b.data(a["input"]), _stored(a["weight"])
    dims = b.need_dims(x)
    numbers = slope.tensor.reshape(-1, *(1,) * (len(dims) - 2)).to(torch.float64).cpu().numpy()
    return b.emit("PRelu", [x, b.number(numbers, numbers.dtype)], dims)


def _same(b: Builder, a: Arguments) -> ir.Value:
    """What no affine passes, but keeps the shape."""
    return b.opaque(b.dims(b.data(a["input"])))


def _identity(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    return b.emit("Identity", [x], b.dims(x))


def _to(b: Builder, a: Arguments) -> ir.Value:
    x, dtype = b.data(a["input"]), a["dtype"]
    if isinstance(dtype, fx.Node) and dtype.target is getattr and dtype.args[1] == "dtype":
        like = b.data(dtype.args[0])
        return b.cast(x, like.dtype, like)
    if not isinstance(dtype, torch.dtype):
        raise Unknown
    return b.cast(x, ir.tensor_adapters.from_torch_dtype(dtype))


def _type_as(b: Builder, a: Arguments) -> ir.Value:
    like = b.data(a["other"])
    return b.cast(b.data(a["input"]), like.dtype, like)


def _cast_to(dtype: torch.dtype) -> Callable[[Builder, Arguments], ir.Value]:
    return lambda b, a: _to(b, {**a, "dtype": dtype})


def _dropout(b: Builder, a: Arguments) -> ir.Value:
    if a.get("training", True):
        raise Unknown
    return _identity(b, a)


def _sum_of(op_type: str) -> Callable[[Builder, Arguments], ir.Value]:
    def handler(b: Builder, a: Arguments) -> ir.Value:
        if a.get("alpha", 1) != 1 or a.get("rounding_mode") is not None:
            raise Unknown
        operands = [_operand(b, a[name]) for name in ("input", "other")]
        return b.emit(op_type, operands, _broadcast(b, *map(b.dims, operands)))

    return handler


def _operand(b: Builder, argument: Any) -> ir.Value:
    if isinstance(argument, Stored):
        return b.tensor(argument)
    if isinstance(argument, int | float) and not isinstance(argument, bool):
        return b.scalar(float(argument))
    return b.data(argument)


def _broadcast(b: Builder, left: Dims | None, right: Dims | None) -> Dims | None:
    if left is None or right is None:
        return None
    rank = max(len(left), len(right))
    pairs = zip(*((*(1,) * (rank - len(dims)), *dims) for dims in (left, right)), strict=True)
    found: list[int | str] = []
    for one, other in pairs:
        sizes = {one, other} - {1}
        fixed = [n for n in sizes if isinstance(n, int)]
        found.append((fixed or [*sizes, 1])[0] if len(sizes) < 2 or fixed else b.free(1)[0])
    return tuple(found)


def _neg(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    return b.emit("Neg", [x], b.dims(x))


# Pools and sizes


def _max_pool(b: Builder, a: Arguments) -> ir.Value:
    if a.get("return_indices"):
        raise Unknown
    x = b.data(a["input"])
    k = _spatial(b, x)
    kernel = _each(a["kernel_size"], k)
    return b.emit(
        "MaxPool",
        [x],
        _pooled(b, x),
        kernel_shape=kernel,
        strides=_each(a.get("stride") or kernel, k),
        pads=_each(a.get("padding", 0), k) * 2,
        dilations=_each(a.get("dilation", 1), k),
        ceil_mode=int(a.get("ceil_mode", False)),
    )


def _avg_pool(b: Builder, a: Arguments) -> ir.Value:
    if a.get("divisor_override") is not None:
        raise Unknown
    x = b.data(a["input"])
    k = _spatial(b, x)
    kernel = _each(a["kernel_size"], k)
    return b.emit(
        "AveragePool",
        [x],
        _pooled(b, x),
        kernel_shape=kernel,
        strides=_each(a.get("stride") or kernel, k),
        pads=_each(a.get("padding", 0), k) * 2,
        ceil_mode=int(a.get("ceil_mode", False)),
        count_include_pad=int(a.get("count_include_pad", True)),
    )


def _adaptive_avg_pool(b: Builder, a: Arguments) -> ir.Value:
    """Each result is an average of data, so as for an affine it is a Resize."""
    x = b.data(a["input"])
    dims = b.need_dims(x)
    sizes = _each(a["output_size"], len(dims) - 2)
    if all(size == 1 for size in sizes):
        return b.emit("GlobalAveragePool", [x], (*dims[:2], *sizes))
    out = (*dims[:2], *(b.free(1)[0] if size is None else size for size in sizes))
    return _resized(b, x, out)


def _adaptive_max_pool(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    dims = b.need_dims(x)
    sizes = _each(a["output_size"], len(dims) - 2)
    if a.get("return_indices") or any(size != 1 for size in sizes):
        raise Unknown
    return b.emit("GlobalMaxPool", [x], (*dims[:2], *sizes))


def _interpolate(b: Builder, a: Arguments) -> ir.Value:
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


def _pixel_shuffle(b: Builder, a: Arguments) -> ir.Value:
    x, factor = b.data(a["input"]), a["upscale_factor"]
    n, channels, *rest = b.need_dims(x)
    if not isinstance(channels, int) or len(rest) != 2:
        raise Unknown
    out = (n, channels // factor**2, *b.free(2))
    return b.emit("DepthToSpace", [x], out, blocksize=factor, mode="CRD")


def _pad(b: Builder, a: Arguments) -> ir.Value:
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


def _padded(b: Builder, x: ir.Value, pads: list[int], mode: str, k: int) -> ir.Value:
    every = [0, 0, *pads[:k], 0, 0, *pads[k:]]
    dims = b.dims(x)
    out = None if dims is None else (*dims[:2], *b.free(k))
    return b.emit("Pad", [x, b.number(every)], out, mode=_PAD_MODES[mode])


# Axes


def _flatten(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    dims = b.need_dims(x)
    start, end = a.get("start_dim", 0) % len(dims), a.get("end_dim", -1) % len(dims)
    joined = _rest(b, dims[start : end + 1], ())
    return _reshaped(b, x, (*dims[:start], joined, *dims[end + 1 :]))


def _reshape(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    wanted = [_size(b, size) for size in a["shape"]]
    if _ANY in wanted:
        k = wanted.index(_ANY)
        wanted[k] = _rest(b, b.dims(x), (*wanted[:k], *wanted[k + 1 :]))
    return _reshaped(b, x, tuple(wanted))


def _reshape_as(b: Builder, a: Arguments) -> ir.Value:
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


def _permute(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    dims = b.need_dims(x)
    return _transposed(b, x, dims, [d % len(dims) for d in a["dims"]])


def _transpose(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    dims = b.need_dims(x)
    order = list(range(len(dims)))
    i, j = (a[name] % len(dims) for name in ("dim0", "dim1"))
    order[i], order[j] = order[j], order[i]
    return _transposed(b, x, dims, order)


def _transposed(b: Builder, x: ir.Value, dims: Dims, order: list[int]) -> ir.Value:
    return b.emit("Transpose", [x], tuple(dims[i] for i in order), perm=order)


def _squeeze(b: Builder, a: Arguments) -> ir.Value:
    """Along one axis; it goes only where its size is 1, which must be known."""
    x = b.data(a["input"])
    dims = b.need_dims(x)
    axis = a["dim"] % len(dims)
    if dims[axis] != 1:
        raise Unknown
    return b.emit("Squeeze", [x, b.number([axis])], (*dims[:axis], *dims[axis + 1 :]))


def _unsqueeze(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    dims = b.need_dims(x)
    axis = a["dim"] % (len(dims) + 1)
    return b.emit("Unsqueeze", [x, b.number([axis])], (*dims[:axis], 1, *dims[axis:]))


def _cat(b: Builder, a: Arguments) -> ir.Value:
    values = [b.data(t) for t in a["tensors"]]
    known = [b.need_dims(v) for v in values]
    axis = a.get("dim", 0) % len(known[0])
    sizes = [dims[axis] for dims in known]
    fixed = [n for n in sizes if isinstance(n, int)]
    total = sum(fixed) if len(fixed) == len(sizes) else b.free(1)[0]
    out = (*known[0][:axis], total, *known[0][axis + 1 :])
    return b.emit("Concat", values, out, axis=axis)


def _chunk(b: Builder, a: Arguments) -> ir.Value:
    x, chunks = b.data(a["input"]), a["chunks"]
    axis, size = _known_size(b, x, a.get("dim", 0))
    if size % chunks:
        raise Unknown
    return _divided(b, x, axis, [size // chunks] * chunks)


def _split(b: Builder, a: Arguments) -> ir.Value:
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


def _getitem(b: Builder, a: Arguments) -> ir.Value:
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


_FAR = (1 << 63) - 1


def _shape(b: Builder, a: Arguments) -> ir.Value:
    """What looks at no number of its data."""
    return b.emit("Shape", [b.data(a["input"])], None)


def _attribute(b: Builder, a: Arguments) -> ir.Value:
    if a["name"] not in ("shape", "ndim", "dtype", "device"):
        raise Unknown
    return _shape(b, a)


def _reduce(op_type: str) -> Callable[[Builder, Arguments], ir.Value]:
    def handler(b: Builder, a: Arguments) -> ir.Value:
        x = b.data(a["input"])
        dims = b.need_dims(x)
        given = a["dim"]
        axes = sorted(d % len(dims) for d in ([given] if isinstance(given, int) else given))
        keep = bool(a.get("keepdim", False))
        out = (1 if i in axes else d for i, d in enumerate(dims) if keep or i not in axes)
        return b.emit(op_type, [x, b.number(axes)], tuple(out), keepdims=int(keep))

    return handler


# What the functions above share


def _stored(argument: Any) -> Stored:
    if not isinstance(argument, Stored):
        raise Unknown
    return argument


def _bias(b: Builder, a: Arguments) -> list[ir.Value]:
    return [] if a.get("bias") is None else [b.tensor(_stored(a["bias"]))]


def _absent_bias(b: Builder, a: Arguments) -> dict[int, Slot]:
    return {2: Slot(b.node, "bias")} if a.get("bias") is None else {}


def _each(numbers: Any, k: int) -> list[Any]:
    """One entry per axis."""
    given = list(numbers) if isinstance(numbers, list | tuple) else [numbers]
    return given * k if len(given) == 1 else given


def _conv_pads(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    if padding == "valid":
        return [0] * 2 * len(kernel)
    if padding == "same":  # what is odd goes to the end
        total = [d * (n - 1) for n, d in zip(kernel, dilation, strict=True)]
        return [t // 2 for t in total] + [t - t // 2 for t in total]
    return _each(padding, len(kernel)) * 2


def _need_batch(b: Builder, x: ir.Value, k: int) -> int | str:
    """The first axis of what a convolution reads: a batch, unless it is known that there is none."""
    dims = b.dims(x)
    if dims is None:
        return b.free(1)[0]
    if len(dims) != k + 2:
        raise Unknown
    return dims[0]


def _spatial(b: Builder, x: ir.Value) -> int:
    return len(b.need_dims(x)) - 2


def _pooled(b: Builder, x: ir.Value) -> Dims:
    dims = b.need_dims(x)
    return (*dims[:2], *b.free(len(dims) - 2))


_HANDLERS: dict[str, Callable[[Builder, Arguments], ir.Value]] = {
    "adaptive_avg_pool": _adaptive_avg_pool,
    "adaptive_max_pool": _adaptive_max_pool,
    "add": _sum_of("Add"),
    "attribute": _attribute,
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "cat": _cat,
    "chunk": _chunk,
    "bfloat16": _cast_to(torch.bfloat16),
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "div": _sum_of("Div"),
    "dropout": _dropout,
    "embedding": _embedding,
    "flatten": _flatten,
    "float16": _cast_to(torch.float16),
    "float32": _cast_to(torch.float32),
    "float64": _cast_to(torch.float64),
    "getitem": _getitem,
    "group_norm": _group_norm,
    "identity": _identity,
    "instance_norm": _instance_norm,
    "interpolate": _interpolate,
    "layer_norm": _layer_norm,
    "leaky_relu": _leaky_relu,
    "linear": _linear,
    "matmul": _matmul,
    "max_pool": _max_pool,
    "mean": _reduce("ReduceMean"),
    "mul": _sum_of("Mul"),
    "neg": _neg,
    "pad": _pad,
    "permute": _permute,
    "pixel_shuffle": _pixel_shuffle,
    "prelu": _prelu,
    "relu": _relu,
    "reshape": _reshape,
    "reshape_as": _reshape_as,
    "same": _same,
    "shape": _shape,
    "split": _split,
    "squeeze": _squeeze,
    "sub": _sum_of("Sub"),
    "sum": _reduce("ReduceSum"),
    "to": _to,
    "transpose": _transpose,
    "type_as": _type_as,
    "unsqueeze": _unsqueeze,
}
