"""What a model file holds: its constants by graph and name, read one at a time.

A constant is an initializer, the value of a Constant node, or what nodes compute from constants alone. The
latter is computed by `onnx.reference` in the types that the model states, as any runtime does it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto, helper

from .evaluate.stored import dense, tensor

Array = NDArray[Any]

_EPSILON = float(np.float32(1e-5))  # https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
_READ: dict[str, tuple[int, ...]] = {"CastLike": (0,), "Shape": (), "Size": ()}
"""The inputs whose numbers matter, where it is not all; of the others it is the type or the shape."""
_SMALL = 64  # elements of a constant that type inference may look at


class Unavailable(Exception):
    """The file does not hold it, or it cannot be computed; the message says why."""


@dataclass(frozen=True, eq=False)
class _Graph:
    """One graph or function body.

    Attributes:
        path: "" for the main graph, else the nodes and attributes that lead to it, or the function.
        nodes: In order.
        initializers: By name.
        stated: Types by name, as far as the file states them.
        opsets: Versions by domain.
        outer: The graph whose values it sees as well.
    """

    path: str
    nodes: Sequence[NodeProto]
    initializers: Mapping[str, TensorProto | onnx.SparseTensorProto]
    stated: Mapping[str, TypeProto]
    opsets: Sequence[onnx.OperatorSetIdProto]
    outer: _Graph | None

    @cached_property
    def producers(self) -> Mapping[str, NodeProto]:
        return {name: node for node in self.nodes for name in node.output if name}

    def home(self, name: str) -> _Graph | None:
        """The graph, from this one outwards, that has a value of this name as a constant or computes it."""
        graph: _Graph | None = self
        while graph is not None and name not in graph.initializers and name not in graph.producers:
            graph = graph.outer
        return graph


class Tensors:
    """The constants of one file.

    Args:
        model: What the file says. External data stay where they are until they are asked for.
        folder: Where the file is.
    """

    def __init__(self, model: onnx.ModelProto, folder: Path) -> None:
        self.model = model
        self.folder = folder
        self._graphs: dict[str, list[_Graph]] = {}
        for graph in _graphs(self.model):
            self._graphs.setdefault(graph.path, []).append(graph)

    @classmethod
    def of(cls, path: Path) -> Tensors:
        """The constants of the file at `path`."""
        return cls(onnx.load(path, load_external_data=False), path.parent)

    @cached_property
    def names(self) -> frozenset[str]:
        """All initializers, and the Constant nodes that take their place in functions."""
        found: set[str] = set()
        for graph in (g for graphs in self._graphs.values() for g in graphs):
            found.update(graph.initializers)
            if "::" in graph.path and graph.outer is None:
                found.update(name for name, node in graph.producers.items() if node.op_type == "Constant")
        return frozenset(found)

    def shape(self, path: str, name: str) -> tuple[int, ...]:
        """The shape of a constant, without its numbers if it is stored."""
        proto = self._at(path, name).initializers.get(name)
        return self.constant(path, name).shape if proto is None else tuple(proto.dims)

    def constant(self, path: str, name: str) -> Array:
        """The constant of this name in the graph of this path.

        Raises:
            Unavailable: There is none, or it cannot be computed.
        """
        return self._numbers(self._at(path, name), name)

    def anywhere(self, name: str) -> Array:
        """The initializer or the value of the Constant node that has this name, in whatever graph.

        Raises:
            Unavailable: There is none.
        """
        for graph in (g for graphs in self._graphs.values() for g in graphs):
            if name in graph.initializers:
                return self._stored(graph, name)
        for graph in (g for graphs in self._graphs.values() for g in graphs):
            if name in graph.producers and graph.producers[name].op_type == "Constant":
                return self._computed(graph, name)
        raise Unavailable(f"there is no constant {name!r}")

    def variance(self, path: str, output: str) -> tuple[Array, float]:
        """The variance and ε of the BatchNormalization that computes `output`.

        Raises:
            Unavailable: There is no such node, or its variance is no constant.
        """
        graph = self._at(path, output)
        node = graph.producers.get(output)
        if node is None or node.op_type != "BatchNormalization" or len(node.input) < 5:
            raise Unavailable(f"no BatchNormalization computes {output!r}")
        home = graph.home(node.input[4])
        if home is None:
            raise Unavailable(f"{node.input[4]!r}, the variance of {output!r}, is no constant")
        found = [a for a in node.attribute if a.name == "epsilon"]
        if found and found[0].ref_attr_name:
            raise Unavailable(f"the epsilon of {output!r} differs from call to call")
        return self._numbers(home, node.input[4]), float(found[0].f) if found else _EPSILON

    def _at(self, path: str, name: str) -> _Graph:
        """The only graph of this path that has this value."""
        found = [g for g in self._graphs.get(path, ()) if name in g.initializers or name in g.producers]
        if len(found) != 1:
            where = f"graph {path!r}" if path else "the main graph"
            many = "several times" if found else "not"
            raise Unavailable(f"{name!r} is {many} computed or stored in {where}")
        return found[0]

    def _numbers(self, graph: _Graph, name: str) -> Array:
        return self._stored(graph, name) if name in graph.initializers else self._computed(graph, name)

    def _stored(self, graph: _Graph, name: str) -> Array:
        proto = graph.initializers[name]
        try:
            if isinstance(proto, TensorProto):
                return tensor(proto, self.folder)
            return dense(proto, self.folder)
        except Exception as error:  # a broken file can make onnx and NumPy raise anything
            raise Unavailable(f"{name!r} cannot be read: {error}") from error

    # Computed constants

    def _computed(self, graph: _Graph, name: str) -> Array:
        from onnx.reference import ReferenceEvaluator

        nodes, feeds = self._chain(graph, name)
        inputs = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in feeds.items()
        ]
        whole = helper.make_graph(nodes, "chain", inputs, [onnx.ValueInfoProto(name=name)])
        model = helper.make_model(whole, opset_imports=graph.opsets)
        try:
            with np.errstate(all="ignore"):
                results: Any = ReferenceEvaluator(model).run(None, feeds)
                return np.asarray(results[0])
        except Exception as error:  # it raises whatever its operators do
            raise Unavailable(f"{name!r} cannot be computed: {error}") from error

    def _chain(self, graph: _Graph, name: str) -> tuple[list[NodeProto], dict[str, Array]]:
        """The nodes that compute a value, in order, and what they start from."""
        nodes: dict[int, NodeProto] = {}
        done: set[str] = set()
        feeds: dict[str, Array] = {}
        waiting = [(graph, name)]
        while waiting:
            where, current = waiting[-1]
            home = where.home(current)
            if current in done or home is None or current in home.initializers:
                waiting.pop()
                if current not in done and home is None:
                    raise Unavailable(f"{name!r} depends on {current!r}, which is no constant")
                if current not in done and home is not None:
                    feeds[current] = self._stored(home, current)
                done.add(current)
                continue
            node = home.producers[current]
            read = [v for i, v in enumerate(node.input) if v and i in _READ.get(node.op_type, (i,))]
            missing = [(home, v) for v in read if v not in done]
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if any(a.name == "broadcast" for a in node.attribute):
                raise Unavailable(f"{name!r} is computed with the broadcasting of old opsets")
            for other in set(node.input) - set(read) - {""}:
                if other not in done:
                    feeds.setdefault(other, self._stand_in(home, node, other))
            nodes[id(node)] = node
            done.update(node.output)
        return list(nodes.values()), feeds

    def _stand_in(self, graph: _Graph, node: NodeProto, name: str) -> Array:
        """Zeros of the type (for CastLike) or the shape that a value will have when the model runs."""
        home = graph.home(name)
        if home is not None and name in home.initializers:
            return self._stored(home, name)
        kind = graph.stated.get(name) or (self._inferred.get(name) if not graph.path else None) or TypeProto()
        code = kind.tensor_type.elem_type
        if code not in helper.get_all_tensor_dtypes():
            raise Unavailable(f"the type of {name!r} is not known" + (f" ({code})" if code else ""))
        dtype = helper.tensor_dtype_to_np_dtype(code)
        if node.op_type == "CastLike":
            return np.zeros(0, dtype)
        dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.tensor_type.shape.dim]
        bounds: dict[str, int] = {a.name: a.i for a in node.attribute if a.name in ("start", "end")}
        asked = dims[slice(bounds.get("start"), bounds.get("end"))]
        if not kind.tensor_type.HasField("shape") or None in asked:
            raise Unavailable(f"the shape of {name!r} is not known")
        return np.broadcast_to(np.zeros((), dtype), [1 if d is None else d for d in dims])

    @cached_property
    def _inferred(self) -> Mapping[str, TypeProto]:
        """The types of the main graph's values that inference finds; large constants take no part."""
        whole = self.model.graph
        graph = helper.make_graph(
            whole.node, "skeleton", whole.input, whole.output, value_info=whole.value_info
        )
        inputs = {v.name for v in graph.input}
        for proto in self.model.graph.initializer:
            if math.prod(proto.dims) <= _SMALL and proto.data_location != TensorProto.EXTERNAL:
                graph.initializer.append(proto)
            elif proto.name not in inputs:
                graph.input.append(helper.make_tensor_value_info(proto.name, proto.data_type, proto.dims))
        skeleton = helper.make_model(
            graph, opset_imports=self.model.opset_import, functions=self.model.functions
        )
        skeleton.ir_version = self.model.ir_version
        try:
            inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True).graph
        except Exception:  # what cannot be inferred is not known
            return {}
        return {v.name: v.type for v in (*inferred.input, *inferred.value_info, *inferred.output)}


