"""Runs the nodes of a block: scopes, inner graphs, local functions, and who evaluates which operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from onnx import AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto, defs, helper

from ..errors import BnfoldError
from . import borrowed, stored
from .block import Block, Step, Stored, label, of_function
from .node import Array, Datum, Node, carry
from .operators import OPERATORS, RANDOM, SEQUENCES
from .outcome import EvaluationError, Missing, Random, Unsupported, in_a_line
from .scope import Scope, Value

Elsewhere = Callable[[NodeProto, Sequence["Array | None"]], "list[Array]"]
"""Runs one node on these values, or raises `Unsupported`; its attributes refer to nothing."""


@dataclass(frozen=True, eq=False)
class Function:
    """A local function.

    Attributes:
        block: Its body.
        opsets: Version by domain, as its body imports them.
        defaults: The attributes that have a default value.
    """

    block: Block
    opsets: Mapping[str, int]
    defaults: Mapping[str, AttributeProto]

    @classmethod
    def of(cls, proto: FunctionProto, around: Mapping[str, int]) -> Function:
        """Read a function of a model that imports the opsets `around`."""
        defaults = {a.name: a for a in proto.attribute_proto}
        return cls(of_function(proto), {**around, **opsets(proto.opset_import)}, defaults)


@dataclass(frozen=True, eq=False)
class Frame:
    """What holds for all nodes of the main graph, or of one function call, inner graphs included.

    Attributes:
        opsets: Version by domain.
        functions: Local functions by domain, name and overload.
        folder: Where external data lie.
        change: What to use instead of the floating constants.
        elsewhere: Who runs the operators that neither the table nor `onnx.reference` has.
        note: Told of each node that was run elsewhere.
        arguments: The attributes that the function was called with.
    """

    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str, str], Function]
    folder: Path | None
    change: stored.Change | None
    elsewhere: Elsewhere | None
    note: Callable[[str], None]
    arguments: Mapping[str, AttributeProto]

    def scope(self, block: Block, values: dict[str, Value], around: Scope | None = None) -> Scope:
        """A new scope for one run of a block."""
        return Scope(block, self._load, values, around)

    def compute(self, step: Step, scope: Scope) -> list[tuple[str, Value]]:
        """Run a node: its results by name. The scope neither gets them nor loses what dies.

        Raises:
            EvaluationError: The node is invalid for its inputs, or too large.
        """
        node = step.node
        try:
            inputs = [scope[name] if name else None for name in node.input]
        except EvaluationError as error:
            raise EvaluationError(f"{label(node)}: {error}") from error
        results = self._results(step, inputs, scope)
        return [(name, value) for name, value in zip(node.output, results, strict=False) if name]

    def run(self, block: Block, scope: Scope) -> list[Value]:
        """The results of an inner graph or function body."""
        for step in block.steps:
            for name, value in self.compute(step, scope):
                scope[name] = value
            scope.drop(step.frees)
        return [scope[name] for name in block.outputs]

    def _load(self, name: str, proto: Stored) -> Value:
        try:
            return stored.load(name, proto, self.folder, self.change)
        except Unsupported as error:
            return Missing(f"the constant {name!r}: {error}")

    def _results(self, step: Step, inputs: Sequence[Value], scope: Scope) -> Sequence[Value]:
        values: list[Datum | None] = []
        for value in inputs:
            if isinstance(value, Missing):
                return [value] * len(step.node.output)
            values.append(value)
        try:
            with np.errstate(all="ignore"):  # infinities and NaN are results like any other
                return self._call(step, values, scope)
        except (Unsupported, Random) as error:
            return [Missing(f"{label(step.node)}: {in_a_line(error)}")] * len(step.node.output)
        except _Lost as lost:
            return [lost.missing] * len(step.node.output)
        except (EvaluationError, BnfoldError):  # the latter: whoever runs it elsewhere cannot be used at all
            raise
        except Exception as error:
            raise EvaluationError(_complaint(step.node, values, error)) from error

    def _call(self, step: Step, inputs: Sequence[Datum | None], scope: Scope) -> Sequence[Value]:
        node = step.node
        attributes = self._attributes(node)
        function = self.functions.get((_domain(node.domain), node.op_type, node.overload))
        if function is not None:
            return self._call_function(function, inputs, attributes)
        try:
            return self._call_here(step, inputs, attributes, scope)
        except Unsupported as error:
            return self._call_elsewhere(node, inputs, attributes, error)

    def _call_here(
        self,
        step: Step,
        inputs: Sequence[Datum | None],
        attributes: Mapping[str, AttributeProto],
        scope: Scope,
    ) -> Sequence[Datum]:
        """The node as the table or, for want of an entry, `onnx.reference` runs it."""
        node, domain = step.node, _domain(step.node.domain)
        if domain not in borrowed.DOMAINS:
            raise Unsupported(f"the domain {domain} is not known here")
        opset = self.opsets.get(domain)
        if opset is None:
            raise EvaluationError(f"{label(node)}: the model imports no version of {domain or 'ai.onnx'}")
        if not domain and node.op_type in RANDOM:
            raise Random("its result is random")
        operator = None if domain else OPERATORS.get(node.op_type)
        defaults = None if operator is None else _defaults(node.op_type, opset)
        if operator is None or defaults is None:
            if step.blocks:
                raise Unsupported("it has inner graphs")
            return borrowed.run(_resolved(node, attributes), opset, inputs)
        if node.op_type not in SEQUENCES and any(isinstance(value, list) for value in inputs):
            raise Unsupported("it is given a sequence")
        given = {name: _plain(a) for name, a in attributes.items() if name not in step.blocks}
        call = Node(
            node.op_type,
            opset,
            cast(Sequence[Array | None], inputs),  # a sequence is only ever handed on
            {**defaults, **given, **step.blocks},
            node.output,
            partial(self._run_inner, scope),
            partial(stored.carried, node.output[0], change=self.change),
        )
        try:
            results = operator(call)
        except TypeError as error:  # NumPy has no such operation for these types; others may
            raise Unsupported(in_a_line(error)) from error
        results = results if isinstance(results, tuple) else (results,)
        # What NumPy makes of scalars often is no array.
        return [value if isinstance(value, list) else np.asarray(value) for value in results]

    def _call_elsewhere(
        self,
        node: NodeProto,
        inputs: Sequence[Datum | None],
        attributes: Mapping[str, AttributeProto],
        refusal: Unsupported,
    ) -> list[Array]:
        """The node as `elsewhere` runs it, after it could not be run here."""
        tensors = [value for value in inputs if not isinstance(value, list)]
        if self.elsewhere is None or len(tensors) < len(inputs):
            raise refusal
        try:
            results = self.elsewhere(_resolved(node, attributes), tensors)
        except Unsupported as error:
            raise Unsupported(f"{in_a_line(refusal)}; {in_a_line(error)}") from error
        self.note(label(node))
        return [carry(value) for value in results]

    def _call_function(
        self, function: Function, inputs: Sequence[Datum | None], attributes: Mapping[str, AttributeProto]
    ) -> list[Value]:
        frame = replace(self, opsets=function.opsets, arguments={**function.defaults, **attributes})
        absent = [None] * (len(function.block.inputs) - len(inputs))
        values: dict[str, Value] = dict(zip(function.block.inputs, [*inputs, *absent], strict=True))
        return frame.run(function.block, frame.scope(function.block, values))

    def _run_inner(self, scope: Scope, block: Block, inputs: Sequence[Datum]) -> list[Array]:
        values: dict[str, Value] = dict(zip(block.inputs, inputs, strict=True))
        results: list[Datum] = []
        for name, value in zip(block.outputs, self.run(block, self.scope(block, values, scope)), strict=True):
            if isinstance(value, Missing):
                raise _Lost(value)
            if value is None:
                raise EvaluationError(f"the value {name!r} is absent")
            results.append(value)
        return cast(list[Array], results)  # what is a sequence is only handed on

    def _attributes(self, node: NodeProto) -> dict[str, AttributeProto]:
        """The attributes of a node; those that refer to an argument of the function get its value."""
        resolved = (
            (a.name, self.arguments.get(a.ref_attr_name) if a.ref_attr_name else a) for a in node.attribute
        )
        return {name: attribute for name, attribute in resolved if attribute is not None}


class _Lost(Exception):
    """An inner graph has no value for one of its results."""

    def __init__(self, missing: Missing) -> None:
        super().__init__(missing.reason)
        self.missing = missing


def opsets(imports: Iterable[OperatorSetIdProto]) -> dict[str, int]:
    """The versions by domain; the standard domain is ""."""
    return {_domain(entry.domain): entry.version for entry in imports}


def key(function: FunctionProto) -> tuple[str, str, str]:
    """What a node calls a function by: domain, name and overload."""
    return _domain(function.domain), function.name, function.overload


@cache
def _defaults(op_type: str, opset: int) -> Mapping[str, Any] | None:
    """The default attributes of an operator as its schema of that opset has them; None if it has none yet."""
    try:
        schema = defs.get_schema(op_type, opset, "")
    except defs.SchemaError:
        return None
    defaults = ((name, attribute.default_value) for name, attribute in schema.attributes.items())
    return {name: _plain(value) for name, value in defaults if value.type}


def _plain(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _resolved(node: NodeProto, attributes: Mapping[str, AttributeProto]) -> NodeProto:
    """The node with attributes that stand for themselves."""
    copy = NodeProto()
    copy.CopyFrom(node)
    del copy.attribute[:]
    for name, attribute in attributes.items():
        copy.attribute.add().CopyFrom(attribute)
        copy.attribute[-1].name = name
    return copy


def _complaint(node: NodeProto, inputs: Sequence[Datum | None], error: Exception) -> str:
    """What an invalid node does, and on what."""
    if isinstance(error, MemoryError):
        what = f"its values do not fit into memory ({in_a_line(error)})"
    else:
        what = in_a_line(error)
    seen = ", ".join(map(_kind, inputs))
    return f"{label(node)}, which computes {', '.join(map(repr, node.output))}: {what}; its inputs are {seen}"


def _kind(value: Datum | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return f"a sequence of {len(value)}"
    return f"{value.dtype}{list(value.shape)}"


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
