"""Passes stop where they are asked to, go on with their own values, and end when nobody wants them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import Function  # noqa: E402  # torch comes first
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from bnfold.pytorch.forks import Fork, Held  # noqa: E402  # torch comes first


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


def stopping(work: Any) -> Fork:
    """A pass whose work gets its `stop`."""
    fork = Fork(lambda: work(fork.stop))
    return fork


class TestFork:
    def test_passes_take_turns(self) -> None:
        said = []

        def work(stop: Any, name: str) -> None:
            x = torch.ones(2)
            for _ in range(3):
                x = x * 2
                stop(x)
                said.append((name, x.tolist()))

        forks = [stopping(lambda stop, name=name: work(stop, name)) for name in "ab"]
        for turn in range(3):
            for fork in forks:
                assert fork.resume() and fork.value.tolist() == [2.0 ** (turn + 1)] * 2
        assert [fork.resume() for fork in forks] == [False, False]
        assert said == [(name, [2.0**n] * 2) for n in (1, 2) for name in "ab"] + [
            ("a", [8.0] * 2),
            ("b", [8.0] * 2),
        ]

    def test_whoever_resumes_computes(self) -> None:
        """In the thread of the pass itself, torch would keep more threads for it."""
        threads = []

        class Told(Function):
            @staticmethod
            def forward(ctx: Any, x: Any) -> Any:
                return x

        def work(stop: Any) -> None:
            stop(0)
            x = torch.ones(300, 300)
            for _ in range(3):
                x = x @ x + x.sum() + torch.nn.functional.relu(x)
            Told.apply(x)
            threads.append(len(os.listdir("/proc/self/task")))

        if not os.path.isdir("/proc/self/task"):
            pytest.skip("threads of the process cannot be counted here")
        torch.ones(300, 300) @ torch.ones(300, 300)
        forks = [stopping(work) for _ in range(4)]
        for fork in forks:
            assert fork.resume()
        before = len(os.listdir("/proc/self/task"))
        for fork in forks:
            assert not fork.resume()
        assert max(threads) <= before

    def test_no_gradients(self) -> None:
        weight = torch.ones(2, requires_grad=True)

        def work(stop: Any) -> None:
            assert not torch.is_grad_enabled()
            stop(None)

        fork = stopping(work)
        with torch.no_grad():
            assert fork.resume() and not fork.resume()
        assert weight.grad is None

    @pytest.mark.parametrize("before", [0, 1])
    def test_what_it_raises_is_raised(self, before: int) -> None:
        def work(stop: Any) -> None:
            for _ in range(before):
                stop(None)
            torch.ones(2) @ torch.ones(3)

        fork = stopping(work)
        for _ in range(before):
            assert fork.resume()
        with pytest.raises(RuntimeError, match="inconsistent tensor size"):
            fork.resume()

    def test_it_may_catch_what_torch_raises(self) -> None:
        def work(stop: Any) -> None:
            try:
                torch.ones(2) @ torch.ones(3)
            except RuntimeError:
                stop("caught")

        fork = stopping(work)
        assert fork.resume() and fork.value == "caught" and not fork.resume()

    @pytest.mark.parametrize("turns", [0, 1, 2])
    def test_closed(self, turns: int) -> None:
        """Wherever it stands; also where it catches exceptions, and asks for more in the end."""
        ended = []

        def work(stop: Any) -> None:
            try:
                for i in range(5):
                    try:
                        stop(i)
                    except Exception:
                        ended.append("caught")
            finally:
                ended.append("end")
                torch.ones(2) + 1

        fork = stopping(work)
        for _ in range(turns):
            fork.resume()
        fork.close()
        fork.close()
        assert ended == (["end"] if turns else [])

    def test_an_interruption_is_for_who_resumes(self) -> None:
        """Ctrl-C while torch computes; the pass cannot catch it."""

        class Interrupting(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                raise KeyboardInterrupt

        def work(stop: Any) -> None:
            try:
                torch.ones(2)
            except KeyboardInterrupt:
                stop("caught")

        fork = stopping(work)
        with pytest.raises(KeyboardInterrupt), Interrupting():
            fork.resume()
        fork.close()


class TestHeld:
    def test_what_is_there_counts_once(self) -> None:
        x = torch.ones(1000)
        with Held() as held:
            assert held.nbytes == 0
            y = x + 1
            assert held.nbytes == 4000
            z = y.view(10, 100).t()
            assert held.nbytes == 4000
            w = torch.relu(z)
            assert held.nbytes == 8000
            del y, z
            assert held.nbytes == 4000
            w.add_(1)
            x.view(-1)
            assert held.nbytes == 4000
