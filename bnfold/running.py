"""The running statistics of an ONNX model: read off its BatchNormalizations, and stored in them anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from .double_double import BFLOAT16
from .edit import Names
from .errors import InputError
from .estimate import Layer, Statistics
from .facts import Facts
from .nodes import is_used, label
from .report import Declined
from .stages import Stages, inner_norms

_SCALE, _BIAS, _MEAN, _VAR = 1, 2, 3, 4
_EPSILON = float(np.float32(1e-5))


class RunningStatistics:
    """Those of the BatchNormalizations whose input depends on the inputs of the model.

    Args:
        model: Is changed by `store`.
        stages: Of the same model, as it is stored.
        shared: What to do with nodes that have all parameters in common, see `recalibrate`.

    Attributes:
        layers: One for each, in the order of the file.

    Raises:
        InputError: There are none, or one cannot be recalibrated.
    """

    def __init__(
        self, model: ir.Model, stages: Stages, *, shared: Literal["refuse", "split"] = "refuse"
    ) -> None:
        self._model = model
        self._facts = Facts(model)
        _need_measurable(stages)
        if stages.idle:
            raise InputError(
                f"BatchNormalization '{stages.idle[0]}' is in training mode, and its input is a constant; "
                "fold constants first"
            )
        if not stages.norms:
            raise InputError(
                "has no BatchNormalization that depends on its inputs, so there is nothing to recalibrate"
                + ("; it may have been folded already" if not _has_norms(stages.model) else "")
            )
        nodes = list(model.graph)
        self._nodes = [nodes[norm.index] for norm in stages.norms]
        self.layers = tuple(self._layer(node) for node in self._nodes)
        if shared == "refuse":
            self._need_apart()

    @property
    def training(self) -> tuple[str, ...]:
        """Names of those that are in training mode."""
        return tuple(label(node) for node in self._nodes if _trains(node))

    def store(self, statistics: Sequence[Statistics]) -> None:
        """Give each its statistics, and turn those that are in training mode to inference."""
        names = Names(self._facts)
        for node, new in zip(self._nodes, statistics, strict=True):
            node.attributes.pop("training_mode", None)
            node.resize_outputs(1)
            for place, numbers in ((_MEAN, new.mean), (_VAR, new.var)):
                self._store(node, place, numbers, names)

    def _layer(self, node: ir.Node) -> Layer:
        name = label(node)
        opset = self._facts.op(node).opset
        if opset < 7:
            raise InputError(
                f"BatchNormalization '{name}' is of opset {opset}; onnxruntime runs those from 7 on: convert "
                "the model with onnx.version_converter"
            )
        if opset < 9 and not self._facts.op(node).integer("spatial", 1):
            raise InputError(
                f"BatchNormalization '{name}' has spatial=0, statistics for each position instead of each "
                "channel, which cannot be recalibrated; export it with spatial=1"
            )
        data = node.inputs[0]
        if data is not None and self._facts.dtype(data) == BFLOAT16:
            raise InputError(
                f"BatchNormalization '{name}': its input '{data.name}' is bfloat16, which cannot be taken "
                "out of onnxruntime; recalibrate the model in float32"
            )
        if unwelcome := [o.name for o in node.outputs[1:] if is_used(o)]:
            raise InputError(
                f"BatchNormalization '{name}' is in training mode and its statistics '{unwelcome[0]}' are "
                "used elsewhere; in inference mode there are none: remove what uses them, or that output"
            )
        numbers = {i: self._numbers(node, i) for i in (_SCALE, _MEAN, _VAR)}
        if len({array.shape for array in numbers.values()}) != 1 or numbers[_MEAN].ndim != 1:
            raise InputError(
                f"BatchNormalization '{name}' has parameters of different shapes; export it again"
            )
        wide = {i: array.astype(np.float64) for i, array in numbers.items()}
        epsilon = self._facts.op(node).real("epsilon", _EPSILON)
        return Layer(name, wide[_MEAN], wide[_VAR], wide[_SCALE], epsilon, numbers[_MEAN].dtype)

    def _numbers(self, node: ir.Node, place: int) -> NDArray[Any]:
        """A parameter; one that a caller may override counts as what is stored."""
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is not None and value.is_initializer() and value.const_value is not None:
            return value.const_value.numpy()
        try:
            constant = None if value is None else self._facts.constant(value)
        except Declined:
            constant = None
        if constant is None:
            raise InputError(
                f"BatchNormalization '{label(node)}': its parameter '{value.name if value else place}' is "
                "computed while the model runs, so there is nothing stored to recalibrate"
            )
        return constant.rounded()

    def _need_apart(self) -> None:
        """Refuse nodes with all parameters in common: one module that is used several times.

        Statistics with which training begins are no such sign: equal constants are often stored once.
        """
        users: dict[tuple[object, ...], list[ir.Node]] = defaultdict(list)
        for node, layer in zip(self._nodes, self.layers, strict=True):
            if not layer.is_untouched:
                users[tuple(node.inputs[_SCALE : _VAR + 1])].append(node)
        twice = next((nodes for nodes in users.values() if len(nodes) > 1), None)
        if twice:
            names = " and ".join(f"'{label(node)}'" for node in twice)
            raise InputError(
                f"the BatchNormalizations {names} share all their parameters: a module that is used "
                f"{len(twice)} times, whose inputs have no common statistics; pass --shared split to give "
                "each its own"
            )

    def _store(self, node: ir.Node, place: int, numbers: NDArray[Any], names: Names) -> None:
        value = node.inputs[place]
        assert value is not None
        old = value.const_value if value.is_initializer() else None
        if old is not None and old.numpy().tobytes() == numbers.tobytes():
            return  # the file shall not change without reason
        dtype, shape = ir.DataType.from_numpy(numbers.dtype), ir.Shape(numbers.shape)
        if old is not None and len(value.uses()) == 1 and not value.is_graph_output():
            value.const_value = ir.Tensor(
                numbers, dtype, shape=shape, name=value.name, doc_string=old.doc_string
            )
            return
        name = names.value(value.name, "_recalibrated")
        own = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)
        own.const_value = ir.Tensor(numbers, dtype, shape=shape, name=name)
        self._model.graph.initializers.add(own)
        if self._facts.lists_initializers:
            self._model.graph.inputs.append(own)
        node.replace_input_with(place, own)
        _drop(value)


def _trains(node: ir.Node) -> bool:
    mode = node.attributes.get("training_mode")
    return bool(mode is not None and mode.as_int()) or sum(1 for o in node.outputs if o.name) > 1


def _drop(value: ir.Value) -> None:
    """Remove what nothing uses any more: an initializer, or a chain of nodes that computed a constant."""
    if is_used(value) or value.is_graph_input():
        return
    node = value.producer()
    if node is None:
        if value.is_initializer() and value.graph is not None:
            del value.graph.initializers[value.name or ""]
    elif not any(is_used(o) for o in node.outputs):
        read = {v for v in node.inputs if v is not None}
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        for before in read:
            _drop(before)


def _need_measurable(stages: Stages) -> None:
    """Refuse what has no statistics, or none that can be seen from the main graph."""
    if stages.random:
        raise InputError(
            f"node '{stages.random[0]}' draws random numbers, so what comes into the BatchNormalizations "
            "after it is never the same; export the model for inference"
        )
    if stages.hidden_dropouts:
        raise InputError(
            f"Dropout '{stages.hidden_dropouts[0]}' in an inner graph or a local function may be in training "
            "mode; export the model for inference, or pass --inline-functions"
        )
    inner, local = inner_norms(stages.model)
    if inner:
        raise InputError(
            f"BatchNormalization '{inner[0]}' is in an inner graph (If, Loop, Scan), where its input cannot "
            "be measured; export the model without that control flow"
        )
    if local:
        raise InputError(
            f"BatchNormalization '{local[0]}' is in a local function, where its input cannot be measured; "
            "pass --inline-functions"
        )


def _has_norms(model: onnx.ModelProto) -> bool:
    return any(node.op_type == "BatchNormalization" for node in model.graph.node)
