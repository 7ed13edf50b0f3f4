"""What is computed from constants: each operator against onnxruntime, bit for bit where it says so.

A case is a node over constants; its one piece of data, `x`, is looked at for its shape or type only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import graphs
import numpy as np
import onnx_ir as ir
import pytest
from graphs import Array, model

from bnfold import chains
from bnfold.constants import Constant
from bnfold.evaluate import evaluate
from bnfold.facts import Facts
from bnfold.report import Declined, Reason


@dataclass(frozen=True)
class Case:
    """A node over constants.

    Attributes:
        node: Its text.
        opset: The version of ai.onnx.
        constants: Their shapes or numbers.
    """

    node: str
    opset: int
    constants: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.opset} {self.node}"

    @property
    def operator(self) -> str:
        return str(self.proto.graph.node[0].op_type)

    @property
    def proto(self) -> Any:
        text = f"(float[2,3,5] x) => (float[] y) {{ {self.node} }}"
        proto = model(text, opset=self.opset, **self.constants)
        proto.graph.output[0].ClearField("type")  # let inference say
        return proto

    def constant(self) -> Constant | None:
        parsed = ir.from_proto(self.proto)
        return Facts(parsed).constant(parsed.graph.outputs[0])


def case(node: str, opset: int = 17, **constants: Any) -> Case:
    """A line of the table."""
    return Case(node, opset, constants)


K = (2, 3, 4)
INTS = np.array([[7, -7, 6], [-6, 5, -5]])
# fmt: off
CASES = [
    case("y = Abs(k)", k=K), case("y = Neg(k)", k=K), case("y = Identity(k)", k=K), case("y = Exp(k)", k=K),
    case("y = Sqrt(pos)", pos=K), case("y = Reciprocal(k)", k=K), case("y = Add(k, c)", k=K, c=(3, 1)),
    case("y = Sub(k, c)", k=K, c=()), case("y = Mul(c, k)", k=K, c=(4,)),
    case("y = Div(k, c)", k=K, c=(3, 1)), case("y = Pow(pos, c)", pos=K, c=0.5),
    case("y = Pow(k, two)", k=K, two=2), case("y = Div(i, j)", i=INTS, j=np.array([2, 2, -4])),
    case("y = Mul(i, i)", i=INTS), case("y = Add<broadcast=1, axis=1>(k, c)", 6, k=K, c=(3,)),
    case("y = Mul<broadcast=1, axis=0>(k, c)", 6, k=K, c=(2, 3)),
    case("y = Div<broadcast=1>(k, c)", 1, k=K, c=(4,)), case("y = Sub(k, c)", 6, k=K, c=K),
    case("y = Cast<to=11>(k)", k=K), case("y = Cast<to=10>(k)", k=K), case("y = Cast<to=7>(k)", k=K),
    case("y = Cast<to=1>(i)", i=INTS), case("y = Cast<to=9>(i)", i=INTS - 5),
    case('y = Cast<to="DOUBLE">(k)', 1, k=K), case("y = CastLike(i, x)", i=INTS),
    case("y = Clip(k, l, h)", 13, k=K, l=-0.5, h=0.4), case("y = Clip(k, l, h)", 13, k=K, l=0.5, h=0.4),
    case('y = Clip(k, "", h)', 13, k=K, h=0.4), case("y = Clip(k)", 12, k=K),
    case("y = Clip<min=-0.5>(k)", 7, k=K),
    case("y = Relu(k)", k=K), case("y = Max(k, c)", k=K, c=(3, 1)),
    case("y = Min(k, c, d)", k=K, c=(), d=(4,)),
    case("y = Max(i, j)", 13, i=INTS, j=np.array([2, 2, -4])), case("y = Min(k)", k=K),
    case("y = CastLike(k, i)", k=K, i=INTS), case("y = Concat<axis=0>(k, c)", k=K, c=(1, 3, 4)),
    case("y = Concat<axis=-1>(k, k, c)", k=K, c=(2, 3, 1)), case("y = Constant<value=float[2] {1.5, 2.5}>()"),
    case("y = Constant<value_float=0.1>()", 13), case("y = Constant<value_floats=[0.1, 2.0]>()", 13),
    case("y = Constant<value_int=3>()", 13), case("y = Constant<value_ints=[3, 4]>()", 13),
    case("y = ConstantOfShape(s)", s=[2, 3]), case("y = ConstantOfShape<value=double[1] {0.3}>(s)", s=[2]),
    case("y = Expand(k, s)", k=(3, 1), s=[2, 1, 4]), case("y = Expand(k, s)", 8, k=K, s=[1]),
    case("y = Flatten(k)", k=K), case("y = Flatten<axis=-1>(k)", k=K), case("y = Flatten<axis=0>(k)", 1, k=K),
    case("y = Gather(k, i)", k=K, i=[1, 0, -1]), case("y = Gather<axis=-1>(k, i)", k=K, i=[[3, 0], [1, -4]]),
    case("y = Gather<axis=1>(k, i)", k=K, i=2), case("y = Reshape(k, s)", k=K, s=[0, -1]),
    case("y = Reshape(k, s)", 5, k=K, s=[4, 0, 2]), case("y = Reshape<shape=[6,4]>(k)", 1, k=K),
    case("y = Reshape<allowzero=1>(k, s)", 14, k=(0, 3), s=[3, 0]), case("y = Shape(k)", k=K),
    case("y = Shape(x)"), case("y = Shape<start=1>(x)", 15), case("y = Shape<start=-2, end=-1>(x)", 15),
    case("y = Shape<end=7>(x)", 15), case("y = Size(x)"), case("y = Size(k)", 1, k=K),
    case("y = Slice(k, s, e)", k=K, s=[1, 0], e=[2, 2]),
    case("y = Slice(k, s, e, a)", k=K, s=[-2], e=[2**40], a=[-1]),
    case("y = Slice(k, s, e, a, p)", k=K, s=[3, 0], e=[-100, 3], a=[2, 1], p=[-2, 2]),
    case("y = Slice(k, s, e, a, p)", k=K, s=[100], e=[0], a=[2], p=[-1]),
    case("y = Slice(k, s, e, a, p)", k=K, s=[-1], e=[-4], a=[2], p=[-1]),
    case("y = Slice(k, s, e, a, p)", k=K, s=[-100], e=[-200], a=[2], p=[-1]),
    case("y = Slice(k, s, e, a, p)", k=K, s=[-100], e=[100], a=[2], p=[3]),
    case("y = Slice<starts=[1,-2], ends=[3,100], axes=[1,2]>(k)", 9, k=K),
    case("y = Slice<starts=[1], ends=[2]>(k)", 1, k=K), case("y = Squeeze(k, a)", k=(1, 3, 1), a=[0, -1]),
    case("y = Squeeze<axes=[2]>(k)", 11, k=(1, 3, 1)), case("y = Squeeze(k)", k=(1, 3, 1)),
    case("y = Squeeze(k)", 1, k=(1, 3, 1)), case("y = Unsqueeze(k, a)", k=(3,), a=[0, -1]),
    case("y = Unsqueeze<axes=[1,2]>(k)", 11, k=(3,)), case("y = Tile(k, r)", k=K, r=[1, 2, 3]),
    case("y = Transpose(k)", k=K), case("y = Transpose<perm=[1,2,0]>(k)", k=K),
]
# fmt: on


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_node_over_constants(case: Case) -> None:
    constant, proto = case.constant(), case.proto
    assert constant is not None
    got, feeds = constant.rounded(), graphs.inputs(case.proto)
    expected: Array
    if case.opset >= 7:
        expected = graphs.run(proto, feeds)["y"]
        assert got.dtype == expected.dtype
    else:  # no kernels
        expected = evaluate(proto, feeds)["y"].astype(got.dtype)
    assert got.shape == expected.shape
    # Exp and Pow are approximations, and not the same ones everywhere: a few units in the last place.
    exact = case.operator not in ("Exp", "Pow")
    assert np.array_equal(got, expected) if exact else np.allclose(got, expected, rtol=4 * 2.0**-23, atol=0)


def test_every_operator_has_a_case() -> None:
    assert {case.operator for case in CASES} == set(chains.EVALUATE)


HUGE = 2**14  # of which two are as many as the limit, and three are more
assert HUGE**2 == chains.LIMIT


@pytest.mark.parametrize(
    "case",
    [
        case("y = ConstantOfShape(s)", s=[HUGE, HUGE, 2]),
        case("y = Expand(k, s)", k=(1, 1), s=[HUGE, HUGE + 1]),
        case("y = Tile(k, s)", k=(2, 2), s=[HUGE, HUGE]),
        case("y = Gather(k, i)", k=(1, HUGE), i=[0] * (HUGE + 1)),
        case("y = Add(k, c)", k=(HUGE + 1, 1), c=(1, HUGE)),
    ],
    ids=str,
)
def test_nothing_huge_is_computed(case: Case) -> None:
    with pytest.raises(Declined) as refusal:
        case.constant()
    assert refusal.value.reason is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "case",
    [
        case("y = Reshape(k, s)", k=K, s=[5, -1]),
        case("y = Gather(k, i)", k=K, i=[2]),
        case("y = Add(k, c)", k=K, c=(5,)),
        case("y = Transpose<perm=[0,1]>(k)", k=K),
        case("y = Cast(k)", k=K),
        case("y = Pow(i, minus)", i=INTS, minus=-1),
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_declined(case: Case) -> None:
    with pytest.raises(Declined) as refusal:
        case.constant()
    assert refusal.value.reason in (Reason.NOT_STATIC, Reason.MALFORMED)


def test_a_chain_may_be_longer_than_the_stack() -> None:
    links = " ".join(f"k{i + 1} = Neg(k{i})" for i in range(3000))
    parsed = ir.from_proto(model(f"(float x) => (float y) {{ {links} y = Identity(k3000) }}", k0=(3,)))
    constant = Facts(parsed).constant(parsed.graph.outputs[0])
    assert constant is not None and np.array_equal(constant.rounded(), graphs.drawn("k0", 3))
