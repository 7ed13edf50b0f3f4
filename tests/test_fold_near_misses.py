"""Graphs that look as if they could be folded and cannot: they stay, with the code that says why."""

from __future__ import annotations

import numpy as np
import pytest
from cases import PULLED, PUSHED, Case, case, check, fates, initializer, prove
from graphs import drawn, model, norm

from bnfold.report import Reason

SQUARE = "float[N,3,4,4]"
ROWS = "float[N,4,4]"
STEEP = norm(4) | {"scale": [0.5, -1.0, 2.0, 3.0]}
UP = norm(4) | {"scale": [0.5, 1.0, 2.0, 3.0]}
FLAT = norm(4) | {"scale": [0.5, 0.0, 2.0, 3.0]}
NAN, INF = float("nan"), float("inf")

# fmt: off
WIDTH_IS_NOT_CHANNEL = [
    *(case(f"{op} of {list(shape)} lies along the width or the height, as many as channels",
           f"c = Conv(x, w) y = {op}(c, k)", f"Conv {op}", Reason.AXIS,
           x=SQUARE, w=(4, 3, 1, 1), k=shape)
      for op in ("Mul", "Add", "Sub", "Div") for shape in ((4,), (1, 4), (4, 1), (1, 1, 1, 4))),
    case("the other operand order", "c = Conv(x, w) y = Mul(k, c)", "Conv Mul", Reason.AXIS,
         x=SQUARE, w=(4, 3, 1, 1), k=(4,)),
    case("opset 6 without axis: the last one", "c = Conv(x, w) y = Mul <broadcast = 1> (c, k)", "Conv Mul",
         Reason.AXIS, x=SQUARE, opset=6, w=(4, 3, 1, 1), k=(4,)),
    case("opset 6 with axis = 2", "c = Conv(x, w) y = Add <broadcast = 1, axis = 2> (c, k)", "Conv Add",
         Reason.AXIS, x=SQUARE, opset=6, w=(4, 3, 1, 1), k=(4,)),
    case("opset 6 with axis = 1 is the channel axis",
         "c = Conv(x, w) y = Add <broadcast = 1, axis = 1> (c, k)", "Conv", PULLED, x=SQUARE, opset=6,
         w=(4, 3, 1, 1), k=(4,)),
    case("before a convolution", "b = Mul(x, k) y = Conv(b, w)", "Mul Conv", Reason.AXIS,
         x="float[N,4,4,4]", w=(5, 4, 1, 1), k=(4,)),
    case("rows, not columns, of a product are normalized", "m = MatMul(x, w) y = BN(m)",
         "MatMul BatchNormalization", Reason.GRAPH_INPUT, x=ROWS, w=(4, 4), **norm(4)),
    case("a Transpose that does not move the axis there",
         "m = MatMul(x, w) t = Transpose <perm = [2,1,0]> (m) y = BN(t)",
         "MatMul Transpose BatchNormalization", Reason.GRAPH_INPUT, x="float[4,4,4]", w=(4, 4), **norm(4)),
    case("a full picture of numbers", "c = Conv(x, w) y = Mul(c, k)", "Conv Mul", Reason.NOT_PER_CHANNEL,
         x=SQUARE, w=(4, 3, 1, 1), k=(4, 4, 4)),
    case("a constant that broadcasts the data", "c = Conv(x, w) y = Mul(c, k)", "Conv Mul",
         Reason.NOT_PER_CHANNEL, x=SQUARE, w=(1, 3, 1, 1), k=(4, 1, 1)),
    case("a constant that raises the rank", "c = Conv(x, w) y = Add(c, k)", "Conv Add",
         Reason.NOT_PER_CHANNEL, x=SQUARE, w=(4, 3, 1, 1), k=(1, 1, 4, 1, 1)),
    case("channels over height and width of rank 3", "c = Conv(x, w) y = Mul(c, k)", "Conv Mul", Reason.AXIS,
         x="float[N,4,4]", w=(4, 4, 1), k=(1, 4)),
]

