"""What a recalibration found out, as plain data.

Distances between statistics are told in units in which they matter to the network: a mean in standard
deviations √(var + ε), a variance by the logarithm of var + ε.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Method(StrEnum):
    """How statistics are estimated.

    Attributes:
        EXACT: Level by level, so that each BatchNormalization has the mean and variance of what really
            comes in once all before it are recalibrated.
        ONEPASS: In one pass in which every BatchNormalization uses the statistics of the batch, pooled by
            the law of total variance. The result depends on the batches; for comparison.
        BLEND: As EXACT, the statistics that were there counting as so many samples; for very few samples.
    """

    EXACT = "exact"
    ONEPASS = "onepass"
    BLEND = "blend"


@dataclass(frozen=True)
class LayerReport:
    """What became of one BatchNormalization. Figures are those of the worst channel.

    Attributes:
        name: What the user knows it by.
        level: Its place in the order of measurement, from 0; those of one level do not depend on each other.
        channels: C.
        samples: How many were measured.
        count: How many values per channel they held.
        mean_drift: |new mean - old mean|/√(old var + ε).
        var_drift: |log((new var + ε)/(old var + ε))|.
        output_drift: Root mean square, over data and channels, of the change of the output.
        mean_error: Standard error of the mean, over √(var + ε); infinite for one sample.
        var_error: Standard error of the variance, over var + ε; infinite for one sample.
        mean_gap: |mean in the finished network - stored mean|/√(var + ε).
        var_gap: The same of log(var + ε).
        limit_used: The largest share of what rounding explains that a gap takes; the certificate stands
            for up to 1.
        dead: Channels whose variance is 0.
        untouched: Whether the old statistics were those with which training begins (0 and 1).
    """

    name: str
    level: int
    channels: int
    samples: int
    count: int
    mean_drift: float
    var_drift: float
    output_drift: float
    mean_error: float
    var_error: float
    mean_gap: float
    var_gap: float
    limit_used: float
    dead: int
    untouched: bool


@dataclass(frozen=True)
class RecalibrateReport:
    """What `recalibrate` did.

    Attributes:
        source: What the user calls the model.
        target: What was written; None if nothing was.
        method: How statistics were estimated.
        variance: Which variance was stored.
        samples: How many calibrated it.
        micro_batch: How many ran at a time, at most.
        levels: How many levels the BatchNormalizations form.
        cache: Where the values between levels were kept.
        processes: How many took part.
        layers: One for each, in the order of the graph.
        notes: What the user should know besides, a sentence each.
    """

    source: str
    target: str | None
    method: Method
    variance: str
    samples: int
    micro_batch: int
    levels: int
    cache: str
    processes: int
    layers: tuple[LayerReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether the finished network has exactly the statistics that are stored, up to their rounding."""
        return all(layer.limit_used <= 1 for layer in self.layers)
