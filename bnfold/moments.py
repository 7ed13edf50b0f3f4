"""Mean and variance per channel, exact: the same bits for the same samples, however they were divided up.

Each sample (a row of a batch) is first reduced by itself, in float64 and in an order that depends on nothing
but its shape, to how many values it has per channel, n, their mean m and the sum M2 of their squared
distances from it. Then the sums over samples,

    N = sum n,   A = sum n·m,   B = sum n·m²,   M = sum M2,

are kept without any rounding, so that they can be added up in any order. Mean A/N and variance
(M + B)/N - (A/N)² (the law of total variance) are views: rationals, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

F64 = NDArray[np.float64]

LARGEST = 2.0**230
"""Means and standard deviations of samples count as infinite above this: fourth powers must have room."""

_BITS = 32  # of a limb
_LOWEST = -1074  # exponent of the smallest float64, which is the unit of limb 0
_MANY = 256  # samples that are added up at once
_ROWS = 2**20  # numbers that are added up at once
_PATIENCE = 2**28  # additions of less than 2**34 to a limb
_CANCELS = 1e-4  # below this share, the difference of two sums has lost digits that are wanted
_BLOCK = 2**15  # so many float64 stay in a core's own cache while they are worked on


@dataclass(frozen=True, eq=False)
class SampleMoments:
    """The moments of each of S samples in C channels.

    Attributes:
        size: Values per channel in one sample, n.
        mean: Shape (S, C).
        m2: Sum of squared distances from the mean, shape (S, C).
    """

    size: int
    mean: F64
    m2: F64

    @classmethod
    def of(cls, values: NDArray[Any], samples: int | None = None) -> SampleMoments:
        """Reduce each sample by itself.

        Args:
            values: Any floating array, shape (S, C, ...).
            samples: How many there are, where each is so many consecutive rows of axis 0; None: one a row.

        Returns:
            Not finite where the values are not, or are above `LARGEST`.

        Raises:
            ValueError: There is no axis of channels, or the rows are no multiple of the samples.
        """
        if values.ndim < 2 or values.dtype.kind not in "fV":
            raise ValueError(f"{values.dtype.name} of rank {values.ndim} has no channels of numbers")
        total, channels, *space = values.shape
        count = total if samples is None else samples
        each = total // max(count, 1)
        if each * count != total:
            raise ValueError(f"{total} rows cannot belong to {count} samples in equal parts")
        size = each * math.prod(space)
        parts = values.reshape(count, each, channels, math.prod(space))
        rows = parts.swapaxes(1, 2).reshape(count * channels, size)
        with np.errstate(all="ignore"):
            mean, m2 = _mean_and_m2(rows)
            mean[~((np.abs(mean) <= LARGEST) & (m2 <= size * LARGEST**2))] = math.inf
        return cls(size, mean.reshape(count, channels), m2.reshape(count, channels))

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Whether all of a sample's moments are, shape (S,)."""
        return np.asarray(np.isfinite(self.mean + self.m2).all(axis=1))

    def first(self, samples: int) -> SampleMoments:
        """Those of the first so many."""
        return SampleMoments(self.size, self.mean[:samples], self.m2[:samples])


