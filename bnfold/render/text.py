"""Folds as text for a terminal: what happened on one screen, every decision when asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from ..recalibration import RecalibrateReport
from ..report import (
    BatchNormFacts,
    Counts,
    Decision,
    ExportReport,
    FailureReport,
    FoldReport,
    InspectReport,
    ModuleCheck,
    OptimizeReport,
    Outcome,
    Reason,
    Report,
)
from ..verification import VerifyReport
from .comparison import compared, proof
from .page import Ink, Page, called, many, printable, table
from .recalibration import recalibrated, settled

_SCREENFUL = 20  # lines of a table; what is longer is grouped
_EXAMPLES = 2

# As others call it: "backward" is into the nodes before, "forward" into the nodes after.
_FATES = {
    Outcome.PULLED: "folds backward",
    Outcome.PUSHED: "folds forward",
    Outcome.REMOVED: "goes: identity",
    Outcome.MERGED: "is merged",
}
WAYS = {
    Outcome.PULLED: "pulled backward",
    Outcome.PUSHED: "pushed forward",
    Outcome.REMOVED: "removed (the identity)",
    Outcome.MERGED: "merged with neighbours",
}


def told(report: Report, page: Page) -> str:
    """Any report, or the message of a command that came to none."""
    match report:
        case OptimizeReport():
            return optimized(report, page)
        case ExportReport():
            return exported(report, page)
        case InspectReport():
            return inspected(report, page)
        case VerifyReport():
            return compared(report, page)
        case RecalibrateReport():
            return recalibrated(report, page)
        case FailureReport():
            return "\n".join(page.prose(printable(report.message)))


def optimized(report: OptimizeReport, page: Page) -> str:
    """What `optimize` did: how much was folded, what stays and why, whether it was checked, where it is."""
    lines = [page.paint(line, Ink.BOLD) for line in page.prose(optimize_headline(report))]
    if report.recalibration is not None:
        lines += ["", *settled(report.recalibration, page)]
    lines += _folded(report.fold, page)
    lines += ["", *_proof(report, page), *page.prose(_whereabouts(report))]
    return "\n".join(lines)


def exported(report: ExportReport, page: Page) -> str:
    """What `export` did: what came in, what became of it, what it was compared with, where it is."""
    fold = report.fold
    lines = [page.paint(line, Ink.BOLD) for line in page.prose(export_headline(report))]
    lines.append("")
    for what, values in (("inputs", report.inputs), ("outputs", report.outputs)):
        lines += page.prose(f"{what}: {', '.join(map(printable, values)) or 'none'}", 2, 2)
    lines += page.prose(f"ONNX opset: {report.opset}", 2)
    for note in report.notes:
        lines += page.prose(f"- {printable(note)}", 2, 2)
    if fold is not None:
        lines += _folded(fold, page)
    lines += ["", *_module_proof(report, page)]
    target = "" if report.target is None else called(report.target, "standard output")
    where = f"Written to {target}." if target else "Nothing was written: this was a dry run."
    return "\n".join([*lines, *page.prose(where)])


def _folded(fold: FoldReport, page: Page) -> Iterator[str]:
    """How much was folded, what stays and why."""
    if fold.modified:
        yield from ("", *_counts(fold.before, fold.after, page), "", *page.prose(ways(fold.decisions)))
    yield from _stays(fold.decisions, page)
    if page.verbose and fold.decisions:
        yield from ("", "Every decision:", *_each(fold.decisions, page))


def inspected(report: InspectReport, page: Page) -> str:
    """What `inspect` found: each BatchNormalization, the worst first, or groups of them if there are many."""
    found = report.batchnorms
    lines = [page.paint(line, Ink.BOLD) for line in page.prose(summary(report))]
    if found:
        worst_first = sorted(found, key=_badness, reverse=True)
        grouped = len(found) > _SCREENFUL and not page.verbose
        lines += ["", *(_grouped(worst_first, page) if grouped else _listed(worst_first, page))]
    lines += _stays(report.fold.decisions, page)
    if page.verbose and report.fold.decisions:
        lines += ["", "Every decision:", *_each(report.fold.decisions, page)]
    if report.foldable:
        lines += ["", *page.prose("Next: `bnfold optimize` folds what would fold, and proves the result.")]
    return "\n".join(lines)


def explained(reason: Reason, page: Page) -> str:
    """A reason, in full."""
    lines = [f"{page.paint(reason.value, Ink.CODE)}  {reason.name.lower().replace('_', ' ')}"]
    return "\n".join([*lines, *page.prose(reason.sentence, 2), *page.prose(reason.remedy, 2)])


def reasons(page: Page) -> str:
    """All reasons, briefly."""
    lines: list[str] = []
    for reason in Reason:
        first, *rest = page.prose(reason.sentence, 8)
        lines += [f"{page.paint(reason.value, Ink.CODE)}  {first.lstrip()}", *rest]
    return "\n".join(lines)


# optimize and export


def export_headline(report: ExportReport) -> str:
    if report.fold is not None:
        return headline(report.source, report.fold)
    has = many(report.batchnorms, "BatchNormalization")
    return f"{called(report.source)}: exported; nothing was folded, as asked; it has {has}"


def optimize_headline(report: OptimizeReport) -> str:
    told = headline(report.source, report.fold)
    if report.recalibration is None:
        return told
    return f"{told}; {many(len(report.recalibration.layers), 'BatchNormalization')} recalibrated before that"


def headline(origin: str, fold: FoldReport) -> str:
    source = called(origin, "standard input")
    total = fold.before.batchnorms
    gone = total - fold.after.batchnorms
    others = sum(d.outcome is not Outcome.KEPT and not d.batchnorms for d in fold.decisions)
    if not fold.modified:
        what = "nothing could be folded" if fold.decisions else "there is nothing to fold"
        return f"{source}: {what}" + (f"; it has {many(total, 'BatchNormalization')}" if total else "")
    if not total:
        return f"{source}: no BatchNormalization; {many(others, 'other affine run')} folded"
    also = f", and {many(others, 'other affine run')}" if others else ""
    return f"{source}: {gone} of {many(total, 'BatchNormalization')} folded{also}"


def _counts(before: Counts, after: Counts, page: Page) -> Iterator[str]:
    rows = [
        ("nodes", "before", "after"),
        ("BatchNormalization", str(before.batchnorms), str(after.batchnorms)),
        ("Mul, Add, ... by a constant", str(before.affines), str(after.affines)),
        ("all", str(before.nodes), str(after.nodes)),
    ]
    yield from table(rows, "<>>", page)


def _into(decisions: Sequence[Decision], outcome: Outcome) -> str:
    """The operators that took what went one way."""
    taken = {
        (d.graph, name): kind
        for d in decisions
        if d.outcome is outcome
        for name, kind in zip(d.into, d.into_types, strict=True)
    }
    kinds = Counter(taken.values()).most_common()
    return f" into {', '.join(f'{number} {kind}' for kind, number in kinds)}" if kinds else ""


def ways(decisions: Sequence[Decision]) -> str:
    """How many went where."""
    gone = Counter[Outcome](d.outcome for d in decisions if d.outcome is not Outcome.KEPT)
    left = Counter(op for d in decisions if d.outcome is not Outcome.KEPT for op in d.left)
    if not gone:
        return "Folded: none; only inputs or functions changed."
    text = ", ".join(
        f"{gone[outcome]} {way}{_into(decisions, outcome)}" for outcome, way in WAYS.items() if gone[outcome]
    )
    remains = " and ".join(f"{number} {op}" for op, number in left.items())
    stay = "stays" if left.total() == 1 else "stay"
    return f"Folded: {text}" + (f"; {remains} {stay} behind." if remains else ".")


def staying(d: Decision) -> tuple[str, ...]:
    """The operators of a run that are still there afterwards."""
    return d.op_types if d.outcome is Outcome.KEPT else d.left


def _stays(decisions: Sequence[Decision], page: Page) -> Iterator[str]:
    """What stays, grouped by reason; runs without a BatchNormalization in a line unless asked for."""
    kept = [d for d in decisions if d.outcome is Outcome.KEPT]
    mainly = [d for d in kept if d.batchnorms or page.verbose]
    others = [d for d in kept if not d.batchnorms and not page.verbose]
    groups = by_reason(mainly)
    if groups:
        yield from ("", page.paint("Stays, and why:", Ink.BOLD))
    for reason, group in groups:
        operators = Counter(op for d in group for op in d.op_types)
        what = ", ".join(f"{number} {op}" for op, number in operators.most_common())
        yield f"  {page.paint(reason.value, Ink.CODE)}  {what}"
        yield from page.prose(reason.sentence, 10)
        yield from page.prose(reason.remedy, 10)
        for decision in group[:_EXAMPLES]:
            yield from page.prose(f"- at {place(decision)}: {printable(decision.detail)}", 10, 2)
        if len(group) > _EXAMPLES:
            yield from page.prose(f"- and {len(group) - _EXAMPLES} more", 10)
    if others:
        codes = ", ".join(f"{len(group)} for {reason}" for reason, group in by_reason(others))
        yield ""
        yield from page.prose(f"Other multiplications and additions that stay: {codes} (-v tells more).")


def by_reason(decisions: Iterable[Decision]) -> list[tuple[Reason, list[Decision]]]:
    """The decisions by reason, the most frequent one first."""
    groups: dict[Reason, list[Decision]] = {}
    for decision in decisions:
        if decision.reason is not None:
            groups.setdefault(decision.reason, []).append(decision)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def _each(decisions: Iterable[Decision], page: Page) -> Iterator[str]:
    for d in decisions:
        what = f"{d.outcome.value:7} {place(d)} ({', '.join(d.op_types)})"
        if d.into:
            what += f" into {', '.join(map(printable, d.into))}"
        if d.left:
            what += f", leaving {', '.join(d.left)}"
        if d.reason is not None:
            what += f" {d.reason}"
        yield from page.prose(what + (f": {printable(d.detail)}" if d.detail else ""), 2, 8)


def _proof(report: OptimizeReport, page: Page) -> list[str]:
    if not report.fold.modified:
        what = "nothing was changed" if report.recalibration is None else "nothing was folded"
        return page.prose(f"Not verified: {what}, so there is nothing to compare.")
    if report.verification is None:
        return page.prose("Not verified, as asked.")
    first, *rest = page.prose("Verified: " + folded_proof(report, report.verification))
    return [first.replace("Verified", page.paint("Verified", Ink.GOOD), 1), *rest]


def folded_proof(report: OptimizeReport, verification: VerifyReport) -> str:
    """What the fold was compared with: where the model was recalibrated before, with that."""
    if report.recalibration is None:
        return proof(verification)
    return f"against the recalibrated model, {proof(verification, 'its')}"


def _module_proof(report: ExportReport, page: Page) -> Iterator[str]:
    """What the result was compared with: the module, and the unfolded export."""
    check, verification = report.module, report.verification
    if check is None:
        yield from page.prose("Not verified, as asked.")
        return
    text = f"Verified: {against_module(check)}"
    if verification is not None:
        text += f" Folded against unfolded: {proof(verification)}"
    first, *rest = page.prose(text)
    yield first.replace("Verified", page.paint("Verified", Ink.GOOD), 1)
    yield from rest


def against_module(check: ModuleCheck) -> str:
    worst = max((c.ratio for c in check.outputs), default=0.0)
    outputs = many(len(check.outputs), "output")
    differ = "differs" if len(check.outputs) == 1 else "differ"
    precision = "double precision" if check.precision == "double" else "its own precision"
    why = f" ({printable(check.note)})" if check.note else ""
    return (
        f"{outputs} {differ} from the module in PyTorch in {precision}{why} by {worst:.2g} times the model's "
        f"own rounding noise at most ({check.tolerance:g} is accepted; {many(len(check.feeds), 'feed')})."
    )


def _whereabouts(report: OptimizeReport) -> str:
    if report.target is None:
        return "Nothing was written: this was a dry run."
    target = called(report.target, "standard output")
    same = not report.fold.modified and report.recalibration is None
    return f"Written to {target}" + (": a copy of the original." if same else ".")


# inspect


def summary(report: InspectReport) -> str:
    source, found = called(report.source, "standard input"), report.batchnorms
    if not found:
        return f"{source}: no BatchNormalization"
    would = len(report.foldable)
    parameters = sum(b.parameters or 0 for b in found)
    trained = sum(b.trained or 0 for b in found)
    sizes = f"{parameters:,} parameters, {trained:,} of them trainable"
    return f"{source}: {many(len(found), 'BatchNormalization')} with {sizes}; {would} would fold"


def _badness(facts: BatchNormFacts) -> tuple[bool, bool, bool, bool]:
    kept = facts.decision.outcome is Outcome.KEPT
    return facts.non_finite > 0, kept, facts.untouched, facts.dead > 0


def _statistics(facts: BatchNormFacts) -> str:
    """The parameters at a glance."""
    if facts.non_finite:
        return f"{facts.non_finite} not finite"
    if facts.untouched:
        return "never trained"
    return f"{facts.dead} dead" if facts.dead else "fine"


def fate(decision: Decision) -> str:
    return _FATES.get(decision.outcome, f"stays: {decision.reason}")


def _listed(found: Iterable[BatchNormFacts], page: Page) -> Iterator[str]:
    """One line each."""
    rows: list[tuple[str, ...]] = [("node", "channels", "parameters", "trainable", "statistics", "outcome")]
    for b in found:
        sizes = ("?" if n is None else str(n) for n in (b.channels, b.parameters, b.trained))
        rows.append((_row_name(b), *sizes, _statistics(b), fate(b.decision)))
    yield from table(rows, "<>>><<", page, spare=((2,), (3,), (1,), (4,)))


def _grouped(found: Iterable[BatchNormFacts], page: Page) -> Iterator[str]:
    """One line for all that are in the same state and have the same fate."""
    groups: dict[tuple[str, str], list[BatchNormFacts]] = {}
    for b in found:
        kind = "some dead" if b.dead and not b.non_finite and not b.untouched else _statistics(b)
        groups.setdefault((kind, fate(b.decision)), []).append(b)
    rows = [("for example", "how many", "channels", "statistics", "outcome")]
    for (kind, outcome), group in groups.items():
        sizes = sorted({b.channels for b in group if b.channels is not None})
        span = "?" if not sizes else f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]}"
        rows.append((_row_name(group[0]), str(len(group)), span, kind, outcome))
    yield from table(rows, "<>><<", page, spare=((2,), (3,)))
    yield ""
    yield "-v lists each of them."


def _row_name(facts: BatchNormFacts) -> str:
    """The name in a table of nothing but BatchNormalizations, which exporters like to repeat in it."""
    return _named(facts.decision.graph, facts.node.removesuffix("/BatchNormalization") or facts.node)


# Words


def place(decision: Decision) -> str:
    """The first node of a run, as one would look for it."""
    name = _named(decision.graph, decision.nodes[0] if decision.nodes else decision.value)
    return name if len(decision.nodes) < 2 else f"{name} to {printable(decision.nodes[-1])}"


def _named(graph: str, node: str) -> str:
    return printable(f"{graph}/{node}" if graph else node)
