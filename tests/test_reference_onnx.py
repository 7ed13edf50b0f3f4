"""The reference against every case of a normalization that the onnx package ships."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import pytest
from graphs import Array
from onnx import helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from bnfold.reference import (
    ONNX,
    Convention,
    Normalized,
    Running,
    batch_normalization,
    batch_normalization_training,
    group_normalization,
    instance_normalization,
    layer_normalization,
)

# Converted long ago from PyTorch, opset 6.
CONVERTED = Path(onnx.backend.test.__file__).parent / "data" / "pytorch-converted"

BATCH = [
    "test_batchnorm_epsilon",
    "test_batchnorm_epsilon_training_mode",
    "test_batchnorm_example",
    "test_batchnorm_example_training_mode",
]
OLD = [
    "test_BatchNorm1d_3d_input_eval",
    "test_BatchNorm2d_eval",
    "test_BatchNorm2d_momentum_eval",
    "test_BatchNorm3d_eval",
    "test_BatchNorm3d_momentum_eval",
]
LAYERS = [
    f"test_layer_normalization_{rank}d_axis{sign}{axis if not sign else rank - axis}{epsilon}"
    for rank, epsilon in ((2, ""), (3, "_epsilon"), (4, ""))
    for axis in range(rank)
    for sign in ("", "_negative_")
]
LAYERS.append("test_layer_normalization_default_axis")
INSTANCES = ["test_instancenorm_epsilon", "test_instancenorm_example"]
GROUPS = ["test_group_normalization_epsilon", "test_group_normalization_example"]


@cache
def cases() -> Sequence[Any]:
    with warnings.catch_warnings():
        # the package computes the cases of all operators, and some overflow on purpose
        warnings.simplefilter("ignore")
        collected: Sequence[Any] = collect_testcases(None)
    return collected


def shipped(op_type: str) -> dict[str, Any]:
    """The cases of an operator, by name; those that are expanded into other operators do not contain it."""
    return {c.name: c for c in cases() if op_type in {node.op_type for node in c.model.graph.node}}


def read(op_type: str, name: str) -> tuple[dict[str, Any], Sequence[Array], Sequence[Array]]:
    """Attributes, inputs and outputs of a case."""
    case = shipped(op_type)[name]
    (node,) = case.model.graph.node
    ((inputs, outputs),) = case.data_sets
    return attributes(node), inputs, outputs


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def close(actual: Array, expected: Array) -> None:
    """The results are float32, and most were computed in it: a dozen roundings of numbers below 8."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=8e-6)


def check_statistics(result: Normalized, outputs: Sequence[Array], epsilon: float) -> None:
    """Mean and inverse deviation, which LayerNormalization returns."""
    mean, inverse = outputs
    close(result.statistics.mean, mean.reshape(result.statistics.mean.shape))
    expected = 1 / np.sqrt(result.statistics.population_var + epsilon)
    np.testing.assert_allclose(inverse.reshape(expected.shape), expected, rtol=1e-5)  # float32


def test_none_is_lost() -> None:
    """Should a release of onnx bring more cases, this tells."""
    assert sorted(shipped("BatchNormalization")) == BATCH
    assert sorted(shipped("LayerNormalization")) == sorted(LAYERS)
    assert sorted(shipped("InstanceNormalization")) == INSTANCES
    assert sorted(shipped("GroupNormalization")) == GROUPS
    assert [len(names) for names in (BATCH, LAYERS, INSTANCES, GROUPS)] == [4, 19, 2, 2]
    assert sorted(path.name for path in CONVERTED.glob("test_BatchNorm*")) == OLD


@pytest.mark.parametrize("name", BATCH)
def test_batch_normalization(name: str) -> None:
    given, (x, scale, bias, mean, var), outputs = read("BatchNormalization", name)
    epsilon = given.get("epsilon", ONNX.epsilon)
    if not given.get("training_mode"):
        (expected,) = outputs
        y = batch_normalization(x, scale, bias, mean, var, epsilon=epsilon)
        assert y.dtype == expected.dtype
        close(y, expected)
        return
    convention = Convention("the node", given.get("momentum", ONNX.momentum), "old", epsilon, "population")
    expected, expected_mean, expected_var = outputs
    result = batch_normalization_training(x, scale, bias, epsilon=epsilon)
    after = convention.update(Running(mean, var), result.statistics)
    assert result.y.dtype == after.mean.dtype == after.var.dtype == np.float32
    close(result.y, expected)
    close(after.mean, expected_mean)
    close(after.var, expected_var)


@pytest.mark.parametrize("name", OLD)
def test_batch_normalization_of_opset_6(name: str) -> None:
    model = onnx.load(CONVERTED / name / "model.onnx")
    (node,) = model.graph.node
    given = attributes(node)
    assert given["is_test"] == 1
    known = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for i, value in enumerate(v for v in model.graph.input if v.name not in known):
        known[value.name] = tensor(CONVERTED / name / "test_data_set_0" / f"input_{i}.pb")
    x, scale, bias, mean, var = (known[name] for name in node.input)
    y = batch_normalization(x, scale, bias, mean, var, epsilon=given["epsilon"])
    expected = tensor(CONVERTED / name / "test_data_set_0" / "output_0.pb")
    close(y, expected)


def tensor(path: Path) -> Array:
    return numpy_helper.to_array(onnx.load_tensor(path))


@pytest.mark.parametrize("name", LAYERS)
def test_layer_normalization(name: str) -> None:
    given, (x, scale, bias), (expected, *statistics) = read("LayerNormalization", name)
    epsilon = given.get("epsilon", 1e-5)
    result = layer_normalization(x, scale, bias, axis=given.get("axis", -1), epsilon=epsilon)
    close(result.y, expected)
    check_statistics(result, statistics, epsilon)


@pytest.mark.parametrize("name", INSTANCES)
def test_instance_normalization(name: str) -> None:
    given, (x, scale, bias), (expected,) = read("InstanceNormalization", name)
    result = instance_normalization(x, scale, bias, epsilon=given.get("epsilon", 1e-5))
    close(result.y, expected)


@pytest.mark.parametrize("name", GROUPS)
def test_group_normalization(name: str) -> None:
    """Of opset 21. Those of opset 18, with a scale per group, are no longer shipped: see test_reference."""
    given, (x, scale, bias), (expected,) = read("GroupNormalization", name)
    epsilon = given.get("epsilon", 1e-5)
    result = group_normalization(x, given["num_groups"], scale, bias, epsilon=epsilon)
    close(result.y, expected)
