"""The equivalence check: first what differs, then what may not be called different.

The folds here are made by four lines of float64 arithmetic of this file, not by the package: the
check must not be judged by what it is there to judge.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from bnfold import verify
from bnfold.nudge import Constants
from bnfold.report import CheckReport, Verdict
from bnfold.session import Session

Array = NDArray[Any]
Compare = Callable[[onnx.ModelProto, onnx.ModelProto], CheckReport]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(timeout=60) as session:
        yield session


@pytest.fixture
def compare(session: Session, tmp_path: Path) -> Compare:
    def compared(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> CheckReport:
        onnx.save(reference, tmp_path / "reference.onnx")
        onnx.save(candidate, tmp_path / "candidate.onnx")
        return verify.compare(session, tmp_path / "reference.onnx", tmp_path / "candidate.onnx")

    return compared


@dataclass(frozen=True, eq=False)
class Layer:
    """A weighted operator with a bias, and its normalization (scale, bias, mean, var) or None."""

    op_type: str
    weight: Array
    bias: Array
    norm: tuple[Array, ...] | None
    epsilon: float
    pads: tuple[int, ...] = (1, 1, 1, 1)


Net = list[Layer]
CHANNELS = {"Conv": (-1, 1, 1, 1), "ConvTranspose": (1, -1, 1, 1), "Gemm": (1, -1)}


def folded(layer: Layer) -> Layer:
    assert layer.norm is not None
    scale, bias, mean, var = (p.astype(np.float64) for p in layer.norm)
    s = scale / np.sqrt(var + float(np.float32(layer.epsilon)))
    dtype = layer.weight.dtype
    weight = (layer.weight.astype(np.float64) * s.reshape(CHANNELS[layer.op_type])).astype(dtype)
    return replace(layer, weight=weight, bias=(s * (layer.bias - mean) + bias).astype(dtype), norm=None)


def build(net: Net) -> onnx.ModelProto:
    nodes, constants, value = [], [], "x"

    def constant(name: str, array: Array) -> str:
        constants.append(numpy_helper.from_array(array, name))
        return name

    for i, layer in enumerate(net):
        pads: dict[str, Any] = {} if layer.op_type == "Gemm" else {"pads": layer.pads}
        inputs = [value, constant(f"w{i}", layer.weight), constant(f"b{i}", layer.bias)]
        nodes.append(helper.make_node(layer.op_type, inputs, [f"c{i}"], **pads))
        value = f"c{i}"
        if layer.norm is not None:
            parameters = [constant(f"n{i}.{p}", a) for p, a in zip("sbmv", layer.norm, strict=True)]
            inputs = [value, *parameters]
            nodes.append(helper.make_node("BatchNormalization", inputs, [f"n{i}"], epsilon=layer.epsilon))
            value = f"n{i}"
        nodes.append(helper.make_node("LeakyRelu", [value], [f"r{i}"]))
        value = f"r{i}"
    nodes.append(helper.make_node("Identity", [value], ["y"]))
    kind = helper.np_dtype_to_tensor_dtype(net[0].weight.dtype)
    size = net[0].weight.shape[0 if net[0].op_type in ("ConvTranspose", "Gemm") else 1]
    shape = ["N", size] + ([] if net[0].op_type == "Gemm" else ["H", "W"])
    x = helper.make_tensor_value_info("x", kind, shape)
    y = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def random_net(seed: int) -> Net:
    """One to eight layers whose statistics are ordinary or extreme, by the seed."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(rng.choice(["float32", "float32", "float16"]))
    ops = ["Gemm"] if rng.random() < 0.4 else ["Conv", "ConvTranspose"]
    style = rng.choice(["ordinary", "spread", "far mean", "cancelling", "tiny"])
    inputs, net = int(rng.choice([1, 3, 16])), []
    half = dtype == np.float16
    for _ in range(int(rng.choice([1, 2, 8]))):
        outputs, op_type = int(rng.choice([1, 2, 7, 24])), str(rng.choice(ops))
        shape = {"Gemm": (inputs, outputs), "Conv": (outputs, inputs, 3, 3)}.get(
            op_type, (inputs, outputs, 3, 3)
        )
        weight = rng.standard_normal(shape) / np.sqrt(inputs * (1 if op_type == "Gemm" else 9))
        bias, mean = rng.standard_normal((2, outputs))
        scale, shift = 1 + rng.standard_normal(outputs) / 2, rng.standard_normal(outputs)
        var, epsilon = np.exp(rng.standard_normal(outputs)), float(rng.choice([1e-5, 1e-3]))
        if style == "spread":
            var = 10 ** rng.uniform(*((-4, 4) if half else (-12, 6)), outputs)
            mean, epsilon = mean * np.sqrt(var), 1e-3
            scale[0] = var[0] = 0  # a dead channel
        elif style in ("far mean", "cancelling"):
            mean = 100 * np.sqrt(var) * np.sign(mean)
            bias = mean + bias if style == "cancelling" else bias
        elif style == "tiny":
            scale, shift = scale * 1e-3, shift * (1e-3 if half else 1e-7)
        norm = tuple(a.astype(dtype) for a in (scale, shift, mean, var))
        net.append(Layer(op_type, weight.astype(dtype), bias.astype(dtype), norm, epsilon))
        inputs = outputs
    return net


