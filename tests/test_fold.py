"""What every fold has to cope with: opsets, types, spellings of constants, inner graphs, functions."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cases import MERGED, PULLED, PUSHED, REMOVED, Case, case, check, spelled_out
from graphs import drawn, model, norm

from bnfold import fold
from bnfold.report import Reason

NEWEST = onnx.defs.onnx_opset_version()
OPSETS = (1, 6, 7, 8, 9, 11, 13, 14, 15, 17, 18, 21, NEWEST)
BIASED = {"w": (4, 3, 3, 3), "b": (4,), **norm(4)}
PLAIN = {"w": (4, 3, 3, 3), **norm(4)}


def at_rest(opset: int) -> str:
    """The attributes that put a BatchNormalization of an opset into inference mode."""
    if opset >= 14:
        return "<training_mode = 0>"
    if opset >= 7:
        return ""
    return "<is_test = 1, consumed_inputs = [0,0,0,1,1]>" if opset < 6 else "<is_test = 1>"


def along(opset: int, axis: int = 1) -> str:
    """The attributes that align the second operand of opset 1 to 6 to an axis."""
    return f"<broadcast = 1, axis = {axis}>" if opset < 7 else ""


def per_channel(opset: int, channels: int) -> tuple[int, ...]:
    return (channels,) if opset < 7 else (channels, 1, 1)


# fmt: off
EVERY_OPSET = [
    recipe
    for n in OPSETS
    for recipe in (
        case(f"opset {n}: convolution, normalization", f"c = Conv(x, w, b) y = BN {at_rest(n)} (c)", "Conv",
             PULLED, opset=n, **BIASED),
        case(f"opset {n}: normalization, convolution", f"b0 = BN {at_rest(n)} (x) y = Conv(b0, w)", "Conv",
             PUSHED, opset=n, w=(4, 3, 3, 3), **norm(3)),
        case(f"opset {n}: convolution, Mul, Add",
             f"c = Conv(x, w) m = Mul {along(n)} (c, s) y = Add {along(n)} (m, t)", "Conv", PULLED, opset=n,
             w=(4, 3, 3, 3), s=per_channel(n, 4), t=per_channel(n, 4)),
        case(f"opset {n}: convolution, Sub, Div",
             f"c = Conv(x, w) m = Sub {along(n)} (c, s) y = Div {along(n)} (m, pos)", "Conv", PULLED, opset=n,
             w=(4, 3, 3, 3), s=per_channel(n, 4), pos=per_channel(n, 4)),
        case(f"opset {n}: transposed convolution, Relu, normalization",
             f"c = ConvTranspose(x, w) r = Relu(c) y = BN {at_rest(n)} (r)", "ConvTranspose Relu Add", PULLED,
             opset=n, w=(3, 4, 2, 2), **norm(4) | {"scale": [0.5, 1.0, 2.0, 3.0]}),
        case(f"opset {n}: residual sum",
             f"c = Conv(x, v) d = Conv(x, w) a = Add(c, d) y = BN {at_rest(n)} (a)", "Conv Conv Add", PULLED,
             opset=n, v=(4, 3, 1, 1), w=(4, 3, 1, 1), **norm(4)),
        case(f"opset {n}: Mul, Add, Mul alone",
             f"a = Mul {along(n)} (x, s) b = Add {along(n)} (a, t) y = Mul {along(n)} (b, u)", "Mul Add",
             MERGED, opset=n, s=per_channel(n, 3), t=per_channel(n, 3), u=per_channel(n, 3)),
    )
]

DTYPES = [
    recipe
    for dtype, n in (("float16", 17), ("bfloat16", 22), ("float", 17), ("double", 17))
    for recipe in (
        case(f"{dtype}: convolution, normalization", "c = Conv(x, w, b) y = BN(c)", "Conv", PULLED, opset=n,
             x=f"{dtype}[N,3,8,8]", **BIASED),
        case(f"{dtype}: normalization, convolution", "b = BN(x) y = Conv(b, w)", "Conv", PUSHED, opset=n,
             x=f"{dtype}[N,3,8,8]", w=(4, 3, 3, 3), **norm(3)),
        case(f"{dtype}: Gemm, Mul, Add", "g = Gemm <alpha = 0.5> (x, w) m = Mul(g, s) y = Add(m, t)", "Gemm",
             PULLED, opset=n, x=f"{dtype}[N,6]", w=(6, 4), s=(4,), t=(4,)),
        case(f"{dtype}: MatMul, normalization", "m = MatMul(x, w) y = BN(m)", "MatMul Add", PULLED, opset=n,
             x=f"{dtype}[N,6]", w=(6, 4), **norm(4)),
        case(f"{dtype}: two normalizations alone", "b = BN(x) y = BN2(b)", "BatchNormalization", MERGED,
             opset=n, x=f"{dtype}[N,3,8,8]", **norm(3), **norm(3, "2")),
    )
]

SPELLED = [
    case("weights in Constant nodes",
         "w = Constant <value_floats = [1.0, 2.0, 3.0]> () i = Constant <value_ints = [1, 3, 1, 1]> () v = "
         "Reshape(w, i) c = Conv(x, v) y = BN(c)", "Conv", PULLED, **norm(1)),
    case("a scale in a Constant node", "s = Constant <value_float = 2.0> () c = Conv(x, w) y = Mul(c, s)",
         "Conv", PULLED, w=(4, 3, 1, 1)),
    case("a Constant node with another reader stays",
         "s = Constant <value_float = 2.0> () c = Conv(x, w) y = Mul(c, s) z = Mul(x, x) u = Pow(z, s)",
         "Constant Conv Mul Pow", PULLED, gives="float[] u", w=(4, 3, 1, 1)),
    case("weights behind Identity", "v = Identity(w) c = Conv(x, v) y = BN(c)", "Conv", PULLED, **PLAIN),
    case("weights behind Identity that another node reads",
         "v = Identity(w) c = Conv(x, v) y = BN(c) z = Conv(x, v)", "Identity Conv Conv", PULLED,
         gives="float[] z", **PLAIN),
    case("weights stored in float16", "v = Cast <to = 1> (w) c = Conv(x, v) y = BN(c)", "Conv", PULLED,
         w=drawn("w", 4, 3, 1, 1, dtype=np.float16), **norm(4)),
    case("weights that were integers", "v = Cast <to = 1> (w) c = Conv(x, v) y = BN(c)", "Conv", PULLED,
         w=np.arange(-6, 6, dtype=np.int8).reshape(4, 3, 1, 1), **norm(4)),
    case("weights behind Transpose", "v = Transpose <perm = [3,2,0,1]> (w) c = Conv(x, v) y = BN(c)", "Conv",
         PULLED, w=(3, 3, 3, 4), **norm(4)),
    case("weights behind Reshape and Unsqueeze",
         "u = Reshape(w, i) v = Unsqueeze(u, j) c = Conv(x, v) y = BN(c)", "Conv", PULLED, i=[4, 3], j=[2, 3],
         w=(12,), **norm(4)),
    case("weights computed by ConstantOfShape",
         "v = ConstantOfShape <value = float[1] {0.5}> (i) c = Conv(x, v) y = BN(c)", "Conv", PULLED,
         i=[4, 3, 2, 2], **norm(4)),
    case("all of a normalization computed by ConstantOfShape",
         "s = ConstantOfShape <value = float[1] {2.0}> (i) t = ConstantOfShape(i) c = Conv(x, w) y = "
         "BatchNormalization(c, s, t, t, s)", "Conv", PULLED, i=[4], w=(4, 3, 1, 1)),
    case("weights that are sums, products and slices",
         "u = Mul(w, g) v = Add(u, w) k = Slice(v, i, j, i) c = Conv(x, k) y = BN(c)", "Conv", PULLED,
         w=(8, 3, 1, 1), g=(8, 1, 1, 1), i=[0], j=[4], **norm(4)),
    case("weights in two halves", "v = Concat <axis = 0> (u, w) c = Conv(x, v) y = BN(c)", "Conv", PULLED,
         u=(2, 3, 1, 1), w=(2, 3, 1, 1), **norm(4)),
    case("a bias of zeros with the shape of the weights",
         "z = Constant <value = float {0.0}> () k = CastLike(z, x) h = Shape <end = 1> (w) b = Expand(k, "
         "h) c = Conv(x, w, b) y = BN(c)", "Conv", PULLED, **PLAIN),
    case("a bias of zeros whose shape is that of the activations",
         "z = Constant <value = float {0.0}> () k = CastLike(z, x) h = Shape <start = 1, end = 2> (x) b = "
         "Expand(k, h) c = Conv(x, w, b) y = BN(c)", "Conv", PULLED, w=(3, 3, 1, 1), **norm(3)),
    case("statistics that are cast",
         "m = Cast <to = 1> (mean0) v = Cast <to = 1> (var0) c = Conv(x, w) y = BatchNormalization(c, "
         "scale, bias, m, v)", "Conv", PULLED, w=(4, 3, 1, 1), scale=(4,), bias=(4,),
         mean0=drawn("m", 4, dtype=np.float64), var0=drawn("var", 4, dtype=ml_dtypes.bfloat16)),
    case("a factor that is the same everywhere", "c = Conv(x, w) y = Mul(c, s)", "Conv", PULLED,
         w=(4, 3, 1, 1), s=np.full((4, 8, 8), 2.5, np.float32)),
    case("a factor that is the same along the width", "c = Conv(x, w) y = Mul(c, s)", "Conv", PULLED,
         w=(4, 3, 1, 1), s=np.broadcast_to(drawn("s", 4, 1, 1), (4, 8, 8)).copy()),
    case("identities: one times, plus nothing, negated twice",
         "c = Sigmoid(x) d = Mul(c, o) e = Add(d, z) f = Neg(e) y = Neg(f)", "Sigmoid", REMOVED, o=1.0,
         z=np.zeros((3, 1, 1), np.float32)),
    case("a normalization that does nothing at all", "c = Sigmoid(x) b = BN <epsilon = 0.0> (c) y = Tanh(b)",
         "Sigmoid Tanh", REMOVED, scale=[2.0, 0.5, 1.0], bias=[3.0, 4.0, 0.0], mean=[3.0, 4.0, 0.0],
         var=[4.0, 0.25, 1.0]),
]

RANKS = [
    case("a vector times a matrix", "m = MatMul(x, w) a = Mul(m, s) y = Add(a, t)", "MatMul Add", PULLED,
         x="float[6]", w=(6, 4), s=(4,), t=(4,)),
    case("a matrix times a vector", "m = MatMul(w, x) a = Mul(m, s) y = Add(a, t)", "MatMul Add", PULLED,
         x="float[6]", w=(4, 6), s=(4,), t=(4,)),
    case("1-D convolution", "c = Conv <pads = [1,1]> (x, w) y = BN(c)", "Conv", PULLED, x="float[N,3,8]",
         w=(4, 3, 3), **norm(4)),
    case("3-D convolution", "c = Conv <strides = [1,2,1]> (x, w) y = BN(c)", "Conv", PULLED,
         x="float[N,3,4,5,6]", w=(4, 3, 2, 2, 2), **norm(4)),
    case("3-D convolution, forward", "b = BN(x) y = Conv <dilations = [1,2,1]> (b, w, k)", "Conv", PUSHED,
         x="float[N,3,4,5,6]", w=(4, 3, 2, 2, 2), k=(4,), **norm(3)),
    case("3-D transposed convolution", "c = ConvTranspose <strides = [1,2,1]> (x, w) y = BN(c)",
         "ConvTranspose", PULLED, x="float[N,3,4,5,6]", w=(3, 4, 2, 2, 2), **norm(4)),
    case("rank 1: one channel", "r = Sigmoid(x) b = BN(r) c = BN2(b) y = Tanh(c)",
         "Sigmoid BatchNormalization Tanh", MERGED, x="float[7]", **norm(1), **norm(1, "2")),
    case("rank 2", "b = BN(x) y = Gemm(b, w)", "Gemm", PUSHED, x="float[N,6]", w=(6, 4), **norm(6)),
    case("no rank at all", "c = Conv(x, w) y = BN(c)", "Conv", PULLED, x="float[]",
         feeds={"x": drawn("x", 2, 3, 5, 5)}, **PLAIN),
    case("height and width are symbols", "c = Conv <pads = [1,1,1,1]> (x, w) a = Mul(c, s) y = Add(a, t)",
         "Conv", PULLED, x="float[N,3,H,W]", w=(4, 3, 3, 3), s=(4, 1, 1), t=(4, 1, 1)),
    case("even the channels are a symbol", "c = Conv(x, w) y = BN(c)", "Conv", PULLED, x="float[N,C,H,W]",
         feeds={"x": drawn("x", 2, 3, 5, 5)}, **PLAIN),
    case("one channel", "c = Conv(x, w) a = BN(c) d = Conv(a, v) y = BN2(d)", "Conv Conv", PULLED, PULLED,
         w=(1, 3, 1, 1), v=(1, 1, 1, 1), **norm(1), **norm(1, "2")),
]

INNER = [
    case("both branches of an If",
         "y = If (p) <then_branch = t () => (float[] u) { c = Conv(x, w) u = BN(c) }, else_branch = e () "
         "=> (float[] v) { d = Conv(x, w2) v = BN2(d) }>", "If Conv Conv", PULLED, PULLED, also="bool p",
         feeds={"x": drawn("x", 2, 3, 8, 8), "p": np.array(False)}, w=(4, 3, 1, 1), w2=(4, 3, 1, 1),
         **norm(4), **norm(4, "2")),
    case("weights stored inside of the branch",
         "y = If (p) <then_branch = t () => (float[] u) <float[2,3,1,1] k = {1,2,3,4,5,6}> { c = Conv(x, "
         "k) u = BN(c) }, else_branch = e () => (float[] v) { v = Conv(x, w) }>", "If Conv Conv", PULLED,
         also="bool p", feeds={"x": drawn("x", 2, 3, 8, 8), "p": np.array(True)}, w=(2, 3, 1, 1), **norm(2)),
    case("a shared weight, captured by one branch and read outside",
         "z = Conv(x, w) y = If (p) <then_branch = t () => (float[] u) { c = Conv(x, w) u = BN(c) }, "
         "else_branch = e () => (float[] v) { v = Conv(x, w) }>", "Conv If Conv Conv", PULLED, also="bool p",
         gives="float[] z", feeds={"x": drawn("x", 2, 3, 8, 8), "p": np.array(True)}, w=(4, 3, 1, 1),
         **norm(4)),
    case("the convolution is outside, the normalization inside",
         "c = Conv(x, w) y = If (p) <then_branch = t () => (float[] u) { u = BN(c) }, else_branch = e () "
         "=> (float[] v) { v = Identity(x) }>", "Conv If BatchNormalization Identity", Reason.CAPTURED,
         also="bool p", w=(3, 3, 1, 1), **norm(3)),
    case("a normalization that is captured, and read outside by a convolution",
         "b = BN(x) z = Conv(b, w) y = If (p) <then_branch = t () => (float[] u) { u = Sigmoid(b) }, "
         "else_branch = e () => (float[] v) { v = Identity(x) }>",
         "BatchNormalization Conv If Sigmoid Identity", Reason.GRAPH_INPUT, also="bool p", gives="float[] z",
         w=(3, 3, 1, 1), **norm(3)),
    case("an affine right after an If",
         "c = If (p) <then_branch = t () => (float[] u) { u = Conv(x, w) }, else_branch = e () => (float[] "
         "v) { v = Conv(x, w) }> y = BN(c)", "If Conv Conv BatchNormalization", Reason.NOT_LINEAR,
         also="bool p", w=(4, 3, 1, 1), **norm(4)),
    case("the output of a branch is an output",
         "y = If (p) <then_branch = t () => (float[] u) { u = Conv(x, w) }, else_branch = e () => (float[] "
         "v) { d = Conv(x, w) v = BN(d) }>", "If Conv Conv", PULLED, also="bool p",
         feeds={"x": drawn("x", 2, 3, 8, 8), "p": np.array(False)}, w=(4, 3, 1, 1), **norm(4)),
    case("the body of a Loop",
         "y = Loop (n, , x) <body = b (int64 i, bool k, float[N,3,8,8] h) => (bool k2, float[N,3,8,8] r) { "
         "k2 = Identity(k) c = Conv(h, w) m = BN(c) r = Relu(m) }>", "Loop Identity Conv Relu", PULLED,
         also="int64 n", feeds={"x": drawn("x", 2, 3, 8, 8), "n": np.array(3)}, w=(3, 3, 1, 1), **norm(3)),
    case("a normalization of the state of a Loop",
         "y = Loop (n, , x) <body = b (int64 i, bool k, float[N,3,8,8] h) => (bool k2, float[N,3,8,8] r) { "
         "k2 = Identity(k) r = BN(h) }>", "Loop Identity BatchNormalization", Reason.GRAPH_INPUT,
         also="int64 n", **norm(3)),
    case("the body of a Scan",
         "z, y = Scan <num_scan_inputs = 1, body = b (float[1,3] h, float[1,3] e) => (float[1,3] h2, "
         "float[1,4] r) { h2 = Add(h, e) m = MatMul(h2, w) a = Mul(m, s) r = Add(a, t) }> (h0, x)",
         "Scan Add MatMul Add", PULLED, x="float[7,1,3]", gives="float[] z", h0=(1, 3), w=(3, 4), s=(4,),
         t=(4,)),
    case("an If within a Loop",
         "y = Loop (n, , x) <body = b (int64 i, bool k, float[N,3,8,8] h) => (bool k2, float[N,3,8,8] r) { "
         "k2 = Identity(k) r = If (k) <then_branch = t () => (float[N,3,8,8] u) "
         "{ c = Conv(h, w) u = BN(c) }, else_branch = e () => (float[N,3,8,8] v) { v = Identity(h) }> }>",
         "Loop Identity If Conv Identity", PULLED, also="int64 n",
         feeds={"x": drawn("x", 2, 3, 8, 8), "n": np.array(2)}, w=(3, 3, 1, 1), **norm(3)),
    case("a graph output that is also captured",
         "y = Conv(x, w) z = If (p) <then_branch = t () => (float[] u) { u = BN(y) }, else_branch = e () "
         "=> (float[] v) { v = Identity(y) }>", "Conv If BatchNormalization Identity", Reason.GRAPH_OUTPUT,
         also="bool p", gives="float[] z", w=(3, 3, 1, 1), **norm(3)),
]

FUNCTION = (
    '<ir_version: 8, opset_import: ["": 17, "local": 1]> g (float[N,3,8,8] x) => (float[] y) {{ {main} }} '
    '<domain: "local", opset_import: ["": 17]> {function}'
)
CONSTANTS = (
    "w = Constant <value = float[3,3,1,1] {1,2,3,4,5,6,7,8,9}> () "
    "s = Constant <value = float[3] {1,-2,3}> () v = Constant <value = float[3] {1,2,3}> ()"
)
TWICE = "a = local.block(x) y = local.block(a)"
OWN = FUNCTION.format(
    main=TWICE,
    function=f"block (x) => (y) {{ {CONSTANTS} c = Conv(x, w) m = BatchNormalization(c, s, v, s, v) "
    "y = Relu(m) }",
)
SCALED = FUNCTION.format(
    main=TWICE,
    function=f"block (x) => (y) {{ {CONSTANTS} i = Constant <value_ints = [3, 1, 1]> () k = Reshape(s, i) "
    "c = Conv(x, w) m = Mul(c, k) y = Relu(m) }",
)
ARGUED = FUNCTION.format(
    main="a = local.block(x, w, scale, bias, mean, var) y = local.block(a, w2, scale2, bias2, mean2, var2)",
    function="block (x, w, scale, bias, mean, var) => (y) { c = Conv(x, w) y = BN(c) }",
)
BETWEEN = FUNCTION.format(
    main="c = Conv(x, w) a = local.f(c) y = BN(a)", function="f (x) => (y) { y = Relu(x) }"
)
CASTING = FUNCTION.format(
    main="a = Cast <to = 10> (x) b = local.block(a) y = Cast <to = 1> (b)",
    function="block (x) => (y) { w = Constant <value = double[3,3,1,1] {1,2,3,4,5,6,7,8,9}> () "
    "s = Constant <value = float[3] {1,-2,3}> () v = Constant <value = float[3] {1,2,3}> () "
    "d = Cast <to = 11> (x) c = Conv(d, w) k = Cast <to = 1> (c) y = BatchNormalization(k, s, v, s, v) }",
)
POOLING = FUNCTION.format(
    main=TWICE,
    function=f"block (x) => (y) {{ {CONSTANTS} i = Constant <value_ints = [3, 1, 1]> () k = Reshape(v, i) "
    "c = Conv(x, w) p = MaxPool <kernel_shape = [2, 2]> (c) y = Mul(p, k) }",
)
NAMESAKE = (
    '<ir_version: 9, opset_import: ["": 17]> g (float[N,3,8,8] x) => (float[] y) {{ {main} }} '
    '<domain: "", opset_import: ["": 17]> {function}'
)
NAMESAKES = {
    "Relu": ("c = Conv(x, w) r = Relu(c) y = BN(r)", "(a) => (o) { o = Sigmoid(a) }", 1),
    "Conv": ("c = Conv(x, w) y = BN(c)", "(a, b) => (o) { o = Sin(a) }", 1),
    "BatchNormalization": ("c = Conv(x, w) y = BN(c)", "(a, s, b, m, v) => (o) { o = Identity(a) }", 0),
}
FUNCTIONS = [
    case("what a Cast in a function casts to is known", CASTING,
         "Cast block Cast Constant Constant Cast Conv Cast", PULLED, runtime=False),
    case("pools keep the rank in a function", POOLING, "block block Constant Constant Conv MaxPool", PULLED),
    case("constants of its own: for both calls at once", OWN, "block block Constant Constant Conv Relu",
         PULLED),
    case("a Mul in a function", SCALED, "block block Constant Constant Conv Relu", PULLED),
    case("constants that are arguments", ARGUED, "block block Conv BatchNormalization",
         Reason.FUNCTION_ARGUMENT, w=(3, 3, 1, 1), w2=(3, 3, 1, 1), **norm(3), **norm(3, "2")),
    case("constants that are arguments, inlined", ARGUED, "Conv Conv", PULLED, PULLED,
         options={"inline_functions": True}, w=(3, 3, 1, 1), w2=(3, 3, 1, 1), **norm(3), **norm(3, "2")),
    case("a call is an operator that nobody knows", BETWEEN, "Conv f BatchNormalization Relu",
         Reason.NOT_LINEAR, w=(3, 3, 1, 1), **norm(3)),
    case("inlined, the function is known", BETWEEN, "Conv Relu Add", PULLED,
         options={"inline_functions": True}, w=(3, 3, 1, 1), **norm(3) | {"scale": [1.0, 2.0, 3.0]}),
]

FREEZE = {"freeze_initializers": True}
OVERRIDABLE = [
    *(case(f"{name} may be overridden", "c = Conv(x, w, b) y = BN(c)", "Conv BatchNormalization",
           Reason.OVERRIDABLE, also=f"float{shape} {name}", **BIASED)
      for name, shape in (("w", [4, 3, 3, 3]), ("b", [4]), ("scale", [4]), ("mean", [4]), ("var", [4]))),
    *(case(f"{name} is frozen", "c = Conv(x, w, b) y = BN(c)", "Conv", PULLED, also=f"float{shape} {name}",
           options=FREEZE, **BIASED)
      for name, shape in (("w", [4, 3, 3, 3]), ("b", [4]), ("scale", [4]), ("mean", [4]), ("var", [4]))),
    case("a factor may be overridden", "c = Conv(x, w) y = Mul(c, s)", "Conv Mul", Reason.OVERRIDABLE,
         also="float[4,1,1] s", w=(4, 3, 1, 1), s=(4, 1, 1)),
    case("one weight may be overridden, the other fold is done",
         "c = Conv(x, w) b = BN(c) r = Relu(b) d = Conv(r, w2) y = BN2(d)",
         "Conv BatchNormalization Relu Conv", Reason.OVERRIDABLE, PULLED, also="float[4,3,1,1] w",
         w=(4, 3, 1, 1), w2=(2, 4, 1, 1), **norm(4) | {"scale": [-1.0, 1.0, 1.0, 1.0]}, **norm(2, "2")),
    case("IR version 3: initializers are inputs, and constants", "c = Conv(x, w) y = BN(c)", "Conv", PULLED,
         opset=8, ir_version=3, **PLAIN),
    case("IR version 3: there is nothing to freeze", "c = Conv(x, w) y = BN(c)", "Conv", PULLED, opset=8,
         ir_version=3, options=FREEZE, **PLAIN),
    case("IR version 3: a new bias is an input, too", "b = BN(x) y = Conv(b, w)", "Conv", PUSHED, opset=8,
         ir_version=3, w=(4, 3, 3, 3), **norm(3)),
    case("IR version 3: merged", "b = BN(x) m = Mul(b, s) y = Add(m, t)", "BatchNormalization", MERGED,
         opset=8, ir_version=3, s=(3, 1, 1), t=(3, 1, 1), **norm(3)),
    case("IR version 3: an Add that stays", "m = MatMul(x, w) y = BN(m)", "MatMul Add", PULLED,
         x="float[N,6]", opset=8, ir_version=3, w=(6, 4), **norm(4)),
    case("IR version 3: weights shared by two convolutions",
         "c = Conv(x, w) d = Conv(x, w) p = BN(c) y = Sub(p, d)", "Conv Conv Sub", PULLED, opset=8,
         ir_version=3, **PLAIN),
]
# fmt: on


@pytest.mark.parametrize("case", [*EVERY_OPSET, *DTYPES])
def test_opsets_and_types(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", [*SPELLED, *RANKS])
def test_constants_and_ranks(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", [*INNER, *FUNCTIONS])
def test_inner_graphs_and_functions(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("operator", NAMESAKES)
def test_a_function_takes_the_place_of_the_operator_of_its_name(operator: str) -> None:
    """Runtimes differ on who wins, so nothing is claimed about it."""
    main, function, decisions = NAMESAKES[operator]
    text = spelled_out(NAMESAKE.format(main=main, function=f"{operator} {function}"))
    report = fold(ir.from_proto(model(text, w=(3, 3, 1, 1), **norm(3) | {"scale": [1.0, 2.0, 3.0]})))
    assert [d.reason for d in report.decisions] == [Reason.NOT_LINEAR] * decisions
    assert not report.modified


@pytest.mark.parametrize("case", OVERRIDABLE)
def test_initializers_that_are_inputs(case: Case) -> None:
    check(case)
