"""How far the outputs of a model may move by the rounding of the runtime that computes it.

A runtime keeps every value in the type that the model declares, with unit roundoff u, and adds up the n
terms of a product in some order. Rounding errors of a sum are mostly of random sign, so that they grow like
the square root of n: a plain running sum of n terms is off by about u·sqrt(n/2) of its value, and whatever
a runtime does is no worse than that. Here every value y that is computed from the inputs becomes
y·(1 + u·sqrt(n/2)·U(-1, 1)) in float64 arithmetic, and the outputs tell what becomes of it. Constants are
nudged as well: a runtime that folds them rounds what it makes, and the error is the same at every pixel,
so that no mean over pixels takes it away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from .declared import element_types
from .evaluate import EvaluationError, Missing, Program
from .nudge import Nudge, unit

Array = NDArray[Any]

# So many draws that their root mean square is a fifth of what it should be in one case of 40 000, also
# for an output of one number (chi square with 8 degrees of freedom).
_DRAWS = 8
# Operators that jump: a difference in the last place may become one of a whole step. Those that make
# integers of floats are also known by their types, where there are any.
_JUMPING = {"ArgMax", "ArgMin", "Ceil", "DynamicQuantizeLinear", "Equal", "Floor", "Greater"}
_JUMPING |= {"GreaterOrEqual", "Hardmax", "Less", "LessOrEqual", "Mod", "NonMaxSuppression", "NonZero"}
_JUMPING |= {"QuantizeLinear", "Round", "Sign", "TopK", "Unique"}
# Functions into [-1, 1], which kernels approximate to u of that range, not of each value: a Sigmoid of
# -40 may well be 1e-9 instead of 4e-18.
_BOUNDED = {"Erf", "Sigmoid", "Softmax", "Tanh"}
_FLOAT_NAMES = {"FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16"}
_FLOATS = {onnx.TensorProto.DataType.Value(name) for name in _FLOAT_NAMES}


@dataclass(frozen=True)
class Gap:
    """How far a value is from the exact one.

    Attributes:
        error: Root mean square of the difference over the elements finite in both; for integers and
            booleans the share of elements that differ.
        spoiled: Share of elements that are finite in one only, or another infinity; all where the
            shapes differ.
    """

    error: float
    spoiled: float


def gap(value: Array, exact: Array) -> Gap:
    """Compare a value in any type with the one of float64 arithmetic."""
    if value.shape != exact.shape:
        return Gap(math.inf, 1.0)
    if not value.size:
        return Gap(0.0, 0.0)
    if value.dtype.kind != "f":
        return Gap(float(np.mean(value != exact)), 0.0)
    wide = value.astype(np.float64)
    finite = np.isfinite(wide) & np.isfinite(exact)
    same = finite | (wide == exact) | (np.isnan(wide) & np.isnan(exact))
    return Gap(rms(wide[finite] - exact[finite]), 1.0 - float(np.mean(same)))


def rms(values: Array) -> float:
    """Root mean square; 0 for no values."""
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0


class Rounding:
    """The rounding of one model.

    Args:
        program: The model.
        seed: Decides the draws.
    """

    def __init__(self, program: Program, seed: int) -> None:
        self._program = program
        self._seed = seed

    def noise(self, feed: Mapping[str, Array], exact: Mapping[str, Array]) -> dict[str, float]:
        """Root mean square, over all draws, of `Gap.error` of each output.

        Args:
            feed: Values of the inputs.
            exact: What float64 arithmetic makes of them.
        """
        squares: dict[str, list[float]] = {name: [] for name in exact}
        for draw in range(_DRAWS):
            try:
                for name, value in self._moved(feed, draw):
                    if name in squares:
                        squares[name].append(gap(value, exact[name]).error ** 2)
            except EvaluationError:  # a move that the model does not bear; the other draws may
                continue
        return {name: math.sqrt(float(np.mean(some))) if some else 0.0 for name, some in squares.items()}

    def jumps(self, output: str) -> bool:
        """Whether an output depends on a decision about computed numbers (ArgMax, Greater, Round, ...).

        Rounding then decides some close cases the other way, and how many is a matter of luck.
        """
        return output in self._flow.decided

    def _moved(self, feed: Mapping[str, Array], draw: int) -> Iterator[tuple[str, Array]]:
        rng = np.random.default_rng([self._seed, draw])
        change = self._nudge.draw(self._seed, draw)
        run = self._program.run(feed, wanted=self._program.computed, change=change)
        shapes: dict[str, Sequence[int]] = {t.name: t.dims for t in self._program.model.graph.initializer}
        shapes |= {name: value.shape for name, value in feed.items()}
        reply: Array | None = None
        while True:
            try:
                name, value = run.send(reply)
            except StopIteration:
                return
            reply = None
            if isinstance(value, Missing):
                continue
            shapes[name] = value.shape
            if value.dtype.kind == "f" and name in self._flow.fed:
                node = self._program.producer.get(name)
                terms = 1 if node is None else _terms(node, shapes, value.size)
                spread = self._flow.unit(name) * math.sqrt(max(1.0, terms / 2))
                size = 1.0 if node is not None and node.op_type in _BOUNDED else value
                reply = value + size * (2 * spread * (rng.random(value.shape) - 0.5))
            yield name, value if reply is None else reply

    @cached_property
    def _nudge(self) -> Nudge:
        return Nudge(self._program.model)

    @cached_property
    def _flow(self) -> _Flow:
        return _Flow(self._program)


class _Flow:
    """What a model's values depend on.

    Attributes:
        fed: Names of the values that depend on the numbers fed, not on sizes alone.
        decided: Those that depend on a decision about such numbers.
    """

    def __init__(self, program: Program) -> None:
        self._types = element_types(program.model)
        self._functions = {(f.domain, f.name): f.node for f in program.model.functions}
        self._output_types = [
            self._types[name] for name in program.outputs if self._types.get(name) in _FLOATS
        ]
        self.fed = {value.name for value in program.inputs}
        self.decided: set[str] = set()
        for node in (program.producer[name] for name in program.computed):
            read = set(_read(node)) & self.fed
            if not read or node.op_type in ("Shape", "Size"):
                continue
            self.fed.update(node.output)
            if read & self.decided or self._decides(node, read):
                self.decided.update(node.output)

    def _decides(self, node: onnx.NodeProto, read: set[str]) -> bool:
        if not any(self._may_be_float(name) for name in read):
            return False
        return self._jumps(node) or not all(self._may_be_float(name) for name in node.output if name)

    def _jumps(self, node: onnx.NodeProto) -> bool:
        """Whether a node, one of its inner graphs or of the function that it calls does."""
        inner = [n for a in node.attribute for g in (a.g, *a.graphs) for n in g.node]
        inner += self._functions.get((node.domain, node.op_type), ())
        return node.op_type in _JUMPING or any(self._jumps(other) for other in inner)

    def _may_be_float(self, name: str) -> bool:
        return self._types.get(name, onnx.TensorProto.FLOAT) in _FLOATS

    def unit(self, name: str) -> float:
        """The unit roundoff of a value's type; that of the outputs where it is not known."""
        types = [self._types[name]] if self._types.get(name) in _FLOATS else self._output_types
        dtypes = [onnx.helper.tensor_dtype_to_np_dtype(code) for code in types or [onnx.TensorProto.FLOAT]]
        return max(unit(dtype) for dtype in dtypes)


def _terms(node: onnx.NodeProto, shapes: Mapping[str, Sequence[int]], size: int) -> int:
    """How many terms are added up to one of the `size` elements of a result; 1 if it is no sum."""
    data, weight = (shapes.get(node.input[i], ()) if i < len(node.input) else () for i in (0, 1))
    match node.op_type:
        case "Conv":
            return math.prod(weight[1:])
        case "ConvTranspose":
            return math.prod(weight) // max(1, *weight[1:2])
        case "MatMul":
            return math.prod(data[-1:])
        case "Gemm":
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            return math.prod(weight[1:] if transposed else weight[:1])
        case "GlobalAveragePool" | "GlobalLpPool":
            return math.prod(data[2:])
        case kind if kind.startswith("Reduce"):
            return math.prod(data) // max(1, size)
    return 1


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """All names that a node may read, those that its inner graphs capture among them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            yield from (value.name for value in graph.output)
            for inner in graph.node:
                yield from _read(inner)
