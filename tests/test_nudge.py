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


def nudge(text: str, *, opset: int = 17, **constants: Array) -> Nudge:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {text}')
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    return Nudge(model)


SCALED = "(float[N] x) => (float[N] y) { y = Mul(x, w) }"
W = np.linspace(-1, 1, 10_001, dtype=np.float32)


RANDOM = np.random.default_rng(1).uniform(1, 2, 100_000).astype(np.float32).astype(np.float64)


def moves(drawn: Nudge, name: str, stored: Any, *seed: int) -> Array:
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


def test_equal_digits_move_alike_and_others_apart() -> None:
    drawn = nudge(SCALED, w=W).draw(0)
    stored = np.array([0.3, 0.6, -0.3, 0.3, 0.7, 1.2])
    moved = drawn("w", np.dtype(np.float32), stored) / stored
    assert np.ptp(moved[[0, 1, 2, 3, 5]]) <= 2.0**-52
    assert abs(moved[4] - moved[0]) > 2.0**-40


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
    drawn = nudge(text, two=np.array(2, np.float32))
    for name, expected in {"two": False, "e": False, "w": True}.items():
        assert bool(moves(drawn, name, np.float32).any()) is expected


def test_a_setting_that_depends_on_data_fixes_nothing() -> None:
    drawn = nudge("(float[N] x) => (float[] y) { a = Mul(x, w)  y = Pow(x, a) }", w=W)
    assert moves(drawn, "w", np.float32).any()


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


def test_it_is_called_with_the_names_that_it_knows() -> None:
    """End to end: the noise of y = w·x is w's."""
    model = parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g ' + SCALED)
    model.graph.initializer.append(numpy_helper.from_array(W, "w"))
    y = evaluate(model, {"x": np.ones(W.size)})["y"]
    assert np.array_equal(y, W.astype(np.float64))
