"""Graphs where several things come together: one value in several roles, long chains, unusual operands."""

from __future__ import annotations

import time

import numpy as np
import pytest
from cases import MERGED, PULLED, PUSHED, REMOVED, Case, case, check, fates, prove
from graphs import drawn, model, norm, ops

from bnfold.report import Reason

ROWS = "float[N,5,6]"
UP = norm(4) | {"scale": [0.5, 1.0, 2.0, 3.0]}
PICK = {"x": drawn("x", 2, 3, 8, 8), "p": np.array(True)}

# fmt: off
ROLES = [
    case("the convolution is also asked for its shape", "c = Conv(x, w) z = Shape(c) y = BN(c)", "Conv Shape",
         PULLED, gives="int64[] z", w=(4, 3, 1, 1), **norm(4)),
    case("the convolution is also asked for its type", "c = Conv(x, w) z = CastLike(i, c) y = BN(c)",
         "Conv CastLike", PULLED, also="int64[3] i", gives="float[] z", w=(4, 3, 1, 1), **norm(4)),
    case("one tensor is bias of the convolution and mean of the normalization",
         "c = Conv(x, w, mean) y = BN(c)", "Conv", PULLED, w=(4, 3, 1, 1), **norm(4)),
    case("one tensor is weight of the convolution and scale behind it", "c = Conv(x, w) y = Mul(c, w)",
         "Conv", PULLED, x="float[N,1,8,8]", w=[[[[0.75]]]]),
    case("b + b before a convolution", "b = BN(x) a = Add(b, b) y = Conv(a, w)", "Add Conv", PUSHED,
         w=(4, 3, 1, 1), **norm(3)),
    case("b - b before a convolution", "b = BN(x) a = Sub(b, b) y = Conv(a, w)", "Sub Conv", PUSHED,
         w=(4, 3, 1, 1), **norm(3)),
    case("c - c after a convolution leaves the shift alone", "c = Conv(x, w) a = Sub(c, c) y = Mul(a, s)",
         "Conv Sub", PULLED, w=(4, 3, 1, 1), s=(4, 1, 1)),
    case("b · b", "b = BN(x) a = Mul(b, b) y = Conv(a, w)", "BatchNormalization Mul Conv", Reason.GRAPH_INPUT,
         w=(4, 3, 1, 1), **norm(3)),
    case("a product with itself, transposed", "b = Mul(x, s) y = MatMul(b, b)", "Mul MatMul",
         Reason.NOT_CONSTANT, x="float[6,6]", s=(6,)),
    case("the weights of a convolution are normalized data", "b = BN(k) y = Conv(x, b)",
         "BatchNormalization Conv", Reason.NOT_CONSTANT, also="float[4,3,1,1] k", **norm(3)),
    case("an outer value, times one, is the result of a branch",
         "c = Sigmoid(x) y = If (p) <then_branch = t () => (float[] u) { u = Mul(c, o) }, else_branch = e "
         "() => (float[] v) { v = Neg(c) }>", "Sigmoid If Identity Neg", REMOVED, Reason.CAPTURED,
         also="bool p", feeds=PICK, o=1.0),
    case("runs on two axes are two runs", "c = Conv(x, w) a = Mul(c, s) y = Mul(a, k)", "Conv Mul", PULLED,
         Reason.AXIS, w=(4, 3, 1, 1), s=(4, 1, 1), k=(8,)),
    case("the batch is no channel", "c = Conv(x, w) y = Mul(c, s)", "Conv Mul", Reason.AXIS,
         x="float[4,3,8,8]", w=(4, 3, 1, 1), s=(4, 1, 1, 1)),
]

