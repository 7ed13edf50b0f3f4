"""Whether a parsed file is a model at all: what onnx_ir would only warn about, or trip over.

`check` walks a ModelProto once, inner graphs and functions included, and raises `InputError` with
the first thing that is wrong: a name that is read before anything makes it, or made twice, a tensor
whose data are not as long as its shape says, external data that are not there or not in the model's
folder. It knows nothing about operators.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property

import onnx
import onnx_ir as ir

from .errors import InputError

_TENSOR, _TENSORS = onnx.AttributeProto.TENSOR, onnx.AttributeProto.TENSORS
_GRAPH, _GRAPHS = onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS
_UNTYPED = onnx.AttributeProto.UNDEFINED
_WITH_CONTENT = frozenset((_TENSOR, _TENSORS, _GRAPH, _GRAPHS, _UNTYPED))

_PARTS = {ir.DataType.COMPLEX64: 2, ir.DataType.COMPLEX128: 2}  # a complex number is two
_TYPED_DATA = {
    ir.DataType.FLOAT: "float_data",
    ir.DataType.COMPLEX64: "float_data",
    ir.DataType.DOUBLE: "double_data",
    ir.DataType.COMPLEX128: "double_data",
    ir.DataType.INT64: "int64_data",
    ir.DataType.UINT64: "uint64_data",
    ir.DataType.UINT32: "uint64_data",
    ir.DataType.STRING: "string_data",
}  # the others are in int32_data


def check(
    proto: onnx.ModelProto, weights: Mapping[int, int], name: str, folder: str | None
) -> frozenset[str]:
    """Raise unless the model can be opened.

    Args:
        proto: The model.
        weights: Length of `raw_data` of the initializers from which it was taken out, by index.
        name: What the messages call the file.
        folder: Where external data are; None when there is no such place.

    Returns:
        The external files, as the model calls them; none when all tensors are in the model itself.

    Raises:
        InputError: One line: what is wrong where, and what to do.
    """
    if not proto.HasField("graph"):
        raise InputError(f"{name}: is not an ONNX model: it has no graph; is it a tensor or another format?")
    if proto.ir_version < 1:
        raise InputError(f"{name}: is not an ONNX model: it states no IR version; export it again")
    if not proto.graph.node and not proto.graph.output:
        raise InputError(f"{name}: the graph is empty, without nodes and outputs; export the model again")
    check = _Check(name, folder)
    check.graph(proto.graph, [], weights)
    for function in proto.functions:
        check.function(function)
    identifiers = [(function.domain, function.name, function.overload) for function in proto.functions]
    if len(set(identifiers)) < len(identifiers):
        raise InputError(f"{name}: two local functions have the same name and domain; export the model again")
    return frozenset(check.sizes)


class _Check:
    def __init__(self, name: str, folder: str | None) -> None:
        self.name = name
        self.folder = folder
        self.sizes: dict[str, int] = {}  # of the external files
        self._around: list[_Level] = []  # this graph and those around it

    def graph(self, graph: onnx.GraphProto, outer: list[set[str]], weights: Mapping[int, int]) -> None:
        defined: set[str] = set()
        for info in graph.input:
            self._define(info.name, defined, "an input of the graph")
        inputs = frozenset(defined)
        stored: set[str] = set()
        for place, tensor in enumerate(graph.initializer):
            if not tensor.name:
                raise InputError(f"{self.name}: initializer number {place} has no name; export it again")
            self.tensor(tensor, f"initializer '{tensor.name}'", weights.get(place))
            if tensor.name not in inputs:
                self._define(tensor.name, defined, "an initializer")
            elif tensor.name in stored:
                raise self._twice(tensor.name, "an initializer")
            stored.add(tensor.name)
        for sparse in graph.sparse_initializer:
            if sparse.values.name not in inputs:
                self._define(sparse.values.name, defined, "a sparse initializer")
        self._nodes(graph.node, defined, outer)
        for info in graph.output:
            if info.name not in defined:
                raise InputError(
                    f"{self.name}: graph '{graph.name}' has the output '{info.name}', which no node of it "
                    "makes; export the model again (values of outer graphs must go through an Identity)"
                )

    def function(self, function: onnx.FunctionProto) -> None:
        defined: set[str] = set()
        for name in function.input:
            self._define(name, defined, f"an input of function '{function.name}'")
        self._nodes(function.node, defined, [])
        for name in function.output:
            if name not in defined:
                raise InputError(
                    f"{self.name}: function '{function.name}' has the output '{name}', which none of its "
                    "nodes makes; export the model again"
                )

    def tensor(self, tensor: onnx.TensorProto, what: str, raw: int | None = None) -> None:
        """Raise unless the data are as long as dims and type say; `raw` is the length of data taken out."""
        count = math.prod(tensor.dims)
        if tensor.dims and min(tensor.dims) < 0:
            raise InputError(f"{self.name}: {what} has a negative size in its shape {list(tensor.dims)}")
        bits = _bits().get(tensor.data_type)
        if bits is None:
            raise InputError(
                f"{self.name}: {what} has the unknown data type {tensor.data_type}; the file may be newer "
                "than the installed onnx: upgrade onnx and onnx-ir"
            )
        size = (count * bits + 7) // 8
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            self._external(tensor, what, size)
            return
        if raw is None and tensor.HasField("raw_data"):
            raw = len(tensor.raw_data)
        if raw is not None and bits:
            if raw != size:
                raise InputError(
                    f"{self.name}: {what} holds {raw} bytes, but its shape {list(tensor.dims)} and type "
                    f"{ir.DataType(tensor.data_type).name} need {size}; the file is damaged: export it again"
                )
            return
        where = _TYPED_DATA.get(ir.DataType(tensor.data_type), "int32_data")
        need = size if bits in (2, 4) else count * _PARTS.get(ir.DataType(tensor.data_type), 1)
        have = len(getattr(tensor, where))
        if have != need:
            raise InputError(
                f"{self.name}: {what} holds {have} numbers in {where}, but its shape {list(tensor.dims)} "
                f"needs {need}; the file is damaged or its weights were left out: export it again"
            )

    def _nodes(self, nodes: Sequence[onnx.NodeProto], defined: set[str], outer: list[set[str]]) -> None:
        self._around.append(_Level(nodes))
        sorted_so_far = True
        for node in nodes:
            for name in node.input:
                if name and name not in defined and not any(name in scope for scope in outer):
                    # Nodes should be in topological order, but real files are not always, and runtimes
                    # sort them; only a name that nothing makes, or a cycle, has no meaning.
                    if not any(name in level.makers for level in self._around):
                        raise self._unknown(node, name)
                    sorted_so_far = False
            for attribute in node.attribute:
                if attribute.type in _WITH_CONTENT:
                    self._attribute(node, attribute, [*outer, defined])
            for name in node.output:
                if name:
                    if name in defined:
                        raise self._twice(name, f"the output of {_called(node)}")
                    defined.add(name)
        if not sorted_so_far:
            for level in self._around:
                self._need_order(level)
        self._around.pop()

    def _need_order(self, level: _Level) -> None:
        """Raise unless there is an order in which the nodes can run."""
        waiting_for = [{level.makers[n] for n in _reads(node) if n in level.makers} for node in level.nodes]
        readers: list[list[int]] = [[] for _ in level.nodes]
        for reader, makers in enumerate(waiting_for):
            for maker in makers:
                readers[maker].append(reader)
        ready = [node for node, makers in enumerate(waiting_for) if not makers]
        for done in ready:  # grows while it is walked
            for reader in readers[done]:
                waiting_for[reader].discard(done)
                if not waiting_for[reader]:
                    ready.append(reader)
        if len(ready) == len(level.nodes):
            return
        stuck, seen = next(node for node, makers in enumerate(waiting_for) if makers), set[int]()
        while stuck not in seen:  # from anything that waits, back into the cycle
            seen.add(stuck)
            stuck = min(waiting_for[stuck])
        raise InputError(
            f"{self.name}: {_called(level.nodes[stuck])} depends on its own result: the graph has a cycle; "
            "export the model again"
        )

    def _attribute(
        self, node: onnx.NodeProto, attribute: onnx.AttributeProto, scopes: list[set[str]]
    ) -> None:
        if attribute.ref_attr_name:
            return
        where = f"attribute '{attribute.name}' of {_called(node)}"
        if attribute.type == _UNTYPED:
            raise InputError(f"{self.name}: {where} states no type, so its value is unknown; export it again")
        if attribute.type == _TENSOR:
            self.tensor(attribute.t, where)
        elif attribute.type == _TENSORS:
            for tensor in attribute.tensors:
                self.tensor(tensor, where)
        else:
            for graph in (attribute.g,) if attribute.type == _GRAPH else attribute.graphs:
                self.graph(graph, scopes, {})

    def _external(self, tensor: onnx.TensorProto, what: str, size: int) -> None:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if self.folder is None:
            raise InputError(
                f"{self.name}: {what} is stored in the external file '{location}', which a stream does not "
                "have; give the path of the model instead"
            )
        try:
            offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(size)))
        except ValueError:
            offset = length = -1
        if offset < 0 or length != size:
            raise InputError(
                f"{self.name}: {what} has the external data offset '{entries.get('offset', '0')}' and length "
                f"'{entries.get('length')}', but needs {size} bytes; export the model again"
            )
        if location not in self.sizes:
            self.sizes[location] = self._size(location, self.folder, what)
        if offset + size > self.sizes[location]:
            raise InputError(
                f"{self.name}: {what} lies at bytes {offset} to {offset + size} of '{location}', which has "
                f"only {self.sizes[location]}; the data file is cut off or of another model: copy it again"
            )

    def _size(self, location: str, folder: str, what: str) -> int:
        """How long an external file is, after making sure that it may be read."""
        refusal = f"{self.name}: {what} is stored in '{location}'"
        steps = location.replace("\\", "/").split("/")
        if not location or os.path.isabs(location) or ".." in steps or "\0" in location:
            raise InputError(f"{refusal}, but data must be in the model's folder: store both there again")
        path = os.path.join(folder, location)
        inside = os.path.realpath(folder)
        if os.path.commonpath((inside, os.path.realpath(path))) != inside:
            raise InputError(f"{refusal}, a link that leaves the model's folder: copy the data there")
        if os.path.islink(path):  # onnx refuses it as well, wherever it leads
            raise InputError(f"{refusal}, which is a symbolic link: make it a copy")
        try:
            facts = os.stat(path)
            if not stat.S_ISREG(facts.st_mode):
                raise InputError(f"{refusal}, which is no regular file: store the model again with its data")
            with open(path, "rb"):
                pass
        except FileNotFoundError:
            raise InputError(f"{refusal}, and that file is missing: put it beside the model") from None
        except OSError as error:
            raise InputError(f"{refusal}, which cannot be read: {error.strerror}") from error
        if facts.st_nlink > 1:  # onnx_ir refuses it as well: it may be a way around the folder's border
            raise InputError(f"{refusal}, which is a hard link to another file: make it a copy")
        return facts.st_size

    def _define(self, name: str, defined: set[str], what: str) -> None:
        if name in defined:
            raise self._twice(name, what)
        defined.add(name)

    def _twice(self, name: str, what: str) -> InputError:
        return InputError(
            f"{self.name}: '{name}' is {what}, but something before it has the same name, so nobody knows "
            "which is meant; give each value a name of its own"
        )

    def _unknown(self, reader: onnx.NodeProto, name: str) -> InputError:
        return InputError(
            f"{self.name}: {_called(reader)} reads '{name}', which no node, input or initializer makes; "
            "export the model again"
        )


class _Level:
    """The nodes of one graph, and which of them makes a name."""

    def __init__(self, nodes: Sequence[onnx.NodeProto]) -> None:
        self.nodes = nodes

    @cached_property
    def makers(self) -> dict[str, int]:
        return {name: place for place, node in enumerate(self.nodes) for name in node.output if name}


@cache
def _bits() -> Mapping[int, int]:
    """Bits per element by data type; 0 for strings. UNDEFINED is none."""
    types = (t for t in ir.DataType if t is not ir.DataType.UNDEFINED)
    return {t.value: 0 if t is ir.DataType.STRING else t.bitwidth for t in types}


def _called(node: onnx.NodeProto) -> str:
    if node.name:
        return f"node '{node.name}' ({node.op_type})"
    made = next((name for name in node.output if name), "")
    return f"the {node.op_type} node that makes '{made}'"


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, its inner graphs included."""
    yield from node.input
    for attribute in node.attribute:
        inner: Iterable[onnx.GraphProto] = (attribute.g,) if attribute.type == _GRAPH else attribute.graphs
        for graph in inner:
            for child in graph.node:
                yield from _reads(child)
