"""Faults of folding: what a net would be, had its fold got one thing wrong.

A fault is planted in the parameters of the original, and what bnfold's own fold makes of them is the faulty
result: the constants of that layer are computed with the fault and rounded once, and all others come out
to the bits that they have without it. To lose nothing on the way, statistics are handed to the fold in
float64, which is no fault: the tests hold that this alone changes no bit of any result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import DTypeLike, NDArray
from onnx import helper, numpy_helper

import bnfold

Array = NDArray[Any]
Vector = NDArray[np.float64]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
UNIT = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float16): 2.0**-11}
"""The unit roundoff of each type that the nets store."""


# Layers


@dataclass(frozen=True, eq=False)
class Parameters:
    """All numbers that one layer's folded constants are made of.

    Attributes:
        weight: Channels first, shape [C, ...], in float64 as all that follow.
        offset: The bias of the operator with the weight, shape [C]; None if it has none.
        scale, bias, mean, var: Of the BatchNormalization, shape [C].
        epsilon: Its attribute.
        pads: Of the operator with the weight; None if it has no such attribute.
    """

    weight: Array
    offset: Vector | None
    scale: Vector
    bias: Vector
    mean: Vector
    var: Vector
    epsilon: float
    pads: tuple[int, ...] | None

    @property
    def alive(self) -> NDArray[np.intp]:
        """The channels that do something: no weights or scale of 0, no variance far below epsilon."""
        moving = np.abs(self.weight).reshape(len(self.weight), -1).max(axis=1) > 0
        return np.flatnonzero(moving & (self.scale != 0) & (self.var > 0.01 * self.epsilon))

    @property
    def slope(self) -> Vector:
        """scale / sqrt(var + epsilon), by which the fold multiplies, shape [C]."""
        slope: Vector = self.scale / np.sqrt(self.var + self.epsilon)
        return slope

    @property
    def folded_bias(self) -> Vector:
        """What a fold adds to the channels, shape [C]."""
        offset = 0.0 if self.offset is None else self.offset
        folded: Vector = self.bias + self.slope * (offset - self.mean)
        return folded

    @property
    def terms(self) -> Vector:
        """The sum of the magnitudes that the folded bias is the sum of, shape [C]."""
        offset = 0.0 if self.offset is None else np.abs(self.offset)
        terms: Vector = np.abs(self.bias) + np.abs(self.slope) * (np.abs(self.mean) + offset)
        return terms

    def scaled(self, channel: int, factor: float) -> Parameters:
        """With other folded weights in one channel, and its folded bias as it was."""
        scale, bias = self.scale.copy(), self.bias.copy()
        scale[channel] *= factor
        bias[channel] += (1 - factor) * (self.folded_bias - self.bias)[channel]
        return replace(self, scale=scale, bias=bias)


@dataclass(frozen=True, eq=False)
class _Weights:
    """The constants on the way to a value: in front of a BatchNormalization, or in its place after the fold.

    Attributes:
        node: The Conv, ConvTranspose, Gemm or MatMul.
        name: Of its weight.
        offset: Of the constant that is added to its result; "" if there is none.
    """

    node: onnx.NodeProto
    name: str
    offset: str

    def channels_first(self, weight: Array) -> Array:
        """The weight as [C, ...]."""
        if self.node.op_type == "MatMul":
            return weight.T
        if self.node.op_type == "ConvTranspose":
            inputs, outputs, *kernel = weight.shape
            groups = self._groups
            split = weight.reshape(groups, inputs // groups, outputs, *kernel)
            return split.swapaxes(1, 2).reshape(groups * outputs, inputs // groups, *kernel)
        return weight

    def as_stored(self, weight: Array) -> Array:
        """The way back."""
        if self.node.op_type == "MatMul":
            return weight.T
        if self.node.op_type == "ConvTranspose":
            outputs, inputs, *kernel = weight.shape
            groups = self._groups
            split = weight.reshape(groups, outputs // groups, inputs, *kernel)
            return split.swapaxes(1, 2).reshape(groups * inputs, outputs // groups, *kernel)
        return weight

    @property
    def pads(self) -> onnx.AttributeProto | None:
        return next((a for a in self.node.attribute if a.name == "pads"), None)

    @property
    def _groups(self) -> int:
        return next((a.i for a in self.node.attribute if a.name == "group"), 1)


class _Model:
    """A model with its constants by name."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self.producers = {name: node for node in proto.graph.node for name in node.output}

    def numbers(self, name: str) -> Array:
        return numpy_helper.to_array(self.tensors[name])

    def store(self, name: str, numbers: Array) -> None:
        self.tensors[name].CopyFrom(numpy_helper.from_array(numbers, name))

    def weights(self, value: str) -> _Weights | None:
        """What makes this value, if only a Reshape, a Transpose or an added constant are in between."""
        offset = ""
        while (node := self.producers.get(value)) is not None:
            constants = [name for name in node.input if name in self.tensors]
            if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
                if not constants:
                    return None
                return _Weights(node, constants[0], constants[1] if len(constants) > 1 else offset)
            if node.op_type == "Add" and constants and not offset:
                offset = constants[0]
            elif node.op_type not in ("Reshape", "Transpose"):
                return None
            value = next(name for name in node.input if name not in self.tensors)
        return None

    def norms(self) -> Iterator[onnx.NodeProto]:
        return (node for node in self.proto.graph.node if node.op_type == "BatchNormalization")

    def parameters(self, norm: onnx.NodeProto) -> Parameters:
        """Of the BatchNormalization and of the weights right before it."""
        weights = self.weights(norm.input[0])
        scale, bias, mean, var = (self.numbers(name).astype(np.float64) for name in norm.input[1:])
        epsilon = next(a.f for a in norm.attribute if a.name == "epsilon")
        if weights is None:
            return Parameters(np.ones((len(scale), 1)), None, scale, bias, mean, var, epsilon, None)
        weight = weights.channels_first(self.numbers(weights.name)).astype(np.float64)
        offset = self.numbers(weights.offset).astype(np.float64) if weights.offset else None
        pads = tuple(weights.pads.ints) if weights.pads else None
        return Parameters(weight, offset, scale, bias, mean, var, epsilon, pads)

    def plant(self, norm: onnx.NodeProto, old: Parameters, new: Parameters) -> None:
        """Write what is new; statistics always, as float64."""
        for name, statistic in zip(norm.input[1:], (new.scale, new.bias, new.mean, new.var), strict=True):
            self.store(name, statistic)
        norm.attribute.remove(next(a for a in norm.attribute if a.name == "epsilon"))
        norm.attribute.append(helper.make_attribute("epsilon", new.epsilon))
        weights = self.weights(norm.input[0])
        if weights is None:
            return
        if new.weight is not old.weight:
            stored = self.numbers(weights.name)
            self.store(weights.name, weights.as_stored(new.weight).astype(stored.dtype))
        if new.offset is not None and new.offset is not old.offset:
            self.store(weights.offset, new.offset.astype(self.numbers(weights.offset).dtype))
        if weights.pads is not None and new.pads is not None:
            weights.pads.ints[:] = new.pads


