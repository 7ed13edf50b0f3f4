"""What a reader asks first of a report, and the answers: is it safe, what changed, what stays, what next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..recalibration import Method, RecalibrateReport
from ..report import ExportReport, FailureReport, FoldReport, InspectReport, OptimizeReport, Report
from ..verification import Verdict, VerifyReport
from .cases import Status
from .comparison import interface, proof
from .digest import Digest
from .page import called, many, printable
from .text import against_module, by_reason, staying, ways

_RECALIBRATED = "The recalibration itself changed the function, as asked; its accuracy tells how well."


@dataclass(frozen=True)
class Badge:
    """A verdict for the eye: never by its colour alone.

    Attributes:
        word: What it says.
        symbol: The same as a sign.
        tone: The same as a class of style: "pass", "fail", "undecided", "error", "done".
    """

    word: str
    symbol: str
    tone: str


_BADGES = {
    Status.PASS: Badge("Pass", "✓", "pass"),
    Status.FAIL: Badge("Fail", "✗", "fail"),
    Status.UNDECIDED: Badge("Undecided", "?", "undecided"),
    Status.ERROR: Badge("Error", "!", "error"),
}


def badge(digest: Digest) -> Badge:
    """The verdict; what nobody has compared or proved does not pass in green."""
    report = digest.report
    if digest.status is Status.PASS and isinstance(report, InspectReport):
        return Badge("Inspected", "i", "done")
    if digest.status is Status.PASS and _unverified(report):
        return Badge("Not verified", "?", "undecided")
    if digest.status is Status.PASS and _moved_by(report, Method.ONEPASS):
        return Badge("Not exact", "≈", "undecided")
    return _BADGES[digest.status]


def answers(digest: Digest) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Questions and their answers, in a sentence or a few."""
    yield "Is it safe?", tuple(_safety(digest))
    change, stay = ("changed", "stays") if _done(digest) else ("would have changed", "would have stayed")
    match digest.report:
        case OptimizeReport(fold=fold, recalibration=moved):
            yield f"What {change}?", (*((_moved(moved),) if moved else ()), _changed(fold))
            yield f"What {stay}, and why?", tuple(_stays(fold))
        case ExportReport(fold=FoldReport() as fold):
            yield f"What {change}?", (_changed(fold),)
            yield f"What {stay}, and why?", tuple(_stays(fold))
        case InspectReport(fold=fold):
            yield "What would change?", (_changed(fold),)
            yield "What would stay, and why?", tuple(_stays(fold))
        case RecalibrateReport() as moved:
            yield f"What {change}?", (_moved(moved),)
        case VerifyReport() as found:
            yield "What is different?", tuple(_different(found))
        case _:
            pass
    yield "What next?", digest.next


def _done(digest: Digest) -> bool:
    """Whether anything was written."""
    return digest.status is Status.PASS and getattr(digest.report, "target", None) is not None


def _moved_by(report: Report, method: Method) -> bool:
    """Whether statistics were estimated that way."""
    moved = report.recalibration if isinstance(report, OptimizeReport) else report
    return isinstance(moved, RecalibrateReport) and moved.method is method


def _unverified(report: object) -> bool:
    if isinstance(report, ExportReport):
        return report.module is None
    return isinstance(report, OptimizeReport) and report.fold.modified and report.verification is None


def _safety(digest: Digest) -> Iterator[str]:
    report = digest.report
    if digest.status is not Status.PASS:
        yield _doubt(digest)
        return
    yield _comparison(report)
    if isinstance(report, OptimizeReport) and report.recalibration is not None:
        yield _RECALIBRATED
    found = report if isinstance(report, VerifyReport) else getattr(report, "verification", None)
    certificate = found.certificate if found is not None else None
    if certificate is not None and certificate.verdict is Verdict.UNDECIDED:
        yield f"Not all folded constants were recomputed beside that: {printable(certificate.message)}."


