"""Formulas are evaluated to what the fold computed, wherever it moved its numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import drawn, model

from bnfold.affine import Affine
from bnfold.constants import Constant
from bnfold.double_double import DoubleDouble, concatenate
from bnfold.enclosures import Enclosure, Exact
from bnfold.formulas import Formula, written_out
from bnfold.recompute import Recomputation
from bnfold.tensors import Tensors, Unavailable

D = np.float64
NUMBERS: dict[str, Any] = {
    "v": drawn("v", 6, dtype=D),
    "w": drawn("w", 4, 6, dtype=D),
    "t": drawn("t", 2, 3, 4, dtype=D),
}
V, W, T = (DoubleDouble.of(array, ("constant", "", name)) for name, array in NUMBERS.items())
INDEX = np.array([5, 0, 0, 3])

EXPRESSIONS: dict[str, Callable[[], DoubleDouble]] = {
    "a constant": lambda: W,
    "a number": lambda: DoubleDouble.of(3.5),
    "-a": lambda: -V,
    "a + b": lambda: W + V,
    "a - b": lambda: V - W,
    "a · b": lambda: W * V,
    "a / b": lambda: V / W,
    "a number spread": lambda: DoubleDouble.full((6,), 2.0) * V,
    "used twice": lambda: (V * V + V) * (V * V),
    "reshape": lambda: T.reshape(-1, 6) * V,
    "reshape to a scalar": lambda: V.first().reshape(),
    "broadcast": lambda: V.reshape(1, 6, 1).broadcast_to((2, 6, 3)),
    "broadcast more axes": lambda: V.broadcast_to((4, 6)),
    "moveaxis": lambda: T.moveaxis(2, 0),
    "moveaxis forwards": lambda: T.moveaxis(0, 1),
    "first": lambda: T.first(),
    "take": lambda: V.take(INDEX),
    "placed": lambda: V.take(INDEX[1:]).placed(np.array([4, 0, 6]), 8, 1.0),
    "placed twice": lambda: V.take(INDEX).placed(np.array([1, 1, 0, 2]), 4, 0.0),
    "repeat": lambda: V.repeat(3),
    "tile": lambda: V.tile(3),
    "concatenate": lambda: concatenate([V, V.take(INDEX), W.reshape(-1)]),
    "take of concatenated": lambda: concatenate([V, -V]).take(np.array([11, 0, 7])),
    "sum of the first axis": lambda: T.sum(0),
    "sum of an inner axis": lambda: (T * T).sum(1) * T.first(),
    "sum of a sum": lambda: T.sum(2).sum(0),
    "weighted sum": lambda: (W * V).moveaxis(1, 0).reshape(6, -1).sum(1),
    "a line": lambda: Constant(NUMBERS["t"], stored=("constant", "", "t")).line(2),
    "a line of one more fold": lambda: Constant(NUMBERS["w"], V, V, ("constant", "", "w")).line(1),
    "a constant's image": lambda: Constant(NUMBERS["w"], V, -V, ("constant", "", "w")).exact(),
    "an affine": lambda: Affine.of(V, None, 1).then(Affine.of(None, V, 1)).split([2, 4])[1].shift,
}


def recomputation(formula: Formula, tmp_path: Path) -> Recomputation:
    proto = model("(double[N] x) => (double[N] y) { y = Relu(x) }", **NUMBERS)
    return Recomputation(written_out({"it": formula}), Tensors(proto, tmp_path))


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_expression(name: str, tmp_path: Path) -> None:
    expected = EXPRESSIONS[name]()
    assert expected.formula is not None
    found = recomputation(expected.formula, tmp_path)
    result = len(found.steps) - 1
    assert found.shape(result) == expected.shape
    exact = expected.hi.reshape(-1)
    # To a few units of float64: the fold's numbers were not rounded, so both hold them to 106 bits.
    close = partial(np.testing.assert_allclose, rtol=1e-15)
    close(found.at(result, None, Enclosure.of).hi, exact)
    places = np.arange(exact.size)[:: 2 if exact.size > 2 else 1]
    close(found.at(result, places[::-1], Enclosure.of).hi, exact[places[::-1]])
    for place in places:
        (number,) = found.at(result, np.array([place]), partial(Exact.of, bits=200)).numbers
        assert number.low == number.high
        close(float(number.low), exact[place])


def test_each_part_is_written_out_once() -> None:
    shared = V * V
    program = written_out({"a": (shared + shared).formula, "b": shared.formula})  # type: ignore[dict-item]
    assert [step.operation for step in program.steps] == ["constant", "mul", "add"]
    assert program.results == {"a": 2, "b": 1}


def test_formulas_as_deep_as_a_model(tmp_path: Path) -> None:
    deep = V
    for _ in range(3000):  # Python's stack holds a thousand calls
        deep = deep + V
    assert deep.formula is not None
    found = recomputation(deep.formula, tmp_path)
    result = len(found.steps) - 1
    assert found.at(result, None, Enclosure.of).hi == pytest.approx(3001 * NUMBERS["v"], rel=1e-15)


def test_what_a_sum_adds_up(tmp_path: Path) -> None:
    found = recomputation(EXPRESSIONS["sum of a sum"]().formula, tmp_path)  # type: ignore[arg-type]
    assert found.terms(len(found.steps) - 1) == 4


@pytest.mark.parametrize(
    ("formula", "why"),
    [
        (("constant", "", "u"), "'u' is not computed or stored in the main graph"),
        (("constant", "body", "v"), "'v' is not computed or stored in graph 'body'"),
        (("deviation", "", "y"), "no BatchNormalization computes 'y'"),
        (("add", ("constant", "", "v"), ("constant", "", "t")), "add"),
        (("reshape", ("constant", "", "v"), (4,)), "reshape"),
        (("broadcast", ("constant", "", "v"), (5,)), "broadcast"),
        (("take", ("constant", "", "v"), (6,)), "take"),
        (("concat", ("constant", "", "v"), ("constant", "", "w")), "concat"),
        (("sum", ("constant", "", "v"), 1), "sum"),
        (("sqrt", ("constant", "", "v")), "sqrt"),
    ],
)
def test_what_cannot_be_recomputed(formula: Any, why: str, tmp_path: Path) -> None:
    found = recomputation(formula, tmp_path)
    with pytest.raises(Unavailable, match=why):
        found.at(len(found.steps) - 1, None, Enclosure.of)
