"""Arrays of real numbers, each known to within a proved bound: many quickly, or few exactly.

`Enclosure` says |x - (hi + lo)| ≤ radius. Two float64 carry about 106 bits, and each operation bounds what
it drops: by the error itself where that can be computed exactly, else by a multiple of u² = 2**-106. So a
radius of 0 says that nothing was dropped at all, and ties can be told from near ties. Where float64 comes
near the ends of its range, the radius is infinite (or NaN): then nothing is claimed.

`Exact` holds intervals of rationals, which are points until a square root is irrational. Both have the same
operators, which broadcast as NumPy does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

_U = 2.0**-53
_STEP = 2.0**-100  # bounds what a quotient or a root drops, relative to it; it is below 10 u²
_GROW = 1.0 + 2.0**-40  # for the rounding of the radii themselves
_TINY = 2.0**-1000  # for their underflow
_SMALL, _LARGE = 2.0**-900, 2.0**900
_SPLITTER = 2.0**27 + 1.0


@dataclass(frozen=True, eq=False, slots=True)
class Enclosure:
    """Real numbers in float64.

    Attributes:
        hi: The numbers to float64.
        lo: What that drops.
        radius: Bounds the rest.
    """

    hi: F64
    lo: F64
    radius: F64

    @classmethod
    def of(cls, numbers: NDArray[Any]) -> Enclosure:
        """Floating numbers of at most 64 bits, exactly."""
        hi = np.asarray(numbers, np.float64)
        return cls(hi, np.zeros(hi.shape), np.zeros(hi.shape))

    @classmethod
    def joined(cls, parts: Sequence[Enclosure]) -> Enclosure:
        """Parts behind each other."""
        return cls(
            np.concatenate([p.hi for p in parts]),
            np.concatenate([p.lo for p in parts]),
            np.concatenate([p.radius for p in parts]),
        )

    def moved(self, f: Callable[[F64], F64]) -> Enclosure:
        """The image under what only moves numbers around."""
        return Enclosure(f(self.hi), f(self.lo), f(self.radius))

    def __neg__(self) -> Enclosure:
        return Enclosure(-self.hi, -self.lo, self.radius)

    def __add__(self, other: Enclosure) -> Enclosure:
        s, e = two_sum(self.hi, other.hi)
        t, f = two_sum(self.lo, other.lo)
        e, dropped = two_sum(e, t)
        s, e = two_sum(s, e)
        e, again = two_sum(e, f)
        hi, lo = two_sum(s, e)
        radius = self.radius + other.radius + np.abs(dropped) + np.abs(again)
        return Enclosure(hi, lo, radius * _GROW)

    def __mul__(self, other: Enclosure) -> Enclosure:
        p, e = _two_prod(self.hi, other.hi)
        x, y = self.hi * other.lo, self.lo * other.hi
        z, f = two_sum(x, y)
        c, g = two_sum(e, z)
        hi, lo = two_sum(p, c)
        small = np.abs(x) * _U + np.abs(y) * _U + np.abs(self.lo * other.lo) * _GROW + _TINY
        small = np.where((self.lo == 0.0) & (other.lo == 0.0), 0.0, small)
        dropped = small + np.abs(f) + np.abs(g)
        a, b = np.abs(self.hi) * _GROW, np.abs(other.hi) * _GROW
        inherited = a * other.radius + b * self.radius + self.radius * other.radius
        uncertain = self.radius + other.radius > 0.0
        radius = np.where(uncertain, inherited * _GROW + _TINY, 0.0) + dropped * _GROW
        return Enclosure(hi, lo, np.where(_in_range(p, self.hi, other.hi), radius, np.inf))

    def __truediv__(self, other: Enclosure) -> Enclosure:
        q = self.hi / other.hi
        p, e = _two_prod(q, other.hi)
        rest = ((self.hi - p) - e) + (self.lo - q * other.lo)  # hi - p - e is exact
        hi, lo = two_sum(q, rest / other.hi)
        settled = (rest == 0.0) & (self.lo == 0.0) & (other.lo == 0.0)
        b = np.abs(other.hi)
        inherited = (self.radius + np.abs(q) * _GROW * other.radius) / b * 2.0 * _GROW
        uncertain = self.radius + other.radius > 0.0
        radius = np.where(settled, 0.0, np.abs(q) * _STEP) + np.where(uncertain, inherited + _TINY, 0.0)
        safe = (b > _SMALL) & (b < _LARGE) & (b > 4.0 * other.radius)
        safe &= _in_range(q, self.hi) & _in_range(p, self.hi)
        return Enclosure(hi, lo, np.where(safe, radius * _GROW, np.inf))

    def sqrt(self) -> Enclosure:
        """The square root of positive numbers."""
        root = np.sqrt(self.hi)
        p, e = _two_prod(root, root)
        rest = ((self.hi - p) - e) + self.lo
        hi, lo = two_sum(root, rest / (2.0 * root))
        settled = (rest == 0.0) & (self.lo == 0.0)
        inherited = np.where(self.radius > 0.0, self.radius / root * _GROW + _TINY, 0.0)
        radius = np.where(settled, 0.0, root * _STEP) + inherited
        safe = (self.hi > _SMALL) & (self.hi < _LARGE) & (self.hi > 4.0 * self.radius)
        return Enclosure(hi, lo, np.where(safe, radius * _GROW, np.inf))

    def sum(self, axis: int) -> Enclosure:
        """The sum over one axis, pairwise."""
        total = self.moved(lambda a: np.moveaxis(a, axis, 0))
        while (n := total.hi.shape[0]) > 1:
            half, odd = divmod(n, 2)
            paired = total._rows(0, half) + total._rows(half, 2 * half)
            total = Enclosure.joined([paired, total._rows(n - 1, n)]) if odd else paired
        return total.moved(lambda a: a.sum(0))  # of one or none

    def _rows(self, start: int, stop: int) -> Enclosure:
        return self.moved(lambda a: a[start:stop])


def two_sum(a: F64, b: F64) -> tuple[F64, F64]:
    """a + b as the rounded sum and its error, exactly (Knuth)."""
    s = a + b
    v = s - a
    return s, (a - (s - v)) + (b - v)


def _two_prod(a: F64, b: F64) -> tuple[F64, F64]:
    """a · b as the rounded product and its error, exactly within the range (Dekker)."""
    p = a * b
    a1, b1 = _leading(a), _leading(b)
    a2, b2 = a - a1, b - b1
    return p, ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


def _leading(a: F64) -> F64:
    """The leading 26 bits."""
    c = _SPLITTER * a
    return c - (c - a)


def _in_range(result: F64, *factors: F64) -> NDArray[np.bool_]:
    """Where a product, and the parts it is computed by, neither overflow nor underflow."""
    size = np.abs(result)
    safe: NDArray[np.bool_] = (size > _SMALL) & (size < _LARGE)
    for factor in factors:
        safe |= factor == 0.0
    return safe


@dataclass(frozen=True, slots=True)
class Interval:
    """All rationals from low to high.

    Dividing by an interval that holds 0, and the root of one that is not positive, raise ArithmeticError.
    """

    low: Fraction
    high: Fraction

    @classmethod
    def of(cls, number: float) -> Interval:
        """A single number; ValueError or OverflowError if it is NaN or infinite."""
        exact = Fraction(number)
        return cls(exact, exact)

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.high + other.high)

    def __mul__(self, other: Interval) -> Interval:
        ends = {self.low, self.high}, {other.low, other.high}
        products = [a * b for a in ends[0] for b in ends[1]]
        return Interval(min(products), max(products))

    def __truediv__(self, other: Interval) -> Interval:
        if other.low <= 0 <= other.high:
            raise ZeroDivisionError("a division by zero")
        return self * Interval(1 / other.high, 1 / other.low)

    def sqrt(self, bits: int) -> Interval:
        """The square root, to so many bits; that of the square of a rational is exact."""
        if self.low <= 0:
            raise ArithmeticError("the square root of a number that is not positive")
        return Interval(_root(self.low, bits)[0], _root(self.high, bits)[1])


def _root(x: Fraction, bits: int) -> tuple[Fraction, Fraction]:
    """Bounds of the square root of a positive rational."""
    n, d = isqrt(x.numerator), isqrt(x.denominator)
    if n * n == x.numerator and d * d == x.denominator:
        return Fraction(n, d), Fraction(n, d)
    scale = max(0, bits + (x.denominator.bit_length() - x.numerator.bit_length()) // 2 + 1)
    low = isqrt((x.numerator << 2 * scale) // x.denominator)
    return Fraction(low, 1 << scale), Fraction(low + 1, 1 << scale)


@dataclass(frozen=True, eq=False, slots=True)
class Exact:
    """Real numbers in rationals.

    Attributes:
        numbers: An array of `Interval`.
        bits: How precise square roots are.
    """

    numbers: NDArray[np.object_]
    bits: int

    @classmethod
    def of(cls, numbers: NDArray[Any], bits: int) -> Exact:
        """Floating numbers of at most 64 bits, exactly."""
        wide = np.asarray(numbers, np.float64)
        exact = np.empty(wide.shape, object)
        exact.reshape(-1)[:] = [Interval.of(x) for x in wide.ravel().tolist()]
        return cls(exact, bits)

    @classmethod
    def joined(cls, parts: Sequence[Exact]) -> Exact:
        """Parts behind each other."""
        return cls(np.concatenate([p.numbers for p in parts]), parts[0].bits)

    def moved(self, f: Callable[[NDArray[Any]], NDArray[Any]]) -> Exact:
        """The image under what only moves numbers around."""
        return Exact(f(self.numbers), self.bits)

    def __neg__(self) -> Exact:
        return Exact(-self.numbers, self.bits)

    def __add__(self, other: Exact) -> Exact:
        return Exact(self.numbers + other.numbers, self.bits)

    def __mul__(self, other: Exact) -> Exact:
        return Exact(self.numbers * other.numbers, self.bits)

    def __truediv__(self, other: Exact) -> Exact:
        return Exact(self.numbers / other.numbers, self.bits)

    def sqrt(self) -> Exact:
        """The square root of positive numbers."""
        return Exact(np.array([x.sqrt(self.bits) for x in self.numbers.ravel()], object), self.bits).moved(
            lambda a: a.reshape(self.numbers.shape)
        )

    def sum(self, axis: int) -> Exact:
        """The sum over one axis."""
        rows = np.moveaxis(self.numbers, axis, -1)
        totals = np.empty(rows.shape[:-1], object)
        for index in np.ndindex(totals.shape):
            totals[index] = sum(rows[index], Interval.of(0.0))
        return Exact(totals, self.bits)