@dataclass(frozen=True, eq=False)
class Folded:
    """A net and its correct fold.

    Attributes:
        original: The net.
        result: What bnfold's fold makes of it.
        layers: Names of what the BatchNormalizations compute, of those that went into the weights right
            before them, in order: the result computes the same under the same name. Left out are those
            whose folded bias has taken in the shift of another one as well.
    """

    original: onnx.ModelProto
    result: onnx.ModelProto
    layers: tuple[str, ...]


def fold(original: onnx.ModelProto) -> Folded:
    """The correct fold of a net."""
    result = _fold(original)
    before, after = _Model(original), _Model(result)
    layers = [norm.output[0] for norm in before.norms() if _is_folded_alone(before, after, norm)]
    return Folded(original, result, tuple(layers))


def _is_folded_alone(before: _Model, after: _Model, norm: onnx.NodeProto) -> bool:
    weights = after.weights(norm.output[0])
    if weights is None or not weights.offset or before.weights(norm.input[0]) is None:
        return False
    layer, stored = before.parameters(norm), after.numbers(weights.offset)
    room = 2 * UNIT[stored.dtype] * layer.terms
    return bool(np.all(np.abs(stored.reshape(-1) - layer.folded_bias) <= room))


def _fold(model: onnx.ModelProto) -> onnx.ModelProto:
    work = ir.from_proto(model)
    bnfold.fold(work)
    result: onnx.ModelProto = ir.to_proto(work)
    return result


