"""Folds that are exact, and that most other tools leave: a few graphs of each kind, with what remains."""

from __future__ import annotations

from typing import Any

import pytest
from cases import MERGED, PULLED, PUSHED, Case, case, check
from graphs import norm

from bnfold.report import Reason

WIDE = "float[N,4,8,8]"
ROWS = "float[N,5,6]"

# fmt: off
INTO_SEVERAL_READERS = [
    case("three convolutions",
         "b = BN(x) p = Conv(b, u) q = Conv(b, v) r = Conv(b, w) y = Sum(p, q, r)",
         "Conv Conv Conv Sum", PUSHED,
         u=(4, 3, 1, 1), v=(4, 3, 1, 1), w=(4, 3, 1, 1), **norm(3)),
    case("a convolution and a transposed one",
         "b = BN(x) y = Conv(b, v) z = ConvTranspose <pads = [2,2,2,2]> (b, w)",
         "Conv ConvTranspose", PUSHED,
         gives="float[] z", v=(4, 3, 1, 1), w=(3, 4, 3, 3), **norm(3)),
    case("two classifiers behind pools",
         "b = BN(x) p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, w, c) "
         "q = ReduceMean <axes = [2,3], keepdims = 0> (b) z = Gemm <transB = 1> (q, v)",
         "GlobalAveragePool Flatten Gemm ReduceMean Gemm", PUSHED,
         gives="float[] z", w=(3, 5), c=(5,), v=(6, 3), **norm(3)),
    case("two slices of the channels",
         "b = BN(x) p = Slice(b, i0, i1, i1) q = Slice(b, i1, i3, i1) r = Conv(p, u) s = Conv(q, v) y = "
         "Add(r, s)", "Slice Slice Conv Conv Add", PUSHED, i0=[0], i1=[1], i3=[3], u=(4, 1, 1, 1),
         v=(4, 2, 1, 1), **norm(3)),
    case("queries, keys and values, each with the one bias as its own Add",
         "b = Mul(x, s) q = MatMul(b, u) k = MatMul(b, v) r = MatMul(b, w) y = Sum(q, k, r)",
         "MatMul MatMul MatMul Sum", PUSHED,
         x=ROWS, s=(6,), u=(6, 4), v=(6, 4), w=(6, 4)),
    case("one reader reads nothing but the shape",
         "b = BN(x) p = Conv(b, w) h = Shape(b) y = Conv(p, v) z = Identity(h)",
         "Conv Conv Shape Identity", PUSHED,
         gives="int64[] z", w=(4, 3, 1, 1), v=(2, 4, 1, 1), **norm(3)),
]

INTO_GROUPS = [
    case("before a grouped convolution",
         "b = BN(x) y = Conv <group = 2> (b, w)", "Conv", PUSHED, x=WIDE, w=(6, 2, 3, 3), **norm(4)),
    case("before a depthwise convolution with a multiplier",
         "b = BN(x) y = Conv <group = 3> (b, w, c)", "Conv", PUSHED, w=(6, 1, 3, 3), c=(6,), **norm(3)),
    case("after a grouped transposed convolution",
         "c = ConvTranspose <group = 2> (x, w) y = BN(c)", "ConvTranspose", PULLED,
         x=WIDE, w=(4, 3, 3, 3), **norm(6)),
    case("before a grouped transposed convolution, the scale alone",
         "b = Mul(x, s) y = ConvTranspose <group = 2, strides = [2,2]> (b, w)", "ConvTranspose", PUSHED,
         x=WIDE, w=(4, 3, 3, 3), s=(4, 1, 1)),
    case("before a grouped transposed convolution that cuts its border off",
         "b = BN(x) y = ConvTranspose <group = 2, pads = [2,4,2,4], dilations = [1,2]> (b, w)",
         "ConvTranspose", PUSHED, x=WIDE, w=(4, 3, 3, 3), **norm(4)),
]

