"""Small graphs as SVG: boxes in layers, data flows from the top to the bottom.

A node stands one layer below the lowest of those it reads. Where there are too many, some of a layer, or
the layers in the middle, are one box that says how many they are. A drawing holds no identifiers, styles
or scripts, so that any number of them fit on one page, and its texts have the colour of the page's.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from ..changes import DrawnNode, Picture, Role
from .blocks import Hue, clipped
from .page import printable

_WIDTH, _HEIGHT, _GAP, _DROP, _MARGIN = 190, 54, 16, 30, 6
_WAYPOINT = 14  # room for an edge that passes a layer
_LETTERS = 27  # of a name in a box
_SPOKEN = 80  # of a name in the text alternative
_MOST_SPOKEN = 4000  # of all of it
_ABREAST = 8  # boxes in a layer, the one for the others among them
MOST_BOXES = 40

ROLES = {
    Role.GOES: "goes",
    Role.ABSORBS: "absorbs it",
    Role.ARRIVES: "stays behind",
    Role.PASSES: "passes it on",
    Role.NEAR: "neighbour",
}
_BOXES = {
    Role.GOES: f'fill="none" stroke="{Hue.RED}" stroke-width="1.5" stroke-dasharray="5 3"',
    Role.ABSORBS: f'fill="{Hue.BLUE}" fill-opacity=".16" stroke="{Hue.BLUE}" stroke-width="2.5"',
    Role.ARRIVES: f'fill="{Hue.AMBER}" fill-opacity=".16" stroke="{Hue.AMBER}" stroke-width="2"',
    Role.PASSES: f'fill="none" stroke="{Hue.BLUE}"',
    Role.NEAR: f'fill="none" stroke="{Hue.GREY}"',
}


@dataclass(frozen=True)
class _Waypoint:
    """Where an edge passes a layer."""

    edge: tuple[int, int]
    layer: int


_Spot = int | _Waypoint


def drawing(picture: Picture, what: str) -> str:
    """The picture as SVG; `what` begins its text alternative."""
    picture = reduced(picture)
    layers = _layers(picture)
    spots, width, height = _placed(layers)
    lines = [
        f'<svg role="img" aria-label="{escape(spoken(picture, what))}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="inherit" font-size="11" text-anchor="middle" '
        'fill="currentColor">'
    ]
    level = {spot: i for i, row in enumerate(layers) for spot in row}
    lines += [_edge(edge, level, spots) for edge in picture.edges]
    lines += [_box(node, *spots[node.key]) for node in picture.nodes]
    return "".join([*lines, "</svg>"])


def spoken(picture: Picture, what: str) -> str:
    """The picture in words."""
    names = {node.key: _called(node) for node in picture.nodes}
    told = [f"{_called(node)} ({ROLES[node.role]})" for node in picture.nodes]
    flow = [f"{names[a]} to {names[b]}" for a, b in picture.edges]
    text = f"{what}: {', '.join(told) or 'nothing'}."
    return clipped(printable(f"{text} Data flows {', '.join(flow)}." if flow else text), _MOST_SPOKEN)


def _called(node: DrawnNode) -> str:
    return f"{clipped(node.op_type, _SPOKEN)} '{clipped(node.name, _SPOKEN)}'"


# Too many


def reduced(picture: Picture) -> Picture:
    """The picture with at most `MOST_BOXES` boxes."""
    level = _levels(picture)
    layers: list[list[DrawnNode]] = [[] for _ in range(max(level.values(), default=-1) + 1)]
    for node in picture.nodes:
        layers[level[node.key]].append(node)
    groups = [group for layer in layers for group in _abreast(layer)]
    if len(groups) > MOST_BOXES:
        ends = _whole(layers, MOST_BOXES // 2), _whole(layers[::-1], (MOST_BOXES - 1) // 2)
        top, bottom = layers[: ends[0]], layers[len(layers) - ends[1] :]
        middle = [node for layer in layers[ends[0] : len(layers) - ends[1]] for node in layer]
        groups = [
            *(group for layer in top for group in _abreast(layer)),
            middle,
            *(group for layer in bottom for group in _abreast(layer)),
        ]
    boxes = [_box_of(group, -i) for i, group in enumerate(groups, 1)]
    held = {node.key: box.key for group, box in zip(groups, boxes, strict=True) for node in group}
    edges = dict.fromkeys((held[a], held[b]) for a, b in picture.edges)
    return Picture(tuple(boxes), tuple(edge for edge in edges if edge[0] != edge[1]))


def _abreast(layer: Sequence[DrawnNode]) -> list[list[DrawnNode]]:
    """What stands side by side: each node alone, and those that are too many together."""
    if len(layer) <= _ABREAST:
        return [[node] for node in layer]
    first = sorted(layer, key=lambda node: list(ROLES).index(node.role))
    return [*([node] for node in first[: _ABREAST - 1]), first[_ABREAST - 1 :]]


def _whole(layers: Iterable[Sequence[DrawnNode]], most: int) -> int:
    """How many layers fit into so many boxes."""
    fit = 0
    for layer in layers:
        most -= len(_abreast(layer))
        if most < 0:
            break
        fit += 1
    return fit


def _box_of(group: Sequence[DrawnNode], key: int) -> DrawnNode:
    """The node, or one that stands for several."""
    if len(group) == 1:
        return group[0]
    (kind, number), *others = Counter(node.op_type for node in group).most_common()
    rest = f", {len(group) - number:,} others" if others else ""
    role = min((node.role for node in group), key=list(ROLES).index)
    return DrawnNode(key, f"and {len(group):,} more", f"{number:,} {kind}{rest}", role)


# Layout


def _layers(picture: Picture) -> list[list[_Spot]]:
    """What stands in each layer, from left to right."""
    level = _levels(picture)
    rows: list[list[_Spot]] = [[] for _ in range(max(level.values(), default=0) + 1)]
    for node in picture.nodes:
        rows[level[node.key]].append(node.key)
    links: list[tuple[_Spot, _Spot]] = []
    for edge in picture.edges:
        above: _Spot = edge[0]
        for layer in range(level[edge[0]] + 1, level[edge[1]]):
            waypoint = _Waypoint(edge, layer)
            rows[layer].append(waypoint)
            links.append((above, waypoint))
            above = waypoint
        links.append((above, edge[1]))
    parents: dict[_Spot, list[_Spot]] = defaultdict(list)
    children: dict[_Spot, list[_Spot]] = defaultdict(list)
    for a, b in dict.fromkeys(links):
        parents[b].append(a)
        children[a].append(b)
    for i in range(1, len(rows)):
        rows[i] = _sorted(rows[i], parents, rows[i - 1])
    for i in range(len(rows) - 2, -1, -1):
        rows[i] = _sorted(rows[i], children, rows[i + 1])
    return rows


def _levels(picture: Picture) -> dict[int, int]:
    level = {node.key: 0 for node in picture.nodes}
    sources: dict[int, list[int]] = defaultdict(list)
    readers: dict[int, list[int]] = defaultdict(list)
    for a, b in picture.edges:
        sources[b].append(a)
        readers[a].append(b)
    for node in picture.nodes:  # in topological order
        level[node.key] = max((level[a] + 1 for a in sources[node.key]), default=0)
    for node in picture.nodes:  # what reads nothing stands right above its reader, not at the top
        if not sources[node.key] and readers[node.key]:
            level[node.key] = min(level[b] for b in readers[node.key]) - 1
    return level


def _sorted(
    row: Sequence[_Spot], linked: Mapping[_Spot, Sequence[_Spot]], beside: Sequence[_Spot]
) -> list[_Spot]:
    """The row in the order of what it is linked to."""
    place = {spot: i / max(len(beside) - 1, 1) for i, spot in enumerate(beside)}
    own = {spot: i / max(len(row) - 1, 1) for i, spot in enumerate(row)}

    def middle(spot: _Spot) -> float:
        places = [place[other] for other in linked.get(spot, ())]
        return sum(places) / len(places) if places else own[spot]

    return sorted(row, key=middle)


def _placed(rows: Sequence[Sequence[_Spot]]) -> tuple[dict[_Spot, tuple[float, float]], int, int]:
    """The middle of the upper edge of each spot, and the size of it all."""

    def wide(spot: _Spot) -> int:
        return _WAYPOINT if isinstance(spot, _Waypoint) else _WIDTH

    widths = [sum(map(wide, row)) + _GAP * (len(row) - 1) for row in rows]
    whole = max([*widths, _WIDTH]) + 2 * _MARGIN
    spots: dict[_Spot, tuple[float, float]] = {}
    for i, (row, width) in enumerate(zip(rows, widths, strict=True)):
        x = (whole - width) / 2
        for spot in row:
            spots[spot] = (x + wide(spot) / 2, _MARGIN + i * (_HEIGHT + _DROP))
            x += wide(spot) + _GAP
    return spots, whole, 2 * _MARGIN + len(rows) * (_HEIGHT + _DROP) - _DROP


# Pen


def _edge(
    edge: tuple[int, int], level: Mapping[_Spot, int], spots: Mapping[_Spot, tuple[float, float]]
) -> str:
    x, y = spots[edge[0]]
    y += _HEIGHT
    path = f"M{x:g} {y:g}"
    for layer in range(level[edge[0]] + 1, level[edge[1]]):
        across, down = spots[_Waypoint(edge, layer)]
        path += f"{_curve(x, y, across, down)}V{down + _HEIGHT:g}"
        x, y = across, down + _HEIGHT
    across, down = spots[edge[1]]
    path += _curve(x, y, across, down - 6)
    tip = f"M{across:g} {down:g}l-4-7h8z"
    return (
        f'<path d="{path}" fill="none" stroke="{Hue.GREY}" stroke-width="1.5"/>'
        f'<path d="{tip}" fill="{Hue.GREY}"/>'
    )


def _curve(x: float, y: float, across: float, down: float) -> str:
    middle = (y + down) / 2
    return f"C{x:g} {middle:g} {across:g} {middle:g} {across:g} {down:g}"


def _box(node: DrawnNode, x: float, y: float) -> str:
    op_type = escape(clipped(printable(node.op_type), _LETTERS))
    short = node.name.removesuffix(f"/{node.op_type}") or node.name  # exporters like to repeat it there
    name = escape(clipped(printable(short), _LETTERS))
    struck = ' text-decoration="line-through"' if node.role is Role.GOES else ""
    return (
        f'<rect x="{x - _WIDTH / 2:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" '
        f"{_BOXES[node.role]}/>"
        f'<text x="{x:g}" y="{y + 18:g}" font-size="13" font-weight="600"{struck}>{op_type}</text>'
        f'<text x="{x:g}" y="{y + 33:g}"{struck}>{name}</text>'
        f'<text x="{x:g}" y="{y + 47:g}" font-style="italic">{ROLES[node.role]}</text>'
    )
