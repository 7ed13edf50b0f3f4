"""Walks a model: scopes, nodes, inner graphs, local functions; the table of all operators."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, defs, helper
from onnx.reference import ReferenceEvaluator

from . import control, elementwise, linear, normalizations, pools, resize, shapes
from .node import Array, Node, Operator, carry, is_float

OPERATORS: dict[str, Operator] = {
    **control.OPERATORS,
    **elementwise.OPERATORS,
    **linear.OPERATORS,
    **normalizations.OPERATORS,
    **pools.OPERATORS,
    **resize.OPERATORS,
    **shapes.OPERATORS,
}

Scope = MutableMapping[str, "Array | None"]


def evaluate(
    model: ModelProto, feeds: Mapping[str, npt.ArrayLike], *, outputs: Sequence[str] | None = None
) -> dict[str, Array]:
    """Run a model in float64.

    Args:
        model: Any valid model; its nodes are in topological order.
        feeds: Values of the graph's inputs; those that are also initializers may be left out.
        outputs: Which values of the main graph to return, intermediate ones included; by default the
            outputs of the graph.

    Returns:
        The values by name: float64 for all floating types, integers and booleans in their own.

    Raises:
        ValueError: A feed is missing or unknown, or a node does not follow the rules of its opset.
        KeyError: `outputs`, or a node that they depend on, names a value that does not exist.
        NotImplementedError: An operator is not available, or random.
    """
    functions = {(_domain(f.domain), f.name, f.overload): f for f in model.functions}
    frame = Frame(_opsets(model.opset_import), functions, {})
    scope = _constants(model.graph)
    names = {value.name for value in model.graph.input}
    if unknown := feeds.keys() - names:
        raise ValueError(f"no inputs of the graph: {sorted(unknown)}; it has {sorted(names)}")
    if missing := names - feeds.keys() - scope.keys():
        raise ValueError(f"inputs without a value: {sorted(missing)}")
    scope |= {name: carry(value) for name, value in feeds.items()}
    wanted = [value.name for value in model.graph.output] if outputs is None else outputs
    frame.compute(_leading_to(wanted, model.graph.node), scope)
    return {name: _need(scope, name) for name in wanted}


@dataclass(frozen=True)
class Frame:
    """What holds for all nodes of the main graph, or of one function call, inner graphs included.

    Attributes:
        opsets: Version by domain.
        functions: Local functions by domain, name and overload.
        arguments: The attributes that the function was called with.
    """

    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str, str], FunctionProto]
    arguments: Mapping[str, AttributeProto]

    def compute(self, nodes: Iterable[NodeProto], scope: Scope) -> None:
        """Run nodes in order and put their results into the scope."""
        for node in nodes:
            try:
                with np.errstate(all="ignore"):  # infinities and NaN are results like any other
                    results = self._call(node, scope)
            except Exception as error:
                error.add_note(f"at {node.op_type} {node.name!r}, which computes {list(node.output)}")
                raise
            for name, value in zip(node.output, results, strict=False):
                if name:
                    scope[name] = value

    def run(self, scope: Scope, graph: GraphProto, inputs: Sequence[Array]) -> list[Array]:
        """The outputs of an inner graph, which also sees the values of the scope around it."""
        own: Scope = ChainMap(_constants(graph), scope)
        own.update(zip([value.name for value in graph.input], inputs, strict=True))
        self.compute(graph.node, own)
        return [_need(own, value.name) for value in graph.output]

    def _call(self, node: NodeProto, scope: Scope) -> Sequence[Array]:
        inputs = [_read(scope, name) if name else None for name in node.input]
        attributes = self._attributes(node)
        domain = _domain(node.domain)
        function = self.functions.get((domain, node.op_type, node.overload))
        if function is not None:
            return self._call_function(function, inputs, attributes)
        if domain:
            raise NotImplementedError(f"{node.op_type} of domain {domain}")
        opset = self.opsets[""]
        if node.op_type not in OPERATORS:
            return _elsewhere(node, opset, inputs, attributes)
        values = _defaults(node.op_type, opset) | {
            name: _plain(attribute) for name, attribute in attributes.items()
        }
        call = Node(node.op_type, opset, inputs, values, node.output, partial(self.run, scope))
        results = OPERATORS[node.op_type](call)
        return results if isinstance(results, tuple) else (results,)

    def _attributes(self, node: NodeProto) -> dict[str, AttributeProto]:
        """The attributes of a node; those that refer to an argument of the function get its value."""
        resolved = (
            (a.name, self.arguments.get(a.ref_attr_name) if a.ref_attr_name else a) for a in node.attribute
        )
        return {name: attribute for name, attribute in resolved if attribute is not None}

    def _call_function(
        self,
        function: FunctionProto,
        inputs: Sequence[Array | None],
        attributes: Mapping[str, AttributeProto],
    ) -> list[Array]:
        defaults = {a.name: a for a in function.attribute_proto}
        frame = replace(self, opsets=_opsets(function.opset_import), arguments={**defaults, **attributes})
        absent = [None] * (len(function.input) - len(inputs))
        scope: Scope = dict(zip(function.input, [*inputs, *absent], strict=True))
        frame.compute(function.node, scope)
        return [_need(scope, name) for name in function.output]


def _elsewhere(
    node: NodeProto, opset: int, inputs: Sequence[Array | None], attributes: Mapping[str, AttributeProto]
) -> list[Array]:
    """An operator that no affine passes through, as `onnx.reference` has it."""
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    for name, attribute in attributes.items():
        copy.attribute.add().CopyFrom(attribute)
        copy.attribute[-1].name = name
    feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if value is not None}
    names = [name for name in node.output if name]
    graph = helper.make_graph(
        [copy],
        "node",
        [onnx.ValueInfoProto(name=name) for name in feeds],
        [onnx.ValueInfoProto(name=name) for name in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    computed = dict(zip(names, ReferenceEvaluator(model).run(names, feeds), strict=True))
    for value in computed.values():
        if not isinstance(value, np.ndarray | np.generic):
            raise NotImplementedError(f"{node.op_type} makes a {type(value).__name__}, not a tensor")
        if is_float(np.asarray(value)) and value.dtype != np.float64:
            raise NotImplementedError(f"{node.op_type} in float64 (onnx.reference gives {value.dtype})")
    return [computed.get(name, np.empty(0)) for name in node.output]


def _leading_to(names: Iterable[str], nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes that the named values depend on, in order."""
    wanted, kept = set(names), []
    for node in reversed(nodes):
        if wanted.intersection(filter(None, node.output)):
            kept.append(node)
            wanted.update(_mentioned(node))
    return kept[::-1]


