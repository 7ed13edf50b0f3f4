"""Rows of the user's data: which arrays hold them, which take part, and micro-batches of one size from them.

A sample is one index of axis 0. The batches in which samples come are taken apart and put together anew, so
that what is measured does not depend on them: a micro-batch always has the same size, and the last of a kind
is filled up with copies of its last sample, which are not counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .feeds import Array, Input

Indices = NDArray[np.int64]

# Samples of as many shapes as there are may wait to be complete, in so many bytes.
_WAITING = 1 << 28


@dataclass(frozen=True)
class Rows:
    """Which inputs hold one row per sample.

    Attributes:
        batched: Their names. The other inputs hold one array for all samples of a batch. Empty if a whole
            feed is one sample.
        size: How many rows the model takes, no more and no fewer; None if any number.
    """

    batched: tuple[str, ...]
    size: int | None

    @classmethod
    def of(cls, inputs: Sequence[Input]) -> Rows:
        """What the declared shapes say.

        Where first dimensions are free, their inputs are batched, and with them those of unknown rank;
        else those that have the first dimension of the first input that has one.
        """
        first = {i.name: i.shape[0] for i in inputs if i.shape}
        unranked = {i.name for i in inputs if i.shape is None}
        free = {name for name, size in first.items() if isinstance(size, str)}
        if free or not first:
            free |= unranked
            return cls(tuple(i.name for i in inputs if i.name in free), None if free else 1)
        size = next((size for size in first.values() if isinstance(size, int) and size), 1)
        return cls(tuple(name for name, other in first.items() if other == size), size)

    def count(self, shapes: Mapping[str, Sequence[int]], where: object) -> int:
        """How many samples a batch has.

        Args:
            shapes: Of its arrays, by name of the input.
            where: What batch it is, for messages.

        Raises:
            InputError: An array has no axis 0, or two differ in their number of rows.
        """
        if flat := [name for name in self.batched if not shapes[name]]:
            raise InputError(f"{where}: array '{flat[0]}' is a single number; axis 0 has to count samples")
        counts = [(name, shapes[name][0]) for name in self.batched] or [("", 1)]
        first, count = counts[0]
        for name, other in counts:
            if other != count:
                raise InputError(
                    f"{where}: array '{first}' has {count} rows, but '{name}' has {other}; a sample is one "
                    "row of each (an input without a batch has a first dimension of fixed size)"
                )
        return count


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Samples that are run together.

    Attributes:
        indices: Which of the user's samples they are, counted from 0, ascending.
        arrays: By name of the input. The batched ones have as many rows as every micro-batch of their kind;
            those after `len(indices)` repeat the last sample.
        rows: How many that is.
    """

    indices: tuple[int, ...]
    arrays: Mapping[str, Array]
    rows: int


@dataclass(frozen=True)
class Selection:
    """Which samples take part.

    Attributes:
        limit: The first so many, or all if there are fewer; None for all.
        seed: With it the `limit` samples are drawn at random instead, each at most once.
        rank: Which of several processes this is; each takes one of the chosen samples in turn.
        ranks: How many processes there are.

    Raises:
        InputError: A number is out of its range.
    """

    limit: int | None = None
    seed: int | None = None
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"a limit of {self.limit} leaves no samples; give at least 1")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"{self.seed} is no seed; give 0 or more")
        if not 0 <= self.rank < self.ranks:
            raise InputError(f"there is no rank {self.rank} of {self.ranks}; ranks count from 0")


