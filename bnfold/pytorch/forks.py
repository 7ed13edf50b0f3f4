"""Forward passes that stop on the way and wait, so that what they have computed need not be computed again.

Python cannot leave a call half done, but a thread can stand still in one. Each pass has a thread of its own,
of which one at most runs at a time. What it asks of torch is done by the thread that resumes it: every thread
in which torch has computed keeps threads of its own from then on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Fork:
    """A pass that can stop.

    Attributes:
        value: What it stopped at.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        """Nothing runs yet.

        Args:
            work: The pass. It may call `stop` of this object.

        Raises:
            RuntimeError: There can be no more threads.
        """
        self.value: Any = None
        self._work = work
        self._mine, self._theirs = threading.Lock(), threading.Lock()  # open while it is one's turn
        self._mine.acquire()
        self._theirs.acquire()
        self._asked: Callable[[], Any] | None = None
        self._answer: Callable[[], Any] = _nothing
        self._error: BaseException | None = None
        self._is_done = self._is_closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def resume(self) -> bool:
        """Let it run until it stops again; False if it is over.

        Raises:
            BaseException: What the pass raised.
        """
        self._answer = _nothing
        while True:
            self._mine.release()
            self._theirs.acquire()
            if self._is_done:
                self._thread.join()
                if self._error is not None:
                    raise self._error
                return False
            if self._asked is None:
                return True
            self._answer = _outcome(self._asked)

    def stop(self, value: object) -> None:
        """Stop here; to be called by the pass."""
        self.value = value
        self._ask(None)
        self.value = None

    def close(self) -> None:
        """End it, where it stands."""
        self._is_closed = True
        while self._thread.is_alive():
            if self._mine.locked():
                self._mine.release()
            self._thread.join(0.1)
        self.value = None

    def _ask(self, what: Callable[[], Any] | None) -> Any:
        if threading.current_thread() is not self._thread:
            raise RuntimeError("a thread of its own cannot be stopped")
        if self._is_closed:
            raise _Closed
        self._asked = what
        self._theirs.release()
        self._mine.acquire()
        if self._is_closed:
            raise _Closed
        answer, self._answer = self._answer, _nothing  # which is not to be held while the pass stands still
        return answer()

    def _run(self) -> None:
        self._mine.acquire()
        try:
            if not self._is_closed:
                with torch.no_grad(), _Asking(self._ask):
                    self._work()
        except _Closed:
            pass
        except BaseException as error:
            self._error = error
        finally:
            del self._work
            self._is_done = True
            if self._theirs.locked():  # else somebody was interrupted who waited
                self._theirs.release()


class _Closed(BaseException):
    """Ends a pass; nothing that catches exceptions should catch it."""


class _Asking(TorchFunctionMode):  # type: ignore[misc]  # torch is Any here
    """Has somebody else do what is asked of torch."""

    def __init__(self, ask: Callable[[Callable[[], Any]], Any]) -> None:
        super().__init__()
        self._ask = ask

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "__get__":  # a shape or a type is no work
            return func(*args, **(kwargs or {}))
        return self._ask(lambda: func(*args, **(kwargs or {})))


def _outcome(work: Callable[[], Any]) -> Callable[[], Any]:
    """What work returns or raises, to be had elsewhere. An interruption is for whoever is here."""
    try:
        result = work()
    except Exception as error:
        raised = error

        def again() -> Any:
            raise raised

        return again
    return lambda: result


def _nothing() -> None:
    return None


class Held(TorchDispatchMode):  # type: ignore[misc]
    """Counts the bytes of what has been computed under it and is still there."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        there = {id_ for id_, _ in _storages((args, kwargs))}
        for id_, storage in _storages(result):
            if id_ not in there:  # a view of a parameter is nothing new
                self._made[id_] = (StorageWeakRef(storage), storage.nbytes())
        return result

    @property
    def nbytes(self) -> int:
        self._made = {id_: made for id_, made in self._made.items() if not made[0].expired()}
        return sum(nbytes for _, nbytes in self._made.values())


def _storages(tree: Any) -> Iterator[tuple[int, Any]]:
    for leaf in _pytree.tree_leaves(tree):
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided and not leaf.is_nested:
            storage = leaf.untyped_storage()
            yield storage._cdata, storage
