"""What a page is made of, as plain data: sections, and in them prose, lists, tables and pictures.

Texts are those of the model's makers as well as ours; whoever writes them out escapes all of them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, TypeAlias

_LONGEST = 160  # of a name in a cell


class Hue(StrEnum):
    """Colours of pictures: each has a contrast of 3:1 and more on white and on the page's dark."""

    INK = "currentColor"
    BLUE = "#3d7fc4"
    GREY = "#7d8590"
    RED = "#d14b4b"
    GREEN = "#2f8f5b"
    AMBER = "#a8741a"


@dataclass(frozen=True)
class Prose:
    """A paragraph.

    Attributes:
        text: What it says.
        strong: Whether nobody should miss it.
    """

    kind: ClassVar = "prose"
    text: str
    strong: bool = False


@dataclass(frozen=True)
class Items:
    """A list."""

    kind: ClassVar = "items"
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Rows under a head.

    Attributes:
        caption: What it shows.
        head: What each column holds.
        aligned: Per column: "<" words, ">" numbers, "=" names out of the model.
        rows: Their cells; the first one names the row.
        cut: How many more rows there were.
        elsewhere: Where these are.
    """

    kind: ClassVar = "table"
    caption: str
    head: tuple[str, ...]
    aligned: str
    rows: tuple[tuple[str, ...], ...]
    cut: int = 0
    elsewhere: str = "--json has them all"


@dataclass(frozen=True)
class Picture:
    """A drawing with the sentence that explains it.

    Attributes:
        svg: The drawing, escaped.
        caption: What it shows and how to read it.
        name: What it is called where it cannot be seen.
    """

    kind: ClassVar = "picture"
    svg: str
    caption: str
    name: str


@dataclass(frozen=True)
class Pair:
    """A piece of a graph before and after."""

    kind: ClassVar = "pair"
    before: str
    after: str
    caption: str


@dataclass(frozen=True)
class Folded:
    """What is only seen when asked for.

    Attributes:
        summary: What is always seen.
        blocks: The rest.
        open: Whether it is seen at first.
    """

    kind: ClassVar = "folded"
    summary: str
    blocks: tuple[Block, ...]
    open: bool = False


Block: TypeAlias = Prose | Items | Table | Picture | Pair | Folded


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        name: What links to it say.
        title: The heading.
        blocks: What is in it.
    """

    name: str
    title: str
    blocks: tuple[Block, ...]


def table(
    caption: str,
    head: Sequence[str],
    aligned: str,
    rows: Sequence[Sequence[str]],
    *,
    most: int = 3000,
    elsewhere: str = Table.elsewhere,
) -> Table:
    """A table of at most so many rows, and of those columns that say anything in them."""
    shown = [tuple(map(clipped, row)) for row in rows[:most]]
    full = [i for i in range(len(head)) if i == 0 or any(row[i] for row in shown)]

    def kept(cells: Sequence[str]) -> tuple[str, ...]:
        return tuple(cells[i] for i in full)

    cut = len(rows) - len(shown)
    return Table(caption, kept(head), "".join(kept(aligned)), tuple(map(kept, shown)), cut, elsewhere)


def clipped(text: str, longest: int = _LONGEST) -> str:
    """The text, without its middle if it is too long."""
    if len(text) <= longest:
        return text
    tail = (longest - 1) * 2 // 3  # names differ at their ends
    return f"{text[: longest - 1 - tail]}…{text[len(text) - tail :]}"
