"""The values that nodes see: those of their own block while it runs, and of the blocks around it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .block import Block, Stored
from .node import Datum
from .outcome import EvaluationError, Missing

Value = Datum | Missing | None
"""None is an argument that the caller of a function left out."""


class Scope:
    """The values of a block while it runs, with those of the scopes around it.

    A constant is loaded when it is first read.
    """

    def __init__(
        self,
        block: Block,
        load: Callable[[str, Stored], Value],
        values: dict[str, Value],
        around: Scope | None = None,
    ) -> None:
        self._block = block
        self._load = load
        self._values = values
        self._around = around

    def __getitem__(self, name: str) -> Value:
        if name in self._values:
            return self._values[name]
        if name in self._block.constants:
            self._values[name] = self._load(name, self._block.constants[name])
            return self._values[name]
        if self._around is None:
            raise EvaluationError(f"there is no value {name!r}")
        return self._around[name]

    def __setitem__(self, name: str, value: Value) -> None:
        self._values[name] = value

    def drop(self, names: Iterable[str]) -> None:
        """Forget values that nobody reads any more."""
        for name in names:
            self._values.pop(name, None)
