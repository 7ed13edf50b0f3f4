"""The table of reasons as a page: `python -m bnfold.render.reasons > docs/reasons.md`."""

from __future__ import annotations

from itertools import groupby

from ..report import Reason

FAMILIES = {
    "1": "The node itself",
    "2": "The way to its neighbours",
    "3": "The algebra of a neighbour",
    "4": "The constants",
    "5": "The numbers",
    "6": "The balance",
}

_HEAD = """\
# Reasons

<!-- Written by `make docs` from `bnfold/report.py`: edit that. -->

Why a BatchNormalization, or a multiplication or addition by a constant, stays in the model. `bnfold optimize`
and `bnfold inspect` print these codes, and `bnfold explain CODE` explains one. A code never changes.
"""


def markdown() -> str:
    """The page, with one section per family of codes."""
    sections = [_HEAD]
    for family, reasons in groupby(Reason, lambda reason: reason.value[3]):
        rows = [f"| `{r.value}` | {r.sentence} | {r.remedy} |" for r in reasons]
        lines = [f"## {FAMILIES[family]}", "", "| code | why | what to do |", "|---|---|---|", *rows, ""]
        sections.append("\n".join(lines))
    return "\n".join(sections)


if __name__ == "__main__":
    print(markdown(), end="")
