"""Batch renormalization: batch normalization in training that ends up where inference does.

Source: S. Ioffe, *Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models*,
2017, https://arxiv.org/abs/1702.03275. With the deviation s = √(σ² + ε) of the batch and running μ_run and
s_run,

    r = clip(s/s_run, 1/r_max, r_max)        d = clip((μ - μ_run)/s_run, -d_max, d_max)
    y = scale · (x̂ · r + d) + bias           x̂ = (x - μ)/s

Without clipping x̂·r + d is (x - μ_run)/s_run, what inference computes. No gradient goes through r and d:
they are constants of the step, although they are computed from x. Here, unlike in batch normalization, the
running average is that of the *deviation* s, ε included, in the paper as in Keras.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ..errors import InputError
from .batch import per_channel
from .conventions import Convention
from .edges import F64, Array, need_floats, rounded, wide
from .kernel import Gradients, Layout, Standardized, affine, affine_backward, deviation
from .statistics import Statistics


@dataclass(frozen=True)
class Clip:
    """Bounds of r and d; without arguments there are none.

    Attributes:
        r_max: At least 1.
        d_max: At least 0; in running deviations.
        r_min: At most 1; None is 1/r_max. Keras has it as a number of its own.

    Raises:
        InputError: A bound that leaves out r = 1 or d = 0, with which training starts.
    """

    r_max: float = math.inf
    d_max: float = math.inf
    r_min: float | None = None

    def __post_init__(self) -> None:
        if not (self.r_max >= 1.0 and self.d_max >= 0.0 and 0.0 <= self.lowest_r <= 1.0):
            raise InputError(
                f"the bounds r_max {self.r_max}, r_min {self.r_min} and d_max {self.d_max} leave no room for "
                f"r = 1 and d = 0: choose r_min <= 1 <= r_max and d_max >= 0"
            )

    @property
    def lowest_r(self) -> float:
        """r_min, or what stands for it."""
        return 1.0 / self.r_max if self.r_min is None else self.r_min


@dataclass(frozen=True)
class Schedule:
    """Bounds that widen in the course of a training: none of r and d first, then linearly more.

    The defaults are those of the paper.

    Attributes:
        start: Up to this step r = 1 and d = 0, which is batch normalization.
        r_max: Reached at step `r_end`.
        r_end: Steps.
        d_max: Reached at step `d_end`.
        d_end: Steps.

    Raises:
        InputError: An end lies before the start.
    """

    start: int = 5_000
    r_max: float = 3.0
    r_end: int = 40_000
    d_max: float = 5.0
    d_end: int = 25_000

    def __post_init__(self) -> None:
        if self.start > min(self.r_end, self.d_end):
            raise InputError(
                f"the bounds widen from step {self.start} to {self.r_end} (r) and {self.d_end} (d): "
                f"choose ends that are not before the start"
            )

    def at(self, step: int) -> Clip:
        """The bounds at a step of the training, counted from 0."""
        r_max = np.interp(step, (self.start, self.r_end), (1.0, self.r_max))
        d_max = np.interp(step, (self.start, self.d_end), (0.0, self.d_max))
        return Clip(float(r_max), float(d_max))


@dataclass(frozen=True, eq=False)
class RunningDeviation:
    """Running statistics of batch renormalization.

    Attributes:
        mean: (C,), any floating dtype.
        std: (C,), the running average of √(σ² + ε).
        batches: How many batches went into them.
    """

    mean: Array
    std: Array
    batches: int = 0

    @classmethod
    def initial(cls, channels: int, dtype: DTypeLike = np.float32) -> RunningDeviation:
        """Mean 0 and deviation 1."""
        return cls(np.zeros(channels, dtype), np.ones(channels, dtype))

    def updated(self, batch: Statistics, convention: Convention, epsilon: float) -> RunningDeviation:
        """After one more batch. Of the convention only the momentum matters: s is the same in all."""
        std = deviation(batch.population_var, epsilon)
        return RunningDeviation(
            convention.average(self.mean, batch.mean, self.batches),
            convention.average(self.std, std, self.batches),
            self.batches + 1,
        )

    def var(self, epsilon: float) -> Array:
        """The variance for inference with that ε: std² - ε, at least 0."""
        std = need_floats(self.std, "std")
        return rounded(np.maximum(wide(std) ** 2 - epsilon, 0.0), std)


@dataclass(frozen=True, eq=False)
class Renormalized:
    """What batch renormalization gives.

    Attributes:
        y: The result; shape and dtype of x.
        statistics: Those of the batch, per channel.
        r: (C,), after clipping.
        d: (C,), after clipping.
    """

    y: Array
    statistics: Statistics
    r: F64
    d: F64


def batch_renormalization(
    x: ArrayLike,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    running: RunningDeviation,
    *,
    clip: Clip,
    epsilon: float = 1e-5,
    axis: int = 1,
) -> Renormalized:
    """Training mode; in inference it is `batch_normalization` with running.mean and running.var(epsilon).

    Args:
        x: (N, C, ...), rank 2 or more, any floating dtype.
        scale: (C,); None is 1.
        bias: (C,); None is 0.
        running: What earlier batches left; of this batch, nothing. Deviations below √ε count as √ε.
        clip: `Clip()`, or of a `Schedule` at the present step.
        epsilon: Added to the variance.
        axis: The axis of the channels.

    Raises:
        InputError: Nothing to normalize, or types or shapes that do not fit.
    """
    data = need_floats(x, "x")
    layout = per_channel(data, axis)
    standard = Standardized.of(layout.seen(data), layout.axes, epsilon)
    r, d = _corrections(standard, running, clip, layout, epsilon)
    y = affine(data, standard.hat * r + d, scale, bias, layout)
    return Renormalized(y, standard.statistics, r.ravel(), d.ravel())


def batch_renormalization_backward(
    dy: ArrayLike,
    x: ArrayLike,
    scale: ArrayLike | None,
    running: RunningDeviation,
    *,
    clip: Clip,
    epsilon: float = 1e-5,
    axis: int = 1,
) -> Gradients:
    """Backward: dx as of batch normalization times r, dscale = Σdy·(x̂·r + d), dbias = Σdy.

    Args:
        dy: ∂L/∂y, shape of x.
        x: What the forward got; the rest as there, `running` that of before the step.

    Raises:
        InputError: As the forward.
    """
    data = need_floats(x, "x")
    layout = per_channel(data, axis)
    standard = Standardized.of(layout.seen(data), layout.axes, epsilon)
    r, d = _corrections(standard, running, clip, layout, epsilon)
    hat = standard.hat * r + d
    return affine_backward(dy, data, hat, scale, layout, lambda g: standard.backward(g * r))


def _corrections(
    standard: Standardized, running: RunningDeviation, clip: Clip, layout: Layout, epsilon: float
) -> tuple[F64, F64]:
    """r and d, broadcasting against x̂."""
    std = np.maximum(layout.spread_out(running.std, "the running deviation", 1.0), math.sqrt(epsilon))
    run = layout.spread_out(running.mean, "the running mean", 0.0)
    mean = standard.statistics.mean.reshape(layout.spread)
    r = np.clip(standard.std / std, clip.lowest_r, clip.r_max)
    return r, np.clip((mean - run) / std, -clip.d_max, clip.d_max)
