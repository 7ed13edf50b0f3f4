"""Carriers: operators of one data input that hand an affine on, as it is or on another axis.

Each is a pair of functions from affine to affine: `back` from behind the operator to before it (pull),
`forth` from before it to behind it (push). Guards come first and raise `Declined`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .affine import Affine
from .constants import FLOATS
from .double_double import DoubleDouble
from .facts import Op
from .moves import Move, Pull, Push, need, need_on, need_positive
from .report import Declined, Reason
from .shapes import Dim

Step = Callable[[Op, Affine], Affine]


@dataclass(frozen=True)
class Carrier:
    """An operator that hands an affine on.

    Attributes:
        back: The affine before the operator that does what this one behind it does.
        forth: The affine behind the operator that does what this one before it does.
    """

    back: Step
    forth: Step

    @property
    def pull(self) -> Pull:
        """As an entry of the pull table."""
        return lambda op, k, affine: Move({0: self.back(_first_output(op, k), affine)})

    @property
    def push(self) -> Push:
        """As an entry of the push table."""
        return lambda op, inputs, affine: Move(outputs={0: self.forth(_first_input(op, inputs), affine)})


def _first_output(op: Op, k: int) -> Op:
    need(k == 0, Reason.OTHER_OUTPUT, f"output {k} of {op.type} {op.name!r}")
    return op


def _first_input(op: Op, inputs: tuple[int, ...]) -> Op:
    need(inputs == (0,), Reason.NOT_LINEAR, f"input {inputs[-1]} of {op.type} {op.name!r}")
    return op


def _unchanged(*guards: Callable[[Op, Affine], None]) -> Carrier:
    def step(op: Op, affine: Affine) -> Affine:
        for guard in guards:
            guard(op, affine)
        return affine

    return Carrier(step, step)


# Guards


def _dropout_at_rest(op: Op, affine: Affine) -> None:
    """Dropout of opset 1 and 6 has is_test, 7 to 11 is always at rest, later it has an input for it."""
    if op.opset < 7:
        active = not op.integer("is_test", 0)
    else:
        mode = op.input(2) if op.opset >= 12 else None
        active = mode is not None and (
            (known := op.facts.constant(mode)) is None or bool(known.rounded().any())
        )
    need(not active, Reason.TRAINING_MODE, f"Dropout {op.name!r}")
    _alone(op, affine)


def _alone(op: Op, affine: Affine) -> None:
    need(op.other_outputs_unused(), Reason.OTHER_OUTPUT, f"{op.type} {op.name!r}")


def _not_spatial(op: Op, affine: Affine) -> None:
    """Pools work on the axes from 2 on."""
    need_on(op, affine, 0, 1)


def _no_padding_counted(op: Op, affine: Affine) -> None:
    """An average over padding pulls the shift towards 0. With ceil_mode, windows hang over the border."""
    padded = any(op.integers("pads") or ()) or op.text("auto_pad", "NOTSET").startswith("SAME")
    counted = op.integer("count_include_pad", 0) == 1 and (padded or op.integer("ceil_mode", 0) == 1)
    # Opset 1 has no count_include_pad and leaves open what it does.
    counted = counted or (padded and op.opset < 7)
    need(
        not counted or not affine.has_shift, Reason.PADDING, f"AveragePool {op.name!r} averages over padding"
    )


def _float_types(op: Op) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """What a Cast casts from and to."""
    found = []
    for value in (op.need_input(0), op.node.outputs[0]):
        dtype = op.facts.dtype(value)
        if dtype is None or dtype not in FLOATS:
            raise Declined(Reason.NOT_LINEAR, f"{op.type} {op.name!r}: {value.name!r} is of type {dtype}")
        found.append(dtype)
    return found[0], found[1]


def _need_room(op: Op, now: np.dtype[Any], then: np.dtype[Any]) -> None:
    """What was computed in one type may move to another only if that has all its digits and its range.

    x - 1000 in float32 is no longer x - 1000 once x was rounded to float16.
    """
    need(
        np.can_cast(now, then, "safe"),
        Reason.NARROWER,
        f"{op.type} {op.name!r}: the affine is computed in {now} and would be in {then}",
    )


def _cast_back(op: Op, affine: Affine) -> Affine:
    before, after = _float_types(op)
    _need_room(op, after, before)
    return affine


def _cast_forth(op: Op, affine: Affine) -> Affine:
    before, after = _float_types(op)
    _need_room(op, before, after)
    return affine


def _axis_not_resized(op: Op, affine: Affine) -> None:
    if op.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise Declined(Reason.NOT_LINEAR, f"{op.type} {op.name!r} extrapolates")
    _same_size(op, affine)


def _same_size(op: Op, affine: Affine) -> None:
    """The affine's own axis has the same size before and after."""
    if affine.axis is None:
        return
    before, after = op.need_dim(0, affine.axis), op.need_out_dim(0, affine.axis)
    need(
        before == after, Reason.AXIS, f"{op.type} {op.name!r} resizes axis {affine.axis}: {before} to {after}"
    )


