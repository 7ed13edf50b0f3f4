"""The law of the rule table: an affine on one side of an operator is what the rule says on the other side.

    pull    affine(op(x, c))  =  left(op(inputs(x, c)))
    push    op(affine(x), c)  =  outputs(op(left(x), inputs(c)))

A case is one line: the node, the affine, and the shapes. Names that start with x are data, all others are
constants. Every case runs four times: with the whole affine, with one number for all channels, with the
scale alone and with the shift alone, unless `only` says which of these the algebra allows. A refusal is a
case as well: the same line, and the reason code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import Array, drawn, positive
from onnx import helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

from bnfold.affine import Affine, Elementwise
from bnfold.double_double import DoubleDouble
from bnfold.evaluate import evaluate
from bnfold.facts import Facts, Op
from bnfold.moves import Answer, Move
from bnfold.report import Declined, Reason
from bnfold.rules import PULL, PUSH

WHOLE, SCALAR, SCALE, SHIFT = "whole", "scalar", "scale", "shift"
ALL = (WHOLE, SCALAR, SCALE, SHIFT)


@dataclass(frozen=True)
class On:
    """An affine of seeded numbers.

    Attributes:
        axis: Its axis.
        channels: Distinct numbers on it.
        positive: Whether the scales are positive.
        repeat: Each number so often in a row.
        tile: All numbers so often in a row.
        fixed: A number that the affine of every channel maps to `image`.
        image: That image.
    """

    axis: int
    channels: int
    positive: bool = False
    repeat: int = 1
    tile: int = 1
    fixed: float | None = None
    image: float = 0.0

    def numbers(self, variant: str) -> Affine:
        """The affine, or what of it the variant leaves."""
        signs = 1 if self.positive else np.resize([-1, 1], self.channels)
        s = np.tile(np.repeat(signs * positive("s", self.channels, dtype=np.float64), self.repeat), self.tile)
        t = np.tile(np.repeat(drawn("t", self.channels, dtype=np.float64), self.repeat), self.tile)
        s, t = np.round(s * 64) / 64, np.round(t * 64) / 64  # so that images of `fixed` are exact
        s, t = np.round(s * 64) / 64, np.round(t * 64) / 64  # so that images of `fixed` are exact
        if variant == SCALAR:
            return Affine.of(DoubleDouble.of(s[0]), DoubleDouble.of(t[0]), None)
        if self.fixed is not None:
            s = signs * 2.0 ** np.arange(self.channels)  # whose quotients are exact
            t = self.image - s * self.fixed
        scale = None if variant == SHIFT else DoubleDouble.of(s)
        return Affine.of(scale, None if variant == SCALE else DoubleDouble.of(t), self.axis)


@dataclass(frozen=True)
class Case:
    """One operator with one affine.

    Attributes:
        node: Its text; the data are named x...
        on: The affine.
        opset: The version of ai.onnx.
        at: The output behind which the affine stands, or the inputs before which it does.
        only: The variants of the affine that the rule takes.
        reason: Why the rule refuses; None if it takes all of them.
        shapes: Shapes of data ("double[N,3]" where a shape alone does not say it) and constants.
    """

    node: str
    on: On
    opset: int
    at: tuple[int, ...]
    only: tuple[str, ...]
    reason: Reason | None
    shapes: Mapping[str, Any] = field(repr=False)

    @property
    def operator(self) -> str:
        return str(self.proto.graph.node[0].op_type)

    @property
    def proto(self) -> onnx.ModelProto:
        """The model of this one node."""
        types = {n: s for n, s in self.shapes.items() if n.startswith("x")}
        arguments = ", ".join(f"{_typed(kind)} {name}" for name, kind in types.items())
        outputs = self.node.split("=")[0].split(",")
        results = ", ".join(f"float[] {name.strip()}" for name in outputs if name.strip())
        constants = {n: s for n, s in self.shapes.items() if n not in types}
        proto = graphs.model(f"({arguments}) => ({results}) {{ {self.node} }}", opset=self.opset, **constants)
        for output in proto.graph.output:  # let inference say
            output.ClearField("type")
        return proto

    def __str__(self) -> str:
        return f"{self.opset} {self.node} {self.on.axis}"


def _typed(kind: Any) -> str:
    return kind if isinstance(kind, str) else f"float[{','.join(map(str, kind))}]"


def case(
    node: str,
    on: On,
    opset: int = 17,
    at: int | tuple[int, ...] = 0,
    only: tuple[str, ...] = ALL,
    why: Reason | None = None,
    **shapes: Any,
) -> Case:
    """A line of the tables below."""
    return Case(node, on, opset, at if isinstance(at, tuple) else (at,), only, why, shapes)


NO_SHIFT = (SCALE,)
NOT_SHIFT_ALONE = (WHOLE, SCALAR, SCALE)
C = On(1, 3)
POS = On(1, 3, positive=True)
IMG = (2, 3, 5, 6)
BORDER = [0, 0, 1, 1, 0, 0, 1, 1]
BN = graphs.norm(3)

# fmt: off
# Operators that hand an affine on as it is, in both directions.
UNCHANGED = [
    case("y = Identity(x)", C, x=IMG),
    case("y = Identity(x)", On(3, 6), x=IMG),
    case("y = AveragePool<kernel_shape=[3]>(x)", C, x=(2, 3, 7)),
    case("y = AveragePool<kernel_shape=[2,3], strides=[2,1]>(x)", C, x=IMG),
    case("y = AveragePool<kernel_shape=[2,2,2]>(x)", C, x=(2, 3, 4, 4, 4)),
    case("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", C, x=IMG),
    case('y = AveragePool<kernel_shape=[3,3], auto_pad="SAME_UPPER">(x)', C, x=IMG),
    case("y = AveragePool<kernel_shape=[2,2], count_include_pad=1>(x)", C, x=IMG),
    case("y = AveragePool<kernel_shape=[2,2], count_include_pad=1, pads=[0,0,0,0]>(x)", C, x=IMG),
    case("y = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)", C, 19, x=IMG),
    case("y = AveragePool<kernel_shape=[2,2], dilations=[2,2]>(x)", C, 19, x=IMG),
    case("y = AveragePool<kernel_shape=[2,2]>(x)", C, 1, x=IMG),
    case('y = AveragePool<kernel_shape=[2,2], auto_pad="VALID">(x)', C, 7, x=IMG),
    case("y = AveragePool<kernel_shape=[2,2]>(x)", On(0, 2), x=IMG),
    case("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)", C, only=NO_SHIFT,
         x=IMG),
    case("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", C, 1, only=NO_SHIFT, x=IMG),
    case("y = GlobalAveragePool(x)", C, x=IMG),
    case("y = GlobalAveragePool(x)", On(0, 2), 1, x=(2, 3, 4)),
    case("y = GlobalMaxPool(x)", POS, x=IMG),
    case("y = MaxPool<kernel_shape=[3]>(x)", POS, x=(2, 3, 7)),
    case("y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x)", POS, x=IMG),
    case('y = MaxPool<kernel_shape=[2,2], auto_pad="SAME_LOWER">(x)', POS, x=IMG),
    case("y = MaxPool<kernel_shape=[2,2], ceil_mode=1, strides=[2,2], dilations=[2,2]>(x)", POS, x=IMG),
    case("y = MaxPool<kernel_shape=[2,2]>(x)", POS, 1, x=IMG),
    case("y = MaxPool<kernel_shape=[2,2], storage_order=1>(x)", POS, 8, x=IMG),
    case("y = MaxPool<kernel_shape=[2,2]>(x)", On(0, 2, positive=True), 12, x=IMG),
    case("y = Cast<to=1>(x)", C, x=IMG),
    case("y = CastLike(x, xlike)", C, x=IMG, xlike="float[7]"),
    case("y = Dropout<is_test=1>(x)", C, 1, x=IMG),
    case("y = Dropout<is_test=1, ratio=0.5>(x)", C, 6, x=IMG),
    case("y = Dropout<ratio=0.3>(x)", C, 7, x=IMG),
    case("y = Dropout(x)", C, 10, x=IMG),
    case("y = Dropout(x, ratio)", C, 12, x=IMG, ratio=0.4),
    case("y = Dropout(x, ratio, mode)", C, 13, x=IMG, ratio=0.4, mode=np.array(False)),
    case("y = Dropout(x)", C, 22, x=IMG),
    case("y = Resize(x, , scales)", C, x=IMG, scales=[1.0, 1.0, 2.0, 1.5]),
    case('y = Resize<mode="linear">(x, , scales)', C, x=IMG, scales=[1.0, 1.0, 2.0, 1.5]),
    case('y = Resize<mode="cubic">(x, , , sizes)', C, x=IMG, sizes=[2, 3, 7, 4]),
    case('y = Resize<mode="cubic", exclude_outside=1>(x, , , sizes)', C, x=IMG, sizes=[2, 3, 7, 9]),
    case('y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , , sizes)', C, x=IMG,
         sizes=[2, 3, 7, 4]),
    case('y = Resize<mode="linear", coordinate_transformation_mode="asymmetric">(x, roi, scales)', C, 11,
         x=IMG, roi=np.zeros(0, np.float32), scales=[1.0, 1.0, 2.0, 2.0]),
    case('y = Resize<mode="linear">(x, scales)', C, 10, x=IMG, scales=[1.0, 1.0, 2.0, 2.0]),
    case('y = Resize<mode="linear", axes=[2,3]>(x, , scales)', C, 18, x=IMG, scales=[2.0, 2.0]),
    case('y = Resize<mode="linear", antialias=1>(x, , , sizes)', C, 19, x=IMG, sizes=[2, 3, 3, 4]),
    case("y = Resize(x, , scales)", On(0, 2), x=IMG, scales=[1.0, 1.0, 2.0, 2.0]),
    case("y = Resize(x, , scales)", On(2, 5), x=IMG, scales=[1.0, 2.0, 1.0, 2.0]),
    case('y = Upsample<mode="nearest", scales=[1.0,1.0,2.0,2.0]>(x)', C, 7, x=IMG),
    case('y = Upsample<mode="linear">(x, scales)', C, 9, x=IMG, scales=[1.0, 1.0, 2.0, 2.0]),
    case("y = Tile(x, repeats)", C, x=IMG, repeats=[2, 1, 1, 3]),
    case("y = Tile(x, repeats)", On(3, 6), 6, x=IMG, repeats=[2, 2, 1, 1]),
    case("y = ReduceMean<axes=[2,3]>(x)", C, x=IMG),
    case("y = ReduceMean<axes=[-1,-2]>(x)", C, 11, x=IMG),
    case("y = ReduceMean(x, axes)", C, 18, x=IMG, axes=[2, -1]),
    case("y = ReduceMean<noop_with_empty_axes=1>(x)", C, 18, x=IMG),
    case("y = ReduceMean<axes=[0]>(x)", On(3, 6), 1, x=IMG),
    case("y = ReduceMax<axes=[2]>(x)", POS, x=IMG),
    case("y = ReduceMin<axes=[3]>(x)", POS, x=IMG),
    case("y = ReduceMax(x, axes)", POS, 18, x=IMG, axes=[-1]),
    case('y = Pad<mode="reflect">(x, pads)', C, x=IMG, pads=[0, 0, 1, 2, 0, 0, 1, 0]),
    case('y = Pad<mode="edge">(x, pads)', C, 11, x=IMG, pads=[1, 0, 1, 2, 0, 0, 1, 0]),
    case('y = Pad<mode="wrap">(x, pads)', C, 19, x=IMG, pads=[0, 0, 1, 2, 0, 0, 1, 0]),
    case('y = Pad<mode="reflect", pads=[0,0,1,2,0,0,1,0]>(x)', C, 2, x=IMG),
    case('y = Pad<mode="edge", paddings=[0,0,1,2,0,0,1,0]>(x)', C, 1, x=IMG),
    case('y = Pad<mode="reflect">(x, pads, , axes)', C, 18, x=IMG, pads=[1, 2, 0, 1], axes=[2, -1]),
    case("y = Pad(x, pads)", C, x=IMG, pads=[0] * 8),
    case("y = Pad(x, pads)", C, only=(SCALE, SCALAR), x=IMG, pads=BORDER),
    case("y = Pad(x, pads, v, axes)", On(1, 3, fixed=0.5, image=0.5), 18, only=(WHOLE, SCALAR), x=IMG,
         pads=[1, 0, 0, 1], v=0.5, axes=[3, -2]),
    case("y = Pad(x, pads)", On(1, 3), only=(SCALE, SCALAR), x=IMG, pads=[0, 0, -1, 0, 0, 0, 0, -2]),
]

# Casts between floats of different widths; what rounds does so before or behind the affine.
WIDENING = [
    case("y = Cast<to=11>(x)", C, x=IMG),
    case("y = Cast<to=1>(x)", C, x="float16[2,3,5]"),
    case("y = Cast<to=1>(x)", On(0, 2), 9, x="float16[2,3,5]"),
    case("y = CastLike(x, like)", C, x=IMG, like=np.zeros(1)),
    case("y = CastLike(x, xlike)", C, x=IMG, xlike="double[7]"),
]
NARROWING = [
    case("y = Cast<to=1>(x)", C, x="double[2,3,5]"),
    case("y = Cast<to=10>(x)", C, x=IMG),
    case("y = Cast<to=10>(x)", C, 9, x="double[2,3,5]"),
    case("y = CastLike(x, like)", C, x=IMG, like=np.zeros(1, np.float16)),
    case("y = CastLike(x, xlike)", C, x="double[2,3,5]", xlike="float[7]"),
]
# Neither holds all numbers of the other: the one has more digits, the other more range.
CROSSING = [
    case("y = Cast<to=16>(x)", C, x="float16[2,3,5]"),
    case("y = Cast<to=10>(x)", C, x="bfloat16[2,3,5]"),
    case("y = CastLike(x, xlike)", C, x="bfloat16[2,3,5]", xlike="float16[7]"),
]

# An affine behind a node.
PULLS = [
    *UNCHANGED,
    *NARROWING,
    # Conv
    case("y = Conv(x, w)", On(1, 4), x=(2, 3, 9), w=(4, 3, 3)),
    case("y = Conv(x, w, b)", On(1, 4), x=IMG, w=(4, 3, 3, 3), b=(4,)),
    case("y = Conv(x, w, )", On(1, 4), x=IMG, w=(4, 3, 3, 3)),
    case("y = Conv<pads=[1,0,2,1], strides=[2,1], dilations=[1,2]>(x, w, b)", On(1, 4), x=IMG,
         w=(4, 3, 3, 3), b=(4,)),
    case("y = Conv(x, w, b)", On(1, 4), x=(2, 3, 4, 4, 4), w=(4, 3, 2, 2, 2), b=(4,)),
    case("y = Conv<group=3>(x, w, b)", On(1, 6), x=IMG, w=(6, 1, 3, 3), b=(6,)),
    case("y = Conv<group=2>(x, w)", On(1, 6), x=(2, 4, 5, 5), w=(6, 2, 3, 3)),
    case('y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', On(1, 4), x=IMG, w=(4, 3, 2, 2)),
    case('y = Conv<auto_pad="SAME_LOWER">(x, w, b)', On(1, 4), 11, x=IMG, w=(4, 3, 2, 2), b=(4,)),
    case('y = Conv<auto_pad="VALID", kernel_shape=[3,3]>(x, w, b)', On(1, 4), 1, x=IMG, w=(4, 3, 3, 3),
         b=(4,)),
    case("y = Conv(x, w, b)", On(1, 4), 22, x=IMG, w=(4, 3, 3, 3), b=(4,)),
    case("y = Conv(x, xw, xb)", On(1, 4), x=IMG, xw=(4, 3, 3, 3), xb=(4,)),
    case("y = Conv(x, xw, b)", On(1, 4), x=IMG, xw=(4, 3, 3, 3), b=(4,)),
    # ConvTranspose
    case("y = ConvTranspose(x, w)", On(1, 4), x=(2, 3, 5), w=(3, 4, 3)),
    case("y = ConvTranspose(x, w, b)", On(1, 4), x=IMG, w=(3, 4, 3, 3), b=(4,)),
    case("y = ConvTranspose<strides=[2,3], pads=[1,0,0,1], output_padding=[1,1]>(x, w)", On(1, 4), x=IMG,
         w=(3, 4, 3, 3)),
    case('y = ConvTranspose<dilations=[2,1], auto_pad="SAME_UPPER">(x, w, b)', On(1, 4), x=IMG,
         w=(3, 4, 3, 3), b=(4,)),
    case("y = ConvTranspose<strides=[2,2], output_shape=[11,12]>(x, w, b)", On(1, 4), x=IMG, w=(3, 4, 3, 3),
         b=(4,)),
    case("y = ConvTranspose<group=2>(x, w, b)", On(1, 6), x=(2, 4, 5, 5), w=(4, 3, 2, 2), b=(6,)),
    case("y = ConvTranspose<group=3, strides=[2,2]>(x, w)", On(1, 6), 11, x=IMG, w=(3, 2, 2, 2)),
    case("y = ConvTranspose<group=2>(x, w)", On(1, 2), 1, x=(2, 4, 3, 3, 3), w=(4, 1, 2, 2, 2)),
    case("y = ConvTranspose(x, xw)", On(1, 4), x=IMG, xw=(3, 4, 3, 3)),
    # Gemm
    case("y = Gemm(x, w)", On(1, 5), x=(4, 3), w=(3, 5)),
    case("y = Gemm(x, w, c)", On(1, 5), x=(4, 3), w=(3, 5), c=(5,)),
    case("y = Gemm<transB=1>(x, w, c)", On(1, 5), x=(4, 3), w=(5, 3), c=(5,)),
    case("y = Gemm<transA=1>(x, w, c)", On(1, 5), x=(3, 4), w=(3, 5), c=(5,)),
    case("y = Gemm<transA=1, transB=1, alpha=0.7, beta=1.3>(x, w, c)", On(1, 5), x=(3, 4), w=(5, 3),
         c=(1, 5)),
    case("y = Gemm<alpha=0.5, beta=2.5>(x, w)", On(1, 5), x=(4, 3), w=(3, 5)),
    case("y = Gemm<beta=2.5>(x, w, c)", On(1, 5), x=(4, 3), w=(3, 5), c=()),
    case("y = Gemm<beta=2.5>(x, w, c)", On(1, 5), x=(4, 3), w=(3, 5), c=(1,)),
    case("y = Gemm<alpha=3.0>(x, w, c)", On(1, 5), x=(4, 3), w=(3, 5), c=(1, 1)),
    case("y = Gemm<beta=0.5>(x, w, c)", On(1, 5), x=(4, 3), w=(3, 5), c=(4, 1)),
    case("y = Gemm<beta=0.5>(x, w, c)", On(1, 5), x=(4, 3), w=(3, 5), c=(4, 5)),
    case("y = Gemm<beta=0.0>(x, w, c)", On(1, 5), x=(4, 3), w=(3, 5), c=(5,)),
    case("y = Gemm<beta=0.5, transB=1>(x, w, xc)", On(1, 5), x=(4, 3), w=(5, 3), xc=(5,)),
    case("y = Gemm<beta=0.5>(x, w, xc)", On(1, 5), x=(4, 3), w=(3, 5), xc=(4, 5)),
    case("y = Gemm<alpha=0.5>(x, xw, c)", On(1, 5), x=(4, 3), xw=(3, 5), c=(5,)),
    case("y = Gemm<broadcast=1, beta=0.5>(x, w, c)", On(1, 5), 6, x=(4, 3), w=(3, 5), c=(5,)),
    case("y = Gemm<beta=0.5>(x, w, c)", On(1, 5), 6, x=(4, 3), w=(3, 5), c=(4, 5)),
    case("y = Gemm<broadcast=1, beta=0.5>(x, w, c)", On(1, 5), 1, x=(4, 3), w=(3, 5), c=(1,)),
    case("y = Gemm(x, w, c)", On(1, 5), 7, x=(4, 3), w=(3, 5), c=(4, 1)),
    # MatMul
    case("y = MatMul(x, w)", On(1, 5), only=NOT_SHIFT_ALONE, x=(4, 3), w=(3, 5)),
    case("y = MatMul(x, w)", On(2, 5), only=NOT_SHIFT_ALONE, x=(2, 4, 3), w=(3, 5)),
    case("y = MatMul(x, w)", On(3, 5), 1, only=NOT_SHIFT_ALONE, x=(2, 2, 4, 3), w=(2, 3, 5)),
    case("y = MatMul(x, w)", On(2, 5), only=NOT_SHIFT_ALONE, x=(4, 3), w=(2, 3, 5)),
    case("y = MatMul(w, x)", On(0, 5), only=NOT_SHIFT_ALONE, x=(3, 4), w=(5, 3)),
    case("y = MatMul(w, x)", On(1, 5), only=NOT_SHIFT_ALONE, x=(2, 3, 4), w=(5, 3)),
    case("y = MatMul(x, x2)", On(2, 5), only=NOT_SHIFT_ALONE, x=(2, 4, 3), x2=(2, 3, 5)),
    case("y = MatMul(x, x2)", On(1, 4), only=NOT_SHIFT_ALONE, x=(2, 4, 3), x2=(2, 3, 5)),
    case("y = MatMul(x, w)", On(0, 4), only=NOT_SHIFT_ALONE, x=(4, 3), w=(3,)),
    case("y = MatMul(x, w)", On(0, 5), only=NOT_SHIFT_ALONE, x=(3,), w=(3, 5)),
    case("y = MatMul(w, x)", On(1, 4), only=NOT_SHIFT_ALONE, x=(3,), w=(2, 4, 3)),
    case("y = MatMul(w, x)", On(0, 1), only=(SCALAR,), x=(3,), w=(3,)),
    # Sums
    case("y = Add(x, c)", C, x=IMG, c=(3, 1, 1)),
    case("y = Add(c, x)", C, x=IMG, c=()),
    case("y = Add(x, c)", On(3, 6), x=IMG, c=(6,)),
    case("y = Add(x, c)", C, x=IMG, c=(1, 3, 5, 6)),
    case("y = Add(x, x2)", C, x=IMG, x2=IMG),
    case("y = Add(x, x2)", C, x=IMG, x2=(3, 1, 1)),
    case("y = Add(x, x2)", C, x=(1, 3, 1, 1), x2=IMG),
    case("y = Add(x, x)", C, x=IMG),
    case("y = Add(x, x2)", C, only=(SCALAR,), x=IMG, x2=(1, 1, 1)),
    case("y = Sub(x, x2)", C, x=IMG, x2=IMG),
    case("y = Sub(c, x)", C, x=IMG, c=(3, 1, 1)),
    case("y = Sub(x, c)", C, x=IMG, c=(1, 3, 1, 1)),
    case("y = Sub(x, x)", C, only=NO_SHIFT, x=IMG),
    case("y = Sum(x, x2, x3)", C, x=IMG, x2=IMG, x3=IMG),
    case("y = Sum(x, x2, x)", C, 8, x=IMG, x2=IMG),
    case("y = Sum(x, x2, c)", C, 13, x=IMG, x2=(3, 1, 1), c=(3, 1, 6)),
    case("y = Sum(x)", C, x=IMG),
    case("y = Sum(x, x2)", C, 1, x=IMG, x2=IMG),
    case("y = Add<broadcast=1, axis=1>(x, c)", C, 6, x=IMG, c=(3,)),
    case("y = Add<broadcast=1, axis=1>(x, x2)", C, 6, x=IMG, x2=(3, 5)),
    case("y = Add<broadcast=1>(x, c)", On(3, 6), 6, x=IMG, c=(5, 6)),
    case("y = Sub<broadcast=1, axis=-3>(x, c)", C, 6, x=IMG, c=(3, 5)),
    case("y = Add(x, x2)", C, 1, x=IMG, x2=IMG),
    # Products
    case("y = Mul(x, c)", C, only=NOT_SHIFT_ALONE, x=IMG, c=(3, 5, 6)),
    case("y = Mul(x, c)", C, only=NOT_SHIFT_ALONE, x=IMG, c=()),
    case("y = Mul(x, x2)", C, only=NOT_SHIFT_ALONE, x=IMG, x2=IMG),
    case("y = Mul(x, x2)", C, only=NOT_SHIFT_ALONE, x=IMG, x2=(2, 1, 5, 6)),
    case("y = Mul(x, x2)", C, only=NOT_SHIFT_ALONE, x=(2, 3, 1, 1), x2=(1, 5, 6)),
    case("y = Div(x, x2)", C, only=NOT_SHIFT_ALONE, x=IMG, x2=IMG),
    case("y = Div(x, c)", C, only=NOT_SHIFT_ALONE, x=IMG, c=(3, 5, 6)),
    case("y = Div(c, x)", C, only=NOT_SHIFT_ALONE, x=IMG, c=()),
    case("y = Div(c, x)", C, only=NOT_SHIFT_ALONE, x=IMG, c=(3, 1, 1)),
    case("y = Mul<broadcast=1, axis=1>(x, c)", C, 6, only=NOT_SHIFT_ALONE, x=IMG, c=(3, 5)),
    case("y = Div<broadcast=1, axis=0>(x, x2)", C, 1, only=NOT_SHIFT_ALONE, x=IMG, x2=(2, 3)),
    # Homogeneous functions
    case("y = Relu(x)", POS, only=NOT_SHIFT_ALONE, x=IMG),
    case("y = Relu(x)", On(3, 6, positive=True), 1, only=NOT_SHIFT_ALONE, x=IMG),
    case("y = LeakyRelu<alpha=0.2>(x)", POS, only=NOT_SHIFT_ALONE, x=IMG),
    case("y = PRelu(x, slope)", POS, only=NOT_SHIFT_ALONE, x=IMG, slope=(3, 1, 1)),
    case("y = PRelu(x, xslope)", POS, 9, only=NOT_SHIFT_ALONE, x=IMG, xslope=(3, 1, 1)),
    case("y = PRelu(x, slope)", POS, 6, only=NOT_SHIFT_ALONE, x=IMG, slope=(3,)),
    # Neg
    case("y = Neg(x)", C, x=IMG),
    case("y = Neg(x)", C, 1, x=IMG),
    # What moves the axis
    case("y = Transpose<perm=[0,2,3,1]>(x)", On(3, 3), x=IMG),
    case("y = Transpose<perm=[3,1,0,2]>(x)", On(0, 6), x=IMG),
    case("y = Transpose(x)", On(0, 4), 1, x=(2, 3, 4)),
    case("y = Squeeze(x, axes)", C, x=(2, 3, 1, 1), axes=[2, 3]),
    case("y = Squeeze<axes=[0,2]>(x)", On(1, 4), 11, x=(1, 3, 1, 4)),
    case("y = Squeeze<axes=[-2]>(x)", On(2, 4), 11, x=(2, 3, 1, 4)),
    case("y = Squeeze(x)", On(1, 4), x=(1, 3, 1, 4)),
    case("y = Unsqueeze(x, axes)", C, x=(2, 3), axes=[2, 3]),
    case("y = Unsqueeze(x, axes)", On(2, 3), x=(2, 3), axes=[0, -1]),
    case("y = Unsqueeze<axes=[0,2]>(x)", On(3, 3), 1, x=(2, 3)),
    case("y = Expand(x, shape)", On(2, 3), x=(1, 3, 1), shape=[4, 2, 3, 5]),
    case("y = Expand(x, shape)", C, 8, x=(2, 3, 1), shape=[1, 1, 6]),
    case("y = Flatten(x)", On(1, 3, repeat=30), x=IMG),
    case("y = Flatten(x)", On(1, 3), x=(2, 3, 1, 1)),
    case("y = Flatten<axis=2>(x)", On(0, 3, tile=2), 1, x=IMG),
    case("y = Flatten<axis=-1>(x)", On(1, 6), 11, x=IMG),
    case("y = Flatten<axis=-1>(x)", On(0, 5, tile=6), 13, x=IMG),
    case("y = Flatten<axis=0>(x)", On(1, 3, repeat=30, tile=2), x=IMG),
    case("y = Flatten(x)", On(1, 3), x="float[N,3,1,1]"),
    case("y = Reshape(x, shape)", On(2, 3), x=(2, 4, 3), shape=[0, 4, 3, 1]),
    case("y = Reshape(x, shape)", On(1, 12), x=(2, 12, 4), shape=[2, 12, 2, 2]),
    case("y = Reshape(x, shape)", C, x=(2, 12, 4), shape=[2, 3, 4, 4]),
    case("y = Reshape(x, shape)", On(2, 4), x=(2, 12, 4), shape=[2, 3, 4, 4]),
    case("y = Reshape(x, shape)", On(1, 3, repeat=4), x=(2, 3, 4, 5), shape=[2, 12, 5]),
    case("y = Reshape(x, shape)", On(1, 4, tile=3), x=(2, 3, 4, 5), shape=[2, 12, 5]),
    case("y = Reshape(x, shape)", On(0, 3, tile=2), x=(2, 3, 5), shape=[6, 5]),
    case("y = Reshape(x, shape)", On(0, 2, repeat=3), x=(2, 3, 5), shape=[6, 5]),
    case("y = Reshape(x, shape)", On(1, 6), x="float[N,6,4,4]", shape=[0, 6, -1]),
    case("y = Reshape(x, shape)", On(2, 6), x="float[N,6,4,4]", shape=[0, 1, 6, 16]),
    case("y = Reshape(x, shape)", On(0, 3, repeat=4, tile=2), 5, x=(2, 3, 4), shape=[-1]),
    case("y = Reshape<shape=[0,12]>(x)", On(1, 3, repeat=4), 1, x=(2, 3, 4)),
    case("y = Reshape<allowzero=1>(x, shape)", On(1, 12), 14, x=(2, 12), shape=[2, 12]),
    case("y = DepthToSpace<blocksize=2>(x)", C, x=(2, 12, 3, 4)),
    case('y = DepthToSpace<blocksize=2, mode="DCR">(x)', C, 11, x=(2, 12, 3, 4)),
    case('y = DepthToSpace<blocksize=2, mode="CRD">(x)', C, 13, x=(2, 12, 3, 4)),
    case("y = DepthToSpace<blocksize=2>(x)", C, 1, x=(2, 12, 3, 4)),
    case("y = DepthToSpace<blocksize=2>(x)", On(0, 2), x=(2, 12, 3, 4)),
    case("y = SpaceToDepth<blocksize=2>(x)", On(1, 3, tile=4), x=(2, 3, 4, 6)),
    case("y = SpaceToDepth<blocksize=3>(x)", On(1, 2, tile=9), 1, x=(2, 2, 6, 6)),
    case("y = SpaceToDepth<blocksize=2>(x)", On(0, 2), 13, x=(2, 3, 4, 6)),
    # Pad that changes what it fills in
    case("y = Pad(x, pads, v)", On(1, 3, fixed=0.5, image=-2), only=(WHOLE, SCALAR), x=IMG, pads=BORDER,
         v=0.5),
    case("y = Pad(x, pads)", On(1, 3, fixed=0.0, image=-2), 11, only=(WHOLE, SCALAR), x=IMG, pads=BORDER),
    case("y = Pad<pads=[0,0,1,2,0,0,1,0], value=0.5>(x)", On(1, 3, fixed=0.5, image=4), 2, only=(WHOLE,),
         x=IMG),
    # Reductions that drop axes
    case("y = ReduceMean<axes=[2,3], keepdims=0>(x)", C, x=IMG),
    case("y = ReduceMean<axes=[0,2], keepdims=0>(x)", On(1, 6), x=IMG),
    case("y = ReduceMean<axes=[1], keepdims=0>(x)", On(2, 6), x=IMG),
    case("y = ReduceMean<keepdims=0>(x)", C, only=(SCALAR,), x=IMG),
    case("y = ReduceMean<keepdims=0>(x, axes)", On(1, 5), 18, x=IMG, axes=[-1, 0]),
    case("y = ReduceMax<axes=[2,3], keepdims=0>(x)", POS, 1, x=IMG),
    case("y = ReduceMin(x, axes)", POS, 18, x=IMG, axes=[2, 3]),
    case("y = ReduceSum(x, axes)", C, x=IMG, axes=[2, 3]),
    case("y = ReduceSum<keepdims=0>(x, axes)", On(1, 5), x=IMG, axes=[-1, 0]),
    case("y = ReduceSum<axes=[0,3], keepdims=0>(x)", On(0, 3), 11, x=IMG),
    case("y = ReduceSum<axes=[1]>(x)", On(2, 5), 1, x=IMG),
    case("y = ReduceSum(x)", C, only=(SCALAR,), x=IMG),
    case("y = ReduceSum<noop_with_empty_axes=1>(x)", C, x=IMG),
    # Concat, Split, Slice, Gather
    case("y = Concat<axis=1>(x, x2)", On(1, 5), x=IMG, x2=(2, 2, 5, 6)),
    case("y = Concat<axis=-3>(x, c, x2)", On(1, 8), 11, x=IMG, x2=(2, 2, 5, 6), c=(2, 3, 5, 6)),
    case("y = Concat<axis=2>(x, x2)", C, 4, x=IMG, x2=(2, 3, 4, 6)),
    case("y = Concat(x, x2)", On(1, 5), 1, x=IMG, x2=(2, 2, 5, 6)),
    case("y = Concat<axis=1>(x)", C, x=IMG),
    case("y = Concat<axis=1>(x, x)", On(1, 3, tile=2), x=IMG),
    case("y, y2 = Split<axis=1>(x)", On(1, 2), x=(2, 4, 5)),
    case("y, y2 = Split<axis=1>(x, split)", On(1, 3), at=1, x=(2, 4, 5), split=[1, 3]),
    case("y, y2, y3 = Split<axis=-1>(x, split)", On(2, 2), 13, at=2, x=(2, 4, 5), split=[2, 1, 2]),
    case("y, y2 = Split<axis=1, split=[3,1]>(x)", On(1, 3), 11, x=(2, 4, 5)),
    case("y, y2 = Split<split=[1,1]>(x)", On(0, 1), 2, x=(2, 4, 5)),
    case("y, y2 = Split<axis=1, num_outputs=2>(x)", On(1, 2), 18, at=1, x=(2, 5, 5)),
    case("y = Split<axis=1, num_outputs=1>(x)", On(2, 5), 18, x=(2, 5, 5)),
    case("y = Slice(x, start, end, axes)", On(1, 2), x=IMG, start=[1], end=[3], axes=[1]),
    case("y = Slice(x, start, end, axes, steps)", C, x=IMG, start=[-1], end=[-100], axes=[-3], steps=[-1]),
    case("y = Slice(x, start, end, axes, steps)", On(3, 3), 10, x=IMG, start=[0, 1], end=[2, 2**31],
         axes=[2, 3], steps=[1, 2]),
    case("y = Slice(x, start, end)", On(1, 1), x=IMG, start=[0, -2], end=[1, -1]),
    case("y = Slice(x, start, end, axes, steps)", On(1, 1), x=IMG, start=[-9], end=[-99], axes=[1],
         steps=[-1]),
    case("y = Slice(x, start, end, axes)", C, x=IMG, start=[1], end=[3], axes=[2]),
    case("y = Slice<starts=[1,0], ends=[2,-1], axes=[1,3]>(x)", On(1, 1), 9, x=IMG),
    case("y = Slice<starts=[0,1], ends=[1,1000]>(x)", On(1, 2), 1, x=IMG),
    case("y = Gather<axis=1>(x, i)", C, x=(2, 5, 4), i=[4, 0, -2]),
    case("y = Gather<axis=-2>(x, i)", On(1, 2, tile=2), 11, x=(2, 5, 4), i=[4, 0, -1, -5]),
    case("y = Gather<axis=1>(x, i)", On(2, 4), x=(2, 5, 4), i=[4, 0]),
    case("y = Gather<axis=1>(x, i)", On(0, 2), x=(2, 5, 4), i=[[4, 0]]),
    case("y = Gather<axis=1>(x, i)", On(3, 4), x=(2, 5, 4), i=[[4, 0]]),
    case("y = Gather<axis=1>(x, i)", On(1, 4), x=(2, 5, 4), i=3),
    case("y = Gather(table, xi)", On(2, 4), 1, table=(7, 4), xi="int64[2,3]"),
    case("y = Gather<axis=1>(x, xi)", On(2, 4), x=(2, 5, 4), xi="int64[3]"),
    # Normalizations
    case("y = BatchNormalization(x, scale, bias, mean, var)", C, x=IMG, **BN),
    case("y = BatchNormalization<epsilon=0.1>(x, scale, bias, mean, var)", C, 14, x=IMG, **BN),
    case("y = BatchNormalization(x, scale, bias, mean, var)", C, 9, x=IMG, **BN),
    case("y = BatchNormalization<spatial=1>(x, scale, bias, mean, var)", C, 7, x=IMG, **BN),
    case("y = BatchNormalization<is_test=1>(x, scale, bias, mean, var)", C, 6, x=IMG, **BN),
    case("y = InstanceNormalization(x, scale, bias)", C, x=IMG, scale=(3,), bias=(3,)),
    case("y = InstanceNormalization(x, scale, bias)", C, 1, x=IMG, scale=(3,), bias=(3,)),
    case("y = GroupNormalization<num_groups=2>(x, scale, bias)", On(1, 4), 21, x=(2, 4, 3, 3), scale=(4,),
         bias=(4,)),
    case("y = GroupNormalization<num_groups=2>(x, scale, bias)", On(1, 4), 18, only=(SCALAR,),
         x=(2, 4, 3, 3), scale=(2,), bias=(2,)),
    case("y = LayerNormalization(x, scale, bias)", On(2, 5), x=(2, 3, 5), scale=(5,), bias=(5,)),
    case("y = LayerNormalization(x, scale)", On(2, 5), x=(2, 3, 5), scale=(5,)),
    case("y = LayerNormalization<axis=1>(x, scale)", On(1, 3), x=(2, 3, 5), scale=(3, 5)),
    case("y = LayerNormalization<axis=1>(x, scale, bias)", On(2, 5), x=(2, 3, 5), scale=(3, 5), bias=(3, 5)),
    case("y = RMSNormalization(x, scale)", On(2, 5), 23, only=NOT_SHIFT_ALONE, x=(2, 3, 5), scale=(5,)),
]

# An affine before a node.
PUSHES = [
    *UNCHANGED,
    *WIDENING,
    # Conv
    case("y = Conv(x, w)", C, x=(2, 3, 9), w=(4, 3, 3)),
    case("y = Conv(x, w, b)", C, x=IMG, w=(4, 3, 3, 3), b=(4,)),
    case("y = Conv(x, w, )", C, x=IMG, w=(4, 3, 3, 3)),
    case("y = Conv<strides=[2,1], dilations=[1,2], pads=[0,0,0,0]>(x, w, b)", C, x=IMG, w=(4, 3, 3, 3),
         b=(4,)),
    case("y = Conv(x, w, b)", C, x=(2, 3, 4, 4, 4), w=(4, 3, 2, 2, 2), b=(4,)),
    case("y = Conv<group=3>(x, w, b)", C, x=IMG, w=(6, 1, 3, 3), b=(6,)),
    case("y = Conv<group=2>(x, w)", On(1, 4), x=(2, 4, 5, 5), w=(6, 2, 3, 3)),
    case("y = Conv<group=2>(x, w)", On(1, 6), x=(2, 6, 9), w=(4, 3, 3)),
    case('y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w)', C, x=(2, 3, 6, 6), w=(4, 3, 2, 2)),
    case('y = Conv<auto_pad="SAME_LOWER">(x, w, b)', C, 11, x=IMG, w=(4, 3, 1, 1), b=(4,)),
    case('y = Conv<auto_pad="VALID">(x, w, b)', C, 1, x=IMG, w=(4, 3, 3, 3), b=(4,)),
    case("y = Conv<pads=[1,1,1,1]>(x, w)", C, only=NO_SHIFT, x=IMG, w=(4, 3, 3, 3)),
    case('y = Conv<auto_pad="SAME_UPPER">(x, w, b)', C, only=NO_SHIFT, x=IMG, w=(4, 3, 3, 3), b=(4,)),
    case("y = Conv(x, w, xb)", C, x=IMG, w=(4, 3, 3, 3), xb=(4,)),
    # ConvTranspose
    case("y = ConvTranspose<pads=[2,2]>(x, w)", C, x=(2, 3, 7), w=(3, 4, 3)),
    case("y = ConvTranspose<pads=[2,4,3,4], dilations=[1,2]>(x, w, b)", C, x=(2, 3, 7, 9), w=(3, 4, 3, 3),
         b=(4,)),
    case("y = ConvTranspose<group=2, pads=[1,1,1,1]>(x, w, b)", On(1, 4), x=(2, 4, 5, 5), w=(4, 3, 2, 2),
         b=(6,)),
    case("y = ConvTranspose<group=3, pads=[1,1,1,1]>(x, w)", C, 11, x=IMG, w=(3, 2, 2, 2)),
    case("y = ConvTranspose(x, w)", C, 1, x=IMG, w=(3, 4, 1, 1)),
    case('y = ConvTranspose<auto_pad="SAME_UPPER">(x, w)', C, x=IMG, w=(3, 4, 1, 1)),
    case('y = ConvTranspose<auto_pad="VALID">(x, w)', C, x=IMG, w=(3, 4, 1, 1)),
    case("y = ConvTranspose<strides=[2,2], output_padding=[1,0]>(x, w, b)", C, only=NO_SHIFT, x=IMG,
         w=(3, 4, 3, 3), b=(4,)),
    case("y = ConvTranspose<strides=[2,2], output_shape=[11,12]>(x, w)", C, only=NO_SHIFT, x=IMG,
         w=(3, 4, 3, 3)),
    # Gemm
    case("y = Gemm(x, w)", C, x=(4, 3), w=(3, 5)),
    case("y = Gemm(x, w, c)", C, x=(4, 3), w=(3, 5), c=(5,)),
    case("y = Gemm<transB=1, alpha=0.7, beta=1.3>(x, w, c)", C, x=(4, 3), w=(5, 3), c=(1, 5)),
    case("y = Gemm<alpha=0.5, beta=2.5>(x, w)", C, x=(4, 3), w=(3, 5)),
    case("y = Gemm<beta=2.5>(x, w, c)", C, x=(4, 3), w=(3, 5), c=()),
    case("y = Gemm<beta=2.5>(x, w, c)", C, x=(4, 3), w=(3, 5), c=(1,)),
    case("y = Gemm<alpha=3.0>(x, w, c)", C, x=(4, 3), w=(3, 5), c=(1, 1)),
    case("y = Gemm<beta=0.5>(x, w, c)", C, x=(4, 3), w=(3, 5), c=(4, 1)),
    case("y = Gemm<beta=0.5>(x, w, c)", C, x=(4, 3), w=(3, 5), c=(4, 5)),
    case("y = Gemm<beta=0.0>(x, w, c)", C, x=(4, 3), w=(3, 5), c=(5,)),
    case("y = Gemm<beta=0.5, transB=1>(x, w, xc)", C, x=(4, 3), w=(5, 3), xc=(5,)),
    case("y = Gemm<broadcast=1, beta=0.5, alpha=0.7>(x, w, c)", C, 6, x=(4, 3), w=(3, 5), c=(5,)),
    case("y = Gemm<broadcast=1>(x, w, c)", C, 1, x=(4, 3), w=(3, 5), c=(1,)),
    # MatMul
    case("y = MatMul(x, w)", C, x=(4, 3), w=(3, 5)),
    case("y = MatMul(x, w)", On(2, 3), x=(2, 4, 3), w=(3, 5)),
    case("y = MatMul(w, x)", On(0, 3), 1, at=1, x=(3, 4), w=(5, 3)),
    case("y = MatMul(w, x)", C, at=1, x=(2, 3, 4), w=(5, 3)),
    case("y = MatMul(x, w)", On(2, 3), only=NO_SHIFT, x=(2, 4, 3), w=(2, 3, 5)),
    case("y = MatMul(x, w)", On(1, 3), only=NO_SHIFT, x=(4, 3), w=(2, 3, 5)),
    case("y = MatMul(w, x)", On(2, 3), at=1, only=NO_SHIFT, x=(4, 2, 3, 5), w=(2, 4, 3)),
    case("y = MatMul(x, w)", C, only=NO_SHIFT, x=(4, 3), w=(3,)),
    case("y = MatMul(w, x)", On(0, 3), at=1, only=NO_SHIFT, x=(3,), w=(4, 3)),
    case("y = MatMul(x, w)", On(0, 3), only=NO_SHIFT, x=(3,), w=(3, 4)),
    # Sums
    case("y = Add(x, x2)", C, at=(0, 1), x=IMG, x2=IMG),
    case("y = Add(x, x2)", C, at=(0, 1), x=IMG, x2=(1, 3, 1, 1)),
    case("y = Add(x, x)", C, at=(0, 1), x=IMG),
    case("y = Add(x, x2)", C, at=0, only=(SHIFT,), x=IMG, x2=IMG),
    case("y = Add(x, x2)", C, at=1, only=(SHIFT,), x=(5, 6), x2=IMG),
    case("y = Sub(x, x2)", C, at=1, only=(SHIFT,), x=IMG, x2=IMG),
    case("y = Sub(x, x2)", C, at=(0, 1), x=IMG, x2=IMG),
    case("y = Sub(x, x)", C, at=(0, 1), x=IMG),
    case("y = Sum(x, x2, x3)", C, at=(0, 1, 2), x=IMG, x2=IMG, x3=IMG),
    case("y = Sum(x, x2, x)", C, 8, at=(0, 2), only=(SHIFT,), x=IMG, x2=IMG),
    case("y = Sum(x)", C, x=IMG),
    case("y = Add(x, c)", C, x=IMG, c=(1, 3, 5, 6)),
    case("y = Add(c, x)", C, at=1, x=IMG, c=(3, 1, 6)),
    case("y = Sub(x, c)", C, x=IMG, c=(3, 5, 1)),
    case("y = Sub(c, x)", C, at=1, x=IMG, c=(3, 5, 1)),
    case("y = Add(x, c)", C, x=IMG, c=()),
    case("y = Add(x, c)", C, only=(SCALAR, SHIFT), x=IMG, c=(5, 6)),
    case("y = Add<broadcast=1, axis=1>(x, c)", C, 6, x=IMG, c=(3, 5)),
    case("y = Add<broadcast=1, axis=1>(x, x2)", On(0, 3), 6, at=1, only=(SHIFT,), x=IMG, x2=(3, 5)),
    case("y = Sub<broadcast=1>(x, x2)", On(1, 6), 1, at=1, only=(SHIFT,), x=IMG, x2=(5, 6)),
    case("y = Add<broadcast=1>(x, c)", C, 6, only=(SCALAR, SHIFT), x=IMG, c=(5, 6)),
    # Products
    case("y = Mul(x, c)", C, x=IMG, c=()),
    case("y = Mul(c, x)", C, at=1, x=IMG, c=(1,)),
    case("y = Div(x, c)", C, x=IMG, c=()),
    case("y = Mul(x, x2)", C, only=NOT_SHIFT_ALONE, x=IMG, x2=IMG),
    case("y = Mul(x, x2)", C, at=1, only=NOT_SHIFT_ALONE, x=(5, 6), x2=IMG),
    case("y = Mul(x, c)", C, only=NOT_SHIFT_ALONE, x=IMG, c=(3, 5, 6)),
    case("y = Div(x, x2)", C, only=NOT_SHIFT_ALONE, x=IMG, x2=IMG),
    case("y = Mul<broadcast=1, axis=1>(x, x2)", C, 6, only=NOT_SHIFT_ALONE, x=IMG, x2=(3, 5)),
    case("y = Mul<broadcast=1, axis=1>(x, x2)", On(0, 3), 6, at=1, only=NOT_SHIFT_ALONE, x=IMG, x2=(3, 5)),
    # Homogeneous functions
    case("y = Relu(x)", POS, only=NOT_SHIFT_ALONE, x=IMG),
    case("y = LeakyRelu<alpha=0.2>(x)", POS, 6, only=NOT_SHIFT_ALONE, x=IMG),
    case("y = PRelu(x, slope)", POS, only=NOT_SHIFT_ALONE, x=IMG, slope=(3, 1, 1)),
    case("y = PRelu(x, xslope)", POS, 9, only=NOT_SHIFT_ALONE, x=IMG, xslope=(3, 1, 1)),
    case("y = Neg(x)", C, x=IMG),
    # What moves the axis
    case("y = Transpose<perm=[0,2,3,1]>(x)", C, x=IMG),
    case("y = Transpose<perm=[3,1,0,2]>(x)", On(0, 2), x=IMG),
    case("y = Transpose(x)", On(0, 2), 1, x=(2, 3, 4)),
    case("y = Squeeze(x, axes)", C, x=(2, 3, 1, 1), axes=[2, 3]),
    case("y = Squeeze<axes=[0,2]>(x)", On(3, 4), 11, x=(1, 3, 1, 4)),
    case("y = Squeeze<axes=[-2]>(x)", On(3, 4), 11, x=(2, 3, 1, 4)),
    case("y = Squeeze(x)", On(3, 4), x=(1, 3, 1, 4)),
    case("y = Unsqueeze(x, axes)", C, x=(2, 3), axes=[2, 3]),
    case("y = Unsqueeze(x, axes)", C, x=(2, 3), axes=[0, -1]),
    case("y = Unsqueeze<axes=[0,2]>(x)", C, 1, x=(2, 3)),
    case("y = Expand(x, shape)", C, x=(1, 3, 1), shape=[4, 2, 3, 5]),
    case("y = Expand(x, shape)", On(0, 2), 8, x=(2, 3, 1), shape=[1, 1, 6]),
    case("y = Flatten(x)", C, x=IMG),
    case("y = Flatten(x)", On(3, 6), x=IMG),
    case("y = Flatten(x)", On(2, 5), x=IMG),
    case("y = Flatten(x)", On(0, 2), x=IMG),
    case("y = Flatten<axis=2>(x)", C, 1, x=IMG),
    case("y = Flatten<axis=-1>(x)", C, 11, x=IMG),
    case("y = Flatten<axis=0>(x)", C, x=IMG),
    case("y = Flatten(x)", C, x="float[N,3,1,1]"),
    case("y = Reshape(x, shape)", On(2, 3), x=(2, 4, 3), shape=[0, 4, 3, 1]),
    case("y = Reshape(x, shape)", On(1, 3, repeat=4), x=(2, 12, 4), shape=[2, 3, 4, 4]),
    case("y = Reshape(x, shape)", On(1, 4, tile=3), x=(2, 12, 4), shape=[2, 3, 4, 4]),
    case("y = Reshape(x, shape)", On(2, 4), x=(2, 12, 4), shape=[2, 12, 2, 2], only=(SCALAR,)),
    case("y = Reshape(x, shape)", C, x=(2, 3, 4, 5), shape=[2, 12, 5]),
    case("y = Reshape(x, shape)", On(2, 4), x=(2, 3, 4, 5), shape=[2, 12, 5]),
    case("y = Reshape(x, shape)", C, x=(2, 3, 5), shape=[6, 5]),
    case("y = Reshape(x, shape)", On(0, 2), x=(2, 3, 5), shape=[6, 5]),
    case("y = Reshape(x, shape)", On(1, 6), x="float[N,6,4,4]", shape=[0, 6, -1]),
    case("y = Reshape(x, shape)", On(1, 6), x="float[N,6,4,4]", shape=[0, 1, 6, 16]),
    case("y = Reshape(x, shape)", C, 5, x=(2, 3, 4), shape=[-1]),
    case("y = Reshape<shape=[0,12]>(x)", C, 1, x=(2, 3, 4)),
    case("y = Reshape<allowzero=1>(x, shape)", On(1, 12), 14, x=(2, 12), shape=[2, 12]),
    case("y = DepthToSpace<blocksize=2>(x)", On(1, 3, tile=4), x=(2, 12, 3, 4)),
    case('y = DepthToSpace<blocksize=2, mode="DCR">(x)', On(1, 3, tile=4), 11, x=(2, 12, 3, 4)),
    case('y = DepthToSpace<blocksize=2, mode="CRD">(x)', On(1, 3, repeat=4), 13, x=(2, 12, 3, 4)),
    case("y = DepthToSpace<blocksize=2>(x)", On(0, 2), 1, x=(2, 12, 3, 4)),
    case("y = SpaceToDepth<blocksize=2>(x)", C, x=(2, 3, 4, 6)),
    case("y = SpaceToDepth<blocksize=2>(x)", On(0, 2), 1, x=(2, 3, 4, 6)),
    # Pad that changes what it fills in
    case("y = Pad(x, pads, v)", On(1, 3, fixed=0.5, image=-2), only=(WHOLE, SCALAR), x=IMG, pads=BORDER,
         v=-2.0),
    case("y = Pad(x, pads)", On(1, 3, fixed=-2.0, image=0), 11, only=(WHOLE, SCALAR), x=IMG, pads=BORDER),
    case("y = Pad<pads=[0,0,1,2,0,0,1,0], value=4.0>(x)", On(1, 3, fixed=0.5, image=4), 2, only=(WHOLE,),
         x=IMG),
    # Reductions that drop axes
    case("y = ReduceMean<axes=[2,3], keepdims=0>(x)", C, x=IMG),
    case("y = ReduceMean<axes=[0,2], keepdims=0>(x)", On(3, 6), x=IMG),
    case("y = ReduceMean<axes=[1], keepdims=0>(x)", On(3, 6), x=IMG),
    case("y = ReduceMean<keepdims=0>(x)", C, only=(SCALAR,), x=IMG),
    case("y = ReduceMean<keepdims=0>(x, axes)", On(2, 5), 18, x=IMG, axes=[-1, 0]),
    case("y = ReduceMax<axes=[2,3], keepdims=0>(x)", POS, 1, x=IMG),
    case("y = ReduceMin(x, axes)", POS, 18, x=IMG, axes=[2, 3]),
    case("y = ReduceSum(x, axes)", C, x=IMG, axes=[2, 3]),
    case("y = ReduceSum<keepdims=0>(x, axes)", On(2, 5), x=IMG, axes=[-1, 0]),
    case("y = ReduceSum<axes=[0,3], keepdims=0>(x)", C, 11, x=IMG),
    case("y = ReduceSum<axes=[1]>(x)", On(2, 5), 1, x=IMG),
    case("y = ReduceSum<noop_with_empty_axes=1>(x)", C, x=IMG),
    # Concat, Split, Slice, Gather
    case("y = Concat<axis=1>(x, x2)", C, x=IMG, x2=(2, 2, 5, 6)),
    case("y = Concat<axis=1>(x, x2)", On(1, 2), 4, at=1, x=IMG, x2=(2, 2, 5, 6)),
    case("y = Concat<axis=-3>(x, c, x2)", C, 11, at=(0, 2), x=IMG, x2=IMG, c=(2, 2, 5, 6)),
    case("y = Concat<axis=2>(x, x2)", C, at=(0, 1), x=IMG, x2=(2, 3, 4, 6)),
    case("y = Concat(x, x)", C, 1, at=(0, 1), x=IMG),
    case("y, y2 = Split<axis=1>(x)", On(1, 4), x=(2, 4, 5)),
    case("y, y2 = Split<axis=1>(x, split)", On(1, 4), x=(2, 4, 5), split=[1, 3]),
    case("y, y2, y3 = Split<axis=-1>(x, split)", On(2, 5), 13, x=(2, 4, 5), split=[2, 1, 2]),
    case("y, y2 = Split<axis=1, split=[3,1]>(x)", On(1, 4), 11, x=(2, 4, 5)),
    case("y, y2 = Split<split=[1,1]>(x)", On(1, 4), 2, x=(2, 4, 5)),
    case("y, y2 = Split<axis=1, num_outputs=2>(x)", On(1, 5), 18, x=(2, 5, 5)),
    case("y = Slice(x, start, end, axes)", C, x=IMG, start=[1], end=[3], axes=[1]),
    case("y = Slice(x, start, end, axes, steps)", C, x=IMG, start=[-1], end=[-100], axes=[-3], steps=[-1]),
    case("y = Slice(x, start, end, axes, steps)", On(3, 6), 10, x=IMG, start=[0, 1], end=[2, 2**31],
         axes=[2, 3], steps=[1, 2]),
    case("y = Slice(x, start, end)", C, x=IMG, start=[0, -2], end=[1, -1]),
    case("y = Slice(x, start, end, axes, steps)", C, x=IMG, start=[-9], end=[-99], axes=[1], steps=[-1]),
    case("y = Slice(x, start, end, axes)", C, x=IMG, start=[1], end=[3], axes=[2]),
    case("y = Slice<starts=[1,0], ends=[2,-1], axes=[1,3]>(x)", C, 9, x=IMG),
    case("y = Slice<starts=[0,1], ends=[1,1000]>(x)", C, 1, x=IMG),
    case("y = Gather<axis=1>(x, i)", On(1, 5), x=(2, 5, 4), i=[4, 0, -2]),
    case("y = Gather<axis=-2>(x, i)", On(1, 5), 11, x=(2, 5, 4), i=[4, 0, -1, -5]),
    case("y = Gather<axis=1>(x, i)", On(2, 4), x=(2, 5, 4), i=[4, 0]),
    case("y = Gather<axis=1>(x, i)", On(0, 2), x=(2, 5, 4), i=[[4, 0]]),
    case("y = Gather<axis=1>(x, i)", On(2, 4), x=(2, 5, 4), i=[[4, 0]]),
    case("y = Gather<axis=1>(x, i)", On(2, 4), x=(2, 5, 4), i=3),
    case("y = Gather(x, xi)", C, 1, x=(7, 3), xi="int64[2,3]"),
    # Normalizations
    case("y = BatchNormalization(x, scale, bias, mean, var)", C, x=IMG, **BN),
    case("y = BatchNormalization<epsilon=0.1>(x, scale, bias, mean, var)", C, 9, x=IMG, **BN),
    case("y = BatchNormalization<is_test=1>(x, scale, bias, mean, var)", C, 6, x=IMG, **BN),
]

R = Reason
NEG = On(1, 3)

# What a rule refuses, and why.
PULLS_REFUSED = [
    *(replace(c, reason=R.NARROWER) for c in (*WIDENING, *CROSSING)),
    case("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)", C, why=R.PADDING,
         only=(WHOLE, SCALAR, SHIFT), x=IMG),
    case('y = AveragePool<kernel_shape=[3,3], auto_pad="SAME_UPPER", count_include_pad=1>(x)', C,
         why=R.PADDING, only=(WHOLE, SCALAR, SHIFT), x=IMG),
    case("y = AveragePool<kernel_shape=[2,2], ceil_mode=1, count_include_pad=1, strides=[2,2]>(x)", C, 19,
         why=R.PADDING, only=(WHOLE, SCALAR, SHIFT), x=IMG),
    case("y = AveragePool<kernel_shape=[2,2]>(x)", On(2, 4), why=R.AXIS, only=(WHOLE,), x=IMG),
    case("y = GlobalAveragePool(x)", On(2, 1), why=R.AXIS, only=(), x=IMG),
    case("y = MaxPool<kernel_shape=[2,2]>(x)", NEG, why=R.SIGN, only=NOT_SHIFT_ALONE, x=IMG),
    case("y = MaxPool<kernel_shape=[2,2]>(x)", On(3, 5, positive=True), why=R.AXIS, only=(WHOLE,), x=IMG),
    case("y, y2 = MaxPool<kernel_shape=[2,2]>(x)", POS, why=R.OTHER_OUTPUT, x=IMG),
    case("y, y2 = MaxPool<kernel_shape=[2,2]>(x)", POS, at=1, why=R.OTHER_OUTPUT, x=IMG),
    case("y = GlobalMaxPool(x)", NEG, why=R.SIGN, only=NOT_SHIFT_ALONE, x=IMG),
    case("y = ReduceMax<axes=[2]>(x)", NEG, why=R.SIGN, only=NOT_SHIFT_ALONE, x=IMG),
    case("y = ReduceMin<axes=[2]>(x)", NEG, why=R.SIGN, only=NOT_SHIFT_ALONE, x=IMG),
    case("y = ReduceMean<axes=[1]>(x)", On(1, 2), why=R.AXIS, only=(WHOLE,), x=IMG),
    case("y = ReduceMean(x, xaxes)", C, 18, why=R.NOT_STATIC, only=(WHOLE,), x=IMG, xaxes="int64[1]"),
    case("y = ReduceSum<axes=[2,3]>(x)", C, 11, why=R.UNKNOWN_SHAPE, only=(WHOLE, SHIFT), x="float[N,3,H,W]"),
    case("y = ReduceSum<axes=[2,3]>(x)", C, 11, why=R.SHIFT, only=(WHOLE, SHIFT), x=(2, 3, 0, 4)),
    case("y = Cast<to=1>(x)", C, why=R.NOT_LINEAR, x="int64[2,3]"),
    case("y = Cast<to=6>(x)", C, why=R.NOT_LINEAR, x=IMG),
    case("y = CastLike(x, like)", C, why=R.NOT_LINEAR, x="int32[2,3]", like=np.zeros(1, np.float32)),
    case("y = Dropout(x)", C, 6, why=R.TRAINING_MODE, x=IMG),
    case("y = Dropout(x, ratio, mode)", C, 12, why=R.TRAINING_MODE, x=IMG, ratio=0.5, mode=np.array(True)),
    case("y = Dropout(x, ratio, xmode)", C, why=R.TRAINING_MODE, x=IMG, ratio=0.5, xmode="bool"),
    case("y, y2 = Dropout(x)", C, why=R.OTHER_OUTPUT, x=IMG),
    case("y = Resize(x, , scales)", On(2, 10), why=R.AXIS, only=(WHOLE,), x=IMG, scales=[1.0, 1.0, 2.0, 2.0]),
    case('y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(x, roi, scales)', C,
         why=R.NOT_LINEAR, x=IMG, roi=[0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0], scales=[1.0, 1.0, 2.0, 2.0]),
    case("y = Upsample<scales=[1.0,2.0,1.0,1.0]>(x)", On(1, 6), 7, why=R.AXIS, only=(WHOLE,), x=IMG),
    case("y = Tile(x, repeats)", On(1, 6), why=R.AXIS, only=(WHOLE,), x=IMG, repeats=[1, 2, 1, 1]),
    case("y = Tile(x, tiles, axis)", C, 1, why=R.NOT_STATIC, x=IMG, tiles=np.int64(2), axis=np.int64(2)),
    case("y = Expand(x, shape)", On(1, 4), why=R.BROADCAST, only=(WHOLE,), x=(2, 1, 5), shape=[2, 4, 5]),
    case("y = Expand(x, shape)", On(0, 4), why=R.BROADCAST, only=(WHOLE,), x=(2, 5), shape=[4, 2, 5]),
    case("y = Unsqueeze(x, axes)", On(0, 1), why=R.AXIS, only=(), x=(2, 5), axes=[0]),
    case("y = Unsqueeze(x, xaxes)", C, why=R.UNKNOWN_SHAPE, only=(WHOLE,), x=(2, 3), xaxes="int64[1]"),
    case("y = Flatten(x)", On(1, 90), why=R.MIXED_CHANNELS, only=(WHOLE,), x=IMG),
    case("y = Flatten(x)", On(1, 12), why=R.UNKNOWN_SHAPE, only=(WHOLE,), x="float[N,3,H,W]"),
    case("y = Reshape(x, shape)", On(1, 12), why=R.MIXED_CHANNELS, only=(WHOLE,), x=(2, 3, 4, 5),
         shape=[2, 12, 5]),
    case("y = Reshape(x, xshape)", C, why=R.UNKNOWN_SHAPE, only=(WHOLE,), x=(2, 3, 4), xshape="int64[3]"),
    case("y = SpaceToDepth<blocksize=2>(x)", On(1, 3, repeat=4), why=R.MIXED_CHANNELS, only=(WHOLE,),
         x=(2, 3, 4, 6)),
    case("y = SpaceToDepth<blocksize=2>(x)", On(2, 2), why=R.AXIS, only=(WHOLE,), x=(2, 3, 4, 6)),
    case("y = DepthToSpace<blocksize=2>(x)", On(2, 6), why=R.AXIS, only=(WHOLE,), x=(2, 12, 3, 4)),
    case("y = Pad(x, pads)", C, why=R.PADDING, only=(WHOLE, SHIFT), x=IMG, pads=BORDER),
    case("y = Pad<pads=[0,0,1,2,0,0,1,0], value=0.5>(x)", C, 2, why=R.PADDING, only=(WHOLE, SCALE, SHIFT),
         x=IMG),
    case('y = Pad<mode="edge">(x, pads)', On(2, 7), why=R.AXIS, only=(WHOLE,), x=IMG, pads=BORDER),
    case("y = Pad(x, xpads)", C, why=R.NOT_STATIC, x=IMG, xpads="int64[8]"),
    case("y = Pad(x, pads, xv)", C, why=R.NOT_CONSTANT, x=IMG, pads=BORDER, xv="float"),
    case("y = Conv(x, w)", On(0, 2), why=R.AXIS, only=(WHOLE,), x=IMG, w=(4, 3, 3, 3)),
    case("y = Conv(x, w)", On(2, 3), why=R.AXIS, only=(WHOLE,), x=IMG, w=(4, 3, 3, 3)),
    case("y = ConvTranspose(x, w)", On(2, 7), why=R.AXIS, only=(WHOLE,), x=IMG, w=(3, 4, 3, 3)),
    case("y = Gemm(x, w)", On(0, 4), why=R.AXIS, only=(WHOLE,), x=(4, 3), w=(3, 5)),
    case("y = Gemm(x, w, xc)", On(1, 5), why=R.BROADCAST, only=(WHOLE,), x=(4, 3), w=(3, 5), xc=(4, 1)),
    case("y = MatMul(x, w)", On(0, 2), why=R.AXIS, only=(WHOLE,), x=(2, 4, 3), w=(3, 5)),
    case("y = MatMul(x, w)", On(0, 2), why=R.AXIS, only=(WHOLE,), x=(2, 4, 3), w=(3,)),
    case("y = MatMul(x, w)", On(1, 5), why=R.SHIFT, only=(SHIFT,), x=(4, 3), w=(3, 5)),
    case("y = Mul(x, x2)", C, why=R.SHIFT, only=(SHIFT,), x=IMG, x2=IMG),
    case("y = Div(x, x2)", C, why=R.BROADCAST, only=(WHOLE,), x=(2, 1, 5, 6), x2=(3, 5, 6)),
    case("y = Add(x, x2)", C, why=R.BROADCAST, only=(WHOLE, SCALE), x=IMG, x2=(5, 6)),
    case("y = Sub(x, x)", C, why=R.BROADCAST, only=(WHOLE, SCALAR, SHIFT), x=IMG),
    case("y = Relu(x)", NEG, why=R.SIGN, only=NOT_SHIFT_ALONE, x=IMG),
    case("y = Relu(x)", POS, why=R.SHIFT, only=(SHIFT,), x=IMG),
    case("y = LeakyRelu(x)", NEG, why=R.SIGN, only=NOT_SHIFT_ALONE, x=IMG),
    case("y = PRelu(x, slope)", NEG, why=R.SIGN, only=NOT_SHIFT_ALONE, x=IMG, slope=(3, 1, 1)),
    case("y, y2 = Split<axis=1>(x)", On(2, 5), why=R.PARTS_DISAGREE, only=(WHOLE,), x=(2, 4, 5)),
    case("y = Slice(x, xstart, end)", On(0, 2), why=R.NOT_STATIC, only=(WHOLE,), x=IMG, xstart="int64[1]",
         end=[9]),
    case("y = Gather<axis=1>(x, i)", C, why=R.PARTS_DISAGREE, only=(WHOLE,), x=(2, 5, 4), i=[4, 0, -1]),
    case("y = Gather<axis=1>(x, i)", On(1, 2), why=R.MIXED_CHANNELS, only=(WHOLE,), x=(2, 5, 4),
         i=[[4, 0], [1, 2]]),
    case("y = Gather<axis=1>(x, xi)", On(1, 4), why=R.NOT_STATIC, only=(WHOLE,), x=(2, 5, 4), xi="int64[4]"),
    case("y = GroupNormalization<num_groups=2>(x, scale, bias)", On(1, 4), 18, why=R.AXIS, only=(WHOLE,),
         x=(2, 4, 3, 3), scale=(2,), bias=(2,)),
    case("y = InstanceNormalization(x, scale, bias)", On(2, 5), why=R.AXIS, only=(WHOLE,), x=IMG, scale=(3,),
         bias=(3,)),
    case("y = LayerNormalization(x, scale)", On(1, 3), why=R.AXIS, only=(WHOLE,), x=(2, 3, 5), scale=(5,)),
    case("y, y2 = LayerNormalization(x, scale)", On(1, 3), at=1, why=R.OTHER_OUTPUT, x=(2, 3, 5), scale=(5,)),
    case("y = RMSNormalization(x, scale)", On(2, 5), 23, why=R.SHIFT, only=(SHIFT,), x=(2, 3, 5), scale=(5,)),
    case("y = BatchNormalization(x, scale, bias, mean, var)", On(2, 5), why=R.AXIS, only=(WHOLE,), x=IMG,
         **BN),
    case("y = BatchNormalization<training_mode=1>(x, scale, bias, mean, var)", C, why=R.TRAINING_MODE, x=IMG,
         **BN),
]
PUSHES_REFUSED = [
    *(replace(c, reason=R.NARROWER) for c in (*NARROWING, *CROSSING)),
    case("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)", C, why=R.PADDING,
         only=(WHOLE, SCALAR, SHIFT), x=IMG),
    case("y = AveragePool<kernel_shape=[2,2]>(x)", On(2, 5), why=R.AXIS, only=(WHOLE,), x=IMG),
    case("y = MaxPool<kernel_shape=[2,2]>(x)", NEG, why=R.SIGN, only=NOT_SHIFT_ALONE, x=IMG),
    case("y, y2 = MaxPool<kernel_shape=[2,2]>(x)", POS, why=R.OTHER_OUTPUT, x=IMG),
    case("y = ReduceMax<axes=[2]>(x)", NEG, why=R.SIGN, only=NOT_SHIFT_ALONE, x=IMG),
    case("y = ReduceMean<axes=[1]>(x)", C, why=R.AXIS, only=(WHOLE,), x=IMG),
    case("y = ReduceSum<axes=[1], keepdims=0>(x)", C, 11, why=R.AXIS, only=(WHOLE, SHIFT), x=IMG),
    case("y = Cast<to=6>(x)", C, why=R.NOT_LINEAR, x=IMG),
    case("y = CastLike(x, xlike)", C, at=0, why=R.NOT_LINEAR, x=IMG, xlike="int64[1]"),
    case("y = Dropout(x)", C, 1, why=R.TRAINING_MODE, x=IMG),
    case("y = Resize(x, , scales)", On(2, 5), why=R.AXIS, only=(WHOLE,), x=IMG, scales=[1.0, 1.0, 2.0, 2.0]),
    case("y = Expand(x, shape)", On(1, 1), why=R.BROADCAST, only=(), x=(2, 1, 5), shape=[2, 4, 5]),
    case("y = Tile(x, repeats)", C, why=R.AXIS, only=(WHOLE,), x=IMG, repeats=[1, 2, 1, 1]),
    case("y = Reshape(x, shape)", On(1, 12), why=R.MIXED_CHANNELS, only=(WHOLE,), x=(2, 12, 4),
         shape=[2, 3, 4, 4]),
    case("y = Reshape(x, xshape)", C, why=R.UNKNOWN_SHAPE, only=(WHOLE,), x=(2, 3, 4), xshape="int64[2]"),
    case("y = Reshape(x, xshape)", On(0, 2), at=1, why=R.NOT_LINEAR, x=(2, 3, 4), xshape="int64[2]"),
    case("y = DepthToSpace<blocksize=2>(x)", On(1, 3, repeat=4), why=R.MIXED_CHANNELS, only=(WHOLE,),
         x=(2, 12, 3, 4)),
    case('y = DepthToSpace<blocksize=2, mode="CRD">(x)', On(1, 3, tile=4), why=R.MIXED_CHANNELS,
         only=(WHOLE,), x=(2, 12, 3, 4)),
    case("y = SpaceToDepth<blocksize=2>(x)", On(2, 4), why=R.AXIS, only=(WHOLE,), x=(2, 3, 4, 6)),
    case("y = Pad(x, pads)", C, why=R.PADDING, only=(WHOLE, SHIFT), x=IMG, pads=BORDER),
    case("y = Pad(x, pads, xv)", On(0, 1), at=2, why=R.NOT_LINEAR, x=IMG, pads=BORDER, xv="float"),
    case("y = Conv<pads=[1,1,1,1]>(x, w)", C, why=R.PADDING, only=(WHOLE, SCALAR, SHIFT), x=IMG,
         w=(4, 3, 3, 3)),
    case("y = Conv<pads=[0,0,0,1]>(x, w)", C, why=R.PADDING, only=(WHOLE, SCALAR, SHIFT), x=IMG,
         w=(4, 3, 3, 3)),
    case('y = Conv<auto_pad="SAME_UPPER">(x, w)', C, why=R.PADDING, only=(WHOLE, SCALAR, SHIFT), x=IMG,
         w=(4, 3, 3, 3)),
    case('y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)', C, why=R.PADDING,
         only=(WHOLE, SCALAR, SHIFT), x=IMG, w=(4, 3, 2, 2)),
    case('y = Conv<auto_pad="SAME_UPPER">(x, w)', C, why=R.UNKNOWN_SHAPE, only=(WHOLE, SHIFT),
         x="float[N,3,H,W]", w=(4, 3, 3, 3)),
    case("y = Conv(x, w)", On(3, 6), why=R.AXIS, only=(WHOLE,), x=IMG, w=(4, 3, 3, 3)),
    case("y = Conv(x, xw)", C, why=R.NOT_CONSTANT, only=(WHOLE, SHIFT), x=IMG, xw=(4, 3, 3, 3)),
    case("y = Conv(x, xw)", On(0, 4), at=1, why=R.NOT_CONSTANT, x=IMG, xw=(4, 3, 3, 3)),
    case("y = ConvTranspose(x, w)", C, why=R.PADDING, only=(WHOLE, SCALAR, SHIFT), x=IMG, w=(3, 4, 3, 3)),
    case("y = ConvTranspose<pads=[2,2,1,2]>(x, w)", C, why=R.PADDING, only=(WHOLE, SCALAR, SHIFT), x=IMG,
         w=(3, 4, 3, 3)),
    case("y = ConvTranspose<strides=[2,2]>(x, w)", C, why=R.PADDING, only=(WHOLE, SCALAR, SHIFT), x=IMG,
         w=(3, 4, 2, 2)),
    case('y = ConvTranspose<auto_pad="SAME_UPPER">(x, w)', C, why=R.PADDING, only=(WHOLE, SCALAR, SHIFT),
         x=IMG, w=(3, 4, 3, 3)),
    case("y = ConvTranspose<output_shape=[4,6]>(x, w)", C, why=R.PADDING, only=(WHOLE, SCALAR, SHIFT), x=IMG,
         w=(3, 4, 3, 3)),
    case("y = Gemm<transA=1>(x, w)", On(0, 3), why=R.AXIS, x=(3, 4), w=(3, 5)),
    case("y = Gemm(x, w)", On(0, 4), why=R.AXIS, only=(WHOLE,), x=(4, 3), w=(3, 5)),
    case("y = Gemm(x, xw)", C, why=R.NOT_CONSTANT, only=(WHOLE, SHIFT), x=(4, 3), xw=(3, 5)),
    case("y = Gemm(x, xw)", C, at=1, why=R.NOT_CONSTANT, x=(4, 3), xw=(3, 5)),
    case("y = Gemm(x, w, xc)", C, why=R.BROADCAST, only=(WHOLE, SHIFT), x=(4, 3), w=(3, 5), xc=(4, 1)),
    case("y = MatMul(x, w)", On(0, 4), why=R.AXIS, only=(WHOLE,), x=(4, 3), w=(3, 5)),
    case("y = MatMul(x, w)", On(1, 3), why=R.SHIFT, only=(WHOLE, SHIFT), x=(4, 3), w=(2, 3, 5)),
    case("y = MatMul(x, x2)", On(1, 3), at=(0, 1), why=R.NOT_CONSTANT, x=(3, 3), x2=(3, 3)),
    case("y = Mul(x, x2)", C, at=(0, 1), why=R.NOT_LINEAR, x=IMG, x2=IMG),
    case("y = Mul(x, x2)", C, why=R.SHIFT, only=(SHIFT,), x=IMG, x2=IMG),
    case("y = Div(x, x2)", C, at=1, why=R.NOT_LINEAR, x=IMG, x2=IMG),
    case("y = Div(c, x)", C, at=1, why=R.NOT_LINEAR, x=IMG, c=()),
    case("y = Add(x, x2)", C, why=R.NOT_LINEAR, only=(WHOLE, SCALAR, SCALE), x=IMG, x2=IMG),
    case("y = Add(x, c)", C, why=R.NOT_LINEAR, only=(WHOLE, SCALE), x=IMG, c=(5, 6)),
    case("y = Relu(x)", NEG, why=R.SIGN, only=NOT_SHIFT_ALONE, x=IMG),
    case("y = Relu(x)", POS, why=R.SHIFT, only=(SHIFT,), x=IMG),
    case("y = PRelu(x, xslope)", POS, at=1, why=R.NOT_LINEAR, x=IMG, xslope=(3, 1, 1)),
    case("y = Concat<axis=2>(x, x2)", C, why=R.PARTS_DISAGREE, only=(WHOLE,), x=IMG, x2=(2, 3, 4, 6)),
    case("y = Slice(x, xstart, end)", C, why=R.NOT_STATIC, only=(WHOLE,), x=IMG, xstart="int64[2]",
         end=[1, 1]),
    case("y = Gather<axis=1>(x, i)", On(1, 5), why=R.MIXED_CHANNELS, only=(WHOLE,), x=(2, 5, 4),
         i=[[4, 0], [1, 2]]),
    case("y = Gather<axis=1>(x, xi)", On(1, 5), why=R.NOT_STATIC, only=(WHOLE,), x=(2, 5, 4), xi="int64[4]"),
    case("y = Gather(x, xi)", C, at=1, why=R.NOT_LINEAR, x=(7, 3), xi="int64[2,3]"),
    case("y = BatchNormalization(x, scale, bias, mean, var)", On(2, 5), why=R.AXIS, only=(WHOLE,), x=IMG,
         **BN),
    case("y = BatchNormalization(x, scale, bias, mean, xvar)", C, why=R.RUNTIME_PARAMETERS, x=IMG,
         scale=(3,), bias=(3,), mean=(3,), xvar=(3,)),
]
# fmt: on


# --- The law ------------------------------------------------------------------------------------------

# The evaluator carries float64 and no sum here has more than a few dozen terms; scales of 0.05 and quotients
# by them cost some digits more.
EXACT = 2.0**-40
# onnxruntime rounds each of these terms, and the constants, to the type of the model.
TERMS = 256


def variants(cases: list[Case]) -> list[Any]:
    """Every case with each variant of its affine."""
    return [
        pytest.param(c, variant, id=f"{i}: {c}, {variant}") for i, c in enumerate(cases) for variant in c.only
    ]


@pytest.mark.parametrize(("case", "variant"), variants(PULLS))
def test_pull(case: Case, variant: str) -> None:
    proto, affine, (k,) = case.proto, case.on.numbers(variant), case.at
    for move in _moves(PULL[case.operator](_op(proto), k, affine)):
        assert not move.outputs
        behind = {} if move.left is None else {k: move.left}
        _assert_law(proto, move, {}, {k: affine}, {}, behind)


@pytest.mark.parametrize(("case", "variant"), variants(PUSHES))
def test_push(case: Case, variant: str) -> None:
    proto, affine = case.proto, case.on.numbers(variant)
    read = [proto.graph.node[0].input[i] for i in case.at]
    for move in _moves(PUSH[case.operator](_op(proto), case.at, affine)):
        ahead = {} if move.left is None else dict.fromkeys(read, move.left)
        _assert_law(proto, move, dict.fromkeys(read, affine), {}, ahead, move.outputs)


@pytest.mark.parametrize(("case", "variant"), variants(PULLS_REFUSED))
def test_pull_refused(case: Case, variant: str) -> None:
    with pytest.raises(Declined) as refusal:
        PULL[case.operator](_op(case.proto), case.at[0], case.on.numbers(variant))
    assert refusal.value.reason is case.reason, refusal.value.detail


@pytest.mark.parametrize(("case", "variant"), variants(PUSHES_REFUSED))
def test_push_refused(case: Case, variant: str) -> None:
    with pytest.raises(Declined) as refusal:
        PUSH[case.operator](_op(case.proto), case.at, case.on.numbers(variant))
    assert refusal.value.reason is case.reason, refusal.value.detail


@pytest.mark.parametrize(("table", "cases"), [(PULL, PULLS), (PUSH, PUSHES)], ids=["pull", "push"])
def test_every_entry_has_a_case(table: Mapping[str, Any], cases: list[Case]) -> None:
    assert {case.operator for case in cases} == set(table)


# --- How it is checked --------------------------------------------------------------------------------

Run = Callable[[onnx.ModelProto, Mapping[str, Array]], dict[str, Array]]


def _op(proto: onnx.ModelProto) -> Op:
    model = ir.from_proto(proto)
    return Facts(model).op(model.graph[0])


def _moves(answer: Answer) -> tuple[Move, ...]:
    return (answer,) if isinstance(answer, Move) else answer


def _data(proto: onnx.ModelProto, move: Move) -> dict[str, Affine]:
    """What the move asks of each data value; all uses of a value have to ask the same."""
    node, constants = proto.graph.node[0], graphs.numbers(proto)
    asked: dict[str, Affine] = {}
    for i, change in move.inputs.items():
        name = node.input[i] if i < len(node.input) else ""
        if name and name not in constants:
            assert isinstance(change, Affine)
            assert name not in asked or asked[name].same(change)
            asked[name] = change
    for i, name in enumerate(node.input):
        assert name not in asked or i in move.inputs, "one use of a value is left out"
    return asked


def _images(affines: Mapping[str, Affine], feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {name: _image(affines[name], v) if name in affines else v for name, v in feeds.items()}


def _image(change: Affine | Elementwise, x: Array) -> Array:
    """scale · x + shift in float64, and in the type of x again."""
    if isinstance(change, Affine):
        change = change.elementwise(max(1, x.ndim))
    y = x.astype(np.float64)
    if change.scale is not None:
        y = y * change.scale.hi + y * change.scale.lo
    return y if change.shift is None else y + change.shift.hi + change.shift.lo


def _rewritten(proto: onnx.ModelProto, move: Move, exact: bool) -> onnx.ModelProto:
    """The model with the constants and attributes of the move; in float64, or rounded to their own type."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    node, constants = result.graph.node[0], graphs.numbers(proto)
    like = next((a.dtype for a in constants.values() if a.dtype in graphs.BITS), np.dtype(np.float32))
    for i, change in move.inputs.items():
        node.input.extend([""] * (i + 1 - len(node.input)))
        name = node.input[i]
        if name and name not in constants:
            continue
        if not name and not (change.has_shift if isinstance(change, Affine) else change.shift):
            continue  # absent counts as 0, and s·0 is 0
        old = constants[name] if name else np.zeros((), like)
        new = _image(change, old)
        node.input[i] = f"new_{i}"
        result.graph.initializer.append(
            numpy_helper.from_array(new if exact else new.astype(old.dtype), f"new_{i}")
        )
    kept = [a for a in node.attribute if a.name not in move.attributes]
    del node.attribute[:]
    node.attribute.extend([*kept, *(ir.to_proto(a) for a in move.attributes.values())])
    return result


