"""Every reason code is reached by a small graph, which then stays as it is to the last byte."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import folded, model, norm, positive

from bnfold.report import Reason

IMG = "float[N,3,8,8]"
BN = "BatchNormalization"
PARTS = "scale, bias, mean, var"
INFERENCE = f"{BN}(x, {PARTS})"
W: dict[str, Any] = {"w": (4, 3, 3, 3)}
PER_CHANNEL, THREE = (4, 1, 1), (3, 1, 1)
PER_POSITION: dict[str, Any] = dict.fromkeys(norm(3), (3, 8, 8))


def graph(
    nodes: str, inputs: str = f"{IMG} x", outputs: str = "float[] y", **constants: Any
) -> onnx.ModelProto:
    """A graph whose normalizations have the constants of `norm(3)`, unless told otherwise."""
    named = norm(3) | constants
    read = {name: numbers for name, numbers in named.items() if name in constants or name in nodes}
    return model(f"({inputs}) => ({outputs}) {{ {nodes} }}", **read)


def with_function() -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["": 17, "local": 1]>
    test ({IMG} x) => ({IMG} y) {{ y = local.Norm(x, scale, bias, mean, var) }}
    <domain: "local", opset_import: ["": 17]> Norm (a, s, b, m, v) => (r)
    {{ c = Sigmoid(a) d = {BN}(c, s, b, m, v) r = Sigmoid(d) }}"""
    return model(text, **norm(3))


S = "i = Sigmoid(x)"
BRANCHES = """then_branch = a () => (float[] t) { r = Sigmoid(n) t = Add(r, c) },
              else_branch = b () => (float[] e) { e = Sigmoid(n) }"""
