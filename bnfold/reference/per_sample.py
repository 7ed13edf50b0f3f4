"""Layer, instance and group normalization: each sample by its own statistics, in training as in inference.

Sources: J. L. Ba, J. R. Kiros and G. E. Hinton, *Layer Normalization*, 2016,
https://arxiv.org/abs/1607.06450; D. Ulyanov, A. Vedaldi and V. Lempitsky, *Instance Normalization: The
Missing Ingredient for Fast Stylization*, 2016, https://arxiv.org/abs/1607.08022; Y. Wu and K. He, *Group
Normalization*, 2018, https://arxiv.org/abs/1803.08494;
https://onnx.ai/onnx/operators/onnx__LayerNormalization.html, onnx__InstanceNormalization.html and
onnx__GroupNormalization.html.

All are y = scale · (x - μ)/√(σ² + ε) + bias with the population variance, and take x of any floating dtype.
Nothing is shared between samples, so there are no running statistics, and nothing that a convolution could
absorb.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from ..errors import InputError
from .edges import Array, need_axis, need_floats
from .kernel import Gradients, Layout, Normalized, normalize, normalize_backward


def layer_normalization(
    x: ArrayLike, scale: ArrayLike | None, bias: ArrayLike | None, *, epsilon: float = 1e-5, axis: int = -1
) -> Normalized:
    """Over all axes from `axis` on, for each position of those before.

    Args:
        x: Rank 1 or more.
        scale: x.shape[axis:]; None is 1.
        bias: x.shape[axis:]; None is 0.
        epsilon: Added to the variance.
        axis: The first axis of the normalized ones, as in ONNX; PyTorch gives their sizes instead.

    Returns:
        y, and statistics of shape x.shape[:axis].

    Raises:
        InputError: Nothing to normalize, or types or shapes that do not fit.
    """
    data = need_floats(x, "x")
    return normalize(data, scale, bias, _trailing(data, axis), epsilon)


def layer_normalization_backward(
    dy: ArrayLike, x: ArrayLike, scale: ArrayLike | None, *, epsilon: float = 1e-5, axis: int = -1
) -> Gradients:
    """Backward of `layer_normalization`; dy = ∂L/∂y has the shape of x."""
    data = need_floats(x, "x")
    return normalize_backward(dy, data, scale, _trailing(data, axis), epsilon)


def instance_normalization(
    x: ArrayLike, scale: ArrayLike | None, bias: ArrayLike | None, *, epsilon: float = 1e-5, axis: int = 1
) -> Normalized:
    """Each channel of each sample, over the positions.

    Args:
        x: (N, C, ...), rank 2 or more, the samples on axis 0.
        scale: (C,); None is 1.
        bias: (C,); None is 0.
        epsilon: Added to the variance.
        axis: The axis of the channels.

    Returns:
        y, and statistics of shape (N, C).

    Raises:
        InputError: Nothing to normalize, or types or shapes that do not fit.
    """
    data = need_floats(x, "x")
    return normalize(data, scale, bias, _per_instance(data, axis), epsilon)


def instance_normalization_backward(
    dy: ArrayLike, x: ArrayLike, scale: ArrayLike | None, *, epsilon: float = 1e-5, axis: int = 1
) -> Gradients:
    """Backward of `instance_normalization`; dy = ∂L/∂y has the shape of x."""
    data = need_floats(x, "x")
    return normalize_backward(dy, data, scale, _per_instance(data, axis), epsilon)


def group_normalization(
    x: ArrayLike,
    num_groups: int,
    scale: ArrayLike | None,
    bias: ArrayLike | None,
    *,
    epsilon: float = 1e-5,
    axis: int = 1,
) -> Normalized:
    """Each group of C/G neighbouring channels of each sample, over its channels and positions.

    Args:
        x: (N, C, ...), rank 2 or more, the samples on axis 0.
        num_groups: G, a divisor of C. With G = C it is instance normalization, with G = 1 nearly layer
            normalization (whose scale varies over the positions as well).
        scale: (C,) as in PyTorch and ONNX from opset 21 on, or (G,) as in ONNX opset 18; None is 1.
        bias: The same shape; None is 0.
        epsilon: Added to the variance.
        axis: The axis of the channels.

    Returns:
        y, and statistics of shape (N, G).

    Raises:
        InputError: Nothing to normalize, G no divisor of C, or types or shapes that do not fit.
    """
    data = need_floats(x, "x")
    layout = _per_group(data, num_groups, axis, scale if scale is not None else bias)
    return normalize(data, scale, bias, layout, epsilon)


def group_normalization_backward(
    dy: ArrayLike,
    x: ArrayLike,
    num_groups: int,
    scale: ArrayLike | None,
    *,
    epsilon: float = 1e-5,
    axis: int = 1,
) -> Gradients:
    """Backward of `group_normalization`; dy = ∂L/∂y has the shape of x.

    dscale and dbias are of the shape of scale: (C,), or (G,) for one scale per group; (C,) where it is None.
    """
    data = need_floats(x, "x")
    return normalize_backward(dy, data, scale, _per_group(data, num_groups, axis, scale), epsilon)


def _trailing(x: Array, axis: int) -> Layout:
    first = need_axis("x", x.shape, axis, rank=1)
    normalized = x.shape[first:]
    return Layout(x.shape, tuple(range(first, x.ndim)), normalized, (1,) * first + normalized)


def _per_instance(x: Array, axis: int) -> Layout:
    channel = _channel(x, axis)
    channels = x.shape[channel]
    others = tuple(i for i in range(1, x.ndim) if i != channel)
    return Layout(x.shape, others, (channels,), tuple(channels if i == channel else 1 for i in range(x.ndim)))


def _per_group(x: Array, num_groups: int, axis: int, parameter: ArrayLike | None) -> Layout:
    """The channels seen as (G, C/G); scale and bias lie on both of those axes, or on G alone."""
    channel = _channel(x, axis)
    channels = x.shape[channel]
    if num_groups < 1 or channels % num_groups:
        raise InputError(
            f"{channels} channels cannot be divided into {num_groups} groups of one size: "
            f"choose a divisor of {channels}"
        )
    groups = (num_groups, channels // num_groups)
    view = x.shape[:channel] + groups + x.shape[channel + 1 :]
    others = tuple(i for i in range(1, len(view)) if i != channel)
    parameters = (channels,) if parameter is None else need_floats(parameter, "scale").shape
    if parameters not in ((channels,), (num_groups,)):
        raise InputError(
            f"scale and bias have shape {parameters}: give one number per channel, ({channels},), "
            f"or one per group, ({num_groups},)"
        )
    spread = [1] * len(view)
    spread[channel : channel + 2] = groups if parameters == (channels,) else (num_groups, 1)
    return Layout(view, others, parameters, tuple(spread))


def _channel(x: Array, axis: int) -> int:
    channel = need_axis("x", x.shape, axis, rank=2)
    if channel == 0:
        raise InputError(
            f"axis {axis} of x, of shape {x.shape}, is that of the samples, which are normalized one by one: "
            f"choose another one for the channels"
        )
    return channel
