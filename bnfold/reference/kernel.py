"""One normalization for all: x̂ = (x - μ)/√(σ² + ε), y = scale · x̂ + bias, and its backward.

Batch, layer, instance and group normalization differ in three facts only, which a `Layout` holds: how the
data are seen, over which axes of that view μ and σ² (the population variance) are taken, and how scale and
bias lie on it. With s = √(σ² + ε), a gradient g = ∂L/∂x̂ goes through μ and s as well:

    ∂L/∂x = (g - mean(g) - x̂ · mean(g · x̂)) / s

The parentheses cancel: they remove the part of g along 1 and along x̂. At n = 2 nothing else is left but for
ε, so ∂L/∂x is next to 0 there, and its rounding error is to be judged against |scale|/s · max|∂L/∂y|, not
against ∂L/∂x itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from .edges import F64, Array, need_floats, need_shape, rounded, wide
from .statistics import Statistics, measure


@dataclass(frozen=True)
class Layout:
    """How a normalization looks at its data.

    Attributes:
        view: The shape in which the data are seen; a reshape of their own.
        axes: The axes of the view over which mean and variance are taken.
        parameters: The shape of scale and bias.
        spread: The shape that makes them broadcast against the view.
    """

    view: tuple[int, ...]
    axes: tuple[int, ...]
    parameters: tuple[int, ...]
    spread: tuple[int, ...]

    def seen(self, data: Array) -> F64:
        """The data in the view, in float64."""
        return wide(data).reshape(self.view)

    def spread_out(self, value: ArrayLike | None, name: str, absent: float) -> F64:
        """A parameter that broadcasts against the view; `absent` stands for None."""
        if value is None:
            return np.full((1,) * len(self.view), absent)
        return wide(need_shape(value, name, self.parameters)).reshape(self.spread)

    def summed(self, values: F64) -> F64:
        """Sums over all that shares a parameter, in the parameters' shape."""
        axes = tuple(i for i, size in enumerate(self.spread) if size == 1)
        sums: F64 = values.sum(axis=axes)
        return sums.reshape(self.parameters)


@dataclass(frozen=True, eq=False)
class Normalized:
    """What a normalization by the data's own statistics gives.

    Attributes:
        y: The result; shape and dtype of x.
        statistics: What it was normalized with, in float64 and without ε. Per channel (C,) for batch
            normalization; per sample and channel (N, C), group (N, G), or position x.shape[:axis] for
            instance, group and layer normalization.
    """

    y: Array
    statistics: Statistics


@dataclass(frozen=True, eq=False)
class Gradients:
    """Derivatives of a scalar loss L.

    Attributes:
        dx: ∂L/∂x; shape and dtype of x.
        dscale: ∂L/∂scale; shape and dtype of scale (dtype of x where scale is None).
        dbias: ∂L/∂bias; the same.
    """

    dx: Array
    dscale: Array
    dbias: Array


@dataclass(frozen=True, eq=False)
class Standardized:
    """x̂ in the view of a layout, and what its backward needs.

    Attributes:
        hat: x̂ = (x - μ)/s.
        std: s = √(σ² + ε), broadcasting against x̂.
        axes: Those over which μ and σ² were taken.
        statistics: μ and σ².
    """

    hat: F64
    std: F64
    axes: tuple[int, ...]
    statistics: Statistics

    @classmethod
    def of(cls, values: F64, axes: tuple[int, ...], epsilon: float) -> Standardized:
        """The values standardized by their own statistics."""
        statistics, centred = measure(values, axes)
        std = np.expand_dims(deviation(statistics.population_var, epsilon), axes)
        return cls(centred / std, std, axes, statistics)

    def backward(self, g: F64) -> F64:
        """∂L/∂x for g = ∂L/∂x̂, through μ and s as well."""
        along_one: F64 = g.mean(axis=self.axes, keepdims=True)
        along_hat: F64 = (g * self.hat).mean(axis=self.axes, keepdims=True)
        return (g - along_one - self.hat * along_hat) / self.std


def deviation(var: F64, epsilon: float) -> F64:
    """√(σ² + ε).

    Raises:
        InputError: It is not the root of a positive number.
    """
    if (var + epsilon <= 0.0).any():
        raise InputError(
            f"the variance plus epsilon is {np.nanmin(var + epsilon):.6g} at its smallest, and the data are "
            f"divided by its square root: raise epsilon (it is {epsilon:.6g}) or repair the variance"
        )
    std: F64 = np.sqrt(var + epsilon)
    return std


def normalize(
    x: Array, scale: ArrayLike | None, bias: ArrayLike | None, layout: Layout, epsilon: float
) -> Normalized:
    """The data normalized by their own statistics, in a layout."""
    standard = Standardized.of(layout.seen(x), layout.axes, epsilon)
    return Normalized(affine(x, standard.hat, scale, bias, layout), standard.statistics)


def normalize_backward(
    dy: ArrayLike, x: Array, scale: ArrayLike | None, layout: Layout, epsilon: float
) -> Gradients:
    """The backward of `normalize`."""
    standard = Standardized.of(layout.seen(x), layout.axes, epsilon)
    return affine_backward(dy, x, standard.hat, scale, layout, standard.backward)


def affine(x: Array, hat: F64, scale: ArrayLike | None, bias: ArrayLike | None, layout: Layout) -> Array:
    """y = scale · x̂ + bias, in the shape and dtype of x."""
    y = layout.spread_out(scale, "scale", 1.0) * hat + layout.spread_out(bias, "bias", 0.0)
    return rounded(y.reshape(x.shape), x)


def affine_backward(
    dy: ArrayLike,
    x: Array,
    hat: F64,
    scale: ArrayLike | None,
    layout: Layout,
    into_x: Callable[[F64], F64],
) -> Gradients:
    """∂L/∂bias = Σ∂L/∂y, ∂L/∂scale = Σ∂L/∂y · x̂, and ∂L/∂x = into_x(∂L/∂y · scale)."""
    g = layout.seen(need_shape(dy, "dy", x.shape))
    dx = into_x(g * layout.spread_out(scale, "scale", 1.0)).reshape(x.shape)
    like = x if scale is None else need_floats(scale, "scale")
    return Gradients(rounded(dx, x), rounded(layout.summed(g * hat), like), rounded(layout.summed(g), like))
