"""Reports as text: everything a user has to know, on one screen, at any width."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from reports import check, decision, facts, inspection, kept, layer, recalibration, report, verification

import bnfold
from bnfold import (
    AlgebraReport,
    Certificate,
    Counts,
    Difference,
    FoldReport,
    Method,
    Outcome,
    OutputCheck,
    Reason,
    RecalibrateReport,
    RuntimeCheck,
    RuntimeReport,
    Verdict,
)
from bnfold.render import as_json
from bnfold.render.comparison import compared
from bnfold.render.page import Page, printable, table
from bnfold.render.reasons import markdown
from bnfold.render.recalibration import recalibrated
from bnfold.render.text import explained, inspected, optimized, reasons

ROOT = Path(__file__).parent.parent
RESNET = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_resnet50.onnx"

SCREEN = 24


def flat(text: str) -> str:
    return " ".join(text.split())


class TestOptimized:
    def test_everything_at_once(self) -> None:
        text = optimized(
            report(
                decision("bn1"),
                decision("bn2", Outcome.PUSHED, left=("Add",)),
                kept("bn3", Reason.PADDING),
                kept("scale", Reason.NOT_LINEAR, "Mul"),
            ),
            Page(),
        )
        assert text == EVERYTHING.strip("\n")

    def test_examples_are_few(self) -> None:
        many = [kept(f"bn{i}", Reason.SIGN) for i in range(53)]
        text = optimized(report(*many), Page())
        assert len(text.splitlines()) <= SCREEN
        assert "53 BatchNormalization" in text and "and 51 more" in text

    def test_the_most_frequent_reason_comes_first(self) -> None:
        text = optimized(
            report(kept("a", Reason.SIGN), kept("b", Reason.SHIFT), kept("c", Reason.SHIFT)), Page()
        )
        assert text.index("BNF305") < text.index("BNF304")

    def test_verbose(self) -> None:
        inner = decision("bn", graph="if.then_branch", nodes=("bn", "mul"), detail="rounded")
        text = flat(optimized(report(inner, kept("m", Reason.SHIFT, "Mul")), Page(verbose=True)))
        assert "pulled if.then_branch/bn to mul (BatchNormalization) into conv: rounded" in text
        assert "kept m (Mul) BNF305: what is at m" in text
        assert f"1 Mul {Reason.SHIFT.sentence}" in text

    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"verification": None}, "Not verified, as asked. Written to model.folded.onnx."),
            ({"target": None}, "Nothing was written: this was a dry run."),
            ({"target": "-", "source": "-"}, "Written to standard output."),
        ],
    )
    def test_the_end(self, changes: dict[str, object], expected: str) -> None:
        assert flat(optimized(report(decision("bn"), **changes), Page())).endswith(expected)

    def test_the_same_bits(self) -> None:
        same = verification(algebra=AlgebraReport(Verdict.PASS, (), (check("a", 0.0, error=0.0),), 16))
        text = flat(optimized(report(decision("bn"), verification=same), Page()))
        assert "Verified: 1 tensor of both models is the same in float64, to the last bit." in text

    def test_all_that_was_verified(self) -> None:
        whole = verification(
            certificate=Certificate(Verdict.PASS, 106, 25_000_000, 106),
            runtime=RuntimeReport(
                Verdict.PASS, (RuntimeCheck("y", "default", "N=1", 1e-7, 2e-7, 1.4, True),)
            ),
        )
        text = flat(optimized(report(decision("bn"), verification=whole), Page()))
        assert "106 folded constants, all correctly rounded." in text
        assert "onnxruntime computes both alike (1 comparison)." in text

    def test_nothing_folded(self) -> None:
        counts = Counts(1, 0, 9)
        fold = FoldReport((kept("bn", Reason.SHIFT),), counts, counts, modified=False)
        text = flat(optimized(report(fold=fold, verification=None), Page()))
        assert text.startswith("model.onnx: nothing could be folded; it has 1 BatchNormalization")
        assert text.endswith("nothing to compare. Written to model.folded.onnx: a copy of the original.")

    def test_nothing_there(self) -> None:
        counts = Counts(0, 0, 9)
        text = optimized(
            report(fold=FoldReport((), counts, counts, modified=False), verification=None), Page()
        )
        assert text.startswith("model.onnx: there is nothing to fold\n")

    def test_resnet_50_fits_on_a_screen(self) -> None:
        done = bnfold.optimize(RESNET, dry_run=True, verify="none")
        assert len(optimized(done, Page()).splitlines()) <= SCREEN
        assert len(inspected(bnfold.inspect(RESNET), Page()).splitlines()) <= SCREEN
        assert len(inspected(bnfold.inspect(RESNET), Page(verbose=True)).splitlines()) > 2 * 53


EVERYTHING = """
model.onnx: 2 of 3 BatchNormalizations folded

  nodes                        before  after
  BatchNormalization                3      1
  Mul, Add, ... by a constant       4      3
  all                              90     80

