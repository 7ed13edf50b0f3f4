"""Which tensors of a traced graph share their numbers, and where one is changed under the eyes of another.

A graph of calls means what it says only while nobody changes a value in place that is read again later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import fx

from .calls import Call, changed
from .surgery import Edits, Place
from .trace import Traced

_FRESH = frozenset(
    {
        *("conv", "conv_transpose", "linear", "matmul", "embedding"),
        *("batch_norm", "instance_norm", "group_norm", "layer_norm", "relu", "leaky_relu", "prelu", "same"),
        *("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "interpolate", "pad"),
        *("pixel_shuffle", "cat", "mean", "sum", "neg", "add", "sub", "mul", "div", "shape", "attribute"),
    }
)
"""Calls that always make new tensors. Of all others the result may share numbers with what they read."""

_GIVEN = ("placeholder", "get_attr")

Storages = frozenset[fx.Node]


class Aliases:
    """The storages behind the nodes of a graph.

    Args:
        traced: The graph.
        calls: What its nodes call.
    """

    def __init__(self, traced: Traced, calls: Mapping[fx.Node, Call | None]) -> None:
        self._order: Mapping[fx.Node, int] = {node: i for i, node in enumerate(traced.graph.nodes)}
        self._changed = {node: c for node in traced.graph.nodes if (c := changed(traced, node))}
        self._shared = {node: self._may_be(node, calls[node]) for node in traced.graph.nodes}

    def impure(self) -> set[fx.Node]:
        """The nodes around values that are changed in place and read again: the graph does not say what
        these nodes see."""
        if not self._changed:
            return set()
        storages = self._storages(_AS_IS)
        found: set[fx.Node] = set()
        for shared in self._surprises(_AS_IS, storages):
            for node, own in storages.items():
                if own & shared:
                    found |= {node, *node.users}
        return found

    def disturbed(self, edits: Edits) -> set[fx.Node]:
        """The removed calls for want of which a value would be changed under the eyes of another."""
        if not self._changed:
            return set()
        storages = self._storages(edits)
        surprises = frozenset[fx.Node]().union(*self._surprises(edits, storages))
        places = {call: edits.removed[call] or Place(call.all_input_nodes[0]) for call in edits.removed}
        return {call for call, place in places.items() if storages[place.node] & surprises}

    def _may_be(self, node: fx.Node, call: Call | None) -> list[fx.Node]:
        """The nodes whose numbers the result may share."""
        if len(self._changed.get(node, ())) == 1:
            return self._changed[node]
        return [] if call is not None and call.name in _FRESH else list(node.all_input_nodes)

    def _storages(self, edits: Edits) -> dict[fx.Node, Storages]:
        """The nodes that have made the numbers that each node may hold."""
        found: dict[fx.Node, Storages] = {}
        for node, shared in self._shared.items():
            places = [edits.reads.get((node, source), Place(source)) for source in shared]
            made = frozenset((node,)) if not shared or any(p.terms for p in places) else frozenset()
            found[node] = made.union(*(found[p.node] for p in places if not p.terms))
        return found

    def _surprises(self, edits: Edits, storages: Mapping[fx.Node, Storages]) -> Iterator[Storages]:
        """What is changed in place although it is given, or read again afterwards as what it was before."""
        for change, sources in self._changed.items():
            if change in edits.removed:
                continue
            places = [edits.reads.get((change, source), Place(source)) for source in sources]
            touched = frozenset[fx.Node]().union(*(storages[p.node] for p in places if not p.terms))
            if any(s.op in _GIVEN for s in touched) or self._is_read_after(change, touched, edits, storages):
                yield touched

    def _is_read_after(
        self, change: fx.Node, touched: Storages, edits: Edits, storages: Mapping[fx.Node, Storages]
    ) -> bool:
        at = self._order[change]
        for reader, when in self._order.items():
            if when <= at or reader in edits.removed:
                continue
            for source in reader.all_input_nodes:
                place = edits.reads.get((reader, source), Place(source))
                if not place.terms and self._order[place.node] < at and storages[place.node] & touched:
                    return True
        return False


_AS_IS = Edits({}, {}, {})