OPERANDS = [
    case("the numerator of a quotient takes the scale", "q = Div(k, x) y = Mul(q, s)", "Div", PULLED,
         k=(3, 1, 1), s=(3, 1, 1), feeds={"x": drawn("pos x", 2, 3, 8, 8)}),
    case("the denominator cannot", "c = Conv(x, w) q = Div(x, c) y = BN(q)", "Conv Div BatchNormalization",
         Reason.GRAPH_INPUT, w=(3, 3, 1, 1), **norm(3)),
    case("Sum of a convolution and a constant", "c = Conv(x, w) a = Sum(c, k) y = BN(a)", "Conv Sum", PULLED,
         w=(4, 3, 1, 1), k=(4, 1, 1), **norm(4)),
    case("Sum of one", "c = Conv(x, w) a = Sum(c) y = BN(a)", "Conv Sum", PULLED, w=(4, 3, 1, 1), **norm(4)),
    case("Sum of a value three times", "c = Conv(x, w) a = Sum(c, c, c) y = BN(a)", "Conv Sum", PULLED,
         w=(4, 3, 1, 1), **norm(4)),
    case("a weight for each of the batch", "m = MatMul(x, w) y = Mul(m, s)", "MatMul", PULLED,
         x="float[2,5,6]", w=(2, 6, 4), s=(4,)),
    case("a scale before a weight for each of the batch", "b = Mul(x, s) y = MatMul(b, w)", "MatMul", PUSHED,
         x="float[2,5,6]", w=(2, 6, 4), s=(6,)),
    case("rows before a weight for each of the batch", "b = BN(x) y = MatMul(w, b)",
         "BatchNormalization MatMul", Reason.SHIFT, x="float[2,5,6]", w=(2, 4, 5), **norm(5)),
    case("Gemm of constant times data", "h = MatMul(x, v) g = Gemm(w, h, c) y = BN(g)", "MatMul Gemm", PULLED,
         x="float[3,6]", v=(6, 4), w=(5, 3), c=(4,), **norm(4)),
    case("Gemm, a factor per row", "g = Gemm(x, w) y = Mul(g, s)", "Gemm Mul", Reason.AXIS, x="float[3,6]",
         w=(6, 4), s=(3, 1)),
    case("Gemm, a factor for all, and alpha", "g = Gemm <alpha = 2.0, beta = 3.0> (x, w, c) y = Mul(g, s)",
         "Gemm", PULLED, x="float[3,6]", w=(6, 4), c=(3, 1), s=0.5),
    case("PRelu with slopes that are data", "c = Conv(x, w) d = Conv(x, v) r = PRelu(c, d) y = Mul(r, s)",
         "Conv Conv PRelu", PULLED, w=(2, 3, 1, 1), v=(2, 3, 1, 1), s=[[[2.0]], [[3.0]]]),
    case("PRelu forward", "b = Mul(x, s) r = PRelu(b, a) y = Conv(r, w)", "PRelu Conv", PUSHED, a=(3, 1, 1),
         w=(2, 3, 1, 1), s=[[[2.0]], [[3.0]], [[0.5]]]),
    case("the slopes of PRelu are scaled", "b = Mul(x, s) r = PRelu(z0, b) y = Conv(r, w)", "Mul PRelu Conv",
         Reason.GRAPH_INPUT, also="float[N,3,8,8] z0", w=(2, 3, 1, 1), s=[[[2.0]], [[3.0]], [[0.5]]]),
    case("a constant Pad in float64 at opset 9, whose value is a float32",
         "c = Conv(x, w) p = Pad <pads = [0,0,1,1,0,0,1,1], value = 1.0> (c) y = Mul(p, s)", "Conv Pad Mul",
         Reason.DTYPE, x="double[N,3,8,8]", opset=9, w=(2, 3, 1, 1), s=np.float64(1 / 3)),
    case("a constant Pad in float32 at opset 9",
         "c = Conv(x, w) p = Pad <pads = [0,0,1,1,0,0,1,1], value = 1.0> (c) y = Mul(p, s)", "Conv Pad",
         PULLED, opset=9, w=(2, 3, 1, 1), s=1 / 3),
    case("LayerNormalization over two axes", "l = LayerNormalization <axis = -2> (x, g) y = BN(l)",
         "LayerNormalization", PULLED, x=ROWS, g=(5, 6), **norm(5)),
    case("LayerNormalization whose statistics are read",
         "l, z = LayerNormalization(x, g, c) a = Mul(l, s) y = Add(a, t)", "LayerNormalization", PULLED,
         x=ROWS, gives="float[] z", g=(6,), c=(6,), s=(6,), t=(6,)),
    case("LayerNormalization, the other axis", "l = LayerNormalization(x, g, c) y = BN(l)",
         "LayerNormalization BatchNormalization", Reason.AXIS, x=ROWS, g=(6,), c=(6,), **norm(5)),
    case("Dropout in training mode", "c = Conv(x, w) d = Dropout(c, r, m) y = BN(d)",
         "Conv Dropout BatchNormalization", Reason.TRAINING_MODE, w=(4, 3, 1, 1), r=np.float32(0.0),
         m=np.array(True), **norm(4)),
    case("Dropout of opset 6 in training mode", "c = Conv(x, w) d = Dropout(c) y = BN <is_test = 1> (d)",
         "Conv Dropout BatchNormalization", Reason.TRAINING_MODE, opset=6, w=(4, 3, 1, 1), **norm(4)),
    case("Dropout of opset 6 at rest",
         "c = Conv(x, w) d = Dropout <is_test = 1> (c) y = BN <is_test = 1> (d)", "Conv Dropout", PULLED,
         opset=6, w=(4, 3, 1, 1), **norm(4)),
    case("into a normalization in training mode", "c = BN <training_mode = 1> (x) y = Mul(c, s)",
         "BatchNormalization Mul", Reason.TRAINING_MODE, Reason.TRAINING_MODE, s=(3, 1, 1), **norm(3)),
    case("a Slice to the end of time", "c = Conv(x, w) p = Slice(c, i, j, k) y = BN(p)", "Conv Slice", PULLED,
         i=[-2], j=[np.iinfo(np.int64).max], k=[-3], w=(4, 3, 1, 1), **norm(2)),
    case("Gather of one channel, which takes the axis away",
         "b = BN(x) p = Gather <axis = -3> (b, i) y = MatMul(p, w)", "Gather MatMul Add", PUSHED,
         i=np.int64(-1), w=(8, 4), **norm(3)),
    case("Upsample of opset 7",
         'c = Conv(x, w) u = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (c) y = BN(u)',
         "Conv Upsample", PULLED, opset=7, w=(4, 3, 1, 1), **norm(4)),
    case("Upsample of opset 9", 'c = Conv(x, w) u = Upsample <mode = "linear"> (c, i) y = BN(u)',
         "Conv Upsample", PULLED, opset=9, i=[1.0, 1.0, 2.0, 2.0], w=(4, 3, 1, 1), **norm(4)),
    case("Resize of opset 10", 'c = Conv(x, w) u = Resize <mode = "linear"> (c, i) y = BN(u)', "Conv Resize",
         PULLED, opset=10, i=[1.0, 1.0, 2.0, 2.0], w=(4, 3, 1, 1), **norm(4)),
    case("Resize with sizes, of opset 19",
         'c = Conv(x, w) u = Resize <mode = "cubic", antialias = 1, axes = [2, 3]> (c, , , i) y = BN(u)',
         "Conv Resize", PULLED, opset=19, i=[5, 5], w=(4, 3, 1, 1), **norm(4)),
]

