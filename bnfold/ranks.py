"""The processes that work together, whoever started them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Ranks(Protocol):
    """The processes that take part."""

    @property
    def rank(self) -> int:
        """The number of this one."""

    @property
    def size(self) -> int:
        """How many there are."""

    def together(self, work: Callable[[], T]) -> list[T]:
        """Do the same everywhere, and return what each has made, by rank, to all.

        Raises:
            BnfoldError: What one of them raised, raised in all.
        """


class Alone:
    """The only process."""

    rank = 0
    size = 1

    def together(self, work: Callable[[], T]) -> list[T]:
        return [work()]
