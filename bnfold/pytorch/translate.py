"""A traced graph as an ONNX graph: which operators stand for which call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import fx
from torch.nn.modules.batchnorm import _BatchNorm

from ..report import Declined, Reason
from . import axes, layers, pointwise, windows
from .calls import Call
from .shadow import Arguments, Builder, Shadow, Unknown
from .trace import Traced


def translate(
    traced: Traced,
    calls: Mapping[fx.Node, Call | None],
    barred: Mapping[fx.Node, Declined],
    examples: Mapping[str, Any],
    path: str = "",
) -> Shadow:
    """The ONNX model of a traced graph.

    Args:
        traced: The graph.
        calls: What its nodes call.
        barred: Nodes that have to stay what they are, and why.
        examples: Arguments by name, as far as there are any; of tensors, the rank and the type count.
        path: Where the module is within another one; names in reports begin with it.
    """
    builder = Builder(traced.root, calls, path)
    for node in traced.graph.nodes:
        builder.node, call = node, calls[node]
        if node.op == "placeholder":
            example = examples.get(node.target)
            value = builder.argument(node, example if isinstance(example, torch.Tensor) else None)
        else:
            try:
                if node in barred and call is not None:
                    raise barred[node]
                if call is None:
                    _need_plain_norm(builder, traced)
                value = _HANDLERS[call.name](builder, call.arguments) if call else builder.opaque()
            except Declined as declined:
                if call is None or call.name == "batch_norm":
                    builder.shadow.declined[node] = declined
                value = builder.opaque()
            except (Unknown, KeyError, TypeError, ValueError, IndexError):  # written in a way of its own
                value = builder.opaque()
        builder.finish(value)
    return builder.shadow


def _need_plain_norm(builder: Builder, traced: Traced) -> None:
    """A BatchNorm that is called and not known does something of its own, which has to be said."""
    node = builder.node
    module = traced.root.get_submodule(node.target) if node.op == "call_module" else None
    if isinstance(module, _BatchNorm) and node.target not in traced.opaque:
        kind = type(module).__name__
        raise Declined(Reason.IN_CODE, f"{builder.called!r} is a {kind}, which does more than torch's own")


_HANDLERS: dict[str, Callable[[Builder, Arguments], ir.Value]] = {
    "adaptive_avg_pool": windows.adaptive_avg_pool,
    "adaptive_max_pool": windows.adaptive_max_pool,
    "add": pointwise.sum_of("Add"),
    "attribute": axes.attribute,
    "avg_pool": windows.avg_pool,
    "batch_norm": layers.batch_norm,
    "cat": axes.cat,
    "chunk": axes.chunk,
    "bfloat16": pointwise.cast_to(torch.bfloat16),
    "conv": layers.conv,
    "conv_transpose": layers.conv_transpose,
    "div": pointwise.sum_of("Div"),
    "dropout": pointwise.dropout,
    "embedding": layers.embedding,
    "flatten": axes.flatten,
    "float16": pointwise.cast_to(torch.float16),
    "float32": pointwise.cast_to(torch.float32),
    "float64": pointwise.cast_to(torch.float64),
    "getitem": axes.getitem,
    "group_norm": layers.group_norm,
    "identity": pointwise.identity,
    "instance_norm": layers.instance_norm,
    "interpolate": windows.interpolate,
    "layer_norm": layers.layer_norm,
    "leaky_relu": pointwise.leaky_relu,
    "linear": layers.linear,
    "matmul": layers.matmul,
    "max_pool": windows.max_pool,
    "mean": axes.reduce("ReduceMean"),
    "mul": pointwise.sum_of("Mul"),
    "neg": pointwise.neg,
    "pad": windows.pad,
    "permute": axes.permute,
    "pixel_shuffle": windows.pixel_shuffle,
    "prelu": pointwise.prelu,
    "relu": pointwise.relu,
    "reshape": axes.reshape,
    "reshape_as": axes.reshape_as,
    "same": pointwise.same,
    "shape": axes.shape,
    "split": axes.split,
    "squeeze": axes.squeeze,
    "sub": pointwise.sum_of("Sub"),
    "sum": axes.reduce("ReduceSum"),
    "to": pointwise.to,
    "transpose": axes.transpose,
    "type_as": pointwise.type_as,
    "unsqueeze": axes.unsqueeze,
}
