"""Every folded parameter is the correctly rounded exact value: the certificate, in rationals.

Nothing here trusts floating-point arithmetic: numbers are `Fraction`s, rounding is done on their integers,
and a square root is an integer square root with 400 bits behind the point.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import graphs
import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from graphs import Array, drawn, folded, model, norm, positive
from hypothesis import given
from hypothesis import strategies as st

from bnfold.affine import Elementwise
from bnfold.constants import Constant
from bnfold.double_double import DoubleDouble
from bnfold.report import Declined, Outcome, Reason

Numbers = npt.NDArray[np.object_]  # of Fraction

# By name in ONNX text: the type, its bits of precision, its smallest positive number, its largest.
TYPES: dict[str, tuple[npt.DTypeLike, int, Fraction, Fraction]] = {
    "float16": (np.float16, 11, Fraction(2) ** -24, Fraction(65504)),
    "bfloat16": (ml_dtypes.bfloat16, 8, Fraction(2) ** -133, (2 - Fraction(2) ** -7) * 2**127),
    "float": (np.float32, 24, Fraction(2) ** -149, (2 - Fraction(2) ** -23) * 2**127),
    "double": (np.float64, 53, Fraction(2) ** -1074, (2 - Fraction(2) ** -52) * 2**1023),
}
NAMES = {np.dtype(kind[0]): name for name, kind in TYPES.items()}
ALL_TYPES = pytest.mark.parametrize("kind", TYPES)
EPSILON = Fraction(float(np.float32(1e-5)))


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """As fold itself: what is not finite is found where it matters."""
    with np.errstate(all="ignore"):
        yield


# --- Rationals ----------------------------------------------------------------------------------------


def exact(array: npt.ArrayLike) -> Numbers:
    """The numbers of an array as fractions."""
    numbers = np.asarray(array)
    return np.reshape([Fraction(float(x)) for x in numbers.ravel()], numbers.shape).astype(object)


def root(x: Fraction) -> Fraction:
    """The square root, to within 2**-400."""
    shift = 1 << 800
    return Fraction(math.isqrt(x.numerator * shift // x.denominator), 1 << 400)


def nearest(x: Fraction, kind: str) -> float:
    """The number of the type that is nearest to x, ties to even; infinity beyond its range."""
    _, bits, least, most = TYPES[kind]
    if x == 0:
        return 0.0
    magnitude = abs(x)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent  # 2**exponent <= magnitude < 2**(exponent + 1)
    step = max(Fraction(2) ** (exponent + 1 - bits), least)
    rounded = round(magnitude / step) * step  # of a Fraction, round goes to even
    return math.copysign(float(rounded) if rounded <= most else math.inf, x)


def batchnorm(
    proto: onnx.ModelProto, suffix: str = "", epsilon: Fraction = EPSILON
) -> tuple[Numbers, Numbers]:
    """Scale and shift of a BatchNormalization, as exact as its square root."""
    stored = graphs.numbers(proto)
    scale, bias, mean, var = (exact(stored[name + suffix]) for name in ("scale", "bias", "mean", "var"))
    s = np.array([g / root(v + epsilon) for g, v in zip(scale, var, strict=True)], dtype=object)
    return s, bias - s * mean


def assert_correctly_rounded(stored: Array, expected: Numbers) -> None:
    kind = NAMES[stored.dtype]
    assert stored.shape == expected.shape
    wrong = [
        (i, float(got), nearest(x, kind))
        for i, (got, x) in enumerate(zip(stored.ravel(), expected.ravel(), strict=True))
        if float(got) != nearest(x, kind)
    ]
    assert not wrong, f"{len(wrong)} of {stored.size}: {wrong[:3]}"


@pytest.mark.parametrize("kind", ["float16", "float", "double"])
@given(x=st.floats(allow_nan=False, allow_infinity=False))
def test_the_yardstick_rounds_as_numpy_does(kind: str, x: float) -> None:
    with np.errstate(over="ignore"):
        assert nearest(Fraction(x), kind) == float(np.float64(x).astype(TYPES[kind][0]))


def test_the_yardstick_takes_roots() -> None:
    assert root(Fraction(49, 4)) == Fraction(7, 2)
    assert abs(root(Fraction(2)) ** 2 - 2) < Fraction(2) ** -398


# --- Whole folds --------------------------------------------------------------------------------------


def fold(text: str, *, opset: int = 17, **constants: Any) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A model, and what fold makes of it; all normalizations are gone."""
    before = model(text, opset=opset, **constants)
    after, report = folded(before)
    assert report.after.batchnorms == 0 and not report.kept
    return before, after


