"""Verification: first what differs, then what may not be called different.

The folds here are made by four lines of float64 arithmetic of this file, not by the package: the
checker must not be judged by what it is there to judge.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

import bnfold
from bnfold import InputError, Limit, Verdict, VerifyReport
from bnfold.feeds import Feed

Array = NDArray[Any]
Compare = Callable[..., VerifyReport]


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    """In float64 alone; what onnxruntime adds is tested with the runtime gate."""

    def compared(reference: onnx.ModelProto, candidate: onnx.ModelProto, **how: Any) -> VerifyReport:
        onnx.save(reference, tmp_path / "reference.onnx")
        onnx.save(candidate, tmp_path / "candidate.onnx")
        return bnfold.verify(
            tmp_path / "reference.onnx", tmp_path / "candidate.onnx", **{"runtime": False} | how
        )

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
    """A chain; the value that a layer computes is called n0, n1, ... with its normalization and without."""
    nodes, constants, value = [], [], "x"

    def constant(name: str, array: Array) -> str:
        constants.append(numpy_helper.from_array(array, name))
        return name

    for i, layer in enumerate(net):
        pads: dict[str, Any] = {} if layer.op_type == "Gemm" else {"pads": layer.pads}
        inputs = [value, constant(f"w{i}", layer.weight), constant(f"b{i}", layer.bias)]
        value = f"n{i}" if layer.norm is None else f"c{i}"
        nodes.append(helper.make_node(layer.op_type, inputs, [value], **pads))
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
            # Smaller ones would fold to subnormal numbers of float16, which have fewer digits.
            scale, shift = (scale * 0.05, shift * 1e-3) if half else (scale * 1e-3, shift * 1e-7)
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


def ordinary_square(seed: int) -> Layer:
    """One that such layers can follow: five channels in, five out."""
    rng = np.random.default_rng(seed)
    norm = (rng.uniform(0.5, 2, 5), rng.uniform(0.5, 2, 5), rng.standard_normal(5), rng.uniform(0.5, 2, 5))
    weight = (rng.standard_normal((5, 5, 3, 3)) / 6).astype(np.float32)
    bias = rng.standard_normal(5).astype(np.float32)
    return Layer("Conv", weight, bias, tuple(a.astype(np.float32) for a in norm), 1e-5)


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
    assert report.culprit is not None and report.culprit.ratio > 4
    assert "'n0' (BatchNormalization 'n0')" in report.message  # the first tensor that differs, not the output


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
    assert "index 3 of axis 1" in report.message


def test_correct_folds_pass(compare: Compare) -> None:
    """No false alarm on ordinary and extreme statistics, float32 and float16."""
    ratios = []
    for seed in range(60):
        net = random_net(seed)
        report = compare(build(net), build([folded(layer) for layer in net]))
        assert report.verdict is Verdict.PASS, f"seed {seed}: {report.message}"
        assert report.algebra.draws >= 16 and len(report.algebra.tensors) >= 2 * len(net)
        (output,) = report.algebra.outputs
        assert output.check is not None and output.metrics is not None
        ratios.append(output.check.ratio)
    # A yardstick that is too long would pass anything: typical folds come out near one half.
    assert 0.05 < float(np.median(ratios)) < 2


def graph(text: str, *, opset: int = 17, **constants: Array) -> onnx.ModelProto:
    parsed = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {text}')
    parsed.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    return parsed


NORMAL = np.random.default_rng(0).standard_normal
SCORES = NORMAL((4, 9)).astype(np.float32)


class TestWhoIsToBlame:
    @pytest.mark.parametrize("guilty", [0, 3, 7])
    def test_the_layer_at_fault_is_named_and_no_other(self, guilty: int, compare: Compare) -> None:
        net = [ordinary_square(i) for i in range(8)]
        wrong = [
            with_norm(layer, 0, first(1.0001)) if i == guilty else folded(layer)
            for i, layer in enumerate(net)
        ]
        report = compare(build(net), build(wrong))
        assert report.verdict is Verdict.FAIL
        assert report.culprit is not None and report.culprit.name == f"n{guilty}"
        # Alone, each later stretch is as it should be; on the way through, the error is carried along.
        later = [t for t in report.algebra.tensors if t.name > f"r{guilty}"]
        assert all(not t.alone for t in later if not t.passed)

    def test_a_fault_that_the_outputs_do_not_show(self, compare: Compare) -> None:
        """The output is 1 whatever comes in: to look at outputs alone is to look away."""
        text = (
            "(float[N,4] x) => (float[N,9] y) { s = MatMul(x, w)  p = Exp(s)  q = Add(p, h)  y = Sigmoid(q) }"
        )
        high, off = np.array(100, np.float32), SCORES * np.float32(1.001)
        models = graph(text, w=SCORES, h=high), graph(text, w=off, h=high)
        report = compare(*models)
        assert report.verdict is Verdict.FAIL
        assert report.culprit is not None and report.culprit.name == "s"
        assert compare(*models, by_name=False).verdict is Verdict.PASS

    def test_a_name_that_means_other_values_is_recognised(self, compare: Compare) -> None:
        """Other tools let the folded convolution keep its own output's name."""
        layer = ordinary()
        kept = build([folded(layer)])
        for node in kept.graph.node:
            for names in (node.input, node.output):
                names[:] = ["c0" if name == "n0" else name for name in names]
        report = compare(build([layer]), kept)
        assert report.verdict is Verdict.PASS, report.message
        (check,) = (t for t in report.algebra.tensors if t.name == "c0")
        assert check.passed and check.problem == "it holds what the reference calls 'n0'"
        kept.graph.initializer[1].CopyFrom(numpy_helper.from_array(layer.bias, "b0"))
        assert compare(build([layer]), kept).verdict is Verdict.FAIL

    def test_an_output_is_never_taken_for_another_value(self, compare: Compare) -> None:
        """The convolution's own output is one of the graph: a fold that leaves it its name is wrong."""
        text = (
            "(float[N,3,9,9] x) => (float[] y, float[] r) { y = Conv(x, w, b)  z = Mul(y, s)  r = Relu(z) }"
        )
        w, b = NORMAL((4, 3, 3, 3)).astype(np.float32), NORMAL(4).astype(np.float32)
        folded = text.replace("z = Mul(y, s)  r = Relu(z)", "r = Relu(y)")
        report = compare(graph(text, w=w, b=b, s=np.array(2, np.float32)), graph(folded, w=2 * w, b=2 * b))
        assert report.verdict is Verdict.FAIL and report.culprit is not None
        assert report.culprit.name == "y"

    EARLY = """(float[N,3,6,6] x) => (float[N,4,4,4] late, float[N,4,6,6] early)
               { early = Conv(x, w)  mid = Relu(early)  late = Conv(mid, v) }"""

    def test_the_order_is_that_of_computation_for_outputs_too(self, compare: Compare) -> None:
        w, v = NORMAL((4, 3, 1, 1)).astype(np.float32), NORMAL((4, 4, 3, 3)).astype(np.float32)
        report = compare(graph(self.EARLY, w=w, v=v), graph(self.EARLY, w=1.01 * w, v=v))
        assert report.culprit is not None and report.culprit.name == "early"
        assert "'early'" in report.message
        assert [check.name for check in report.algebra.checks] == ["early", "mid", "late"]
        report = compare(graph(self.EARLY, w=w, v=v), graph(self.EARLY, w=w, v=1.01 * v))
        assert report.culprit is not None and report.culprit.name == "late"

    @pytest.mark.parametrize("factor", [1.0, 1.01])
    def test_an_output_of_the_candidate_alone_holds_nothing_up(self, factor: float, compare: Compare) -> None:
        w, v = NORMAL((4, 3, 1, 1)).astype(np.float32), NORMAL((4, 4, 3, 3)).astype(np.float32)
        one = graph(self.EARLY.replace(", float[N,4,6,6] early", ""), w=w, v=v)
        other = graph(self.EARLY.replace("early", "other"), w=w, v=factor * v)
        report = compare(one, other)
        assert [check.name for check in report.algebra.checks] == ["mid", "late"]
        assert report.verdict is (Verdict.PASS if factor == 1.0 else Verdict.FAIL)

    def test_equal_names_of_unrelated_values_fail_unless_only_outputs_count(self, compare: Compare) -> None:
        one = graph("(float[N,4] x) => (float[N,4] y) { t = Exp(x)  y = Neg(t) }")
        other = graph("(float[N,4] x) => (float[N,4] y) { t = Neg(x)  a = Exp(x)  y = Neg(a) z = Neg(t) }")
        other.graph.output.append(helper.make_tensor_value_info("z", 1, None))
        assert compare(one, other).verdict is Verdict.FAIL
        assert compare(one, other, by_name=False).verdict is Verdict.PASS


