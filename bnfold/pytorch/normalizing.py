"""That what comes into a module is what it normalizes.

With torch's own classes it is. A class with a `forward` of its own may transpose its input first, or run a
layer on it; then statistics of the input are not those that it needs. It proves itself when it is first used:
with statistics made up for the purpose, something that it computes must be the formula.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from ..estimate import Statistics
from .norms import Norm, put

_TORCHS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_ROUNDINGS = 32  # unit roundoffs of each term; what is not the formula is off by as much as the terms are

Call = Callable[..., Any]


def have_proven(norm: Norm) -> None:
    """Have a normalization of a class that is not torch's prove itself when it is first used.

    Args:
        norm: Of a copy; its `forward` is replaced.
    """
    part = norm.module
    if "forward" not in vars(part) and type(part).forward in _TORCHS:
        return
    forward = part.forward
    is_proven = False

    @functools.wraps(forward)
    def proving(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_proven
        is_proven = is_proven or _prove(norm, forward, args, kwargs)
        return forward(*args, **kwargs)

    vars(part)["forward"] = proving


def input_of(norm: Norm, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """What comes into a normalization that is called so: its first argument.

    Raises:
        InputError: That is no tensor.
    """
    x = args[0] if args else kwargs.get(_first(norm, kwargs))
    if not isinstance(x, torch.Tensor):
        raise InputError(
            f"BatchNormalization '{norm.name}': what comes into it is a {type(x).__name__}, no tensor, so "
            "nothing can be measured; leave it out"
        )
    return x


def _first(norm: Norm, kwargs: Mapping[str, Any]) -> str:
    """The name of the first of some arguments, in the order of the signature."""
    known = [name for name in inspect.signature(norm.module.forward).parameters if name in kwargs]
    return next(iter([*known, *kwargs]), "")


def _prove(norm: Norm, forward: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether there was something to prove it with.

    Raises:
        InputError: It normalizes something else.
    """
    x = input_of(norm, args, kwargs)
    if not x.numel() or x.ndim < 2 or x.shape[1] != norm.channels or not bool(x.isfinite().all()):
        return False  # which is refused elsewhere
    before = [buffer.clone() for buffer in norm.buffers]
    other = x.clone()  # it may work in place
    try:
        norm.set(_made_up(norm, x))
        seen = _Results(norm, x)
        with seen:
            if args:
                result = forward(other, *args[1:], **kwargs)
            else:
                result = forward(**{**kwargs, _first(norm, kwargs): other})
        seen.look(result)
    finally:
        for buffer, old in zip(norm.buffers, before, strict=True):
            put(buffer, old)
    if not seen.found:
        raise InputError(
            f"BatchNormalization '{norm.name}' ({type(norm.module).__name__}): does not compute (input - "
            "running_mean) / sqrt(running_var + eps) of what it is called with, so what it needs cannot be "
            "measured; call a torch.nn.BatchNorm inside it, or leave it out"
        )
    return True


def _made_up(norm: Norm, x: torch.Tensor) -> Statistics:
    """Statistics in which no two channels are alike, of the size of the input."""
    values, random = x.detach().double(), np.random.default_rng(0)
    width = float(values.std(correction=0)) or 1.0
    largest = torch.finfo(norm.buffers[1].dtype).max / 8
    mean = float(values.mean()) + width * random.uniform(-1, 1, norm.channels)
    return Statistics(mean, max(1e-3, min(width**2, largest)) * random.uniform(0.5, 4, norm.channels))


class _Results(TorchFunctionMode):  # type: ignore[misc]  # torch is Any here
    """Looks for the formula in what is computed.

    Attributes:
        found: Whether it was there.
    """

    def __init__(self, norm: Norm, x: torch.Tensor) -> None:
        super().__init__()
        self.found = False
        self._types = (x.dtype, norm.buffers[0].dtype)
        layer, shape = norm.layer(), (-1, *[1] * (x.ndim - 2))
        vectors = [
            torch.from_numpy(numbers).to(x.device).reshape(shape)
            for numbers in (layer.mean, np.sqrt(layer.var + layer.epsilon))
        ]
        mean, width = vectors
        self._plain = (x.detach().double() - mean) / width
        self._terms = (x.detach().double().abs() + mean.abs()) / width
        self._affine = [_vector(getattr(norm.module, name, None), shape, norm) for name in ("weight", "bias")]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.look(result)
        return result

    def look(self, result: Any) -> None:
        """Compare what was computed, if it can be compared: before scale and bias, or after them."""
        if self.found or not isinstance(result, torch.Tensor):
            return
        if result.shape != self._plain.shape or not result.is_floating_point():
            return
        roundoff = max(torch.finfo(dtype).eps for dtype in (*self._types, result.dtype)) / 2
        scale, bias = (0.0 if vector is None else vector for vector in self._affine)
        scale = 1.0 if self._affine[0] is None else scale
        numbers = result.detach().double()
        for factor, summand in ((1.0, 0.0), (scale, bias)):
            off = (numbers - (self._plain * factor + summand)).abs()
            terms = self._terms * abs(factor) + abs(summand)
            self.found = self.found or bool((off <= _ROUNDINGS * roundoff * terms).all())


def _vector(value: Any, shape: Sequence[int], norm: Norm) -> torch.Tensor | None:
    """A scale or bias; None if it is none."""
    if isinstance(value, torch.Tensor) and value.numel() == norm.channels:
        return value.detach().double().reshape(shape)
    return None
