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

from torch import nn

_ITEMS = ".*"
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


def only_called(module: nn.Module) -> list[str]:
    """The paths of modules inside a module that its code calls, and does nothing else with.

    Empty where the source is not at hand, or does what cannot be overlooked.
    """
    uses: dict[str, list[bool]] = {}
    for function in _functions(type(module)):
        if not _is_plain(function):
            return []
        for name, fine in _uses(function):
            uses.setdefault(name, []).append(fine)
    held = Counter(id(child) for owner in module.modules() for child in owner._modules.values())
    found = []
    for name, fine in uses.items():
        stem = name.removesuffix(_ITEMS)
        child = module._modules.get(stem)
        if child is None or not all(fine) or (stem in uses and stem + _ITEMS in uses):
            continue
        parts = {stem: child} if name == stem else {f"{stem}.{key}": m for key, m in child._modules.items()}
        if all(part is not None and held[id(part)] == 1 for part in parts.values()):
            found += parts
    return found


def _functions(own: type[nn.Module]) -> Iterator[ast.FunctionDef]:
    """The methods that users wrote, other than the one that builds the module."""
    for base in own.__mro__:
        if base.__module__.startswith("torch.") or base is object:
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            tree = ast.parse("def unknown(self): self.modules()")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name != "__init__":
                yield node


def _is_plain(function: ast.FunctionDef) -> bool:
    """Whether the function uses `self` for nothing but its attributes, and none that reaches inside."""
    owners = {id(node.value) for node in ast.walk(function) if isinstance(node, ast.Attribute)}
    own = _own_name(function)
    bare = any(isinstance(n, ast.Name) and n.id == own and id(n) not in owners for n in ast.walk(function))
    return not bare and not any(
        isinstance(node, ast.Attribute) and node.attr in _LOOK_INSIDE for node in ast.walk(function)
    )


def _own_name(function: ast.FunctionDef) -> str:
    """What it calls `self`."""
    return function.args.args[0].arg if function.args.args else "self"


def _uses(function: ast.FunctionDef) -> Iterator[tuple[str, bool]]:
    """Each use of an attribute of `self`, and whether it is only a call; items carry `_ITEMS`."""
    called = {id(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
    loops = dict(_loops(function, called))
    own = _own_name(function)
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == own:
            if id(node) in loops:
                yield node.attr + _ITEMS, loops[id(node)]
            else:
                yield node.attr, id(node) in called


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
