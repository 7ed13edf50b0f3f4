"""The walk: every site is planned, then written, until nothing changes any more.

It knows no operator: `sources` finds the sites, `plan` asks the rules, `edit` writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from .edit import Names, Writer
from .errors import InputError
from .facts import Facts, Scope, scopes
from .nodes import label
from .plan import Plan, plan
from .report import Counts, Decision, Declined, FoldReport, Outcome
from .sources import Site, sites


class Watch(Protocol):
    """Who wants to know what happens to which nodes, as `sketch` does. A decision is known by its owner,
    the first of its nodes that it was made for."""

    def opens(self, model: ir.Model) -> None:
        """Here is the model as it is."""

    def begins(self, model: ir.Model) -> None:
        """Its functions are inlined now, if that was asked for, and nothing is folded yet."""

    def folds(self, owner: ir.Node, plan: Plan) -> None:
        """This is about to be written."""

    def adds(self, owner: ir.Node, nodes: Sequence[ir.Node]) -> None:
        """That put these into the graph."""

    def joins(self, owner: ir.Node, other: ir.Node) -> None:
        """What happened under another owner belongs to this one."""

    def ends(self, owners: Sequence[ir.Node]) -> None:
        """No more can be folded; these own the decisions of the report, in order."""


@np.errstate(all="ignore")  # what is not finite is found where it matters, with its name
def fold(
    model: ir.Model,
    *,
    only: str | None = None,
    freeze_initializers: bool = False,
    inline_functions: bool = False,
    watch: Watch | None = None,
) -> FoldReport:
    """Fold every BatchNormalization and per-channel constant of a model into the weights around it.

    Args:
        model: The model. It is edited in place; the numbers it was loaded with are not.
        only: "batchnorm" leaves runs without a BatchNormalization alone; None folds all.
        freeze_initializers: Make initializers that are also inputs (IR version 4 and later: a caller
            may override them) constants, and remove them from the inputs.
        inline_functions: Inline local functions first, so that weights that are arguments can fold.
        watch: Is told of all that happens.

    Returns:
        One decision per run of affine nodes, and the counts before and after.

    Raises:
        InputError: The model is invalid: its parameters do not fit its channels.
    """
    if only not in (None, "batchnorm"):
        raise InputError(f"only={only!r} is not known; it may be 'batchnorm' or None")
    before = _count_nodes(scopes(model))
    if watch is not None:
        watch.opens(model)
    changed = _freeze(model) if freeze_initializers else False
    if inline_functions and model.functions:
        inline(model)
        changed = True
    if watch is not None:
        watch.begins(model)
    folder = _Folder(model, only, watch)
    report = folder.run(before, changed)
    if watch is not None:
        watch.ends(list(folder.decisions))
    return report


def inline(model: ir.Model) -> None:
    """Replace every call of a local function by its body.

    Raises:
        InputError: A call does not fit its function, or a function calls itself.
    """
    from onnx_ir.passes.common import InlinePass

    for scope in scopes(model):
        for node in scope.graph:
            function = model.functions.get((node.domain, node.op_type, node.overload))
            if function is not None:
                _need_full_call(node, function)
    try:
        InlinePass()(model)
    except Exception as error:  # whatever it is that onnx_ir cannot inline
        raise InputError(
            f"the local functions cannot be inlined: {error}; use the model without that"
        ) from error


def _need_full_call(node: ir.Node, function: ir.Function) -> None:
    """The inliner takes calls with all outputs and no more inputs than the function has."""
    outputs = [o for o in node.outputs if o.name]
    if len(outputs) != len(function.outputs) or len(node.inputs) > len(function.inputs):
        raise InputError(
            f"node {label(node)!r} calls {function.name!r} with {len(node.inputs)} inputs and {len(outputs)} "
            f"outputs, the function has {len(function.inputs)} and {len(function.outputs)}, so it cannot be "
            "inlined; fold without inlining"
        )


class FoldPass(ir.passes.InPlacePass):
    """`fold` as a pass, for pipelines of onnx_ir.

    Attributes:
        report: What the last call did; None before the first.
    """

    def __init__(self, *, only: str | None = None) -> None:
        super().__init__()
        self.only = only
        self.report: FoldReport | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.report = fold(model, only=self.only)
        return ir.passes.PassResult(model, modified=self.report.modified)


def _count_nodes(where: Iterable[Scope]) -> tuple[int, int]:
    """The numbers of BatchNormalizations and of all nodes."""
    types = [node.op_type if not node.domain else "" for scope in where for node in scope.graph]
    return types.count("BatchNormalization"), len(types)


def _freeze(model: ir.Model) -> bool:
    """Remove the inputs that have an initializer; before IR version 4 they are constants already."""
    frozen = [v for v in model.graph.inputs if v.is_initializer()] if model.ir_version >= 4 else []
    for value in frozen:
        model.graph.inputs.remove(value)
    return bool(frozen)


class _Folder:
    """The walk over one model."""

    def __init__(self, model: ir.Model, only: str | None, watch: Watch | None) -> None:
        self.model = model
        self.only = only
        self.watch = watch
        self.facts = Facts(model)
        self.names = Names(self.facts)
        # What a nameless node is called changes when its output is renamed; reports speak of the original.
        self.labels = {node: label(node) for scope in self.facts.scopes for node in scope.graph}
        self.decisions: dict[ir.Node, Decision] = {}  # by the first node of the run
        # What folds put in or left of a merged run, and under which node their decision is filed.
        self.created: dict[ir.Node, ir.Node] = {}

    def run(self, before: tuple[int, int], changed: bool) -> FoldReport:
        folded, affines = self._walk()
        left = affines
        while folded:
            changed = True
            folded, left = self._walk()
        after = _count_nodes(self.facts.scopes)
        for node, owner in self.created.items():
            if node.graph is not None:
                decision = self.decisions[owner]
                self.decisions[owner] = replace(decision, left=(*decision.left, node.op_type))
        return FoldReport(
            tuple(self.decisions.values()),
            Counts(before[0], affines, before[1]),
            Counts(after[0], left, after[1]),
            changed,
            {v.name or "": made.formula for v, made in self.facts.made.items() if _is_there(v)},
        )

    def _walk(self) -> tuple[bool, int]:
        """Once over all graphs: whether anything was folded, and how many affine nodes were met."""
        folded, affines = False, 0
        for scope in self.facts.scopes:
            for site in sites(self.facts, list(scope.graph)):
                if site.affine is not None:
                    affines += sum(n.op_type != "BatchNormalization" for n in site.nodes)
                if self.only == "batchnorm" and not any(
                    n.op_type == "BatchNormalization" for n in site.nodes
                ):
                    continue
                folded |= self._fold(scope, site)
        return folded, affines

    def _fold(self, scope: Scope, site: Site) -> bool:
        try:
            found = plan(self.facts, site)
        except Declined as declined:
            self._record(scope, site, reason=declined.reason, detail=declined.detail)
            return False
        except InputError as error:
            raise InputError(f"{site.nodes[0].op_type} {label(site.nodes[0])!r}: {error}") from error
        into = dict.fromkeys(node for node, _ in found.constants)
        owner = self._record(
            scope,
            site,
            outcome=found.outcome,
            into=tuple(self._label(node) for node in into),
            into_types=tuple(node.op_type for node in into),
            detail=_precision(self.facts, found),
        )
        owner = owner or self.created[site.nodes[0]]
        if self.watch is not None:
            self.watch.folds(owner, found)
        added = Writer(self.facts, self.names, scope, found).write()
        if self.watch is not None:
            self.watch.adds(owner, added)
        if found.batchnorm is not None:
            added.append(found.batchnorm)
        self.created |= dict.fromkeys(added, owner)
        return True

    def _record(
        self, scope: Scope, site: Site, outcome: Outcome = Outcome.KEPT, **fate: Any
    ) -> ir.Node | None:
        """Keep the decision about a run, and return the node that it is filed under.

        What an earlier fold put in belongs to the decision of that fold, and only if that was a merge
        is there still something to decide. None if that is all there is.
        """
        runs: dict[ir.Node, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        for node in site.nodes:
            owner = self.created.get(node)
            if owner is None:
                runs[node] = (self._label(node),), (node.op_type,)
            elif (old := self.decisions.get(owner)) is not None and old.outcome is Outcome.MERGED:
                runs[owner] = old.nodes, old.op_types
                outcome = old.outcome if outcome is Outcome.KEPT else outcome
        if not runs:
            return None
        first, *others = runs
        for other in others:
            self.decisions.pop(other, None)
            if self.watch is not None:
                self.watch.joins(first, other)
            self.created |= {node: first for node, owner in self.created.items() if owner is other}
        last = site.nodes[-1]
        self.decisions[first] = Decision(
            graph=scope.path,
            nodes=tuple(name for names, _ in runs.values() for name in names),
            op_types=tuple(kind for _, kinds in runs.values() for kind in kinds),
            value=self.facts.origin(last)[1],
            channels=None if site.affine is None else site.affine.channels,
            outcome=outcome,
            **fate,
        )
        return first

    def _label(self, node: ir.Node) -> str:
        return self.labels.get(node) or label(node)


def _is_there(constant: ir.Value) -> bool:
    node = constant.producer()
    return constant.is_initializer() if node is None else node.graph is not None


def _precision(facts: Facts, plan: Plan) -> str:
    """A note where the affine was computed in a wider type than the constants that took it have."""
    if all(c.dtype.itemsize > 2 for c in plan.constants.values()):
        return ""  # the usual case: nothing but a 16-bit float has a wider type beside it
    applied = {
        constant.dtype
        for node in plan.site.nodes
        for value in node.inputs
        if value is not None and value is not plan.site.data
        if (constant := facts.constant(value)) is not None
    }
    least = min((d.itemsize for d in applied), default=0)
    narrower = {c.dtype for c in plan.constants.values() if c.dtype.itemsize < least}
    return "; ".join(f"rounded to {d}, where the original had more digits" for d in sorted(narrower, key=str))
