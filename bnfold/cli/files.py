"""Report files: made ready before the work, and replaced in one piece after it.

Only reports of bnfold are replaced. What else stands at the path may be the weights of a model, or a device.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

_BEGINNING = 4096  # bytes that show whose file it is
_FOREIGN = "there is a file that is no report of bnfold; choose another name, or remove it"


def make_ready(path: str) -> str:
    """Remove what an earlier run has left there, and see whether there can be a file.

    Returns:
        Why not, or "".
    """
    from ..render import lacking

    goal = _goal(path)
    try:
        if not (_is_stream(path) or _emptied(path)):
            goal.parent.mkdir(parents=True, exist_ok=True)
            with _beside(goal).open("xb") as file:
                os.unlink(file.name)
    except OSError as error:
        return error.strerror or str(error)
    return lacking(goal.suffix)


def replace(path: str, text: str) -> None:
    """Write a file, complete or not at all; pipes and devices take it as it comes.

    Raises:
        OSError: It cannot be written.
    """
    goal, content = _goal(path), text.encode("utf-8", "backslashreplace")
    if _is_stream(path):
        _fill(path, content)
        return
    _need_ours(goal)
    temporary = _beside(goal)
    try:
        temporary.write_bytes(content)
        temporary.replace(goal)
    except PermissionError:  # the folder is another's, the file need not be
        if not goal.exists():
            raise
        _fill(goal, content)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _emptied(path: str) -> bool:
    """Remove an old report; says whether it is still there, but empty, as its folder cannot be written."""
    goal = _goal(path)
    _need_ours(goal)
    try:
        goal.unlink(missing_ok=True)  # a run that fails, however it does, must not seem to have made it
        return False
    except OSError as error:
        if not goal.exists():
            raise
        try:
            _fill(goal, b"")
        except OSError:
            raise OSError(0, f"{error.strerror}; that of an earlier run is still there") from error
        return True


def _need_ours(goal: Path) -> None:
    """Refuse to touch a file of somebody else."""
    from ..render import is_report

    with suppress(FileNotFoundError, NotADirectoryError), goal.open("rb") as file:
        beginning = file.read(_BEGINNING)
        if beginning and not is_report(beginning.decode("utf-8", "replace")):
            raise OSError(0, _FOREIGN)


def _is_stream(path: str) -> bool:
    """Whether a pipe or a device is there: what is written into, and never replaced."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _fill(path: str | Path, content: bytes) -> None:
    """Write into what is there; all of it, or nothing where that is possible."""
    # Linux refuses O_CREAT for another's file in a folder like /tmp.
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags & ~os.O_CREAT)) as file:
        try:
            file.write(content)
            file.flush()
        except OSError:
            with suppress(OSError):
                os.truncate(path, 0)
            raise


def _goal(path: str) -> Path:
    """The file itself, where the path is a link."""
    return Path(os.path.realpath(path))


def _beside(goal: Path) -> Path:
    return goal.with_name(f".bnfold-{secrets.token_hex(8)}")
