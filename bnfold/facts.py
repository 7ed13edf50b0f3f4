"""What is known about a model before it runs: constants, ranks, sizes, dtypes, readers.

`Facts` answers for values, `Op` is a node together with the facts about its inputs: all that a rule may
look at. A fact that is missing or that forbids the fold raises `Declined`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from . import chains
from .affine import Affine
from .constants import FLOATS, Constant
from .nodes import NodeView, first_output, label
from .report import Declined, Reason
from .shapes import (
    ARITHMETIC,
    POOLS,
    SAME_DTYPE,
    SAME_SHAPE,
    Dim,
    Inferred,
    infer_types,
    numpy_dtype,
    size_of,
)


class Facts:
    """The facts about one model, gathered when asked for.

    Args:
        model: The model. Edits that keep shapes and dtypes, as all folds do, do not make facts stale.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._constants: dict[ir.Value, Constant | Declined | None] = {}
        self.made: dict[ir.Value, Constant] = {}  # by folds; some were replaced since
        self._inferred: dict[ir.Value, Inferred] | None = None
        self.normalizations: dict[tuple[object, ...], Affine] = {}  # computed together, see `sources`
        self._noted: dict[ir.Value, tuple[np.dtype[Any] | None, tuple[Dim, ...]]] = {}
        # Some old writers leave the initializers out of the inputs all the same; then so do we.
        self.lists_initializers = model.ir_version < 4 and all(
            v.is_graph_input() for v in model.graph.initializers.values()
        )
        self.scopes = tuple(scopes(model))
        self._scopes = {scope.graph: scope for scope in self.scopes}
        # Folds rename values, but reports and formulas speak of the original.
        self._origins = {n: (scope.path, first_output(n)) for scope in self.scopes for n in scope.graph}
        # A local function of the default domain takes the place of the operator of its name.
        self._replaced = {name for domain, name, _ in model.functions if domain in ("", "ai.onnx")}
        self._arguments = {value for f in model.functions.values() for value in f.graph.inputs}

    # Constants

    def constant(self, value: ir.Value) -> Constant | None:
        """The numbers of a value that is known before the model runs; None if it depends on data.

        Raises:
            Declined: It would be a constant, but it may not be used as one.
        """
        if value not in self._constants:
            if value.producer() is None:
                self._constants[value] = self._stored(value)
            else:
                self._evaluate(value)
        found = self._constants[value]
        if isinstance(found, Declined):
            raise Declined(found.reason, found.detail)
        return found

    def remember(self, value: ir.Value, constant: Constant) -> None:
        """Take note of a constant that a fold made."""
        self._constants[value] = self.made[value] = constant

    def is_argument(self, value: ir.Value) -> bool:
        """Whether the value is a parameter of a local function."""
        return value in self._arguments

    def _evaluate(self, value: ir.Value) -> None:
        """Evaluate the chain behind a value, inputs first; not recursive, as chains may be long."""
        stack = [value]
        while stack:
            current = stack[-1]
            node = current.producer()
            if current in self._constants:
                stack.pop()
            elif node is None:
                self._constants[current] = self._stored(current)
            elif not self.is_standard(node) or current is not node.outputs[0] or not _is_pure(node):
                self._constants[current] = None
            else:
                waiting = self._unknown_input(node)
                if waiting is not None:
                    stack.append(waiting)
                else:
                    self._constants[current] = self._computed(node)

    def _unknown_input(self, node: ir.Node) -> ir.Value | None:
        """The next input that has to be evaluated first; None if the fate of the node is settled."""
        for value in _seen_inputs(node):
            if value not in self._constants:
                return value
            if self._constants[value] is None or isinstance(self._constants[value], Declined):
                return None
        return None

    def _stored(self, value: ir.Value) -> Constant | Declined | None:
        """An initializer, if it is one whose numbers are certain."""
        if not value.is_initializer() or value.const_value is None:
            return None
        if value.is_graph_input() and self.model.ir_version >= 4:
            return Declined(Reason.OVERRIDABLE, f"{value.name!r} is an initializer and an input")
        if value.const_value.dtype == ir.DataType.STRING:
            return None
        assert value.graph is not None
        return Constant(
            value.const_value.numpy(), stored=("constant", self._scopes[value.graph].path, value.name)
        )

    def _computed(self, node: ir.Node) -> Constant | Declined | None:
        """The result of a node of known inputs."""
        inputs: list[NDArray[Any] | None] = []
        seen = set(_seen_inputs(node))
        for value in node.inputs:
            if value is None:
                inputs.append(None)
            elif value in seen:
                known = self._constants[value]
                if known is None or isinstance(known, Declined):
                    return known
                inputs.append(known.rounded())
            else:
                stand_in = self._stand_in(node, value)
                if stand_in is None:
                    return None
                inputs.append(stand_in)
        if node.op_type == "DequantizeLinear":
            return Declined(Reason.QUANTIZED, f"{node.outputs[0].name!r} is dequantized by {label(node)!r}")
        try:
            computed = chains.evaluate(self.view(node), inputs)
            return Constant(computed, stored=("constant", *self.origin(node)))
        except Declined as declined:
            return declined

    def _stand_in(self, node: ir.Node, value: ir.Value) -> NDArray[Any] | None:
        """An array of the value's dtype and shape, for nodes that look at nothing else of it."""
        if node.op_type == "CastLike":
            dtype = self.dtype(value)
            return None if dtype is None else np.empty(0, dtype)
        sizes = self.dims(value)
        if sizes is None:
            return None
        seen = slice(None)
        if node.op_type == "Shape":
            view = self.view(node)
            seen = slice(view.integer("start", 0), view.integer("end", len(sizes)))
        if not all(isinstance(n, int) for n in sizes[seen]):
            return None
        return np.broadcast_to(np.zeros((), bool), [n if isinstance(n, int) else 1 for n in sizes])

    # Shapes and dtypes

    def rank(self, value: ir.Value) -> int | None:
        """The number of axes; None if not known."""
        stated = self._stated_shape(value)
        if stated is not None:
            return len(stated)
        sizes = self._infer(value)[1]
        return None if sizes is None else len(sizes)

    def dim(self, value: ir.Value, axis: int) -> Dim:
        """The size of one axis."""
        stated = self._stated_shape(value)
        own = stated[axis] if stated is not None and axis < len(stated) else None
        if isinstance(own, int):
            return own
        sizes = self._infer(value)[1]
        inferred = sizes[axis] if sizes is not None and axis < len(sizes) else None
        return inferred if isinstance(inferred, int) or own is None else own

    def dims(self, value: ir.Value) -> tuple[Dim, ...] | None:
        """All sizes; None if not even the rank is known."""
        rank = self.rank(value)
        return None if rank is None else tuple(self.dim(value, axis) for axis in range(rank))

    def dtype(self, value: ir.Value) -> np.dtype[Any] | None:
        """The element type; None if not known or not one of numpy's."""
        found = self._stated_dtype(value) or self._infer(value)[0]
        node = value.producer()
        while found is None and node is not None and self.is_standard(node):
            # Inference is silent in opset 1 and in bodies of functions.
            if node.op_type == "Cast" and self.scope(node).opset >= 6:
                return numpy_dtype(ir.DataType(self.view(node).integer("to", 0)))
            if node.op_type not in SAME_DTYPE:
                break
            found = next((d for v in node.inputs[:2] if v and (d := self._stated_dtype(v))), None)
            node = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        return found

    def _stated_dtype(self, value: ir.Value) -> np.dtype[Any] | None:
        """The dtype that needs no inference."""
        if value.dtype is not None and isinstance(value.type, ir.TensorType):
            return numpy_dtype(value.dtype)
        known = self._constant_or_none(value)
        return None if known is None else known.dtype

    def _constant_or_none(self, value: ir.Value) -> Constant | None:
        if value not in self._constants:
            self._evaluate(value)
        known = self._constants[value]
        return known if isinstance(known, Constant) else None

    def liken(self, new: ir.Value, old: ir.Value) -> None:
        """Note that a value that a fold made has the dtype and shape of another one."""
        new.type, new.shape = old.type, old.shape
        if old in self._noted:
            self._noted[new] = self._noted[old]
        if self._inferred is not None and old in self._inferred:
            self._inferred[new] = self._inferred[old]

    def keep(self, value: ir.Value) -> None:
        """Remember what the value states of its shape, which it is about to lose."""
        stated = self._stated_shape(value)
        if stated is not None:
            self._noted[value] = None if value.type is None else self.dtype(value), stated

    def _stated_shape(self, value: ir.Value) -> tuple[Dim, ...] | None:
        """The shape that needs no inference."""
        if isinstance(known := self._constants.get(value), Constant):
            return known.shape
        if value.shape is not None:
            return tuple(map(size_of, value.shape))
        known = self._constant_or_none(value)
        return None if known is None else known.shape

    def _infer(self, value: ir.Value) -> Inferred:
        """What is known beyond what the file states of the value."""
        if self._inferred is None:
            self._inferred = infer_types(self.model)
        dtype, sizes = self._inferred.get(value, (None, None))
        if sizes is None and value not in self._noted:
            sizes = self._of_operator(value)
        if value not in self._noted:
            return dtype, sizes
        noted, kept = self._noted[value]
        if sizes is not None and len(sizes) == len(kept):
            kept = tuple(
                k if isinstance(k, int) or i is None else i for k, i in zip(kept, sizes, strict=True)
            )
        return noted or dtype, kept

    def _of_operator(self, value: ir.Value) -> tuple[Dim, ...] | None:
        """What the operators themselves say where inference is silent: in opset 1, in bodies of functions."""
        node, pooled = value.producer(), False
        while node is not None and self.is_standard(node) and value is node.outputs[0]:
            if node.op_type in ("Conv", "ConvTranspose"):
                weight = node.inputs[1] if len(node.inputs) > 1 else None
                if weight is None:
                    return None
                sizes, transposed = self.dims(weight), node.op_type == "ConvTranspose"
                if sizes is None or not isinstance(channels := sizes[transposed], int):
                    return None
                groups = self.view(node).integer("group", 1) if transposed else 1
                return None, channels * groups, *(None,) * (len(sizes) - 2)
            legacy = (
                node.op_type in ARITHMETIC and self.scope(node).opset < 7
            )  # broadcasts its second operand
            pooled |= node.op_type in POOLS
            carries = legacy or node.op_type in SAME_SHAPE | POOLS
            if not carries or not node.inputs or (data := node.inputs[0]) is None:
                return None
            if (stated := self._stated_shape(data)) is not None:
                return (*stated[:2], *(None,) * (len(stated) - 2)) if pooled else stated
            value, node = data, data.producer()
        return None

    # Nodes

    def origin(self, node: ir.Node) -> tuple[str, str]:
        """Where the node is in the original: the path of its graph, and the name of its first output."""
        return self._origins.get(node) or (self.scope(node).path, first_output(node))

    def is_standard(self, node: ir.Node) -> bool:
        """Whether the node is an operator of ONNX itself."""
        return not node.domain and node.op_type not in self._replaced

    def view(self, node: ir.Node) -> NodeView:
        """The node with its opset."""
        return NodeView(node, self.scope(node).opset)

    def op(self, node: ir.Node) -> Op:
        """The node with the facts about its inputs."""
        return Op(node, self.scope(node).opset, self)

    def scope(self, node: ir.Node) -> Scope:
        """The graph that the node is in."""
        assert node.graph is not None
        return self._scopes[node.graph]


