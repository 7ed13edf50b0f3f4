"""Shapes and dtypes that the file does not state, by ONNX's shape inference.

Inference sees the graph with the headers of its large tensors, not their numbers, and its answers stay
beside the model: the model itself keeps exactly the shape information it came with.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import onnx_ir as ir

Dim = int | str | None
"""A size: known, a symbol that stands for one, or unknown."""

Inferred = tuple[np.dtype[Any] | None, tuple[Dim, ...] | None]
"""The dtype and the sizes of a value."""

ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div"})

_ACTIVATIONS = {"Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Relu", "Sigmoid", "Tanh"}
_NORMALIZATIONS = {"BatchNormalization", "InstanceNormalization", "LayerNormalization", "Softmax"}
SAME_SHAPE = frozenset(_ACTIVATIONS | _NORMALIZATIONS | {"Dropout", "Identity", "Neg"})
"""Operators whose result has the shape and the dtype of their first input."""

POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
"""Operators whose result has the rank, the batch and the channels of their input."""

SAME_DTYPE = SAME_SHAPE | ARITHMETIC | POOLS | {"Conv", "ConvTranspose", "Gemm", "MatMul", "Sum"}
"""Operators whose result has the dtype of their first input."""

_PROPAGATED = 1 << 16  # elements; a shape has a handful
_HEADER_ONLY = 4096  # bytes; a shape or a list of axes is smaller

_log = logging.getLogger(__name__)


def infer_types(model: ir.Model) -> dict[ir.Value, Inferred]:
    """Dtype and sizes of every value of the main graph and its inner graphs that inference can tell.

    Returns an empty dictionary if inference refuses the model.
    """
    import onnx
    from onnx import shape_inference

    chatter = logging.getLogger("onnx_ir.serde")  # about values of unknown type, which are usual here
    silent, chatter.disabled = chatter.disabled, True
    try:
        # Inference refuses models of IR version 3 that do not list their initializers as inputs.
        proto = onnx.ModelProto(ir_version=max(4, model.ir_version))
        for domain, version in model.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        for function in model.functions.values():
            proto.functions.append(ir.serde.serialize_function(function))
        _outline(model.graph, proto.graph)
        _forget_negative_sizes(proto.graph)
        inferred = shape_inference.infer_shapes(proto, data_prop=not _is_bomb(model.graph))
    except (
        shape_inference.InferenceError,
        ir.serde.SerdeError,
        ValueError,
        RuntimeError,
        MemoryError,
    ) as error:
        _log.info("shape inference failed, its facts are missing: %s", error)
        return {}
    finally:
        chatter.disabled = silent
    found: dict[ir.Value, Inferred] = {}
    _collect(model.graph, inferred.graph, found)
    return found


def numpy_dtype(dtype: ir.DataType) -> np.dtype[Any] | None:
    """The numpy dtype of an ONNX element type; None for strings and the undefined."""
    try:
        return np.dtype(dtype.numpy())
    except TypeError:
        return None


def size_of(dim: int | ir.SymbolicDim) -> Dim:
    """An onnx_ir dimension as plain data. Some exporters write -1 for what they do not know."""
    if isinstance(dim, int):
        return dim if dim >= 0 else None
    return dim.value


def _outline(graph: ir.Graph, proto: Any) -> None:
    """Write a graph with headers instead of large tensors."""
    for value in graph.inputs:
        proto.input.append(ir.serde.serialize_value(value))
    for value in graph.outputs:
        proto.output.append(ir.serde.serialize_value(value))
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        if isinstance(tensor, ir.LazyTensor) or tensor.nbytes >= _HEADER_ONLY:
            proto.initializer.add(name=value.name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
            continue
        if isinstance(tensor, ir.ExternalTensor):  # it may be the shape of a Reshape
            tensor = ir.Tensor(tensor.numpy(), tensor.dtype, name=value.name)
        proto.initializer.append(ir.serde.serialize_tensor(tensor))
    for node in _in_order(graph):
        proto.node.append(ir.serde.serialize_node(node))
        for value in node.outputs:
            if value.name and value.type is not None and not value.is_graph_output():
                proto.value_info.append(ir.serde.serialize_value(value))


def _is_bomb(graph: ir.Graph) -> bool:
    """Whether inference would make a large tensor to propagate: it computes ConstantOfShape, of any size."""
    for node in graph:
        if node.op_type != "ConstantOfShape" or not node.inputs or (shape := node.inputs[0]) is None:
            continue
        maker = shape.producer()
        tensor = shape.const_value
        if maker is not None and maker.op_type == "Constant" and "value" in maker.attributes:
            tensor = maker.attributes["value"].value
        if tensor is None or tensor.nbytes > _HEADER_ONLY or math.prod(tensor.numpy().tolist()) > _PROPAGATED:
            return True
    return False


def _in_order(graph: ir.Graph) -> list[ir.Node]:
    """The nodes, makers before readers: inference looks at each once, and not every file is sorted."""
    placed: dict[ir.Node, None] = {}
    for start in graph:
        waiting = [start]
        while waiting:
            node = waiting[-1]
            makers = (v.producer() for v in node.inputs if v is not None)
            missing = [m for m in makers if m is not None and m.graph is graph and m not in placed]
            if node in placed or not missing or len(waiting) > len(graph):  # the last: a cycle
                placed[waiting.pop()] = None
            else:
                waiting += missing
    return list(placed)


def _forget_negative_sizes(proto: Any) -> None:
    """Some exporters write -1 for a size that they do not know; inference gives up there."""
    for info in (*proto.input, *proto.output, *proto.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.ClearField("dim_value")


def _collect(graph: ir.Graph, proto: Any, found: dict[ir.Value, Inferred]) -> None:
    """Read the answers back, graph and proto side by side."""
    types = {info.name: info.type for info in (*proto.value_info, *proto.output, *proto.input)}
    for value in graph.inputs:
        _note(value, types, found)
    for node, node_proto in zip(_in_order(graph), proto.node, strict=True):
        for value in node.outputs:
            _note(value, types, found)
        for attribute in node_proto.attribute:
            if attribute.HasField("g"):
                _collect(node.attributes[attribute.name].as_graph(), attribute.g, found)


def _note(value: ir.Value, types: dict[str | None, Any], found: dict[ir.Value, Inferred]) -> None:
    kind = types.get(value.name)
    if kind is None or not kind.HasField("tensor_type"):
        return
    tensor = kind.tensor_type
    sizes: tuple[Dim, ...] | None = None
    if tensor.HasField("shape"):
        sizes = tuple(_size_in(d) for d in tensor.shape.dim)
    found[value] = (numpy_dtype(ir.DataType(tensor.elem_type)), sizes)


def _size_in(dim: Any) -> Dim:
    """A dimension of a TensorShapeProto."""
    if not dim.HasField("dim_value"):
        return dim.dim_param or None
    return dim.dim_value if dim.dim_value >= 0 else None
