"""The HTML report: what a reader finds in it, what it is made of, and how a browser takes it."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
from browser import CHROMIUM, Browser
from graphs import model
from reports import (
    HOSTILE,
    check,
    decision,
    facts,
    inspection,
    kept,
    layer,
    recalibration,
    report,
    verification,
)

import bnfold
from bnfold import (
    AlgebraReport,
    Certificate,
    Counts,
    Difference,
    ExportReport,
    FoldReport,
    Method,
    ModuleCheck,
    Outcome,
    OutputCheck,
    Reason,
    RuntimeCheck,
    RuntimeReport,
    Verdict,
)
from bnfold.changes import Changes, DrawnNode, FoldedSite, Picture, Range, Role, Size, WeightRange
from bnfold.render.digest import digest
from bnfold.render.html import html
from bnfold.render.surroundings import Surroundings
from bnfold.report import FailureReport, Report
from bnfold.verification import ULP_EDGES

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "fixtures" / "digits.onnx"
RESNET = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_resnet50.onnx"
HERE = Surroundings("bnfold optimize model.onnx", {"bnfold": "1.2.3", "numpy": "9.9"}, "Linux x86_64")
VOID = {"meta", "br", "wbr"}

COUNTS = tuple([3, 5, *[0] * (len(ULP_EDGES) - 1)])


def measured(name: str = "wrong", ratio: float = 9.0) -> bnfold.VerifyReport:
    """A comparison with everything in it."""
    checks = check("a"), check(name, ratio, part="index 3 of axis 1")
    plain = verification(*checks)
    (output,) = plain.algebra.outputs
    assert output.metrics is not None
    outputs = (replace(output, metrics=replace(output.metrics, ulp_histogram=COUNTS)),)
    verdict = Verdict.PASS if ratio <= 4 else Verdict.FAIL
    runtime = RuntimeCheck("y", "default", "N=1", 1e-7, 2e-7, 2.0, True)
    return replace(
        plain,
        verdict=verdict,
        algebra=replace(plain.algebra, verdict=verdict, outputs=outputs),
        runtime=RuntimeReport(Verdict.PASS, (runtime,), (f"a finding about {name}",)),
        certificate=Certificate(Verdict.PASS, 12, 3456, 12, 0.5),
        differences=(Difference("opset", "17", "18"),),
        message="" if verdict is Verdict.PASS else f"'{name}' is beyond",
    )


def drawn(*names: str) -> Changes:
    """Conv → BatchNormalization for each decision."""

    def site(i: int, name: str) -> FoldedSite:
        conv = DrawnNode(0, "Conv", f"conv of {name}", Role.ABSORBS)
        norm = DrawnNode(1, "BatchNormalization", name, Role.GOES)
        return FoldedSite(i, Picture((conv, norm), ((0, 1),)), Picture((conv,), ()))

    sites = tuple(site(i, name) for i, name in enumerate(names))
    ranges = tuple(WeightRange(name, "Conv", 1, Range(-1, 1), Range(-2, 3)) for name in names)
    sizes = Size(1000, 4000, {"Conv": 9, "BatchNormalization": 5}), Size(900, 3600, {"Conv": 9})
    return Changes(*sizes, sites, ranges)


def whole(name: str = "bn1") -> bnfold.OptimizeReport:
    """An optimization with everything in it."""
    decisions = (
        decision(name, left=("Add",)),
        kept(f"{name} stays", Reason.PADDING),
        kept(f"{name} scale", Reason.NOT_LINEAR, "Mul"),
    )
    plain = report(*decisions, verification=measured(name, 2.0))
    return replace(plain, changes=drawn(name), recalibration=recalibration(layer(name)))


def exported() -> ExportReport:
    fold = FoldReport((decision("bn1"),), Counts(1, 0, 9), Counts(0, 0, 8), modified=True)
    against = ModuleCheck(Verdict.PASS, "double", 4.0, (check("y", 1.0),), 8, ("N=1",))
    interface = ("x: float[N, 3]",), ("y: float[N, 4]",)
    return ExportReport("Net", "net.onnx", ("a note",), *interface, 20, 1, fold, measured("t", 1.0), against)


REPORTS: dict[str, Report] = {
    "optimize": whole(),
    "unverified": replace(whole(), verification=None),
    "verify": measured(),
    "undecided": verification(verdict=Verdict.UNDECIDED, message="no output could be compared"),
    "inspect": inspection(facts("bn1", dead=2), facts("bn2", untouched=True)),
    "recalibrate": recalibration(layer("bn1"), layer("bn2", mean_error=float("inf"))),
    "one pass": recalibration(layer("bn1"), method=Method.ONEPASS),
    "export": exported(),
    "failure": FailureReport("model.onnx", "model.onnx: no such file", 2),
}


class Tree(HTMLParser):
    """Elements in order, each with its attributes; fails on what is not closed as it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def page(*reports: Report) -> str:
    return html([digest(each) for each in reports], HERE)


