"""From moments to the running statistics of a layer, and to the figures that a report tells about them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .moments import Moments, nearest
from .recalibration import LayerReport, Method

F64 = NDArray[np.float64]

_SMALL = 1e-6  # no deployment can tell such a distance
_ROUNDINGS = 4.0  # so many unit roundoffs of the type in which statistics are stored


@dataclass(frozen=True, eq=False)
class Layer:
    """A BatchNormalization as it was.

    Attributes:
        name: What the user knows it by.
        mean: Shape (C,).
        var: Shape (C,), in the convention of the model.
        scale: Shape (C,); None where there is none.
        epsilon: ε.
        dtype: In which mean and variance are stored.
    """

    name: str
    mean: F64
    var: F64
    scale: F64 | None
    epsilon: float
    dtype: np.dtype[np.generic]

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def is_untouched(self) -> bool:
        """Whether its statistics are those with which training begins."""
        return not np.any(self.mean) and bool(np.all(self.var == 1))


@dataclass(frozen=True, eq=False)
class Statistics:
    """A mean and a variance per channel, shape (C,) each, in float64 or as they are stored."""

    mean: NDArray[Any]
    var: NDArray[Any]


@dataclass(frozen=True)
class Estimator:
    """Makes the statistics of a layer from its moments.

    Attributes:
        variance: Of the population, which all frameworks normalize by while training; or of the sample,
            which PyTorch stores.
        prior: How many samples the statistics that were there count as.
    """

    variance: Literal["population", "sample"] = "population"
    prior: int = 0

    @classmethod
    def of(
        cls, method: Method, prior: int | None, variance: Literal["population", "sample"] = "population"
    ) -> Self:
        """That of a method.

        Raises:
            InputError: The prior is for blending, and only for that.
        """
        if (method is Method.BLEND) != (prior is not None):
            raise InputError(
                "the method 'blend' needs prior_samples, which no other method takes: how many samples the "
                "statistics that are there count as"
            )
        if prior is not None and prior < 1:
            raise InputError(f"prior_samples is {prior}; give 1 or more")
        return cls(variance, prior or 0)

    def estimate(self, layer: Layer, moments: Moments) -> tuple[list[Fraction], list[Fraction]]:
        """Mean and variance per channel, exact.

        Raises:
            InputError: The old statistics shall count, and are not finite; or one value has no sample
                variance.

        With a prior weight w = prior/(prior + samples), w·old + (1 - w)·new, and w·(1 - w)·(difference of
        means)² for the variance: that of the mixture.
        """
        means = moments.exact_mean
        sample = self.variance == "sample"
        if sample and moments.count < 2:
            raise InputError(
                f"BatchNormalization '{layer.name}': one value per channel has no sample variance; give more "
                "data, or take that of the population"
            )
        variances = moments.exact_sample_var if sample else moments.exact_population_var
        if not self.prior:
            return means, variances
        if not (np.isfinite([layer.mean, layer.var]).all() and (layer.var >= 0).all()):
            raise InputError(
                f"BatchNormalization '{layer.name}': its statistics are not finite, or a variance is "
                "negative, so nothing can be blended with them; use the method 'exact'"
            )
        w = Fraction(self.prior, self.prior + moments.samples)
        old = [Fraction(m) for m in layer.mean.tolist()], [Fraction(v) for v in layer.var.tolist()]
        mixed = [w * a + (1 - w) * b for a, b in zip(old[0], means, strict=True)]
        apart = [w * (1 - w) * (a - b) ** 2 for a, b in zip(old[0], means, strict=True)]
        spread = [w * a + (1 - w) * b + d for a, b, d in zip(old[1], variances, apart, strict=True)]
        return mixed, spread

    def statistics(self, layer: Layer, moments: Moments) -> Statistics:
        """What is to be stored: the estimates, rounded once."""
        mean, var = self.estimate(layer, moments)
        return Statistics(nearest(mean, layer.dtype), nearest(var, layer.dtype))


def layer_report(
    layer: Layer, level: int, estimator: Estimator, new: Statistics, moments: Moments, final: Moments
) -> LayerReport:
    """The report on a layer.

    Args:
        layer: As it was.
        level: Its level.
        estimator: How statistics were made from moments.
        new: As they are stored now.
        moments: What `new` was made from.
        final: What came in in the finished network.
    """
    mean, var = new.mean.astype(np.float64), new.var.astype(np.float64)
    old_width, width = layer.var + layer.epsilon, var + layer.epsilon
    expected_mean, expected_var = (nearest(numbers) for numbers in estimator.estimate(layer, final))
    with np.errstate(all="ignore"):  # statistics that were unusable have an infinite drift
        mean_gap = np.abs(expected_mean - mean) / np.sqrt(width)
        var_gap = np.abs(np.log((expected_var + layer.epsilon) / width))
        limits = _limits(layer, mean, width)
        used = np.maximum(mean_gap / limits[0], var_gap / limits[1])
        slope = 1 if layer.scale is None else layer.scale
        shift = (moments.mean - layer.mean) * old_width**-0.5 - (moments.mean - mean) * width**-0.5
        change = moments.population_var * (old_width**-0.5 - width**-0.5) ** 2 + shift**2
        return LayerReport(
            name=layer.name,
            level=level,
            channels=layer.channels,
            samples=moments.samples,
            count=moments.count,
            mean_drift=_worst(np.abs(mean - layer.mean) / np.sqrt(old_width)),
            var_drift=_worst(np.abs(np.log(width / old_width))),
            output_drift=float(np.sqrt(np.mean(slope**2 * change))),
            mean_error=_worst(moments.mean_error / np.sqrt(width)),
            var_error=_worst(moments.var_error / width),
            mean_gap=_worst(mean_gap),
            var_gap=_worst(var_gap),
            limit_used=_worst(used),
            dead=int(np.count_nonzero(moments.population_var == 0)),
            untouched=layer.is_untouched,
        )


def _limits(layer: Layer, mean: F64, width: F64) -> tuple[F64, F64]:
    """The gaps of mean and variance that the rounding of stored statistics explains."""
    smallest, roundoff = _precision(layer.dtype)
    of_mean = _ROUNDINGS * (roundoff * np.abs(mean) + smallest) / np.sqrt(width)
    of_var = _ROUNDINGS * (roundoff + smallest / width)
    return np.maximum(_SMALL, of_mean), np.maximum(_SMALL, of_var)


def _precision(dtype: np.dtype[np.generic]) -> tuple[float, float]:
    """The smallest positive number and the unit roundoff of a floating type."""
    import ml_dtypes

    info = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return float(info.smallest_subnormal), float(info.eps) / 2


def _worst(figures: F64) -> float:
    """The largest; infinite if one is not a number."""
    return float(np.max(np.where(np.isnan(figures), np.inf, figures), initial=0.0))
