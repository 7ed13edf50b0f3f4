"""What a module computes, as a graph of calls, by `torch.fx`.

A call of one of torch's own modules is one node; what users wrote is traced through. Where a module inside
cannot be traced through, it is one node as well, and the rest of the graph stands around it.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import operator
import random
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .duplicate import cloned, duplicate

_MADE = ("_tensor_constant", "_torchbind_obj", "_tree_spec_constant", "_opaque_obj")
PLAIN = (type(None), bool, int, float, str)
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
        made: The tensors that were made while tracing, by what the graph calls them: they may be others at
            each call. They are not among the attributes of the module.
        optional: Names of the arguments that may be left out or be of another kind. The graph holds for
            calls that are alike in that.
        has_contexts: Whether some of the calls run under another gradient mode or autocast, which no graph
            expresses.
    """

    root: nn.Module
    graph: fx.Graph
    opaque: Mapping[str, str]
    made: Mapping[str, torch.Tensor]
    optional: frozenset[str]
    has_contexts: bool


def trace(root: nn.Module, given: Mapping[str, Any] | None = None, whole: Iterable[str] = ()) -> Traced:
    """Trace a module in its present mode.

    Its code is run on copies, twice: with other random numbers and in another gradient mode the second time.
    What then differs is no property of the module.

    Args:
        root: The module; its own hooks do not take part.
        given: Arguments that it will be called with, by name. Those that are no tensors, and the defaults
            of all others, become part of the graph. None: all those without a default, and nothing may
            become part of the graph.
        whole: Paths of modules inside that are not to be traced through.

    Raises:
        Untraceable: The control flow of its own `forward` depends on tensors or on what is no property of
            the module, or it does what no graph of calls can express. The message says where.
    """
    called = type(root).__name__
    if "forward" in vars(root):
        raise Untraceable(f"{called}: its forward was replaced")
    fixed = _fixed(root, given)
    asked = frozenset(_asked_about(root)) - fixed.keys()
    for name in asked:
        if not isinstance((given or {}).get(name), torch.Tensor):
            raise Untraceable(f"{called}: its forward asks what '{name}' is")
    opaque = dict(_hooked(root)) | dict.fromkeys(whole, "as asked")
    with own_random_numbers():
        while True:
            runs = []
            try:
                for seed, gradients in enumerate((False, True)):
                    torch.manual_seed(seed)
                    with torch.set_grad_enabled(gradients):
                        runs.append(_run(root, fixed, frozenset(opaque)))
            except _Inside as failure:
                opaque[failure.path] = str(failure)
                continue
            (graph, made, contexts), (again, _, others) = runs
            if not _alike(graph, again):
                raise Untraceable(f"{called}: it does something else each time, or with gradients")
            _restore_names(graph, fixed)
            return Traced(
                root, graph, opaque, made, asked | fixed.keys() | _optional(root), contexts or others
            )


def is_same(one: Traced, other: Traced) -> bool:
    """Whether two modules make the same calls, and the same tensors."""
    if not _alike(one.graph, other.graph) or one.made.keys() != other.made.keys():
        return False
    return all(_equal(tensor, other.made[name]) for name, tensor in one.made.items())


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return one is other
    return bool(one.dtype == other.dtype and torch.equal(one, other))


def _alike(one: fx.Graph, other: fx.Graph) -> bool:
    return [_signature(n) for n in one.nodes] == [_signature(n) for n in other.nodes]


def _signature(node: fx.Node) -> tuple[Any, ...]:
    return node.op, node.name, str(node.target), str(node.args), str(node.kwargs)


class _Inside(Exception):
    """What a module inside does cannot be traced.

    Attributes:
        path: Which.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(why)
        self.path = path


def _run(
    root: nn.Module, fixed: Mapping[str, Any], opaque: frozenset[str]
) -> tuple[fx.Graph, dict[str, Any], bool]:
    """The graph, the tensors made, and whether there were contexts."""
    trial = duplicate(root, type(root).__name__, cloned)
    tracer = _Tracer(opaque, trial)
    before = _state(trial)
    try:
        graph = tracer.trace(trial, concrete_args=dict(fixed))
        if tracer.refused is not None:  # and the code went on regardless
            raise tracer.refused
    except Exception as error:  # whatever user code raises when it is given no tensors
        inner = tracer.refused_in if error is tracer.refused else tracer.innermost
        if not inner:
            raise Untraceable(_told(root, error)) from error
        raise _Inside(inner, _told(root.get_submodule(inner), error)) from error
    names = [name for name in vars(trial) if name.startswith(_MADE) and name not in vars(root)]
    made = {name: vars(trial).pop(name) for name in names}
    changed = next(
        (name for name, held in _state(trial).items() if not _goes_on(before.get(name), held)), None
    )
    if changed is not None:
        raise Untraceable(f"{type(root).__name__}: its forward changes '{changed}' of the module")
    graph._tracer_cls = fx.Tracer  # what is pickled with the graph shall need torch only
    for node in graph.nodes:
        node.type = None  # an annotation, which may be a name that nobody else knows
    return graph, made, tracer.has_contexts


def _state(module: nn.Module) -> dict[str, Any]:
    """All that the modules remember: what each attribute is, and what is in it if it is a container."""
    known: dict[str, Any] = {}
    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue  # it has methods made when they are asked for
        for name, value in vars(part).items():
            items: dict[Any, Any] = {}
            if isinstance(value, dict):
                items = value
            elif isinstance(value, list | set):
                items = dict(enumerate(value))
            marks = {key: (id(item), getattr(item, "_version", 0)) for key, item in items.items()}
            known[f"{path}.{name}".strip(".")] = type(value), id(value), getattr(value, "_version", 0), marks
    return known


def _goes_on(before: Any, after: Any) -> bool:
    """Whether a run has left something as it was; a dictionary may have more in it, as caches have."""
    if before is None or before[:3] != after[:3]:
        return False
    return before[3] == after[3] or (before[0] is dict and before[3].items() <= after[3].items())


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """What is drawn here is not missing elsewhere."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def is_reparametrization(hook: object) -> bool:
    """Whether a hook is the old spelling of a weight that is computed from others."""
    return isinstance(hook, WeightNorm | SpectralNorm)