def _assert_law(
    proto: onnx.ModelProto,
    move: Move,
    ahead: Mapping[str, Affine],
    behind: Mapping[int, Affine],
    new_ahead: Mapping[str, Affine],
    new_behind: Mapping[int, Affine],
) -> None:
    """That the node between affines computes what it does after the move, between the new ones."""
    feeds = graphs.inputs(proto)

    def original(run: Run) -> list[Array]:
        return _behind(behind, run(proto, _images(ahead, feeds)))

    def moved(run: Run, exact: bool) -> list[Array]:
        handed = _images(_data(proto, move), _images(new_ahead, feeds))
        return _behind(new_behind, run(_rewritten(proto, move, exact), handed))

    _assert_close(original(evaluate), moved(evaluate, True), EXACT)
    try:
        unit = max(2.0 ** -graphs.BITS[v.dtype] for v in _run(proto, feeds).values())
    except (state.NotImplemented, state.InvalidGraph, state.Fail):
        if proto.opset_import[0].version >= 7:  # from there on it has a kernel for all of them
            raise
        return
    _assert_close(original(_run), moved(_run, False), TERMS * max(unit, graphs.unit_roundoff(proto)))


def _behind(affines: Mapping[int, Affine], outputs: Mapping[str, Array]) -> list[Array]:
    return [_image(affines[i], v) if i in affines else v for i, v in enumerate(outputs.values())]


def _run(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """onnxruntime, fed in the types that the model declares."""
    types = {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in proto.graph.input}
    return graphs.run(proto, {name: v.astype(types[name]) for name, v in feeds.items()})


def _assert_close(expected: list[Array], got: list[Array], room: float) -> None:
    for e, g in zip(expected, got, strict=True):
        assert e.shape == g.shape
        bound = room * max(1.0, float(np.abs(e.astype(np.float64)).max(initial=0.0)))
        np.testing.assert_allclose(g.astype(np.float64), e.astype(np.float64), rtol=0, atol=bound)
