"""Figures of reports as SVG, by matplotlib.

Whatever its user has set, matplotlib draws them alike, and the same figures give the same bytes. What it
writes is made fit for a page: no styles and no identifiers but those of the figure itself, and text as text,
in the page's own colour.
"""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ..changes import WeightRange
from ..recalibration import LayerReport
from ..verification import ULP_EDGES, OutputCheck, TensorCheck
from .blocks import Hue, clipped
from .page import printable

if TYPE_CHECKING:
    from matplotlib import RcParams
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 10.0  # inches of 72 units
_INK = "#000000"  # what matplotlib draws in this becomes the page's own colour
MOST_POINTS = 300
MOST_PANELS = 6
_LEADER = {"arrowstyle": "-", "color": Hue.GREY, "linewidth": 0.8, "shrinkA": 0}
_LETTERS = 40  # of a name in a figure


def growth(checks: Sequence[TensorCheck], tolerance: float, ident: str, label: str) -> str:
    """Error and noise of each tensor, in order of computation, and what is accepted."""
    shown = thinned(checks)
    finite = [v for c in shown if comparable(c) for v in (c.error, c.noise) if 0 < v < math.inf]
    low, high = min(finite, default=1e-16) / 5, max(finite, default=1.0) * max(tolerance, 1.0)
    high *= (high / low) ** 0.3  # room for names
    edges = [i - 0.5 for i in range(len(shown) + 1)]
    noise = [c.noise if 0 < c.noise < math.inf else math.nan for c in shown]
    with _figure(4.4) as figure:
        axes = figure.add_subplot()
        axes.set_yscale("log")
        accepted = [tolerance * n for n in noise]
        axes.stairs(
            accepted,
            edges,
            baseline=low,
            fill=True,
            color=Hue.GREEN,
            alpha=0.22,
            label=f"accepted: up to {tolerance:g} x noise",
        )
        axes.stairs(accepted, edges, baseline=None, color=Hue.GREEN, linewidth=1.0)
        axes.stairs(noise, edges, baseline=None, color=Hue.GREY, linewidth=1.5, label="noise")
        size = 5.0 if len(shown) < 100 else 3.5
        looks: dict[str, dict[str, Any]] = {
            "error": {"marker": "o", "color": Hue.BLUE, "markersize": size},
            "accepted for another reason": {
                **{"marker": "o", "color": Hue.BLUE, "markersize": size, "markerfacecolor": "none"}
            },
            "error beyond the band": {"marker": "X", "color": Hue.RED, "markersize": 9.0},
            "not comparable": {
                **{"marker": "D", "color": Hue.RED, "markersize": 7.0, "markerfacecolor": "none"},
                "clip_on": False,
            },
        }
        for told, look in looks.items():
            points = [(i, c) for i, c in enumerate(shown) if _kind(c, tolerance) == told]
            if points:
                heights = [_height(c, low, high) for _, c in points]
                axes.plot([i for i, _ in points], heights, linestyle="none", label=told, **look)
        _name_points(axes, shown, low, high)
        axes.set_ylim(low, high)
        axes.set_xlim(-0.5, len(shown) - 0.5)
        axes.set_xlabel("tensors, in order of computation")
        axes.set_ylabel("root mean square")
        _count(axes, len(shown), len(checks))
        _scientific(axes)
        figure.legend(loc="outside lower center", ncols=4)
        return _svg(figure, ident, label)


def thinned(checks: Sequence[TensorCheck]) -> list[TensorCheck]:
    """Of each of at most `MOST_POINTS` runs of tensors the worst: it fails, or has the largest ratio."""
    step = math.ceil(len(checks) / MOST_POINTS)
    runs = (checks[i : i + step] for i in range(0, len(checks), max(step, 1)))
    return [max(run, key=badness) for run in runs]


def _kind(check: TensorCheck, tolerance: float) -> str:
    if not comparable(check):
        return "not comparable"
    if not check.passed:
        return "error beyond the band"
    return "error" if check.ratio <= tolerance else "accepted for another reason"


def comparable(check: TensorCheck) -> bool:
    """Whether its error tells how far off it is: not with other shapes, NaN elsewhere, other integers."""
    return check.passed or not check.problem


def badness(check: TensorCheck) -> tuple[bool, float]:
    """What orders checks."""
    unknown = math.isnan(check.ratio) or not comparable(check)
    return not check.passed, math.inf if unknown else check.ratio


