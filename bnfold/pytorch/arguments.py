"""What of a user's batch a module gets where nobody says: those of (inputs, labels), arguments by name."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from ..errors import InputError
from .batches import mapped

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def chooser(module: nn.Module) -> Callable[[Any], Arguments]:
    """What picks the arguments of a call of the module out of a batch.

    Of a mapping, a dataclass or a named tuple those parts that are named like parameters of `forward`, if
    none that it needs is missing; of another tuple or list the first part; all else as it is.
    """
    parameters = list(inspect.signature(module.forward).parameters.values())
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = {p.name for p in by_name}
    needed = {p.name for p in by_name if p.default is p.empty}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)

    def choose(batch: Any) -> Arguments:
        parts = _named(batch)
        if parts is not None and needed <= parts.keys() and (known & parts.keys() or takes_all):
            return (), {name: part for name, part in parts.items() if takes_all or name in known}
        if not isinstance(batch, tuple | list) or isinstance(batch, PackedSequence):
            return (batch,), {}
        if not batch:
            raise InputError(f"a batch of the calibration data is an empty {type(batch).__name__}")
        return (batch[0],), {}

    return choose


def call(module: nn.Module, arguments: Arguments) -> object:
    """Call it, with the arguments on its own device."""
    device = device_of(module)
    args, kwargs = mapped(arguments, lambda tensor: tensor.to(device))
    return module(*args, **kwargs)


def device_of(module: nn.Module) -> torch.device:
    """Where the module is."""
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _named(batch: Any) -> dict[str, Any] | None:
    if isinstance(batch, Mapping):
        return dict(batch) if all(isinstance(key, str) for key in batch) else None
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch)}
    return batch._asdict() if isinstance(batch, tuple) and hasattr(batch, "_asdict") else None
