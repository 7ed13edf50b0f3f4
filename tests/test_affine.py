"""The algebra of affine maps, each law against what the maps do to numbers.

All drawn numbers are small multiples of 1/8: what is claimed then holds exactly, and so it is compared.
"""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Array
from hypothesis import given
from hypothesis import strategies as st

from bnfold.affine import Affine, identity, join
from bnfold.double_double import DoubleDouble

SHAPE = (2, 4, 3)  # of the data
AXIS, C = 1, 4

eighths = st.integers(-64, 64).map(lambda n: n / 8)
lists = st.lists(eighths, min_size=C, max_size=C)


def affine(scale: list[float] | float, shift: list[float] | float, axis: int | None) -> Affine:
    return Affine.of(DoubleDouble.of(scale), DoubleDouble.of(shift), axis)


affines = st.one_of(
    st.builds(lambda s, t: affine(s, t, AXIS), lists, lists),
    st.builds(lambda s, t: affine(s, t, None), eighths, eighths),
)
data = st.integers(0, 100).map(lambda seed: np.random.default_rng(seed).integers(-64, 64, SHAPE) / 8)


def image(a: Affine, x: Array) -> Array:
    change = a.elementwise(x.ndim)
    y = x if change.scale is None else x * change.scale.hi
    return y if change.shift is None else y + change.shift.hi


@given(affines, affines, data)
def test_then(first: Affine, second: Affine, x: Array) -> None:
    assert first.meets(second)
    assert np.array_equal(image(first.then(second), x), image(second, image(first, x)))


@given(affines, affines, affines)
def test_composition_is_associative(a: Affine, b: Affine, c: Affine) -> None:
    assert a.then(b).then(c).same(a.then(b.then(c)))


@given(affines)
def test_the_identity_is_neutral(a: Affine) -> None:
    assert identity().is_identity
    assert a.then(identity()).same(a) and identity().then(a).same(a)


@given(affines, data)
def test_scaling_and_shifting_are_its_parts(a: Affine, x: Array) -> None:
    assert np.array_equal(image(a.scaling().then(a.shifting()), x), image(a, x))
    assert not a.scaling().has_shift and not a.shifting().has_scale


@given(lists.filter(all), lists, data)
def test_the_shift_before_the_scale(scale: list[float], shift: list[float], x: Array) -> None:
    powers = [float(np.copysign(2.0 ** (abs(s) // 2), s)) for s in scale]  # whose quotients are exact
    a = affine(powers, shift, AXIS)
    assert a.is_invertible
    assert np.array_equal(image(a.shift_before().then(a.scaling()), x), image(a, x))


@given(affines, data, st.lists(st.integers(0, C - 1), min_size=1, max_size=6))
def test_taken(a: Affine, x: Array, index: list[int]) -> None:
    assert np.array_equal(image(a.taken(index), x[:, index]), image(a, x)[:, index])


@given(affines, data, st.permutations(range(6)))
def test_placed(a: Affine, x: Array, order: list[int]) -> None:
    index = np.array(order[:C])
    wide = np.arange(2.0 * 6 * 3).reshape(2, 6, 3)
    expected = wide.copy()
    expected[:, index] = image(a, wide[:, index])
    assert np.array_equal(image(a.spread(C, AXIS).placed(index, 6), wide), expected)


@given(affines, data, st.sampled_from([[4], [1, 3], [2, 2], [1, 0, 3], [1, 1, 1, 1]]))
def test_split_and_join(a: Affine, x: Array, sizes: list[int]) -> None:
    parts = a.split(sizes)
    pieces = np.split(x, np.cumsum(sizes)[:-1], axis=AXIS)
    images = [image(p, piece) for p, piece in zip(parts, pieces, strict=True) if piece.size]
    assert np.array_equal(np.concatenate(images, AXIS), image(a, x))
    assert join(parts, sizes, AXIS).same(a)


@given(affines, data, st.integers(1, 3))
def test_repeat_and_tile(a: Affine, x: Array, n: int) -> None:
    repeated = np.repeat(x, n, axis=AXIS)
    assert np.array_equal(image(a.repeat(n), repeated), np.repeat(image(a, x), n, axis=AXIS))
    tiled = np.tile(x, (1, n, 1))
    assert np.array_equal(image(a.tile(n), tiled), np.tile(image(a, x), (1, n, 1)))


@given(affines, data)
def test_another_axis(a: Affine, x: Array) -> None:
    assert np.array_equal(image(a.at(2), x.swapaxes(1, 2)), image(a, x).swapaxes(1, 2))


def test_the_same_numbers_everywhere_are_a_scalar() -> None:
    assert affine([2, 2], [1, 1], 1).axis is None
    assert affine([2, 2], [1, 0], 1).axis == 1
    assert affine([2], [1], 3).axis is None
    assert affine([2, 2], [1, 1], 1).same(affine(2, 1, None))
    assert affine([2, 2], [1, 1], 1).channels is None
    assert affine([2, 3], [1, 1], 1).channels == 2


def test_a_scalar_meets_every_axis() -> None:
    scalar, first, second = affine(2, 1, None), affine([1, 2], [0, 0], 1), affine([1, 2], [0, 0], 2)
    assert scalar.meets(first) and first.meets(scalar) and first.meets(first)
    assert not first.meets(second)
    assert scalar.then(first).axis == first.then(scalar).axis == 1


@pytest.mark.parametrize(
    ("scale", "shift", "facts"),
    [
        ([1.0, 1.0], [0.0, 0.0], "identity positive invertible"),
        ([1.0, 2.0], [0.0, 0.0], "scale positive invertible"),
        ([1.0, 1.0], [0.0, 1.0], "shift positive invertible"),
        ([1.0, -2.0], [0.0, 1.0], "scale shift invertible"),
        ([1.0, 0.0], [0.0, 1.0], "scale shift"),
        ([1.0, np.nextafter(1.0, 2.0)], [0.0, 0.0], "scale positive invertible"),
        ([1.0, 1.0], [0.0, 5e-324], "shift positive invertible"),
    ],
)
def test_what_it_says_of_itself(scale: list[float], shift: list[float], facts: str) -> None:
    a = affine(scale, shift, 1)
    said = {
        "scale": a.has_scale,
        "shift": a.has_shift,
        "identity": a.is_identity,
        "positive": a.is_positive,
        "invertible": a.is_invertible,
    }
    assert {name for name, is_so in said.items() if is_so} == set(facts.split())


def test_the_trailing_half_counts() -> None:
    hair = DoubleDouble.of(1.0) + DoubleDouble.of(2.0**-80)
    a = Affine.of(hair, None, None)
    assert a.has_scale and not a.is_identity
    assert not a.same(identity())


def test_elementwise_lies_along_the_axis() -> None:
    change = affine([1.0, 2.0], [3.0, 4.0], 1).elementwise(4)
    assert change.scale is not None and change.shift is not None
    assert change.scale.shape == change.shift.shape == (1, 2, 1, 1)
    scalar = affine(2.0, 0.0, None).elementwise(4)
    assert scalar.scale is not None and scalar.scale.shape == () and scalar.shift is None
