"""Which nodes are affine maps, in every opset's spelling, and which only look like one.

A case is one line, as in test_rules: names that start with x are data, all others are constants. The map
that `source` reads off the node is compared with the node itself, run in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import graphs
import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphs import Array, model, norm

from bnfold.errors import InputError
from bnfold.evaluate import evaluate
from bnfold.facts import Facts
from bnfold.report import Declined, Reason
from bnfold.sources import Site, Source, sites, source

IMG = (2, 3, 5, 6)
SQUARE = (2, 3, 5, 3)  # the last axis is as long as the channel axis
BN = norm(3)
NORM = "BatchNormalization"
FIVE = "(x, scale, bias, mean, var)"
F64, F16, BF16 = np.float64, np.float16, ml_dtypes.bfloat16


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """As fold itself: what is not finite is found where it matters."""
    with np.errstate(all="ignore"):
        yield


@dataclass(frozen=True)
class Case:
    """A node.

    Attributes:
        node: Its text.
        opset: The version of ai.onnx.
        axis: The axis of its affine; None for a scalar.
        data: The input that is the data.
        reason: Why it is none; `Reason`, or None where it does not look like one either.
        shapes: Of data and constants.
    """

    node: str
    opset: int
    axis: int | None
    data: int
    reason: Reason | None
    shapes: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.opset} {self.node} {self.shapes.get('c', '')}"

    @property
    def proto(self) -> Any:
        data = {n: s for n, s in self.shapes.items() if n.startswith("x")}
        texts = [s if isinstance(s, str) else f"float[{','.join(map(str, s))}]" for s in data.values()]
        inputs = ", ".join(f"{text} {name}" for name, text in zip(data, texts, strict=True))
        outputs = ", ".join(
            f"float[] {name.strip()}" for name in self.node.split("=")[0].split(",") if name.strip()
        )
        constants = {n: s for n, s in self.shapes.items() if n not in data}
        return model(f"({inputs}) => ({outputs}) {{ {self.node} }}", opset=self.opset, **constants)

    def source(self) -> Source | None:
        graph = ir.from_proto(self.proto)
        return source(Facts(graph).op(graph.graph[0]))


def is_(node: str, opset: int = 17, axis: int | None = 1, data: int = 0, **shapes: Any) -> Case:
    """A node that is an affine."""
    return Case(node, opset, axis, data, None, shapes)


def not_(node: str, opset: int = 17, why: Reason | None = None, **shapes: Any) -> Case:
    """A node that is none."""
    return Case(node, opset, None, 0, why, shapes)


# fmt: off
AFFINES = [
    # BatchNormalization in inference mode, as each opset says it
    is_(f"y = {NORM}<is_test=1>{FIVE}", 1, x=IMG, **BN),
    is_(f"y = {NORM}<is_test=1, spatial=1>{FIVE}", 6, x=IMG, **BN),
    is_(f"y = {NORM}{FIVE}", 7, x=IMG, **BN),
    is_(f"y = {NORM}<spatial=1>{FIVE}", 8, x=IMG, **BN),
    is_(f"y = {NORM}{FIVE}", 9, x=IMG, **BN),
    is_(f"y = {NORM}<training_mode=0>{FIVE}", 14, x=IMG, **BN),
    is_(f"y = {NORM}{FIVE}", 15, x=IMG, **BN),
    is_(f"y, , , , = {NORM}{FIVE}", 8, x=IMG, **BN),
    is_(f"y, , = {NORM}{FIVE}", 13, x=IMG, **BN),
    # epsilon: default, given, large
    is_(f"y = {NORM}<epsilon=0.001>{FIVE}", x=IMG, **BN),
    is_(f"y = {NORM}<epsilon=10.0>{FIVE}", 9, x=IMG, **BN),
    is_(f"y = {NORM}{FIVE}", x=IMG, scale=(3,), bias=(3,), mean=(3,), var=[0.0, 1e-6, 1.0]),
    is_(f"y = {NORM}{FIVE}", x=IMG, scale=(3,), bias=(3,), mean=(3,), var=[-0.5e-5, 1e-6, 1.0]),
    # ranks
    is_(f"y = {NORM}{FIVE}", x=(2, 3), **BN),
    is_(f"y = {NORM}{FIVE}", x="float[N,3,L]", **BN),
    is_(f"y = {NORM}{FIVE}", x=(2, 3, 2, 2, 2), **BN),
    is_(f"y = {NORM}{FIVE}", 9, axis=None, x=(7,), **norm(1)),
    is_(f"y = {NORM}{FIVE}", axis=None, x=(2, 1, 4), **norm(1)),
    # mixed types from opset 14 and 15 on
    is_(f"y = {NORM}{FIVE}", 14, x="float16[2,3,4]", scale=graphs.drawn("a", 3, dtype=F16),
        bias=graphs.drawn("b", 3, dtype=F16), mean=(3,), var=graphs.positive("v", 3)),
    is_(f"y = {NORM}{FIVE}", 15, x="bfloat16[2,3,4]", scale=graphs.drawn("a", 3), bias=graphs.drawn("b", 3),
        mean=graphs.drawn("m", 3, dtype=F64), var=graphs.positive("v", 3, dtype=F64)),
    # Mul, Div, Add, Sub, Neg
    is_("y = Mul(x, c)", x=IMG, c=(3, 1, 1)),
    is_("y = Mul(c, x)", data=1, x=IMG, c=(1, 3, 1, 1)),
    is_("y = Mul(x, c)", axis=None, x=IMG, c=()),
    is_("y = Mul(x, c)", axis=None, x=IMG, c=(1,)),
    is_("y = Mul(x, c)", axis=None, x=IMG, c=(1, 1, 1, 1)),
    is_("y = Mul(c, x)", axis=None, data=1, x="float", c=()),
    is_("y = Div(x, c)", x=IMG, c=(3, 1, 1)),
    is_("y = Div(x, c)", axis=None, x=IMG, c=4.0),
    is_("y = Add(x, c)", x=IMG, c=(3, 1, 1)),
    is_("y = Add(c, x)", data=1, x=IMG, c=(3, 1, 1)),
    is_("y = Sub(x, c)", x=IMG, c=(3, 1, 1)),
    is_("y = Sub(c, x)", data=1, x=IMG, c=(3, 1, 1)),
    is_("y = Sub(c, x)", axis=None, data=1, x=IMG, c=1.0),
    is_("y = Neg(x)", axis=None, x=IMG),
    is_("y = Neg(x)", 1, axis=None, x=IMG),
    # which axis
    is_("y = Mul(x, c)", axis=3, x=IMG, c=(6,)),
    is_("y = Mul(x, c)", axis=2, x=IMG, c=(5, 1)),
    is_("y = Mul(x, c)", axis=0, x=IMG, c=(2, 1, 1, 1)),
    is_("y = Mul(x, c)", axis=3, x=SQUARE, c=(3,)),
    is_("y = Add(x, c)", axis=3, x=SQUARE, c=(1, 3)),
    is_("y = Sub(x, c)", axis=2, x=(2, 4, 3), c=(1, 1, 3)),
    # constants with the same numbers along several axes
    is_("y = Mul(x, c)", x=IMG, c=np.broadcast_to(graphs.drawn("c", 3, 1, 1), (2, 3, 5, 6)).copy()),
    is_("y = Add(x, c)", x=IMG, c=np.broadcast_to(graphs.drawn("c", 3, 1, 1), (3, 5, 6)).copy()),
    is_("y = Add(x, c)", axis=3, x=SQUARE, c=np.broadcast_to(graphs.drawn("c", 3), (3, 5, 3)).copy()),
    is_("y = Div(x, c)", axis=None, x=IMG, c=np.full((3, 5, 6), 2, np.float32)),
    is_("y = Mul(x, c)", axis=None, x=IMG, c=np.full((3, 1, 1), 2, np.float32)),
    # up to opset 6, attributes say where the second operand lies
    is_("y = Add<broadcast=1, axis=1>(x, c)", 6, x=IMG, c=(3,)),
    is_("y = Mul<broadcast=1, axis=1>(x, c)", 1, x=IMG, c=(3,)),
    is_("y = Mul<broadcast=1, axis=1>(x, c)", 6, x=SQUARE, c=(3,)),
    is_("y = Mul<broadcast=1, axis=-3>(x, c)", 6, x=IMG, c=(3,)),
    is_("y = Sub<broadcast=1, axis=1>(x, c)", 6, x=IMG, c=(3, 1)),
    is_("y = Div<broadcast=1, axis=0>(x, c)", 6, axis=0, x=IMG, c=(2,)),
    is_("y = Add<broadcast=1>(x, c)", 6, axis=3, x=SQUARE, c=(3,)),
    is_("y = Add<broadcast=1>(x, c)", 6, axis=None, x=IMG, c=(1,)),
    is_("y = Mul<broadcast=1>(x, c)", 6, axis=None, x=IMG, c=()),
    is_("y = Mul(x, c)", 6, x=IMG, c=np.broadcast_to(graphs.drawn("c", 3, 1, 1), IMG).copy()),
    is_("y = Sub(c, x)", 6, data=1, x=IMG, c=np.broadcast_to(graphs.drawn("c", 3, 1, 1), IMG).copy()),
    # other floating types
    is_("y = Mul(x, c)", x="double[2,3,4]", c=(3, 1)),
    is_("y = Add(x, c)", x="float16[2,3,4]", c=(3, 1)),
    is_("y = Add(x, c)", x="bfloat16[2,3,4]", c=(3, 1)),
    is_("y = Neg(x)", axis=None, x="double[2]"),
]

R = Reason
OTHERS = [
    # training mode, as each opset says it
    not_(f"y = {NORM}<training_mode=1>{FIVE}", 14, R.TRAINING_MODE, x=IMG, **BN),
    not_(f"y, m, v = {NORM}<training_mode=1>{FIVE}", 15, R.TRAINING_MODE, x=IMG, **BN),
    not_(f"y, m, v, sm, sv = {NORM}{FIVE}", 13, R.TRAINING_MODE, x=IMG, **BN),
    not_(f"y, m, v, sm, sv = {NORM}{FIVE}", 7, R.TRAINING_MODE, x=IMG, **BN),
    not_(f"y = {NORM}{FIVE}", 6, R.TRAINING_MODE, x=IMG, **BN),
    not_(f"y = {NORM}<is_test=0>{FIVE}", 1, R.TRAINING_MODE, x=IMG, **BN),
    # numbers of outputs that mean nothing
    not_(f"y, m, v = {NORM}{FIVE}", 14, R.EXTRA_OUTPUTS, x=IMG, **BN),
    not_(f"y, m = {NORM}{FIVE}", 9, R.EXTRA_OUTPUTS, x=IMG, **BN),
    not_(f"y, m, v = {NORM}{FIVE}", 8, R.EXTRA_OUTPUTS, x=IMG, **BN),
    not_(f"y, m, v, sm = {NORM}{FIVE}", 13, R.EXTRA_OUTPUTS, x=IMG, **BN),
    not_(f"y, , , sm, = {NORM}{FIVE}", 13, R.EXTRA_OUTPUTS, x=IMG, **BN),
    not_(f"y, m, v, sm, sv = {NORM}<is_test=1>{FIVE}", 6, R.EXTRA_OUTPUTS, x=IMG, **BN),
    # parameters per position
    not_(f"y = {NORM}<spatial=0>{FIVE}", 7, R.SPATIAL, x=IMG, **BN),
    not_(f"y = {NORM}<spatial=0, is_test=1>{FIVE}", 1, R.SPATIAL, x=IMG, **BN),
    not_(f"y = {NORM}<spatial=0>{FIVE}", 8, R.SPATIAL, x=IMG, scale=(3, 5, 6), bias=(3, 5, 6), mean=(3, 5, 6),
         var=(3, 5, 6)),
    # parameters that are not known, or no numbers
    *(not_(f"y = {NORM}(x, {', '.join('x' + n if n == name else n for n in BN)})", 17, R.RUNTIME_PARAMETERS,
           x=IMG, **{"x" + n if n == name else n: (3,) for n in BN}) for name in BN),
    *(not_(f"y = {NORM}{FIVE}", 17, R.NOT_FINITE, x=IMG, **{**BN, name: [1.0, bad, 1.0]})
      for name in BN for bad in (np.nan, np.inf, -np.inf)),
    not_(f"y = {NORM}{FIVE}", 17, R.NEGATIVE_VARIANCE, x=IMG, **{**BN, "var": [1.0, -1e-4, 1.0]}),
    not_(f"y = {NORM}<epsilon=0.0>{FIVE}", 17, R.NEGATIVE_VARIANCE, x=IMG, **{**BN, "var": [1.0, 0.0, 1.0]}),
    not_(f"y = {NORM}{FIVE}", 17, R.NEGATIVE_VARIANCE, x=IMG, **{**BN, "var": np.full(3, -np.float32(1e-5))}),
    # constants that are not one number per index of one axis
    not_("y = Mul(x, c)", 17, R.NOT_PER_CHANNEL, x=IMG, c=(5, 6)),
    not_("y = Mul(x, c)", 17, R.NOT_PER_CHANNEL, x=IMG, c=(2, 3, 1, 1)),
    not_("y = Add(x, c)", 17, R.NOT_PER_CHANNEL, x=(2, 1, 5), c=(3, 1)),
    not_("y = Add(x, c)", 17, R.NOT_PER_CHANNEL, x=(2, 3), c=(4, 2, 3)),
    not_("y = Add(x, c)", 17, R.NOT_PER_CHANNEL, x=(2, 3), c=(1, 1, 3)),
    not_("y = Mul(x, c)", 17, R.NOT_PER_CHANNEL, x="float", c=(3,)),
    not_("y = Mul(x, c)", 17, R.NOT_PER_CHANNEL, x=(2, 0), c=(2, 0)),
    not_("y = Sub(c, x)", 17, R.NOT_PER_CHANNEL, x=IMG, c=(3, 5, 1)),
    not_("y = Add<broadcast=1, axis=1>(x, c)", 6, R.NOT_PER_CHANNEL, x=IMG, c=(3, 5)),
    not_("y = Mul(x, c)", 17, R.UNKNOWN_SHAPE, x="float[N,C,H,W]", c=(3, 1, 1)),
    # no numbers
    not_("y = Mul(x, c)", 17, R.NOT_FINITE, x=IMG, c=np.float32(np.inf)),
    not_("y = Add(x, c)", 17, R.NOT_FINITE, x=IMG, c=[[[1.0]], [[np.nan]], [[0.0]]]),
    not_("y = Div(x, c)", 17, R.NOT_FINITE, x=IMG, c=[[[1.0]], [[0.0]], [[2.0]]]),
    not_("y = Div(x, c)", 17, R.NOT_FINITE, x=IMG, c=0.0),
    # what does not even look like one
    not_("y = Div(c, x)", x=IMG, c=()),
    not_("y = Mul(x, x2)", x=IMG, x2=(3, 1, 1)),
    not_("y = Mul(x, x)", x=IMG),
    not_("y = Add(c, d)", x=IMG, c=(3,), d=(3,)),
    not_("y = Add(x, c)", x="int64[2,3]", c=[1, 2, 3]),
    not_("y = Neg(x)", x="int32[2,3]"),
    not_("y = Relu(x)", x=IMG),
    not_("y = Pow(x, c)", x=IMG, c=1.0),
]
# fmt: on


@pytest.mark.parametrize("case", AFFINES, ids=str)
def test_the_affine_does_what_the_node_does(case: Case) -> None:
    found, proto = case.source(), case.proto
    assert found is not None
    assert (found.data, found.affine.axis) == (case.data, case.axis)
    feeds = graphs.inputs(proto, L=4)
    image = found.affine.elementwise(feeds["x"].ndim)
    y: Array = feeds["x"].astype(np.float64)
    y = y if image.scale is None else y * image.scale.hi
    y = y if image.shift is None else y + image.shift.hi
    expected = evaluate(proto, feeds)["y"]
    # A variance of -0.5e-5 loses up to 2**-2 of its sum with epsilon, and mean * s cancels against the bias:
    # float64 is left with well over 40 bits.
    np.testing.assert_allclose(y, expected, rtol=0, atol=2.0**-40 * np.abs(expected).max())


@pytest.mark.parametrize("case", [c for c in OTHERS if c.reason], ids=str)
def test_what_only_looks_like_an_affine_says_why(case: Case) -> None:
    with pytest.raises(Declined) as refusal:
        case.source()
    assert refusal.value.reason is case.reason, refusal.value.detail
    assert refusal.value.detail


@pytest.mark.parametrize("case", [c for c in OTHERS if not c.reason], ids=str)
def test_what_is_no_affine_is_passed_over(case: Case) -> None:
    assert case.source() is None


@pytest.mark.parametrize(
    "shapes",
    [{**BN, "mean": (4,)}, {**BN, "scale": (1,)}, norm(5), {**BN, "var": (3, 1)}, {**BN, "bias": ()}],
    ids=str,
)
def test_parameters_of_another_length_are_an_invalid_model(shapes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="channels"):
        is_(f"y = {NORM}{FIVE}", x=IMG, **shapes).source()


@pytest.mark.parametrize(
    ("x", "shapes", "says"),
    [
        (IMG, {"mean": (4,)}, "'mean' has shape [4], but 'x' has 3 channels"),
        (IMG, {"var": (3, 1)}, "'var' has shape [3, 1], but 'x' has 3 channels"),
        ("float[]", {"bias": (5,)}, "'bias' has shape [5], but 'x' has 3 channels"),
        ("float[N,C,H,W]", {"scale": ()}, "'scale' has shape [], but 'x' has 3 channels"),
        ("float[]", dict.fromkeys(BN, (3, 1)), "'scale' has shape [3, 1], but 'x' has other channels"),
    ],
)
def test_a_parameter_of_another_length_is_named(x: Any, shapes: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        is_(f"y = {NORM}{FIVE}", x=x, **{**BN, **shapes}).source()
    assert says in str(caught.value) and "export it again" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "y = Mul(x, s)",
        f"y = {NORM}(x, s, bias, mean, var)",
        f"y = {NORM}(x, scale, bias, mean, s)",
    ],
)
@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_an_initializer_that_is_an_input_is_a_constant_only_before_ir_4(text: str, ir_version: int) -> None:
    s = graphs.positive("s", *((3, 1, 1) if "Mul" in text else (3,)))
    sizes = ",".join(map(str, s.shape))
    text = f"(float[2,3,5,6] x, float[{sizes}] s) => (float[] y) {{ {text} }}"
    proto = model(text, opset=9, ir_version=ir_version, s=s, **norm(3))
    parsed = ir.from_proto(proto)
    op = Facts(parsed).op(parsed.graph[0])
    if ir_version < 4:
        assert source(op) is not None
    else:
        with pytest.raises(Declined) as refusal:
            source(op)
        assert refusal.value.reason is Reason.OVERRIDABLE


# --- Chains of constants ------------------------------------------------------------------------------

CHAINS = {
    "Identity": "c = Identity(k)",
    "Cast": "d = Cast<to=11>(k) c = Cast<to=1>(d)",
    "CastLike of data": "d = Cast<to=11>(k) c = CastLike(d, x)",
    "Unsqueeze": "u = Squeeze(k) c = Unsqueeze(u, axes)",
    "Reshape": "u = Squeeze(k) c = Reshape(u, to)",
    "Transpose": "t = Transpose<perm=[2,1,0]>(k) c = Transpose(t)",
    "Expand by the shape of data": "shape = Shape(x) c = Expand(k, shape)",
    "Sqrt, Div": "q = Mul(k, k) r = Sqrt(q) c = Div(k, r)",
    "Constant": "two = Constant<value_float=2.0>() c = Mul(two, k)",
    "Concat, Slice": "kk = Concat<axis=0>(k, k) c = Slice(kk, zero, three)",
    "ConstantOfShape": "s = Shape(k) c = ConstantOfShape(s)",
}


@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_what_is_computed_from_constants_is_one(chain: str) -> None:
    text = f"(float[2,3,5,6] x) => (float[] y) {{ {chain} y = Mul(x, c) }}"
    proto = model(text, k=(3, 1, 1), axes=[1, 2], to=[3, 1, 1], zero=[0], three=[3])
    parsed = ir.from_proto(proto)
    found = source(Facts(parsed).op(parsed.graph[-1]))
    assert found is not None
    feeds = graphs.inputs(proto)
    scale = np.broadcast_to(found.affine.scale.hi, (3,)).reshape(3, 1, 1)
    # Computed in float32 as any runtime does, in float64 here: a few roundings apart.
    np.testing.assert_allclose(feeds["x"] * scale, evaluate(proto, feeds)["y"], rtol=4 * 2.0**-24)


@pytest.mark.parametrize("chain", ["c = Mul(k, x2)", "c = Foo.Bar(k)", "c, d = Split(k)"], ids=str)
def test_what_depends_on_data_is_none(chain: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17, "Foo": 1]>
    test (float[2,3,1,1] x, float[3,1,1] x2) => (float[] y) {{ {chain} y = Mul(x, c) }}"""
    parsed = ir.from_proto(model(text, k=(3, 1, 1)))
    assert source(Facts(parsed).op(parsed.graph[-1])) is None