def inputs_of(proto: onnx.ModelProto, operator: str) -> list[Array]:
    """The constants that the only such node reads, in order."""
    (node,) = [n for n in proto.graph.node if n.op_type == operator]
    stored = graphs.numbers(proto)
    return [stored[name] for name in node.input if name in stored]


BN, PARTS = "BatchNormalization", "scale, bias, mean, var"


@ALL_TYPES
@pytest.mark.parametrize("bias", ["", ", b"])
def test_conv_then_normalization(kind: str, bias: str) -> None:
    run = f"c = Conv(x, w{bias}) y = {BN}(c, {PARTS})"
    text = f"({kind}[N,3,8,8] x) => ({kind}[N,C,H,W] y) {{ {run} }}"
    constants = {"w": (8, 3, 3, 3), **({"b": (8,)} if bias else {}), **norm(8)}
    before, after = fold(text, **constants)
    s, t = batchnorm(before)
    old = {name: exact(a) for name, a in graphs.numbers(before).items()}
    w, b = inputs_of(after, "Conv")
    assert_correctly_rounded(w, s[:, None, None, None] * old["w"])
    assert_correctly_rounded(b, s * old.get("b", 0) + t)


@pytest.mark.parametrize("epsilon", [1e-3, 0.1])
def test_epsilon_is_the_float32_of_the_file(epsilon: float) -> None:
    run = f"c = Conv(x, w) y = {BN}<epsilon={epsilon}>(c, {PARTS})"
    text = f"(double[N,3,8,8] x) => (double[N,C,H,W] y) {{ {run} }}"
    before, after = fold(text, w=(8, 3, 3, 3), **norm(8))
    s, t = batchnorm(before, epsilon=Fraction(float(np.float32(epsilon))))
    w, b = inputs_of(after, "Conv")
    assert_correctly_rounded(w, s[:, None, None, None] * exact(graphs.numbers(before)["w"]))
    assert_correctly_rounded(b, t)


@ALL_TYPES
def test_many_weights(kind: str) -> None:
    # Among 2**16 float32 products some fall where the first look, with 51 bits, cannot decide.
    text = f"({kind}[N,256] x) => ({kind}[N,C] y) {{ g = Gemm(x, w) y = {BN}(g, {PARTS}) }}"
    before, after = fold(text, w=(256, 64), **norm(64))
    s, _ = batchnorm(before)
    assert_correctly_rounded(inputs_of(after, "Gemm")[0], s * exact(graphs.numbers(before)["w"]))


@ALL_TYPES
def test_normalization_then_conv(kind: str) -> None:
    run = f"n = {BN}(x, {PARTS}) y = Conv(n, w, b)"
    text = f"({kind}[N,3,8,8] x) => ({kind}[N,C,H,W] y) {{ {run} }}"
    before, after = fold(text, w=(8, 3, 3, 3), b=(8,), **norm(3))
    s, t = batchnorm(before)
    old = {name: exact(a) for name, a in graphs.numbers(before).items()}
    w, b = inputs_of(after, "Conv")
    assert_correctly_rounded(w, old["w"] * s[:, None, None])
    assert_correctly_rounded(b, old["b"] + (old["w"] * t[:, None, None]).sum(axis=(1, 2, 3)))


@ALL_TYPES
def test_normalization_then_grouped_conv_transpose(kind: str) -> None:
    run = f"n = {BN}(x, {PARTS}) y = ConvTranspose<group=2, pads=[2,2]>(n, w)"
    text = f"({kind}[N,4,8] x) => ({kind}[N,C,L] y) {{ {run} }}"
    before, after = fold(text, w=(4, 3, 3), **norm(4))
    s, t = batchnorm(before)
    old = exact(graphs.numbers(before)["w"])
    w, b = inputs_of(after, "ConvTranspose")
    assert_correctly_rounded(w, old * s[:, None, None])
    terms = (old * t[:, None, None]).sum(axis=2).reshape(2, 2, 3).sum(axis=1)
    assert_correctly_rounded(b, terms.reshape(6))


