"""A section of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """What a part of a benchmark found.

    Attributes:
        title: Its heading.
        text: In Markdown.
        missed: The bars that were missed, a sentence each.
    """

    title: str
    text: str
    missed: Sequence[str]

    def show(self) -> str:
        return f"## {self.title}\n\n{self.text}"
