"""Reports as one self-contained page for people: no network, no scripts, one style that is named by its hash.

Names of the model are other people's. Every value that goes into the page is escaped, and its control
characters are spelled out; pictures escape their own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..recalibration import RecalibrateReport
from ..report import ExportReport, InspectReport, OptimizeReport, Report
from ..verification import VerifyReport
from .answers import Badge, answers, badge
from .blocks import Section, clipped
from .comparison_sections import errors, module, outputs, witnesses
from .digest import Digest
from .fold_sections import batchnorms, folds, sizes, stays, weights
from .page import printable
from .recalibration_sections import recalibration
from .surroundings import Surroundings

_LONGEST = 2000  # of a paragraph: names may be of any length


@dataclass(frozen=True)
class _Part:
    """A report on the page.

    Attributes:
        ident: What its anchors begin with.
        digest: Its first words.
        badge: Its verdict.
        answers: Questions and answers.
        sections: The rest.
    """

    ident: str
    digest: Digest
    badge: Badge
    answers: tuple[tuple[str, tuple[str, ...]], ...]
    sections: tuple[Section, ...]


def html(digests: Sequence[Digest], surroundings: Surroundings) -> str:
    """The page.

    Raises:
        InputError: What draws it is not installed.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401  # all that is missing is told at once
    except ImportError as error:
        raise InputError(
            f"an HTML report needs {error.name}, which is not installed: pip install 'bnfold[report]'"
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bnfold.render"),
        autoescape=True,
        finalize=_spelled,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "with_commands": _with_commands}
    style = environment.get_or_select_template("style.css").render()
    parts = [_part(digest, f"r{i}-" if len(digests) > 1 else "") for i, digest in enumerate(digests, 1)]
    digested = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("report.html").render(
        parts=parts,
        totals=Counter(part.badge for part in parts),
        surroundings=surroundings,
        style=style,
        style_hash=f"sha256-{digested}",
    )


def _spelled(value: Any) -> Any:
    return value if hasattr(value, "__html__") else clipped(printable(str(value)), _LONGEST)


def _breakable(text: str) -> Any:
    """A name that may go on in the next line behind its slashes, dots and underscores."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([/._])(?=\w)", r"\1<wbr>", str(escape(printable(text)))))


def _with_commands(text: str) -> Any:
    """A sentence in which commands to run stand out."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`(bnfold [^`]+)`", r"<code>\1</code>", str(escape(_spelled(text)))))


def _part(digest: Digest, ident: str) -> _Part:
    found = tuple(section for section in _sections(digest.report, ident) if section is not None)
    return _Part(ident, digest, badge(digest), tuple(answers(digest)), found)


def _sections(report: Report, ident: str) -> Iterator[Section | None]:
    """All that the report has, in the order in which it is told."""
    fold = report.fold if isinstance(report, OptimizeReport | ExportReport | InspectReport) else None
    changes = report.changes if isinstance(report, OptimizeReport | ExportReport | InspectReport) else None
    found = report if isinstance(report, VerifyReport) else None
    if isinstance(report, OptimizeReport | ExportReport):
        found = report.verification
    moved = report if isinstance(report, RecalibrateReport) else None
    if isinstance(report, OptimizeReport):
        moved = report.recalibration
    if fold is not None:
        yield sizes(fold, changes)
    if found is not None:
        yield errors(found, ident)
    if fold is not None:
        yield folds(fold, changes)
        yield stays(fold)
    if changes is not None:
        yield weights(changes, ident)
    if found is not None:
        yield outputs(found.algebra, ident)
        yield witnesses(found)
    if moved is not None:
        yield recalibration(moved, ident)
    if isinstance(report, ExportReport):
        yield module(report)
    if isinstance(report, InspectReport):
        yield batchnorms(report.batchnorms)