@ALL_TYPES
def test_normalizations_on_both_sides_are_rounded_once(kind: str) -> None:
    text = f"""({kind}[N,3,8,8] x) => ({kind}[N,C,H,W] y) {{
        n = {BN}(x, scale1, bias1, mean1, var1)
        c = Conv(n, w, b)
        y = {BN}(c, scale2, bias2, mean2, var2)
    }}"""
    before, after = fold(text, w=(8, 3, 3, 3), b=(8,), **norm(3, "1"), **norm(8, "2"))
    (s1, t1), (s2, t2) = batchnorm(before, "1"), batchnorm(before, "2")
    old = {name: exact(a) for name, a in graphs.numbers(before).items()}
    w, b = inputs_of(after, "Conv")
    assert_correctly_rounded(w, s2[:, None, None, None] * old["w"] * s1[:, None, None])
    inner = old["b"] + (old["w"] * t1[:, None, None]).sum(axis=(1, 2, 3))
    assert_correctly_rounded(b, s2 * inner + t2)


@ALL_TYPES
@pytest.mark.parametrize("after_it", [True, False], ids=["pull", "push"])
def test_gemm_with_alpha_and_beta(kind: str, after_it: bool) -> None:
    gemm = "Gemm<alpha=0.7, beta=1.3, transB=1>"
    pulled = f"g = {gemm}(x, w, c) y = {BN}(g, {PARTS})"
    pushed = f"n = {BN}(x, {PARTS}) y = {gemm}(n, w, c)"
    run = pulled if after_it else pushed
    text = f"({kind}[N,16] x) => ({kind}[N,C] y) {{ {run} }}"
    before, after = fold(text, w=(8, 16), c=(8,), **norm(8 if after_it else 16))
    s, t = batchnorm(before)
    alpha, beta = (Fraction(float(np.float32(v))) for v in (0.7, 1.3))
    old = {name: exact(a) for name, a in graphs.numbers(before).items()}
    w, c = inputs_of(after, "Gemm")
    if after_it:
        assert_correctly_rounded(w, s[:, None] * old["w"])
        assert_correctly_rounded(c, s * beta * old["c"] + t)
    else:
        assert_correctly_rounded(w, old["w"] * s)
        assert_correctly_rounded(c, beta * old["c"] + alpha * (old["w"] * t).sum(axis=1))


@ALL_TYPES
def test_a_run_through_concat_and_residual_add(kind: str) -> None:
    text = f"""({kind}[N,3,8,8] x) => ({kind}[N,C,H,W] y) {{
        c1 = Conv(x, w1) c2 = Conv(x, w2, b2) a = Add(c1, c2) c3 = Conv(x, w3) j = Concat<axis=1>(a, c3)
        m = Mul(j, f) y = {BN}(m, scale, bias, mean, var)
    }}"""
    before, after = fold(
        text, w1=(4, 3, 3, 3), w2=(4, 3, 3, 3), b2=(4,), w3=(2, 3, 3, 3), f=(6, 1, 1), **norm(6)
    )
    s, t = batchnorm(before)
    old, stored = {n: exact(a) for n, a in graphs.numbers(before).items()}, graphs.numbers(after)
    s = s * old["f"].reshape(-1)
    per_channel = s[:, None, None, None]
    assert_correctly_rounded(stored["w1_folded"], per_channel[:4] * old["w1"])
    assert_correctly_rounded(stored["w2_folded"], per_channel[:4] * old["w2"])
    assert_correctly_rounded(stored["w3_folded"], per_channel[4:] * old["w3"])
    # Of a sum, one operand takes the shift: here the first, since it comes first.
    assert_correctly_rounded(stored["c1_bias_folded"], t[:4])
    assert_correctly_rounded(stored["b2_folded"], s[:4] * old["b2"])
    assert_correctly_rounded(stored["c3_bias_folded"], t[4:])


