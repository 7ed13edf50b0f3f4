"""Reductions, and the operators that are made of them: normalizations and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .elementwise import divide
from .node import Array, Node, Operator, along, is_float
from .outcome import Unsupported
from .windows import blocks

PART = 1 << 15
"""Elements that several passes go over while they are in the cache: 256 KB."""


def batch_normalization(node: Node) -> tuple[Array, ...]:
    """In training mode also the running and, up to opset 13, the saved statistics."""
    x, scale, bias, mean, var = (node[i] for i in range(5))
    spatial = bool(node.attributes.get("spatial", 1))
    channels = x.shape[1] if x.ndim > 1 else 1
    if any(len(parameter) != channels for parameter in (scale, bias, mean, var)):
        raise ValueError(f"its parameters are not for {channels} channels")

    def shaped(parameter: Array) -> Array:
        if spatial or parameter.ndim == 1:
            return along(parameter, 1, x.ndim) if x.ndim > 1 else parameter
        return parameter[np.newaxis]  # spatial=0: one parameter per channel and position

    if not _is_training(node):
        return (_affine(x, shaped(scale), shaped(bias), shaped(mean), shaped(var), node),)
    axes = (0, *range(2, x.ndim)) if spatial else (0,)
    batch_mean, batch_var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    old, new = node.attributes["momentum"], 1 - node.attributes["momentum"]
    running = (
        old * mean + new * batch_mean.reshape(mean.shape),
        old * var + new * batch_var.reshape(var.shape),
    )
    y = _affine(x, shaped(scale), shaped(bias), batch_mean, batch_var, node)
    saved = (batch_mean.squeeze(axes), batch_var.squeeze(axes)) if node.opset < 14 else ()
    return (y, *running, *saved)


def _affine(x: Array, scale: Array, bias: Array, mean: Array, var: Array, node: Node) -> Array:
    """scale·(x - mean)/√(var + ε) + bias as one product and one sum, part by part."""
    s = scale / np.sqrt(var + node.attributes["epsilon"])
    factor, shift = (np.broadcast_to(p, x.shape) for p in (s, bias - s * mean))
    y = np.empty(x.shape)
    for part in blocks(x.shape, PART):
        np.multiply(x[part], factor[part], out=y[part])
        y[part] += shift[part]
    return y


def _is_training(node: Node) -> bool:
    if node.opset >= 14:
        return bool(node.attributes["training_mode"])
    if node.opset >= 7:
        return sum(map(bool, node.outputs)) > 1
    return not node.attributes["is_test"]


def _standardize(x: Array, mean: Array, var: Array, node: Node) -> Array:
    return np.asarray((x - mean) / np.sqrt(var + node.attributes["epsilon"]))


def instance_normalization(node: Node) -> Array:
    return _group_normalize(node, node[0].shape[1])


def group_normalization(node: Node) -> Array:
    return _group_normalize(node, node.attributes["num_groups"])


def _group_normalize(node: Node, groups: int) -> Array:
    x, scale, bias = node[0], node[1], node[2]
    grouped = x.reshape(x.shape[0], groups, -1)
    mean, var = grouped.mean(axis=2, keepdims=True), grouped.var(axis=2, keepdims=True)
    normal = _standardize(grouped, mean, var, node).reshape(x.shape)
    if node.op_type == "GroupNormalization" and node.opset < 21:  # scale and bias per group
        scale, bias = (np.repeat(p, x.shape[1] // groups) for p in (scale, bias))
    return np.asarray(normal * along(scale, 1, x.ndim) + along(bias, 1, x.ndim))


def layer_normalization(node: Node) -> tuple[Array, Array, Array]:
    x, bias = node[0], node.optional(2)
    axes = tuple(range(node.attributes["axis"] % x.ndim, x.ndim))
    mean, var = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    y = _standardize(x, mean, var, node) * node[1]
    return y if bias is None else y + bias, mean, 1 / np.sqrt(var + node.attributes["epsilon"])


def rms_normalization(node: Node) -> Array:
    x = node[0]
    axes = tuple(range(node.attributes["axis"] % x.ndim, x.ndim))
    square = np.mean(x**2, axis=axes, keepdims=True)
    return np.asarray(x / np.sqrt(square + node.attributes["epsilon"]) * node[1])


def mean_variance_normalization(node: Node) -> Array:
    x, axes = node[0], tuple(node.attributes["axes"])
    spread = x.std(axis=axes, keepdims=True) + 1e-9  # by the definition of its opset
    return np.asarray((x - x.mean(axis=axes, keepdims=True)) / spread)


def lp_normalization(node: Node) -> Array:
    x, p, axis = node[0], node.attributes["p"], node.attributes["axis"]
    norm = (np.abs(x) ** p).sum(axis=axis, keepdims=True) ** (1 / p)
    return np.where(norm == 0, 0, x / norm)


def lrn(node: Node) -> Array:
    """x / (bias + alpha/size·Σx²)^beta, the sum over `size` channels around each one."""
    x, size = node[0], node.attributes["size"]
    before = (size - 1) // 2
    around = [(0, 0), (before, size - 1 - before), *[(0, 0)] * (x.ndim - 2)]
    squares = np.pad(x**2, around)
    total = np.zeros(x.shape)
    for first in range(size):
        total += squares[:, first : first + x.shape[1]]
    spread = node.attributes["bias"] + node.attributes["alpha"] / size * total
    return np.asarray(x / spread ** node.attributes["beta"])


def softmax(node: Node) -> Array:
    shifted, axes = _shifted(node)
    y = np.exp(shifted, out=shifted)
    y /= y.sum(axis=axes, keepdims=True)
    return y


def log_softmax(node: Node) -> Array:
    shifted, axes = _shifted(node)
    shifted -= np.log(np.exp(shifted).sum(axis=axes, keepdims=True))
    return shifted


def _shifted(node: Node) -> tuple[Array, tuple[int, ...]]:
    """The data less their largest value, fresh, and the axes of the sum."""
    x, axis = node[0], node.attributes["axis"]
    # Up to opset 12 all axes from `axis` on count as one.
    axes = tuple(range(axis % x.ndim, x.ndim)) if node.opset < 13 else (axis,)
    return np.asarray(x - x.max(axis=axes, keepdims=True, initial=-np.inf)), axes


def hardmax(node: Node) -> Array:
    """1 for the first of the largest, 0 for all others."""
    x, axis = node[0], node.attributes["axis"]
    flat = x
    if node.opset < 13:  # as for Softmax
        axis %= x.ndim
        flat = x.reshape(*x.shape[:axis], math.prod(x.shape[axis:]))
    y = np.zeros_like(flat)
    if y.size:
        np.put_along_axis(y, np.argmax(flat, axis=axis, keepdims=True), 1, axis)
    return y.reshape(x.shape)


def reduction(function: Callable[..., Any]) -> Operator:
    """A Reduce operator; `function` takes the data, `axis` and `keepdims`."""

    def reduce(node: Node) -> Array:
        axes = tuple(node.ints("axes", 1) or ())
        # Over no axes at all, each value is reduced by itself: a sum of squares is its square.
        every = not axes and not node.attributes.get("noop_with_empty_axes", 0)
        keepdims = bool(node.attributes["keepdims"])
        return np.asarray(function(node[0], axis=None if every else axes, keepdims=keepdims))

    return reduce


def _max(x: Array, **options: Any) -> Any:
    return np.max(x, initial=_bounds(x)[0], **options)


def _min(x: Array, **options: Any) -> Any:
    return np.min(x, initial=_bounds(x)[1], **options)


def _sum(x: Array, **options: Any) -> Any:
    return np.sum(x, dtype=x.dtype, **options)


def _mean(x: Array, **options: Any) -> Any:
    """Of integers an integer, rounded towards zero, as runtimes have it."""
    total = np.asarray(_sum(x, **options))
    return divide(total, np.asarray(x.size // max(total.size, 1), x.dtype))


def _sum_square(x: Array, **options: Any) -> Any:
    return _sum(np.square(x), **options)


def _log_sum_exp(x: Array, axis: tuple[int, ...] | None, keepdims: bool) -> Any:
    if not is_float(x):
        raise Unsupported("ReduceLogSumExp of integers")
    largest = x.max(axis=axis, keepdims=True, initial=-np.inf)
    largest = np.where(np.isfinite(largest), largest, 0)
    y = np.log(np.exp(x - largest).sum(axis=axis, keepdims=True)) + largest
    return y if keepdims else np.squeeze(y, axis)


def _bounds(x: Array) -> tuple[Any, Any]:
    """The smallest and the largest value of the type: what the maximum and minimum of nothing are."""
    if is_float(x):
        return -np.inf, np.inf
    return (False, True) if x.dtype == bool else (np.iinfo(x.dtype).min, np.iinfo(x.dtype).max)


def arg_max(node: Node) -> Array:
    x, axis = node[0], node.attributes["axis"]
    if node.attributes.get("select_last_index", 0):
        found = x.shape[axis] - 1 - np.argmax(np.flip(x, axis), axis=axis, keepdims=True)
    else:
        found = np.argmax(x, axis=axis, keepdims=True)
    return np.asarray(found if node.attributes["keepdims"] else np.squeeze(found, axis), np.int64)


OPERATORS: dict[str, Operator] = {
    "ArgMax": arg_max,
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "Hardmax": hardmax,
    "InstanceNormalization": instance_normalization,
    "LRN": lrn,
    "LayerNormalization": layer_normalization,
    "LogSoftmax": log_softmax,
    "LpNormalization": lp_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "RMSNormalization": rms_normalization,
    "ReduceLogSumExp": reduction(_log_sum_exp),
    "ReduceMax": reduction(_max),
    "ReduceMean": reduction(_mean),
    "ReduceMin": reduction(_min),
    "ReduceSum": reduction(_sum),
    "ReduceSumSquare": reduction(_sum_square),
    "Softmax": softmax,
}