@dataclass(frozen=True, eq=False)
class Op(NodeView):
    """A node, and what is known about its inputs and outputs.

    Attributes:
        facts: Where the knowledge comes from.
    """

    facts: Facts = field(repr=False)

    def input(self, i: int) -> ir.Value | None:
        """Input i; None if absent."""
        inputs = self.node.inputs
        return inputs[i] if i < len(inputs) else None

    def need_input(self, i: int) -> ir.Value:
        """Input i, which a valid node has."""
        value = self.input(i)
        if value is None:
            raise Declined(Reason.NOT_STATIC, f"{self.type} {self.name!r} lacks its input {i}")
        return value

    def constant(self, i: int) -> Constant | None:
        """Input i as a constant; None if absent or data."""
        value = self.input(i)
        return None if value is None else self.facts.constant(value)

    def need_constant(self, i: int, reason: Reason = Reason.NOT_CONSTANT) -> Constant:
        """Input i, which has to be a floating constant."""
        value = self.need_input(i)
        constant = self.facts.constant(value)
        if constant is None:
            if self.facts.is_argument(value):
                raise Declined(Reason.FUNCTION_ARGUMENT, f"{value.name!r} is an argument of the function")
            raise Declined(reason, f"{value.name!r}, input {i} of {self.type} {self.name!r}")
        if constant.dtype not in FLOATS:
            raise Declined(Reason.DTYPE, f"{value.name!r} is of type {constant.dtype}")
        return constant

    def need_ints(self, i: int, attribute: str) -> tuple[int, ...] | None:
        """Integers that an attribute or, in later opsets, input i gives; None if absent."""
        if self.has(attribute):
            return self.integers(attribute)
        value = self.input(i)
        if value is None:
            return None
        constant = self.facts.constant(value)
        if constant is None:
            raise Declined(Reason.NOT_STATIC, f"{value.name!r}, input {i} of {self.type} {self.name!r}")
        return tuple(int(n) for n in np.atleast_1d(constant.rounded()))

    def need_rank(self, i: int = 0) -> int:
        """The rank of input i."""
        return self._need_rank(self.need_input(i))

    def need_out_rank(self, k: int = 0) -> int:
        """The rank of output k."""
        return self._need_rank(self.node.outputs[k])

    def need_dim(self, i: int, axis: int) -> int:
        """The static size of an axis of input i."""
        return self._need_dim(self.need_input(i), axis)

    def need_out_dim(self, k: int, axis: int) -> int:
        """The static size of an axis of output k."""
        return self._need_dim(self.node.outputs[k], axis)

    def operand_offset(self, i: int, rank: int, out_rank: int) -> int | None:
        """Which axis of the result the first axis of elementwise operand i is aligned to.

        Args:
            i: The operand.
            rank: Its rank.
            out_rank: The rank of the result.

        Returns:
            None if the operand is not aligned within the result.
        """
        offset = out_rank - rank
        # Up to opset 6 the second operand is aligned by attributes, and only if they say so.
        if self.opset < 7 and i == 1 and self.integer("broadcast", 0) and self.has("axis"):
            axis = self.integer("axis", 0)
            offset = axis + out_rank if axis < 0 else axis
        return offset if 0 <= offset <= out_rank - rank else None

    def _need_rank(self, value: ir.Value) -> int:
        rank = self.facts.rank(value)
        if rank is None:
            raise Declined(Reason.UNKNOWN_SHAPE, f"the rank of {value.name!r} is not known")
        return rank

    def _need_dim(self, value: ir.Value, axis: int) -> int:
        size = self.facts.dim(value, axis)
        if not isinstance(size, int):
            raise Declined(Reason.UNKNOWN_SHAPE, f"the size of axis {axis} of {value.name!r} is not known")
        return size