@ALL_TYPES
def test_a_run_without_a_sink_is_merged_into_its_normalization(kind: str) -> None:
    text = f"""({kind}[N,3,8] x) => ({kind}[N,3,8] y) {{
        r = Sigmoid(x) a = Mul(r, f) b = {BN}(a, scale1, bias1, mean1, var1)
        c = {BN}(b, scale2, bias2, mean2, var2) y = Sigmoid(c)
    }}"""
    before = model(text, f=(3, 1), **norm(3, "1"), **norm(3, "2"))
    after, report = folded(before)
    assert [d.outcome for d in report.decisions] == [Outcome.MERGED]
    (s1, t1), (s2, t2) = batchnorm(before, "1"), batchnorm(before, "2")
    old = {name: exact(a) for name, a in graphs.numbers(before).items()}
    deviation = np.array([root(v + EPSILON) for v in old["var1"]], dtype=object)
    scale, bias, mean, var = inputs_of(after, BN)
    assert_correctly_rounded(scale, s2 * s1 * old["f"].reshape(-1) * deviation)
    assert_correctly_rounded(bias, s2 * t1 + t2)
    assert not mean.any() and np.array_equal(exact(var), old["var1"])


@ALL_TYPES
def test_a_run_that_begins_with_its_normalization_keeps_the_mean(kind: str) -> None:
    text = f"""({kind}[N,3,8] x) => ({kind}[N,3,8] y) {{
        r = Sigmoid(x) b = {BN}(r, scale1, bias1, mean1, var1)
        c = {BN}(b, scale2, bias2, mean2, var2) y = Sigmoid(c)
    }}"""
    before = model(text, **norm(3, "1"), **norm(3, "2"))
    after, report = folded(before)
    assert [d.outcome for d in report.decisions] == [Outcome.MERGED]
    s, t = batchnorm(before, "2")
    old = {name: exact(a) for name, a in graphs.numbers(before).items()}
    scale, bias, mean, var = inputs_of(after, BN)
    assert_correctly_rounded(scale, s * old["scale1"])
    assert_correctly_rounded(bias, s * old["bias1"] + t)
    assert np.array_equal(exact(mean), old["mean1"]) and np.array_equal(exact(var), old["var1"])


@ALL_TYPES
@pytest.mark.parametrize("centred", [False, True])
def test_a_normalization_takes_another_from_before_a_pool(kind: str, centred: bool) -> None:
    """It has no mean afterwards: the old one is that of data that no longer come in."""
    text = f"""({kind}[N,3,8,8] x) => ({kind}[N,3,7,7] y) {{
        r = Sigmoid(x) b = {BN}(r, scale1, bias1, mean1, var1) p = AveragePool <kernel_shape = [2, 2]> (b)
        c = {BN}(p, scale2, bias2, mean2, var2) y = Sigmoid(c)
    }}"""
    stored = norm(3, "2") | ({"mean2": np.zeros(3, TYPES[kind][0])} if centred else {})
    before = model(text, **norm(3, "1"), **stored)
    after, report = folded(before)
    assert [d.outcome for d in report.decisions] == [Outcome.PUSHED, Outcome.KEPT]
    (s1, t1), (s2, t2) = batchnorm(before, "1"), batchnorm(before, "2")
    scale, bias, mean, _ = inputs_of(after, BN)
    assert_correctly_rounded(scale, s1 * exact(graphs.numbers(before)["scale2"]))
    assert_correctly_rounded(bias, s2 * t1 + t2)
    assert not mean.any() and not np.signbit(mean).any()
    assert ("mean2" in graphs.numbers(after)) == centred


@ALL_TYPES
def test_a_run_without_a_normalization_is_merged_into_mul_and_add(kind: str) -> None:
    text = f"""({kind}[N,3,8] x) => ({kind}[N,3,8] y) {{
        r = Sigmoid(x) a = Mul(r, f) b = Add(a, g) c = Div(b, h) d = Sub(k, c) y = Sigmoid(d)
    }}"""
    before = model(text, f=(3, 1), g=(3, 1), h=(3, 1), k=(3, 1))
    after, report = folded(before)
    assert [d.outcome for d in report.decisions] == [Outcome.MERGED]
    assert graphs.ops(after) == ["Sigmoid", "Mul", "Add", "Sigmoid"]
    f, g, h, k = (exact(graphs.numbers(before)[name]) for name in "fghk")
    assert_correctly_rounded(inputs_of(after, "Mul")[0], -f / h)
    assert_correctly_rounded(inputs_of(after, "Add")[0], k - g / h)