# Operators that move the axis


def _permutation(op: Op) -> tuple[int, ...]:
    return op.integers("perm") or tuple(reversed(range(op.need_rank())))


def _transpose_back(op: Op, affine: Affine) -> Affine:
    return affine if affine.axis is None else affine.at(_permutation(op)[affine.axis])


def _transpose_forth(op: Op, affine: Affine) -> Affine:
    return affine if affine.axis is None else affine.at(_permutation(op).index(affine.axis))


def _axes(op: Op, rank: int) -> set[int]:
    """The axes of Squeeze and Unsqueeze, an attribute up to opset 12 and an input from then on."""
    given = op.need_ints(1, "axes")
    if given is not None:
        return {a % rank for a in given}
    return {a for a in range(rank) if op.need_dim(0, a) == 1}  # Squeeze without axes


def _drop(op: Op, affine: Affine, axes: set[int]) -> Affine:
    """The affine when `axes` disappear; one that is on them has one channel, so it is a scalar."""
    if affine.axis is None:
        return affine
    need(affine.axis not in axes, Reason.AXIS, f"{op.type} {op.name!r} removes axis {affine.axis}")
    return affine.at(affine.axis - sum(a < affine.axis for a in axes))


def _insert(affine: Affine, axes: set[int]) -> Affine:
    """The affine when `axes`, numbered in the result, appear."""
    if affine.axis is None:
        return affine
    axis = affine.axis
    for a in sorted(axes):
        axis += a <= axis
    return affine.at(axis)


def _squeeze_back(op: Op, affine: Affine) -> Affine:
    return affine if affine.axis is None else _insert(affine, _axes(op, op.need_rank()))


def _squeeze_forth(op: Op, affine: Affine) -> Affine:
    return affine if affine.axis is None else _drop(op, affine, _axes(op, op.need_rank()))


def _unsqueeze_back(op: Op, affine: Affine) -> Affine:
    return affine if affine.axis is None else _drop(op, affine, _axes(op, op.need_out_rank()))


def _unsqueeze_forth(op: Op, affine: Affine) -> Affine:
    return affine if affine.axis is None else _insert(affine, _axes(op, op.need_out_rank()))


def _aligned_right(op: Op, affine: Affine, ranks: int) -> Affine:
    """For Expand: the axis counted from the right stays, if nothing is broadcast along it."""
    if affine.axis is None:
        return affine
    before, after = op.need_rank(), op.need_out_rank()
    axis, other = (affine.axis, affine.axis + ranks * (after - before))
    i, o = (axis, other) if ranks > 0 else (other, axis)
    need(i >= 0, Reason.BROADCAST, f"Expand {op.name!r} adds axis {o}")
    grows = op.need_dim(0, i) != op.need_out_dim(0, o)
    need(not grows, Reason.BROADCAST, f"Expand {op.name!r} broadcasts axis {o}")
    return affine.at(other)


# Operators that merge and divide axes


