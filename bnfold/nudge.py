"""Moves the floating constants of a model by one unit in the last place.

How far the outputs move with them is the model's own rounding noise, by which `verify` judges a
difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]


class Constants:
    """The floating constants of a model, to be moved by one unit in the last place.

    Left alone: what decides shapes, Resize scales, exponents (x**2.0000001 is no number for x < 0),
    zeros, infinities, and attributes such as epsilon.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self._model = model
        self._folder = folder
        self._fixed = _fixed_names(model)
        self._coarse = _coarser_types(model)
        self._inner = list(self._inner_tensors())

    def nudged(self, rng: np.random.Generator) -> tuple[bytes | None, Iterator[tuple[str, Array]]]:
        """One draw: the serialized model, if it holds constants that are not initializers of its main
        graph, and new values for those that are."""
        import onnx

        for name, tensor, stored in self._inner:
            moved = nudged(stored, rng, self._coarse.get(name))
            tensor.CopyFrom(onnx.numpy_helper.from_array(moved, tensor.name))
        return (self._model.SerializeToString() if self._inner else None), self._initializers(rng)

    def _initializers(self, rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
        import onnx

        for tensor in self._model.graph.initializer:
            if _is_plain_float(tensor) and tensor.name not in self._fixed:
                stored = onnx.numpy_helper.to_array(tensor, str(self._folder))
                yield tensor.name, nudged(stored, rng, self._coarse.get(tensor.name))

    def _inner_tensors(self) -> Iterator[tuple[str, onnx.TensorProto, Array]]:
        """Name, place and value of the constants that onnxruntime cannot be handed by name: those of
        Constant nodes, of inner graphs, and of types that numpy does not have."""
        import onnx

        tensors = [(t.name, t) for t in self._model.graph.initializer if not _is_plain_float(t)]
        for nodes, initializers in _scopes(self._model):
            tensors += [(t.name, t) for t in initializers]
            tensors += [(n.output[0], _as_tensor(n.attribute[0])) for n in nodes if _is_constant(n)]
        for name, tensor in tensors:
            if name not in self._fixed and tensor.data_type in (*_PLAIN_FLOATS, _BFLOAT16):
                yield name, tensor, onnx.numpy_helper.to_array(tensor, str(self._folder))


# Codes of `TensorProto.DataType`, which is not imported here: float16, float, double.
_PLAIN_FLOATS = (10, 1, 11)
_BFLOAT16 = 16

# First of the inputs that are not data but say how to compute (shapes, sizes, scales, exponents).
_SETTINGS = {
    "ConstantOfShape": 0,
    "CumSum": 1,
    "Expand": 1,
    "Mod": 1,
    "OneHot": 1,
    "Pad": 1,
    "Pow": 1,
    "Range": 0,
    "Reshape": 1,
    "Resize": 1,
    "Slice": 1,
    "Tile": 1,
    "TopK": 1,
    "Upsample": 1,
}


def nudged(values: Array, rng: np.random.Generator, coarse: np.dtype[Any] | None = None) -> Array:
    """The values, each moved up or down by one unit in the last place of their type, or of a coarser
    one that they are cast to; zeros, infinities and what is no float stay."""
    if values.dtype.kind in "iub":
        return values
    with np.errstate(all="ignore"):
        step = np.spacing(np.abs(values).astype(coarse or values.dtype)).astype(values.dtype)
        sign = rng.integers(0, 2, values.shape, dtype=np.int8) * np.int8(2) - np.int8(1)
        moved = values + step * sign.astype(values.dtype)
    return np.asarray(np.where((values != 0) & np.isfinite(moved), moved, values), dtype=values.dtype)


def _scopes(model: onnx.ModelProto) -> Iterator[tuple[Sequence[onnx.NodeProto], Sequence[onnx.TensorProto]]]:
    """Nodes and initializers of every graph and function; the main graph's own initializers aside."""
    inner = [(model.graph.node, ()), *((function.node, ()) for function in model.functions)]
    while inner:
        nodes, initializers = inner.pop()
        yield nodes, initializers
        for node in nodes:
            for attribute in node.attribute:
                graphs = [attribute.g] if attribute.HasField("g") else attribute.graphs
                inner += [(graph.node, graph.initializer) for graph in graphs]


def _is_plain_float(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type in _PLAIN_FLOATS


def _is_constant(node: onnx.NodeProto) -> bool:
    """Whether this is a Constant node that holds floating numbers."""
    return node.op_type == "Constant" and node.attribute[0].name in ("value", "value_float", "value_floats")


def _as_tensor(attribute: onnx.AttributeProto) -> onnx.TensorProto:
    """The tensor of a Constant node, in place; the other spellings of one are turned into it."""
    import onnx

    if attribute.name != "value":
        stored = np.array(attribute.f if attribute.name == "value_float" else attribute.floats, np.float32)
        attribute.CopyFrom(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(stored)))
    return attribute.t


def _fixed_names(model: onnx.ModelProto) -> set[str]:
    """Values that decide how something is computed, and all that they are computed from.

    The walk up ends at Shape and Size, whose result no nudge changes. A setting that depends on data
    fixes nothing: what it is computed from may well be the whole network.
    """
    producers = {name: node for nodes, _ in _scopes(model) for node in nodes for name in node.output if name}
    inputs = {value.name for value in model.graph.input} - {t.name for t in model.graph.initializer}
    fixed: set[str] = set()
    for nodes, _ in _scopes(model):
        for node in nodes:
            if node.op_type in _SETTINGS:
                for name in node.input[_SETTINGS[node.op_type] :]:
                    names = _ancestry(name, producers)
                    if not names & inputs:
                        fixed |= names
    return fixed


def _ancestry(name: str, producers: Mapping[str, onnx.NodeProto]) -> set[str]:
    """The name and those it is computed from, as far as values (not shapes) go."""
    names: set[str] = set()
    pending = [name]
    while pending:
        current = pending.pop()
        node = producers.get(current)
        if current and current not in names:
            names.add(current)
            if node is not None and node.op_type not in ("Shape", "Size"):
                pending += node.input
    return names


def _coarser_types(model: onnx.ModelProto) -> dict[str, np.dtype[Any]]:
    """For values whose reader computes in a coarser float, that type: their own last place is lost.

    A Cast says so itself; a BatchNormalization computes in the type of its data, whatever that of its
    parameters.
    """
    import onnx

    coarse = {10: np.dtype(np.float16), _BFLOAT16: onnx.helper.tensor_dtype_to_np_dtype(_BFLOAT16)}
    found: dict[str, np.dtype[Any]] = {}
    types: dict[str, int] | None = None
    for nodes, _ in _scopes(model):
        for node in nodes:
            if node.op_type == "Cast":
                to = next((a.i for a in node.attribute if a.name == "to"), 0)
                found |= {node.input[0]: coarse[to]} if to in coarse else {}
            elif node.op_type == "BatchNormalization" and node.output:
                types = _types(model, coarse) if types is None else types
                to = types.get(node.output[0], 0)
                found |= dict.fromkeys(node.input[1:], coarse[to]) if to in coarse else {}
    return found


def _types(model: onnx.ModelProto, wanted: Mapping[int, object]) -> dict[str, int]:
    """The element types of values, if any tensor of the model has one of those that are wanted."""
    import onnx

    stored = {t.data_type for t in model.graph.initializer}
    if not (stored | {v.type.tensor_type.elem_type for v in model.graph.input}) & set(wanted):
        return {}
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except (
        ValueError,
        RuntimeError,
        onnx.shape_inference.InferenceError,
    ):  # an aid: without it, a stricter check
        return {}
    return {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output, *graph.input)}