@ALL_TYPES
def test_a_shift_that_stays(kind: str) -> None:
    run = "m = MatMul(x, w) a = Mul(m, f) b = Add(a, g) y = Sigmoid(b)"
    text = f"({kind}[N,5,16] x) => ({kind}[N,5,8] y) {{ {run} }}"
    before = model(text, w=(16, 8), f=(8,), g=(8,))
    after, _ = folded(before)
    f, g, w = (exact(graphs.numbers(before)[name]) for name in "fgw")
    assert graphs.ops(after) == ["MatMul", "Add", "Sigmoid"]
    assert_correctly_rounded(inputs_of(after, "MatMul")[0], w * f)
    assert_correctly_rounded(inputs_of(after, "Add")[0], g)


@ALL_TYPES
def test_a_scale_passes_relu_and_its_shift_stays_before_it(kind: str) -> None:
    dtype = TYPES[kind][0]
    text = f"""({kind}[N,3,8,8] x) => ({kind}[N,C,H,W] y) {{
        i = Sigmoid(x) m = Mul(i, f) a = Add(m, g) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, w)
    }}"""
    before = model(text, f=positive("f", 3, 1, 1, dtype=dtype), g=(3, 1, 1), w=(4, 3, 3, 3))
    after, _ = folded(before)
    f, g, w = (exact(graphs.numbers(before)[name]) for name in "fgw")
    assert graphs.ops(after) == ["Sigmoid", "Add", "Relu", "Conv"]
    assert_correctly_rounded(inputs_of(after, "Add")[0], g / f)
    assert_correctly_rounded(inputs_of(after, "Conv")[0], w * f)


# --- Doubtful cases, planted --------------------------------------------------------------------------


def product(base: npt.ArrayLike, kind: str, *factors: float | DoubleDouble) -> tuple[Array, Numbers]:
    """base · factors as `Constant` rounds it, and the exact product."""
    array = np.asarray(base, TYPES[kind][0])
    constant, value = Constant(array), exact(array)
    for factor in factors:
        f = factor if isinstance(factor, DoubleDouble) else DoubleDouble.of(factor)
        constant = constant.mapped(Elementwise(f))
        value = value * (exact(f.hi) + exact(f.lo))
    return constant.rounded(), value


@ALL_TYPES
@pytest.mark.parametrize("hair", [0, 2.0**-60, -(2.0**-60), 2.0**-95, -(2.0**-95)])
def test_products_at_a_midpoint(kind: str, hair: float) -> None:
    # Between two neighbours in the middle of [1, 2), on both sides of even; a hair more or less decides.
    ulp = 2.0 ** (1 - TYPES[kind][1])
    odd = np.array([1.5 + ulp, 1.5 + 2 * ulp, 1.25 - ulp, -1.5 + ulp])
    half = DoubleDouble.of(ulp / 2) / DoubleDouble.of(odd)
    scale = DoubleDouble.of(1.0) + half + DoubleDouble.of(hair)
    got, value = product(odd, kind, scale)
    if hair:
        assert_correctly_rounded(got, value)
    else:  # the quotient above is rounded at 2**-106: what is meant is the tie
        assert_correctly_rounded(got, exact(odd) + Fraction(ulp) / 2)


@ALL_TYPES
@pytest.mark.parametrize("divisor", [3.0, 7.0, 1.1, 49.0])
def test_a_quotient_that_is_multiplied_back_is_the_identity(kind: str, divisor: float) -> None:
    base = drawn("w", 500, dtype=TYPES[kind][0])
    third = DoubleDouble.of(1.0) / DoubleDouble.of(divisor)
    got, _ = product(base, kind, third, divisor)
    assert np.array_equal(got, base)


@ALL_TYPES
def test_a_single_number_is_scaled(kind: str) -> None:
    before = model(
        f"({kind}[N,3] x) => ({kind}[] y) {{ e = Exp(x) q = Div(k, e) y = Mul(q, f) }}", k=(), f=()
    )
    after, _ = folded(before)
    k, f = (exact(graphs.numbers(before)[name]) for name in "kf")
    assert graphs.ops(after) == ["Exp", "Div"]
    assert_correctly_rounded(inputs_of(after, "Div")[0], np.asarray(k * f))


@ALL_TYPES
def test_random_products_of_three(kind: str) -> None:
    base = drawn("w", 2000, dtype=TYPES[kind][0])
    got, value = product(base, kind, 1 / 3, float(np.float32(0.7)))
    assert_correctly_rounded(got, value)