class TestDecisions:
    ARGMAX = "(float[N,4] x) => (int64[N] y) { s = MatMul(x, w)  y = ArgMax<axis = 1, keepdims = 0>(s) }"
    TIES = "(float[512,4] x) => (int64[512] y) { s = MatMul(x, w)  y = ArgMax<axis = 1, keepdims = 0>(s) }"

    def test_integers_have_to_agree(self, compare: Compare) -> None:
        same = compare(graph(self.ARGMAX, w=SCORES), graph(self.ARGMAX, w=SCORES))
        assert same.verdict is Verdict.PASS
        other = compare(graph(self.ARGMAX, w=SCORES), graph(self.ARGMAX, w=SCORES[:, ::-1].copy()))
        assert other.verdict is Verdict.FAIL

    def test_another_decision_from_the_same_scores_fails(self, compare: Compare) -> None:
        least = self.ARGMAX.replace("ArgMax", "ArgMin")
        report = compare(graph(self.ARGMAX, w=SCORES), graph(least, w=SCORES))
        assert report.verdict is Verdict.FAIL and report.culprit is not None
        assert report.culprit.name == "y"

    # The candidates here have weights that are a whole unit in the last place off, which is up to four times
    # as far as rounding goes, and all to the same side: so a larger tolerance than usual.
    UNIT_OFF = 16.0

    def test_a_tie_may_fall_the_other_way(self, compare: Compare) -> None:
        # Two columns that differ by rounding alone: which is larger, no stored model can say.
        tie = np.repeat(SCORES[:, :1], 2, axis=1)
        moved = np.nextafter(tie, np.array([[np.inf, -np.inf]], np.float32))
        report = compare(graph(self.TIES, w=tie), graph(self.TIES, w=moved), tolerance=self.UNIT_OFF)
        assert report.verdict is Verdict.PASS

    @pytest.mark.parametrize("mine", [True, False], ids=["the candidate's", "the nudged runs'"])
    def test_a_tie_does_not_spoil_what_follows(self, mine: bool, compare: Compare) -> None:
        """Whoever decides otherwise goes on as the reference has decided."""
        tail = "t = Gather(table, k)  y = Mul(t, f) }"
        text = (
            "(float[512,4] x) => (float[512,3] y) { s = MatMul(x, w)  k = ArgMax<axis = 1, keepdims = 0>(s) "
            + tail
        )
        tie = np.repeat(SCORES[:, :1], 2, axis=1)
        moved = np.nextafter(tie, np.array([[np.inf, -np.inf]], np.float32))
        table = NORMAL((2, 3)).astype(np.float32)
        one, slightly = np.ones(3, np.float32), np.array([1, 1, 1.0001], np.float32)
        # Equal columns are nudged alike, so that the reference's own ties hold; others do not.
        ours, theirs = (tie, moved) if mine else (moved, moved)
        reference = graph(text, w=ours, table=table, f=one)
        candidate, wrong = (graph(text, w=theirs, table=table, f=f) for f in (one, slightly))
        report = compare(reference, candidate, tolerance=self.UNIT_OFF)
        (output,) = report.algebra.outputs
        assert report.verdict is Verdict.PASS and output.check is not None
        assert output.check.noise < 1e-6  # and not the distance of one row of the table from the other
        report = compare(reference, wrong, tolerance=self.UNIT_OFF)
        assert report.verdict is Verdict.FAIL and report.culprit is not None
        assert report.culprit.name == "y"

    def test_a_threshold_of_other_value_is_no_tie(self, compare: Compare) -> None:
        text = "(float[4096] x) => (bool[4096] y) { y = Greater(x, t) }"
        limits = (np.array(t, np.float32) for t in (0.5, 0.502))
        report = compare(*(graph(text, t=t) for t in limits))
        assert report.verdict is Verdict.FAIL
        assert report.culprit is not None and report.culprit.name == "y"

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.opset_import[0].__setattr__("version", 12),
            lambda m: m.functions[0].node[0].attribute[0].__setattr__("i", 1),
            lambda m: m.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array(2.0), "c")),
        ],
        ids=["opset", "function", "captured constant"],
    )
    def test_the_same_node_may_mean_something_else(
        self, change: Callable[[Any], None], compare: Compare
    ) -> None:
        """What nothing can run is taken for the same only if every word of it means the same."""
        text = """<ir_version: 8, opset_import: ["": 13, "own": 1]>
        g (double[N,4] x, bool b) => (double[N,4] t, double[N,4] y) {
            t = Neg(x)
            y = If(b) <then_branch = p () => (double[N,4] u) { v = own.Strange(t)  u = Mul(v, c) },
                       else_branch = q () => (double[N,4] w) { w = own.Strange(t) }>
        }
        <domain: "own", opset_import: ["": 13, "other": 1]>
        Strange (a) => (z) { z = other.Unknown <i = 0> (a) }"""
        model = parser.parse_model(text)
        model.graph.initializer.append(numpy_helper.from_array(np.array(1.0), "c"))
        assert compare(model, model).verdict is Verdict.PASS
        other = onnx.ModelProto()
        other.CopyFrom(model)
        change(other)
        assert compare(model, other).verdict is Verdict.UNDECIDED

    def test_rounding_operators_are_decisions(self, compare: Compare) -> None:
        body = "s = MatMul(x, w)  r = Mul(s, k)  q = Round(r)  y = Div(q, k)"
        text = f"(float[N,4] x) => (float[N,9] y) {{ {body} }}"
        k = np.array(1e5, np.float32)  # so many steps that some value lies beside a half
        nudged = np.nextafter(SCORES, np.float32(np.inf))
        report = compare(graph(text, w=SCORES, k=k), graph(text, w=nudged, k=k), tolerance=self.UNIT_OFF)
        assert report.verdict is Verdict.PASS
        (output,) = report.algebra.outputs
        assert output.check is not None and output.check.noise < 1e-6  # a step of a nudged run is 1e-5
        ceil = graph(text.replace("Round", "Ceil"), w=SCORES, k=k)
        assert compare(graph(text, w=SCORES, k=k), ceil).verdict is Verdict.FAIL


