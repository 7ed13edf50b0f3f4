"""Reports as text for a terminal: what happened on one screen, every decision when asked for.

Plain ASCII apart from the names of the model, whose control characters are spelled out: they are other
people's, and a terminal would obey them.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ..report import (
    BatchNormFacts,
    CheckReport,
    Counts,
    Decision,
    InspectReport,
    OptimizeReport,
    Outcome,
    Reason,
)

_NARROWEST, _WIDEST = 40, 100
_SCREENFUL = 20  # lines of a table; what is longer is grouped
_EXAMPLES = 2

# As others call it: "backward" is into the nodes before, "forward" into the nodes after.
_FATES = {
    Outcome.PULLED: "folds backward",
    Outcome.PUSHED: "folds forward",
    Outcome.REMOVED: "goes: identity",
    Outcome.MERGED: "is merged",
}
_WAYS = {
    Outcome.PULLED: "pulled backward",
    Outcome.PUSHED: "pushed forward",
    Outcome.REMOVED: "removed (the identity)",
    Outcome.MERGED: "merged with neighbours",
}


class _Ink(StrEnum):
    """How to begin a coloured piece."""

    BOLD = "\x1b[1m"
    GOOD = "\x1b[32m"
    CODE = "\x1b[36m"


@dataclass(frozen=True)
class Page:
    """What the reader looks at.

    Attributes:
        width: Columns.
        color: Whether it shows colours.
        verbose: Whether every decision is wanted.
    """

    width: int = 80
    color: bool = False
    verbose: bool = False

    def paint(self, text: str, ink: _Ink) -> str:
        return f"{ink}{text}\x1b[0m" if self.color else text

    def prose(self, text: str, indent: int = 0, hang: int = 0) -> list[str]:
        """The text in lines that fit; all but the first are indented by `hang` more."""
        width = min(max(self.width, _NARROWEST), _WIDEST)
        pad = " " * indent
        return textwrap.wrap(
            text,
            width,
            initial_indent=pad,
            subsequent_indent=pad + " " * hang,
            break_on_hyphens=False,
            break_long_words=False,  # they are names, and someone may want to copy them
        )


def optimized(report: OptimizeReport, page: Page) -> str:
    """What `optimize` did: how much was folded, what stays and why, whether it was checked, where it is."""
    lines = [page.paint(line, _Ink.BOLD) for line in page.prose(_headline(report))]
    fold = report.fold
    if fold.modified:
        lines += ["", *_counts(fold.before, fold.after, page), "", *page.prose(_ways(fold.decisions))]
    lines += _stays(fold.decisions, page)
    if page.verbose and fold.decisions:
        lines += ["", "Every decision:", *_each(fold.decisions, page)]
    lines += ["", *_proof(report, page), *page.prose(_whereabouts(report))]
    return "\n".join(lines)


def inspected(report: InspectReport, page: Page) -> str:
    """What `inspect` found: each BatchNormalization, the worst first, or groups of them if there are many."""
    found = report.batchnorms
    lines = [page.paint(line, _Ink.BOLD) for line in page.prose(_summary(report))]
    if found:
        worst_first = sorted(found, key=_badness, reverse=True)
        grouped = len(found) > _SCREENFUL and not page.verbose
        lines += ["", *(_grouped(worst_first, page) if grouped else _listed(worst_first, page))]
    lines += _stays(report.fold.decisions, page)
    if page.verbose and report.fold.decisions:
        lines += ["", "Every decision:", *_each(report.fold.decisions, page)]
    return "\n".join(lines)


def explained(reason: Reason, page: Page) -> str:
    """A reason, in full."""
    lines = [f"{page.paint(reason.value, _Ink.CODE)}  {reason.name.lower().replace('_', ' ')}"]
    return "\n".join([*lines, *page.prose(reason.sentence, 2), *page.prose(reason.remedy, 2)])


def reasons(page: Page) -> str:
    """All reasons, briefly."""
    lines: list[str] = []
    for reason in Reason:
        first, *rest = page.prose(reason.sentence, 8)
        lines += [f"{page.paint(reason.value, _Ink.CODE)}  {first.lstrip()}", *rest]
    return "\n".join(lines)


def printable(text: str) -> str:
    """The text in one line, with everything a terminal might obey spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# optimize