Folded: 1 pulled backward into 1 Conv, 1 pushed forward into 1 Conv; 1 Add stays
behind.

Stays, and why:
  BNF303  1 BatchNormalization
          Zero padding reaches the input, so a shift before the operator is not
          a bias after it.
          Train or export with the normalization after the convolution, or
          without padding.
          - at bn3: what is at bn3

Other multiplications and additions that stay: 1 for BNF301 (-v tells more).

Verified: 3 tensors of both models differ in float64 by 2 times the original's
own rounding noise at most (4 is accepted).
Written to model.folded.onnx.
"""


class TestInspected:
    def test_the_worst_comes_first(self) -> None:
        text = inspected(
            inspection(
                facts("good"),
                facts("dead", dead=3),
                facts("untrained", untouched=True),
                facts("stays", decision=kept("stays", Reason.SHIFT)),
                facts("broken", non_finite=2),
            ),
            Page(),
        )
        assert text.startswith(WORST_FIRST.strip("\n"))

    def test_many_are_grouped(self) -> None:
        found = [facts(f"bn{i}", channels=8 * (i + 1)) for i in range(40)]
        text = inspected(inspection(*found, facts("odd", dead=1), facts("other", dead=2)), Page())
        rows = [line.split() for line in text.splitlines() if line.startswith("  ")]
        assert rows[1] == ["odd", "2", "8", "some", "dead", "folds", "backward"]
        assert rows[2] == ["bn0", "40", "8-320", "fine", "folds", "backward"]
        full = inspected(inspection(*found), Page(verbose=True))
        assert all(f"bn{i} " in full for i in range(40))

    def test_what_is_not_known(self) -> None:
        unknown = facts("bn", channels=None, parameters=None, trained=None)
        assert ["bn", "?", "?", "?", "fine", "folds", "backward"] in [
            line.split() for line in inspected(inspection(unknown), Page()).splitlines()
        ]

    def test_without_any(self) -> None:
        assert inspected(inspection(), Page()) == "model.onnx: no BatchNormalization"

    def test_what_exporters_repeat_is_left_out(self) -> None:
        text = inspected(inspection(facts("/stem/norm/BatchNormalization")), Page())
        assert "/stem/norm  " in text


WORST_FIRST = """
model.onnx: 5 BatchNormalizations with 160 parameters, 80 of them trainable; 4
would fold

  node       channels  parameters  trainable  statistics     outcome
  broken            8          32         16  2 not finite   folds backward
  stays             8          32         16  fine           stays: BNF305
  untrained         8          32         16  never trained  folds backward
  dead              8          32         16  3 dead         folds backward
  good              8          32         16  fine           folds backward
