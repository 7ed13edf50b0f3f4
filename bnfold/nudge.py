"""Moves the floating constants of a model within what their type can hold.

A stored constant c stands for any number that rounds to it. How far the values of a model move when its
constants do is therefore the noise that the model has by itself, and the yardstick of `algebra_gate`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from .declared import element_types

Array = NDArray[Any]

# Codes of `TensorProto.DataType` with fewer digits than float32, and their unit roundoffs.
_COARSE = {10: 2.0**-11, 16: 2.0**-8}

# Of a float64: all but the sign and the exponent.
_DIGITS = np.uint64((1 << 52) - 1)
_ALL = (1 << 64) - 1

_BLOCK = 1 << 16  # elements at a time: what is in between stays in the cache

# First of the inputs that are not data but say how to compute (shapes, sizes, scales, exponents).
_SETTINGS = {
    "ConstantOfShape": 0,
    "CumSum": 1,
    "Expand": 1,
    "Mod": 1,
    "OneHot": 1,
    "Pad": 1,
    "Pow": 1,
    "Range": 0,
    "Reshape": 1,
    "Resize": 1,
    "Slice": 1,
    "Tile": 1,
    "TopK": 1,
    "Upsample": 1,
}


class Nudge:
    """Draws of nearby constants for one model.

    Left alone: what decides shapes, Resize scales, exponents (x**2.0000001 is no number for x < 0),
    and attributes such as epsilon.

    Args:
        model: The reference.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._fixed = _fixed_names(model)
        self._coarse = _coarser_units(model)

    def draw(self, *seed: int) -> Callable[[str, np.dtype[Any], Array], Array]:
        """c becomes c·(1 + u·U(-1, 1)) for every constant, the same for the same seed.

        u is the unit roundoff of the coarser of the type that c is stored in and the type that its
        consumer computes in. Numbers of the same digits in one tensor move alike, as they are rounded
        alike: in a kernel of equal weights, errors add up that would cancel elsewhere.
        """

        def change(name: str, stored: np.dtype[Any], value: Array) -> Array:
            if name in self._fixed:
                return value
            words = (*seed, zlib.crc32(name.encode()))
            factor, summand = np.uint64(_mixed(*words, 0) | 1), np.uint64(_mixed(*words, 1))
            u = max(unit(stored), self._coarse.get(name, 0.0))
            flat = value.reshape(-1)
            moved = np.empty_like(flat)
            for i in range(0, flat.size, _BLOCK):
                part = flat[i : i + _BLOCK]
                moved[i : i + _BLOCK] = part * (1.0 + u * _spread(part, factor, summand))
            return moved.reshape(value.shape)

        return change


def _mixed(*words: int) -> int:
    """64 bits in which every bit of the words counts (the finalizer of splitmix64)."""
    state = 0
    for word in words:
        state = (state ^ word) + 0x9E3779B97F4A7C15 & _ALL
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _ALL
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _ALL
        state ^= state >> 31
    return state


def _spread(values: Array, factor: np.uint64, summand: np.uint64) -> Array:
    """A number in [-1, 1) for each, a function of its digits: the leading bits of digits times an odd
    number, plus another (multiply-shift hashing after Dietzfelbinger et al., 1997)."""
    digits = values.view(np.uint64) & _DIGITS
    digits *= factor
    digits += summand
    digits >>= np.uint64(11)
    spread: Array = digits.astype(np.float64)
    spread *= 2.0**-52
    spread -= 1.0
    return spread


def unit(dtype: np.dtype[Any]) -> float:
    """The unit roundoff of a floating type: half the gap between 1 and the next number."""
    return float(ml_dtypes.finfo(dtype).eps) / 2  # type: ignore[no-untyped-call]


def _scopes(model: onnx.ModelProto) -> Iterator[Sequence[onnx.NodeProto]]:
    """The nodes of every graph and function."""
    inner: list[Sequence[onnx.NodeProto]] = [model.graph.node, *(f.node for f in model.functions)]
    while inner:
        nodes = inner.pop()
        yield nodes
        for node in nodes:
            for attribute in node.attribute:
                graphs = [attribute.g] if attribute.HasField("g") else attribute.graphs
                inner += [graph.node for graph in graphs]


def _fixed_names(model: onnx.ModelProto) -> set[str]:
    """Values that decide how something is computed, and all that they are computed from.

    The walk up ends at Shape and Size, whose result no nudge changes. A setting that depends on data
    fixes nothing: what it is computed from may well be the whole network.
    """
    producers = {name: node for nodes in _scopes(model) for node in nodes for name in node.output if name}
    inputs = {value.name for value in model.graph.input} - {t.name for t in model.graph.initializer}
    fixed: set[str] = set()
    for nodes in _scopes(model):
        for node in nodes:
            if node.op_type in _SETTINGS:
                for name in node.input[_SETTINGS[node.op_type] :]:
                    names = _ancestry(name, producers)
                    if not names & inputs:
                        fixed |= names
    return fixed


def _ancestry(name: str, producers: Mapping[str, onnx.NodeProto]) -> set[str]:
    """The name and those it is computed from, as far as values (not shapes) go."""
    names: set[str] = set()
    pending = [name]
    while pending:
        current = pending.pop()
        node = producers.get(current)
        if current and current not in names:
            names.add(current)
            if node is not None and node.op_type not in ("Shape", "Size"):
                pending += node.input
    return names


def _coarser_units(model: onnx.ModelProto) -> dict[str, float]:
    """For values whose reader computes in a coarser float, its unit roundoff: their own is lost there.

    A Cast says so itself; a BatchNormalization computes in the type of its data, whatever that of its
    parameters.
    """
    found: dict[str, float] = {}
    types: dict[str, int] | None = None
    for nodes in _scopes(model):
        for node in nodes:
            if node.op_type == "Cast":
                to = next((a.i for a in node.attribute if a.name == "to"), 0)
                found |= {node.input[0]: _COARSE[to]} if to in _COARSE else {}
            elif node.op_type == "BatchNormalization" and node.output:
                types = _types(model) if types is None else types
                to = types.get(node.output[0], 0)
                found |= dict.fromkeys(node.input[1:], _COARSE[to]) if to in _COARSE else {}
    return found


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The element types of values, if any tensor of the model has a coarse one."""
    stored = {t.data_type for t in model.graph.initializer}
    used = stored | {v.type.tensor_type.elem_type for v in model.graph.input}
    return element_types(model) if used & set(_COARSE) else {}
