"""Graphs where several things come together: one value in several roles, long chains, unusual operands."""

from __future__ import annotations

import re
import time
from collections import Counter
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from cases import (
    MERGED,
    PULLED,
    PUSHED,
    REMOVED,
    Case,
    case,
    check,
    compare,
    fates,
    prove,
    spelled_out,
)
from graphs import drawn, folded, inputs, model, norm, ops, positive, run, same, unit_roundoff

from bnfold import fold
from bnfold.evaluate import evaluate
from bnfold.report import Outcome, Reason

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

TO_FLOAT, TO_HALF, TO_DOUBLE = (f"Cast <to = {kind}>" for kind in (1, 10, 11))
STAMPS = np.array([1.7e9])  # as of time stamps: the data are near it, and float32 has a grid of 128 there
LARGE = np.full((4, 3, 1, 1), 500, np.float32)  # above 448, the largest number of float8e4m3fn
SINGLE: dict[str, Any] = {name: drawn(name, 4) for name in norm(4)}
CASTS = [
    case("what is subtracted in float64 is not subtracted in float32",
         f"a = Sub(x, k) b = {TO_FLOAT} (a) y = Conv(b, w)", "Sub Cast Conv", Reason.NARROWER,
         x="double[N,3,8,8]", opset=15, k=STAMPS, w=drawn("w", 4, 3, 3, 3)),
    case("a normalization in float64 before a convolution in float32",
         f"a = BN(x) b = {TO_FLOAT} (a) y = Conv(b, w)", "BatchNormalization Cast Conv", Reason.NARROWER,
         x="double[N,3,8,8]", opset=15, w=drawn("w", 4, 3, 3, 3),
         **norm(3) | {"mean": STAMPS.repeat(3), "var": np.full(3, 100.0)}),
    case("a normalization in float32 before a convolution in float16",
         f"a = BN(x) b = {TO_HALF} (a) c = Conv(b, w) y = {TO_FLOAT} (c)",
         "BatchNormalization Cast Conv Cast", Reason.NARROWER, w=drawn("w", 4, 3, 3, 3, dtype=np.float16),
         **norm(3)),
    case("what is scaled in float32 may overflow in float16",
         f"a = Mul(x, k) b = {TO_HALF} (a) c = Conv(b, w) y = {TO_FLOAT} (c)", "Mul Cast Conv Cast",
         Reason.NARROWER, k=0.01, w=drawn("w", 4, 3, 3, 3, dtype=np.float16)),
    case("a float32 number is no bias of a float16 convolution",
         f"c = Conv(x, w) d = {TO_FLOAT} (c) e = Add(d, t) y = {TO_HALF} (e)", "Conv Cast Add Cast",
         Reason.NARROWER, x="float16[N,3,8,8]", w=(4, 3, 3, 3), t=1000.123),
    case("a float64 factor is no weight of a float32 convolution",
         f"c = Conv(x, w) d = {TO_DOUBLE} (c) e = Mul(d, k) y = {TO_FLOAT} (e)", "Conv Cast Mul Cast",
         Reason.NARROWER, w=(4, 3, 3, 3), k=np.array(1e30)),
    case("what is added in float32 may be added in float64",
         f"a = BN(x) b = {TO_DOUBLE} (a) c = Conv(b, w) y = {TO_FLOAT} (c)", "Cast Conv Cast", PUSHED,
         w=drawn("w", 4, 3, 3, 3, dtype=np.float64), **norm(3)),
    case("a float64 convolution takes what is done in float32",
         f"c = Conv(x, w) d = {TO_FLOAT} (c) e = BN(d) y = {TO_DOUBLE} (e)", "Conv Cast Cast", PULLED,
         x="double[N,3,8,8]", w=(4, 3, 3, 3), **SINGLE),
    case("whether float8 saturates is up to the runtime",
         f"q = Cast <to = 17> (w) v = {TO_FLOAT} (q) c = Conv(x, v) y = BN(c)",
         "Cast Cast Conv BatchNormalization", Reason.NOT_STATIC, opset=19, w=LARGE, **norm(4)),
]

