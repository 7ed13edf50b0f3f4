"""Graphs of which other tools, in current releases, make another function, an invalid model, or a crash."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cases import MERGED, PULLED, PUSHED, Case, case, check
from graphs import drawn, norm

from bnfold.report import Reason

ROWS = "float[N,5,6]"
F16 = np.float16


def typed(channels: int, dtype: npt.DTypeLike) -> dict[str, Any]:
    """The constants of a BatchNormalization in a type of their own."""
    return {name: drawn(name, channels, dtype=dtype) for name in norm(channels)}


def per_position(*shape: int) -> dict[str, Any]:
    """The constants of a BatchNormalization with spatial = 0."""
    return dict.fromkeys(norm(1), shape)


# fmt: off
WRONG_AXIS = [
    case("MatMul, Transpose, normalization of the columns",
         "m = MatMul(x, w) t = Transpose <perm = [0,2,1]> (m) y = BN(t)", "MatMul Add Transpose", PULLED,
         x=ROWS, w=(6, 4), **norm(4)),
    case("MatMul, Transpose, normalization of the rows",
         "m = MatMul(x, w) t = Transpose <perm = [0,1,2]> (m) y = BN(t)",
         "MatMul Transpose BatchNormalization", Reason.GRAPH_INPUT, x="float[N,4,6]", w=(6, 4), **norm(4)),
    case("MatMul, Reshape, normalization of the columns",
         "m = MatMul(x, w) t = Reshape(m, i) y = BN(t)", "MatMul Add Reshape", PULLED,
         x="float[2,5,6]", i=[10, 4], w=(6, 4), **norm(4)),
    case("MatMul, Reshape, normalization of something else, as many",
         "m = MatMul(x, w) t = Reshape(m, i) y = BN(t)", "MatMul Reshape BatchNormalization",
         Reason.MIXED_CHANNELS, x="float[2,4,6]", i=[4, 8], w=(6, 4), **norm(8)),
    case("Linear and BatchNorm1d on (N, C, L) with C = L",
         "m = MatMul(x, w) a = Add(m, c) y = BN(a)", "MatMul Add BatchNormalization",
         Reason.SHIFT, Reason.BROADCAST, x="float[N,4,6]", w=(6, 4), c=(4,), **norm(4)),
    *(case(f"Mul of {list(shape)} with as many channels as columns", "c = Conv(x, w) y = Mul(c, k)",
           "Conv Mul", Reason.AXIS, x="float[N,3,4,4]", w=(4, 3, 1, 1), k=shape)
      for shape in ((4,), (1, 4), (1, 1, 4))),
    case("transposed convolution with as many inputs as outputs",
         "c = ConvTranspose(x, w) y = BN(c)", "ConvTranspose", PULLED, w=(3, 3, 3, 3), **norm(3)),
    case("grouped transposed convolution with as many inputs as outputs",
         "c = ConvTranspose <group = 2> (x, w, b) y = BN(c)", "ConvTranspose", PULLED,
         x="float[N,4,8,8]", w=(4, 2, 3, 3), b=(4,), **norm(4)),
    case("grouped transposed convolution of uneven groups",
         "c = ConvTranspose <group = 3, strides = [2,1]> (x, w) y = BN(c)", "ConvTranspose", PULLED,
         x="float[N,6,8,8]", w=(6, 5, 3, 2), **norm(15)),
    case("a MatMul of three dimensions stays one",
         "m = MatMul(x, w) a = Add(m, c) b = Mul(a, s) y = Add(b, t)", "MatMul Add", PULLED, x=ROWS, w=(6, 4),
         c=(4,), s=(4,), t=(4,)),
]

TRAINING_MODE = [
    case("opset 1: training is the default", "c = Conv(x, w) y = BN <consumed_inputs = [0,0,0,1,1]> (c)",
         "Conv BatchNormalization", Reason.TRAINING_MODE, opset=1, w=(4, 3, 1, 1), **norm(4)),
    case("opset 6: training is the default", "c = Conv(x, w) y = BN(c)", "Conv BatchNormalization",
         Reason.TRAINING_MODE, opset=6, w=(4, 3, 1, 1), **norm(4)),
    case("opset 6: and may be said", "c = Conv(x, w) y = BN <is_test = 0> (c)", "Conv BatchNormalization",
         Reason.TRAINING_MODE, opset=6, w=(4, 3, 1, 1), **norm(4)),
    *(case(f"opset {opset}: five outputs, of which nobody reads four",
           "c = Conv(x, w) y, m, v, sm, sv = BN(c)", "Conv BatchNormalization", Reason.TRAINING_MODE,
           opset=opset, runtime=False, w=(4, 3, 1, 1), **norm(4)) for opset in (7, 8, 9, 11, 13)),
    *(case(f"opset {opset}: training_mode = 1", "c = Conv(x, w) y = BN <training_mode = 1> (c)",
           "Conv BatchNormalization", Reason.TRAINING_MODE, opset=opset, w=(4, 3, 1, 1), **norm(4))
      for opset in (14, 15, 17, 21)),
    case("opset 14: training_mode = 1 and its statistics",
         "c = Conv(x, w) y, m, v = BN <training_mode = 1> (c)", "Conv BatchNormalization",
         Reason.TRAINING_MODE, opset=14, w=(4, 3, 1, 1), **norm(4)),
    *(case(f"opset {opset}: {count} outputs", f"c = Conv(x, w) {outputs} = BN(c)", "Conv BatchNormalization",
           Reason.EXTRA_OUTPUTS, opset=opset, w=(4, 3, 1, 1), **norm(4))
      for opset, count, outputs in ((9, 2, "y, m"), (9, 3, "y, m, v"), (9, 4, "y, m, v, a"),
                                    (15, 2, "y, m"), (15, 3, "y, m, v"))),
    *(case(f"opset {opset}: spatial = 0", f"c = Conv(x, w) y = BN <{attributes}> (c)",
           "Conv BatchNormalization", Reason.SPATIAL, opset=opset, w=(4, 3, 1, 1),
           **per_position(4, 8, 8))
      for opset, attributes in ((6, "spatial = 0, is_test = 1"), (7, "spatial = 0"), (8, "spatial = 0"))),
    case("spatial = 0 keeps nobody else from folding",
         "c = Conv(x, w) a = BN <spatial = 0> (c) r = Relu(a) d = Conv(r, u) y = BN2(d)",
         "Conv BatchNormalization Relu Conv", Reason.SPATIAL, PULLED, opset=8,
         w=(4, 3, 1, 1), u=(2, 4, 1, 1), **per_position(4, 8, 8), **norm(2, "2")),
    case("training mode keeps nobody else from folding",
         "c = Conv(x, w) a, m, v = BN <training_mode = 1> (c) r = Relu(a) d = Conv(r, u) y = BN2(d)",
         "Conv BatchNormalization Relu Conv", Reason.TRAINING_MODE, PULLED, runtime=False,
         w=(4, 3, 1, 1), u=(2, 4, 1, 1), **norm(4), **norm(2, "2")),
]

ABSENT = [
    case("a bias of empty name", 'c = Conv(x, w, ) y = BN(c)', "Conv", PULLED, w=(4, 3, 1, 1), **norm(4)),
    case("a bias of empty name, transposed", 'c = ConvTranspose(x, w, ) y = BN(c)', "ConvTranspose", PULLED,
         w=(3, 4, 1, 1), **norm(4)),
    case("a bias of empty name, Gemm", 'c = Gemm(x, w, ) y = BN(c)', "Gemm", PULLED, x="float[N,3]", w=(3, 4),
         **norm(4)),
    case("one among others", 'c = Conv(x, w, ) a = BN(c) d = Conv(a, u, b) y = BN2(d)', "Conv Conv", PULLED,
         PULLED, w=(4, 3, 1, 1), u=(2, 4, 1, 1), b=(2,), **norm(4), **norm(2, "2")),
]

MIXED = [
    case("float16 convolution, float32 normalization", "c = Conv(x, w) y = BN(c)", "Conv", PULLED,
         x="float16[N,3,8,8]", opset=15, w=(4, 3, 3, 3), **typed(4, np.float32)),
    case("float16 convolution with a bias, float32 statistics alone", "c = Conv(x, w, b) y = BN(c)", "Conv",
         PULLED, x="float16[N,3,8,8]", opset=14, w=(4, 3, 3, 3), b=(4,), scale=(4,), bias=(4,),
         mean=drawn("mean", 4), var=drawn("var", 4)),
    case("three types", "c = Conv(x, w) y = BN(c)", "Conv", PULLED, x="float16[N,3,8,8]", opset=15,
         w=(4, 3, 3, 3), scale=drawn("scale", 4), bias=drawn("bias", 4),
         mean=drawn("mean", 4, dtype=np.float64), var=drawn("var", 4, dtype=np.float64)),
    case("bfloat16 convolution, float32 normalization", "c = Conv(x, w) y = BN(c)", "Conv", PULLED,
         x="bfloat16[N,3,8,8]", opset=22, w=(4, 3, 3, 3), **typed(4, np.float32)),
    case("float32 data, float16 scale", "c = Conv(x, w) y = BN(c)", "Conv", PULLED, opset=15, w=(4, 3, 3, 3),
         scale=drawn("scale", 4, dtype=F16), bias=drawn("bias", 4, dtype=F16), mean=drawn("mean", 4),
         var=drawn("var", 4)),
    case("forward, into float16 weights", "b = BN(x) y = Conv(b, w)", "Conv", PUSHED,
         x="float16[N,3,8,8]", opset=15, w=(4, 3, 3, 3), **typed(3, np.float32)),
    case("merged into a float32 normalization of float16 data", "b = BN(x) m = Mul(b, s) y = Add(m, t)",
         "BatchNormalization", MERGED, x="float16[N,3,8,8]", opset=15, s=(3, 1, 1), t=(3, 1, 1),
         **typed(3, np.float32)),
    case("a Cast between the convolution and the normalization",
         "c = Conv(x, w) f = Cast <to = 1> (c) b = BN(f) "
         "y = Cast <to = 10> (b)", "Conv Cast BatchNormalization Cast", Reason.NARROWER, x="float16[N,3,8,8]",
         opset=15, w=(4, 3, 3, 3), **typed(4, np.float32)),
]

GEMM = [
    *(case(f"Gemm with {attributes} and C {shape}", f"g = Gemm <{attributes}> (x, w, c) y = BN(g)", "Gemm",
           PULLED, x="float[3,6]", w=(4, 6) if "transB = 1" in attributes else (6, 4), c=shape, **norm(4))
      for attributes in ("alpha = 0.5, beta = 2.0", "transB = 1", "alpha = 2.0, beta = 0.25, transB = 1")
      for shape in ((), (1,), (4,), (1, 4), (3, 1), (3, 4))),
    *(case(f"Gemm forward with {attributes} and C {shape}", f"b = BN(x) y = Gemm <{attributes}> (b, w, c)",
           "Gemm", PUSHED, x="float[3,6]", w=(4, 6) if "transB = 1" in attributes else (6, 4), c=shape,
           **norm(6))
      for attributes in ("alpha = 0.5, beta = 2.0", "transB = 1")
      for shape in ((), (1,), (4,), (1, 4), (3, 1), (3, 4))),
    case("Gemm with beta = 0", "g = Gemm <beta = 0.0> (x, w, c) y = BN(g)", "Gemm", PULLED, x="float[3,6]",
         w=(6, 4), c=(4,), **norm(4)),
    case("Gemm without C but with alpha", "g = Gemm <alpha = 3.0, beta = 5.0> (x, w) y = BN(g)", "Gemm",
         PULLED, x="float[3,6]", w=(6, 4), **norm(4)),
    case("Gemm with transA", "g = Gemm <transA = 1> (x, w, c) y = BN(g)", "Gemm", PULLED,
         x="float[6,3]", w=(6, 4), c=(4,), **norm(4)),
    case("Gemm of opset 6 with broadcast", "g = Gemm <broadcast = 1> (x, w, c) y = BN <is_test = 1> (g)",
         "Gemm", PULLED, x="float[3,6]", opset=6, w=(6, 4), c=(4,), **norm(4)),
    case("Gemm of opset 9 without C cannot be, with a zero it can",
         "g = Gemm(x, w, c) y = BN(g)", "Gemm", PULLED, x="float[3,6]", opset=9, w=(6, 4), c=0.0, **norm(4)),
    case("Gemm whose C comes at run time", "g = Gemm <beta = 2.0> (x, w, c) y = BN(g)",
         "Gemm BatchNormalization", Reason.GRAPH_INPUT, x="float[3,6]", also="float[4] c", w=(6, 4),
         **norm(4)),
    case("Gemm whose C another Gemm computes", "h = Gemm(x, v) g = Gemm <beta = 2.0> (x, w, h) y = BN(g)",
         "Gemm Gemm", PULLED, x="float[3,6]", v=(6, 4), w=(6, 4), **norm(4)),
]

SHARED = [
    case("weights of two convolutions, each with a normalization",
         "c = Conv(x, w) d = Conv(x, w) p = BN(c) q = BN2(d) y = Sub(p, q)", "Conv Conv Sub", PULLED, PULLED,
         w=(4, 3, 1, 1), **norm(4), **norm(4, "2")),
    case("weights of a convolution with and one without a normalization",
         "c = Conv(x, w) d = Conv(x, w) p = BN(c) y = Sub(p, d)", "Conv Conv Sub", PULLED, w=(4, 3, 1, 1),
         **norm(4)),
    case("a module used twice, in a row",
         "c = Conv(x, w, k) p = BN(c) r = Relu(p) d = Conv(r, w, k) y = BN(d)", "Conv Relu Conv", PULLED,
         PULLED, w=(3, 3, 1, 1), k=(3,), **norm(3)),
    case("one bias of two convolutions", "c = Conv(x, v, k) d = Conv(x, w, k) p = BN(c) y = Sub(p, d)",
         "Conv Conv Sub", PULLED, v=(4, 3, 1, 1), w=(4, 3, 1, 1), k=(4,), **norm(4)),
    case("the bias is also added elsewhere", "c = Conv(x, w, k) b = BN(c) r = Relu(b) f = Transpose(r) "
         "y = PRelu(f, a) z = Mul(x1, k)", "Conv Relu Transpose PRelu Mul", PULLED, Reason.GRAPH_INPUT,
         also="float[7,4] x1", gives="float[] z", w=(4, 3, 1, 1), k=(4,), a=[0.5], **norm(4)),
    case("statistics shared by five inputs through Identity, as the older exporter of torch writes them",
         "s2 = Identity(s) m2 = Identity(m) v2 = Identity(s) c = Conv(x, v) a = BatchNormalization(c, s, "
         "m, m2, v2) "
         "r = Relu(a) d = Conv(r, w) y = BatchNormalization(d, s2, m, m2, s)", "Conv Relu Conv", PULLED,
         PULLED, v=(4, 3, 1, 1), w=(4, 4, 1, 1), s=[1.0, 0.5, 2.0, 0.25], m=[0.0, 0.5, 0.1, -1.0]),
    case("one tensor is scale and variance", "c = Conv(x, w) y = BatchNormalization(c, s, s, s, s)", "Conv",
         PULLED, w=(2, 3, 1, 1), s=[0.5, 2.0]),
    case("shared through Identity by a normalization that stays",
         "m2 = Identity(mean) c = Conv(x, w) a = BN(c) r = Sigmoid(a) y = BatchNormalization(r, scale, "
         "bias, m2, var)", "Identity Conv Sigmoid BatchNormalization", PULLED, Reason.NOT_LINEAR,
         w=(4, 3, 1, 1), **norm(4)),
    case("the weight is read as data, too", "c = Conv(x, w) y = BN(c) z = Mul(x1, w)", "Conv Mul", PULLED,
         Reason.NOT_PER_CHANNEL, also="float[4,3,1,1] x1", gives="float[] z", w=(4, 3, 1, 1), **norm(4)),
    case("the weight is an output of the graph, too", "c = Conv(x, w) y = BN(c)", "Conv", PULLED,
         gives="float[4,3,1,1] w", w=(4, 3, 1, 1), **norm(4)),
]

LOST = [
    case("the convolution is also an output", "z = Conv(x, w) y = BN(z)", "Conv BatchNormalization",
         Reason.GRAPH_OUTPUT, gives="float[] z", w=(4, 3, 1, 1), **norm(4)),
    case("the convolution is captured by an If",
         "c = Conv(x, w) y = BN(c) z = If (p) <then_branch = t () => (float[] u) { u = Relu(c) }, "
         "else_branch = e () => (float[] v) { v = Identity(x) }>", "Conv BatchNormalization If Relu Identity",
         Reason.CAPTURED, also="bool p", gives="float[] z",
         feeds={"x": drawn("x", 2, 3, 8, 8), "p": np.array(True)}, w=(3, 3, 1, 1), **norm(3)),
    case("a shift through SAME padding", 'b = BN(x) y = Conv <auto_pad = "SAME_UPPER"> (b, w)',
         "BatchNormalization Conv", Reason.PADDING, w=(4, 3, 3, 3), **norm(3)),
    case("a bias that comes at run time", "c = Conv(x, w, k) y = BN(c)", "Conv BatchNormalization",
         Reason.GRAPH_INPUT, also="float[4] k", w=(4, 3, 1, 1), **norm(4)),
    case("a bias that an operator computes from data and that can take it",
         "h = Conv(x, u, d) g = GlobalAveragePool(h) k = Squeeze(g, i) c = Conv(x, w, k) y = BN(c)",
         "Conv GlobalAveragePool Squeeze Conv", PULLED, x="float[1,3,8,8]", i=[0, 2, 3], u=(4, 3, 1, 1),
         d=(4,), w=(4, 3, 1, 1), **norm(4)),
    case("epsilon of 1e-3 through Concat", "c = Conv(x, v) d = Conv(x, w) j = Concat <axis = 1> (c, d) "
         "y = BN <epsilon = 0.001> (j)", "Conv Conv Concat", PULLED, v=(2, 3, 1, 1), w=(2, 3, 1, 1),
         **(norm(4) | {"var": [1e-4, 1e-3, 1e-2, 1.0]})),
    case("the bias of a forward fold", "b = BN(x) y = Conv(b, w, k)", "Conv", PUSHED, w=(4, 3, 3, 3), k=(4,),
         **norm(3)),
    *(case(f"opset {opset}: the statistics are not blended", "c = Conv(x, w) y = BN(c)", "Conv", PULLED,
           opset=opset, w=(4, 3, 1, 1), **norm(4)) for opset in (7, 8, 9, 11, 12, 13)),
    case("float16 stays float16", "c = Conv(x, w, b) y = BN(c)", "Conv", PULLED, x="float16[N,3,8,8]",
         w=(4, 3, 3, 3), b=(4,), **norm(4)),
]
# fmt: on


@pytest.mark.parametrize("case", [*WRONG_AXIS, *LOST])
def test_wrong_axis_or_lost_value(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", [*TRAINING_MODE, *ABSENT])
def test_modes_and_absent_names(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", [*MIXED, *GEMM])
def test_types_and_gemm(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", SHARED)
def test_shared_constants(case: Case) -> None:
    check(case)