def reads_numbers(node: ir.Node, index: int) -> bool:
    """Whether a use of a value looks at its numbers, not only at its shape or dtype."""
    return bool(node.domain) or index in chains.SEES.get(node.op_type, (index,))


@dataclass(frozen=True, eq=False)
class Scope:
    """One graph of a model.

    Attributes:
        path: "" for the main graph, else where the inner graph or function is.
        graph: The graph.
        opset: The version of ai.onnx that holds in it.
        is_function: Whether it is the body of a local function, which cannot have initializers.
    """

    path: str
    graph: ir.Graph
    opset: int
    is_function: bool


def scopes(model: ir.Model) -> Iterator[Scope]:
    """Every graph of a model: the main one, inner ones, functions."""
    opset = _version(model.opset_imports)
    yield Scope("", model.graph, opset, False)
    yield from _inner_scopes(model.graph, "", opset)
    for function in model.functions.values():
        path, opset = f"{function.domain}::{function.name}", _version(function.opset_imports)
        yield Scope(path, function.graph, opset, True)
        yield from _inner_scopes(function.graph, path, opset)


def _inner_scopes(graph: ir.Graph, path: str, opset: int) -> Iterator[Scope]:
    for node in graph:
        for attribute in node.attributes.values() if node.attributes else ():
            for inner in _graphs_in(attribute):
                where = f"{path}/{label(node)}.{attribute.name}".lstrip("/")
                yield Scope(where, inner, opset, False)
                yield from _inner_scopes(inner, where, opset)


def _graphs_in(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()


def _version(imports: Mapping[str, int]) -> int:
    return imports.get("", imports.get("ai.onnx", 1))


def _is_pure(node: ir.Node) -> bool:
    return node.op_type in chains.EVALUATE or node.op_type == "DequantizeLinear"


def _seen_inputs(node: ir.Node) -> list[ir.Value]:
    return [v for i, v in enumerate(node.inputs) if v is not None and reads_numbers(node, i)]