def test_double_products_a_hair_beside_a_midpoint() -> None:
    # (3/2 - u)(3/2 + 3u) = 9/4 + 3u - 3u**2 with u = 2**-52: 2**-104 below the middle of two neighbours.
    u = 2.0**-52
    got, value = product([1.5 - u, 1.5 + 3 * u, 1.5 + u], "double", 1.5 + 3 * u)
    assert_correctly_rounded(got, value)


@pytest.mark.parametrize(
    ("kind", "base", "factor"),
    [
        ("float16", 6.2e-5, 0.37),
        ("bfloat16", 1.2e-38, 0.37),
        ("float", 1.2e-38, 0.37),
        ("float", 1e-30, 1e-12),
        ("double", 1e-300, 1e-20),
    ],
)
def test_subnormal_results_are_rounded_once(kind: str, base: float, factor: float) -> None:
    numbers = base * (1 + np.arange(200) / 200)
    got, value = product(numbers, kind, factor)
    assert_correctly_rounded(got, value)


@pytest.mark.parametrize("kind", ["bfloat16", "float"])
def test_results_near_the_end_of_the_range(kind: str) -> None:
    most = float(TYPES[kind][3])
    got, value = product(np.array([most, -most, most / 3]), kind, 1 - 2.0**-20)
    assert_correctly_rounded(got, value)


def test_quotients_beyond_the_range_are_refused() -> None:
    text = "(double[N,3,8,8] x) => (double[N,C,H,W] y) { c = Conv(x, w) y = Div(c, d) }"
    _, report = folded(model(text, w=(2, 3, 3, 3), d=np.array([[[1.0]], [[5e-324]]])))
    assert [d.reason for d in report.decisions] == [Reason.NOT_FINITE]


def test_the_smallest_doubles_are_off_by_one_unit_at_most() -> None:
    # Below 2**-968 the trailing half is subnormal itself, so what it holds is rounded a second time.
    got, value = product(2.3e-308 * (1 + np.arange(200) / 200), "double", 0.37)
    unit = TYPES["double"][2]
    assert max(abs(exact(got) - value)) <= unit


@ALL_TYPES
def test_blocks_are_rounded_as_the_whole(kind: str) -> None:
    # More elements than one block holds, with scales along each axis and a shift.
    base = drawn("w", 300, 7, 40, dtype=TYPES[kind][0])
    for shape in ((300, 1, 1), (7, 1), (1, 1, 40), ()):
        scale, shift = positive("s", *shape, dtype=np.float64), drawn("t", *shape, dtype=np.float64)
        got = Constant(base, DoubleDouble.of(scale), DoubleDouble.of(shift)).rounded()
        for row in (0, 233, 234, 299):
            s, t = (np.broadcast_to(v, base.shape)[row] for v in (scale, shift))
            assert_correctly_rounded(got[row], exact(base[row]) * exact(s) + exact(t))


# --- Refusals -----------------------------------------------------------------------------------------


def refused(constant: Constant) -> Reason | None:
    try:
        constant.check("'w'")
    except Declined as declined:
        assert declined.detail.startswith("'w'") or "'w'" in declined.detail
        return declined.reason
    return None


def scaled(base: Sequence[Any], scale: Any, dtype: npt.DTypeLike, shift: Any = None) -> Constant:
    t = None if shift is None else DoubleDouble.of(shift)
    return Constant(np.array(base, dtype), None if scale is None else DoubleDouble.of(scale), t)


