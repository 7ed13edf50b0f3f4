"""Operators that work value by value, with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from .node import Array, Node, Operator, along, carry, dtype_of, is_float
from .outcome import Random, Unsupported


def operands(node: Node) -> tuple[Array, Array]:
    """Both inputs of a binary operator, broadcast as the opset says.

    Up to opset 6 shapes must be equal unless `broadcast` is 1; B is then aligned to the last axes of A,
    or begins at `axis`.
    """
    a, b = node[0], node[1]
    if node.opset >= 7:
        return a, b
    if not node.attributes["broadcast"]:
        if a.shape != b.shape:
            raise ValueError(f"{node.op_type} without broadcast=1: shapes {a.shape} and {b.shape} differ")
        return a, b
    axis = node.attributes.get("axis", a.ndim - b.ndim)
    behind = a.ndim - axis % max(a.ndim, 1) - b.ndim if b.ndim else 0
    return a, np.broadcast_to(b.reshape(b.shape + (1,) * behind), a.shape)


def unary(function: Callable[[Array], Any]) -> Operator:
    return lambda node: np.asarray(function(node[0]))


def binary(function: Callable[[Array, Array], Any]) -> Operator:
    return lambda node: np.asarray(function(*operands(node)))


def divide(a: Array, b: Array) -> Array:
    """Integers are divided towards zero."""
    if is_float(a):
        return np.asarray(a / b)
    quotient = np.abs(a) // np.abs(b)
    return np.asarray(np.where((a < 0) != (b < 0), -quotient, quotient), a.dtype)


def power(a: Array, b: Array) -> Array:
    """The result has the type of the base."""
    return np.asarray(a.astype(np.float64) ** b).astype(a.dtype)


def sigmoid(x: Array) -> Array:
    e = np.asarray(np.exp(-x))  # of a scalar, NumPy makes no array that could be written to
    e += 1
    return np.asarray(np.reciprocal(e, out=e))  # where e is infinite, the result is 0


def softsign(x: Array) -> Array:
    return np.asarray(x / (1 + np.abs(x)))


def gelu(node: Node) -> Array:
    x = node[0]
    if node.attributes["approximate"] == "tanh":
        return np.asarray(x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(x * 0.5 * _each(math.erfc, -x / math.sqrt(2)))


def _each(function: Callable[[float], float], x: Array) -> Array:
    """Value by value: NumPy has no error function."""
    return np.fromiter(map(function, x.ravel()), np.float64, x.size).reshape(x.shape)


def sum_(node: Node) -> Array:
    values = [node[i] for i in range(len(node.inputs))]
    if node.opset < 8 and len({value.shape for value in values}) > 1:
        raise ValueError(f"{node.op_type} before opset 8: shapes {[value.shape for value in values]} differ")
    return np.asarray(sum(values[1:], start=values[0]))


def mean(node: Node) -> Array:
    return np.asarray(sum_(node) / len(node.inputs))


def prelu(node: Node) -> Array:
    x, slope = node[0], node[1]
    if node.opset < 7 and slope.ndim == 1 and slope.size > 1:
        slope = along(slope, 1, x.ndim)
    return np.where(x < 0, np.broadcast_to(slope, x.shape) * x, x)


def leaky_relu(node: Node) -> Array:
    return np.asarray(np.maximum(node[0], 0) + node.attributes["alpha"] * np.minimum(node[0], 0))


def elu(node: Node) -> Array:
    return np.where(node[0] < 0, node.attributes["alpha"] * np.expm1(np.minimum(node[0], 0)), node[0])


def hard_sigmoid(node: Node) -> Array:
    return np.asarray(np.clip(node.attributes["alpha"] * node[0] + node.attributes["beta"], 0, 1))


def clip(node: Node) -> Array:
    x = node[0]
    low = node.optional(1) if node.opset >= 11 else node.attributes.get("min")
    high = node.optional(2) if node.opset >= 11 else node.attributes.get("max")
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.asarray(np.minimum(x, high))


def dropout(node: Node) -> tuple[Array, Array]:
    """In inference mode, or with ratio 0: the data, and a mask that keeps everything."""
    if node.opset < 7:
        random = not node.attributes["is_test"] and node.attributes["ratio"] > 0
    elif node.opset < 12:
        random = False
    else:
        ratio, training = node.optional(1), node.optional(2)
        random = bool(training is not None and training.any() and (ratio is None or ratio.any()))
    if random:
        raise Random("its result is random in training mode")
    return node[0], np.ones(node[0].shape, bool if node.opset >= 10 else np.float64)


def where(node: Node) -> Array:
    return np.where(node[0], node[1], node[2])


def cast(node: Node) -> Array:
    to = node.attributes["to"]
    code = TensorProto.DataType.Value(to) if isinstance(to, str) else to  # a name in opset 1
    return _convert(node[0], carried_dtype(code))


def cast_like(node: Node) -> Array:
    return _convert(node[0], node[1].dtype)


def carried_dtype(code: int) -> np.dtype[Any]:
    """The dtype in which values of an ONNX element type are carried."""
    return carry(np.empty(0, dtype_of(code))).dtype


def _convert(x: Array, dtype: np.dtype[Any]) -> Array:
    if is_float(x) and dtype.kind in "iu":
        return np.trunc(x).astype(np.int64).astype(dtype)  # by way of int64: -1.0 to uint8 wraps
    return x.astype(dtype)


def quantize_linear(node: Node) -> Array:
    x, scale, zero = node[0], node[1], node.optional(2)
    code = node.attributes.get("output_dtype", 0) or TensorProto.UINT8
    dtype = dtype_of(code) if zero is None else zero.dtype
    if dtype.kind not in "iu":
        raise Unsupported(f"QuantizeLinear to {dtype}")
    steps = np.rint(x / _spread(node, scale)) + (0 if zero is None else _spread(node, zero))
    return np.clip(steps, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)


def dequantize_linear(node: Node) -> Array:
    x, scale, zero = node[0].astype(np.float64), node[1], node.optional(2)
    return (x if zero is None else x - _spread(node, zero)) * _spread(node, scale)


def _spread(node: Node, parameter: Array) -> Array:
    """A scale or zero point in float64, broadcast over the data: per tensor, per axis, or per block."""
    x, parameter = node[0], parameter.astype(np.float64)
    if parameter.size == 1:
        return parameter.reshape(())
    axis = node.attributes["axis"] % x.ndim
    if parameter.ndim == 1:
        return along(parameter, axis, x.ndim)
    blocks = np.repeat(parameter, node.attributes["block_size"], axis=axis)
    return blocks[tuple(slice(size) for size in x.shape)]


OPERATORS: dict[str, Operator] = {
    "Abs": unary(np.abs),
    "Add": binary(np.add),
    "And": binary(np.logical_and),
    "Cast": cast,
    "CastLike": cast_like,
    "Clip": clip,
    "DequantizeLinear": dequantize_linear,
    "Div": binary(divide),
    "Dropout": dropout,
    "Elu": elu,
    "Equal": binary(np.equal),
    "Erf": unary(lambda x: _each(math.erf, x)),
    "Exp": unary(np.exp),
    "Gelu": gelu,
    "Greater": binary(np.greater),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": unary(lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "Identity": lambda node: node[0],
    "LeakyRelu": leaky_relu,
    "Less": binary(np.less),
    "Log": unary(np.log),
    "Mean": mean,
    "Mul": binary(np.multiply),
    "Neg": unary(np.negative),
    "Not": unary(np.logical_not),
    "PRelu": prelu,
    "Pow": binary(power),
    "QuantizeLinear": quantize_linear,
    "Reciprocal": unary(np.reciprocal),
    "Relu": unary(lambda x: np.maximum(x, 0)),
    "Sigmoid": unary(sigmoid),
    "Softsign": unary(softsign),
    "Sqrt": unary(np.sqrt),
    "Sub": binary(np.subtract),
    "Sum": sum_,
    "Tanh": unary(np.tanh),
    "Where": where,
}
