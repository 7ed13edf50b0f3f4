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
PER_CHANNEL = (4, 1, 1)


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
GRAPHS: dict[Reason, onnx.ModelProto] = {
    Reason.TRAINING_MODE: graph(f"c = Conv(x, w) y = {BN}<training_mode=1>(c, {PARTS})", **W, **norm(4)),
    Reason.EXTRA_OUTPUTS: graph(f"c = Conv(x, w) y, m = {BN}(c, {PARTS})", **W, **norm(4)),
    Reason.SPATIAL: model(f"({IMG} x) => ({IMG} y) {{ y = {BN}<spatial=0>(x, {PARTS}) }}", opset=8,
                          **dict.fromkeys(norm(3), (3, 8, 8))),
    Reason.RUNTIME_PARAMETERS: graph(f"y = {BN}(x, s, bias, mean, var)", f"{IMG} x, float[3] s"),
    Reason.NOT_PER_CHANNEL: graph("c = Conv(x, w) y = Mul(c, f)", f=(6, 6), **W),
    Reason.NEGATIVE_VARIANCE: graph(f"c = Conv(x, w) y = {BN}(c, {PARTS})", **W,
                                    **norm(4) | {"var": -positive("v", 4)}),
    Reason.NOT_FINITE: graph(f"c = Conv(x, w) y = {BN}(c, {PARTS})", **W, **norm(4) | {"mean": [np.nan] * 4}),
    Reason.FROM_CONSTANT: graph(f"k2 = {BN}(k, {PARTS}) y = Mul(x, k2)", k=(1, 3, 8, 8)),
    Reason.SEVERAL_READERS: graph(f"c = Conv(x, w) n = {BN}(c, {PARTS}) y = Sum(c, n)", **W, **norm(4)),
    Reason.GRAPH_OUTPUT: graph(f"c = Conv(x, w) y = {BN}(c, {PARTS})", outputs="float[] c, float[] y", **W,
                               **norm(4)),
    Reason.CAPTURED: graph(
        f"""c = Conv(x, w) n = {BN}(c, {PARTS}) r = Sigmoid(n)
        y = If(p) <then_branch = a () => (float[] t) {{ t = Add(r, c) }},
                   else_branch = b () => (float[] e) {{ e = Neg(r) }}>""", f"{IMG} x, bool p", **W, **norm(4)),
    Reason.GRAPH_INPUT: graph(f"n = {INFERENCE} y = Sigmoid(n)"),
    Reason.FUNCTION_ARGUMENT: with_function(),
    Reason.UNREAD: graph(f"n = {INFERENCE} y = Sigmoid(x)"),
    Reason.NOT_LINEAR: graph(f"{S} n = {BN}(i, {PARTS}) y = Sigmoid(n)"),
    Reason.AXIS: graph("c = Conv(x, w) y = Mul(c, f)", f=(6,), **W),
    Reason.PADDING: graph(f"{S} n = {BN}(i, {PARTS}) y = Conv<pads=[1,1,1,1]>(n, w)", **W),
    Reason.SIGN: graph(f"c = Conv(x, w) m = MaxPool<kernel_shape=[2,2]>(c) y = {BN}(m, {PARTS})", **W,
                       **norm(4) | {"scale": -positive("s", 4)}),
    Reason.SHIFT: graph("r = Relu(x) y = Add(r, f)", f=(3, 1, 1)),
    Reason.BROADCAST: graph("i = Sigmoid(z) c = Conv(x, w) a = Add(c, i) y = Mul(a, f)",
                            f"{IMG} x, float[6] z", f=PER_CHANNEL, **W),
    Reason.MIXED_CHANNELS: graph("c = Conv(x, w) r = Reshape(c, to) y = Mul(r, f)", to=[-1, 144], f=(144,), **W),
    Reason.PARTS_DISAGREE: graph("c = Conv(x, w) g = Gather<axis=1>(c, i) y = Mul(g, f)", i=[0, 1, 0], f=(3, 1, 1),
                                 **W),
    Reason.OTHER_OUTPUT: graph("c = Conv(x, w) m, at = MaxPool<kernel_shape=[2,2]>(c) y = Mul(m, f)",
                               outputs="float[] y, int64[] at", f=positive("f", 4, 1, 1), **W),
    Reason.OVERRIDABLE: graph("c = Conv(x, w) y = Mul(c, f)", f"{IMG} x, float[4,1,1] f", f=PER_CHANNEL, **W),
    Reason.QUANTIZED: graph("d = DequantizeLinear(q, one) c = Conv(x, d) y = Mul(c, f)", q=np.ones((4, 3, 3, 3), np.int8),
                            one=1.0, f=PER_CHANNEL),
    Reason.TOO_LARGE: graph("big = ConstantOfShape(n) c = Mul(x, big) y = Sigmoid(c)", n=[3, 2**15, 2**15]),
    Reason.DTYPE: graph(f"y = {BN}(x, scale, bias, mean, v)", v=np.ones(3, np.int64)),
    Reason.UNKNOWN_SHAPE: graph("r = Reshape(x, to) c = Mul(r, f) y = Sigmoid(c)", f"{IMG} x, int64[4] to", f=(3, 1, 1)),
    Reason.NOT_STATIC: graph("c = Conv(x, w) g = Gather<axis=1>(c, i) y = Mul(g, f)", f"{IMG} x, int64[5] i",
                             f=(5, 1, 1), **W),
    Reason.NOT_CONSTANT: graph("i = Sigmoid(v) n = Mul(x, f) y = Conv(n, i)", f"{IMG} x, float[4,3,3,3] v", f=(3, 1, 1)),
    Reason.MALFORMED: graph(f"y = {BN}<epsilon=1>(x, {PARTS})"),
    Reason.OVERFLOW: graph("c = Conv(x, w) y = Mul(c, f)", w=(4, 3, 3, 3), f=np.full((4, 1, 1), 3e38, np.float32)),
    Reason.UNDERFLOW: graph("c = Conv(x, w) y = Mul(c, f)", w=np.full((4, 3, 3, 3), 1e-30, np.float32),
                            f=np.full((4, 1, 1), 1e-30, np.float32)),
    Reason.NO_GAIN: graph(f"{S} m = Mul(i, f) a = Add(m, g) y = Sigmoid(a)", f=(3, 1, 1), g=(3, 1, 1)),
}  # fmt: skip


def test_every_reason_has_a_graph() -> None:
    assert set(GRAPHS) == set(Reason)


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