R = Reason
GRAPHS: dict[Reason, onnx.ModelProto] = {
    R.TRAINING_MODE: graph(f"c = Conv(x, w) y = {BN}<training_mode=1>(c, {PARTS})", **W, **norm(4)),
    R.EXTRA_OUTPUTS: graph(f"c = Conv(x, w) y, m = {BN}(c, {PARTS})", **W, **norm(4)),
    R.SPATIAL: graph(f"y = {BN}<spatial=0>(x, {PARTS})", opset=8, **PER_POSITION),
    R.RUNTIME_PARAMETERS: graph(f"y = {BN}(x, s, bias, mean, var)", f"{IMG} x, float[3] s"),
    R.NOT_PER_CHANNEL: graph("c = Conv(x, w) y = Mul(c, f)", f=(6, 6), **W),
    R.NEGATIVE_VARIANCE: graph(f"c = Conv(x, w) y = {BN}(c, {PARTS})", **W,
         **norm(4) | {"var": -positive("v", 4)}),
    R.NOT_FINITE: graph(f"c = Conv(x, w) y = {BN}(c, {PARTS})", **W, **norm(4) | {"mean": [np.nan] * 4}),
    R.FROM_CONSTANT: graph(f"k2 = {BN}(k, {PARTS}) y = Mul(x, k2)", k=(1, 3, 8, 8)),
    R.SEVERAL_READERS: graph(f"c = Conv(x, w) n = {BN}(c, {PARTS}) y = Sum(c, n)", **W, **norm(4)),
    R.GRAPH_OUTPUT: graph(f"c = Conv(x, w) y = {BN}(c, {PARTS})", outputs="float[] c, float[] y", **W,
         **norm(4)),
    R.CAPTURED: graph(f"c = Conv(x, w) n = {BN}(c, {PARTS}) y = If(p) <{BRANCHES}>", f"{IMG} x, bool p", **W,
                      **norm(4)),
    R.GRAPH_INPUT: graph(f"n = {INFERENCE} y = Sigmoid(n)"),
    R.FUNCTION_ARGUMENT: with_function(),
    R.UNREAD: graph(f"n = {INFERENCE} y = Sigmoid(x)"),
    R.NOT_LINEAR: graph(f"{S} n = {BN}(i, {PARTS}) y = Sigmoid(n)"),
    R.AXIS: graph("c = Conv(x, w) y = Mul(c, f)", f=(6,), **W),
    R.PADDING: graph(f"{S} n = {BN}(i, {PARTS}) y = Conv<pads=[1,1,1,1]>(n, w)", **W),
    R.SIGN: graph(f"c = Conv(x, w) m = MaxPool<kernel_shape=[2,2]>(c) y = {BN}(m, {PARTS})", **W,
         **norm(4) | {"scale": -positive("s", 4)}),
    R.SHIFT: graph("r = Relu(x) y = Add(r, f)", f=THREE),
    R.BROADCAST: graph("i = Sigmoid(z) c = Conv(x, w) a = Add(c, i) y = Mul(a, f)", f"{IMG} x, float[6] z",
         f=PER_CHANNEL, **W),
    R.MIXED_CHANNELS: graph("c = Conv(x, w) r = Reshape(c, to) y = Mul(r, f)", to=[-1, 144], f=(144,), **W),
    R.PARTS_DISAGREE: graph("c = Conv(x, w) g = Gather<axis=1>(c, i) y = Mul(g, f)", i=[0, 1, 0], f=THREE,
         **W),
    R.OTHER_OUTPUT: graph("c = Conv(x, w) m, at = MaxPool<kernel_shape=[2,2]>(c) y = Mul(m, f)",
         outputs="float[] y, int64[] at", f=positive("f", 4, 1, 1), **W),
    R.OVERRIDABLE: graph("c = Conv(x, w) y = Mul(c, f)", f"{IMG} x, float[4,1,1] f", f=PER_CHANNEL, **W),
    R.QUANTIZED: graph("d = DequantizeLinear(q, one) c = Conv(x, d) y = Mul(c, f)",
         q=np.ones((4, 3, 3, 3), np.int8), one=1.0, f=PER_CHANNEL),
    R.TOO_LARGE: graph("big = ConstantOfShape(n) c = Mul(x, big) y = Sigmoid(c)", n=[3, 2**15, 2**15]),
    R.DTYPE: graph(f"y = {BN}(x, scale, bias, mean, v)", v=np.ones(3, np.int64)),
    R.UNKNOWN_SHAPE: graph("r = Reshape(x, to) c = Mul(r, f) y = Sigmoid(c)", f"{IMG} x, int64[4] to",
         f=THREE),
    R.NOT_STATIC: graph("c = Conv(x, w) g = Gather<axis=1>(c, i) y = Mul(g, f)", f"{IMG} x, int64[5] i",
         f=(5, 1, 1), **W),
    R.NOT_CONSTANT: graph("i = Sigmoid(v) n = Mul(x, f) y = Conv(n, i)", f"{IMG} x, float[4,3,3,3] v",
         f=THREE),
    R.MALFORMED: graph(f"y = {BN}<epsilon=1>(x, {PARTS})"),
    R.OVERFLOW: graph("c = Conv(x, w) y = Mul(c, f)", w=(4, 3, 3, 3), f=np.full((4, 1, 1), 3e38, np.float32)),
    R.UNDERFLOW: graph("c = Conv(x, w) y = Mul(c, f)", "float16[N,3,8,8] x", "float16[] y", **W,
                       f=np.full((4, 1, 1), 1e-6, np.float16)),
    R.NARROWER: graph("c = Conv(x, w) d = Cast<to=11>(c) a = Sub(d, k) y = Sigmoid(a)", outputs="double[] y",
         k=np.array(1e9), **W),
    R.NO_GAIN: graph(f"{S} m = Mul(i, f) a = Add(m, g) y = Sigmoid(a)", f=THREE, g=THREE),
}  # fmt: skip


def test_every_reason_has_a_graph() -> None:
    in_pytorch = {R.UNTRACED, R.IN_CODE, R.MUTATED}  # only code has them: tests/test_pytorch_fold.py
    assert set(GRAPHS) | in_pytorch == set(Reason)


@pytest.mark.parametrize(("reason", "before"), GRAPHS.items(), ids=[r.name for r in GRAPHS])
def test_a_reason_is_reached(reason: Reason, before: onnx.ModelProto) -> None:
    after, report = folded(before)
    assert reason in {d.reason for d in report.kept}, [(d.reason, d.detail) for d in report.decisions]
    assert not report.modified
    assert after == ir.to_proto(ir.from_proto(before))


@pytest.mark.parametrize("reason", Reason, ids=[r.name for r in Reason])
def test_a_reason_says_what_and_what_to_do(reason: Reason) -> None:
    assert reason.value.startswith("BNF") and reason.sentence.endswith(".") and reason.remedy.endswith(".")


def test_codes_are_distinct() -> None:
    assert len({reason.value for reason in Reason}) == len(Reason)
