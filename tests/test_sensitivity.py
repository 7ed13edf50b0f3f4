"""The sensitivity table: its nets and faults are what they say, and a quick one meets the bars."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from graphs import numbers

from bnfold.evaluate import evaluate

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import faults
import sensitivity
from sensitivity import OURS, Outcome, Results, Trial
from sensitivity_nets import NETS

FAULTS = {fault.name: fault for fault in faults.FAULTS}
SEED = 3
each_net = pytest.mark.parametrize("name", NETS)


@cache
def folded(name: str) -> faults.Folded:
    return faults.fold(NETS[name](SEED))


def planted(name: str, fault: str, layer: str | None) -> onnx.ModelProto:
    result = faults.plant(folded(name), FAULTS[fault], layer, SEED)
    assert result is not None
    return result


def producer(model: onnx.ModelProto, value: str) -> onnx.NodeProto:
    nodes: list[onnx.NodeProto] = [node for node in model.graph.node if value in node.output]
    return nodes[0]


def changed(before: onnx.ModelProto, after: onnx.ModelProto) -> dict[str, npt.NDArray[np.bool_]]:
    """Which elements of which initializers are not the same."""
    old, new = numbers(before), numbers(after)
    assert list(old) == list(new)
    return {name: old[name] != new[name] for name in old if not np.array_equal(old[name], new[name])}


def feeds(model: onnx.ModelProto, batch: int = 4) -> dict[str, npt.NDArray[np.float64]]:
    shape = [d.dim_value or 12 for d in model.graph.input[0].type.tensor_type.shape.dim]
    return {"x": np.random.default_rng(SEED).standard_normal([batch, *shape[1:]])}


# The nets


@each_net
def test_the_statistics_of_a_net_are_those_of_its_data(name: str) -> None:
    model = folded(name).original
    stored = numbers(model)
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    values = evaluate(model, feeds(model, batch=64), outputs=[norm.output[0] for norm in norms])
    shifts, ratios = [], []
    for norm in norms:
        scale, bias = (np.abs(stored[i].astype(float)) for i in norm.input[1:3])
        data = values[norm.output[0]]
        axes = tuple(i for i in range(data.ndim) if i != 1)
        alive = (scale > 0) & (stored[norm.input[4]].astype(float) > 1e-3)
        shifts.append(((np.abs(data.mean(axis=axes)) - bias) / np.maximum(scale, 1e-9))[alive])
        ratios.append((data.std(axis=axes) / np.maximum(scale, 1e-9))[alive])
    # Measured on 16 other samples, whose channels are far from independent.
    assert np.median(np.abs(np.concatenate(shifts))) < 0.25
    assert 0.8 < np.median(np.concatenate(ratios)) < 1.25


@each_net
def test_every_net_folds_and_has_layers_for_faults(name: str) -> None:
    assert len(folded(name).layers) >= 3
    assert all(node.op_type != "BatchNormalization" for node in folded(name).result.graph.node)


def test_dead_channels_are_dead() -> None:
    model = folded("dead_channels").original
    stored = numbers(model)
    norm = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    scale, _, _, var = (stored[name] for name in norm.input[1:])
    assert scale[2] == 0 and var[1] == 0 and 0 < var[3] < 1e-9


@pytest.mark.parametrize(("name", "least"), [("large_means", 300), ("large_means_mixed", 15)])
def test_large_means_are_large(name: str, least: float) -> None:
    model = folded(name).original
    stored = numbers(model)
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    drift = [np.abs(stored[n.input[3]]) / np.sqrt(stored[n.input[4]]) for n in norms]
    assert max(d.max() for d in drift) > least


# The faults


@each_net
def test_statistics_in_float64_change_no_bit(name: str) -> None:
    assert faults.plant(folded(name), faults.NOTHING, None, SEED) == folded(name).result


@each_net
def test_a_fold_in_float32_is_below_what_counts(name: str) -> None:
    result = faults.plant(folded(name), faults.SINGLE_PRECISION, None, SEED)
    assert result is not None and 0 <= faults.size(folded(name), result) < sensitivity.UNITS


def test_a_planted_fault_changes_the_values_of_its_layer_and_none_before() -> None:
    net = folded("residual")
    layer = net.layers[8]
    before = net.layers[:8]
    for name in FAULTS:
        result = faults.plant(net, FAULTS[name], layer, SEED)
        if result is None:
            assert name == "bias before BN forgotten"
            continue
        wanted = [layer, *before]
        expected = evaluate(net.result, feeds(net.result), outputs=wanted)
        actual = evaluate(result, feeds(net.result), outputs=wanted)
        assert [value for value in wanted if not np.array_equal(actual[value], expected[value])] == [layer], (
            name
        )


def test_a_fault_changes_the_constants_of_its_layer_alone() -> None:
    net = folded("unet")
    for layer in net.layers:
        constants = set(producer(net.result, layer).input[1:])
        for name, fault in FAULTS.items():
            result = faults.plant(net, fault, layer, SEED)
            if result is not None:
                assert changed(net.result, result).keys() <= constants, (name, layer)


@pytest.mark.parametrize(("fault", "epsilon"), [("epsilon dropped", 0.0), ("epsilon 1e-3", 1e-3)])
def test_another_epsilon_gives_the_constants_of_that_epsilon(fault: str, epsilon: float) -> None:
    net = folded("residual")
    layer = net.layers[4]
    norm = producer(net.original, layer)
    conv = producer(net.original, norm.input[0])
    stored = numbers(net.original)
    scale, bias, mean, var = (stored[name].astype(np.float64) for name in norm.input[1:])
    slope = scale / np.sqrt(var + float(np.float32(epsilon)))
    result = numbers(planted("residual", fault, layer))
    _, weight, shift = producer(net.result, layer).input
    np.testing.assert_array_equal(
        result[weight], (stored[conv.input[1]] * slope[:, None, None, None]).astype(np.float32)
    )
    np.testing.assert_array_equal(result[shift], (bias - slope * mean).astype(np.float32))


@pytest.mark.parametrize(
    ("fault", "channels", "bias_too"),
    [
        ("one channel x 1.001", 1, False),
        ("one channel x 1.00001", 1, False),
        ("one channel's sign flipped", 1, False),
        ("two channels swapped", 2, True),
    ],
)
def test_faults_of_channels_have_that_many(fault: str, channels: int, bias_too: bool) -> None:
    net = folded("residual")
    layer = net.layers[4]
    _, weight, bias = producer(net.result, layer).input
    differs = changed(net.result, planted("residual", fault, layer))
    assert differs[weight].any(axis=(1, 2, 3)).sum() == channels
    assert (bias in differs) == bias_too
    if bias_too:
        np.testing.assert_array_equal(differs[bias], differs[weight].any(axis=(1, 2, 3)))


@pytest.mark.parametrize("fault", ["one bias (BN) lost", "one folded bias lost"])
def test_a_lost_bias_is_one_number(fault: str) -> None:
    net = folded("residual")
    _, _, bias = producer(net.result, net.layers[4]).input
    result = planted("residual", fault, net.layers[4])
    differs = changed(net.result, result)
    assert list(differs) == [bias] and differs[bias].sum() == 1
    if fault == "one folded bias lost":
        assert numbers(result)[bias][differs[bias]] == 0


@pytest.mark.parametrize(("fault", "channels"), [("one channel x 1.001", 1), ("two channels swapped", 2)])
@pytest.mark.parametrize("net", ["unet", "grouped", "depthwise", "mlp"])
def test_channels_are_those_of_the_output_whatever_the_operator(net: str, fault: str, channels: int) -> None:
    for name in folded(net).layers:
        result = planted(net, fault, name)
        expected, actual = (evaluate(m, feeds(m), outputs=[name])[name] for m in (folded(net).result, result))
        differs = np.moveaxis(expected != actual, 1, 0).reshape(expected.shape[1], -1).any(axis=1)
        assert differs.sum() == channels, name


def test_a_shifted_padding_is_all_that_changes() -> None:
    net = folded("residual")
    result = planted("residual", "padding off by one", net.layers[4])
    assert changed(net.result, result) == {}
    pads = next(a for a in producer(result, net.layers[4]).attribute if a.name == "pads")
    assert list(pads.ints) == [0, 0, 2, 2]
    assert faults.size(net, result) == np.inf


def test_the_size_of_a_fault_is_in_units_of_what_is_stored() -> None:
    for name, unit in (("residual", 2.0**-24), ("residual_float16", 2.0**-11)):
        layer = folded(name).layers[4]
        result = planted(name, "one channel x 1.001", layer)
        # The constants before and after are rounded, each by up to a unit.
        assert abs(faults.size(folded(name), result) - 0.001 / unit) <= 2


# The table


def test_a_quick_table_meets_the_bars(capsys: pytest.CaptureFixture[str]) -> None:
    number, seed = sensitivity.QUICK_CORRECT_FOLDS, 0
    faulty = sensitivity.planted(sensitivity.QUICK_NETS, sensitivity.QUICK_FAULTS, seed)
    correct = sensitivity.correct(sensitivity.QUICK_NETS, number, seed)
    results = Results(sensitivity.run(list(faulty), jobs=1), sensitivity.run(list(correct), jobs=1), [])
    assert results.passed, sensitivity.show(results)
    assert len(results.counted) >= 40 and len(results.correct) == number
    caught = {name: sum(name in o.rejected for o in results.counted) for name in sensitivity.JUDGES}
    assert all(caught[OURS] > caught[rule.name] for rule in sensitivity.RULES), caught
    assert sensitivity.show(results).splitlines()[-1] == sensitivity.bars(results)


def _results(*, missed: int = 0, misnamed: int = 0, alarms: int = 0) -> Results:
    def outcomes(number: int, rejected: bool, culprit: str = "") -> Iterator[Outcome]:
        judges = frozenset({OURS} if rejected else ())
        for i in range(number):
            yield Outcome(Trial("mlp", i, "a fault", 0), rejected=judges, layer="layer", culprit=culprit)

    caught = [*outcomes(100 - missed - misnamed, True, "layer"), *outcomes(misnamed, True, "other")]
    correct = [*outcomes(10 - alarms, False), *outcomes(alarms, True)]
    return Results([*caught, *outcomes(missed, False)], correct, [])


def test_the_bars() -> None:
    assert _results(missed=3).passed
    assert sensitivity.bars(_results(missed=3)) == (
        "caught 97 of 100 (97.0 %), named 97 of 97, false alarms 0 of 10"
    )
    assert not _results(missed=4).passed
    assert not _results(misnamed=1).passed
    assert not _results(alarms=1).passed
    assert not Results([], [], []).passed
