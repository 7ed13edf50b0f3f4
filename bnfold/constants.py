"""`Constant`: a tensor known before the model runs, as an affine image of stored numbers.

A fold that changes a constant does not round it: it composes one more elementwise affine on top of the
stored numbers. So a weight that takes two folds is still rounded once, when it is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .affine import Elementwise
from .double_double import BFLOAT16, F64, DoubleDouble, narrow
from .report import Declined, Reason

FLOATS = frozenset(np.dtype(t) for t in (np.float16, BFLOAT16, np.float32, np.float64))

_TINY = {np.dtype(np.float16): float(np.finfo(np.float16).tiny)}
# A float64 product of the weight and the leading half of its scale is within 2**-51 of the exact one.
_DOWN, _UP = 1.0 - 2.0**-51, 1.0 + 2.0**-51
_BLOCK = 1 << 16  # elements per step: the float64 intermediates stay in the cache


@dataclass(frozen=True, eq=False)
class Constant:
    """scale · base + shift, in the dtype of the base.

    Attributes:
        base: The stored numbers (a view of the file where possible).
        scale: Factors that broadcast with `base`; None is 1.
        shift: Summands that broadcast with it; None is 0.
    """

    base: NDArray[Any]
    scale: DoubleDouble | None = None
    shift: DoubleDouble | None = None

    @classmethod
    def exactly(cls, numbers: DoubleDouble, dtype: DTypeLike) -> Constant:
        """Numbers that are stored nowhere yet."""
        return cls(np.zeros((), dtype), None, numbers)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.base.dtype

    @cached_property
    def shape(self) -> tuple[int, ...]:
        if self.scale is None and self.shift is None:
            return self.base.shape
        parts = [self.base.shape, *(p.shape for p in (self.scale, self.shift) if p is not None)]
        return np.broadcast_shapes(*parts)

    def reshape(self, *shape: int) -> Constant:
        """The same numbers in another shape."""
        return Constant.exactly(self.exact().broadcast_to(self.shape).reshape(*shape), self.dtype)

    def mapped(self, change: Elementwise) -> Constant:
        """Its image under one more affine."""
        scale, shift = self.scale, self.shift
        if change.scale is not None:
            scale = change.scale if scale is None else change.scale * scale
            shift = None if shift is None else change.scale * shift
        if change.shift is not None:
            shift = change.shift if shift is None else shift + change.shift
        return Constant(self.base, scale, shift)

    def exact(self) -> DoubleDouble:
        """Its numbers before rounding."""
        numbers = DoubleDouble.of(self.base)
        if self.scale is not None:
            numbers = numbers * self.scale
        if self.shift is not None:
            numbers = numbers + self.shift
        return numbers

    def rounded(self) -> NDArray[Any]:
        """Its numbers, each the correctly rounded exact value."""
        if self.scale is None and self.shift is None:
            return self.base
        if self.scale is None or self.shift is not None or self.dtype == np.float64:
            return self.exact().round(self.dtype)
        base, scale = np.broadcast_arrays(self.base, self.scale.hi, subok=False)[0], self.scale
        result = np.empty(self.shape, self.dtype)
        if not result.size:
            return result
        rows = base.reshape(1) if base.ndim == 0 else base
        step = max(1, _BLOCK * len(rows) // result.size)
        for i in range(0, len(rows), step):
            part = scale if not scale.shape or scale.shape[0] == 1 else scale[i : i + step]
            result.reshape(rows.shape)[i : i + step] = _scaled(rows[i : i + step], part)
        return result

    def check(self, name: str) -> None:
        """Raise `Declined` if the rounded numbers would not be fit to take the place of the exact ones.

        Args:
            name: What to call the constant in the message.
        """
        if self.shift is None:
            self._check_scaled(name)
        elif not np.isfinite(self.base.astype(np.float64)).all() or not self.exact().is_finite():
            raise Declined(Reason.NOT_FINITE, f"{name} holds NaN or infinity")
        elif not np.isfinite(self.rounded().astype(np.float64)).all():
            raise Declined(Reason.OVERFLOW, f"{name} would exceed the range of {self.dtype}")

    def _check_scaled(self, name: str) -> None:
        """The same from the largest magnitude per scale, without computing the products."""
        scale = np.abs(np.ones(()) if self.scale is None else self.scale.hi)
        largest = _magnitude(self.base, scale.shape)
        if not np.isfinite(largest).all() or not np.isfinite(scale).all():
            raise Declined(Reason.NOT_FINITE, f"{name} holds NaN or infinity")
        product = largest * scale
        stored = narrow(product, self.dtype).astype(np.float64)
        if not np.isfinite(stored).all():
            raise Declined(
                Reason.OVERFLOW, f"{name} would reach {product.max():.3g}, too much for {self.dtype}"
            )
        alive = (product > 0.0) & (largest > 0.0)
        tiny = _TINY.get(self.dtype, 0.0)
        if np.any(alive & ((stored == 0.0) | ((product < tiny) & (largest >= tiny)))):
            least = product[alive].min()
            raise Declined(
                Reason.UNDERFLOW, f"a channel of {name} would be at most {least:.3g} in {self.dtype}"
            )


def _magnitude(base: NDArray[Any], shape: tuple[int, ...]) -> F64:
    """The largest |number| of the base for each entry of a scale of this shape."""
    shape = (1,) * (base.ndim - len(shape)) + shape
    axes = tuple(i for i, n in enumerate(shape[len(shape) - base.ndim :]) if n == 1)
    if base.dtype == BFLOAT16:
        base = base.astype(np.float32)
    if not base.size:
        return np.zeros(())
    above, below = base.max(axis=axes, keepdims=True), base.min(axis=axes, keepdims=True)
    largest: F64 = np.maximum(above.astype(np.float64), -below.astype(np.float64))
    return largest


def _scaled(base: NDArray[Any], scale: DoubleDouble) -> NDArray[Any]:
    """base · scale, correctly rounded to the dtype of the base.

    Ziv's test: round a little below and a little above. Where both agree, the exact product rounds to
    the same; where they do not (about once in 10**8 for float32), 106 bits decide.
    """
    wide = base.astype(np.float64)
    low = narrow(wide * (scale.hi * _DOWN), base.dtype)
    high = narrow(wide * (scale.hi * _UP), base.dtype)
    doubtful = np.nonzero(low != high)
    if doubtful[0].size:
        factor = scale.broadcast_to(base.shape)[doubtful]
        low[doubtful] = (DoubleDouble.of(base[doubtful]) * factor).round(base.dtype)
    return low