class _Proxy(fx.Proxy):  # type: ignore[misc]  # torch is not read
    """A tensor that is not there, which user code takes for one all the same."""

    @property  # type: ignore[misc]  # the type of a property, which it is meant to be
    def __class__(self) -> Any:
        return torch.Tensor

    def __getattr__(self, name: str) -> Any:
        if not hasattr(torch.Tensor, name):
            raise AttributeError(f"'Tensor' object has no attribute '{name}'")
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if hasattr(torch.Tensor, name):
            raise fx.proxy.TraceError(f"'{name}' of a tensor is set, which no graph can express")
        super().__setattr__(name, value)


def _in_place(name: str) -> Any:
    function = getattr(operator, name)
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


_NAMES = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor")
IN_PLACE = tuple(getattr(operator, name) for name in _NAMES)
"""Operators that change their first operand. Python would fall back to x = x + y, and no one would see it."""

for _operator in IN_PLACE:
    setattr(_Proxy, f"__{_operator.__name__}__", _in_place(_operator.__name__))


class _Tracer(fx.Tracer):  # type: ignore[misc]  # torch is not read
    """Traces through what users wrote.

    Attributes:
        inside: The paths of the modules that are being traced through.
        refused, refused_in: A question that only numbers can answer, if the code has asked one, and where.
        has_contexts: See `Traced`.
    """

    def __init__(self, opaque: frozenset[str], root: nn.Module) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.refused: Exception | None = None
        self.refused_in = ""
        self.has_contexts = False
        self._opaque = opaque
        self._tensors = {id(t) for t in (*root.parameters(), *root.buffers())}
        self._context = _context()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        self.has_contexts |= _context() != self._context
        return super().create_node(*args, **kwargs)

    def iter(self, obj: fx.Proxy) -> Any:
        return self._asked(super().iter, obj)

    def keys(self, obj: fx.Proxy) -> Any:
        return self._asked(super().keys, obj)

    def _asked(self, answer: Callable[[fx.Proxy], Any], obj: fx.Proxy) -> Any:
        """Remember that there was no answer, should the code go on without one."""
        try:
            return answer(obj)
        except Exception as error:
            self.refused, self.refused_in = error, self.innermost
            raise

    @property
    def innermost(self) -> str:
        return self.inside[-1] if self.inside else ""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        return a.node if issubclass(type(a), fx.Proxy) else super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self._opaque or isinstance(m, torch.jit.ScriptModule):
            return True
        forward = type(m).forward
        own = getattr(forward, "__module__", "").startswith("torch.nn.")
        return own and forward is not nn.Sequential.forward

    def to_bool(self, obj: fx.Proxy) -> bool:
        asks = sys._getframe(2).f_code  # bool() of a proxy, then this
        if asks.co_name == "_check_input_dim" and asks.co_filename.startswith(_FOREIGN):
            return False  # torch's normalizations ask for the rank, and raise if it is a wrong one
        return bool(self._asked(super().to_bool, obj))

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        depth = len(self.inside)
        path = self.path_of_module(m)
        if any(id(t) not in self._tensors for t in (*m.parameters(), *m.buffers())):
            raise fx.proxy.TraceError(f"'{path}' is called with other tensors than its own")
        if not self.is_leaf_module(m, path):
            self.inside.append(path)
        result = super().call_module(m, forward, args, kwargs)
        del self.inside[depth:]
        return result


def _context() -> tuple[bool, ...]:
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def _optional(root: nn.Module) -> frozenset[str]:
    parameters = inspect.signature(root.forward).parameters.values()
    return frozenset(p.name for p in parameters if p.default is not inspect.Parameter.empty)


_QUESTIONS = frozenset({"hasattr", "isinstance", "type"})


def _asked_about(root: nn.Module) -> Iterator[str]:
    """Arguments of which the code asks what they are (None?): it may do something else at the next call."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(type(root).forward)))
    except (OSError, TypeError, SyntaxError):
        return
    names = {arg.arg for node in ast.walk(tree) if isinstance(node, ast.arguments) for arg in node.args}
    for node in ast.walk(tree):
        asked: ast.expr | None = None
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Is | ast.IsNot):
            asked = node.left
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _QUESTIONS:
            asked = next(iter(node.args), None)
        if isinstance(asked, ast.Name) and asked.id in names:
            yield asked.id


def _fixed(root: nn.Module, given: Mapping[str, Any] | None) -> dict[str, Any]:
    fixed = {} if given is None else {k: v for k, v in given.items() if isinstance(v, PLAIN)}
    for name, parameter in inspect.signature(root.forward).parameters.items():
        if parameter.default is inspect.Parameter.empty or (given is not None and name in given):
            continue
        if given is None:
            raise Untraceable(f"{type(root).__name__}.forward has the optional argument '{name}'")
        if not isinstance(parameter.default, PLAIN):
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
