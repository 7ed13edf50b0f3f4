"""Integers and booleans that a program makes of numbers in its code, as torch itself computes them.

A bucket of a logarithm, `(arange(0, 2, 0.1) / 0.1).long()`, a comparison: they hang on the last bit of a
float, so neither float64 nor another runtime's arithmetic would give the same table. They become constants.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument

# As many numbers as a model may grow by.
_LARGEST = 1 << 20
# These jump from float to float.
_STEPS = {"ceil", "floor", "floor_divide", "fmod", "frac", "remainder", "round", "sign", "trunc"}


def pinned(program: ExportedProgram) -> ExportedProgram:
    """A program with such values as constants; the same one where there are none. It shares all weights."""
    values = _computed(program.graph)
    names = [node.name for node in values if _jumps(node, values) and _has_readers(node)]
    if not names:
        return program
    graph = copy.deepcopy(program.graph)
    nodes = {node.name: node for node in graph.nodes}
    tensors = {node.name: tensor for node, tensor in values.items()}
    specs = list(program.graph_signature.input_specs)
    held = [node for node in graph.nodes if node.op == "placeholder"]
    place = next((i for i, spec in enumerate(specs) if spec.kind is InputKind.USER_INPUT), len(specs))
    before = held[place] if place < len(held) else next(n for n in graph.nodes if n.op != "placeholder")
    constants = dict(program.constants)
    for name in names:
        target = f"{name}_pinned"
        with graph.inserting_before(before):
            made = graph.placeholder(target)
        made.meta.update(nodes[name].meta)
        nodes[name].replace_all_uses_with(made)
        specs.insert(place, InputSpec(InputKind.CONSTANT_TENSOR, TensorArgument(made.name), target))
        constants[target] = tensors[name]
        place += 1
    graph.eliminate_dead_code()
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=ExportGraphSignature(specs, list(program.graph_signature.output_specs)),
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=constants,
        verifiers=program.verifiers,
    )


def _computed(graph: fx.Graph) -> dict[fx.Node, torch.Tensor]:
    """The values that follow from numbers alone, in torch's own types; none if some change in place."""
    found: dict[fx.Node, torch.Tensor] = {}
    for node in graph.nodes:
        target = node.target
        if not isinstance(target, torch._ops.OpOverload) or any(n not in found for n in node.all_input_nodes):
            continue
        if target._schema.is_mutable:
            return {}
        known = node.meta.get("val")
        if not isinstance(known, torch.Tensor) or torch.Tag.nondeterministic_seeded in target.tags:
            continue
        if all(isinstance(size, int) for size in known.shape) and known.numel() <= _LARGEST:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), found.__getitem__)
            found[node] = target(*args, **kwargs)
    return found


def _jumps(node: fx.Node, values: dict[fx.Node, torch.Tensor]) -> bool:
    floats = any(values[n].is_floating_point() for n in node.all_input_nodes)
    steps: Any = node.target
    return floats and (
        not values[node].is_floating_point() or steps.name().split("::")[-1].split(".")[0] in _STEPS
    )


def _has_readers(node: fx.Node) -> bool:
    """Whether other nodes read it, and no output is it, which would lose its name."""
    return bool(node.users) and all(user.op != "output" for user in node.users)
