"""What to do after a report, a sentence each: commands to copy, or what to look at."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from ..recalibration import RecalibrateReport
from ..report import (
    BatchNormFacts,
    ExportReport,
    FailureReport,
    FoldReport,
    InspectReport,
    OptimizeReport,
    Outcome,
    Reason,
    Report,
)
from ..verification import VerifyReport
from .cases import Status
from .comparison import advice
from .page import called, many, printable
from .text import staying

_BUG = 4  # the exit code


def afterwards(report: Report, status: Status) -> tuple[str, ...]:
    """What to do now.

    Args:
        report: What was found.
        status: What is said of it.
    """
    match report:
        case OptimizeReport() | ExportReport():
            return tuple(_after_fold(report, status))
        case InspectReport():
            return tuple(_after_look(report))
        case VerifyReport() if status is Status.PASS:
            return (
                f"Deploy {called(report.candidate)}; it can take the place of {called(report.reference)}.",
            )
        case VerifyReport():
            told = advice(report)
            return (told[0].upper() + told[1:],)
        case RecalibrateReport():
            return tuple(_after_recalibration(report, status))
        case FailureReport(exit_code=code) if code == _BUG:
            return ("Report it as a bug of bnfold, with the message and, if you can, the model.",)
        case FailureReport():
            return ("Mend what the message names, then run the command again.",)


def _after_fold(report: OptimizeReport | ExportReport, status: Status) -> Iterator[str]:
    unchecked = report.module is None if isinstance(report, ExportReport) else report.verification is None
    modified = isinstance(report, ExportReport) or report.fold.modified
    moved = isinstance(report, OptimizeReport) and report.recalibration is not None
    if status is Status.UNDECIDED:
        yield (
            f"Keep {called(report.source, 'the original')}: it was not replaced. --verify none writes the "
            "result unchecked; compare it then in the runtime that you deploy to."
        )
    elif status is Status.ERROR:
        yield "Mend what the message names, then run the command again."
    elif status is Status.FAIL:
        yield (
            f"Keep {called(report.source, 'the original')}: nothing was written. Please report this as a bug "
            "of bnfold, with the model if you can."
        )
    elif not modified and not moved:
        if report.target is None:
            yield "Nothing to write: there is nothing to fold."
        else:
            yield f"Deploy {called(report.target, 'what was written')} or the original: they are the same."
    elif report.target is None:
        yield "Run it again without --dry-run to write the result."
    elif moved:
        if unchecked and modified:
            yield "Run it again without --verify none: only that compares it with the recalibrated model."
        yield (
            f"Measure the accuracy of {called(report.target, 'what was written')} on data that it was not "
            "recalibrated on: it is another function than the original, as asked."
        )
    elif unchecked and isinstance(report, OptimizeReport):
        yield f"Compare before you deploy: {_command('verify', report.source, report.target)}."
    elif unchecked:
        yield "Run it again without --verify none before you deploy it."
    else:
        yield f"Deploy {called(report.target, 'what was written')}; it computes the same function."
    if status is Status.PASS and report.fold is not None:
        yield from _about_kept(report.fold)


def _after_look(report: InspectReport) -> Iterator[str]:
    if report.foldable or any(d.outcome is not Outcome.KEPT for d in report.fold.decisions):
        yield f"Fold: {_command('optimize', report.source)}."
    elif not report.batchnorms:
        yield "Nothing to do: there is no BatchNormalization."
    else:
        yield "Nothing folds as the model is."
    yield from _about_statistics(report.batchnorms)
    yield from _about_kept(report.fold)


def _about_statistics(found: Sequence[BatchNormFacts]) -> Iterator[str]:
    """What may be wrong with the model itself."""
    if broken := sum(b.non_finite > 0 for b in found):
        yield (
            f"{many(broken, 'BatchNormalization')} {'holds' if broken == 1 else 'hold'} NaN or infinity: "
            "training most likely diverged there."
        )
    if untouched := sum(b.untouched for b in found):
        yield (
            f"The statistics of {many(untouched, 'BatchNormalization')} are those before any training (mean "
            "0, variance 1): look whether the model is the right one, or recalibrate it."
        )


def _about_kept(fold: FoldReport) -> Iterator[str]:
    """What could be done about those that stay, the most frequent reason first."""
    kept: dict[Reason, int] = {}
    for d in fold.decisions:
        number = staying(d).count("BatchNormalization")
        if number and d.reason is not None:
            kept[d.reason] = kept.get(d.reason, 0) + number
    for reason, number in sorted(kept.items(), key=lambda item: -item[1]):
        if not reason.remedy.startswith("Nothing to do"):
            stays = "stays" if number == 1 else "stay"
            yield f"{many(number, 'BatchNormalization')} {stays} for {reason}: {reason.remedy}"


def _after_recalibration(report: RecalibrateReport, status: Status) -> Iterator[str]:
    if status is not Status.PASS:
        if report.is_exact:
            yield "Give more samples, or ask for less certainty."
        else:
            yield "Give samples that are the same in every pass."
    elif report.target is None:
        yield "Run it again without --dry-run to write the result."
    else:
        target = called(report.target, "what was written")
        yield f"Measure the accuracy of {target} on data that it was not recalibrated on."
        if report.target != "-":
            yield f"Then fold it: {_command('optimize', report.target)}."


def _command(*words: str) -> str:
    """A command line to copy; where a name looks like an option, it is said that none follows."""
    if any(word.startswith("-") for word in words[1:]):
        words = (words[0], "--", *words[1:])
    return f"`{printable(shlex.join(['bnfold', *words]))}`"
