"""The arithmetic against exact rationals."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.double_double import DoubleDouble

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
moderate = st.floats(-1e6, 1e6, allow_nan=False).filter(lambda x: x == 0 or abs(x) > 1e-6)


def exact(x: DoubleDouble) -> Fraction:
    return Fraction(float(x.hi)) + Fraction(float(x.lo))


def nearest(value: Fraction, dtype: Any) -> float:
    """The correctly rounded value by brute force: the closest of the candidates around it."""
    a = np.asarray(float(value)).astype(dtype)
    with np.errstate(over="ignore"):  # beside the largest number is infinity
        around = [a, np.nextafter(a, np.asarray(np.inf, dtype)), np.nextafter(a, np.asarray(-np.inf, dtype))]
    finite = [c for c in around if np.isfinite(c)]
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    return float(min(finite, key=lambda c: (abs(Fraction(float(c)) - value), int(c.view(unsigned)) & 1)))


@pytest.mark.parametrize("operator", ["+", "-", "*", "/"])
@given(a=moderate, b=moderate, c=moderate)
def test_operators_keep_a_hundred_bits(operator: str, a: float, b: float, c: float) -> None:
    x, y = DoubleDouble.of(a) * DoubleDouble.of(c), DoubleDouble.of(b)
    left, right = Fraction(a) * Fraction(c), Fraction(b)
    if operator == "/" and b == 0:
        return
    results: dict[str, Callable[[], tuple[DoubleDouble, Fraction]]] = {
        "+": lambda: (x + y, left + right),
        "-": lambda: (x - y, left - right),
        "*": lambda: (x * y, left * right),
        "/": lambda: (x / y, left / right),
    }
    got, want = results[operator]()
    # 2**-100 of the larger operand: cancellation may cost relative accuracy, never absolute.
    scale = max(abs(left), abs(right), abs(want))
    assert abs(exact(got) - want) <= scale * Fraction(2) ** -100


@given(a=st.floats(1e-12, 1e12))
def test_square_root(a: float) -> None:
    root = exact(DoubleDouble.of(a).sqrt())
    assert abs(root * root - Fraction(a)) <= Fraction(a) * Fraction(2) ** -98


@pytest.mark.parametrize("dtype", DTYPES)
@given(a=moderate, b=st.floats(-1, 1))
def test_rounding_is_correct(dtype: Any, a: float, b: float) -> None:
    x = DoubleDouble.of(a) + DoubleDouble.of(b * 2.0**-60 * abs(a))
    got = x.round(dtype)
    if np.isfinite(got):
        assert got == nearest(exact(x), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_go_to_even_and_a_hair_decides(dtype: Any) -> None:
    one = np.asarray(1, dtype)
    up = float(np.nextafter(one, np.asarray(2, dtype)))
    half = (up - 1.0) / 2
    tie = DoubleDouble.of(1.0) + DoubleDouble.of(half)
    hair = DoubleDouble.of(half * 2.0**-40)
    assert float(tie.round(dtype)) == 1.0
    assert float((tie + hair).round(dtype)) == up
    assert float((tie - hair).round(dtype)) == 1.0


def test_the_noise_of_a_division_does_not_break_a_tie() -> None:
    # 3 · (1/3) · m with m a float32 midpoint: exactly a tie, though 1/3 is not a number of 106 bits.
    m = 1.0 + 2.0**-24
    third = DoubleDouble.of(1.0) / DoubleDouble.of(3.0)
    assert (third * DoubleDouble.of(3.0) * DoubleDouble.of(m)).round(np.float32) == np.float32(1.0)


@given(st.lists(moderate, min_size=0, max_size=20))
def test_sum(values: list[float]) -> None:
    got = DoubleDouble.of(np.array(values)).sum(0)
    bound = sum((abs(Fraction(v)) for v in values), Fraction(0)) * Fraction(2) ** -98
    assert abs(exact(got) - sum(map(Fraction, values), Fraction(0))) <= bound
