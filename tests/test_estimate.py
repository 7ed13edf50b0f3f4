"""The figures of a report against formulas written out, and the engine with a network of two layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bnfold import InputError, Method
from bnfold.estimate import Estimator, Layer, Statistics, layer_report
from bnfold.moments import Moments, SampleMoments
from bnfold.multiset import Multiset
from bnfold.sweep import Gate, Measured, Sweep

FLOAT = np.dtype(np.float32)


def layer(name: str = "n", dtype: Any = FLOAT) -> Layer:
    return Layer(
        name, np.array([1.0, -1.0]), np.array([4.0, 0.5]), np.array([2.0, -3.0]), 0.25, np.dtype(dtype)
    )


def moments(values: NDArray[Any]) -> Moments:
    found = Moments(2)
    found.add(SampleMoments.of(values))
    return found


def drawn(seed: int = 0, samples: int = 40) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal((samples, 2, 3)) * [[[3.0], [0.2]]] + [[[2.0], [0.1]]]


class TestReport:
    def test_figures(self) -> None:
        before, x = layer(), drawn()
        found = moments(x)
        new = Estimator().statistics(before, found)
        report = layer_report(before, 3, Estimator(), new, found, found)
        mean, var = x.mean((0, 2)), x.var((0, 2))
        old, now = before.var + 0.25, var + 0.25
        assert (report.level, report.samples, report.count, report.channels) == (3, 40, 120, 2)
        # what is compared is float64; what is stored is float32
        assert report.mean_drift == pytest.approx(np.max(np.abs(mean - before.mean) / np.sqrt(old)), rel=1e-6)
        assert report.var_drift == pytest.approx(np.max(np.abs(np.log(now / old))), rel=1e-6)
        scale, at = np.array([[[2.0], [-3.0]]]), np.s_[None, :, None]
        outputs = [scale * (x - m[at]) / np.sqrt(w[at]) for m, w in ((before.mean, old), (mean, now))]
        change = np.sqrt(np.mean((outputs[0] - outputs[1]) ** 2))
        assert report.output_drift == pytest.approx(change, rel=1e-6)
        assert report.mean_error == pytest.approx(np.max(found.mean_error / np.sqrt(now)), rel=1e-6)
        assert report.var_error == pytest.approx(np.max(found.var_error / now), rel=1e-6)
        assert report.limit_used <= 1

    @pytest.mark.parametrize(
        ("dtype", "passing", "failing"), [(np.float32, 5e-7, 2e-6), (np.float16, 2e-4, 5e-3)]
    )
    def test_gaps_are_held_against_rounding(self, dtype: Any, passing: float, failing: float) -> None:
        """Of what is stored: in float16 four units are 2e-3."""
        before, found = layer(dtype=dtype), moments(drawn())
        for off, passes in ((passing, True), (failing, False)):
            for mean, var in ((off, 0.0), (0.0, off)):
                exact = Statistics(
                    found.mean + mean * np.sqrt(found.population_var + 0.25), found.population_var
                )
                new = Statistics(exact.mean, (found.population_var + 0.25) * np.exp(var) - 0.25)
                report = layer_report(before, 0, Estimator(), new, found, found)
                assert (report.limit_used <= 1) == passes
                assert max(report.mean_gap, report.var_gap) == pytest.approx(off, rel=1e-3)

    def test_sample_variance(self) -> None:
        found = moments(drawn())
        stored = Estimator("sample").statistics(layer(), found)
        np.testing.assert_array_equal(stored.var, (found.population_var * 120 / 119).astype(np.float32))

    def test_a_prior_counts_samples(self) -> None:
        before, found = layer(dtype=np.float64), moments(drawn(samples=30))
        mixed = Estimator(prior=10).statistics(before, found)
        mean = 0.25 * before.mean + 0.75 * found.mean
        second = 0.25 * (before.var + before.mean**2) + 0.75 * (found.population_var + found.mean**2)
        np.testing.assert_allclose(mixed.mean, mean, rtol=1e-14)  # float64, in another order
        np.testing.assert_allclose(mixed.var, second - mean**2, rtol=1e-13)


class Two:
    """A network in which the second layer sees the first one's output."""

    levels: Sequence[Sequence[int]] = ((0,), (1,))

    def __init__(self, values: NDArray[Any], dtype: Any = FLOAT) -> None:
        self.layers = [layer("first", dtype), layer("second", dtype)]
        self.values = values
        self.now = [Statistics(each.mean, each.var) for each in self.layers]
        self.drift = 0.0

    def measure(
        self, chosen: Sequence[int], *, batch_statistics: bool = False, rearranged: bool = False
    ) -> Measured:
        seen = Multiset()
        for sample in self.values:
            seen.add([sample])
        first = self.now[0]
        width = np.sqrt(first.var.astype(float) + 0.25)
        second = (self.values - first.mean[:, None]) / width[:, None] + self.drift
        self.drift += self.drift
        inputs = [self.values, second]
        return Measured({i: moments(inputs[i]) for i in chosen}, seen.value, seen.samples)

    def settle(self, i: int, new: Statistics) -> None:
        self.now[i] = new