PADDING = [
    *(case(f"a shift before a convolution with {attributes}",
           f"b = BN(x) y = Conv <{attributes}> (b, w)", "BatchNormalization Conv", Reason.PADDING,
           w=(4, 3, 3, 3), **norm(3))
      for attributes in ("pads = [1,1,1,1]", "pads = [0,0,0,1]", 'auto_pad = "SAME_UPPER"',
                         'auto_pad = "SAME_LOWER", strides = [2,2]')),
    *(case(f"a scale before a convolution with {attributes}",
           f"b = Mul(x, s) y = Conv <{attributes}> (b, w)", "Conv", PUSHED, w=(4, 3, 3, 3), s=(3, 1, 1))
      for attributes in ("pads = [1,1,1,1]", 'auto_pad = "SAME_UPPER"')),
    *(case(f"SAME that pads nothing: {attributes} {kernel}",
           f'b = BN(x) y = Conv <auto_pad = "SAME_UPPER", {attributes}> (b, w)', "Conv", PUSHED,
           w=(4, 3, *kernel), **norm(3))
      for attributes, kernel in (("strides = [1,1]", (1, 1)), ("strides = [2,2]", (2, 2)),
                                 ("strides = [4,2]", (3, 2)), ("dilations = [3,3]", (1, 1)))),
    case("SAME that pads one at the end, for the last window hangs over",
         'b = BN(x) y = Conv <auto_pad = "SAME_UPPER", strides = [2,2]> (b, w)', "BatchNormalization Conv",
         Reason.PADDING, x="float[N,3,9,9]", w=(4, 3, 2, 2), **norm(3)),
    case("VALID", 'b = BN(x) y = Conv <auto_pad = "VALID"> (b, w)', "Conv", PUSHED, w=(4, 3, 3, 3),
         **norm(3)),
    case("SAME where the size is not known",
         'b = BN(x) y = Conv <auto_pad = "SAME_UPPER", strides = [2,2]> (b, w)', "BatchNormalization Conv",
         Reason.UNKNOWN_SHAPE, x="float[N,3,H,W]", w=(4, 3, 2, 2), **norm(3)),
    case("one of two readers pads",
         "b = BN(x) p = Conv <pads = [1,1,1,1]> (b, v) q = Conv(b, w) y = Add(p, q)",
         "BatchNormalization Conv Conv Add", Reason.PADDING, w=(4, 3, 1, 1), v=(4, 3, 3, 3), **norm(3)),
    case("transposed convolution: outputs at the border see fewer taps",
         "b = BN(x) y = ConvTranspose(b, w)", "BatchNormalization ConvTranspose", Reason.PADDING,
         w=(3, 4, 3, 3), **norm(3)),
    case("transposed convolution: kernel = stride gives each tap its own shift",
         "b = BN(x) y = ConvTranspose <strides = [2,2]> (b, w)", "BatchNormalization ConvTranspose",
         Reason.PADDING, w=(3, 4, 2, 2), **norm(3)),
    case("transposed convolution: pads too small for the dilation",
         "b = BN(x) y = ConvTranspose <dilations = [2,2], pads = [3,4,4,4]> (b, w)",
         "BatchNormalization ConvTranspose", Reason.PADDING, w=(3, 4, 3, 3), **norm(3)),
    case("an average that counts the padding",
         "c = Conv(x, w) p = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1> "
         "(c) y = BN(p)", "Conv AveragePool BatchNormalization", Reason.PADDING, w=(4, 3, 1, 1), **norm(4)),
    case("the same for a scale alone",
         "c = Conv(x, w) p = AveragePool <kernel_shape = [3,3], pads = [1,1,1,1], count_include_pad = 1> (c) "
         "y = Mul(p, s)", "Conv AveragePool", PULLED, w=(4, 3, 1, 1), s=(4, 1, 1)),
    case("Pad by zeros and a shift", "c = Conv(x, w) p = Pad(c, i) y = BN(p)", "Conv Pad BatchNormalization",
         Reason.PADDING, i=[0, 0, 1, 1, 0, 0, 1, 1], w=(4, 3, 1, 1), **norm(4)),
    case("Pad by a number that all channels map to one",
         "c = Conv(x, w) p = Pad(c, i, v) a = Mul(p, s) y = Add(a, t)", "Conv Pad", PULLED,
         i=[0, 0, 1, 1, 0, 0, 1, 1], w=(4, 3, 1, 1), v=np.float32(2), s=[[[1.0]], [[2.0]], [[3.0]], [[0.5]]],
         t=[[[5.0]], [[3.0]], [[1.0]], [[6.0]]]),
    case("Pad of the channels themselves", "c = Conv(x, w) p = Pad(c, i) y = BN(p)",
         "Conv Pad BatchNormalization", Reason.AXIS, i=[0, 1, 0, 0, 0, 0, 0, 0], w=(3, 3, 1, 1), **norm(4)),
    case("Pad forward, into a convolution", "b = BN(x) p = Pad(b, i) y = Conv(p, w)",
         "BatchNormalization Pad Conv", Reason.PADDING, i=[0, 0, 1, 1, 0, 0, 1, 1], w=(4, 3, 3, 3),
         **norm(3)),
]

