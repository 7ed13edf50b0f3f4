"""Reports in forms that people and machines read: as text, and as files of each kind."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..report import Report, as_dict

if TYPE_CHECKING:
    from .digest import Digest
    from .page import Page
    from .surroundings import Surroundings

SUFFIXES = (".json", ".xml", ".md", ".html")
_GUESTS = ("jinja2", "matplotlib")  # of HTML
_MARK = "<!-- bnfold -->\n"  # of Markdown
# How the files of each kind begin.
_OURS = re.compile(
    rf'\s*(\[\s*)?\{{\s*"schema_version": \d|<\?xml [^>]*>\s*<testsuites name="bnfold"|{_MARK}'
    r'|<!doctype html>[\s\S]*?<meta name="generator" content="bnfold'
)


def as_json(*reports: Report) -> str:
    """The report as JSON, in the order of its fields, or several as an array.

    Numbers that JSON does not have become null.
    """
    data = [_finite(as_dict(report)) for report in reports]
    return json.dumps(data[0] if len(data) == 1 else data, indent=2, allow_nan=False)


def as_text(report: Report, page: Page) -> str:
    """The report for a terminal."""
    from .text import told

    return told(report, page)


def lacking(suffix: str) -> str:
    """What is not installed, or does not work, and has to, for a file of that kind; "" if nothing."""
    guests = _GUESTS if suffix.lower() == ".html" else ()
    if missing := [guest for guest in guests if find_spec(guest) is None]:
        return f"it needs {' and '.join(missing)}: pip install 'bnfold[report]'"
    for guest in guests:
        logging.getLogger(guest).setLevel(logging.ERROR)  # where it finds no home for its cache is its affair
        try:
            import_module(guest)
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).partition(';')[0]}"
            if guest == "matplotlib" and os.environ.get("MPLBACKEND"):  # of a notebook, say; not needed here
                why += "; try again without MPLBACKEND in the environment"
            return f"it needs {guest}, which does not work here: {why}"
    return ""


def is_report(text: str) -> bool:
    """Whether a file that begins so is one of these."""
    return _OURS.match(text) is not None


def written(suffix: str, digests: Sequence[Digest], surroundings: Surroundings) -> str:
    """The content of a report file.

    Args:
        suffix: One of `SUFFIXES`.
        digests: One per model.
        surroundings: Where it was made.

    Raises:
        InputError: What it needs is not installed.
    """
    if suffix == ".json":
        return as_json(*(digest.report for digest in digests)) + "\n"
    if suffix == ".xml":
        from .junit import junit

        return junit(digests, surroundings)
    if suffix == ".md":
        from .markdown import LIMIT, markdown

        return _MARK + markdown(digests, surroundings, LIMIT - len(_MARK))
    from .html import html

    return html(digests, surroundings)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
