"""Cuts a model between its BatchNormalizations, into models that onnxruntime can run one after the other.

What comes into a BatchNormalization depends on those before it. Its *level* is how many of them lie one
behind the other on the way; level by level, everything up to the next inputs can be computed from a
*frontier*: the values that were computed before and are still to be read.

Graphs are read as ONNX stores them. Names are unique in a graph, so a set of names is a set of values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import count
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from .errors import InputError

Array = NDArray[Any]

_STANDARD = ("", "ai.onnx")
_RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomUniform"}
_RANDOM |= {"RandomNormalLike", "RandomUniformLike"}


@dataclass(frozen=True, eq=False)
class Norm:
    """A BatchNormalization of the main graph.

    Attributes:
        index: Of its node.
        data: Name of what comes in.
        level: How many others lie before it, one behind the other.
    """

    index: int
    data: str
    level: int


class Stages:
    """The parts of one model.

    Attributes:
        model: Its weights need not be loaded.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self._nodes = list(model.graph.node)
        self._reads = [_read(node) for node in self._nodes]
        self._producers = {name: i for i, node in enumerate(self._nodes) for name in node.output if name}
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        self._stored = stored
        sparse = {tensor.values.name for tensor in model.graph.sparse_initializer}
        self._inputs = {i.name: i for i in model.graph.input if i.name not in stored.keys() | sparse}
        self._depths = self._measured_depths()

    @cached_property
    def norms(self) -> tuple[Norm, ...]:
        """The BatchNormalizations whose input depends on those of the model, in the order of the file."""
        found = ((i, node.input[0]) for i, node in enumerate(self._nodes) if is_norm(node))
        return tuple(Norm(i, data, self._depths[data]) for i, data in found if data in self._depths)

    @property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Numbers of the norms, level by level."""
        depths = sorted({norm.level for norm in self.norms})
        return tuple(tuple(i for i, n in enumerate(self.norms) if n.level == depth) for depth in depths)

    def frontier(self, level: int) -> frozenset[str]:
        """The values that are known before the norms of a level run, and that they or other nodes read on the
        way to those of later levels."""
        targets = [norm.data for norm in self.norms if norm.level > level]
        later = {i for i in self._behind(targets, ()) if self._depth_of(i) > level}
        read = {name for i in later for name in self._reads[i] if name in self._depths}
        return frozenset(name for name in read if self._depths[name] <= level)

    def part(
        self,
        sources: Mapping[str, np.dtype[Any]] | None,
        targets: Collection[str],
        statistics: Sequence[tuple[Array, Array]],
        *,
        batch_statistics: bool = False,
    ) -> onnx.ModelProto:
        """The model that computes some values from others, in inference mode.

        Args:
            sources: Names and types of the values that are given; None for the inputs of the model.
            targets: Names of what is to be computed.
            statistics: Mean and variance that norms have, by number.
            batch_statistics: Let each normalize by the statistics of its batch instead.
        """
        given = {} if sources is None else dict(sources)
        wanted = [name for name in dict.fromkeys(targets) if name not in given and name not in self._inputs]
        chosen = sorted(self._behind(wanted, given), key=self._order.__getitem__)
        numbers = {norm.index: i for i, norm in enumerate(self.norms)}
        nodes: list[NodeProto] = []
        added: list[TensorProto] = []
        for i in chosen:
            if i not in numbers:
                nodes.append(_without_dropout(self._nodes[i], self._opset))
                continue
            names, pair = [f"{self._own}.{what}.{i}" for what in ("mean", "var")], statistics[numbers[i]]
            if batch_statistics:
                normalizing, constants = _by_batch(self._nodes[i], names, pair, self._opset)
                nodes += normalizing
                added += constants
            else:
                nodes.append(_inference(self._nodes[i], names))
                added += [numpy_helper.from_array(a, name) for a, name in zip(pair, names, strict=True)]
        read = {name for node in nodes for name in _read(node)}
        inputs = [_info(name, dtype) for name, dtype in given.items() if name in read]
        inputs += [info for name, info in self._inputs.items() if name in read and name not in given]
        graph = GraphProto(
            name="part",
            node=nodes,
            initializer=[*(t for name, t in self._stored.items() if name in read), *added],
            input=inputs,
            output=[ValueInfoProto(name=name) for name in wanted],
        )
        graph.sparse_initializer.extend(
            t for t in self.model.graph.sparse_initializer if t.values.name in read
        )
        part = onnx.ModelProto(ir_version=self.model.ir_version, graph=graph)
        part.opset_import.extend(self.model.opset_import)
        part.functions.extend(self.model.functions)
        if self.model.ir_version < 4:  # every initializer is an input as well
            part.ir_version = 4
        return part

    @property
    def random(self) -> tuple[str, ...]:
        """Names of what draws random numbers on the way to the norms."""
        return tuple(_label(node) for node in (*self._before, *self._hidden) if node.op_type in _RANDOM)

    @property
    def hidden_dropouts(self) -> tuple[str, ...]:
        """Names of the Dropout nodes in inner graphs and local functions that may run in training mode."""
        return tuple(_label(node) for node in self._hidden if _may_drop(node))

    @property
    def idle(self) -> tuple[str, ...]:
        """Names of the BatchNormalizations in training mode whose input is a constant."""
        found = (node for node in self._nodes if is_norm(node) and node.input[0] not in self._depths)
        return tuple(_label(node) for node in found if sum(map(bool, node.output)) > 1 or _trains(node))

    @cached_property
    def _before(self) -> list[NodeProto]:
        """The nodes on the way to the norms."""
        behind = self._behind((norm.data for norm in self.norms), ())
        return [self._nodes[i] for i in sorted(behind)]

    @cached_property
    def _hidden(self) -> list[NodeProto]:
        """The nodes in inner graphs on that way, and in local functions."""
        inner = [
            node for outer in self._before for graph in _graphs(outer) for node in _all_nodes(graph.node)
        ]
        return inner + [node for function in self.model.functions for node in _all_nodes(function.node)]

    @property
    def active_dropouts(self) -> tuple[str, ...]:
        """Names of the Dropout nodes that may run in training mode."""
        return tuple(_label(node) for node in self._nodes if _may_drop(node))

    @cached_property
    def _own(self) -> str:
        """How no name of the model begins."""
        names = (*self._producers, *self._stored, *self._inputs)
        candidates = (f"bnfold{n}" for n in count())
        return next(own for own in candidates if not any(name.startswith(own) for name in names))

    @property
    def _opset(self) -> int:
        return next((o.version for o in self.model.opset_import if o.domain in _STANDARD), 1)

    @cached_property
    def _order(self) -> dict[int, int]:
        """Place of each node in an order in which every value is made before it is read."""
        before = {
            i: [self._producers[name] for name in reads if name in self._producers]
            for i, reads in enumerate(self._reads)
        }
        try:
            return {i: place for place, i in enumerate(TopologicalSorter(before).static_order())}
        except CycleError as error:  # `load` has refused it
            raise InputError("the graph has a cycle") from error

    def _measured_depths(self) -> dict[str, int]:
        """Level of each value that depends on the inputs of the model."""
        depths = dict.fromkeys(self._inputs, 0)
        for i in sorted(self._order, key=self._order.__getitem__):
            node = self._nodes[i]
            read = [depths[name] for name in self._reads[i] if name in depths]
            if read:
                depth = max(read) + is_norm(node)
                depths |= dict.fromkeys((name for name in node.output if name), depth)
        return depths

    def _depth_of(self, i: int) -> int:
        """The level of what a node makes; -1 if it is constant."""
        return max((self._depths.get(name, -1) for name in self._nodes[i].output), default=-1)

    def _behind(self, targets: Iterable[str], sources: Collection[str]) -> set[int]:
        """The nodes that it takes to compute some values from others."""
        found: set[int] = set()
        waiting = list(targets)
        while waiting:
            name = waiting.pop()
            i = self._producers.get(name)
            if name not in sources and i is not None and i not in found:
                found.add(i)
                waiting += self._reads[i]
        return found


def is_norm(node: NodeProto) -> bool:
    """Whether it is a BatchNormalization, in whatever mode."""
    return node.op_type == "BatchNormalization" and node.domain in _STANDARD


def _trains(node: NodeProto) -> bool:
    return any(a.name == "training_mode" and a.i for a in node.attribute)


def _may_drop(node: NodeProto) -> bool:
    """Whether it is a Dropout that is told whether it is training."""
    is_dropout = node.op_type == "Dropout" and node.domain in _STANDARD
    return is_dropout and len(node.input) > 2 and bool(node.input[2])


def inner_norms(model: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """Names of the BatchNormalizations in inner graphs, and in local functions."""
    inner = [n for node in model.graph.node for g in _graphs(node) for n in _all_nodes(g.node)]
    local = [n for function in model.functions for n in _all_nodes(function.node)]
    return _names(inner), _names(local)


def _names(nodes: Iterable[NodeProto]) -> list[str]:
    return [_label(node) for node in nodes if is_norm(node)]


def _label(node: NodeProto) -> str:
    return str(node.name or next(iter(node.output), node.op_type))


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for graph in _graphs(node):
            yield from _all_nodes(graph.node)


def _graphs(node: NodeProto) -> list[GraphProto]:
    found = []
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            found.append(attribute.g)
        elif attribute.type == AttributeProto.GRAPHS:
            found += attribute.graphs
    return found


def _read(node: NodeProto) -> set[str]:
    """All names that a node reads, those that its inner graphs take from around it included."""
    read = {name for name in node.input if name}
    for graph in _graphs(node):
        inside = {name for inner in graph.node for name in _read(inner)} | {o.name for o in graph.output}
        made = {name for inner in graph.node for name in inner.output}
        made |= {i.name for i in graph.input} | {t.name for t in graph.initializer}
        read |= inside - made - {t.values.name for t in graph.sparse_initializer}
    return read


def _info(name: str, dtype: np.dtype[Any]) -> ValueInfoProto:
    """An input of unknown shape."""
    info = ValueInfoProto(name=name)
    info.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(dtype)
    return info


def _inference(node: NodeProto, names: Sequence[str]) -> NodeProto:
    """The node with these statistics, in inference mode."""
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[3:] = names
    del copy.output[1:]
    kept = [a for a in node.attribute if a.name != "training_mode"]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    return copy


def _without_dropout(node: NodeProto, opset: int) -> NodeProto:
    """The node; a Dropout is told that it is not training."""
    if node.op_type != "Dropout" or node.domain not in _STANDARD or opset < 12:
        return node
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.input[2:]
    return copy


def _by_batch(
    node: NodeProto, names: Sequence[str], like: Sequence[Array], opset: int
) -> tuple[list[NodeProto], list[TensorProto]]:
    """Nodes that normalize by mean and population variance of the batch, and the constants they need.

    Not a BatchNormalization in training mode: onnxruntime lets one write into the initializers that hold its
    statistics, if nothing reads those that it puts out.
    """
    stem = names[0]
    rows, mean, distances, squares, var = (f"{stem}.{what}" for what in ("rows", "mean", "d", "d2", "var"))
    shape, flat, axes = (f"{stem}.{what}" for what in ("shape", "flat", "axes"))
    constants = {shape: [0, 0, -1], flat: [-1]} | ({axes: [0, 2]} if opset >= 18 else {})

    def average(source: str, target: str) -> NodeProto:
        if opset >= 18:  # https://onnx.ai/onnx/operators/onnx__ReduceMean.html
            return helper.make_node("ReduceMean", [source, axes], [target])
        return helper.make_node("ReduceMean", [source], [target], axes=[0, 2])

    nodes = [
        helper.make_node("Reshape", [node.input[0], shape], [rows]),
        average(rows, mean),
        helper.make_node("Sub", [rows, mean], [distances]),
        helper.make_node("Mul", [distances, distances], [squares]),
        average(squares, var),
    ]
    for source, target, array in zip((mean, var), names, like, strict=True):
        code = helper.np_dtype_to_tensor_dtype(array.dtype)
        nodes.append(helper.make_node("Reshape", [source, flat], [f"{source}.flat"]))
        nodes.append(helper.make_node("Cast", [f"{source}.flat"], [target], to=code))
    stored = [numpy_helper.from_array(np.array(v, np.int64), name) for name, v in constants.items()]
    return [*nodes, _inference(node, names)], stored