NUMBERS = [
    case("two factors that float16 cannot hold as one",
         "s0 = Sigmoid(x) a = Mul(s0, k) b = Mul(a, k) y = Tanh(b)", "Sigmoid Mul Mul Tanh", Reason.OVERFLOW,
         x="float16[N,3,8,8]", k=np.float16(300)),
    case("a factor that float16 cannot hold on the way",
         "c = Conv(x, w) a = Mul(c, k) b = Mul(a, k) d = Mul(b, l) y = Mul(d, l)", "Conv", PULLED,
         x="float16[N,3,8,8]", w=(4, 3, 1, 1), k=np.float16(300), l=np.float16(1 / 256)),
    case("a huge mean and a small variance", "c = Conv(x, w) y = BN(c)", "Conv", PULLED, w=(2, 3, 1, 1),
         **norm(2) | {"mean": [1e5, -1e5], "var": [1e-8, 1e-12]}),
    case("a variance of 1e-45", "c = Conv(x, w) y = BN <epsilon = 0.0> (c)", "Conv", PULLED, w=(2, 3, 1, 1),
         **norm(2) | {"var": [1e-45, 1.0]}),
    case("a variance of 1e38", "c = Conv(x, w) y = BN(c)", "Conv", PULLED, w=(2, 3, 1, 1),
         **norm(2) | {"var": [1e38, 1.0]}),
    case("all weights are zero", "c = Conv(x, w) y = BN(c)", "Conv", PULLED,
         w=np.zeros((2, 3, 1, 1), np.float32), **norm(2)),
    case("a scale of zero for all", "c = Conv(x, w) y = BN(c)", "Conv", PULLED, w=(2, 3, 1, 1),
         **norm(2) | {"scale": [0.0, 0.0]}),
    case("a scale of zero, forward", "b = BN(x) y = Conv(b, w)", "Conv", PUSHED, w=(2, 3, 1, 1),
         **norm(3) | {"scale": [0.0, 1.0, 0.0]}),
    case("a scale of zero before Relu keeps the shift there", "b = BN(x) r = Relu(b) y = Conv(r, w)",
         "BatchNormalization Relu Conv", Reason.SIGN, w=(2, 3, 1, 1), **norm(3) | {"scale": [0.0, 1.0, 2.0]}),
    case("Relu between normalization and padded convolution: the shift stays before",
         "b = BN(x) r = Relu(b) y = Conv <pads = [1,1,1,1]> (r, w)", "Add Relu Conv", PUSHED, w=(2, 3, 3, 3),
         **norm(3) | {"scale": [0.5, 1.0, 2.0]}),
    case("one over the smallest number", "c = Conv(x, w) y = Div(c, k)", "Conv Div", Reason.OVERFLOW,
         w=(2, 3, 1, 1), k=np.float32(1e-45)),
]
# fmt: on


