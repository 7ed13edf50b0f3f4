"""What a comparison of two models found, as sections of a page."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..report import ExportReport
from ..verification import (
    AlgebraReport,
    Difference,
    OutputCheck,
    RuntimeReport,
    TensorCheck,
    VerifyReport,
)
from .blocks import Block, Folded, Items, Picture, Prose, Section, clipped, table
from .comparison import certified
from .figures import MOST_PANELS, MOST_POINTS, badness, comparable, growth, histograms, thinned
from .page import many
from .text import against_module

_WORST = 20
_AGAINST = (
    "Each error is the distance of onnxruntime from float64. The candidate's may exceed the reference's by "
    "the tolerance at most. Where infinities or NaN are in other places, there is no number."
)
_CHECK_HEAD = ("tensor", "node", "error", "noise", "ratio", "where", "verdict")
_CHECK_ALIGNED = "==>>><<"


def errors(report: VerifyReport, ident: str) -> Section | None:
    """How the error grows along the depth of the model."""
    algebra = report.algebra
    checks = algebra.checks
    if not checks:
        return None
    blocks: list[Block] = [Prose(_measured(report))]
    if all(c.error == 0 and c.passed for c in checks):
        blocks.append(Prose("Every tensor is the same to the last bit.", strong=True))
    else:
        blocks.append(
            Picture(
                growth(checks, report.tolerance, f"{ident}growth", _spoken(checks)),
                _legend(checks, report.tolerance),
                "error and noise",
            )
        )
    worst = sorted(checks, key=badness, reverse=True)[:_WORST]
    some = f"The {len(worst)} worst of " if len(worst) < len(checks) else ""
    title = f"{some}{many(len(checks), 'tensor')}"
    caption = f"{title}; alone: with every shared tensor before it taken from the reference"
    rows = table(caption, _CHECK_HEAD, _CHECK_ALIGNED, [_check(c) for c in worst])
    blocks.append(Folded(f"{title} in numbers", (rows,), open=not worst[0].passed))
    return Section("errors", "Error along the depth of the model", tuple(blocks))


def _measured(report: VerifyReport) -> str:
    algebra = report.algebra
    return (
        f"Both models were run in float64 on {many(len(algebra.feeds), 'feed')}, where they can differ only "
        "by what was done to them and by the rounding of stored weights. The error of a tensor is the root "
        "mean square of candidate minus reference. Its noise is how far the reference itself moves when its "
        f"weights are nudged within what their type can hold ({many(algebra.draws, 'draw')}). The ratio is "
        f"error over noise; up to {report.tolerance:g} is accepted."
    )


def _legend(checks: Sequence[TensorCheck], tolerance: float) -> str:
    told = "Each point is a tensor that both models compute; what lies in the shaded band is accepted."
    shown = thinned(checks)
    step = math.ceil(len(checks) / MOST_POINTS)
    if step > 1:
        told += f" Each point stands for up to {step} neighbouring tensors and shows the worst of them."
    if any(c.passed and c.ratio > tolerance for c in shown):
        told += (
            " Hollow points are above the band and accepted all the same: taken alone they are within it, "
            "and correct roundings added up; or the ratio does not decide there."
        )
    numbered = [c for c in shown if comparable(c)]
    for group, where in (
        ([c for c in numbered if c.error == 0], "without any error {} on the lower edge"),
        (
            [c for c in numbered if not math.isfinite(c.error)],
            "whose error is no finite number {} on the upper edge",
        ),
        (
            [c for c in shown if not comparable(c)],
            "without an error that could be measured, as the table tells, {} on the upper edge as a diamond",
        ),
    ):
        if group:
            lie = "lies" if len(group) == 1 else "lie"
            told += f" {many(len(group), 'point' if step > 1 else 'tensor')} {where.format(lie)}."
    return told


def _spoken(checks: Sequence[TensorCheck]) -> str:
    worst = max(checks, key=badness)
    failing = sum(1 for c in checks if not c.passed)
    why = (
        f"with a ratio of {worst.ratio:.3g}"
        if comparable(worst)
        else f"not comparable: {clipped(worst.problem)}"
    )
    return (
        f"Error and noise of {many(len(checks), 'tensor')} in order of computation; {failing} beyond what is "
        f"accepted; the worst is '{clipped(worst.name)}', {why}"
    )


def _check(c: TensorCheck) -> tuple[str, ...]:
    where = ", ".join(filter(None, (c.part, "alone" if c.alone else "", c.problem)))
    if not comparable(c):
        return c.name, c.node, "-", "-", "-", where, "not comparable"
    verdict = "accepted" if c.passed else "beyond"
    return c.name, c.node, f"{c.error:.3g}", f"{c.noise:.3g}", f"{c.ratio:.3g}", where, verdict


# Outputs


def outputs(algebra: AlgebraReport, ident: str) -> Section | None:
    """Each output in figures that people know."""
    if not algebra.outputs:
        return None
    ordered = sorted(algebra.outputs, key=_output_badness, reverse=True)
    blocks: list[Block] = [
        Prose(
            "These figures decide nothing; the ratio does. An ulp, unit in the last place, is the distance "
            "between two neighbouring numbers of the output's own type, at the reference's value: it is tiny "
            "next to zero, where an element may be off by many without any harm. All but the ratio are those "
            "of the one feed on which the largest difference was seen. SNR is the ratio of signal "
            "to difference in decibels; top-1 is the share of rows whose largest element stays the same."
        )
    ]
    measured = [o for o in ordered if o.metrics is not None and any(o.metrics.ulp_histogram)]
    if measured:
        shown = min(len(measured), MOST_PANELS)
        caption = (
            "How many elements of an output are off by up to so many ulp of its type, on the feed on which "
            "its largest difference was seen."
        )
        if shown < len(measured):
            caption += f" The {shown} worst of {len(measured)} outputs."
        blocks.append(
            Picture(
                histograms(measured, f"{ident}ulp", _spoken_ulps(measured[:shown])),
                caption,
                "differences in ulp",
            )
        )
    head = (
        "output",
        "ratio",
        "max abs",
        "max rel",
        "ulp p50",
        "ulp p99",
        "ulp max",
        "SNR",
        "cosine",
        "top-1",
    )
    blocks.append(table("Outputs, the worst first", head, "=" + ">" * 9, [_output(o) for o in ordered]))
    missing = [
        f"{o.name}: not compared itself: {o.missing}" + ("; it is known to be alike" if o.decided else "")
        for o in ordered
        if o.missing
    ]
    blocks += [Items(tuple(missing))] if missing else []
    return Section("outputs", "Outputs", tuple(blocks))


def _output_badness(output: OutputCheck) -> tuple[bool, float]:
    return badness(output.check) if output.check is not None else (not output.decided, math.inf)


def _output(o: OutputCheck) -> tuple[str, ...]:
    ratio = "-"
    if o.check is not None:
        ratio = f"{o.check.ratio:.3g}{'' if o.check.passed else ' beyond'}"
        ratio = ratio if comparable(o.check) else "not comparable"
    m = o.metrics
    if m is None:
        return (o.name, ratio, *["-"] * 8)
    snr = "same" if m.snr_db == math.inf else f"{m.snr_db:.1f} dB"
    ulps = (f"{ulp:.3g}" for ulp in (m.ulp_p50, m.ulp_p99, m.ulp_max))
    top1 = "-" if m.top1 is None else f"{m.top1:.1%}"
    return o.name, ratio, f"{m.max_abs:.2g}", f"{m.max_rel:.2g}", *ulps, snr, f"{m.cosine:.8f}", top1


def _spoken_ulps(outputs: Sequence[OutputCheck]) -> str:
    told = [
        f"'{clipped(o.name)}' at most {o.metrics.ulp_max:.3g} ulp" for o in outputs if o.metrics is not None
    ]
    return f"Histograms of differences: {', '.join(told)}"


# Independent checks


def witnesses(report: VerifyReport) -> Section | None:
    """onnxruntime, the recomputed constants, and what the two models say of themselves."""
    blocks: list[Block] = []
    if report.certificate is not None:
        blocks.append(
            Prose(f"Certificate, each folded constant recomputed exactly: {certified(report.certificate)}")
        )
    if report.runtime is not None:
        blocks += _runtime(report.runtime)
    if report.differences:
        blocks.append(_differences(report.differences))
    if report.algebra.borrowed:
        names = ", ".join(report.algebra.borrowed)
        blocks.append(Prose(f"Computed by onnxruntime, in its own precision: {names}"))
    feeds = (Items(report.algebra.feeds), Prose(f"Seed: {report.seed}."))
    if report.algebra.feeds:
        blocks.append(Folded("What both models were fed", feeds))
    return Section("witnesses", "Independent checks", tuple(blocks)) if blocks else None


def _runtime(runtime: RuntimeReport) -> list[Block]:
    told = (
        f"onnxruntime: {runtime.verdict.value}. {runtime.message} Each model's values in onnxruntime are "
        "held against its own in float64; whether the two models are alike is told above."
    )
    blocks: list[Block] = [Prose(told.strip())]
    rows = [
        (
            c.output,
            c.level,
            c.feed,
            f"{c.reference_error:.3g}",
            f"{c.candidate_error:.3g}" if c.candidate_error or math.isfinite(c.ratio) else "-",
            f"{c.ratio:.3g}" if math.isfinite(c.ratio) else "no number",
            "accepted" if c.passed else "beyond",
        )
        for c in sorted(runtime.checks, key=lambda c: (not c.passed, c.ratio), reverse=True)
    ]
    if rows:
        head = (
            "output",
            "optimization",
            "feed",
            "reference's error",
            "candidate's error",
            "ratio",
            "verdict",
        )
        blocks.append(
            Folded(
                f"{many(len(rows), 'comparison')} in onnxruntime",
                (
                    Prose(_AGAINST),
                    table("onnxruntime against float64", head, "=<<>>><", rows),
                ),
            )
        )
    return [*blocks, *([Items(runtime.findings)] if runtime.findings else [])]


def _differences(differences: Sequence[Difference]) -> Block:
    rows = [(d.what, d.reference, d.candidate) for d in differences]
    return table(
        "What the two models say of themselves differently", ("what", "reference", "candidate"), "<==", rows
    )


# Export


def module(report: ExportReport) -> Section:
    """What came out of the module, and how it compares with it."""
    check = report.module
    interface = [("input", each) for each in report.inputs] + [("output", each) for each in report.outputs]
    blocks: list[Block] = [
        table("Interface of the model", ("what", "name, type and shape"), "<=", interface),
        Prose(f"ONNX opset: {report.opset}."),
    ]
    if report.notes:
        blocks.append(Items(report.notes))
    if check is None:
        blocks.append(Prose("It was not compared with the module, as asked.", strong=True))
    else:
        told = against_module(check) if check.outputs else check.message
        blocks.append(Prose(f"Against the module in PyTorch: {check.verdict.value}. {told}"))
        if check.outputs:
            rows = [_check(c) for c in check.outputs]
            blocks.append(table("Outputs against those of the module", _CHECK_HEAD, _CHECK_ALIGNED, rows))
        if check.feeds:
            blocks.append(Folded("What both were fed", (Items(check.feeds),)))
    return Section("module", "The model and its module", tuple(blocks))
