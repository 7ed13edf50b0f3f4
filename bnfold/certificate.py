"""The certificate: are the constants that a fold stored the correctly rounded exact values?

The exact values are recomputed from the file of the original, by the formulas that the fold gives account
of itself with, in arithmetic that is none of the fold's. Numbers pass through up to three sieves: the product
of a large constant and few factors in float64 with an error bound, the rest in `Enclosure`s of about 106
bits, and what these leave open (near ties, the ends of float64's range) in rationals, one number at a time.

Correctly rounded means the nearest number of the stored type, ties to even; 0 has no sign. Two exceptions:
float64 below 2**-968 may be one unit off, and where not even 800 bits tell an exact value from a tie, both
neighbours count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .enclosures import Enclosure, Exact, Interval, two_sum
from .formulas import Formula, operands, written_out
from .recompute import Recomputation
from .tensors import Tensors, Unavailable
from .verification import Certificate, Verdict

Array = NDArray[Any]
F64 = NDArray[np.float64]
Places = NDArray[np.int64]

_BLOCK = 1 << 16  # numbers per step: the float64 intermediates stay in the cache
_MOST_EXACT = 1 << 13  # numbers that a certificate computes in rationals
_BITS = (200, 800)
_LOOSE = Fraction(1, 2**968)
_LONGEST = 100  # characters of a formula in a message
_DEEPEST = 16  # operations within one another of a formula in a message


@dataclass(frozen=True)
class _Format:
    """A binary floating format.

    Attributes:
        digits: Of the significand, the hidden one included.
        least: The exponent of the smallest positive number.
        largest: The largest finite number.
        exponent: The bits of the exponent.
    """

    digits: int
    least: int
    largest: float
    exponent: int

    def ulp(self, numbers: F64) -> F64:
        """The unit in the last place of numbers of this format."""
        exponents = np.maximum(np.frexp(numbers)[1] - self.digits, self.least)
        return np.ldexp(1.0, np.where(numbers == 0.0, self.least, exponents))

    def nearest(self, x: Fraction) -> float:
        """x rounded to this format, ties to even."""
        n, d = abs(x.numerator), x.denominator
        exponent = n.bit_length() - d.bit_length()
        if n << max(0, -exponent) < d << max(0, exponent):  # now 2**exponent ≤ |x| < 2**(exponent + 1)
            exponent -= 1
        unit = Fraction(2) ** max(exponent - self.digits + 1, self.least)
        rounded = round(x / unit) * unit  # Python rounds ties to even
        if abs(rounded) > self.largest:
            return math.inf if x > 0 else -math.inf
        return float(rounded)


_FORMATS = {
    np.dtype(np.float16): _Format(11, -24, 65504.0, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): _Format(8, -133, 2.0**128 - 2.0**120, 0x7F80),
    np.dtype(np.float32): _Format(24, -149, float(np.finfo(np.float32).max), 0x7F800000),
    np.dtype(np.float64): _Format(53, -1074, float(np.finfo(np.float64).max), 0x7FF0000000000000),
}


@np.errstate(all="ignore")  # what is not finite is no bound, and decides nothing
def certify(
    reference: Path | Tensors, candidate: Path | Tensors, formulas: Mapping[str, Formula | None]
) -> Certificate:
    """Recompute every constant that a fold made.

    Args:
        reference: The file that was folded, or its constants where it has been read already.
        candidate: The file with the result, likewise.
        formulas: What each constant of the result is, see `FoldReport.formulas`.

    Returns:
        Pass if all are correctly rounded; undecided if some or all could not be recomputed.
    """
    original, result = (t if isinstance(t, Tensors) else Tensors.of(t) for t in (reference, candidate))
    lost = {name: "the fold cannot tell how it was made" for name, f in formulas.items() if f is None}
    strangers = result.names - original.names - formulas.keys()
    lost |= {name: "the fold gives no account of it" for name in sorted(strangers)}
    known = {name: formula for name, formula in formulas.items() if formula is not None}
    findings: list[_Finding] = []
    program = written_out(known)
    recomputation = Recomputation(program, original)
    budget = _Budget(_MOST_EXACT)
    for name, formula in known.items():
        try:
            stored = result.anywhere(name)
            judge = _Judge(name, formula, stored, recomputation, program.results[name])
            findings.append(judge.find(budget))
        except Unavailable as error:
            lost[name] = str(error)
        recomputation.close()
    return _summed_up(findings, lost)


def _summed_up(findings: list[_Finding], lost: Mapping[str, str]) -> Certificate:
    wrong = [f for f in findings if f.message]
    verdict, message = Verdict.PASS, ""
    if lost:
        name, reason = next(iter(lost.items()))
        verdict = Verdict.UNDECIDED
        message = (
            f"not available for {len(lost)} of {len(lost) + len(findings)} constants: {name!r}: {reason}"
        )
    elif not findings:
        verdict, message = Verdict.UNDECIDED, "not available: the fold made no constants"
    if wrong:
        verdict = Verdict.FAIL
        message = f"{len(wrong)} of {len(findings)} constants are not correctly rounded: {wrong[0].message}"
    return Certificate(
        verdict,
        len(findings),
        sum(f.elements for f in findings),
        len(findings) - len(wrong),
        max((f.worst_ulp for f in findings), default=0.0),
        message,
    )


@dataclass
class _Budget:
    """How many more numbers may be computed in rationals."""

    left: int


@dataclass
class _Finding:
    """What is known about one constant.

    Attributes:
        elements: How many numbers it holds.
        worst_ulp: The largest distance from the exact value.
        wrong: The place of the first number that is not correctly rounded.
        message: About that number; "" if there is none.
    """

    elements: int
    worst_ulp: float = 0.0
    wrong: int | None = None
    message: str = ""

    def note(self, ulps: F64) -> None:
        """Take note of some distances."""
        self.worst_ulp = max(self.worst_ulp, float(ulps.max(initial=0.0)))

    def note_wrong(self, places: Places) -> None:
        """Take note of numbers that are not correctly rounded, given in order."""
        if places.size:
            first = int(places[0])
            self.wrong = first if self.wrong is None else min(first, self.wrong)


class _Judge:
    """Compares one constant with its formula."""

    def __init__(
        self, name: str, formula: Formula, stored: Array, recomputation: Recomputation, step: int
    ) -> None:
        if stored.dtype not in _FORMATS:
            raise Unavailable(f"it is of type {stored.dtype}")
        self.name = name
        self.formula = formula
        self.stored = stored
        self.flat = stored.reshape(-1)
        self.format = _FORMATS[stored.dtype]
        self.recomputation = recomputation
        self.step = step
        self.finding = _Finding(stored.size)

    def find(self, budget: _Budget) -> _Finding:
        """The comparison.

        Raises:
            Unavailable: The exact values cannot be computed.
        """
        shape = self.recomputation.shape(self.step)
        if shape != self.stored.shape:
            what = f"{self.name!r} has the shape {list(self.stored.shape)}, its formula {list(shape)}"
            self.finding.message = f"{what}: {in_words(self.formula)}"
            return self.finding
        factors = self._few_factors()
        doubtful = self._blocks() if factors is None else self._sieve_products(*factors)
        undecided = np.concatenate([np.zeros(0, np.int64), *map(self._sieve, doubtful)])
        affordable = undecided[: budget.left]
        budget.left -= affordable.size
        for place in affordable.tolist():
            self._decide(place)
        if self.finding.wrong is not None:
            self.finding.message = self._described(self.finding.wrong)
        elif affordable.size < undecided.size:
            raise Unavailable(f"{undecided.size} numbers are too close to a tie for quick arithmetic")
        return self.finding

    def _blocks(self) -> Iterator[Places]:
        """All places, as many at a time as sums on the way allow."""
        size = max(1, _BLOCK // self.recomputation.terms(self.step))
        for first in range(0, self.flat.size, size):
            yield np.arange(first, min(first + size, self.flat.size))

    # Products in float64

    def _few_factors(self) -> tuple[Array, F64] | None:
        """A large stored constant and the few factors it is multiplied by, if that is the formula and
        float64 holds the factors; else None."""
        steps, shape_of = self.recomputation.steps, self.recomputation.shape
        if steps[self.step].operation != "mul" or self.flat.size < _BLOCK // 64 or self.stored.itemsize > 4:
            return None
        base, factor = steps[self.step].operands
        few = math.prod(shape_of(factor)) <= min(_BLOCK, self.flat.size // 4)
        if steps[base].operation != "constant" or shape_of(base) != self.stored.shape or not few:
            return None
        exact = self.recomputation.at(factor, None, Enclosure.of)
        if not np.all(np.abs(exact.lo) + exact.radius <= np.abs(exact.hi) * 2.0**-52):
            return None
        return self.recomputation.stored(base), exact.hi.reshape(shape_of(factor))

    def _sieve_products(self, base: Array, factors: F64) -> Iterator[Places]:
        """Decide what float64 can; yields the places of the others.

        With the error of its factor, a product of float64 is off by less than 2**-51 of itself, which is
        less than 2**(digits - 50) units of the stored number.
        """
        digits = self.format.digits
        slack = 2.0 ** (digits - 50)
        least = 2.0 ** (self.format.least + digits - 1)  # from here down, units no longer shrink
        unsigned, fraction = f"u{self.stored.itemsize}", (1 << (digits - 1)) - 1
        factors = np.broadcast_to(factors, base.shape)
        per_row = base.size // len(base)
        rows = max(1, _BLOCK // per_row)
        for first in range(0, len(base), rows):
            block = np.ascontiguousarray(self.stored[first : first + rows])
            bits = block.view(unsigned)
            off = base[first : first + rows].astype(np.float64)
            off *= factors[first : first + rows]
            off -= block.astype(np.float64)
            np.abs(off, out=off)
            unit = (bits & self.format.exponent).view(block.dtype).astype(np.float64)
            np.maximum(unit, least, out=unit)
            off /= unit
            off *= 2.0 ** (digits - 1)
            sure = off <= 0.5 - slack
            sure &= ((bits & fraction) != 0) | (off <= 0.25 - slack)  # below a power of two, units are halved
            if sure.all():
                self.finding.note(off)
            else:
                self.finding.note(off[sure])
                yield np.flatnonzero(~sure) + first * per_row

    # Enclosures

    def _sieve(self, places: Places) -> Places:
        """Decide what 106 bits can; returns the places of the others."""
        whole = None if len(places) == self.flat.size else places
        exact = self.recomputation.at(self.step, whole, Enclosure.of)
        stored = self.flat[places]
        v = stored.astype(np.float64)
        s, e = two_sum(exact.hi, -v)
        e, dropped = two_sum(e, exact.lo)
        off, again = two_sum(s, e)
        doubt = (exact.radius + np.abs(dropped) + np.abs(again)) * (1.0 + 2.0**-40)
        inward = (off > 0.0) != (v > 0.0)
        off = np.abs(off)
        ulp = self.format.ulp(v)
        half = np.where(inward & self._is_power(v), 0.25 * ulp, 0.5 * ulp)
        even = stored.view(f"u{stored.itemsize}") & 1 == 0
        tie = (doubt == 0.0) & (off == half)
        known = np.isfinite(v) & (ulp > 2.0**-1000)
        right = known & ((off + doubt < half * (1.0 - 2.0**-40)) | (tie & even))
        wrong = known & ((off - doubt > half * (1.0 + 2.0**-40)) | (tie & ~even))
        self.finding.note(((off + doubt) / ulp)[right | wrong])
        self.finding.note_wrong(places[wrong])
        left: Places = places[~(right | wrong)]
        return left

    def _is_power(self, numbers: F64) -> NDArray[np.bool_]:
        """Whether the next smaller numbers are half as far as the next larger ones."""
        significands, exponents = np.frexp(numbers)
        halved: NDArray[np.bool_] = exponents - self.format.digits > self.format.least
        halved &= np.abs(significands) == 0.5
        return halved

    # Rationals

    def _decide(self, place: int) -> None:
        v = float(self.flat[place])
        try:
            x, possible = self._exact(place)
        except (ArithmeticError, ValueError):
            self.finding.note_wrong(np.array([place]))
            return
        ulps = self._distance(x, v)
        self.finding.worst_ulp = max(self.finding.worst_ulp, ulps)
        loose = self.stored.dtype == np.float64 and abs(x) < _LOOSE and ulps <= 1.0
        if v not in possible and not loose:
            self.finding.note_wrong(np.array([place]))

    def _exact(self, place: int) -> tuple[Fraction, set[float]]:
        """The exact value at a place, and what it may be rounded to.

        Raises:
            ArithmeticError, ValueError: There is no such value: a division by zero, a NaN.
        """
        for bits in _BITS:
            of = partial(Exact.of, bits=bits)
            x: Interval = self.recomputation.at(self.step, np.array([place]), of).numbers[0]
            possible = {self.format.nearest(x.low), self.format.nearest(x.high)}
            if len(possible) == 1:
                break
        return (x.low + x.high) / 2, possible

    def _distance(self, x: Fraction, v: float) -> float:
        """From the exact value to the stored one, in units in the last place of the latter."""
        if not math.isfinite(v):
            return 0.0 if v == self.format.nearest(x) else math.inf
        unit = float(self.format.ulp(np.array([v]))[0])
        try:
            return float(abs(x - Fraction(v)) / Fraction(unit))
        except OverflowError:
            return math.inf

    def _described(self, place: int) -> str:
        index = ", ".join(str(int(i)) for i in np.unravel_index(place, self.stored.shape))
        v = float(self.flat[place])
        what = f"{self.name!r}[{index}] is {_digits(Fraction(v)) if math.isfinite(v) else v}"
        words = in_words(self.formula)
        try:
            x, _ = self._exact(place)
        except (ArithmeticError, ValueError) as error:
            return f"{what}, but {words} has no value there ({error})"
        away = f"{self._distance(x, v):.4g} ulp of {self.stored.dtype}"
        return f"{what}, but {words} is {_digits(x)} there, {away} away"


def _digits(x: Fraction) -> str:
    """x to 20 digits."""
    return str(Context(prec=20).divide(Decimal(x.numerator), Decimal(x.denominator)))


# Formulas in words


def in_words(formula: Formula) -> str:
    """A formula as people write it, without what only moves numbers around, and cut off if it is long."""
    words = _words(formula, 0)
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}…"


def _words(formula: Formula, depth: int) -> str:
    if depth > _DEEPEST:
        return "…"
    operation, parts = formula[0], [_words(part, depth + 1) for part in operands(formula)[:2]]
    match operation, parts:
        case "constant", _:
            return repr(formula[2])
        case "number", _:
            return f"{formula[1]:g}"
        case "deviation", _:
            return "√(var + ε)"
        case "neg", [a]:
            return f"-{a}"
        case "add", [a, b]:
            return f"({a} - {b[1:]})" if b.startswith("-") else f"({a} + {b})"
        case "mul", [a, b]:
            return f"{a} · {b}"
        case "div", [a, b]:
            return f"{a} / {b}" if formula[2][0] in ("constant", "number", "deviation") else f"{a} / ({b})"
        case "sum", [a]:
            return f"Σ({a})"
        case "concat", _:
            return f"({', '.join(parts)}{', …' if len(operands(formula)) > 2 else ''})"
    return parts[0]
