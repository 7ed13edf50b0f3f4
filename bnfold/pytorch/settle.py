"""Values that an exported model computes from numbers in its code alone become constants.

torch's exporter writes `linspace(-1, 1, 7)` as a dozen of nodes, and the axes of a sum as a reshaped
constant. They are computed in float64 here and rounded once. What jumps on the way stays, to be computed in
the types that the model names; see `pin` for what torch itself can compute. What is computed from weights
stays, too: it is `fold` that knows which of them it needs, and untouched weights keep their names.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir

from ..declared import element_types
from ..evaluate import EvaluationError, evaluate

# As many numbers as a model may grow by.
_LARGEST = 1 << 20
# Their results jump, so that float64 may decide otherwise than the type that was meant.
_JUMPING = {"Ceil", "Floor", "Hardmax", "Mod", "QuantizeLinear", "Round", "Sign", "TopK"}
_COUNTING = {"Shape", "Size"}  # these make integers of anything, and look at no number
_CASTING = {"Cast", "CastLike"}
_MOVING = {"Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_RANDOM = {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomUniform"}
_RANDOM |= {"RandomNormalLike", "RandomUniformLike"}
_FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE}  # what a Cast to rounds nothing that matters


def settle(model: ir.Model) -> None:
    """Replace such values of the main graph in place. What cannot be computed stays."""
    graph = model.graph
    computed = _computed(graph)
    for node in list(graph):
        for value in node.outputs:
            if value in computed and node.op_type != "Constant" and _is_read_outside(value, computed):
                _replace(graph, value, model.opset_imports)


def _computed(graph: ir.Graph) -> set[ir.Value]:
    """The values that follow from numbers alone."""
    found = set[ir.Value]()
    for node in graph:
        from_numbers = node.inputs and all(v is None or v in found for v in node.inputs)
        if node.op_type == "Constant" or (from_numbers and _is_plain(node)):
            found.update(node.outputs)
    return found


def _is_plain(node: ir.Node) -> bool:
    """Whether its result is the same number in any precision, up to rounding, and each time."""
    if node.domain or node.op_type in _JUMPING | _RANDOM or _jumps(node):
        return False
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return False
    if node.op_type != "Cast":
        return True
    to = ir.DataType(node.attributes["to"].as_int())
    return to in _FLOATS or not to.is_floating_point()


def _jumps(node: ir.Node) -> bool:
    """Whether it makes integers or booleans of floats that were rounded: a cast, a comparison, an ArgMax."""
    if node.op_type in _COUNTING or all(_is_float(value) for value in node.outputs):
        return False
    return any(value is not None and _is_rounded(value) for value in node.inputs)


def _is_rounded(value: ir.Value) -> bool:
    """Whether it is a float that depends on what it was computed in: no constant, and no whole number."""
    node = value.producer()
    if node is None or node.op_type == "Constant" or not _is_float(value):
        return False
    if node.op_type in _CASTING:
        return node.inputs[0] is None or _is_float(node.inputs[0])
    return node.op_type not in _MOVING or any(v is not None and _is_rounded(v) for v in node.inputs)


def _is_float(value: ir.Value) -> bool:
    dtype = value.dtype if value.const_value is None else value.const_value.dtype
    if dtype is None and (tensor := ir.convenience.get_const_tensor(value)) is not None:
        dtype = tensor.dtype
    return dtype is not None and dtype.is_floating_point()


def _is_read_outside(value: ir.Value, computed: set[ir.Value]) -> bool:
    return value.is_graph_output() or any(not computed.issuperset(use.node.outputs) for use in value.uses())


def _replace(graph: ir.Graph, value: ir.Value, opsets: dict[str, int]) -> None:
    """Let an initializer take the place of a value."""
    proto = _alone(value, opsets)
    code = element_types(proto).get(str(value.name), 0 if value.dtype is None else int(value.dtype))
    try:
        (numbers,) = evaluate(proto, {}).values()
    except EvaluationError:
        return
    dtype = ir.DataType(code)
    if not code or dtype == ir.DataType.STRING or numbers.size > _LARGEST:
        return
    with np.errstate(over="ignore"):  # what is infinite in the type that was meant is so here
        tensor = ir.Tensor(numbers.astype(dtype.numpy()), dtype)
    node = value.producer()
    assert node is not None
    name = f"{value.name}_settled"
    made = ir.Value(name=name, type=ir.TensorType(dtype), shape=tensor.shape, const_value=tensor)
    made.metadata_props.update(node.metadata_props)  # whose it is
    graph.register_initializer(made)
    ir.convenience.replace_all_uses_with(value, made, replace_graph_outputs=True)


def _alone(value: ir.Value, opsets: dict[str, int]) -> onnx.ModelProto:
    """The part of a model that computes a value."""
    nodes: dict[ir.Node, None] = {}
    pending = [value]
    while pending:
        node = pending.pop().producer()
        if node is not None:
            nodes.pop(node, None)
            nodes[node] = None
            pending += [v for v in node.inputs if v is not None]
    made = onnx.GraphProto(name="settled", output=[onnx.ValueInfoProto(name=str(value.name))])
    made.node.extend(ir.to_proto(node) for node in _in_order(nodes))
    imports = [onnx.OperatorSetIdProto(domain=domain, version=version) for domain, version in opsets.items()]
    return onnx.ModelProto(ir_version=10, graph=made, opset_import=imports)


def _in_order(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """As they stand in their graph."""
    wanted = set(nodes)
    graph = next(iter(wanted)).graph
    assert graph is not None
    return [node for node in graph if node in wanted]
