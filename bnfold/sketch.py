"""Draws what a fold does: a `Sketch` looks at a model before, and again after, and says what changed.

Nodes are told apart by identity, which a fold keeps: their names need not be unique, and the name of a
nameless one goes with its output.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .changes import Changes, DrawnNode, FoldedSite, Picture, Range, Role, Size, WeightRange
from .constants import FLOATS, Constant
from .facts import Facts, Scope, scopes
from .nodes import label
from .report import Decision, Declined, FoldReport, Outcome

_NEIGHBOURS = 4  # of one node, for orientation: a value may have a thousand readers
_AROUND = 24  # in one picture

_Constants = Mapping[tuple[int, int], Range]  # by the key of a node and the number of its input


class Sketch:
    """A model as it is before a fold.

    Args:
        model: The model. Its weights are read once.
    """

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._keys = {node: key for key, node in enumerate(_nodes(model))}
        self._before = _Snapshot.of(model, self._keys)

    def changes(self, report: FoldReport) -> Changes:
        """What the fold, whose report this is, has made of the model since."""
        before = self._before
        arrived = (node for node in _nodes(self._model) if node not in self._keys)
        keys = self._keys | {node: key for key, node in enumerate(arrived, len(self._keys))}
        after = _Snapshot.of(self._model, keys)
        found = [
            (i, decision, site)
            for i, (decision, site) in enumerate(_located(report.decisions, before))
            if decision.outcome is not Outcome.KEPT and site
        ]
        sites, absorbing = [], dict[int, None]()
        for i, decision, site in found:
            sinks, between = _way(decision, site, before)
            absorbing |= dict.fromkeys(sinks)
            core = {*site, *between, *sinks}
            there = _with_neighbours(core, before)
            left = (there & after.nodes.keys()) | _arrivals(core, there, before, after)
            roles = dict.fromkeys(between, Role.PASSES) | dict.fromkeys(sinks, Role.ABSORBS)
            sites.append(
                FoldedSite(
                    i,
                    before.picture(there, roles | dict.fromkeys(there - after.nodes.keys(), Role.GOES)),
                    after.picture(left, roles | dict.fromkeys(left - before.nodes.keys(), Role.ARRIVES)),
                )
            )
        return Changes(before.size, after.size, tuple(sites), tuple(_ranges(absorbing, before, after)))


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    return (node for scope in scopes(model) for node in scope.graph)


@dataclass(frozen=True)
class _Drawn:
    """A node in a snapshot."""

    graph: str
    name: str
    op_type: str
    inputs: tuple[int, ...]  # keys of the nodes that compute from data what it reads

    @property
    def kind(self) -> str:
        """As decisions call it."""
        return self.op_type.rpartition("::")[2]


@dataclass(frozen=True)
class _Snapshot:
    """A model at one moment, in plain data.

    Attributes:
        nodes: By key, in order; what computes a constant is no input of another.
        readers: Keys of the nodes that read what a node computes.
        ranges: Of the floating constants that are read.
        size: How large the model is.
        names: Graph, name and operator of each node.
        order: The place of each key.
    """

    nodes: Mapping[int, _Drawn]
    readers: Mapping[int, tuple[int, ...]]
    ranges: _Constants
    size: Size
    names: frozenset[tuple[str, str, str]]
    order: Mapping[int, int]

    @classmethod
    def of(cls, model: ir.Model, keys: Mapping[ir.Node, int]) -> _Snapshot:
        facts = Facts(model)
        nodes: dict[int, _Drawn] = {}
        readers: defaultdict[int, list[int]] = defaultdict(list)
        ranges: dict[tuple[int, int], Range] = {}
        for scope in facts.scopes:
            for node in scope.graph:
                key = keys[node]
                constants = {i: c for i, v in enumerate(node.inputs) if v and (c := _constant(facts, v))}
                producers = [v.producer() for i, v in enumerate(node.inputs) if v and i not in constants]
                inputs = tuple(dict.fromkeys(keys[p] for p in producers if p is not None and p in keys))
                nodes[key] = _Drawn(scope.path, label(node), _type(node), inputs)
                for producer in inputs:
                    readers[producer].append(key)
                ranges |= {(key, i): _range(c) for i, c in constants.items() if c.dtype in FLOATS}
        return cls(
            nodes,
            {key: tuple(dict.fromkeys(found)) for key, found in readers.items()},
            ranges,
            _size(facts.scopes),
            frozenset((node.graph, node.name, node.kind) for node in nodes.values()),
            {key: i for i, key in enumerate(nodes)},
        )

    def picture(self, keys: Iterable[int], roles: Mapping[int, Role]) -> Picture:
        shown = sorted((key for key in keys if key in self.nodes), key=self.order.__getitem__)
        return Picture(
            tuple(self._drawn(key, roles.get(key, Role.NEAR)) for key in shown),
            tuple((p, key) for key in shown for p in self.nodes[key].inputs if p in set(shown)),
        )

    def around(self, key: int) -> tuple[int, ...]:
        return (*self.nodes[key].inputs, *self.readers.get(key, ()))

    def _drawn(self, key: int, role: Role) -> DrawnNode:
        node = self.nodes[key]
        return DrawnNode(key, node.op_type, node.name, role)


def _constant(facts: Facts, value: ir.Value) -> Constant | None:
    """Its numbers; also those that a caller may override."""
    try:
        return facts.constant(value)
    except Declined:
        stored = value.const_value
        return None if stored is None or stored.dtype == ir.DataType.STRING else Constant(stored.numpy())


def _type(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _range(constant: Constant) -> Range:
    numbers = constant.rounded()
    with np.errstate(invalid="ignore"):
        low, high = (float(f(numbers)) if numbers.size else 0.0 for f in (np.min, np.max))
    return Range(low, high)


def _size(found: Sequence[Scope]) -> Size:
    stored = [
        value.const_value
        for scope in found
        if not scope.is_function
        for value in scope.graph.initializers.values()
        if value.const_value is not None
    ]
    nodes = [node for scope in found for node in scope.graph]
    values = (
        node.attributes["value"]
        for node in nodes
        if node.op_type == "Constant" and "value" in node.attributes
    )
    tensors = [*stored, *(a.as_tensor() for a in values if not a.is_ref())]
    return Size(
        sum(t.size for t in tensors), sum(t.nbytes for t in tensors), dict(Counter(map(_type, nodes)))
    )


# Sites


def _located(decisions: Iterable[Decision], before: _Snapshot) -> Iterator[tuple[Decision, tuple[int, ...]]]:
    """Each with the keys of its nodes. Names need not be unique, but decisions come in the order of the
    graph."""
    waiting: defaultdict[tuple[str, str, str], deque[int]] = defaultdict(deque)
    for key, node in before.nodes.items():
        waiting[node.graph, node.name, node.kind].append(key)
    for decision in decisions:
        names = zip(decision.nodes, decision.op_types, strict=True)
        found = [waiting[decision.graph, name, kind] for name, kind in names]
        yield decision, tuple(keys.popleft() for keys in found if keys)


def _way(
    decision: Decision, site: tuple[int, ...], before: _Snapshot
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The nodes that absorb an affine, and those between them and its site: from each of the former, the
    nearest of its name, back the way that the search came."""
    wanted = Counter(
        (name, kind)
        for name, kind in zip(decision.into, decision.into_types, strict=True)
        if (decision.graph, name, kind) in before.names  # what an earlier fold put in is not
    )
    came_from: dict[int, int | None] = dict.fromkeys(site)
    queue, sinks = deque(site), list[int]()
    while queue and wanted.total():
        key = queue.popleft()
        node = before.nodes[key]
        if wanted[node.name, node.kind] and node.graph == decision.graph:
            wanted[node.name, node.kind] -= 1
            sinks.append(key)
        for other in before.around(key):
            if other not in came_from:
                came_from[other] = key
                queue.append(other)
    between: dict[int, None] = {}
    for key in sinks:
        step = came_from[key]
        while step is not None:
            between[step] = None
            step = came_from[step]
    return tuple(sinks), tuple(key for key in between if key not in {*site, *sinks})


