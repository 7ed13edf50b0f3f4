"""Leaves of the user's batches: tensors, arrays, lists of what is no tensor, and all else.

They may have rows, and all of what they hold can be told, so that it is seen when it changes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError


def as_tensor(leaf: Any) -> Any:
    """An array as a tensor, if torch has its type. It is copied: it may be read-only, or run backwards."""
    if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "biufc":
        return leaf
    try:
        return torch.from_numpy(np.array(leaf, leaf.dtype.newbyteorder("="), order="C"))
    except TypeError:
        return leaf


def kept_leaf(leaf: Any) -> Any:
    """It, while later batches are read: loaders may write into the tensors that they gave."""
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


def row_count(leaf: Any) -> int | None:
    """None if it has none."""
    if isinstance(leaf, torch.Tensor):
        return len(leaf) if leaf.ndim else None
    return len(leaf) if isinstance(leaf, list) else None  # a tuple may be the size of an image


def kind_of(leaf: Any) -> Hashable:
    """Alike for leaves whose rows can stand in one."""
    if isinstance(leaf, torch.Tensor):
        return str(leaf.dtype), str(leaf.device), tuple(leaf.shape[1:])
    return type(leaf).__name__


def rows_of(leaf: Any, rows: Sequence[int]) -> Any:
    """Some of its rows, copied."""
    return leaf[rows] if isinstance(leaf, torch.Tensor) else [leaf[row] for row in rows]


def filled(pieces: Sequence[Any], rows: int) -> Any:
    """The rows of all pieces, and copies of the last one up to so many."""
    last = rows_of(pieces[-1], [-1])
    parts = [*pieces, *[last] * (rows - sum(map(len, pieces)))]
    return torch.cat(parts) if isinstance(last, torch.Tensor) else [item for part in parts for item in part]


def bytes_of(leaf: Any) -> bytes:
    """All of a leaf; of what is no value, its type."""
    if isinstance(leaf, torch.Tensor):
        parts = ((f"{part.dtype}{part.shape}".encode(), byte_array(part).tobytes()) for part in strided(leaf))
        return b"".join(piece for part in parts for piece in part)
    if isinstance(leaf, np.ndarray) and leaf.dtype != object:
        return leaf.tobytes()
    if isinstance(leaf, list | tuple):
        return b"".join(bytes_of(item) for item in leaf)
    return repr(leaf if isinstance(leaf, _VALUES) else type(leaf)).encode()


_PLAIN = (bool, int, float, complex, str, bytes, type(None), range, slice)
_VALUES = (*_PLAIN, type, Enum, PurePath, torch.dtype, torch.device)
"""What is told by its representation."""


def is_value(leaf: Any) -> bool:
    """Whether two that are told alike are alike; objects of other classes may differ."""
    if isinstance(leaf, list | tuple):
        return all(map(is_value, leaf))
    if isinstance(leaf, np.ndarray):
        return not leaf.dtype.hasobject
    return isinstance(leaf, (torch.Tensor, *_VALUES))


def is_strided(tensor: torch.Tensor) -> bool:
    """Whether it is what NumPy calls an array."""
    return tensor.layout is torch.strided and not tensor.is_nested and not tensor.is_quantized


def strided(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors of which a nested or a sparse one consists; an ordinary one itself.

    Raises:
        InputError: It is of another kind.
    """
    if is_strided(tensor):
        return [tensor]
    try:
        if tensor.is_nested:
            return list(tensor.unbind())
        sparse = tensor.to_sparse().coalesce()
        return [sparse.indices(), sparse.values()]
    except (RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"the calibration data hold a tensor of layout {tensor.layout} and type {tensor.dtype}, which "
            "cannot be read; give ordinary ones, and convert them in `call`"
        ) from error


def byte_array(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor, along one more axis."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    array: NDArray[np.uint8] = plain[..., None].view(torch.uint8).numpy()
    return array
