"""How running statistics are averaged: five conventions with names, and the way from one to another.

After each batch of the training, running ← w·new + (1 - w)·running, for the mean and for the *variance*
(circulating notes that average the standard deviation describe batch renormalization). Frameworks differ in

- what `momentum` weights: the new value (PyTorch: w = momentum) or the old (the others: w = 1 - momentum);
- which variance is averaged: the sample variance (PyTorch, TensorFlow's fused kernel) or the population one.

The variance that a batch itself is normalized with is the population variance in all of them.

Sources: https://docs.pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html,
https://onnx.ai/onnx/operators/onnx__BatchNormalization.html,
https://keras.io/api/layers/normalization_layers/,
https://www.tensorflow.org/api_docs/python/tf/raw_ops/FusedBatchNormV3,
https://flax.readthedocs.io/en/latest/api_reference/flax.linen/layers.html.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ..errors import InputError
from .edges import F64, Array, need_floats, need_shape, rounded, wide
from .statistics import Statistics, sample_factor

Weighted = Literal["old", "new"]
Variance = Literal["population", "sample"]


@dataclass(frozen=True, eq=False)
class Running:
    """Running statistics of a layer.

    Attributes:
        mean: (C,), any floating dtype.
        var: (C,); population or sample variance, as the convention has it.
        batches: How many batches went into them; a cumulative average needs it.
    """

    mean: Array
    var: Array
    batches: int = 0

    @classmethod
    def initial(cls, channels: int, dtype: DTypeLike = np.float32) -> Running:
        """Mean 0 and variance 1, as every framework begins."""
        return cls(np.zeros(channels, dtype), np.ones(channels, dtype))


@dataclass(frozen=True)
class Convention:
    """How a framework averages. For other numbers: `dataclasses.replace(PYTORCH, momentum=None)`.

    Attributes:
        name: Whose it is.
        momentum: Its default, between 0 and 1; None for the plain (cumulative) average of all batches.
        momentum_weights: Whether momentum multiplies the "old" or the "new" value.
        epsilon: The default of what is added to the variance. It is part of the function that a trained layer
            computes: carry the layer's own over, do not put another framework's default in its place.
        variance: Whether the running variance averages the "population" or the "sample" variance.

    Raises:
        InputError: `momentum_weights` or `variance` is none of the two.
    """

    name: str
    momentum: float | None
    momentum_weights: Weighted
    epsilon: float
    variance: Variance

    def __post_init__(self) -> None:
        for value, legal in ((self.momentum_weights, Weighted), (self.variance, Variance)):
            if value not in get_args(legal):
                raise InputError(f"{value!r} is no part of a convention: use one of {get_args(legal)}")

    def weight_of_new(self, batches: int = 0) -> float:
        """w, the weight of the batch that follows `batches` others: 1/(batches + 1) if momentum is None."""
        if self.momentum is None:
            return 1.0 / (batches + 1)
        return self.momentum if self.momentum_weights == "new" else _complement(self.momentum)

    def average(self, running: ArrayLike, new: ArrayLike, batches: int = 0) -> Array:
        """w·new + (1 - w)·running, in the dtype of `running`.

        Args:
            running: The average over `batches` batches.
            new: The value of the next one; the same shape.
            batches: Matters only where momentum is None.

        Raises:
            InputError: The two are not floating, or not of one shape.
        """
        old = need_floats(running, "running")
        w = self.weight_of_new(batches)
        return rounded(w * wide(need_shape(new, "the batch's value", old.shape)) + (1.0 - w) * wide(old), old)

    def batch_var(self, batch: Statistics) -> F64:
        """The variance of a batch that goes into the running variance.

        Raises:
            InputError: It is the sample variance, and the batch has one value per channel.
        """
        return batch.population_var if self.variance == "population" else batch.sample_var

    def update(self, running: Running, batch: Statistics) -> Running:
        """Running statistics after one more batch, in their own dtype.

        Raises:
            InputError: Other channels, or a sample variance of one value.
        """
        return Running(
            self.average(running.mean, batch.mean, running.batches),
            self.average(running.var, self.batch_var(batch), running.batches),
            running.batches + 1,
        )

    def momentum_in(self, other: Convention) -> float | None:
        """The momentum with which `other` averages as this one does: 0.1 of PyTorch is 0.9 elsewhere."""
        if self.momentum is None or self.momentum_weights == other.momentum_weights:
            return self.momentum
        return _complement(self.momentum)

    def var_in(self, other: Convention, var: ArrayLike, count: int) -> Array:
        """A running variance of this convention as `other` would have it, in the dtype of `var`.

        Exact if all batches had `count` values per channel, and up to what is left of the initial 1.

        Args:
            var: (C,).
            count: Values per channel in a batch: N for (N, C), N·H·W for (N, C, H, W).

        Raises:
            InputError: One of the two keeps the sample variance, and count is 1.
        """
        stored = need_floats(var, "var")
        if self.variance == other.variance:
            return stored.copy()
        factor = sample_factor(count)
        return rounded(wide(stored) * factor if other.variance == "sample" else wide(stored) / factor, stored)


PYTORCH = Convention("PyTorch", 0.1, "new", 1e-5, "sample")
ONNX = Convention("ONNX", 0.9, "old", 1e-5, "population")
"""From opset 14 on; before, the running variance that a node in training mode gives is left open."""
KERAS = Convention("Keras", 0.99, "old", 1e-3, "population")
TENSORFLOW_FUSED = Convention("TensorFlow (fused)", 0.99, "old", 1e-3, "sample")
FLAX = Convention("Flax", 0.99, "old", 1e-5, "population")


def _complement(momentum: float) -> float:
    """1 - momentum in decimals, as people write it: 0.1 for 0.9, and back to the same number."""
    return float(1 - Decimal(str(momentum)))
