"""What the nudges move, by how much, and what they leave alone."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from bnfold.evaluate import evaluate
from bnfold.nudge import Nudge, unit

Array = NDArray[Any]


def nudge(text: str, **constants: Array) -> Nudge:
    """Of a graph, and of functions of the domain "my" after it."""
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "my" : 1]> g {text}')
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    return Nudge(model)


SCALED = "(float[N] x) => (float[N] y) { y = Mul(x, w) }"
CAST_IN_FUNCTION = '<domain: "my", opset_import: ["" : 17]> F (a, w) => (b) {'
W = np.linspace(-1, 1, 10_001, dtype=np.float32)


RANDOM = np.random.default_rng(1).uniform(1, 2, 100_000).astype(np.float32).astype(np.float64)


def moves(drawn: Nudge, name: str, stored: Any = np.float32, *seed: int) -> Array:
    """Relative changes of ordinary numbers under that name."""
    return drawn.draw(*(seed or (0,)))(name, np.dtype(stored), RANDOM) / RANDOM - 1


@pytest.mark.parametrize(
    ("dtype", "u"),
    [
        (np.float16, 2.0**-11),
        (ml_dtypes.bfloat16, 2.0**-8),
        (np.float32, 2.0**-24),
        (np.float64, 2.0**-53),
    ],
)
def test_the_unit_roundoff_bounds_and_fills_the_range(dtype: Any, u: float) -> None:
    assert unit(np.dtype(dtype)) == u
    moved = moves(nudge(SCALED, w=W), "w", dtype)
    # The product and the quotient are rounded to float64's own unit.
    assert np.abs(moved).max() <= u + 2 * 2.0**-53
    if u > 2.0**-50:
        # RMS of U(-u, u) is u/sqrt(3); of 100,000 draws it is known to 0.5 %.
        assert np.sqrt(np.mean(moved**2)) == pytest.approx(u / np.sqrt(3), rel=0.02)
        assert abs(np.mean(moved)) < 0.02 * u


def test_zeros_and_infinities_stay() -> None:
    stored = np.array([0.0, -0.0, np.inf, -np.inf])
    moved = nudge(SCALED, w=W).draw(0)("w", np.dtype(np.float32), stored)
    assert np.array_equal(moved, stored)


def test_equal_digits_move_alike_in_every_other_draw_and_others_apart() -> None:
    drawn = nudge(SCALED, w=W)
    stored = np.array([0.3, 0.6, -0.3, 0.3, 0.7, 1.2])
    moved = drawn.draw(1, 0)("w", np.dtype(np.float32), stored) / stored
    assert np.ptp(moved[[0, 1, 2, 3, 5]]) <= 2.0**-52
    assert abs(moved[4] - moved[0]) > 2.0**-40
    moved = drawn.draw(1, 1)("w", np.dtype(np.float32), stored) / stored
    assert np.diff(np.sort(moved)).min() > 2.0**-40


def test_numbers_that_move_by_themselves_have_nothing_in_common() -> None:
    """Equal ones at all places, of one block and of several: their sums grow like a random walk."""
    drawn, count = nudge(SCALED, w=W), 3 << 16
    # In units of u/sqrt(3). The largest tensor has whole blocks, in which the same places recur.
    moved = np.stack(
        [drawn.draw(0, k)("w", np.dtype(np.float32), np.ones(count)) - 1 for k in range(1, 40, 2)]
    )
    moved *= np.sqrt(3) * 2.0**24
    for shape in [(-1, 64), (64, -1), (3, -1)]:
        sums = moved.reshape(20, *shape).sum(axis=2) / np.sqrt(
            moved.shape[1] / shape[0] if shape[1] < 0 else 64
        )
        assert np.sqrt(np.mean(sums**2)) == pytest.approx(1, rel=0.25)
    across = moved.reshape(20, 3, -1).sum(axis=1) / np.sqrt(3)
    # 20 · 65,536 sums: the correlation of a place with the same of another block is 0.
    assert np.sqrt(np.mean(across**2)) == pytest.approx(1, rel=0.05)
    first, *_ = moved.reshape(20, 3, -1)
    assert np.abs(np.corrcoef(first) - np.eye(3)).max() < 0.03  # 1/sqrt(65,536) is 0.004


def test_draws_of_one_number_are_spread() -> None:
    """The noise of a tensor of equal numbers is that of one; its draws must not repeat themselves."""
    drawn = nudge(SCALED, w=W)
    ones = [float(drawn.draw(0, k)("w", np.dtype(np.float32), np.ones(1))[0]) - 1 for k in range(400)]
    # 400 draws of U(-u, u): the mean is within 4 deviations of u/sqrt(3·400), the RMS within a tenth.
    u = 2.0**-24
    assert abs(np.mean(ones)) < 4 * u / np.sqrt(3 * 400)
    assert np.sqrt(np.mean(np.square(ones))) == pytest.approx(u / np.sqrt(3), rel=0.1)


def test_the_same_seed_is_the_same_draw_whatever_the_order() -> None:
    drawn = nudge(SCALED, w=W)
    first = moves(drawn, "w", np.float32, 1, 2)
    moves(drawn, "other", np.float32, 1, 2)
    assert np.array_equal(first, moves(drawn, "w", np.float32, 1, 2))
    assert not np.array_equal(first, moves(drawn, "w", np.float32, 1, 3))
    assert not np.array_equal(first, moves(drawn, "v", np.float32, 1, 2))


def test_what_decides_shapes_and_exponents_stays() -> None:
    """Moved, 2.0 would floor to another size, and a negative number to the power 2.0000002 is NaN."""
    text = """(float[N,4] x) => (float[] y, float[] z) {
        sizes = Shape(x)  real = Cast<to = 1>(sizes)  twice = Mul(real, two)  whole = Floor(twice)
        shape = Cast<to = 7>(whole)  y = ConstantOfShape<value = float[1] {1}>(shape)
        p = Pow(x, e)  z = Mul(p, w)
    }"""
    drawn = nudge(text, two=W, e=W, w=W)
    for name, expected in {"two": False, "e": False, "w": True}.items():
        assert bool(moves(drawn, name).any()) is expected


@pytest.mark.parametrize(
    "reader", ["y = Pow(x, a)", "y = Cast<to = 7>(a)", "y = Greater(a, w)", "y = Floor(a)"]
)
def test_what_depends_on_data_fixes_nothing(reader: str) -> None:
    drawn = nudge(f"(float[N] x) => (float[] y) {{ a = Mul(x, w)  {reader} }}", w=W)
    assert moves(drawn, "w").any()


@pytest.mark.parametrize(
    "decision",
    [
        *("y = Cast<to = 7>(c)", "y = Cast<to = 9>(c)", "y = Cast<to = 2>(c)"),
        *("y = Floor(c)", "y = Ceil(c)", "y = Round(c)", "y = Sign(c)"),
        *("y = Equal(c, d)", "y = Greater(d, c)", "y = GreaterOrEqual(c, d)", "y = Less(c, d)"),
        *("y = LessOrEqual(c, d)", "y = ArgMax(c)", "y = NonZero(c)", "k = Mul(c, d)  y = Floor(k)"),
    ],
)
def test_what_decides_about_constants_alone_stays(decision: str) -> None:
    """3.0 moved to 2.9999998 would be the index 2."""
    text = f"(float[N] x) => (float[] y, float[] z) {{ {decision}  z = Mul(x, w) }}"
    drawn = nudge(text, c=W, d=W, w=W)
    assert not moves(drawn, "c").any()
    assert moves(drawn, "w").any()


@pytest.mark.parametrize("harmless", ["y = Cast<to = 1>(c)", "y = Mul(x, c)", "y = Greater(x, c)"])
def test_what_decides_about_nothing_or_about_data_moves(harmless: str) -> None:
    assert moves(nudge(f"(float[N] x) => (float[] y) {{ {harmless} }}", c=W), "c").any()


SETTINGS_IN_FUNCTIONS = {
    "an argument": """{ y = my.F(x, e) }
        <domain: "my", opset_import: ["" : 17]> F (a, b) => (c) { c = Pow(a, b) }""",
    "an argument of another name": """{ a = Mul(x, w)  y = my.F(a, e) }
        <domain: "my", opset_import: ["" : 17]> F (e, w) => (c) { c = Resize(e, , w) }""",
    "computed from it": """{ y = my.F(x, e) }
        <domain: "my", opset_import: ["" : 17]>
        F (a, b) => (c) { two = Constant<value_float = 2.0>()  h = Mul(b, two)  c = Pow(a, h) }""",
    "through two calls": """{ y = my.F(x, e) }
        <domain: "my", opset_import: ["" : 17, "my" : 1]> F (a, b) => (c) { c = my.G(b, a) }
        <domain: "my", opset_import: ["" : 17]> G (b, a) => (c) { c = Pow(a, b) }""",
    "a result": """{ h, f = my.F(x, e)  y = Pow(h, f) }
        <domain: "my", opset_import: ["" : 17]> F (a, b) => (c, d) { c = Neg(a)  d = Neg(b) }""",
    "inside an inner graph": """{
            y = If (b) <then_branch = t () => (float[] p) { p = Pow(x, e) },
                        else_branch = f () => (float[] q) { q = Mul(x, w) }> }""",
    "out of an inner graph": """{
            n = Size(x)  some = Cast<to = 9>(n)
            d = If (some) <then_branch = t () => (float[] p) { p = Neg(e) },
                        else_branch = f () => (float[] q) { q = Neg(two) }>
            h = Pow(x, d)  y = Mul(h, w) }""",
}


@pytest.mark.parametrize("text", SETTINGS_IN_FUNCTIONS.values(), ids=SETTINGS_IN_FUNCTIONS)
def test_settings_are_found_where_they_arrive(text: str) -> None:
    drawn = nudge("(float[N] x, bool b) => (float[] y) " + text, w=W, e=W, two=W)
    assert not moves(drawn, "e").any()
    assert moves(drawn, "w").any()
    if "two" in text:
        assert not moves(drawn, "two").any()


def test_a_parameter_is_what_the_call_gives() -> None:
    """The same function on data, its own constant left alone all the same, and on constants."""
    function = """<domain: "my", opset_import: ["" : 17]>
        F (a) => (b) { c = Constant<value_float = 0.5>()  h = Add(a, c)  b = Floor(h) }"""
    data = nudge("(float[N] x) => (float[] y) { m = Mul(x, w)  y = my.F(m) } " + function, w=W)
    assert moves(data, "w").any() and moves(data, "c").any()
    both = nudge("(float[N] x) => (float[] y, float[] z) { y = my.F(x)  z = my.F(w) } " + function, w=W)
    assert not moves(both, "w").any() and not moves(both, "c").any()


def test_a_decision_inside_a_function_stays() -> None:
    drawn = nudge("""(float[N] x) => (float[] y) { y = my.F(x) } <domain: "my", opset_import: ["" : 17]>
        F (a) => (b) {
            c = Constant<value_float = 3.0>()  i = Cast<to = 7>(c)  g = Gather(a, i)
            k = Constant<value_float = 3.0>()  b = Mul(g, k)
        }""")
    assert not moves(drawn, "c").any()
    assert moves(drawn, "k").any()


def test_a_name_of_another_scope_fixes_nothing() -> None:
    """In the function e, h and w are other values than outside; only constants of one name are one."""
    drawn = nudge(
        """(float[N] x) => (float[] y) { h = Mul(x, w)  y = my.F(h, two) }
        <domain: "my", opset_import: ["" : 17]>
        F (a, w) => (b) { e = Mul(w, w)  b = Pow(a, e) }""",
        **{"w": W, "e": W, "two": W},
    )
    assert moves(drawn, "w").any() and moves(drawn, "e").any()
    assert not moves(drawn, "two").any()


def test_constants_of_one_name_get_the_least_noise_of_them() -> None:
    """Left alone, a constant lacks some noise; moved, a decision may drown every fault."""
    drawn = nudge(
        """(float[N] x) => (float[] y) { h = Mul(x, c)  y = my.F(h) } <domain: "my", opset_import: ["" : 17]>
        F (a) => (b) { c = Constant<value_float = 2.0>()  b = Pow(a, c) }""",
        c=W,
    )
    assert not moves(drawn, "c").any()


def test_the_body_of_a_loop_depends_on_what_the_loop_depends_on() -> None:
    text = """(float[N] x) => (float[] y, float[] z) {{
        n = Constant<value_int = 3>()  t = Constant<value_int = 1>()  on = Cast<to = 9>(t)
        y, z = Loop(n, on, {state}) <body =
            g (int64 i, bool p, float[] s) => (bool p2, float[] s2, float[] r) {{
            p2 = Identity(p)  s2 = Mul(s, w)  r = Floor(s)
        }}> }}"""
    assert moves(nudge(text.format(state="x"), w=W), "w").any()
    alone = nudge(text.format(state="v"), w=W, v=W)
    assert not moves(alone, "w").any() and not moves(alone, "v").any()


def test_a_function_that_calls_itself_is_left_to_the_evaluation() -> None:
    drawn = nudge(
        """(float[N] x) => (float[] y) { y = my.F(x, w) } <domain: "my", opset_import: ["" : 17, "my" : 1]>
        F (a, b) => (c) { c = my.F(a, b) }""",
        w=W,
    )
    assert moves(drawn, "w").any()


@pytest.mark.parametrize(
    ("text", "u"),
    [
        ("(float16[1] x) => (float16[1] y) { h = Cast<to = 10>(w)  y = Mul(x, h) }", 2.0**-11),
        ("(bfloat16[1] x) => (bfloat16[1] y) { h = Cast<to = 16>(w)  y = Mul(x, h) }", 2.0**-8),
        ("(float16[1,3] x) => (float16[1,3] y) { y = BatchNormalization(x, w, w, w, w) }", 2.0**-11),
        ("(float[1,3] x) => (float[1,3] y) { y = BatchNormalization(x, w, w, w, w) }", 2.0**-24),
    ],
)
def test_the_coarser_of_stored_and_computed(text: str, u: float) -> None:
    moved = moves(nudge(text, w=np.ones(3, np.float32)), "w", np.float32)
    assert 0.9 * u < np.abs(moved).max() <= u + 2 * 2.0**-53


@pytest.mark.parametrize(
    "text",
    [
        "{ h = Cast<to = 10>(w)  y = MatMul(x, w) }",
        "{ y = BatchNormalization(x, w, w, w, w)  h = Mul(w, w) }",
        """{ y = BatchNormalization(x, w, w, w, w)
             f = Cast<to = 1>(x)  h = BatchNormalization(f, w, w, w, w) }""",
        "{ y = my.F(x, w) } " + CAST_IN_FUNCTION + " c = Cast<to = 10>(w)  d = Mul(w, w)  b = Identity(a) }",
        """{ h = Cast<to = 10>(w)  y = If(b) <then_branch = t () => (float[] p) { p = Mul(w, w) },
                        else_branch = f () => (float[] q) { q = Neg(v) }> }""",
        # Another constant, or a parameter, of that name.
        "{ y = Mul(w, w)  h = my.F(x, v) } " + CAST_IN_FUNCTION + " b = Cast<to = 10>(w) }",
        "{ y = Mul(w, w)  h = my.F(x, v) } "
        + CAST_IN_FUNCTION.replace("(a, w)", "(a, v)")
        + " w = Constant<value_float = 1.0>()  b = Cast<to = 10>(w) }",
    ],
)
def test_the_finest_reader_counts(text: str) -> None:
    drawn = nudge("(float16[1,3] x, bool b) => (float16[] y, float[] h) " + text, w=W, v=W)
    assert np.abs(moves(drawn, "w")).max() <= 2.0**-24 + 2 * 2.0**-53


def test_a_graph_output_is_read_as_it_is_stored() -> None:
    drawn = nudge("(float16[1,3] x) => (float[] w, float[] h) { h = Cast<to = 10>(w) }", w=W)
    assert np.abs(moves(drawn, "w")).max() <= 2.0**-24 + 2 * 2.0**-53


@pytest.mark.parametrize(
    "text",
    [
        "{ y = Cast<to = 10>(w)  h = Cast<to = 10>(w)  n = Shape(w) }",
        "{ y = Cast<to = 16>(w)  h = Cast<to = 10>(w) }",
        "{ h = Relu(x)  y = BatchNormalization(h, w, w, w, w) }",
        "{ y = my.F(x, w) } " + CAST_IN_FUNCTION + " b = Cast<to = 10>(w) }",
        # The function's own w is of no concern: it is no constant.
        "{ h = Cast<to = 10>(w)  y = my.F(x, v) } " + CAST_IN_FUNCTION + " b = Mul(a, w) }",
    ],
)
def test_the_coarsest_type_that_all_readers_bear(text: str) -> None:
    drawn = nudge("(float16[1,3] x) => (float16[] y) " + text, w=W, v=W)
    assert 0.9 * 2.0**-11 < np.abs(moves(drawn, "w")).max() <= 2.0**-11 + 2 * 2.0**-53


def test_it_is_called_with_the_names_that_it_knows() -> None:
    """End to end: the noise of y = w·x is w's."""
    model = parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g ' + SCALED)
    model.graph.initializer.append(numpy_helper.from_array(W, "w"))
    y = evaluate(model, {"x": np.ones(W.size)})["y"]
    assert np.array_equal(y, W.astype(np.float64))