TO_THE_CLASSIFIER = [
    case("normalization, average over the image, Gemm",
         "b = BN(x) p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, w, c)",
         "GlobalAveragePool Flatten Gemm", PUSHED, w=(3, 5), c=(5,), **norm(3)),
    case("normalization, average, Squeeze, MatMul, whose shift the bias takes",
         "b = BN(x) p = ReduceMean <axes = [2,3], keepdims = 1> (b) f = Squeeze(p, i) m = MatMul(f, w) y = "
         "Add(m, c)", "ReduceMean Squeeze MatMul Add", PUSHED, Reason.SHIFT, i=[2, 3], w=(3, 5), c=(5,),
         **norm(3)),
    case("normalization, Flatten, Gemm: each channel goes to 64 rows",
         "b = BN(x) f = Flatten(b) y = Gemm(f, w, c)", "Flatten Gemm", PUSHED, w=(192, 5), c=(5,), **norm(3)),
    case("normalization, Reshape, MatMul: the shift is one Add",
         "b = BN(x) f = Reshape(b, i) y = MatMul(f, w)", "Reshape MatMul Add", PUSHED,
         i=[0, -1], w=(192, 5), **norm(3)),
    case("convolution, average, normalization, Gemm: backwards is as good",
         "c = Conv(x, v) p = GlobalAveragePool(c) b = BN(p) f = Flatten(b) y = Gemm(f, w)",
         "Conv GlobalAveragePool Flatten Gemm", PULLED, v=(4, 3, 3, 3), w=(4, 5), **norm(4)),
    case("dense, ReLU, normalization, dense: Keras' order",
         "h = MatMul(x, u) a = Add(h, d) r = Relu(a) b = BN(r) m = MatMul(b, w) y = Add(m, c)",
         "MatMul Add Relu MatMul Add", Reason.SHIFT, PUSHED, Reason.SHIFT,
         x="float[N,3]", u=(3, 4), d=(4,), w=(4, 5), c=(5,), **norm(4)),
]

FROM_BRANCHES = [
    case("Concat of two convolutions",
         "p = Conv(x, v) q = Conv(x, w, c) j = Concat <axis = 1> (p, q) y = BN(j)",
         "Conv Conv Concat", PULLED, v=(2, 3, 1, 1), w=(3, 3, 1, 1), c=(3,), **norm(5)),
    case("Concat, counted from behind, of three kinds of operators",
         'p = Conv(x, u) q = ConvTranspose(x, v) r = Pad <mode = "edge"> (q, i) s = Slice(r, f, t, a) '
         "j = Concat <axis = -3> (p, s) y = BN(j)",
         "Conv ConvTranspose Pad Slice Concat", PULLED,
         i=[0] * 8, f=[0, 0], t=[8, 8], a=[2, 3], u=(2, 3, 1, 1), v=(3, 4, 1, 1), **norm(6)),
    case("Concat along the height of two convolutions",
         "p = Conv(x, v) q = Conv(x, w) j = Concat <axis = 2> (p, q) y = BN(j)",
         "Conv Conv Concat", PULLED, v=(4, 3, 1, 3), w=(4, 3, 3, 3), **norm(4)),
    case("Concat of one value twice, with the same affine on both halves",
         "p = Conv(x, w) j = Concat <axis = 1> (p, p) y = Mul(j, s)",
         "Conv Concat", PULLED, w=(2, 3, 1, 1), s=[[[2.0]], [[3.0]], [[2.0]], [[3.0]]]),
    case("forward through a Concat with a branch that has no normalization",
         "b = BN(x) j = Concat <axis = 1> (b, x) y = Conv(j, w)",
         "Concat Conv", PUSHED, w=(4, 6, 3, 3), **norm(3)),
    case("the residual sum of two convolutions",
         "p = Conv(x, v) q = Conv(x, w) a = Add(p, q) y = BN(a)",
         "Conv Conv Add", PULLED, v=(4, 3, 1, 1), w=(4, 3, 1, 1), **norm(4)),
    case("the difference of two convolutions",
         "p = Conv(x, v) q = Conv(x, w) a = Sub(p, q) y = BN(a)",
         "Conv Conv Sub", PULLED, v=(4, 3, 1, 1), w=(4, 3, 1, 1), **norm(4)),
    case("a residual sum over several blocks",
         "p = Conv(x, u) q = Conv(x, v) r = Conv(x, w) a = Add(p, q) s = Add(a, r) y = BN(s)",
         "Conv Conv Conv Add Add", PULLED, u=(4, 3, 1, 1), v=(4, 3, 1, 1), w=(4, 3, 1, 1), **norm(4)),
    case("x + x is two uses of one value",
         "p = Conv(x, w) a = Add(p, p) y = BN(a)", "Conv Add", PULLED, w=(4, 3, 1, 1), **norm(4)),
    case("the sum of a value and its pool, both from one convolution each",
         "p = Conv(x, v) m = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (p) q = Conv(x, w) a = "
         "Add(m, q) "
         "y = BN(a)", "Conv MaxPool Conv Add", PULLED, v=(4, 3, 1, 1), w=(4, 3, 1, 1),
         **norm(4) | {"scale": [0.5, 1.0, 2.0, 3.0]}),
    case("a convolution plus a constant", "p = Conv(x, w) a = Add(p, d) y = BN(a)", "Conv", PULLED,
         w=(4, 3, 1, 1), d=(4, 1, 1), **norm(4)),
    case("a convolution plus a picture: the constant takes the shift",
         "p = Conv(x, w) a = Add(p, d) y = BN(a)", "Conv Add", Reason.NOT_PER_CHANNEL, PULLED,
         w=(4, 3, 1, 1), d=(4, 8, 8), **norm(4)),
]

