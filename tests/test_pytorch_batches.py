"""Samples of any structure come out in micro-batches of one size, whatever the batches were."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bnfold import InputError

torch = pytest.importorskip("torch")

from torch.nn.utils.rnn import pack_sequence  # noqa: E402  # torch comes first

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

    def test_few_are_shifted_as_well(self) -> None:
        """Else they would have the same neighbours again."""
        for count, expected in ((1, [(0,)]), (2, [(0,), (1,)]), (5, [(0, 1), (2, 3, 4)])):
            data = [(part, [f"n{int(v)}" for v in part[:, 0]]) for part in X[:count].split(1)]
            found = list(Batches(data, same, 12).read(shifted=True))
            assert [m.indices for m in found] == expected
            assert all(m.content[0].shape == (12, 1) and len(m.content[1]) == 12 for m in found)
            assert [m.content[1][0] for m in found] == [f"n{m.indices[0]}" for m in found]
            assert sum(m.digest for m in found) == micro(data, 12)[0].digest

    def test_few_that_cannot_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_WAITING", 64)
        data = [torch.ones(2, n) for n in range(1, 6)]
        found = list(Batches(data, same, 8).read(shifted=True))
        assert [m.indices for m in found] == [(i,) for i in range(10)]

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


class Own(MutableMapping[str, Any]):
    """Holds a dict, which a shallow copy shares."""

    def __init__(self, **held: Any) -> None:
        self.held = held

    def __getitem__(self, key: str) -> Any:
        return self.held[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.held[key] = value

    def __delitem__(self, key: str) -> None:
        del self.held[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


class Output(OrderedDict[str, Any]):
    """Cannot be updated."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("no")


class Odd(tuple[Any, ...]):
    """Cannot be made from its parts."""

    def __new__(cls, one: Any, *others: Any) -> Any:
        return super().__new__(cls, (one, *others))


class Object:
    """Nobody knows what is in it."""


class TestStructures:
    @pytest.mark.parametrize(
        ("wrap", "get"),
        [
            (lambda x: (x, 1, None), lambda t: t[0]),
            (lambda x: {"a": {"b": [x]}}, lambda t: t["a"]["b"][0]),
            (lambda x: OrderedDict(a=x, b="text"), lambda t: t["a"]),
            (lambda x: UserDict(a=x), lambda t: t["a"]),
            (lambda x: Own(a=x), lambda t: t["a"]),
            (lambda x: Output(a=x), lambda t: t["a"]),
            (lambda x: x.numpy()[::-1][::-1].astype(">f4"), lambda t: t),
            (lambda x: torch.complex(x, x).conj(), lambda t: t.real),
            (lambda x: torch.complex(x, -x).conj().imag, lambda t: t),
            (lambda x: Frozen(x, "n"), lambda t: t.x),
            (lambda x: (x.numpy(),), lambda t: t[0]),
            (lambda x: (x.bfloat16(), x > 2), lambda t: t[0].float()),
        ],
    )
    def test_are_kept(self, wrap: Callable[[Any], Any], get: Callable[[Any], Any]) -> None:
        found = micro([wrap(part) for part in X.split(2)], 3)
        assert [get(m.content)[:, 0].tolist() for m in found] == [[0, 1, 2], [3, 4, 5], [6, 6, 6]]
        assert isinstance(found[0].content, type(wrap(X)) | torch.Tensor)

    def test_arrays_of_any_kind(self) -> None:
        backwards, fixed = X.numpy()[::-1], X.numpy().copy()
        fixed.flags.writeable = False
        for array in (backwards, fixed, X.numpy().astype(">f4"), X.numpy().T.copy().T):
            (found,) = micro([array], 7)
            assert found.content.tolist() == array.tolist()
        assert mapped({"a": backwards, "b": np.array(["s"])}, lambda x: x + 1)["a"].tolist() == [
            [8.0 - i] for i in range(1, 8)
        ]

    @pytest.mark.parametrize("wrap", [lambda x: Own(a=x), lambda x: UserDict(a=x), lambda x: Output(a=x)])
    def test_the_user_s_stay_as_they_are(self, wrap: Callable[[Any], Any]) -> None:
        data = [wrap(part) for part in X.split(2)]
        micro(data, 3)
        micro(data, None)
        assert [batch["a"].tolist() for batch in data] == [part.tolist() for part in X.split(2)]

    def test_a_class_that_cannot_be_made_again(self) -> None:
        with pytest.raises(InputError, match="a Odd in the calibration data cannot be made again"):
            micro([(Odd(X, X[:2]), 1)], 3)

    def test_lists_of_names_are_rows(self) -> None:
        data = [(part, [f"n{int(v)}" for v in part[:, 0]]) for part in X.split(2)]
        assert [m.content[1] for m in micro(data, 3)] == [["n0", "n1", "n2"], ["n3", "n4", "n5"], ["n6"] * 3]

    def test_what_is_for_all(self) -> None:
        """Numbers, and tensors with another axis 0, separate batches that differ in them."""
        data = [(X[:2], 1.0, torch.ones(3)), (X[2:4], 2.0, torch.ones(3)), (X[4:6], 1.0, torch.ones(3))]
        found = micro(data, 4)
        assert [m.indices for m in found] == [(0, 1, 4, 5), (2, 3)]
        assert [m.content[1] for m in found] == [1.0, 2.0] and found[0].content[2].shape == (3,)

    @pytest.mark.parametrize(
        "data",
        [
            ["text"],
            [(1, 2)],
            [torch.tensor(1.0)],
            [X, object()],
            [(X, pack_sequence([X, X[:3]]))],
            [(X, X.to_sparse())],
            [(X, Object())],
            [(X, (1, [Object()]))],
            [(X, np.array([Object(), None]))],
        ],
    )
    def test_no_rows(self, data: Any) -> None:
        with pytest.raises(Unsplittable, match=r"batch [01] of the data"):
            micro(data, 2)

    def test_as_they_are(self) -> None:
        found = micro([[X[:2], X[:3]], [X]], None)
        assert [m.indices for m in found] == [(0,), (1,)] and [m.rows for m in found] == [1, 1]
        assert [len(x) for x in found[0].content] == [2, 3]

    @pytest.mark.filterwarnings("ignore:(The PyTorch API of nested|Sparse CSR):UserWarning")  # made here only
    @pytest.mark.parametrize(
        "wrap",
        [
            torch.Tensor.to_sparse,
            torch.Tensor.to_sparse_csr,
            lambda x: torch.nested.nested_tensor([x, x[:2]]),
            lambda x: torch.nested.nested_tensor([x, x[:2]], layout=torch.jagged),
            lambda x: pack_sequence([x, x[:2]]),
        ],
    )
    def test_tensors_of_other_kinds(self, wrap: Callable[[Any], Any]) -> None:
        (found,), (again,), (other,) = (micro([(wrap(x), 1)], None) for x in (X, X.clone(), X + 1))
        assert found.digest == again.digest != other.digest and found.nbytes > 0

    def test_nan_where_it_is_not_used(self) -> None:
        data = [(X, X * torch.nan)]
        with pytest.raises(InputError, match="NaN in sample 0"):
            micro(data, 3)
        assert len(list(Batches(data, same, 3, all_used=False).read())) == 3

    def test_mapped(self) -> None:
        tree = {"a": (X, "s"), "b": np.ones(2, np.float32)}
        found = mapped(tree, lambda x: x + 1)
        assert torch.equal(found["a"][0], X + 1) and found["a"][1] == "s" and found["b"].tolist() == [2, 2]
        assert float(X[0]) == 0
