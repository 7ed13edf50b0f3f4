"""The order of a recalibration: measure a level, settle its statistics, go on; at last measure all again.

It knows no framework. What is recalibrated is a `Network`; that several processes share the data is the
business of `Ranks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .errors import InputError
from .estimate import Estimator, Layer, Statistics, layer_report
from .journal import Journal
from .moments import Moments
from .ranks import Alone, Ranks
from .recalibration import LayerReport, Method


class Network(Protocol):
    """A model whose BatchNormalizations can be measured while it runs in inference mode."""

    @property
    def layers(self) -> Sequence[Layer]:
        """Its BatchNormalizations, in the order of the graph."""

    @property
    def levels(self) -> Sequence[Sequence[int]]:
        """Their indices, level by level: what comes into one depends on those of lower levels only."""

    def measure(
        self, chosen: Sequence[int], *, batch_statistics: bool = False, rearranged: bool = False
    ) -> Measured:
        """Run this process's share of the data once, and return the moments of what comes into layers.

        The engine asks for the levels in their order, though it may begin at a later one, and for all
        layers at last.

        Args:
            chosen: The layers.
            batch_statistics: Let every BatchNormalization normalize by its batch.
            rearranged: Run each sample at another place, and with other neighbours, than otherwise.

        Raises:
            InputError: There are no such data, or a value is not finite.
        """

    def settle(self, layer: int, new: Statistics) -> None:
        """From now on, the layer has these statistics."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What one pass over the data brought.

    Attributes:
        moments: By layer.
        digest: A number that tells the multiset of samples; sums over processes tell the union.
        samples: How many there were.
    """

    moments: Mapping[int, Moments]
    digest: int
    samples: int


@dataclass(frozen=True)
class Gate:
    """What must be reached.

    Attributes:
        min_samples: So many samples.
        max_error: The largest standard error of a mean, in √(var + ε), and of a variance, in var + ε.
    """

    min_samples: int | None = None
    max_error: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a sweep found.

    Attributes:
        layers: One report for each.
        samples: How many took part.
        failure: Why the result must not be used: a gate that is not passed, or statistics that the finished
            network does not have. Empty if it may.
        steady: Whether the finished network, in which samples have other places and other neighbours, brought
            the same moments to the last bit. If not, what is measured for a sample depends on others.
    """

    layers: tuple[LayerReport, ...]
    samples: int
    failure: str = ""
    steady: bool = True

    @property
    def gap(self) -> float:
        """How far stored statistics are from those of the finished network, see `LayerReport`."""
        return max(max(layer.mean_gap, layer.var_gap) for layer in self.layers)


