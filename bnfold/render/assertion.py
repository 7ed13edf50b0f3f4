"""Comparisons that did not pass as the message of a failed assertion, in the manner of
`torch.testing.assert_close`: that two models differ, how far, and where it begins."""

from __future__ import annotations

from ..verification import OutputCheck, TensorCheck, Verdict, VerifyReport
from .page import printable


def asserted(report: VerifyReport) -> str:
    """What a test says of two models that are not equivalent, or that could not be compared."""
    undecided = report.verdict is Verdict.UNDECIDED
    first = "the two models are not equivalent"
    if undecided:
        first = "undecided: nothing could be compared, or not all of it"
    lines = [first, "", f"Reference: {report.reference}", f"Candidate: {report.candidate}"]
    outputs = report.algebra.outputs
    wrong = [o for o in outputs if o.check is not None and not o.check.passed]
    if outputs:
        lines.append(f"Mismatched outputs: {len(wrong)} / {len(outputs)}")
    if wrong:
        lines += _figures(max(wrong, key=lambda o: o.check.ratio if o.check is not None else 0.0), report)
    is_named = report.culprit is not None and report.message == report.algebra.message
    lines.append(f"{'First tensor that differs' if is_named else 'Reason'}: {report.message}")
    lines += [f"Also found: {finding}" for finding in (report.runtime.findings if report.runtime else ())]
    return "\n".join(map(printable, lines))


def _figures(output: OutputCheck, report: VerifyReport) -> list[str]:
    assert output.check is not None
    lines = [f"Worst output: {_told(output.check, report.tolerance)}"]
    if output.metrics is not None:
        m = output.metrics
        lines += [
            f"Greatest absolute difference: {m.max_abs:.6g}",
            f"Greatest relative difference: {m.max_rel:.6g}",
            f"Greatest difference in units in the last place: {m.ulp_max:.6g}",
        ]
    return lines


def _told(check: TensorCheck, tolerance: float) -> str:
    if check.problem:
        return f"'{check.name}': {check.problem}"
    part = f" at {check.part}" if check.part else ""
    return f"'{check.name}': {check.ratio:.3g} times its rounding noise{part} (up to {tolerance:g} allowed)"
