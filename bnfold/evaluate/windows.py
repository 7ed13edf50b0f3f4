"""Sliding windows over the spatial axes: where convolutions and pools look."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .node import Array, Node
from .outcome import Unsupported


def taps(
    kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], counts: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[Any, ...]]]:
    """Each position in the kernel, with the index of what `counts` windows see there (last axes)."""
    for position in np.ndindex(*kernel):
        starts = [p * d for p, d in zip(position, dilations, strict=True)]
        stops = [a + (n - 1) * s + 1 for a, s, n in zip(starts, strides, counts, strict=True)]
        yield position, last(map(slice, starts, stops, strides))


def last(slices: Iterable[slice]) -> tuple[Any, ...]:
    """The index that takes these of the last axes."""
    return (..., *slices)


def per_axis(node: Node, name: str, axes: int, default: int) -> list[int]:
    """An attribute with one number per spatial axis."""
    values = list(node.attributes.get(name) or [default] * axes)
    if len(values) != axes:
        raise ValueError(f"{name} {values} does not fit {axes} spatial axes")
    return values


def blocks(sizes: Sequence[int], room: int) -> Iterator[tuple[slice, ...]]:
    """Divides an array into parts of about `room` elements, each of which is one run of its memory."""
    inner = math.prod(sizes[1:])
    if len(sizes) > 1 and inner > room:
        for index in range(sizes[0]):
            yield from ((slice(index, index + 1), *rest) for rest in blocks(sizes[1:], room))
        return
    step = max(room // max(inner, 1), 1)
    for start in range(0, sizes[0], step):
        yield slice(start, min(start + step, sizes[0])), *(slice(0, size) for size in sizes[1:])


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
        if not axes or len(kernel) != axes:
            raise ValueError(f"a kernel of {list(kernel)} does not fit {axes} spatial axes")
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
        if not any((*self.begin, *self.end, *self.beyond)):
            return x
        sizes = x.shape[2:]
        inner = [b + n + e for b, n, e in zip(self.begin, sizes, self.end, strict=True)]
        full = [n + b for n, b in zip(inner, self.beyond, strict=True)]
        padded = np.full((*x.shape[:2], *full), outside, x.dtype)
        if inside != outside:
            padded[last(map(slice, inner))] = inside
        padded[last(slice(b, b + n) for b, n in zip(self.begin, sizes, strict=True))] = x
        return padded

    def views(self, padded: Array) -> Iterator[tuple[tuple[int, ...], Array]]:
        """Each kernel position, and the padded data that all windows see there."""
        for position, window in taps(self.kernel, self.strides, self.dilations, self.counts):
            yield position, padded[window]

    def part(self, padded: Array, windows: Sequence[slice]) -> Array:
        """What these windows see: the padded data of the spatial axes, cut to where they reach."""
        starts = [part.start * s for part, s in zip(windows, self.strides, strict=True)]
        stops = [
            (part.stop - 1) * s + (k - 1) * d + 1
            for part, s, k, d in zip(windows, self.strides, self.kernel, self.dilations, strict=True)
        ]
        part: Array = padded[last(map(slice, starts, stops))]
        return part

    def unfolded(self, padded: Array, windows: Sequence[slice]) -> Array:
        """A view of what each of these windows sees: [..., kernel..., windows...]."""
        part = self.part(padded, windows)
        axes = len(self.kernel)
        outer, inner = part.strides[:-axes], part.strides[-axes:]
        counts = [window.stop - window.start for window in windows]
        return np.lib.stride_tricks.as_strided(
            part,
            (*part.shape[:-axes], *self.kernel, *counts),
            (
                *outer,
                *(d * step for d, step in zip(self.dilations, inner, strict=True)),
                *(s * step for s, step in zip(self.strides, inner, strict=True)),
            ),
            writeable=False,
        )


def _along_axis(
    auto_pad: str, ceil_mode: bool, size: int, reach: int, stride: int, pads: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Begin, end, count and beyond (see `Windows`) for a dilated kernel that spans `reach`."""
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        count = math.ceil(size / stride)
        begin, end = split_padding(auto_pad, max((count - 1) * stride + reach - size, 0))
        return begin, end, count, 0
    begin, end = (0, 0) if auto_pad == "VALID" else pads
    if min(begin, end) < 0:
        raise Unsupported(f"padding of {begin}, {end}")
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
