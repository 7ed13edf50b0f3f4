"""Rules for arithmetic between data values, for the Relu family, and for Pad.

Sums pass an affine whole. Products and homogeneous functions pass its scale only; there the shift stays
as one Add.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .affine import Affine, Elementwise
from .double_double import DoubleDouble
from .facts import Op
from .moves import Answer, Move, Pull, Push, need, need_positive, pull_scale, push_scale
from .report import Declined, Reason

_ONE = DoubleDouble.of(1.0)


def _out_rank(op: Op) -> int:
    """The rank of an elementwise result: that of its largest operand."""
    known = op.facts.rank(op.node.outputs[0])
    return max(op.need_rank(i) for i in range(len(op.node.inputs))) if known is None else known


def _operand(op: Op, i: int, affine: Affine) -> Affine | Elementwise | None:
    """The affine behind an elementwise operator as one on its operand i; None where that is broadcast."""
    if affine.axis is None:
        return affine
    out_rank, rank = _out_rank(op), op.need_rank(i)
    offset = op.operand_offset(i, rank, out_rank)
    axis = -1 if offset is None else affine.axis - offset
    if 0 <= axis < rank and (op.need_dim(i, axis) == affine.channels or affine.channels == 1):
        return affine.at(axis)
    constant = op.constant(i)
    if constant is None or constant.base.size != 1 or op.opset < 7:
        return None
    shape = (-1,) + (1,) * (out_rank - 1 - affine.axis)  # a scalar constant may grow to one per channel
    return Elementwise(affine.scale.reshape(*shape), affine.shift.reshape(*shape))


def _need_operand(op: Op, i: int, affine: Affine) -> Affine | Elementwise:
    handed = _operand(op, i, affine)
    if handed is None:
        raise Declined(
            Reason.BROADCAST,
            f"{op.need_input(i).name!r} is broadcast by {op.type} {op.name!r} on axis {affine.axis}",
        )
    return handed


def _result(op: Op, i: int, affine: Affine) -> Affine:
    """An affine on operand i as one behind the operator."""
    if affine.axis is None:
        return affine
    offset = op.operand_offset(i, op.need_rank(i), _out_rank(op))
    need(
        offset is not None, Reason.AXIS, f"operand {i} of {op.type} {op.name!r} is not aligned to the result"
    )
    return affine.at(affine.axis + (offset or 0))


def _signs(op: Op) -> tuple[int, ...]:
    return (1, -1) if op.type == "Sub" else (1,) * len(op.node.inputs)


def _constants_first(op: Op) -> list[ir.Value]:
    """The distinct operands, those that surely accept ahead."""
    distinct = dict.fromkeys(v for v in op.node.inputs if v is not None)
    return sorted(distinct, key=lambda v: op.facts.constant(v) is None)


def _pull_sum(op: Op, k: int, affine: Affine) -> Answer:
    """s·(a ± b) + t = (s·a + t) ± s·b: every operand is scaled, one takes the shift."""
    scaled = {i: _need_operand(op, i, affine.scaling()) for i in range(len(op.node.inputs))}
    if not affine.has_shift:
        return Move(scaled)
    ways = []
    for value in _constants_first(op):
        uses = [i for i, v in enumerate(op.node.inputs) if v is value]
        net = sum(_signs(op)[i] for i in uses)
        if net == 0:
            continue
        # Each use of x + x carries half of the shift: one value cannot be two things.
        share = Affine.of(affine.scale, affine.shift / DoubleDouble.of(float(net)), affine.axis)
        handed = {i: _operand(op, i, share) for i in uses}
        if not any(h is None for h in handed.values()):
            ways.append(Move({**scaled, **{i: h for i, h in handed.items() if h is not None}}))
    need(
        bool(ways),
        Reason.BROADCAST,
        f"no operand of {op.type} {op.name!r} has a place for the shift per channel",
    )
    return tuple(ways)


def _push_sum(op: Op, inputs: tuple[int, ...], affine: Affine) -> Answer:
    """(a + t) ± b = (a ± b) + t; the scale passes as well if every operand has it."""
    net = DoubleDouble.of(float(sum(_signs(op)[i] for i in inputs)))
    behind = _result(op, inputs[0], affine)
    total = Affine.of(behind.scale, behind.shift * net, behind.axis)
    rest = [i for i in range(len(op.node.inputs)) if i not in inputs]
    absorbed = _absorbed(op, rest, total)
    if absorbed is not None:
        return absorbed
    need(
        not total.has_scale or not rest,
        Reason.NOT_LINEAR,
        f"{op.type} {op.name!r} scales one of its operands only",
    )
    return Move(outputs={0: total})


def _absorbed(op: Op, rest: list[int], total: Affine) -> Move | None:
    """(s·a + t) ± c = s·(a ± (c ± t)/s) for a constant c; None if there is no such c alone."""
    if len(rest) != 1 or op.constant(rest[0]) is None or not total.is_invertible:
        return None
    (j,) = rest
    shift = (total.shift if _signs(op)[j] > 0 else -total.shift) / total.scale
    handed = _operand(op, j, Affine.of(_ONE / total.scale, shift, total.axis))
    return None if handed is None else Move({j: handed}, outputs={0: total.scaling()})


def _pull_product(op: Op, k: int, affine: Affine) -> Answer:
    """s·(a·b) = (s·a)·b; of a quotient, the numerator takes the scale."""
    scale, ways = affine.scaling(), []
    for value in _constants_first(op):
        i = list(op.node.inputs).index(value)
        if op.type == "Div" and i == 1:
            continue
        handed = _operand(op, i, scale)
        if handed is not None:
            ways.append({i: handed})
    need(
        bool(ways),
        Reason.BROADCAST,
        f"every operand of {op.type} {op.name!r} is broadcast on axis {affine.axis}",
    )
    return pull_scale(op, affine, *ways)


def _push_product(op: Op, inputs: tuple[int, ...], affine: Affine) -> Answer:
    """(s·a + t)·c = s·(a·c) + t·c for a number c; for any other factor the shift stays."""
    if len(inputs) > 1 or (op.type == "Div" and inputs == (1,)):
        raise Declined(Reason.NOT_LINEAR, f"{op.type} {op.name!r} is not linear in that operand")
    (i,) = inputs
    behind = _result(op, i, affine)
    factor = op.constant(1 - i)
    if factor is not None and factor.base.size == 1 and factor.exact().shape in ((), (1,)):
        number = factor.exact().reshape()
        number = _ONE / number if op.type == "Div" else number
        return Move(outputs={0: Affine.of(behind.scale, behind.shift * number, behind.axis)})
    return push_scale(op, affine, behind.scaling())


def _pull_homogeneous(op: Op, k: int, affine: Affine) -> Answer:
    """s·f(x) = f(s·x) for s > 0."""
    need_positive(op, affine)
    return pull_scale(op, affine, {0: affine.scaling()})


def _push_homogeneous(op: Op, inputs: tuple[int, ...], affine: Affine) -> Answer:
    need(inputs == (0,), Reason.NOT_LINEAR, f"the slope of {op.type} {op.name!r}")
    need_positive(op, affine)
    return push_scale(op, affine, affine.scaling())


# Pad


def _pads(op: Op) -> dict[int, tuple[int, int]]:
    """What is added before and behind each padded axis."""
    given = op.need_ints(1, "pads") if op.opset >= 2 else op.integers("paddings")
    need(given is not None, Reason.NOT_STATIC, f"Pad {op.name!r} does not say how much")
    half = len(given or ()) // 2
    axes = op.need_ints(3, "axes") or range(half)
    rank = op.need_rank() if min(axes, default=0) < 0 else half
    pairs = zip((given or ())[:half], (given or ())[half:], strict=True)
    return {a % rank if a < 0 else a: pair for a, pair in zip(axes, pairs, strict=True) if any(pair)}


def _pad_number(op: Op) -> DoubleDouble:
    """The number that a constant Pad fills in."""
    if op.opset < 11:
        return DoubleDouble.of(op.real("value", 0.0))
    return DoubleDouble.of(0.0) if op.input(2) is None else op.need_constant(2).exact().reshape()


def _pad(op: Op, affine: Affine, image: Affine) -> Move:
    """Pad passes an affine if its own axis is not padded and the padding has one image for all channels."""
    pads = _pads(op)
    need(affine.axis not in pads, Reason.AXIS, f"Pad {op.name!r} pads axis {affine.axis}")
    if op.text("mode", "constant") != "constant" or all(max(pair) <= 0 for pair in pads.values()):
        return Move()  # nothing is filled in
    number = _pad_number(op)
    images = image.scale * number + image.shift
    need(
        images.is_uniform(),
        Reason.PADDING,
        f"Pad {op.name!r} fills in {float(number.hi):.6g}, which would be another number for each channel",
    )
    new = images.first()
    if new.same(number):
        return Move()
    if op.opset < 11:
        single = new.round(np.float32)
        exact = op.facts.dtype(op.node.outputs[0]) != np.float64 or new.equals(float(single))
        need(exact, Reason.DTYPE, f"Pad {op.name!r} has a float32 attribute for {float(new.hi):.6g}")
        return Move(attributes={"value": ir.AttrFloat32("value", float(single))})
    return Move({2: Elementwise(image.scale.first(), image.shift.first())})


def _pull_pad(op: Op, k: int, affine: Affine) -> Answer:
    move = _pad(op, affine, affine)
    return Move({0: affine, **move.inputs}, attributes=move.attributes)


def _push_pad(op: Op, inputs: tuple[int, ...], affine: Affine) -> Answer:
    need(inputs == (0,), Reason.NOT_LINEAR, f"the padding of {op.name!r}")
    need(affine.is_invertible or not _pads(op), Reason.PADDING, f"Pad {op.name!r} and a scale of 0")
    inverse = (
        Affine(_ONE / affine.scale, -affine.shift / affine.scale, affine.axis)
        if affine.is_invertible
        else affine
    )
    move = _pad(op, affine, inverse)
    return Move(move.inputs, outputs={0: affine}, attributes=move.attributes)


PULL: dict[str, Pull] = {
    "Add": _pull_sum,
    "Div": _pull_product,
    "LeakyRelu": _pull_homogeneous,
    "Mul": _pull_product,
    "PRelu": _pull_homogeneous,
    "Pad": _pull_pad,
    "Relu": _pull_homogeneous,
    "Sub": _pull_sum,
    "Sum": _pull_sum,
}

PUSH: dict[str, Push] = {
    "Add": _push_sum,
    "Div": _push_product,
    "LeakyRelu": _push_homogeneous,
    "Mul": _push_product,
    "PRelu": _push_homogeneous,
    "Pad": _push_pad,
    "Relu": _push_homogeneous,
    "Sub": _push_sum,
    "Sum": _push_sum,
}
