"""What the code of a module does with the modules inside it, read off its source.

Where a `forward` cannot be traced, a module inside may still be folded, as long as the code does nothing
with it but call it: code that takes it apart, or calls a part of it, would see the difference.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

_ITEMS = ".*"
_CALLED, _ASKED, _OTHER = "called", "asked", "other"
_LOOK_INSIDE = frozenset(
    [
        "_buffers",
        "_modules",
        "_parameters",
        "__dict__",
        "apply",
        "buffers",
        "children",
        "get_buffer",
        "get_parameter",
        "get_submodule",
        "modules",
        "named_buffers",
        "named_children",
        "named_modules",
        "named_parameters",
        "parameters",
        "state_dict",
    ]
)
PLAIN = (type(None), bool, int, float, str, torch.dtype)


def only_called(module: nn.Module) -> dict[str, bool]:
    """The paths of modules inside a module that its `forward` leaves whole, and whether it only calls them:
    it may also ask them for a plain value.

    Empty where the source is not at hand, or does what cannot be overlooked.
    """
    uses: dict[str, list[str]] = {}
    try:
        for function in _reached(module):
            _need_plain(function)
            for name, whole in _uses(function, module):
                uses.setdefault(name, []).append(whole)
    except (_Unclear, OSError, SyntaxError, TypeError):
        return {}
    found: dict[str, bool] = {}
    for name, fine in uses.items():
        stem = name.removesuffix(_ITEMS)
        child = module._modules.get(stem)
        if child is None or _OTHER in fine or (stem in uses and stem + _ITEMS in uses):
            continue
        parts = {stem: child} if name == stem else {f"{stem}.{key}": m for key, m in child._modules.items()}
        found |= {path: _ASKED not in fine for path, part in parts.items() if part is not None}
    return found


def runs(module: nn.Module) -> list[tuple[str, ...]]:
    """Names of modules that the code of `forward` calls once each, one directly on the result of another.

    As in `self.norm(self.conv(x))`, or `x = self.conv(x)` and then `x = self.norm(x)`.
    """
    try:
        functions = list(_reached(module))
        for function in functions:
            _need_plain(function)
    except (_Unclear, OSError, SyntaxError, TypeError):
        return []
    used = Counter(name for function in functions for name, _ in _uses(function, module))
    after: dict[str, str] = {}
    for function in functions:
        after |= dict(_handed_on(function))
    once = {name for name, count in used.items() if count == 1 and module._modules.get(name) is not None}
    after = {name: following for name, following in after.items() if {name, following} <= once}
    found = []
    for name in after.keys() - set(after.values()):
        run = [name]
        while run[-1] in after:
            run.append(after[run[-1]])
        found.append(tuple(run))
    return sorted(found)


def is_apart(root: nn.Module, part: nn.Module) -> bool:
    """Whether no module inside a part is registered outside of it as well."""
    everywhere, inside = (Counter(map(id, _registered(m))) for m in (root, part))
    inside[id(part)] += 1
    return all(everywhere[own] == count for own, count in inside.items())


class _Unclear(Exception):
    """The code may do anything."""


def _reached(module: nn.Module) -> Iterator[ast.FunctionDef]:
    """The methods that users wrote and that `forward` leads to, by any class that the module has."""
    waiting, seen = ["forward"], {"forward"}
    while waiting:
        name = waiting.pop()
        own = vars(module).get(name)
        if callable(own) or any(_modules_in(own)):
            raise _Unclear  # it was put there by code that is not looked into
        for base in type(module).__mro__:
            if name not in vars(base) or base.__module__.startswith("torch."):
                continue
            function = _function(vars(base)[name])
            if function is None:
                continue
            yield function
            attributes = {node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)}
            waiting += attributes - seen - module._modules.keys()
            seen |= attributes


def _registered(module: nn.Module) -> Iterator[nn.Module]:
    """The modules inside, as often as any of them is held: registered, or in a list, or by a function."""
    for owner in module.modules():
        for name, value in vars(owner).items():
            if name == "_modules":
                yield from (child for child in value.values() if child is not None)
            elif not isinstance(value, torch.Tensor):
                yield from _modules_in(value)


def _modules_in(value: Any) -> Iterator[nn.Module]:
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, nn.Module):
            yield leaf
        elif isinstance(leaf, partial):
            yield from _modules_in([leaf.func, leaf.args, leaf.keywords])
        elif isinstance(getattr(leaf, "__self__", None), nn.Module):
            yield leaf.__self__


def _handed_on(function: ast.FunctionDef) -> Iterator[tuple[str, str]]:
    """Attributes of `self` that are called, and those that are called directly on the result."""
    own = _own_name(function)
    for node in ast.walk(function):
        outer = _called_attribute(node, own)
        inner = _called_attribute(node.args[0], own) if outer and isinstance(node, ast.Call) else ""
        if inner:
            yield inner, outer
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, [])
            if isinstance(statements, list):
                for one, other in pairwise(statements):
                    first, second = (_assigned(s) for s in (one, other))
                    # the name has another value afterwards, so nobody else sees the first one
                    if first and second and first[0] == second[0] == _only_read(second[1]):
                        inner, outer = _called_attribute(first[1], own), _called_attribute(second[1], own)
                        if inner and outer:
                            yield inner, outer


def _called_attribute(node: ast.AST, own: str) -> str:
    """The name in `self.name(one argument)`, or ""."""
    if not isinstance(node, ast.Call) or len(node.args) != 1 or node.keywords:
        return ""
    function = node.func
    if not isinstance(function, ast.Attribute) or not isinstance(function.value, ast.Name):
        return ""
    return function.attr if function.value.id == own else ""


def _assigned(statement: ast.stmt) -> tuple[str, ast.expr] | None:
    """The name and the value of an assignment."""
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return None
    (target,) = statement.targets
    return (target.id, statement.value) if isinstance(target, ast.Name) else None


def _only_read(call: ast.expr) -> str:
    argument = call.args[0] if isinstance(call, ast.Call) and len(call.args) == 1 else None
    return argument.id if isinstance(argument, ast.Name) else ""


def _function(member: Any) -> ast.FunctionDef | None:
    """The source of a method or a property; None for a plain value of the class."""
    member = getattr(member, "fget", getattr(member, "__func__", member))
    if not inspect.isfunction(member):
        if hasattr(member, "__get__"):
            raise _Unclear  # what asking for it does is not looked into
        return None
    if member.__module__.startswith("torch."):
        return None
    if hasattr(member, "__wrapped__"):
        raise _Unclear
    tree = ast.parse(textwrap.dedent(inspect.getsource(member)))
    if not isinstance(tree.body[0], ast.FunctionDef):
        raise _Unclear
    return tree.body[0]


def _own_name(function: ast.FunctionDef) -> str:
    """What it calls `self`."""
    return function.args.args[0].arg if function.args.args else ""


def _need_plain(function: ast.FunctionDef) -> None:
    """Raise unless the function uses `self` for nothing but attributes, and none that reaches inside."""
    own = _own_name(function)
    owners = {id(node.value) for node in ast.walk(function) if isinstance(node, ast.Attribute)}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and node.id == own and id(node) not in owners:
            raise _Unclear
        if isinstance(node, ast.Attribute) and node.attr in _LOOK_INSIDE:
            raise _Unclear


def _uses(function: ast.FunctionDef, module: nn.Module) -> Iterator[tuple[str, str]]:
    """Each use of an attribute of `self`, and what is done with it; items carry `_ITEMS`."""
    own = _own_name(function)
    called = {id(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
    asked = {id(node) for node in _looked_at(function, module)}
    loops = dict(_loops(function, called))
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == own:
            if id(node) in loops:
                yield node.attr + _ITEMS, _CALLED if loops[id(node)] else _OTHER
            else:
                yield node.attr, _CALLED if id(node) in called else _ASKED if id(node) in asked else _OTHER


def _looked_at(function: ast.FunctionDef, module: nn.Module) -> Iterator[ast.expr]:
    """What is only compared with None, or asked for a plain value."""
    for node in ast.walk(function):
        if isinstance(node, ast.Compare) and all(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            yield node.left
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            child = module._modules.get(node.value.attr)
            if child is not None and isinstance(getattr(child, node.attr, nn), PLAIN):
                yield node.value


def _loops(function: ast.FunctionDef, called: set[int]) -> Iterator[tuple[int, bool]]:
    """What is iterated over, by identity, and whether each item is only called."""
    names = [node for node in ast.walk(function) if isinstance(node, ast.Name)]
    for node in ast.walk(function):
        if not isinstance(node, ast.For | ast.comprehension):
            continue
        items, target = node.iter, node.target
        if isinstance(items, ast.Call) and isinstance(items.func, ast.Name) and items.func.id == "enumerate":
            items = items.args[0]
            target = target.elts[1] if isinstance(target, ast.Tuple) and len(target.elts) == 2 else target
        if isinstance(target, ast.Name):
            reads = [n for n in names if n.id == target.id and isinstance(n.ctx, ast.Load)]
            yield id(items), bool(reads) and all(id(n) in called for n in reads)
