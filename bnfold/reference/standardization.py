"""Standardization of a network's inputs: (x - mean)/std per channel, with statistics of the training data.

It is not a normalization layer: mean and std are measured once, over the whole training set, and then are
constants that the test data and the deployed model share. There is no ε.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .edges import F64, Array, need_axis, need_floats, need_shape, rounded, wide
from .statistics import dataset_statistics


@dataclass(frozen=True, eq=False)
class Standardization:
    """A map that gives each channel mean 0 and standard deviation 1, and the way back.

    Attributes:
        mean: (C,), in the unit of the data.
        std: (C,), in the same unit; 1 for a channel that is constant, which is thereby mapped to 0.
        axis: The axis of the channels (of the features, for data of shape (N, F)).
    """

    mean: F64
    std: F64
    axis: int = 1

    @classmethod
    def fit(cls, batches: Iterable[ArrayLike], *, axis: int = 1) -> Standardization:
        """Mean and (population) standard deviation over a data set, all samples counted once.

        Args:
            batches: Arrays (N, C, ...) in any floating dtype; for a single array x, [x].
            axis: The axis of the channels.

        Raises:
            InputError: As `dataset_statistics`.
        """
        statistics = dataset_statistics(batches, axis=axis)
        std = np.sqrt(statistics.population_var)
        return cls(statistics.mean, np.where(std == 0.0, 1.0, std), axis)

    def apply(self, x: ArrayLike) -> Array:
        """(x - mean)/std, in the shape and dtype of x.

        Raises:
            InputError: x is not floating, is empty, or has other channels.
        """
        data, mean, std = self._beside(x)
        return rounded((wide(data) - mean) / std, data)

    def undo(self, z: ArrayLike) -> Array:
        """z·std + mean: what `apply` was given, up to rounding; a constant channel gets its constant back.

        Raises:
            InputError: z is not floating, is empty, or has other channels.
        """
        data, mean, std = self._beside(z)
        return rounded(wide(data) * std + mean, data)

    def _beside(self, x: ArrayLike) -> tuple[Array, F64, F64]:
        """The data, and mean and std so that they broadcast against them."""
        data = need_floats(x, "x")
        channel = need_axis("x", data.shape, self.axis, rank=2)
        channels = (data.shape[channel],)
        shape = tuple(-1 if i == channel else 1 for i in range(data.ndim))
        mean, std = need_shape(self.mean, "mean", channels), need_shape(self.std, "std", channels)
        return data, wide(mean).reshape(shape), wide(std).reshape(shape)
