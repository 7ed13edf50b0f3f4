"""How the command begins and ends: streams, signals, and the exit code."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click

import bnfold

from .failures import complain
from .reporting import Command
from .terminal import give_up_stdout

INTERRUPTED, READER_GONE = 130, 141  # as a shell reports SIGINT and SIGPIPE


class Program(click.Group):
    """The one place where errors become exit codes; they are also what `ctx.obj` says was asked for."""

    command_class = Command

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        arguments = sys.argv[1:] if args is None else list(args)
        _settle_surroundings()
        try:
            code = super().main(
                arguments, **extra | {"prog_name": "bnfold", "standalone_mode": False, "obj": arguments}
            )
        except click.Abort:
            code = INTERRUPTED
        except Exception as error:
            code = complain(error, arguments)
        except SystemExit as end:  # told to end: see `_end`
            code = int(end.code or 0)
        gc.freeze()  # the process ends: nobody needs to look for garbage in a model any more
        _leave(int(code or 0))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # before click, which would answer 1, sees it
            give_up_stdout()
            ctx.exit(READER_GONE)


def _settle_surroundings() -> None:
    """Streams that are closed become empty ones, and being told to end cleans up like Ctrl-C."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for as long as the process
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        with suppress(ValueError):  # only the main thread may
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _end)


def _leave(code: int) -> NoReturn:
    """End the process. What an interruption has left at work in another thread is not waited for."""
    left = any(thread.name.startswith(bnfold.__name__) for thread in threading.enumerate())
    if left and code >= INTERRUPTED - 1:  # SIGHUP's is 129
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)