def ordinary(op_type: str = "Conv") -> Layer:
    """A layer of five channels on which every fault below changes the function by far."""
    rng = np.random.default_rng(7)
    shape = {"Conv": (5, 3, 3, 3), "ConvTranspose": (3, 5, 3, 3), "Gemm": (3, 5)}[op_type]
    norm = (rng.uniform(0.5, 2, 5), rng.uniform(0.5, 2, 5), rng.standard_normal(5), rng.uniform(0.01, 2, 5))
    weight, bias = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    return Layer(op_type, weight, bias, tuple(a.astype(np.float32) for a in norm), 1e-5)


def with_norm(layer: Layer, index: int, change: Callable[[Array], Array]) -> Layer:
    """The layer, folded with one of scale, bias, mean and var changed."""
    assert layer.norm is not None
    norm = tuple(change(a) if i == index else a for i, a in enumerate(layer.norm))
    return folded(replace(layer, norm=norm))


def first(factor: float) -> Callable[[Array], Array]:
    return lambda a: a * np.array([factor, 1, 1, 1, 1], a.dtype)


FAULTS: dict[str, Callable[[Layer], Layer]] = {
    "epsilon dropped": lambda layer: folded(replace(layer, epsilon=0.0)),
    "epsilon of another framework": lambda layer: folded(replace(layer, epsilon=1e-3)),
    "a channel by a thousandth": lambda layer: with_norm(layer, 0, first(1.001)),
    "bias lost": lambda layer: with_norm(layer, 1, np.zeros_like),
    "mean lost": lambda layer: with_norm(layer, 2, np.zeros_like),
    "two channels swapped": lambda layer: with_norm(layer, 0, lambda a: a[[1, 0, 2, 3, 4]]),
    "a sign flipped": lambda layer: with_norm(layer, 0, first(-1)),
    "variance for deviation": lambda layer: with_norm(layer, 3, np.sqrt),
}


@pytest.mark.parametrize("op_type", CHANNELS)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_fold_fails(fault: str, op_type: str, compare: Compare) -> None:
    layer = ordinary(op_type)
    report = compare(build([layer]), build([FAULTS[fault](layer)]))
    assert report.verdict is Verdict.FAIL
    assert "output 'y'" in report.message
    assert report.outputs[0].ratio > 4
    assert not report.outputs[0].passed


def test_padding_off_by_one_fails(compare: Compare) -> None:
    layer = ordinary()
    report = compare(build([layer]), build([replace(folded(layer), pads=(2, 1, 0, 1))]))
    assert report.verdict is Verdict.FAIL


@pytest.mark.parametrize("size", [1.0, 1e-7])
def test_the_size_of_the_outputs_does_not_matter(size: float, compare: Compare) -> None:
    layer = ordinary()
    assert layer.norm is not None
    scale, bias, *statistics = layer.norm
    small = replace(layer, norm=(scale * np.float32(size), bias * np.float32(size), *statistics))
    assert compare(build([small]), build([folded(small)])).verdict is Verdict.PASS
    assert compare(build([small]), build([FAULTS["bias lost"](small)])).verdict is Verdict.FAIL


