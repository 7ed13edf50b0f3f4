"""What one node says of itself: its attributes, in the terms of its operator set.

Nothing here looks beyond the node; what is known about the values around it is in `facts`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import onnx_ir as ir

from .report import Declined, Reason

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Quant"})


def label(node: ir.Node) -> str:
    """The node's name, or that of its first output where it has none."""
    return node.name or next((o.name for o in node.outputs if o.name), None) or node.op_type


def first_output(node: ir.Node) -> str:
    """The name of the node's first output; "" if it has none."""
    return (node.outputs[0].name if node.outputs else None) or ""


def is_used(value: ir.Value) -> bool:
    """Whether anything reads the value or it is a graph output."""
    return bool(value.uses()) or value.is_graph_output()


def is_quantizer(node: ir.Node) -> bool:
    """Whether the node quantizes or dequantizes (also the Quant of other domains)."""
    return node.op_type in _QUANTIZERS


@contextmanager
def well_formed(node: ir.Node) -> Iterator[None]:
    """Turn what reading an invalid node raises (a shape that does not fit, an attribute of another type)
    into `Declined`: such a node must not stop the run."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise Declined(Reason.MALFORMED, f"{node.op_type} {label(node)!r}: {error}") from error


@dataclass(frozen=True, eq=False)
class NodeView:
    """A node of the default domain and the version of its operator set.

    Attributes:
        node: The node.
        opset: The version of ai.onnx that its graph imports.
    """

    node: ir.Node
    opset: int

    @property
    def type(self) -> str:
        """The operator; "domain::Operator" outside the default domain."""
        return f"{self.node.domain}::{self.node.op_type}" if self.node.domain else self.node.op_type

    @property
    def name(self) -> str:
        return label(self.node)

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        attribute = self._attribute(name)
        return default if attribute is None else int(attribute.as_int())

    def real(self, name: str, default: float) -> float:
        """A float attribute: a float32, exactly."""
        attribute = self._attribute(name)
        return default if attribute is None else float(attribute.as_float())

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        attribute = self._attribute(name)
        return default if attribute is None else str(attribute.as_string())

    def integers(self, name: str) -> tuple[int, ...] | None:
        """An attribute that lists integers; None if absent."""
        attribute = self._attribute(name)
        return None if attribute is None else tuple(attribute.as_ints())

    def reals(self, name: str) -> tuple[float, ...] | None:
        """An attribute that lists floats; None if absent."""
        attribute = self._attribute(name)
        return None if attribute is None else tuple(attribute.as_floats())

    def tensor(self, name: str) -> ir.TensorProtocol | None:
        """A tensor attribute; None if absent."""
        attribute = self._attribute(name)
        return None if attribute is None else attribute.as_tensor()

    def has(self, name: str) -> bool:
        """Whether the attribute is there."""
        return name in self.node.attributes

    def other_outputs_unused(self) -> bool:
        """Whether nothing reads any output but the first."""
        return not any(is_used(o) for o in self.node.outputs[1:])

    def _attribute(self, name: str) -> ir.Attr | None:
        attribute = self.node.attributes.get(name)
        if attribute is not None and attribute.is_ref():
            raise Declined(
                Reason.NOT_STATIC, f"attribute {name!r} of {self.name!r} is a parameter of its function"
            )
        return attribute
