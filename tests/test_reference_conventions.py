"""The conventions of running statistics: as the frameworks have them, and from one to another."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from graphs import Array, drawn
from hypothesis import given
from hypothesis import strategies as st

from bnfold.errors import InputError
from bnfold.reference import (
    FLAX,
    KERAS,
    ONNX,
    PYTORCH,
    TENSORFLOW_FUSED,
    Convention,
    Running,
    Statistics,
    batch_statistics,
)

ALL = [PYTORCH, ONNX, KERAS, TENSORFLOW_FUSED, FLAX]
# mean 2, population variance 8/3, sample variance 4
BATCH = batch_statistics(np.array([[0.0], [2.0], [4.0]]))
BEFORE = Running(np.array([1.0]), np.array([5.0]))


def batches(count: int) -> list[Array]:
    return [drawn(f"batch {i}", 2 + i, 3, 2, dtype=np.float64) * (i + 1) + i for i in range(count)]


class TestTheFive:
    @pytest.mark.parametrize(
        ("convention", "weight", "var", "epsilon"),
        [
            (PYTORCH, 0.1, 4.0, 1e-5),
            (ONNX, 0.1, 8 / 3, 1e-5),
            (KERAS, 0.01, 8 / 3, 1e-3),
            (TENSORFLOW_FUSED, 0.01, 4.0, 1e-3),
            (FLAX, 0.01, 8 / 3, 1e-5),
        ],
        ids=[c.name for c in ALL],
    )
    def test_one_step(self, convention: Convention, weight: float, var: float, epsilon: float) -> None:
        after = convention.update(BEFORE, BATCH)
        # a handful of roundings
        assert after.mean == pytest.approx(weight * 2.0 + (1 - weight) * 1.0, rel=1e-15)
        assert after.var == pytest.approx(weight * var + (1 - weight) * 5.0, rel=1e-15)
        assert after.batches == 1
        assert convention.epsilon == epsilon

    def test_names(self) -> None:
        assert len({c.name for c in ALL}) == 5

    def test_variances_are_averaged_not_deviations(self) -> None:
        half = replace(ONNX, momentum=0.5)
        after = half.update(Running(np.zeros(1), np.ones(1)), Statistics(4, np.zeros(1), np.array([9.0])))
        assert after.var == 5.0  # the square of the mean deviation would be 4

    def test_the_cumulative_average(self) -> None:
        """Of all batches alike, whatever their sizes; the initial values do not take part."""
        cumulative = replace(PYTORCH, momentum=None)
        running = Running(np.full(3, 99.0), np.full(3, 99.0))
        measured = [batch_statistics(b) for b in batches(4)]
        for batch in measured:
            running = cumulative.update(running, batch)
        assert running.batches == 4
        # four averages, each rounded a few times
        np.testing.assert_allclose(running.mean, np.mean([b.mean for b in measured], axis=0), rtol=4e-15)
        np.testing.assert_allclose(running.var, np.mean([b.sample_var for b in measured], axis=0), rtol=4e-15)

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_running_statistics_keep_their_dtype(self, dtype: Any) -> None:
        first = Running.initial(1, dtype)
        np.testing.assert_array_equal(first.mean, 0.0)
        np.testing.assert_array_equal(first.var, 1.0)
        after = ONNX.update(first, BATCH)
        assert after.mean.dtype == after.var.dtype == dtype
        assert after.mean == np.asarray(0.2, dtype)  # rounded once

    def test_they_do_not_change_in_place(self) -> None:
        PYTORCH.update(BEFORE, BATCH)
        assert BEFORE.mean == 1.0
        assert BEFORE.var == 5.0
        assert BEFORE.batches == 0

    def test_float32_by_default(self) -> None:
        assert Running.initial(2).mean.dtype == np.float32


class TestRefusals:
    @pytest.mark.parametrize("convention", ALL, ids=[c.name for c in ALL])
    def test_one_value_per_channel(self, convention: Convention) -> None:
        """It has a population variance, 0, and no sample variance."""
        one = batch_statistics(np.array([[3.0]]))
        if convention.variance == "sample":
            with pytest.raises(InputError, match=r"1 value per channel .* take more values per channel, or"):
                convention.update(BEFORE, one)
        else:
            assert convention.update(BEFORE, one).var < 5.0

    def test_other_channels(self) -> None:
        with pytest.raises(InputError, match=r"batch's value has shape \(1,\), and the data need \(2,\)"):
            PYTORCH.update(Running.initial(2), BATCH)

    def test_words_that_are_none(self) -> None:
        with pytest.raises(
            InputError, match=r"'New' is no part of a convention: use one of \('old', 'new'\)"
        ):
            replace(PYTORCH, momentum_weights="New")  # type: ignore[arg-type]  # that is the point
        with pytest.raises(InputError, match=r"use one of \('population', 'sample'\)"):
            replace(PYTORCH, variance="unbiased")  # type: ignore[arg-type]  # that is the point


class TestConversion:
    def test_momentum(self) -> None:
        assert PYTORCH.momentum_in(ONNX) == 0.9
        assert ONNX.momentum_in(PYTORCH) == 0.1
        assert KERAS.momentum_in(PYTORCH) == 0.01
        assert KERAS.momentum_in(FLAX) == 0.99
        assert replace(PYTORCH, momentum=None).momentum_in(ONNX) is None

    @given(st.floats(0.0, 1.0))
    def test_momentum_there_and_back(self, momentum: float) -> None:
        """Nothing is lost of numbers that people write; of the others, what is below 1e-16."""
        there = replace(PYTORCH, momentum=momentum).momentum_in(KERAS)
        back = replace(KERAS, momentum=there).momentum_in(PYTORCH)
        assert back == pytest.approx(momentum, abs=1.2e-16)

    def test_decimals_come_back(self) -> None:
        for k in range(1001):
            there = replace(PYTORCH, momentum=k / 1000).momentum_in(ONNX)
            assert there == (1000 - k) / 1000
            assert replace(ONNX, momentum=there).momentum_in(PYTORCH) == k / 1000

    @pytest.mark.parametrize(("ours", "theirs"), list(product(ALL, ALL)))
    def test_a_converted_layer_runs_on_as_the_original(self, ours: Convention, theirs: Convention) -> None:
        """With batches of one size. An initial 1 is no variance of either kind, so both begin converted."""
        n = 6
        data = [drawn(f"x{i}", n, 2, dtype=np.float64) for i in range(5)]
        follower = replace(theirs, momentum=ours.momentum_in(theirs))
        original = Running(np.array([0.5, -1.0]), np.array([2.0, 3.0]))
        converted = Running(original.mean, ours.var_in(theirs, original.var, n))
        for x in data:
            batch = batch_statistics(x)
            original, converted = ours.update(original, batch), follower.update(converted, batch)
        # twenty roundings
        np.testing.assert_allclose(converted.mean, original.mean, rtol=0, atol=4e-15)
        back = theirs.var_in(ours, converted.var, n)
        np.testing.assert_allclose(back, original.var, rtol=4e-15)

    def test_the_factor(self) -> None:
        var = np.array([3.0, 6.0], np.float32)
        np.testing.assert_array_equal(ONNX.var_in(PYTORCH, var, 4), [4.0, 8.0])
        np.testing.assert_array_equal(PYTORCH.var_in(KERAS, var, 3), [2.0, 4.0])
        assert PYTORCH.var_in(KERAS, var, 3).dtype == np.float32
        same = PYTORCH.var_in(TENSORFLOW_FUSED, var, 1)
        np.testing.assert_array_equal(same, var)
        assert not np.shares_memory(same, var)

    def test_no_factor_for_one_value(self) -> None:
        for ours, theirs in ((PYTORCH, ONNX), (ONNX, PYTORCH)):
            with pytest.raises(InputError, match="sample variance of 1 value"):
                ours.var_in(theirs, np.ones(2), 1)
