"""Operators that train whatever `.eval()` says, because a graph holds their flag as a constant.

Scripted code reads the attribute `training`, which `.eval()` sets. What was traced or exported while training
does not: its batch norms normalize by the batch and its dropouts drop, and nothing but another trace helps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch

_FLAGS: Final = ("training", "train", "use_input_stats")
_COMPUTED: Final = object()
"""Stands for an argument that is no constant."""


def in_script(module: Any) -> list[str]:
    """The operators of a ScriptModule that train for good, each kind once: `["batch_norm", "dropout"]`."""
    try:
        graph = module.inlined_graph
    except RuntimeError:  # it has no forward
        return []
    found = (node.kind() for node in _script_nodes(graph) if _trains(_script_arguments(node)))
    return sorted({kind.partition("::")[2].rstrip("_") for kind in found})  # "dropout_" works in place


def in_program(program: Any) -> list[str]:
    """The nodes of an ExportedProgram that train for good, by the path of their module or their own name."""
    graphs = (m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule))
    return [_place(node) for graph in graphs for node in graph.nodes if _trains(_exported_arguments(node))]


def _trains(arguments: Mapping[str, Any]) -> bool:
    """By the names that arguments have in the operator's schema."""
    if not any(arguments.get(flag) is True for flag in _FLAGS):
        return False
    if "momentum" in arguments:
        # Without running statistics there is one way to normalize only, in evaluation mode as well.
        return arguments.get("running_mean") is not None
    return bool(arguments.get("p", arguments.get("dropout")) != 0)


def _script_nodes(graph: Any) -> Iterator[Any]:
    pending = [graph]
    while pending:
        for node in pending.pop().nodes():
            yield node
            pending += node.blocks()


def _script_arguments(node: Any) -> dict[str, Any]:
    schema = node.schema()
    if not schema.startswith("aten::"):
        return {}
    names = [argument.name for argument in torch._C.parse_schema(schema).arguments]
    # Some take any number of arguments (aten::format); none of those trains.
    return dict(zip(names, map(_constant, node.inputs()), strict=False))


def _constant(value: Any) -> Any:
    return value.toIValue() if value.node().kind() == "prim::Constant" else _COMPUTED


def _exported_arguments(node: Any) -> dict[str, Any]:
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    names = [argument.name for argument in node.target._schema.arguments]
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def _place(node: Any) -> str:
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path or str(node.name)