def test_a_channel_of_huge_values_hides_no_other(compare: Compare) -> None:
    layer = ordinary()
    assert layer.norm is not None
    scale, bias, mean, var = layer.norm
    uneven = replace(layer, norm=(scale * np.array([1e7, 1, 1, 1, 1], np.float32), bias, mean, var))
    assert compare(build([uneven]), build([folded(uneven)])).verdict is Verdict.PASS
    lost = with_norm(uneven, 1, lambda a: a * np.array([1, 1, 1, 0, 1], a.dtype))
    report = compare(build([uneven]), build([lost]))
    assert report.verdict is Verdict.FAIL
    assert "channel 3" in report.message


def test_correct_folds_pass(compare: Compare) -> None:
    """No false alarm on ordinary and extreme statistics, float32 and float16."""
    ratios = {}
    for seed in range(60):
        net = random_net(seed)
        report = compare(build(net), build([folded(layer) for layer in net]))
        assert report.verdict is Verdict.PASS, f"seed {seed}: {report.message}"
        assert report.runs and report.outputs
        ratios[seed] = report.outputs[0].ratio
    # A yardstick that is too long would pass anything: typical folds come out near one half.
    assert 0.05 < float(np.median(list(ratios.values()))) < 2


def graph(text: str, **constants: Array) -> onnx.ModelProto:
    parsed = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    parsed.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    return parsed


SCORES = np.random.default_rng(0).standard_normal((4, 9)).astype(np.float32)
ARGMAX = "(float[N,4] x) => (int64[N] y) { s = MatMul(x, w)  y = ArgMax<axis = 1, keepdims = 0>(s) }"


def test_integers_have_to_agree(compare: Compare) -> None:
    same = compare(graph(ARGMAX, w=SCORES), graph(ARGMAX, w=SCORES))
    assert same.verdict is Verdict.PASS
    other = compare(graph(ARGMAX, w=SCORES), graph(ARGMAX, w=SCORES[:, ::-1].copy()))
    assert other.verdict is Verdict.FAIL
    assert "share of elements" in other.message


def test_integers_may_flip_where_rounding_flips_them(compare: Compare) -> None:
    # Two columns that differ by rounding alone: which is larger, no stored model can say.
    tie = np.repeat(SCORES[:, :1], 2, axis=1)
    text = "(float[512,4] x) => (int64[512] y) { s = MatMul(x, w)  y = ArgMax<axis = 1, keepdims = 0>(s) }"
    moved = np.nextafter(tie, np.array([[np.inf, -np.inf]], np.float32))
    report = compare(graph(text, w=tie), graph(text, w=moved))
    assert report.verdict is Verdict.PASS
    assert report.outputs[0].error > 0


def test_nan_has_to_be_where_it_was(compare: Compare) -> None:
    log = "(float[N,4] x) => (float[N,4] y) { y = Log(x) }"
    clipped = "(float[N,4] x) => (float[N,4] y) { z = Abs(x)  y = Log(z) }"
    assert compare(graph(log), graph(log)).verdict is Verdict.PASS
    assert compare(graph(log), graph(clipped)).verdict is Verdict.FAIL


def test_nothing_but_nan_or_no_element_is_undecided(compare: Compare) -> None:
    for text in (
        "(float[N,4] x) => (float[N,4] y) { a = Abs(x)  n = Neg(a)  y = Log(n) }",
        "(float[0,4] x) => (float[0,4] y) { y = Relu(x) }",
    ):
        report = compare(graph(text), graph(text))
        assert report.verdict is Verdict.UNDECIDED
        assert "nothing was compared" in report.message


