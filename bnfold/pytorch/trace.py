"""What a module computes, as a graph of calls, by `torch.fx`.

A call of one of torch's own modules is one node; what users wrote is traced through. Where a module inside
cannot be traced through, it is one node as well, and the rest of the graph stands around it.
"""

from __future__ import annotations

import inspect
import linecache
import operator
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_PLAIN = (type(None), bool, int, float, str)
_FOREIGN = tuple(str(Path(package).parent) for package in (str(torch.__file__), __file__))


class Untraceable(Exception):
    """A module has no graph of calls that is the same for all data."""


@dataclass(frozen=True, eq=False)
class Traced:
    """A module and its graph.

    Attributes:
        root: The module.
        graph: What its `forward` calls, in order.
        opaque: Why modules inside that could not be traced through are single nodes, by path.
        made: What the graph calls the tensors that were made while tracing: they may be others at each
            call. They are not among the attributes of the module.
        fixed: Names of the arguments that can only have the value they were traced with.
    """

    root: nn.Module
    graph: fx.Graph
    opaque: Mapping[str, str]
    made: frozenset[str]
    fixed: frozenset[str]


def trace(root: nn.Module, given: Mapping[str, Any] | None = None) -> Traced:
    """Trace a module in its present mode.

    Args:
        root: The module; its own hooks do not take part.
        given: Arguments that it will be called with, by name. Those that are no tensors, and the defaults
            of all others, become part of the graph. None: all those without a default, and nothing may
            become part of the graph.

    Raises:
        Untraceable: The control flow of its own `forward` depends on tensors, or it does what no graph
            of calls can express. The message says where.
    """
    fixed = _fixed(root, given)
    opaque = dict(_hooked(root))
    while True:
        tracer = _Tracer(frozenset(opaque))
        before = set(vars(root))
        try:
            graph = tracer.trace(root, concrete_args=fixed)
        except Exception as error:  # whatever user code raises when it is given no tensors
            inner = tracer.inside[-1] if tracer.inside else ""
            if not inner:
                raise Untraceable(_told(root, error)) from error
            opaque[inner] = _told(root.get_submodule(inner), error)
            continue
        finally:
            made = {name for name in vars(root) if name not in before}
            for name in made:
                delattr(root, name)
        _restore_names(graph, fixed)
        return Traced(root, graph, opaque, frozenset(made), frozenset(fixed))


def is_reparametrization(hook: object) -> bool:
    """Whether a hook is the old spelling of a weight that is computed from others."""
    return isinstance(hook, WeightNorm | SpectralNorm)


class _Proxy(fx.Proxy):  # type: ignore[misc]  # torch is not read
    """A tensor that is not there, which user code takes for one all the same."""

    @property  # type: ignore[misc]  # the type of a property, which it is meant to be
    def __class__(self) -> Any:
        return torch.Tensor


def _in_place(name: str) -> Any:
    function = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name in (
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ifloordiv",
    "imod",
    "ipow",
    "imatmul",
    "iand",
    "ior",
    "ixor",
):
    # Python would fall back to x = x + y, and no one would see that x itself has changed.
    setattr(_Proxy, f"__{_name}__", _in_place(_name))


class _Tracer(fx.Tracer):  # type: ignore[misc]  # torch is not read
    """Traces through what users wrote.

    Attributes:
        inside: The paths of the modules that are being traced through.
    """

    def __init__(self, opaque: frozenset[str]) -> None:
        super().__init__()
        self.inside: list[str] = []
        self._opaque = opaque

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        return a.node if issubclass(type(a), fx.Proxy) else super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        forward = type(m).forward
        own = getattr(forward, "__module__", "").startswith("torch.nn.")
        through = forward is nn.Sequential.forward or not (own or isinstance(m, torch.jit.ScriptModule))
        return module_qualified_name in self._opaque or not through

    def to_bool(self, obj: fx.Proxy) -> bool:
        asks = sys._getframe(2).f_code  # bool() of a proxy, then this
        if asks.co_name == "_check_input_dim" and asks.co_filename.startswith(_FOREIGN):
            return False  # torch's normalizations ask for the rank, and raise if it is a wrong one
        return super().to_bool(obj)  # type: ignore[no-any-return]

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        depth = len(self.inside)
        path = self.path_of_module(m)
        if not self.is_leaf_module(m, path):
            self.inside.append(path)
        result = super().call_module(m, forward, args, kwargs)
        del self.inside[depth:]
        return result


def _fixed(root: nn.Module, given: Mapping[str, Any] | None) -> dict[str, Any]:
    fixed = {} if given is None else {k: v for k, v in given.items() if isinstance(v, _PLAIN)}
    for name, parameter in inspect.signature(root.forward).parameters.items():
        if parameter.default is inspect.Parameter.empty or (given is not None and name in given):
            continue
        if given is None:
            raise Untraceable(f"{type(root).__name__}.forward has the optional argument '{name}'")
        if not isinstance(parameter.default, _PLAIN):
            raise Untraceable(
                f"{type(root).__name__}.forward has a default for '{name}' that is no plain value"
            )
        fixed[name] = parameter.default
    return fixed


def _hooked(root: nn.Module) -> Iterator[tuple[str, str]]:
    for path, module in root.named_modules():
        hooks = [*module._forward_hooks.values(), *module._backward_hooks.values()]
        hooks += [*module._forward_pre_hooks.values(), *module._backward_pre_hooks.values()]
        if path and not all(is_reparametrization(hook) for hook in hooks):
            yield path, f"{type(module).__name__} has hooks"


def _restore_names(graph: fx.Graph, fixed: Mapping[str, Any]) -> None:
    """The tracer numbers the arguments that it fixes."""
    for node in graph.find_nodes(op="placeholder"):
        name = node.target.rpartition("_")[0]
        if name in fixed and node.target not in fixed:
            node.target = name


def _told(module: nn.Module, error: Exception) -> str:
    """What went wrong, and at which line of the user's."""
    lines = " ".join(str(error).split()) or type(error).__name__
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_FOREIGN)]
    if not frames:
        return f"{type(module).__name__}: {lines}"
    last = frames[-1]
    code = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
    return f"{type(module).__name__}: {lines} ({last.filename}:{last.lineno}: {code})"
