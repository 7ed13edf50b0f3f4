"""The plan of a graph or function body, made once: which nodes to run, in which order, what dies when."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from onnx import AttributeProto, FunctionProto, GraphProto, NodeProto, SparseTensorProto, TensorProto
from onnx import ValueInfoProto as Declaration

from .outcome import EvaluationError

Stored = TensorProto | SparseTensorProto


@dataclass(frozen=True, eq=False)
class Step:
    """A node to run.

    Attributes:
        node: The node itself.
        blocks: Its inner graphs, by the name of the attribute.
        frees: The values of its own block that no later step reads.
    """

    node: NodeProto
    blocks: Mapping[str, Block]
    frees: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """A graph or the body of a function.

    Attributes:
        inputs: Names of its parameters.
        outputs: Names of its results.
        declared: What a graph says of its results; empty for a function.
        constants: Its own constants, as they are stored.
        steps: The nodes that its results depend on, in an order in which they can be run.
        captured: The names that it reads from the scopes around it.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    declared: tuple[Declaration, ...]
    constants: Mapping[str, Stored]
    steps: tuple[Step, ...]
    captured: frozenset[str]


def of_graph(graph: GraphProto) -> Block:
    """The plan of an inner graph: its results are kept until it is through.

    Raises:
        EvaluationError: A value is made twice, or depends on itself.
    """
    outputs = tuple(value.name for value in graph.output)
    return _block(graph.node, _inputs(graph), outputs, tuple(graph.output), constants_of(graph), keep=outputs)


def of_main(graph: GraphProto, outputs: Sequence[str]) -> Block:
    """The plan of a main graph, for these results; they die like any other value.

    Raises:
        EvaluationError: A value is made twice, or depends on itself.
    """
    return _block(graph.node, _inputs(graph), tuple(outputs), (), constants_of(graph), keep=())


def of_function(function: FunctionProto) -> Block:
    """The plan of a local function.

    Raises:
        EvaluationError: A value is made twice, or depends on itself.
    """
    outputs = tuple(function.output)
    return _block(function.node, tuple(function.input), outputs, (), {}, keep=outputs)


def constants_of(graph: GraphProto) -> dict[str, Stored]:
    """The initializers of a graph, dense and sparse, by name."""
    dense: dict[str, Stored] = {proto.name: proto for proto in graph.initializer}
    return dense | {proto.values.name: proto for proto in graph.sparse_initializer}


@dataclass(eq=False)
class _Draft:
    """A node with what it reads, inner graphs included."""

    node: NodeProto
    blocks: dict[str, Block]
    reads: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        captured = (block.captured for block in self.blocks.values())
        self.reads = frozenset(filter(None, self.node.input)).union(*captured)


def _inputs(graph: GraphProto) -> tuple[str, ...]:
    return tuple(value.name for value in graph.input)


def _block(
    nodes: Iterable[NodeProto],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    declared: tuple[Declaration, ...],
    constants: Mapping[str, Stored],
    keep: Iterable[str],
) -> Block:
    drafts = [_Draft(node, _inner_blocks(node)) for node in nodes]
    made = _producers(drafts)
    drafts = _leading_to(outputs, _sorted(drafts, made))
    own = {*inputs, *constants, *made}
    steps: list[Step] = []
    read_later = set(keep)
    for draft in reversed(drafts):
        dying = own.intersection({*draft.reads, *filter(None, draft.node.output)}) - read_later
        steps.append(Step(draft.node, draft.blocks, tuple(sorted(dying))))
        read_later |= draft.reads
    captured = frozenset(outputs).union(*(draft.reads for draft in drafts)) - own
    return Block(inputs, outputs, declared, constants, tuple(reversed(steps)), captured)


def _inner_blocks(node: NodeProto) -> dict[str, Block]:
    return {a.name: of_graph(a.g) for a in node.attribute if a.type == AttributeProto.GRAPH}


def _producers(drafts: Sequence[_Draft]) -> dict[str, int]:
    """The index of the node that makes each value."""
    made: dict[str, int] = {}
    for index, draft in enumerate(drafts):
        for name in filter(None, draft.node.output):
            if name in made:
                raise EvaluationError(f"the value {name!r} is made twice, last by {label(draft.node)}")
            made[name] = index
    return made


def _sorted(drafts: list[_Draft], made: Mapping[str, int]) -> list[_Draft]:
    """The nodes so that each comes after those it reads, otherwise in the given order."""
    needs = [{made[name] for name in draft.reads if name in made} for draft in drafts]
    if all(max(own, default=-1) < index for index, own in enumerate(needs)):
        return drafts
    readers: list[list[int]] = [[] for _ in drafts]
    for index, own in enumerate(needs):
        for needed in own:
            readers[needed].append(index)
    ready = [index for index, own in enumerate(needs) if not own]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(drafts[index])
        for reader in readers[index]:
            needs[reader].discard(index)
            if not needs[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(drafts):
        stuck = next(draft.node for draft, own in zip(drafts, needs, strict=True) if own)
        raise EvaluationError(f"the nodes form a cycle, in which is {label(stuck)}")
    return order


def _leading_to(outputs: Iterable[str], drafts: Sequence[_Draft]) -> list[_Draft]:
    """The nodes that these values depend on, in order."""
    wanted, kept = set(outputs), []
    for draft in reversed(drafts):
        if wanted.intersection(filter(None, draft.node.output)):
            kept.append(draft)
            wanted |= draft.reads
    return kept[::-1]


def label(node: NodeProto) -> str:
    """A node in words: its operator and its name, or that of its first output if it has none."""
    return f"{node.op_type} {node.name or next(filter(None, node.output), '')!r}"
