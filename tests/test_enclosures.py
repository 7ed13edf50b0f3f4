"""Enclosures against exact rationals: what they say is true, and they say enough."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.enclosures import Enclosure, Exact, Interval

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": lambda a, b: a + -b,
    "*": operator.mul,
    "/": operator.truediv,
}

each_operator = pytest.mark.parametrize("name", OPERATORS)
moderate = st.floats(-1e9, 1e9, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-9)
positive = st.floats(1e-9, 1e9)
anything = st.floats(allow_nan=False, allow_infinity=False)


def array(*numbers: float) -> npt.NDArray[np.float64]:
    return np.array(numbers, np.float64)


def holds(enclosure: Enclosure, exact: Fraction) -> bool:
    """Whether the only number of an enclosure may be this one; an infinite or NaN radius claims nothing."""
    radius = float(enclosure.radius[0])
    if not math.isfinite(radius) or not np.isfinite(enclosure.hi[0]):
        return True
    middle = Fraction(float(enclosure.hi[0])) + Fraction(float(enclosure.lo[0]))
    return abs(exact - middle) <= Fraction(radius)


def relative_radius(enclosure: Enclosure) -> float:
    return float(enclosure.radius[0]) / abs(float(enclosure.hi[0]))


def third(a: float, b: float, c: float) -> tuple[Enclosure, Fraction]:
    """A number that float64 does not hold, with all of hi, lo and radius: a · b / c."""
    enclosure = Enclosure.of(array(a)) * Enclosure.of(array(b)) / Enclosure.of(array(c))
    return enclosure, Fraction(a) * Fraction(b) / Fraction(c)


@each_operator
@np.errstate(all="ignore")
@given(a=moderate, b=moderate, c=positive, d=moderate, e=moderate, f=positive)
def test_operators_enclose(name: str, a: float, b: float, c: float, d: float, e: float, f: float) -> None:
    (x, left), (y, right) = third(a, b, c), third(d, e, f)
    if name == "/" and right == 0:
        return
    assert holds(OPERATORS[name](x, y), OPERATORS[name](left, right))


@each_operator
@np.errstate(all="ignore")
@given(a=anything, b=anything)
def test_operators_enclose_up_to_the_ends_of_the_range(name: str, a: float, b: float) -> None:
    if name == "/" and b == 0:
        return
    exact = OPERATORS[name](Fraction(a), Fraction(b))
    assert holds(OPERATORS[name](Enclosure.of(array(a)), Enclosure.of(array(b))), exact)


@each_operator
@np.errstate(all="ignore")
@given(a=moderate, b=moderate, c=moderate, d=moderate)
def test_what_an_operator_drops_is_counted(name: str, a: float, b: float, c: float, d: float) -> None:
    """Both halves are in use, and no radius comes in that could hide it."""
    small = 2.0**-60
    x = Enclosure.of(array(a)) + Enclosure.of(array(b * small))
    y = Enclosure.of(array(c)) + Enclosure.of(array(d * small))
    assert x.radius[0] == y.radius[0] == 0.0
    left, right = Fraction(a) + Fraction(b * small), Fraction(c) + Fraction(d * small)
    if name == "/" and right == 0:
        return
    assert holds(OPERATORS[name](x, y), OPERATORS[name](left, right))


@pytest.mark.parametrize("name", ["*", "/"])
@given(a=positive, b=positive, c=positive, d=positive)
def test_little_is_dropped(name: str, a: float, b: float, c: float, d: float) -> None:
    (x, _), (y, _) = third(a, b, c), third(b, c, d)
    assert relative_radius(OPERATORS[name](x, y)) < 2.0**-95


@given(a=positive, b=positive, c=positive)
def test_square_roots_enclose(a: float, b: float, c: float) -> None:
    x, exact = third(a, b, c)
    root = x.sqrt()
    middle = Fraction(float(root.hi[0])) + Fraction(float(root.lo[0]))
    radius = Fraction(float(root.radius[0]))
    assert (middle - radius) ** 2 <= exact <= (middle + radius) ** 2
    assert relative_radius(root) < 2.0**-95


@np.errstate(all="ignore")
@given(st.lists(moderate, max_size=20))
def test_sums_enclose(numbers: list[float]) -> None:
    factors = Enclosure.of(array(*numbers)) / Enclosure.of(np.full(len(numbers), 3.0))
    total = factors.moved(lambda a: a[None]).sum(1)
    assert holds(total, sum((Fraction(x) / 3 for x in numbers), Fraction(0)))


@given(a=st.integers(-(2**24), 2**24), b=st.integers(-(2**24), 2**24))
def test_what_is_exact_has_no_radius(a: int, b: int) -> None:
    x, y = Enclosure.of(array(a)), Enclosure.of(array(b))
    results = [x + y, x * y, x * x + y * y]
    results += [(x * y) / y] if b else []
    results += [(x * x).sqrt()] if a else []
    assert all(r.radius[0] == 0.0 for r in results)


@pytest.mark.parametrize("wrong", ["1 / 0", "√-1", "√0", "0 / 0"])
@np.errstate(all="ignore")
def test_what_has_no_value_claims_nothing(wrong: str) -> None:
    one, zero = Enclosure.of(array(1.0)), Enclosure.of(array(0.0))
    result = {"1 / 0": one / zero, "√-1": (-one).sqrt(), "√0": zero.sqrt(), "0 / 0": zero / zero}[wrong]
    assert not np.isfinite(result.radius[0])


class TestIntervals:
    @given(n=st.integers(1, 10**30), d=st.integers(1, 10**30))
    def test_square_roots_enclose(self, n: int, d: int) -> None:
        x = Fraction(n, d)
        root = Interval(x, x).sqrt(200)
        assert root.low**2 <= x <= root.high**2
        assert root.high - root.low <= root.low * Fraction(1, 2**200)

    @given(n=st.integers(1, 10**30), d=st.integers(1, 10**30))
    def test_the_root_of_a_square_is_exact(self, n: int, d: int) -> None:
        x = Fraction(n, d)
        assert Interval(x * x, x * x).sqrt(200) == Interval(x, x)

    @each_operator
    @given(a=moderate, b=moderate, c=moderate, d=moderate, share=st.fractions(0, 1))
    def test_operators_enclose(
        self, name: str, a: float, b: float, c: float, d: float, share: Fraction
    ) -> None:
        low, high = sorted(map(Fraction, (a, b)))
        x, y = Interval(low, high), Interval(*sorted(map(Fraction, (c, d))))
        if name == "/" and y.low <= 0 <= y.high:
            with pytest.raises(ZeroDivisionError):
                OPERATORS[name](x, y)
            return
        result = OPERATORS[name](x, y)
        exact = OPERATORS[name](low + share * (high - low), y.low + share * (y.high - y.low))
        assert result.low <= exact <= result.high

    def test_the_root_of_what_is_not_positive(self) -> None:
        with pytest.raises(ArithmeticError, match="not positive"):
            Interval.of(0.0).sqrt(200)

    def test_arrays(self) -> None:
        x = Exact.of(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), 200)
        assert x.sum(1).numbers.tolist() == [Interval.of(6.0), Interval.of(15.0)]
        assert x.sum(0).numbers.tolist() == [Interval.of(5.0), Interval.of(7.0), Interval.of(9.0)]
        four = (x * x).moved(lambda a: a[0, 1:2]).sqrt()
        assert four.numbers.tolist() == [Interval.of(2.0)]
        assert Exact.joined([four, -four]).numbers.tolist() == [Interval.of(2.0), Interval.of(-2.0)]
