"""The user's batches, of whatever structure, taken apart into samples and put together to micro-batches.

A sample is one index of axis 0. What comes out depends on the samples alone, not on the batches in which they
came: a micro-batch always has the same number of rows, and the last of a kind is filled up with copies of its
last sample, which are not counted.

It is to trees of tensors what `samples` is to named arrays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..multiset import Multiset
from .leaves import (
    as_tensor,
    byte_array,
    bytes_of,
    filled,
    is_strided,
    is_value,
    kept_leaf,
    kind_of,
    row_count,
    rows_of,
    strided,
)
from .trees import holds_packed, leaves_of, rebuilt, structure

# Samples of as many kinds as there are may wait to be complete, in so many bytes.
_WAITING = 1 << 28


class Unsplittable(InputError):
    """A batch holds no rows."""


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Samples that are run together.

    Attributes:
        content: What the model gets, of the structure that the user's batches have.
        indices: Which of the user's samples they are, counted from 0.
        rows: How many samples `content` holds; those after `len(indices)` repeat the last one.
        digest: A number that tells the multiset of samples; sums over micro-batches tell the union.
        unit: What a sample is, for messages: a sample, or a batch that is run as it is.
    """

    content: Any
    indices: tuple[int, ...]
    rows: int
    digest: int
    unit: str = "sample"

    @property
    def nbytes(self) -> int:
        """Of its tensors."""
        tensors = [leaf for leaf in leaves_of(self.content) if isinstance(leaf, torch.Tensor)]
        return sum(part.nbytes for tensor in tensors for part in strided(tensor))

    def one_by_one(self) -> Iterator[MicroBatch]:
        """Of a batch that is run as it is, the rows, if it has any.

        Raises:
            Unsplittable: It has none.
        """
        return Batches([self.content], lambda content: content, 1, all_used=False).read()

    def repeated(self, rows: int) -> MicroBatch:
        """So many copies of the first sample; of a batch that is run as it is, itself."""
        split = _split(self.content)
        if split is None or split.count != self.rows:
            return self
        return MicroBatch(split.joined([split.take([0])], rows), (self.indices[0],) * rows, rows, 0)


