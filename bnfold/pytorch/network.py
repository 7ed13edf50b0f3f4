"""A module as what `sweep` settles: its normalizations measured, level by level, over all data.

Two ways lead through the levels. Either each one starts from the inputs and ends when the level has been
seen. Or all passes stand still at the normalizations that are next, and go on once those are settled, so that
all levels together cost one run through the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from ..errors import BnfoldError
from ..estimate import Layer, Statistics
from ..moments import Gathering, SampleMoments
from ..sweep import Measured
from .batches import Batches, MicroBatch
from .observed import Enough, Failed, Observed, Pass, moments_of

Progress = Callable[[int, int | None], None]


class Unkept(BnfoldError):
    """The passes cannot stand still."""


@dataclass(frozen=True)
class Room:
    """What standing passes may take.

    Attributes:
        nbytes: All together; None for any.
        each: What one holds at most.
    """

    nbytes: int | None
    each: int


class ModuleNetwork:
    """A module and its data.

    Attributes:
        layers: Its normalizations, as they were.
        levels: Their numbers, level by level.
        statistics: What was settled, by number.
    """

    def __init__(
        self,
        observed: Observed,
        layers: Sequence[Layer],
        batches: Batches,
        levels: Sequence[Sequence[int]],
        cache: Literal["ram", "none"],
        room: Room,
        progress: Progress | None,
    ) -> None:
        """Nothing runs yet.

        Args:
            observed: The module.
            layers: Its normalizations, as they were.
            batches: The data.
            levels: In which order to measure. If passes are to stand still, one normalization each, in the
                order in which they are called.
            cache: Whether passes stand still.
            room: For them.
            progress: Called with how often a sample has been looked at, and will be at most; None if that is
                not known yet.
        """
        self.layers = layers
        self.levels = levels
        self.statistics: dict[int, Statistics] = {}
        self._observed, self._batches = observed, batches
        self._keeps, self._room = cache == "ram", room
        self._progress = progress
        self._done = 0
        self._total: int | None = None
        self._standing: list[Pass] | None = None
        self._data = (0, 0)

    def measure(
        self, chosen: Sequence[int], *, batch_statistics: bool = False, rearranged: bool = False
    ) -> Measured:
        """As `sweep.Network` says.

        Raises:
            Unkept: The passes cannot stand still, or the module does not bear it.
            InputError: The module cannot run on the data, or what comes into a normalization is not finite.
        """
        moments = {i: Gathering(self.layers[i].channels) for i in chosen}
        if self._keeps and len(chosen) == 1 < len(self.layers):
            self._measure_standing(chosen[0], moments[chosen[0]])
        else:
            self.close()
            self._data = (0, 0)
            for batch in self._batches.read(shifted=rearranged):
                self._run(batch, moments, batch_statistics)
                self._count(batch)
                self._tell(batch)
        self._total = self._data[1] * (len(self.levels) + 1)
        return Measured({i: found.all() for i, found in moments.items()}, *self._data)

    def settle(self, layer: int, new: Statistics) -> None:
        """As `sweep.Network` says."""
        self._observed.norms[layer].set(new)
        self.statistics[layer] = new

    def close(self) -> None:
        """End all passes."""
        for one in self._standing or ():
            one.fork.close()
        self._standing = None

    def _run(self, batch: MicroBatch, moments: Mapping[int, Gathering], batch_statistics: bool) -> None:
        left = set(moments)

        def visit(i: int, x: torch.Tensor) -> None:
            if i not in left:
                return
            found = moments_of(self._observed.norms[i], x, batch)
            if found is not None:
                moments[i].add(found)
                if batch_statistics:
                    self._observed.norms[i].set(_pooled(found))
            left.discard(i)
            if not left:
                raise Enough

        self._observed.run(batch, visit)

    def _measure_standing(self, i: int, moments: Gathering) -> None:
        for one in self._passes():
            if one.at is None or one.at[0] in self.statistics:
                self._go_on(one)
            if one.at is not None and one.at[0] == i:
                found = moments_of(self._observed.norms[i], one.at[1], one.batch)
                if found is not None:
                    moments.add(found)
            self._tell(one.batch)
        if self._standing is not None:
            self._standing = [one for one in self._standing if one.at is not None]

    def _passes(self) -> Iterator[Pass]:
        """Those that stand, or at first all, each as its data are read."""
        if self._standing is not None:
            yield from self._standing
            return
        self._standing = []
        self._data = (0, 0)
        for batch in self._batches.read():
            self._need_room()
            try:
                self._standing.append(Pass(self._observed, batch))
            except RuntimeError as error:
                raise Unkept(f"{len(self._standing)} micro-batches cannot be kept: {error}") from error
            self._count(batch)
            yield self._standing[-1]

    def _go_on(self, one: Pass) -> None:
        """To the next normalization that is not settled, or to the end."""
        try:
            while one.go_on() and one.at is not None and one.at[0] in self.statistics:
                pass
        except Failed as error:
            raise Unkept(f"the module fails when other samples are run before it is done: {error}") from error

    def _need_room(self) -> None:
        count = len(self._standing or ()) + 1
        if self._room.nbytes is not None and count * self._room.each > self._room.nbytes:
            raise Unkept(
                f"{count} micro-batches of {self._room.each / 2**20:.0f} MB each are more than a quarter of "
                "the memory"
            )

    def _count(self, batch: MicroBatch) -> None:
        self._data = (self._data[0] + batch.digest, self._data[1] + len(batch.indices))

    def _tell(self, batch: MicroBatch) -> None:
        self._done += len(batch.indices)
        if self._progress is not None:
            self._progress(self._done, self._total)


def _pooled(found: SampleMoments) -> Statistics:
    """Those of all samples of a micro-batch together."""
    mean = found.mean.mean(axis=0)
    return Statistics(mean, found.m2.mean(axis=0) / found.size + np.square(found.mean - mean).mean(axis=0))
