"""`Affine`: y = scale · x + shift, one scale and one shift per index of one axis.

Batch normalization at inference is such a map, and so is multiplying by or adding a constant per
channel. All numbers are of 106 bits (`double_double`), so that runs of affines compose without rounding
on the way and a folded constant is rounded once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .double_double import DoubleDouble, concatenate

_ONE = DoubleDouble.of(1.0)
_ZERO = DoubleDouble.of(0.0)


@dataclass(frozen=True, eq=False)
class Elementwise:
    """y = scale · c + shift for a constant c, with scale and shift that broadcast against c.

    What a constant can take, though a value between two operators could not: the weights of a grouped
    convolution, say, are scaled along two axes at once.

    Attributes:
        scale: Factors; None is 1.
        shift: Summands; None is 0.
    """

    scale: DoubleDouble | None = None
    shift: DoubleDouble | None = None


@dataclass(frozen=True, eq=False)
class Affine:
    """y = scale · x + shift along one axis.

    Attributes:
        scale: Shape (C,), or () where `axis` is None.
        shift: The same shape.
        axis: The axis of the data, counted from 0; None if one scale and shift serve all elements.
    """

    scale: DoubleDouble
    shift: DoubleDouble
    axis: int | None

    @classmethod
    def of(cls, scale: DoubleDouble | None, shift: DoubleDouble | None, axis: int | None) -> Affine:
        """The affine with these numbers, scalars if every channel has the same.

        Args:
            scale: (C,) or (); None is 1.
            shift: (C,) or (); None is 0.
            axis: Their axis; None if both are scalars.
        """
        if scale is None or shift is None:
            # Full arrays: spreading one number over them costs more than they do.
            channels = (scale or shift or _ONE).shape
            scale = scale or DoubleDouble.full(channels, 1.0)
            shift = shift or DoubleDouble.full(channels, 0.0)
        if axis is None or (_is_uniform(scale) and _is_uniform(shift)):
            return cls(scale.first(), shift.first(), None)
        shape = scale.shape or shift.shape
        return cls(scale.broadcast_to(shape), shift.broadcast_to(shape), axis)

    @property
    def channels(self) -> int | None:
        """C; None for scalars."""
        return None if self.axis is None else self.scale.shape[0]

    @property
    def has_scale(self) -> bool:
        """Whether any scale differs from 1."""
        return not self.scale.equals(1.0)

    @property
    def has_shift(self) -> bool:
        """Whether any shift differs from 0."""
        return not self.shift.equals(0.0)

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing, exactly."""
        return not self.has_scale and not self.has_shift

    @property
    def is_positive(self) -> bool:
        """Whether every scale is above 0."""
        return bool((self.scale.hi > 0.0).all())

    @property
    def is_invertible(self) -> bool:
        """Whether no scale is 0."""
        return bool(self.scale.hi.all())

    def meets(self, other: Affine) -> bool:
        """Whether the two lie on the same axis (a scalar lies on every axis)."""
        return self.axis is None or other.axis is None or self.axis == other.axis

    def same(self, other: Affine) -> bool:
        """Whether the two are the same map of the same axis."""
        return (
            self.axis == other.axis
            and self.scale.shape == other.scale.shape
            and self.scale.same(other.scale)
            and self.shift.same(other.shift)
        )

    def then(self, after: Affine) -> Affine:
        """`after` applied to the result of this one: scale s_b·s_a, shift s_b·t_a + t_b.

        Both must meet on one axis.
        """
        axis = self.axis if after.axis is None else after.axis
        return Affine.of(after.scale * self.scale, after.scale * self.shift + after.shift, axis)

    def scaling(self) -> Affine:
        """Its scale alone."""
        return Affine.of(self.scale, None, self.axis)

    def shifting(self) -> Affine:
        """Its shift alone."""
        return Affine.of(None, self.shift, self.axis)

    def shift_before(self) -> Affine:
        """The shift that does the same ahead of the scale: s·x + t = s·(x + t/s). Scales are not 0."""
        return Affine.of(None, self.shift / self.scale, self.axis)

    def at(self, axis: int) -> Affine:
        """The same numbers on another axis; scalars stay scalars."""
        return self if self.axis is None else Affine(self.scale, self.shift, axis)

    def spread(self, channels: int, axis: int) -> Affine:
        """With one number per channel, even if all are the same: what a vector of weights takes."""
        shape = (channels,)
        return Affine(self.scale.broadcast_to(shape), self.shift.broadcast_to(shape), axis)

    def taken(self, index: Sequence[int] | NDArray[np.int64]) -> Affine:
        """Channel index[i] becomes channel i."""
        if self.axis is None:
            return self
        index = np.asarray(index, np.int64)
        return Affine.of(self.scale.take(index), self.shift.take(index), self.axis)

    def placed(self, index: NDArray[np.int64], channels: int) -> Affine:
        """Channel i goes to channel index[i] of `channels`, and the others stay as they are."""
        spread = self.spread(len(index), self.axis or 0)
        scale = spread.scale.placed(index, channels, 1.0)
        return Affine.of(scale, spread.shift.placed(index, channels, 0.0), self.axis or 0)

    def split(self, sizes: Sequence[int]) -> list[Affine]:
        """One affine per part of the axis."""
        ends = np.cumsum(sizes)
        return [self.taken(np.arange(end - size, end)) for size, end in zip(sizes, ends, strict=True)]

    def repeat(self, n: int) -> Affine:
        """Each channel n times in a row."""
        return self._each(lambda a: a.repeat(n))

    def tile(self, n: int) -> Affine:
        """All channels n times in a row."""
        return self._each(lambda a: a.tile(n))

    def elementwise(self, rank: int) -> Elementwise:
        """For a constant of this rank: scale and shift of shape (1, .., C, .., 1)."""
        if self.axis is None:
            shape: tuple[int, ...] = ()
        else:
            shape = tuple(-1 if i == self.axis else 1 for i in range(rank))
        return Elementwise(
            self.scale.reshape(*shape) if self.has_scale else None,
            self.shift.reshape(*shape) if self.has_shift else None,
        )

    def _each(self, f: Callable[[DoubleDouble], DoubleDouble]) -> Affine:
        return self if self.axis is None else Affine.of(f(self.scale), f(self.shift), self.axis)


def join(parts: Sequence[Affine], sizes: Sequence[int], axis: int) -> Affine:
    """The affine of a concatenation: part i covers sizes[i] channels of the axis."""
    spread = [part.spread(size, axis) for part, size in zip(parts, sizes, strict=True)]
    return Affine.of(
        concatenate([part.scale for part in spread]), concatenate([part.shift for part in spread]), axis
    )


def identity() -> Affine:
    """y = x."""
    return Affine(_ONE, _ZERO, None)


def _is_uniform(numbers: DoubleDouble) -> bool:
    return not numbers.shape or numbers.is_uniform()