H, S, D, B = np.float16, np.float32, np.float64, ml_dtypes.bfloat16
CHECKS: dict[str, tuple[Constant, Reason | None]] = {
    "fits": (scaled([1, 2], 3.0, H), None),
    "65504 is still a float16": (scaled([32752], 2.0, H), None),
    "just below the middle to the next": (scaled([32752], 65519 / 32752, H), None),
    "65520 is not": (scaled([32760], 2.0, H), Reason.OVERFLOW),
    "float32 too large": (scaled([1e30], 1e9, S), Reason.OVERFLOW),
    "bfloat16 too large": (scaled([3e38], 2.0, B), Reason.OVERFLOW),
    "double too large": (scaled([1e300], 1e10, D), Reason.OVERFLOW),
    "one channel too large": (scaled([[1.0], [1000.0]], [[1.0], [1000.0]], H), Reason.OVERFLOW),
    "a bias too large": (scaled([1.0], None, H, [70000.0]), Reason.OVERFLOW),
    "a scaled bias too large": (scaled([1e30], 1e9, S, [1.0]), Reason.OVERFLOW),
    "large parts of a small bias": (scaled([60000.0], 2.0, H, [-100000.0]), None),
    "a channel vanishes": (scaled([[1e-30], [1.0]], [[1e-20], [1.0]], S), None),
    "a float16 channel vanishes": (scaled([[1e-4], [1.0]], [[1e-5], [1.0]], H), Reason.UNDERFLOW),
    "doubles without room for their halves": (scaled([1e307], 0.5, D), Reason.OVERFLOW),
    "a channel of zeros": (scaled([[0.0], [1.0]], [[1e-20], [1.0]], S), None),
    "a scale of zero": (scaled([[1.0], [1.0]], [[0.0], [1.0]], H), None),
    "a float16 channel collapses": (scaled([[1e-2, 1e-3], [1.0, 1.0]], [[1e-3], [1.0]], H), Reason.UNDERFLOW),
    "it had collapsed before": (scaled([[1e-6], [1.0]], [[0.5], [1.0]], H), None),
    "the largest stays normal": (scaled([[1.0, 1e-3]], [[1e-4]], H), None),
    "new factors": (Constant.factors(DoubleDouble.of([1e-4, 1.0]), H), None),
    "a new factor collapses": (Constant.factors(DoubleDouble.of([1e-5, 1.0]), H), Reason.UNDERFLOW),
    "a new factor too large": (Constant.factors(DoubleDouble.of([1e5, 1.0]), H), Reason.OVERFLOW),
    "NaN": (scaled([1.0, np.nan], 2.0, S), Reason.NOT_FINITE),
    "infinity": (scaled([1.0, np.inf], 2.0, S), Reason.NOT_FINITE),
    "NaN in a bias": (scaled([np.nan], 2.0, S, [1.0]), Reason.NOT_FINITE),
    "infinity in a bias": (scaled([np.inf], 2.0, S, [1.0]), Reason.NOT_FINITE),
    "infinite scale": (scaled([1.0], np.inf, D), Reason.NOT_FINITE),
    "no numbers": (scaled([], 2.0, S), None),
}  # fmt: skip


@pytest.mark.parametrize(("constant", "reason"), CHECKS.values(), ids=CHECKS)
def test_what_does_not_fit_is_refused(constant: Constant, reason: Reason | None) -> None:
    assert refused(constant) is reason


def test_nothing_that_is_accepted_is_infinite() -> None:
    for constant, reason in CHECKS.values():
        if reason is None:
            assert np.isfinite(constant.rounded().astype(np.float64)).all()


# --- The moves of a constant --------------------------------------------------------------------------


def steps() -> Iterator[tuple[str, Elementwise]]:
    one, three = DoubleDouble.of(drawn("p", 3, 1, dtype=D)), DoubleDouble.of(drawn("q", 3, 1, dtype=D))
    yield "scale", Elementwise(one)
    yield "shift", Elementwise(None, three)
    yield "both", Elementwise(one, three)
    yield "nothing", Elementwise()
    yield "other axis", Elementwise(DoubleDouble.of(drawn("r", 4, dtype=D)), None)


STEPS: Mapping[str, Elementwise] = dict(steps())


@pytest.mark.parametrize("second", STEPS)
@pytest.mark.parametrize("first", STEPS)
def test_two_changes_are_rounded_once(first: str, second: str) -> None:
    base = drawn("w", 3, 4)
    constant, value = Constant(base), exact(base)
    for change in (STEPS[first], STEPS[second]):
        constant = constant.mapped(change)
        value = value if change.scale is None else value * exact(change.scale.hi)
        value = value if change.shift is None else value + exact(change.shift.hi)
    assert constant.shape == value.shape
    assert_correctly_rounded(constant.rounded(), value)


def test_a_constant_may_grow() -> None:
    constant = scaled([2.0], [[1.0], [3.0]], S, [1.0, 2.0])
    assert constant.shape == (2, 2)
    assert constant.rounded().tolist() == [[3.0, 4.0], [7.0, 8.0]]


def test_a_constant_that_nothing_changed_is_the_stored_array() -> None:
    base = drawn("w", 3)
    assert Constant(base).rounded() is base