THROUGH: list[tuple[str, str, dict[str, Any]]] = [
    ("MaxPool", "MaxPool <kernel_shape = [2,2], strides = [2,2], pads = [1,1,1,1]> (c)", {}),
    ("AveragePool", "AveragePool <kernel_shape = [2,2], pads = [1,0,1,0]> (c)", {}),
    ("GlobalAveragePool", "GlobalAveragePool(c)", {}),
    ("GlobalMaxPool", "GlobalMaxPool(c)", {}),
    ("ReduceMean", "ReduceMean <axes = [-1]> (c)", {}),
    ("ReduceMax", "ReduceMax <axes = [2,3]> (c)", {}),
    ("ReduceSum", "ReduceSum(c, i)", {"i": [2]}),
    ("Slice", "Slice(c, i, j, k, l)", {"i": [6], "j": [1], "k": [2], "l": [-2]}),
    ("Resize", 'Resize <mode = "linear"> (c, , i)', {"i": [1.0, 1.0, 2.0, 1.5]}),
    ("Resize", 'Resize <mode = "cubic", coordinate_transformation_mode = "align_corners"> (c, , , i)',
     {"i": [2, 4, 5, 9]}),
    ("Transpose Transpose", "Transpose <perm = [2,0,3,1]> (c) t = Transpose <perm = [1,3,0,2]> (m)", {}),
    ("Reshape", "Reshape(c, i)", {"i": [0, 0, -1]}),
    ("Flatten Reshape", "Flatten(c) t = Reshape(m, i)", {"i": [-1, 4, 8, 8]}),
    ("Unsqueeze Squeeze", "Unsqueeze(c, i) t = Squeeze(m, i)", {"i": [1]}),
    ("Dropout", "Dropout(c)", {}),
    ("Pad", 'Pad <mode = "reflect"> (c, i)', {"i": [0, 0, 2, 1, 0, 0, 0, 2]}),
    ("Tile", "Tile(c, i)", {"i": [1, 1, 2, 1]}),
    ("Expand", "Expand(c, i)", {"i": [3, 1, 1, 1, 1]}),
    ("Identity", "Identity(c)", {}),
    ("Cast", "Cast <to = 1> (c)", {}),
    ("SpaceToDepth DepthToSpace",
     "SpaceToDepth <blocksize = 2> (c) t = DepthToSpace <blocksize = 2> (m)", {}),
]

