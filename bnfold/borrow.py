"""Takes single nodes that float64 arithmetic has no operator for from onnxruntime.

The node becomes a model of its own. Its floating inputs are rounded to the types that the whole model
declares for them, since most kernels of custom operators exist in float32 only; its results are as exact
as that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto

from .declared import element_types
from .evaluate import Unsupported
from .session import Session, Unrunnable

Array = NDArray[Any]

# The floating types in which onnxruntime can be fed from numpy.
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


class Borrower:
    """Runs one node at a time in onnxruntime; an `evaluate.Elsewhere`. Any thread may call it.

    Args:
        model: The model whose nodes they are: its opsets and declared types hold for them.
        session: Makes the session, when the first node is to be run. It belongs to the borrower, which
            has to be closed.
    """

    def __init__(self, model: onnx.ModelProto, session: Callable[[], Session]) -> None:
        self._model = model
        self._make = session
        self._session: Session | None = None
        self._types: dict[str, int] | None = None
        self._open: bytes | None = None
        self._lock = threading.Lock()

    def __call__(self, node: NodeProto, inputs: Sequence[Array | None]) -> list[Array]:
        """The results of a node: float64 for all floats; empty for outputs that have no name.

        Raises:
            Unsupported: onnxruntime cannot run it either.
        """
        if any(a.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) for a in node.attribute):
            raise Unsupported("it has inner graphs, which cannot be run apart from the model")
        with self._lock:
            values = [
                None if value is None else self._typed(node, i, value) for i, value in enumerate(inputs)
            ]
            try:
                return self._run(node, values)
            except Unrunnable as error:
                self._open = None
                raise Unsupported(f"onnxruntime cannot run it: {error}") from error

    def close(self) -> None:
        """End the session."""
        with self._lock:
            if self._session is not None:
                self._session.close()
            self._session = self._open = None

    def _typed(self, node: NodeProto, i: int, value: Array) -> Array:
        if value.dtype.kind != "f":
            return value
        if self._types is None:
            self._types = element_types(self._model)
        known = (self._types.get(name, 0) for name in (node.input[i], *node.input, *node.output))
        code = next((code for code in known if code in _FLOATS), TensorProto.FLOAT)
        with np.errstate(over="ignore"):
            return value.astype(onnx.helper.tensor_dtype_to_np_dtype(code))

    def _run(self, node: NodeProto, values: Sequence[Array | None]) -> list[Array]:
        text = self._alone(node, values)
        if self._session is None:
            self._session = self._make()
        if text != self._open:
            signature = self._session.open(text)
            if signature.left_out:
                raise Unrunnable("its results are " + ", ".join(signature.left_out.values()))
            self._open = text
        feeds = {f"i{k}": value for k, value in enumerate(values) if value is not None}
        results = self._session.run(feeds)
        carried = {name: v.astype(np.float64) if v.dtype.kind == "f" else v for name, v in results.items()}
        return [carried.get(f"o{k}", np.empty(0)) for k in range(len(node.output))]

    def _alone(self, node: NodeProto, values: Sequence[Array | None]) -> bytes:
        """A model of this node alone, the same bytes for the same node and types."""
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.ClearField("name")
        copy.input[:] = ["" if value is None else f"i{k}" for k, value in enumerate(values)]
        copy.output[:] = [f"o{k}" if name else "" for k, name in enumerate(node.output)]
        inputs = [
            onnx.helper.make_tensor_value_info(
                f"i{k}", onnx.helper.np_dtype_to_tensor_dtype(value.dtype), [None] * value.ndim
            )
            for k, value in enumerate(values)
            if value is not None
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in copy.output if name]
        graph = onnx.helper.make_graph([copy], "node", inputs, outputs)
        model = onnx.ModelProto(ir_version=self._model.ir_version, graph=graph)
        opsets = {o.domain: o for f in self._model.functions for o in f.opset_import}
        opsets |= {o.domain: o for o in self._model.opset_import}
        model.opset_import.extend(opsets.values())
        text: bytes = model.SerializeToString(deterministic=True)
        return text
