"""The user's batches, of whatever structure, taken apart into samples and put together to micro-batches.

A sample is one index of axis 0. What comes out depends on the samples alone, not on the batches in which they
came: a micro-batch always has the same number of rows, and the last of a kind is filled up with copies of its
last sample, which are not counted.

It is to trees of tensors what `samples` is to named arrays.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..multiset import Multiset

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
    """

    content: Any
    indices: tuple[int, ...]
    rows: int
    digest: int

    @property
    def nbytes(self) -> int:
        """Of its tensors."""
        return sum(leaf.nbytes for leaf in _leaves(self.content) if isinstance(leaf, torch.Tensor))

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
    """

    data: Iterable[Any]
    arguments: Callable[[Any], Any]
    rows: int | None

    def read(self, *, shifted: bool = False) -> Iterator[MicroBatch]:
        """All micro-batches, in the order of the data.

        Args:
            shifted: Fill only half of the first micro-batch of each kind with samples, so that all have other
                places and other neighbours than otherwise.

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
                    f"batch {number} of the data holds no tensor with an axis 0 that counts samples, though "
                    "others do; let all have the same structure"
                )
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
                    yield waiting.pop(next(iter(waiting))).filled(self.rows)
            start += split.count
        for some in waiting.values():
            yield some.filled(self.rows)

    def first(self) -> MicroBatch | None:
        """The first micro-batch; None if there are no data."""
        return next(self.read(), None)

    def _whole(self) -> Iterator[MicroBatch]:
        for number, batch in enumerate(self.data):
            content = self.arguments(batch)
            leaves = [_kept(leaf) for leaf in _leaves(content)]
            seen = Multiset()
            seen.add([np.frombuffer(b"".join(map(_told, leaves)), np.uint8)])
            yield MicroBatch(_rebuilt(content, iter(leaves)), (number,), 1, seen.value)


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
    if isinstance(tree, np.ndarray) and tree.dtype != object:
        tree = torch.from_numpy(tree)
    if isinstance(tree, torch.Tensor):
        return change(tree)
    children = _children(tree)
    return tree if children is None else _with(tree, [mapped(child, change) for child in children])


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
        return [_rows(leaf, rows) for leaf in self.batched]

    @property
    def batched(self) -> list[Any]:
        return [leaf for leaf, is_batched in zip(self.leaves, self.is_batched, strict=True) if is_batched]

    def joined(self, pieces: Sequence[Sequence[Any]], rows: int) -> Any:
        """The structure with the rows of all pieces, and with copies of the last one up to so many."""
        batched = (_filled([piece[i] for piece in pieces], rows) for i in range(len(pieces[0])))
        leaves = iter(
            [next(batched) if its else leaf for leaf, its in zip(self.leaves, self.is_batched, strict=True)]
        )
        return _rebuilt(self.tree, leaves)

    def digest(self, rows: Sequence[int]) -> int:
        """The number that tells the multiset of some samples."""
        kind = np.frombuffer(repr(self.kind).encode(), np.uint8)
        leaves = [_array(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.batched]
        seen = Multiset()
        for row in rows:
            items = (leaf[row] for leaf in leaves)
            seen.add(
                [
                    kind,
                    *(i if isinstance(i, np.ndarray) else np.frombuffer(_told(i), np.uint8) for i in items),
                ]
            )
        return seen.value

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
    digest: int = 0
    nbytes: int = 0

    def add(self, split: _Split, rows: Sequence[int], start: int) -> None:
        self.indices += [start + row for row in rows]
        self.pieces.append(split.take(rows))
        self.digest += split.digest(rows)
        self.nbytes += sum(piece.nbytes for piece in self.pieces[-1] if isinstance(piece, torch.Tensor))

    def filled(self, rows: int) -> MicroBatch:
        return MicroBatch(self.split.joined(self.pieces, rows), tuple(self.indices), rows, self.digest)


def _split(tree: Any) -> _Split | None:
    """None if there is no tensor with rows."""
    leaves = [_as_tensor(leaf) for leaf in _leaves(tree)]
    counts = [len(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim]
    if not counts:
        return None
    is_batched = [_count(leaf) == counts[0] for leaf in leaves]
    kind = tuple(
        _kind(leaf) if its else (type(leaf).__name__, hashlib.blake2b(_told(leaf)).hexdigest())
        for leaf, its in zip(leaves, is_batched, strict=True)
    )
    kept = [leaf if its else _kept(leaf) for leaf, its in zip(leaves, is_batched, strict=True)]
    return _Split(tree, kept, is_batched, counts[0], (_structure(tree), kind))


# Leaves: tensors, lists of what is no tensor, and all else.


def _as_tensor(leaf: Any) -> Any:
    return torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf" else leaf


def _kept(leaf: Any) -> Any:
    """It, while later batches are read: loaders may write into the tensors that they gave."""
    return leaf.clone() if isinstance(leaf, torch.Tensor) else leaf


def _count(leaf: Any) -> int | None:
    if isinstance(leaf, torch.Tensor):
        return len(leaf) if leaf.ndim else None
    return len(leaf) if isinstance(leaf, list) else None  # a tuple may be the size of an image


def _kind(leaf: Any) -> Hashable:
    if isinstance(leaf, torch.Tensor):
        return str(leaf.dtype), str(leaf.device), tuple(leaf.shape[1:])
    return type(leaf).__name__


def _rows(leaf: Any, rows: Sequence[int]) -> Any:
    return leaf[rows] if isinstance(leaf, torch.Tensor) else [leaf[row] for row in rows]


def _filled(pieces: Sequence[Any], rows: int) -> Any:
    last = _rows(pieces[-1], [-1])
    parts = [*pieces, *[last] * (rows - sum(map(len, pieces)))]
    return torch.cat(parts) if isinstance(last, torch.Tensor) else [item for part in parts for item in part]


def _told(leaf: Any) -> bytes:
    """All of a leaf; of what is no value, its type."""
    if isinstance(leaf, torch.Tensor):
        return f"{leaf.dtype}{leaf.shape}".encode() + _array(leaf).tobytes()
    if isinstance(leaf, np.ndarray):
        return leaf.tobytes()
    if isinstance(leaf, list | tuple):
        return b"".join(_told(item) for item in leaf)
    return repr(leaf if isinstance(leaf, _VALUES) else type(leaf)).encode()


_VALUES = (bool, int, float, complex, str, bytes, type(None))


def _array(tensor: torch.Tensor) -> NDArray[np.uint8]:
    """The bytes of a tensor, along one more axis."""
    array: NDArray[np.uint8] = tensor.detach().cpu().contiguous()[..., None].view(torch.uint8).numpy()
    return array


# Structures: lists, tuples, mappings, dataclasses.


def _leaves(tree: Any) -> list[Any]:
    children = _children(tree)
    return [tree] if children is None else [leaf for child in children for leaf in _leaves(child)]


def _rebuilt(tree: Any, leaves: Iterator[Any]) -> Any:
    children = _children(tree)
    return next(leaves) if children is None else _with(tree, [_rebuilt(child, leaves) for child in children])


def _structure(tree: Any) -> str:
    children = _children(tree)
    if children is None:
        return "."
    keys = list(tree) if isinstance(tree, Mapping) else ""
    return f"{type(tree).__qualname__}{keys}({','.join(map(_structure, children))})"


def _children(tree: Any) -> list[Any] | None:
    """The parts of a structure; None if it is a leaf, as is a list without a tensor."""
    parts: list[Any]
    if isinstance(tree, MutableMapping):
        parts = list(tree.values())
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        parts = [getattr(tree, f.name) for f in dataclasses.fields(tree)]
    elif isinstance(tree, list | tuple):
        parts = list(tree)
        if not any(_holds_tensor(part) for part in parts):
            return None
    else:
        return None
    return parts


def _holds_tensor(tree: Any) -> bool:
    if isinstance(tree, torch.Tensor | np.ndarray):
        return True
    return any(_holds_tensor(child) for child in _children(tree) or ())


def _with(tree: Any, children: list[Any]) -> Any:
    """The structure with other parts."""
    if isinstance(tree, list | tuple):
        return type(tree)(*children) if hasattr(tree, "_fields") else type(tree)(children)
    made = copy.copy(tree)
    if isinstance(made, MutableMapping):
        made.update(zip(list(tree), children, strict=True))
    else:  # also a frozen one, and without what its constructor does
        for its, child in zip(dataclasses.fields(tree), children, strict=True):
            object.__setattr__(made, its.name, child)
    return made
