"""What was looked at, one by one, as a test runner counts it: sites, outputs, gates, layers.

A case fails only if the whole does; what stays in the model, or was not asked, is told by a case that passes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from ..recalibration import LayerReport, Method, RecalibrateReport
from ..report import Decision, ModuleCheck, Outcome
from ..verification import OutputCheck, RuntimeReport, TensorCheck, Verdict, VerifyReport
from .comparison import certified, told, unlike
from .page import many, printable
from .text import WAYS, place

_FAILING = 20  # tensors that are told one by one


class Status(StrEnum):
    """What is said at the top, and what a test runner makes of it."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"
    ERROR = "error"


SEVERITY = [Status.ERROR, Status.FAIL, Status.UNDECIDED, Status.PASS]


@dataclass(frozen=True)
class Case:
    """One thing that was looked at, as a test runner counts it.

    Attributes:
        name: What: "output 'y'", "BatchNormalization 'bn1'", "onnxruntime".
        status: What was found.
        message: What is wrong, or why it stays and what to do, or what was done; may be "".
    """

    name: str
    status: Status
    message: str = ""


def worst_first(cases: Iterable[Case]) -> tuple[Case, ...]:
    return tuple(sorted(cases, key=lambda case: SEVERITY.index(case.status)))


def sites(
    decisions: Iterable[Decision], *, done: bool, unwanted: Collection[Decision] = ()
) -> Iterator[Case]:
    """One per decision.

    Args:
        decisions: In any order.
        done: Whether it was carried out.
        unwanted: Those that count as failures.
    """
    for d in decisions:
        name = f"{'BatchNormalization' if d.batchnorms else d.op_types[0]} '{place(d)}'"
        status = Status.FAIL if d in unwanted else Status.PASS
        yield Case(name, status, _stays(d) if d.outcome is Outcome.KEPT else _goes(d, done))


def _stays(d: Decision) -> str:
    if d.reason is None:
        return "stays"
    return f"stays, {d.reason}: {d.reason.sentence} {printable(d.detail)}. {d.reason.remedy}"


def _goes(d: Decision, done: bool) -> str:
    into = ", ".join(f"{kind} '{printable(n)}'" for kind, n in zip(d.into_types, d.into, strict=True))
    text = ("" if done else "would be ") + WAYS[d.outcome] + (f" into {into}" if into else "")
    text += f"; {', '.join(d.left)} stays behind" if d.left else ""
    return text + (f"; {printable(d.detail)}" if d.detail else "")


def comparison(report: VerifyReport) -> Iterator[Case]:
    """The outputs, the tensors inside, onnxruntime, the constants, and what the models say of themselves."""
    algebra = report.algebra
    for output in algebra.outputs:
        yield _output(output, report.tolerance)
    failing = [check for check in algebra.tensors if not check.passed]
    for check in failing[:_FAILING]:
        yield Case(f"tensor '{printable(check.name)}'", Status.FAIL, told(check))
    if len(failing) > _FAILING:
        more = many(len(failing) - _FAILING, "tensor")
        yield Case(f"{more} more", Status.FAIL, "beyond the tolerance as well, behind those named")
    within = [check for check in algebra.tensors if check.passed]
    if within:
        worst = max(within, key=lambda check: check.ratio)
        message = f"at worst {worst.ratio:.3g} times the noise, at '{printable(worst.name)}'"
        yield Case(f"{many(len(within), 'inner tensor')} within the tolerance", Status.PASS, message)
    if report.runtime is not None:
        yield _runtime(report.runtime)
    if report.certificate is not None:
        status = Status.FAIL if report.certificate.verdict is Verdict.FAIL else Status.PASS
        yield Case("folded constants", status, certified(report.certificate))
    for difference in report.differences:
        yield Case(f"structure: {printable(difference.what)}", Status.PASS, unlike(difference))


def _output(output: OutputCheck, tolerance: float) -> Case:
    name, check = f"output '{printable(output.name)}'", output.check
    if check is not None:
        return _judged(name, check, tolerance)
    missing = printable(output.missing)
    if output.decided:
        return Case(name, Status.PASS, f"known to be alike, not compared itself: {missing}")
    return Case(name, Status.UNDECIDED, f"not compared: {missing}")


def _judged(name: str, check: TensorCheck, tolerance: float) -> Case:
    if not check.passed:
        return Case(name, Status.FAIL, told(check))
    return Case(name, Status.PASS, f"{check.ratio:.3g} times the rounding noise ({tolerance:g} is accepted)")


def _runtime(runtime: RuntimeReport) -> Case:
    findings = "".join(f"; {printable(finding)}" for finding in runtime.findings)
    text = {
        Verdict.PASS: f"{many(len(runtime.checks), 'comparison')} alike",
        Verdict.FAIL: printable(runtime.message),
        Verdict.UNDECIDED: f"decides nothing: {printable(runtime.message)}",
    }[runtime.verdict]
    status = Status.FAIL if runtime.verdict is Verdict.FAIL else Status.PASS
    return Case("onnxruntime", status, text + findings)


def module_outputs(check: ModuleCheck) -> Iterator[Case]:
    """The outputs of an exported model beside those of its module."""
    for output in check.outputs:
        yield _judged(f"module's output '{printable(output.name)}'", output, check.tolerance)


def layers(report: RecalibrateReport) -> Iterator[Case]:
    """One per BatchNormalization, the most changed first."""
    for layer in sorted(report.layers, key=lambda layer: layer.output_drift, reverse=True):
        proven = report.method is Method.ONEPASS or layer.limit_used <= 1
        name = f"BatchNormalization '{printable(layer.name)}'"
        yield Case(name, Status.PASS if proven else Status.FAIL, _moved(layer, proven))


def _moved(layer: LayerReport, proven: bool) -> str:
    error = max(layer.mean_error, layer.var_error)
    text = (
        f"output moved by {layer.output_drift:.3g}, mean by {layer.mean_drift:.3g} standard deviations; "
        f"standard error {error:.2g}; gap {max(layer.mean_gap, layer.var_gap):.2g}"
    )
    return text if proven else f"{text}, {layer.limit_used:.3g} times what rounding explains"