# Faults


@dataclass(frozen=True)
class Fault:
    """One thing to get wrong.

    Attributes:
        name: In words.
        change: From a layer's parameters and two of its channels to the parameters with the fault; None
            where the layer has no room for it.
        everywhere: Whether all layers have it, or one.
    """

    name: str
    change: Callable[[Parameters, int, int], Parameters | None]
    everywhere: bool = False


def plant(folded: Folded, fault: Fault, layer: str | None, seed: int) -> onnx.ModelProto | None:
    """The result of a fold with the fault, in one layer or (None) in all; None if there is no room for it.

    Args:
        folded: The correct fold.
        fault: What to get wrong.
        layer: Where, one of `folded.layers`.
        seed: Decides which channels.
    """
    original = onnx.ModelProto()
    original.CopyFrom(folded.original)
    model = _Model(original)
    random = np.random.default_rng(seed)
    planted = False
    for norm in list(model.norms()):
        old = model.parameters(norm)
        one, other = (int(c) for c in random.choice(old.alive, 2, replace=False))
        new = fault.change(old, one, other) if layer in (None, norm.output[0]) else old
        planted |= new is not None and new is not old
        model.plant(norm, old, new or old)
    return _fold(original) if planted else None


def size(folded: Folded, faulty: onnx.ModelProto) -> float:
    """How large a fault is in what is stored, in unit roundoffs; infinite where it is no matter of degree.

    It is the largest change of a folded constant over a magnitude: for weights, the largest of the same
    channel; for a bias, which is bias + scale / sqrt(var + epsilon) * (offset - mean), the sum of the
    magnitudes of its terms. The original stores each of them to within one unit of itself, so a change
    by a few units is what any other rounding of the same net might have made as well. (Over the folded
    bias itself, where the terms may cancel, a fold in float32 would be a fault of a thousand units.)
    """
    if [_structure(n) for n in folded.result.graph.node] != [_structure(n) for n in faulty.graph.node]:
        return np.inf
    original, correct, wrong = (_Model(proto) for proto in (folded.original, folded.result, faulty))
    norms = {norm.output[0]: norm for norm in original.norms()}
    terms = {layer: original.parameters(norms[layer]).terms for layer in folded.layers}
    return max(_change(correct, wrong, layer, terms[layer]) for layer in folded.layers)


def _structure(node: onnx.NodeProto) -> tuple[Any, ...]:
    attributes = [a.SerializeToString(deterministic=True) for a in node.attribute]
    return node.op_type, list(node.input), list(node.output), attributes


def _change(correct: _Model, wrong: _Model, layer: str, terms: Vector) -> float:
    weights = correct.weights(layer)
    assert weights is not None
    stored = correct.numbers(weights.name)
    old, new = (
        weights.channels_first(model.numbers(weights.name)).astype(np.float64).reshape(len(terms), -1)
        for model in (correct, wrong)
    )
    changes = [_ratio(np.abs(new - old).max(axis=1), np.abs(old).max(axis=1))]
    if weights.offset:
        old, new = (model.numbers(weights.offset).astype(np.float64) for model in (correct, wrong))
        changes.append(_ratio(np.abs(new - old).reshape(-1), terms))
    return max(changes) / UNIT[stored.dtype]


def _ratio(moved: Vector, magnitude: Vector) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(moved == 0, 0.0, moved / magnitude)
    return float(np.nan_to_num(ratios, nan=np.inf, posinf=np.inf).max())


def _rounded(numbers: Array, dtype: DTypeLike) -> Array:
    return numbers.astype(dtype).astype(np.float64)


def _rounded_to(field: str, dtype: DTypeLike) -> Callable[[Parameters, int, int], Parameters]:
    def change(layer: Parameters, *_: int) -> Parameters:
        numbers: Mapping[str, Any] = {field: _rounded(getattr(layer, field), dtype)}
        return replace(layer, **numbers)

    return change


def _with(numbers: Vector, channel: int, value: float) -> Vector:
    changed = numbers.copy()
    changed[channel] = value
    return changed


def _no_epsilon(layer: Parameters, *_: int) -> Parameters:
    return replace(layer, epsilon=0.0)