CARRIED = [
    case(f"{ops}: {body}",
         f"c = Conv <pads = [1,1,1,1]> (x, w) m = {body} y = BN({'t' if 't =' in body else 'm'})",
         f"Conv {ops}", PULLED,
         w=(4, 3, 3, 3), **(norm(4) | {"scale": [0.5, 1.5, 2.0, 3.0]}), **constants)
    for ops, body, constants in THROUGH if ops != "Expand"
] + [
    case("DepthToSpace, columns first",
         "c = Conv(x, w) d = DepthToSpace <blocksize = 2> (c) y = BN(d)",
         "Conv DepthToSpace", PULLED, w=(12, 3, 1, 1), **norm(3)),
    case("DepthToSpace, depth first: a pixel shuffle",
         'c = Conv(x, w) d = DepthToSpace <blocksize = 2, mode = "CRD"> (c) y = BN(d)',
         "Conv DepthToSpace", PULLED, w=(12, 3, 1, 1), **norm(3)),
    case("a pixel shuffle spelled with Reshape and Transpose",
         "c = Conv(x, w) r = Reshape(c, i) t = Transpose <perm = [0,1,4,2,5,3]> (r) s = Reshape(t, j) y = "
         "BN(s)", "Conv Reshape Transpose Reshape", PULLED, i=[0, 3, 2, 2, 8, 8], j=[0, 3, 16, 16],
         w=(12, 3, 1, 1), **norm(3)),
    case("Split, each part with a normalization of its own",
         "c = Conv(x, w) p, q = Split <axis = 1> (c, i) y = BN(p) z = BN2(q)", "Conv Split", PULLED, PULLED,
         gives="float[] z", i=[1, 3], w=(4, 3, 1, 1), **norm(1), **norm(3, "2")),
    case("Slice of some channels",
         "c = Conv(x, w) p = Slice(c, i, j, k) y = BN(p)",
         "Conv Slice", PULLED, i=[1], j=[3], k=[1], w=(4, 3, 1, 1), **norm(2)),
    case("Gather of channels, one of them twice, with the same affine for both",
         "c = Conv(x, w) p = Gather <axis = 1> (c, i) y = Mul(p, s)",
         "Conv Gather", PULLED, i=[2, 0, 2], w=(4, 3, 1, 1), s=[[[2.0]], [[5.0]], [[2.0]]]),
    case("an embedding table",
         "e = Gather(table, i) y = Mul(e, s)", "Gather", PULLED,
         x="float[1]", also="int64[N,5] i", table=(9, 6), s=(6,)),
    case("two pools, a Pad by zeros of a scale alone, and a Resize in a row",
         "c = Conv(x, w) a = MaxPool <kernel_shape = [2,2]> (c) b = Pad(a, i) d = AveragePool "
         "<kernel_shape = [2,2]> "
         "(b) e = Resize(d, , j) y = Mul(e, s)", "Conv MaxPool Pad AveragePool Resize", PULLED,
         i=[0, 0, 1, 1, 0, 0, 1, 1], j=[1.0, 1.0, 2.0, 2.0], w=(4, 3, 1, 1),
         s=[[[2.0]], [[3.0]], [[0.5]], [[1.0]]]),
]

MATMUL = [
    case("LeViT: 3-D MatMul, rows flattened, normalization",
         "m = MatMul(x, w) f = Reshape(m, i) b = BN(f) y = Reshape(b, j)",
         "MatMul Add Reshape Reshape", PULLED,
         x="float[2,5,6]", i=[10, 4], j=[2, 5, 4], w=(6, 4), **norm(4)),
    case("LeViT with a batch that is not known",
         "m = MatMul(x, w) f = Flatten <axis = 2> (m) b = BN(f) y = Reshape(b, j)",
         "MatMul Add Flatten Reshape", PULLED, x=ROWS, j=[-1, 5, 4], w=(6, 4), **norm(4)),
    case("3-D MatMul, Transpose, normalization",
         "m = MatMul(x, w) t = Transpose <perm = [0,2,1]> (m) y = BN(t)",
         "MatMul Add Transpose", PULLED, x=ROWS, w=(6, 4), **norm(4)),
    case("MatMul with a bias", "m = MatMul(x, w) a = Add(m, c) y = BN(a)", "MatMul Add", PULLED,
         x="float[N,6]", w=(6, 4), c=(4,), **norm(4)),
    case("MatMul with a bias on the left", "m = MatMul(x, w) a = Add(c, m) y = BN(a)", "MatMul Add", PULLED,
         x="float[N,6]", w=(6, 4), c=(1, 4), **norm(4)),
    case("MatMul without a bias gets one", "m = MatMul(x, w) y = BN(m)", "MatMul Add", PULLED,
         x="float[N,6]", w=(6, 4), **norm(4)),
    case("MatMul with the weights on the left", "m = MatMul(w, x) y = BN(m)", "MatMul Add", PULLED,
         x=ROWS, w=(4, 5), **norm(4)),
    case("MatMul by a weight that is transposed in the graph",
         "v = Transpose(w) m = MatMul(x, v) y = Mul(m, s)", "MatMul", PULLED, x=ROWS, w=(4, 6), s=(4,)),
    case("MatMul, a product of matrices: the second takes the scale",
         "m = MatMul(x, v) n = MatMul(m, w) y = Mul(n, s)", "MatMul MatMul", PULLED,
         x=ROWS, v=(6, 7), w=(7, 4), s=(4,)),
    case("a number goes into any of the matrices", "m = MatMul(x, w) y = Mul(m, s)", "MatMul", PULLED,
         x=ROWS, w=(6, 4), s=0.25),
    case("normalization before MatMul and its bias",
         "b = BN(x) m = MatMul(b, w) y = Add(m, c)", "MatMul Add", PUSHED, Reason.SHIFT,
         x="float[N,6]", w=(6, 4), c=(4,), **norm(6)),
]

