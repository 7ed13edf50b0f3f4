"""What a node of a traced graph calls, whichever way it is written: module, function, method or operator.

`read` gives it one name and its arguments by the names that `torch.nn.functional` has for them. A module
is read only if it does what torch's own class does: a subclass that does more is not what it seems.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm

from .trace import IN_PLACE, Traced, is_reparametrization


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor that a module or a call has for itself.

    Attributes:
        name: What the module, or the function, calls it.
        tensor: Its numbers.
    """

    name: str
    tensor: torch.Tensor


@dataclass(frozen=True, eq=False)
class Call:
    """A call.

    Attributes:
        name: What is called, one of the names in `_MODULES` and `_FUNCTIONS`.
        arguments: By name: data are nodes, constants of tensors are `Stored`, all else is as it is.
    """

    name: str
    arguments: Mapping[str, Any]


def read(traced: Traced, node: fx.Node) -> Call | None:
    """What the node calls; None if it is none of the calls that are known, or not in a known way."""
    if node.op == "call_module":
        return _of_module(traced.root.get_submodule(node.target), node)
    known = {"call_method": _METHODS, "call_function": _FUNCTIONS}.get(node.op, {}).get(node.target)
    if known is None or _is_constant(traced, node):  # what it computes is a tensor of the module like others
        return None
    return _of_function(traced, node, *known)


def constant(traced: Traced, node: fx.Node) -> Any:
    """What a node gets off the module, or computes from that alone: a tensor, a type, a number.

    None if it does neither, or something else each time.
    """
    if not _is_constant(traced, node):
        return None
    try:
        first, second = (_evaluate(traced, node, {}) for _ in range(2))
    except Exception:  # whatever the call raises by itself, it raises when the module runs as well
        return None
    if isinstance(first, torch.Tensor):
        return first.detach() if isinstance(second, torch.Tensor) and torch.equal(first, second) else None
    return first if isinstance(first, bool | int | float | torch.dtype) and first == second else None


def _is_constant(traced: Traced, node: fx.Node) -> bool:
    if "constant" not in node.meta:
        node.meta["constant"] = _follows_from_constants(traced, node)
    return bool(node.meta["constant"])


def _follows_from_constants(traced: Traced, node: fx.Node) -> bool:
    if node.op == "get_attr":
        return node.target not in traced.made
    if node.op not in ("call_function", "call_method") or changed(traced, node):
        return False
    return bool(node.all_input_nodes) and all(_is_constant(traced, n) for n in node.all_input_nodes)


