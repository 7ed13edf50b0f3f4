"""What a fold changed and what it left, as sections of a page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from .. import changes as drawn
from ..changes import Changes, FoldedSite, Size
from ..report import BatchNormFacts, Decision, FoldReport, Outcome
from .blocks import Block, Folded, Pair, Picture, Prose, Section, clipped, table
from .drawing import MOST_BOXES, drawing
from .figures import MOST_POINTS, panels, ranges
from .page import many
from .text import WAYS, by_reason, fate, place, staying, ways

MOST_DRAWN = 2000  # boxes in all drawings together
_MOST_OTHERS = 500

_LEGEND = (
    "Data flows from the top to the bottom. A dashed red box with its name struck out goes; a thick blue one "
    "takes its scale and shift into its own constants; an amber one is what had to stay behind; thin ones "
    "are on the way, or neighbours, at most four on each side of a node. Each box says so as well. Before is "
    "the model before all folds, after the one after all of them."
)
_STORED = (
    "A BatchNormalization of C channels stores 4C numbers: scale and bias, which are trained, mean and "
    "variance, which are measured. A dead channel has a scale or a variance of 0; "
    "one that was never trained has mean 0 and variance 1 throughout."
)


def sizes(fold: FoldReport, changes: Changes | None) -> Section:
    """How large the model was and is."""
    before, after = fold.before, fold.after
    rows = [
        _change("BatchNormalization nodes", before.batchnorms, after.batchnorms),
        _change("Mul, Add, Sub, Div, Neg by a constant", before.affines, after.affines),
        _change("all nodes", before.nodes, after.nodes),
    ]
    blocks: list[Block] = []
    if changes is not None:
        rows.append(
            _change("parameters (numbers stored)", changes.before.parameters, changes.after.parameters)
        )
        rows.append(_change("bytes of parameters", changes.before.bytes, changes.after.bytes))
    blocks.append(
        table("The model before and after the fold", ("", "before", "after", "change"), "<>>>", rows)
    )
    if changes is not None:
        blocks += _operators(changes.before, changes.after)
    return Section("sizes", "Size before and after", tuple(blocks))


def _change(what: str, before: int, after: int) -> tuple[str, str, str, str]:
    difference = after - before
    return what, f"{before:,}", f"{after:,}", f"{difference:+,}" if difference else "none"


def _operators(before: Size, after: Size) -> Iterator[Block]:
    kinds = sorted(before.operators.keys() | after.operators.keys())
    counts = [(kind, before.operators.get(kind, 0), after.operators.get(kind, 0)) for kind in kinds]
    rows = [_change(kind, a, b) for kind, a, b in sorted(counts, key=lambda c: c[2] - c[1]) if a != b]
    same = len(kinds) - len(rows)
    if rows:
        yield table("Operators whose number changed", ("operator", "before", "after", "change"), "=>>>", rows)
    yield Prose(f"{many(same, 'operator')} occur{'s' if same == 1 else ''} as often as before.")


# Folds


def folds(fold: FoldReport, changes: Changes | None) -> Section | None:
    """Every site that does not stay, those of one kind together."""
    done = [(i, d) for i, d in enumerate(fold.decisions) if d.outcome is not Outcome.KEPT]
    if not done:
        return None
    sites = {site.decision: site for site in changes.sites} if changes is not None else {}
    groups: dict[object, list[int]] = {}
    for i, d in done:
        kind = _shape(sites[i]) if i in sites else (d.op_types, d.into_types, d.left)
        groups.setdefault((d.outcome, kind), []).append(i)
    members = sorted(groups.values(), key=len, reverse=True)
    pictured = _pictured([[sites[i] for i in group if i in sites] for group in members])
    shown = sum(map(len, pictured))
    blocks: list[Block] = [
        Prose(ways(fold.decisions)),
        Prose(
            "Pulled means: into the operators that come before; pushed: into those that come after; merged: "
            "several of a run became fewer, which stay; removed: it had no effect. "
            "Folds of one shape stand together."
        ),
    ]
    if sites:
        blocks.append(Prose(_LEGEND))
    if shown < len(sites):
        blocks.append(Prose(_not_all(len(sites), shown, len(groups)), strong=True))
    for i, (group, found) in enumerate(zip(members, pictured, strict=True)):
        blocks.append(_group(fold.decisions, group, found, opened=i == 0))
    return Section("folds", "What folds", tuple(blocks))


def _pictured(groups: Sequence[Sequence[FoldedSite]]) -> list[Sequence[FoldedSite]]:
    """All, or the first of each shape, while there is room."""
    if sum(_boxes(site) for group in groups for site in group) <= MOST_DRAWN:
        return list(groups)
    left, found = MOST_DRAWN, []
    for group in groups:
        left -= sum(map(_boxes, group[:1]))
        found.append(group[:1] if left >= 0 else [])
    return found


def _boxes(site: FoldedSite) -> int:
    return sum(min(len(picture.nodes), MOST_BOXES) for picture in (site.before, site.after))


def _not_all(folds: int, shown: int, shapes: int) -> str:
    if shown == shapes:
        return f"There are {folds:,} folds: of each shape only the first is drawn."
    return f"There are {folds:,} folds of {shapes:,} shapes: the first of {shown:,} shapes is drawn."


def _shape(site: FoldedSite) -> object:
    """What two sites of one kind have in common: all but the names."""
    place = {node.key: i for i, node in enumerate([*site.before.nodes, *site.after.nodes])}

    def outline(picture: drawn.Picture) -> object:
        kinds = tuple((node.op_type, node.role, place[node.key]) for node in picture.nodes)
        return kinds, tuple((place[a], place[b]) for a, b in picture.edges)

    return outline(site.before), outline(site.after)


def _group(
    decisions: Sequence[Decision], members: Sequence[int], pictured: Sequence[FoldedSite], opened: bool
) -> Block:
    first = decisions[members[0]]
    way = _chain(pictured[0].before) if pictured else " → ".join(first.op_types)
    rows = [_member(decisions[i]) for i in members]
    head = ("site", "into", "channels", "stays behind", "remark")
    pairs = [_pair(decisions[site.decision], site) for site in pictured]
    rest: tuple[Block, ...] = (
        (Folded(f"{many(len(pairs) - 1, 'more drawing')}", tuple(pairs[1:])),) if pairs[1:] else ()
    )
    return Folded(
        f"{len(members):,} x {clipped(way)}: {WAYS[first.outcome]}",
        (*pairs[:1], table("The folds of this shape", head, "==>==", rows), *rest),
        opened,
    )


def _chain(picture: drawn.Picture) -> str:
    """The main way through a picture, in a line."""
    names = [node.op_type for node in picture.nodes]
    main = names if len(names) <= 6 else [*names[:5], f"{len(names) - 5} more"]
    return " → ".join(main) if _is_chain(picture) else ", ".join(main)


def _is_chain(picture: drawn.Picture) -> bool:
    keys = [node.key for node in picture.nodes]
    return set(picture.edges) == set(pairwise(keys))


def _member(d: Decision) -> tuple[str, ...]:
    channels = "" if d.channels is None else f"{d.channels:,}"
    return place(d), ", ".join(d.into), channels, ", ".join(d.left), d.detail


def _pair(d: Decision, site: FoldedSite) -> Pair:
    into = f" into {clipped(', '.join(d.into))}" if d.into else ""
    told = f"{clipped(place(d))}: {WAYS[d.outcome]}{into}"
    return Pair(drawing(site.before, f"Before, {told}"), drawing(site.after, f"After, {told}"), told)


# What stays


def stays(fold: FoldReport) -> Section | None:
    """What is kept, grouped by reason."""
    kept = [d for d in fold.decisions if d.reason is not None]
    norms = by_reason(d for d in kept if "BatchNormalization" in staying(d))
    others = by_reason(d for d in kept if "BatchNormalization" not in staying(d))
    blocks: list[Block] = []
    if not norms and fold.before.batchnorms:
        blocks.append(Prose("No BatchNormalization stays."))
    for reason, group in norms:
        number = sum(staying(d).count("BatchNormalization") for d in group)
        blocks.append(
            Prose(f"{many(number, 'BatchNormalization')}, {reason}: {reason.sentence}", strong=True)
        )
        blocks.append(Prose(f"What to do: {reason.remedy}"))
        rows = [_stayer(d) for d in group]
        blocks.append(
            table(f"Stays because of {reason}", ("node", "operators", "in particular"), "=<<", rows)
        )
    if others:
        runs = [(reason, d) for reason, group in others for d in group]
        told_runs = [
            (place(d), ", ".join(staying(d)), f"{reason}: {reason.sentence}", d.detail) for reason, d in runs
        ]
        head = ("node", "operators", "reason", "in particular")
        told = f"Other multiplications and additions by a constant that stay: {len(runs):,}"
        others_table = table("Other affine nodes that stay", head, "=<<<", told_runs, most=_MOST_OTHERS)
        blocks.append(Folded(told, (others_table,)))
    return Section("stays", "What stays, and why", tuple(blocks)) if blocks else None


def _stayer(d: Decision) -> tuple[str, str, str]:
    return (
        place(d),
        ", ".join(f"{n} {op}" if n > 1 else op for op, n in Counter(staying(d)).items()),
        d.detail,
    )


# Weights


def weights(changes: Changes, ident: str) -> Section | None:
    """The ranges of the constants that took something."""
    if not changes.ranges:
        return None
    rows = [
        (str(i), r.node, r.op_type, str(r.input), *_ends(r.before), *_ends(r.after))
        for i, r in enumerate(changes.ranges, 1)
    ]
    head = ("number", "node", "operator", "input", "lowest before", "highest", "lowest after", "highest")
    step = max(math.ceil(len(group) / MOST_POINTS) for _, group in panels(changes.ranges))
    caption = (
        "Each bar spans from the smallest to the largest number of one constant, in the order of the graph. "
        "After a fold the weights carry the scales of the normalization, the biases its shifts; a range that "
        "grows by orders of magnitude makes a later quantization harder."
    )
    if step > 1:
        caption += f" Up to {step} neighbouring constants share a bar, which spans them all."
    odd = sum(
        not math.isfinite(e)
        for r in changes.ranges
        for s in (r.before, r.after)
        if s
        for e in (s.low, s.high)
    )
    if odd:
        caption += " A constant that holds NaN or infinity has no bar there."
    label = f"Ranges of {many(len(rows), 'constant')} before and after the fold"
    return Section(
        "weights",
        "Ranges of the weights",
        (
            Picture(ranges(changes.ranges, f"{ident}ranges", label), caption, "ranges of constants"),
            Folded(
                "All ranges in numbers",
                (
                    table(
                        "Ranges of the weights",
                        head,
                        ">=<>>>>>",
                        rows,
                        elsewhere="other reports have none of these",
                    ),
                ),
            ),
        ),
    )


def _ends(found: drawn.Range | None) -> tuple[str, str]:
    return ("none", "none") if found is None else (f"{found.low:.4g}", f"{found.high:.4g}")


# Inspection


def batchnorms(found: Sequence[BatchNormFacts]) -> Section | None:
    """Each BatchNormalization, what it holds, and what would become of it."""
    if not found:
        return None
    rows = [
        (
            place(b.decision) if len(b.decision.nodes) == 1 else b.node,
            *("?" if n is None else f"{n:,}" for n in (b.channels, b.parameters, b.trained)),
            _statistics(b),
            fate(b.decision),
        )
        for b in found
    ]
    head = ("node", "channels", "parameters", "trainable", "statistics", "outcome")
    return Section(
        "batchnorms",
        "Every BatchNormalization",
        (
            Prose(_STORED),
            table("BatchNormalizations in the order of the graph", head, "=>>><<", rows),
        ),
    )


def _statistics(b: BatchNormFacts) -> str:
    told = [f"{b.non_finite:,} not finite"] if b.non_finite else []
    told += ["never trained"] if b.untouched else []
    told += [f"{many(b.dead, 'dead channel')}"] if b.dead else []
    return ", ".join(told) or "fine"
