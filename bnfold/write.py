"""What an edited model looks like as bytes: the file it came from, with patches.

`origin` knows which bytes of the file each graph, node and initializer came from. `render` writes down
what differs, and nothing else. A node that says the same of itself as before is patched in the names
that it reads and makes (and inside its inner graphs), an initializer in its name and in where its data
are. So whatever onnx_ir does not know (sparse initializers, training information, fields of tomorrow) is
carried along without being understood, and an unchanged model is its file. Weights are moved one at a
time, from the mapped file or when they are computed.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

import numpy as np
import onnx
import onnx_ir as ir

from . import wire
from .errors import InputError, OutputError
from .origin import (
    Attribute,
    GraphOrigin,
    Signature,
    Source,
    describe_function,
    describe_graph,
    describe_model,
    describe_node,
    signature,
    values_of,
)
from .wire import Deferred, Field, Item, Part

_COPY_BYTES = 1 << 22
_JOINED_BYTES = 1 << 16
_PAGE = 4096  # large weights begin at a page, so that a runtime can map them
_LARGE_ENOUGH_FOR_A_PAGE = 1 << 16
_DIGEST_LENGTH = 16
_CONTENT_NAMED = re.compile(rf"(.+)\.[0-9a-f]{{{_DIGEST_LENGTH}}}\.data", re.DOTALL)
_EXTERNAL_FLAG = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL).SerializeToString()


class Data:
    """The external data of a model that is being written: which tensors, and where in the file.

    The file is called by its content: `<model>.<16 hex digits of its SHA-256>.data`. So its name is
    known only when it has been written, but its length at once.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._tensors: list[tuple[ir.TensorProtocol, int]] = []
        self._end = 0
        self._digest = "0" * _DIGEST_LENGTH

    def __bool__(self) -> bool:
        return bool(self._tensors)

    @property
    def name(self) -> str:
        """The file's name; final after `write`."""
        return f"{self._model}.{self._digest}.data"

    def place(self, tensor: ir.TensorProtocol) -> list[Part]:
        """Give the tensor a place in the file; the fields of a TensorProto that say where."""
        unit = _PAGE if tensor.nbytes >= _LARGE_ENOUGH_FOR_A_PAGE else 64
        offset = -(-self._end // unit) * unit
        self._tensors.append((tensor, offset))
        self._end = offset + tensor.nbytes
        key = wire.field(1, [b"location"])
        name = Deferred(len(os.fsencode(self.name)), lambda: [os.fsencode(self.name)])
        parts: list[Part] = wire.field(wire.TENSOR_EXTERNAL_DATA, [*key, *wire.field(2, [name])])
        for text, number in (("offset", offset), ("length", tensor.nbytes)):
            entry = onnx.StringStringEntryProto(key=text, value=str(number)).SerializeToString()
            parts += wire.field(wire.TENSOR_EXTERNAL_DATA, [entry])
        return parts

    def write(self, file: Writable) -> None:
        """Write all tensors; afterwards the name is final."""
        digest = hashlib.sha256()
        at = 0
        for tensor, offset in self._tensors:
            for part in (bytes(offset - at), Deferred(tensor.nbytes, _reader(tensor))):
                for chunk in _chunks(part):
                    digest.update(chunk)
                    file.write(chunk)
            at = offset + tensor.nbytes
        self._digest = digest.hexdigest()[:_DIGEST_LENGTH]


class Writable(Protocol):
    """A binary file."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Append the bytes."""


def emit(parts: Iterable[Part], file: Writable) -> None:
    """Write the parts of a model, computing what is deferred."""
    small: list[bytes | memoryview] = []  # a graph is 100,000 small pieces: they go in one
    waiting = 0
    for part in parts:
        for chunk in _chunks(part):
            if len(chunk) >= _JOINED_BYTES or waiting >= _JOINED_BYTES:
                file.write(b"".join(small))
                small, waiting = [], 0
            if len(chunk) >= _JOINED_BYTES:
                file.write(chunk)
            else:
                small.append(chunk)
                waiting += len(chunk)
    file.write(b"".join(small))


def is_content_named(location: str) -> str | None:
    """The name of the model to which a content-named data file belongs; None for other files."""
    match = _CONTENT_NAMED.fullmatch(location)
    return match[1] if match else None


def render(model: ir.Model, source: Source, target: str) -> tuple[list[Part], Data]:
    """The model as it will be at the path `target`, and its external data (which may be none).

    A model that was not changed is its file. If it has external data, this holds as long as the result
    can use the same data files: in the same folder, and unless those were named by bnfold after another
    model, whose next version would remove them. In all other cases the data go into one new file.

    Raises:
        OutputError: When the result is too large for a model without external data and cannot be split.
    """
    data = Data(os.path.basename(target))
    parts = _Patch(model, source, data, _Where.AS_IT_IS).model()
    if not source.locations:
        if parts is None:
            return [source.view], data
        if sum(map(len, parts)) <= wire.MESSAGE_LIMIT:
            return parts, data
    elif parts is None and _may_share(source, target):
        return [source.view], data
    where = _Where.BESIDE if source.locations else _Where.BESIDE_IF_LARGE
    data = Data(os.path.basename(target))
    parts = _Patch(model, source, data, where).model() or [source.view]
    if sum(map(len, parts)) > wire.MESSAGE_LIMIT:
        raise OutputError(f"{target}: cannot be written: it has over 2 GiB even without its weights")
    return parts, data


def render_embedded(model: ir.Model, source: Source) -> list[Part]:
    """The model with all its data inside.

    Raises:
        OutputError: When it is larger than a protobuf message can be.
    """
    data = Data("")
    parts = _Patch(model, source, data, _Where.INSIDE).model() or [source.view]
    size = sum(map(len, parts))
    if size > wire.MESSAGE_LIMIT:
        raise OutputError(
            f"the model has {size} bytes, but one without external data cannot pass 2 GiB; write it to a file"
        )
    return parts


class _Where(Enum):
    """Where the data of tensors go."""

    AS_IT_IS = "where they were; new ones inside"
    INSIDE = "all inside"
    BESIDE = "outside those that were, and new large ones"
    BESIDE_IF_LARGE = "outside all large ones"


class _Patch:
    """Writes down the differences between a model and its source, recursively.

    Each method returns None for what is as it was.
    """

    def __init__(self, edited: ir.Model, source: Source, data: Data, where: _Where) -> None:
        self.edited = edited
        self.source = source
        self.view = source.view
        self.data = data
        self.where = where

    def model(self) -> list[Part] | None:
        """The ModelProto."""
        source = self.source
        graph = _field(wire.MODEL_GRAPH, self.graph(self.edited.graph))
        items: dict[int, list[Item]] = {wire.MODEL_GRAPH: [Item(0, graph)]}
        functions = items[wire.MODEL_FUNCTIONS] = []
        for function in self.edited.functions.values():
            place, described = source.functions.get(function.graph, (None, ()))
            if place is None or described != describe_function(function):
                new = ir.serde.serialize_function(function).SerializeToString()
                functions.append(Item(None, wire.field(wire.MODEL_FUNCTIONS, [new])))
            else:
                functions.append(Item(place, _field(wire.MODEL_FUNCTIONS, self.function(function.graph))))
        if describe_model(self.edited) != source.header:
            items |= _header(wire.MODEL_HEADER, _model_header(self.edited))
        if self.edited.graph.opset_imports != source.opset_imports:
            items[wire.MODEL_OPSET_IMPORT] = [
                _new(wire.MODEL_OPSET_IMPORT, onnx.OperatorSetIdProto(domain=domain, version=version))
                for domain, version in self.edited.graph.opset_imports.items()
            ]
        return wire.splice(self.view, source.fields, items)

    def graph(self, graph: ir.Graph) -> list[Part] | None:
        """A GraphProto."""
        origin = self.source.graphs[graph]
        items = {
            wire.GRAPH_NODE: self._nodes(graph, origin, wire.GRAPH_NODE),
            wire.GRAPH_INITIALIZER: self._initializers(graph, origin),
            wire.GRAPH_INPUT: _signature_items(wire.GRAPH_INPUT, origin.inputs, graph.inputs),
            wire.GRAPH_OUTPUT: _signature_items(wire.GRAPH_OUTPUT, origin.outputs, graph.outputs),
        }
        if describe_graph(graph) != origin.header:
            items |= _header(wire.GRAPH_HEADER, _graph_header(graph))
        if origin.known:
            values = values_of(graph)
            items[wire.GRAPH_VALUE_INFO] = _infos(wire.GRAPH_VALUE_INFO, graph, origin, values)
            items[wire.GRAPH_QUANTIZATION] = [
                Item(place)
                for place, (name, was) in enumerate(origin.annotated)
                if was is None or name in values
            ]
        return wire.splice(self.view, origin.fields, items)

    def function(self, body: ir.Graph) -> list[Part] | None:
        """A FunctionProto."""
        origin = self.source.graphs[body]
        items = {wire.FUNCTION_NODE: self._nodes(body, origin, wire.FUNCTION_NODE)}
        outputs = _names(body.outputs)
        if outputs != [name for name, _ in origin.outputs]:
            items[wire.FUNCTION_OUTPUT] = _strings(wire.FUNCTION_OUTPUT, outputs)
        if origin.known:
            items[wire.FUNCTION_VALUE_INFO] = _infos(wire.FUNCTION_VALUE_INFO, body, origin, values_of(body))
        return wire.splice(self.view, origin.fields, items)

    def _nodes(self, graph: ir.Graph, origin: GraphOrigin, number: int) -> list[Item]:
        items = []
        for node in graph:
            place = origin.nodes.get(node)
            if place is not None and origin.described[place] == describe_node(node):
                items.append(Item(place, _field(number, self._node(node, origin, place))))
                continue
            home = next((other for other in self.source.graphs.values() if node in other.nodes), None)
            there = home.nodes[node] if home else 0
            if home is None or home.described[there] != describe_node(node):
                items.append(_new(number, ir.serde.serialize_node(node)))
            else:  # it came from another graph of the file
                lies = home.entries[there]
                parts = self._node(node, home, there) or [self.view[lies.body : lies.end]]
                items.append(Item(None, wire.field(number, parts)))
        return items

    def _node(self, node: ir.Node, home: GraphOrigin, place: int) -> list[Part] | None:
        items: dict[int, list[Item]] = {}
        old = home.protos[place]
        inputs, outputs = _names(node.inputs), _names(node.outputs)
        if inputs != list(old.input):
            items[wire.NODE_INPUT] = _strings(wire.NODE_INPUT, inputs)
        if outputs != list(old.output):
            items[wire.NODE_OUTPUT] = _strings(wire.NODE_OUTPUT, outputs)
        attributes = home.attributes.get(node)
        if attributes is not None:
            items[wire.NODE_ATTRIBUTE] = [
                Item(place, _field(wire.NODE_ATTRIBUTE, self._attribute(attribute)))
                for place, attribute in enumerate(attributes)
            ]
        if not items:
            return None
        f = home.entries[place]
        return wire.splice(self.view, wire.fields(self.view, f.body, f.end), items)

    def _attribute(self, attribute: Attribute) -> list[Part] | None:
        items: dict[int, list[Item]] = {}
        for place, f, content in attribute.contents:
            if isinstance(content, ir.ExternalTensor):
                parts = self._tensor(f, content, None)
            else:
                parts = self.graph(content)
            items.setdefault(f.number, []).append(Item(place, _field(f.number, parts)))
        if not items:
            return None
        f = attribute.field
        return wire.splice(self.view, wire.fields(self.view, f.body, f.end), items)

    def _initializers(self, graph: ir.Graph, origin: GraphOrigin) -> list[Item]:
        survivors: dict[int, Item] = {}
        new: list[Item] = []
        kept = {value.const_value for value in graph.initializers.values()}
        places = {origin.names[i]: i for tensor, i in origin.tensors.items() if tensor not in kept}
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None:
                raise OutputError(f"initializer '{name}' has no data, so the model cannot be written")
            place = origin.tensors.get(tensor)
            if place is None or place in survivors:
                parts = wire.field(wire.GRAPH_INITIALIZER, self._new_tensor(tensor, name))
                if (its := places.get(name)) is not None and its not in survivors:
                    survivors[its] = Item(its, parts)  # other numbers under the same name
                else:
                    new.append(Item(None, parts))
            else:
                renamed = name if name != origin.names[place] else None
                old = self._tensor(origin.stored[place], tensor, renamed)
                survivors[place] = Item(place, _field(wire.GRAPH_INITIALIZER, old))
        return [survivors[place] for place in sorted(survivors)] + new

    def _tensor(self, f: Field, tensor: ir.TensorProtocol, name: str | None) -> list[Part] | None:
        """A TensorProto of the file, under another name (None: the same) or with its data elsewhere."""
        items: dict[int, list[Item]] = {}
        if name is not None:
            items[wire.TENSOR_NAME] = _strings(wire.TENSOR_NAME, [name])
        outside = isinstance(tensor, ir.ExternalTensor)
        if self._goes_beside(tensor, new=False):
            items |= {number: [] for number in wire.TENSOR_DATA}
            items[wire.TENSOR_EXTERNAL_DATA] = [Item(None, self.data.place(tensor))]
            items[wire.TENSOR_DATA_LOCATION] = [Item(None, [_EXTERNAL_FLAG])]
        elif outside and self.where is _Where.INSIDE:
            items |= {wire.TENSOR_EXTERNAL_DATA: [], wire.TENSOR_DATA_LOCATION: []}
            items[wire.TENSOR_RAW_DATA] = [Item(None, _raw_data(tensor))]
        if not items:
            return None
        return wire.splice(self.view, wire.fields(self.view, f.body, f.end), items)

    def _new_tensor(self, tensor: ir.TensorProtocol, name: str) -> list[Part]:
        """The TensorProto of a tensor that is not in the file."""
        if tensor.dtype == ir.DataType.STRING:
            strings = ir.serde.serialize_tensor(tensor)
            strings.name = name
            return [strings.SerializeToString()]
        head = onnx.TensorProto(dims=tensor.shape.numpy(), data_type=tensor.dtype.value, name=name)
        if tensor.doc_string:
            head.doc_string = tensor.doc_string
        if self._goes_beside(tensor, new=True):
            return [head.SerializeToString(), *self.data.place(tensor), _EXTERNAL_FLAG]
        return [head.SerializeToString(), *_raw_data(tensor)]

    def _goes_beside(self, tensor: ir.TensorProtocol, *, new: bool) -> bool:
        if self.where in (_Where.AS_IT_IS, _Where.INSIDE):
            return False
        if isinstance(tensor, ir.ExternalTensor):
            return True
        if tensor.dtype == ir.DataType.STRING or tensor.nbytes < wire.LARGE:
            return False
        return new or self.where is _Where.BESIDE_IF_LARGE


def _field(number: int, parts: Sequence[Part] | None) -> list[Part] | None:
    return None if parts is None else wire.field(number, parts)


def _new(number: int, proto: Any) -> Item:
    return Item(None, wire.field(number, [proto.SerializeToString()]))


def _strings(number: int, names: Iterable[str]) -> list[Item]:
    return [Item(None, wire.field(number, [name.encode()])) for name in names]


def _names(values: Iterable[ir.Value | None]) -> list[str]:
    """As a NodeProto has them: an absent value is the empty name."""
    return ["" if value is None else value.name or "" for value in values]


def _header(numbers: Sequence[int], proto: Any) -> dict[int, list[Item]]:
    """Singular fields, all of which are replaced by those that are set in `proto`."""
    return {number: [] for number in numbers} | {numbers[0]: [Item(None, [proto.SerializeToString()])]}


def _model_header(model: ir.Model) -> onnx.ModelProto:
    texts = ("producer_name", "producer_version", "domain", "model_version", "doc_string")
    said = {name: getattr(model, name) for name in texts if getattr(model, name) is not None}
    proto = onnx.ModelProto(ir_version=model.ir_version, **said)
    onnx.helper.set_model_props(proto, dict(model.metadata_props))
    return proto


def _graph_header(graph: ir.Graph) -> onnx.GraphProto:
    proto = onnx.GraphProto(name=graph.name or "")
    if graph.doc_string is not None:
        proto.doc_string = graph.doc_string
    for key, value in graph.metadata_props.items():
        proto.metadata_props.add(key=key, value=value)
    return proto


def _signature_items(
    number: int, old: Sequence[tuple[str, Signature]], values: Sequence[ir.Value]
) -> list[Item]:
    """Inputs or outputs: those that still are what they were keep what the file says of them."""
    places = {known: place for place, known in reversed(list(enumerate(old)))}
    used: set[int] = set()
    items = []
    for value in values:
        place = places.get((value.name or "", signature(value)))
        fresh = place is None or place in used
        items.append(_new(number, ir.serde.serialize_value(value)) if fresh else Item(place))
        if place is not None:
            used.add(place)
    return items


def _infos(number: int, graph: ir.Graph, origin: GraphOrigin, values: Mapping[str, ir.Value]) -> list[Item]:
    """The entries of `value_info`: kept where they still hold, mended, dropped, added for new values."""
    items = []
    for place, (name, was) in enumerate(origin.infos):
        value = values.get(name)
        if was is None or (value is not None and signature(value) == was):
            items.append(Item(place))
        elif value is not None and value.type is not None:
            items.append(Item(place, _new(number, ir.serde.serialize_value(value)).parts))
    for name, value in values.items() if origin.infos else ():
        new = name not in origin.known and value.producer() is not None and not value.is_graph_output()
        if new and value.type is not None and value.shape is not None:
            items.append(_new(number, ir.serde.serialize_value(value)))
    return items


def _may_share(source: Source, target: str) -> bool:
    if source.path is None:
        return False
    folder, name = os.path.split(target)
    if os.path.realpath(os.path.dirname(source.path)) != os.path.realpath(folder):
        return False
    return all(is_content_named(location) in (None, name) for location in source.locations)


def _raw_data(tensor: ir.TensorProtocol) -> list[Part]:
    return wire.field(wire.TENSOR_RAW_DATA, [Deferred(tensor.nbytes, _reader(tensor))])


def _reader(tensor: ir.TensorProtocol) -> Any:
    return lambda: _read(tensor)


def _read(tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    """The data of a tensor as ONNX stores them, in pieces."""
    if isinstance(tensor, ir.ExternalTensor):
        yield from _read_external(tensor)
    elif tensor.dtype.bitwidth < 8:
        yield tensor.tobytes()
    else:
        array = np.ascontiguousarray(tensor.numpy()).reshape(-1)
        if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
            array = array.astype(array.dtype.newbyteorder("<"))
        yield array.view(np.uint8).data


def _read_external(tensor: ir.ExternalTensor) -> Iterator[bytes]:
    # read, not mapped: pages that were looked at once would count as memory in use
    left = tensor.nbytes
    try:
        with open(tensor.path, "rb") as file:
            file.seek(tensor.offset or 0)
            while left and (chunk := file.read(min(left, _COPY_BYTES))):
                left -= len(chunk)
                yield chunk
    except OSError as error:
        raise InputError(f"{tensor.path}: the external data cannot be read: {error.strerror}") from error
    if left:
        raise InputError(f"{tensor.path}: '{tensor.name}' ends {left} bytes early; the data file has changed")


def _chunks(part: Part) -> Iterable[bytes | memoryview]:
    if not isinstance(part, Deferred):
        return (part,)
    return _counted(part)


def _counted(part: Deferred) -> Iterator[bytes | memoryview]:
    """The pieces, making sure that there are as many bytes as were announced."""
    left = part.size
    for chunk in part.produce():
        left -= len(chunk)
        yield chunk
    if left:
        raise ValueError(f"{part.size} bytes were announced, {part.size - left} came: wrong shape or type?")