def _evaluate(traced: Traced, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    if node in known:
        return known[node]
    if node.op == "get_attr":
        owner, _, name = node.target.rpartition(".")
        known[node] = getattr(traced.root.get_submodule(owner), name)
        return known[node]
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: _evaluate(traced, n, known))
    with torch.no_grad():
        if node.op == "call_method":
            known[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
        else:
            known[node] = node.target(*args, **kwargs)
    return known[node]


def put(node: fx.Node, name: str, value: fx.Node | None) -> None:
    """Give the call of a function another argument, by the name that `read` has for it."""
    _, signature = _FUNCTIONS[node.target]
    i = signature.split().index(name)
    if i < len(node.args):
        node.update_arg(i, value)
    else:
        node.update_kwarg(name, value)


def changed(traced: Traced, node: fx.Node) -> list[fx.Node]:
    """What a node changes in place, among the nodes that it reads.

    Of code that nobody has looked into, it is everything.
    """
    sources = list(node.all_input_nodes)
    if node.op == "call_module":
        module = traced.root.get_submodule(node.target)
        if _kind_of(module) is None and (module._modules or not _is_torchs(type(module))):
            return sources
        return sources[:1] if getattr(module, "inplace", False) else []
    if node.op == "call_method":
        return sources[:1] if _says_so(str(node.target)) else []
    if node.op != "call_function":
        return []
    if "out" in node.kwargs:
        outputs = node.kwargs["out"]
        return [n for n in (outputs if isinstance(outputs, tuple | list) else [outputs]) if n in sources]
    schema = getattr(node.target, "_schema", None)
    if (schema is not None and schema.is_mutable) or not _is_torchs(node.target):
        return sources
    written = node.target in (*IN_PLACE, operator.setitem) or _says_so(getattr(node.target, "__name__", ""))
    return sources[:1] if written or _is_asked_to(node) else []


def _says_so(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _is_torchs(called: Any) -> bool:
    """Whether torch, or Python itself, has it; their names tell what changes."""
    home = getattr(called, "__module__", None) or ""
    return home.split(".")[0] in ("torch", "operator", "_operator", "builtins", "math", "")


def _is_asked_to(node: fx.Node) -> bool:
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    except (TypeError, ValueError):  # a builtin, which has no such argument
        return False
    return bool(bound.arguments.get("inplace"))


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module does what torch's class does, and nothing else."""
    own = type(module)
    if "forward" in vars(module) or not isinstance(module, kind):
        return False
    return all(
        getattr(own, name) is getattr(kind, name)
        for base in kind.__mro__
        for name, function in vars(base).items()
        if name in _CALLING or (base not in (object, nn.Module) and inspect.isfunction(function))
        if name not in _HARMLESS
    )


def is_called_plainly(kind: type[nn.Module]) -> bool:
    """Whether calling a module means its `forward`."""
    return all(getattr(kind, name) is getattr(nn.Module, name) for name in _CALLING)


_CALLING = ("__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__setattr__")


_HARMLESS = frozenset(
    [
        "__init__",
        "__setstate__",
        "__repr__",
        "__dir__",
        "extra_repr",
        "reset_parameters",
        "reset_running_stats",
    ]
) | {"_load_from_state_dict", "_save_to_state_dict"}
Attributes = tuple[str, ...]
Kinds = tuple[type[nn.Module], ...]

_CONV: Attributes = ("stride", "padding", "dilation", "groups", "padding_mode")
_POOL: Attributes = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVERAGE: Attributes = (
    "kernel_size",
    "stride",
    "padding",
    "ceil_mode",
    "count_include_pad",
    "divisor_override",
)
_BATCH_NORM: Attributes = ("eps", "training", "track_running_stats")


def _every(pattern: str) -> Kinds:
    """Modules for data of one, two and three dimensions."""
    return tuple(getattr(nn, pattern.format(d)) for d in (1, 2, 3) if hasattr(nn, pattern.format(d)))


_ACTIVATIONS: Kinds = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.LogSigmoid, nn.LogSoftmax),
    *(nn.Mish, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softmax, nn.Softplus, nn.Softsign, nn.Tanh),
)
_MODULES: tuple[tuple[str, Kinds, Attributes], ...] = (
    ("conv", _every("Conv{}d"), _CONV),
    ("conv_transpose", _every("ConvTranspose{}d"), (*_CONV, "output_padding")),
    ("linear", (nn.Linear,), ()),
    ("embedding", (nn.Embedding,), ("max_norm",)),
    ("batch_norm", (*_every("BatchNorm{}d"), nn.SyncBatchNorm), _BATCH_NORM),
    ("instance_norm", _every("InstanceNorm{}d"), ("eps", "training", "track_running_stats")),
    ("group_norm", (nn.GroupNorm,), ("num_groups", "eps")),
    ("layer_norm", (nn.LayerNorm,), ("normalized_shape", "eps")),
    ("relu", (nn.ReLU,), ()),
    ("leaky_relu", (nn.LeakyReLU,), ("negative_slope",)),
    ("prelu", (nn.PReLU,), ()),
    ("same", _ACTIVATIONS, ()),
    ("identity", (nn.Identity,), ()),
    ("dropout", (nn.Dropout, *_every("Dropout{}d"), nn.AlphaDropout, nn.FeatureAlphaDropout), ("training",)),
    ("flatten", (nn.Flatten,), ("start_dim", "end_dim")),
    ("max_pool", _every("MaxPool{}d"), _POOL),
    ("avg_pool", _every("AvgPool{}d"), _AVERAGE),
    ("adaptive_avg_pool", _every("AdaptiveAvgPool{}d"), ("output_size",)),
    ("adaptive_max_pool", _every("AdaptiveMaxPool{}d"), ("output_size", "return_indices")),
    ("interpolate", (nn.Upsample,), ("size", "scale_factor", "mode", "align_corners")),
    ("interpolate", (nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), ("size", "scale_factor", "mode")),
    ("pixel_shuffle", (nn.PixelShuffle,), ("upscale_factor",)),
    ("pad", _every("ReflectionPad{}d"), ("padding",)),
    ("pad", _every("ReplicationPad{}d"), ("padding",)),
    ("pad", _every("CircularPad{}d"), ("padding",)),
    ("pad", (*_every("ConstantPad{}d"), *_every("ZeroPad{}d")), ("padding", "value")),
)
_PAD_MODES = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
_DIMENSIONS = {"1d": 1, "2d": 2, "3d": 3}
_RANKS = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}  # they refuse data of any other
_PARAMETERS = ("weight", "bias", "running_mean", "running_var")