"""


class TestPage:
    @pytest.mark.parametrize("width", [60, 80, 200])
    def test_no_line_is_too_long(self, width: int) -> None:
        name = "/encoder/stage1/block2/branch3/norm/BatchNormalization"
        found = [facts(name), facts("bn", decision=kept("bn", Reason.PADDING), untouched=True)]
        texts = [
            inspected(inspection(*found), Page(width)),
            inspected(inspection(*found * 20), Page(width)),
            optimized(report(decision("bn"), kept("bn", Reason.PADDING)), Page(width, verbose=True)),
            explained(Reason.PADDING, Page(width)),
            reasons(Page(width)),
        ]
        assert max(len(line) for text in texts for line in text.splitlines()) <= width

    def test_names_in_prose_stay_whole(self) -> None:
        """One may want to copy them."""
        name = "/encoder/stage1/block2/branch3/norm/BatchNormalization"
        assert name in optimized(report(kept(name, Reason.PADDING)), Page(40))

    def test_a_very_narrow_page(self) -> None:
        assert inspected(inspection(facts("bn")), Page(10))

    def test_no_colors_unless_wanted(self) -> None:
        whole = report(decision("bn"), kept("bn", Reason.PADDING))
        plain, colored = (optimized(whole, Page(color=color)) for color in (False, True))
        assert "\x1b" not in plain
        assert "\x1b[32mVerified\x1b[0m" in colored and "\x1b[36mBNF303\x1b[0m" in colored

    def test_it_is_ascii(self) -> None:
        """What bnfold itself says can be printed anywhere."""
        assert (optimized(report(kept("bn", Reason.PADDING)), Page()) + reasons(Page())).isascii()

    def test_printable(self) -> None:
        assert printable("a\tb\x1b[31m\n\u4e2d\u202e") == "a\\tb\\x1b[31m\\n\u4e2d\\u202e"


class TestJson:
    def test_order_and_types(self) -> None:
        data = json.loads(as_json(report(kept("bn", Reason.PADDING))))
        assert list(data) == ["schema_version", "source", "target", "fold", "verification", "recalibration"]
        names = (
            "reference candidate verdict tolerance seed differences algebra runtime certificate message sizes"
        )
        assert list(data["verification"]) == names.split()
        assert "formulas" not in data["fold"]
        assert data["fold"]["decisions"][0]["reason"] == "BNF303"
        assert data["fold"]["decisions"][0]["outcome"] == "kept"

    def test_numbers_that_json_lacks(self) -> None:
        odd = verification(check("a", float("inf"), noise=0.0, error=float("nan")))
        (found,) = json.loads(as_json(odd))["algebra"]["tensors"]
        assert (found["ratio"], found["noise"], found["error"]) == (None, 0.0, None)


class TestCompared:
    def test_a_pass(self) -> None:
        whole = verification(
            check("a"),
            certificate=Certificate(Verdict.PASS, 106, 25_000_000, 106),
            runtime=RuntimeReport(
                Verdict.PASS, (RuntimeCheck("y", "default", "N=1", 1e-7, 2e-7, 1.4, True),)
            ),
        )
        assert compared(whole, Page(100)) == PASSED.strip("\n")

    def test_a_failure_names_the_culprit_and_what_to_do(self) -> None:
        bad = [check(f"t{i}", 40.0 + i, part="index 3 of axis 1") for i in range(30)]
        text = compared(verification(check("a"), *bad, verdict=Verdict.FAIL, message="'t0' differs"), Page())
        assert text.startswith("FAIL: other.onnx is not the same function as model.onnx")
        assert "32 tensors of both models compared, 30 beyond" in flat(text)
        assert "tensor ratio where t0 40 index 3 of axis 1 t1 41 index 3 of axis 1" in flat(text)
        assert "and 26 more; -v lists all." in text
        assert "Next: compare what computes 't0' in the two files." in flat(text)
        assert len(text.splitlines()) <= SCREEN

    def test_undecided(self) -> None:
        algebra = AlgebraReport(
            Verdict.UNDECIDED, (OutputCheck("y", None, missing="no\x1b such", decided=False),), message="none"
        )
        text = compared(verification(verdict=Verdict.UNDECIDED, algebra=algebra, message="none"), Page())
        assert text.startswith("UNDECIDED: other.onnx could not be compared with model.onnx")
        assert "'y' itself was not compared: no\\x1b such" in flat(text)
        assert "Next: if its inputs are at fault, feed it what it is made for, with --inputs" in flat(text)

    def test_all_that_may_be_remarked(self) -> None:
        moved = check("c", problem="it holds what the reference calls 'n'")
        whole = verification(
            moved,
            runtime=RuntimeReport(Verdict.PASS, findings=("onnxruntime changes its mind",)),
            differences=(Difference("opset", "ai.onnx 17", "ai.onnx 18"),),
        )
        whole = replace(whole, algebra=replace(whole.algebra, borrowed=("Gelu 'g'",)))
        text = flat(compared(whole, Page(verbose=True)))
        for remark in (
            "'c': it holds what the reference calls 'n'",
            "computed by onnxruntime, in its own precision: Gelu 'g'",
            "- onnxruntime changes its mind",
            "- opset: ai.onnx 17; the candidate has ai.onnx 18",
            "tensor node ratio c Conv 'c' 0.5 y Conv 'y' 2",
        ):
            assert remark in text

    def test_many_outputs(self) -> None:
        outputs = tuple(OutputCheck(f"y{i}", check(f"y{i}", i / 10)) for i in range(20))
        text = compared(verification(algebra=AlgebraReport(Verdict.PASS, outputs)), Page())
        assert text.index("y19") < text.index("y18")  # the worst first
        assert "and 8 outputs more" in text and len(text.splitlines()) <= SCREEN

    def test_an_output_that_is_called_otherwise_decides(self) -> None:
        lost = OutputCheck("early", None, missing="it has none", decided=False)
        other = (Difference("output", "early", "other"),)
        failing = verification(
            verdict=Verdict.FAIL, differences=other, algebra=AlgebraReport(Verdict.FAIL, (lost,))
        )
        text = flat(compared(failing, Page()))
        assert "decides nothing" not in text and "under the same names and types" in text
        assert "this decides nothing here" in flat(compared(verification(differences=other), Page()))

    @pytest.mark.parametrize("width", range(20, 90))
    def test_figures_in_ulp_go_together(self, width: int) -> None:
        """Without the head of the first, "max" would be that of something else."""
        lines = compared(verification(check("a")), Page(width)).splitlines()
        (head,) = (line for line in lines if line.startswith("  output "))
        assert ("ulp p50" in head) == bool(re.search("max(?! abs| rel)", head))

    @pytest.mark.parametrize("width", [40, 60, 80, 200])
    def test_fits(self, width: int) -> None:
        text = compared(verification(check("a")), Page(width))
        assert max(map(len, text.splitlines())) <= width


def test_columns_give_way_before_names_look_alike() -> None:
    rows = [("name", "figure"), *((f"a/{'long' * 5}/{i}/b/{'end' * 5}", "0") for i in range(3))]
    wide = list(table(rows, "<>", Page(40), spare=((1,),)))
    assert "figure" not in wide[0] and len(set(wide)) == 4
    alike = [("name", "figure"), *((f"{'long' * 20}/{i}/{'end' * 20}", "0") for i in range(3))]
    assert len(set(table(alike, "<>", Page(40)))) == 2  # nothing can be done


PASSED = """
PASS: other.onnx is the same function as model.onnx

  output  ratio  max abs  max rel  ulp p50  p99  max     SNR    cosine  top-1
  y           2  2.0e-07  3.0e-06      0.5  1.5   12  141 dB  1.000000   100%

