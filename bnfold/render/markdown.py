"""Reports as GitHub-flavoured Markdown, of limited size: the verdict, figures, what failed, what stays."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..report import ExportReport, InspectReport, OptimizeReport
from .cases import SEVERITY
from .digest import Digest, Status, basis
from .page import many, printable
from .surroundings import Surroundings
from .text import by_reason, place

LIMIT = 512 * 1024  # bytes; GitHub refuses summaries of a step above twice that
_CELL = 500  # characters
_COMMAND = 4000
_EXAMPLES = 2
_SIGNS = {
    Status.PASS: "\u2705",
    Status.FAIL: "\u274c",
    Status.UNDECIDED: "\u2754",
    Status.ERROR: "\u26a0\ufe0f",
}
_SPECIAL = re.compile(r"[\\`*_\[\]|~$]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# GitHub makes links of mentions, numbers and addresses, and pictures of words between colons, after it has
# read the escapes; only what stands in between keeps it from that.
_LINKS = re.compile(
    r"(?<=[@#])(?=\w)|(?<=:)(?=//)|(?<=www)(?=\.)|(?<=GH-)(?=\d)|(?<=:)(?=[\w+-]+:)", re.IGNORECASE
)
_BLOCK = re.compile(r"^(\d*)([#+=-]|(?<=\d)[.)](?=\s|$))")


@dataclass(frozen=True)
class _Table:
    """Rows that may be left out from some point on.

    Attributes:
        before: What comes first, with the head.
        rows: Lines.
        after: What comes behind.
    """

    before: str
    rows: Sequence[str]
    after: str = "\n"


def markdown(digests: Sequence[Digest], surroundings: Surroundings, limit: int = LIMIT) -> str:
    """The document.

    Args:
        digests: Those that failed come first in it.
        surroundings: For the end.
        limit: How many bytes it may have.
    """
    worst_first = sorted(digests, key=lambda digest: SEVERITY.index(digest.status))
    parts: list[str | _Table] = [_overview(worst_first)] if len(digests) > 1 else []
    used = 0
    for number, digest in enumerate(worst_first):
        section = list(_section(digest))
        used += sum(_size(part if isinstance(part, str) else part.before + part.after) for part in section)
        if number and used > limit // 2:
            rest = many(len(digests) - number, "model")
            parts.append(
                f"Of {rest} more there is no room for details: `--report x.json` has all of them.\n\n"
            )
            break
        parts += section
    parts.append(_around(surroundings))
    return "".join(_fitted(parts, limit))


def escaped(text: str) -> str:
    """A text that means itself: no markup, no links, one line."""
    text = _LINKS.sub("\0", printable(text))
    text = _SPECIAL.sub(r"\\\g<0>", text)
    text = "".join(_ENTITIES.get(c, c) for c in text)
    return _BLOCK.sub(r"\1\\\2", text).replace("\0", "<!-- -->")


def _overview(digests: Sequence[Digest]) -> _Table:
    rows = [
        _row(
            d.source,
            f"{_SIGNS[d.status if d.is_shown else Status.ERROR]} {d.verdict}",
            d.headline.removeprefix(f"{d.source}: "),
        )
        for d in digests
    ]
    failed = sum(d.status is not Status.PASS for d in digests)
    head = f"## {many(len(digests), 'model')}, {failed} not passed\n\n"
    return _Table(head + _head("model", "verdict", "what happened"), rows)


def _section(digest: Digest) -> Iterator[str | _Table]:
    sign = _SIGNS[digest.status if digest.is_shown else Status.ERROR]
    yield f"## {sign} {digest.verdict.upper()}: {_cut(digest.headline)}\n\n"
    if digest.message:
        yield f"{_cut(digest.message)}\n\n"
    if digest.status is Status.PASS and (told := basis(digest.report)):
        yield f"{_cut(told)}\n\n"
    if digest.figures:
        yield _head("figure", "value") + "".join(_row(*figure) for figure in digest.figures) + "\n"
    cases = digest.cases[1:]  # the first is what has been said
    failing = [_row(c.name, c.message) for c in cases if c.status is not Status.PASS]
    if failing:
        yield _Table("### What is wrong\n\n" + _head("what", "why"), failing)
    yield from _stays(digest)
    yield "### What to do now\n\n" + "".join(f"- {_with_code(told)}\n" for told in digest.next) + "\n"
    passed = [_row(c.name, c.message) for c in cases if c.status is Status.PASS]
    if passed:
        yield _Table(
            f"<details>\n<summary>What else was looked at ({len(passed)})</summary>\n\n"
            + _head("what", "found"),
            passed,
            "\n</details>\n\n",
        )


def _stays(digest: Digest) -> Iterator[str]:
    report = digest.report
    if not isinstance(report, OptimizeReport | ExportReport | InspectReport) or report.fold is None:
        return
    groups = by_reason(d for d in report.fold.kept if d.batchnorms)
    if groups:
        yield "### What stays, and why\n\n"
    for reason, group in groups:
        number = many(sum(d.batchnorms for d in group), "BatchNormalization")
        yield f"- **{reason.value}**, {number}: {escaped(reason.sentence)} {escaped(reason.remedy)}\n"
        for d in group[:_EXAMPLES]:
            yield f"  - at {_cut(place(d))}: {_cut(d.detail)}\n"
        if len(group) > _EXAMPLES:
            yield f"  - and {len(group) - _EXAMPLES} more\n"
    if groups:
        yield "\n"


def _around(surroundings: Surroundings) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in surroundings.versions.items())
    command = printable(surroundings.command)
    lines = ["<details>", "<summary>How this was made</summary>", ""]
    if len(command) > _COMMAND:
        command = f"{command[:_COMMAND]} ..."
    lines += ["```sh", command, "```", ""] if command else []
    lines += [escaped(f"{versions}; {surroundings.system}"), "", "</details>"]
    return "\n".join(lines) + "\n"


def _head(*names: str) -> str:
    return f"| {' | '.join(names)} |\n|{' --- |' * len(names)}\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(map(_cut, cells))} |\n"


def _cut(text: str) -> str:
    return escaped(text if len(text) <= _CELL else f"{text[: _CELL - 4]} ...")


def _with_code(text: str) -> str:
    """A sentence with a command between backticks; names in it cannot end the code."""
    before, tick, rest = printable(text).partition("`")
    code, end, after = rest.rpartition("`")
    if not (tick and end) or "`" in code:
        return _cut(text)
    return f"{escaped(before)}`{code}`{escaped(after)}"


# Size


def _size(text: str) -> int:
    return len(text.encode("utf-8", "backslashreplace"))


def _fitted(parts: Sequence[str | _Table], limit: int) -> Iterator[str]:
    """The parts, with as many rows as there is room for."""
    note = "\n{} more rows are left out here: `--report x.json` has all of them.\n"
    fixed = (part if isinstance(part, str) else part.before + part.after + note for part in parts)
    room = limit - sum(map(_size, fixed))
    for part in parts:
        if isinstance(part, str):
            yield part
            continue
        yield part.before
        for number, row in enumerate(part.rows):
            room -= _size(row)
            if room < 0:
                yield note.format(len(part.rows) - number)
                break
            yield row
        yield part.after
