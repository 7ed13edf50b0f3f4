"""A module as the function that it denotes: in float64, whatever types its tensors and its casts name.

`.double()` alone is not that: a module may cast to float32 on its way, make constants in it, or keep
tensors that are no parameters. Here every operator that torch reaches computes in float64; a cast between
floats is the identity. Numbers that the module's own type rounds when it computes (0.1, a slope, an
epsilon) stay rounded to that type: they are constants of the function, as its weights are. So are integers
that are made of such numbers alone, as `(arange(0, 2, 0.1) / 0.1).long()`: float64 would make others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from .duplicate import at_rest, duplicate

_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}
_LARGEST = float(np.finfo(np.float32).max)
# Without tensors among their arguments, these make integers of integers.
_COUNTING = {"arange", "full", "scalar_tensor"}
# Scales of these are no numbers to compute with: they decide about sizes.
_RESIZING = "upsample"
# An epsilon of these is kept in full where the variance is a float64, see `tidy`.
_WITH_EPSILON = "batch_norm"


class Wide(TorchDispatchMode):  # type: ignore[misc]  # torch has no types here
    """While it is active, all floating arithmetic of torch is in float64.

    Args:
        rounded: Whether numbers among the arguments are rounded to float32 first.
        double: Whether the weights are in float64.
    """

    def __init__(self, *, rounded: bool, double: bool) -> None:
        super().__init__()
        self._rounded = rounded
        self._double = double
        self._own = WeakTensorKeyDictionary()  # the same in the module's own types

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = dict(kwargs or {})
        leaves = _pytree.tree_leaves((args, named))
        is_factory = not any(isinstance(leaf, torch.Tensor) for leaf in leaves)
        name = func.name().removeprefix("aten::").split(".")[0]
        if is_factory and named.get("dtype") is None and _takes_dtype(func):
            numbers = [a for a in args if isinstance(a, bool | int | float)]
            counts = name in _COUNTING and not any(isinstance(a, float) for a in (*numbers, *named.values()))
            if not counts:
                named["dtype"] = torch.float64
        own = self._in_own_types(func, args, kwargs or {}, leaves)
        keep = name.startswith(_RESIZING) or (self._double and _WITH_EPSILON in name)
        args, named = _pytree.tree_map(lambda leaf: self._widened(leaf, keep), (args, named))
        if own is not None and not own.is_floating_point():
            return self._noted(own, own)
        result = _pytree.tree_map(lambda leaf: self._widened(leaf, True), func(*args, **named))
        return result if own is None else self._noted(result, own)

    def _in_own_types(self, func: Any, args: Any, kwargs: Any, leaves: Sequence[Any]) -> torch.Tensor | None:
        """What torch makes of numbers in the code alone: where integers come of it, each bit counts."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        if func._schema.is_mutable:
            for tensor in tensors:
                self._own.pop(tensor, None)
            return None
        if torch.Tag.nondeterministic_seeded in func.tags or any(t not in self._own for t in tensors):
            return None
        swapped = _pytree.tree_map(
            lambda leaf: self._own[leaf] if isinstance(leaf, torch.Tensor) else leaf, (args, kwargs)
        )
        made = func(*swapped[0], **swapped[1])
        return made if isinstance(made, torch.Tensor) else None

    def _noted(self, result: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        self._own[result] = own
        return result

    def _widened(self, leaf: Any, keep: bool) -> Any:
        if isinstance(leaf, torch.Tensor):
            return leaf.to(_WIDER[leaf.dtype]) if leaf.dtype in _WIDER else leaf
        if isinstance(leaf, torch.dtype):
            return _WIDER.get(leaf, leaf)
        if isinstance(leaf, float) and self._rounded and not keep:
            return rounded(leaf)
        return leaf


def rounded(number: float) -> float:
    """To float32; what is beyond its range (a mask of -1.8e308) becomes its largest."""
    if abs(number) > _LARGEST and abs(number) != float("inf"):
        return _LARGEST if number > 0 else -_LARGEST
    return float(np.float32(number))


def is_double(module: nn.Module) -> bool:
    """Whether all that it has learnt is in float64."""
    state = module.state_dict().values()  # in which `get_extra_state` may have put anything
    floats = [t for t in state if isinstance(t, torch.Tensor) and t.is_floating_point()]
    return bool(floats) and all(t.dtype is torch.float64 for t in floats)


def widened(module: nn.Module, name: str, *, rounded: bool) -> Callable[..., Any]:
    """The module in float64, as a function of its arguments.

    Args:
        module: It stays as it is.
        name: What the user calls it, for messages.
        rounded: Whether the numbers in its code are rounded to float32.
    """

    def wide(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().to(_WIDER.get(tensor.dtype, tensor.dtype), copy=True)

    copy = at_rest(duplicate(module, name, wide))

    double = is_double(module)

    def run(*args: Any, **kwargs: Any) -> Any:
        with Wide(rounded=rounded, double=double):
            return copy(*args, **kwargs)

    return run


def _takes_dtype(func: Any) -> bool:
    return any(argument.name == "dtype" for argument in func._schema.arguments)
