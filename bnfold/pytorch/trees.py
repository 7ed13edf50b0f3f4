"""Structures of the user's batches: lists, tuples, mappings and dataclasses, taken apart and made again."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import PackedSequence

from ..errors import InputError


def leaves_of(tree: Any) -> list[Any]:
    """In order."""
    children = _children(tree)
    return [tree] if children is None else [leaf for child in children for leaf in leaves_of(child)]


def rebuilt(tree: Any, leaves: Iterator[Any]) -> Any:
    """The same with other leaves.

    Raises:
        InputError: A class of the user's does not let it be made again.
    """
    children = _children(tree)
    return next(leaves) if children is None else _with(tree, [rebuilt(child, leaves) for child in children])


def structure(tree: Any) -> str:
    """All but the leaves."""
    children = _children(tree)
    if children is None:
        return "."
    keys = list(tree) if isinstance(tree, Mapping) else ""
    return f"{type(tree).__qualname__}{keys}({','.join(map(structure, children))})"


def _children(tree: Any) -> list[Any] | None:
    """The parts of a structure; None if it is a leaf, as is a list without a tensor."""
    parts: list[Any]
    if isinstance(tree, MutableMapping):
        parts = list(tree.values())
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        parts = [getattr(tree, f.name) for f in dataclasses.fields(tree)]
    elif isinstance(tree, list | tuple):
        parts = list(tree)
        if not any(_holds_tensor(part) for part in parts):
            return None
    else:
        return None
    return parts


def _holds_tensor(tree: Any) -> bool:
    if isinstance(tree, torch.Tensor | np.ndarray):
        return True
    return any(_holds_tensor(child) for child in _children(tree) or ())


def holds_packed(tree: Any) -> bool:
    """Whether there is a packed sequence, whose rows are steps."""
    return isinstance(tree, PackedSequence) or any(map(holds_packed, _children(tree) or ()))


def _with(tree: Any, children: list[Any]) -> Any:
    """The structure with other parts."""
    try:
        if isinstance(tree, list | tuple):
            made = type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)
            if len(made) != len(children):
                raise TypeError(f"it has {len(made)} parts instead of {len(children)}")
            return made
        return _changed(_twin(tree), tree, children)
    except Exception as error:  # of a class of the user's
        raise InputError(
            f"a {type(tree).__name__} in the calibration data cannot be made again with other tensors: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}; give dicts or tuples"
        ) from error


def _twin(tree: Any) -> Any:
    """A copy that can be written into. Mappings of other classes may hold one, which is copied as well."""
    if isinstance(tree, MutableMapping) and not isinstance(tree, dict | UserDict):
        return copy.deepcopy(tree, {id(part): part for part in tree.values()})
    return copy.copy(tree)


def _changed(made: Any, tree: Any, children: list[Any]) -> Any:
    if isinstance(made, MutableMapping):
        for key, child in zip(list(tree), children, strict=True):
            made[key] = child
    else:  # also a frozen one, and without what its constructor does
        for its, child in zip(dataclasses.fields(tree), children, strict=True):
            object.__setattr__(made, its.name, child)
    return made
