"""The reference normalizations: their formulas written out, finite differences, what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import Array, drawn, folded, model, ops, same
from hypothesis import given
from hypothesis import strategies as st

import bnfold
from bnfold.errors import InputError
from bnfold.evaluate import evaluate
from bnfold.reference import (
    KERAS,
    PYTORCH,
    Clip,
    Gradients,
    RunningDeviation,
    Schedule,
    Standardization,
    Statistics,
    batch_normalization,
    batch_normalization_backward,
    batch_normalization_training,
    batch_normalization_training_backward,
    batch_renormalization,
    batch_renormalization_backward,
    batch_statistics,
    dataset_statistics,
    group_normalization,
    group_normalization_backward,
    instance_normalization,
    instance_normalization_backward,
    layer_normalization,
    layer_normalization_backward,
)

FIXTURE = Path(__file__).parent.parent / "fixtures" / "digits.onnx"
DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
UNIT = 2.0**-53
double = partial(drawn, dtype=np.float64)


@dataclass(frozen=True)
class Kind:
    """A normalization as functions of (x, scale, bias) and of (dy, x, scale).

    Attributes:
        forward: Returns y.
        backward: Returns the gradients.
        shape: Of x.
        parameters: Of scale and bias.
        axes: Over which the mean of x̂ is 0; None where it is not.
    """

    forward: Callable[[Any, Any, Any], Array]
    backward: Callable[[Any, Any, Any], Gradients]
    shape: tuple[int, ...]
    parameters: tuple[int, ...]
    axes: tuple[int, ...] | None = None


def batch(*shape: int, axis: int = 1, epsilon: float = 1e-5) -> Kind:
    return Kind(
        lambda x, s, b: batch_normalization_training(x, s, b, axis=axis, epsilon=epsilon).y,
        partial(batch_normalization_training_backward, axis=axis, epsilon=epsilon),
        shape,
        (shape[axis],),
        tuple(i for i in range(len(shape)) if i != axis % len(shape)),
    )


def stored(*shape: int, axis: int = 1) -> Kind:
    mean, var = double("mean", shape[axis]), double("var", shape[axis])
    return Kind(
        lambda x, s, b: batch_normalization(x, s, b, mean, var, axis=axis),
        lambda dy, x, s: batch_normalization_backward(dy, x, s, mean, var, axis=axis),
        shape,
        (shape[axis],),
    )


def layer(*shape: int, axis: int) -> Kind:
    return Kind(
        lambda x, s, b: layer_normalization(x, s, b, axis=axis).y,
        partial(layer_normalization_backward, axis=axis),
        shape,
        shape[axis:],
        tuple(range(axis % len(shape), len(shape))),
    )


def instance(*shape: int, axis: int = 1) -> Kind:
    return Kind(
        lambda x, s, b: instance_normalization(x, s, b, axis=axis).y,
        partial(instance_normalization_backward, axis=axis),
        shape,
        (shape[axis],),
        tuple(i for i in range(1, len(shape)) if i != axis % len(shape)),
    )


def group(*shape: int, groups: int, axis: int = 1, per_group: bool = False) -> Kind:
    return Kind(
        lambda x, s, b: group_normalization(x, groups, s, b, axis=axis).y,
        lambda dy, x, s: group_normalization_backward(dy, x, groups, s, axis=axis),
        shape,
        (groups,) if per_group else (shape[axis],),
    )


KINDS = {
    "batch (N, C)": batch(7, 3),
    "batch (N, C, L)": batch(3, 2, 4),
    "batch (N, C, D, H, W)": batch(2, 2, 2, 1, 2),
    "batch, channels last": batch(3, 2, 4, axis=-1),
    "batch, channels first of all": batch(3, 5, axis=0),
    "batch, large epsilon": batch(5, 2, epsilon=0.7),
    "batch, one channel": batch(4, 1, 2),
    "stored (N, C)": stored(4, 3),
    "stored (N, C, H, W)": stored(2, 3, 2, 2),
    "stored, channels last": stored(3, 2, 4, axis=2),
    "layer, last axis": layer(3, 5, axis=-1),
    "layer, two axes": layer(2, 3, 4, axis=1),
    "layer, all axes": layer(3, 4, axis=0),
    "layer, a vector": layer(5, axis=0),
    "instance": instance(2, 3, 4),
    "instance, channels last": instance(2, 2, 3, 2, axis=-1),
    "group, per channel": group(2, 6, 3, groups=3),
    "group, per group": group(2, 6, 3, groups=2, per_group=True),
    "group, channels last": group(2, 2, 3, 4, groups=2, axis=3),
    "group, one": group(3, 4, groups=1),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def arguments(kind: Kind) -> tuple[Array, Array, Array, Array]:
    """x, scale, bias, and the weights c of the loss L = Σ c·y."""
    return (
        double("x", *kind.shape) * 1.5 + 0.3,
        double("scale", *kind.parameters),
        double("bias", *kind.parameters),
        double("loss", *kind.shape),
    )


def slopes(loss: Callable[[Array], float], at: Array) -> Array:
    """The derivatives of a function of an array, by central differences."""
    # Of their error h²/6·L''' the first is 2e-11, and of the rounding error u·|L|/h the last as much.
    h = 1e-5
    result = np.empty(at.size)
    for i in range(at.size):
        step = h * (np.arange(at.size) == i).reshape(at.shape)
        result[i] = (loss(at + step) - loss(at - step)) / (2 * h)
    return result.reshape(at.shape)


class TestEveryKind:
    @kinds
    def test_gradients_are_slopes(self, kind: Kind) -> None:
        x, scale, bias, c = arguments(kind)
        found = kind.backward(c, x, scale)
        for gradient, expected in (
            (found.dx, slopes(lambda v: float((c * kind.forward(v, scale, bias)).sum()), x)),
            (found.dscale, slopes(lambda v: float((c * kind.forward(x, v, bias)).sum()), scale)),
            (found.dbias, slopes(lambda v: float((c * kind.forward(x, scale, v)).sum()), bias)),
        ):
            # Above the two errors in `slopes` by the size that L''' and L have here, at most some hundred.
            np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-7)

    @kinds
    def test_absent_parameters_are_one_and_zero(self, kind: Kind) -> None:
        x, _, _, c = arguments(kind)
        ones = np.ones(kind.parameters)
        np.testing.assert_array_equal(kind.forward(x, None, None), kind.forward(x, ones, 0 * ones))
        found, expected = kind.backward(c, x, None), kind.backward(c, x, ones)
        np.testing.assert_array_equal(found.dx, expected.dx)
        # Sums over groups here may be sums over channels there, added up in another order.
        assert found.dscale.sum() == pytest.approx(expected.dscale.sum(), abs=1e-14)
        assert found.dbias.sum() == pytest.approx(expected.dbias.sum(), abs=1e-14)

    @kinds
    def test_mean_0_and_variance_1(self, kind: Kind) -> None:
        """Up to ε, and for those whose axes are axes of x."""
        if kind.axes is None:
            return
        y = kind.forward(double("x", *kind.shape) * 1e4 + 3e4, None, None)
        n = math.prod(kind.shape[i] for i in kind.axes)
        np.testing.assert_allclose(y.mean(axis=kind.axes), 0.0, atol=4 * n * UNIT)
        # ε is below 1e-8 of the variance
        np.testing.assert_allclose(y.var(axis=kind.axes), 1.0, atol=1e-7)

    @kinds
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_dtypes_at_the_edges(self, kind: Kind, dtype: Any) -> None:
        """Results are those of float64, rounded once."""
        x, scale, bias, c = (a.astype(dtype) for a in arguments(kind))
        wide_x, wide_scale, wide_bias, wide_c = (a.astype(np.float64) for a in (x, scale, bias, c))
        y, expected = kind.forward(x, scale, bias), kind.forward(wide_x, wide_scale, wide_bias)
        gradients, wide = kind.backward(c, x, scale), kind.backward(wide_c, wide_x, wide_scale)
        for got, value in (
            (y, expected),
            (gradients.dx, wide.dx),
            (gradients.dscale, wide.dscale),
            (gradients.dbias, wide.dbias),
        ):
            assert got.dtype == dtype
            np.testing.assert_array_equal(got.astype(np.float64), rounded(value, dtype))

    @kinds
    def test_only_floats_and_only_samples(self, kind: Kind) -> None:
        x, scale, bias, c = arguments(kind)
        with pytest.raises(InputError, match=r"^x is of type int64, and .* convert it"):
            kind.forward(x.astype(np.int64), scale, bias)
        with pytest.raises(InputError, match=r"^scale is of type complex128"):
            kind.forward(x, scale + 0j, bias)
        with pytest.raises(InputError, match=r"^x of shape .* holds no samples.* leave empty batches out$"):
            kind.forward(x[:0], scale, bias)
        with pytest.raises(InputError, match=r"^x of shape .* holds no samples"):
            kind.backward(c[:0], x[:0], scale)
        with pytest.raises(InputError, match=r"^dy has shape"):
            kind.backward(c[..., :-1], x, scale)
        with pytest.raises(InputError, match=r"^scale (and bias have|has) shape"):
            kind.forward(x, np.append(scale, scale), bias)
        with pytest.raises(InputError, match=r"^(bias has|scale and bias have) shape"):
            kind.forward(x, scale, np.append(bias, bias))


def rounded(value: Array, dtype: Any) -> Array:
    """float64 to the nearest number of a narrower type, by looking at both neighbours in float64."""
    near = value.astype(np.float32).astype(dtype) if dtype is ml_dtypes.bfloat16 else value.astype(dtype)
    best = near.astype(np.float64)
    for toward in (-np.inf, np.inf):
        neighbour = np.nextafter(near, np.asarray(toward, dtype)).astype(np.float64)
        best = np.where(np.abs(neighbour - value) < np.abs(best - value), neighbour, best)
    return best


class TestBatchNormalization:
    def test_the_worked_example(self) -> None:
        """Copied in many notes with variance 0.3125 and x̂ = ±0.707, which fit no definition."""
        x = np.array([[0.5], [2.0]])
        result = batch_normalization_training(x, None, None, epsilon=0.0)
        assert result.statistics.mean == 1.25
        assert result.statistics.population_var == 0.5625
        assert result.statistics.sample_var == 1.125
        np.testing.assert_array_equal(result.y, [[-1.0], [1.0]])

    def test_by_the_formula(self) -> None:
        x, scale, bias = double("x", 4, 3, 5), double("scale", 3), double("bias", 3)
        result = batch_normalization_training(x, scale, bias, epsilon=0.25)
        for c in range(3):
            values = x[:, c].ravel()
            mean = math.fsum(values) / 20
            var = math.fsum((values - mean) ** 2) / 20
            assert result.statistics.count == 20
            # sums of 20 terms
            assert result.statistics.mean[c] == pytest.approx(mean, rel=20 * UNIT, abs=20 * UNIT)
            assert result.statistics.population_var[c] == pytest.approx(var, rel=40 * UNIT)
            expected = scale[c] * (x[:, c] - mean) / math.sqrt(var + 0.25) + bias[c]
            np.testing.assert_allclose(result.y[:, c], expected, rtol=0, atol=1e-14)  # some 40 units

    def test_inference_by_the_formula(self) -> None:
        x, scale, bias = double("x", 4, 3, 5), double("scale", 3), double("bias", 3)
        mean, var = double("mean", 3), double("var", 3)
        y = batch_normalization(x, scale, bias, mean, var, epsilon=0.25)
        for c in range(3):
            expected = scale[c] * (x[:, c] - mean[c]) / math.sqrt(var[c] + 0.25) + bias[c]
            np.testing.assert_allclose(y[:, c], expected, rtol=0, atol=1e-14)  # a handful of roundings

    def test_training_is_inference_with_the_batch_statistics(self) -> None:
        x, scale, bias = double("x", 4, 3, 5), double("scale", 3), double("bias", 3)
        result = batch_normalization_training(x, scale, bias)
        batch = result.statistics
        y = batch_normalization(x, scale, bias, batch.mean, batch.population_var)
        np.testing.assert_allclose(result.y, y, rtol=0, atol=1e-14)  # a handful of roundings

    def test_one_value_per_channel_is_its_own_mean(self) -> None:
        x, bias = np.array([[3.0, -2.0]], np.float32), np.array([0.5, 7.0], np.float32)
        result = batch_normalization_training(x, None, bias)
        np.testing.assert_array_equal(result.y, [bias])
        np.testing.assert_array_equal(result.statistics.population_var, 0.0)
        gradients = batch_normalization_training_backward(np.ones_like(x), x, None)
        np.testing.assert_array_equal(gradients.dx, 0.0)
        with pytest.raises(InputError, match="sample variance of 1 value per channel does not exist"):
            _ = result.statistics.sample_var

    def test_two_values_leave_no_gradient(self) -> None:
        """For n = 2 and small ε the terms of dx cancel; rounding of the size of |scale|/s·max|dy| is left."""
        x = np.array([[0.1], [2.3]])
        dy = np.array([[5.0], [-1.0]])
        dx = batch_normalization_training_backward(dy, x, np.array([3.0]), epsilon=0.0).dx
        assert np.abs(dx).max() <= 8 * UNIT * 3.0 / 1.1 * 5.0

    @pytest.mark.parametrize("offset", [1e3, 1e6, 1e9])
    def test_a_large_mean_costs_no_digits(self, offset: float) -> None:
        x = np.round(double("x", 64, 2) * 2**10) / 2**10  # so that adding the offset is exact
        result, moved = (batch_normalization_training(v, None, None) for v in (x, x + offset))
        np.testing.assert_allclose(
            moved.statistics.population_var, result.statistics.population_var, rtol=64 * UNIT
        )
        np.testing.assert_allclose(moved.y, result.y, rtol=0, atol=64 * UNIT * 4)  # |y| is below 4

    @pytest.mark.parametrize("value", [0.1, -1e300, 5e-324, 1 / 3])
    def test_equal_values_have_variance_0(self, value: float) -> None:
        statistics = batch_statistics(np.full((7, 2, 3), value))
        np.testing.assert_array_equal(statistics.population_var, 0.0)
        np.testing.assert_array_equal(statistics.mean, value)

    def test_not_a_root(self) -> None:
        x = np.ones((3, 2))
        with pytest.raises(InputError, match=r"variance plus epsilon is 0 .* raise epsilon \(it is 0\)"):
            batch_normalization_training(x, None, None, epsilon=0.0)
        with pytest.raises(InputError, match=r"variance plus epsilon is -0\.5 at its smallest"):
            batch_normalization(x, None, None, np.zeros(2), np.array([1.0, -0.5]), epsilon=0.0)

    @pytest.mark.parametrize("name", ["mean", "var"])
    def test_statistics_of_other_channels(self, name: str) -> None:
        mean, var = (np.ones(3 if name == wrong else 2) for wrong in ("mean", "var"))
        with pytest.raises(InputError, match=rf"^{name} has shape \(3,\), and the data need \(2,\)"):
            batch_normalization(np.ones((1, 2)), None, None, mean, var)

    def test_axes(self) -> None:
        with pytest.raises(InputError, match=r"x has shape \(3,\), and at least 2 axes are needed"):
            batch_normalization_training(np.ones(3), None, None)
        with pytest.raises(InputError, match=r"x has shape \(3, 2\), so there is no axis 2"):
            batch_normalization_training(np.ones((3, 2)), None, None, axis=2)

    def test_mixed_dtypes(self) -> None:
        """As ONNX has it from opset 15 on: data in float16, parameters and statistics in float32."""
        x = double("x", 4, 3).astype(np.float16)
        scale, bias, mean, var = (drawn(name, 3) for name in ("scale", "bias", "mean", "var"))
        assert batch_normalization(x, scale, bias, mean, var).dtype == np.float16
        for found in (
            batch_normalization_backward(x, x, scale, mean, var),
            batch_normalization_training_backward(x, x, scale),
        ):
            assert found.dx.dtype == np.float16
            assert found.dscale.dtype == found.dbias.dtype == np.float32

    def test_results_are_rounded_once(self) -> None:
        """By way of float32, this number would become a tie between two of bfloat16, and go down."""
        x, up = np.ones((1, 1), ml_dtypes.bfloat16), np.array([2.0**-8 + 2.0**-40])
        assert batch_normalization(x, None, up, np.zeros(1), np.ones(1), epsilon=0.0) == 1.0 + 2.0**-7

    def test_over_the_range(self) -> None:
        x = np.array([[60000.0], [-60000.0]], np.float16)
        y = batch_normalization(x, np.full(1, 2.0), None, np.zeros(1), np.ones(1))
        np.testing.assert_array_equal(y, [[np.inf], [-np.inf]])

    def test_nan_goes_through(self) -> None:
        x = np.array([[1.0, np.nan], [2.0, 3.0]])
        y = batch_normalization_training(x, None, None).y
        np.testing.assert_array_equal(np.isnan(y), [[False, True], [False, True]])

    def test_parameters(self) -> None:
        """A layer over n units has 4n parameters, 2n of them trained."""
        found = bnfold.inspect(FIXTURE).batchnorms
        assert len(found) == 8
        for layer in found:
            assert layer.channels in (16, 32)
            assert (layer.parameters, layer.trained) == (4 * layer.channels, 2 * layer.channels)

    def test_dense_relu_norm_dense(self) -> None:
        """The order of many Keras networks: the ReLU is in the way to the left, so it goes to the right."""
        proto = model(
            """(float[N,5] x) => (float[N,3] y) {
                 h = Gemm(x, w1, b1)  r = Relu(h)
                 n = BatchNormalization(r, scale, bias, mean, var)
                 y = Gemm(n, w2, b2) }""",
            w1=(5, 4),
            b1=(4,),
            scale=(4,),
            bias=(4,),
            mean=(4,),
            var=(4,),
            w2=(4, 3),
            b2=(3,),
        )
        after, report = folded(proto)
        assert ops(after) == ["Gemm", "Relu", "Gemm"]
        (decision,) = report.decisions
        assert decision.outcome is bnfold.Outcome.PUSHED
        same(proto, after)
        c = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
        x = double("x", 6, 5)
        hidden = np.maximum(x @ c["w1"] + c["b1"], 0.0)
        epsilon = float(np.float32(1e-5))
        normal = batch_normalization(hidden, c["scale"], c["bias"], c["mean"], c["var"], epsilon=epsilon)
        (y,) = evaluate(after, {"x": x}).values()
        # the folded weights are float32
        np.testing.assert_allclose(y, normal @ c["w2"] + c["b2"], rtol=0, atol=1e-5)


class TestStatistics:
    @given(
        sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
        offset=st.sampled_from([0.0, 1e3, -1e5]),
        seed=st.integers(0, 99),
    )
    def test_of_a_data_set_however_it_is_cut(self, sizes: list[int], offset: float, seed: int) -> None:
        random = np.random.default_rng(seed)
        # the batches differ in their means, so that the variance between them matters
        batches = [random.standard_normal((n, 2, 3)) + random.normal() * 5 + offset for n in sizes]
        found, whole = dataset_statistics(batches), batch_statistics(np.concatenate(batches))
        assert found.count == whole.count == 3 * sum(sizes)
        # Each merge rounds the mean once; the variance suffers from that by δ·u·|mean|, and δ is below 40.
        np.testing.assert_allclose(found.mean, whole.mean, rtol=0, atol=16 * UNIT * (10 + abs(offset)))
        np.testing.assert_allclose(
            found.population_var, whole.population_var, rtol=1e-14, atol=40 * 16 * UNIT * (10 + abs(offset))
        )

    def test_classes_in_order(self) -> None:
        """The mean of the variances would be 1/12 here; most of the variance lies between the batches."""
        batches = [np.array([[k - 0.5], [k + 0.5]]) for k in (0.0, 10.0)]
        found = dataset_statistics(batches)
        assert found.mean == 5.0
        assert found.population_var == 25.25
        assert found.sample_var == pytest.approx(25.25 * 4 / 3, rel=UNIT * 2)

    def test_unequal_batches_count_by_their_samples(self) -> None:
        found = dataset_statistics([np.zeros((3, 1), np.float32), np.full((1, 1), 4.0, np.float16)])
        assert found.count == 4
        assert found.mean == 1.0
        assert found.population_var == 3.0

    def test_channels_last_and_sizes_of_all_kinds(self) -> None:
        batches = [double("a", 2, 5, 5, 3), double("b", 1, 7, 2, 3)]
        found = dataset_statistics(batches, axis=-1)
        rows = np.concatenate([b.reshape(-1, 3) for b in batches])
        np.testing.assert_allclose(found.population_var, rows.var(axis=0), rtol=1e-14)  # 64 terms

    def test_a_stream(self) -> None:
        assert dataset_statistics(np.ones((1, 2)) for _ in range(3)).count == 3

    def test_refusals(self) -> None:
        with pytest.raises(InputError, match="the data set holds no batch"):
            dataset_statistics([])
        with pytest.raises(InputError, match=r"one array of shape \(4, 2\).* put it into a list"):
            dataset_statistics(np.ones((4, 2)))
        with pytest.raises(InputError, match=r"shapes \(2,\) and \(3,\) are not of the same channels"):
            dataset_statistics([np.ones((1, 2)), np.ones((1, 3))])
        with pytest.raises(InputError, match="holds no samples"):
            dataset_statistics([np.ones((1, 2)), np.ones((0, 2))])


class TestPerSample:
    def test_layer_by_the_formula(self) -> None:
        x, scale, bias = double("x", 2, 3, 4), double("scale", 3, 4), double("bias", 3, 4)
        result = layer_normalization(x, scale, bias, axis=1, epsilon=0.5)
        assert result.statistics.count == 12
        for i in range(2):
            expected = scale * (x[i] - x[i].mean()) / math.sqrt(x[i].var() + 0.5) + bias
            np.testing.assert_allclose(result.y[i], expected, rtol=0, atol=1e-14)  # a handful of roundings
        np.testing.assert_allclose(result.statistics.mean, x.mean(axis=(1, 2)), rtol=1e-14)

    def test_instance_by_the_formula(self) -> None:
        x, scale, bias = double("x", 2, 3, 4), double("scale", 3), double("bias", 3)
        result = instance_normalization(x, scale, bias, epsilon=0.5)
        assert result.statistics.mean.shape == (2, 3)
        for i, c in np.ndindex(2, 3):
            v = x[i, c]
            expected = scale[c] * (v - v.mean()) / math.sqrt(v.var() + 0.5) + bias[c]
            np.testing.assert_allclose(result.y[i, c], expected, rtol=0, atol=1e-14)  # a handful of roundings

    @pytest.mark.parametrize("per_group", [False, True])
    def test_group_by_the_formula(self, per_group: bool) -> None:
        """One scale per group is what ONNX had in opset 18, one per channel what it has since opset 21."""
        x = double("x", 2, 6, 4)
        scale, bias = (double(name, 2 if per_group else 6) for name in ("scale", "bias"))
        result = group_normalization(x, 2, scale, bias, epsilon=0.5)
        assert result.statistics.mean.shape == (2, 2)
        assert result.statistics.count == 12
        for i, c in np.ndindex(2, 6):
            v = x[i, :3] if c < 3 else x[i, 3:]
            p = c // 3 if per_group else c
            expected = scale[p] * (x[i, c] - v.mean()) / math.sqrt(v.var() + 0.5) + bias[p]
            np.testing.assert_allclose(result.y[i, c], expected, rtol=0, atol=1e-14)  # a handful of roundings

    def test_relatives(self) -> None:
        x = double("x", 2, 6, 4)
        as_instance = instance_normalization(x, None, None).y
        np.testing.assert_allclose(group_normalization(x, 6, None, None).y, as_instance, atol=1e-14)
        as_layer = layer_normalization(x, None, None, axis=1).y
        np.testing.assert_allclose(group_normalization(x, 1, None, None).y, as_layer, atol=1e-14)
        as_batch = batch_normalization_training(x[:1], None, None).y
        np.testing.assert_allclose(as_instance[:1], as_batch, atol=1e-14)

    def test_refusals(self) -> None:
        x = np.ones((2, 6, 3))
        with pytest.raises(InputError, match="6 channels cannot be divided into 4 groups"):
            group_normalization(x, 4, None, None)
        with pytest.raises(InputError, match="into 0 groups"):
            group_normalization(x, 0, None, None)
        with pytest.raises(
            InputError, match=r"shape \(3,\): give one number per channel, \(6,\), or one per"
        ):
            group_normalization(x, 2, np.ones(3), None)
        with pytest.raises(InputError, match=r"^bias has shape \(6,\), and the data need \(2,\)"):
            group_normalization(x, 2, np.ones(2), np.ones(6))
        with pytest.raises(InputError, match=r"axis 0 .* is that of the samples"):
            group_normalization(x, 2, None, None, axis=0)
        with pytest.raises(InputError, match=r"axis -3 .* is that of the samples"):
            instance_normalization(x, None, None, axis=-3)


def renorm(clip: Clip, epsilon: float = 1e-3) -> tuple[Kind, RunningDeviation]:
    running = RunningDeviation(double("mean", 3) * 2, double("var", 3))
    kind = Kind(
        lambda x, s, b: batch_renormalization(x, s, b, running, clip=clip, epsilon=epsilon).y,
        lambda dy, x, s: batch_renormalization_backward(dy, x, s, running, clip=clip, epsilon=epsilon),
        (5, 3, 2),
        (3,),
    )
    return kind, running


class TestBatchRenormalization:
    CLIPS = (Clip(), Clip(3.0, 5.0), Clip(1.1, 0.2), Clip(r_max=1.5, d_max=0.3, r_min=0.9), Clip(1.0, 0.0))

    @pytest.mark.parametrize("clip", CLIPS)
    def test_as_keras_has_it(self, clip: Clip) -> None:
        """Keras: deviations with ε inside, the running one at least √ε; r and d clipped; x̂·r + d."""
        kind, running = renorm(clip)
        x, scale, bias, _ = arguments(kind)
        result = batch_renormalization(x, scale, bias, running, clip=clip, epsilon=1e-3)
        for c in range(3):
            values = x[:, c]
            stddev = math.sqrt(values.var() + 1e-3)
            renorm_stddev = max(float(running.std[c]), math.sqrt(1e-3))
            r = stddev / renorm_stddev
            d = (values.mean() - running.mean[c]) / renorm_stddev
            r = min(max(r, 1 / clip.r_max if clip.r_min is None else clip.r_min), clip.r_max)
            d = min(max(d, -clip.d_max), clip.d_max)
            assert result.r[c] == pytest.approx(r, rel=1e-14)  # a handful of roundings, here and below
            assert result.d[c] == pytest.approx(d, rel=1e-14)
            expected = ((values - values.mean()) / stddev * r + d) * scale[c] + bias[c]
            np.testing.assert_allclose(result.y[:, c], expected, rtol=0, atol=4e-14)

    def test_the_clips_bite(self) -> None:
        """Else the test above would say little."""
        kind, running = renorm(Clip())
        free = batch_renormalization(arguments(kind)[0], None, None, running, clip=Clip(), epsilon=1e-3)
        assert free.r.max() > 1.5 > 0.9 > free.r.min()
        assert free.d.max() > 0.3 > -0.3 > free.d.min()

    def test_keras_running_averages(self) -> None:
        """Of the deviation, ε included; the variance for inference is its square less ε, at least 0."""
        running = RunningDeviation(np.array([0.5]), np.array([1.5]), 4)
        x = np.array([[1.0], [2.0], [6.0]])
        batch = batch_statistics(x)
        after = running.updated(batch, KERAS, epsilon=1e-3)
        stddev = math.sqrt(14 / 3 + 1e-3)
        assert after.mean == pytest.approx(0.99 * 0.5 + 0.01 * 3.0, rel=1e-15)
        assert after.std == pytest.approx(0.99 * 1.5 + 0.01 * stddev, rel=1e-15)
        assert after.var(1e-3) == pytest.approx((0.99 * 1.5 + 0.01 * stddev) ** 2 - 1e-3, rel=1e-15)
        assert after.batches == 5
        same_pace = running.updated(batch, PYTORCH, epsilon=1e-3)
        assert same_pace.std == pytest.approx(0.9 * 1.5 + 0.1 * stddev, rel=1e-15)
        assert RunningDeviation(np.zeros(1), np.full(1, 0.01)).var(1e-3) == 0.0

    def test_no_deviation_is_below_the_root_of_epsilon(self) -> None:
        """ε is part of it. Without that floor, running statistics that start at 0 would divide by 0."""
        running = RunningDeviation(np.zeros(1), np.zeros(1))
        found = batch_renormalization(np.ones((2, 1)), None, None, running, clip=Clip(), epsilon=0.25)
        assert found.r == 1.0
        assert found.d == 2.0

    def test_unclipped_it_is_inference(self) -> None:
        kind, running = renorm(Clip())
        x, scale, bias, _ = arguments(kind)
        y = batch_normalization(x, scale, bias, running.mean, running.var(1e-3), epsilon=1e-3)
        np.testing.assert_allclose(kind.forward(x, scale, bias), y, rtol=0, atol=4e-14)  # roundings

    def test_at_first_it_is_batch_normalization(self) -> None:
        clip = Schedule().at(0)
        kind, _ = renorm(clip)
        x, scale, bias, c = arguments(kind)
        expected = batch_normalization_training(x, scale, bias, epsilon=1e-3)
        np.testing.assert_array_equal(kind.forward(x, scale, bias), expected.y)
        found = kind.backward(c, x, scale)
        wanted = batch_normalization_training_backward(c, x, scale, epsilon=1e-3)
        np.testing.assert_array_equal(found.dx, wanted.dx)
        np.testing.assert_array_equal(found.dscale, wanted.dscale)

    @pytest.mark.parametrize("clip", CLIPS)
    def test_gradients_are_slopes_with_r_and_d_held(self, clip: Clip) -> None:
        kind, running = renorm(clip)
        x, scale, bias, c = arguments(kind)
        held = batch_renormalization(x, scale, bias, running, clip=clip, epsilon=1e-3)
        r, d = held.r[:, None], held.d[:, None]

        def loss(v: Array) -> float:
            hat = batch_normalization_training(v, None, None, epsilon=1e-3).y
            return float((c * (scale[:, None] * (hat * r + d) + bias[:, None])).sum())

        found = kind.backward(c, x, scale)
        np.testing.assert_allclose(found.dx, slopes(loss, x), rtol=0, atol=1e-7)  # see TestEveryKind
        by_scale = slopes(lambda v: float((c * kind.forward(x, v, bias)).sum()), scale)
        np.testing.assert_allclose(found.dscale, by_scale, rtol=0, atol=1e-7)
        by_bias = slopes(lambda v: float((c * kind.forward(x, scale, v)).sum()), bias)
        np.testing.assert_allclose(found.dbias, by_bias, rtol=0, atol=1e-7)

    def test_the_schedule_of_the_paper(self) -> None:
        schedule = Schedule()
        assert schedule.at(0) == schedule.at(5_000) == Clip(1.0, 0.0)
        for step, r_max, d_max in ((15_000, 1 + 2 * 10 / 35, 2.5), (25_000, 1 + 2 * 20 / 35, 5.0)):
            assert schedule.at(step).r_max == pytest.approx(r_max, rel=1e-15)
            assert schedule.at(step).d_max == d_max
        assert schedule.at(40_000) == schedule.at(10**9) == Clip(3.0, 5.0)

    def test_a_schedule_that_ends_before_it_starts(self) -> None:
        with pytest.raises(InputError, match=r"from step 30000 to 40000 .* choose ends"):
            Schedule(start=30_000)
        assert Schedule(start=25_000).at(25_001).d_max == 5.0

    @pytest.mark.parametrize(
        "bounds", [{"r_max": 0.5}, {"d_max": -1.0}, {"r_min": 1.5}, {"r_min": -1.0}, {"r_max": math.nan}]
    )
    def test_bounds_that_leave_no_room(self, bounds: dict[str, float]) -> None:
        with pytest.raises(InputError, match="leave no room for r = 1 and d = 0"):
            Clip(**bounds)

    def test_first_statistics(self) -> None:
        first = RunningDeviation.initial(2)
        assert first.std.dtype == np.float32
        np.testing.assert_array_equal(first.mean, 0.0)
        np.testing.assert_array_equal(first.std, 1.0)


class TestStandardization:
    def test_per_feature(self) -> None:
        batches = [double("a", 5, 3) * 4 + 100, double("b", 2, 3)]
        whole = np.concatenate(batches)
        fitted = Standardization.fit(batches)
        z = fitted.apply(whole)
        np.testing.assert_allclose(z.mean(axis=0), 0.0, atol=1e-14)  # rounding of numbers near 1
        np.testing.assert_allclose(z.std(axis=0), 1.0, atol=1e-14)
        np.testing.assert_allclose(fitted.undo(z), whole, rtol=0, atol=1e-13)  # of numbers near 100

    def test_per_channel_last(self) -> None:
        x = double("x", 2, 4, 4, 3)
        fitted = Standardization.fit([x], axis=-1)
        assert fitted.mean.shape == (3,)
        np.testing.assert_allclose(fitted.apply(x), (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)), atol=1e-14)

    def test_other_data_get_the_same_map(self) -> None:
        fitted = Standardization.fit([np.array([[0.0], [2.0]])])
        np.testing.assert_array_equal(fitted.apply(np.array([[5.0]])), [[4.0]])

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_constant_features(self, dtype: Any) -> None:
        batches = [np.array([[0.1, 1.0], [0.1, 3.0]], dtype), np.array([[0.1, 4.0]], dtype)]
        fitted = Standardization.fit(batches)
        assert fitted.std[0] == 1.0
        z = fitted.apply(batches[0])
        assert z.dtype == dtype
        np.testing.assert_array_equal(z[:, 0].astype(np.float64), 0.0)
        back = fitted.undo(z)
        assert back.dtype == dtype
        np.testing.assert_array_equal(back[:, 0], batches[0][:, 0])

    def test_refusals(self) -> None:
        fitted = Standardization.fit([np.ones((2, 3))])
        for use in (fitted.apply, fitted.undo):
            with pytest.raises(InputError, match=r"mean has shape \(3,\), and the data need \(4,\)"):
                use(np.ones((2, 4)))
            with pytest.raises(InputError, match="x is of type int64"):
                use(np.ones((2, 3), np.int64))
        with pytest.raises(InputError, match="at least 2 axes"):
            fitted.apply(np.ones(3))


def test_statistics_are_values() -> None:
    """Frozen, like everything that crosses a module."""
    with pytest.raises(AttributeError):
        Statistics(1, np.zeros(1), np.zeros(1)).count = 2  # type: ignore[misc]
