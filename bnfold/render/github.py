"""Reports as workflow commands of GitHub Actions: one annotation per model, and text that is no command."""

from collections.abc import Sequence
from pathlib import Path

from .digest import Digest, Status
from .page import printable

_LEVELS = {
    Status.PASS: "notice",
    Status.FAIL: "error",
    Status.UNDECIDED: "warning",
    Status.ERROR: "error",
}
_LONGEST = 4000  # characters of a message; what is longer is cut by GitHub


def annotations(digests: Sequence[Digest]) -> str:
    """A line for each."""
    return "\n".join(map(_annotation, digests))


def _annotation(digest: Digest) -> str:
    told = "\n".join(printable(part) for part in (digest.headline, digest.message, *digest.next) if part)
    properties = {"title": f"bnfold {digest.command}".rstrip() + f": {digest.verdict}"}
    if file := _inside(digest.source):
        properties = {"file": file, **properties}
    listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    level = _LEVELS[digest.status if digest.is_shown else Status.UNDECIDED]
    return f"::{level} {listed}::{_data(told[:_LONGEST])}"


def _inside(source: str) -> str:
    """The path as GitHub wants it: relative to the working directory, and in it; else ""."""
    try:
        path = Path(source).resolve(strict=True)
        return printable(path.relative_to(Path.cwd()).as_posix()) if path.is_file() else ""
    except (OSError, ValueError):
        return ""


def mute(text: str, token: str) -> str:
    """A text in which GitHub looks for no commands.

    Args:
        text: It may hold names that begin with "::".
        token: A word that nobody can know who made those names.
    """
    return f"::stop-commands::{token}\n{text}\n::{token}::"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
