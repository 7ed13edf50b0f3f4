"""Samples of any structure come out in micro-batches of one size, whatever the batches were."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bnfold.pytorch import batches as module  # noqa: E402  # torch comes first
from bnfold.pytorch.batches import Batches, MicroBatch, Unsplittable, mapped  # noqa: E402


def same(batch: Any) -> Any:
    return batch


def micro(data: Sequence[Any], rows: int | None) -> list[MicroBatch]:
    return list(Batches(data, same, rows).read())


X = torch.arange(7.0)[:, None]


@dataclass(frozen=True, slots=True)
class Frozen:
    x: Any
    note: str = ""


class TestRows:
    @pytest.mark.parametrize("size", [1, 2, 3, 7])
    def test_rechunked(self, size: int) -> None:
        found = micro(X.split(size), 3)
        assert [m.indices for m in found] == [(0, 1, 2), (3, 4, 5), (6,)]
        assert [m.content[:, 0].tolist() for m in found] == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]
        assert all(m.rows == 3 for m in found)

    def test_shifted(self) -> None:
        wide = torch.ones(3, 2)
        found = list(Batches([X, wide], same, 4).read(shifted=True))
        assert [m.indices for m in found] == [(0, 1), (2, 3, 4, 5), (7, 8), (6,), (9,)]
        assert found[0].content[:, 0].tolist() == [0, 1, 1, 1]
        assert [m.indices for m in Batches([X[:2]], same, 1).read(shifted=True)] == [(0,), (1,)]
        assert sum(m.digest for m in found) == sum(m.digest for m in micro([X, wide], 4))

    def test_digests_tell_the_multiset(self) -> None:
        def digest(data: Sequence[Any], rows: int | None = 3) -> int:
            return sum(m.digest for m in micro(data, rows))

        expected = digest([X])
        assert digest(X.flip(0).split(2)) == digest(X.split(1), 5) == expected
        assert (
            len({expected, digest([X[:6]]), digest([X + 1e-6]), digest([X.double()]), digest([X], None)}) == 5
        )

    def test_kinds_do_not_meet(self) -> None:
        wide = torch.ones(2, 2)
        found = micro([X[:2], wide, X[2:4]], 3)
        assert [m.indices for m in found] == [(0, 1, 4), (2, 3), (5,)]

    def test_few_kinds_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_WAITING", 64)
        found = micro([torch.ones(1, n) for n in range(1, 9)], 4)
        assert sorted(i for m in found for i in m.indices) == list(range(8))
        assert [m.indices for m in found[:2]] == [(0,), (1,)]

    def test_empty_batches(self) -> None:
        assert [m.indices for m in micro([X[:0], X[:1], X[:0], X[1:2]], 2)] == [(0, 1)]

    def test_loaders_may_write_into_their_tensors(self) -> None:
        class Loader:
            def __iter__(self) -> Iterator[Any]:
                buffer, factor = torch.zeros(1, 1), torch.ones(())
                for i in range(4):
                    yield buffer.fill_(i), factor.fill_(i // 2)

        found = list(Batches(Loader(), same, 2).read())
        assert [(m.content[0][:, 0].tolist(), float(m.content[1])) for m in found] == [
            ([0, 1], 0),
            ([2, 3], 1),
        ]
        found = list(Batches(Loader(), same, None).read())
        assert [float(m.content[0]) for m in found] == [0, 1, 2, 3]

    def test_copies_of_the_first(self) -> None:
        (found, *_) = micro([{"x": X, "s": 3}], 4)
        copies = found.repeated(2)
        assert copies.content["x"].tolist() == [[0], [0]] and (copies.rows, copies.indices) == (2, (0, 0))


class TestStructures:
    @pytest.mark.parametrize(
        ("wrap", "get"),
        [
            (lambda x: (x, 1, None), lambda t: t[0]),
            (lambda x: {"a": {"b": [x]}}, lambda t: t["a"]["b"][0]),
            (lambda x: OrderedDict(a=x, b="text"), lambda t: t["a"]),
            (lambda x: UserDict(a=x), lambda t: t["a"]),
            (lambda x: Frozen(x, "n"), lambda t: t.x),
            (lambda x: (x.numpy(),), lambda t: t[0]),
            (lambda x: (x.bfloat16(), x > 2), lambda t: t[0].float()),
        ],
    )
    def test_are_kept(self, wrap: Callable[[Any], Any], get: Callable[[Any], Any]) -> None:
        found = micro([wrap(part) for part in X.split(2)], 3)
        assert [get(m.content)[:, 0].tolist() for m in found] == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]
        assert type(found[0].content) is type(wrap(X))

    def test_lists_of_names_are_rows(self) -> None:
        data = [(part, [f"n{int(v)}" for v in part[:, 0]]) for part in X.split(2)]
        assert [m.content[1] for m in micro(data, 3)] == [["n0", "n1", "n2"], ["n3", "n4", "n5"], ["n6"] * 3]

    def test_what_is_for_all(self) -> None:
        """Numbers, and tensors with another axis 0, separate batches that differ in them."""
        data = [(X[:2], 1.0, torch.ones(3)), (X[2:4], 2.0, torch.ones(3)), (X[4:6], 1.0, torch.ones(3))]
        found = micro(data, 4)
        assert [m.indices for m in found] == [(0, 1, 4, 5), (2, 3)]
        assert [m.content[1] for m in found] == [1.0, 2.0] and found[0].content[2].shape == (3,)

    @pytest.mark.parametrize("data", [["text"], [(1, 2)], [torch.tensor(1.0)], [X, object()]])
    def test_no_rows(self, data: Any) -> None:
        with pytest.raises(Unsplittable, match=r"batch [01] of the data"):
            micro(data, 2)

    def test_as_they_are(self) -> None:
        found = micro([[X[:2], X[:3]], [X]], None)
        assert [m.indices for m in found] == [(0,), (1,)] and [m.rows for m in found] == [1, 1]
        assert [len(x) for x in found[0].content] == [2, 3]

    def test_mapped(self) -> None:
        tree = {"a": (X, "s"), "b": np.ones(2, np.float32)}
        found = mapped(tree, lambda x: x + 1)
        assert torch.equal(found["a"][0], X + 1) and found["a"][1] == "s" and found["b"].tolist() == [2, 2]
        assert float(X[0]) == 0