class TestSweep:
    def test_both_have_what_comes_in(self) -> None:
        network = Two(drawn())
        outcome = Sweep(network).run()
        assert not outcome.failure and outcome.samples == 40
        np.testing.assert_allclose(network.now[1].mean, 0, atol=1e-7)  # normalized by the first, in float32
        assert [each.level for each in outcome.layers] == [0, 1]

    def test_a_network_that_is_not_the_same_again(self) -> None:
        network = Two(drawn())
        network.drift = 1e-3
        assert "'second': in the finished network its mean is off" in Sweep(network).run().failure

    def test_gates(self) -> None:
        assert (
            "40 samples are fewer than the 41 asked for" in Sweep(Two(drawn()), gate=Gate(41)).run().failure
        )
        assert "a standard error of" in Sweep(Two(drawn()), gate=Gate(None, 0.01)).run().failure
        assert not Sweep(Two(drawn()), gate=Gate(40, 0.5)).run().failure

    def test_no_samples(self) -> None:
        with pytest.raises(InputError, match="no sample"):
            Sweep(Two(drawn()[:0])).run()

    def test_a_layer_that_is_never_reached(self) -> None:
        network = Two(drawn())
        measure = network.measure

        def some(chosen: Sequence[int], **how: Any) -> Measured:
            found = measure(chosen, **how)
            return Measured({i: m for i, m in found.moments.items() if i == 0}, found.digest, found.samples)

        network.measure = some  # type: ignore[method-assign]
        with pytest.raises(InputError, match="'second' is never reached"):
            Sweep(network).run()

    def test_data_that_change(self) -> None:
        network = Two(drawn())
        settle = network.settle

        def other(i: int, new: Statistics) -> None:
            settle(i, new)
            network.values = network.values + 1

        network.settle = other  # type: ignore[method-assign]
        with pytest.raises(InputError, match="differ from those of the first pass: other values"):
            Sweep(network).run()

    def test_statistics_beyond_their_type(self) -> None:
        with pytest.raises(
            InputError, match="'first': the variance of its input is beyond the range of float16"
        ):
            Sweep(Two(drawn() * 1000, np.float16)).run()

    def test_a_constant_channel_without_epsilon(self) -> None:
        network, values = Two(drawn()), drawn()
        values[:, 1] = 2.0
        network.values = values
        network.layers[0] = replace(layer("first"), epsilon=0.0)
        with pytest.raises(InputError, match=r"'first': channel 1 is constant .* divide by zero"):
            Sweep(network).run()

    def test_old_statistics_that_cannot_be_blended(self) -> None:
        network = Two(drawn())
        network.layers[1] = replace(layer("second"), var=np.array([1.0, np.nan]))
        with pytest.raises(
            InputError, match=r"'second': its statistics are not finite.* use the method 'exact'"
        ):
            Sweep(network, Method.BLEND, Estimator(prior=3)).run()
        assert not Sweep(network).run().failure

    def test_one_pass_has_no_proof(self) -> None:
        assert not Sweep(Two(drawn()), method=Method.ONEPASS).run().failure


class TestMultiset:
    def test_order_is_no_matter_but_number_is(self) -> None:
        a, b = np.arange(4.0), np.arange(4.0) + 1

        def of(*samples: NDArray[Any]) -> int:
            found = Multiset()
            for sample in samples:
                found.add([sample])
            return found.value

        assert of(a, b) == of(b, a) == of(a) + of(b)
        assert (
            len(
                {of(a), of(b), of(a, a), of(a, b), of(a, b, b), of(a.reshape(2, 2)), of(a.astype(np.float32))}
            )
            == 7
        )