SIGNS = [
    *(case(f"{pool} and a {what} scale",
           f"c = Conv(x, w) p = {pool}(c) y = BN(p)".replace("(c)", attributes + "(c)"),
           f"Conv {pool} BatchNormalization", Reason.SIGN, w=(4, 3, 1, 1), **constants)
      for pool, attributes in (("MaxPool", " <kernel_shape = [2,2]> "), ("GlobalMaxPool", ""),
                               ("ReduceMax", " <axes = [2]> "), ("ReduceMin", " <axes = [2]> "),
                               ("Relu", ""), ("LeakyRelu", ""))
      for what, constants in (("negative", STEEP), ("zero", FLAT))),
    case("MaxPool forward", "b = BN(x) p = MaxPool <kernel_shape = [2,2]> (b) y = Conv(p, w)",
         "BatchNormalization MaxPool Conv", Reason.SIGN, x="float[N,4,8,8]", w=(5, 4, 1, 1), **STEEP),
    case("Relu forward", "b = Mul(x, s) r = Relu(b) y = Conv(r, w)", "Mul Relu Conv", Reason.SIGN,
         w=(5, 3, 1, 1), s=[[[1.0]], [[-1.0]], [[2.0]]]),
    case("PRelu", "c = Conv(x, w) r = PRelu(c, a) y = Mul(r, s)", "Conv PRelu Mul", Reason.SIGN,
         w=(3, 3, 1, 1), a=(3, 1, 1), s=[[[1.0]], [[-1.0]], [[2.0]]]),
    case("Relu cannot pass a shift", "c = Conv(x, w) r = Relu(c) y = Add(r, t)", "Conv Relu Add",
         Reason.SHIFT, w=(4, 3, 1, 1), t=(4, 1, 1)),
    case("a positive scale passes Relu, its shift stays", "c = Conv(x, w) r = Relu(c) y = BN(r)",
         "Conv Relu Add", PULLED, w=(4, 3, 1, 1), **UP),
    case("indices of MaxPool", "c = Conv(x, w) p, z = MaxPool <kernel_shape = [2,2]> (c) y = BN(p)",
         "Conv MaxPool BatchNormalization", Reason.OTHER_OUTPUT, gives="int64[] z", w=(4, 3, 1, 1), **UP),
    case("mask of Dropout", "c = Conv(x, w) p, z = Dropout(c) y = BN(p)",
         "Conv Dropout BatchNormalization", Reason.OTHER_OUTPUT, gives="bool[] z", w=(4, 3, 1, 1), **UP),
]

