"""Operators that are not run here: one node, as `onnx.reference` has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper
from onnx.reference import ReferenceEvaluator

from .node import Array, Datum, is_float
from .outcome import Unsupported, in_a_line

DOMAINS = frozenset({"", "ai.onnx.ml"})
"""Those of which `onnx.reference` has operators."""


def run(node: NodeProto, opset: int, inputs: Sequence[Datum | None]) -> list[Datum]:
    """The results of a node, whose domain is imported in version `opset`.

    Raises:
        Unsupported: `onnx.reference` lacks the operator, fails, or rounds to less than float64.
    """
    feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if value is not None}
    names = [name for name in node.output if name]
    try:
        values = _evaluator(node, opset, list(feeds), names).run(names, feeds)
    except Exception as error:  # whether for the model's fault or for its own cannot be told
        raise Unsupported(f"onnx.reference cannot run it: {in_a_line(error)}") from error
    floating = any(_is_floating(value) for value in feeds.values())
    computed = dict(zip(names, (_carried(value, floating) for value in values), strict=True))
    return [computed.get(name, np.empty(0)) for name in node.output]


def _evaluator(node: NodeProto, opset: int, inputs: list[str], outputs: list[str]) -> ReferenceEvaluator:
    graph = helper.make_graph(
        [node],
        "node",
        [onnx.ValueInfoProto(name=name) for name in inputs],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    return ReferenceEvaluator(
        helper.make_model(graph, opset_imports=[helper.make_opsetid(node.domain, opset)])
    )


def _is_floating(value: Datum) -> bool:
    return any(map(is_float, value)) if isinstance(value, list) else is_float(value)


def _carried(value: object, from_floats: bool) -> Datum:
    if isinstance(value, list):
        return [_tensor(item, from_floats) for item in value]
    return _tensor(value, from_floats)


def _tensor(value: object, from_floats: bool) -> Array:
    """A result as it is carried. What is made of integers alone may be rounded: no error grows from it."""
    if not isinstance(value, np.ndarray | np.generic):
        raise Unsupported(f"it makes a {type(value).__name__}, no tensor")
    array = np.asarray(value)
    if not is_float(array) or array.dtype == np.float64:
        return array
    if from_floats:
        raise Unsupported(f"onnx.reference rounds it to {array.dtype}")
    return array.astype(np.float64)
