"""Keeps torch from talking while it exports: what matters reaches the user as an error of ours.

The standard output is the place of a model or a report, and native code writes there past Python.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress

_STDOUT = 1


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's log, its warnings, and what it or the module prints."""
    names = [
        name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("torch", "onnxscript")
    ]
    handlers = {handler for name in names for handler in logging.getLogger(name).handlers}
    for handler in handlers:
        handler.addFilter(_nothing)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            redirect_stdout(_Sink()),
            redirect_stderr(_Sink()),
            _native_stdout_closed(),
        ):
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_nothing)


@contextmanager
def _native_stdout_closed() -> Iterator[None]:
    """What is written to the standard output past Python is lost as well."""
    try:
        kept = os.dup(_STDOUT)
    except OSError:  # it is closed
        yield
        return
    _flush()
    opened = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(opened, _STDOUT)
        yield
    finally:
        _flush()
        os.dup2(kept, _STDOUT)
        os.close(kept)
        os.close(opened)


def _flush() -> None:
    """Python's buffer, and that of C, where what was printed may wait."""
    with suppress(OSError, ValueError, AttributeError):
        if sys.__stdout__ is not None:
            sys.__stdout__.flush()
    with suppress(OSError, TypeError, AttributeError):
        ctypes.CDLL(None).fflush(None)


class _Sink(io.StringIO):
    """Takes anything and keeps nothing."""

    def write(self, text: str, /) -> int:
        return len(text)


def _nothing(_: logging.LogRecord) -> bool:
    return False
