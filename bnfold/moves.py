"""`Move`: what a rule answers when an affine stands behind its operator (pull) or before it (push).

A rule is a pure function of one node and the affine. It either answers with a `Move`, with several of
which the first that works out is taken, or raises `Declined`. Its law:

    pull    affine(op(x, c))  =  left(op(inputs(x, c)))
    push    op(affine(x), c)  =  outputs(op(left(x), inputs(c)))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from .affine import Affine, Elementwise
from .facts import Op
from .report import Declined, Reason


@dataclass(frozen=True, eq=False)
class Move:
    """How an affine disappears from one side of a node.

    Attributes:
        inputs: What each input becomes: its image under this affine. An absent optional input counts
            as 0. A constant takes any `Elementwise`; data can only be asked for an `Affine`.
        outputs: Push only: the affine that each output still needs.
        left: The shift that stays: behind the node when pulling, before it when pushing.
        attributes: Attributes that change.
    """

    inputs: Mapping[int, Affine | Elementwise] = field(default_factory=dict)
    outputs: Mapping[int, Affine] = field(default_factory=dict)
    left: Affine | None = None
    attributes: Mapping[str, ir.Attr] = field(default_factory=dict)


Answer = Move | tuple[Move, ...]

Pull = Callable[[Op, int, Affine], Answer]
"""From a node, the number of one of its outputs, and the affine that follows there."""

Push = Callable[[Op, tuple[int, ...], Affine], Answer]
"""From a node, the numbers of those of its inputs that read one value, and the affine that precedes it."""


def need(condition: bool, reason: Reason, detail: str) -> None:
    """Raise `Declined` unless the condition of a guard holds."""
    if not condition:
        raise Declined(reason, detail)


def need_on(op: Op, affine: Affine, *axes: int) -> None:
    """Raise `Declined` unless the affine lies on one of these axes (scalars lie on every axis)."""
    need(
        affine.axis is None or affine.axis in axes,
        Reason.AXIS,
        f"{op.type} {op.name!r} takes axis {' or '.join(map(str, axes))}, not axis {affine.axis}",
    )


def need_positive(op: Op, affine: Affine) -> None:
    """Raise `Declined` unless every scale is above 0."""
    need(affine.is_positive, Reason.SIGN, f"{op.type} {op.name!r} and a scale of {affine.scale.hi.min():.6g}")


def pull_scale(op: Op, affine: Affine, *inputs: dict[int, Affine | Elementwise]) -> tuple[Move, ...]:
    """For operators that pass a scale only: s·f(x) + t, where the shift stays behind the operator.

    Args:
        op: The node.
        affine: The affine behind it.
        inputs: Ways to hand on the scale, best first.
    """
    need(affine.has_scale, Reason.SHIFT, f"{op.type} {op.name!r} cannot take a shift")
    left = affine.shifting() if affine.has_shift else None
    return tuple(Move(way, left=left) for way in inputs)


def push_scale(op: Op, affine: Affine, handed_on: Affine) -> Move:
    """The mirror image: f(s·x + t) = s·f(x + t/s), where the shift stays before the operator."""
    need(affine.has_scale, Reason.SHIFT, f"{op.type} {op.name!r} cannot pass a shift")
    if not affine.has_shift:
        return Move(outputs={0: handed_on})
    need(affine.is_invertible, Reason.SHIFT, f"{op.type} {op.name!r}: a scale of 0 keeps the shift here")
    return Move(outputs={0: handed_on}, left=affine.shift_before())
