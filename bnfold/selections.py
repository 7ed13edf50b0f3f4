"""Rules for operators that join channels or choose among them: Concat, Split, Slice, Gather."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .affine import Affine, identity, join
from .chains import slice_of
from .facts import Op
from .moves import Answer, Move, Pull, Push, need
from .report import Declined, Reason

Index = NDArray[np.int64]


def _axis(op: Op, default: int) -> int:
    axis = op.integer("axis", default)
    return axis + op.need_rank() if axis < 0 else axis


def _pull_concat(op: Op, k: int, affine: Affine) -> Answer:
    inputs = range(len(op.node.inputs))
    axis = _axis(op, 1)
    if affine.axis != axis:
        return Move(dict.fromkeys(inputs, affine))
    return Move(dict(zip(inputs, affine.split([op.need_dim(i, axis) for i in inputs]), strict=True)))


def _push_concat(op: Op, inputs: tuple[int, ...], affine: Affine) -> Answer:
    """On the axis of the affine, the other branches carry the identity; else all must carry the affine."""
    branches, axis = range(len(op.node.inputs)), _axis(op, 1)
    if len(inputs) == len(branches) and affine.axis != axis:
        return Move(outputs={0: affine})
    need(
        affine.axis in (None, axis),
        Reason.PARTS_DISAGREE,
        f"Concat {op.name!r} joins along axis {axis}, the affine of one branch is on axis {affine.axis}",
    )
    parts = [affine if i in inputs else identity() for i in branches]
    return Move(outputs={0: join(parts, [op.need_dim(i, axis) for i in branches], axis)})


def _split_parts(op: Op, axis: int) -> list[Index]:
    """The channels that each output of Split holds."""
    sizes = [op.need_out_dim(k, axis) for k in range(len(op.node.outputs))]
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def _pull_split(op: Op, k: int, affine: Affine) -> Answer:
    """Only one part is changed, so the others get the identity; off the axis they cannot."""
    axis = _axis(op, 0)
    if len(op.node.outputs) == 1:
        return Move({0: affine})
    need(
        affine.axis in (None, axis),
        Reason.PARTS_DISAGREE,
        f"Split {op.name!r} divides axis {axis}, the affine of one part is on axis {affine.axis}",
    )
    parts = _split_parts(op, axis)
    return Move({0: affine.spread(len(parts[k]), axis).placed(parts[k], sum(map(len, parts)))})


def _push_split(op: Op, inputs: tuple[int, ...], affine: Affine) -> Answer:
    axis = _axis(op, 0)
    if affine.axis != axis:
        return Move(outputs=dict.fromkeys(range(len(op.node.outputs)), affine))
    return Move(outputs={k: affine.taken(part) for k, part in enumerate(_split_parts(op, axis))})


def _sliced(op: Op, axis: int) -> Index | None:
    """The channels of an axis that Slice takes; None if it leaves the axis alone."""
    starts, ends = op.need_ints(1, "starts") or (), op.need_ints(2, "ends") or ()
    axes, steps = (
        op.need_ints(3, "axes") or range(len(starts)),
        op.need_ints(4, "steps") or (1,) * len(starts),
    )
    rank = op.need_rank() if min(axes, default=0) < 0 else 0
    for a, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if (a + rank if a < 0 else a) == axis:
            size = op.need_dim(0, axis)
            return np.arange(size)[slice_of(start, end, step, size)]
    return None


def _pull_slice(op: Op, k: int, affine: Affine) -> Answer:
    chosen = None if affine.axis is None else _sliced(op, affine.axis)
    if chosen is None or affine.axis is None:
        return Move({0: affine})
    return Move({0: affine.placed(chosen, op.need_dim(0, affine.axis))})


def _push_slice(op: Op, inputs: tuple[int, ...], affine: Affine) -> Answer:
    _need_data(op, inputs)
    chosen = None if affine.axis is None else _sliced(op, affine.axis)
    return Move(outputs={0: affine if chosen is None else affine.taken(chosen)})


def _gathered(op: Op, axis: int) -> Index:
    """The channels that Gather takes, counted from the front."""
    constant = op.constant(1)
    if constant is None:
        raise Declined(Reason.NOT_STATIC, f"Gather {op.name!r} takes channels that depend on data")
    index = constant.rounded().astype(np.int64)
    return np.where(index < 0, index + op.need_dim(0, axis), index)


def _pull_gather(op: Op, k: int, affine: Affine) -> Answer:
    """Also from a table: an embedding takes the affine into its rows."""
    axis = _axis(op, 0)
    if affine.axis is None or affine.axis < axis:
        return Move({0: affine})
    rank = op.need_rank(1)
    if affine.axis >= axis + rank:
        return Move({0: affine.at(affine.axis - rank + 1)})
    need(rank == 1, Reason.MIXED_CHANNELS, f"Gather {op.name!r} spreads axis {axis} over {rank} axes")
    index = _gathered(op, axis)
    placed = affine.at(axis).placed(index, op.need_dim(0, axis))
    need(placed.taken(index).same(affine), Reason.PARTS_DISAGREE, f"Gather {op.name!r} repeats channels")
    return Move({0: placed})


def _push_gather(op: Op, inputs: tuple[int, ...], affine: Affine) -> Answer:
    _need_data(op, inputs)
    axis = _axis(op, 0)
    if affine.axis is None or affine.axis < axis:
        return Move(outputs={0: affine})
    rank = op.need_rank(1)
    if affine.axis > axis:
        return Move(outputs={0: affine.at(affine.axis + rank - 1)})
    need(rank <= 1, Reason.MIXED_CHANNELS, f"Gather {op.name!r} spreads axis {axis} over {rank} axes")
    return Move(outputs={0: affine.taken(np.atleast_1d(_gathered(op, axis)))})


def _need_data(op: Op, inputs: tuple[int, ...]) -> None:
    need(inputs == (0,), Reason.NOT_LINEAR, f"input {inputs[-1]} of {op.type} {op.name!r}")


PULL: dict[str, Pull] = {
    "Concat": _pull_concat,
    "Gather": _pull_gather,
    "Slice": _pull_slice,
    "Split": _pull_split,
}

PUSH: dict[str, Push] = {
    "Concat": _push_concat,
    "Gather": _push_gather,
    "Slice": _push_slice,
    "Split": _push_split,
}
