"""Figures as SVG: what they show, and that they are fit for a page."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import pytest
from reports import HOSTILE, check, layer

from bnfold.changes import Range, WeightRange
from bnfold.render.blocks import Hue
from bnfold.render.figures import (
    MOST_PANELS,
    MOST_POINTS,
    drift,
    growth,
    histograms,
    panels,
    ranges,
    thinned,
)
from bnfold.verification import ULP_EDGES, Metrics, OutputCheck, TensorCheck

FAILING = check("wrong", 9.0)
CHECKS = [check("a"), check("b", 2.0), FAILING, check("y", 7.0)]
ODD = [
    check("nothing at all", 0.0, error=0.0, noise=0.0),
    check("infinite", math.inf, error=math.inf, passed=False),
    check("none", math.nan, error=math.nan, noise=math.nan, passed=False),
    check("no noise", math.inf, noise=0.0, passed=False),
]
COUNTS = tuple([40, 50, 9, *[0] * (len(ULP_EDGES) - 3), 1])
OUTPUT = OutputCheck("y", check("y"), Metrics(0, 0, 0, 0, 0, 0, 1, None, COUNTS))
RANGES = [
    WeightRange("conv1", "Conv", 1, Range(-1, 2), Range(-3, 5)),
    WeightRange("conv1", "Conv", 2, None, Range(0.25, 0.25)),
    WeightRange("conv2", "Conv", 1, Range(-1, 1), Range(-1e6, 1e6)),
    WeightRange("conv2", "Conv", 2, Range(-math.inf, math.nan), None),
]
FIGURES: dict[str, Callable[[str], str]] = {
    "growth": lambda ident: growth(CHECKS, 4.0, ident, "label"),
    "odd growth": lambda ident: growth(ODD, 4.0, ident, "label"),
    "histograms": lambda ident: histograms([OUTPUT, replace(OUTPUT, name="z")], ident, "label"),
    "ranges": lambda ident: ranges(RANGES, ident, "label"),
    "drift": lambda ident: drift([layer("a"), layer("b", mean_drift=0, mean_error=math.inf)], ident, "label"),
    "drift of nothing": lambda ident: drift(
        [layer("a", mean_drift=0, var_drift=0, output_drift=0)], ident, ""
    ),
}
ALLOWED = {"svg", "g", "path", "text", "tspan", "defs", "use", "clipPath", "rect"}


def texts(svg: str) -> list[str]:
    return [e.text or "" for e in ElementTree.fromstring(svg).iter() if e.tag == "text"]


@pytest.mark.parametrize("name", FIGURES)
class TestFitForAPage:
    def test_nothing_but_shapes_and_text(self, name: str) -> None:
        root = ElementTree.fromstring(FIGURES[name]("f"))
        assert {e.tag for e in root.iter()} <= ALLOWED
        assert not {"style", "class", "onload"} & {a for e in root.iter() for a in e.attrib}
        assert root.attrib["role"] == "img"

    def test_identifiers_are_its_own_and_are_found(self, name: str) -> None:
        first, second = (ElementTree.fromstring(FIGURES[name](ident)) for ident in ("first", "second"))
        found = {e.attrib["id"] for e in first.iter() if "id" in e.attrib}
        assert found and all(each.startswith("first-") for each in found)
        assert not found & {e.attrib.get("id") for e in second.iter()}
        referred = re.findall(r"(?:url\(#|href=\"#)([\w-]+)", FIGURES[name]("first"))
        assert set(referred) == found

    def test_text_has_the_colour_of_the_page(self, name: str) -> None:
        root = ElementTree.fromstring(FIGURES[name]("f"))
        assert {e.attrib["fill"] for e in root.iter() if e.tag == "text"} == {"currentColor"}

    def test_nothing_is_black(self, name: str) -> None:
        """Of what has an area: SVG fills it black unless it is told otherwise."""
        svg = FIGURES[name]("f")
        assert "#000" not in svg and "#ffffff" not in svg
        root = ElementTree.fromstring(svg)
        for parent in root.iter():
            for e in parent:
                if e.tag == "path" and parent.tag not in ("clipPath", "defs"):
                    assert "fill" in e.attrib or "fill" in parent.attrib, e.attrib

    def test_the_same_bytes_again(self, name: str) -> None:
        assert FIGURES[name]("f") == FIGURES[name]("f")


class TestSettings:
    def test_those_of_the_user_do_not_matter_and_are_kept(self) -> None:
        plain = growth(CHECKS, 4.0, "f", "label")
        with matplotlib.rc_context({"font.size": 31, "xtick.major.size": 20, "axes.edgecolor": "red"}):
            assert growth(CHECKS, 4.0, "f", "label") == plain
            assert matplotlib.rcParams["font.size"] == 31


class TestGrowth:
    def test_culprit_and_worst_are_named(self) -> None:
        found = texts(growth([check("a"), check("first", 5.0), check("worst", 9.0)], 4.0, "f", ""))
        assert "first beyond: first" in found and "worst: worst, 9 x its noise" in found
        assert "error beyond the band" in found

    def test_a_pass_names_the_worst(self) -> None:
        found = texts(growth([check("a"), check("b", 2.0)], 4.0, "f", ""))
        assert "worst: b, 2 x its noise" in found and "error beyond the band" not in found

    def test_what_is_accepted_above_the_band_is_told_apart(self) -> None:
        found = texts(growth([check("a"), check("b", 7.0, passed=True)], 4.0, "f", ""))
        assert "accepted for another reason" in found

    def test_what_cannot_be_compared_is_at_the_top_with_a_mark_of_its_own(self) -> None:
        odd = check("shape", 0.0, error=0.0, noise=0.0, problem="another shape", passed=False)
        svg = growth([check("a"), odd], 4.0, "f", "")
        found = texts(svg)
        assert "not comparable" in found and "error beyond the band" not in found
        assert "first and worst beyond: shape" in found
        root = ElementTree.fromstring(svg)
        heights = sorted(float(e.attrib["y"]) for e in root.iter("use") if Hue.RED in str(e.attrib))
        others = [float(e.attrib["y"]) for e in root.iter("use") if Hue.BLUE in str(e.attrib)]
        assert heights and heights[0] < min(others)

    def test_thousands_of_tensors_keep_their_worst(self) -> None:
        checks = [check(f"t{i}", 0.1) for i in range(5000)]
        checks[1234] = FAILING
        kept: list[TensorCheck] = thinned(checks)
        assert len(kept) <= MOST_POINTS and FAILING in kept
        svg = growth(checks, 4.0, "f", "")
        assert len(svg) < 100_000
        assert "first and worst beyond: wrong" in texts(svg)

    @pytest.mark.parametrize("name", [*HOSTILE, "$x_1$", "名前", "n" * 3000])
    def test_names_stay_names(self, name: str) -> None:
        svg = growth([check(name, 2.0)], 4.0, "f", name)
        assert {e.tag for e in ElementTree.fromstring(svg).iter()} <= ALLOWED
        assert any(text.startswith("worst: ") for text in texts(svg))


class TestHistograms:
    def test_shares_and_edges(self) -> None:
        found = texts(histograms([OUTPUT], "f", ""))
        assert {"output y", "40%", "50%", "9%", "1%", "0.5", "more"} <= set(found)

    def test_few_of_many_outputs(self) -> None:
        found = texts(histograms([replace(OUTPUT, name=f"out{i}") for i in range(50)], "f", ""))
        assert sum(text.startswith("out") for text in found) == MOST_PANELS


class TestRanges:
    def test_a_constant_that_dwarfs_the_others_leaves_them_visible(self) -> None:
        assert "1e+06" in texts(ranges(RANGES, "f", ""))  # a logarithmic scale
        assert "1e+06" not in texts(ranges(RANGES[:2], "f", ""))

    def test_constants_stand_with_their_like(self) -> None:
        """By their extents, for an Add's bias is its input 1, and a Gather's table its input 0."""
        table = WeightRange("embedding", "Gather", 0, Range(-1, 1, 2), Range(-1, 1, 2))
        bias = WeightRange("add", "Add", 1, Range(-1, 1, 1), None)
        (wide, first), (narrow, second) = panels([bias, table])
        assert (wide, first) == ("Kernels, matrices and tables", [(2, table)])
        assert narrow.startswith("Vectors") and second == [(1, bias)]

    def test_thousands_share_bars(self) -> None:
        assert len(ranges(RANGES * 1500, "f", "")) < 400_000