class TestNothingToCompare:
    @pytest.mark.parametrize(
        "text",
        [
            "(float[N,4] x) => (float[N,4] y) { a = Abs(x)  b = Neg(a)  c = Add(b, m)  y = Log(c) }",
            "(float[0,4] x) => (float[0,4] y) { y = Relu(x) }",
            "(float[N,4] x) => (float[N,4] y) { y = loc.Unknown(x) }",
            "(string[N] x) => (string[N] y) { y = Identity(x) }",
            "(float[1099511627776,3,1024,8] x) => (float[] y) { y = Relu(x) }",
            "(float[N,4] x) => (float[N,4] y) { a = Shape(x)  y = Reshape(x, w) }",
        ],
    )
    def test_is_undecided(self, text: str, compare: Compare) -> None:
        constants: dict[str, Any] = {"w": np.array([7, 7, 7]), "m": np.array(-1, np.float32)}
        model = graph(text, **constants)
        model.opset_import.append(helper.make_opsetid("loc", 1))
        report = compare(model, model)
        if "Log" in text:  # NaN everywhere, but what it is computed from was compared
            assert report.verdict is Verdict.PASS and "no finite number" in report.algebra.outputs[0].missing
            report = compare(model, model, by_name=False)
        assert report.verdict is Verdict.UNDECIDED
        assert report.message
        if "float[0,4]" in text:
            assert "no tensor of both models holds a finite number" in report.message

    def test_no_output_in_common_is_undecided(self, compare: Compare) -> None:
        report = compare(
            graph("(float[4] x) => (float[4] y) { y = Relu(x) }"),
            graph("(float[4] x) => (float[4] z) { z = Relu(x) }"),
        )
        assert report.verdict is Verdict.UNDECIDED
        assert "no output of this name" in report.message

    def test_behind_a_stored_string_is_undecided(self, compare: Compare) -> None:
        model = graph("(float[4] x) => (float[4] y, string[1] t) { y = Relu(x)  t = Identity(s) }")
        model.graph.initializer.append(helper.make_tensor("s", onnx.TensorProto.STRING, [1], np.array(["a"])))
        assert compare(model, model).verdict is Verdict.UNDECIDED

    def test_one_output_lacking_fails(self, compare: Compare) -> None:
        both = graph("(float[4] x) => (float[4] y, float[4] z) { y = Relu(x)  z = Neg(x) }")
        report = compare(both, graph("(float[4] x) => (float[4] y) { y = Relu(x)  z = Neg(x) }"))
        assert report.verdict is Verdict.FAIL and "lacks the output 'z'" in report.message

    def test_what_nothing_can_run_passes_only_behind_the_same_nodes(self, compare: Compare) -> None:
        text = (
            "(float[N,4] x) => (float[N,9] y) { s = MatMul(x, w)  t = Add(s, b)  y = loc.Unknown<a = 1>(t) }"
        )

        def model(text: str, **constants: Any) -> onnx.ModelProto:
            made = graph(text, **constants)
            made.opset_import.append(helper.make_opsetid("loc", 1))
            return made

        b, c = np.zeros((2, 9), np.float32)
        c[0] = 1e-3
        assert compare(model(text, w=SCORES, b=b), model(text, w=SCORES, b=b)).verdict is Verdict.PASS
        assert compare(model(text, w=SCORES, b=b), model(text, w=SCORES, b=c)).verdict is Verdict.FAIL
        other = model(text.replace("a = 1", "a = 2"), w=SCORES, b=b)
        assert compare(model(text, w=SCORES, b=b), other).verdict is Verdict.UNDECIDED