SIZES = [
    *(case(f"LayerNormalization: scale {scale}, bias {bias}, factor {factor}",
           "l = LayerNormalization <axis = 1> (x, w, b) y = Mul(l, s)", "LayerNormalization", PULLED,
           x=f"float[2,4,{scale[-1]}]", w=scale, b=bias, s=factor)
      for scale, bias, factor in (((4, 4), (4,), (4, 1)), ((4, 5), (5,), (4, 1)), ((4, 5), (4, 1), (5,)),
                                  ((4, 5), (1,), (4, 1)), ((4, 5), (1, 5), (5,)))),
    case("LayerNormalization, the bias of which is data and broadcast",
         "l = LayerNormalization <axis = 1> (x, w, b) y = Mul(l, s)", "LayerNormalization Mul",
         Reason.BROADCAST, x="float[2,4,5]", also="float[5] b", w=(4, 5), s=(4, 1)),
    case("a part of no channels", "c = Conv(x, w) a, b = Split <axis = 1> (c, i) y = BN(a) z = Relu(b)",
         "Conv Split Relu", PULLED, gives="float[] z", i=[4, 0], w=(4, 3, 1, 1), **norm(4)),
    case("images of no pixels", "b = BN(x) f = Flatten(b) y = Gemm(f, w)", "BatchNormalization Flatten Gemm",
         Reason.MIXED_CHANNELS, x="float[2,3,0,4]", w=(0, 5), **norm(3)),
    case("pools keep the rank where there is no inference",
         "q = Conv(x, w) p = MaxPool <kernel_shape = [2,2]> (q) y = Mul <broadcast = 1, axis = 1> (p, pos)",
         "Conv MaxPool", PULLED, opset=1, w=(4, 3, 1, 1), pos=(4,)),
]
# fmt: on


