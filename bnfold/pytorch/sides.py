"""A model that can be run on a feed: an ONNX model, or a module with its hooks, each run from a new copy.

What a module keeps from call to call is no part of what it computes here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as pytree

from ..errors import BnfoldError, InputError
from ..evaluate import EvaluationError, Missing, Program
from ..feeds import Feed
from ..nudge import Nudge
from .against import tensor_of
from .equal import Run
from .failure import RAISED, told
from .hooks import HookFails, every
from .inputs import Input, bind
from .outputs import called
from .quiet import quiet
from .wide import Wide, is_double

Array = NDArray[Any]
Values = Mapping[str, Array | Missing]
DRAWS = 8
SEED = 0
_T = TypeVar("_T")


class Raises(Exception):
    """A model does not take what it is fed."""


class HookRaises(Raises):
    """A hook of its does not bear to be run on a copy."""


class Side(Protocol):
    """A model that can be run."""

    def values(self, feed: Feed) -> Values:
        """Its outputs, in order."""

    def nudged(self, feed: Feed, number: int, k: int) -> Values:
        """The same for draw `k` of its constants on the feed of that number."""


class OnnxSide:
    def __init__(self, program: Program) -> None:
        self._program = program
        self._nudge = Nudge(program.model)

    def values(self, feed: Feed) -> Values:
        return self._outputs(feed, None)

    def nudged(self, feed: Feed, number: int, k: int) -> Values:
        return self._outputs(feed, self._nudge.draw(SEED, number, k))

    def _outputs(self, feed: Feed, change: Any) -> Values:
        try:
            found = dict(self._program.run(feed.arrays, change=change))
        except EvaluationError as error:
            raise Raises(str(error)) from error
        return {name: found[name] for name in self._program.outputs}


class ModuleSide:
    """A module, with its hooks.

    Args:
        module: It stays as it is.
        called: What it is called in messages.
        wide: Whether it is run in float64.
        examples: Makes of a feed what the module is called with.
    """

    def __init__(self, module: nn.Module, called: str, wide: bool, examples: Callable[[Feed], Any]) -> None:
        self._module, self._called, self._wide = module, called, wide
        self._examples = examples

    def values(self, feed: Feed) -> Values:
        return self._outputs(lambda run: run.results(self._examples(feed)), _array)

    def nudged(self, feed: Feed, number: int, k: int) -> Values:
        return self._outputs(lambda run: run.nudged(self._examples(feed), number * DRAWS + k), _array)

    def types(self, feed: Feed) -> Mapping[str, str]:
        """The types of what it returns."""
        return self._outputs(lambda run: run.results(self._examples(feed)), _type)

    def _outputs(self, results: Callable[[Run], Any], made: Callable[[Any], _T]) -> dict[str, _T]:
        """What is made of each output, in order."""
        try:
            with quiet():
                found = results(self._run())
        except HookFails as error:
            raise HookRaises(f"{self._called} has hooks that cannot be run on a copy: {error}") from error
        except BnfoldError:
            raise
        except RAISED as error:  # a module may raise anything
            raise Raises(f"{type(error).__name__}: {told(error)}") from error
        leaves = [leaf for leaf in pytree.tree_leaves(found) if leaf is not None]
        return {name: made(leaf) for name, leaf in zip(called(found), leaves, strict=True)}

    def _run(self) -> Run:
        """A new copy, whose state is that of the module."""
        try:
            if not self._wide:
                return Run(self._module, None, every)
            double = is_double(self._module)
            return Run(self._module, torch.float64, every, partial(Wide, rounded=not double, double=double))
        except (BnfoldError, HookFails):
            raise
        except RAISED as error:
            raise InputError(
                f"{self._called} cannot be copied: {type(error).__name__}: {told(error)}"
            ) from error


def caller(module: nn.Module, program: Program | None) -> Callable[[Feed], Any]:
    """What makes of a feed the arguments of a module: by name where the names of the ONNX model's inputs are
    those of its parameters, else by position."""
    if program is None:
        return lambda feed: feed.arrays[""]
    types = {v.name: v.type.tensor_type.elem_type for v in program.inputs}
    dtypes = {name: onnx.helper.tensor_dtype_to_np_dtype(code).name for name, code in types.items()}
    inputs = [Input(name, dtype, ()) for name, dtype in dtypes.items()]
    call = bind(type(module).__name__, inputs, inspect.signature(module.forward))
    device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def examples(feed: Feed) -> Any:
        values = [tensor_of(feed.arrays[i.name], wide=False).to(device) for i in call.inputs]
        return (
            tuple(values)
            if call.positional == len(values)
            else dict(zip(call.parameters, values, strict=True))
        )

    return examples


def _array(leaf: Any) -> Array | Missing:
    """What a module returns, as a number or an array of them."""
    if isinstance(leaf, bool | int | float):
        return np.asarray(leaf)
    if not isinstance(leaf, torch.Tensor) or leaf.layout is not torch.strided or leaf.is_quantized:
        return Missing(f"it is a {type(leaf).__name__}, which is not compared")
    leaf = leaf.detach().resolve_conj().resolve_neg().cpu()
    leaf = torch.view_as_real(leaf) if leaf.is_complex() else leaf
    return np.asarray((leaf.to(torch.float64) if leaf.is_floating_point() else leaf).numpy())


def _type(leaf: Any) -> str:
    return str(leaf.dtype).removeprefix("torch.") if isinstance(leaf, torch.Tensor) else type(leaf).__name__


def is_same(one: Values, other: Values, share: float) -> bool:
    """Whether two runs came to the same, up to a share of each output."""
    if list(one) != list(other):
        return False
    for a, b in zip(one.values(), other.values(), strict=True):
        if isinstance(a, Missing) or isinstance(b, Missing):
            continue
        if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return False
        finite = np.isfinite(a)
        x, y = np.asarray(a[finite], np.float64), np.asarray(b[finite], np.float64)
        if a.dtype.kind != "f" and not np.array_equal(a, b):
            return False
        if not np.linalg.norm(x - y) <= share * np.linalg.norm(x):
            return False
    return True