def _headline(report: OptimizeReport) -> str:
    source, fold = _called(report.source, "standard input"), report.fold
    total = fold.before.batchnorms
    gone = total - fold.after.batchnorms
    others = sum(d.outcome is not Outcome.KEPT and not d.batchnorms for d in fold.decisions)
    if not fold.modified:
        what = "nothing could be folded" if fold.decisions else "there is nothing to fold"
        return f"{source}: {what}" + (f"; it has {_many(total, 'BatchNormalization')}" if total else "")
    if not total:
        return f"{source}: no BatchNormalization; {_many(others, 'other affine run')} folded"
    also = f", and {_many(others, 'other affine run')}" if others else ""
    return f"{source}: {gone} of {_many(total, 'BatchNormalization')} folded{also}"


def _counts(before: Counts, after: Counts, page: Page) -> Iterator[str]:
    rows = [
        ("nodes", "before", "after"),
        ("BatchNormalization", str(before.batchnorms), str(after.batchnorms)),
        ("Mul, Add, ... by a constant", str(before.affines), str(after.affines)),
        ("all", str(before.nodes), str(after.nodes)),
    ]
    yield from _table(rows, "<>>", page)


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


def _ways(decisions: Sequence[Decision]) -> str:
    """How many went where."""
    ways = Counter[Outcome](d.outcome for d in decisions if d.outcome is not Outcome.KEPT)
    left = Counter(op for d in decisions if d.outcome is not Outcome.KEPT for op in d.left)
    if not ways:
        return "Folded: none; only inputs or functions changed."
    text = ", ".join(
        f"{ways[outcome]} {way}{_into(decisions, outcome)}" for outcome, way in _WAYS.items() if ways[outcome]
    )
    remains = " and ".join(f"{number} {op}" for op, number in left.items())
    return f"Folded: {text}" + (f"; {remains} stay behind." if remains else ".")


def _stays(decisions: Sequence[Decision], page: Page) -> Iterator[str]:
    """What stays, grouped by reason; runs without a BatchNormalization in a line unless asked for."""
    kept = [d for d in decisions if d.outcome is Outcome.KEPT]
    mainly = [d for d in kept if d.batchnorms or page.verbose]
    others = [d for d in kept if not d.batchnorms and not page.verbose]
    groups = _by_reason(mainly)
    if groups:
        yield from ("", page.paint("Stays, and why:", _Ink.BOLD))
    for reason, group in groups:
        operators = Counter(op for d in group for op in d.op_types)
        what = ", ".join(f"{number} {op}" for op, number in operators.most_common())
        yield f"  {page.paint(reason.value, _Ink.CODE)}  {what}"
        yield from page.prose(reason.sentence, 10)
        yield from page.prose(reason.remedy, 10)
        for decision in group[:_EXAMPLES]:
            yield from page.prose(f"- at {_place(decision)}: {printable(decision.detail)}", 10, 2)
        if len(group) > _EXAMPLES:
            yield from page.prose(f"- and {len(group) - _EXAMPLES} more", 10)
    if others:
        codes = ", ".join(f"{len(group)} for {reason}" for reason, group in _by_reason(others))
        yield ""
        yield from page.prose(f"Other multiplications and additions that stay: {codes} (-v tells more).")


def _by_reason(decisions: Iterable[Decision]) -> list[tuple[Reason, list[Decision]]]:
    """The decisions by reason, the most frequent one first."""
    groups: dict[Reason, list[Decision]] = {}
    for decision in decisions:
        if decision.reason is not None:
            groups.setdefault(decision.reason, []).append(decision)
    return sorted(groups.items(), key=lambda item: -len(item[1]))


def _each(decisions: Iterable[Decision], page: Page) -> Iterator[str]:
    for d in decisions:
        what = f"{d.outcome.value:7} {_place(d)} ({', '.join(d.op_types)})"
        if d.into:
            what += f" into {', '.join(map(printable, d.into))}"
        if d.left:
            what += f", leaving {', '.join(d.left)}"
        if d.reason is not None:
            what += f" {d.reason}"
        yield from page.prose(what + (f": {printable(d.detail)}" if d.detail else ""), 2, 8)


def _proof(report: OptimizeReport, page: Page) -> list[str]:
    check = report.check
    if not report.fold.modified:
        return page.prose("Not verified: nothing was changed, so there is nothing to compare.")
    if check is None:
        return page.prose("Not verified, as asked.")
    first, *rest = page.prose("Verified: " + _ratio(check))
    return [first.replace("Verified", page.paint("Verified", _Ink.GOOD), 1), *rest]


