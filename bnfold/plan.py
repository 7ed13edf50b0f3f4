"""The planner: from a site to a plan of edits, with the rule table and no knowledge of operators.

A plan holds every edit, range-checked, before anything is written; so a half-done fold cannot exist.
(Large constants are rounded while they are written, which cannot fail after the check.)

Planning is a worklist, since a path through a graph may be longer than Python's stack: each task
moves one affine past one node, and all tasks must succeed. Where a rule knows several ways, they are
tried in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from .affine import Affine, Elementwise
from .constants import FLOATS, Constant
from .double_double import DoubleDouble
from .facts import Facts, reads_numbers
from .moves import Answer, Move
from .nodes import is_quantizer, label, well_formed
from .report import Declined, Outcome, Reason
from .rules import PULL, PUSH
from .sources import Site, deviation

Gain = tuple[int, int, int]
"""Change in the numbers of BatchNormalizations, of affine nodes other than a bare Add, of affine nodes.
A fold has to lower it, lexicographically; so nothing can go in circles."""

_MOST_WAYS = 32  # combinations of alternatives tried per site
# What says least about why a site stays, when the other direction has something to say.
_PLAIN = frozenset({Reason.GRAPH_INPUT, Reason.GRAPH_OUTPUT, Reason.NOT_LINEAR})


@dataclass(frozen=True, eq=False)
class Term:
    """A Mul or an Add by a constant that will be in the graph.

    Attributes:
        op_type: "Mul" or "Add".
        constant: What it multiplies by or adds, shaped for its place.
        axis: The axis of the data that the constant lies on; None for a number.
    """

    op_type: str
    constant: Constant
    axis: int | None


@dataclass(frozen=True, eq=False)
class Leftover:
    """A shift that has to stay.

    Attributes:
        value: What it is added to.
        term: The Add.
        reader: The node that reads the sum instead; None if the sum takes the value's place altogether.
    """

    value: ir.Value
    term: Term
    reader: ir.Node | None


@dataclass(eq=False)
class Plan:
    """Every edit of one fold.

    Attributes:
        site: The run that disappears.
        outcome: How.
        constants: The new constant of each node and input that gets one.
        attributes: New attributes of a node.
        leftovers: Shifts that stay.
        moved: Values on the way, which will mean something else and need another name.
        way: The nodes that were asked and take part: they hand an affine on, or take it.
        batchnorm: When merging: the node of the run that stays, with new constants.
        merged: When merging without one: the at most two nodes that replace the run.
    """

    site: Site
    outcome: Outcome
    constants: dict[tuple[ir.Node, int], Constant] = field(default_factory=dict)
    attributes: dict[ir.Node, Mapping[str, ir.Attr]] = field(default_factory=dict)
    leftovers: list[Leftover] = field(default_factory=list)
    moved: list[ir.Value] = field(default_factory=list)
    way: list[ir.Node] = field(default_factory=list)
    batchnorm: ir.Node | None = None
    merged: tuple[Term, ...] = ()

    @property
    def gain(self) -> Gain:
        """What the plan changes in the measure."""
        run = self.site.nodes
        added = [*(left.term.op_type for left in self.leftovers), *(term.op_type for term in self.merged)]
        stays = int(self.batchnorm is not None)
        return (
            stays - sum(n.op_type == "BatchNormalization" for n in run),
            stays + added.count("Mul") - sum(not _is_bare_add(n, self.site) for n in run),
            stays + len(added) - len(run),
        )


def plan(facts: Facts, site: Site) -> Plan:
    """The best fold of a site.

    Raises:
        Declined: There is none; the reason is that of the direction which says more.
    """
    if site.declined is not None:
        raise site.declined
    assert site.affine is not None
    if site.affine.is_identity:
        return Plan(site, Outcome.REMOVED)
    plans: list[Plan] = []
    refusals: list[Declined] = []
    for outcome in (Outcome.PULLED, Outcome.PUSHED):
        try:
            plans.append(_first_that_works(facts, site, outcome))
        except Declined as declined:
            refusals.append(declined)
        if plans and not plans[-1].leftovers:
            return plans[-1]
    if len(site.nodes) > 1:
        try:
            plans.append(_merge(facts, site))
        except Declined as declined:
            refusals.append(declined)
    best = min(plans, key=lambda p: p.gain, default=None)
    if best is not None and best.gain < (0, 0, 0):
        return best
    if best is not None:
        refusals.append(Declined(Reason.NO_GAIN, f"{len(site.nodes)} nodes would become as many"))
    raise _weightiest(refusals)


def _weightiest(refusals: Sequence[Declined]) -> Declined:
    """The refusal that says most, with the others told along."""
    telling = next((r for r in refusals if r.reason not in _PLAIN), refusals[0])
    others = [f"{r.detail} ({r.reason})" for r in refusals if r is not telling]
    return Declined(telling.reason, "; ".join([telling.detail, *others]))


def _first_that_works(facts: Facts, site: Site, outcome: Outcome) -> Plan:
    """Try the alternatives in order, the latest fork first."""
    refusal: Declined | None = None
    choices: list[int] = []
    for _ in range(_MOST_WAYS):
        attempt = _Attempt(facts, site, outcome, choices)
        try:
            return attempt.run()
        except Declined as declined:
            refusal = refusal or declined
        ways = attempt.ways
        choices = [*choices, *(0,) * (len(ways) - len(choices))][: len(ways)]
        while choices and choices[-1] + 1 >= ways[len(choices) - 1]:
            choices.pop()
        if not choices:
            break
        choices[-1] += 1
    assert refusal is not None
    raise refusal


class _Attempt:
    """One way through the graph, given which alternative to take at each fork."""

    def __init__(self, facts: Facts, site: Site, outcome: Outcome, choices: Sequence[int]) -> None:
        self.facts = facts
        self.site = site
        self.plan = Plan(site, outcome)
        self.choices = choices
        self.ways: list[int] = []  # how many alternatives each fork had
        self.pulling: list[tuple[ir.Value, Affine, ir.Node]] = []
        self.pushing: list[tuple[ir.Value, Affine]] = []
        self.touched: set[ir.Value] = set()

    def run(self) -> Plan:
        affine, data = self.site.affine, self.site.data
        assert affine is not None and data is not None
        if self.plan.outcome is Outcome.PULLED:
            self.pulling.append((data, affine, self.site.nodes[0]))
        else:
            self.pushing.append((self.site.result, affine))
        while self.pulling or self.pushing:
            if self.pulling:
                self._pull(*self.pulling.pop())
            else:
                self._push(*self.pushing.pop())
        self.plan.moved = [v for v in self.plan.moved if v is not data]
        return self.plan

    def _pull(self, value: ir.Value, affine: Affine, reader: ir.Node) -> None:
        """Make `value` become affine(value)."""
        self._touch(value)
        node = _need_way(self.facts, value, reader)
        rule = PULL.get(node.op_type) if self.facts.is_standard(node) else None
        if rule is None:
            raise _no_rule(self.facts, node)
        index = next(k for k, output in enumerate(node.outputs) if output is value)
        with well_formed(node):
            move = self._choose(rule(self.facts.op(node), index, affine))
            self._change_inputs(node, move)
        if move.left is not None:
            self._leave(value, move.left, None)
        self.plan.moved.append(value)
        self.plan.way.append(node)

    def _push(self, value: ir.Value, affine: Affine) -> None:
        """Make every reader of `value` apply the affine by itself."""
        if affine.is_identity:
            return
        on_the_way = value is not self.site.result
        may_stay = on_the_way and not affine.has_scale
        if may_stay and self._fork(2) == 1:
            self._leave(value, affine, None)
            return
        self._touch(value)
        if value.is_graph_output():
            raise Declined(Reason.GRAPH_OUTPUT, f"{value.name!r} is an output of the graph")
        readers = _readers(value)
        if not readers:
            raise Declined(Reason.UNREAD, f"nothing reads {value.name!r}")
        if on_the_way:
            self.plan.moved.append(value)
        for node, indices in readers.items():
            rule = PUSH.get(node.op_type) if self.facts.is_standard(node) else None
            if rule is None:
                raise _no_rule(self.facts, node)
            with well_formed(node):
                move = self._choose(rule(self.facts.op(node), tuple(indices), affine))
                self._change_inputs(node, move)
            if move.left is not None:
                self._leave(value, move.left, node)
            if move.inputs or move.outputs:
                self.plan.way.append(node)
            self.pushing += [(node.outputs[k], a) for k, a in move.outputs.items()]

    def _leave(self, value: ir.Value, shift: Affine, reader: ir.Node | None) -> None:
        self.plan.leftovers.append(Leftover(value, _term(self.facts, "Add", value, shift), reader))

    def _touch(self, value: ir.Value) -> None:
        if value in self.touched:
            raise Declined(Reason.PARTS_DISAGREE, f"{value.name!r} is reached on two ways")
        self.touched.add(value)

    def _choose(self, answer: Answer) -> Move:
        if isinstance(answer, Move):
            return answer
        return answer[self._fork(len(answer))] if len(answer) > 1 else answer[0]

    def _fork(self, ways: int) -> int:
        self.ways.append(ways)
        taken = len(self.ways) - 1
        return self.choices[taken] if taken < len(self.choices) else 0

    def _change_inputs(self, node: ir.Node, move: Move) -> None:
        """New constants for constant inputs, further tasks for those that are data."""
        if move.attributes:
            self.plan.attributes[node] = move.attributes
        asked: dict[ir.Value, dict[int, Affine]] = {}
        for i, change in move.inputs.items():
            value = node.inputs[i] if i < len(node.inputs) else None
            constant = _absent(self.facts, node, change) if value is None else self.facts.constant(value)
            if constant is not None:
                self._change_constant(node, i, constant, change)
            elif value is not None and isinstance(change, Affine):
                asked.setdefault(value, {})[i] = change
            elif value is not None:
                raise Declined(Reason.NOT_CONSTANT, f"{value.name!r}, input {i} of {label(node)!r}")
        for value, affines in asked.items():
            first, *others = affines.values()
            uses = [i for i, v in enumerate(node.inputs) if v is value and reads_numbers(node, i)]
            if set(uses) != set(affines) or not all(a.same(first) for a in others):
                raise Declined(Reason.PARTS_DISAGREE, f"{label(node)!r} uses {value.name!r} in several ways")
            if not first.is_identity:
                self.pulling.append((value, first, node))

    def _change_constant(
        self, node: ir.Node, i: int, constant: Constant, change: Affine | Elementwise
    ) -> None:
        per_axis = isinstance(change, Affine)
        if isinstance(change, Affine):
            change = change.elementwise(max(1, len(constant.shape)))
        if change.scale is None and change.shift is None:
            return
        value = node.inputs[i] if i < len(node.inputs) else None
        name = f"{label(node)!r}, input {i}" if value is None else repr(value.name)
        if constant.dtype not in FLOATS:
            raise Declined(Reason.DTYPE, f"{name} is of type {constant.dtype}")
        if (node, i) in self.plan.constants:
            raise Declined(Reason.PARTS_DISAGREE, f"{name} is reached on two ways")
        new = constant.mapped(change)
        if value is not None and per_axis and new.shape != constant.shape:
            raise Declined(Reason.BROADCAST, f"{name} of shape {list(constant.shape)} is broadcast")
        new.check(name)
        self.plan.constants[node, i] = new


def _need_way(facts: Facts, value: ir.Value, reader: ir.Node) -> ir.Node:
    """The producer of a value that nobody but `reader` needs as it is."""
    node = value.producer()
    if node is None:
        if facts.is_argument(value):
            raise Declined(Reason.FUNCTION_ARGUMENT, f"{value.name!r} is an argument of the function")
        raise Declined(Reason.GRAPH_INPUT, f"{value.name!r} comes from no operator")
    if value.is_graph_output():
        raise Declined(Reason.GRAPH_OUTPUT, f"{value.name!r} is an output of the graph")
    if node.graph is not reader.graph:
        raise Declined(Reason.CAPTURED, f"{value.name!r} comes from outside of the inner graph")
    for other in _readers(value):
        if other is not reader:
            reason = Reason.SEVERAL_READERS if other.graph is node.graph else Reason.CAPTURED
            raise Declined(reason, f"{value.name!r} is also read by {label(other)!r} ({other.op_type})")
    return node


def _readers(value: ir.Value) -> dict[ir.Node, list[int]]:
    """The nodes that look at the numbers of a value, and through which inputs."""
    readers: dict[ir.Node, list[int]] = {}
    for node, index in value.uses():
        if reads_numbers(node, index):
            readers.setdefault(node, []).append(index)
    return readers


def _no_rule(facts: Facts, node: ir.Node) -> Declined:
    reason = Reason.QUANTIZED if is_quantizer(node) else Reason.NOT_LINEAR
    return Declined(reason, f"{facts.view(node).type} {label(node)!r}")


def _absent(facts: Facts, node: ir.Node, change: Affine | Elementwise) -> Constant | None:
    """The 0 that an absent input stands for, in the dtype of the node; None if it stays 0."""
    if not (change.has_shift if isinstance(change, Affine) else change.shift is not None):
        return None
    for value in node.inputs:
        constant = None if value is None else facts.constant(value)
        if constant is not None and constant.dtype in FLOATS:
            return Constant.nothing(constant.dtype)
    return Constant.nothing(_need_float(facts, node.outputs[0]))


def _need_float(facts: Facts, value: ir.Value) -> np.dtype[np.floating]:
    """The floating dtype of a value."""
    dtype = facts.dtype(value)
    if dtype not in FLOATS or dtype is None:
        raise Declined(Reason.DTYPE, f"the type of {value.name!r} is {dtype or 'not known'}")
    return dtype


def _term(facts: Facts, op_type: str, value: ir.Value, affine: Affine) -> Term:
    """The Mul by the scale, or the Add of the shift, of an affine of `value`."""
    numbers = affine.scale if op_type == "Mul" else affine.shift
    if numbers.is_uniform():
        numbers, axis = numbers.first(), None
    else:
        axis = affine.axis
        rank = facts.rank(value)
        if rank is None or axis is None:
            raise Declined(Reason.UNKNOWN_SHAPE, f"the rank of {value.name!r} is not known")
        numbers = numbers.reshape(-1, *(1,) * (rank - 1 - axis))
    make = Constant.factors if op_type == "Mul" else Constant.exactly
    constant = make(numbers, _need_float(facts, value))
    constant.check(f"the constant of a new {op_type} by {value.name!r}")
    return Term(op_type, constant, axis)


def _is_bare_add(node: ir.Node, site: Site) -> bool:
    """An Add of a constant, or a Sub that subtracts one."""
    if node.op_type == "Sub":
        return node.inputs[0] is site.data or any(node.inputs[0] is n.outputs[0] for n in site.nodes)
    return node.op_type == "Add"


def _merge(facts: Facts, site: Site) -> Plan:
    """One BatchNormalization, or at most one Mul and one Add, that do what the whole run does."""
    affine = site.affine
    assert affine is not None
    found = Plan(site, Outcome.MERGED)
    found.batchnorm = next((n for n in site.nodes if n.op_type == "BatchNormalization"), None)
    if found.batchnorm is None:
        needed = [("Mul", affine.has_scale), ("Add", affine.has_shift)]
        found.merged = tuple(_term(facts, kind, site.result, affine) for kind, there in needed if there)
        return found
    # s = scale/√(var+ε) and t = bias - s·mean, solved for scale and bias. The mean belongs to the data that
    # came in: where something preceded the node, it is 0 from now on, as in `sinks`.
    op = facts.op(found.batchnorm)
    if affine.axis not in (None, 1):
        raise Declined(Reason.AXIS, f"the run varies along axis {affine.axis}")
    whole = affine.spread(op.need_dim(1, 0), 1)
    scale, bias, mean = (op.need_constant(i) for i in (1, 2, 3))
    numbers = {1: Constant.factors(whole.scale * deviation(op), scale.dtype)}
    if found.batchnorm is not site.nodes[0] and not mean.exact().equals(0.0):
        mean = numbers[3] = Constant.exactly(DoubleDouble.full(mean.shape, 0.0), mean.dtype)
    numbers[2] = Constant.exactly(whole.shift + whole.scale * mean.exact(), bias.dtype)
    for i, new in numbers.items():
        new.check(repr(op.need_input(i).name))
        found.constants[found.batchnorm, i] = new
    return found
