"""Calls that work on each element by itself, as operators of ONNX: see `layers`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from torch import fx

from .calls import Stored
from .shadow import Arguments, Builder, Dims, Unknown, need_stored


def relu(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    return b.emit("Relu", [x], b.dims(x))


def leaky_relu(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    return b.emit("LeakyRelu", [x], b.dims(x), alpha=float(a.get("negative_slope", 0.01)))


def prelu(b: Builder, a: Arguments) -> ir.Value:
    x, slope = b.data(a["input"]), need_stored(a["weight"])
    dims = b.need_dims(x)
    numbers = slope.tensor.reshape(-1, *(1,) * (len(dims) - 2)).to(torch.float64).cpu().numpy()
    return b.emit("PRelu", [x, b.number(numbers, numbers.dtype)], dims)


def same(b: Builder, a: Arguments) -> ir.Value:
    """What no affine passes, but keeps the shape."""
    if any(_is_node(v) for k, v in a.items() if k != "input") or any(map(_is_node, a.get("rest", ()))):
        raise Unknown  # tensors may broadcast
    return b.opaque(b.dims(b.data(a["input"])))


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


def identity(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    return b.emit("Identity", [x], b.dims(x))


def to(b: Builder, a: Arguments) -> ir.Value:
    x, dtype = b.data(a["input"]), a["dtype"]
    if isinstance(dtype, fx.Node) and dtype.target is getattr and dtype.args[1] == "dtype":
        like = b.data(dtype.args[0])
        return b.cast(x, like.dtype, like)
    if not isinstance(dtype, torch.dtype):
        raise Unknown
    return b.cast(x, ir.tensor_adapters.from_torch_dtype(dtype))


def type_as(b: Builder, a: Arguments) -> ir.Value:
    like = b.data(a["other"])
    return b.cast(b.data(a["input"]), like.dtype, like)


def cast_to(dtype: torch.dtype) -> Callable[[Builder, Arguments], ir.Value]:
    return lambda b, a: to(b, {**a, "dtype": dtype})


def dropout(b: Builder, a: Arguments) -> ir.Value:
    if a.get("training", True):
        raise Unknown
    return identity(b, a)


def sum_of(op_type: str) -> Callable[[Builder, Arguments], ir.Value]:
    def handler(b: Builder, a: Arguments) -> ir.Value:
        if a.get("alpha", 1) != 1 or a.get("rounding_mode") is not None:
            raise Unknown
        operands = [_operand(b, a[name]) for name in ("input", "other")]
        return b.emit(op_type, operands, _broadcast(b, *map(b.dims, operands)))

    return handler


def _operand(b: Builder, argument: Any) -> ir.Value:
    if isinstance(argument, Stored):
        return b.tensor(argument)
    if isinstance(argument, int | float) and not isinstance(argument, bool):
        return b.scalar(float(argument))
    return b.data(argument)


def _broadcast(b: Builder, left: Dims | None, right: Dims | None) -> Dims | None:
    if left is None or right is None:
        return None
    rank = max(len(left), len(right))
    pairs = zip(*((*(1,) * (rank - len(dims)), *dims) for dims in (left, right)), strict=True)
    found: list[int | str] = []
    for one, other in pairs:
        sizes = {one, other} - {1}
        fixed = [n for n in sizes if isinstance(n, int)]
        found.append((fixed or [*sizes, 1])[0] if len(sizes) < 2 or fixed else b.free(1)[0])
    return tuple(found)


def neg(b: Builder, a: Arguments) -> ir.Value:
    x = b.data(a["input"])
    return b.emit("Neg", [x], b.dims(x))