NEIGHBOURS = [
    *(case(f"{op} is not linear", f"c = Conv(x, w) r = {body} y = BN(r)", f"Conv {op} BatchNormalization",
           Reason.NOT_LINEAR, w=(4, 3, 1, 1), **norm(4))
      for op, body in (("Sigmoid", "Sigmoid(c)"), ("Clip", "Clip(c)"), ("Softmax", "Softmax <axis = 1> (c)"),
                       ("Tanh", "Tanh(c)"), ("HardSwish", "HardSwish(c)"), ("Exp", "Exp(c)"))),
    case("on both sides", "s = Sigmoid(x) b = BN(s) y = Sigmoid(b)", "Sigmoid BatchNormalization Sigmoid",
         Reason.NOT_LINEAR, **norm(3)),
    case("nothing on either side", "y = BN(x)", "BatchNormalization", Reason.GRAPH_INPUT, **norm(3)),
    case("an operator of another domain",
         '<ir_version: 8, opset_import: ["": 17, "custom": 1]> g (float[N,3,8,8] x) => (float[] y) '
         "{ c = Conv(x, w) r = custom.Relu(c) y = BN(r) }", "Conv Relu BatchNormalization", Reason.NOT_LINEAR,
         w=(4, 3, 1, 1), **norm(4)),
    case("a sum with an operand that has no channels",
         "c = Conv(x, w) d = Conv(x, v) a = Add(c, d) y = BN(a)", "Conv Conv Add BatchNormalization",
         Reason.BROADCAST, w=(4, 3, 1, 1), v=(1, 3, 1, 1), **norm(4)),
    case("a sum with the input of the graph", "c = Conv(x, w) a = Add(c, x) y = BN(a)",
         "Conv Add BatchNormalization", Reason.GRAPH_INPUT, w=(3, 3, 1, 1), **norm(3)),
    case("a sum that only one normalized operand goes into", "b = BN(x) a = Add(b, x) y = Conv(a, w)",
         "BatchNormalization Add Conv", Reason.GRAPH_INPUT, w=(4, 3, 1, 1), **norm(3)),
    case("SpaceToDepth mixes channels", "c = Conv(x, w) d = SpaceToDepth <blocksize = 2> (c) y = BN(d)",
         "Conv SpaceToDepth BatchNormalization", Reason.MIXED_CHANNELS, w=(2, 3, 1, 1), **norm(8)),
    case("the channel shuffle of grouped convolutions",
         "c = Conv(x, w) r = Reshape(c, i) t = Transpose <perm = [0,2,1,3,4]> (r) s = Reshape(t, j) y = "
         "BN(s)", "Conv Reshape Transpose Reshape BatchNormalization", Reason.MIXED_CHANNELS,
         i=[0, 2, 3, 8, 8], j=[0, 6, 8, 8], w=(6, 3, 1, 1), **norm(6)),
    case("Flatten of the image into the batch", "c = Conv(x, w) r = Reshape(c, i) y = Mul(r, s)",
         "Conv Reshape Mul", Reason.MIXED_CHANNELS, x="float[2,3,8,8]", i=[8, 64], w=(4, 3, 1, 1), s=(64,)),
    case("parts of a Split off the axis",
         "c = Conv(x, w) p, q = Split <axis = 2> (c, i) y = BN(p) z = Relu(q)",
         "Conv Split BatchNormalization Relu", Reason.PARTS_DISAGREE, gives="float[] z", i=[4, 4],
         w=(4, 3, 1, 1), **norm(4)),
    case("Gather repeats a channel with another affine",
         "c = Conv(x, w) p = Gather <axis = 1> (c, i) y = BN(p)", "Conv Gather BatchNormalization",
         Reason.PARTS_DISAGREE, i=[2, 0, 2], w=(4, 3, 1, 1), **norm(3)),
    case("Concat along the height with one branch normalized",
         "b = BN(x) j = Concat <axis = 2> (b, x) y = Conv(j, w)", "BatchNormalization Concat Conv",
         Reason.PARTS_DISAGREE, w=(4, 3, 1, 1), **norm(3)),
    case("Concat of the same value, normalized differently",
         "c = Conv(x, w) j = Concat <axis = 1> (c, c) y = BN(j)", "Conv Concat BatchNormalization",
         Reason.PARTS_DISAGREE, w=(2, 3, 1, 1), **norm(4)),
    case("a product of two values takes the scale, the shift stays",
         "c = Conv(x, v) d = Conv(x, w) m = Mul(c, d) y = BN(m)", "Conv Conv Mul Add", PULLED,
         v=(4, 3, 1, 1), w=(4, 3, 1, 1), **norm(4)),
    case("the square of a value", "c = Conv(x, w) m = Mul(c, c) y = BN(m)", "Conv Mul BatchNormalization",
         Reason.PARTS_DISAGREE, w=(4, 3, 1, 1), **norm(4)),
    case("Resize that extrapolates",
         'c = Conv(x, w) r = Resize <mode = "linear", coordinate_transformation_mode = '
         '"tf_crop_and_resize"> (c, f, s) '
         "y = BN(r)", "Conv Resize BatchNormalization", Reason.NOT_LINEAR,
         f=[0.0, 0.0, 0.1, 0.1, 1.0, 1.0, 1.4, 1.4], s=[1.0, 1.0, 2.0, 2.0], w=(4, 3, 1, 1), **norm(4)),
    case("Resize of the channels", 'c = Conv(x, w) r = Resize <mode = "nearest"> (c, , s) y = BN(r)',
         "Conv Resize BatchNormalization", Reason.AXIS, s=[1.0, 2.0, 1.0, 1.0], w=(2, 3, 1, 1), **norm(4)),
    case("Gemm with transA", "b = Mul(x, s) y = Gemm <transA = 1> (b, w)", "Mul Gemm", Reason.AXIS,
         x="float[6,3]", s=(3,), w=(6, 4)),
    case("Slice whose start depends on data", "c = Conv(x, w) p = Slice(c, i, j, k) y = BN(p)",
         "Conv Slice BatchNormalization", Reason.NOT_STATIC, also="int64[1] i", j=[3], k=[1],
         feeds={"x": drawn("x", 2, 3, 8, 8), "i": np.array([1])}, w=(4, 3, 1, 1), **norm(2)),
    case("GroupNormalization of opset 18 scales per group",
         "l = GroupNormalization <num_groups = 2> (x, g, c) y = BN(l)",
         "GroupNormalization BatchNormalization", Reason.AXIS, x="float[N,4,8,8]", opset=18, g=(2,), c=(2,),
         **norm(4)),
    case("a shift before MatMul is a shift behind it", "b = Add(x, t) y = MatMul(b, w)", "Add MatMul",
         Reason.NO_GAIN, x=ROWS, t=(4,), w=(4, 5)),
    case("a normalization of a constant", "b = BN(k) y = Add(x, b)", "BatchNormalization Add",
         Reason.FROM_CONSTANT, k=(1, 3, 8, 8), **norm(3)),
]

