"""What two models have alike: nodes that say the same, constants of the same bits, one language."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import onnx

from .evaluate import Program, Unsupported


class Alike:
    """Two models, to be asked.

    Args:
        reference, candidate: The models.
    """

    def __init__(self, reference: Program, candidate: Program) -> None:
        self._reference, self._candidate = reference, candidate

    def is_same_constant(self, name: str) -> bool:
        """Whether both store the same bits under a name; also for a name that neither stores."""
        try:
            ours, theirs = self._reference.stored(name), self._candidate.stored(name)
        except Unsupported:  # strings, which nothing here compares
            return False
        if ours is None or theirs is None:
            return ours is theirs  # neither: it is fed, or a name of an inner graph
        return (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape) and ours.tobytes() == theirs.tobytes()

    def is_same_node(self, ours: onnx.NodeProto, theirs: onnx.NodeProto) -> bool:
        """Whether two nodes do the same to values of the same names."""

        def told(node: onnx.NodeProto) -> tuple[Any, ...]:
            attributes = sorted((a.name, a.SerializeToString(deterministic=True)) for a in node.attribute)
            return node.domain, node.op_type, node.overload, list(node.input), list(node.output), attributes

        return self._is_same_language and told(ours) == told(theirs)

    @cached_property
    def _is_same_language(self) -> bool:
        """Whether the same words mean the same in both models: opsets, and local functions."""
        return _language(self._reference.model) == _language(self._candidate.model)


def names_read(node: onnx.NodeProto) -> set[str]:
    """What a node reads, inner graphs included; there, names of their own are among it."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            names |= {value.name for value in graph.output}
            names = names.union(*map(names_read, graph.node))
    return names


def _language(model: onnx.ModelProto) -> tuple[list[tuple[str, int]], list[bytes]]:
    """The opsets that a model imports, and its functions."""
    functions = sorted(f.SerializeToString(deterministic=True) for f in model.functions)
    return sorted((entry.domain or "ai.onnx", entry.version) for entry in model.opset_import), functions