CHANNELS_LAST = [
    case("MatMul, Mul, Add: three dimensions", "m = MatMul(x, w) a = Mul(m, s) y = Add(a, t)", "MatMul Add",
         PULLED, x=ROWS, w=(6, 4), s=(4,), t=(4,)),
    case("convolution, Transpose, Mul, Add: TensorFlow's way",
         "c = Conv(x, w) l = Transpose <perm = [0,2,3,1]> (c) a = Mul(l, s) b = Add(a, t) "
         "y = Transpose <perm = [0,3,1,2]> (b)",
         "Conv Transpose Transpose", PULLED, w=(4, 3, 3, 3), s=(4,), t=(4,)),
    case("Transpose, Mul, Add, Transpose, convolution",
         "l = Transpose <perm = [0,2,3,1]> (x) a = Mul(l, s) b = Add(a, t) c = Transpose <perm = "
         "[0,3,1,2]> (b) "
         "y = Conv(c, w)", "Transpose Transpose Conv", PUSHED, w=(4, 3, 3, 3), s=(3,), t=(3,)),
    case("a normalization between Transposes of rows",
         "m = MatMul(x, w) a = Add(m, c) t = Transpose <perm = [0,2,1]> (a) b = BN(t) y = Transpose <perm "
         "= [0,2,1]> (b)", "MatMul Add Transpose Transpose", PUSHED, PULLED, x=ROWS, w=(6, 4), c=(4,),
         **norm(4)),
    case("LayerNormalization and a scale along its axis", "l = LayerNormalization(x, g, c) y = Mul(l, s)",
         "LayerNormalization", PULLED, x=ROWS, g=(6,), c=(6,), s=(6,)),
    case("InstanceNormalization and BatchNormalization", "l = InstanceNormalization(x, g, c) y = BN(l)",
         "InstanceNormalization", PULLED, g=(3,), c=(3,), **norm(3)),
    case("GroupNormalization of opset 21 and BatchNormalization",
         "l = GroupNormalization <num_groups = 2> (x, g, c) y = BN(l)", "GroupNormalization", PULLED,
         x=WIDE, opset=21, g=(4,), c=(4,), **norm(4)),
]

