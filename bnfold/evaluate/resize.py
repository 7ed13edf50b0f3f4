"""Resize and Upsample: along each axis, where an output value looks and with which weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .node import Array, Node, Operator, along
from .outcome import Unsupported


@dataclass(frozen=True)
class Axis:
    """How one axis is resized.

    Attributes:
        index: Which axis.
        size: Its length in the input.
        out: Its length in the output.
        scale: out / size before rounding, as given.
        crop: The part of the input that `tf_crop_and_resize` takes, as fractions.
    """

    index: int
    size: int
    out: int
    scale: float
    crop: tuple[float, float] = (0.0, 1.0)


def upsample(node: Node) -> Array:
    x = node[0]
    if node.opset < 7:
        scales = [1.0, 1.0, node.attributes["height_scale"], node.attributes["width_scale"]]
    else:
        scales = node.attributes["scales"] if node.opset < 9 else node[1].tolist()
    for axis in _scaled(x, list(range(x.ndim)), scales):
        at = np.arange(axis.out) / axis.scale
        if node.attributes["mode"] == "nearest":
            x = _take(x, axis, np.floor(at))
        else:
            x = _blend(x, axis, _weights(axis, at, triangle, reach=1))
    return x


def resize(node: Node) -> Array:
    x = node[0]
    if node.opset < 11:
        axes = _scaled(x, list(range(x.ndim)), node[1].tolist())
        coordinates = "asymmetric"
    else:
        axes = _axes(node)
        coordinates = node.attributes["coordinate_transformation_mode"]
    for axis in axes:
        at = _coordinates(coordinates, axis)
        source = x
        if node.attributes["mode"] == "nearest":
            x = _take(x, axis, _nearest(node, axis, at))
        else:
            x = _blend(x, axis, _interpolation(node, axis, at))
        if coordinates == "tf_crop_and_resize":
            outside = along((at < 0) | (at > axis.size - 1), axis.index, source.ndim)
            x = np.where(outside, node.attributes["extrapolation_value"], x)
    return x


def _axes(node: Node) -> list[Axis]:
    """The axes that Resize changes, from its scales or sizes."""
    x, roi, scales, sizes = node[0], node.optional(1), node.optional(2), node.optional(3)
    indices = [axis % x.ndim for axis in node.attributes.get("axes") or range(x.ndim)]
    crops = [(0.0, 1.0)] * len(indices)
    if node.attributes["coordinate_transformation_mode"] == "tf_crop_and_resize":
        assert roi is not None
        crops = list(zip(roi[: len(indices)].tolist(), roi[len(indices) :].tolist(), strict=True))
    if sizes is None or sizes.size == 0:
        assert scales is not None
        return _scaled(x, indices, scales.tolist(), crops)
    lengths = [x.shape[i] for i in indices]
    wanted = [int(size) for size in sizes]
    policy = node.attributes.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        factors = [size / n for size, n in zip(wanted, lengths, strict=True)]
    else:
        choose = min if policy == "not_larger" else max
        factors = [choose(size / n for size, n in zip(wanted, lengths, strict=True))] * len(lengths)
        wanted = [math.floor(factors[0] * n + 0.5) for n in lengths]
    axes = map(Axis, indices, lengths, wanted, factors, crops)
    return [axis for axis in axes if axis.out != axis.size or axis.crop != (0.0, 1.0)]


def _scaled(
    x: Array, indices: list[int], scales: list[float], crops: list[tuple[float, float]] | None = None
) -> list[Axis]:
    crops = crops or [(0.0, 1.0)] * len(indices)
    return [
        Axis(i, x.shape[i], math.floor(x.shape[i] * (crop[1] - crop[0]) * scale), scale, crop)
        for i, scale, crop in zip(indices, scales, crops, strict=True)
        if scale != 1 or crop != (0.0, 1.0)
    ]


def _coordinates(mode: str, axis: Axis) -> Array:
    """Where each output value lies on the input axis."""
    i = np.arange(axis.out, dtype=np.float64)
    start, end = axis.crop
    match mode:
        case "asymmetric":
            return i / axis.scale
        case "half_pixel":
            return (i + 0.5) / axis.scale - 0.5
        case "pytorch_half_pixel":
            return (i + 0.5) / axis.scale - 0.5 if axis.out > 1 else i
        case "tf_half_pixel_for_nn":
            return (i + 0.5) / axis.scale
        case "half_pixel_symmetric":
            drift = 1 - axis.out / (axis.scale * axis.size)
            return axis.size / 2 * drift + (i + 0.5) / axis.scale - 0.5
        case "align_corners":
            return i * ((axis.size - 1) / max(axis.out - 1, 1))
        case "tf_crop_and_resize":
            if axis.out == 1:
                return np.full(1, 0.5 * (start + end) * (axis.size - 1))
            return (start + i * (end - start) / (axis.out - 1)) * (axis.size - 1)
    raise Unsupported(f"Resize with coordinate_transformation_mode {mode}")


def _nearest(node: Node, axis: Axis, at: Array) -> Array:
    if node.opset < 11:  # unspecified there; this is what runtimes do
        return np.ceil(at) if axis.scale < 1 else np.floor(at)
    rounding: dict[str, Callable[[Array], Array]] = {
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
        "floor": np.floor,
        "ceil": np.ceil,
    }
    return rounding[node.attributes["nearest_mode"]](at)


def _interpolation(node: Node, axis: Axis, at: Array) -> tuple[Array, Array]:
    antialias = bool(node.attributes.get("antialias", 0))
    exclude = bool(node.attributes.get("exclude_outside", 0))
    if node.attributes["mode"] == "linear":
        return _weights(axis, at, triangle, 1, antialias, exclude)
    a = node.attributes["cubic_coeff_a"]
    return _weights(axis, at, lambda t: cubic(t, a), 2, antialias, exclude)


def _weights(
    axis: Axis,
    at: Array,
    kernel: Callable[[Array], Array],
    reach: int,
    antialias: bool = False,
    exclude: bool = False,
) -> tuple[Array, Array]:
    """Where each output value looks and with which weights, both [out, taps]; the kernel is 0 beyond `reach`.

    Antialiasing widens the kernel by the factor of downsampling. Positions beyond the ends hold the
    value at the end, or do not take part (`exclude`).
    """
    narrow = min(axis.scale, 1.0) if antialias else 1.0
    wide = math.ceil(reach / narrow)
    at = np.clip(at, -1, axis.size)[:, np.newaxis]  # further out nothing but extrapolation is ever asked for
    positions = np.floor(at).astype(np.int64) + np.arange(1 - wide, wide + 1)
    weights = kernel((positions - at) * narrow)
    inside = np.clip(positions, 0, axis.size - 1)
    if exclude:
        weights = np.where(positions == inside, weights, 0)
    return inside, weights / weights.sum(axis=1, keepdims=True)


def triangle(t: Array) -> Array:
    return np.asarray(np.maximum(1 - np.abs(t), 0))


def cubic(t: Array, a: float) -> Array:
    t = np.abs(t)
    near = ((a + 2) * t - (a + 3)) * t**2 + 1
    far = ((t - 5) * t + 8) * t * a - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0))


def _take(x: Array, axis: Axis, positions: Array) -> Array:
    return np.take(x, np.clip(positions, 0, axis.size - 1).astype(np.int64), axis=axis.index)


def _blend(x: Array, axis: Axis, looks: tuple[Array, Array]) -> Array:
    """The sum over the taps of what is there, weighted."""
    y: Array | None = None
    for positions, weights in zip(looks[0].T, looks[1].T, strict=True):
        seen = np.take(x, positions, axis=axis.index)
        seen *= along(weights, axis.index, x.ndim)
        y = seen if y is None else np.add(y, seen, out=y)
    assert y is not None
    return y


OPERATORS: dict[str, Operator] = {
    "Resize": resize,
    "Upsample": upsample,
}
