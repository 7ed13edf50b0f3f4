"""The trained fixture is what its README says, and folds without a trace in its answers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

import bnfold

FOLDER = Path(__file__).parents[1] / "fixtures"
MODELS = [FOLDER / "digits.onnx", FOLDER / "digits_dynamo.onnx"]
each_model = pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)


def stated(pattern: str) -> tuple[int, ...]:
    """The numbers that the one sentence of README.md states which matches `pattern`."""
    text = " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
    (found,) = re.finditer(pattern, text)
    return tuple(int(number) for number in found.groups())


@pytest.fixture(scope="module")
def data() -> dict[str, npt.NDArray[np.uint8]]:
    with np.load(FOLDER / "digits.npz") as archive:
        return dict(archive)


def predict(path: Path, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    options = ort.SessionOptions()
    # by default the runtime would fold the BatchNormalizations itself
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images[:, None].astype(np.float32) / 16})
    predictions: npt.NDArray[np.int64] = logits.argmax(axis=1)
    return predictions


def batchnorms(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "BatchNormalization"]


@each_model
def test_accuracy_is_as_stated(path: Path, data: dict[str, npt.NDArray[np.uint8]]) -> None:
    correct = int((predict(path, data["test_images"]) == data["test_labels"]).sum())
    assert (correct, len(data["test_labels"])) == stated(r"classifies (\d+) of (\d+) test images")
    assert correct >= 0.97 * len(data["test_labels"])  # a network worth keeping


def test_images_are_as_stated(data: dict[str, npt.NDArray[np.uint8]]) -> None:
    assert (len(data["test_images"]), len(data["calibration_images"])) == stated(
        r"(\d+) images to test with and (\d+) to calibrate with"
    )
    for purpose in ("test", "calibration"):
        assert data[f"{purpose}_images"].dtype == np.uint8
        assert data[f"{purpose}_images"].shape == (len(data[f"{purpose}_labels"]), 8, 8)
        assert data[f"{purpose}_images"].max() == 16
    test, calibration = ({i.tobytes() for i in data[f"{p}_images"]} for p in ("test", "calibration"))
    assert not test & calibration


@each_model
def test_batchnorms_hold_learned_statistics(path: Path) -> None:
    model = onnx.load(path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = batchnorms(model)
    assert (len(nodes),) == stated(r"Both hold (\d+) BatchNormalization nodes")
    for node in nodes:
        mean, var = (constants[name] for name in node.input[3:])
        assert np.all(mean != 0) and np.all(var != 1) and np.all(var > 0), node.name


@each_model
def test_batch_size_is_symbolic(path: Path) -> None:
    graph = onnx.load(path).graph
    shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input]
    assert shapes == [["N", 1, 8, 8]]


@each_model
def test_no_origin_is_recorded(path: Path) -> None:
    model = onnx.load(path)
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.input, *graph.value_info, *graph.initializer):
        assert not holder.doc_string and not holder.metadata_props


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 300_000


@each_model
def test_folding_changes_no_prediction(
    path: Path, tmp_path: Path, data: dict[str, npt.NDArray[np.uint8]]
) -> None:
    target = tmp_path / "folded.onnx"
    report = bnfold.optimize(path, target)
    assert report.fold.before.batchnorms == len(batchnorms(onnx.load(path))) > 0
    assert report.fold.after.batchnorms == len(batchnorms(onnx.load(target))) == 0
    images = data["test_images"]
    np.testing.assert_array_equal(predict(target, images), predict(path, images))
