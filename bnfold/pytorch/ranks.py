"""Processes that share the data of one recalibration, by `torch.distributed` on the CPU."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from ..errors import BnfoldError, InputError
from ..ranks import Alone, Ranks

T = TypeVar("T")

_PATIENCE = timedelta(hours=12)
"""A process that ends is noticed at once; this is for one that has nearly all of the data."""
_START = timedelta(minutes=5)
"""In which processes have to find each other."""


class Distributed:
    """A `sweep.Ranks`.

    Attributes:
        rank: The number of this process.
        size: How many there are.
    """

    def __init__(self, group: Any = None) -> None:
        """Of a group of processes that exchange by gloo; None is all of them."""
        self._group = group
        self.rank = int(dist.get_rank(group))
        self.size = int(dist.get_world_size(group))

    def together(self, work: Callable[[], T]) -> list[T]:
        """Do the same everywhere, and return what each has made, by rank, to all.

        Raises:
            BnfoldError: What one of them raised, raised in all; that one has ended.
            Exception: What this one raised, if that is another error.
        """
        result: T | None = None
        failure: Exception | None = None
        try:
            result = work()
        except Exception as error:
            failure = error
        parts: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(parts, (result, _told(failure)), group=self._group)
        except RuntimeError as error:
            if failure is not None:
                raise failure from None
            raise BnfoldError(
                f"rank {self.rank}: another of the {self.size} processes has ended, and its samples are "
                "missing; nothing was changed; see what it said, and start all of them again"
            ) from error
        if failure is not None and not isinstance(failure, BnfoldError):
            raise failure
        for rank, (_, told) in enumerate(parts):
            if told is not None:
                kind, message = told
                raise kind(f"rank {rank}: {message}") from failure
        return [made for made, _ in parts]


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that `torchrun` started, or of a group that there is already; or this process alone.

    Raises:
        InputError: They do not find each other.
    """
    if dist.is_available() and dist.is_initialized():
        yield _of_group()
    elif _number("WORLD_SIZE", 1) > 1:
        _begin()
        try:
            yield Distributed()
        finally:
            dist.destroy_process_group()
    else:
        yield Alone()


def _of_group() -> Ranks:
    """The processes of the default group, which may exchange in another way."""
    if dist.get_world_size() == 1:
        return Alone()
    return Distributed(dist.new_group(backend="gloo", timeout=_PATIENCE))


def _begin() -> None:
    """Find the others, in a thread: torch waits in native code, where a signal does not reach Python."""
    size, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if not 0 <= rank < size:
        raise InputError(f"RANK is {rank}, but WORLD_SIZE is {size}: ranks count from 0; start by torchrun")
    raised: list[Exception] = []
    thread = threading.Thread(target=_connect, args=(raised,), daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
    if raised:
        line = str(raised[0]).splitlines()[0] if str(raised[0]) else type(raised[0]).__name__
        raise InputError(
            f"WORLD_SIZE is {size}, but the processes do not find each other: {line}; start them by "
            "torchrun, or unset WORLD_SIZE to run alone"
        ) from raised[0]


def _connect(raised: list[Exception]) -> None:
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=_START))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    except Exception as error:
        raised.append(error)


def _number(variable: str, default: int) -> int:
    told = os.environ.get(variable, str(default))
    try:
        return int(told)
    except ValueError:
        raise InputError(
            f"{variable} is {told!r}, no number; start processes by torchrun, or unset it to run alone"
        ) from None


def _told(failure: Exception | None) -> tuple[type[BnfoldError], str] | None:
    """What others need to raise the same."""
    if isinstance(failure, BnfoldError):
        return type(failure), str(failure)
    return None if failure is None else (InputError, f"{type(failure).__name__}: {failure}")
