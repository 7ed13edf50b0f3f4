"""What an opened model remembers of its file: which bytes each graph, node and initializer came from.

`remember` notes it once, when the model is opened; `write` reads it when the model is saved. Nothing
here changes afterwards, however much the model does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import onnx
import onnx_ir as ir

from . import wire
from .wire import Field

META = "bnfold.source"
"""Key in the `meta` of a model that was opened from a file."""

Signature = tuple[Any, ...]
"""Type and shape of a value, in a form that cannot be changed in place."""

Description = tuple[Any, ...]
"""All that a model, graph, function or node says of itself apart from its contents and connections."""


class Content(NamedTuple):
    """A graph or an external tensor inside an attribute: its field, its index among its like."""

    place: int
    field: Field
    content: ir.Graph | ir.ExternalTensor


class Attribute(NamedTuple):
    field: Field
    contents: Sequence[Content]


@dataclass(frozen=True, eq=False)
class GraphOrigin:
    """Where a graph, or the body of a function, came from.

    Attributes:
        fields: Its fields in the file.
        entries: Those among them that are nodes.
        protos: The nodes as they were, for the names that they read and made.
        nodes: Index of each node.
        described: What each node said of itself.
        header: What the graph said of itself.
        attributes: All attributes of the nodes that have something to look for inside.
        stored: Those among the fields that are initializers.
        tensors: Index of each initializer, by its tensor.
        names: The names of the initializers.
        inputs: Name and signature of each input.
        outputs: The same of each output.
        infos: Name and signature of each entry of `value_info`; None for a name that is no value of
            this graph, which is none of our business.
        annotated: Names in `quantization_annotation`, with None likewise.
        known: The names of all values; empty when there is no entry that could need them.
        unread: Names that the file uses and onnx_ir does not show: of sparse initializers, and of
            annotations of values that are not there.
    """

    fields: Sequence[Field]
    entries: Sequence[Field]
    protos: Sequence[onnx.NodeProto]
    nodes: Mapping[ir.Node, int]
    described: Sequence[Description]
    header: Description
    attributes: Mapping[ir.Node, Sequence[Attribute]]
    stored: Sequence[Field]
    tensors: Mapping[ir.TensorProtocol | None, int]
    names: Sequence[str]
    inputs: Sequence[tuple[str, Signature]]
    outputs: Sequence[tuple[str, Signature]]
    infos: Sequence[tuple[str, Signature | None]]
    annotated: Sequence[tuple[str, Signature | None]]
    known: frozenset[str]
    unread: frozenset[str]


@dataclass(frozen=True, eq=False)
class Source:
    """What a model remembers of the file it was opened from, in `model.meta["bnfold.source"]`.

    Attributes:
        view: The bytes of the file.
        path: The file; None for a stream or a model that was never a file.
        file_id: Device and inode of the file.
        locations: Its external files, as the model calls them.
        fields: The fields of the model.
        opset_imports: The version of each domain.
        header: What the model said of itself.
        graphs: Where each graph and function body came from, inner graphs included.
        functions: Index of each function and what it said of itself, by its body.
    """

    view: memoryview
    path: str | None
    file_id: tuple[int, int] | None
    locations: frozenset[str]
    fields: Sequence[Field]
    opset_imports: Mapping[str, int]
    header: Description
    graphs: Mapping[ir.Graph, GraphOrigin]
    functions: Mapping[ir.Graph, tuple[int, Description]]

    @property
    def unread(self) -> set[str]:
        """Names that the file uses and onnx_ir does not show."""
        return {name for graph in self.graphs.values() for name in graph.unread}

    def knows(self, model: ir.Model) -> bool:
        """Whether the model's graph is the one that was opened, and not a copy."""
        return model.graph in self.graphs


def remember(
    model: ir.Model,
    proto: onnx.ModelProto,
    view: memoryview,
    split: wire.Split,
    *,
    path: str | None = None,
    file_id: tuple[int, int] | None = None,
    locations: frozenset[str] = frozenset(),
) -> Source:
    """Note where everything in `model`, which was made from `proto`, lies in `view`.

    Raises:
        wire.Malformed: When bytes and proto do not agree.
    """
    memory = _Memory(view)
    memory.graph(split.inner, model.graph, proto.graph)
    functions: dict[ir.Graph, tuple[int, Description]] = {}
    lies = _entries(split.top, wire.MODEL_FUNCTIONS, len(proto.functions))
    for place, (f, function) in enumerate(zip(lies, model.functions.values(), strict=True)):
        functions[function.graph] = place, describe_function(function)
        memory.function(wire.fields(view, f.body, f.end), function.graph, proto.functions[place])
    opset_imports = dict(model.graph.opset_imports)
    header = describe_model(model)
    return Source(view, path, file_id, locations, split.top, opset_imports, header, memory.graphs, functions)


def values_of(graph: ir.Graph) -> dict[str, ir.Value]:
    """The values that the graph itself defines, by name."""
    values = [*graph.inputs, *graph.initializers.values()]
    values += (output for node in graph for output in node.outputs)
    return {value.name: value for value in values if value.name}


def signature(value: ir.Value) -> Signature:
    """The signature of a value."""
    return type(value.type), value.dtype, None if value.shape is None else value.shape.dims


def describe_node(node: ir.Node) -> Description:
    """What a node says of itself. Attributes are immutable, so the objects will do."""
    return (
        node.op_type,
        node.domain,
        node.overload,
        node.name,
        node.doc_string,
        tuple(node.attributes.values()),
        tuple(node.metadata_props.items()),
    )