READERS = [
    case("two readers", "c = Conv(x, w) b = BN(c) r = Relu(c) y = Add(b, r)",
         "Conv BatchNormalization Relu Add", Reason.SEVERAL_READERS, w=(4, 3, 1, 1), **norm(4)),
    case("two readers further up", "c = Conv(x, w) p = Transpose(c) b = Mul(p, s) r = Relu(c) y = Sigmoid(b) "
         "z = Sigmoid(r)", "Conv Transpose Mul Relu Sigmoid Sigmoid", Reason.SEVERAL_READERS,
         gives="float[] z", w=(4, 3, 1, 1), s=(4, 1)),
    case("two normalizations of one value", "c = Conv(x, w) y = BN(c) z = BN2(c)",
         "Conv BatchNormalization BatchNormalization", Reason.SEVERAL_READERS, Reason.SEVERAL_READERS,
         gives="float[] z", w=(4, 3, 1, 1), **norm(4), **norm(4, "2")),
    case("the convolution is an output of the graph", "z = Conv(x, w) y = BN(z)", "Conv BatchNormalization",
         Reason.GRAPH_OUTPUT, gives="float[] z", w=(4, 3, 1, 1), **norm(4)),
    case("the normalization before a convolution is an output of the graph", "z = BN(x) y = Conv(z, w)",
         "BatchNormalization Conv", Reason.GRAPH_INPUT, gives="float[] z", w=(4, 3, 1, 1), **norm(3)),
    case("a value in the middle of a run is an output of the graph",
         "c = Conv(x, w) z = BN(c) y = Mul(z, s)", "Conv Mul", PULLED, Reason.GRAPH_OUTPUT,
         gives="float[] z", w=(4, 3, 1, 1), s=(4, 1, 1), **norm(4)),
    case("a value in the middle of a run has another reader",
         "c = Conv(x, w) b = BN(c) m = Mul(b, s) y = Sub(m, b)", "Conv Mul Sub", PULLED,
         Reason.SEVERAL_READERS, w=(4, 3, 1, 1), s=(4, 1, 1), **norm(4)),
    case("one reader of two cannot take it", "b = BN(x) p = Conv(b, w) r = Sigmoid(b) y = Mul(p, r)",
         "BatchNormalization Conv Sigmoid Mul", Reason.GRAPH_INPUT, w=(3, 3, 1, 1), **norm(3)),
]