def transfer(affine: Affine, inner: int, axis: int, size: int, stride: int) -> Affine:
    """The affine in row-major data that is seen with other axes.

    Args:
        affine: On an axis whose steps are `inner` elements apart.
        inner: Elements per step of its axis.
        axis: The axis to move it to.
        size: The size of that axis.
        stride: Elements per step of that axis.

    Raises:
        Declined: The channels of the new axis mix different channels of the old one.
    """
    mixed = Declined(Reason.MIXED_CHANNELS, f"axis {affine.axis} is merged with others into axis {axis}")
    channels = affine.channels or 1
    if stride > inner:  # each new channel covers several old ones
        group = stride // inner
        if stride % inner or channels % group:
            raise mixed
        affine = _first_of_groups(affine, group, mixed)
    elif inner % stride:
        raise mixed
    else:
        affine = affine.repeat(inner // stride)
    channels = affine.channels or size
    if channels < size and size % channels == 0:
        return affine.tile(size // channels).at(axis)
    if channels > size and channels % size == 0:  # the old axis goes on over several rounds of the new one
        once = affine.taken(range(size))
        if not once.tile(channels // size).same(affine) and once.axis is not None:
            raise mixed
        if once.axis is None and affine.axis is not None:
            raise mixed
        return once.at(axis)
    if channels != size:
        raise mixed
    return affine.at(axis)


def _first_of_groups(affine: Affine, group: int, mixed: Declined) -> Affine:
    """One channel per group of equal ones."""
    if affine.channels is None:
        return affine
    first = affine.taken(range(0, affine.channels, group))
    again = affine.taken(np.arange(affine.channels) // group * group)
    if not again.same(affine):
        raise mixed
    return first


def _through_shapes(op: Op, affine: Affine, before: Sequence[Dim], after: Sequence[Dim]) -> Affine:
    """The affine of data of shape `before` as an affine of the same elements in shape `after`."""
    if affine.axis is None:
        return affine
    for axis in range(len(after)):
        # The axes ahead are the same, symbols included: then so is what follows.
        ahead = [d for d in before[: affine.axis] if d != 1]
        if (
            ahead == [d for d in after[:axis] if d != 1]
            and None not in ahead
            and after[axis] == affine.channels
        ):
            return affine.at(axis)
    need(0 not in (*before, *after), Reason.MIXED_CHANNELS, f"{op.type} {op.name!r} of no elements")
    inner = _product(before[affine.axis + 1 :])
    declined = Declined(
        Reason.UNKNOWN_SHAPE, f"{op.type} {op.name!r} from {list(before)} to {list(after)} has unknown sizes"
    )
    for axis, size in enumerate(after):
        stride = _product(after[axis + 1 :])
        if inner is None or stride is None or not isinstance(size, int) or size == 1:
            continue
        try:
            return transfer(affine, inner, axis, size, stride)
        except Declined as mixed:
            declined = mixed
    raise declined


def _product(sizes: Sequence[Dim]) -> int | None:
    known = [n for n in sizes if isinstance(n, int)]
    return math.prod(known) if len(known) == len(sizes) else None


def _reshape_dims(op: Op) -> tuple[Sequence[Dim], Sequence[Dim]]:
    """Shape before and after a Reshape, with the symbols that its zeros copy."""
    before, after = op.facts.dims(op.need_input(0)), op.facts.dims(op.node.outputs[0])
    target = op.need_ints(1, "shape") if op.has("shape") or op.constant(1) is not None else None
    if before is not None and target is not None:
        copies = not op.integer("allowzero", 0)
        wanted: list[Dim] = [
            before[i] if n == 0 and copies else n if n >= 0 else None for i, n in enumerate(target)
        ]
        stated = after if after is not None and len(after) == len(wanted) else (None,) * len(wanted)
        after = tuple(w if w is not None else s for w, s in zip(wanted, stated, strict=True))
    if before is None or after is None:
        raise Declined(Reason.UNKNOWN_SHAPE, f"{op.type} {op.name!r}: a shape is not known")
    return before, after


def _flatten_dims(op: Op) -> tuple[Sequence[Dim], Sequence[Dim]]:
    before = op.facts.dims(op.need_input(0))
    if before is None:
        raise Declined(Reason.UNKNOWN_SHAPE, f"{op.type} {op.name!r}: the input's shape is not known")
    axis = op.integer("axis", 1)
    axis += len(before) if axis < 0 else 0
    return before, (_merged(before[:axis]), _merged(before[axis:]))


def _merged(sizes: Sequence[Dim]) -> Dim:
    big = [n for n in sizes if n != 1]
    return big[0] if len(big) == 1 else _product(sizes)


def _regroup(dims: Callable[[Op], tuple[Sequence[Dim], Sequence[Dim]]]) -> Carrier:
    def back(op: Op, affine: Affine) -> Affine:
        return affine if affine.axis is None else _through_shapes(op, affine, *reversed(dims(op)))

    def forth(op: Op, affine: Affine) -> Affine:
        return affine if affine.axis is None else _through_shapes(op, affine, *dims(op))

    return Carrier(back, forth)


def _blocks_back(op: Op, affine: Affine) -> Affine:
    """DepthToSpace: channel c of the result comes from b·b channels before."""
    need_on(op, affine, 0, 1)
    squared = op.integer("blocksize", 1) ** 2
    if affine.axis != 1:
        return affine
    return affine.repeat(squared) if op.text("mode", "DCR") == "CRD" else affine.tile(squared)


def _blocks_forth(op: Op, affine: Affine) -> Affine:
    """DepthToSpace: the b·b channels that make channel c must agree."""
    need_on(op, affine, 0, 1)
    if affine.axis != 1 or affine.channels is None:
        return affine
    squared = op.integer("blocksize", 1) ** 2
    channels = affine.channels // squared
    crd = op.text("mode", "DCR") == "CRD"
    stride = squared if crd else 1
    return transfer(affine, 1, 1, channels, stride) if crd else _one_round(op, affine, channels)


def _one_round(op: Op, affine: Affine, channels: int) -> Affine:
    """The first `channels`, of which the others have to be repetitions."""
    wraps = np.arange(affine.channels or 1) % channels
    need(
        affine.taken(wraps).same(affine),
        Reason.MIXED_CHANNELS,
        f"{op.type} {op.name!r} merges channels that have different affines",
    )
    return affine.taken(range(channels))


def _space_back(op: Op, affine: Affine) -> Affine:
    """SpaceToDepth: the b·b channels that come of channel c must agree."""
    need_on(op, affine, 0, 1)
    if affine.axis != 1 or affine.channels is None:
        return affine
    return _one_round(op, affine, affine.channels // op.integer("blocksize", 1) ** 2)


def _space_forth(op: Op, affine: Affine) -> Affine:
    """SpaceToDepth: channel c goes to b·b channels, one round of all channels per position."""
    need_on(op, affine, 0, 1)
    return affine.tile(op.integer("blocksize", 1) ** 2) if affine.axis == 1 else affine


# Reductions


def _reduced(op: Op) -> set[int] | None:
    """The axes that a reduction removes; None for none at all."""
    given = op.need_ints(1, "axes")
    if not given:
        return None if op.integer("noop_with_empty_axes", 0) else set(range(op.need_rank()))
    return {a % op.need_rank() for a in given} if min(given) < 0 else set(given)


def _reduction_back(op: Op, affine: Affine) -> Affine:
    axes = _reduced(op)
    if affine.axis is None or axes is None:
        return affine
    if op.integer("keepdims", 1):
        need(affine.axis not in axes, Reason.AXIS, f"{op.type} {op.name!r} reduces axis {affine.axis}")
        return affine
    return _insert(affine, axes)


def _reduction_forth(op: Op, affine: Affine) -> Affine:
    axes = _reduced(op)
    if affine.axis is None or axes is None:
        return affine
    need(affine.axis not in axes, Reason.AXIS, f"{op.type} {op.name!r} reduces axis {affine.axis}")
    return affine if op.integer("keepdims", 1) else _drop(op, affine, axes)


def _reduction(*guards: Callable[[Op, Affine], None]) -> Carrier:
    def checked(step: Step) -> Step:
        def run(op: Op, affine: Affine) -> Affine:
            for guard in guards:
                guard(op, affine)
            return step(op, affine)

        return run

    return Carrier(checked(_reduction_back), checked(_reduction_forth))


def _summands(op: Op) -> DoubleDouble:
    """How many elements ReduceSum adds up."""
    return DoubleDouble.of(math.prod(op.need_dim(0, a) for a in _reduced(op) or ()))


def _sum_back(op: Op, affine: Affine) -> Affine:
    before = _reduction_back(op, affine)
    if not affine.has_shift:
        return before
    n = _summands(op)
    need(not n.equals(0.0), Reason.SHIFT, f"ReduceSum {op.name!r} of nothing is 0")
    return Affine.of(before.scale, before.shift / n, before.axis)


def _sum_forth(op: Op, affine: Affine) -> Affine:
    after = _reduction_forth(op, affine)
    return Affine.of(after.scale, after.shift * _summands(op), after.axis) if affine.has_shift else after


def _neg(op: Op, affine: Affine) -> Affine:
    """s·(-x) + t = -(s·x - t), and the other way round."""
    return Affine(affine.scale, -affine.shift, affine.axis)


def _tile_guard(op: Op, affine: Affine) -> None:
    need(op.opset >= 6, Reason.NOT_STATIC, f"Tile {op.name!r} of opset {op.opset}")
    _same_size(op, affine)


CARRIERS: dict[str, Carrier] = {
    "AveragePool": _unchanged(_not_spatial, _no_padding_counted),
    "Cast": Carrier(_cast_back, _cast_forth),
    "CastLike": Carrier(_cast_back, _cast_forth),
    "DepthToSpace": Carrier(_blocks_back, _blocks_forth),
    "Dropout": _unchanged(_dropout_at_rest),
    "Expand": Carrier(lambda op, a: _aligned_right(op, a, -1), lambda op, a: _aligned_right(op, a, 1)),
    "Flatten": _regroup(_flatten_dims),
    "GlobalAveragePool": _unchanged(_not_spatial),
    "GlobalMaxPool": _unchanged(_not_spatial, need_positive),
    "Identity": _unchanged(),
    "MaxPool": _unchanged(_not_spatial, need_positive, _alone),
    "Neg": Carrier(_neg, _neg),
    "ReduceMax": _reduction(need_positive),
    "ReduceMean": _reduction(),
    "ReduceMin": _reduction(need_positive),
    "ReduceSum": Carrier(_sum_back, _sum_forth),
    "Reshape": _regroup(_reshape_dims),
    "Resize": _unchanged(_axis_not_resized),
    "SpaceToDepth": Carrier(_space_back, _space_forth),
    "Squeeze": Carrier(_squeeze_back, _squeeze_forth),
    "Tile": _unchanged(_tile_guard),
    "Transpose": Carrier(_transpose_back, _transpose_forth),
    "Unsqueeze": Carrier(_unsqueeze_back, _unsqueeze_forth),
    "Upsample": _unchanged(_same_size),
}
