"""Modules that are imported when something of them is used.

onnx_ir imports sympy, which takes longer than all the rest of a start, for arithmetic on symbolic sizes
that no command of bnfold does. `postpone` is for a process that bnfold owns, not for a user's.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


def postpone(name: str) -> None:
    """Let `import name` succeed at once, and import the module when something of it is called or compared."""
    sys.modules.setdefault(name, _Later(name))


class _Later(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Promise(self, name)


class _Promise:
    """Stands for a function or class of the module."""

    def __init__(self, module: _Later, name: str) -> None:
        self._module = module
        self._name = name

    def _kept(self) -> Any:
        name = self._module.__name__
        if sys.modules.get(name) is self._module:
            del sys.modules[name]
        return getattr(importlib.import_module(name), self._name)

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._kept()(*args, **named)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._kept())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept(), name)
