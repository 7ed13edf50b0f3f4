"""Sinks: operators whose weights take an affine in.

Notation as in the ONNX operator pages: O output channels, I input channels, g groups, k kernel positions.
A bias is simply the input to which the whole affine goes; where it is absent, it counts as 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from .affine import Affine, Elementwise
from .double_double import DoubleDouble
from .errors import InputError
from .facts import Op
from .moves import Answer, Move, Pull, Push, need, need_on, pull_scale
from .nodes import is_quantizer, label
from .report import Declined, Reason
from .sources import deviation, need_inference

_ONE = DoubleDouble.of(1.0)
_NOTHING = Elementwise(DoubleDouble.of(0.0), DoubleDouble.of(0.0))  # the sum makes 0 of -0


def _need_data(op: Op, inputs: tuple[int, ...], data: int = 0) -> None:
    """The affine precedes the data, and nothing else."""
    need(inputs == (data,), Reason.NOT_CONSTANT, f"{op.type} {op.name!r}: its weights depend on data")


def _spread(op: Op, affine: Affine, channels: int, axis: int) -> Affine:
    """The affine as vectors of the operator's channels.

    Raises:
        InputError: Its length is another one: the model is invalid.
    """
    if affine.channels not in (None, 1, channels):
        raise InputError(
            f"its parameters are for {affine.channels} channels, but {op.type} {op.name!r} "
            f"({op.need_input(0).name!r} to {op.node.outputs[0].name!r}) has {channels} there; "
            "the model is invalid, export it again"
        )
    return affine.spread(channels, axis)


def _size(op: Op, i: int, axis: int) -> int:
    """The size of an axis of a weight."""
    value = op.need_input(i)
    if op.facts.constant(value) is None and not isinstance(op.facts.dim(value, axis), int):
        producer = value.producer()
        reason = Reason.QUANTIZED if producer is not None and is_quantizer(producer) else Reason.NOT_CONSTANT
        maker = "nothing" if producer is None else f"{op.facts.view(producer).type} {label(producer)!r}"
        raise Declined(reason, f"{value.name!r}, input {i} of {op.type} {op.name!r}, is made by {maker}")
    return op.need_dim(i, axis)


def _weighted_sum(weights: DoubleDouble, shift: DoubleDouble, keep: int) -> DoubleDouble:
    """Σ over all axes but one of weights · shift, where shift broadcasts to the weights."""
    rows = (weights * shift).moveaxis(keep, 0)
    return rows.reshape(rows.shape[0], -1).sum(1)


# Conv: https://onnx.ai/onnx/operators/onnx__Conv.html


def _pull_conv(op: Op, k: int, affine: Affine) -> Answer:
    """W'[o] = s_o·W[o]; b' = s·b + t."""
    need_on(op, affine, 1)
    out = _spread(op, affine, _size(op, 1, 0), 0)
    return Move({1: out.scaling(), 2: out})


def _push_conv(op: Op, inputs: tuple[int, ...], affine: Affine) -> Answer:
    """W'[o, j] = W[o, j]·s_i; b'[o] += Σ_j,k W[o, j, k]·t_i with i = (o ÷ (O/g))·(I/g) + j."""
    _need_data(op, inputs)
    need_on(op, affine, 1)
    outputs, per_group = _size(op, 1, 0), _size(op, 1, 1)
    groups = op.integer("group", 1)
    affine = _spread(op, affine, per_group * groups, 1)
    rank = op.need_rank(1)
    if groups == 1:
        s, t = (v.reshape(1, -1, *(1,) * (rank - 2)) for v in (affine.scale, affine.shift))
    else:
        s, t = (_in_rows(v, groups, outputs // groups, rank) for v in (affine.scale, affine.shift))
    weight = Elementwise(s) if affine.has_scale else Elementwise()
    if not affine.has_shift:
        return Move({1: weight})
    need(not _is_padded(op), Reason.PADDING, f"Conv {op.name!r} pads with zeros")
    bias = _weighted_sum(op.need_constant(1).exact(), t, 0)
    return Move({1: weight, 2: Affine(_ONE.broadcast_to((outputs,)), bias, 0)})


def _in_rows(numbers: DoubleDouble, groups: int, rows: int, rank: int) -> DoubleDouble:
    """One number per channel as factors of grouped weights: each of a group's `rows` sees its channels."""
    n = numbers.shape[0] // groups
    spread = numbers.reshape(groups, 1, n).broadcast_to((groups, rows, n))
    return spread.reshape(groups * rows, n, *(1,) * (rank - 2))