RUNS = [
    case("two normalizations after a convolution", "c = Conv(x, w) b = BN(c) y = BN2(b)", "Conv", PULLED,
         w=(4, 3, 3, 3), **norm(4), **norm(4, "2")),
    case("two normalizations with nothing around them are one", "b = BN(x) y = BN2(b)", "BatchNormalization",
         MERGED, **norm(3), **norm(3, "2")),
    case("normalization, Mul, Add with nothing around them are one normalization",
         "b = BN(x) m = Mul(b, s) y = Add(m, t)", "BatchNormalization", MERGED, s=(3, 1, 1), t=(3, 1, 1),
         **norm(3)),
    case("Mul, Add, normalization likewise", "m = Mul(x, s) a = Add(m, t) y = BN(a)", "BatchNormalization",
         MERGED, s=(3, 1, 1), t=(1, 3, 1, 1), **norm(3)),
    case("Mul, Add, Mul are Mul, Add", "a = Mul(x, s) b = Add(a, t) y = Mul(b, u)", "Mul Add", MERGED,
         s=(3, 1, 1), t=(3, 1, 1), u=(3, 1, 1)),
    case("Sub, Div, Mul, Add are Mul, Add",
         "a = Sub(x, m) b = Div(a, pos) c = Mul(b, g) y = Add(c, t)", "Mul Add", MERGED,
         m=(3, 1, 1), pos=(3, 1, 1), g=(3, 1, 1), t=(3, 1, 1)),
    case("two Mul between functions are one", "r = Sigmoid(x) a = Mul(r, s) b = Mul(b0, a) y = Sigmoid(b)",
         "Sigmoid Mul Sigmoid", MERGED, s=(3, 1, 1), b0=0.5),
    case("two Add are one", "a = Add(x, s) y = Add(t, a)", "Add", MERGED, s=(3, 1, 1), t=(3, 1, 1)),
    case("BatchNormalization, Mul, Add after a convolution",
         "c = Conv(x, w) b = BN(c) m = Mul(b, s) y = Add(m, t)", "Conv", PULLED,
         w=(4, 3, 3, 3), s=(4, 1, 1), t=(4, 1, 1), **norm(4)),
    case("Neg belongs to the run", "c = Conv(x, w) n = Neg(c) b = BN(n) y = Neg(b)", "Conv", PULLED,
         w=(4, 3, 3, 3), **norm(4)),
    case("constant minus data", "c = Conv(x, w) a = Sub(t, c) y = Mul(s, a)", "Conv", PULLED,
         w=(4, 3, 3, 3), t=(4, 1, 1), s=(4, 1, 1)),
]

SPELLINGS = [
    case("(x - mean) / sqrt(var + eps) · scale + bias",
         "c = Conv(x, w) a = Sub(c, m) v = Add(var0, eps) d = Sqrt(v) b = Div(a, d) e = Mul(b, g) y = "
         "Add(e, t)", "Conv", PULLED, w=(4, 3, 3, 3), m=(4, 1, 1), var0=(4, 1, 1), eps=1e-5, g=(4, 1, 1),
         t=(4, 1, 1)),
    case("its constants reshaped in the graph",
         "c = Conv(x, w) r = Reshape(m, i) a = Sub(c, r) v = Unsqueeze(var0, j) d = Sqrt(v) y = Div(a, d)",
         "Conv", PULLED, w=(4, 3, 3, 3), m=(4,), i=[1, 4, 1, 1], var0=(4,), j=[1, 2]),
    case("a reciprocal of the deviation",
         "c = Conv(x, w) d = Sqrt(var0) r = Reciprocal(d) y = Mul(r, c)",
         "Conv", PULLED, w=(4, 3, 3, 3), var0=(4, 1, 1)),
    case("the deviation as a power", "c = Conv(x, w) r = Pow(var0, h) y = Mul(c, r)", "Conv", PULLED,
         w=(4, 3, 3, 3), var0=(4, 1, 1), h=-0.5),
    case("a bias written as Expand(CastLike(0, x), Shape(W))",
         "z = Constant <value = float {0.0}> () k = CastLike(z, x) h = Shape <start = 0, end = 1> (w) "
         "b = Expand(k, h) c = Conv(x, w, b) y = BN(c)",
         "Conv", PULLED, w=(4, 3, 3, 3), **norm(4)),
    case("the same bias for two convolutions",
         "z = Constant <value = float {0.0}> () k = CastLike(z, x) h = Constant <value_ints = [4]> () b = "
         "Expand(k, h) "
         "c = Conv(x, v, b) d = BN(c) e = Relu(d) f = Conv(e, w, b) y = BN2(f)", "Conv Relu Conv", PULLED,
         PULLED, v=(4, 3, 3, 3), w=(4, 4, 3, 3), **norm(4), **norm(4, "2")),
]
# fmt: on


@pytest.mark.parametrize("case", [*INTO_SEVERAL_READERS, *INTO_GROUPS, *TO_THE_CLASSIFIER])
def test_forward(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", [*FROM_BRANCHES, *CARRIED])
def test_backward(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", [*MATMUL, *CHANNELS_LAST])
def test_last_axis(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", [*RUNS, *SPELLINGS])
def test_runs(case: Case) -> None:
    check(case)
