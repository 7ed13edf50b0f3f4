"""Constants, from how a model stores them to how they are carried: embedded, external, sparse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import SparseTensorProto, TensorProto, numpy_helper

from .node import Array, carry, is_float
from .outcome import EvaluationError, Unsupported, in_a_line

Change = Callable[[str, "np.dtype[Any]", Array], Array]
"""What to use instead of a floating constant: (name, dtype as stored, value in float64) -> value."""


def load(
    name: str, proto: TensorProto | SparseTensorProto, folder: Path | None, change: Change | None
) -> Array:
    """A stored constant as it is carried; `change` is asked for every floating one.

    Raises:
        EvaluationError: Its data are not where it says, or do not fit its shape.
        Unsupported: It holds strings.
    """
    return carried(name, stored(name, proto, folder), change)


def stored(name: str, proto: TensorProto | SparseTensorProto, folder: Path | None) -> Array:
    """A constant in the type that it is stored in.

    Raises:
        EvaluationError: As for `load`.
        Unsupported: It holds strings.
    """
    try:
        return dense(proto, folder) if isinstance(proto, SparseTensorProto) else tensor(proto, folder)
    except Unsupported:
        raise
    except Exception as error:  # a broken file can make onnx and NumPy raise anything
        raise EvaluationError(f"the constant {name!r} cannot be read: {in_a_line(error)}") from error


def carried(name: str, constant: Array, change: Change | None) -> Array:
    """A constant as it is carried; `change` is asked if it is floating."""
    value = carry(constant)
    return value if change is None or not is_float(constant) else change(name, constant.dtype, value)


def tensor(proto: TensorProto, folder: Path | None = None) -> Array:
    """The values of a tensor, as they are stored; of a file beside the model, its own bytes are read alone.

    Raises:
        Unsupported: It holds strings.
    """
    if proto.data_type == TensorProto.STRING:
        raise Unsupported("it holds strings")
    if proto.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(proto)
    if folder is None:
        raise ValueError("its data are external, and no folder was given")
    copy = TensorProto()  # not every onnx leaves alone what it reads for
    copy.CopyFrom(proto)
    return numpy_helper.to_array(copy, str(folder))


def dense(proto: SparseTensorProto, folder: Path | None = None) -> Array:
    """A sparse tensor in full; indices are linear, or one row of coordinates per value."""
    values, indices = tensor(proto.values, folder), tensor(proto.indices, folder)
    result = np.zeros(tuple(proto.dims), values.dtype)
    if indices.ndim == 1:
        result.reshape(-1)[indices] = values
    else:
        result[tuple(indices.T)] = values
    return result
