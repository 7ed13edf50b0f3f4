"""Rows, and the micro-batches that are made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold import samples
from bnfold.errors import InputError
from bnfold.feeds import Array, Input
from bnfold.samples import MicroBatch, Rows, Selection, micro_batches

FLOAT = np.dtype(np.float32)
X = Rows(("x",), None)
XZ = Rows(("x", "z"), None)


def inputs(**shapes: tuple[int | str, ...] | None) -> list[Input]:
    return [Input(name, FLOAT, shape) for name, shape in shapes.items()]


def rows_of(count: int, start: int = 0, width: int = 2) -> Array:
    """Rows that tell their index."""
    return np.arange(start, start + count, dtype=np.float32)[:, None] + np.zeros(width, np.float32)


def split(array: Array, sizes: Iterable[int]) -> list[dict[str, Array]]:
    return [{"x": part} for part in np.split(array, np.cumsum(list(sizes)))]


def contents(batches: Iterable[MicroBatch]) -> list[tuple[int, bytes]]:
    """Each real sample with its row, sorted."""
    return sorted(
        (index, batch.arrays["x"][i].tobytes()) for batch in batches for i, index in enumerate(batch.indices)
    )


def indices(batches: Iterable[MicroBatch]) -> list[int]:
    return sorted(index for batch in batches for index in batch.indices)


@dataclass
class Counted:
    """Data that count how often they are read."""

    batches: Sequence[Mapping[str, Array]]
    count: int | None = None
    read: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        for i, batch in enumerate(self.batches):
            self.read.append(i)
            yield batch


class TestRows:
    @pytest.mark.parametrize(
        ("shapes", "expected"),
        [
            ({"x": ("N", 3), "z": ("M", 2)}, Rows(("x", "z"), None)),
            ({"x": ("N", 3), "table": (7, 3), "alpha": ()}, Rows(("x",), None)),
            ({"table": (7, 3), "x": ("N", 3)}, Rows(("x",), None)),
            ({"x": ("N", 3), "z": None}, Rows(("x", "z"), None)),
            ({"x": None}, Rows(("x",), None)),
            ({"x": None, "alpha": ()}, Rows(("x",), None)),
            ({"x": (4, 3), "z": (4,), "table": (7, 4)}, Rows(("x", "z"), 4)),
            ({"alpha": (), "x": (1, 3), "z": None}, Rows(("x",), 1)),
            ({"none": (0, 4), "x": (2, 3)}, Rows(("x",), 2)),
            ({"alpha": ()}, Rows((), 1)),
            ({"none": (0,)}, Rows((), 1)),
            ({}, Rows((), 1)),
        ],
    )
    def test_what_shapes_say(self, shapes: dict[str, Any], expected: Rows) -> None:
        assert Rows.of(inputs(**shapes)) == expected

    def test_count(self) -> None:
        assert XZ.count({"x": (3, 2), "z": (3,), "table": (9,)}, "here") == 3
        assert Rows((), 1).count({"alpha": ()}, "here") == 1

    def test_rows_that_disagree(self) -> None:
        with pytest.raises(InputError, match="here: array 'x' has 3 rows, but 'z' has 2"):
            XZ.count({"x": (3, 2), "z": (2,)}, "here")

    def test_a_single_number_has_no_rows(self) -> None:
        with pytest.raises(InputError, match="here: array 'z' is a single number"):
            XZ.count({"x": (3, 2), "z": ()}, "here")


class TestMicroBatches:
    @given(st.lists(st.integers(0, 7), max_size=12), st.integers(1, 5))
    def test_how_data_were_batched_is_not_seen(self, sizes: list[int], size: int) -> None:
        total = sum(sizes)
        whole, parts = rows_of(total), rows_of(total)
        once = list(micro_batches([{"x": whole}], X, size))
        again = list(micro_batches(split(parts, sizes), X, size))
        assert [b.indices for b in again] == [b.indices for b in once]
        for one, other in zip(once, again, strict=True):
            assert one.arrays["x"].tobytes() == other.arrays["x"].tobytes()
        assert contents(once) == [(i, whole[i].tobytes()) for i in range(total)]

    @given(
        st.lists(
            st.tuples(st.integers(0, 4), st.sampled_from([1, 2, 3]), st.sampled_from([0, 1])), max_size=12
        ),
        st.integers(1, 5),
    )
    def test_shapes_and_shared_arrays_do_not_mix(self, plan: list[tuple[int, int, int]], size: int) -> None:
        starts = np.cumsum([0, *(count for count, _, _ in plan)])
        data: list[dict[str, Array]] = []
        expected: list[tuple[int, int, int]] = []
        seen: list[tuple[int, int, int]] = []
        for start, (count, width, table) in zip(starts.tolist(), plan, strict=False):
            data.append({"x": rows_of(count, start, width), "table": np.full(3, table)})
            expected += [(start + i, width, table) for i in range(count)]
        found = list(micro_batches(data, X, size))
        for batch in found:
            x, shared = batch.arrays["x"], batch.arrays["table"]
            assert x.shape[0] == size and 1 <= len(batch.indices) <= size
            assert list(batch.indices) == sorted(batch.indices)
            assert x[:, 0].tolist() == [*batch.indices, *[batch.indices[-1]] * (size - len(batch.indices))]
            seen += [(index, x.shape[1], int(shared[0])) for index in batch.indices]
        assert sorted(seen) == expected
        kinds = len({(width, table) for _, width, table in expected})
        assert sum(len(batch.indices) < size for batch in found) <= kinds

    def test_the_last_repeats_its_last_sample(self) -> None:
        *_, last = micro_batches([{"x": rows_of(5)}], X, 4)
        assert last.indices == (4,)
        assert last.arrays["x"][:, 0].tolist() == [4, 4, 4, 4]

    def test_shifted(self) -> None:
        """Every sample has another place, and meets others."""
        (plain, *_), (half, whole, rest) = (
            list(micro_batches([{"x": rows_of(7)}], X, 4, shifted=shifted)) for shifted in (False, True)
        )
        assert plain.indices == (0, 1, 2, 3)
        assert (half.indices, whole.indices, rest.indices) == ((0, 1), (2, 3, 4, 5), (6,))
        assert half.rows == rest.rows == len(half.arrays["x"]) == 4

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_few_that_are_shifted(self, count: int) -> None:
        """They would be neighbours again if they stayed together."""
        found = list(micro_batches([{"x": rows_of(count)}], X, 8, shifted=True))
        assert [b.indices for b in found] == {1: [(0,)], 2: [(0,), (1,)], 3: [(0,), (1, 2)]}[count]
        assert all(len(b.arrays["x"]) == 8 for b in found)
        for b in found:
            np.testing.assert_array_equal(b.arrays["x"][: len(b.indices)], rows_of(count)[list(b.indices)])

    def test_a_size_for_each_kind(self) -> None:
        data = [{"x": rows_of(6, width=3)}, {"x": rows_of(6, width=5)}]
        found = list(micro_batches(data, X, lambda arrays: 6 - arrays["x"].shape[1]))
        assert [len(b.indices) for b in found] == [3, 3, 1, 1, 1, 1, 1, 1]

    def test_rows_of_several_arrays_stay_together(self) -> None:
        data = [{"x": rows_of(n, s), "z": rows_of(n, s)[:, 0]} for s, n in ((0, 3), (3, 4), (7, 1))]
        for batch in micro_batches(data, XZ, 3):
            assert batch.arrays["x"][:, 0].tolist() == batch.arrays["z"].tolist()

    def test_types_do_not_mix(self) -> None:
        data = [{"x": rows_of(1)}, {"x": rows_of(1).astype(np.float64)}]
        assert [b.arrays["x"].dtype.name for b in micro_batches(data, X, 2)] == ["float32", "float64"]

    def test_layout_in_memory_does_not_show(self) -> None:
        (batch,) = micro_batches([{"x": np.asfortranarray(rows_of(4, width=3))}], X, 4)
        assert batch.arrays["x"].flags.c_contiguous
        np.testing.assert_array_equal(batch.arrays["x"], rows_of(4, width=3))

    def test_a_feed_without_rows_is_one_sample(self) -> None:
        data = [{"alpha": np.asarray(value, np.float32)} for value in (1, 1, 2)]
        found = list(micro_batches(data, Rows((), 1), 1))
        assert [b.indices for b in found] == [(0,), (1,), (2,)]
        assert [float(b.arrays["alpha"]) for b in found] == [1, 1, 2]

    def test_a_loader_may_write_into_its_arrays(self) -> None:
        x, table = np.empty((1, 2), np.float32), np.zeros(1)

        def reusing() -> Iterator[dict[str, Array]]:
            for i in range(4):
                x[:], table[:] = i, i // 2
                yield {"x": x, "table": table}

        found = list(micro_batches(reusing(), X, 3))
        assert [(b.indices, float(b.arrays["table"][0])) for b in found] == [((0, 1), 0), ((2, 3), 1)]
        assert [b.arrays["x"][:2, 0].tolist() for b in found] == [[0, 1], [2, 3]]

    def test_rows_that_disagree(self) -> None:
        data = [{"x": rows_of(2), "z": rows_of(2)}, {"x": rows_of(2), "z": rows_of(3)}]
        with pytest.raises(InputError, match="batch 1 of the data: array 'x' has 2 rows, but 'z' has 3"):
            list(micro_batches(data, XZ, 2))

    def test_no_samples(self) -> None:
        assert not list(micro_batches([], X, 2))
        assert not list(micro_batches([{"x": rows_of(0)}], X, 2))
        assert not list(micro_batches([{"x": rows_of(0)}], X, 2, Selection(limit=3, seed=0)))

    def test_a_size_that_the_model_does_not_take(self) -> None:
        with pytest.raises(ValueError, match="takes 4 rows at a time, not 3"):
            next(micro_batches([{"x": rows_of(3)}], Rows(("x",), 4), 3))


class TestMemory:
    def test_a_kind_is_passed_on_as_soon_as_it_is_complete(self) -> None:
        data = Counted([{"x": rows_of(1, i)} for i in range(9)])
        found = micro_batches(data, X, 3)
        next(found)
        assert data.read == [0, 1, 2]

    def test_what_waits_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As for a folder of pictures that all have their own size."""
        monkeypatch.setattr(samples, "_WAITING", 100)
        data = Counted([{"x": rows_of(1, i, width=i + 1)} for i in range(20)])
        found = micro_batches(data, X, 4)
        first = next(found)
        assert first.indices == (0,) and len(data.read) == 7  # 4 · (1 + 2 + ... + 7) = 112 bytes
        assert indices([first, *found]) == list(range(20))

    def test_one_kind_alone_is_always_completed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(samples, "_WAITING", 1)
        found = micro_batches([{"x": rows_of(1, i)} for i in range(8)], X, 4)
        assert [b.indices for b in found] == [(0, 1, 2, 3), (4, 5, 6, 7)]

    def test_a_large_batch_is_not_kept_for_a_few_rows(self) -> None:
        large = rows_of(1000)
        (batch,) = list(micro_batches([{"x": large}], X, 4, Selection(limit=2)))
        assert not np.shares_memory(batch.arrays["x"], large)
        assert batch.arrays["x"].base is None


