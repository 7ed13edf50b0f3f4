"""Operators that look into data between its values: GridSample, wherever a grid says, RoiAlign, in boxes; and
AffineGrid, which makes a grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from .node import Array, Node, Operator
from .outcome import Unsupported
from .resize import cubic, triangle

CUBIC = -0.75
"""The coefficient of GridSample's cubic kernel."""

Taps = list[tuple[Array, Array]]
"""Along one axis: positions, and the weights of what is there."""


def grid_sample(node: Node) -> Array:
    """X [N, C, sizes...], grid [N, out..., axes] with coordinates from -1 to 1, the last axis first."""
    x, grid = node[0], node[1]
    if grid.shape[-1] != x.ndim - 2 or grid.shape[0] != x.shape[0]:
        raise ValueError(f"a grid of shape {grid.shape} does not fit data of shape {x.shape}")
    axes = [_taps(node, size, grid[..., -1 - i]) for i, size in enumerate(x.shape[2:])]
    y = np.zeros((*x.shape[:2], *grid.shape[1:-1]))
    for sample, data in enumerate(x):
        for combination in itertools.product(*axes):
            at = tuple(positions[sample] for positions, _ in combination)
            weight = np.prod([weights[sample] for _, weights in combination], axis=0)
            y[sample] += data[:, *at] * weight
    return y


def _taps(node: Node, size: int, coordinates: Array) -> Taps:
    """Where coordinates look along an axis, within the data, and with which weights."""
    aligned = bool(node.attributes["align_corners"])
    at = (coordinates + 1) / 2 * (size - 1) if aligned else ((coordinates + 1) * size - 1) / 2
    padding = node.attributes["padding_mode"]
    ends = (0.0, size - 1.0) if aligned else (-0.5, size - 0.5)
    mode = node.attributes["mode"].removeprefix("bi")
    if padding == "border" and mode != "cubic":
        at = np.clip(at, 0, size - 1)
    elif padding == "reflection" and mode != "cubic":
        at = _reflected(at, ends)
    at = np.where(np.isfinite(at), at, -(2.0**31))  # far outside
    if mode == "nearest":
        positions, weights = [np.rint(at)], [np.ones(at.shape)]
    else:
        reach = 2 if mode == "cubic" else 1
        positions = [np.floor(at) + step for step in range(1 - reach, reach + 1)]
        weights = [cubic(p - at, CUBIC) if mode == "cubic" else triangle(p - at) for p in positions]
    taps = []
    for position, weight in zip(positions, weights, strict=True):
        position = _reflected(position, ends) if padding == "reflection" else position
        inside = np.clip(position, 0, size - 1)
        weight = np.where(position == inside, weight, 0) if padding == "zeros" else weight
        taps.append((inside.astype(np.int64), weight))
    return taps


def _reflected(at: Array, ends: tuple[float, float]) -> Array:
    """Positions thrown back and forth between two ends until they lie between them."""
    low, high = ends
    span = high - low
    if span == 0:
        return np.zeros(at.shape)
    turned = np.mod(at - low, 2 * span)
    return np.asarray(low + np.minimum(turned, 2 * span - turned))


def roi_align(node: Node) -> Array:
    """X [N, C, H, W], boxes [R, 4] as x1, y1, x2, y2, and which sample each looks into: [R, C, out...].

    A mean of samples that are linear along both axes: one product per axis.
    """
    if node.attributes["mode"] != "avg":
        raise Unsupported("RoiAlign of the largest")  # runtimes do not take that of the samples
    x, boxes, samples = node[0], node[1] * node.attributes["spatial_scale"], node[2]
    height, width = node.attributes["output_height"], node.attributes["output_width"]
    y = np.empty((len(boxes), x.shape[1], height, width))
    for i, (left, top, right, bottom) in enumerate(boxes):
        rows = _bins(node, x.shape[2], top, bottom, height)
        columns = _bins(node, x.shape[3], left, right, width)
        seen_rows, seen_columns = rows.any(axis=0), columns.any(axis=0)
        seen = x[samples[i]][:, seen_rows][:, :, seen_columns]
        y[i] = rows[:, seen_rows] @ seen @ columns[:, seen_columns].T
    return y


def _bins(node: Node, size: int, start: float, end: float, count: int) -> Array:
    """The weights [count, size] of the values along an axis in the parts of a box from `start` to `end`."""
    length = end - start
    if node.attributes.get("coordinate_transformation_mode") == "half_pixel":
        start -= 0.5
    else:  # also what older opsets mean
        length = max(length, 1.0)
    samples = node.attributes["sampling_ratio"] or max(math.ceil(length / count), 0)
    at = start + (np.arange(count * samples) + 0.5) * (length / max(count * samples, 1))
    weights = triangle(np.clip(at, 0, size - 1)[:, np.newaxis] - np.arange(size))
    weights[(at < -1) | (at > size)] = 0
    return np.asarray(weights.reshape(count, samples, size).sum(axis=1) / max(samples, 1))


def affine_grid(node: Node) -> Array:
    """theta [N, axes, axes + 1] and a size (N, C, spatial...): a grid [N, spatial..., axes]."""
    theta, sizes = node[0], [int(n) for n in node[1][2:]]
    aligned = bool(node.attributes["align_corners"])
    lines: Sequence[Array] = [_line(size, aligned) for size in sizes]
    points = np.stack([*np.meshgrid(*lines, indexing="ij")][::-1], axis=-1)
    homogeneous = np.concatenate([points, np.ones((*sizes, 1))], axis=-1).reshape(-1, len(sizes) + 1)
    return np.asarray(homogeneous @ theta.swapaxes(1, 2)).reshape(len(theta), *sizes, len(sizes))


def _line(size: int, aligned: bool) -> Array:
    """Coordinates from -1 to 1: of the values themselves, or of the middles of as many cells."""
    return np.linspace(-1, 1, size) if aligned else (np.arange(size) * 2 + 1) / size - 1


OPERATORS: dict[str, Operator] = {
    "AffineGrid": affine_grid,
    "GridSample": grid_sample,
    "RoiAlign": roi_align,
}
