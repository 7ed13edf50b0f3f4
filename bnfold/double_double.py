"""Arrays of about 106 bits: each number is an unevaluated sum hi + lo of two float64.

A folded parameter should be the correctly rounded exact value. One float64 computation cannot promise
that: it is a few units in the last place off for float64 tensors, and rounds a float32 twice. Two
float64 are enough: the error-free sum and product of Knuth and Dekker (T. J. Dekker, "A
floating-point technique for extending the available precision", 1971) keep what each operation drops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

F64 = NDArray[np.float64]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SPLITTABLE = 2.0**990
"""Above this, the halves of a number would overflow."""

_SPLITTER = 2.0**27 + 1.0


@dataclass(frozen=True, eq=False, slots=True)
class DoubleDouble:
    """An array of numbers hi + lo with |lo| ≤ ulp(hi)/2. The operators broadcast as numpy does.

    Attributes:
        hi: The value rounded to float64.
        lo: What that rounding dropped, rounded to float64.
    """

    hi: F64
    lo: F64

    @classmethod
    def of(cls, value: ArrayLike) -> DoubleDouble:
        """The numbers of any floating or integer array below 2**53, exactly."""
        hi = np.asarray(value).astype(np.float64)
        return cls(hi, np.zeros(hi.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.hi.shape

    def __neg__(self) -> DoubleDouble:
        return DoubleDouble(-self.hi, -self.lo)

    def __add__(self, other: DoubleDouble) -> DoubleDouble:
        # Both halves are added error-free: the sloppier sum loses everything under cancellation.
        s, e = _two_sum(self.hi, other.hi)
        t, f = _two_sum(self.lo, other.lo)
        s, e = _quick_two_sum(s, e + t)
        return DoubleDouble(*_quick_two_sum(s, e + f))

    def __sub__(self, other: DoubleDouble) -> DoubleDouble:
        return self + -other

    def __mul__(self, other: DoubleDouble) -> DoubleDouble:
        p, e = _two_prod(self.hi, other.hi)
        return DoubleDouble(*_quick_two_sum(p, e + (self.hi * other.lo + self.lo * other.hi)))

    def __truediv__(self, other: DoubleDouble) -> DoubleDouble:
        q = self.hi / other.hi
        p, e = _two_prod(q, other.hi)
        rest = ((self.hi - p) - e) + (self.lo - q * other.lo)
        return DoubleDouble(*_quick_two_sum(q, rest / other.hi))

    def sqrt(self) -> DoubleDouble:
        """Square root of positive numbers, by one Newton step from the float64 root."""
        root = np.sqrt(self.hi)
        p, e = _two_prod(root, root)
        rest = ((self.hi - p) - e) + self.lo
        return DoubleDouble(*_quick_two_sum(root, rest / (2.0 * root)))

    def sum(self, axis: int) -> DoubleDouble:
        """Sum over one axis, pairwise."""
        hi, lo = np.moveaxis(self.hi, axis, -1), np.moveaxis(self.lo, axis, -1)
        total = DoubleDouble(hi, lo)
        while (n := total.shape[-1]) > 1:
            half = n // 2
            paired = total[..., :half] + total[..., half : 2 * half]
            total = _join([paired, total[..., 2 * half :]], -1) if n % 2 else paired
        return total[..., 0] if total.shape[-1] else DoubleDouble.of(np.zeros(total.shape[:-1]))

    # What only moves numbers around works on the two halves alike.

    def __getitem__(self, index: Any) -> DoubleDouble:
        return self._each(lambda a: a[index])

    def reshape(self, *shape: int) -> DoubleDouble:
        """As numpy's."""
        return self._each(lambda a: a.reshape(shape))

    def broadcast_to(self, shape: Sequence[int]) -> DoubleDouble:
        """As numpy's."""
        if self.hi.shape == tuple(shape):
            return self
        return self._each(lambda a: np.broadcast_to(a, shape))

    def repeat(self, n: int) -> DoubleDouble:
        """Each number n times in a row."""
        return self._each(lambda a: np.repeat(a, n))

    def tile(self, n: int) -> DoubleDouble:
        """The whole array n times in a row."""
        return self._each(lambda a: np.tile(a, n))

    def _each(self, f: Callable[[F64], F64]) -> DoubleDouble:
        return DoubleDouble(f(self.hi), f(self.lo))

    # Questions, answered exactly.

    def equals(self, value: float) -> bool:
        """Whether every number is exactly `value`."""
        if self.hi.size and self.hi.item(0) != value:
            return False
        return bool((self.hi == value).all()) and not self.lo.any()

    def is_uniform(self) -> bool:
        """Whether all numbers are the same, and there are any."""
        if not self.hi.size or self.hi.item(0) != self.hi.item(-1):
            return False
        return bool((self.hi == self.hi.item(0)).all()) and bool((self.lo == self.lo.item(0)).all())

    def same(self, other: DoubleDouble) -> bool:
        """Whether all numbers agree with those of `other`."""
        return bool((self.hi == other.hi).all()) and bool((self.lo == other.lo).all())

    def is_finite(self) -> bool:
        """Whether no number is NaN or infinite."""
        return bool(np.isfinite(self.hi).all())

    def round(self, dtype: DTypeLike, *, settled: bool = False) -> NDArray[Any]:
        """The nearest numbers of a floating dtype, ties to even, with one rounding.

        Args:
            dtype: float16, bfloat16, float32 or float64. Results below 2**-968 may be off by one unit
                in the last place of float64, since lo is then subnormal.
            settled: Whether lo holds no rounding error, as in a product of two float64.
        """
        hi, lo = self.hi, self.lo if settled else self._settled_lo()
        nearest = hi + lo
        if np.dtype(dtype) == np.float64:
            return nearest
        # Rounding to odd keeps, in the last bit, whether anything was dropped; a later rounding
        # to at least two bits fewer then is as good as one rounding of the exact value.
        return narrow(_to_odd(nearest, (hi - nearest) + lo), dtype)

    def _settled_lo(self) -> F64:
        """lo without the noise of the arithmetic in its last bits, so that exact ties are ties."""
        with np.errstate(invalid="ignore"):
            grid = np.spacing(np.abs(self.hi)) * 192.0
            return np.where(np.isfinite(grid), (self.lo + grid) - grid, 0.0)