def _ratio(check: CheckReport) -> str:
    worst = max((output.ratio for output in check.outputs), default=0.0)
    over = f"over {_many(check.runs, 'run')} and {_many(len(check.outputs), 'output')}"
    if not any(output.error for output in check.outputs):
        return f"the outputs are the same, bit for bit, {over}."
    return (
        f"the outputs differ by {worst:.2g} times the original's own rounding noise at most"
        f" ({check.tolerance:g} is accepted), {over}."
    )


def _whereabouts(report: OptimizeReport) -> str:
    if report.target is None:
        return "Nothing was written: this was a dry run."
    target = _called(report.target, "standard output")
    return f"Written to {target}" + ("." if report.fold.modified else ": a copy of the original.")


# inspect


def _summary(report: InspectReport) -> str:
    source, found = _called(report.source, "standard input"), report.batchnorms
    if not found:
        return f"{source}: no BatchNormalization"
    would = sum(b.decision.outcome not in (Outcome.KEPT, Outcome.MERGED) for b in found)
    parameters = sum(b.parameters or 0 for b in found)
    trained = sum(b.trained or 0 for b in found)
    sizes = f"{parameters:,} parameters, {trained:,} of them trained"
    return f"{source}: {_many(len(found), 'BatchNormalization')} with {sizes}; {would} would fold"


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


def _fate(decision: Decision) -> str:
    return _FATES.get(decision.outcome, f"stays: {decision.reason}")


def _listed(found: Iterable[BatchNormFacts], page: Page) -> Iterator[str]:
    """One line each."""
    rows: list[tuple[str, ...]] = [("node", "channels", "parameters", "trained", "statistics", "outcome")]
    for b in found:
        sizes = ("?" if n is None else str(n) for n in (b.channels, b.parameters, b.trained))
        rows.append((_row_name(b), *sizes, _statistics(b), _fate(b.decision)))
    yield from _table(rows, "<>>><<", page, spare=(2, 3))


def _grouped(found: Iterable[BatchNormFacts], page: Page) -> Iterator[str]:
    """One line for all that are in the same state and have the same fate."""
    groups: dict[tuple[str, str], list[BatchNormFacts]] = {}
    for b in found:
        kind = "some dead" if b.dead and not b.non_finite and not b.untouched else _statistics(b)
        groups.setdefault((kind, _fate(b.decision)), []).append(b)
    rows = [("for example", "how many", "channels", "statistics", "outcome")]
    for (kind, fate), group in groups.items():
        sizes = sorted({b.channels for b in group if b.channels is not None})
        span = "?" if not sizes else f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]}"
        rows.append((_row_name(group[0]), str(len(group)), span, kind, fate))
    yield from _table(rows, "<>><<", page, spare=(2,))
    yield ""
    yield "-v lists each of them."


def _row_name(facts: BatchNormFacts) -> str:
    """The name in a table of nothing but BatchNormalizations, which exporters like to repeat in it."""
    return _named(facts.decision.graph, facts.node.removesuffix("/BatchNormalization") or facts.node)


def _table(
    rows: Sequence[Sequence[str]], aligned: str, page: Page, spare: Sequence[int] = ()
) -> Iterator[str]:
    """Columns; on a narrow page the first gives way, in the middle of its names.

    Args:
        rows: The cells; the head comes first.
        aligned: "<" or ">" per column.
        page: Where it goes.
        spare: Columns that go when there is no room for twelve characters in the first.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = page.width - sum(width + 2 for width in widths[1:]) - 2
    if spare and room < min(12, widths[0]):
        fewer = [[cell for i, cell in enumerate(row) if i not in spare] for row in rows]
        yield from _table(fewer, "".join(a for i, a in enumerate(aligned) if i not in spare), page)
        return
    widths[0] = min(widths[0], max(room, 12))
    for first, *others in rows:
        cells = zip((_shortened(first, widths[0]), *others), aligned, widths, strict=True)
        yield ("  " + "  ".join(f"{cell:{side}{width}}" for cell, side, width in cells)).rstrip()


def _shortened(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    tail = (width - 2) * 2 // 3
    return f"{name[: width - 2 - tail]}..{name[len(name) - tail :]}"


# Words


def _place(decision: Decision) -> str:
    """The first node of a run, as one would look for it."""
    name = _named(decision.graph, decision.nodes[0] if decision.nodes else decision.value)
    return name if len(decision.nodes) < 2 else f"{name} to {printable(decision.nodes[-1])}"


def _named(graph: str, node: str) -> str:
    return printable(f"{graph}/{node}" if graph else node)


def _called(path: str, stream: str) -> str:
    return stream if path == "-" else printable(path)


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
