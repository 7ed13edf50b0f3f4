"""How the command begins and ends: the one place where errors become lines and exit codes."""

from __future__ import annotations

import gc
import os
import platform
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import click

import bnfold

from .terminal import give_up_stdout, write

INTERRUPTED, READER_GONE = 130, 141  # as a shell reports SIGINT and SIGPIPE
INTERNAL_ERROR = 4


class Program(click.Group):
    """The one place where errors become lines and exit codes."""

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        arguments = sys.argv[1:] if args is None else list(args)
        _settle_surroundings()
        try:
            code = super().main(arguments, **extra | {"prog_name": "bnfold", "standalone_mode": False})
        except click.ClickException as error:
            code = _complain(_usage(error), error.exit_code)
        except click.Abort:
            code = INTERRUPTED
        except bnfold.BnfoldError as error:
            if "--json" in arguments and (report := getattr(error, "report", None)) is not None:
                from ..render import as_json

                write(as_json(report))
            if "-vv" in arguments and error.__cause__ is not None:
                traceback.print_exc()
            code = _complain(str(error), error.exit_code)
        except OSError as error:
            code = _complain(f"{error.filename or 'a stream'}: {error.strerror or error}", 2)
        except Exception as error:
            if "-vv" in arguments:
                traceback.print_exc()
            code = _complain(_defect(error, arguments), INTERNAL_ERROR)
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


def _complain(message: str, code: int) -> int:
    from ..render.page import printable

    with suppress(OSError):  # a message that cannot be written must not change what the exit code says
        click.echo(f"error: {printable(' '.join(message.split()))}", err=True)
    return code


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


def _usage(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "bnfold"
    return f"{error.format_message().rstrip('.')}; see `{command} --help`"


def _defect(error: Exception, arguments: Sequence[str]) -> str:
    system = f"bnfold {bnfold.__version__}, Python {platform.python_version()}, {platform.system()}"
    return (
        f"internal error: {type(error).__name__}: {error}; this is a bug of bnfold, please report it with the"
        f" model, if you can, and this line: `{shlex.join(['bnfold', *arguments])}` ({system});"
        " -vv shows the traceback"
    )
