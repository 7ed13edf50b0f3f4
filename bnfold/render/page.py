"""What reports are written on: its width and colours, paragraphs, tables, and words for them.

Plain ASCII apart from the names of the model, whose control characters are spelled out: they are other
people's, and a terminal would obey them.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

_NARROWEST, _WIDEST = 40, 100
_LEAST, _WANTED = 12, 20  # characters of a table's first column


class Ink(StrEnum):
    """How to begin a coloured piece."""

    BOLD = "\x1b[1m"
    GOOD = "\x1b[32m"
    BAD = "\x1b[31m"
    CODE = "\x1b[36m"


@dataclass(frozen=True)
class Page:
    """What the reader looks at.

    Attributes:
        width: Columns.
        color: Whether it shows colours.
        verbose: Whether every decision is wanted.
    """

    width: int = 80
    color: bool = False
    verbose: bool = False

    def paint(self, text: str, ink: Ink) -> str:
        return f"{ink}{text}\x1b[0m" if self.color else text

    def prose(self, text: str, indent: int = 0, hang: int = 0) -> list[str]:
        """The text in lines that fit; all but the first are indented by `hang` more."""
        width = min(max(self.width, _NARROWEST), _WIDEST)
        pad = " " * indent
        return textwrap.wrap(
            text,
            width,
            initial_indent=pad,
            subsequent_indent=pad + " " * hang,
            break_on_hyphens=False,
            break_long_words=False,  # they are names, and someone may want to copy them
        )


def printable(text: str) -> str:
    """The text in one line, with everything a terminal might obey spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def called(path: str, stream: str = "-") -> str:
    """A file as its user calls it, or the stream that stands for it."""
    return stream if path == "-" else printable(path)


def many(number: int, noun: str) -> str:
    """So many of them, in words that agree."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def table(
    rows: Sequence[Sequence[str]], aligned: str, page: Page, spare: Sequence[tuple[int, ...]] = ()
) -> Iterator[str]:
    """Columns; on a narrow page the first gives way, in the middle of its names.

    Args:
        rows: The cells; the head comes first.
        aligned: "<" or ">" per column.
        page: Where it goes.
        spare: Columns that go, group by group, while names in the first have no room for twenty characters,
            or would look alike.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown = list(range(len(aligned)))

    def room() -> int:
        return page.width - sum(widths[i] + 2 for i in shown[1:]) - 2

    def is_legible() -> bool:
        """Whether there is room for names, so that no two look alike that are not."""
        names = {row[0] for row in rows}
        shortened = {_shortened(name, min(widths[0], max(room(), _LEAST))) for name in names}
        return room() >= min(_WANTED, widths[0]) and len(shortened) == len(names)

    for group in spare:
        if not is_legible():
            shown = [column for column in shown if column not in group]
    widths[0] = min(widths[0], max(room(), _LEAST))
    for row in rows:
        cells = (f"{_shortened(row[i], widths[i]):{aligned[i]}{widths[i]}}" for i in shown)
        yield ("  " + "  ".join(cells)).rstrip()


def _shortened(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    tail = (width - 2) * 2 // 3
    return f"{name[: width - 2 - tail]}..{name[len(name) - tail :]}"
