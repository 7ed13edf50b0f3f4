"""An ONNX model as a recalibration sees it: run over data in onnxruntime, level by level.

The process that runs onnxruntime also keeps the frontier between two levels and reduces activations to
moments, so that neither is sent about.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .data import Data
from .errors import InputError
from .estimate import Layer, Statistics
from .feeds import Array, room
from .moments import Gathering, SampleMoments
from .multiset import Multiset
from .ranks import Ranks
from .samples import MicroBatch, Rows, Selection, micro_batches
from .session import Observation, Session, Unrunnable
from .stages import Stages
from .sweep import Measured

_LARGEST = 32  # samples in a micro-batch
_ELEMENTS = 2**22  # in the inputs of a micro-batch of more than one
_LAST_DIGITS = 1e-2  # standard deviations that rounding may make, also in float16
_NO_ROOM = 2**63  # bytes


class Cache(StrEnum):
    """Where the values between levels are kept."""

    AUTO = "auto"
    RAM = "ram"
    DISK = "disk"
    NONE = "none"


@dataclass(eq=False)
class OnnxNetwork:
    """A `sweep.Network`.

    Attributes:
        stages: The parts of the model.
        folder: Where its external data lie.
        layers: Its BatchNormalizations, numbered as in `stages`.
        data: What it is calibrated with.
        rows: Which inputs hold one row per sample.
        splits: Whether samples are run one by one though others would make a difference.
        selection: Which of the samples are run here.
        session: Where.
        cache: Where the values between levels are kept; not AUTO after `prepare`.
        shelf: A folder for them.
        passes: How often all samples will be run.
        progress: Called with how many sample runs are done, and how many there will be.
        micro_batch: How many samples run at a time, at most.
        notes: What the user should know, a sentence each.
    """

    stages: Stages
    folder: Path
    layers: Sequence[Layer]
    data: Data
    rows: Rows
    splits: bool
    selection: Selection
    session: Session
    cache: Cache
    shelf: Path
    passes: int = 0
    progress: Callable[[int, int], None] | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.micro_batch = self.rows.size or _LARGEST
        self.levels = self.stages.levels
        self.statistics = _stored(self.layers)
        self._samples = 0
        self._done = 0
        self._computes = False  # whether the part that is open has any node
        self._passed: int | None = None  # the level whose frontier is kept
        self._kept: dict[str, np.dtype[Any]] = {}
        self._batches: list[MicroBatch] = []  # what is kept, by key
        self._seen = Multiset()

    def key(self, *how: object) -> str:
        """What measurements depend on besides the data.

        Args:
            how: What else it is, in words.
        """
        digest = hashlib.sha256(self.stages.model.SerializeToString(deterministic=True))
        names = {
            e.value
            for t in self.stages.model.graph.initializer
            for e in t.external_data
            if e.key == "location"
        }
        for name in sorted(names):
            with (self.folder / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        digest.update(repr((version("onnxruntime"), self.rows, how)).encode())
        return digest.hexdigest()

    def prepare(self, ranks: Ranks) -> None:
        """Try one micro-batch, and settle how all others are run.

        Raises:
            InputError: onnxruntime cannot run the model, or it mixes samples.
        """
        mixing = max(ranks.together(self._mixing))
        if mixing:
            self.go_alone(mixing)
        sizes = ranks.together(self._rehearsed)
        if self.cache is Cache.AUTO:
            self.cache = _affordable(sum(sizes), self.shelf)
        self._begin()

    def go_alone(self, mixing: float) -> bool:
        """Run samples one by one from now on, since what is measured for one depends on its neighbours.

        In the last digits it may: kernels can add up in another order at another place. If there is more to
        it, axis 0 may not count samples at all.

        Args:
            mixing: By how many standard deviations it does.

        Returns:
            Whether anything is different then: the statistics are those of the beginning again.

        Raises:
            InputError: They must not be, or cannot be run so.
        """
        if self.micro_batch == 1:
            return False
        if self.rows.size is not None:
            raise InputError(
                f"the model takes {self.rows.size} samples at a time, and what comes into its "
                "BatchNormalizations depends on which; export it with a free batch dimension, or of size 1"
            )
        if mixing > _LAST_DIGITS and not self.splits:
            raise InputError(
                "what comes into its BatchNormalizations for a row of the data depends on the other rows; "
                "pass --sample feed if axis 0 does not count samples, so that each file or batch of the data "
                "is one, or --sample row to run rows one by one"
            )
        self.micro_batch = 1
        self.notes.append("samples were run one by one, as their activations depend on their neighbours")
        self.statistics = _stored(self.layers)
        self._passed = None
        self._begin()
        return True

    def measure(
        self, chosen: Sequence[int], *, batch_statistics: bool = False, rearranged: bool = False
    ) -> Measured:
        """See `sweep.Network`."""
        chosen = tuple(chosen)
        is_level = chosen in self.levels and not (batch_statistics or rearranged)
        level = self.levels.index(chosen) if is_level else len(self.levels)
        begun = is_level and level - 1 == self._passed
        keep: list[str] = []
        if is_level and self.cache is not Cache.NONE:
            keep = sorted(self.stages.frontier(level))
        self._open(self._kept if begun else None, [self._data(i) for i in chosen] + keep, batch_statistics)
        moments = {i: Gathering(self.layers[i].channels) for i in chosen}
        seen, batches = Multiset(), []
        read = self._batches if begun else self._read(padded=not batch_statistics, rearranged=rearranged)
        for key, batch in enumerate(read):
            observed = self._run(batch, key, chosen, keep)
            for i in chosen:
                self._add(moments[i], i, observed.moments[self._data(i)], batch.indices)
            if not begun:
                self._see(seen, batch)
            if keep:
                batches.append(replace(batch, arrays={}))
                self._kept = {name: dtype for name, (dtype, _) in observed.kept.items()}
            self._tick(len(batch.indices))
        if keep:
            self._passed, self._batches = level, batches
        self._seen = self._seen if begun else seen
        return Measured({i: m.all() for i, m in moments.items()}, self._seen.value, self._seen.samples)

    def settle(self, layer: int, new: Statistics) -> None:
        """See `sweep.Network`."""
        self.statistics[layer] = new

    def _data(self, i: int) -> str:
        return self.stages.norms[i].data

    def _begin(self) -> None:
        """Have an empty place for what is kept."""
        folder = self.shelf / "levels"
        if self.cache is Cache.DISK:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        if self.cache is not Cache.AUTO:
            self.session.hold(folder if self.cache is Cache.DISK else None)

    def _read(self, *, padded: bool = True, rearranged: bool = False) -> Iterator[MicroBatch]:
        """The samples of this process; if not padded, without copies where the model can do without."""
        for batch in micro_batches(self.data, self.rows, self._size, self.selection, shifted=rearranged):
            count = batch.rows if padded or self.rows.size else len(batch.indices)
            arrays = {n: a[:count] if n in self.rows.batched else a for n, a in batch.arrays.items()}
            yield MicroBatch(batch.indices, arrays, count)

    def _size(self, arrays: Mapping[str, Array]) -> int:
        """How many samples such as these run at a time: fewer of large ones. Their shapes alone decide."""
        if self.rows.size is not None:
            return self.rows.size
        elements = sum(math.prod(arrays[name].shape[1:]) for name in self.rows.batched)
        fitting = min(self.micro_batch, _ELEMENTS // max(1, elements))
        return int(2 ** int(math.log2(max(1, fitting))))

    def _open(
        self,
        sources: Mapping[str, np.dtype[Any]] | None,
        targets: Sequence[str],
        batch_statistics: bool = False,
    ) -> None:
        """Load the part of the model that computes some values."""
        statistics = [(s.mean, s.var) for s in self.statistics]
        part = self.stages.part(sources, targets, statistics, batch_statistics=batch_statistics)
        self._computes = bool(part.graph.node)
        if not self._computes:
            return
        try:
            signature = self.session.open(part.SerializeToString(), folder=self.folder)
        except Unrunnable as error:
            raise InputError(f"onnxruntime cannot load the model: {error}") from error
        if signature.left_out:
            name, kind = next(iter(signature.left_out.items()))
            raise _Unkept(
                f"value '{name}' is a {kind}, which cannot be taken out of onnxruntime; if it is not what "
                "comes into a BatchNormalization, pass --cache none"
            )

    def _run(
        self, batch: MicroBatch, key: int, chosen: Sequence[int], keep: Sequence[str] = ()
    ) -> Observation:
        """Run the part that is open.

        Raises:
            InputError: onnxruntime fails.
        """
        try:
            return self.session.measure(
                batch.arrays,
                key,
                runs=self._computes,
                keep=keep,
                measure=dict.fromkeys(self._data(i) for i in chosen),
                samples=batch.rows,
            )
        except Unrunnable as error:
            first, last = batch.indices[0], batch.indices[-1]
            raise InputError(
                f"onnxruntime cannot run the model on samples {first} to {last}: {error}"
            ) from error

    def _add(self, moments: Gathering, i: int, found: SampleMoments, indices: Sequence[int]) -> None:
        """Add what is finite, without the copies.

        Raises:
            InputError: It is not.
        """
        found, layer = found.first(len(indices)), self.layers[i]
        if found.mean.shape[1] != layer.channels:
            raise InputError(
                f"BatchNormalization '{layer.name}' has {layer.channels} channels, but its input "
                f"'{self._data(i)}' has {found.mean.shape[1]}; the model is invalid, export it again"
            )
        if not found.size:
            return
        if not found.finite.all():
            raise InputError(
                f"BatchNormalization '{layer.name}': sample {indices[int(np.argmin(found.finite))]} of the "
                f"data brings NaN or infinity into its input '{self._data(i)}'; mend or leave out that "
                "sample, or look for an overflow before that layer"
            )
        moments.add(found)

    def _see(self, seen: Multiset, batch: MicroBatch) -> None:
        for row in range(len(batch.indices)):
            seen.add(a[row] if n in self.rows.batched else a for n, a in sorted(batch.arrays.items()))

    def _tick(self, samples: int) -> None:
        self._done += samples
        if self.progress is not None:
            self.progress(self._done, self._samples * self.passes)

    def _mixing(self) -> float:
        """How much what is measured for a sample depends on its place in the micro-batch, or on the others.

        Seen by running the first micro-batch, and one that is made of its first sample alone.

        Returns:
            In standard deviations; infinite if samples cannot be told apart.
        """
        first = next(self._read(), None)
        if first is None:
            return 0.0
        every = range(len(self.layers))
        self._open(None, [self._data(i) for i in every])
        try:
            found = [self._run(batch, 0, every) for batch in (first, self._repeated(first, first.rows))]
        except InputError as error:
            if self.rows.size is None and first.rows > 1:
                self._run(
                    self._repeated(first, 1), 0, every
                )  # if that fails as well, it is not the neighbours
                return math.inf
            if self.rows.batched:
                raise InputError(f"{error}; if axis 0 does not count samples, pass --sample feed") from error
            raise
        return max(_distance(found[0].moments[name], copies) for name, copies in found[1].moments.items())

    def _repeated(self, batch: MicroBatch, rows: int) -> MicroBatch:
        """So many copies of the first sample."""
        arrays = {
            name: np.repeat(array[:1], rows, axis=0) if name in self.rows.batched else array
            for name, array in batch.arrays.items()
        }
        return MicroBatch(batch.indices[:1] * rows, arrays, rows)

    def _rehearsed(self) -> int:
        """How many bytes the largest frontier of all samples takes, if that has to be known."""
        known = _count(self.data, self.selection)
        self._samples = sum(len(batch.indices) for batch in self._read()) if known is None else known
        first = next(self._read(), None)
        if self.cache is not Cache.AUTO or first is None:
            return 0
        frontiers = [self.stages.frontier(level) for level in range(len(self.levels) - 1)]
        keep = sorted(frozenset().union(*frontiers))
        try:
            self._open(None, keep)
        except _Unkept:
            return _NO_ROOM
        observed = self._run(first, 0, (), keep)
        self.session.hold()
        sizes = {name: size for name, (_, size) in observed.kept.items()}
        largest = max((sum(sizes[name] for name in frontier) for frontier in frontiers), default=0)
        return largest * -(-self._samples // first.rows)


class _Unkept(InputError):
    """A value that is no tensor."""


def _affordable(size: int, folder: Path) -> Cache:
    """Where so many bytes go: a quarter of the memory, or most of what is free on the disk."""
    if size <= room():
        return Cache.RAM
    return Cache.DISK if size <= 0.8 * shutil.disk_usage(folder).free else Cache.NONE


def _count(data: Data, selection: Selection) -> int | None:
    """How many samples this process has, if that is known without reading them."""
    if data.count is None:
        return None
    chosen = min(data.count, selection.limit or data.count)
    return len(range(selection.rank, chosen, selection.ranks))


def _stored(layers: Sequence[Layer]) -> list[Statistics]:
    return [Statistics(layer.mean.astype(layer.dtype), layer.var.astype(layer.dtype)) for layer in layers]


def _distance(values: SampleMoments, copies: SampleMoments) -> float:
    """How far the first of the values is from its copies, in standard deviations; 0 for the same bits."""
    if values.size != copies.size:
        return math.inf
    pairs = [(values.mean[:1], copies.mean), (values.m2[:1], copies.m2)]
    if all(np.array_equal(np.broadcast_to(one, many.shape), many, equal_nan=True) for one, many in pairs):
        return 0.0
    width = np.sqrt(np.mean(values.m2 / values.size + np.square(values.mean), axis=0))
    deviations = [np.sqrt(m2 / values.size) for m2 in (values.m2[:1], copies.m2)]
    off = np.abs(values.mean[:1] - copies.mean) + np.abs(deviations[0] - deviations[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.nan_to_num(off / width, nan=np.inf, posinf=np.inf).max())
