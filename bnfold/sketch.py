"""Draws what a fold does: a `Sketch` watches it, and says afterwards what changed.

Nodes are told apart by identity, which a fold keeps: their names need not be unique, and the name of a
nameless one goes with its output.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from .changes import Changes, DrawnNode, FoldedSite, Picture, Range, Role, Size, WeightRange
from .constants import FLOATS, Constant
from .facts import Facts, Scope, scopes
from .nodes import label
from .plan import Plan
from .report import Declined

_NEIGHBOURS = 4  # of one node, for orientation: a value may have a thousand readers
_AROUND = 24  # in one picture

_Constants = Mapping[tuple[int, int], Range]  # by the key of a node and the number of its input


@dataclass
class _Part:
    """What a decision is about: nodes of the model as it was.

    Attributes:
        site: Those that are folded.
        way: Those that hand an affine on, or take it.
        sinks: Those that take it.
        late_sinks: Those that take it and were put in by earlier folds.
        added: New nodes.
    """

    site: set[int] = field(default_factory=set)
    way: set[int] = field(default_factory=set)
    sinks: set[int] = field(default_factory=set)
    late_sinks: list[ir.Node] = field(default_factory=list)
    added: list[ir.Node] = field(default_factory=list)

    @property
    def nodes(self) -> set[int]:
        return self.site | self.way

    def add(self, other: _Part) -> None:
        self.site |= other.site
        self.way |= other.way
        self.sinks |= other.sinks
        self.late_sinks += other.late_sinks
        self.added += other.added


class Sketch:
    """What `fold` is watched by, and what it did."""

    def opens(self, model: ir.Model) -> None:
        self._size = _size(tuple(scopes(model)))

    def begins(self, model: ir.Model) -> None:
        self._model = model
        self._keys = {node: key for key, node in enumerate(_nodes(model))}
        self._before = _Snapshot.of(model, self._keys)
        self._parts: defaultdict[ir.Node, _Part] = defaultdict(_Part)

    def folds(self, owner: ir.Node, plan: Plan) -> None:
        sinks = {node for node, _ in plan.constants}
        part = self._parts[owner]
        part.site |= self._known(plan.site.nodes)
        part.way |= self._known({*plan.way, *sinks})
        part.sinks |= self._known(sinks)
        part.late_sinks += [node for node in sinks if node not in self._keys]

    def adds(self, owner: ir.Node, nodes: Sequence[ir.Node]) -> None:
        self._parts[owner].added += nodes

    def joins(self, owner: ir.Node, other: ir.Node) -> None:
        if other in self._parts:
            self._parts[owner].add(self._parts.pop(other))

    def ends(self, owners: Sequence[ir.Node]) -> None:
        self._found = [self._parts.get(owner) for owner in owners]
        arrived = (node for node in _nodes(self._model) if node not in self._keys)
        self._arrived = {node: key for key, node in enumerate(arrived, len(self._keys))}
        self._after = _Snapshot.of(self._model, self._keys | self._arrived)

    def changes(self) -> Changes:
        """What the fold has made of the model."""
        found = [(i, part) for i, part in enumerate(self._found) if part is not None]
        sinks = {key for _, part in found for key in part.sinks}
        return Changes(
            self._size,
            self._after.size,
            tuple(self._drawn(i, part) for i, part in found),
            tuple(_ranges(sinks, self._before, self._after)),
        )

    def _drawn(self, decision: int, part: _Part) -> FoldedSite:
        before, after = self._before, self._after
        there = _with_neighbours(part.nodes, before)
        arrived, sinks = (
            {self._arrived[node] for node in nodes if node in self._arrived}
            for nodes in (part.added, part.late_sinks)
        )
        left = (there & after.nodes.keys()) | arrived | sinks
        roles = dict.fromkeys(part.way, Role.PASSES) | dict.fromkeys(part.sinks, Role.ABSORBS)
        return FoldedSite(
            decision,
            before.picture(there, roles | dict.fromkeys(there - after.nodes.keys(), Role.GOES)),
            after.picture(
                left,
                roles | dict.fromkeys(arrived, Role.ARRIVES) | dict.fromkeys(sinks, Role.ABSORBS),
                before.nodes,
            ),
        )

    def _known(self, nodes: Iterable[ir.Node]) -> set[int]:
        """The keys of those that the model had; others were put in by earlier folds."""
        return {self._keys[node] for node in nodes if node in self._keys}


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    return (node for scope in scopes(model) for node in scope.graph)


@dataclass(frozen=True)
class _Drawn:
    """A node in a snapshot."""

    name: str
    graph: str
    op_type: str
    inputs: tuple[int, ...]  # keys of the nodes that compute from data what it reads


@dataclass(frozen=True)
class _Snapshot:
    """A model at one moment, in plain data.

    Attributes:
        nodes: By key, in order; what computes a constant is no input of another.
        readers: Keys of the nodes that read what a node computes.
        ranges: Of the floating constants that are read.
        size: How large the model is.
        order: The place of each key.
    """

    nodes: Mapping[int, _Drawn]
    readers: Mapping[int, tuple[int, ...]]
    ranges: _Constants
    size: Size
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
                nodes[key] = _Drawn(label(node), scope.path, _type(node), inputs)
                for producer in inputs:
                    readers[producer].append(key)
                ranges |= {(key, i): _range(c) for i, c in constants.items() if c.dtype in FLOATS}
        return cls(
            nodes,
            {key: tuple(dict.fromkeys(found)) for key, found in readers.items()},
            ranges,
            _size(facts.scopes),
            {key: i for i, key in enumerate(nodes)},
        )

    def picture(
        self, keys: Iterable[int], roles: Mapping[int, Role], names: Mapping[int, _Drawn] | None = None
    ) -> Picture:
        """A part of it. Nameless nodes are called by outputs, which a fold renames: `names` knows what they
        were called before."""
        known = self.nodes if names is None else {**self.nodes, **names}
        shown = sorted((key for key in keys if key in self.nodes), key=self.order.__getitem__)
        return Picture(
            tuple(
                DrawnNode(key, self.nodes[key].op_type, known[key].name, roles.get(key, Role.NEAR))
                for key in shown
            ),
            tuple((p, key) for key in shown for p in self.nodes[key].inputs if p in set(shown)),
        )

    def around(self, key: int) -> tuple[int, ...]:
        return (*self.nodes[key].inputs, *self.readers.get(key, ()))


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
    return Range(low, high, sum(size > 1 for size in numbers.shape))


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


def _with_neighbours(keys: set[int], snapshot: _Snapshot) -> set[int]:
    """These, and some of those that they have to do with."""
    found = dict.fromkeys(
        other
        for key in sorted(keys, key=snapshot.order.__getitem__)
        for side in (snapshot.nodes[key].inputs, snapshot.readers.get(key, ()))
        for other in [k for k in side if k not in keys][:_NEIGHBOURS]
    )
    return keys | set(list(found)[:_AROUND])


def _ranges(absorbing: Iterable[int], before: _Snapshot, after: _Snapshot) -> Iterator[WeightRange]:
    """The constants of these nodes that changed, in the order of the graph."""
    shown = sorted((key for key in absorbing if key in after.nodes), key=after.order.__getitem__)
    inputs: defaultdict[int, dict[int, None]] = defaultdict(dict)
    for key, i in (*before.ranges, *after.ranges):
        inputs[key][i] = None
    for key in shown:
        node, was = after.nodes[key], before.nodes[key]
        name = f"{was.graph}/{was.name}" if was.graph else was.name
        for i in sorted(inputs[key]):
            yield WeightRange(
                name,
                node.op_type,
                i,
                before.ranges.get((key, i)),
                after.ranges.get((key, i)),
            )