def _is_padded(op: Op) -> bool:
    """Whether a Conv sees zeros from outside of its input."""
    auto = op.text("auto_pad", "NOTSET")
    if auto == "VALID":
        return False
    if auto == "NOTSET":
        return any(op.integers("pads") or ())
    kernel = [_size(op, 1, a) for a in range(2, op.need_rank(1))]
    strides, dilations = _per_axis(op, "strides", kernel), _per_axis(op, "dilations", kernel)
    for axis, (n, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True), 2):
        reach = (n - 1) * dilation + 1
        if reach == 1:
            continue
        size = op.need_dim(0, axis)
        if (-(-size // stride) - 1) * stride + reach > size:
            return True
    return False


def _per_axis(op: Op, name: str, kernel: Sequence[int]) -> Sequence[int]:
    return op.integers(name) or (1,) * len(kernel)


# ConvTranspose: https://onnx.ai/onnx/operators/onnx__ConvTranspose.html


def _pull_conv_transpose(op: Op, k: int, affine: Affine) -> Answer:
    """W'[i, j] = W[i, j]·s_o; b' = s·b + t with o = (i ÷ (I/g))·(O/g) + j."""
    need_on(op, affine, 1)
    channels, per_group, groups = _size(op, 1, 0), _size(op, 1, 1), op.integer("group", 1)
    out = _spread(op, affine, per_group * groups, 0)
    if groups == 1:
        return Move({1: out.scaling().at(1), 2: out})
    scale = _in_rows(out.scale, groups, channels // groups, op.need_rank(1))
    return Move({1: Elementwise(scale) if out.has_scale else Elementwise(), 2: out})


def _push_conv_transpose(op: Op, inputs: tuple[int, ...], affine: Affine) -> Answer:
    """W'[i] = W[i]·s_i. The shift is a bias only where every output sees every tap."""
    _need_data(op, inputs)
    need_on(op, affine, 1)
    channels, per_group, groups = _size(op, 1, 0), _size(op, 1, 1), op.integer("group", 1)
    affine = _spread(op, affine, channels, 0)
    if not affine.has_shift:
        return Move({1: affine.scaling()})
    need(
        _sees_every_tap(op),
        Reason.PADDING,
        f"ConvTranspose {op.name!r}: outputs at the border see fewer taps",
    )
    weights = op.need_constant(1).exact()
    rank = len(weights.shape)
    t = affine.shift.reshape(groups, -1, *(1,) * (rank - 1))
    grouped = weights.reshape(groups, channels // groups, *weights.shape[1:])
    rows = (grouped * t).moveaxis(2, 1)  # from [g, I/g, O/g, k]
    bias = rows.reshape(groups * per_group, -1).sum(1)
    return Move({1: affine.scaling(), 2: Affine(_ONE.broadcast_to(bias.shape), bias, 0)})


def _sees_every_tap(op: Op) -> bool:
    """Stride 1, no output padding, and pads that cut off the border where taps are missing."""
    kernel = [_size(op, 1, a) for a in range(2, op.need_rank(1))]
    reach = [(n - 1) * d for n, d in zip(kernel, _per_axis(op, "dilations", kernel), strict=True)]
    pads = op.integers("pads") or (0,) * (2 * len(kernel))
    if op.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or op.has("output_shape"):
        return not any(reach) and not op.has("output_shape") and set(_per_axis(op, "strides", kernel)) == {1}
    if op.text("auto_pad", "NOTSET") == "VALID":
        pads = (0,) * (2 * len(kernel))
    return (
        set(_per_axis(op, "strides", kernel)) == {1}
        and not any(op.integers("output_padding") or ())
        and all(p >= r for p, r in zip(pads, [*reach, *reach], strict=True))
    )


# Gemm: https://onnx.ai/onnx/operators/onnx__Gemm.html


def _pull_gemm(op: Op, k: int, affine: Affine) -> Answer:
    """Columns of B' are scaled; C' = s·(beta·C) + t, and beta' = 1."""
    need_on(op, affine, 1)
    columns = 0 if op.integer("transB", 0) else 1
    out = _spread(op, affine, _size(op, 1, columns), 1)
    return _with_addend(op, {1: out.scaling().at(columns)}, out)


def _push_gemm(op: Op, inputs: tuple[int, ...], affine: Affine) -> Answer:
    """B' = diag(s)·B; C' = beta·C + alpha·t·B, and beta' = 1."""
    _need_data(op, inputs)
    need(not op.integer("transA", 0), Reason.AXIS, f"Gemm {op.name!r} transposes its data")
    need_on(op, affine, 1)
    rows = 1 if op.integer("transB", 0) else 0
    affine = _spread(op, affine, _size(op, 1, rows), rows)
    weight = {1: affine.scaling()}
    if not affine.has_shift:
        return Move(weight)
    b = op.need_constant(1).exact()
    t = affine.shift.reshape(*(-1 if a == rows else 1 for a in (0, 1)))
    alpha = DoubleDouble.of(op.real("alpha", 1.0))
    shift = alpha * _weighted_sum(b, t, 1 - rows)
    return _with_addend(op, weight, Affine(_ONE.broadcast_to(shift.shape), shift, 1))


def _with_addend(op: Op, inputs: dict[int, Affine], out: Affine) -> Move:
    """The move in which C becomes s·(beta·C) + t, numpy-broadcast, with beta' = 1."""
    shift = out.shift if out.has_shift else None
    if op.input(2) is None:
        return Move({**inputs, 2: Elementwise(None, shift)}, attributes=_without_beta(op) if shift else {})
    scale = out.scale * DoubleDouble.of(op.real("beta", 1.0))
    if op.constant(2) is not None:
        return Move({**inputs, 2: Elementwise(scale, shift)}, attributes=_without_beta(op))
    rank = op.need_rank(2)
    addend = Affine.of(scale, shift, rank - 1)
    full = rank > 0 and op.need_dim(2, rank - 1) == scale.shape[0]
    need(
        addend.axis is None or full,
        Reason.BROADCAST,
        f"{op.need_input(2).name!r} is broadcast by Gemm {op.name!r}",
    )
    return Move({**inputs, 2: addend}, attributes=_without_beta(op))


def _without_beta(op: Op) -> dict[str, ir.Attr]:
    return {} if op.real("beta", 1.0) == 1.0 else {"beta": ir.AttrFloat32("beta", 1.0)}


# MatMul: https://onnx.ai/onnx/operators/onnx__MatMul.html


def _pull_matmul(op: Op, k: int, affine: Affine) -> Answer:
    """(X·W)·diag(s) = X·(W·diag(s)), diag(s)·(W·X) = (diag(s)·W)·X; the shift stays."""
    scale = affine.scaling()
    ranks = op.need_rank(0), op.need_rank(1)
    if affine.axis is None or scale.axis is None:
        ways: list[dict[int, Affine | Elementwise]] = [{1: scale}, {0: scale}]
        ways.sort(key=lambda way: op.constant(next(iter(way))) is None)
        return pull_scale(op, affine, *ways)
    # A vector has no axis in the result.
    out_rank = max(ranks) - ranks.count(1)
    places = {0: out_rank - 1 - (ranks[1] > 1), 1: out_rank - 1}
    found = [i for i in (1, 0) if ranks[i] > 1 and places[i] == affine.axis]
    need(bool(found), Reason.AXIS, f"MatMul {op.name!r} has no weight along axis {affine.axis}")
    operand = found[0]
    axis = ranks[operand] - (1 if operand else 2)
    _spread(op, scale, _size(op, operand, axis), axis)
    return pull_scale(op, affine, {operand: scale.at(axis)})


def _push_matmul(op: Op, inputs: tuple[int, ...], affine: Affine) -> Answer:
    """(X·diag(s) + t)·W = X·(diag(s)·W) + t·W, and the mirror image for W on the left."""
    data = inputs[-1]
    _need_data(op, inputs, data)
    ranks = op.need_rank(0), op.need_rank(1)
    weight = 1 - data
    contracted = ranks[data] - (1 if data == 0 or ranks[data] == 1 else 2)
    need_on(op, affine, contracted)
    axis = ranks[weight] - (1 if weight == 0 or ranks[weight] == 1 else 2)
    affine = _spread(op, affine, _size(op, weight, axis), axis)
    change = {weight: affine.scaling()}
    if not affine.has_shift:
        return Move(change)
    need(
        ranks[weight] == 2 and ranks[data] >= 2,
        Reason.SHIFT,
        f"MatMul {op.name!r}: its weight is not a matrix",
    )
    t = affine.shift.reshape(*(-1 if a == axis else 1 for a in (0, 1)))
    left = _weighted_sum(op.need_constant(weight).exact(), t, 1 - axis)
    behind = ranks[data] - (1 if data == 0 else 2)
    return Move(change, outputs={0: Affine.of(None, left, behind)})


# Normalizations


def _pull_batchnorm(op: Op, k: int, affine: Affine) -> Answer:
    """scale' = s·scale, bias' = s·bias + t; the statistics stay."""
    need_inference(op)
    need_on(op, affine, 1)
    out = _spread(op, affine, _size(op, 1, 0), 0)
    return Move({1: out.scaling(), 2: out})


def _push_batchnorm(op: Op, inputs: tuple[int, ...], affine: Affine) -> Answer:
    """scale' = s·scale; bias' = bias + scale/√(var+ε)·(t - mean); mean' = 0.

    The mean is that of s·x + t. Left where it is, it would be taken from x, which may lie elsewhere by far,
    and the bias would have to make up for that: a small difference of two large numbers.
    """
    _need_data(op, inputs)
    need_inference(op)
    need_on(op, affine, 1)
    affine = _spread(op, affine, _size(op, 1, 0), 0)
    slope = op.need_constant(1, Reason.RUNTIME_PARAMETERS).exact() / deviation(op)
    mean = op.need_constant(3, Reason.RUNTIME_PARAMETERS).exact()
    shift = slope * (affine.shift - mean)
    change = {1: affine.scaling(), 2: Affine(_ONE.broadcast_to(shift.shape), shift, 0)}
    return Move(change if mean.equals(0.0) else {**change, 3: _NOTHING})


def _pull_channel_norm(op: Op, k: int, affine: Affine) -> Answer:
    """InstanceNormalization and, from opset 21, GroupNormalization end in an affine per channel."""
    if op.type == "GroupNormalization" and op.opset < 21:
        need(
            affine.axis is None,
            Reason.AXIS,
            f"GroupNormalization {op.name!r} of opset {op.opset} scales per group",
        )
        return Move({1: affine.scaling(), 2: affine})
    need_on(op, affine, 1)
    out = _spread(op, affine, _size(op, 1, 0), 0)
    return Move({1: out.scaling(), 2: out})


def _pull_layer_norm(op: Op, k: int, affine: Affine) -> Answer:
    """LayerNormalization ends in an affine over its normalized axes, from `axis` to the last."""
    need(k == 0, Reason.OTHER_OUTPUT, f"output {k} of {op.type} {op.name!r}")
    scaled = _on_normalized(op, affine)
    bias = op.input(2)
    if bias is None and not affine.has_shift:
        return Move({1: scaled.scaling()})
    rank = op.need_rank(1)
    if bias is not None and op.constant(2) is None:
        full = op.need_rank(2) == rank and (affine.axis is None or op.need_dim(2, scaled.axis or 0) > 1)
        need(full, Reason.BROADCAST, f"{bias.name!r} is broadcast by {op.type} {op.name!r}")
        return Move({1: scaled.scaling(), 2: scaled})
    # A bias that is absent, or broadcast to the scale, gets the shape of the scale.
    shape = [op.need_dim(1, a) for a in range(rank)]
    change = scaled.elementwise(rank)
    grown = (change.shift or DoubleDouble.of(0.0)).broadcast_to(shape)
    return Move({1: scaled.scaling(), 2: Elementwise(change.scale, grown)})


def _pull_rms_norm(op: Op, k: int, affine: Affine) -> Answer:
    """RMSNormalization has a scale and no bias."""
    return pull_scale(op, affine, {1: _on_normalized(op, affine.scaling())})


def _on_normalized(op: Op, affine: Affine) -> Affine:
    """The affine on the axes of the scale, which are the last ones of the data."""
    if affine.axis is None:
        return affine
    axis = affine.axis - (op.need_rank(0) - op.need_rank(1))
    need(
        axis >= 0 and _size(op, 1, axis) == affine.channels,
        Reason.AXIS,
        f"{op.type} {op.name!r} does not scale axis {affine.axis}",
    )
    return affine.at(axis)


PULL: dict[str, Pull] = {
    "BatchNormalization": _pull_batchnorm,
    "Conv": _pull_conv,
    "ConvTranspose": _pull_conv_transpose,
    "Gemm": _pull_gemm,
    "GroupNormalization": _pull_channel_norm,
    "InstanceNormalization": _pull_channel_norm,
    "LayerNormalization": _pull_layer_norm,
    "MatMul": _pull_matmul,
    "RMSNormalization": _pull_rms_norm,
}

PUSH: dict[str, Push] = {
    "BatchNormalization": _push_batchnorm,
    "Conv": _push_conv,
    "ConvTranspose": _push_conv_transpose,
    "Gemm": _push_gemm,
    "MatMul": _push_matmul,
}
