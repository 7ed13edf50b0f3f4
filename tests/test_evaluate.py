"""The float64 evaluator, against ONNX's own test data, onnxruntime, and numbers worked out by hand."""

from __future__ import annotations

import ast
import warnings
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx.backend.test
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from onnx.backend.test.case.test_case import TestCase

from bnfold.evaluate import EvaluationError, evaluate
from bnfold.evaluate.operators import OPERATORS

Array = npt.NDArray[Any]

# The longest sums in these tests have some 250 terms. A sum of K products in a type of unit roundoff u is
# off by at most K·u times the sum of their magnitudes, which stays within a few times the largest result.
TERMS = 256


def parse(opset: int, inputs: str, body: str, outputs: str = "float[] y") -> onnx.ModelProto:
    """A model from the text of its graph; it need not pass the checker."""
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    )


def run(opset: int, body: str, **feeds: Any) -> Array:
    """The value of y."""
    return evaluate(parse(opset, ", ".join(f"float[] {name}" for name in feeds), body), feeds)["y"]


def assert_rounding_apart(ours: Array, theirs: Array, where: str) -> None:
    """Equal but for the rounding of the type in which `theirs` was computed."""
    assert ours.shape == theirs.shape, where
    if ours.dtype != np.float64:
        assert ours.dtype == theirs.dtype, where
        assert np.array_equal(ours, theirs), where
        return
    one = np.ones((), theirs.dtype)
    unit = float(np.nextafter(one, one + one)) - 1
    theirs = theirs.astype(np.float64)
    finite = np.abs(theirs[np.isfinite(theirs)])
    bound = TERMS * unit * max(1.0, float(finite.max(initial=0)))
    np.testing.assert_allclose(ours, theirs, rtol=unit, atol=bound, err_msg=where)


# --- ONNX's node test cases ---------------------------------------------------------------------------

OTHERWISE = {
    "averagepool_2d_ceil_last_window_starts_on_pad": "the data are written with four digits",
    "resize_downsample_scales_linear_align_corners": "the data divide by a length that is not yet rounded",
    "resize_downsample_scales_cubic_align_corners": "the data divide by a length that is not yet rounded",
    "roialign_aligned_true": "the data are written with four digits",
    "roialign_aligned_false": "the data are written with four digits",
    "roialign_mode_max": "not available here",
    "training_dropout": "random",
    "identity_sequence": "sequences are not tensors",
    "identity_opt": "optionals are not tensors",
    "if_seq": "sequences are not tensors",
    "if_opt": "optionals are not tensors",
    "loop13_seq": "sequences are not tensors",
    "loop16_seq_none": "sequences are not tensors",
    "equal_string": "strings are not numbers",
    "equal_string_broadcast": "strings are not numbers",
}
NARROW = ("FLOAT8", "FLOAT4", "e4m3fn", "e5m2", "int4", "int2", "float4e2m1")


def is_otherwise(name: str) -> bool:
    """Whether the evaluator means something else on purpose: no rounding, nothing random, tensors only."""
    name = name.removeprefix("test_")
    if name.startswith("training_dropout"):
        return "zero_ratio" not in name
    if name.startswith(("cast_", "castlike_")):  # the target does not round what it carries
        return any(kind in name.partition("_to_")[2] for kind in NARROW)
    return name in OTHERWISE or (name.startswith("quantizelinear") and any(k in name for k in NARROW))


