"""A report in the few words that every form of it begins with: the verdict, why, what to do next.

All its words are in one line each, with what a terminal might obey spelled out; whoever writes them into
a file escapes what means something there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from ..changes import Size
from ..errors import BnfoldError
from ..recalibration import Method, RecalibrateReport
from ..report import (
    ExportReport,
    FailureReport,
    FoldReport,
    InspectReport,
    OptimizeReport,
    Report,
)
from ..verification import Verdict, VerifyReport
from .afterwards import afterwards
from .cases import Case, Status, comparison, layers, module_outputs, sites, worst_first
from .comparison import certified, proof, sentence
from .page import Page, called, many, printable
from .recalibration import settled
from .text import (
    against_module,
    export_headline,
    folded_proof,
    optimize_headline,
    summary,
)

__all__ = ["Case", "Digest", "Status", "basis", "digest"]

_STATUS = {Verdict.PASS: Status.PASS, Verdict.FAIL: Status.FAIL, Verdict.UNDECIDED: Status.UNDECIDED}
_EXIT = {1: Status.FAIL, 3: Status.UNDECIDED}  # all others are errors
_NOT_VERIFIED = "the result was not compared with what it was made from, as asked"
_Figures = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Digest:
    """A report at a glance.

    Attributes:
        report: All of it.
        command: What was run: "optimize"; "" if nobody knows.
        source: The model, as its user calls it.
        status: The verdict.
        headline: What happened, in a sentence.
        message: What decided; "" on a pass, unless something was not asked for.
        figures: Names and values that people ask for first, in order: "BatchNormalizations after", "0".
        cases: The worst first; the first is the verdict itself. All pass exactly if the whole does.
        next: What to do now, a sentence each.
    """

    report: Report
    command: str
    source: str
    status: Status
    headline: str
    message: str
    figures: tuple[tuple[str, str], ...]
    cases: tuple[Case, ...]
    next: tuple[str, ...]

    @property
    def is_shown(self) -> bool:
        """Whether the verdict rests on something; what nobody compared, as asked, passes all the same."""
        return self.message != _NOT_VERIFIED

    @property
    def verdict(self) -> str:
        """The status in words that claim no more than was shown."""
        return self.status.value if self.is_shown else "not verified"


def digest(
    report: Report,
    *,
    command: str = "",
    fail_on: Collection[str] = frozenset(),
    error: BnfoldError | None = None,
) -> Digest:
    """The digest of a report.

    Args:
        report: Of any kind.
        command: What was run; by default, what makes such reports.
        fail_on: "foldable" lets an inspection fail that found BatchNormalizations that would fold.
        error: What carried the report, if something did; it decides then.
    """
    match report:
        case OptimizeReport():
            found = _optimized(report)
        case ExportReport():
            found = _exported(report)
        case InspectReport():
            found = _inspected(report, fail_on)
        case VerifyReport():
            found = _verified(report)
        case RecalibrateReport():
            found = _recalibrated(report)
        case FailureReport():
            found = _failed(report)
    if command:
        found = replace(found, command=command)
    if error is not None:
        status, message = _EXIT.get(error.exit_code, Status.ERROR), str(error)
        found = replace(found, status=status, message=message, next=afterwards(report, status))
        if isinstance(report, RecalibrateReport):
            found = replace(found, headline=_recalibrated_headline(report, status))
    verdict = Case(f"verdict of {found.command}" if found.command else "verdict", found.status, _why(found))
    return replace(found, cases=(verdict, *worst_first(found.cases)))


def basis(report: Report) -> str:
    """On what a result rests that passed; "" where nothing was to be shown."""
    if isinstance(report, RecalibrateReport):
        return " ".join(settled(report, Page())) if report.layers else ""
    verification = report if isinstance(report, VerifyReport) else getattr(report, "verification", None)
    check = getattr(report, "module", None)
    parts = [against_module(check)] if check is not None and check.verdict is Verdict.PASS else []
    if verification is not None and verification.verdict is Verdict.PASS:
        told = isinstance(report, OptimizeReport) and folded_proof(report, verification)
        parts.append(told or proof(verification))
    return " ".join(parts)


def _why(found: Digest) -> str:
    if found.status is not Status.PASS:
        return found.message
    told = "" if found.is_shown else f"Not verified: {found.message}"
    return ". ".join(filter(None, (found.headline, told, basis(found.report))))


def _optimized(report: OptimizeReport) -> Digest:
    source, recalibration = called(report.source, "standard input"), report.recalibration
    parts = [sites(report.fold.decisions, done=True), _compared(report.verification)]
    if recalibration is not None:
        parts.append(layers(recalibration))
    status, message = _of(report.verification)
    if report.fold.modified and report.verification is None:
        message = _NOT_VERIFIED
    return Digest(
        report,
        "optimize",
        source,
        status,
        _not_written(source, status) or optimize_headline(report),
        message,
        (
            *_fold_figures(report.fold),
            *_size_figures(_sizes(report)),
            *(() if report.verification is None else _comparison_figures(report.verification)),
            *(() if recalibration is None else _recalibration_figures(recalibration)),
        ),
        tuple(chain(*parts)),
        afterwards(report, status),
    )


def _exported(report: ExportReport) -> Digest:
    source, fold, check = called(report.source), report.fold, report.module
    status, message = _of(report.verification)
    if status is Status.PASS and check is not None:
        status, message = _STATUS[check.verdict], printable(check.message)
    if status is Status.PASS and check is None:
        message = _NOT_VERIFIED
    figures = list(_fold_figures(fold)) if fold else [("BatchNormalizations", str(report.batchnorms))]
    figures += _size_figures(_sizes(report))
    figures.append(("ONNX opset", str(report.opset)))
    if check is not None and check.outputs:
        worst = max(check.outputs, key=lambda output: output.ratio)
        figures.append(("worst ratio against the module", f"{worst.ratio:.3g}"))
        figures.append(("worst output against the module", printable(worst.name)))
    figures += () if report.verification is None else _comparison_figures(report.verification)
    return Digest(
        report,
        "export",
        source,
        status,
        _not_written(source, status) or export_headline(report),
        message,
        tuple(figures),
        tuple(
            chain(
                sites(fold.decisions if fold else (), done=True),
                () if check is None else module_outputs(check),
                _compared(report.verification),
            )
        ),
        afterwards(report, status),
    )


def _inspected(report: InspectReport, fail_on: Collection[str]) -> Digest:
    unwanted = report.foldable if "foldable" in fail_on else ()
    status = Status.FAIL if unwanted else Status.PASS
    message = ""
    if unwanted:
        names = ", ".join(f"'{printable(b.node)}'" for b in unwanted[:3])
        more = f" and {len(unwanted) - 3} more" if len(unwanted) > 3 else ""
        message = f"{many(len(unwanted), 'BatchNormalization')} could be folded, and none should be left: "
        message += names + more
    return Digest(
        report,
        "inspect",
        called(report.source, "standard input"),
        status,
        summary(report),
        message,
        (
            ("BatchNormalizations", str(len(report.batchnorms))),
            ("BatchNormalizations that would fold", str(len(report.foldable))),
            ("parameters of BatchNormalizations", str(sum(b.parameters or 0 for b in report.batchnorms))),
            ("nodes", str(report.fold.before.nodes)),
            ("nodes after a fold", str(report.fold.after.nodes)),
            *_size_figures(_sizes(report)),
        ),
        tuple(sites(report.fold.decisions, done=False, unwanted={b.decision for b in unwanted})),
        afterwards(report, status),
    )


def _verified(report: VerifyReport) -> Digest:
    status, message = _of(report)
    return Digest(
        report,
        "verify",
        called(report.candidate),
        status,
        sentence(report),
        message,
        (
            *_comparison_figures(report),
            *_size_figures(report.sizes, ("of the reference", "of the candidate")),
        ),
        tuple(comparison(report)),
        afterwards(report, status),
    )


def _recalibrated(report: RecalibrateReport) -> Digest:
    source = called(report.source, "standard input")
    proven = report.method is Method.ONEPASS or report.is_exact
    status = Status.PASS if proven else Status.FAIL
    message = ""
    if report.method is Method.ONEPASS:
        message = "one pass claims no exactness: what comes in is not quite what is stored"
    elif not proven:
        message = "the finished model does not have the statistics that it stores"
    return Digest(
        report,
        "recalibrate",
        source,
        status,
        _recalibrated_headline(report, status),
        message,
        tuple(_recalibration_figures(report)),
        tuple(layers(report)),
        afterwards(report, status),
    )


def _recalibrated_headline(report: RecalibrateReport, status: Status) -> str:
    source = called(report.source, "standard input")
    if status is not Status.PASS:
        return f"{source}: not recalibrated; nothing was written"
    return f"{source}: {many(len(report.layers), 'BatchNormalization')} recalibrated"


def _failed(report: FailureReport) -> Digest:
    source = called(report.source, "standard input")
    status = _EXIT.get(report.exit_code, Status.ERROR)
    return Digest(
        report,
        "",
        source,
        status,
        f"{source}: no result" if source else "No result",
        printable(report.message),
        (),
        (),
        afterwards(report, status),
    )


# Verdicts


def _of(verification: VerifyReport | None) -> tuple[Status, str]:
    if verification is None:
        return Status.PASS, ""
    return _STATUS[verification.verdict], printable(verification.message)


def _compared(verification: VerifyReport | None) -> Iterable[Case]:
    return () if verification is None else comparison(verification)


def _not_written(source: str, status: Status) -> str:
    if status is Status.FAIL:
        return f"{source}: the result is not the same function; nothing was written"
    if status is Status.UNDECIDED:
        return f"{source}: whether the result is the same function is not decided; nothing was written"
    return ""


# Figures


def _fold_figures(fold: FoldReport) -> _Figures:
    for name, before, after in (
        ("BatchNormalizations", fold.before.batchnorms, fold.after.batchnorms),
        ("Mul, Add, ... by a constant", fold.before.affines, fold.after.affines),
        ("nodes", fold.before.nodes, fold.after.nodes),
    ):
        yield f"{name} before", str(before)
        yield f"{name} after", str(after)


def _sizes(report: OptimizeReport | ExportReport | InspectReport) -> tuple[Size, Size] | None:
    """Of the model before and after."""
    if report.changes is not None:
        return report.changes.before, report.changes.after
    return (
        None
        if isinstance(report, InspectReport) or report.verification is None
        else report.verification.sizes
    )


def _size_figures(sizes: tuple[Size, Size] | None, names: Sequence[str] = ("before", "after")) -> _Figures:
    for name, size in zip(names, sizes or (), strict=False):
        yield f"parameters {name}", str(size.parameters)
        yield f"bytes of weights {name}", str(size.bytes)


def _comparison_figures(report: VerifyReport) -> _Figures:
    algebra = report.algebra
    yield "verdict", report.verdict.value
    checks = algebra.checks
    if checks:
        worst = max(checks, key=lambda check: check.ratio)
        yield "worst ratio", f"{worst.ratio:.3g}"
        yield "worst tensor", printable(worst.name)
    if report.culprit is not None:
        yield "first tensor beyond tolerance", printable(report.culprit.name)
    yield "tolerance", f"{report.tolerance:g}"
    yield "tensors compared", str(len(checks))
    if report.certificate is not None:
        yield "folded constants", certified(report.certificate).rstrip(".")
    if report.runtime is not None:
        yield "onnxruntime", report.runtime.verdict.value


def _recalibration_figures(report: RecalibrateReport) -> _Figures:
    yield "recalibrated", many(len(report.layers), "BatchNormalization")
    yield "method", report.method.value
    yield "samples", str(report.samples)
    yield "levels", str(report.levels)
    if report.layers:
        gap = max(max(layer.mean_gap, layer.var_gap) for layer in report.layers)
        error = max(max(layer.mean_error, layer.var_error) for layer in report.layers)
        yield "worst gap", f"{gap:.3g}"
        yield "largest standard error", f"{error:.3g}" if math.isfinite(error) else "unknown: one sample"