# --- Sites --------------------------------------------------------------------------------------------


def runs(text: str, **constants: Any) -> list[list[str]]:
    """The operators of each site."""
    return [[node.op_type for node in site.nodes] for site in found(text, **constants)]


def found(text: str, **constants: Any) -> Iterator[Site]:
    parsed = ir.from_proto(model(text, **constants))
    yield from sites(Facts(parsed), list(parsed.graph))


RUNS: dict[str, tuple[str, list[list[str]]]] = {
    "one run": ("a = Mul(x, c) b = Add(a, d) e = Neg(b) y = Sub(c, e)", [["Mul", "Add", "Neg", "Sub"]]),
    "a normalization in it": (
        f"a = Add(x, d) b = {NORM}(a, scale, bias, mean, var) y = Mul(b, c)",
        [["Add", NORM, "Mul"]],
    ),
    "other nodes between": ("a = Mul(x, c) b = Relu(a) y = Add(b, d)", [["Mul"], ["Add"]]),
    "a second reader": ("a = Mul(x, c) b = Add(a, d) e = Relu(a) y = Sum(b, e)", [["Mul"], ["Add"]]),
    "read twice by one node": ("a = Mul(x, c) y = Mul(a, a)", [["Mul"]]),
    "a graph output inside": ("z = Mul(x, c) y = Add(z, d)", [["Mul"], ["Add"]]),
    "another axis": ("a = Mul(x, c) b = Mul(a, last) y = Mul(b, last)", [["Mul"], ["Mul", "Mul"]]),
    "a scalar joins any axis": ("a = Mul(x, c) b = Mul(a, one) y = Add(b, d)", [["Mul", "Mul", "Add"]]),
    "a node that declines": ("a = Mul(x, c) b = Mul(a, several) y = Add(b, d)", [["Mul"], ["Mul"], ["Add"]]),
    "out of order": ("a = Mul(x, c) e = Relu(x2) y = Add(a, d) z = Neg(e)", [["Mul", "Add"], ["Neg"]]),
}


