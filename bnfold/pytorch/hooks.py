"""Hooks of a module on a copy of it: which of them run, and on what.

A copy of a module shares the functions among its hooks with the original, and with them whatever these keep:
lists of what they saw, or parts of the original.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from types import CellType, CodeType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

from .duplicate import cloned, tensors
from .failure import RAISED, told
from .trace import is_reparametrization

_HOOKS = "_forward_pre_hooks", "_forward_hooks"

Choice = Callable[[nn.Module, nn.Module], None]
"""Decides about the hooks of a copy: called with the original and the copy."""


class HookFails(Exception):
    """A hook cannot be run on a copy."""


def none(_: nn.Module, mine: nn.Module) -> None:
    """No hook runs, but those that compute weights."""
    _only(mine, lambda _: False)


def alone(_: nn.Module, mine: nn.Module) -> None:
    """Those run that keep nothing."""
    _only(mine, lambda hook: inspect.isfunction(hook) and hook.__closure__ is None)


def every(original: nn.Module, mine: nn.Module) -> None:
    """All run, on copies of what they keep; a part of the original is replaced by that of the copy.

    Raises:
        HookFails: What one of them keeps cannot be copied. Hooks that fail later raise it too.
    """
    memo: dict[int, Any] = {}
    for theirs, own in (
        *zip(tensors(original), tensors(mine), strict=True),
        *zip(original.modules(), mine.modules(), strict=True),
    ):
        memo[id(theirs)] = own
    parts = frozenset(memo)
    for theirs, own in zip(original.modules(), mine.modules(), strict=True):
        for name in _HOOKS:
            for key, hook in getattr(theirs, name).items():
                if not is_reparametrization(hook):
                    getattr(own, name)[key] = _guarded(_copied(hook, memo, parts))


def _only(module: nn.Module, stays: Callable[[Any], bool]) -> None:
    for part in module.modules():
        for name in _HOOKS:
            registered = getattr(part, name)
            for key, hook in list(registered.items()):
                if not (stays(hook) or is_reparametrization(hook)):
                    del registered[key]


def _copied(value: Any, memo: dict[int, Any], parts: frozenset[int]) -> Any:
    """A copy; unlike that of `deepcopy`, of functions too."""
    if isinstance(value, FunctionType):
        return _function(value, memo, parts)
    if type(value) is partial:
        args = [_copied(given, memo, parts) for given in value.args]
        named = {name: _copied(given, memo, parts) for name, given in value.keywords.items()}
        return partial(_copied(value.func, memo, parts), *args, **named)
    for leaf in _pytree.tree_leaves(value):
        if isinstance(leaf, torch.Tensor) and id(leaf) not in memo:
            memo[id(leaf)] = cloned(leaf)  # with a history, `deepcopy` does not take it
    try:
        return copy.deepcopy(value, memo)
    except RAISED as error:
        raise HookFails(f"they keep a {type(value).__name__}: {told(error)}") from error


def _function(function: FunctionType, memo: dict[int, Any], parts: frozenset[int]) -> Any:
    if id(function) in memo:
        return memo[id(function)]
    for name in _names(function.__code__):
        if id(function.__globals__.get(name)) in parts:
            raise HookFails(f"they use '{name}', which is a part of it, as a global name")
    theirs = function.__closure__ or ()
    fresh = [cell for cell in theirs if id(cell) not in memo]
    cells = tuple(memo.setdefault(id(cell), CellType()) for cell in theirs)
    mine = FunctionType(function.__code__, function.__globals__, function.__name__, None, cells)
    memo[id(function)] = mine
    mine.__defaults__ = _copied(function.__defaults__, memo, parts)
    mine.__kwdefaults__ = _copied(function.__kwdefaults__, memo, parts)
    for cell in fresh:
        if cell != CellType():  # it holds something
            memo[id(cell)].cell_contents = _copied(cell.cell_contents, memo, parts)
    return mine


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _guarded(hook: Callable[..., Any]) -> Callable[..., Any]:
    def run(*given: Any, **named: Any) -> Any:
        try:
            return hook(*given, **named)
        except RAISED as error:
            raise HookFails(f"{type(error).__name__}: {told(error)}") from error

    return run