@dataclass
class Sweep:
    """One recalibration.

    Attributes:
        network: What is recalibrated.
        method: How statistics are estimated.
        estimator: Makes statistics from moments.
        gate: What must be reached.
        ranks: The processes that take part.
        journal: What was found before an interruption, and will be; None if nothing is kept. Of several
            processes, the first has it.
    """

    network: Network
    method: Method = Method.EXACT
    estimator: Estimator = field(default_factory=Estimator)
    gate: Gate = field(default_factory=Gate)
    ranks: Ranks = field(default_factory=Alone)
    journal: Journal | None = None
    _digest: tuple[int, int] | None = None
    _resumed: bool = False

    def run(self) -> Outcome:
        """Settle all layers, and prove it.

        Raises:
            InputError: There are no data, or too few; a layer is never reached; a value is not finite; the
                data are not the same in every pass.
        """
        remembered = self._remember()
        moments: dict[int, Moments] = {}
        settled: dict[int, Statistics] = {}
        for level in self._passes():
            moments |= self._found(level, remembered)
            for i in level:
                settled[i] = self.estimator.statistics(self.network.layers[i], moments[i])
                self._need_usable(i, settled[i])
                self.network.settle(i, settled[i])
        samples = max(found.samples for found in moments.values())
        final = self._measure(range(len(self.network.layers)), rearranged=True)
        levels = {i: number for number, level in enumerate(self.network.levels) for i in level}
        layers = tuple(
            layer_report(layer, levels[i], self.estimator, settled[i], moments[i], final[i])
            for i, layer in enumerate(self.network.layers)
        )
        steady = self.method is Method.ONEPASS or all(final[i] == moments[i] for i in final)
        return Outcome(layers, samples, self._failure(layers, samples), steady)

    def _passes(self) -> Sequence[Sequence[int]]:
        if self.method is Method.ONEPASS:
            return [range(len(self.network.layers))]
        return self.network.levels

    def _remember(self) -> Mapping[int, Moments]:
        """What the journal knows; one process has it."""

        def read() -> tuple[Mapping[int, Moments], tuple[int, int] | None]:
            return ({}, None) if self.journal is None else (dict(self.journal.found), self.journal.digest)

        found, self._digest = self.ranks.together(read)[0]
        self._resumed = bool(found)
        return found

    def _found(self, level: Sequence[int], remembered: Mapping[int, Moments]) -> Mapping[int, Moments]:
        """The moments of a level, from the journal or from the data."""
        if all(i in remembered for i in level):
            return {i: remembered[i] for i in level}
        found = self._measure(level, batch_statistics=self.method is Method.ONEPASS)
        if self.journal is not None and self._digest is not None:
            self.journal.record(found, self._digest)
        return found

    def _measure(self, chosen: Sequence[int], **how: bool) -> Mapping[int, Moments]:
        """The moments over the data of all processes, see `Network.measure`."""
        parts = self.ranks.together(lambda: self.network.measure(chosen, **how))
        self._need_same_data(sum(p.digest for p in parts), sum(p.samples for p in parts))
        found = {}
        for i in chosen:
            found[i] = Moments(self.network.layers[i].channels)
            for part in parts:
                if i in part.moments:
                    found[i].merge(part.moments[i])
            if not found[i].count:
                raise InputError(
                    f"BatchNormalization '{self.network.layers[i].name}' is never reached by the data, so "
                    "its statistics cannot be estimated; give data that use it, or leave it out"
                )
        return found

    def _need_same_data(self, digest: int, samples: int) -> None:
        if not samples:
            raise InputError("the calibration data hold no sample; nothing was changed")
        if self._digest is None:
            self._digest = (digest, samples)
        if self._digest != (digest, samples):
            before = self._digest[1]
            what = f"{samples} samples instead of {before}" if samples != before else "other values"
            whence = "the interrupted run" if self._resumed else "the first pass"
            raise InputError(
                f"the calibration data differ from those of {whence}: {what}; they are read several times "
                "and must be the same each time (no random augmentation)"
            )

    def _need_usable(self, i: int, new: Statistics) -> None:
        layer = self.network.layers[i]
        for what, numbers in (("mean", new.mean), ("variance", new.var)):
            if not np.isfinite(numbers.astype(np.float64)).all():
                raise InputError(
                    f"BatchNormalization '{layer.name}': the {what} of its input is beyond the range of "
                    f"{layer.dtype.name}, in which it is stored"
                )
        width = new.var.astype(np.float64) + layer.epsilon
        if not (width > 0).all():
            raise InputError(
                f"BatchNormalization '{layer.name}': channel {int(np.argmin(width))} is constant over all "
                "samples, and the model would divide by zero, as epsilon is 0; give other data, or prune it"
            )

    def _failure(self, layers: Sequence[LayerReport], samples: int) -> str:
        asked, limit = self.gate.min_samples, self.gate.max_error
        if asked is not None and samples < asked:
            return f"{samples} samples are fewer than the {asked} asked for; give more data"
        worst = max(layers, key=_error)
        if limit is not None and _error(worst) > limit:
            enough = f" (about {_enough(worst, limit):,} samples)" if worst.samples > 1 else ""
            return (
                f"BatchNormalization '{worst.name}': {worst.samples} samples leave a standard error of "
                f"{_error(worst):.3g}, above the {limit:.3g} asked for; give more data{enough}"
            )
        off = max(layers, key=lambda layer: layer.limit_used)
        if off.limit_used > 1 and self.method is not Method.ONEPASS:
            return (
                f"BatchNormalization '{off.name}': in the finished network its mean is off by "
                f"{off.mean_gap:.3g} standard deviations and its log variance by {off.var_gap:.3g}, more "
                "than rounding explains; does the model draw random numbers, or keep something between runs?"
            )
        return ""


def _error(layer: LayerReport) -> float:
    return max(layer.mean_error, layer.var_error)


def _enough(layer: LayerReport, limit: float) -> int:
    """How many samples would bring the standard error down to a limit: it falls with their root."""
    return int(layer.samples * (_error(layer) / limit) ** 2) + 1
