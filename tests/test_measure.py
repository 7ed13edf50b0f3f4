"""Errors, noises, and the figures beside them, on numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnfold.measure import Base, Tally, Unlike, difference, metrics, squares
from bnfold.verification import ULP_EDGES

Array = NDArray[Any]
RNG = np.random.default_rng(5)


def tally(error: Array, noises: list[Array], reference: Array | None = None) -> Tally:
    base = np.zeros(error.shape) if reference is None else reference
    return Tally.of(base + error, Base(base, exact=False), [squares(n) for n in noises])


def exactly(value: Array, reference: Array, *nudged: Array) -> float:
    """The ratio of tensors whose elements count as equal or not."""
    base = Base(reference, exact=True)
    return Tally.of(value, base, [base.apart(other) for other in nudged]).worst().ratio


class TestDifference:
    def test_is_the_difference(self) -> None:
        assert difference(np.array([3.0, 1.0]), np.array([1.0, 1.0])).tolist() == [2.0, 0.0]

    def test_infinities_and_nan_in_the_same_places_are_no_difference(self) -> None:
        values = np.array([np.inf, -np.inf, np.nan, 1.0])
        assert difference(values, values).tolist() == [0.0] * 4

    @pytest.mark.parametrize("other", [np.nan, -np.inf, 1e300])
    def test_in_other_places_they_are_unlike(self, other: float) -> None:
        with pytest.raises(Unlike, match=r"other places \(1 of 2 elements\)"):
            difference(np.array([other, 1.0]), np.array([np.inf, 1.0]))

    def test_shapes(self) -> None:
        with pytest.raises(Unlike, match=r"its shape is \[2\] instead of \[1, 2\]"):
            difference(np.zeros(2), np.zeros((1, 2)))


class TestExactly:
    def test_equal_is_equal(self) -> None:
        for same in (np.array([1, 2]), np.array([True, False]), np.array([np.nan, 1.0])):
            assert exactly(same, same) == 0.0

    @pytest.mark.parametrize("size", [1, 2**55, 2**63 - 9])
    def test_any_other_element_counts(self, size: int) -> None:
        """One sentinel must not make all others equal, nor a large number its neighbours."""
        values = np.array([3, 5, size])
        for place in range(3):
            other = values.copy()
            other[place] += 1
            assert exactly(other, values) == math.inf
        assert exactly(np.array([True, False]), np.array([True, True])) == math.inf

    def test_as_many_as_in_nudged_runs_and_as_far(self) -> None:
        values = np.arange(100)
        one, another, many, far = (values.copy() for _ in range(4))
        one[3] += 1
        another[7] -= 1
        many[:40] += 1
        far[7] += 1000
        assert exactly(another, values, one) == 1.0
        assert exactly(many, values, one) > 4
        assert exactly(far, values, one) > 4


def test_squares_out_of_range() -> None:
    """They are infinite or NaN, and nothing is said about it."""
    sums = squares(np.full((2, 3, 4096), 1e200))
    assert all(not np.isfinite(each).any() for each in sums.values())


def test_squares_along_every_measured_axis() -> None:
    values = RNG.standard_normal((2, 3, 4, 5))
    sums = squares(values)
    assert sums[""] == pytest.approx((values**2).sum())
    np.testing.assert_allclose(sums["axis 1"], (values**2).sum(axis=(0, 2, 3)))
    np.testing.assert_allclose(sums["the last axis"], (values**2).sum(axis=(0, 1, 2)))


@pytest.mark.parametrize("shape", [(), (3,), (0,), (2, 0), (0, 3), (2, 3), (2, 3, 0)])
def test_squares_of_any_shape(shape: tuple[int, ...]) -> None:
    assert squares(np.ones(shape))[""] == math.prod(shape)
    assert tally(np.ones(shape), []).worst().ratio == (math.inf if math.prod(shape) else 0.0)


class TestWorst:
    def test_the_whole(self) -> None:
        found = tally(np.full(4, 3.0), [np.full(4, 1.0), np.full(4, 2.0)]).worst()
        assert (found.error, found.part) == (3.0, "")
        assert found.noise == pytest.approx(2.0)  # nudges of the second kind move it more
        assert found.ratio == pytest.approx(1.5)

    def test_draws_of_a_kind_are_averaged(self) -> None:
        draws = [np.full(4, 1.0), np.zeros(4), np.full(4, 2.0), np.zeros(4)]
        assert tally(np.full(4, 3.0), draws).worst().noise == pytest.approx(math.sqrt(2.5))  # RMS of 1 and 2

    def test_a_channel_among_many(self) -> None:
        error, noise = np.zeros((1, 64, 8)), np.ones((1, 64, 8))
        error[:, 5] = 30.0
        found = tally(error, [noise]).worst()
        assert found.part == "index 5 of axis 1"
        # The largest of 64 normal deviates is about sqrt(2 ln 64) = 2.9 times their deviation.
        assert found.ratio == pytest.approx(30 / math.sqrt(2 * math.log(64)))
        assert found.error == pytest.approx(30.0)

    def test_a_channel_whose_draws_were_all_small_has_its_share_of_the_noise(self) -> None:
        reference = np.ones((1, 10, 100))
        noise = np.ones((1, 10, 100)) * 1e-3
        noise[:, 0] = 0
        found = tally(noise[:, ::-1].copy() * 0 + 2e-3, [noise], reference).worst()
        assert found.ratio < 4

    def test_one_loud_channel_excuses_no_other(self) -> None:
        error, noise = np.zeros((1, 9, 50)), np.full((1, 9, 50), 1e-7)
        noise[:, 0], error[:, 5] = 1e-2, 1e-4
        found = tally(error, [noise], np.ones((1, 9, 50))).worst()
        assert found.part.startswith("index 5 of axis 1") and found.ratio > 100

    @pytest.mark.parametrize("size", [1e160, 1e300, 1e-200])
    def test_sizes_whose_squares_are_out_of_range(self, size: float) -> None:
        reference = np.array([size, -size, 0.5 * size])
        base = Base(reference, exact=False)
        noises = [base.apart(reference * (1 + 1e-7))]
        assert Tally.of(reference * (1 + 2e-7), base, noises).worst().ratio == pytest.approx(2, rel=1e-6)
        assert Tally.of(-reference, base, noises).worst().ratio > 1e6

    def test_equal_is_zero(self) -> None:
        assert tally(np.zeros((2, 3)), []).worst().ratio == 0.0

    def test_without_noise_only_float64s_own_rounding_passes(self) -> None:
        reference = np.ones(8)
        assert tally(np.full(8, 2.0**-50), [], reference).worst().ratio <= 1.0
        assert tally(np.full(8, 2.0**-40), [], reference).worst().ratio == 1024.0

    def test_feeds_add_up(self) -> None:
        both = tally(np.full(4, 1.0), [np.full(4, 1.0)])
        both.merge(tally(np.full(4, 3.0), [np.full(4, 2.0)]))
        # Each in units of its own noise: a loud feed does not drown a quiet one.
        assert both.worst().ratio == pytest.approx(math.sqrt((1 / 1 + 9 / 4) / 2))
        assert both.elements == both.finite == 8

    def test_a_quiet_feed_is_heard_beside_a_loud_one(self) -> None:
        quiet = tally(np.full(4, 1e-3), [np.full(4, 1e-5)])
        quiet.merge(tally(np.full(4, 1e-3), [np.full(4, 1.0)]))
        assert quiet.worst().ratio == pytest.approx(100 / math.sqrt(2), rel=1e-3)

    def test_a_channel_that_lives_on_one_feed_only(self) -> None:
        """There another one is so loud that the feed says little about the rest, all feeds together."""
        silent, alive = np.zeros((1, 2, 50)), np.zeros((1, 2, 50))
        noise, loud = np.full((1, 2, 50), 1e-7), np.full((1, 2, 50), 1e-7)
        alive[:, 1], loud[:, 0] = 1e-5, 1e-3
        feeds = [tally(1e-7 + silent, [noise], np.ones((1, 2, 50))) for _ in range(7)]
        feeds.append(tally(alive, [loud], np.ones((1, 2, 50)) * [[[1e4], [1.0]]]))
        both = Tally()
        for feed in feeds:
            both.merge(feed)
        assert both.worst().ratio > 4 and both.worst().part.startswith("index 1 of axis 1")

    def test_a_wrong_slope_beside_an_uncertain_shift(self) -> None:
        """A channel of large mean: its noise is a shift; the error is small, but it is a slope."""
        slope = np.linspace(-1, 1, 64) * np.ones((1, 3, 1))
        found = tally(1e-3 * slope, [np.ones((1, 3, 64)) + 1e-6 * slope], 1e3 + slope).worst()
        assert found.part.endswith("of axis 1 about its mean") and found.ratio > 100

    def test_a_shift_alone_is_no_slope(self) -> None:
        """What is left of equal numbers about their mean is rounding, and no evidence."""
        shift = np.full((1, 3, 1001), 0.1) * np.array([1.0, 1.1, 1.3])[:, np.newaxis]
        assert tally(shift, [1.5 * shift]).worst().ratio < 1

    def test_a_problem_of_one_feed_stays(self) -> None:
        both = tally(np.zeros(4), [])
        both.merge(Tally.of(np.zeros(3), Base(np.zeros(4), exact=False), []))
        assert both.problem and both.elements == 8


class TestMetrics:
    def test_by_hand(self) -> None:
        reference = np.array([[1.0, 4.0], [2.0, 0.0]])
        value = reference + np.array([[2.0**-23, 0.0], [0.0, 0.5]])
        found = metrics(value, reference, np.dtype(np.float32))
        assert found.max_abs == 0.5
        assert found.max_rel == 2.0**-23  # where the reference is 0 there is no relative difference
        assert found.ulp_p50 == 0.5  # of 0, 0, 1 and very many units in the last place
        assert found.ulp_max == 0.5 / 2.0**-149 / 2.0**0
        assert found.snr_db == pytest.approx(10 * math.log10(21 / (0.25 + 2.0**-46)))
        assert found.top1 == 1.0

    def test_top1_counts_rows(self) -> None:
        reference = np.array([[1.0, 2.0], [1.0, 2.0]])
        assert metrics(reference[:, ::-1], reference, np.dtype(np.float32)).top1 == 0.0
        assert metrics(np.ones(3), np.ones(3), np.dtype(np.float32)).top1 == 1.0
        assert metrics(np.ones((3, 1)), np.ones((3, 1)), np.dtype(np.float32)).top1 is None

    def test_equal(self) -> None:
        found = metrics(np.ones(3), np.ones(3), np.dtype(np.float16))
        assert (found.max_abs, found.ulp_max, found.snr_db, found.cosine) == (0.0, 0.0, math.inf, 1.0)

    def test_the_histogram_of_last_places(self) -> None:
        ulps = np.array([0.0, 0.0, 0.5, 0.6, 1.0, 2.0, 3.0, 2.0**24, 2.0**25])
        found = metrics(1.0 + ulps * 2.0**-23, np.ones(9), np.dtype(np.float32)).ulp_histogram
        assert len(found) == len(ULP_EDGES) + 1
        assert [found[k] for k in (0, 1, 2, 3, 4)] == [2, 1, 2, 1, 1]  # 0, (0, .5], (.5, 1], (1, 2], (2, 4]
        assert found[-2:] == (1, 1)
        assert sum(found) == 9

    def test_the_last_place_is_that_of_the_declared_type(self) -> None:
        for dtype, ulp in ((np.float16, 2.0**-10), (np.float32, 2.0**-23), (np.float64, 2.0**-52)):
            found = metrics(np.array([1.0 + ulp]), np.array([1.0]), np.dtype(dtype))
            assert found.ulp_max == 1.0