def describe_graph(graph: ir.Graph) -> Description:
    """What a graph says of itself."""
    return graph.name, graph.doc_string, tuple(graph.metadata_props.items())


def describe_function(function: ir.Function) -> Description:
    """What a function says of itself."""
    return (
        function.domain,
        function.name,
        function.overload,
        function.doc_string,
        tuple(function.attributes.values()),
        tuple(function.opset_imports.items()),
        tuple(function.metadata_props.items()),
    )


def describe_model(model: ir.Model) -> Description:
    """What a model says of itself."""
    return (
        model.ir_version,
        model.producer_name,
        model.producer_version,
        model.domain,
        model.model_version,
        model.doc_string,
        tuple(model.metadata_props.items()),
    )


class _Memory:
    """Collects where things came from, recursively."""

    def __init__(self, view: memoryview) -> None:
        self.view = view
        self.graphs: dict[ir.Graph, GraphOrigin] = {}

    def graph(self, fields: Sequence[Field], graph: ir.Graph, proto: onnx.GraphProto) -> None:
        names = [tensor.name for tensor in proto.initializer]
        values = graph.initializers
        signatures = _signatures(graph) if proto.value_info or proto.quantization_annotation else {}
        entries = _entries(fields, wire.GRAPH_NODE, len(proto.node))
        self.graphs[graph] = GraphOrigin(
            fields,
            entries,
            proto.node,
            {node: place for place, node in enumerate(graph)},
            [describe_node(node) for node in graph],
            describe_graph(graph),
            self._nodes(entries, graph, proto.node),
            _entries(fields, wire.GRAPH_INITIALIZER, len(names)),
            {values[name].const_value: place for place, name in enumerate(names)},
            names,
            [(value.name or "", signature(value)) for value in graph.inputs],
            [(value.name or "", signature(value)) for value in graph.outputs],
            [(info.name, signatures.get(info.name)) for info in proto.value_info],
            [(note.tensor_name, signatures.get(note.tensor_name)) for note in proto.quantization_annotation],
            frozenset(signatures),
            frozenset(tensor.values.name for tensor in proto.sparse_initializer)
            | {info.name for info in proto.value_info}
            | {note.tensor_name for note in proto.quantization_annotation},
        )

    def function(self, fields: Sequence[Field], body: ir.Graph, proto: onnx.FunctionProto) -> None:
        signatures = _signatures(body) if proto.value_info else {}
        entries = _entries(fields, wire.FUNCTION_NODE, len(proto.node))
        self.graphs[body] = GraphOrigin(
            fields,
            entries,
            proto.node,
            {node: place for place, node in enumerate(body)},
            [describe_node(node) for node in body],
            describe_graph(body),
            self._nodes(entries, body, proto.node),
            [],
            {},
            [],
            [(value.name or "", signature(value)) for value in body.inputs],
            [(value.name or "", signature(value)) for value in body.outputs],
            [(info.name, signatures.get(info.name)) for info in proto.value_info],
            [],
            frozenset(signatures),
            frozenset(info.name for info in proto.value_info),
        )

    def _nodes(
        self, entries: Sequence[Field], graph: ir.Graph, protos: Sequence[onnx.NodeProto]
    ) -> dict[ir.Node, Sequence[Attribute]]:
        return {
            node: self._attributes(f, node, protos[place])
            for place, (f, node) in enumerate(zip(entries, graph, strict=True))
            if any(_looked_into(attribute) for attribute in node.attributes.values())
        }

    def _attributes(self, lies: Field, node: ir.Node, proto: onnx.NodeProto) -> list[Attribute]:
        fields = wire.fields(self.view, lies.body, lies.end)
        where = _entries(fields, wire.NODE_ATTRIBUTE, len(proto.attribute))
        found = []
        for f, attribute in zip(where, proto.attribute, strict=True):
            made = node.attributes[attribute.name]
            contents: list[Content] = []
            if _looked_into(made):
                inside = wire.fields(self.view, f.body, f.end)
                if made.type == ir.AttributeType.TENSOR:
                    where_in = _entries(inside, wire.ATTRIBUTE_TENSOR, 1)
                    contents = [Content(0, where_in[0], made.value)]
                elif made.type == ir.AttributeType.GRAPH:
                    contents = self._inner(inside, wire.ATTRIBUTE_GRAPH, [made.as_graph()], [attribute.g])
                else:
                    graphs = made.as_graphs()
                    contents = self._inner(inside, wire.ATTRIBUTE_GRAPHS, graphs, attribute.graphs)
            found.append(Attribute(f, contents))
        return found

    def _inner(
        self,
        inside: Sequence[Field],
        number: int,
        graphs: Sequence[ir.Graph],
        protos: Sequence[onnx.GraphProto],
    ) -> list[Content]:
        contents = []
        where = _entries(inside, number, len(protos))
        for place, (f, graph, proto) in enumerate(zip(where, graphs, protos, strict=True)):
            self.graph(wire.fields(self.view, f.body, f.end), graph, proto)
            contents.append(Content(place, f, graph))
        return contents


def _entries(fields: Sequence[Field], number: int, count: int) -> list[Field]:
    """The entries of a repeated field, of which a parser found `count`."""
    found = [f for f in fields if f.number == number]
    if len(found) != count:
        raise wire.Malformed()
    return found


def _looked_into(attribute: ir.Attr) -> bool:
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return not attribute.is_ref()
    return isinstance(attribute.value, ir.ExternalTensor)


def _signatures(graph: ir.Graph) -> dict[str, Signature]:
    return {name: signature(value) for name, value in values_of(graph).items()}
