"""Recalibrations as text for a terminal: how far statistics moved, how certain they are, and the proof."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..recalibration import LayerReport, Method, RecalibrateReport
from .page import Ink, Page, called, many, printable, table

_SCREENFUL = 8  # layers in a table, the most changed first
_UNCERTAIN = 0.1  # a standard error that may cost accuracy

_HEAD = ("layer", "level", "channels", "mean", "variance", "output", "uncertain by")
_HOW = {
    Method.EXACT: "exactly, level by level",
    Method.ONEPASS: "in one pass, with the statistics of batches",
    Method.BLEND: "level by level, blended with the statistics that were there",
}


def recalibrated(report: RecalibrateReport, page: Page) -> str:
    """What `recalibrate` did: what moved, how certain it is, whether it is proven, where it is."""
    source, layers = called(report.source, "standard input"), report.layers
    headline = f"{source}: {many(len(layers), 'BatchNormalization')} recalibrated"
    lines = [page.paint(line, Ink.BOLD) for line in page.prose(headline)]
    lines += ["", *settled(report, page), "", *_moved(report, page), ""]
    if report.target is None:
        lines += page.prose("Nothing was written: this was a dry run.")
    else:
        lines += page.prose(f"Written to {called(report.target, 'standard output')}.")
        lines += page.prose("Next: measure its accuracy; then `bnfold optimize` folds it.")
    return "\n".join(lines)


def settled(report: RecalibrateReport, page: Page) -> Iterator[str]:
    """On what the statistics rest, in a few lines."""
    processes = f", in {report.processes} processes" if report.processes > 1 else ""
    levels = f"; {many(report.levels, 'level')}" if report.method is not Method.ONEPASS else ""
    how = _HOW[report.method]
    samples = f"{report.samples:,} sample{'' if report.samples == 1 else 's'}"
    yield from page.prose(f"Recalibrated on {samples} {how}{levels}{processes}.")
    yield from _certified(report, page)
    worst = max(report.layers, key=_error)
    if math.isinf(_error(worst)):
        yield from page.prose("A single sample does not tell how certain the statistics are.")
    else:
        advice = ": more samples would be better" if _error(worst) > _UNCERTAIN else ""
        yield from page.prose(
            f"Least certain: {printable(worst.name)}, with a standard error of {_error(worst):.2g}{advice}."
        )
    dead = sum(layer.dead for layer in report.layers)
    if dead:
        yield from page.prose(f"{many(dead, 'channel')} had no variance: their input is constant.")
    untouched = sum(layer.untouched for layer in report.layers)
    if untouched:
        yield from page.prose(f"{untouched} had never been trained: their statistics were 0 and 1.")
    for note in report.notes:
        yield from page.prose(f"- {printable(note)}", 0, 2)


def _certified(report: RecalibrateReport, page: Page) -> Iterator[str]:
    mean = max(layer.mean_gap for layer in report.layers)
    var = max(layer.var_gap for layer in report.layers)
    figures = f"means are off by {mean:.2g} standard deviations at most, log variances by {var:.2g}"
    if report.method is Method.ONEPASS:
        yield from page.prose(f"In the finished model, {figures}: --method exact has no such error.")
        return
    if not report.is_exact:
        yield from page.prose(f"In the finished model, {figures}: more than rounding explains.")
        return
    first, *rest = page.prose(f"Verified: in the finished model, {figures}, as rounding explains.")
    yield first.replace("Verified", page.paint("Verified", Ink.GOOD), 1)
    yield from rest


def _moved(report: RecalibrateReport, page: Page) -> Iterator[str]:
    """The layers whose output changed most."""
    by_change = sorted(report.layers, key=lambda layer: layer.output_drift, reverse=True)
    shown = by_change if page.verbose else by_change[:_SCREENFUL]
    yield from page.prose("How far each moved, the most changed output first:")
    yield from table([_HEAD, *map(_row, shown)], "<>>>>>>", page, spare=((2,), (1,), (6,)))
    if len(shown) < len(by_change):
        yield from page.prose(f"  ... and {len(by_change) - len(shown)} that changed less; -v lists all.")


def _row(layer: LayerReport) -> tuple[str, ...]:
    """Means in standard deviations, variances as factors, outputs as they are."""
    return (
        printable(layer.name.removesuffix("/BatchNormalization") or layer.name),
        str(layer.level),
        str(layer.channels),
        f"{layer.mean_drift:.2g} sd",
        f"x{math.exp(min(layer.var_drift, 700.0)):.3g}",
        f"{layer.output_drift:.2g}",
        f"{_error(layer):.2g}",
    )


def _error(layer: LayerReport) -> float:
    return max(layer.mean_error, layer.var_error)
