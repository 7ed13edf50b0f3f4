"""TorchScript archives: they carry code of their own, so they are run only where that is wanted."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ..errors import InputError
from . import archive, training


def load(path: str) -> Any:
    """The module of an archive, on the CPU.

    Raises:
        InputError: The archive is damaged, or nothing can bring the module into evaluation mode.
    """
    archive.need_intact(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated; that is why it takes a flag
            module = torch.jit.load(path, map_location="cpu")
    except Exception as error:
        raise archive.damaged(path, error) from error
    need_evaluation(module, path)
    return module


def need_evaluation(module: Any, name: str) -> None:
    """Refuse a ScriptModule that goes on training after `.eval()`.

    Raises:
        InputError: With the operators that do.
    """
    baked = training.in_script(module)
    if baked:
        raise InputError(
            f"{name}: its {' and '.join(baked)} will go on training whatever mode is set, as when it was "
            "traced; call model.eval() before torch.jit.trace, and save it again"
        )
