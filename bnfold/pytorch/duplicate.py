"""A module again, without touching it: the same structure over the same numbers, or over wider ones.

Only the structure is copied, and what code may change as it runs: parameters are shared unless they are to be
of another type. So a copy of a model of gigabytes costs next to nothing, and its modes, buffers, hooks and
whatever tensors its code keeps can be set without a trace on the original.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from ..errors import InputError
from .failure import RAISED
from .quiet import quiet

Map = Callable[[torch.Tensor], torch.Tensor]


def cloned(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers once more."""
    return tensor.detach().clone()


def lent(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory of a parameter; the same numbers once more of all else, which code may count in."""
    return tensor.detach() if isinstance(tensor, nn.Parameter) else cloned(tensor)


def at_rest(module: nn.Module) -> nn.Module:
    """Put a copy into evaluation mode: by hand, since the `eval()` of some modules merges weights."""
    if isinstance(module, torch.jit.ScriptModule):
        return module.eval()  # its modes cannot be set one by one
    for part in module.modules():
        part.training = False
    return module


def duplicate(module: nn.Module, name: str, tensor: Map = lent) -> nn.Module:
    """A copy, in the mode that the original is in.

    Args:
        module: The original.
        name: What the user calls it, for messages.
        tensor: Makes the copy's tensors, from parameters, buffers, and what else the modules hold.

    Raises:
        InputError: Something in it cannot be copied.
    """
    if isinstance(module, torch.jit.ScriptModule):
        with torch.no_grad():  # its copies would have a history
            return copy.deepcopy(module)._apply(tensor)
    memo: dict[int, Any] = {}
    for held in tensors(module):
        made = tensor(held)
        memo[id(held)] = nn.Parameter(made, held.requires_grad) if type(held) is nn.Parameter else made
    try:
        with quiet():  # torch warns of what it does itself
            return copy.deepcopy(module, memo)
    except RAISED as error:
        raise InputError(
            f"{name}: cannot be copied, and only copies are worked on, so that it stays as it is: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:200]}; make it fit for copy.deepcopy"
        ) from error


def tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """All tensors that the modules hold: as parameters, buffers, attributes, or in containers there."""
    seen = set[int]()
    for part in module.modules():
        for value in vars(part).values():
            for leaf in _pytree.tree_leaves(value):
                if isinstance(leaf, torch.Tensor) and id(leaf) not in seen:
                    seen.add(id(leaf))
                    yield leaf
