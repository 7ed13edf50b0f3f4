"""Count, mean and variance of the values of each channel: of an array, of a batch, of a whole data set.

There are two variances. The *population* variance Σ(x - μ)²/n is what every framework normalizes with while
it trains. The *sample* variance Σ(x - μ)²/(n - 1) is what PyTorch and TensorFlow's fused kernel write into
the running statistics. A worked example that circulates takes the batch [0.5, 2.0], of mean 1.25, and states
a variance of 0.3125 and x̂ = ±0.707. The population variance is 0.5625, the sample variance 1.125, and with
ε = 0 x̂ is ±1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from .edges import F64, need_axis, need_floats, wide


@dataclass(frozen=True, eq=False)
class Statistics:
    """What is known of n values per channel. All numbers are float64.

    Attributes:
        count: n, the values that each entry was measured over.
        mean: Their means, in the unit of the data. Of a batch and of a data set: shape (C,).
        population_var: Σ(x - μ)²/n, in that unit squared; the same shape.
    """

    count: int
    mean: F64
    population_var: F64

    @property
    def sample_var(self) -> F64:
        """Σ(x - μ)²/(n - 1) = n/(n - 1) · population variance.

        Raises:
            InputError: n = 1; one value has no sample variance.
        """
        return self.population_var * sample_factor(self.count)

    def merged(self, other: Statistics) -> Statistics:
        """The statistics of the values of both.

        By the law of total variance: with shares p and q of all values, means m and m + δ, variances v and
        w, the mean is m + q·δ and the variance p·v + q·w (within) + p·q·δ² (between). No term cancels
        another, unlike in E[x²] - E[x]², which may become negative. The mean of the variances alone, as some
        tools take it, drops what lies between the parts.

        Raises:
            InputError: The two are not of the same channels.
        """
        if self.mean.shape != other.mean.shape:
            raise InputError(
                f"statistics of shapes {self.mean.shape} and {other.mean.shape} are not of the same "
                f"channels: merge what was measured along one axis of data of one kind"
            )
        count = self.count + other.count
        p, q = self.count / count, other.count / count
        between = other.mean - self.mean
        within = p * self.population_var + q * other.population_var
        return Statistics(count, self.mean + q * between, within + p * q * between**2)


def sample_factor(n: int) -> float:
    """n/(n - 1): what makes the sample variance of the population variance (Bessel's correction).

    Raises:
        InputError: There are fewer than two values.
    """
    if n < 2:
        raise InputError(
            f"the sample variance of {n} value per channel does not exist (it divides by n - 1): "
            f"take more values per channel, or a convention that keeps the population variance"
        )
    return n / (n - 1)


def batch_statistics(x: ArrayLike, *, axis: int = 1) -> Statistics:
    """Statistics of each channel of one batch, over all other axes.

    Args:
        x: (N, C, ...), any floating dtype, rank 2 or more.
        axis: The axis of the channels.

    Raises:
        InputError: x is not floating, holds nothing, or has no such axis.
    """
    values = need_floats(x, "x")
    channel = need_axis("x", values.shape, axis, rank=2)
    return measure(wide(values), tuple(i for i in range(values.ndim) if i != channel))[0]


def dataset_statistics(batches: Iterable[ArrayLike], *, axis: int = 1) -> Statistics:
    """Statistics of each channel over all samples of a data set, each counted once.

    Memory is that of one batch. The batches may differ in all sizes but the number of channels.

    Args:
        batches: Arrays (N, C, ...); for a single array x, [x].
        axis: The axis of the channels.

    Raises:
        InputError: There is no batch, or one that `batch_statistics` refuses, or of other channels.
    """
    if isinstance(batches, np.ndarray):
        raise InputError(
            f"batches is one array of shape {batches.shape}, and a sequence of arrays is expected: "
            f"put it into a list"
        )
    total: Statistics | None = None
    for batch in batches:
        part = batch_statistics(batch, axis=axis)
        total = part if total is None else total.merged(part)
    if total is None:
        raise InputError("the data set holds no batch, so there are no statistics: pass at least one sample")
    return total


def measure(values: F64, axes: tuple[int, ...]) -> tuple[Statistics, F64]:
    """The statistics over some axes (which vanish from their shape), and the values minus their mean.

    All is computed relative to the first value: what a large mean would cost in digits is gone before
    anything is summed, and the variance of equal values is exactly 0.
    """
    first = tuple(slice(0, 1) if i in axes else slice(None) for i in range(values.ndim))
    relative = values - values[first]
    offset = relative.mean(axis=axes, keepdims=True)
    centred = relative - offset
    mean = (values[first] + offset).squeeze(axes)
    count = math.prod(values.shape[i] for i in axes)
    var = (centred**2).mean(axis=axes, keepdims=True).squeeze(axes)
    return Statistics(count, mean, var), centred
