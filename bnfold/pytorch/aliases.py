"""Which tensors of a traced graph share their numbers, and where one is changed under the eyes of another.

A graph of calls means what it says only while nobody changes a value in place that is read again later.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from torch import fx

from .calls import Call, mutates
from .surgery import Edits, Place
from .trace import Traced

# Calls that always make new tensors. Of all others the result may share numbers with what they read.
_FRESH = frozenset(
    [
        "conv",
        "conv_transpose",
        "linear",
        "batch_norm",
        "instance_norm",
        "group_norm",
        "layer_norm",
        "relu",
        "leaky_relu",
        "prelu",
        "cat",
        "max_pool",
        "avg_pool",
        "adaptive_avg_pool",
        "adaptive_max_pool",
        "interpolate",
        "pixel_shuffle",
        "pad",
        "mean",
        "sum",
        "neg",
        "add",
        "sub",
        "mul",
        "div",
    ]
)


class Aliases:
    """The storages behind the nodes of a graph.

    Args:
        traced: The graph.
        calls: What its nodes call.
    """

    def __init__(self, traced: Traced, calls: Mapping[fx.Node, Call | None]) -> None:
        self._order: Mapping[fx.Node, int] = {node: i for i, node in enumerate(traced.graph.nodes)}
        self._storages: dict[fx.Node, frozenset[fx.Node]] = {}
        self._changes: list[tuple[fx.Node, frozenset[fx.Node]]] = []
        for node in traced.graph.nodes:
            changes = bool(node.all_input_nodes) and mutates(traced, node)
            self._storages[node] = self._of(node, calls[node], changes)
            if changes:
                self._changes.append((node, self._storages[node.all_input_nodes[0]]))

    def impure(self) -> set[fx.Node]:
        """The nodes around values that are changed in place and read again: the graph does not say what
        these nodes see."""
        found: set[fx.Node] = set()
        for change, storages in self._changes:
            if any(s.op in ("placeholder", "get_attr") for s in storages) or self._is_read_after(
                change, storages
            ):
                for node, own in self._storages.items():
                    if own & storages:
                        found |= {node, *node.users}
        return found

    def disturbed(self, edits: Edits) -> set[fx.Node]:
        """The removed calls for want of which something else would be changed in place."""
        found: set[fx.Node] = set()
        for change, storages in self._changes:
            passed: set[fx.Node] = set()
            new = self._after(change, change.all_input_nodes[0], edits, passed) - storages
            if any(s.op in ("placeholder", "get_attr") for s in new) or self._is_read_after(
                change, new, edits.removed
            ):
                found |= passed
        return found

    def _after(
        self, reader: fx.Node, source: fx.Node, edits: Edits, passed: set[fx.Node]
    ) -> frozenset[fx.Node]:
        """The storages that a call reads after the edits, and the removed calls that it read before."""
        place = edits.reads.get((reader, source), Place(source))
        passed |= {source} & edits.removed.keys()
        if place.terms:
            return frozenset()
        node = place.node
        if self._storages[node] == {node}:
            return frozenset((node,))
        return frozenset((node,)).union(*(self._after(node, n, edits, passed) for n in node.all_input_nodes))

    def _of(self, node: fx.Node, call: Call | None, changes: bool) -> frozenset[fx.Node]:
        if changes:
            return self._storages[node.all_input_nodes[0]]
        if not node.all_input_nodes or (call is not None and call.name in _FRESH):
            return frozenset((node,))
        return frozenset((node,)).union(*(self._storages[n] for n in node.all_input_nodes))

    def _is_read_after(
        self, change: fx.Node, storages: Iterable[fx.Node], gone: Container[fx.Node] = ()
    ) -> bool:
        """Whether a node after the change reads what was there before it."""
        at = self._order[change]
        return any(
            self._order[node] < at and any(self._order[r] > at and r not in gone for r in node.users)
            for node, own in self._storages.items()
            if own & frozenset(storages)
        )