def micro_batches(
    data: Iterable[Mapping[str, Array]],
    rows: Rows,
    size: int | Callable[[Mapping[str, Array]], int],
    selection: Selection = Selection(),
    *,
    shifted: bool = False,
) -> Iterator[MicroBatch]:
    """The chosen samples in micro-batches of one size for each kind.

    Samples whose shapes or shared arrays differ never meet in one. Held are those that wait for others of
    their kind, fewer than `size` of each, and altogether not much more than 256 MB: before that, the kind
    that has waited for longest is filled up with copies.

    Args:
        data: Batches: arrays by name of the input. They are read in order, and no further than needed; when
            samples are drawn from data without an attribute `count`, they are read once before, to count.
        rows: Which of the arrays hold rows.
        size: Rows of a micro-batch, or what says so from the arrays of a kind; `rows.size` if that is not
            None.
        selection: Which samples take part.
        shifted: Whether the first micro-batch of each kind has half as many samples (or half of them, if
            there are no more), so that all have other places and other neighbours than otherwise.

    Raises:
        InputError: Arrays of a batch differ in their number of rows, or there are fewer samples now than
            when they were counted.
        ValueError: The model does not take so many rows.
    """
    waiting: dict[Hashable, _Waiting] = {}
    known: set[Hashable] = set()
    for start, indices, arrays in _chosen(data, rows, selection):
        kind = _kind(arrays, rows)
        for_all = {name: array for name, array in arrays.items() if name not in rows.batched}
        full = size if isinstance(size, int) else size(arrays)
        if rows.size not in (None, full):
            raise ValueError(f"the model takes {rows.size} rows at a time, not {full}")
        while indices.size:
            some = waiting.get(kind) or waiting.setdefault(kind, _Waiting(for_all, full))
            wanted = max(1, full // 2) if shifted and kind not in known else full
            taken, indices = np.split(indices, [wanted - len(some.indices)])
            some.add(taken, {name: arrays[name][taken - start] for name in rows.batched})
            if len(some.indices) == wanted:
                known.add(kind)
                yield waiting.pop(kind).filled()
            while len(waiting) > 1 and sum(other.nbytes for other in waiting.values()) > _WAITING:
                yield waiting.pop(next(iter(waiting))).filled()
    for kind, some in waiting.items():
        half = len(some.indices) // 2 if shifted and kind not in known else 0
        if half:
            yield some.filled(slice(half))
        yield some.filled(slice(half, None))


@dataclass(eq=False)
class _Waiting:
    """Samples of one kind, too few for a micro-batch. Arrays are copied, since loaders write into theirs."""

    shared: Mapping[str, Array]
    rows: int
    indices: list[int] = field(default_factory=list)
    pieces: list[Mapping[str, Array]] = field(default_factory=list)
    nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.shared = {name: array.copy() for name, array in self.shared.items()}
        self.nbytes = sum(array.nbytes for array in self.shared.values())

    def add(self, indices: Indices, rows: Mapping[str, Array]) -> None:
        self.indices += indices.tolist()
        self.pieces.append(rows)
        self.nbytes += sum(array.nbytes for array in rows.values())

    def filled(self, part: slice = slice(None)) -> MicroBatch:
        """A micro-batch of all samples that wait, or of some."""
        indices = tuple(self.indices[part])
        arrays = {}
        for name in self.pieces[0]:
            pieces = [piece[name] for piece in self.pieces]
            rows = (np.concatenate(pieces) if len(pieces) > 1 else pieces[0])[part]
            copies = np.repeat(rows[-1:], self.rows - len(rows), axis=0)
            arrays[name] = np.ascontiguousarray(np.concatenate([rows, copies]) if len(copies) else rows)
        return MicroBatch(indices, {**arrays, **self.shared}, self.rows)


def _kind(arrays: Mapping[str, Array], rows: Rows) -> Hashable:
    """Alike for batches whose samples can be run together."""
    return tuple(
        (name, array.dtype, array.shape[1:])
        if name in rows.batched
        else (name, array.dtype, array.shape, hashlib.sha256(array.tobytes()).digest())
        for name, array in sorted(arrays.items())
    )


def _chosen(
    data: Iterable[Mapping[str, Array]], rows: Rows, selection: Selection
) -> Iterator[tuple[int, Indices, Mapping[str, Array]]]:
    """Index of a batch's first sample, indices of those in it that take part, and the batch."""
    drawn = None if selection.limit is None or selection.seed is None else _drawn(data, rows, selection)
    if drawn is not None and not drawn.size:
        return
    end = selection.limit if drawn is None else int(drawn[-1]) + 1
    start = 0
    for number, arrays in enumerate(data):
        stop = start + _count(rows, arrays, number)
        if drawn is None:
            first = start + (selection.rank - start) % selection.ranks
            indices = np.arange(first, stop if end is None else min(stop, end), selection.ranks)
        else:
            indices = drawn[slice(*np.searchsorted(drawn, (start, stop)))]
        if indices.size:
            yield start, indices, arrays
        start = stop
        if end is not None and start >= end:
            return
    if drawn is not None:
        raise InputError(
            f"the data end after {start} samples, but had more when they were counted; keep them the same"
        )


def _drawn(data: Iterable[Mapping[str, Array]], rows: Rows, selection: Selection) -> Indices:
    """Indices of the samples that this process takes of those that are drawn, ascending."""
    count = getattr(data, "count", None)
    if not isinstance(count, int):  # lists have a method of that name
        count = sum(_count(rows, arrays, number) for number, arrays in enumerate(data))
    rng = np.random.default_rng(selection.seed)
    drawn = rng.choice(count, min(count, selection.limit or count), replace=False, shuffle=False)
    return np.sort(drawn)[selection.rank :: selection.ranks]


def _count(rows: Rows, arrays: Mapping[str, Array], number: int) -> int:
    return rows.count({name: array.shape for name, array in arrays.items()}, f"batch {number} of the data")
