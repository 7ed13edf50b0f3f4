"""What a recalibration measured, as a section of a page."""

from __future__ import annotations

import math

from ..recalibration import LayerReport, RecalibrateReport
from .blocks import Block, Picture, Prose, Section, table
from .figures import drift
from .page import Page, many
from .recalibration import settled

_HEAD = (
    "number",
    "layer",
    "level",
    "channels",
    "mean moved",
    "variance moved",
    "output moved",
    "error of mean",
    "error of variance",
    "gap of mean",
    "gap of variance",
    "limit used",
    "remarks",
)


def recalibration(report: RecalibrateReport, ident: str) -> Section:
    """How far statistics moved, how certain they are, and what proves them."""
    told = " ".join(line.strip() for line in settled(report, Page()))
    blocks: list[Block] = [Prose(told)]
    if report.layers:
        found = many(len(report.layers), "BatchNormalization")
        label = f"Drift, standard errors and certificate of {found} in the order of the graph"
        blocks += [
            Picture(drift(report.layers, f"{ident}drift", label), _legend(report), "recalibrated statistics"),
            table("Layers in the order of the graph", _HEAD, ">=" + ">" * 10 + "<", _rows(report)),
        ]
    return Section("recalibration", "Recalibrated statistics", tuple(blocks))


def _legend(report: RecalibrateReport) -> str:
    text = (
        "Points are layers in the order of the graph, each by its worst channel. A mean moves in standard "
        "deviations of its channel; a variance by the logarithm of its change, 0.69 is a factor of two; an "
        "output by the root mean square of its change, in its own unit. The standard error tells how far "
        "other samples of the same data might have led: below 0.1 is usual. The certificate compares what is "
        "stored with what really comes in once all layers are done; up to 1 is rounding."
    )
    if any(math.isinf(x.mean_error) or math.isinf(x.var_error) for x in report.layers):
        text += " Errors on the upper edge are not known: a single sample does not tell."
    if any(0 in (x.mean_drift, x.var_drift, x.output_drift, x.limit_used) for x in report.layers):
        text += " What did not move at all, or uses nothing of its limit, lies on the lower edge."
    return text


def _rows(report: RecalibrateReport) -> list[tuple[str, ...]]:
    return [(str(i), *_row(layer)) for i, layer in enumerate(report.layers, 1)]


def _row(x: LayerReport) -> tuple[str, ...]:
    remarks = ["was never trained"] if x.untouched else []
    remarks += [many(x.dead, "dead channel")] if x.dead else []
    return (
        x.name.removesuffix("/BatchNormalization") or x.name,
        str(x.level),
        f"{x.channels:,}",
        f"{x.mean_drift:.3g} sd",
        f"x{math.exp(min(x.var_drift, 700.0)):.3g}",
        *(
            f"{v:.2g}" if math.isfinite(v) else "unknown"
            for v in (x.output_drift, x.mean_error, x.var_error, x.mean_gap, x.var_gap, x.limit_used)
        ),
        ", ".join(remarks),
    )
