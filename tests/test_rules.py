"""The law of the rule table: an affine on one side of an operator is what the rule says on the other side.

    pull    affine(op(x, c))  =  left(op(inputs(x, c)))
    push    op(affine(x), c)  =  outputs(op(left(x), inputs(c)))

A case is one line: the node, the affine, and the shapes. Names that start with x are data, all others are
constants. Every case runs four times: with the whole affine, with one number for all channels, with the
scale alone and with the shift alone, unless `only` says which of these the algebra allows. A refusal is a
case as well: the same line, and the reason code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import graphs
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from evaluator import evaluate
from graphs import Array, drawn
from onnx import helper, numpy_helper

from bnfold.affine import Affine, Elementwise
from bnfold.double_double import DoubleDouble
from bnfold.facts import Facts
from bnfold.moves import Move
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
        s = np.tile(np.repeat(drawn("s", self.channels, dtype=np.float64), self.repeat), self.tile)
        t = np.tile(np.repeat(drawn("t", self.channels, dtype=np.float64), self.repeat), self.tile)
        s = np.abs(s) if self.positive else s
        if variant == SCALAR:
            return Affine.of(DoubleDouble.of(s[0]), DoubleDouble.of(t[0]), None)
        t = t if self.fixed is None else self.image - s * self.fixed
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
        return self.proto.graph.node[0].op_type

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


def pull(
    node: str, on: On, opset: int = 17, k: int = 0, only: tuple[str, ...] = ALL, why: Reason | None = None, **shapes: Any
) -> Case:
    """An affine behind output k of a node."""
    return Case(node, on, opset, (k,), only, why, shapes)


def push(
    node: str,
    on: On,
    opset: int = 17,
    at: tuple[int, ...] = (0,),
    only: tuple[str, ...] = ALL,
    why: Reason | None = None,
    **shapes: Any,
) -> Case:
    """An affine before the inputs `at` of a node."""
    return Case(node, on, opset, at, only, why, shapes)


NO_SHIFT = (SCALE,)
NOT_SHIFT_ALONE = (WHOLE, SCALAR, SCALE)
C = On(1, 3)
POS = On(1, 3, positive=True)
IMG = (2, 3, 5, 6)
BN = graphs.norm(3)

# Operators that hand an affine on as it is, in both directions.
UNCHANGED: list[tuple[str, On, dict[str, Any]]] = [
    ("y = Identity(x)", C, {"x": IMG}),
    ("y = Identity(x)", On(3, 6), {"x": IMG}),
    ("y = AveragePool<kernel_shape=[3]>(x)", C, {"x": (2, 3, 7)}),
    ("y = AveragePool<kernel_shape=[2,3], strides=[2,1]>(x)", C, {"x": IMG}),
    ("y = AveragePool<kernel_shape=[2,2,2]>(x)", C, {"x": (2, 3, 4, 4, 4)}),
    ("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", C, {"x": IMG}),
    ("y = AveragePool<kernel_shape=[3,3], auto_pad=\"SAME_UPPER\">(x)", C, {"x": IMG}),
    ("y = AveragePool<kernel_shape=[2,2], count_include_pad=1>(x)", C, {"x": IMG}),
    ("y = AveragePool<kernel_shape=[2,2], count_include_pad=1, pads=[0,0,0,0]>(x)", C, {"x": IMG}),
    ("y = AveragePool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)", C, {"x": IMG, "opset": 19}),
    ("y = AveragePool<kernel_shape=[2,2], dilations=[2,2]>(x)", C, {"x": IMG, "opset": 19}),
    ("y = AveragePool<kernel_shape=[2,2]>(x)", C, {"x": IMG, "opset": 1}),
    ("y = AveragePool<kernel_shape=[2,2], auto_pad=\"VALID\">(x)", C, {"x": IMG, "opset": 7}),
    ("y = AveragePool<kernel_shape=[2,2]>(x)", On(0, 2), {"x": IMG}),
    ("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)", C, {"x": IMG, "only": NO_SHIFT}),
    ("y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(x)", C, {"x": IMG, "opset": 1, "only": NO_SHIFT}),
    ("y = GlobalAveragePool(x)", C, {"x": IMG}),
    ("y = GlobalAveragePool(x)", On(0, 2), {"x": (2, 3, 4), "opset": 1}),
    ("y = GlobalMaxPool(x)", POS, {"x": IMG}),
    ("y = MaxPool<kernel_shape=[3]>(x)", POS, {"x": (2, 3, 7)}),
    ("y = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(x)", POS, {"x": IMG}),
    ("y = MaxPool<kernel_shape=[2,2], auto_pad=\"SAME_LOWER\">(x)", POS, {"x": IMG}),
    ("y = MaxPool<kernel_shape=[2,2], ceil_mode=1, strides=[2,2], dilations=[2,2]>(x)", POS, {"x": IMG}),
    ("y = MaxPool<kernel_shape=[2,2]>(x)", POS, {"x": IMG, "opset": 1}),
    ("y = MaxPool<kernel_shape=[2,2], storage_order=1>(x)", POS, {"x": IMG, "opset": 8}),
    ("y = MaxPool<kernel_shape=[2,2]>(x)", On(0, 2, positive=True), {"x": IMG, "opset": 12}),
    ("y = Cast<to=11>(x)", C, {"x": IMG}),
    ("y = Cast<to=1>(x)", C, {"x": "double[2,3,5]"}),
    ("y = Cast<to=10>(x)", C, {"x": IMG}),
    ("y = CastLike(x, like)", C, {"x": IMG, "like": np.zeros(1)}),
    ("y = CastLike(x, xlike)", C, {"x": IMG, "xlike": "double[7]"}),
    ("y = Dropout<is_test=1>(x)", C, {"x": IMG, "opset": 1}),
    ("y = Dropout<is_test=1, ratio=0.5>(x)", C, {"x": IMG, "opset": 6}),
    ("y = Dropout<ratio=0.3>(x)", C, {"x": IMG, "opset": 7}),
    ("y = Dropout(x)", C, {"x": IMG, "opset": 10}),
    ("y = Dropout(x, ratio)", C, {"x": IMG, "opset": 12, "ratio": np.float32(0.4)}),
    ("y = Dropout(x, ratio, mode)", C, {"x": IMG, "opset": 13, "ratio": np.float32(0.4), "mode": np.array(False)}),
    ("y = Dropout(x)", C, {"x": IMG, "opset": 22}),
    ("y = Resize(x, , scales)", C, {"x": IMG, "scales": np.float32([1, 1, 2, 1.5])}),
    ("y = Resize<mode=\"linear\">(x, , scales)", C, {"x": IMG, "scales": np.float32([1, 1, 2, 1.5])}),
    ("y = Resize<mode=\"cubic\">(x, , , sizes)", C, {"x": IMG, "sizes": [2, 3, 7, 4]}),
    ("y = Resize<mode=\"cubic\", exclude_outside=1>(x, , , sizes)", C, {"x": IMG, "sizes": [2, 3, 7, 9]}),
    ("y = Resize<mode=\"linear\", coordinate_transformation_mode=\"align_corners\">(x, , , sizes)", C,
     {"x": IMG, "sizes": [2, 3, 7, 4]}),
    ("y = Resize<mode=\"linear\", coordinate_transformation_mode=\"asymmetric\">(x, roi, scales)", C,
     {"x": IMG, "opset": 11, "roi": np.zeros(0, np.float32), "scales": np.float32([1, 1, 2, 2])}),
    ("y = Resize<mode=\"linear\">(x, scales)", C, {"x": IMG, "opset": 10, "scales": np.float32([1, 1, 2, 2])}),
    ("y = Resize<mode=\"linear\", axes=[2,3]>(x, , scales)", C, {"x": IMG, "opset": 18, "scales": np.float32([2, 2])}),
    ("y = Resize<mode=\"linear\", antialias=1>(x, , , sizes)", C, {"x": IMG, "opset": 19, "sizes": [2, 3, 3, 4]}),
    ("y = Resize(x, , scales)", On(0, 2), {"x": IMG, "scales": np.float32([1, 1, 2, 2])}),
    ("y = Resize(x, , scales)", On(2, 5), {"x": IMG, "scales": np.float32([1, 2, 1, 2])}),
    ("y = Upsample<mode=\"nearest\", scales=[1.0,1.0,2.0,2.0]>(x)", C, {"x": IMG, "opset": 7}),
    ("y = Upsample<mode=\"linear\">(x, scales)", C, {"x": IMG, "opset": 9, "scales": np.float32([1, 1, 2, 2])}),
    ("y = Tile(x, repeats)", C, {"x": IMG, "repeats": [2, 1, 1, 3]}),
    ("y = Tile(x, repeats)", On(3, 6), {"x": IMG, "opset": 6, "repeats": [2, 2, 1, 1]}),
    ("y = ReduceMean<axes=[2,3]>(x)", C, {"x": IMG}),
    ("y = ReduceMean<axes=[-1,-2]>(x)", C, {"x": IMG, "opset": 11}),
    ("y = ReduceMean(x, axes)", C, {"x": IMG, "opset": 18, "axes": [2, -1]}),
    ("y = ReduceMean<noop_with_empty_axes=1>(x)", C, {"x": IMG, "opset": 18}),
    ("y = ReduceMean<axes=[0]>(x)", On(3, 6), {"x": IMG, "opset": 1}),
    ("y = ReduceMax<axes=[2]>(x)", POS, {"x": IMG}),
    ("y = ReduceMin<axes=[3]>(x)", POS, {"x": IMG}),
    ("y = ReduceMax(x, axes)", POS, {"x": IMG, "opset": 18, "axes": [-1]}),
    ("y = Pad<mode=\"reflect\">(x, pads)", C, {"x": IMG, "pads": [0, 0, 1, 2, 0, 0, 1, 0]}),
    ("y = Pad<mode=\"edge\">(x, pads)", C, {"x": IMG, "opset": 11, "pads": [1, 0, 1, 2, 0, 0, 1, 0]}),
    ("y = Pad<mode=\"wrap\">(x, pads)", C, {"x": IMG, "opset": 19, "pads": [0, 0, 1, 2, 0, 0, 1, 0]}),
    ("y = Pad<mode=\"reflect\", pads=[0,0,1,2,0,0,1,0]>(x)", C, {"x": IMG, "opset": 2}),
    ("y = Pad<mode=\"edge\", paddings=[0,0,1,2,0,0,1,0]>(x)", C, {"x": IMG, "opset": 1}),
    ("y = Pad<mode=\"reflect\">(x, pads, , axes)", C, {"x": IMG, "opset": 18, "pads": [1, 2, 0, 1], "axes": [2, -1]}),
    ("y = Pad(x, pads)", C, {"x": IMG, "pads": [0] * 8}),
    ("y = Pad(x, pads)", C, {"x": IMG, "pads": [0, 0, 1, 1, 0, 0, 1, 1], "only": (SCALE, SCALAR)}),
    ("y = Pad(x, pads, v)", On(1, 3, fixed=0.5, image=-2), {"x": IMG, "pads": [0, 0, 1, 1, 0, 0, 1, 1],
     "v": np.float32(0.5), "only": (WHOLE, SCALAR)}),
    ("y = Pad(x, pads, v, axes)", On(1, 3, fixed=0.5, image=0.5), {"x": IMG, "opset": 18, "pads": [1, 0, 0, 1],
     "v": np.float32(0.5), "axes": [3, -2], "only": (WHOLE, SCALAR)}),
    ("y = Pad<pads=[0,0,1,2,0,0,1,0], value=0.5>(x)", On(1, 3, fixed=0.5, image=4), {"x": IMG, "opset": 2,
     "only": (WHOLE,)}),
    ("y = Pad(x, pads)", On(1, 3), {"x": IMG, "pads": [0, 0, -1, 0, 0, 0, 0, -2], "only": (SCALE, SCALAR)}),
]

# An affine behind a node.
PULLS = [
    *(pull(node, on, **rest) for node, on, rest in UNCHANGED),
    # Conv
    pull("y = Conv(x, w)", On(1, 4), x=(2, 3, 9), w=(4, 3, 3)),
    pull("y = Conv(x, w, b)", On(1, 4), x=IMG, w=(4, 3, 3, 3), b=(4,)),
    pull("y = Conv(x, w, )", On(1, 4), x=IMG, w=(4, 3, 3, 3)),
    pull("y = Conv<pads=[1,0,2,1], strides=[2,1], dilations=[1,2]>(x, w, b)", On(1, 4), x=IMG, w=(4, 3, 3, 3), b=(4,)),
    pull("y = Conv(x, w, b)", On(1, 4), x=(2, 3, 4, 4, 4), w=(4, 3, 2, 2, 2), b=(4,)),
    pull("y = Conv<group=3>(x, w, b)", On(1, 6), x=IMG, w=(6, 1, 3, 3), b=(6,)),
    pull("y = Conv<group=2>(x, w)", On(1, 6), x=(2, 4, 5, 5), w=(6, 2, 3, 3)),
    pull("y = Conv<auto_pad=\"SAME_UPPER\", strides=[2,2]>(x, w)", On(1, 4), x=IMG, w=(4, 3, 2, 2)),
    pull("y = Conv<auto_pad=\"SAME_LOWER\">(x, w, b)", On(1, 4), 11, x=IMG, w=(4, 3, 2, 2), b=(4,)),
    pull("y = Conv<auto_pad=\"VALID\", kernel_shape=[3,3]>(x, w, b)", On(1, 4), 1, x=IMG, w=(4, 3, 3, 3), b=(4,)),
    pull("y = Conv(x, w, b)", On(1, 4), 22, x=IMG, w=(4, 3, 3, 3), b=(4,)),
    pull("y = Conv(x, xw, xb)", On(1, 4), x=IMG, xw=(4, 3, 3, 3), xb=(4,)),
    pull("y = Conv(x, xw, b)", On(1, 4), x=IMG, xw=(4, 3, 3, 3), b=(4,)),
    # ConvTranspose
    pull("y = ConvTranspose(x, w)", On(1, 4), x=(2, 3, 5), w=(3, 4, 3)),
    pull("y = ConvTranspose(x, w, b)", On(1, 4), x=IMG, w=(3, 4, 3, 3), b=(4,)),
    pull("y = ConvTranspose<strides=[2,3], pads=[1,0,0,1], output_padding=[1,1]>(x, w)", On(1, 4), x=IMG, w=(3, 4, 3, 3)),
    pull("y = ConvTranspose<dilations=[2,1], auto_pad=\"SAME_UPPER\">(x, w, b)", On(1, 4), x=IMG, w=(3, 4, 3, 3), b=(4,)),
    pull("y = ConvTranspose<strides=[2,2], output_shape=[11,12]>(x, w, b)", On(1, 4), x=IMG, w=(3, 4, 3, 3), b=(4,)),
    pull("y = ConvTranspose<group=2>(x, w, b)", On(1, 6), x=(2, 4, 5, 5), w=(4, 3, 2, 2), b=(6,)),
    pull("y = ConvTranspose<group=3, strides=[2,2]>(x, w)", On(1, 6), 11, x=IMG, w=(3, 2, 2, 2)),
    pull("y = ConvTranspose<group=2>(x, w)", On(1, 2), 1, x=(2, 4, 3, 3, 3), w=(4, 1, 2, 2, 2)),
    pull("y = ConvTranspose(x, xw)", On(1, 4), x=IMG, xw=(3, 4, 3, 3)),
    # Gemm
    pull("y = Gemm(x, w)", On(1, 5), x=(4, 3), w=(3, 5)),
    pull("y = Gemm(x, w, c)", On(1, 5), x=(4, 3), w=(3, 5), c=(5,)),
    pull("y = Gemm<transB=1>(x, w, c)", On(1, 5), x=(4, 3), w=(5, 3), c=(5,)),
    pull("y = Gemm<transA=1>(x, w, c)", On(1, 5), x=(3, 4), w=(3, 5), c=(5,)),
    pull("y = Gemm<transA=1, transB=1, alpha=0.7, beta=1.3>(x, w, c)", On(1, 5), x=(3, 4), w=(5, 3), c=(1, 5)),
    pull("y = Gemm<alpha=0.5, beta=2.5>(x, w)", On(1, 5), x=(4, 3), w=(3, 5)),
    pull("y = Gemm<beta=2.5>(x, w, c)", On(1, 5), x=(4, 3), w=(3, 5), c=()),
    pull("y = Gemm<beta=2.5>(x, w, c)", On(1, 5), x=(4, 3), w=(3, 5), c=(1,)),
    pull("y = Gemm<alpha=3.0>(x, w, c)", On(1, 5), x=(4, 3), w=(3, 5), c=(1, 1)),
    pull("y = Gemm<beta=0.5>(x, w, c)", On(1, 5), x=(4, 3), w=(3, 5), c=(4, 1)),
    pull("y = Gemm<beta=0.5>(x, w, c)", On(1, 5), x=(4, 3), w=(3, 5), c=(4, 5)),
    pull("y = Gemm<beta=0.0>(x, w, c)", On(1, 5), x=(4, 3), w=(3, 5), c=(5,)),
    pull("y = Gemm<beta=0.5, transB=1>(x, w, xc)", On(1, 5), x=(4, 3), w=(5, 3), xc=(5,)),
    pull("y = Gemm<beta=0.5>(x, w, xc)", On(1, 5), x=(4, 3), w=(3, 5), xc=(4, 5)),
    pull("y = Gemm<alpha=0.5>(x, xw, c)", On(1, 5), x=(4, 3), xw=(3, 5), c=(5,)),
    pull("y = Gemm<broadcast=1, beta=0.5>(x, w, c)", On(1, 5), 6, x=(4, 3), w=(3, 5), c=(5,)),
    pull("y = Gemm<beta=0.5>(x, w, c)", On(1, 5), 6, x=(4, 3), w=(3, 5), c=(4, 5)),
    pull("y = Gemm<broadcast=1, beta=0.5>(x, w, c)", On(1, 5), 1, x=(4, 3), w=(3, 5), c=(1,)),
    pull("y = Gemm(x, w, c)", On(1, 5), 7, x=(4, 3), w=(3, 5), c=(4, 1)),
    # MatMul
    pull("y = MatMul(x, w)", On(1, 5), only=NOT_SHIFT_ALONE, x=(4, 3), w=(3, 5)),
    pull("y = MatMul(x, w)", On(2, 5), only=NOT_SHIFT_ALONE, x=(2, 4, 3), w=(3, 5)),
    pull("y = MatMul(x, w)", On(3, 5), 1, only=NOT_SHIFT_ALONE, x=(2, 2, 4, 3), w=(2, 3, 5)),
    pull("y = MatMul(x, w)", On(2, 5), only=NOT_SHIFT_ALONE, x=(4, 3), w=(2, 3, 5)),
    pull("y = MatMul(w, x)", On(0, 5), only=NOT_SHIFT_ALONE, x=(3, 4), w=(5, 3)),
    pull("y = MatMul(w, x)", On(1, 5), only=NOT_SHIFT_ALONE, x=(2, 3, 4), w=(5, 3)),
    pull("y = MatMul(x, x2)", On(2, 5), only=NOT_SHIFT_ALONE, x=(2, 4, 3), x2=(2, 3, 5)),
    pull("y = MatMul(x, x2)", On(1, 4), only=NOT_SHIFT_ALONE, x=(2, 4, 3), x2=(2, 3, 5)),
    pull("y = MatMul(x, w)", On(0, 4), only=(SCALAR,), x=(4, 3), w=(3,)),
    # Sums
    pull("y = Add(x, c)", C, x=IMG, c=(3, 1, 1)),
    pull("y = Add(c, x)", C, x=IMG, c=()),
    pull("y = Add(x, c)", On(3, 6), x=IMG, c=(6,)),
    pull("y = Add(x, c)", C, x=IMG, c=(1, 3, 5, 6)),
    pull("y = Add(x, x2)", C, x=IMG, x2=IMG),
    pull("y = Add(x, x2)", C, x=IMG, x2=(3, 1, 1)),
    pull("y = Add(x, x2)", C, x=(1, 3, 1, 1), x2=IMG),
    pull("y = Add(x, x)", C, x=IMG),
    pull("y = Add(x, x2)", C, only=(SCALAR,), x=IMG, x2=(1, 1, 1)),
    pull("y = Sub(x, x2)", C, x=IMG, x2=IMG),
    pull("y = Sub(c, x)", C, x=IMG, c=(3, 1, 1)),
    pull("y = Sub(x, c)", C, x=IMG, c=(1, 3, 1, 1)),
    pull("y = Sub(x, x)", C, only=NO_SHIFT, x=IMG),
    pull("y = Sum(x, x2, x3)", C, x=IMG, x2=IMG, x3=IMG),
    pull("y = Sum(x, x2, x)", C, 8, x=IMG, x2=IMG),
    pull("y = Sum(x, x2, c)", C, 13, x=IMG, x2=(3, 1, 1), c=(3, 1, 6)),
    pull("y = Sum(x)", C, x=IMG),
    pull("y = Sum(x, x2)", C, 1, x=IMG, x2=IMG),
    pull("y = Add<broadcast=1, axis=1>(x, c)", C, 6, x=IMG, c=(3,)),
    pull("y = Add<broadcast=1, axis=1>(x, x2)", C, 6, x=IMG, x2=(3, 5)),
    pull("y = Add<broadcast=1>(x, c)", On(3, 6), 6, x=IMG, c=(5, 6)),
    pull("y = Sub<broadcast=1, axis=-3>(x, c)", C, 6, x=IMG, c=(3, 5)),
    pull("y = Add(x, x2)", C, 1, x=IMG, x2=IMG),
    # Products
    pull("y = Mul(x, c)", C, only=NOT_SHIFT_ALONE, x=IMG, c=(3, 5, 6)),
    pull("y = Mul(x, c)", C, only=NOT_SHIFT_ALONE, x=IMG, c=()),
    pull("y = Mul(x, x2)", C, only=NOT_SHIFT_ALONE, x=IMG, x2=IMG),
    pull("y = Mul(x, x2)", C, only=NOT_SHIFT_ALONE, x=IMG, x2=(2, 1, 5, 6)),
    pull("y = Mul(x, x2)", C, only=NOT_SHIFT_ALONE, x=(2, 3, 1, 1), x2=(1, 5, 6)),
    pull("y = Div(x, x2)", C, only=NOT_SHIFT_ALONE, x=IMG, x2=IMG),
    pull("y = Div(x, c)", C, only=NOT_SHIFT_ALONE, x=IMG, c=(3, 5, 6)),
    pull("y = Div(c, x)", C, only=NOT_SHIFT_ALONE, x=IMG, c=()),
    pull("y = Div(c, x)", C, only=NOT_SHIFT_ALONE, x=IMG, c=(3, 1, 1)),
    pull("y = Mul<broadcast=1, axis=1>(x, c)", C, 6, only=NOT_SHIFT_ALONE, x=IMG, c=(3, 5)),
    pull("y = Div<broadcast=1, axis=0>(x, x2)", C, 1, only=NOT_SHIFT_ALONE, x=IMG, x2=(2, 3)),
    # Homogeneous functions
    pull("y = Relu(x)", POS, only=NOT_SHIFT_ALONE, x=IMG),
    pull("y = Relu(x)", On(3, 6, positive=True), 1, only=NOT_SHIFT_ALONE, x=IMG),
    pull("y = LeakyRelu<alpha=0.2>(x)", POS, only=NOT_SHIFT_ALONE, x=IMG),
    pull("y = PRelu(x, slope)", POS, only=NOT_SHIFT_ALONE, x=IMG, slope=(3, 1, 1)),
    pull("y = PRelu(x, xslope)", POS, 9, only=NOT_SHIFT_ALONE, x=IMG, xslope=(3, 1, 1)),
    pull("y = PRelu(x, slope)", POS, 6, only=NOT_SHIFT_ALONE, x=IMG, slope=(3,)),
    # Neg
    pull("y = Neg(x)", C, x=IMG),
    pull("y = Neg(x)", C, 1, x=IMG),
    # What moves the axis
    pull("y = Transpose<perm=[0,2,3,1]>(x)", On(3, 3), x=IMG),
    pull("y = Transpose<perm=[3,1,0,2]>(x)", On(0, 6), x=IMG),
    pull("y = Transpose(x)", On(0, 4), 1, x=(2, 3, 4)),
    pull("y = Squeeze(x, axes)", C, x=(2, 3, 1, 1), axes=[2, 3]),
    pull("y = Squeeze<axes=[0,2]>(x)", On(1, 4), 11, x=(1, 3, 1, 4)),
    pull("y = Squeeze<axes=[-2]>(x)", On(2, 4), 11, x=(2, 3, 1, 4)),
    pull("y = Squeeze(x)", On(1, 4), x=(1, 3, 1, 4)),
    pull("y = Unsqueeze(x, axes)", C, x=(2, 3), axes=[2, 3]),
    pull("y = Unsqueeze(x, axes)", On(2, 3), x=(2, 3), axes=[0, -1]),
    pull("y = Unsqueeze<axes=[0,2]>(x)", On(3, 3), 1, x=(2, 3)),
    pull("y = Expand(x, shape)", On(2, 3), x=(1, 3, 1), shape=[4, 2, 3, 5]),
    pull("y = Expand(x, shape)", C, 8, x=(2, 3, 1), shape=[1, 1, 6]),
    pull("y = Flatten(x)", On(1, 3, repeat=30), x=IMG),
    pull("y = Flatten(x)", On(1, 3), x=(2, 3, 1, 1)),
    pull("y = Flatten<axis=2>(x)", On(0, 3, tile=2), 1, x=IMG),
    pull("y = Flatten<axis=-1>(x)", On(1, 6), 11, x=IMG),
    pull("y = Flatten<axis=-1>(x)", On(0, 5, tile=6), 13, x=IMG),
    pull("y = Flatten<axis=0>(x)", On(1, 3, repeat=30, tile=2), x=IMG),
    pull("y = Flatten(x)", On(1, 3), x="float[N,3,1,1]"),
    pull("y = Reshape(x, shape)", On(2, 3), x=(2, 4, 3), shape=[0, 4, 3, 1]) if False else
    pull("y = Reshape(x, shape)", On(2, 3), x=(2, 4, 3), shape=[0, 4, 3, 1]),
    pull("y = Reshape(x, shape)", On(1, 12), x=(2, 12, 4), shape=[2, 12, 2, 2]),
    pull("y = Reshape(x, shape)", C, x=(2, 12, 4), shape=[2, 3, 4, 4]),
    pull("y = Reshape(x, shape)", On(2, 4), x=(2, 12, 4), shape=[2, 3, 4, 4]),
    pull("y = Reshape(x, shape)", On(1, 3, repeat=4), x=(2, 3, 4, 5), shape=[2, 12, 5]),
    pull("y = Reshape(x, shape)", On(1, 4, tile=3), x=(2, 3, 4, 5), shape=[2, 12, 5]),
    pull("y = Reshape(x, shape)", On(0, 3, tile=2), x=(2, 3, 5), shape=[6, 5]),
    pull("y = Reshape(x, shape)", On(0, 2, repeat=3), x=(2, 3, 5), shape=[6, 5]),
    pull("y = Reshape(x, shape)", On(1, 6), x="float[N,6,4,4]", shape=[0, 6, -1]),
    pull("y = Reshape(x, shape)", On(2, 6), x="float[N,6,4,4]", shape=[0, 1, 6, 16]),
    pull("y = Reshape(x, shape)", On(0, 3, repeat=4, tile=2), 5, x=(2, 3, 4), shape=[-1]),
    pull("y = Reshape<shape=[0,12]>(x)", On(1, 3, repeat=4), 1, x=(2, 3, 4)),
    pull("y = Reshape<allowzero=1>(x, shape)", On(1, 12), 14, x=(2, 12), shape=[2, 12]),
    pull("y = DepthToSpace<blocksize=2>(x)", C, x=(2, 12, 3, 4)),
    pull("y = DepthToSpace<blocksize=2, mode=\"DCR\">(x)", C, 11, x=(2, 12, 3, 4)),
    pull("y = DepthToSpace<blocksize=2, mode=\"CRD\">(x)", C, 13, x=(2, 12, 3, 4)),
    pull("y = DepthToSpace<blocksize=2>(x)", C, 1, x=(2, 12, 3, 4)),
    pull("y = DepthToSpace<blocksize=2>(x)", On(0, 2), x=(2, 12, 3, 4)),
    pull("y = SpaceToDepth<blocksize=2>(x)", On(1, 3, tile=4), x=(2, 3, 4, 6)),
    pull("y = SpaceToDepth<blocksize=3>(x)", On(1, 2, tile=9), 1, x=(2, 2, 6, 6)),
    pull("y = SpaceToDepth<blocksize=2>(x)", On(0, 2), 13, x=(2, 3, 4, 6)),
    # Reductions that drop axes
    pull("y = ReduceMean<axes=[2,3], keepdims=0>(x)", C, x=IMG),
    pull("y = ReduceMean<axes=[0,2], keepdims=0>(x)", On(1, 6), x=IMG),
    pull("y = ReduceMean<axes=[1], keepdims=0>(x)", On(2, 6), x=IMG),
    pull("y = ReduceMean<keepdims=0>(x)", C, only=(SCALAR,), x=IMG),
    pull("y = ReduceMean<keepdims=0>(x, axes)", On(1, 5), 18, x=IMG, axes=[-1, 0]) if False else
    pull("y = ReduceMean<keepdims=0>(x, axes)", On(1, 5), 18, x=IMG, axes=[-1, 0]),
    pull("y = ReduceMax<axes=[2,3], keepdims=0>(x)", POS, 1, x=IMG),
    pull("y = ReduceMin(x, axes)", POS, 18, x=IMG, axes=[2, 3]),
    pull("y = ReduceSum(x, axes)", C, x=IMG, axes=[2, 3]),
    pull("y = ReduceSum<keepdims=0>(x, axes)", On(1, 5), x=IMG, axes=[-1, 0]),
    pull("y = ReduceSum<axes=[0,3], keepdims=0>(x)", On(0, 3), 11, x=IMG),
    pull("y = ReduceSum<axes=[1]>(x)", On(2, 5), 1, x=IMG),
    pull("y = ReduceSum(x)", C, only=(SCALAR,), x=IMG),
    pull("y = ReduceSum<noop_with_empty_axes=1>(x)", C, x=IMG),
    # Concat, Split, Slice, Gather
    pull("y = Concat<axis=1>(x, x2)", On(1, 5), x=IMG, x2=(2, 2, 5, 6)),
    pull("y = Concat<axis=-3>(x, c, x2)", On(1, 8), 11, x=IMG, x2=(2, 2, 5, 6), c=(2, 3, 5, 6)),
    pull("y = Concat<axis=2>(x, x2)", C, 4, x=IMG, x2=(2, 3, 4, 6)),
    pull("y = Concat(x, x2)", On(1, 5), 1, x=IMG, x2=(2, 2, 5, 6)),
    pull("y = Concat<axis=1>(x)", C, x=IMG),
    pull("y = Concat<axis=1>(x, x)", On(1, 3, tile=2), x=IMG),
    pull("y, y2 = Split<axis=1>(x)", On(1, 2), x=(2, 4, 5)),
    pull("y, y2 = Split<axis=1>(x, split)", On(1, 3), k=1, x=(2, 4, 5), split=[1, 3]),
    pull("y, y2, y3 = Split<axis=-1>(x, split)", On(2, 2), 13, k=2, x=(2, 4, 5), split=[2, 1, 2]),
    pull("y, y2 = Split<axis=1, split=[3,1]>(x)", On(1, 3), 11, x=(2, 4, 5)),
    pull("y, y2 = Split<split=[1,1]>(x)", On(0, 1), 2, x=(2, 4, 5)),
    pull("y, y2 = Split<axis=1, num_outputs=2>(x)", On(1, 2), 18, k=1, x=(2, 5, 5)),
    pull("y = Split<axis=1, num_outputs=1>(x)", On(2, 5), 18, x=(2, 5, 5)),
    pull("y = Slice(x, start, end, axes)", On(1, 2), x=IMG, start=[1], end=[3], axes=[1]),
    pull("y = Slice(x, start, end, axes, steps)", C, x=IMG, start=[-1], end=[-100], axes=[-3], steps=[-1]),
    pull("y = Slice(x, start, end, axes, steps)", On(3, 3), 10, x=IMG, start=[0, 1], end=[2, 2**31], axes=[2, 3], steps=[1, 2]),
    pull("y = Slice(x, start, end)", On(1, 1), x=IMG, start=[0, -2], end=[1, -1]),
    pull("y = Slice(x, start, end, axes)", C, x=IMG, start=[1], end=[3], axes=[2]),
    pull("y = Slice<starts=[1,0], ends=[2,-1], axes=[1,3]>(x)", On(1, 1), 9, x=IMG),
    pull("y = Slice<starts=[0,1], ends=[1,1000]>(x)", On(1, 2), 1, x=IMG),
    pull("y = Gather<axis=1>(x, i)", C, x=(2, 5, 4), i=[4, 0, -2]),
    pull("y = Gather<axis=-2>(x, i)", On(1, 2, tile=2), 11, x=(2, 5, 4), i=[4, 0, -1, -5]),
    pull("y = Gather<axis=1>(x, i)", On(2, 4), x=(2, 5, 4), i=[4, 0]),
    pull("y = Gather<axis=1>(x, i)", On(0, 2), x=(2, 5, 4), i=[[4, 0]]),
    pull("y = Gather<axis=1>(x, i)", On(3, 4), x=(2, 5, 4), i=[[4, 0]]),
    pull("y = Gather<axis=1>(x, i)", On(1, 4), x=(2, 5, 4), i=3),
    pull("y = Gather(table, xi)", On(2, 4), 1, table=(7, 4), xi="int64[2,3]"),
    pull("y = Gather<axis=1>(x, xi)", On(2, 4), x=(2, 5, 4), xi="int64[3]"),
    # Normalizations
    pull("y = BatchNormalization(x, scale, bias, mean, var)", C, x=IMG, **BN),
    pull("y = BatchNormalization<epsilon=0.1>(x, scale, bias, mean, var)", C, 14, x=IMG, **BN),
    pull("y = BatchNormalization(x, scale, bias, mean, var)", C, 9, x=IMG, **BN),
    pull("y = BatchNormalization<spatial=1>(x, scale, bias, mean, var)", C, 7, x=IMG, **BN),
    pull("y = BatchNormalization<is_test=1>(x, scale, bias, mean, var)", C, 6, x=IMG, **BN),
    pull("y = InstanceNormalization(x, scale, bias)", C, x=IMG, scale=(3,), bias=(3,)),
    pull("y = InstanceNormalization(x, scale, bias)", C, 1, x=IMG, scale=(3,), bias=(3,)),
    pull("y = GroupNormalization<num_groups=2>(x, scale, bias)", On(1, 4), 21, x=(2, 4, 3, 3), scale=(4,), bias=(4,)),
    pull("y = GroupNormalization<num_groups=2>(x, scale, bias)", On(1, 4), 18, only=(SCALAR,), x=(2, 4, 3, 3),
         scale=(2,), bias=(2,)),
    pull("y = LayerNormalization(x, scale, bias)", On(2, 5), x=(2, 3, 5), scale=(5,), bias=(5,)),
    pull("y = LayerNormalization(x, scale)", On(2, 5), x=(2, 3, 5), scale=(5,)),
    pull("y = LayerNormalization<axis=1>(x, scale)", On(1, 3), x=(2, 3, 5), scale=(3, 5)),
    pull("y = LayerNormalization<axis=1>(x, scale, bias)", On(2, 5), x=(2, 3, 5), scale=(3, 5), bias=(3, 5)),
    pull("y = RMSNormalization(x, scale)", On(2, 5), 23, only=NOT_SHIFT_ALONE, x=(2, 3, 5), scale=(5,)),
]

