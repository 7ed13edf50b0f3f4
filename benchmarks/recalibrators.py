"""Tools that re-estimate the running statistics of a PyTorch module, each as its documentation says."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import bnfold

Recalibrator = Callable[[nn.Module, Sequence[Tensor]], nn.Module]
"""From a module in evaluation mode and batches of images to a copy that has other statistics."""


def by_update_bn(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """torch.optim.swa_utils.update_bn."""
    made = copy.deepcopy(model)
    update_bn(batches, made)
    return made.eval()


def by_fvcore(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """fvcore.nn.update_bn_stats (PreciseBN), which wants the training mode."""
    from fvcore.nn import update_bn_stats

    made = copy.deepcopy(model).train()
    update_bn_stats(made, batches, len(batches))
    return made.eval()


def by_bnfold(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """bnfold.recalibrate_module."""
    made = copy.deepcopy(model)
    bnfold.recalibrate_module(made, batches)
    return made


def peers() -> dict[str, Recalibrator]:
    """Those that are installed, by name."""
    found: dict[str, Recalibrator] = {"torch update_bn": by_update_bn}
    if find_spec("fvcore"):
        found["fvcore update_bn_stats"] = by_fvcore
    return found