@cache
def node_cases() -> dict[str, list[tuple[TestCase, onnx.ModelProto]]]:
    """The cases that consist of our operators alone, with their models, by each of the operators."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # making the data overflows here and there
        from onnx.backend.test.case.node import collect_testcases

        collected = collect_testcases(None)
    cases = defaultdict(list)
    for case in collected:
        assert case.model is not None
        op_types = {(node.domain, node.op_type) for node in case.model.graph.node}
        if op_types <= {("", op_type) for op_type in OPERATORS} and not is_otherwise(case.name):
            for _, op_type in op_types:
                cases[op_type].append((case, case.model))
    return cases


def as_array(value: Any) -> Array:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


WITHOUT_CASES = {"GlobalLpPool", "RoiAlign"}


@pytest.mark.parametrize("op_type", sorted(OPERATORS))
def test_onnx_node_cases(op_type: str) -> None:
    cases = node_cases()[op_type]
    assert cases or op_type in WITHOUT_CASES
    for case, model in cases:
        assert case.data_sets
        names = [value.name for value in model.graph.input]
        for inputs, expected in case.data_sets:
            results = evaluate(model, dict(zip(names, map(as_array, inputs), strict=True)))
            for (name, ours), theirs in zip(results.items(), expected, strict=True):
                assert_rounding_apart(ours, as_array(theirs), f"{case.name}: {name}")


# --- ONNX's stored models, most of opset 6 ------------------------------------------------------------

DATA = Path(onnx.backend.test.__file__).parent / "data"
FOLDERS = sorted(path.parent for path in DATA.glob("pytorch-*/*/model.onnx"))


def stored(folder: Path, kind: str) -> list[Array]:
    paths = sorted(folder.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
    return [numpy_helper.to_array(onnx.load_tensor(path)) for path in paths]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_onnx_stored_models(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    names = [value.name for value in model.graph.input]
    sets = sorted(folder.glob("test_data_set_*"))
    assert sets
    for data in sets:
        results = evaluate(model, dict(zip(names, stored(data, "input"), strict=False)))
        for (name, ours), theirs in zip(results.items(), stored(data, "output"), strict=True):
            assert_rounding_apart(ours, theirs, name)


# --- onnxruntime --------------------------------------------------------------------------------------

RUNTIME_CASES = [
    # opset, inputs, body
    (11, "float[2,6,9] x, float[4,3,3] w, float[4] b", "y = Conv<group=2, pads=[2,1], strides=[2]>(x, w, b)"),
    (
        11,
        "float[2,4,7,8] x, float[6,4,3,2] w",
        "y = Conv<dilations=[2,3], strides=[1,2], pads=[1,0,2,3]>(x, w)",
    ),
    (
        11,
        "float[1,4,7,8] x, float[4,1,3,2] w",
        'y = Conv<group=4, auto_pad="SAME_UPPER", strides=[2,3]>(x, w)',
    ),
    (
        11,
        "float[1,4,7,8] x, float[4,2,4,2] w",
        'y = Conv<group=2, auto_pad="SAME_LOWER", strides=[2,1]>(x, w)',
    ),
    (11, "float[1,4,7,8] x, float[4,4,4,2] w", 'y = Conv<auto_pad="VALID", strides=[2,3]>(x, w)'),
    (
        22,
        "float[1,2,5,6,7] x, float[4,1,3,2,3] w, float[4] b",
        "y = Conv<group=2, pads=[1,1,0,0,1,2]>(x, w, b)",
    ),
    (11, "float[2,6,5] x, float[6,2,4] w, float[4] b", "y = ConvTranspose<group=2, strides=[3]>(x, w, b)"),
    (
        11,
        "float[1,4,5,4] x, float[4,3,3,2] w, float[3] b",
        "y = ConvTranspose<strides=[2,3], pads=[1,0,2,1], output_padding=[1,2], dilations=[2,1]>(x, w, b)",
    ),
    (11, "float[1,4,5,4] x, float[4,3,3,3] w", "y = ConvTranspose<strides=[2,2], output_shape=[10,8]>(x, w)"),
    (
        11,
        "float[1,4,5,4] x, float[4,1,3,4] w",
        'y = ConvTranspose<group=4, auto_pad="SAME_UPPER", strides=[2,3]>(x, w)',
    ),
    (
        11,
        "float[1,4,5,4] x, float[4,3,4,5] w",
        'y = ConvTranspose<auto_pad="SAME_LOWER", strides=[1,2]>(x, w)',
    ),
    (11, "float[1,2,3,3,4] x, float[2,2,2,3,2] w", "y = ConvTranspose<strides=[2,1,2]>(x, w)"),
    (13, "float[4,3] x, float[4,5] w, float[3,1] c", "y = Gemm<alpha=0.5, beta=2.0, transA=1>(x, w, c)"),
    (13, "float[3,4] x, float[5,4] w, float[1] c", "y = Gemm<transB=1>(x, w, c)"),
    (7, "float[3,4] x, float[4,5] w, float[5] c", "y = Gemm<beta=-1.5>(x, w, c)"),
    (13, "float[2,3,4] x, float[4] w", "y = MatMul(x, w)"),
    (9, "float[2,1,3,4] x, float[5,4,2] w", "y = MatMul(x, w)"),
    (11, "float[1,2,7,8] x", "y = AveragePool<kernel_shape=[3,2], strides=[2,3], pads=[1,0,1,1]>(x)"),
    (
        11,
        "float[1,2,7,8] x",
        "y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1],"
        " ceil_mode=1, count_include_pad=1>(x)",
    ),
    (11, "float[1,2,7,8] x", "y = AveragePool<kernel_shape=[3,3], strides=[3,2], ceil_mode=1>(x)"),
    (
        19,
        "float[1,2,9,8] x",
        "y = AveragePool<kernel_shape=[3,2], dilations=[2,3], pads=[1,1,1,1], count_include_pad=1>(x)",
    ),
    (7, "float[1,2,7,8] x", 'y = AveragePool<kernel_shape=[3,2], auto_pad="SAME_UPPER", strides=[2,2]>(x)'),
    (11, "float[2,3,9] x", "y = LpPool<kernel_shape=[3], p=3, pads=[1,1], strides=[2]>(x)"),
    (7, "float[2,3,4,5] x", "y = GlobalAveragePool(x)"),
    (7, "float[2,3,4,5] x", "y = GlobalMaxPool(x)"),
    (10, "float[1,2,3,5] x, float[4] s", "y = Resize(x, s)"),
    (10, "float[1,2,3,5] x, float[4] s", 'y = Resize<mode="linear">(x, s)'),
    (9, "float[1,2,3,5] x, float[4] s", "y = Upsample(x, s)"),
    (9, "float[1,2,3,5] x, float[4] s", 'y = Upsample<mode="linear">(x, s)'),
    (7, "float[1,2,3,5] x", 'y = Upsample<mode="linear", scales=[1.0,1.0,2.0,3.0]>(x)'),
    *(
        (
            opset,
            "float[1,2,6,5] x, float[4] s",
            f"r = Constant<value=float[0] {{}}>() y = Resize<{form}>(x, r, s)",
        )
        for opset in (11, 13, 19)
        for form in (
            'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"',
            'mode="nearest", nearest_mode="ceil"',
            'mode="nearest", nearest_mode="round_prefer_ceil"',
            'mode="linear"',
            'mode="linear", coordinate_transformation_mode="align_corners"',
            'mode="linear", coordinate_transformation_mode="pytorch_half_pixel"',
            'mode="cubic"',
            'mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1',
            'mode="cubic", coordinate_transformation_mode="align_corners"',
        )
    ),
    (
        9,
        "float[2,3,4] x, float[3] c, float[3] b, float[3] m, float[3] v",
        "y = BatchNormalization(x, c, b, m, v)",
    ),
    (
        15,
        "float[2,3,4,2] x, float[3] c, float[3] b, float[3] m, float[3] v",
        "y = BatchNormalization<epsilon=0.1>(x, c, b, m, v)",
    ),
    (7, "float[2,3,4,5] x, float[3] c, float[3] b", "y = InstanceNormalization<epsilon=0.01>(x, c, b)"),
    (18, "float[2,6,4] x, float[3] c, float[3] b", "y = GroupNormalization<num_groups=3>(x, c, b)"),
    (21, "float[2,6,4] x, float[6] c, float[6] b", "y = GroupNormalization<num_groups=3>(x, c, b)"),
    (17, "float[2,3,4] x, float[3,4] c, float[3,4] b", "y = LayerNormalization<axis=1>(x, c, b)"),
    (7, "float[2,3,4] x", "y = Softmax(x)"),
    (12, "float[2,3,4] x", "y = LogSoftmax<axis=-1>(x)"),
    (13, "float[2,3,4] x", "y = Softmax<axis=1>(x)"),
    (7, "float[2,3,4] x", "y = Hardmax(x)"),
    (12, "float[2,3,4] x", "y = Hardmax<axis=-1>(x)"),
    (12, "float[2,3,4] x", "y = Hardmax<axis=0>(x)"),
    (12, "float[2,3,4] x", "f = Floor(x) y = Hardmax<axis=1>(f)"),
    (13, "float[2,3,4] x", "f = Floor(x) y = Hardmax<axis=1>(f)"),
    (13, "float[2,3,4] x", "y = Hardmax(x)"),
    (13, "float[2,0,3] x", "y = Hardmax<axis=1>(x)"),
    (11, "float[2,3,4] x", "y = ReduceSum<axes=[-1, 0], keepdims=0>(x)"),
    (11, "float[2,3,4] x", "y = ReduceMean(x)"),
    (12, "float[2,3,4] x", "y = ReduceMin<axes=[1]>(x)"),
    (7, "float[2,3,4] x, float[3,1] s", "y = PRelu(x, s)"),
    (8, "float[2,3,4] x, float[3,1] s", "t = Sub(x, s) u = Div(t, s) v = Sum(x, s) y = Mul(u, v)"),
    (10, "float[3,4] x", "y = Dropout<ratio=0.5>(x)"),
    (10, "float[4,4] x", "p = HardSigmoid(x) q = Elu(x) r = LeakyRelu(q) y = Add(p, r)"),
    (9, "float[1,8,2,3] x", "t = DepthToSpace<blocksize=2>(x) y = SpaceToDepth<blocksize=2>(t)"),
    (11, "float[1,8,2,3] x", 'y = DepthToSpace<blocksize=2, mode="CRD">(x)'),
    (7, "float[2,5] x", 'y = Pad<pads=[1,-1,0,2], mode="constant", value=0.5>(x)'),
    (7, "float[3,5] x", 'y = Pad<pads=[1,2,2,3], mode="reflect">(x)'),
    (7, "float[4,5] x", "y = Slice<axes=[1,0], starts=[-3,1], ends=[1000,-1]>(x)"),
    (11, "float[2,3,4] x", "y = Flatten<axis=-1>(x)"),
    (
        12,
        "float[2,3,8] x",
        'y = AveragePool<kernel_shape=[3], strides=[2], auto_pad="VALID", ceil_mode=1>(x)',
    ),
    (7, "float[4,6] x", "p, q, y = Split<axis=1>(x)"),
    (13, "float[2,8,3,1] x", "y = LRN<size=3, alpha=1.0>(x)"),
    (1, "float[5,3,2,2] x", "y = LRN<size=5, alpha=0.5, beta=0.3, bias=2.0>(x)"),
    (13, "float[2,3,4] x", "y = LpNormalization<p=1, axis=1>(x)"),
    (13, "float[2,3,4] x", "y = LpNormalization(x)"),
    (13, "float[1] x, float[2,1] z, float[3] w", "y = Mean(x, z, w)"),
    (13, "float x", "p = Softsign(x) q = Sigmoid(p) y = Mul(p, q)"),
    (13, "float[2,3,4] x", "y = ReduceLogSumExp<axes=[1]>(x)"),
    (13, "float x", "y = ReduceLogSumExp(x)"),
    *(
        (18, "float[2,3] x", f"y = {op_type}<noop_with_empty_axes=1, keepdims=0>(x)")
        for op_type in ("ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceSum", "ReduceSumSquare")
    ),
    (13, "float[2,0,3] x", "p = Softmax<axis=1>(x) q = LogSoftmax<axis=0>(x) y = Add(p, q)"),
    (12, "float[2,0] x", "p = Softmax(x) q = LogSoftmax(x) y = Add(p, q)"),
    (9, "float[3,2] x", "y = EyeLike<dtype=1, k=-1>(x)"),
    (9, "float[3,4] x", "e = EyeLike<dtype=7, k=1>(x) y = Cast<to=1>(e)"),
]


@pytest.mark.parametrize("opset, inputs, body", RUNTIME_CASES)
def test_onnxruntime_agrees(opset: int, inputs: str, body: str) -> None:
    model = parse(opset, inputs, body)
    rng = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    if "v" in feeds:  # a variance
        feeds["v"] = np.abs(feeds["v"])
    if "float[4] s" in inputs:  # scales of a resize: up, and (not for Upsample) down
        feeds["s"] = np.array([1, 1, 2.5, 2 if "Upsample" in body else 0.6], np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    assert_rounding_apart(evaluate(model, feeds)["y"], session.run(["y"], feeds)[0], body)


@pytest.mark.parametrize(
    "form",
    ["kernel_shape=[3,2], pads=[1,0,1,1], strides=[2,2]", "kernel_shape=[2,3], dilations=[2,2], ceil_mode=1"],
)
@pytest.mark.parametrize("storage_order", [0, 1])
def test_onnxruntime_agrees_on_indices_of_max_pool(form: str, storage_order: int) -> None:
    body = f"y, i = MaxPool<{form}, storage_order={storage_order}>(x)"
    model = parse(12, "float[2,2,6,7] x", body, "float[] y, int64[] i")
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 2, 6, 7)).astype(np.float32)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    results = evaluate(model, feeds)
    for name, theirs in zip(results, session.run(list(results), feeds), strict=True):
        assert_rounding_apart(results[name], theirs, name)


RECURRENT = {
    "LSTM": (4, ["h", "c", "p"], "input_forget=1, clip=0.7"),
    "GRU": (3, ["h"], "clip=0.7"),
    "RNN": (1, ["h"], 'activations=["Relu", "Tanh"]'),
}


@pytest.mark.parametrize("op_type", RECURRENT)
def test_onnxruntime_agrees_on_recurrent_layers_of_unequal_lengths(op_type: str) -> None:
    gates, rest, attributes = RECURRENT[op_type]
    shapes = {
        "x": (5, 3, 2),
        "w": (2, 4 * gates, 2),
        "r": (2, 4 * gates, 4),
        "b": (2, 8 * gates),
        "h": (2, 3, 4),
        "c": (2, 3, 4),
        "p": (2, 12),
    }
    names = ["x", "w", "r", "b", *rest]
    inputs = ", ".join(f"float[{','.join(map(str, shapes[name]))}] {name}" for name in names)
    form = f'hidden_size=4, direction="bidirectional", {attributes}'
    body = f"y, last = {op_type}<{form}>(x, w, r, b, l, {', '.join(rest)})"
    model = parse(14, f"{inputs}, int32[3] l", body, "float[] y, float[] last")
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {name: rng.standard_normal(shapes[name]).astype(np.float32) for name in names}
    feeds["l"] = np.array([5, 2, 3], np.int32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    results = evaluate(model, feeds)
    for name, theirs in zip(results, session.run(list(results), feeds), strict=True):
        assert_rounding_apart(results[name], theirs, name)


@pytest.mark.parametrize("sampling", [0, 1, 2])
@pytest.mark.parametrize(
    "opset, mode",
    [
        (10, ""),
        (15, ""),
        (16, ""),
        (16, ', coordinate_transformation_mode="output_half_pixel"'),
    ],
)
def test_onnxruntime_agrees_on_boxes(opset: int, mode: str, sampling: int) -> None:
    """Inside, over an edge, outside, empty, and turned."""
    form = f"output_height=2, output_width=3, spatial_scale=0.5, sampling_ratio={sampling}{mode}"
    model = parse(opset, "float[2,3,7,9] x, float[6,4] b, int64[6] i", f"y = RoiAlign<{form}>(x, b, i)")
    boxes = [[0, 1, 8, 9.5], [-7, -5, 5, 6], [8, 6, 24, 20], [40, 40, 60, 60], [2, 2, 2, 2], [9, 7, 5, 3]]
    feeds: dict[str, Array] = {
        "x": np.random.default_rng(0).standard_normal((2, 3, 7, 9)).astype(np.float32),
        "b": np.array(boxes, np.float32),
        "i": np.array([0, 1, 1, 0, 1, 0]),
    }
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert_rounding_apart(evaluate(model, feeds)["y"], session.run(["y"], feeds)[0], form)


def test_the_first_of_equal_values_has_the_index_in_max_pool() -> None:
    model = parse(12, "float[] x", "y, i = MaxPool<kernel_shape=[3], pads=[1,1]>(x)", "float[] y, int64[] i")
    lowest = -np.inf
    results = evaluate(model, {"x": [[[lowest, lowest, 2.0, 2.0, 1.0]]]})
    assert results["y"].tolist() == [[[lowest, 2, 2, 2, 2]]]
    assert results["i"].tolist() == [[[0, 2, 2, 2, 3]]]


# --- What onnxruntime cannot run, by hand -------------------------------------------------------------

X = np.array([[[1.0, 2.0], [3.0, 5.0]], [[-1.0, 0.0], [7.0, 9.0]]])  # [N=2, C=2, L=2]
C = np.array([10.0, 100.0])


@pytest.mark.parametrize("opset", [1, 6])
def test_legacy_broadcast_begins_at_axis(opset: int) -> None:
    y = run(opset, "y = Add<axis=1, broadcast=1>(x, c)", x=X, c=C)
    assert np.array_equal(y, X + np.array([[[10.0], [100.0]]]))


@pytest.mark.parametrize("opset", [1, 6])
def test_legacy_broadcast_without_axis_is_aligned_to_the_last(opset: int) -> None:
    y = run(opset, "y = Mul<broadcast=1>(x, c)", x=X, c=C)
    assert np.array_equal(y, X * np.array([[[10.0, 100.0]]]))


def test_legacy_broadcast_takes_scalars_and_runs_of_axes() -> None:
    assert np.array_equal(run(6, "y = Div<broadcast=1>(x, c)", x=X, c=4.0), X / 4)
    pairs = [[1.0, 2.0], [3.0, 4.0]]
    assert np.array_equal(run(6, "y = Sub<axis=0, broadcast=1>(x, c)", x=X, c=pairs)[1, 0], [-4.0, -3.0])
    assert np.array_equal(
        run(1, "y = Pow<axis=1, broadcast=1>(x, c)", x=X, c=[2.0, 0.0])[0], [[1, 4], [1, 1]]
    )


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Pow", "Sum"])
def test_nothing_is_broadcast_before_opset_7_unless_asked(op_type: str) -> None:
    with pytest.raises(EvaluationError, match=r"\(2, 2, 2\).*\(2,\)"):
        run(6, f"y = {op_type}(x, c)", x=X, c=C)
    run(8, f"y = {op_type}(x, c)", x=X, c=C)


@pytest.mark.parametrize("asked", ["", ", broadcast=1"])
@pytest.mark.parametrize("opset", [1, 6])
def test_gemm_broadcasts_c_before_opset_7(opset: int, asked: str) -> None:
    """Even if nobody asks for it: some files lack the attribute, and the sum has one meaning only."""
    a, b, c = [[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]], [10.0, 20.0]
    y = run(opset, f"y = Gemm<alpha=2.0, beta=3.0{asked}>(a, b, c)", a=a, b=b, c=c)
    assert np.array_equal(y, [[2 * 13 + 30, 2 * 16 + 60]])
    with pytest.raises(EvaluationError, match="broadcast"):
        run(opset, f"y = Gemm<alpha=2.0{asked}>(a, b, c)", a=a, b=b, c=[1.0, 2.0, 3.0])


NORMALIZED: dict[str, Any] = {"x": X, "s": [2.0, 3.0], "b": [1.0, -1.0], "m": [1.0, 3.0], "v": [4.0, 0.25]}
EVALUATED = np.array([[[1, 2], [-1, 11]], [[-1, 0], [23, 35]]])  # s/√v = 1, 6
TRAINED = {  # per channel over N and L: mean 0.5, 6 and population variance 1.25, 5
    "y": [(1 - 0.5) / np.sqrt(1.25) * 2 + 1, (3 - 6) / np.sqrt(5) * 3 - 1],
    "rm": [0.75 * 1 + 0.25 * 0.5, 0.75 * 3 + 0.25 * 6],
    "rv": [0.75 * 4 + 0.25 * 1.25, 0.75 * 0.25 + 0.25 * 5],
    "sm": [0.5, 6.0],
    "sv": [1.25, 5.0],
}


@pytest.mark.parametrize(
    "opset, attributes",
    [
        (1, "is_test=1, consumed_inputs=[0,0,0,1,1], "),
        (6, "is_test=1, "),
        (7, ""),
        (8, ""),
        (9, ""),
        (14, ""),
    ],
)
def test_batch_normalization_in_inference(opset: int, attributes: str) -> None:
    y = run(opset, f"y = BatchNormalization<{attributes}epsilon=0.0>(x, s, b, m, v)", **NORMALIZED)
    assert np.array_equal(y, EVALUATED)


@pytest.mark.parametrize(
    "opset, attributes, outputs",
    [
        (1, "", ["y"]),
        (6, "", ["y", "rm", "rv", "sm", "sv"]),
        (8, "", ["y", "rm", "rv", "sm", "sv"]),
        (9, "", ["y", "rm", "rv", "sm", "sv"]),
        (14, ", training_mode=1", ["y", "rm", "rv"]),
    ],
)
def test_batch_normalization_in_training(opset: int, attributes: str, outputs: list[str]) -> None:
    body = f"{', '.join(outputs)} = BatchNormalization<epsilon=0.0, momentum=0.75{attributes}>(x, s, b, m, v)"
    model = parse(opset, ", ".join(f"float[] {name}" for name in NORMALIZED), body)
    results = evaluate(model, NORMALIZED, outputs=outputs)
    results["y"] = results["y"][0, :, 0]
    for name in outputs:
        np.testing.assert_allclose(results[name], TRAINED[name], rtol=1e-15)  # a few roundings of float64


def test_batch_normalization_with_empty_output_names_is_inference() -> None:
    model = parse(9, "float[] x", "y = Relu(x)")
    node = helper.make_node("BatchNormalization", list(NORMALIZED), ["y", "", "", "", ""], epsilon=0.0)
    model.graph.node[0].CopyFrom(node)
    model.graph.input.extend(onnx.ValueInfoProto(name=name) for name in list(NORMALIZED)[1:])
    assert np.array_equal(evaluate(model, NORMALIZED)["y"], EVALUATED)


def test_batch_normalization_per_position() -> None:
    grid: dict[str, Any] = {name: np.stack([NORMALIZED[name]] * 2, axis=1) for name in "sbmv"}
    grid["s"][1, 1] = 0.0
    y = run(7, "y = BatchNormalization<epsilon=0.0, spatial=0>(x, s, b, m, v)", x=X, **grid)
    expected = EVALUATED.copy()
    expected[:, 1, 1] = -1
    assert np.array_equal(y, expected)


def test_batch_normalization_of_rank_1_has_one_channel() -> None:
    feeds: dict[str, Any] = {"s": [2.0], "b": [1.0], "m": [1.0], "v": [4.0]}
    y = run(15, "y = BatchNormalization<epsilon=0.0>(x, s, b, m, v)", x=[1.0, 3.0, 5.0], **feeds)
    assert np.array_equal(y, [1, 3, 5])


def test_default_epsilon_is_the_float32_of_the_schema() -> None:
    y = run(15, "y = BatchNormalization(x, s, b, m, v)", x=[[1.0]], s=[1.0], b=[0.0], m=[0.0], v=[0.0])
    assert y.item() == 1 / np.sqrt(float(np.float32(1e-5)))


@pytest.mark.parametrize(
    "opset, body, x, expected",
    [
        (1, "y = Concat(x, x)", [[1.0]], [[1, 1]]),
        (1, "y = Reshape<shape=[0,-1]>(x)", X, X.reshape(2, 4)),
        (1, 'y = Cast<to="INT32">(x)', [1.9, -1.9], [1, -1]),
        (1, "y = Dropout<is_test=1>(x)", [1.0], [1]),
        (6, "y = Dropout<is_test=1>(x)", [1.0], [1]),
        (7, "y = Dropout(x)", [1.0], [1]),
        (6, "y = Clip<min=0.0, max=2.0>(x)", [-1.0, 1.0, 3.0], [0, 1, 2]),
        (1, "y = Slice<starts=[-1], ends=[9], axes=[1]>(x)", X, X[:, 1:]),
        (1, "y, z = Split<axis=1, split=[2,1]>(x)", [[1.0, 2.0, 3.0]], [[1, 2]]),
        (1, "y = Squeeze<axes=[0]>(x)", [[1.0]], [1]),
        (11, "y = Unsqueeze<axes=[0,-1]>(x)", [1.0], [[[1]]]),
        (1, "y = Pad<paddings=[1,0,0,2], value=7.0>(x)", [[1.0]], [[7, 7, 7], [1, 7, 7]]),
        (2, 'y = Pad<pads=[1,0], mode="edge">(x)', [1.0, 2.0], [1, 1, 2]),
        (
            1,
            "y = Upsample<height_scale=1.0, width_scale=2.0>(x)",
            [[[[1.0, 2.0], [3.0, 4.0]]]],
            [[[[1, 1, 2, 2], [3, 3, 4, 4]]]],
        ),
        (
            1,
            'y = Upsample<height_scale=1.0, width_scale=2.0, mode="bilinear">(x)',
            [[[[1.0, 2.0]]]],
            [[[[1, 1.5, 2, 2]]]],
        ),
        (1, "y = Relu<consumed_inputs=[1]>(x)", [-1.0, 1.0], [0, 1]),
        (1, "y = Neg<consumed_inputs=[1]>(x)", [1.0], [-1]),
        (1, "y = ReduceSum<axes=[1], keepdims=0>(x)", X, X.sum(axis=1)),
        (1, "y = AveragePool<kernel_shape=[2], pads=[1,0]>(x)", [[[4.0, 8.0]]], [[[4, 6]]]),
    ],
)
def test_older_forms(opset: int, body: str, x: Any, expected: Any) -> None:
    y = run(opset, body, x=x)
    assert y.shape == np.shape(expected)
    assert np.array_equal(y, expected)


def test_prelu_has_a_slope_per_channel_before_opset_7() -> None:
    y = run(6, "y = PRelu(x, s)", x=-np.ones((1, 2, 2)), s=[2.0, 3.0])
    assert np.array_equal(y, [[[-2, -2], [-3, -3]]])
    y = run(7, "y = PRelu(x, s)", x=-np.ones((1, 2, 2)), s=[2.0, 3.0])
    assert np.array_equal(y, [[[-2, -3], [-2, -3]]])


def test_tile_of_opset_1() -> None:
    y = run(1, "y = Tile(x, n, axis)", x=[[1.0, 2.0]], n=[2.0], axis=[1.0])
    assert np.array_equal(y, [[1, 2, 1, 2]])


def test_softmax_before_opset_13_sums_over_all_later_axes() -> None:
    y = run(11, "y = Softmax<axis=1>(x)", x=np.zeros((1, 2, 2)))
    assert np.array_equal(y, np.full((1, 2, 2), 0.25))


def test_training_dropout_is_refused() -> None:
    for opset in (1, 6):
        with pytest.raises(EvaluationError, match="random"):
            run(opset, "y = Dropout(x)", x=[1.0])


def test_scan_of_opset_8_is_batched() -> None:
    body = """
        y, z = Scan<
            num_scan_inputs=1, directions=[1],
            body=b (float[] s, float[] r) => (float[] t, float[] o) { t = Add(s, r) o = Identity(t) }
        >("", s, x)
    """
    model = parse(8, "float[] s, float[] x", body)
    results = evaluate(model, {"s": [0.0, 100.0], "x": [[1.0, 2.0], [3.0, 4.0]]}, outputs=["y", "z"])
    assert np.array_equal(results["y"], [3, 107])
    assert np.array_equal(results["z"], [[2, 3], [104, 107]])


def test_scan_in_reverse_and_along_another_axis() -> None:
    body = """
        y, z = Scan<
            num_scan_inputs=1, scan_input_axes=[1], scan_input_directions=[1],
            scan_output_axes=[1], scan_output_directions=[1],
            body=b (float[] s, float[] r) => (float[] t, float[] o) { t = Add(s, r) o = Identity(t) }
        >(s, x)
    """
    model = parse(11, "float[] s, float[] x", body)
    results = evaluate(model, {"s": [0.0, 0.0], "x": [[1.0, 2.0, 4.0], [3.0, 5.0, 7.0]]}, outputs=["y", "z"])
    assert results["y"].tolist() == [7, 15]
    assert results["z"].tolist() == [[7, 6, 4], [15, 12, 7]]


@pytest.mark.parametrize(
    "start, end, step, expected",
    [
        (-9, -99, -1, [0]),
        (-5, -99, -1, [0]),
        (9, -99, -2, [4, 2, 0]),
        (-1, -6, -1, [4, 3, 2, 1, 0]),
        (-9, 2, 1, [0, 1]),
        (-9, 0, -1, []),
        (9, 99, 1, []),
    ],
)
def test_starts_and_ends_of_slices_are_clamped(start: int, end: int, step: int, expected: list[int]) -> None:
    body = f"""
        s = Constant<value_ints=[{start}]>() e = Constant<value_ints=[{end}]>()
        a = Constant<value_ints=[0]>() d = Constant<value_ints=[{step}]>()
        y = Slice(x, s, e, a, d)
    """
    assert run(13, body, x=np.arange(5.0)).tolist() == expected


def test_nothing_can_be_sliced_backwards() -> None:
    body = "s = Constant<value_ints=[-1]>() e = Constant<value_ints=[-9]>() y = Slice(x, s, e, z, s)"
    model = parse(13, "float[] x, int64[] z", body)
    assert evaluate(model, {"x": np.empty(0), "z": [0]})["y"].shape == (0,)


@pytest.mark.parametrize("depth", [3, [3]])
def test_one_hot_takes_a_depth_of_either_rank(depth: Any) -> None:
    """Indices count from the end where they are negative; beyond the depth nothing is hot."""
    model = parse(11, "int64[] i, int64[] n, float[] v", "y = OneHot(i, n, v)")
    y = evaluate(model, {"i": [0, -1, 3, -4], "n": depth, "v": [0.5, 2.0]})["y"]
    assert y.tolist() == [[2, 0.5, 0.5], [0.5, 0.5, 2], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    model = parse(11, "float[] i, int64[] n, int64[] v", "y = OneHot<axis=0>(i, n, v)")
    y = evaluate(model, {"i": [1.9], "n": depth, "v": [0, 1]})["y"]
    assert y.dtype == np.int64
    assert y.tolist() == [[0], [1], [0]]


def test_gather_elements_takes_fewer_indices_than_there_are_values() -> None:
    model = parse(13, "float[] x, int64[] i", "y = GatherElements<axis=1>(x, i)")
    x = np.arange(12.0).reshape(3, 4)
    assert evaluate(model, {"x": x, "i": [[3, -4], [0, 1]]})["y"].tolist() == [[3, 0], [4, 5]]


# --- Precision and types ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_every_float_is_carried_as_float64(dtype: Any) -> None:
    model = parse(15, "float[] x", "y = Mul(x, c)")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0.1], dtype), "c"))
    y = evaluate(model, {"x": np.array([3], dtype)})["y"]
    assert y.dtype == np.float64
    assert y.item() == 3 * float(np.array(0.1, dtype))


def test_casts_between_floats_are_the_identity() -> None:
    assert run(19, f"y = Cast<to={TensorProto.FLOAT16}>(x)", x=[1 / 3]).item() == 1 / 3
    assert run(19, "h = Constant<value=float16[1] {1}>() y = CastLike(x, h)", x=[1 / 3]).item() == 1 / 3


def test_casts_to_integers_truncate() -> None:
    y = run(13, f"y = Cast<to={TensorProto.INT64}>(x)", x=[1.9, -1.9])
    assert y.dtype == np.int64
    assert y.tolist() == [1, -1]


def test_integers_stay_integers() -> None:
    y = evaluate(parse(14, "int32[2] x", "y = Div(x, x)"), {"x": np.array([-7, 2], np.int32)})["y"]
    assert y.dtype == np.int32
    model = parse(14, "int64[2] x", "c = Constant<value=int64[1] {2}>() y = Div(x, c)")
    assert evaluate(model, {"x": np.array([-7, 7])})["y"].tolist() == [-3, 3]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_reductions_of_integers_are_integers(dtype: Any) -> None:
    model = parse(
        13,
        "int64[] x",
        "y = ReduceMean<axes=[1], keepdims=0>(x) z = ReduceSumSquare<axes=[1], keepdims=0>(x)",
    )
    results = evaluate(model, {"x": np.array([[1, 2, 4], [-1, -2, -4]], dtype)}, outputs=["y", "z"])
    assert [value.dtype for value in results.values()] == [dtype, dtype]
    assert results["y"].tolist() == [2, -2]  # towards zero
    assert results["z"].tolist() == [21, 21]


def test_the_logarithm_of_no_sum_is_minus_infinity() -> None:
    y = run(13, "y = ReduceLogSumExp<axes=[1], keepdims=0>(x)", x=[[-np.inf, -np.inf], [np.inf, 0]])
    assert y.tolist() == [-np.inf, np.inf]


SCALAR = [
    *("Abs", "Ceil", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity"),
    *("LeakyRelu", "Log", "Neg", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Softplus", "Softsign"),
    *("Sqrt", "Tanh", "ReduceMean", "ReduceMax", "ReduceSum", "ReduceSumSquare", "ReduceLogSumExp", "Mean"),
]


@pytest.mark.parametrize("op_type", SCALAR)
def test_scalars_are_values_like_any_other(op_type: str) -> None:
    y = run(20, f"y = {op_type}(x)", x=1.5)
    assert isinstance(y, np.ndarray)
    assert y.shape == ()
    # The loops that NumPy has for arrays may end in another last bit.
    np.testing.assert_allclose(y, run(20, f"y = {op_type}(x)", x=[1.5]).reshape(()), rtol=2**-52)


def test_scalars_stay_arrays_when_their_type_changes() -> None:
    y = run(13, f"i = Cast<to={TensorProto.INT64}>(x) y = Cast<to={TensorProto.FLOAT}>(i)", x=1.5)
    assert isinstance(y, np.ndarray)
    assert y.tolist() == 1


def test_convolution_is_accurate_to_float64() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 4, 6)), rng.standard_normal((3, 4, 2))
    expected = [[(w[o] * x[0, :, i : i + 2]).sum() for i in range(5)] for o in range(3)]
    # Sums of 8 products in another order.
    np.testing.assert_allclose(run(11, "y = Conv(x, w)", x=x, w=w)[0], expected, rtol=0, atol=8 * 2**-52)


# --- Graphs -------------------------------------------------------------------------------------------


def test_outputs_may_be_inner_values_and_only_what_they_need_is_run() -> None:
    model = parse(15, "float[] x", "a = Neg(x) b = RandomNormal<shape=[1]>() d = Dropout(a) y = Unheard(d)")
    assert evaluate(model, {"x": [1.0]}, outputs=["d", "a"]) == {"d": [-1.0], "a": [-1.0]}


def test_initializers_that_are_inputs_may_be_overridden() -> None:
    model = parse(15, "float[] x, float[] c", "y = Mul(x, c)")
    model.graph.initializer.append(numpy_helper.from_array(np.array([2.0]), "c"))
    assert evaluate(model, {"x": [3.0]})["y"].tolist() == [6]
    assert evaluate(model, {"x": [3.0], "c": [5.0]})["y"].tolist() == [15]


def test_sparse_initializers() -> None:
    model = parse(15, "float[] x", "y = Add(x, c)")
    values = numpy_helper.from_array(np.array([5.0, 7.0]), "c")
    for indices in (np.array([1, 2]), np.array([[0, 1], [1, 0]])):
        sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices), [2, 2])
        del model.graph.sparse_initializer[:]
        model.graph.sparse_initializer.append(sparse)
        assert evaluate(model, {"x": [0.0]})["y"].tolist() == [[0, 5], [7, 0]]


FUNCTIONS = """
    <ir_version: 9, opset_import: ["" : 17, "local" : 1]>
    g (float[] x) => (float[] y) { a = local.Scale<by=3.0>(x) b = local.Scale(a) y = local.Twice(b) }
    <domain: "local", opset_import: ["" : 17]>
    Scale <by: float = 2.0> (x, shift) => (y) { c = Constant<value_float: float = @by>() y = Mul(x, c) }
    <domain: "local", opset_import: ["" : 6, "local" : 1]>
    Twice (x) => (y) { c = Clip<max=5.0>(x) y = Add(c, c) }