@cache
def page_of(kind: str) -> str:
    return page(REPORTS[kind])


@pytest.mark.parametrize("kind", REPORTS)
class TestEveryKind:
    def test_it_is_well_formed(self, kind: str) -> None:
        tree = Tree(page_of(kind))
        tags = [tag for tag, _ in tree.elements]
        assert tags.count("h1") == tags.count("main") == tags.count("title") == 1
        identifiers = [a["id"] for _, a in tree.elements if "id" in a]
        assert len(set(identifiers)) == len(identifiers)
        links = {a["href"] for tag, a in tree.elements if tag == "a"}
        assert {link[1:] for link in links if link} <= set(identifiers)

    def test_nothing_runs_and_nothing_is_fetched(self, kind: str) -> None:
        text = page_of(kind)
        tree = Tree(text)
        assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tree.elements}
        names = {name for _, a in tree.elements for name in a}
        assert not {"style", "src", "srcset"} & names and not any(name.startswith("on") for name in names)
        assert "http://" not in text and "https://" not in text and "url(" not in text.replace("url(#", "")

    def test_the_style_is_the_one_that_the_policy_names(self, kind: str) -> None:
        text = page_of(kind)
        (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
        hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert f"default-src 'none'; style-src 'sha256-{hashed}'" in text

    def test_the_first_questions_are_answered(self, kind: str) -> None:
        text = Tree(page_of(kind)).text
        assert "Is it safe?" in text and "What next?" in text
        told = digest(REPORTS[kind])
        assert told.headline in text and told.message in text
        assert all(sentence.replace("`", "") in text for sentence in told.next)

    def test_what_scrolls_is_reached_by_the_keyboard_and_has_a_name(self, kind: str) -> None:
        found = [a for _, a in Tree(page_of(kind)).elements if (a.get("class") or "").startswith("scroll")]
        assert found and all(a["tabindex"] == "0" and a["aria-label"] for a in found)

    def test_headings_skip_no_level(self, kind: str) -> None:
        levels = [int(tag[1]) for tag, _ in Tree(page_of(kind)).elements if re.fullmatch(r"h\d", tag)]
        assert levels[0] == 1
        assert all(b <= a + 1 for a, b in pairwise(levels))


class TestWhatItSays:
    def test_an_optimization(self) -> None:
        text = Tree(page_of("optimize")).text
        for words in (
            *("Pass", "The fold, yes: the result computes what", "parameters (numbers stored)"),
            *("4,000", "3,600", "1 x Conv → BatchNormalization: pulled backward", "conv of bn1"),
            *(
                "What to do: ",
                Reason.PADDING.sentence,
                Reason.PADDING.remedy,
                "BNF303",
                "what is at bn1 stays",
            ),
            *("Other multiplications and additions by a constant that stay: 1", "all correctly rounded"),
            *("onnxruntime", "a finding about bn1", "opset", "Recalibrated statistics", "numpy", "9.9"),
            "bnfold optimize model.onnx",
        ):
            assert words in text

    def test_a_failure_says_no_in_words(self) -> None:
        text = Tree(page_of("verify")).text
        assert "Fail" in text and "No: do not use other.onnx in the place of model.onnx." in text
        assert "1 of 3 tensors that were compared; the first in the order of computation is 'wrong'" in text

    @pytest.mark.parametrize("kind", ["unverified", "undecided"])
    def test_what_is_not_known_does_not_pass_in_green(self, kind: str) -> None:
        tree = Tree(page_of(kind))
        assert "Not known" in tree.text
        assert not any("pass" in (a.get("class") or "").split() for _, a in tree.elements)

    def test_a_recalibration_is_another_function(self) -> None:
        text = Tree(page_of("optimize")).text
        assert (
            "yes: the result computes what the recalibrated model" in text
            and "Measure the accuracy of" in text
        )
        assert "it computes the same function" not in text and "the original's own" not in text
        unchecked = Tree(page(replace(whole(), verification=None))).text
        assert (
            "bnfold verify" not in unchecked
            and "only that compares it with the recalibrated model" in unchecked
        )

    def test_a_recalibration_that_fails_gives_its_reason(self) -> None:
        error = bnfold.NotCalibrated(
            "m.onnx: 3 samples are fewer than the 9 asked for", REPORTS["recalibrate"]
        )
        told = digest(REPORTS["recalibrate"], error=error)
        text = Tree(html([told], HERE)).text
        assert "No: m.onnx: 3 samples are fewer than the 9 asked for." in text
        assert "not recalibrated; nothing was written" in text and "What would have changed?" in text
        assert "same in every pass" not in text

    def test_one_pass_is_not_exact(self) -> None:
        tree = Tree(page_of("one pass"))
        assert "Not exact" in tree.text
        assert not any("pass" in (a.get("class") or "").split() for _, a in tree.elements)

    def test_what_was_not_written_has_not_changed(self) -> None:
        unknown = verification(verdict=Verdict.UNDECIDED, message="no output could be compared")
        for undone in (replace(whole(), target=None), replace(whole(), verification=unknown)):
            text = Tree(page(undone)).text
            assert "What would have changed?" in text and "What changed?" not in text

    def test_an_output_that_is_called_otherwise_decides(self) -> None:
        lost = OutputCheck("early", None, missing="the candidate has no output of this name", decided=False)
        found = verification(
            check("a"), verdict=Verdict.FAIL, differences=(Difference("output", "early", "other"),)
        )
        found = replace(found, algebra=replace(found.algebra, outputs=(*found.algebra.outputs, lost)))
        text = Tree(page(found)).text
        assert "'early' was not compared: the candidate has no output of this name" in text
        assert "decides nothing." not in text and "Give the candidate the inputs and outputs" in text

    def test_what_cannot_be_compared_has_no_numbers(self) -> None:
        odd = check("odd", 0.0, error=0.0, noise=0.0, problem="another shape", passed=False)
        gone = RuntimeCheck("y", "default", "N=1", 1e-7, 0.0, float("inf"), False)
        found = verification(check("a", 0.0), odd, verdict=Verdict.FAIL, message="no")
        runtime = RuntimeReport(Verdict.FAIL, (gone,), message="no")
        tree = Tree(page(replace(found, runtime=runtime)))
        assert "1 tensor without any error lies on the lower edge" in tree.text
        assert "1 tensor without an error that could be measured" in tree.text
        assert "another shapenot comparable" in tree.text and "no numberbeyond" in tree.text
        (figure,) = (
            a for tag, a in tree.elements if tag == "svg" and "Error and noise" in (a["aria-label"] or "")
        )
        assert "the worst is 'odd', not comparable: another shape" in (figure["aria-label"] or "")

    def test_the_legend_counts_what_is_drawn(self) -> None:
        checks = [check(f"t{i}", 0.0 if i % 2 else 0.5) for i in range(1000)]
        text = Tree(page(verification(*checks))).text
        assert "stands for up to 4 neighbouring tensors" in text and "without any error" not in text

    def test_every_question_has_an_answer(self) -> None:
        empty = verification(
            verdict=Verdict.UNDECIDED, message="none", algebra=AlgebraReport(Verdict.UNDECIDED, ())
        )
        assert "Not known: no tensor was compared." in Tree(page(empty)).text
        assert "</dt></div>" not in page(empty)

    def test_a_certificate_that_is_not_there_is_told(self) -> None:
        lost = replace(
            measured("a", 1.0), certificate=Certificate(Verdict.UNDECIDED, message="not available")
        )
        assert "recomputed beside that: not available." in Tree(page(lost)).text

    def test_of_a_merged_run_only_what_is_left_stays(self) -> None:
        merged = decision(
            "bn",
            Outcome.MERGED,
            op_types=("BatchNormalization", "BatchNormalization", "Mul"),
            left=("BatchNormalization",),
            reason=Reason.NOT_LINEAR,
        )
        text = Tree(page(report(merged))).text
        assert f"1 BatchNormalization (BNF301): {Reason.NOT_LINEAR.sentence}" in text
        assert f"1 BatchNormalization, BNF301: {Reason.NOT_LINEAR.sentence}" in text

    def test_what_a_merge_leaves_has_its_reason(self) -> None:
        merged = decision("bn", Outcome.MERGED, left=("BatchNormalization",), reason=Reason.NOT_LINEAR)
        assert Reason.NOT_LINEAR.remedy in Tree(page(report(merged))).text

    def test_several_models_have_a_table_of_contents(self) -> None:
        reports = (inspection(facts("bn1")), whole(), REPORTS["failure"])
        tree = Tree(page(*reports))
        assert "3 reports" in tree.text
        levels = [int(tag[1]) for tag, _ in tree.elements if re.fullmatch(r"h\d", tag)]
        assert levels[0] == 1 and all(b <= a + 1 for a, b in pairwise(levels))
        links = [a["href"] for tag, a in tree.elements if tag == "a"]
        assert {"#r1-top", "#r2-top", "#r3-top"} <= set(links)
        identifiers = [a["id"] for _, a in tree.elements if "id" in a]
        assert len(set(identifiers)) == len(identifiers)

    def test_the_same_report_gives_the_same_bytes(self) -> None:
        assert page(whole()) == page_of("optimize")

    def test_every_drawing_has_words(self) -> None:
        drawings = [a for tag, a in Tree(page_of("optimize")).elements if tag == "svg"]
        assert len(drawings) == 6  # growth, before, after, ranges, histogram, drift
        assert all(a["role"] == "img" and a["aria-label"] for a in drawings)

    def test_what_draws_it_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(bnfold.InputError, match=r"matplotlib.*pip install 'bnfold\[report\]'"):
            page(whole())


class TestNames:
    @pytest.mark.parametrize("name", HOSTILE)
    def test_they_stay_names(self, name: str) -> None:
        plain, text = Tree(page_of("optimize")), page(whole(name))
        tree = Tree(text)
        assert {tag for tag, _ in tree.elements} == {tag for tag, _ in plain.elements}
        assert "\0" not in text and "\x1b" not in text and "\ud800" not in text
        text.encode()

    def test_very_long_ones(self) -> None:
        assert len(page(whole("/a_long_name" * 2000))) < 2 * len(page_of("optimize"))


def chain(layers: int, name: str) -> onnx.ModelProto:
    nodes, value = [], "x"
    constants: dict[str, Any] = {"s": [1.0, 2.0], "t": [0.0, 1.0], "m": [0.0, 3.0], "v": [1.0, 4.0]}
    for i in range(layers):
        nodes.append(
            f"c{i} = Conv({value}, w{i}) b{i} = BatchNormalization(c{i}, s, t, m, v) r{i} = Relu(b{i})"
        )
        value, constants[f"w{i}"] = f"r{i}", (2, 2, 1, 1)
    proto = model(f"(float[N,2,4,4] x) => (float[] {value}) {{ {' '.join(nodes)} }}", **constants)
    for i, node in enumerate(proto.graph.node):
        node.name = f"{name}{i}"
    return proto


def shapes(number: int, readers: int = 1) -> bnfold.OptimizeReport:
    """Each fold in another shape, and read by so many."""

    def site(i: int) -> FoldedSite:
        ends = tuple(DrawnNode(k, "Conv", f"conv{k}", Role.ABSORBS) for k in range(1, readers + 1))
        norm = DrawnNode(0, f"Kind{i}", f"bn{i}", Role.GOES)
        return FoldedSite(i, Picture((norm, *ends), tuple((0, end.key) for end in ends)), Picture(ends, ()))

    into = tuple(f"conv{k}" for k in range(readers))
    decisions = (decision(f"bn{i}", into=into, into_types=("Conv",) * readers) for i in range(number))
    sizes = Size(1, 4), Size(1, 4)
    return replace(report(*decisions), changes=Changes(*sizes, tuple(map(site, range(number))), ()))


class TestSize:
    def test_a_value_of_thousands_of_readers(self) -> None:
        text = page(shapes(3, 2000))
        assert len(text.encode()) < 200_000 and "1,993 Conv" in text
        labels = [a["aria-label"] or "" for tag, a in Tree(text).elements if tag == "svg"]
        assert max(map(len, labels)) <= 4000

    def test_more_shapes_than_are_drawn(self) -> None:
        text = page(shapes(1000, 20))
        assert len(text.encode()) < 3_000_000
        (shown,) = re.findall(
            r"There are 1,000 folds of 1,000 shapes: the first of (\d+) shapes is drawn.", text
        )
        assert text.count('<figure class="pair">') == int(shown) > 40

    def test_ranges_are_in_no_other_report(self) -> None:
        row = drawn("conv").ranges
        many = replace(drawn("conv"), ranges=row * 3001)
        text = Tree(page(replace(whole(), changes=many))).text
        assert "1 more row is not shown; other reports have none of these." in text

    def test_a_resnet_50(self) -> None:
        found = bnfold.inspect(RESNET, changes=True)
        assert len(found.batchnorms) == 53
        tensors = (check(f"tensor {i}", 0.1 * i % 3) for i in range(175))
        layers = (layer(f"layer {i}") for i in range(53))
        optimized = replace(report(), fold=found.fold, changes=found.changes)
        text = page(
            replace(optimized, verification=verification(*tensors), recalibration=recalibration(*layers))
        )
        assert text.count("<svg") > 2 * 53  # each fold is drawn
        assert len(text.encode()) < 1_000_000

    def test_thousands_of_batchnorms(self, tmp_path: Path) -> None:
        onnx.save(chain(3500, "<b>"), tmp_path / "model.onnx")
        found = bnfold.inspect(tmp_path / "model.onnx", changes=True)
        start = time.monotonic()
        text = page(found)
        assert time.monotonic() - start < 10
        assert len(text.encode()) < 3_000_000
        words = Tree(text).text
        assert "of each shape only the first is drawn" in words
        assert "more rows are not shown" in words and "3,500 before, 0 after" in words
        assert text.count("<svg") < 10


# --- In a browser ---------------------------------------------------------------------------------------

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
COMPLAINTS = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Audits.issueAdded")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    optimized = bnfold.optimize(DIGITS, dry_run=True, changes=True)
    looked = bnfold.inspect(RESNET, changes=True)
    found = {}
    texts = {name: page_of(name) for name in REPORTS}
    for name, text in (texts | {"digits": page(optimized), "resnet": page(looked)}).items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(text, encoding="utf-8")
    found["several"] = folder / "several.html"
    found["several"].write_text(page(*REPORTS.values()), encoding="utf-8")
    found["hostile"] = folder / "hostile.html"
    found["hostile"].write_text(page(whole("".join(HOSTILE))), encoding="utf-8")
    return found


def unfold(browser: Browser) -> None:
    browser.value("for (const d of document.querySelectorAll('details')) d.open = true")


@needs_browser
class TestInABrowser:
    @pytest.mark.parametrize("name", [*REPORTS, "digits", "resnet", "several", "hostile"])
    def test_it_complains_of_nothing_and_asks_for_nothing(
        self, browser: Browser, pages: dict[str, Path], name: str
    ) -> None:
        browser.open(pages[name])
        unfold(browser)
        browser.screenshot()
        assert [e for e in browser.events if e.get("method") in COMPLAINTS] == []
        requests = [e for e in browser.events if e.get("method") == "Network.requestWillBeSent"]
        assert [e["params"]["request"]["url"] for e in requests] == [pages[name].as_uri()]

    def test_a_complaint_would_be_heard(self, browser: Browser, pages: dict[str, Path]) -> None:
        text = pages["verify"].read_text(encoding="utf-8")
        other = pages["verify"].with_name("other.html")
        other.write_text(text.replace("<h1", "<h1 style='color: red'"), encoding="utf-8")
        browser.open(other)
        assert [e for e in browser.events if e.get("method") in COMPLAINTS]

    @pytest.mark.parametrize("name", ["digits", "resnet", "several", "hostile", "recalibrate"])
    @pytest.mark.parametrize("width", [1280, 360])
    def test_it_fits_the_window(
        self, browser: Browser, pages: dict[str, Path], name: str, width: int
    ) -> None:
        browser.open(pages[name], width)
        unfold(browser)
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        sizes = browser.value(
            "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect())"
            ".map(r => Math.min(r.width, r.height))"
        )
        assert sizes and min(sizes) > 40

    @pytest.mark.parametrize("name", ["digits", "verify", "recalibrate", "inspect"])
    def test_light_and_dark(self, browser: Browser, pages: dict[str, Path], name: str) -> None:
        shots, contrasts = {}, {}
        for scheme in ("light", "dark"):
            browser.dress(scheme)
            browser.open(pages[name])
            unfold(browser)
            shots[scheme] = browser.screenshot()
            contrasts[scheme] = browser.value(LEAST_CONTRAST)
        browser.dress("light")
        assert shots["light"] != shots["dark"]
        assert min(contrasts.values()) >= 4.5, contrasts

    def test_it_prints(self, browser: Browser, pages: dict[str, Path]) -> None:
        browser.open(pages["digits"])
        assert browser.pdf().startswith(b"%PDF")
        browser.call("Emulation.setEmulatedMedia", media="print")
        seen = browser.value("[...document.querySelectorAll('details > *')].map(e => e.checkVisibility())")
        browser.call("Emulation.setEmulatedMedia", media="")
        assert seen and all(seen)  # what is folded is printed

    def test_the_keyboard_reaches_what_opens(self, browser: Browser, pages: dict[str, Path]) -> None:
        browser.open(pages["digits"])
        reached = []
        for _ in range(40):
            browser.press("Tab")
            reached.append(
                browser.value("document.activeElement.className || document.activeElement.localName")
            )
        assert reached[0] == "skip" and {"a", "scroll", "scroll plot", "summary"} <= set(reached)

    def test_a_screen_reader_finds_headings_and_pictures(
        self, browser: Browser, pages: dict[str, Path]
    ) -> None:
        browser.open(pages["digits"])
        unfold(browser)
        nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
        told = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if "role" in n]
        assert ("heading", "What folds") in told and ("main", "") in told
        pictures = [name for role, name in told if role == "image"]
        assert any(name.startswith("Error and noise of ") for name in pictures)
        assert any(name.startswith("Before, ") and "(absorbs it)" in name for name in pictures)
        assert all(pictures)

    def test_it_can_be_read_where_its_style_is_forbidden(
        self, browser: Browser, pages: dict[str, Path]
    ) -> None:
        """As some hosts of build results do: figures must not become black shapes."""
        text = pages["digits"].read_text(encoding="utf-8")
        bare = pages["digits"].with_name("bare.html")
        bare.write_text(re.sub(r"style-src '[^']*'", "style-src 'none'", text), encoding="utf-8")
        browser.open(bare)
        unfold(browser)
        fills = browser.value(
            "[...document.querySelectorAll('svg rect, svg path')]"
            ".filter(e => !['clipPath', 'defs'].includes(e.parentElement.localName))"
            ".map(e => getComputedStyle(e).fill)"
        )
        assert fills and "rgb(0, 0, 0)" not in fills


# The least contrast of a text with what is behind it, by the formula of WCAG.
LEAST_CONTRAST = """
(() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b;
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(e).backgroundColor);
      if (a > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const texts = 'h1, h2, p, dt, dd, a, th, td, caption, figcaption, summary, code, text, .badge';
  return Math.min(...[...document.querySelectorAll(texts)].map((e) => {
    const style = getComputedStyle(e);
    const ink = parse(e.localName === 'text' ? style.fill : style.color).slice(0, 3);
    const shades = [ink, behind(e)].map((c) => light(c.map((v) => linear(v / 255))) + 0.05);
    return Math.max(...shades) / Math.min(...shades);
  }));
})()
"""
