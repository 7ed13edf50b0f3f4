"""Arrays of about 106 bits: each number is an unevaluated sum hi + lo of two float64.

A folded parameter should be the correctly rounded exact value. One float64 computation cannot promise
that: it is a few units in the last place off for float64 tensors, and rounds a float32 twice. Two
float64 are enough: the error-free sum and product of Knuth and Dekker (T. J. Dekker, "A
floating-point technique for extending the available precision", 1971) keep what each operation drops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .formulas import Formula, combined

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
        formula: How the numbers come from those of the original model, see `formulas`; None if nobody
            can tell. What the operators make knows it from their operands.
    """

    hi: F64
    lo: F64
    formula: Formula | None = None

    @classmethod
    def of(cls, value: ArrayLike, formula: Formula | None = None) -> DoubleDouble:
        """The numbers of any floating or integer array below 2**53, exactly.

        Args:
            value: The array. A number of Python's stands for itself, it needs no formula.
            formula: What the array is.
        """
        if type(value) in (float, int):
            formula = ("number", value)
        hi = np.asarray(value).astype(np.float64)
        return cls(hi, np.zeros(hi.shape), formula)

    @classmethod
    def full(cls, shape: tuple[int, ...], value: float) -> DoubleDouble:
        """One float64 everywhere."""
        return _full(shape, value)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.hi.shape

    def known_as(self, formula: Formula | None) -> DoubleDouble:
        """The same numbers under another formula."""
        return DoubleDouble(self.hi, self.lo, formula)

    def __neg__(self) -> DoubleDouble:
        return DoubleDouble(-self.hi, -self.lo, self._with("neg"))

    def __add__(self, other: DoubleDouble) -> DoubleDouble:
        # Both halves are added error-free: the sloppier sum loses everything under cancellation.
        s, e = _two_sum(self.hi, other.hi)
        t, f = _two_sum(self.lo, other.lo)
        s, e = _quick_two_sum(s, e + t)
        return DoubleDouble(*_quick_two_sum(s, e + f), self._and("add", other))

    def __sub__(self, other: DoubleDouble) -> DoubleDouble:
        return self + -other

    def __mul__(self, other: DoubleDouble) -> DoubleDouble:
        p, e = _two_prod(self.hi, other.hi)
        hi, lo = _quick_two_sum(p, e + (self.hi * other.lo + self.lo * other.hi))
        return DoubleDouble(hi, lo, self._and("mul", other))

    def __truediv__(self, other: DoubleDouble) -> DoubleDouble:
        q = self.hi / other.hi
        p, e = _two_prod(q, other.hi)
        rest = ((self.hi - p) - e) + (self.lo - q * other.lo)
        return DoubleDouble(*_quick_two_sum(q, rest / other.hi), self._and("div", other))

    def sqrt(self) -> DoubleDouble:
        """Square root of positive numbers, by one Newton step from the float64 root; it has no formula."""
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
        total = total[..., 0] if total.shape[-1] else DoubleDouble.of(np.zeros(total.shape[:-1]))
        return DoubleDouble(total.hi, total.lo, self._with("sum", axis))

    # What only moves numbers around works on the two halves alike.

    def __getitem__(self, index: Any) -> DoubleDouble:
        """As numpy's, without a formula: for parts that are put together again."""
        return DoubleDouble(self.hi[index], self.lo[index])

    def row(self, i: int, formula: Formula | None) -> DoubleDouble:
        """Row i, which is known as something else than a part of all rows."""
        return DoubleDouble(self.hi[i], self.lo[i], formula)

    def first(self) -> DoubleDouble:
        """The first number, as a scalar."""
        index = (0,) * self.hi.ndim
        return DoubleDouble(self.hi[index], self.lo[index], self._with("line", None)) if index else self

    def take(self, index: NDArray[np.int64]) -> DoubleDouble:
        """The numbers of a vector at these places, counted from 0."""
        return self._each(lambda a: a[index], "take", tuple(index.tolist()))

    def placed(self, index: NDArray[np.int64], n: int, rest: float) -> DoubleDouble:
        """The numbers of a vector at these places of a vector of n, which is `rest` elsewhere."""
        origin = np.full(n, len(self.hi))
        origin[index] = np.arange(len(self.hi))
        return concatenate([self, DoubleDouble.full((1,), rest)]).take(origin)

    def reshape(self, *shape: int) -> DoubleDouble:
        """As numpy's."""
        return self._each(lambda a: a.reshape(shape), "reshape", shape)

    def broadcast_to(self, shape: Sequence[int]) -> DoubleDouble:
        """As numpy's."""
        shape = tuple(shape)
        if self.hi.shape == shape:
            return self
        return self._each(lambda a: np.broadcast_to(a, shape), "broadcast", shape)

    def moveaxis(self, source: int, target: int) -> DoubleDouble:
        """As numpy's."""
        return self._each(lambda a: np.moveaxis(a, source, target), "moveaxis", source, target)

    def repeat(self, n: int) -> DoubleDouble:
        """Each number of a vector n times in a row."""
        return self.reshape(-1, 1).broadcast_to((*self.shape, n)).reshape(-1)

    def tile(self, n: int) -> DoubleDouble:
        """The whole vector n times in a row."""
        return self.broadcast_to((n, *self.shape)).reshape(-1)

    def _each(self, f: Callable[[F64], F64], operation: str, *rest: Any) -> DoubleDouble:
        return DoubleDouble(f(self.hi), f(self.lo), self._with(operation, *rest))

    def _with(self, operation: str, *rest: Any) -> Formula | None:
        return None if self.formula is None else (operation, self.formula, *rest)

    def _and(self, operation: str, other: DoubleDouble) -> Formula | None:
        a, b = self.formula, other.formula
        return None if a is None or b is None else (operation, a, b)

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


@lru_cache(maxsize=16)  # an affine without a shift has zeros for it, and there are many
def _full(shape: tuple[int, ...], value: float) -> DoubleDouble:
    formula = ("broadcast", ("number", value), shape)
    return DoubleDouble(np.full(shape, value), np.zeros(shape), formula)


def narrow(a: F64, dtype: DTypeLike) -> NDArray[Any]:
    """float64 rounded once to a floating dtype; what is over its range becomes infinite."""
    with np.errstate(over="ignore"):
        if np.dtype(dtype) == BFLOAT16:  # its own cast from float64 goes through float32: two roundings
            single = a.astype(np.float32)
            a = _to_odd(single, a - single.astype(np.float64))
        return a.astype(dtype)


def concatenate(parts: Sequence[DoubleDouble]) -> DoubleDouble:
    """One-dimensional parts behind each other."""
    joined = _join(parts, 0)
    return DoubleDouble(joined.hi, joined.lo, combined("concat", (p.formula for p in parts)))


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
