"""What torch's exporter writes, made fit to be read and deployed: names and noise, never numbers.

Nodes are called by the module that they belong to, as in `layer1.0.bn1`; inputs, outputs and free sizes as
users call them. Stack traces with paths of the user's files go.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from .settle import settle

_SCOPES = "pkg.torch.onnx.name_scopes"
_BIASED = {"Conv", "ConvTranspose"}
_CONVERTING = {"Cast", "CastLike", "Identity"}
_RESHAPING = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"}


def tidy(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str], symbols: Mapping[str, str]) -> None:
    """Tidy a model in place.

    Args:
        model: As the exporter has made it.
        inputs: What its inputs shall be called, one name each.
        outputs: What its outputs shall be called.
        symbols: What its free sizes shall be called.
    """
    _drop_absent_biases(model)
    _split_at_once(model)
    _keep_epsilons(model)
    settle(model)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
    _separate_outputs(model.graph)
    _rename(model, inputs, outputs)
    _rename_sizes(model, symbols)
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in _values(model):
        value.metadata_props.clear()


def _drop_absent_biases(model: ir.Model) -> None:
    """A bias that is expanded from a zero is none. Where the weight is 5-D its shape is even wrong."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type in _BIASED and node.domain == "" and len(node.inputs) == 3:
            bias = node.inputs[2]
            if bias is not None and _is_expanded_zero(bias):
                node.resize_inputs(2)


def _is_expanded_zero(value: ir.Value) -> bool:
    expand = value.producer()
    if expand is None or expand.op_type != "Expand":
        return False
    scalar = expand.inputs[0]
    while scalar is not None and (node := scalar.producer()) is not None and node.op_type in _CONVERTING:
        scalar = node.inputs[0]
    number = None if scalar is None else ir.convenience.get_const_tensor(scalar)
    return number is not None and number.size == 1 and not np.any(number.numpy())


def _split_at_once(model: ir.Model) -> None:
    """A tensor that is split into a sequence, of which each part is taken by a number, is just split."""
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.op_type != "SplitToSequence" or node.domain or node.graph is None or len(node.inputs) < 2:
            continue
        sequence, sizes = node.outputs[0], _constant(node.inputs[1])
        readers = [use.node for use in sequence.uses()]
        places = [_constant(reader.inputs[1]) for reader in readers if reader.op_type == "SequenceAt"]
        total = _split_size(node)
        if sizes is None or total is None or sequence.is_graph_output() or len(places) != len(readers):
            continue
        parts = sizes.tolist() if sizes.ndim else _equal_parts(total, int(sizes))
        if sum(parts) != total or any(
            place is None or not -len(parts) <= int(place) < len(parts) for place in places
        ):
            continue
        attributes = {"axis": node.attributes["axis"].value} if "axis" in node.attributes else {}
        const = ir.node("Constant", [], {"value_ints": parts})
        split = ir.node("Split", [node.inputs[0], const.outputs[0]], attributes, num_outputs=len(parts))
        for made in (const, split):
            made.metadata_props.update(node.metadata_props)
        node.graph.insert_before(node, [const, split])
        for reader, place in zip(readers, places, strict=True):
            assert place is not None
            taken, part = reader.outputs[0], split.outputs[int(place)]
            part.type, part.shape = part.type or taken.type, part.shape or taken.shape
            ir.convenience.replace_all_uses_with(taken, part, replace_graph_outputs=True)


def _split_size(node: ir.Node) -> int | None:
    """The size of the axis that is split; None if it is not known, or if the parts lose their axis."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    keeps = node.attributes["keepdims"].as_int() if "keepdims" in node.attributes else 1
    data = node.inputs[0]
    if data is None or data.shape is None or (not keeps and len(node.inputs) < 2):
        return None
    size = data.shape[axis]
    return size if isinstance(size, int) else None


def _equal_parts(total: int, size: int) -> list[int]:
    """Parts of that size, and a last one of what is left."""
    return [size] * (total // size) + ([total % size] if total % size else [])


def _constant(value: ir.Value | None) -> np.ndarray[Any, np.dtype[Any]] | None:
    """The integers of a constant, also behind a Cast or a Reshape of one; None if it is none."""
    while value is not None and (node := value.producer()) is not None and node.op_type in _RESHAPING:
        value = node.inputs[0]
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def _keep_epsilons(model: ir.Model) -> None:
    """An epsilon is a float32 in ONNX. Where the variance is a float64, it takes what that loses."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type != "BatchNormalization" or node.domain or "epsilon" not in node.attributes:
            continue
        var = node.inputs[4]
        stored = None if var is None or not var.is_initializer() else var.const_value
        epsilon = node.attributes["epsilon"].as_float()
        lost = epsilon - float(np.float32(epsilon))
        if var is None or stored is None or stored.dtype != ir.DataType.DOUBLE or not lost:
            continue
        tensor = ir.Tensor(stored.numpy() + lost, name=f"{var.name}_with_epsilon")
        value = ir.val(tensor.name, const_value=tensor)
        model.graph.register_initializer(value)
        node.replace_input_with(4, value)


