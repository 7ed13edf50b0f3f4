"""What a model says of its inputs and outputs: as many as the module's, of their types, free where asked.

Numbers are compared elsewhere, in float64, where a float16 looks like a double: types are seen to here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype

from ..errors import InputError, NotEquivalent

_COMPLEX = (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128)


@dataclass(frozen=True)
class Slot:
    """An input or output of a module.

    Attributes:
        dtype: Its element type.
        shape: A size per axis, None for a free one.
    """

    dtype: ir.DataType
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, value: Any) -> Slot:
        """That of a tensor, one without numbers included, or of a number."""
        if isinstance(value, torch.Tensor):
            shape = tuple(size if isinstance(size, int) else None for size in value.shape)
            return cls(from_torch_dtype(value.dtype), shape)
        if isinstance(value, bool | torch.SymBool):
            return cls(ir.DataType.BOOL, ())
        return cls(ir.DataType.INT64 if isinstance(value, int | torch.SymInt) else ir.DataType.FLOAT, ())


def need_signature(name: str, model: ir.Model, inputs: Sequence[Slot], outputs: Sequence[Slot]) -> None:
    """Refuse a model whose inputs and outputs are not those of the module, in order.

    Args:
        name: What the user calls the module, for messages.
        model: As it was exported.
        inputs: Of the module. A size that is free there must be free in the model.
        outputs: Of the module; sizes are left to the comparison.

    Raises:
        InputError: An output is complex, which nothing in ONNX is.
        NotEquivalent: They differ.
    """
    for i, slot in enumerate(outputs):
        if slot.dtype in _COMPLEX:
            raise InputError(
                f"{name}: output {i} of the module is {_told(slot.dtype)}, which no ONNX model returns; "
                "return its real and imaginary parts, as torch.view_as_real gives them"
            )
    for kind, slots, values in (
        ("input", inputs, model.graph.inputs),
        ("output", outputs, model.graph.outputs),
    ):
        if len(slots) != len(values):
            raise _unlike(name, f"has {len(values)} {kind}s, the module {len(slots)}")
        for i, (slot, value) in enumerate(zip(slots, values, strict=True)):
            if value.dtype not in (None, slot.dtype):
                told = _told(value.dtype), _told(slot.dtype)
                raise _unlike(name, "says that {} {} is {}, and the module's is {}".format(kind, i, *told))
    for i, (slot, value) in enumerate(zip(inputs, model.graph.inputs, strict=True)):
        if value.shape is None:
            continue
        if len(value.shape) != len(slot.shape):
            raise _unlike(name, f"says that input {i} has {len(value.shape)} axes, not {len(slot.shape)}")
        for axis, (size, wanted) in enumerate(zip(value.shape, slot.shape, strict=True)):
            if size != wanted and isinstance(size, int):
                free = "free" if wanted is None else str(wanted)
                raise _unlike(name, f"says that axis {axis} of input {i} is {size}, and it was to be {free}")


def _told(dtype: ir.DataType) -> str:
    return str(dtype.numpy().name)


def _unlike(name: str, what: str) -> NotEquivalent:
    return NotEquivalent(
        f"{name}: the exported model is not equivalent to the module: it {what}; nothing was written; "
        "torch's exporter is wrong here"
    )
