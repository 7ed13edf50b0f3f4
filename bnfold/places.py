"""Where models come from and go: files, the standard streams, folders for what is nobody's business.

A path may be "-": the standard input or output.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir

from .errors import InputError, OutputError

STREAM = "-"


def beside(origin: str, suffix: str) -> str:
    """The default target: what the name of the source becomes with another suffix."""
    return STREAM if origin == STREAM else str(Path(origin).with_name(f"{Path(origin).stem}{suffix}"))


def need_free(goal: str, *, force: bool) -> None:
    """Refuse a target that cannot be written to, as far as one can see before long work.

    Raises:
        OutputError: It exists, and `force` is not given, or its folder does not exist.
    """
    if goal == STREAM:
        return
    if not force and os.path.lexists(goal):
        raise OutputError(f"{goal}: exists already; choose another name, or pass --force")
    if not os.path.isdir(os.path.dirname(os.path.realpath(goal))):
        raise OutputError(f"{goal}: its folder does not exist; create it")


def streamed(origin: str) -> bytes | None:
    """What can be read only once: the standard input, a pipe. None for a file.

    Raises:
        InputError: It cannot be read.
    """
    if origin == STREAM:
        return sys.stdin.buffer.read()
    path = Path(origin)
    try:
        return path.read_bytes() if path.is_fifo() or path.is_char_device() else None
    except OSError as error:
        raise InputError(f"{origin}: cannot be read: {error.strerror or error}") from error


def title(origin: str) -> str:
    """What messages call a source."""
    return "the model on standard input" if origin == STREAM else origin


def copy(content: bytes, path: Path) -> Path:
    """Write what was streamed where it can be read as a file.

    Raises:
        OutputError: There is no room.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(
            f"a temporary copy of the model cannot be written: {error.strerror or error}; free some space or "
            "set TMPDIR to another folder; nothing was written"
        ) from error
    return path


def write_out(content: bytes) -> None:
    """Write to the standard output.

    Raises:
        OutputError: It cannot be written.
    """
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(
            f"the standard output: cannot be written: {error.strerror or error}; the model there is cut off"
        ) from error


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for what has to be a file but is nobody's business.

    It is named before it is made, so that an interruption in between leaves nothing behind.
    """
    folder: Path | None = None
    try:
        try:
            folder = Path(gettempdir(), f"bnfold-{secrets.token_hex(8)}")
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise OutputError(
                f"no temporary folder can be made: {error.strerror or error}; free some space or set TMPDIR "
                "to another folder; nothing was written"
            ) from error
        yield folder
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