class Moments:
    """Mean and variance of C channels over all samples added so far; O(C) memory.

    Attributes:
        channels: C.
        samples: How many samples were added.
        count: How many values per channel, N.
    """

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.samples = 0
        self.count = 0
        self._sums = {name: _ExactSums(channels) for name in ("mean", "square", "m2", "spread")}
        self._known: tuple[list[Fraction], list[Fraction], list[Fraction]] | None = None

    def add(self, batch: SampleMoments) -> None:
        """Add samples.

        Raises:
            ValueError: They are not finite, or have another number of channels.
        """
        if batch.mean.shape[1] != self.channels or not batch.finite.all():
            raise ValueError("samples must be finite and have the same channels")
        n, m = batch.size, batch.mean
        self._known = None
        self.samples += len(m)
        self.count += n * len(m)
        # m² is kept whole: of the halves of m, 26 bits each, every product is exact.
        _, exponent = np.frexp(m)
        high = np.ldexp(np.rint(np.ldexp(m, 26 - exponent)), exponent - 26)
        low = m - high
        self._sums["mean"].add(m, n)
        self._sums["square"].add(np.concatenate([high * high, 2.0 * high * low, low * low]), n)
        self._sums["m2"].add(batch.m2)
        # Only what the standard error of the variance needs; rounded per sample.
        self._sums["spread"].add(batch.m2 * (batch.m2 / n))

    def merge(self, other: Moments) -> None:
        """Add all that another one holds.

        Raises:
            ValueError: It has another number of channels.
        """
        if other.channels != self.channels:
            raise ValueError(f"{self.channels} channels cannot be merged with {other.channels}")
        self._known = None
        self.samples += other.samples
        self.count += other.count
        for name, sums in self._sums.items():
            sums.merge(other._sums[name])

    @property
    def exact_mean(self) -> list[Fraction]:
        """A/N per channel.

        Raises:
            ValueError: No sample was added.
        """
        return self._parts()[0]

    @property
    def exact_population_var(self) -> list[Fraction]:
        """(M + B)/N - (A/N)² per channel, never negative.

        Raises:
            ValueError: No sample was added.
        """
        _, within, between = self._parts()
        return [w + b for w, b in zip(within, between, strict=True)]

    @property
    def mean(self) -> F64:
        """Shape (C,), correctly rounded."""
        return nearest(self.exact_mean)

    @property
    def population_var(self) -> F64:
        """Mean squared distance from the mean, shape (C,), correctly rounded."""
        return nearest(self.exact_population_var)

    @property
    def exact_sample_var(self) -> list[Fraction]:
        """The population variance times N/(N - 1).

        Raises:
            ValueError: There are fewer than two values per channel.
        """
        if self.count < 2:
            raise ValueError("the sample variance needs two values per channel")
        return [v * self.count / (self.count - 1) for v in self.exact_population_var]

    @property
    def sample_var(self) -> F64:
        """The population variance times N/(N - 1), shape (C,), correctly rounded."""
        return nearest(self.exact_sample_var)

    @property
    def mean_error(self) -> F64:
        """Standard error of the mean, shape (C,); infinite for a single sample.

        The values within a sample depend on each other, so it is the samples that count: the standard
        deviation of their means over √(samples - 1).
        """
        between = self._parts()[2]
        return np.sqrt(nearest(between) / max(self.samples - 1, 0)) if self.samples > 1 else self._unknown

    @property
    def var_error(self) -> F64:
        """Standard error of the population variance, shape (C,); infinite for a single sample.

        The part within samples is a mean over samples, and has the standard error of one. The part between
        them is the variance of their means, b, taken as normal: b·√(2/(samples - 1)).
        """
        _, within, between = self._parts()
        if self.samples < 2:
            return self._unknown
        squares = self._sums["spread"].exact()
        scatter = [max(q / self.count - w * w, Fraction(0)) for q, w in zip(squares, within, strict=True)]
        variance = nearest(scatter) + 2.0 * nearest(between) ** 2
        return np.asarray(np.sqrt(variance / (self.samples - 1)))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """All that it holds, as arrays of integers by name."""
        parts = {name: sums.limbs for name, sums in self._sums.items()}
        return {"count": np.array([self.channels, self.samples, self.count]), **parts}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The inverse of `to_arrays`.

        Raises:
            ValueError: The arrays are not those of one.
        """
        try:
            channels, samples, count = (int(n) for n in arrays["count"])
            found = cls(channels)
            found.samples, found.count = samples, count
            for name, sums in found._sums.items():
                sums.limbs = _need_limbs(arrays[name], channels)
        except (KeyError, TypeError) as error:
            raise ValueError(f"these arrays hold no moments: {error}") from error
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Moments):
            return NotImplemented
        counts = (self.channels, self.samples, self.count) == (other.channels, other.samples, other.count)
        return counts and all(s.exact() == other._sums[name].exact() for name, s in self._sums.items())

    __hash__ = None  # type: ignore[assignment]  # it changes

    def _parts(self) -> tuple[list[Fraction], list[Fraction], list[Fraction]]:
        """The mean, and the variance within samples and between their means, per channel."""
        if not self.count:
            raise ValueError("no sample was added")
        if self._known is None:
            sums = {name: sums.exact() for name, sums in self._sums.items() if name != "spread"}
            n = self.count
            mean = [a / n for a in sums["mean"]]
            # Below 2**-537, where squares underflow, the difference may come out negative.
            between = [max(b / n - m * m, Fraction(0)) for b, m in zip(sums["square"], mean, strict=True)]
            self._known = mean, [m2 / n for m2 in sums["m2"]], between
        return self._known

    @property
    def _unknown(self) -> F64:
        return np.full(self.channels, math.inf)


class Gathering:
    """Moments to which samples come few at a time. They are added up many at a time: exact sums are slow to
    begin with."""

    def __init__(self, channels: int) -> None:
        self._moments = Moments(channels)
        self._waiting: list[SampleMoments] = []
        self._count = 0  # of samples that wait

    def add(self, batch: SampleMoments) -> None:
        """Add samples, as to `Moments`."""
        if self._waiting and self._waiting[0].size != batch.size:
            self._add_up()
        self._waiting.append(batch)
        self._count += len(batch.mean)
        if self._count >= _MANY:
            self._add_up()

    def all(self) -> Moments:
        """What was gathered."""
        self._add_up()
        return self._moments

    def _add_up(self) -> None:
        if self._waiting:
            mean, m2 = (
                np.concatenate(parts) for parts in zip(*((s.mean, s.m2) for s in self._waiting), strict=True)
            )
            self._moments.add(SampleMoments(self._waiting[0].size, mean, m2))
            self._waiting, self._count = [], 0


def nearest(numbers: Sequence[Fraction], dtype: DTypeLike = np.float64) -> NDArray[Any]:
    """The numbers correctly rounded to a floating type, shape (C,); infinite where they are beyond it."""
    wide = np.array([n.numerator / n.denominator for n in numbers], np.float64)
    if np.dtype(dtype) == np.float64:
        return wide
    # Rounded to odd on the way: towards zero, with the last bit set where anything was lost. So the second
    # rounding sees on which side of a tie the number lies.
    lost = np.array([Fraction(w) != n for w, n in zip(wide.tolist(), numbers, strict=True)], bool)
    above = np.array([abs(Fraction(w)) > abs(n) for w, n in zip(wide.tolist(), numbers, strict=True)], bool)
    wide[above] = np.nextafter(wide[above], 0.0)
    wide.view(np.int64)[lost] |= 1
    with np.errstate(over="ignore"):
        return wide.astype(dtype)


class _ExactSums:
    """Sums of float64 numbers, one per channel, without rounding.

    Each is an integer in units of the smallest float64, its limbs of 32 bits in the rows of `limbs`, the
    lowest first: sum limbs[k]·2**(32·k - 1074). A limb has 63 bits and a sign, so carries can wait.
    """

    def __init__(self, channels: int) -> None:
        self.limbs = np.zeros((0, channels), np.int64)
        self._pending = 0  # additions since the last carry

    def add(self, values: F64, weight: int = 1) -> None:
        """Add all rows of values, shape (S, C), times a weight of at most 2**31.

        Adding and subtracting 1.5·2**(52 + e) rounds a smaller number to a multiple of 2**e, which is how
        the limbs are cut off, the highest first. Multiples of one unit, up to 2**32 of it each, add up in a
        float64 without rounding if there are no more than 2**21.
        """
        if len(values) > _ROWS:
            for start in range(0, len(values), _ROWS):
                self.add(values[start : start + _ROWS], weight)
            return
        rest = values.copy()
        k = self._need_limbs(float(np.abs(rest).max(initial=0.0)))
        while k >= 0 and rest.any():
            unit = _LOWEST + _BITS * k
            magic = math.ldexp(1.5, 52 + unit)
            part = (rest + magic) - magic
            rest -= part
            self._count(k, np.ldexp(part.sum(axis=0), -unit).astype(np.int64), weight)
            k -= 1
        self._pending += 1
        if self._pending == _PATIENCE:
            self._carry()

    def merge(self, other: _ExactSums) -> None:
        """Add another one's sums."""
        self._extend(len(other.limbs))
        self._carry()
        other._carry()
        self.limbs[: len(other.limbs)] += other.limbs

    def exact(self) -> list[Fraction]:
        """The sums."""
        totals = [0] * self.limbs.shape[1]
        for row in self.limbs[::-1].tolist():
            totals = [(total << _BITS) + limb for total, limb in zip(totals, row, strict=True)]
        return [Fraction(total, 1 << -_LOWEST) for total in totals]

    def _need_limbs(self, largest: float) -> int:
        """The limb in which the largest number begins, with room above it."""
        _, exponent = math.frexp(largest)
        k = (exponent - _LOWEST) // _BITS
        self._extend(k + 4)
        return k

    def _extend(self, count: int) -> None:
        if (missing := count - len(self.limbs)) > 0:
            zeros = np.zeros((missing, self.limbs.shape[1]), np.int64)
            self.limbs = np.concatenate([self.limbs, zeros])

    def _count(self, k: int, whole: NDArray[np.int64], weight: int) -> None:
        """Add whole·weight at a limb: its product can have more than 63 bits, that of its halves has not."""
        low, high = whole & (2**_BITS - 1), whole >> _BITS
        self.limbs[k] += (low * weight) & (2**_BITS - 1)
        self.limbs[k + 1] += ((low * weight) >> _BITS) + high * weight

    def _carry(self) -> None:
        """Bring all limbs but the highest into 0 ... 2**32 - 1."""
        for k in range(len(self.limbs) - 1):
            self.limbs[k + 1] += self.limbs[k] >> _BITS
            self.limbs[k] &= 2**_BITS - 1
        self._pending = 0


