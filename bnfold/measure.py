"""How far one tensor is from another, and how much of that rounding explains.

A fault may sit in one channel among thousands. So an error is compared with the noise over the whole
tensor, and over every index of axis 1 and of the last axis, one of which holds the channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .verification import ULP_EDGES, Limit, Metrics

Array = NDArray[Any]
F64 = NDArray[np.float64]

# What float64 arithmetic itself may lose of a value in a few operations: the floor under every noise.
FLOAT64 = 2.0**-50
# Sums of squares beyond which some square may have been out of range.
_SMALL, _GREAT = 1e-200, 1e200
# Of a difference, relative to what it is taken from: below it, too few digits are left.
_CLOSE = 1e-6
# Elements of a channel below which nothing can be said of its slope.
_ENOUGH = 16
# What the ratio of a single feed is divided by. Four draws may all be small: a normal deviate is more than 16
# times the root mean square of four in one of 10,000 cases, and channels have their forgiveness besides.
_FEW = 4.0
# A mean square below which nothing is told apart from nothing.
SMALLEST = 1e-290

# What is measured besides the whole tensor. About its mean, a channel shows a wrong slope that an
# uncertain shift of it would hide.
_CHANNELS, _ABOUT, _LAST = "axis 1", "axis 1 about its mean", "the last axis"
_WITH_MEAN = {_ABOUT: _CHANNELS}


class Unlike(Exception):
    """Two tensors that no number compares: other shapes, or NaN and infinity in other places."""


Sums = dict[str, F64]  # sums of squares: over everything under "", along an axis under its name


@dataclass(frozen=True)
class Measure:
    """An error beside what rounding explains of it.

    Attributes:
        error: Root mean square.
        noise: What rounding explains of it; for a part, what it explains of the worst of so many.
        ratio: error / noise.
        part: Where: "" is the whole tensor.
    """

    error: float = 0.0
    noise: float = 0.0
    ratio: float = 0.0
    part: str = ""


class Base:
    """A tensor of the reference, which others are measured against.

    Args:
        value: The tensor.
        exact: Whether elements count as equal or not, as for integers.

    Attributes:
        size: Sums of its own squares.
        finite: How many of its elements are finite numbers.
    """

    def __init__(self, value: Array, *, exact: bool) -> None:
        self.value, self.exact = value, exact
        numbers: F64 = np.asarray(value, np.float64)
        self.finite, self._scale = numbers.size, 1.0
        self.size = squares(numbers)
        if not _SMALL < self.size[""] < _GREAT and numbers.any():
            known = np.isfinite(numbers)
            self.finite = int(np.count_nonzero(known))
            numbers = np.where(known, numbers, 0.0)
            # A power of two, so that nothing is rounded and no square is out of range.
            self._scale = math.ldexp(1.0, -math.frexp(float(np.abs(numbers).max(initial=0.0)))[1])
            self.size = squares(numbers * self._scale)

    def apart(self, value: Array) -> Sums:
        """How far another tensor is from it: sums of squared differences; where values count as equal or
        not, the number of those that differ, and beside it how far they are apart as numbers.

        Raises:
            Unlike: Their shapes differ, or one is finite where the other is not.
        """
        gap = difference(value, self.value)
        if self._scale != 1.0:
            gap *= self._scale
        if not self.exact:
            return squares(gap)
        other = (value != self.value) & ((value == value) | (self.value == self.value))  # NaN equals NaN here
        flat = gap.reshape(-1)
        return {"": np.asarray(float(np.count_nonzero(other))), "its numbers": np.asarray(np.dot(flat, flat))}


@dataclass
class Tally:
    """One tensor over all feeds, each in units of its own noise, so that all count alike.

    Attributes:
        exact: Whether elements count as equal or not.
        error: Of the candidate against the reference.
        noise: Of the nudged runs against the reference, per run.
        size: Of the reference itself.
        elements: How many elements were summed.
        finite: How many of the reference's are finite numbers.
        units: Per feed, the mean square that counts as 1.
        problem: What is wrong beyond numbers, or "".
        excused: Whether the error comes from values that were judged already, by the same node in both.
        peak: The worst that a single feed has shown.
    """

    exact: bool = False
    error: Sums = field(default_factory=dict)
    noise: Sums = field(default_factory=dict)
    size: Sums = field(default_factory=dict)
    elements: int = 0
    finite: int = 0
    units: list[float] = field(default_factory=list)
    problem: str = ""
    excused: bool = False
    peak: Measure = Measure()  # frozen

    @classmethod
    def of(cls, value: Array, base: Base, noises: Sequence[Sums]) -> Tally:
        """One feed: the candidate's value, the reference's, and how far nudged runs are from that.

        Nudges are of two kinds by turns (`nudge`): the kind that moves the tensor more is its noise.
        """
        noise = _larger(_mean(noises[0::2]), _mean(noises[1::2]))
        error: Sums = {}
        problem = ""
        try:
            error = base.apart(value)
        except Unlike as unlike:
            problem = str(unlike)
        elements, unit = base.value.size, 1.0
        if not base.exact:
            whole = float(noise.get("", 0.0)) + FLOAT64**2 * float(base.size[""])
            unit = max(whole / max(elements, 1), SMALLEST)
        error, noise, size = (
            {part: sums / unit for part, sums in each.items()} for each in (error, noise, base.size)
        )
        return cls(base.exact, error, noise, size, elements, base.finite, [unit], problem)

    def merge(self, other: Tally) -> None:
        """Take in what another feed has shown; where it is excused, that is nothing."""
        self.finite += other.finite
        if other.excused:
            return
        self.peak = max(self.peak, other._pooled(), key=lambda m: m.ratio)
        self.error = _plus(self.error, other.error)
        self.noise = _plus(self.noise, other.noise)
        self.size = _plus(self.size, other.size)
        self.elements += other.elements
        self.units += other.units
        self.problem = self.problem or other.problem

    def worst(self) -> Measure:
        """The measure with the largest ratio: of all feeds together, or of a single one, which has few
        draws and therefore counts less."""
        peak = replace(self.peak, noise=self.peak.noise * _FEW, ratio=self.peak.ratio / _FEW)
        return max(self._pooled(), peak, key=lambda m: m.ratio)

    def _pooled(self) -> Measure:
        measures = []
        for part, error in self.error.items():
            if not error.size:
                continue
            noise = self.noise.get(part, np.zeros(1)) + self._least_noise(part)
            with np.errstate(divide="ignore", invalid="ignore"):
                ratios = np.where(error > 0, np.sqrt(error / noise), 0.0)
            ratios = np.where(np.isnan(ratios), np.inf, ratios)
            i = int(np.argmax(ratios))
            scale = float(np.mean(self.units)) * error.size / max(self.elements, 1)
            rms = math.sqrt(error.flat[i] * scale), math.sqrt(noise.flat[min(i, noise.size - 1)] * scale)
            where = f"index {i} of {part}" if error.ndim else part
            measures.append(Measure(*rms, float(ratios.flat[i]), where))
        return max(measures, key=lambda m: m.ratio, default=Measure())

    def _least_noise(self, part: str) -> F64:
        """What is added to the measured noise.

        To all: what float64 itself may lose. To an index of an axis as much, by its size, as its
        neighbours have: the few draws that it was measured by may all have been small there. And the
        largest of n normal deviates is about sqrt(2 ln n) times their deviation, so the worst of n
        indices is forgiven that much.
        """
        if self.exact:
            return np.zeros(1)
        size = self.size[part]
        floor = FLOAT64**2 * self.size[_WITH_MEAN.get(part, part)]
        if not part:
            return np.asarray(floor)
        noise = self.noise.get(part, np.zeros(size.shape))
        present = size > 0
        share = float(np.median(noise[present] / size[present])) if present.any() else 0.0
        chance = max(1.0, 2.0 * math.log(size.size))
        return np.asarray((noise + share * size + floor) * chance - noise)


def difference(value: Array, reference: Array) -> F64:
    """value - reference, 0 where both are the same infinity or NaN.

    Raises:
        Unlike: Their shapes differ, or one is finite where the other is not.
    """
    if value.shape != reference.shape:
        raise Unlike(f"its shape is {list(value.shape)} instead of {list(reference.shape)}")
    with np.errstate(invalid="ignore", over="ignore"):
        gap: F64 = np.subtract(value, reference, dtype=np.float64)
        if math.isfinite(float(np.dot(gap.reshape(-1), gap.reshape(-1)))):
            return gap
    same = (value == reference) | (np.isnan(value) & np.isnan(reference))
    other = ~same & ~(np.isfinite(value) & np.isfinite(reference))
    if count := int(np.count_nonzero(other)):
        raise Unlike(f"it has NaN or infinity in other places ({count} of {value.size} elements)")
    return np.where(same, 0.0, gap)


@np.errstate(over="ignore")  # a sum out of range is an infinite error, or a noise that says nothing
def squares(values: F64) -> Sums:
    """Sums of squares over everything, along axis 1, and from rank 3 on also along axis 1 about the mean of
    each index and along the last axis."""
    if values.ndim < 2:
        flat = values.reshape(-1)
        return {"": np.asarray(np.dot(flat, flat))}
    rows = values.reshape(values.shape[0], values.shape[1], math.prod(values.shape[2:]))
    first = np.linalg.vecdot(rows, rows).sum(axis=0)
    sums = {"": np.asarray(first.sum()), _CHANNELS: first}
    if values.ndim > 2:
        if rows.shape[0] * rows.shape[2] >= _ENOUGH:
            sums[_ABOUT] = _about_mean(rows, first)
        columns = values.reshape(math.prod(values.shape[:-1]), values.shape[-1])
        sums[_LAST] = np.einsum("rc,rc->c", columns, columns)
    return sums


def beyond(limit: Limit, value: Array, reference: Array) -> int:
    """How many elements are further apart than the limit allows.

    Raises:
        Unlike: As for `difference`.
    """
    gap = np.abs(difference(value, reference))
    with np.errstate(invalid="ignore"):
        return int(np.count_nonzero(gap > limit.atol + limit.rtol * np.abs(reference)))


@np.errstate(over="ignore", invalid="ignore")  # sums that are out of range say so themselves
def _about_mean(rows: F64, squared: F64) -> F64:
    """Sums of squares of [N, C, S] about the mean of each c, from those about 0."""
    means = rows.mean(axis=(0, 2)) if rows.size else np.zeros(rows.shape[1])
    about: F64 = squared - rows.shape[0] * rows.shape[2] * means**2
    # What is left of two almost equal numbers is no number: there, the means are subtracted first.
    close = about < _CLOSE * squared
    if close.any():
        centred = rows[:, close] - means[close, np.newaxis]
        # Equal numbers differ from their mean by its rounding, which is no evidence.
        exact = np.linalg.vecdot(centred, centred).sum(axis=0) - FLOAT64**2 * squared[close]
        about[close] = np.maximum(exact, 0.0)
    return about


@np.errstate(all="ignore")  # a figure that is out of range is infinite
def metrics(value: Array, reference: Array, dtype: np.dtype[Any]) -> Metrics:
    """Familiar figures of how far `value` is from `reference`, whose declared type is `dtype`.

    Raises:
        Unlike: As for `difference`.
    """
    gap = np.abs(difference(value, reference)).reshape(-1)
    a, b = _finite(value).reshape(-1), _finite(reference).reshape(-1)
    if not gap.size:
        return Metrics(0.0, 0.0, 0.0, 0.0, 0.0, math.inf, 1.0, None)
    ulps = gap / _ulp(b, dtype)
    nonzero = b != 0
    signal, error = float(np.dot(b, b)), float(np.dot(gap, gap))
    lengths = math.sqrt(float(np.dot(a, a)) * signal)
    p50, p99 = np.quantile(ulps, [0.5, 0.99])
    return Metrics(
        max_abs=float(gap.max()),
        max_rel=float((gap[nonzero] / np.abs(b[nonzero])).max(initial=0.0)),
        ulp_p50=float(p50),
        ulp_p99=float(p99),
        ulp_max=float(ulps.max()),
        snr_db=10 * math.log10(signal / error) if error and signal else math.inf if not error else -math.inf,
        cosine=float(np.dot(a, b)) / lengths if lengths else float(not error),
        top1=_top1(value, reference),
        ulp_histogram=_histogram(ulps),
    )


def _histogram(ulps: F64) -> tuple[int, ...]:
    """How many there are per bin of `ULP_EDGES`."""
    bins = np.searchsorted(ULP_EDGES, ulps)  # an edge belongs to the bin below it
    return tuple(np.bincount(bins, minlength=len(ULP_EDGES) + 1).tolist())


def _ulp(values: F64, dtype: np.dtype[Any]) -> F64:
    """The gap between neighbouring numbers of the type at each value, by its exponent."""
    import ml_dtypes

    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    _, exponent = np.frexp(np.maximum(np.abs(values), float(info.smallest_normal)))
    gaps: F64 = np.ldexp(float(info.eps), exponent - 1)
    return gaps


def _top1(value: Array, reference: Array) -> float | None:
    if reference.ndim < 1 or reference.shape[-1] < 2:
        return None
    return float(np.mean(np.argmax(value, axis=-1) == np.argmax(reference, axis=-1)))


def _finite(numbers: F64) -> F64:
    """The numbers, 0 where they are not finite."""
    return numbers if np.isfinite(numbers).all() else np.where(np.isfinite(numbers), numbers, 0.0)


def _mean(each: Sequence[Sums]) -> Sums:
    total: Sums = {}
    for one in each:
        total = _plus(total, {part: sums / len(each) for part, sums in one.items()})
    return total


def _larger(one: Sums, other: Sums) -> Sums:
    return {part: np.maximum(sums, other.get(part, 0.0)) for part, sums in one.items()} or other


def _plus(total: Sums, more: Sums) -> Sums:
    """The sums of both; a part whose length changes from feed to feed is given up."""
    if not total or not more:
        return total or more
    return {part: a + more[part] for part, a in total.items() if part in more and a.shape == more[part].shape}
