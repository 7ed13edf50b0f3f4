"""Moments against exact rationals, and the same bits however the samples are divided up."""

from __future__ import annotations

import math
import pickle
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bnfold import moments
from bnfold.moments import LARGEST, Gathering, Moments, SampleMoments, nearest

Array = NDArray[Any]

SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 3), st.sampled_from([(), (1,), (5,), (3, 4), (9, 7)]))


def samples_of(seed: int, shape: tuple[int, int, tuple[int, ...]], scale: float, offset: float) -> Array:
    samples, channels, space = shape
    numbers = np.random.default_rng(seed).standard_normal((samples, channels, *space))
    return ((numbers + offset) * scale).astype(np.float32)


def of(*batches: Array) -> Moments:
    found = Moments(batches[0].shape[1])
    for batch in batches:
        found.add(SampleMoments.of(batch))
    return found


def bits(found: Moments) -> tuple[bytes, ...]:
    views = (found.mean, found.population_var, found.mean_error, found.var_error)
    return tuple(view.tobytes() for view in views)


def exactly(values: Array) -> tuple[Fraction, Fraction]:
    """Mean and population variance of all numbers of an array."""
    numbers = [Fraction(float(v)) for v in values.ravel()]
    mean = sum(numbers, Fraction(0)) / len(numbers)
    return mean, sum(((v - mean) ** 2 for v in numbers), Fraction(0)) / len(numbers)


class TestExactness:
    @given(seed=st.integers(0, 999), shape=SHAPES, offset=st.sampled_from([0.0, 1.0, -30.0, 1e3, 1e5]))
    @settings(max_examples=60, deadline=None)
    def test_against_rationals(
        self, seed: int, shape: tuple[int, int, tuple[int, ...]], offset: float
    ) -> None:
        values = samples_of(seed, shape, 0.5, offset)
        found = of(values)
        for c in range(values.shape[1]):
            mean, var = exactly(values[:, c])
            # A sample's own mean is off by at most about ten roundoffs of a float64 at the mean's magnitude.
            near = 10 * 2.0**-53 * max(float(np.abs(values).max()), 1e-300)
            assert abs(found.exact_mean[c] - mean) <= Fraction(near)
            # Moving each mean by that changes a variance by twice that times a deviation, and its square;
            # sums of squares have a relative error of their own.
            room = 2 * near * math.sqrt(var) + near**2 + 1e-11 * float(var)
            assert abs(found.exact_population_var[c] - var) <= Fraction(room)

    @pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
    def test_one_value_per_sample_is_exact_to_the_last_bit(self, scale: float) -> None:
        values = samples_of(3, (50, 2, ()), scale, 1e4)
        found = of(values)
        for c in range(2):
            mean, var = exactly(values[:, c])
            assert (found.exact_mean[c], found.exact_population_var[c]) == (mean, var)
            assert found.mean[c] == float(mean)
            assert found.population_var[c] == float(var)
            assert found.sample_var[c] == float(var * 50 / 49)

    def test_float64_keeps_all_its_digits(self) -> None:
        values = np.random.default_rng(0).standard_normal((40, 1)) * 1e-3 + 1e9
        assert of(values).exact_population_var[0] == exactly(values)[1]

    def test_subnormal_numbers_count(self) -> None:
        values = np.array([[1.0], [3.0], [8.0]], np.float32) * np.float32(2.0**-149)
        assert values[0, 0] > 0
        mean, var = exactly(values)
        assert (of(values).exact_mean, of(values).exact_population_var) == ([mean], [var])

    def test_the_smallest_float64_is_added_up(self) -> None:
        values = np.full((3, 1), 5e-324)
        found = of(values)
        assert found.exact_mean == [Fraction(5e-324)]
        assert found.population_var[0] == 0.0

    def test_far_apart_magnitudes(self) -> None:
        values = np.array([[1e60], [1.0], [-1e60], [1e-60]])
        assert of(values).exact_mean == [exactly(values)[0]]

    def test_a_constant_channel_has_no_variance(self) -> None:
        for constant in (0.1, -3e4, 1e-20):
            found = of(np.full((7, 1, 11), constant, np.float32))
            assert found.population_var[0] == 0.0
            assert found.mean[0] == float(np.float32(constant))

    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
    def test_every_floating_type(self, dtype: Any) -> None:
        values = np.random.default_rng(1).standard_normal((6, 2)).astype(dtype)
        assert of(values).exact_mean[1] == exactly(values[:, 1])[0]

    def test_one_sample(self) -> None:
        found = of(np.array([[2.5, -1.0]]))
        assert found.mean.tolist() == [2.5, -1.0]
        assert found.population_var.tolist() == [0.0, 0.0]
        assert np.isinf(found.mean_error).all()
        assert np.isinf(found.var_error).all()
        with pytest.raises(ValueError, match="two values"):
            _ = found.sample_var

    def test_the_worked_example_in_circulation_is_wrong(self) -> None:
        """[0.5, 2.0] has variance 0.5625, not 0.3125."""
        assert of(np.array([[0.5], [2.0]])).population_var[0] == 0.5625