def _height(check: TensorCheck, low: float, high: float) -> float:
    return _within(check.error, low, high) if comparable(check) else high


def histograms(outputs: Sequence[OutputCheck], ident: str, label: str) -> str:
    """How many elements of an output are off by how many ulp."""
    measured = [(o.name, o.metrics.ulp_histogram) for o in outputs if o.metrics is not None]
    shown = [(name, counts) for name, counts in measured if sum(counts)][:MOST_PANELS]
    last = max(5, *(i for _, counts in shown for i, n in enumerate(counts) if n))
    columns = min(len(shown), 2)
    rows = math.ceil(len(shown) / columns)
    with _figure(0.6 + 2.4 * rows) as figure:
        for i, (name, counts) in enumerate(shown):
            axes = figure.add_subplot(rows, columns, i + 1)
            total = sum(counts)
            shares = [100 * n / total for n in counts[: last + 1]]
            bars = axes.bar(range(last + 1), shares, color=Hue.BLUE, width=0.75)
            axes.bar_label(bars, [_share(share) for share in shares], fontsize=9, padding=2)
            axes.set_xticks(range(last + 1), [_edge(k) for k in range(last + 1)], fontsize=9)
            if last > 9:
                axes.tick_params(axis="x", rotation=45)
            axes.set_ylim(0, 118)
            axes.set_yticks([0, 50, 100], ["0%", "50%", "100%"])
            axes.set_title(f"output {_name(name)}")
            axes.set_xlabel("off by up to so many ulp")
        return _svg(figure, ident, label)


def ranges(rows: Sequence[WeightRange], ident: str, label: str) -> str:
    """The smallest and largest number of each constant, before and after, in the order of the graph."""
    filled = panels(rows)
    with _figure(0.5 + 2.5 * len(filled)) as figure:
        for n, (title, group) in enumerate(filled):
            axes = figure.add_subplot(len(filled), 1, n + 1)
            _bars(axes, group, named=n == 0)
            axes.axhline(0, color=Hue.GREY, linewidth=0.6)
            axes.set_title(title)
            axes.set_xlim(0, len(rows) + 1)
        _numbered(axes)
        figure.legend(loc="outside lower center", ncols=2)
        return _svg(figure, ident, label)


def panels(rows: Sequence[WeightRange]) -> list[tuple[str, list[tuple[int, WeightRange]]]]:
    """Ranges with their numbers, by what kind of constant they are of."""
    groups: dict[str, list[tuple[int, WeightRange]]] = {
        "Kernels, matrices and tables": [],
        "Vectors and single numbers: biases, scales": [],
    }
    wide, narrow = groups.values()
    for i, row in enumerate(rows, 1):
        extents = max(r.extents for r in (row.before, row.after) if r is not None)
        (wide if extents > 1 else narrow).append((i, row))
    return [(title, group) for title, group in groups.items() if group]


def drift(layers: Sequence[LayerReport], ident: str, label: str) -> str:
    """How far statistics moved, how certain they are, and how much of the certificate's limit is used."""
    panels: list[tuple[str, list[tuple[str, list[float]]], float | None]] = [
        (
            "How far the worst channel moved",
            [
                ("mean, in standard deviations", [x.mean_drift for x in layers]),
                ("variance, as a logarithm", [x.var_drift for x in layers]),
                ("output", [x.output_drift for x in layers]),
            ],
            None,
        ),
        (
            "Standard error of the new statistics",
            [("mean", [x.mean_error for x in layers]), ("variance", [x.var_error for x in layers])],
            None,
        ),
        ("Share of the certificate's limit in use", [("share", [x.limit_used for x in layers])], 1.0),
    ]
    with _figure(8.4) as figure:
        for n, (title, series, limit) in enumerate(panels):
            axes = figure.add_subplot(len(panels), 1, n + 1)
            _series(axes, series, limit)
            axes.set_title(title)
            axes.set_xlim(0.5, len(layers) + 0.5)
            if len(series) > 1 or limit is not None:
                axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=3, fontsize=10)
        _numbered(axes)
        return _svg(figure, ident, label)


# Parts