class TestMasks:
    def test_nan_has_to_be_where_it_was(self, compare: Compare) -> None:
        log = "(float[N,4] x) => (float[N,4] y) { y = Log(x) }"
        clipped = "(float[N,4] x) => (float[N,4] y) { z = Abs(x)  y = Log(z) }"
        assert compare(graph(log), graph(log)).verdict is Verdict.PASS
        report = compare(graph(log), graph(clipped))
        assert report.verdict is Verdict.FAIL and "NaN or infinity in other places" in report.message

    def test_infinity_has_a_sign(self, compare: Compare) -> None:
        text = "(float[N,4] x) => (float[N,4] y) {{ z = Sub(x, x)  y = {}(one, z) }}"
        one = np.ones(4, np.float32)
        up, down = graph(text.format("Div"), one=one), graph(text.format("Div"), one=-one)
        assert compare(up, down).verdict is Verdict.FAIL

    def test_shapes(self, compare: Compare) -> None:
        report = compare(
            graph("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }"),
            graph("(float[N,4] x) => (float[M,K] y) { a = Relu(x)  y = Transpose(a) }"),
        )
        assert report.verdict is Verdict.FAIL and "its shape is" in report.message


class TestLimits:
    REFERENCE = graph(
        "(float[N,4] x) => (float[N,9] y, float[N,9] z) { s = MatMul(x, w)  y = Neg(s)  z = Exp(s) }",
        w=SCORES,
    )
    OFF = graph(
        "(float[N,4] x) => (float[N,9] y, float[N,9] z) { s = MatMul(x, w)  y = Neg(s)  z = Exp(s) }",
        w=SCORES * np.float32(1.0001),
    )

    @pytest.mark.parametrize(
        ("limits", "verdict"),
        [
            ({}, Verdict.FAIL),
            ({"": Limit(rtol=1e-2, atol=1e-3)}, Verdict.PASS),
            ({"": Limit(rtol=1e-6)}, Verdict.FAIL),
            ({"": Limit(rtol=1e-6), "y": Limit(1.0), "z": Limit(1.0)}, Verdict.PASS),
            ({"y": Limit(rtol=1.0)}, Verdict.FAIL),  # z is still judged by its noise
            ({"y": Limit(rtol=1.0), "z": Limit(atol=1.0)}, Verdict.PASS),
        ],
    )
    def test_they_replace_the_noise(
        self, limits: dict[str, Limit], verdict: Verdict, compare: Compare
    ) -> None:
        assert compare(self.REFERENCE, self.OFF, limits=limits).verdict is verdict

    def test_an_unknown_output(self, compare: Compare) -> None:
        with pytest.raises(InputError, match="has no output 'q' to set a limit for; its outputs are y, z"):
            compare(self.REFERENCE, self.OFF, limits={"q": Limit(1.0)})


