"""Comparisons as text for a terminal: the verdict, what decided it, and the figures beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..verification import (
    AlgebraReport,
    Certificate,
    Difference,
    OutputCheck,
    RuntimeReport,
    TensorCheck,
    Verdict,
    VerifyReport,
)
from .page import Ink, Page, called, many, printable, table

_VERDICTS = {
    Verdict.PASS: "is the same function as",
    Verdict.FAIL: "is not the same function as",
    Verdict.UNDECIDED: "could not be compared with",
}
_INKS = {Verdict.PASS: Ink.GOOD, Verdict.FAIL: Ink.BAD, Verdict.UNDECIDED: Ink.BOLD}
_OUTPUTS = 12  # rows of the table; the worst come first
_FAILING = 4


def compared(report: VerifyReport, page: Page) -> str:
    """What `verify` found, on one screen."""
    first, *rest = page.prose(f"{report.verdict.value.upper()}: {sentence(report)}")
    lines = [page.paint(first, _INKS[report.verdict]), *rest]
    if report.message:
        lines += ["", *page.prose(printable(report.message))]
    lines += [*_outputs(report.algebra, page), "", *_float64(report, page)]
    if report.runtime is not None:
        lines += _runtime(report.runtime, page)
    if report.certificate is not None:
        lines += page.prose(f"Certificate: {certified(report.certificate)}", hang=2)
    if report.differences:
        deciding = report.verdict is not Verdict.PASS and interface(report)
        told = "" if deciding else "; this decides nothing here"
        lines += ["", *page.prose(f"What the two say of themselves differs{told}:")]
        for d in report.differences:
            lines += page.prose(f"- {unlike(d)}", 2, 2)
    if report.verdict is not Verdict.PASS:
        lines += ["", *page.prose(f"Next: {advice(report)}")]
    return "\n".join(lines)


def sentence(report: VerifyReport) -> str:
    """The verdict in words."""
    return f"{called(report.candidate)} {_VERDICTS[report.verdict]} {called(report.reference)}"


def proof(report: VerifyReport, whose: str = "the original's") -> str:
    """What a comparison that passed has compared, in a sentence or two; `whose` noise counts."""
    algebra = report.algebra
    checks = algebra.checks
    compared = many(len(checks), "tensor")
    if not any(check.error for check in checks):
        are = "is" if len(checks) == 1 else "are"
        text = f"{compared} of both models {are} the same in float64, to the last bit."
    else:
        worst = max(check.ratio for check in checks)
        accepted = f"{report.tolerance:g} is accepted"
        if worst > report.tolerance:
            accepted += "; more, where correct roundings add up and each stretch alone is within it"
        text = (
            f"{compared} of both models {'differs' if len(checks) == 1 else 'differ'} in float64 by "
            f"{worst:.2g} times {whose} own rounding "
            f"noise at most ({accepted})."
        )
    certificate = report.certificate
    if certificate is not None and certificate.verdict is Verdict.PASS:
        text += f" {many(certificate.parameters, 'folded constant')}, all correctly rounded."
    runtime = report.runtime
    if runtime is not None and runtime.verdict is Verdict.PASS:
        text += f" onnxruntime computes both alike ({many(len(runtime.checks), 'comparison')})."
    return text


def _outputs(algebra: AlgebraReport, page: Page) -> Iterator[str]:
    """One row per output, the worst first."""
    worst_first = sorted(algebra.outputs, key=lambda o: o.check.ratio if o.check else math.inf, reverse=True)
    rows: list[tuple[str, ...]] = [
        ("output", "ratio", "max abs", "max rel", "ulp p50", "p99", "max", "SNR", "cosine", "top-1")
    ]
    rows += [_row(output) for output in worst_first[:_OUTPUTS]]
    if len(rows) > 1:
        yield ""
        yield from table(rows, "<" + ">" * 9, page, spare=((5,), (8,), (3,), (9,), (7,), (4, 6)))
    if len(worst_first) > _OUTPUTS:
        yield f"  and {many(len(worst_first) - _OUTPUTS, 'output')} more"
    for output in algebra.outputs:
        if output.missing:
            yield from page.prose(
                f"'{printable(output.name)}' itself was not compared: {printable(output.missing)}", 2, 2
            )


def _row(output: OutputCheck) -> tuple[str, ...]:
    name, check, m = printable(output.name), output.check, output.metrics
    if check is None:
        return (name, *"-" * 9)
    ratio = "fails" if check.problem and not check.passed else f"{check.ratio:.2g}"
    if m is None:
        return (name, ratio, *"-" * 8)
    top1 = "-" if m.top1 is None else f"{m.top1:.0%}"
    snr = "same" if m.snr_db == math.inf else f"{m.snr_db:.0f} dB"
    ulps = (f"{ulp:.2g}" for ulp in (m.ulp_p50, m.ulp_p99, m.ulp_max))
    return name, ratio, f"{m.max_abs:.1e}", f"{m.max_rel:.1e}", *ulps, snr, f"{m.cosine:.6f}", top1


def _float64(report: VerifyReport, page: Page) -> Iterator[str]:
    algebra = report.algebra
    checks = algebra.checks
    failing = [check for check in checks if not check.passed]
    text = f"Float64: {many(len(checks), 'tensor')} of both models compared"
    if failing:
        text += f", {len(failing)} beyond the tolerance; the first of them below"
    elif any(check.error for check in checks):
        worst = max(checks, key=lambda check: check.ratio)
        where = printable(worst.name)
        text += f"; at worst {worst.ratio:.2g} times the reference's own rounding noise, at '{where}'"
    elif checks:
        text += "; all are equal, to the last bit"
    fed = f"{many(len(algebra.feeds), 'feed')}, {many(algebra.draws, 'draw')} of nudged constants"
    yield from page.prose(f"{text} ({report.tolerance:g} is accepted; {fed}).", hang=2)
    if failing:
        rows = [("tensor", "ratio", "where"), *map(_beyond, failing[:_FAILING])]
        yield from table(rows, "<><", page, spare=((2,),))
    if len(failing) > _FAILING:
        yield from page.prose(f"and {len(failing) - _FAILING} more; -v lists all.", 2)
    moved = [check for check in checks if check.passed and check.problem]
    for check in moved if page.verbose else moved[:2]:
        yield from page.prose(f"- '{printable(check.name)}': {printable(check.problem)}", 2, 2)
    if algebra.borrowed:
        names = ", ".join(map(printable, algebra.borrowed))
        yield from page.prose(f"- computed by onnxruntime, in its own precision: {names}", 2, 2)
    if page.verbose:
        yield ""
        yield from page.prose("Every tensor, in order of computation:")
        yield from table([("tensor", "node", "ratio"), *_each(checks)], "<<>", page, spare=((1,),))


def _beyond(check: TensorCheck) -> tuple[str, str, str]:
    what = check.problem or check.part or "everywhere"
    return printable(check.name), f"{check.ratio:.2g}", printable(what)


def _each(checks: Sequence[TensorCheck]) -> Iterator[tuple[str, str, str]]:
    for check in checks:
        yield printable(check.name), printable(check.node), f"{check.ratio:.2g}"


def told(check: TensorCheck) -> str:
    what = check.problem or f"{check.ratio:.3g} times its noise" + (f" at {check.part}" if check.part else "")
    return printable(f"'{check.name}' ({check.node or 'an input'}): {what}")


def _runtime(runtime: RuntimeReport, page: Page) -> Iterator[str]:
    text = f"onnxruntime: {runtime.verdict.value}"
    if runtime.checks:
        worst = max(check.ratio for check in runtime.checks)
        text += f"; {many(len(runtime.checks), 'comparison')}, worst ratio {worst:.2g}"
    yield from page.prose(text + (f"; {printable(runtime.message)}" if runtime.message else ""), hang=2)
    for finding in runtime.findings:
        yield from page.prose(f"- {printable(finding)}", 2, 2)


def interface(report: VerifyReport) -> bool:
    """Whether the two differ in what goes in or comes out, beyond what any tensor shows."""
    algebra = report.algebra
    lacking = any(o.check is None and not o.decided for o in algebra.outputs)
    return lacking and any(d.what in ("input", "output", "inputs", "outputs") for d in report.differences)


def unlike(d: Difference) -> str:
    """What one says of itself, and what the other."""
    return printable(f"{d.what}: {d.reference}; the candidate has {d.candidate}")


def certified(certificate: Certificate) -> str:
    if certificate.verdict is Verdict.PASS:
        numbers = f"{certificate.elements:,} numbers"
        return f"{many(certificate.parameters, 'folded constant')} ({numbers}), all correctly rounded."
    return printable(certificate.message)


def advice(report: VerifyReport) -> str:
    """What to do about a verdict that is no pass."""
    if report.verdict is Verdict.UNDECIDED:
        return (
            "if its inputs are at fault, feed it what it is made for, with --inputs and --shape NAME=SIZE; "
            "if an operator is not known here, compare both in the runtime that knows it."
        )
    culprit = report.culprit
    if culprit is None and interface(report):
        return "give the candidate the inputs and outputs of the reference, under the same names and types."
    if culprit is None:
        return "run both with the same input in the runtime that you deploy to."
    if any(output.check is culprit for output in report.algebra.outputs):
        return "compare what computes this output in the two files."
    return (
        f"compare what computes '{printable(culprit.name)}' in the two files. If equal names do not "
        "mean equal values there, compare the outputs alone: --outputs-only."
    )
