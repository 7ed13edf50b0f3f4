"""The ONNX graph that stands for a traced one, so that the fold, which knows ONNX, can be asked about it.

The model is never run and never written: it holds what the fold looks at. Sizes that the module's own
parameters fix are stated, and the rank of each value where it is known; all other sizes are symbols, so
that what folds does so for every size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn

from ..errors import InputError
from ..report import Declined
from .calls import Call, Stored

OPAQUE = "torch"
"""The domain of calls that no affine passes."""

_OPSET = 21
_TAKES_ANY_WIDTH = frozenset({"dropout", "identity", "relu", "leaky_relu"})
_FIXES_WIDTH = {"linear": "weight", "batch_norm": "running_mean"}
Dims = tuple[int | str, ...]
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Slot:
    """Where a tensor of the module stands in the ONNX graph.

    Attributes:
        node: The call that has it.
        name: What the call, or its module, calls it.
        transposed: Whether its axes are in reverse order here.
    """

    node: fx.Node
    name: str
    transposed: bool = False


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A node as it was before the fold."""

    inputs: tuple[ir.Value | None, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Shadow:
    """An ONNX model that says what a traced graph does.

    Attributes:
        model: The model.
        values: The value that each node of the graph makes.
        origins: The node of the graph that each value is made by or for.
        callers: The node of the graph that each node of the model stands for.
        snapshots: What each node of the model was before the fold.
        slots: Which inputs, by node and index, are tensors of the module, absent ones included.
        widths: How many channels the calls of Linear make.
        declined: The BatchNormalizations that could not be expressed, and why.
    """

    model: ir.Model
    values: dict[fx.Node, ir.Value] = field(default_factory=dict)
    origins: dict[ir.Value, fx.Node] = field(default_factory=dict)
    callers: dict[ir.Node, fx.Node] = field(default_factory=dict)
    slots: dict[tuple[ir.Node, int], Slot] = field(default_factory=dict)
    snapshots: dict[ir.Node, Snapshot] = field(default_factory=dict)
    widths: dict[fx.Node, int] = field(default_factory=dict)
    declined: dict[fx.Node, Declined] = field(default_factory=dict)


class Unknown(Exception):
    """A call has no counterpart in ONNX, or none that is known to be one."""


def need_stored(argument: Any) -> Stored:
    """A constant of the module, or `Unknown`."""
    if not isinstance(argument, Stored):
        raise Unknown
    return argument


def per_axis(numbers: Any, k: int) -> list[Any]:
    """One entry for each of k axes, of which a single number is the same for all."""
    given = list(numbers) if isinstance(numbers, list | tuple) else [numbers]
    return given * k if len(given) == 1 else given


class Builder:
    """Builds a shadow, one node of the traced graph after the other.

    Args:
        root: The module.
        calls: What the nodes call.
        path: What all names begin with.

    Attributes:
        shadow: What is there so far.
        node: The node whose turn it is.
    """

    node: fx.Node

    def __init__(self, root: nn.Module, calls: Mapping[fx.Node, Call | None], path: str) -> None:
        self._graph = ir.Graph([], [], nodes=[], opset_imports={"": _OPSET, OPAQUE: 1}, name="module")
        self.shadow = Shadow(ir.Model(self._graph, ir_version=10))
        self._calls = calls
        self._path = path
        self._dtype = _only_dtype(root)
        self._symbols = 0
        self._tensors: dict[ir.Value, Slot] = {}
        self._parts: dict[fx.Node, Sequence[ir.Value]] = {}

    def free(self, rank: int) -> Dims:
        """Sizes of which nothing is known."""
        self._symbols += rank
        return tuple(f"d{self._symbols + k}" for k in range(rank))

    def data(self, argument: Any) -> ir.Value:
        """The value of an argument that is data."""
        if not isinstance(argument, fx.Node):
            raise Unknown
        return self.shadow.values[argument]

    def dims(self, value: ir.Value) -> Dims | None:
        if value.shape is None:
            return None
        return tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)

    @property
    def called(self) -> str:
        """The path of the module that is called, or the name of the call."""
        own = self.node.target if self.node.op == "call_module" else self.node.name
        return f"{self._path}.{own}".lstrip(".")

    def finish(self, value: ir.Value) -> None:
        """The node's turn is over; this is its value."""
        self.shadow.values[self.node] = value
        self.shadow.origins.setdefault(value, self.node)

    def learn(self, value: ir.Value, dims: Dims) -> None:
        """State sizes that a reader of the value requires.

        Raises:
            InputError: They contradict what is known: the module cannot run.
        """
        known = self.dims(value) or dims
        for axis, (here, there) in enumerate(zip(known, dims, strict=True)):
            if isinstance(here, int) and isinstance(there, int) and here != there:
                raise InputError(
                    f"{self.called!r} takes data with {there} channels, and is given {here} (axis {axis} of "
                    f"{value.name!r}); the module cannot run"
                )
        value.shape = ir.Shape(dims)

    def need_dims(self, value: ir.Value) -> Dims:
        dims = self.dims(value)
        if dims is None:
            raise Unknown
        return dims

    def tensor(self, stored: Stored, *, transposed: bool = False) -> ir.Value:
        """A constant of the module."""
        tensor = stored.tensor.cpu()
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise Unknown
        slot = Slot(self.node, stored.name, transposed)
        value = self._initializer(tensor.T.contiguous() if transposed else tensor)
        self._tensors[value] = slot
        return value

    def number(self, numbers: Any, dtype: Any = np.int64) -> ir.Value:
        """A constant of the call."""
        name = f"constant_{len(self._graph.initializers)}"
        value = ir.Value(name=name, const_value=ir.Tensor(np.asarray(numbers, dtype), name=name))
        self._graph.register_initializer(value)
        return value

    def scalar(self, number: float) -> ir.Value:
        """A Python number, which torch does not round to the type of the data."""
        return self.number(number, np.float64)

    def parameter(self, argument: Any, name: str, default: float, count: int, dtype: torch.dtype) -> ir.Value:
        """A parameter per channel, or the constant that stands for an absent one."""
        if argument is not None:
            return self.tensor(need_stored(argument))
        value = self._initializer(torch.full((count,), default, dtype=dtype))
        self._tensors[value] = Slot(self.node, name)
        return value

    def emit(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        dims: Dims | None,
        absent: Mapping[int, Slot] | None = None,
        outputs: int = 1,
        **attributes: Any,
    ) -> ir.Value:
        """A node; returns its first output."""
        node = ir.node(operator, inputs, attributes, num_outputs=outputs, name=self.called)
        self._append(node)
        self._describe(node.outputs[0], dims)
        self._state(node.outputs[0], next((v.dtype for v in inputs if v is not None and v.dtype), None))
        for i, value in enumerate(inputs):
            if value in self._tensors:
                self.shadow.slots[node, i] = self._tensors[value]
        self.shadow.slots.update({(node, i): slot for i, slot in (absent or {}).items()})
        return node.outputs[0]

    def split(self, x: ir.Value, parts: Sequence[Dims], axis: int) -> ir.Value:
        """A Split into parts of these sizes; its outputs are the node's parts."""
        sizes = self.number([dims[axis] for dims in parts])
        first = self.emit("Split", [x, sizes], parts[0], outputs=len(parts), axis=axis)
        outputs = self._need_producer(first).outputs
        for output, dims in zip(outputs, parts, strict=True):
            self._describe(output, dims)
        self._parts[self.node] = outputs
        return first

    def is_split(self, whole: fx.Node) -> bool:
        """Whether a node has parts."""
        return whole in self._parts

    def part(self, whole: fx.Node, index: int) -> ir.Value:
        """One of the parts of a node that was split."""
        value = self._parts[whole][index]
        self.shadow.origins[value] = self.node
        return value

    def width_after(self) -> int | None:
        """How many channels the result, flattened, must have, since that is what its reader takes."""
        node = self.node
        while len(node.users) == 1:
            (node,) = node.users
            call = self._calls.get(node)
            if call is None or call.name not in _TAKES_ANY_WIDTH:
                weight = None if call is None else call.arguments.get(_FIXES_WIDTH.get(call.name, ""))
                return int(weight.tensor.shape[-1]) if isinstance(weight, Stored) else None
        return None

    @staticmethod
    def _need_producer(value: ir.Value) -> ir.Node:
        producer = value.producer()
        assert producer is not None  # it was made by `emit`
        return producer

    def argument(self, node: fx.Node, example: torch.Tensor | None) -> ir.Value:
        """An argument of the module; of an example, only the rank and the type count."""
        value = ir.Value(name=node.name)
        self._describe(value, None if example is None else self.free(example.ndim))
        if example is not None:
            self._state(value, ir.tensor_adapters.from_torch_dtype(example.dtype))
        self._graph.inputs.append(value)
        return value

    def cast(self, x: ir.Value, dtype: ir.DataType | None, like: ir.Value | None = None) -> ir.Value:
        """A Cast to a type, or to that of another value."""
        if dtype is None:
            raise Unknown
        if like is not None:
            value = self.emit("CastLike", [x, like], self.dims(x))
        else:
            value = self.emit("Cast", [x], self.dims(x), to=int(dtype))
        self._state(value, dtype)
        return value

    def opaque(self, dims: Dims | None = None) -> ir.Value:
        """The call as a node that no affine passes."""
        sources = [self.shadow.values[n] for n in self.node.all_input_nodes]
        node = ir.Node(OPAQUE, _called(self.node), sources, num_outputs=1, name=self.called)
        self._append(node)
        self._describe(node.outputs[0], dims)
        if self.node.op == "output":
            self._graph.outputs.append(node.outputs[0])
        return node.outputs[0]

    def _append(self, node: ir.Node) -> None:
        self._graph.append(node)
        self.shadow.callers[node] = self.node
        self.shadow.snapshots[node] = Snapshot(tuple(node.inputs), attributes_of(node))
        for k, output in enumerate(node.outputs):
            output.name = f"{self.node.name}.{len(self.shadow.callers)}.{k}"
            self.shadow.origins[output] = self.node

    def _initializer(self, tensor: torch.Tensor) -> ir.Value:
        name = f"{self.called}.{len(self._graph.initializers)}"
        value = ir.Value(name=name, const_value=ir.tensor_adapters.TorchTensor(tensor, name=name))
        value.dtype, value.shape = ir.tensor_adapters.from_torch_dtype(tensor.dtype), ir.Shape(tensor.shape)
        self._graph.register_initializer(value)
        return value

    @staticmethod
    def _state(value: ir.Value, dtype: ir.DataType | None) -> None:
        value.type = None if dtype is None else ir.TensorType(dtype)

    def _describe(self, value: ir.Value, dims: Dims | None) -> None:
        value.shape = None if dims is None else ir.Shape(dims)
        self._state(value, self._dtype)


def attributes_of(node: ir.Node) -> Mapping[str, Any]:
    """The values of a node's attributes."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _only_dtype(root: nn.Module) -> ir.DataType | None:
    """The type of the module's floating numbers, if all are of one."""
    dtypes = {t.dtype for t in (*root.parameters(), *root.buffers()) if t.is_floating_point()}
    return ir.tensor_adapters.from_torch_dtype(dtypes.pop()) if len(dtypes) == 1 else None


def _called(node: fx.Node) -> str:
    """What a node calls, for the eyes of a reader."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