def _separate_outputs(graph: ir.Graph) -> None:
    """An output that is an input, a weight, or another output as well, gets a value of its own."""
    seen = set[ir.Value]()
    for i, value in enumerate(graph.outputs):
        if value in seen or value.producer() is None or value.is_graph_input():
            node = ir.node("Identity", [value])
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            graph.append(node)
            graph.outputs[i] = node.outputs[0]
        seen.add(graph.outputs[i])


def _rename(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    graph = model.graph
    fixed = [*graph.inputs, *graph.initializers.values(), *graph.outputs]
    assert len(inputs) == len(graph.inputs) and len(outputs) == len(graph.outputs)
    wanted = [*inputs, *(_weight(value) for value in graph.initializers.values()), *outputs]
    inner = {v.name for v in _values(model) if v.graph is not graph}
    taken = set[str]({name for name in inner if name})
    for value in _values(model):  # out of the way
        if value.graph is graph:
            value.name = f"\0{value.name}"
    # Inputs and outputs come first: their names were asked for, and a weight may have the same one.
    order = sorted(range(len(fixed)), key=lambda i: fixed[i].is_initializer())
    for i in order:
        fixed[i].name = _unique(wanted[i], taken)
    named = set(fixed)
    nodes = _Labels(graph)
    for node in graph:
        node.name = nodes.label(node)
        several = len(node.outputs) > 1
        for k, value in enumerate(node.outputs):
            if value not in named:
                value.name = _unique(f"{node.name}.{k}" if several else node.name, taken)


def _weight(value: ir.Value) -> str:
    """What it is called in the state dict; a constant that was made here, by the module that needs it."""
    scope = _scope(value)
    if scope is None:
        return str(value.name)
    return f"{scope}/Constant" if scope else "Constant"


class _Labels:
    """Names for nodes: the path of a module that makes one node, else that path and the operator."""

    def __init__(self, graph: ir.Graph) -> None:
        self._scopes = {node: _scope(node) for node in graph}
        inside = Counter[str](scope for scope in self._scopes.values() if scope is not None)
        for scope in list(inside):
            parts = scope.split(".")
            for n in range(1, len(parts)):
                inside[".".join(parts[:n])] += 1
        self._inside = inside
        self._taken = set[str]()

    def label(self, node: ir.Node) -> str:
        scope = self._scopes[node]
        if scope is None:
            wanted = node.name or node.op_type
        elif not scope:
            wanted = node.op_type
        else:
            wanted = scope if self._inside[scope] == 1 else f"{scope}/{node.op_type}"
        return _unique(wanted, self._taken)


def _scope(of: ir.Node | ir.Value) -> str | None:
    """The path of the module that it belongs to; None if nothing says so."""
    scopes = of.metadata_props.get(_SCOPES)
    if scopes is None:
        return None
    names = ast.literal_eval(scopes)
    return str(names[-2]) if len(names) > 1 else ""


def _unique(wanted: str, taken: set[str]) -> str:
    name, n = wanted, 1
    while name in taken:
        name, n = f"{wanted}_{n}", n + 1
    taken.add(name)
    return name


def _rename_sizes(model: ir.Model, symbols: Mapping[str, str]) -> None:
    """A symbol becomes its name; in an expression as well."""
    if not symbols:
        return
    longest_first = sorted(symbols, key=len, reverse=True)
    pattern = re.compile("|".join(rf"(?<!\w){re.escape(symbol)}(?!\w)" for symbol in longest_first))
    for value in _values(model):
        if value.shape is not None and not value.shape.is_static():
            dims = [d.value if isinstance(d, ir.SymbolicDim) else d for d in value.shape]
            value.shape = ir.Shape(
                [pattern.sub(lambda m: symbols[m[0]], d) if isinstance(d, str) else d for d in dims]
            )


def _values(model: ir.Model) -> Iterator[ir.Value]:
    """Every value of the model, inner graphs and functions included."""
    groups: dict[int, list[ir.Value]] = defaultdict(list)
    for graph in model.graphs():
        groups[id(graph)] += [*graph.inputs, *graph.initializers.values()]
        for node in graph:
            groups[id(graph)] += node.outputs
    for function in model.functions.values():
        groups[id(function)] += function.inputs
        for node in function:
            groups[id(function)] += node.outputs
    for values in groups.values():
        yield from dict.fromkeys(values)
