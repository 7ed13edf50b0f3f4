"""Report files: made ready before the work, and replaced in one piece after it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def make_ready(path: str) -> str:
    """Remove what an earlier run has left there, and see whether there can be a file.

    Returns:
        Why not, or "".
    """
    from ..render import lacking

    goal = _goal(path)
    try:
        goal.unlink(missing_ok=True)  # a run that fails, however it does, must not seem to have made it
        goal.parent.mkdir(parents=True, exist_ok=True)
        with _beside(goal).open("xb") as file:
            os.unlink(file.name)
    except OSError as error:
        return error.strerror or str(error)
    return lacking(goal.suffix)


def replace(path: str, text: str) -> None:
    """Write a file, complete or not at all.

    Raises:
        OSError: It cannot be written.
    """
    goal = _goal(path)
    temporary = _beside(goal)
    try:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))
        temporary.replace(goal)
    finally:
        temporary.unlink(missing_ok=True)


def _goal(path: str) -> Path:
    """The file itself, where the path is a link."""
    return Path(os.path.realpath(path))


def _beside(goal: Path) -> Path:
    return goal.with_name(f".bnfold-{secrets.token_hex(8)}")