@pytest.mark.parametrize("case", [*ROLES, *OPERANDS, *SIZES])
def test_roles_and_operands(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", [*NUMBERS, *CASTS])
def test_numbers(case: Case) -> None:
    check(case)


POOLED = "c = Conv(x, w) r = ReduceSum <keepdims = 0> (c, i)"
NO_SIZES = {
    "the sum over the pixels has no known count": (
        f"float[2,3,U,U] x | {POOLED} y = Add(r, s)", "Conv ReduceSum Add", Reason.UNKNOWN_SHAPE),
    "the mean over the pixels needs none": (
        "float[2,3,U,U] x | c = Conv(x, w) r = ReduceMean <axes = [2, 3]> (c) y = BN4(r)", "Conv ReduceMean",
        PULLED),
    "a normalization of unknown channels": (
        "float[2,U,8,8] x | y = BN(x)", "BatchNormalization", Reason.GRAPH_INPUT),
    "a normalization before images of unknown size are flat": (
        "float[2,3,U,U] x | b = BN(x) f = Flatten(b) y = Gemm(f, v)", "BatchNormalization Flatten Gemm",
        Reason.UNKNOWN_SHAPE),
    "inference goes on": (
        "float[U,3,8,8] x | c = Conv(x, w) f = Flatten(c) r = Sigmoid(f) b = Mul(r, one) y = Gemm(b, u)",
        "Conv Flatten Sigmoid Gemm", REMOVED),
}  # fmt: skip


@pytest.mark.parametrize(("text", "left", "fate"), NO_SIZES.values(), ids=NO_SIZES)
def test_a_size_of_minus_one_is_not_known(text: str, left: str, fate: Outcome | Reason) -> None:
    """As some exporters write it; the checker of ONNX and onnxruntime take it."""
    inputs, nodes = text.split("|")
    constants = {"w": (4, 3, 1, 1), "s": (4,), "i": [2, 3], "v": (192, 5), "u": (256, 5), "one": 1.0}
    named = {**constants, **norm(3), **norm(4, "4")}
    read = {name: value for name, value in named.items() if re.search(rf"\b{name}\b", spelled_out(nodes))}
    before = model(f"({inputs}) => (float[] y) {{ {spelled_out(nodes)} }}", **read)
    for size in before.graph.input[0].type.tensor_type.shape.dim:
        if size.dim_param == "U":
            size.dim_value = -1
    after, report = folded(before)
    assert (ops(after), fates(report)) == (left.split(), (fate,)), [*report.decisions]
    channels = 3 if "float[2,U" in inputs else before.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    same(before, after, {"x": drawn("x", 2, channels, 8, 8)})


CHAIN = (
    "c = Conv(x, w) p = MaxPool <kernel_shape = [2, 2]> (c) q = Mul(p, pos) r = Relu(q) n = BN(r) "
    "f = Flatten(n) y = MatMul(f, u)"
)


@pytest.mark.parametrize("seed", range(6))
def test_the_order_of_the_nodes_in_the_file_does_not_matter(seed: int) -> None:
    """No checker takes such a file, but runtimes do."""
    constants: dict[str, Any] = {"w": (4, 3, 1, 1), "pos": (4, 1, 1), "u": (196, 5), **norm(4)}
    before = model(f"(float[2,3,8,8] x) => (float[] y) {{ {spelled_out(CHAIN)} }}", **constants)
    expected, expected_report = prove(before)
    assert ops(expected) == ["Conv", "MaxPool", "Relu", "Flatten", "MatMul", "Add"]
    nodes = [*before.graph.node]
    Random(seed).shuffle(nodes)
    mixed = onnx.ModelProto()
    mixed.CopyFrom(before)
    del mixed.graph.node[:]
    mixed.graph.node.extend(nodes)
    after, report = folded(mixed)
    assert sorted(fates(report), key=str) == sorted(fates(expected_report), key=str)
    assert sorted(ops(after)) == sorted(ops(expected))
    feed = inputs(before)
    np.testing.assert_array_equal(run(after, feed)["y"], run(expected, feed)["y"])


WITHOUT = (
    *("AveragePool", "Cast", "Clip", "Concat", "ConvTranspose", "DequantizeLinear", "Dropout", "Expand"),
    *("Flatten", "Gather", "GlobalAveragePool", "Identity", "LeakyRelu", "MatMul", "MaxPool", "PRelu"),
    *("Relu", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)


@pytest.mark.parametrize("reads", [[], ["c"], ["", "", ""]], ids=str)
@pytest.mark.parametrize("operator", WITHOUT)
def test_a_malformed_node_never_stops_the_run(operator: str, reads: list[str]) -> None:
    nodes = "c = Conv(x, w) d = Relu(c) e = BatchNormalization(d, scale, bias, mean, var) y = Sigmoid(e)"
    before = model(f"(float[N,3,8,8] x) => (float[] y) {{ {nodes} }}", w=(4, 3, 1, 1), **norm(4))
    before.graph.node[1].op_type = operator
    del before.graph.node[1].input[:]
    before.graph.node[1].input.extend(reads)
    report = fold(ir.from_proto(before))
    assert report.before.batchnorms == 1 and len(report.decisions) == 1


CONSTANT_DATA = {
    "int8": ("DequantizeLinear(q, k)", {"q": np.ones((1, 4, 6, 6), np.int8), "k": 0.5}, "QUANTIZED"),
    "too large": ("ConstantOfShape(i)", {"i": [1, 4, 60000, 60000]}, "TOO_LARGE"),
    "another count": ("Reshape(q, i)", {"q": (7,), "i": [1, 4, 6, 6]}, "NOT_STATIC"),
    "out of range": ("Gather(q, i)", {"q": (3, 4, 6, 6), "i": [9]}, "NOT_STATIC"),
}


@pytest.mark.parametrize(("made", "constants", "why"), CONSTANT_DATA.values(), ids=CONSTANT_DATA)
@pytest.mark.parametrize("affine", ["BatchNormalization(d, scale, bias, mean, var)", "Mul(d, s)"])
def test_an_affine_of_a_constant_that_cannot_be_computed(
    affine: str, made: str, constants: dict[str, Any], why: str
) -> None:
    read = norm(4) if "scale" in affine else {"s": (4, 1, 1)}
    nodes = f"d = {made} e = {affine} y = Add(x, e)"
    before = model(f"(float[N,4,6,6] x) => (float[] y) {{ {nodes} }}", **constants, **read)
    report = fold(ir.from_proto(before))
    expected = Reason.FROM_CONSTANT if "scale" in affine else Reason[why]
    assert not report.modified and report.decisions[0].reason is expected


def test_a_normalization_without_outputs_is_malformed() -> None:
    before = model("(float[N,3,8,8] x) => (float[] y) { b = BatchNormalization(x, s, s, s, s) y = Relu(x) }",
                   s=positive("s", 3))  # fmt: skip
    del before.graph.node[0].output[:]
    report = fold(ir.from_proto(before))
    assert fates(report) == (Reason.MALFORMED,) and not report.modified


def test_channels_of_tiny_weights_in_a_narrow_convolution() -> None:
    """A bias of 1.37 rounded to float16 is far more than the noise of a channel with a scale of 0.003."""
    random = np.random.default_rng(2)
    w = (random.normal(0, 1, (8, 4, 3, 3)) / 12).astype(np.float16)
    numbers = {"scale": np.full(8, 0.3), "bias": np.zeros(8), "mean": np.zeros(8), "var": np.ones(8)}
    numbers["scale"][5], numbers["bias"][5] = 3e-3, 1.37
    stored: dict[str, Any] = {name: value.astype(np.float32) for name, value in numbers.items()}
    text = (
        "c = Conv(x, w) d = Cast <to = 1> (c) n = BatchNormalization(d, scale, bias, mean, var) y = Relu(n)"
    )
    before = model(f"(float16[1,4,8,8] x) => (float[] y) {{ {text} }}", w=w, **stored)
    after, report = folded(before)
    assert fates(report) == (Reason.NARROWER,) and ops(after) == [
        "Conv",
        "Cast",
        "BatchNormalization",
        "Relu",
    ]


def test_a_run_that_grows_after_a_merge_is_reported_whole() -> None:
    before = model(
        "(float[N,4,2,3] x) => (float[N,4,2,3] y) "
        "{ a = Sub(x, c) u = Mul(a, w) v = Div(u, w) y = BatchNormalization(v, scale, bias, mean, var) }",
        c=(4, 1, 1),
        w=np.array([2, 4, 8], np.float32),
        **norm(4),
    )
    for options in ({}, {"only": "batchnorm"}):
        after, report = prove(before, **options)
        assert Counter(kind for d in report.decisions for kind in d.op_types)["BatchNormalization"] == 1
        named = [name for d in report.decisions for name in d.nodes]
        assert len(set(named)) == len(named) and {"u", "v", "y"} <= set(named)
        compare(before, after)


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


LAYERS = {
    "a second normalization": "b = BN1(x) y = BN2(b)",
    "a pool in between": "b = BN1(x) p = AveragePool <kernel_shape = [2, 2]> (b) y = BN2(p)",
    "a scale before": "b = Mul(x, f) y = BN1(b)",
    "a shift before": "b = Add(x, g) y = BN1(b)",
    "a scale before and after": "b = Mul(x, f) c = BN1(b) y = Mul(c, h)",
    "a pool in between, then a shift": "b = BN1(x) p = AveragePool <kernel_shape = [2, 2]> (b) "
    "c = Add(p, g) y = BN2(c)",
}


@pytest.mark.parametrize("far", ["mean", "var", "both"])
@pytest.mark.parametrize("kind", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)
def test_nothing_cancels_that_the_original_kept_apart(layers: str, kind: npt.DTypeLike, far: str) -> None:
    """Statistics as trained nets have them: means far away, channels that hardly ever vary."""
    random = np.random.default_rng(len(layers))
    numbers: dict[str, npt.NDArray[Any]] = {}
    for i in "12":
        var = 10.0 ** random.uniform(-12, 6, 16) if far != "mean" else random.uniform(0.5, 2, 16)
        reach = 10.0 ** random.uniform(0, 5, 16) if far != "var" else 1.0
        numbers |= {f"scale{i}": random.uniform(0.5, 2, 16), f"bias{i}": random.standard_normal(16)}
        numbers |= {f"mean{i}": random.standard_normal(16) * np.sqrt(var) * reach, f"var{i}": var}
    numbers |= {name: 10.0 ** random.uniform(-5, 5, (16, 1, 1)) for name in "fgh"}
    read = [name for name in re.findall(r"\w+", spelled_out(layers)) if name in numbers]
    stored: dict[str, Any] = {name: numbers[name].astype(kind) for name in dict.fromkeys(read)}
    code = "float" if kind is np.float32 else "bfloat16"
    before = model(f"({code}[N,16,4,4] x) => ({code}[] y) {{ {spelled_out(layers)} }}", **stored)
    after, report = prove(before)
    assert report.after.nodes < report.before.nodes
    feeds = {"x": random.standard_normal((2, 16, 4, 4))}
    expected, got = (evaluate(m, feeds)["y"] for m in (before, after))
    # Each new scale and bias is a sum of terms that constants of the original have a part in, so its
    # rounding is at most what all of these are moved by when each is off by as much: twice that for the two.
    room = np.zeros(16)
    for name, array in stored.items():
        moved = onnx.ModelProto()
        moved.CopyFrom(before)
        (tensor,) = [t for t in moved.graph.initializer if t.name == name]
        by = array.astype(np.float64) * (1.0 + unit_roundoff(before))
        tensor.CopyFrom(onnx.numpy_helper.from_array(by, name))
        room += np.abs(evaluate(moved, feeds)["y"] - expected).max(axis=(0, 2, 3))
    error = np.abs(got - expected).max(axis=(0, 2, 3))
    assert (error <= 2 * room).all(), (error / room).max()
