"""What every form of a report begins with: one verdict, why, the figures, and what to do next."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
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
    FailureReport,
    FoldReport,
    Method,
    ModuleCheck,
    NotCalibrated,
    NotEquivalent,
    Outcome,
    OutputCheck,
    Reason,
    RuntimeReport,
    Undecided,
    Verdict,
)
from bnfold.changes import Size
from bnfold.render.digest import Case, Digest, Status, basis, digest
from bnfold.render.surroundings import surroundings
from bnfold.report import Report

WRONG = check("t", 40.0, part="index 3 of axis 1")
FAILED = verification(
    WRONG, verdict=Verdict.FAIL, message="'t' differs", algebra=AlgebraReport(Verdict.FAIL, (), (WRONG,))
)
MISSING = AlgebraReport(Verdict.UNDECIDED, (OutputCheck("y", None, missing="no value", decided=False),))
OPEN = verification(verdict=Verdict.UNDECIDED, algebra=MISSING, message="nothing was compared")
KNOWN = AlgebraReport(Verdict.PASS, (OutputCheck("y", None, missing="a string"),))
SILENT = verification(
    runtime=RuntimeReport(Verdict.UNDECIDED, message="it crashed"),
    certificate=Certificate(Verdict.UNDECIDED, message="no account"),
    algebra=KNOWN,
)
COUNTS = Counts(1, 0, 9)
UNCHANGED = FoldReport((kept("bn", Reason.SIGN),), COUNTS, COUNTS, modified=False)


def exported(**changes: Any) -> ExportReport:
    module = ModuleCheck(Verdict.PASS, "double", 4.0, (check("out", 0.7),))
    fold = report(decision("bn")).fold
    whole = ExportReport("Net", "net.onnx", (), ("x: float32[N]",), (), 18, 0, fold, verification(), module)
    return replace(whole, **changes)


def fails(verdict: Verdict, ratio: float = 50.0) -> ModuleCheck:
    return ModuleCheck(verdict, "double", 4.0, (check("out", ratio),), message="it differs")


# What, its verdict, and words that its user has to meet.
CASES: dict[str, tuple[Report, dict[str, Any], Status, str]] = {
    "optimize": (report(decision("bn")), {}, Status.PASS, "Deploy model.folded.onnx"),
    "optimize, dry": (report(decision("bn"), target=None), {}, Status.PASS, "without --dry-run"),
    "optimize, unchanged": (report(fold=UNCHANGED, verification=None), {}, Status.PASS, "they are the same"),
    "optimize, unchecked": (
        report(decision("bn"), verification=None),
        {},
        Status.PASS,
        "`bnfold verify model.onnx model.folded.onnx`",
    ),
    "optimize, wrong": (
        report(decision("bn"), target=None, verification=FAILED),
        {},
        Status.FAIL,
        "Keep model.onnx",
    ),
    "optimize, open": (
        report(decision("bn"), target=None, verification=OPEN),
        {},
        Status.UNDECIDED,
        "--verify none",
    ),
    "optimize, another signature": (
        report(decision("bn"), target=None),
        {"error": NotEquivalent("its inputs are not those")},
        Status.FAIL,
        "its inputs are not those",
    ),
    "optimize, silent witnesses": (
        report(decision("bn"), verification=SILENT),
        {},
        Status.PASS,
        "it crashed",
    ),
    "optimize, recalibrated": (
        report(decision("bn"), recalibration=recalibration(layer("norm"))),
        {},
        Status.PASS,
        "largest standard error",
    ),
    "export": (exported(), {}, Status.PASS, "Deploy net.onnx"),
    "export, unchecked": (exported(module=None, verification=None), {}, Status.PASS, "not compared"),
    "export, unfolded": (exported(fold=None), {}, Status.PASS, "nothing was folded, as asked"),
    "export, wrong": (exported(target=None, module=fails(Verdict.FAIL)), {}, Status.FAIL, "it differs"),
    "export, open": (
        exported(target=None, module=fails(Verdict.UNDECIDED)),
        {},
        Status.UNDECIDED,
        "it differs",
    ),
    "inspect": (inspection(facts("bn")), {}, Status.PASS, "`bnfold optimize model.onnx`"),
    "inspect, foldable": (
        inspection(facts("bn")),
        {"fail_on": {"foldable"}},
        Status.FAIL,
        "none should be left: 'bn'",
    ),
    "inspect, none foldable": (
        inspection(facts("bn", decision=kept("bn", Reason.OVERRIDABLE))),
        {"fail_on": {"foldable"}},
        Status.PASS,
        "Use --freeze-initializers",
    ),
    "inspect, nothing there": (inspection(), {"fail_on": {"foldable"}}, Status.PASS, "Nothing to do"),
    "verify": (verification(check("a")), {}, Status.PASS, "can take the place of model.onnx"),
    "verify, wrong": (FAILED, {}, Status.FAIL, "Compare what computes 't'"),
    "verify, wrong in onnxruntime": (
        verification(
            verdict=Verdict.FAIL,
            runtime=RuntimeReport(Verdict.FAIL, message="other numbers"),
            message="onnxruntime: other numbers",
        ),
        {},
        Status.FAIL,
        "other numbers",
    ),
    "verify, open": (OPEN, {}, Status.UNDECIDED, "--inputs"),
    "verify, other metadata": (
        verification(differences=(Difference("opset", "17", "18"),)),
        {},
        Status.PASS,
        "the candidate has 18",
    ),
    "recalibrate": (recalibration(layer()), {}, Status.PASS, "`bnfold optimize out.onnx`"),
    "recalibrate, dry": (recalibration(layer(), target=None), {}, Status.PASS, "without --dry-run"),
    "recalibrate, inexact": (
        recalibration(layer(limit_used=3.0)),
        {},
        Status.FAIL,
        "3 times what rounding explains",
    ),
    "recalibrate, one pass": (
        recalibration(layer(limit_used=3.0), method=Method.ONEPASS),
        {},
        Status.PASS,
        "claims no exactness",
    ),
    "recalibrate, uncertain": (
        recalibration(layer(), target=None),
        {"error": NotCalibrated("too few samples")},
        Status.FAIL,
        "too few samples",
    ),
    "failure": (FailureReport("m.onnx", "m.onnx: is empty", 2), {}, Status.ERROR, "m.onnx: is empty"),
    "failure, wrong": (
        FailureReport("m.onnx", "no", 1),
        {"command": "export"},
        Status.FAIL,
        "verdict of export",
    ),
    "failure, open": (FailureReport("", "no", 3), {}, Status.UNDECIDED, "No result"),
    "failure, bug": (FailureReport("m.onnx", "internal error", 4), {}, Status.ERROR, "Report it as a bug"),
}


def words(found: Digest) -> list[str]:
    cases = [part for case in found.cases for part in (case.name, case.message)]
    figures = [part for figure in found.figures for part in figure]
    return [found.command, found.source, found.headline, found.message, *figures, *cases, *found.next]


class TestDigest:
    @pytest.mark.parametrize(("found", "how", "status", "told"), CASES.values(), ids=CASES)
    def test_verdict(self, found: Report, how: dict[str, Any], status: Status, told: str) -> None:
        it = digest(found, **how)
        assert it.status is status and it.report is found
        assert told in "\n".join(words(it))
        assert it.headline and it.next and (it.message or status is Status.PASS)

    @pytest.mark.parametrize(("found", "how", "status", "told"), CASES.values(), ids=CASES)
    def test_all_cases_pass_exactly_if_the_whole_does(
        self, found: Report, how: dict[str, Any], status: Status, told: str
    ) -> None:
        cases = digest(found, **how).cases
        assert cases[0].name.startswith("verdict") and cases[0].status is status
        assert all(case.status is Status.PASS for case in cases) == (status is Status.PASS)

    def test_the_worst_cases_come_first(self) -> None:
        found = inspection(facts("stays", decision=kept("stays", Reason.SIGN)), facts("goes"))
        names = [(case.name, case.status.value) for case in digest(found, fail_on={"foldable"}).cases[1:]]
        assert names == [("BatchNormalization 'goes'", "fail"), ("BatchNormalization 'stays'", "pass")]

    def test_what_is_wrong_with_the_model_itself_is_told(self) -> None:
        found = digest(
            inspection(facts("a", untouched=True), facts("b", untouched=True), facts("c", non_finite=3))
        )
        told = " ".join(found.next)
        assert "statistics of 2 BatchNormalizations are those before any training" in told
        assert "1 BatchNormalization holds NaN or infinity" in told
        assert "training" not in " ".join(digest(inspection(facts("a"))).next)

    def test_a_site(self) -> None:
        inner = decision("bn", Outcome.PUSHED, graph="then", left=("Add",), detail="rounded")
        (_, told, *_) = digest(report(inner)).cases
        message = "pushed forward into Conv 'conv'; Add stays behind; rounded"
        assert told == Case("BatchNormalization 'then/bn'", Status.PASS, message)
        (_, told) = digest(inspection(facts("bn", decision=kept("bn", Reason.SIGN)))).cases
        assert told.message == f"stays, BNF304: {Reason.SIGN.sentence} what is at bn. {Reason.SIGN.remedy}"

    def test_figures(self) -> None:
        figures = dict(
            digest(
                report(
                    decision("bn"),
                    kept("other", Reason.SIGN),
                    verification=verification(sizes=(Size(40, 160),) * 2),
                )
            ).figures
        )
        assert (figures["BatchNormalizations before"], figures["BatchNormalizations after"]) == ("2", "1")
        assert (figures["nodes before"], figures["nodes after"]) == ("90", "80")
        assert figures["parameters before"] == "40" and "parameters of the reference" not in figures
        assert (figures["worst ratio"], figures["worst tensor"], figures["tolerance"]) == ("1.96", "y", "4")

    def test_a_pass_says_on_what_it_rests(self) -> None:
        for found, told in (
            (report(decision("bn")), "3 tensors of both models differ in float64 by 2 times"),
            (exported(), "1 output differs from the module in PyTorch in double precision"),
            (verification(check("a")), "2 tensors of both models differ"),
            (recalibration(layer()), "in the finished model, means are off by"),
        ):
            assert digest(found).cases[0].message.startswith(f"{digest(found).headline}. ")
            assert told in basis(found)
        assert basis(FAILED) == basis(inspection()) == basis(report(verification=None)) == ""

    def test_what_was_not_compared_is_told(self) -> None:
        for found in (report(decision("bn"), verification=None), exported(module=None, verification=None)):
            assert digest(found).message == "the result was not compared with what it was made from, as asked"
        assert digest(report(fold=UNCHANGED, verification=None)).message == ""

    def test_many_failing_tensors(self) -> None:
        many = tuple(check(f"t{i}", 40.0) for i in range(300))
        found = replace(FAILED, algebra=AlgebraReport(Verdict.FAIL, (), many))
        names = [case.name for case in digest(found).cases]
        assert names[1:3] == ["tensor 't0'", "tensor 't1'"] and names[-1] == "280 tensors more"
        assert dict(digest(found).figures)["first tensor beyond tolerance"] == "t0"

    @pytest.mark.parametrize("name", HOSTILE, ids=ascii)
    def test_words_are_printable_lines(self, name: str) -> None:
        stays = kept(name, Reason.SIGN, detail=name)
        proof = verification(check(name, 40.0), differences=(Difference(name, name, name),), message=name)
        found: list[Report] = [
            replace(
                report(stays, decision(name, into=(name,))), source=name, target=name, verification=proof
            ),
            inspection(facts(name)),
            replace(proof, reference=name, candidate=name),
            recalibration(layer(name), source=name, target=name),
            exported(source=name, target=name),
            FailureReport(name, name, 2),
        ]
        for it in found:
            for text in words(digest(it, fail_on={"foldable"})):
                assert text.isprintable(), text

    def test_commands_can_be_copied(self) -> None:
        told = digest(report(decision("bn"), source="my model.onnx", verification=None)).next
        assert "`bnfold verify 'my model.onnx' model.folded.onnx`" in told[0]


class TestSurroundings:
    def test_versions(self) -> None:
        found = surroundings("bnfold inspect 'a\x1b.onnx'")
        assert found.versions["bnfold"] == bnfold.__version__ and "onnxruntime" in found.versions
        assert found.command == "bnfold inspect 'a\\x1b.onnx'"

    def test_they_name_nobody(self) -> None:
        import getpass
        import socket

        told = f"{surroundings('')} "
        assert socket.gethostname() not in told and f"{getpass.getuser()} " not in told


def test_undecided_is_no_error() -> None:
    """What the exit code 3 stands for, wherever it comes from."""
    assert digest(report(decision("bn")), error=Undecided("open")).status is Status.UNDECIDED