def _comparison(report: Report) -> str:
    """Why a result that passed is the right one, or who knows."""
    if _unverified(report):
        return "Not known: the result was not compared with what it was made from, as asked."
    match report:
        case OptimizeReport(verification=None, recalibration=RecalibrateReport()):
            return "The fold changed nothing."
        case OptimizeReport(verification=None):
            return "Yes: nothing was changed."
        case OptimizeReport(verification=VerifyReport() as found, recalibration=RecalibrateReport()):
            told = proof(found, "the recalibrated model's")
            return f"The fold, yes: the result computes what the recalibrated model computes. {told}"
        case OptimizeReport(verification=VerifyReport() as found):
            return f"Yes: the result computes the same function. {proof(found)}"
        case VerifyReport() as found:
            return f"Yes: {called(found.candidate)} computes the same function. {proof(found)}"
        case ExportReport(module=check, verification=verification) if check is not None:
            folded = f" Folded against unfolded: {proof(verification)}" if verification else ""
            return f"Yes: the result computes what the module computes. {against_module(check)}{folded}"
        case RecalibrateReport(method=Method.ONEPASS):
            return "Not proven: one pass stores statistics that the finished model does not quite have."
        case RecalibrateReport():
            blended = ", blended with the old ones as asked" if _moved_by(report, Method.BLEND) else ""
            return (
                f"The statistics that are stored are those of the data{blended}: a last pass over it has "
                "proved that. The model is another function now, as asked; whether a better one, only its "
                "accuracy tells."
            )
        case _:
            return "Nothing was changed: this was only a look."


def _doubt(digest: Digest) -> str:
    report, failed = digest.report, digest.status is Status.FAIL
    match report:
        case InspectReport():
            return "Nothing was changed: this was only a look. It fails because of what could be folded."
        case VerifyReport() if failed:
            return f"No: do not use {called(report.candidate)} in the place of {called(report.reference)}."
        case VerifyReport():
            return "Not known: not everything that decides could be compared."
        case FailureReport():
            return "Not known: there is no result."
        case RecalibrateReport() if failed:
            return f"No: {digest.message.rstrip('.')}."
    no = "No" if failed else "Not known"
    return f"{no}, and nothing was written: the original is what it was."


def _different(report: VerifyReport) -> Iterator[str]:
    algebra = report.algebra
    checks = algebra.checks
    beyond = [check for check in checks if not check.passed]
    if beyond:
        first = printable(beyond[0].name)
        told = f"{len(beyond):,} of {many(len(checks), 'tensor')} that were compared"
        yield f"{told}; the first in the order of computation is '{first}'."
    elif checks:
        yield f"None of {many(len(checks), 'tensor')} that were compared, beyond what rounding explains."
    if report.differences:
        whats = ", ".join(d.what for d in report.differences)
        deciding = report.verdict is not Verdict.PASS and interface(report)
        alone = "" if deciding else " This alone decides nothing."
        yield f"What the models say of themselves: {whats}.{alone}"
    for output in algebra.outputs:
        if output.missing and not output.decided:
            yield f"The output '{printable(output.name)}' was not compared: {printable(output.missing)}."
    if not checks:
        yield "Not known: no tensor was compared."


def _changed(fold: FoldReport) -> str:
    before, after = fold.before, fold.after
    if not fold.modified and not any(d.reason is None for d in fold.decisions):
        return f"Nothing: {many(before.batchnorms, 'BatchNormalization')} before and after."
    return (
        f"BatchNormalizations: {before.batchnorms:,} before, {after.batchnorms:,} after; all nodes: "
        f"{before.nodes:,} before, {after.nodes:,} after. {ways(fold.decisions)}"
    )


def _stays(fold: FoldReport) -> Iterator[str]:
    groups = by_reason(d for d in fold.decisions if "BatchNormalization" in staying(d))
    if not groups:
        yield "No BatchNormalization stays." if fold.before.batchnorms else "There is no BatchNormalization."
    for reason, group in groups:
        number = sum(staying(d).count("BatchNormalization") for d in group)
        yield f"{many(number, 'BatchNormalization')} ({reason}): {reason.sentence}"


def _moved(report: RecalibrateReport) -> str:
    samples = f"{report.samples:,} sample{'' if report.samples == 1 else 's'}"
    told = f"The statistics of {many(len(report.layers), 'BatchNormalization')}, from {samples}"
    if not report.layers:
        return f"{told}."
    most = max(report.layers, key=lambda layer: layer.output_drift)
    return f"{told}; '{printable(most.name)}' changed most, its output by {most.output_drift:.2g}."
