"""Keeps a module and its copy apart: whatever leads from the copy back to the original is refused.

A function that a module keeps may refer to the module (a lambda, a `forward` that was replaced). Functions
are not copied, so what the copy calls there is the original, with its own statistics, and in its own mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from .duplicate import tensors


def need_apart(original: nn.Module, copy: nn.Module, name: str) -> None:
    """Refuse a copy that has a part in common with the original.

    Args:
        original: The module.
        copy: What copying made of it.
        name: What the user calls it, for messages.

    Raises:
        InputError: A module of it, or a buffer, is that of the original.
    """
    parts = {id(part) for part in original.modules()}
    memory = {_storage(buffer) for buffer in original.buffers()} - {None}
    for path, part in copy.named_modules():
        if id(part) in parts or any(_storage(buffer) in memory for buffer in part.buffers(recurse=False)):
            raise InputError(
                f"{name}: a copy of it has '{path or type(part).__name__}' in common with it, which would be "
                f"changed before the end; let copy.deepcopy copy a {type(part).__name__} (__deepcopy__)"
            )


class Apart:
    """An original that must not be used while its copy runs. As a context manager, it is watched."""

    def __init__(self, original: nn.Module, name: str) -> None:
        """Nothing is watched yet.

        Args:
            original: The module.
            name: What the user calls it, for messages.
        """
        self._original, self._name = original, name
        self._memory = {_storage(tensor) for tensor in tensors(original)} - {None}
        self._hooks: list[Any] = []
        self._is_running = False
        self._refused: InputError | None = None

    def __enter__(self) -> Self:
        for path, part in self._original.named_modules():
            if not isinstance(part, torch.jit.ScriptModule):  # of its own, it holds no functions
                self._hooks.append(part.register_forward_pre_hook(self._hook(path), prepend=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the copy runs.

        Raises:
            InputError: A part of the original was called, or one of its tensors used.
        """
        self._is_running = True
        try:
            with _Watching(self._look):
                yield
        finally:
            self._is_running = False
            if self._refused is not None:  # also if the module has caught it
                raise self._refused

    def _hook(self, path: str) -> Callable[..., None]:
        def hook(part: nn.Module, _: object) -> None:
            if self._is_running:
                self._refuse(f"calls '{path or type(part).__name__}'")

        return hook

    def _look(self, func: Any, arguments: Sequence[Any]) -> None:
        name = getattr(func, "__name__", "")
        if name != "__get__" and any(_storage(one) in self._memory for one in _flat(arguments)):
            self._refuse(f"computes with a tensor ({name})")

    def _refuse(self, what: str) -> None:
        self._refused = InputError(
            f"{self._name}: its copy {what} of the module itself, which must stay as it is until the end: a "
            "function that the module keeps, or `call`, refers to it; let it use what it is called with"
        )
        raise self._refused


class _Watching(TorchFunctionMode):  # type: ignore[misc]  # torch is Any here
    """Shows what is about to be computed."""

    def __init__(self, look: Callable[[Any, Sequence[Any]], None]) -> None:
        super().__init__()
        self._look = look

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._look(func, (*args, *(kwargs or {}).values()))
        return func(*args, **(kwargs or {}))


def _flat(arguments: Sequence[Any]) -> Iterator[torch.Tensor]:
    for one in arguments:
        if isinstance(one, torch.Tensor):
            yield one
        elif isinstance(one, list | tuple):
            yield from _flat(one)


def _storage(tensor: torch.Tensor) -> int | None:
    """What identifies the memory of a tensor; None if it has none of its own."""
    try:
        return None if nn.parameter.is_lazy(tensor) else int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # it is sparse, nested, or stands for many (vmap)
        return None