_BOTH = {
    "add": ("add", "input other alpha"),
    "chunk": ("chunk", "input chunks dim"),
    "div": ("div", "input other rounding_mode"),
    "flatten": ("flatten", "input start_dim end_dim"),
    "matmul": ("matmul", "input other"),
    "mean": ("mean", "input dim keepdim"),
    "mul": ("mul", "input other"),
    "neg": ("neg", "input"),
    "relu": ("relu", "input"),
    "relu_": ("relu", "input"),
    "split": ("split", "input sizes dim"),
    "squeeze": ("squeeze", "input dim"),
    "sub": ("sub", "input other alpha"),
    "sum": ("sum", "input dim keepdim"),
    "transpose": ("transpose", "input dim0 dim1"),
    "unsqueeze": ("unsqueeze", "input dim"),
    **dict.fromkeys(("clamp", "sigmoid", "softmax", "tanh"), ("same", "input *rest")),
}
"""What torch has both as functions and as methods."""

_CONV_FUNCTION = "input weight bias stride padding dilation groups"
_FUNCTIONS: dict[Any, tuple[str, str]] = {
    **{getattr(torch, name): known for name, known in _BOTH.items()},
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), ("conv", _CONV_FUNCTION)),
    **dict.fromkeys(
        (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
        ("conv_transpose", "input weight bias stride padding output_padding groups dilation"),
    ),
    F.linear: ("linear", "input weight bias"),
    F.batch_norm: ("batch_norm", "input running_mean running_var weight bias training momentum eps"),
    F.group_norm: ("group_norm", "input num_groups weight bias eps"),
    F.layer_norm: ("layer_norm", "input normalized_shape weight bias eps"),
    **dict.fromkeys((F.relu, F.relu_), ("relu", "input inplace")),
    **dict.fromkeys(
        (F.elu, F.gelu, F.hardsigmoid, F.hardswish, F.hardtanh, F.mish, F.relu6, F.selu, F.sigmoid, F.silu),
        ("same", "input *rest"),
    ),
    **dict.fromkeys((F.softmax, F.log_softmax, F.softplus, F.tanh), ("same", "input *rest")),
    F.leaky_relu: ("leaky_relu", "input negative_slope inplace"),
    **dict.fromkeys((F.prelu, torch.prelu), ("prelu", "input weight")),
    **dict.fromkeys((F.dropout, F.dropout2d), ("dropout", "input p training inplace")),
    torch.reshape: ("reshape", "input shape"),
    torch.permute: ("permute", "input dims"),
    torch.swapaxes: ("transpose", "input dim0 dim1"),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), ("cat", "tensors dim")),
    **dict.fromkeys((F.max_pool1d, F.max_pool2d, F.max_pool3d), ("max_pool", " ".join(("input", *_POOL)))),
    **dict.fromkeys((F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), ("avg_pool", " ".join(("input", *_AVERAGE)))),
    **dict.fromkeys(
        (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
        ("adaptive_avg_pool", "input output_size"),
    ),
    **dict.fromkeys(
        (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
        ("adaptive_max_pool", "input output_size return_indices"),
    ),
    F.interpolate: (
        "interpolate",
        "input size scale_factor mode align_corners recompute_scale_factor antialias",
    ),
    F.pixel_shuffle: ("pixel_shuffle", "input upscale_factor"),
    F.pad: ("pad", "input padding mode value"),
    operator.matmul: ("matmul", "input other"),
    F.embedding: ("embedding", "input weight"),
    **dict.fromkeys((operator.add, operator.iadd), _BOTH["add"]),
    **dict.fromkeys((torch.subtract, operator.sub, operator.isub), _BOTH["sub"]),
    **dict.fromkeys((torch.multiply, operator.mul, operator.imul), _BOTH["mul"]),
    **dict.fromkeys((torch.divide, operator.truediv, operator.itruediv), _BOTH["div"]),
    operator.neg: ("neg", "input"),
    operator.getitem: ("getitem", "input index"),
    getattr: ("attribute", "input name"),
}
_POOLS = {
    getattr(F, f"{kind}{d}d"): d
    for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool")
    for d in (1, 2, 3)
}
_METHODS: dict[str, tuple[str, str]] = {
    **_BOTH,
    **{f"{name}_": _BOTH[name] for name in ("add", "sub", "mul", "div")},
    "view": ("reshape", "input *shape"),
    "reshape": ("reshape", "input *shape"),
    "reshape_as": ("reshape_as", "input other"),
    "view_as": ("reshape_as", "input other"),
    "permute": ("permute", "input *dims"),
    "contiguous": ("identity", "input"),
    "to": ("to", "input dtype"),
    "type_as": ("type_as", "input other"),
    "float": ("float32", "input"),
    "half": ("float16", "input"),
    "double": ("float64", "input"),
    "bfloat16": ("bfloat16", "input"),
    "size": ("shape", "input dim"),
    "dim": ("shape", "input"),
}


def _kind_of(module: nn.Module) -> tuple[str, type[nn.Module], Attributes] | None:
    """The entry of `_MODULES` for a module, and which of its classes it plainly is."""
    for name, kinds, attributes in _MODULES:
        kind = next((k for k in kinds if is_plain(module, k)), None)
        if kind is not None:
            return name, kind, attributes
    return None


def _of_module(module: nn.Module, node: fx.Node) -> Call | None:
    found = _kind_of(module)
    if found is None or len(node.args) + len(node.kwargs) != 1 or not _has_known_hooks(module):
        return None  # or it is given more than the data, such as an output_size
    name, kind, attributes = found
    arguments: dict[str, Any] = {"input": next(iter((*node.args, *node.kwargs.values())))}
    arguments |= {a: getattr(module, a, None) for a in attributes}
    if name == "pad":
        arguments["mode"] = next(
            (m for k, m in _PAD_MODES.items() if kind.__name__.startswith(k)), "constant"
        )
    arguments["rank"] = _RANKS.get(kind)
    arguments["dimensions"] = _DIMENSIONS.get(kind.__name__[-2:])
    for parameter in _PARAMETERS:
        tensor = _effective(module, parameter)
        if tensor is not None:
            arguments[parameter] = Stored(parameter, tensor)
    return Call(name, arguments)


def _has_known_hooks(module: nn.Module) -> bool:
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return all(is_reparametrization(hook) for hook in hooks)


def _effective(module: nn.Module, name: str) -> torch.Tensor | None:
    """A parameter as the module will use it, also where it is computed from others at each call."""
    for hook in module._forward_pre_hooks.values():
        if is_reparametrization(hook) and hook.name == name:
            still = {"do_power_iteration": False} if isinstance(hook, SpectralNorm) else {}
            return hook.compute_weight(module, **still).detach()
    tensor = getattr(module, name, None)
    if not isinstance(tensor, torch.Tensor):
        return None
    if parametrize.is_parametrized(module, name) and not torch.equal(tensor, getattr(module, name)):
        raise Unsteady
    return tensor.detach()


class Unsteady(Exception):
    """A parametrization that computes another weight each time."""


def _of_function(traced: Traced, node: fx.Node, name: str, signature: str) -> Call | None:
    names = signature.split()
    arguments: dict[str, Any] = {}
    for i, argument in enumerate(names):
        if argument.startswith("*"):  # a sequence, or all that follows
            rest = node.args[i:]
            arguments[argument[1:]] = (
                rest[0] if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
            )
            break
        if i < len(node.args):
            arguments[argument] = node.args[i]
    else:
        if len(node.args) > len(names):
            return None
    if not set(node.kwargs) <= {n.lstrip("*") for n in names} and name != "same":
        return None
    arguments |= node.kwargs
    arguments["dimensions"] = _POOLS.get(node.target)
    for key, value in arguments.items():
        known = constant(traced, value) if isinstance(value, fx.Node) else None
        if known is not None:
            arguments[key] = Stored(key, known) if isinstance(known, torch.Tensor) else known
    return Call(name, arguments)