def _bars(axes: Axes, group: Sequence[tuple[int, WeightRange]], named: bool) -> None:
    """Two bars per constant, or per run of them if there are many."""
    step = math.ceil(len(group) / MOST_POINTS)
    runs = [group[i : i + step] for i in range(0, len(group), step)]
    middle = [sum(i for i, _ in run) / len(run) for run in runs]
    width = min(4.0, 260 / len(runs))
    for offset, hue, told in ((-0.2, Hue.AMBER, "before"), (0.2, Hue.BLUE, "after")):
        spans = [_span(r.before if told == "before" else r.after for _, r in run) for run in runs]
        known = [(x + offset * step, span) for x, span in zip(middle, spans, strict=True) if span]
        axes.vlines(
            [x for x, _ in known],
            [low for _, (low, _) in known],
            [high for _, (_, high) in known],
            color=hue,
            linewidth=width,
            label=told if named else "_",
        )
        ends = [(x, y) for x, span in known for y in span]  # a bar too short to be seen is still a place
        axes.plot([x for x, _ in ends], [y for _, y in ends], "_", color=hue, markersize=width + 2)
    ranges = (r for _, w in group for r in (w.before, w.after) if r is not None)
    _signed_scale(axes, (value for r in ranges for value in (r.low, r.high)))


def _series(axes: Axes, series: Sequence[tuple[str, list[float]]], limit: float | None) -> None:
    values = [v for _, row in series for v in row if 0 < v < math.inf]
    axes.set_yscale("log" if values else "linear")
    low, high = (
        min([*values, limit or math.inf], default=0.1) / 3,
        max([*values, limit or 0.0], default=1.0) * 3,
    )
    low, high = (low, high) if values else (-0.05, 1.0)
    for (told, row), hue, marker in zip(series, (Hue.BLUE, Hue.AMBER, Hue.RED), "os^", strict=False):
        points = [(i, _within(v, low, high)) for i, v in enumerate(row, 1)]
        size = 5 if len(row) < 100 else 2.5
        axes.plot(*zip(*points, strict=True), marker, color=hue, markersize=size, label=told)
    if limit is not None:
        axes.axhline(limit, color=Hue.RED, linewidth=1.2, linestyle="--", label="limit")
    axes.set_ylim(low, high)
    _scientific(axes)


def _within(value: float, low: float, high: float) -> float:
    """Where a value is drawn: what has no place on the scale is at its edge."""
    return high if math.isnan(value) else min(max(value, low), high)


def _name_points(axes: Axes, shown: Sequence[TensorCheck], low: float, high: float) -> None:
    """The first tensor that fails and the worst."""
    if not shown:
        return
    worst = max(range(len(shown)), key=lambda i: badness(shown[i]))
    culprit = next((i for i, c in enumerate(shown) if not c.passed), None)
    told = {}
    if badness(shown[worst]) > (False, 0.0):
        told[worst] = f"worst: {_name(shown[worst].name)}, {_times(shown[worst])}"
    if culprit is not None:
        both = culprit == worst
        told[culprit] = f"first {'and worst ' if both else ''}beyond: {_name(shown[culprit].name)}"
    for n, (i, text) in enumerate(sorted(told.items())):
        right = i > len(shown) / 2
        axes.annotate(
            text,
            (i, _height(shown[i], low, high)),
            xytext=(i, 0.97 - 0.1 * n),
            textcoords=axes.get_xaxis_transform(),
            ha="right" if right else "left",
            va="top",
            arrowprops={**_LEADER, "relpos": (float(right), 0.0)},
        )


def _times(check: TensorCheck) -> str:
    return f"{check.ratio:.2g} x its noise" if comparable(check) else "not comparable"


def _count(axes: Axes, shown: int, total: int) -> None:
    """Whole numbers on the axis, of tensors rather than of points."""
    step = max(1, math.ceil(shown / 10))
    ticks = range(0, shown, step)
    share = math.ceil(total / MOST_POINTS)
    axes.set_xticks(list(ticks), [str(i * max(share, 1) + 1) for i in ticks])