def narrow(a: F64, dtype: DTypeLike) -> NDArray[Any]:
    """float64 rounded once to a floating dtype; what is over its range becomes infinite."""
    with np.errstate(over="ignore"):
        if np.dtype(dtype) == BFLOAT16:  # its own cast from float64 goes through float32: two roundings
            single = a.astype(np.float32)
            a = _to_odd(single, a - single.astype(np.float64))
        return a.astype(dtype)


def stack(parts: Sequence[DoubleDouble]) -> DoubleDouble:
    """Parts of one shape along a new first axis."""
    return DoubleDouble(np.array([p.hi for p in parts]), np.array([p.lo for p in parts]))


def concatenate(parts: Sequence[DoubleDouble]) -> DoubleDouble:
    """One-dimensional parts behind each other."""
    return _join(parts, 0)


def _join(parts: Sequence[DoubleDouble], axis: int) -> DoubleDouble:
    return DoubleDouble(
        np.concatenate([p.hi for p in parts], axis), np.concatenate([p.lo for p in parts], axis)
    )


def _two_sum(a: F64, b: F64) -> tuple[F64, F64]:
    """a + b as the rounded sum and its exact error."""
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


def _quick_two_sum(a: F64, b: F64) -> tuple[F64, F64]:
    """The same for |a| ≥ |b|."""
    s = a + b
    return s, b - (s - a)


def _two_prod(a: F64, b: F64) -> tuple[F64, F64]:
    """a · b as the rounded product and its exact error."""
    p = a * b
    a1, a2 = _split(a)
    b1, b2 = _split(b)
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


def _split(a: F64) -> tuple[F64, F64]:
    """a as the sum of two numbers of 26 bits, whose products are exact."""
    c = _SPLITTER * a
    high = c - (c - a)
    return high, a - high


def _to_odd(a: NDArray[Any], dropped: F64) -> NDArray[Any]:
    """The neighbours of a + dropped with an odd last bit, or a itself where nothing was dropped."""
    bits: NDArray[np.int64] = a.view(f"i{a.dtype.itemsize}")
    off = (dropped != 0.0) & (bits & 1 == 0) & np.isfinite(a)
    toward = np.where(dropped > 0.0, np.inf, -np.inf).astype(a.dtype)
    return np.where(off, np.nextafter(a, toward), a)
