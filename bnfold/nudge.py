"""Moves the floating constants of a model within what their type can hold.

A stored constant c stands for any number that rounds to it. How far the values of a model move when its
constants do is therefore the noise that the model has by itself, and the yardstick of `algebra_gate`.
"""

from __future__ import annotations

import zlib
from collections import ChainMap, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
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
# Operators that decide about their inputs; a Cast does if it is one to integers or booleans.
_DECIDING = {"ArgMax", "ArgMin", "Ceil", "Equal", "Floor", "Greater", "GreaterOrEqual", "Hardmax", "Less"}
_DECIDING |= {"LessOrEqual", "NonMaxSuppression", "NonZero", "Round", "Sign", "Unique"}
_INTEGRAL = {code for name, code in onnx.TensorProto.DataType.items() if "INT" in name or name == "BOOL"}


class Nudge:
    """Draws of nearby constants for one model.

    Left alone: attributes such as epsilon, settings that are computed from constants (shapes, Resize
    scales, exponents: x**2.0000001 is no number for x < 0), and constants about which alone something is
    decided (3.0 becomes another index when it moves). A decision that involves data is left to its data.

    Constants are known by their bare names. Where graphs and functions use one name for several, all get
    the least noise that one of them has: too little can at worst refuse a model, too much would pass it.

    Args:
        model: The reference.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        flow = _Flow(model)
        self._fixed = flow.fixed()
        self._coarse = flow.coarse_units()

    def draw(self, *seed: int) -> Callable[[str, np.dtype[Any], Array], Array]:
        """c becomes c·(1 + u·U(-1, 1)) for every constant, the same for the same seed.

        u is the unit roundoff of the coarser of the type that c is stored in and the finest type that its
        readers compute in. If the last word of the seed is even, numbers of the same digits in one tensor
        move alike, as they are rounded alike: in a kernel of equal weights, errors add up that would
        cancel elsewhere. If it is odd, each moves by itself: what is made of equal numbers need not be
        equal, and errors of its rounding do not cancel.
        """
        alike = seed[-1] % 2 == 0

        def change(name: str, stored: np.dtype[Any], value: Array) -> Array:
            if name in self._fixed:
                return value
            words = (*seed, zlib.crc32(name.encode()))
            u = max(unit(stored), self._coarse.get(name, 0.0))
            flat = value.reshape(-1)
            moved = np.empty_like(flat)
            for i in range(0, flat.size, _BLOCK):
                part = flat[i : i + _BLOCK]
                spread = _spread(_digits(part), *words) if alike else _spread(_placed(part), *words, i)
                moved[i : i + _BLOCK] = part * (1.0 + u * spread)
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


def _digits(values: Array) -> Array:
    """The digits of each, as uint64."""
    return values.view(np.uint64) & _DIGITS


def _placed(values: Array) -> Array:
    """The digits and the place of each of at most `_BLOCK` numbers, mixed into a uint64."""
    words = _digits(values)
    words ^= _places()[: values.size]
    return words


@cache
def _places() -> Array:
    """A random word for each place of a block. Places as such would move equal numbers by equal steps."""
    return np.random.PCG64(0).random_raw(_BLOCK)


def _spread(words: Array, *seed: int) -> Array:
    """A number in [-1, 1) for each word: the leading bits of the word times an odd number, plus another
    (multiply-shift hashing after Dietzfelbinger et al., 1997). The words are used up."""
    words *= np.uint64(_mixed(*seed, 0) | 1)
    words += np.uint64(_mixed(*seed, 1))
    words >>= np.uint64(11)
    spread: Array = words.astype(np.float64)
    spread *= 2.0**-52
    spread -= 1.0
    return spread


def unit(dtype: np.dtype[Any]) -> float:
    """The unit roundoff of a floating type: half the gap between 1 and the next number."""
    return float(ml_dtypes.finfo(dtype).eps) / 2  # type: ignore[no-untyped-call]


@dataclass(eq=False)
class _Value:
    """A value of a graph, or of the body of a function at one of its calls.

    Attributes:
        name: What its graph calls it.
        type: Code of `TensorProto.DataType`; 0 where it is not known.
        sources: What its numbers are computed from.
        results: What is computed from its numbers.
        units: For each reader the unit roundoff that it takes its numbers to; 0 if it takes them as they are.
    """

    name: str
    type: int = 0
    sources: list[_Value] = field(default_factory=list)
    results: list[_Value] = field(default_factory=list)
    units: list[float] = field(default_factory=list)


_Names = ChainMap[str, _Value]
_Key = tuple[str, str, str]


class _Flow:
    """What is computed from what in a model: each name in its own scope, functions at each of their calls."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._functions = {_key(f, f.name): f for f in model.functions}
        self._types = _types(model)
        self._inputs: list[_Value] = []
        self._constants: list[_Value] = []
        self._decisive: list[Sequence[_Value]] = []  # what a setting, or a decision, is made of
        names = self._graph(model.graph, ChainMap(), ())
        stored = set(self._constants)
        self._inputs += [names[v.name] for v in model.graph.input if names[v.name] not in stored]

    def fixed(self) -> set[str]:
        """Names of the constants that decide something, by themselves or with other constants.

        What depends on data fixes nothing: what it is computed from may well be the whole network.
        """
        data = _reached(self._inputs, lambda value: value.results)
        made = [value for some in self._decisive if data.isdisjoint(some) for value in some]
        found = _reached(made, lambda value: value.sources)
        return {value.name for value in self._constants if value in found}

    def coarse_units(self) -> dict[str, float]:
        """For constants that all readers take to a coarser float, its unit roundoff: their own is lost;
        0 for others.

        A Cast says so itself; a BatchNormalization computes in the type of its data, whatever that of its
        parameters.
        """
        units: dict[str, list[float]] = defaultdict(list)
        for value in self._constants:
            units[value.name] += value.units
        return {name: min(some, default=0.0) for name, some in units.items()}

    def _graph(self, graph: onnx.GraphProto, around: _Names, calls: tuple[_Key, ...]) -> _Names:
        """Walk through a graph; returns the names that it knows."""
        names = around.new_child()
        for value in graph.input:
            names[value.name] = self._value(value.name, calls)
        for name in [t.name for t in graph.initializer] + [t.values.name for t in graph.sparse_initializer]:
            names[name] = self._constant(name)
        self._nodes(graph.node, names, calls)
        for value in graph.output:
            if value.name in names:
                names[value.name].units.append(0.0)
        return names

    def _value(self, name: str, calls: tuple[_Key, ...]) -> _Value:
        return _Value(name, 0 if calls else self._types.get(name, 0))  # types are those of the main graph

    def _constant(self, name: str) -> _Value:
        self._constants.append(_Value(name))
        return self._constants[-1]

    def _nodes(self, nodes: Sequence[onnx.NodeProto], names: _Names, calls: tuple[_Key, ...]) -> None:
        for node in nodes:
            for name in filter(None, node.output):
                stored = node.op_type in ("Constant", "ConstantOfShape")
                names[name] = self._constant(name) if stored else self._value(name, calls)
        for node in nodes:
            read = [names.get(name) for name in node.input]
            results = [names.get(name) for name in node.output]
            key = _key(node, node.op_type)
            if key in self._functions and key not in calls:
                self._call(self._functions[key], read, results, (*calls, key))
            else:
                self._operator(node, read, results, names, calls)

    def _call(
        self,
        function: onnx.FunctionProto,
        read: Sequence[_Value | None],
        results: Sequence[_Value | None],
        calls: tuple[_Key, ...],
    ) -> None:
        """Walk through the body of a function, whose parameters are what it is given."""
        given = zip(function.input, read, strict=False)  # the last ones may be left out
        names: _Names = ChainMap({name: value for name, value in given if value is not None})
        self._nodes(function.node, names, calls)
        for name, result in zip(function.output, results, strict=False):
            if name in names:
                names[name].units.append(0.0)
                _link([names[name]], [result])

    def _operator(
        self,
        node: onnx.NodeProto,
        read: list[_Value | None],
        results: list[_Value | None],
        names: _Names,
        calls: tuple[_Key, ...],
    ) -> None:
        op_type = "" if _domain(node) else node.op_type
        if op_type in ("Shape", "Size"):  # no nudge changes their result
            return
        to = next((a.i for a in node.attribute if a.name == "to"), 0) if op_type == "Cast" else 0
        for i, value in enumerate(read):
            if value is not None:
                data = read[0] if op_type == "BatchNormalization" and i > 0 else None
                value.units.append(_COARSE.get(data.type if data else to, 0.0))
        if op_type in _DECIDING or to in _INTEGRAL:
            self._decisive.append([value for value in read if value])
        self._decisive += [[value] for value in read[_SETTINGS.get(op_type, len(read)) :] if value]
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                inner = self._graph(graph, names, calls)
                read += [inner.get(value.name) for value in graph.output]
                results += [inner[value.name] for value in graph.input]  # what goes round a Loop as well
        _link(read, results)


def _link(sources: Iterable[_Value | None], results: Iterable[_Value | None]) -> None:
    """Note that each of these values is computed from each of those."""
    for source in filter(None, sources):
        for result in filter(None, results):
            source.results.append(result)
            result.sources.append(source)


def _reached(start: Iterable[_Value], on: Callable[[_Value], Iterable[_Value]]) -> set[_Value]:
    """The values from which one comes, going on and on, and those one started with."""
    reached, pending = set[_Value](), [*start]
    while pending:
        value = pending.pop()
        if value not in reached:
            reached.add(value)
            pending += on(value)
    return reached


def _key(called: onnx.NodeProto | onnx.FunctionProto, name: str) -> _Key:
    """What a node calls a function by."""
    return _domain(called), name, called.overload


def _domain(of: onnx.NodeProto | onnx.FunctionProto) -> str:
    return "" if of.domain == "ai.onnx" else of.domain


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The element types of values, if any tensor of the model has a coarse one."""
    stored = {t.data_type for t in model.graph.initializer}
    used = stored | {v.type.tensor_type.elem_type for v in model.graph.input}
    return element_types(model) if used & set(_COARSE) else {}