def test_where_the_original_overflows_nothing_passes_and_nothing_is_blamed(compare: Compare) -> None:
    """Which elements overflow depends on the order of sums: not a difference of functions."""
    text = "(float[N,4] x) => (float[N,4] y) { a = Abs(x)  b = Add(a, one)  y = Mul(b, w) }"
    one, huge = np.ones(4, np.float32), np.full(4, 3.4e38, np.float32)
    huge[0] = 1  # one finite column in four
    other = huge.copy()
    other[1] = -3.4e38
    report = compare(graph(text, one=one, w=huge), graph(text, one=one, w=other))
    assert report.verdict is Verdict.UNDECIDED
    assert "mostly NaN or infinity" in report.message


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        ("(float[N,4] x) => (float[N,4] z) { z = Relu(x) }", "its outputs are z, the original's y"),
        ("(float[N,4] w) => (float[N,4] y) { y = Relu(w) }", "its inputs are w, the original's x"),
        ("(float[N,4] x) => (double[N,4] y) { a = Relu(x)  y = Cast<to = 11>(a) }", "has type float64"),
        ("(float[N,4] x) => (float[M,K] y) { a = Relu(x)  y = Transpose(a) }", "its shape is"),
        ("(float[N,4] x) => (float[N,4] y) { y = NoSuchOperator(x) }", "the result does not"),
    ],
)
def test_what_need_not_be_measured_fails(candidate: str, message: str, compare: Compare) -> None:
    report = compare(graph("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }"), graph(candidate))
    assert report.verdict is Verdict.FAIL
    assert message in report.message


@pytest.mark.parametrize(
    "text",
    [
        "(bfloat16[N,3,8,8] x) => (bfloat16[N,3,8,8] y) { y = Relu(x) }",
        "(string[N] x) => (string[N] y) { y = Identity(x) }",
        "(float[1099511627776,3,1024,8] x) => (float[] y) { y = Relu(x) }",
        "(float[N,4] x) => (float[N,4] y) { a = Shape(x)  y = Reshape(x, w) }",
    ],
)
def test_what_cannot_be_run_is_undecided(text: str, compare: Compare) -> None:
    unfit = graph(text, w=np.array([7, 7, 7]))
    report = compare(unfit, unfit)
    assert report.verdict is Verdict.UNDECIDED
    assert "the original cannot be run" in report.message
    assert report.runs == 0


def test_a_crash_of_the_original_is_undecided_and_of_the_result_a_failure(compare: Compare) -> None:
    text = "(float[1,2] x) => (float[1,2] y) { y = BatchNormalization(x, s, b, m, v) }"
    ones = {name: np.ones(2, np.float32) for name in "sbmv"}
    sound = graph(text, **ones)
    sound.opset_import[0].version = 8
    crashing = onnx.ModelProto()
    crashing.CopyFrom(sound)
    crashing.graph.node[0].output.extend(["", "", "", ""])
    undecided = compare(crashing, sound)
    assert (undecided.verdict, "crashed" in undecided.message) == (Verdict.UNDECIDED, True)
    failed = compare(sound, crashing)
    assert (failed.verdict, "crashed" in failed.message) == (Verdict.FAIL, True)


def nudged(model: onnx.ModelProto) -> tuple[str, dict[str, Array]]:
    """The text of a model after one nudge, and the initializers that go with it."""
    constants = Constants(model, Path())
    serialized, initializers = constants.nudged(np.random.default_rng(0))
    moved = dict(initializers)
    text = onnx.printer.to_text(onnx.load_from_string(serialized)) if serialized else ""
    return text, moved


def test_constants_that_decide_shapes_and_exponents_are_not_nudged() -> None:
    """Nudged, 2.0 would floor to another size, and a negative number to the power 2.0000002 is NaN."""
    text = """(float[N,4] x) => (float[] y, float[] z) {
        sizes = Shape(x)  real = Cast<to = 1>(sizes)  twice = Mul(real, two)  whole = Floor(twice)
        shape = Cast<to = 7>(whole)  y = ConstantOfShape<value = float[1] {1}>(shape)
        p = Pow(x, e)  z = Mul(p, w)
    }"""
    two = np.array(2, np.float32)
    _, moved = nudged(graph(text, two=two, e=two, w=two))
    assert set(moved) == {"w"}
    # Along data nothing is fixed: the scores come out of the network.
    _, moved = nudged(graph("(float[N] x) => (float[] y) { a = Mul(x, w)  y = Pow(x, a) }", w=two))
    assert set(moved) == {"w"}


