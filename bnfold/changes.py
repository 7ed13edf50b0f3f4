"""What a fold changed in a graph, as plain data: enough to draw it, and nothing that needs the model.

A picture shows a site with what stands around it, before and after. A node is the same one in both if it
has the same `key`; keys say nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What a node has to do with a fold."""

    GOES = "goes"  # only before: its work is done by others afterwards
    ABSORBS = "absorbs"  # its constants take the affine
    ARRIVES = "arrives"  # only after: what had to stay behind
    PASSES = "passes"  # on the way between the two
    NEAR = "near"  # a neighbour, for orientation


@dataclass(frozen=True)
class DrawnNode:
    """A node in a picture.

    Attributes:
        key: Tells nodes apart, and finds the same one in the other picture.
        op_type: Its operator.
        name: What the user knows it by.
        role: What it has to do with the fold.
    """

    key: int
    op_type: str
    name: str
    role: Role


@dataclass(frozen=True)
class Picture:
    """A piece of a graph.

    Attributes:
        nodes: In topological order.
        edges: Keys of producer and reader of each value between them.
    """

    nodes: tuple[DrawnNode, ...]
    edges: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FoldedSite:
    """A site before and after, for a decision that is not to keep it.

    Attributes:
        decision: Its index in `FoldReport.decisions`.
        before: With the nodes that go.
        after: The same piece without them.
    """

    decision: int
    before: Picture
    after: Picture


@dataclass(frozen=True)
class Range:
    """The smallest and the largest number of a constant.

    Attributes:
        low, high: These.
        extents: Along how many axes it has more than one element.
    """

    low: float
    high: float
    extents: int = 0


@dataclass(frozen=True)
class WeightRange:
    """A constant of a node that took an affine.

    Attributes:
        node: The node, behind the path of its graph.
        op_type: Its operator.
        input: Which of its inputs, from 0.
        before: None if it had no such constant.
        after: None if it has none any more.
    """

    node: str
    op_type: str
    input: int
    before: Range | None
    after: Range | None


@dataclass(frozen=True)
class Size:
    """How large a model is.

    Attributes:
        parameters: Numbers in its initializers and Constant nodes.
        bytes: What these take.
        operators: How many nodes of each operator it has, inner graphs and functions included.
    """

    parameters: int
    bytes: int
    operators: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """A model before and after a fold.

    Attributes:
        before, after: How large it is.
        sites: In the order of the decisions.
        ranges: In the order of the graph.
    """

    before: Size
    after: Size
    sites: tuple[FoldedSite, ...]
    ranges: tuple[WeightRange, ...]