def _mean_and_m2(rows: NDArray[Any]) -> tuple[F64, F64]:
    """Mean and sum of squared distances from it of each row.

    From sums of values and squares, and again about the mean where their difference would lose digits. It
    is einsum that adds up: in one thread, and in the same order for every row, wherever it lies in memory.
    """
    size = rows.shape[1]
    sums, squares = np.empty((2, len(rows)))
    for part in _blocks(len(rows), size):
        wide = rows[part].astype(np.float64)
        sums[part] = np.einsum("ij->i", wide)
        squares[part] = np.einsum("ij,ij->i", wide, wide)
    mean = sums / size
    m2 = squares - mean * sums
    (again,) = np.nonzero(~(m2 > _CANCELS * squares))
    for part in _blocks(len(again), size):
        distances = rows[again[part]].astype(np.float64) - mean[again[part], None]
        m2[again[part]] = np.einsum("ij,ij->i", distances, distances)
    return mean, m2


def _blocks(rows: int, size: int) -> Iterator[slice]:
    """Parts of so many rows that are worked on at a time."""
    step = max(1, _BLOCK // max(1, size))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def _need_limbs(array: NDArray[Any], channels: int) -> NDArray[np.int64]:
    if array.ndim != 2 or array.shape[1] != channels or array.dtype != np.int64:
        raise ValueError(f"limbs of {channels} channels cannot have shape {array.shape}, type {array.dtype}")
    return array.copy()
