"""Batch normalization: each channel by the statistics of the batch (training) or by stored ones (inference).

Sources: S. Ioffe and C. Szegedy, *Batch Normalization: Accelerating Deep Network Training by Reducing
Internal Covariate Shift*, 2015, https://arxiv.org/abs/1502.03167;
https://onnx.ai/onnx/operators/onnx__BatchNormalization.html.

Both modes are y = scale · (x - μ)/√(σ² + ε) + bias; in training, σ² is the *population* variance of the
batch, in every framework. What differs between frameworks is how running statistics are made of those of the
batches: that is `conventions`. A layer over C channels has 4C parameters, scale, bias, mean and variance; the
first 2C are trained.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from .edges import F64, Array, need_axis, need_floats
from .kernel import (
    Gradients,
    Layout,
    Normalized,
    affine,
    affine_backward,
    deviation,
    normalize,
    normalize_backward,
)


def batch_normalization(
    x: ArrayLike,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    mean: ArrayLike,
    var: ArrayLike,
    *,
    epsilon: float = 1e-5,
    axis: int = 1,
) -> Array:
    """Inference mode: y = scale · (x - mean)/√(var + ε) + bias, per channel.

    Args:
        x: (N, C, ...), rank 2 or more, any floating dtype.
        scale: (C,); None is 1.
        bias: (C,), in the unit of y; None is 0.
        mean: (C,), in the unit of x.
        var: (C,), in that unit squared; used as it is, whether population or sample variance.
        epsilon: Added to the variance, so in its unit.
        axis: The axis of the channels.

    Returns:
        y, shape and dtype of x.

    Raises:
        InputError: Nothing to normalize, types or shapes that do not fit, or var + ε not positive.
    """
    data = need_floats(x, "x")
    layout = per_channel(data, axis)
    hat, _ = _standardized(data, mean, var, layout, epsilon)
    return affine(data, hat, scale, bias, layout)


def batch_normalization_backward(
    dy: ArrayLike,
    x: ArrayLike,
    scale: ArrayLike | None,
    mean: ArrayLike,
    var: ArrayLike,
    *,
    epsilon: float = 1e-5,
    axis: int = 1,
) -> Gradients:
    """Backward in inference mode: mean and variance are constants, so dx = scale/√(var + ε) · dy.

    Args:
        dy: ∂L/∂y, shape of x.
        x: What the forward got; the rest as there.

    Raises:
        InputError: As the forward.
    """
    data = need_floats(x, "x")
    layout = per_channel(data, axis)
    hat, std = _standardized(data, mean, var, layout, epsilon)
    return affine_backward(dy, data, hat, scale, layout, lambda g: g / std)


def batch_normalization_training(
    x: ArrayLike,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    *,
    epsilon: float = 1e-5,
    axis: int = 1,
) -> Normalized:
    """Training mode: y = scale · (x - μ)/√(σ² + ε) + bias with mean and population variance of the batch.

    One value per channel is its own mean: y = bias there. (PyTorch refuses that; here only the *sample*
    variance refuses, when running statistics ask for it.)

    Args:
        x: (N, C, ...), rank 2 or more, any floating dtype.
        scale: (C,); None is 1.
        bias: (C,); None is 0.
        epsilon: Added to the variance.
        axis: The axis of the channels.

    Returns:
        y, and the batch's statistics per channel, for `Convention.update`.

    Raises:
        InputError: Nothing to normalize, or types or shapes that do not fit.
    """
    data = need_floats(x, "x")
    return normalize(data, scale, bias, per_channel(data, axis), epsilon)


def batch_normalization_training_backward(
    dy: ArrayLike,
    x: ArrayLike,
    scale: ArrayLike | None,
    *,
    epsilon: float = 1e-5,
    axis: int = 1,
) -> Gradients:
    """Backward in training mode: the batch's statistics depend on x as well.

    dbias = Σdy, dscale = Σdy·x̂, dx = scale/√(σ² + ε) · (dy - dbias/n - x̂·dscale/n), with n values per
    channel.

    Args:
        dy: ∂L/∂y, shape of x.
        x: What the forward got; the rest as there.

    Raises:
        InputError: As the forward.
    """
    data = need_floats(x, "x")
    return normalize_backward(dy, data, scale, per_channel(data, axis), epsilon)


def per_channel(x: Array, axis: int) -> Layout:
    """One mean, variance, scale and bias per channel."""
    channel = need_axis("x", x.shape, axis, rank=2)
    channels = x.shape[channel]
    others = tuple(i for i in range(x.ndim) if i != channel)
    return Layout(x.shape, others, (channels,), tuple(channels if i == channel else 1 for i in range(x.ndim)))


def _standardized(
    x: Array, mean: ArrayLike, var: ArrayLike, layout: Layout, epsilon: float
) -> tuple[F64, F64]:
    """x̂ and √(var + ε)."""
    std = deviation(layout.spread_out(var, "var", 1.0), epsilon)
    return (layout.seen(x) - layout.spread_out(mean, "mean", 0.0)) / std, std
