"""Whether a folded module computes what the original does, on examples, in float64.

As in `bnfold.verify`, an error is measured by how far the original itself moves when its parameters do, each
by at most the unit roundoff of its type.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import InputError, NotEquivalent
from .duplicate import at_rest, cloned, duplicate
from .hooks import Choice, alone, none
from .trace import own_random_numbers

_TOLERANCE = 4.0
_DRAWS = 4
_DRAWN = (1 << 16) + 1  # numbers that are drawn; a tensor of more takes them again and again
# What float64 arithmetic itself may lose in a few operations.
_FLOOR = 2.0**-44


def split_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments of a call."""
    if isinstance(example_inputs, dict):
        return (), example_inputs
    return (tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)), {}


def need_equal(original: nn.Module, folded: nn.Module, example_inputs: Any) -> None:
    """Compare two modules.

    Raises:
        InputError: The original does not take the examples.
        NotEquivalent: The folded module computes something else.
    """
    run, reference = _first_that_runs(original, example_inputs)
    try:
        found = list(_floats(Run(folded, run.dtype, run.hooks).results(example_inputs)))
    except Exception as error:
        raise NotEquivalent(f"the folded module raises {type(error).__name__}: {error}") from error
    if len(found) != len(reference):
        raise NotEquivalent(f"the folded module has {len(found)} results, the original {len(reference)}")
    noises = [list(_floats(run.nudged(example_inputs, seed))) for seed in range(_DRAWS)]
    for i, (ours, theirs) in enumerate(zip(reference, found, strict=True)):
        gap = _distance(theirs, ours)
        noise = math.sqrt(sum(_distance(nudged[i], ours) ** 2 for nudged in noises) / _DRAWS)
        floor = _FLOOR if run.dtype else torch.finfo(ours.dtype).eps
        if not gap <= _TOLERANCE * max(noise, floor * float(ours.double().norm())):
            raise NotEquivalent(
                f"result {i} of the folded module is {gap:.3g} away from the original, where rounding "
                f"explains {noise:.3g}; nothing was changed; please report this as a bug of bnfold"
            )


def _first_that_runs(original: nn.Module, example_inputs: Any) -> tuple[Run, Sequence[torch.Tensor]]:
    """In float64, unless the code insists on another type; without hooks, unless it needs what they keep."""
    failure: Exception | None = None
    for hooks in (none, alone):
        for dtype in (torch.float64, None):
            try:
                run = Run(original, dtype, hooks)
                return run, list(_floats(run.results(example_inputs)))
            except Exception as error:
                failure = error
    raise InputError(
        f"{type(original).__name__} does not take the example inputs: {type(failure).__name__}: {failure}"
    ) from failure


class Run:
    """A module, ready to be run on examples.

    Args:
        module: The module; a copy of it is run, in evaluation mode.
        dtype: The type of all floating numbers; None for their own.
        hooks: Which hooks run.
        arithmetic: Makes what is active while the copy runs.
    """

    def __init__(
        self,
        module: nn.Module,
        dtype: torch.dtype | None,
        hooks: Choice,
        arithmetic: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.dtype, self.hooks = dtype, hooks
        self._module = module
        self._arithmetic = arithmetic
        self._copy = at_rest(duplicate(module, type(module).__name__, cloned))
        hooks(module, self._copy)
        if dtype is not None:
            self._copy.to(dtype)

    def results(self, example_inputs: Any) -> Any:
        """What the module returns."""
        arguments, named = split_arguments(pytree.tree_map(self._own, example_inputs))
        with torch.no_grad(), own_random_numbers():
            torch.manual_seed(0)  # should it draw numbers
            with self._arithmetic():
                return self._copy(*arguments, **named)

    def nudged(self, example_inputs: Any, seed: int) -> Any:
        """The same when every number c of the module is c (1 + u U(-1, 1)). It stays so."""
        generator = torch.Generator().manual_seed(seed)
        draws = 2 * torch.rand(_DRAWN, generator=generator, dtype=torch.float64) - 1
        for mine, theirs in zip(_numbers(self._copy), _numbers(self._module), strict=True):
            # what is rounded to its own type again has to move by a whole unit to move at all
            u = torch.finfo(theirs.dtype).eps / (2 if self.dtype else 1)
            start, n = int(torch.randint(_DRAWN, (), generator=generator)), theirs.numel()
            own = (
                draws[start : start + n]
                if start + n <= _DRAWN
                else draws.roll(-start).repeat(-(-n // _DRAWN))[:n]
            )
            mine.data.copy_(theirs.detach().cpu().double() * (1 + u * own.view(theirs.shape)))
        return self.results(example_inputs)

    def _own(self, value: Any) -> Any:
        """In the type of the run, and a copy: a module may change what it is given."""
        if not isinstance(value, torch.Tensor):
            return value
        dtype = self.dtype if self.dtype is not None and value.is_floating_point() else value.dtype
        return value.detach().to(dtype, copy=True)


def _numbers(module: nn.Module) -> Iterator[torch.Tensor]:
    tensors = (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    )
    return (t for _, t in tensors if t.is_floating_point())


def _floats(results: Any) -> Iterator[torch.Tensor]:
    for leaf in pytree.tree_leaves(results):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            yield leaf


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape or not torch.equal(one.isfinite(), other.isfinite()):
        return math.inf
    return float(torch.where(other.isfinite(), one.double() - other.double(), 0.0).norm())