Float64: 2 tensors of both models compared; at worst 2 times the reference's own rounding noise, at
  'y' (4 is accepted; 4 feeds, 16 draws of nudged constants).
onnxruntime: pass; 1 comparison, worst ratio 1.4
Certificate: 106 folded constants (25,000,000 numbers), all correctly rounded.
"""


class TestReasons:
    def test_the_page_is_up_to_date(self) -> None:
        page = (ROOT / "docs" / "reasons.md").read_text(encoding="utf-8")
        assert page == markdown(), "docs/reasons.md is out of date: run `make docs`"

    def test_each_is_there_once(self) -> None:
        for reason in Reason:
            assert markdown().count(f"| `{reason.value}` | {reason.sentence} | {reason.remedy} |") == 1

    def test_codes_are_unique(self) -> None:
        codes = [reason.value for reason in Reason.__members__.values()]
        assert len(codes) == len(set(codes))

    def test_as_a_command(self) -> None:
        command = [sys.executable, "-m", "bnfold.render.reasons"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        assert done.stdout.decode() == markdown()


class TestRecalibrated:
    def text(self, report: RecalibrateReport, **page: Any) -> str:
        return " ".join(recalibrated(report, Page(**page)).split())

    def test_what_a_reader_needs(self) -> None:
        text = self.text(recalibration(layer("small"), layer("large", output_drift=2.0)))
        assert "in.onnx: 2 BatchNormalizations recalibrated" in text
        assert "Recalibrated on 40 samples exactly, level by level; 3 levels." in text
        assert "Verified: in the finished model, means are off by 1e-08 standard deviations at most" in text
        assert "Least certain: small, with a standard error of 0.02." in text
        assert text.index("large 0 4") < text.index("small 0 4")  # the one that moved most comes first
        assert text.endswith(
            "Written to out.onnx. Next: measure its accuracy; then `bnfold optimize` folds it."
        )

    def test_what_should_worry(self) -> None:
        found = recalibration(
            layer(mean_error=0.5, dead=2, untouched=True), notes=("something odd",), target=None, processes=3
        )
        text = self.text(found)
        for words in (
            "0.5: more samples would be better",
            "2 channels had no variance",
            "1 had never been trained",
        ):
            assert words in text
        assert "- something odd" in text and "in 3 processes" in text and "this was a dry run" in text

    def test_one_sample(self) -> None:
        infinite = float("inf")
        found = recalibration(layer(mean_error=infinite, var_error=infinite, var_drift=infinite))
        assert "A single sample does not tell how certain" in self.text(found)

    def test_one_pass_claims_nothing(self) -> None:
        text = self.text(recalibration(layer(mean_gap=0.3), method=Method.ONEPASS))
        assert "Verified" not in text and "off by 0.3 standard deviations" in text

    def test_many_layers_and_odd_names(self) -> None:
        layers = [layer(f"a/very/long/name/of/a/layer/{i}/\x1b[31m" * 2) for i in range(30)]
        for width in (40, 80, 120):
            lines = recalibrated(recalibration(*layers), Page(width=width)).splitlines()
            assert len(lines) <= (SCREEN if width >= 80 else 40) and not any("\x1b" in line for line in lines)
            assert "... and 22 that changed less; -v lists all." in " ".join(" ".join(lines).split())
        assert recalibrated(recalibration(*layers), Page(verbose=True)).count("sd ") == 30