def _with_neighbours(keys: set[int], snapshot: _Snapshot) -> set[int]:
    """These, and some of those that they have to do with."""
    found = dict.fromkeys(
        other
        for key in sorted(keys, key=snapshot.order.__getitem__)
        for side in (snapshot.nodes[key].inputs, snapshot.readers.get(key, ()))
        for other in [k for k in side if k not in keys][:_NEIGHBOURS]
    )
    return keys | set(list(found)[:_AROUND])


def _arrivals(core: set[int], there: set[int], before: _Snapshot, after: _Snapshot) -> set[int]:
    """The new nodes that what is left of a site's own nodes is connected with through nothing but new ones;
    where nothing is left of them, what stood around them."""
    queue = deque(core & after.nodes.keys() or there & after.nodes.keys())
    found: set[int] = set()
    while queue:
        for other in after.around(queue.popleft()):
            if other not in found and other not in before.nodes:
                found.add(other)
                queue.append(other)
    return found


def _ranges(absorbing: Iterable[int], before: _Snapshot, after: _Snapshot) -> Iterator[WeightRange]:
    """The constants of these nodes that changed, in the order of the graph."""
    shown = sorted((key for key in absorbing if key in after.nodes), key=after.order.__getitem__)
    inputs: defaultdict[int, dict[int, None]] = defaultdict(dict)
    for key, i in (*before.ranges, *after.ranges):
        inputs[key][i] = None
    for key in shown:
        node = after.nodes[key]
        for i in sorted(inputs[key]):
            yield WeightRange(
                before.nodes[key].name,
                node.op_type,
                i,
                before.ranges.get((key, i)),
                after.ranges.get((key, i)),
            )