CONSTANTS = [
    *(case(f"the {name} of the normalization comes at run time", "c = Conv(x, w) y = BN(c)",
           "Conv BatchNormalization", Reason.RUNTIME_PARAMETERS, also=f"float[4] {name}",
           feeds={"x": drawn("x", 2, 3, 8, 8), name: drawn("var of " + name, 4)},
           w=(4, 3, 1, 1), **{k: v for k, v in norm(4).items() if k != name})
      for name in ("scale", "bias", "mean", "var")),
    case("the weights come at run time", "c = Conv(x, w) y = BN(c)", "Conv BatchNormalization",
         Reason.GRAPH_INPUT, also="float[4,3,1,1] w", **norm(4)),
    case("the weights are computed at run time", "k = Sigmoid(u) c = Conv(x, k) y = BN(c)",
         "Sigmoid Conv BatchNormalization", Reason.NOT_LINEAR, also="float[4,3,1,1] u", **norm(4)),
    case("the weights are a constant times a number of run time: the constant takes it",
         "k = Mul(w, u) c = Conv(x, k) y = Mul(c, s)", "Mul Conv", Reason.NOT_PER_CHANNEL, PULLED,
         also="float[1] u", w=(4, 3, 1, 1), s=(4, 1, 1)),
    case("the bias comes at run time", "c = Conv(x, w, k) y = BN(c)", "Conv BatchNormalization",
         Reason.GRAPH_INPUT, also="float[4] k", w=(4, 3, 1, 1), **norm(4)),
    case("dequantized weights", "w = DequantizeLinear <axis = 0> (q, f) c = Conv(x, w) y = BN(c)",
         "DequantizeLinear Conv BatchNormalization", Reason.QUANTIZED,
         q=np.arange(-6, 6, dtype=np.int8).reshape(4, 3, 1, 1), f=[0.1, 0.2, 0.3, 0.4], **norm(4)),
    case("quantized activations",
         "c = Conv(x, w) q = QuantizeLinear(c, f, o) d = DequantizeLinear(q, f, o) y = BN(d)",
         "Conv QuantizeLinear DequantizeLinear BatchNormalization", Reason.QUANTIZED,
         f=np.float32(0.1), o=np.uint8(128), w=(4, 3, 1, 1), **norm(4)),
    case("a rank that is not known", "c = Sigmoid(x) y = Mul(c, s)", "Sigmoid Mul", Reason.UNKNOWN_SHAPE,
         x="float[]", s=(3, 1, 1), feeds={"x": drawn("x", 2, 3, 4, 4)}),
    case("a shape that is computed from data", "c = Conv(x, w) r = Reshape(c, i) y = BN(r)",
         "Conv Reshape BatchNormalization", Reason.UNKNOWN_SHAPE, also="int64[4] i",
         feeds={"x": drawn("x", 2, 3, 8, 8), "i": np.array([2, 4, 16, 4])}, w=(4, 3, 1, 1), **norm(4)),
]

