"""Writing a plan into the graph.

New constants are fresh initializers, never edits in place, so shared weights need no special case. A name
that survives still means the same values: whoever now computes what the site computed takes over the
name of its result, and every other value on the way gets a fresh one.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from .constants import Constant
from .facts import Facts, Scope
from .nodes import is_used, label
from .origin import META, Source
from .plan import Leftover, Plan, Term
from .report import Declined, Outcome


class Names:
    """The names in use, and fresh ones.

    Args:
        facts: Of the model whose names they are.
    """

    def __init__(self, facts: Facts) -> None:
        values: set[str | None] = set()
        nodes: set[str | None] = set()
        for scope in facts.scopes:
            values.update(v.name for v in scope.graph.inputs)
            values.update(scope.graph.initializers)
            for node in scope.graph:
                nodes.add(node.name)
                values.update(v.name for v in (*node.inputs, *node.outputs) if v is not None)
        source = facts.model.meta.get(META)
        if isinstance(source, Source):
            values |= source.unread
        self._originals = frozenset(values)
        self._values, self._nodes = values, nodes

    def value(self, stem: str | None, suffix: str) -> str:
        """A new name for a value, made from an old one."""
        return self._fresh(self._values, stem, suffix)

    def node(self, stem: str, suffix: str) -> str:
        """A new name for a node."""
        return self._fresh(self._nodes, stem, suffix)

    def release(self, name: str | None) -> None:
        """Let the name of a removed value be used again, unless it meant something in the original."""
        if name not in self._originals:
            self._values.discard(name)

    @staticmethod
    def _fresh(taken: set[str | None], stem: str | None, suffix: str) -> str:
        stem = (stem or "").removesuffix(suffix)  # folded twice is still just folded
        name, count = f"{stem}{suffix}", 1
        while name in taken:
            name, count = f"{stem}{suffix}_{count}", count + 1
        taken.add(name)
        return name


class Writer:
    """Writes one plan.

    Args:
        facts: Of the model; it learns the new constants.
        names: The names in use.
        scope: The graph that the site is in.
        plan: What to write.
    """

    def __init__(self, facts: Facts, names: Names, scope: Scope, plan: Plan) -> None:
        self.facts = facts
        self.names = names
        self.scope = scope
        self.plan = plan
        self.site = plan.site
        self.added: list[ir.Node] = []

    def write(self) -> list[ir.Node]:
        """Edit the graph; returns the nodes that were added."""
        for (node, i), constant in self.plan.constants.items():
            self._set_constant(node, i, constant)
        for node, attributes in self.plan.attributes.items():
            node.attributes.update(attributes)
        for value in self.plan.moved:
            value.name = self.names.value(value.name, "_folded")
        match self.plan.outcome:
            case Outcome.PULLED:
                self._write_pull()
            case Outcome.PUSHED:
                self._write_push()
            case Outcome.REMOVED:
                self._write_removal()
            case _:
                self._write_merge()
        return self.added

    @property
    def _data(self) -> ir.Value:
        assert self.site.data is not None
        return self.site.data

    def _write_pull(self) -> None:
        end = self._data
        for left in self.plan.leftovers:
            total = self._add_behind(left)
            end = total if left.value is end else end
        self._replace_site(end)

    def _write_push(self) -> None:
        for left in self.plan.leftovers:
            if left.reader is None:
                self._add_behind(left)
            else:
                self._add_before(left, left.reader)
        self.site.result.replace_all_uses_with(self._data)
        self._remove_site()

    def _write_removal(self) -> None:
        data, result = self._data, self.site.result
        if not result.is_graph_output():
            result.replace_all_uses_with(data)
            self._remove_site()
        elif data.producer() is None or data.is_graph_output() or data.graph is not result.graph:
            # Both names are part of the interface: only a node can connect them.
            self._replace_site(self._insert_identity())
        else:
            self._replace_site(data)

    def _write_merge(self) -> None:
        last = self.site.nodes[-1]
        if self.plan.batchnorm is not None:
            stays = self.plan.batchnorm
            stays.replace_input_with(0, self._data)
            self._replace_site(stays.outputs[0], keep=stays)
            return
        value = self._data
        for term in self.plan.merged:
            node = self._node(term, value, label(last))
            last.prepend(node)
            value = node.outputs[0]
        self._replace_site(value)

    def _replace_site(self, end: ir.Value, keep: ir.Node | None = None) -> None:
        """Let `end` be what the site's result was, name and all."""
        result = self.site.result
        if end is not result:
            result.replace_all_uses_with(end, replace_graph_outputs=True)
        name, kind, shape = result.name, result.type, result.shape
        self._remove_site(keep)
        end.name = name
        self.facts.keep(end)
        end.type, end.shape = kind, shape  # part of the interface, where it is an output

    def _remove_site(self, keep: ir.Node | None = None) -> None:
        """Take the run out, last node first, with the constants that nothing needs any more."""
        for node in reversed(self.site.nodes):
            if node is not keep:
                constants = [v for v in node.inputs if v is not None and v is not self._data]
                _remove(node)
                for value in constants:
                    self._discard(value)

    # Nodes that have to be there

    def _add_behind(self, left: Leftover) -> ir.Value:
        """The sum, which takes the name of the value and all that read it."""
        value, producer = left.value, left.value.producer()
        assert producer is not None
        node = self._node(left.term, value, label(producer))
        total = node.outputs[0]
        value.replace_all_uses_with(total, replace_graph_outputs=True)
        node.replace_input_with(0, value)
        producer.append(node)
        if value not in self.plan.moved:
            total.name, value.name = value.name, self.names.value(value.name, "_folded")
        return total

    def _add_before(self, left: Leftover, reader: ir.Node) -> None:
        """The sum, for one reader."""
        value = self._data if left.value is self.site.result else left.value
        node = self._node(left.term, value, label(reader))
        for i, read in enumerate(reader.inputs):
            if read is left.value:
                reader.replace_input_with(i, node.outputs[0])
        reader.prepend(node)

    def _node(self, term: Term, value: ir.Value, stem: str) -> ir.Node:
        """A Mul or Add of the value, not yet in a graph."""
        suffix = "_scale" if term.op_type == "Mul" else "_shift"
        attributes: list[ir.Attr] = []
        constant = term.constant
        if self.scope.opset < 7:  # https://onnx.ai/onnx/operators/onnx__Add.html, version 6
            constant = constant.reshape(-1)
            attributes = [ir.AttrInt64("broadcast", 1)]
            attributes += [] if term.axis is None else [ir.AttrInt64("axis", term.axis)]
        inputs = [value, self._stored(constant, self.names.value(stem, suffix))]
        name = self.names.node(stem, suffix)
        node = ir.Node("", term.op_type, inputs, attributes, num_outputs=1, name=name)
        output = node.outputs[0]
        output.name = self.names.value(value.name, suffix)
        self.facts.liken(output, value)
        self.added.append(node)
        return node

    def _insert_identity(self) -> ir.Value:
        node = ir.Node(
            "",
            "Identity",
            [self._data],
            num_outputs=1,
            name=self.names.node(label(self.site.nodes[0]), "_id"),
        )
        node.outputs[0].name = self.names.value(self._data.name, "_id")
        self.facts.liken(node.outputs[0], self._data)
        self.site.nodes[-1].prepend(node)
        self.added.append(node)
        return node.outputs[0]

    # Constants

    def _set_constant(self, node: ir.Node, i: int, constant: Constant) -> None:
        """Give one input of one node a new constant, and drop the old one if nothing else needs it."""
        if i >= len(node.inputs):
            node.resize_inputs(i + 1)
        old = node.inputs[i]
        node.replace_input_with(i, None)
        stem = f"{label(node)}_bias" if old is None else old.name
        if old is not None:
            self._discard(old)
        node.replace_input_with(i, self._stored(constant, self.names.value(stem, "_folded"), node))

    def _stored(self, constant: Constant, name: str, reader: ir.Node | None = None) -> ir.Value:
        """A new initializer, or in the body of a function, which has none, a Constant node."""
        dtype, shape = ir.DataType.from_numpy(constant.dtype), ir.Shape(constant.shape)
        tensor = _Rounded(constant, dtype, shape, name)
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)
        scope = self.scope if reader is None else self.facts.scope(reader)
        if scope.is_function:
            node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[value])
            node.name = self.names.node(name, "")
            next(iter(scope.graph)).prepend(node)
        else:
            # Before IR version 4, initializers are inputs as well, and inner graphs have none.
            graph = self.facts.model.graph if self.facts.model.ir_version < 4 else scope.graph
            value.const_value = tensor
            graph.initializers.add(value)
            if self.facts.lists_initializers:
                graph.inputs.append(value)
        self.facts.remember(value, constant)
        return value

    def _discard(self, value: ir.Value) -> None:
        """Remove a constant that nothing uses any more, and the chain that computed it."""
        waiting = [value]
        while waiting:
            value = waiting.pop()
            if value.uses() or value.is_graph_output() or not self._is_constant(value):
                continue
            node, graph = value.producer(), value.graph
            if node is not None:
                if node.graph is not None and not any(is_used(o) for o in node.outputs):
                    waiting += [v for v in node.inputs if v is not None]
                    _remove(node)
            elif graph is not None:
                if value.is_graph_input():
                    graph.inputs.remove(value)
                del graph.initializers[value.name or ""]
                self.names.release(value.name)

    def _is_constant(self, value: ir.Value) -> bool:
        try:
            return self.facts.constant(value) is not None
        except Declined:
            return False


class _Rounded(ir.LazyTensor):
    """A constant that is rounded when its numbers are asked for, and not kept: one at a time is enough."""

    def __init__(self, constant: Constant, dtype: ir.DataType, shape: ir.Shape, name: str) -> None:
        super().__init__(lambda: ir.Tensor(constant.rounded(), dtype, name=name), dtype, shape, name=name)
        self._constant = constant

    def numpy(self) -> NDArray[Any]:
        return self._constant.rounded()


def _remove(node: ir.Node) -> None:
    assert node.graph is not None
    node.graph.remove(node, safe=True)
