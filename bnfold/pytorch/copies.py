"""Copies of a module, so that nothing ever happens to the user's own."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..errors import InputError


def copied(module: nn.Module) -> nn.Module:
    """A deep copy.

    Raises:
        InputError: The module holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(module, _computed(module))
    except Exception as error:  # whatever it may be that one of its attributes objects to
        why = " ".join(str(error).split())
        raise InputError(
            f"{type(module).__name__} cannot be copied: {type(error).__name__}: {why}; remove what cannot be "
            "copied from its attributes"
        ) from error


def _computed(module: nn.Module) -> dict[int, object]:
    """What deepcopy refuses, although it is plain numbers: tensors with a history, such as the weights that
    torch.nn.utils.weight_norm leaves behind. In the form of its memo."""
    tensors = (v for m in module.modules() for v in vars(m).values() if isinstance(v, torch.Tensor))
    return {id(t): t.detach().clone() for t in tensors if not t.is_leaf}