selections = st.tuples(
    st.none() | st.integers(1, 40), st.none() | st.integers(0, 3), st.integers(1, 4), st.integers(1, 4)
)


class TestSelection:
    @given(st.lists(st.integers(0, 7), max_size=8), selections)
    def test_ranks_share_what_is_chosen(
        self, sizes: list[int], selection: tuple[int | None, int | None, int, int]
    ) -> None:
        limit, seed, ranks, size = selection
        total = sum(sizes)
        data = split(rows_of(total), sizes)
        chosen = indices(micro_batches(data, X, size, Selection(limit, seed)))
        assert len(chosen) == len(set(chosen)) == min(total, limit or total)
        assert seed is not None or chosen == list(range(len(chosen)))
        shares = [
            contents(micro_batches(data, X, size, Selection(limit, seed, rank, ranks)))
            for rank in range(ranks)
        ]
        assert sorted(chain(*shares)) == [(i, rows_of(1, i)[0].tobytes()) for i in chosen]
        lengths = [len(share) for share in shares]
        assert max(lengths) - min(lengths) <= 1

    def test_drawing_depends_on_the_seed_alone(self) -> None:
        def drawn(seed: int, step: int) -> list[int]:
            data = split(rows_of(100), [step] * (100 // step))
            return indices(micro_batches(data, X, 8, Selection(10, seed)))

        assert drawn(0, 1) == drawn(0, 7) == drawn(0, 100) != drawn(1, 1)
        assert drawn(0, 1) != list(range(10))

    def test_all_samples_are_drawn_alike(self) -> None:
        """1000 draws of 3 out of 10: each 300 times but for noise, whose standard deviation is 14.5."""
        data = [{"x": rows_of(10)}]
        drawn = [i for seed in range(1000) for i in indices(micro_batches(data, X, 3, Selection(3, seed)))]
        counts = np.bincount(drawn, minlength=10)
        assert abs(counts - 300).max() < 5 * 14.5

    def test_no_more_is_read_than_needed(self) -> None:
        batches = [{"x": rows_of(2, 2 * i)} for i in range(10)]
        data = Counted(batches)
        assert indices(micro_batches(data, X, 2, Selection(limit=4))) == [0, 1, 2, 3]
        assert data.read == [0, 1]
        data = Counted(batches, count=20)
        last = max(indices(micro_batches(data, X, 2, Selection(limit=2, seed=0))))
        assert data.read == list(range(last // 2 + 1))

    def test_data_that_do_not_know_their_length_are_counted(self) -> None:
        data = Counted([{"x": rows_of(2, 2 * i)} for i in range(3)])
        list(micro_batches(data, X, 2, Selection(limit=6, seed=0)))
        assert data.read == [0, 1, 2, 0, 1, 2]

    def test_data_that_shrink_after_they_were_counted(self) -> None:
        with pytest.raises(InputError, match="the data end after 4 samples, but had more"):
            list(micro_batches(Counted([{"x": rows_of(4)}], count=5), X, 2, Selection(limit=5, seed=0)))

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"limit": 0}, "a limit of 0 leaves no samples"),
            ({"seed": -1}, "-1 is no seed"),
            ({"rank": 2, "ranks": 2}, "no rank 2 of 2"),
            ({"rank": -1}, "no rank -1 of 1"),
        ],
    )
    def test_numbers_out_of_range(self, wrong: dict[str, int], message: str) -> None:
        with pytest.raises(InputError, match=message):
            Selection(**wrong)
