"""What an operator gets to see: its inputs, its attributes and its opset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import helper

from .block import Block
from .outcome import Unsupported

Array = npt.NDArray[Any]
Datum = Array | list[Array]
"""A tensor, or a sequence of tensors."""


@dataclass(frozen=True, eq=False)
class Node:
    """One call of an operator.

    Attributes:
        op_type: The operator.
        opset: The version of its domain that the model imports.
        inputs: The values; None where an optional input is absent.
        attributes: As given, completed with the defaults of the operator's schema; graphs are blocks.
        outputs: The declared names; "" where an optional output is absent.
        run: Evaluates an inner graph on the values of its inputs, in the scope of this node.
        constant: Carries a constant that the node holds, changed if a change was asked for.
    """

    op_type: str
    opset: int
    inputs: Sequence[Array | None]
    attributes: Mapping[str, Any]
    outputs: Sequence[str]
    run: Callable[[Block, Sequence[Array]], list[Array]]
    constant: Callable[[Array], Array]

    def __getitem__(self, index: int) -> Array:
        """The input at `index`, which must be there."""
        value = self.optional(index)
        if value is None:
            raise ValueError(f"{self.op_type} lacks its input {index}")
        return value

    def optional(self, index: int) -> Array | None:
        """The input at `index`, or None when it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

    def ints(self, name: str, index: int) -> list[int] | None:
        """A list of integers that older opsets hold in an attribute and newer ones in an input."""
        value = self.optional(index)
        if value is not None:
            return [int(item) for item in value.ravel()]
        return list(self.attributes[name]) if name in self.attributes else None


Operator = Callable[[Node], "Array | tuple[Array, ...]"]


def is_float(value: Array) -> bool:
    """Whether the dtype is a floating one, those of ml_dtypes (bfloat16 and smaller) included."""
    return value.dtype.kind == "f" or "float" in value.dtype.name


def carry(value: npt.ArrayLike) -> Array:
    """The value in the type that the evaluator computes in: float64 for any float."""
    array = np.asarray(value)
    return array.astype(np.float64) if is_float(array) else array


def dtype_of(code: int) -> np.dtype[Any]:
    """The dtype of an element type, a code of `TensorProto.DataType`.

    Raises:
        Unsupported: There is none, or none that is known here.
    """
    try:
        return helper.tensor_dtype_to_np_dtype(code)
    except KeyError as error:
        raise Unsupported(f"the element type {code} is not known here") from error


def along(parameter: Array, axis: int, rank: int) -> Array:
    """A parameter of shape [C], shaped so that it broadcasts along one axis of data of that rank."""
    return parameter.reshape([-1 if i == axis % rank else 1 for i in range(rank)])