@dataclass(frozen=True, eq=False)
class Batches:
    """All data, once for each time that it is iterated over.

    Attributes:
        data: The user's batches.
        arguments: Of a batch, what the model gets.
        rows: Of a micro-batch; None if each batch is run as it is, and is one sample.
        all_used: Whether the model uses all of what it gets, so that NaN in there is an error.
    """

    data: Iterable[Any]
    arguments: Callable[[Any], Any]
    rows: int | None
    all_used: bool = True

    def read(self, *, shifted: bool = False) -> Iterator[MicroBatch]:
        """All micro-batches, in the order of the data.

        Args:
            shifted: Fill only half of the first micro-batch of each kind with samples (or with half of them,
                if there are no more), so that all have other places and other neighbours than otherwise.

        Raises:
            InputError: A tensor holds NaN, or (as `Unsplittable`) a batch has no rows.
        """
        if self.rows is None:
            yield from self._whole()
            return
        waiting: dict[Hashable, _Waiting] = {}
        begun = set[Hashable]()
        start = 0
        for number, batch in enumerate(self.data):
            split = _split(self.arguments(batch))
            if split is None:
                raise Unsplittable(
                    f"batch {number} of the data cannot be taken apart into samples, though others can: it "
                    "holds no tensor with an axis 0 that counts them; let all have the same structure"
                )
            if self.all_used:
                split.need_no_nan(start)
            samples = np.arange(split.count)
            while samples.size:
                is_short = shifted and split.kind not in begun
                wanted = max(1, self.rows // 2) if is_short else self.rows
                some = waiting.setdefault(split.kind, _Waiting(split))
                taken, samples = np.split(samples, [wanted - len(some.indices)])
                some.add(split, taken.tolist(), start)
                if len(some.indices) == wanted:
                    begun.add(split.kind)
                    yield waiting.pop(split.kind).filled(self.rows)
                while len(waiting) > 1 and sum(other.nbytes for other in waiting.values()) > _WAITING:
                    kind = next(iter(waiting))
                    yield from self._ended(waiting.pop(kind), halved=shifted and kind not in begun)
                    begun.add(kind)
            start += split.count
        for kind, some in waiting.items():
            yield from self._ended(some, halved=shifted and kind not in begun)

    def first(self) -> MicroBatch | None:
        """The first micro-batch; None if there are no data."""
        return next(self.read(), None)

    def _ended(self, some: _Waiting, *, halved: bool) -> Iterator[MicroBatch]:
        """Micro-batches of samples for which there will be no more neighbours."""
        assert self.rows is not None
        half = len(some.indices) // 2 if halved else 0
        if half:
            yield some.filled(self.rows, slice(half))
        yield some.filled(self.rows, slice(half, None))

    def _whole(self) -> Iterator[MicroBatch]:
        for number, batch in enumerate(self.data):
            content = self.arguments(batch)
            leaves = [kept_leaf(leaf) for leaf in leaves_of(content)]
            seen = Multiset()
            seen.add([np.frombuffer(b"".join(map(bytes_of, leaves)), np.uint8)])
            yield MicroBatch(rebuilt(content, iter(leaves)), (number,), 1, seen.value, "batch")


def need_batches(data: Any) -> None:
    """Refuse what cannot be read several times, batch by batch.

    Raises:
        InputError: It is a single batch, an iterator, or cannot be iterated over.
    """
    if isinstance(data, torch.Tensor | np.ndarray | Mapping | str):
        raise InputError(
            f"the calibration data are a single {type(data).__name__}; give batches: a DataLoader, or a list "
            "of them"
        )
    if isinstance(data, Iterator):
        raise InputError(
            f"the calibration data ({type(data).__name__}) can be read only once, and are read several "
            "times; give a list or a DataLoader"
        )
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise InputError(
            f"the calibration data ({type(data).__name__}) cannot be iterated over; give batches"
        )


def mapped(tree: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The same structure with other tensors. Arrays become tensors."""
    leaves = map(as_tensor, leaves_of(tree))
    return rebuilt(tree, (change(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves))


@dataclass(frozen=True, eq=False)
class _Split:
    """What the model gets of a batch, its leaves told apart: those with a row per sample, and the others.

    Attributes:
        tree: Its structure.
        leaves: In order.
        is_batched: Whether each holds rows.
        count: How many rows.
        kind: Alike for batches whose samples can be run together.
    """

    tree: Any
    leaves: Sequence[Any]
    is_batched: Sequence[bool]
    count: int
    kind: Hashable

    def take(self, rows: Sequence[int]) -> list[Any]:
        """Of each batched leaf, some rows, copied, since loaders write into theirs."""
        return [rows_of(leaf, rows) for leaf in self.batched]

    @property
    def batched(self) -> list[Any]:
        return [leaf for leaf, is_batched in zip(self.leaves, self.is_batched, strict=True) if is_batched]

    def together(self, pieces: Sequence[Sequence[Any]], rows: int = 0) -> Iterator[Any]:
        """Each batched leaf with the rows of all pieces, and with copies of the last one up to so many."""
        return (filled([piece[i] for piece in pieces], rows) for i in range(len(pieces[0])))

    def joined(self, pieces: Sequence[Sequence[Any]], rows: int) -> Any:
        """The structure with the rows of all pieces, and with copies of the last one up to so many."""
        batched = self.together(pieces, rows)
        leaves = iter(
            [next(batched) if its else leaf for leaf, its in zip(self.leaves, self.is_batched, strict=True)]
        )
        return rebuilt(self.tree, leaves)

    def digests(self, rows: Sequence[int]) -> list[int]:
        """Of some samples, the numbers whose sum tells the multiset."""
        kind = np.frombuffer(repr(self.kind).encode(), np.uint8)
        leaves = [byte_array(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.batched]
        found = []
        for row in rows:
            seen = Multiset()
            items = (leaf[row] for leaf in leaves)
            told = (i if isinstance(i, np.ndarray) else np.frombuffer(bytes_of(i), np.uint8) for i in items)
            seen.add([kind, *told])
            found.append(seen.value)
        return found

    def need_no_nan(self, start: int) -> None:
        """Refuse a tensor that holds NaN; `start` is the index of the first sample."""
        for leaf in self.batched:
            if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
                continue
            wrong = leaf.isnan().flatten(1).any(1) if leaf.ndim > 1 else leaf.isnan()
            if wrong.any():
                sample = start + int(wrong.nonzero()[0])
                raise InputError(
                    f"the calibration data hold NaN in sample {sample} (the first is 0); repair or remove it"
                )


@dataclass(eq=False)
class _Waiting:
    """Samples of one kind, too few for a micro-batch."""

    split: _Split
    indices: list[int] = field(default_factory=list)
    pieces: list[list[Any]] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    nbytes: int = 0

    def add(self, split: _Split, rows: Sequence[int], start: int) -> None:
        self.indices += [start + row for row in rows]
        self.pieces.append(split.take(rows))
        self.digests += split.digests(rows)
        self.nbytes += sum(piece.nbytes for piece in self.pieces[-1] if isinstance(piece, torch.Tensor))

    def filled(self, rows: int, part: slice = slice(None)) -> MicroBatch:
        """A micro-batch of all samples that wait, or of some."""
        pieces = self.pieces
        if part != slice(None):
            every = range(len(self.indices))[part]
            pieces = [[rows_of(leaf, every) for leaf in self.split.together(pieces)]]
        content = self.split.joined(pieces, rows)
        return MicroBatch(content, tuple(self.indices[part]), rows, sum(self.digests[part]))


def _split(tree: Any) -> _Split | None:
    """None if there is no tensor with rows, or something of which nobody can say to which row it belongs."""
    leaves = [as_tensor(leaf) for leaf in leaves_of(tree)]
    if holds_packed(tree) or any(isinstance(leaf, torch.Tensor) and not is_strided(leaf) for leaf in leaves):
        return None
    counts = [len(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim]
    if not counts:
        return None
    is_batched = [row_count(leaf) == counts[0] for leaf in leaves]
    if not all(its or is_value(leaf) for leaf, its in zip(leaves, is_batched, strict=True)):
        return None
    kind = tuple(
        kind_of(leaf) if its else (type(leaf).__name__, hashlib.blake2b(bytes_of(leaf)).hexdigest())
        for leaf, its in zip(leaves, is_batched, strict=True)
    )
    kept = [leaf if its else kept_leaf(leaf) for leaf, its in zip(leaves, is_batched, strict=True)]
    return _Split(tree, kept, is_batched, counts[0], (structure(tree), kind))