class TestBits:
    @given(data=st.data(), seed=st.integers(0, 999), shape=SHAPES, offset=st.sampled_from([0.0, 1e2, 1e5]))
    @settings(max_examples=60, deadline=None)
    def test_split_permuted_merged(
        self, data: st.DataObject, seed: int, shape: tuple[int, int, tuple[int, ...]], offset: float
    ) -> None:
        values = samples_of(seed, shape, 1.0, offset)
        whole = of(values)
        order = data.draw(st.permutations(range(len(values))))
        cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(values) - 1)))) - {len(values)})
        leaves = [of(part) for part in np.split(values[order], cuts)]
        while len(leaves) > 1:  # any tree
            i = data.draw(st.integers(0, len(leaves) - 2))
            leaves[i].merge(leaves.pop(i + 1))
        assert leaves[0] == whole
        assert bits(leaves[0]) == bits(whole)

    def test_neither_the_place_in_memory_nor_the_neighbours_matter(self) -> None:
        values = samples_of(5, (8, 3, (13, 7)), 1.0, 100.0)
        alone = SampleMoments.of(values[5:6].copy())
        buffer = np.zeros(values.size + 8, np.float32)
        for shift in range(8):
            moved = buffer[shift : shift + values.size].reshape(values.shape)
            moved[...] = values
            among = SampleMoments.of(moved)
            assert among.mean[5].tobytes() == alone.mean[0].tobytes()
            assert among.m2[5].tobytes() == alone.m2[0].tobytes()

    def test_blocks_do_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = samples_of(6, (4, 3, (50,)), 1.0, 3.0)
        whole = SampleMoments.of(values)
        monkeypatch.setattr(moments, "_BLOCK", 60)
        parts = SampleMoments.of(values)
        assert (whole.mean.tobytes(), whole.m2.tobytes()) == (parts.mean.tobytes(), parts.m2.tobytes())

    def test_gathered(self) -> None:
        parts = [samples_of(i, (40, 2, (3,) if i % 5 else (4,)), 1.0, 2.0) for i in range(20)]
        found = Gathering(2)
        for part in parts:
            found.add(SampleMoments.of(part))
        assert found.all() == of(*parts)

    def test_carries_change_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = samples_of(7, (30, 2, (4,)), 1e6, 3.0)
        rare = of(*values[:, None])
        monkeypatch.setattr(moments, "_PATIENCE", 1)
        assert bits(of(*values[:, None])) == bits(rare)

    def test_so_many_at_once_that_a_float64_would_round(self) -> None:
        values = np.full((2**22 + 5, 1), 1 / 3)
        assert of(values).exact_mean == [Fraction(1 / 3)]

    def test_samples_of_several_rows(self) -> None:
        values = samples_of(8, (6, 3, (4,)), 1.0, 3.0)
        rows = SampleMoments.of(values, samples=2)
        joined = values.reshape(2, 3, 3, 4).swapaxes(1, 2).reshape(2, 3, 12)
        assert rows.size == 12
        np.testing.assert_array_equal(rows.mean, SampleMoments.of(joined).mean)

    def test_sizes_may_differ_between_samples(self) -> None:
        small, large = samples_of(9, (3, 2, (4,)), 1.0, 5.0), samples_of(10, (2, 2, (9,)), 1.0, -5.0)
        found = of(small, large)
        joined = np.concatenate([small.swapaxes(0, 1).reshape(2, -1), large.swapaxes(0, 1).reshape(2, -1)], 1)
        assert found.count == 30
        for c in range(2):  # float64 sums of 30 numbers of magnitude 5: a few roundoffs
            assert float(found.exact_population_var[c]) == pytest.approx(
                float(exactly(joined[c])[1]), rel=1e-14
            )
        assert found == of(large, small)

    def test_arrays_bring_it_back(self) -> None:
        found = of(samples_of(11, (5, 3, (2,)), 1.0, 1.0))
        again = Moments.from_arrays(pickle.loads(pickle.dumps(found.to_arrays())))
        assert again == found
        again.merge(found)
        assert again != found
        assert again.count == 2 * found.count
        assert again.mean.tobytes() == found.mean.tobytes()