def _numbered(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    for each in axes.figure.axes:
        each.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("number in the table")


def _scientific(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=Hue.GREY, alpha=0.3, linewidth=0.6)


def _signed_scale(axes: Axes, values: Iterable[float]) -> None:
    """Linear, or logarithmic in both directions where one constant would dwarf the others."""
    sizes = sorted(abs(v) for v in values if v and math.isfinite(v))
    if sizes and sizes[-1] > 50 * sizes[len(sizes) // 2]:
        axes.set_yscale("symlog", linthresh=sizes[len(sizes) // 2])
    _scientific(axes)


def _span(found: Iterable[Any]) -> tuple[float, float] | None:
    known = [r for r in found if r is not None and math.isfinite(r.low) and math.isfinite(r.high)]
    return (min(r.low for r in known), max(r.high for r in known)) if known else None


def _share(percent: float) -> str:
    if not percent:
        return ""
    return f"{percent:.0f}%" if percent >= 1 else "<1%"


def _edge(index: int) -> str:
    return f"{ULP_EDGES[index]:g}" if index < len(ULP_EDGES) else "more"


def _name(text: str) -> str:
    return clipped(printable(text), _LETTERS)


# matplotlib


@contextmanager
def _figure(height: float) -> Iterator[Figure]:
    """A figure whose looks are ours, whatever the user's settings; they are as before afterwards."""
    import matplotlib
    from matplotlib.figure import Figure

    log = logging.getLogger("matplotlib")
    level = log.level
    with matplotlib.rc_context(), warnings.catch_warnings():
        # glyphs are the browser's affair, and where fonts are listed nobody's who reads a report
        warnings.filterwarnings("ignore", message="Glyph")
        log.setLevel(logging.ERROR)
        try:
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(_settings())
            figure = Figure((_WIDTH, height), dpi=72, layout="constrained", facecolor="none")
            yield figure
        finally:
            log.setLevel(level)


def _settings() -> RcParams:
    from matplotlib import RcParams

    return RcParams(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "bnfold",
            "font.size": 11.0,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 12.0,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "text.parse_math": False,
            "legend.frameon": False,
        }
    )


def _svg(figure: Figure, ident: str, label: str) -> str:
    for axes in figure.axes:
        axes.set_facecolor("none")
    stream = io.BytesIO()
    figure.savefig(stream, format="svg")
    return _fit(ElementTree.fromstring(stream.getvalue()), ident, label)


def _fit(root: ElementTree.Element, ident: str, label: str) -> str:
    """matplotlib's SVG as a part of a page."""
    for parent in list(root.iter()):
        parent.tag = parent.tag.rpartition("}")[2]
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    named = {e.attrib["id"] for e in root.iter() if "id" in e.attrib}
    used = named & set(re.findall(r"#([\w-]+)", " ".join(v for e in root.iter() for v in e.attrib.values())))
    for element in root.iter():
        _plain(element, ident, used)
    attributes = {"role": "img", "aria-label": printable(label), "viewBox": root.attrib["viewBox"]}
    width, height = root.attrib["viewBox"].split()[2:]
    attributes |= {"width": width, "height": height, "font-family": "inherit"}
    attributes |= {"stroke-linejoin": "round", "stroke-linecap": "butt"}
    root.attrib.clear()
    root.attrib.update(attributes)
    for element in root.iter():  # white space between elements
        element.tail = None
        if element.tag != "text" and element.tag != "tspan":
            element.text = None
    return ElementTree.tostring(root, encoding="unicode")


def _plain(element: ElementTree.Element, ident: str, used: set[str]) -> None:
    """Attributes for styles, identifiers with the figure's own before them, short numbers."""
    attributes = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    for entry in attributes.pop("style", "").split(";"):
        name, _, value = (part.strip() for part in entry.partition(":"))
        if name == "font":
            size = re.search(r"([\d.]+)px", value)
            attributes |= {"font-size": size[1] if size else "11"}
            attributes |= {"font-weight": "bold"} if re.match(r"(bold|700)", value) else {}
        elif name and name != "font-family":  # the page's
            attributes[name] = value
    if attributes.get("id") not in used:
        attributes.pop("id", None)
    for name, value in attributes.items():
        if name == "id":
            attributes[name] = f"{ident}-{value}"
        elif value == _INK:
            attributes[name] = Hue.INK
        elif name in ("d", "transform", "x", "y", "points", "width", "height"):
            attributes[name] = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", value).strip()
        else:
            attributes[name] = re.sub(
                r"#([\w-]+)", lambda m: f"#{ident}-{m[1]}" if m[1] in used else m[0], value
            )
    if element.tag == "text":
        attributes.setdefault("fill", Hue.INK)
    element.attrib.clear()
    element.attrib.update(attributes)
