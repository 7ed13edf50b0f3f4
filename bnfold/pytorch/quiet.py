"""Keeps torch from talking while it exports: what matters reaches the user as an error of ours."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


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
        with warnings.catch_warnings(action="ignore"), redirect_stdout(_Sink()), redirect_stderr(_Sink()):
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_nothing)


class _Sink(io.StringIO):
    """Takes anything and keeps nothing."""

    def write(self, text: str, /) -> int:
        return len(text)


def _nothing(_: logging.LogRecord) -> bool:
    return False
