"""Sliding windows over the spatial axes: where convolutions and pools look.

A window operator is written as a loop over the positions of its kernel; at each one the values that all
windows see form a strided slice of the padded input.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .node import Array, Node


def taps(
    kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], counts: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
    """Each position in the kernel, with the index of what `counts` windows see there (last axes)."""
    for position in np.ndindex(*kernel):
        starts = [p * d for p, d in zip(position, dilations, strict=True)]
        stops = [a + (n - 1) * s + 1 for a, s, n in zip(starts, strides, counts, strict=True)]
        yield position, (..., *map(slice, starts, stops, strides))


def per_axis(node: Node, name: str, axes: int, default: int) -> list[int]:
    """An attribute with one number per spatial axis."""
    values = list(node.attributes.get(name) or [default] * axes)
    if len(values) != axes:
        raise ValueError(f"{node.op_type}: {name} {values} does not fit {axes} spatial axes")
    return values


@dataclass(frozen=True)
class Windows:
    """The geometry of a Conv or a pool, one number per spatial axis.

    Attributes:
        kernel, strides, dilations: As in ONNX.
        begin, end: The padding that counts as input.
        counts: How many windows there are.
        beyond: How far the last window reaches past the padded input (`ceil_mode`), or 0.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    counts: tuple[int, ...]
    beyond: tuple[int, ...]

    @classmethod
    def of(cls, node: Node, sizes: Sequence[int], kernel: Sequence[int]) -> Windows:
        """Read the geometry off a node whose data has these spatial sizes."""
        axes = len(sizes)
        strides = per_axis(node, "strides", axes, 1)
        dilations = per_axis(node, "dilations", axes, 1)
        pads = per_axis(node, "pads", 2 * axes, 0)
        auto_pad = node.attributes["auto_pad"]
        ceil_mode = bool(node.attributes.get("ceil_mode", 0))
        plans = [
            _along_axis(auto_pad, ceil_mode, n, (k - 1) * d + 1, s, (pads[i], pads[axes + i]))
            for i, (n, k, d, s) in enumerate(zip(sizes, kernel, dilations, strides, strict=True))
        ]
        begin, end, counts, beyond = zip(*plans, strict=True)
        return cls(tuple(kernel), tuple(strides), tuple(dilations), begin, end, counts, beyond)

    def pad(self, x: Array, inside: float, outside: float) -> Array:
        """Data of shape [N, C, spatial...], padded with `inside` and, past that, `outside`."""
        own = [(0, 0), (0, 0)]
        padding = zip(self.begin, self.end, strict=True)
        padded = np.pad(x, [*own, *padding], constant_values=inside)
        return np.pad(padded, [*own, *((0, b) for b in self.beyond)], constant_values=outside)

    def views(self, padded: Array) -> Iterator[tuple[tuple[int, ...], Array]]:
        """Each kernel position, and the padded data that all windows see there."""
        for position, window in taps(self.kernel, self.strides, self.dilations, self.counts):
            yield position, padded[window]


def _along_axis(
    auto_pad: str, ceil_mode: bool, size: int, reach: int, stride: int, pads: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Begin, end, count and beyond (see `Windows`) for a dilated kernel that spans `reach`."""
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        count = math.ceil(size / stride)
        begin, end = split_padding(auto_pad, max((count - 1) * stride + reach - size, 0))
        return begin, end, count, 0
    begin, end = (0, 0) if auto_pad == "VALID" else pads
    room = size + begin + end - reach
    count = room // stride + 1
    # A window that rounding up adds must still start on the data or on the padding before it.
    if ceil_mode and room % stride and count * stride < size + begin:
        count += 1
    if count < 1:
        raise ValueError(f"a window of {reach} does not fit into {size} with padding {begin}, {end}")
    return begin, end, count, max((count - 1) * stride - room, 0)


def split_padding(auto_pad: str, total: int) -> tuple[int, int]:
    """Padding before and after; the odd one goes after for SAME_UPPER, else before."""
    half = total // 2
    return (half, total - half) if auto_pad == "SAME_UPPER" else (total - half, half)