def _mentioned(node: NodeProto) -> Iterator[str]:
    """All names that a node may read, those that its inner graphs capture among them."""
    yield from node.input
    for attribute in node.attribute:
        yield from (value.name for value in attribute.g.output)
        for inner in attribute.g.node:
            yield from _mentioned(inner)


def _defaults(op_type: str, opset: int) -> dict[str, Any]:
    """The default attributes of an operator, exactly as its schema of that opset has them."""
    schema = defs.get_schema(op_type, opset, "")
    defaults = ((name, attribute.default_value) for name, attribute in schema.attributes.items())
    return {name: _plain(value) for name, value in defaults if value.type}


def _plain(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _constants(graph: GraphProto) -> dict[str, Array | None]:
    constants: dict[str, Array | None] = {proto.name: shapes.tensor(proto) for proto in graph.initializer}
    constants.update((proto.values.name, shapes.dense(proto)) for proto in graph.sparse_initializer)
    return constants


def _read(scope: Mapping[str, Array | None], name: str) -> Array | None:
    """The value of a name; None for an argument that the caller of a function left out."""
    if name not in scope:
        raise KeyError(f"there is no value {name!r}")
    return scope[name]


def _need(scope: Mapping[str, Array | None], name: str) -> Array:
    value = _read(scope, name)
    if value is None:
        raise KeyError(f"the value {name!r} is absent")
    return value


def _opsets(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    return {_domain(entry.domain): entry.version for entry in imports}


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