class TestWhatTheModelsSay:
    def test_differences_are_told_and_decide_nothing(self, compare: Compare) -> None:
        text = "(float[N,4] x) => (float[N,4] y) { y = Relu(x) }"
        other = graph(text.replace("[N,4] y", "[M,4] y"), opset=18)
        other.ir_version = 9
        other.metadata_props.add(key="author", value="me")
        report = compare(graph(text), other)
        assert report.verdict is Verdict.PASS
        assert [d.what for d in report.differences] == ["output", "IR version", "opset", "metadata"]
        assert (report.differences[0].reference, report.differences[0].candidate) == (
            "y: float[N, 4]",
            "y: float[M, 4]",
        )

    @pytest.mark.parametrize("inputs", ["float[N,4] w", "double[N,4] x", "float[N,4] x, float[1] w"])
    def test_other_inputs_are_an_error(self, inputs: str, compare: Compare) -> None:
        reference = graph("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
        name = inputs.split()[1].rstrip(",")
        candidate = graph(f"({inputs}) => (float[N,4] y) {{ y = Relu({name}) }}")
        with pytest.raises(InputError, match="cannot be fed alike"):
            compare(reference, candidate)

    def test_a_frozen_initializer_is_no_missing_input(self, compare: Compare) -> None:
        text = "(float[N,4] x, float[4] w) => (float[N,4] y) { y = Mul(x, w) }"
        weight = np.arange(4, dtype=np.float32)
        frozen = graph(text.replace(", float[4] w", ""), w=weight)
        assert compare(graph(text, w=weight), frozen).verdict is Verdict.PASS
        assert compare(graph(text, w=weight + 1), frozen).verdict is Verdict.FAIL

    def test_a_candidate_that_cannot_be_evaluated_fails(self, compare: Compare) -> None:
        fine = graph("(float[N,4] x) => (float[N,9] y) { y = MatMul(x, w) }", w=SCORES)
        unfit = graph("(float[N,4] x) => (float[N,9] y) { y = MatMul(x, w) }", w=SCORES[:3])
        report = compare(fine, unfit)
        assert report.verdict is Verdict.FAIL and "cannot be evaluated where" in report.message


@pytest.mark.parametrize(
    "constant", ["value = float[2] {0.3, 0.7}", "value_floats = [0.3, 0.7]", "value_float = 0.3"]
)
def test_constants_of_inner_graphs_are_nudged_too(constant: str, compare: Compare) -> None:
    text = f"""(bool c) => (float[] y) {{
        y = If(c) <then_branch = t () => (float[] a) {{ a = Constant<{constant}>() }},
                   else_branch = e () => (float[] b) {{ b = Constant<{constant}>() }}>
    }}"""
    assert compare(graph(text), graph(text)).verdict is Verdict.PASS
    slightly = compare(graph(text), graph(text.replace("0.3", "0.30000001")))
    assert slightly.verdict is Verdict.PASS and slightly.algebra.outputs[0].check is not None
    assert slightly.algebra.outputs[0].check.noise > 0
    assert compare(graph(text), graph(text.replace("0.3", "0.3001"))).verdict is Verdict.FAIL


class TestFeeds:
    def test_large_samples_come_in_twos_as_well(self, compare: Compare) -> None:
        """One sample at a time would not show a batch size that somebody has baked in."""
        head = "(float[N,3,128,128] x) => (float[N,49152] y)"
        baked = graph(f"{head} {{ y = Reshape(x, one) }}", one=np.array([1, -1]))
        report = compare(graph(f"{head} {{ y = Flatten(x) }}"), baked)
        assert report.verdict is Verdict.FAIL and "its shape is [1, 98304]" in report.message
        small = "(float[N,3,8,8] x) => (float[N,192] y)"
        baked = graph(f"{small} {{ y = Reshape(x, one) }}", one=np.array([1, -1]))
        assert compare(graph(f"{small} {{ y = Flatten(x) }}"), baked).verdict is Verdict.FAIL

    def test_a_batch_size_in_a_constant_of_the_same_node(self, compare: Compare) -> None:
        text = """(float[N,3,112,112] x) => (float[N,4] y)
            { c = Conv(x, w)  f = Reshape(c, s)  y = ReduceMean<axes = [2], keepdims = 0>(f) }"""
        w = NORMAL((4, 3, 3, 3)).astype(np.float32)
        models = (graph(text, w=w, s=np.array([n, 4, -1])) for n in (0, 1))
        assert compare(*models).verdict is Verdict.FAIL

    def test_sizes_at_which_padding_differs(self, compare: Compare) -> None:
        """SAME_UPPER is the padding of 1 all around at odd sizes only."""
        text = "(float[N,3,H,W] x) => (float[] y) {{ y = Conv<strides = [2, 2], {}>(x, w) }}"
        w = NORMAL((4, 3, 3, 3)).astype(np.float32)
        same = graph(text.format('auto_pad = "SAME_UPPER"'), w=w)
        assert compare(same, graph(text.format("pads = [1, 1, 1, 1]"), w=w)).verdict is Verdict.FAIL
        assert compare(same, same).verdict is Verdict.PASS

    def test_a_feed_that_the_reference_does_not_bear_counts_for_nothing(self, compare: Compare) -> None:
        """Among zeros there is no first number that is not zero."""
        body = "i = NonZero(x)  y = Gather<axis = 1>(i, o)  z = Mul(x, w)"
        text = f"(float[1,4] x) => (int64[2] y, float[1,4] z) {{ {body} }}"
        model = graph(text, o=np.array(0), w=NORMAL(4).astype(np.float32))
        report = compare(model, model)
        assert report.verdict is Verdict.PASS
        assert "0" not in report.algebra.feeds and len(report.algebra.feeds) >= 3

    def test_the_figures_are_those_of_the_feed_that_shows_most(
        self, compare: Compare, tmp_path: Path
    ) -> None:
        text = "(int64[N] i) => (float[N,2] y) { y = Gather(w, i) }"
        w = np.ones((4, 2), np.float32)
        for name, index in (("0", 0), ("1", 3), ("2", 1)):
            np.savez(tmp_path / f"{name}.npz", i=np.array([index]))
        report = compare(
            graph(text, w=w), graph(text, w=w * np.array([[1], [1], [1], [2]], np.float32)), inputs=tmp_path
        )
        (output,) = report.algebra.outputs
        assert output.metrics is not None and output.metrics.max_abs == 1.0

    def test_every_given_feed_is_walked_through(self, compare: Compare, tmp_path: Path) -> None:
        """A limit on the output is broken by one of three feeds only, wherever that stands."""
        text = "(float[1] x) => (float[1] y) {{ y = {}(x) }}"
        for place in range(3):
            for i in range(3):
                np.savez(tmp_path / f"{i}.npz", x=np.array([-1 if i == place else 1], np.float32))
            report = compare(
                graph(text.format("Identity")),
                graph(text.format("Relu")),
                inputs=tmp_path,
                limits={"": Limit(atol=0.5)},
            )
            assert report.verdict is Verdict.FAIL, place

    def test_what_was_given_but_cannot_be_evaluated(self, compare: Compare, tmp_path: Path) -> None:
        np.savez(tmp_path / "in.npz", x=np.ones((2, 4), np.float32))
        model = graph("(float[N,M] x) => (float[N,9] y) { y = MatMul(x, w) }", w=SCORES[:3])
        with pytest.raises(InputError, match="cannot be evaluated on what it is to be fed"):
            compare(model, model, inputs=tmp_path / "in.npz")


def test_external_data_is_read_in_place(tmp_path: Path) -> None:
    layer = ordinary()
    paths = [tmp_path / "original.onnx", tmp_path / "folded.onnx", tmp_path / "wrong.onnx"]
    for path, net in zip(paths, ([layer], [folded(layer)], [with_norm(layer, 0, first(1.001))]), strict=True):
        data = path.stem + ".data"
        onnx.save(build(net), path, save_as_external_data=True, size_threshold=0, location=data)
    assert bnfold.verify(*paths[:2], runtime=False).verdict is Verdict.PASS
    assert bnfold.verify(paths[0], paths[2], runtime=False).verdict is Verdict.FAIL


def test_the_same_seed_gives_the_same_report(tmp_path: Path) -> None:
    layer = ordinary()
    onnx.save(build([layer]), tmp_path / "a.onnx")
    onnx.save(build([folded(layer)]), tmp_path / "b.onnx")
    reports = [
        bnfold.verify(tmp_path / "a.onnx", tmp_path / "b.onnx", seed=s, runtime=False) for s in (3, 3, 4)
    ]
    assert reports[0] == reports[1] != reports[2]


def test_progress_comes_to_its_end(compare: Compare) -> None:
    shares: list[float] = []
    compare(build([ordinary()]), build([folded(ordinary())]), progress=shares.append)
    assert shares == sorted(shares) and shares[0] < 0.5 and shares[-1] == 1.0


def test_weights_that_lose_their_digits_fail(compare: Compare) -> None:
    """A fold to subnormal numbers is correctly rounded, and yet no longer the same function."""
    layer = ordinary()
    assert layer.norm is not None
    scale, *others = layer.norm
    norm = tuple(a.astype(np.float16) for a in (scale * np.float32(1e-6), *others))
    half = replace(
        layer, weight=layer.weight.astype(np.float16), bias=layer.bias.astype(np.float16), norm=norm
    )
    assert compare(build([half]), build([folded(half)])).verdict is Verdict.FAIL


def test_float64_needs_no_onnxruntime(compare: Compare) -> None:
    loaded = "onnxruntime" in sys.modules
    assert compare(build([ordinary()]), build([folded(ordinary())])).verdict is Verdict.PASS
    assert ("onnxruntime" in sys.modules) == loaded


def test_what_was_fed_can_be_kept(compare: Compare) -> None:
    """Those of float64 arithmetic, as the report names them, then those of onnxruntime."""
    layer = ordinary()
    fed: list[Feed] = []
    report = compare(build([layer]), build([FAULTS["bias lost"](layer)]), fed=fed.append)
    assert tuple(feed.description for feed in fed) == report.algebra.feeds
    assert all(feed.arrays["x"].shape[0] == int(feed.description[2]) for feed in fed)
    asked: list[Feed] = []
    report = compare(build([layer]), build([folded(layer)]), runtime=True, fed=asked.append)
    assert report.runtime is not None
    later = [feed.description for feed in asked[len(report.algebra.feeds) :]]
    assert later == list(dict.fromkeys(check.feed for check in report.runtime.checks))


def test_what_the_reference_does_not_bear_is_not_fed(compare: Compare) -> None:
    model = graph("(float[N,C] x) => (float[N,C] y) { y = Add(x, w) }", w=SCORES[0])
    fed: list[Feed] = []
    report = compare(model, model, fed=fed.append)
    assert report.verdict is Verdict.PASS
    assert {feed.arrays["x"].shape[1] for feed in fed} == {1}