def _other_epsilon(layer: Parameters, *_: int) -> Parameters:
    return replace(layer, epsilon=1e-3)


def _one_bias_lost(layer: Parameters, one: int, _: int) -> Parameters:
    """The folded bias of a channel is 0."""
    offset = None if layer.offset is None else _with(layer.offset, one, 0.0)
    bias, mean = (_with(numbers, one, 0.0) for numbers in (layer.bias, layer.mean))
    return replace(layer, offset=offset, bias=bias, mean=mean)


def _offset_lost(layer: Parameters, *_: int) -> Parameters | None:
    """The bias that the operator had before the fold is not taken along."""
    return None if layer.offset is None else replace(layer, offset=np.zeros_like(layer.offset))


def _swapped(layer: Parameters, one: int, other: int) -> Parameters:
    def swap(numbers: Array) -> Array:
        changed = numbers.copy()
        changed[[one, other]] = numbers[[other, one]]
        return changed

    return replace(
        layer,
        weight=swap(layer.weight),
        offset=None if layer.offset is None else swap(layer.offset),
        scale=swap(layer.scale),
        bias=swap(layer.bias),
        mean=swap(layer.mean),
        var=swap(layer.var),
    )


def _padding_off(layer: Parameters, *_: int) -> Parameters | None:
    """One less at the beginning of every axis, one more at the end."""
    if not layer.pads or min(layer.pads) < 1:
        return None
    axes = len(layer.pads) // 2
    begin, end = layer.pads[:axes], layer.pads[axes:]
    return replace(layer, pads=(*(p - 1 for p in begin), *(p + 1 for p in end)))


FAULTS = (
    Fault("epsilon dropped everywhere", _no_epsilon, everywhere=True),
    Fault("epsilon 1e-3 everywhere", _other_epsilon, everywhere=True),
    Fault("epsilon dropped", _no_epsilon),
    Fault("epsilon 1e-3", _other_epsilon),
    Fault("mean forgotten", lambda layer, *_: replace(layer, mean=np.zeros_like(layer.mean))),
    Fault("all of bias (BN) lost", lambda layer, *_: replace(layer, bias=np.zeros_like(layer.bias))),
    Fault("one bias (BN) lost", lambda layer, one, _: replace(layer, bias=_with(layer.bias, one, 0.0))),
    Fault("one folded bias lost", _one_bias_lost),
    Fault("bias before BN forgotten", _offset_lost),
    Fault("one channel x 1.001", lambda layer, one, _: layer.scaled(one, 1.001)),
    Fault("one channel x 1.00001", lambda layer, one, _: layer.scaled(one, 1.00001)),
    Fault("one channel's sign flipped", lambda layer, one, _: layer.scaled(one, -1.0)),
    Fault("two channels swapped", _swapped),
    Fault("scale in float16", _rounded_to("scale", np.float16)),
    Fault("scale in bfloat16", _rounded_to("scale", BFLOAT16)),
    Fault("var in float16", _rounded_to("var", np.float16)),
    Fault("var in bfloat16", _rounded_to("var", BFLOAT16)),
    Fault("weight in float16", _rounded_to("weight", np.float16)),
    Fault("weight in bfloat16", _rounded_to("weight", BFLOAT16)),
    Fault("padding off by one", _padding_off),
)
"""Everything that is planted. Not among them: float64 statistics, which change nothing."""


def _single_precision(layer: Parameters, *_: int) -> Parameters:
    """Scale and shift computed in float32, as most tools do: no fault, but not correctly rounded."""
    scale, bias, mean, var = (
        numbers.astype(np.float32) for numbers in (layer.scale, layer.bias, layer.mean, layer.var)
    )
    slope = scale / np.sqrt(var + np.float32(layer.epsilon))
    shift = bias - mean * slope
    zero, one = np.zeros_like(layer.mean), np.ones_like(layer.var)
    slope, shift = slope.astype(np.float64), shift.astype(np.float64)
    return replace(layer, scale=slope, bias=shift, mean=zero, var=one, epsilon=0.0)


SINGLE_PRECISION = Fault("folded in float32", _single_precision, everywhere=True)
NOTHING = Fault("nothing wrong", lambda layer, *_: replace(layer), everywhere=True)