"""


def test_local_functions_with_attributes_defaults_absent_inputs_and_their_own_opset() -> None:
    assert evaluate(parser.parse_model(FUNCTIONS), {"x": [1.0]})["y"].tolist() == [10]


@pytest.mark.parametrize("taken, expected", [(True, 5.0), (False, -3.0)])
def test_inner_graphs_see_outer_values(taken: bool, expected: float) -> None:
    body = """
        two = Constant<value_float=2.0>()
        y = If(c) <
            then_branch=a () => (float[] p) { p = Add(x, two) },
            else_branch=b () => (float[] q) { q = Neg(x) }
        >
    """
    model = parse(15, "float[] x, bool c", body)
    assert evaluate(model, {"x": [3.0], "c": taken})["y"].tolist() == [expected]


def test_loop_carries_state_and_stops() -> None:
    body = """
        y, z = Loop<body=b (int64 i, bool c, float[] s) => (bool d, float[] t, float[] o) {
            t = Add(s, x)
            o = Mul(t, x)
            limit = Constant<value_float=5.0>()
            d = Less(t, limit)
        }>("", go, s)
    """
    model = parse(15, "bool go, float[] s, float[] x", body)
    results = evaluate(model, {"go": True, "s": 0.0, "x": 2.0}, outputs=["y", "z"])
    assert results["y"] == 6
    assert results["z"].tolist() == [4, 8, 12]
    results = evaluate(model, {"go": False, "s": 0.0, "x": 2.0}, outputs=["y", "z"])
    assert results["y"] == 0
    assert results["z"].size == 0


def test_other_operators_come_from_onnx_reference_in_float64() -> None:
    y = run(15, "y = Mean(x, c)", x=[1.0], c=[1 + 2**-40])
    assert y.item() == 1 + 2**-41


def test_errors_say_what_and_where() -> None:
    model = parse(15, "float[] x", "y = Add(x, nowhere)")
    with pytest.raises(EvaluationError, match="Add 'y': there is no value 'nowhere'"):
        evaluate(model, {"x": [1.0]})
    with pytest.raises(EvaluationError, match="without a value"):
        evaluate(model, {})
    with pytest.raises(EvaluationError, match="no inputs of the graph"):
        evaluate(model, {"x": [1.0], "z": [1.0]})
    with pytest.raises(EvaluationError, match=r"Quant 'y': the domain onnx\.brevitas"):
        node = helper.make_node("Quant", ["x"], ["y"], domain="onnx.brevitas")
        model.graph.node[0].CopyFrom(node)
        evaluate(model, {"x": [1.0]})


def test_shares_nothing_with_what_it_checks() -> None:
    paths = list((Path(__file__).parent.parent / "bnfold" / "evaluate").glob("*.py"))
    assert paths
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level < 2 or node.module == "errors", path  # only its own package
                names = [] if node.level else [node.module or ""]
            else:
                continue
            assert not any(name.partition(".")[0] == "bnfold" for name in names), path