class TestNearest:
    def test_a_number_is_rounded_once(self) -> None:
        """Half a unit of float32 above 1, and a little more or less than float64 can tell."""
        tie, little = 1 + Fraction(1, 2**24), Fraction(1, 2**80)
        up, even = np.float32(1 + 2**-23), np.float32(1)
        assert nearest([tie + little, tie, tie - little], np.float32).tolist() == [up, even, even]
        assert nearest([-tie - little, -tie], np.float32).tolist() == [-up, -even]

    def test_beyond_the_range_of_a_type(self) -> None:
        assert nearest([Fraction(70000)], np.float16).tolist() == [math.inf]
        assert nearest([Fraction(1, 2**150)], np.float32).tolist() == [0.0]
        assert nearest([Fraction(3, 2**151)], np.float32).tolist() == [2.0**-149]


class TestErrors:
    """Standard errors, against what many draws of a data set show."""

    @pytest.mark.parametrize(("between", "within"), [(1.0, 0.0), (1.0, 1.0), (0.1, 1.0)])
    def test_they_are_the_scatter_of_the_estimates(self, between: float, within: float) -> None:
        rng = np.random.default_rng(0)
        # Each channel is a data set of its own: 400 of them, 64 samples of 20 values that share an offset.
        values = between * rng.standard_normal((64, 400, 1)) + within * rng.standard_normal((64, 400, 20))
        found = of(values)
        # 400 data sets tell a standard deviation to 1/√800 = 3.5 %; four times that.
        assert np.median(found.mean_error) == pytest.approx(found.mean.std(), rel=0.15)
        assert np.median(found.var_error) == pytest.approx(found.population_var.std(), rel=0.15)


class TestRefusals:
    def test_numbers_that_are_not_finite(self) -> None:
        for bad in (math.nan, math.inf, LARGEST * 4):
            values = np.ones((3, 2, 2))
            values[1, 0, 1] = bad
            batch = SampleMoments.of(values)
            assert batch.finite.tolist() == [True, False, True]
            with pytest.raises(ValueError, match="finite"):
                Moments(2).add(batch)
            Moments(2).add(batch.first(1))

    def test_nothing_added(self) -> None:
        with pytest.raises(ValueError, match="no sample"):
            _ = Moments(2).mean
        with pytest.raises(ValueError, match="no sample"):
            _ = Moments(2).population_var

    def test_other_channels(self) -> None:
        with pytest.raises(ValueError, match="channels"):
            of(np.ones((2, 2))).merge(of(np.ones((2, 3))))
        with pytest.raises(ValueError, match="channels"):
            Moments(3).add(SampleMoments.of(np.ones((2, 2))))

    def test_rows_that_cannot_be_shared_out(self) -> None:
        with pytest.raises(ValueError, match="3 rows cannot belong to 2 samples"):
            SampleMoments.of(np.ones((3, 2)), samples=2)

    def test_arrays_of_something_else(self) -> None:
        good = of(np.ones((2, 2))).to_arrays()
        with pytest.raises(ValueError, match="hold no moments"):
            Moments.from_arrays({"count": good["count"]})
        with pytest.raises(ValueError, match="limbs"):
            Moments.from_arrays(good | {"mean": np.zeros((3, 5), np.int64)})