NUMBERS = [
    *(case(f"{value} in the {name}", "c = Conv(x, w) y = BN(c)", "Conv BatchNormalization", Reason.NOT_FINITE,
           w=(4, 3, 1, 1), **(norm(4) | {name: [1.0, value, 2.0, 3.0]}))
      for name in ("scale", "bias", "mean", "var") for value in (NAN, INF, -INF)),
    *(case(f"{value} in the weights", "c = Conv(x, w) y = BN(c)", "Conv BatchNormalization",
           Reason.NOT_FINITE, w=np.full((4, 3, 1, 1), value, np.float32), **norm(4)) for value in (NAN, INF)),
    *(case(f"{value} in the bias of the convolution", "c = Conv(x, w, k) y = BN(c)",
           "Conv BatchNormalization", Reason.NOT_FINITE, w=(4, 3, 1, 1), k=[0.0, value, 1.0, 2.0], **norm(4))
      for value in (NAN, INF)),
    case("a factor of infinity", "c = Conv(x, w) y = Mul(c, s)", "Conv Mul", Reason.NOT_FINITE,
         w=(2, 3, 1, 1), s=[[[1.0]], [[INF]]]),
    case("a division by zero", "c = Conv(x, w) y = Div(c, s)", "Conv Div", Reason.NOT_FINITE, w=(2, 3, 1, 1),
         s=[[[1.0]], [[0.0]]]),
    *(case(f"a variance of {value:g} with an epsilon of {epsilon}",
           f"c = Conv(x, w) y = BN <epsilon = {epsilon}> (c)", "Conv BatchNormalization",
           Reason.NEGATIVE_VARIANCE, w=(2, 3, 1, 1), **norm(2) | {"var": np.array([1.0, value], np.float32)})
      for value, epsilon in ((-0.5, "0.001"), (-0.5, "0.5"), (0.0, "0.0"))),
    case("a negative variance that epsilon makes up for", "c = Conv(x, w) y = BN <epsilon = 0.5> (c)", "Conv",
         PULLED, w=(2, 3, 1, 1), **norm(2) | {"var": [1.0, -0.25]}),
    case("a variance of 0 is no reason", "c = Conv(x, w) y = BN(c)", "Conv", PULLED,
         w=(2, 3, 1, 1), **(norm(2) | {"var": [1.0, 0.0]})),
    case("float16 overflows", "c = Conv(x, w) y = BN(c)", "Conv BatchNormalization", Reason.OVERFLOW,
         x="float16[N,3,8,8]", w=np.full((2, 3, 1, 1), 2, np.float16),
         **norm(2) | {"scale": np.array([1, 60000], np.float16)}),
    case("the bias overflows float16", "c = Conv(x, w) y = BN(c)", "Conv BatchNormalization", Reason.OVERFLOW,
         x="float16[N,3,8,8]", w=(2, 3, 1, 1), bias=np.array([0, 60000], np.float16),
         mean=np.array([0, -60000], np.float16), scale=np.array([1, 1], np.float16),
         var=np.array([1, 1], np.float16)),
    case("a channel vanishes in float16", "c = Conv(x, w) y = BN(c)", "Conv BatchNormalization",
         Reason.UNDERFLOW, x="float16[N,3,8,8]", w=(2, 3, 1, 1),
         **norm(2) | {"scale": np.array([1, 1e-7], np.float16)}),
    case("a channel loses its precision in float16", "c = Conv(x, w) y = BN(c)", "Conv BatchNormalization",
         Reason.UNDERFLOW, x="float16[N,3,8,8]", w=(2, 3, 1, 1),
         **norm(2) | {"scale": np.array([1, 1e-5], np.float16)}),
    case("a scale of 0 is not an underflow", "c = Conv(x, w) y = BN(c)", "Conv", PULLED,
         x="float16[N,3,8,8]", w=(2, 3, 1, 1), **norm(2) | {"scale": np.array([1, 0], np.float16)}),
    case("float32 overflows", "c = Conv(x, w) y = Mul(c, s)", "Conv Mul", Reason.OVERFLOW,
         w=np.full((2, 3, 1, 1), 1e20, np.float32), s=[[[1.0]], [[1e20]]]),
    case("a channel vanishes in float32", "c = Conv(x, w) y = Mul(c, s)", "Conv", PULLED,
         w=np.full((2, 3, 1, 1), 1e-30, np.float32), s=[[[1.0]], [[1e-30]]]),
]
# fmt: on


@pytest.mark.parametrize("case", [*WIDTH_IS_NOT_CHANNEL, *NEIGHBOURS])
def test_axes_and_neighbours(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", [*PADDING, *SIGNS])
def test_padding_and_signs(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", READERS)
def test_readers(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", [*CONSTANTS, *NUMBERS])
def test_constants(case: Case) -> None:
    check(case)


def test_quantized_weights_stay_as_they_are() -> None:
    before = model(
        "(float[N,3,8,8] x) => (float[] y) { w = DequantizeLinear <axis = 0> (q, f) c = Conv(x, w) "
        "y = BatchNormalization(c, scale, bias, mean, var) }",
        q=np.arange(-6, 6, dtype=np.int8).reshape(4, 3, 1, 1),
        f=[0.1, 0.2, 0.3, 0.4],
        **norm(4),
    )
    after, report = prove(before)
    assert not report.modified
    assert initializer(after, "q").tobytes() == initializer(before, "q").tobytes()
    assert initializer(after, "f").tobytes() == initializer(before, "f").tobytes()


def test_a_constant_that_would_fill_the_memory() -> None:
    before = model(
        "(float[N,3] x) => (float[] y) { w = ConstantOfShape(huge) m = MatMul(x, w) y = Mul(m, s) }",
        huge=[3, 1 << 40],
        s=2.0,
    )
    assert fates(prove(before)[1]) == (Reason.TOO_LARGE,)


def test_the_detail_names_what_stood_in_the_way() -> None:
    before = model(
        "(float[N,3,8,8] x) => (float[] y) { b = BatchNormalization(x, scale, bias, mean, var) "
        "y = Conv <pads = [1,1,1,1]> (b, w) }",
        w=(4, 3, 3, 3),
        **norm(3),
    )
    (decision,) = prove(before)[1].decisions
    assert decision.reason is Reason.PADDING
    assert "Conv 'y'" in decision.detail