# Graphs


def _graphs(model: onnx.ModelProto) -> Iterator[_Graph]:
    """Every graph of a model: the main one, inner ones, functions."""
    yield from _nested("", model.graph, model.opset_import, None)
    for function in model.functions:
        body = _Graph(
            f"{function.domain}::{function.name}", function.node, {}, {}, function.opset_import, None
        )
        yield body
        yield from _inside(body)


def _nested(
    path: str, graph: GraphProto, opsets: Sequence[onnx.OperatorSetIdProto], outer: _Graph | None
) -> Iterator[_Graph]:
    stored: dict[str, TensorProto | onnx.SparseTensorProto] = {t.name: t for t in graph.initializer}
    stored |= {t.values.name: t for t in graph.sparse_initializer}
    stated = {v.name: v.type for v in (*graph.value_info, *graph.input, *graph.output)}
    found = _Graph(path, graph.node, stored, stated, opsets, outer)
    yield found
    yield from _inside(found)


def _inside(outer: _Graph) -> Iterator[_Graph]:
    for node in outer.nodes:
        for attribute in node.attribute:
            for graph in _held(attribute):
                label = node.name or next((o for o in node.output if o), node.op_type)
                path = f"{outer.path}/{label}.{attribute.name}".lstrip("/")
                yield from _nested(path, graph, outer.opsets, outer)


def _held(attribute: AttributeProto) -> Iterable[GraphProto]:
    if attribute.type == AttributeProto.GRAPH:
        return (attribute.g,)
    return attribute.graphs if attribute.type == AttributeProto.GRAPHS else ()