def test_a_nudge_is_one_unit_in_the_last_place() -> None:
    stored = np.array([1.5, -0.3, 1e-30, 0, np.inf, 3.4e38], np.float32)
    _, moved = nudged(graph("(float[6] x) => (float[6] y) { y = Mul(x, w) }", w=stored))
    steps = (moved["w"].view(np.int32) - stored.view(np.int32)).tolist()
    assert [abs(step) for step in steps] == [1, 1, 1, 0, 0, 1]


def test_a_constant_that_is_cast_to_a_coarser_type_moves_by_that_types_unit() -> None:
    text = "(float16[1] x) => (float16[1] y) { h = Cast<to = 10>(w)  y = Mul(x, h) }"
    _, moved = nudged(graph(text, w=np.array([1.5], np.float32)))
    assert abs(moved["w"][0] - 1.5) == np.finfo(np.float16).eps  # the spacing of float16 at 1.5


@pytest.mark.parametrize(
    "constant",
    ["value = float[2] {0.3, 0.7}", "value_floats = [0.3, 0.7]", "value_float = 0.3"],
)
def test_constant_nodes_are_nudged_in_inner_graphs_too(constant: str, compare: Compare) -> None:
    text = f"""(bool c) => (float[] y) {{
        y = If(c) <then_branch = t () => (float[] a) {{ a = Constant<{constant}>() }},
                   else_branch = e () => (float[] b) {{ b = Constant<{constant}>() }}>
    }}"""
    moved, _ = nudged(graph(text))
    assert "then_branch" in moved
    assert "0.3," not in moved and "{0.3}" not in moved
    assert compare(graph(text), graph(text.replace("0.3", "0.301"))).verdict is Verdict.FAIL


def test_a_frozen_initializer_is_no_missing_input(compare: Compare) -> None:
    text = "(float[N,4] x, float[4] w) => (float[N,4] y) { y = Mul(x, w) }"
    weight = np.arange(4, dtype=np.float32)
    frozen = graph(text.replace(", float[4] w", ""), w=weight)
    assert compare(graph(text, w=weight), frozen).verdict is Verdict.PASS
    assert compare(graph(text, w=weight + 1), frozen).verdict is Verdict.FAIL


def test_external_data_is_read_in_place(session: Session, tmp_path: Path) -> None:
    layer = ordinary()
    build_path, fold_path = tmp_path / "original.onnx", tmp_path / "folded.onnx"
    for path, net in ((build_path, [layer]), (fold_path, [folded(layer)])):
        data = path.stem + ".data"
        onnx.save(build(net), path, save_as_external_data=True, size_threshold=0, location=data)
    report = verify.compare(session, build_path, fold_path)
    assert report.verdict is Verdict.PASS
    assert report.outputs[0].noise > 0


def test_the_same_seed_gives_the_same_report(session: Session, tmp_path: Path) -> None:
    layer = ordinary()
    onnx.save(build([layer]), tmp_path / "a.onnx")
    onnx.save(build([folded(layer)]), tmp_path / "b.onnx")
    reports = [verify.compare(session, tmp_path / "a.onnx", tmp_path / "b.onnx", seed=s) for s in (3, 3, 4)]
    assert reports[0] == reports[1] != reports[2]


def test_check_starts_its_own_process_and_imports_no_onnxruntime(tmp_path: Path) -> None:
    onnx.save(build([ordinary()]), tmp_path / "a.onnx")
    loaded = "onnxruntime" in sys.modules
    assert verify.check(tmp_path / "a.onnx", tmp_path / "a.onnx").verdict is Verdict.PASS
    assert ("onnxruntime" in sys.modules) == loaded


def test_a_time_out_of_the_original_is_undecided(tmp_path: Path) -> None:
    onnx.save(build([ordinary()]), tmp_path / "a.onnx")
    report = verify.check(tmp_path / "a.onnx", tmp_path / "a.onnx", timeout=0.01)
    assert report.verdict is Verdict.UNDECIDED
    assert "no answer within 0.01 s" in report.message