@pytest.mark.parametrize("case", [*ROLES, *OPERANDS])
def test_roles_and_operands(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers(case: Case) -> None:
    check(case)


def test_a_way_longer_than_the_stack_of_python() -> None:
    length = 1200
    steps = " ".join(f"v{i + 1} = Transpose <perm = [0,1,3,2]> (v{i})" for i in range(length))
    text = (
        f"c = Conv(x, w) v0 = Identity(c) {steps} y = BatchNormalization(v{length}, scale, bias, mean, var)"
    )
    before = model(f"(float[N,3,8,8] x) => (float[] y) {{ {text} }}", w=(4, 3, 1, 1), **norm(4))
    after, report = prove(before)
    assert fates(report) == (PULLED,)
    assert len(ops(after)) == length + 2


def test_a_run_longer_than_the_stack_of_python() -> None:
    length = 1200
    steps = " ".join(f"v{i + 1} = {'Add' if i % 2 else 'Mul'}(v{i}, k{i % 2})" for i in range(length))
    text = f"v0 = Sigmoid(x) {steps} y = Tanh(v{length})"
    before = model(f"(float[N,3,8,8] x) => (float[] y) {{ {text} }}", k0=np.float32(-0.999), k1=(3, 1, 1))
    start = time.perf_counter()
    after, report = prove(before)
    assert fates(report) == (MERGED,)
    assert len(ops(after)) < 5
    assert time.perf_counter() - start < 30  # a quadratic walk over the run would take minutes