@pytest.mark.parametrize(("text", "expected"), RUNS.values(), ids=RUNS)
def test_a_site_is_a_maximal_run(text: str, expected: list[list[str]]) -> None:
    outputs = ", ".join(f"float[] {name}" for name in ("y", "z") if f"{name} =" in text)
    whole = f"(float[2,3,5,6] x, float[2,3,5,6] x2) => ({outputs}) {{ {text} }}"
    numbers = {"c": (3, 1, 1), "d": (3, 1, 1), "last": (6,), "one": (), "several": (3, 5, 6), **norm(3)}
    assert runs(whole, **numbers) == expected


def test_the_affine_of_a_site_is_that_of_the_run() -> None:
    run = f"a = Sub(c, x) b = {NORM}(a, scale, bias, mean, var) y = Div(b, d)"
    text = f"(float[2,3,5,6] x) => (float[] y) {{ {run} }}"
    proto = model(text, c=(3, 1, 1), d=(), **norm(3))
    (site,) = found(text, c=(3, 1, 1), d=(), **norm(3))
    assert site.affine is not None and site.data is not None and site.data.name == "x"
    feeds = graphs.inputs(proto)
    s, t = site.affine.scale.hi.reshape(3, 1, 1), site.affine.shift.hi.reshape(3, 1, 1)
    expected = evaluate(proto, feeds)["y"]
    # Three float64 operations there, one rounding here; the shifts of order 1 may cancel.
    np.testing.assert_allclose(feeds["x"] * s + t, expected, rtol=0, atol=2.0**-40 * np.abs(expected).max())


def test_a_site_on_a_constant_says_so() -> None:
    (site,) = found(
        f"(float[3] x) => (float[] y) {{ y = {NORM}(k, scale, bias, mean, var) }}", k=(2, 3), **norm(3)
    )
    assert site.declined is not None and site.declined.reason is Reason.FROM_CONSTANT
