"""Where numbers come in and go out: any floating dtype outside, float64 inside, rounded once at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..double_double import BFLOAT16, narrow
from ..errors import InputError

Array = NDArray[Any]
F64 = NDArray[np.float64]

_FLOATS = (np.dtype(np.float16), BFLOAT16, np.dtype(np.float32), np.dtype(np.float64))


def need_floats(value: ArrayLike, name: str) -> Array:
    """The value as an array of one of the four floating dtypes, and not an empty one.

    Raises:
        InputError: It is of another type, or holds nothing.
    """
    array = np.asarray(value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype not in _FLOATS:
        raise InputError(
            f"{name} is of type {array.dtype}, and the reference takes {', '.join(map(str, _FLOATS))}: "
            f"convert it, for example with np.asarray({name}, np.float32)"
        )
    if not array.size:
        raise InputError(
            f"{name} of shape {array.shape} holds no samples, so that nothing can be normalized: "
            f"leave empty batches out"
        )
    return array


def need_axis(name: str, shape: tuple[int, ...], axis: int, *, rank: int) -> int:
    """The axis counted from 0, of data that have at least `rank` axes.

    Raises:
        InputError: The data have fewer axes, or not that one.
    """
    if len(shape) < rank:
        raise InputError(
            f"{name} has shape {shape}, and at least {rank} axes are needed: "
            f"give it the missing ones, for example with np.expand_dims"
        )
    if not -len(shape) <= axis < len(shape):
        raise InputError(f"{name} has shape {shape}, so there is no axis {axis}: choose one of its axes")
    return axis % len(shape)


def need_shape(value: ArrayLike, name: str, shape: tuple[int, ...]) -> Array:
    """The value as a floating array of exactly this shape.

    Raises:
        InputError: It has another type or shape.
    """
    array = need_floats(value, name)
    if array.shape != shape:
        raise InputError(f"{name} has shape {array.shape}, and the data need {shape}: pass one that fits")
    return array


def wide(array: Array) -> F64:
    """The same numbers in float64; none of the four dtypes loses any."""
    return array.astype(np.float64)


def rounded(values: F64, like: Array) -> Array:
    """The numbers in the dtype of `like`, rounded once; over its range they become infinite."""
    return narrow(values, like.dtype)
