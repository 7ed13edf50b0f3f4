"""What an exception is to the user: one line, and an exit code."""

from __future__ import annotations

import os
import platform
import shlex
import traceback
from collections.abc import Sequence
from contextlib import suppress

import click

import bnfold

INTERNAL_ERROR = 4


def told(error: Exception, arguments: Sequence[str]) -> tuple[str, int]:
    """The message and the exit code."""
    match error:
        case click.ClickException():
            return _usage(error), error.exit_code
        case bnfold.BnfoldError():
            return str(error), error.exit_code
        case OSError():
            return f"{error.filename or 'a stream'}: {error.strerror or error}", 2
    return _defect(error, arguments), INTERNAL_ERROR


def complain(error: Exception, arguments: Sequence[str]) -> int:
    """Tell it on the standard error; with -vv, how it came about. Returns the exit code."""
    message, code = told(error, arguments)
    hidden = error.__cause__ is not None if isinstance(error, bnfold.BnfoldError) else code == INTERNAL_ERROR
    if "-vv" in arguments and hidden:
        with suppress(OSError):
            traceback.print_exception(error)
    say("error", message)
    return code


def say(kind: str, message: str) -> None:
    """A line on the standard error."""
    from ..render.page import printable

    line = f"{kind}: {printable(' '.join(message.split()))}"
    if os.environ.get("GITHUB_ACTIONS"):  # whose runner obeys ##[...] wherever it stands in a line
        line = line.replace("##[", "# #[")
    with suppress(OSError):  # a message that cannot be written must not change what the exit code says
        click.echo(line, err=True)


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None) or click.get_current_context(silent=True)
    command = context.command_path if context else "bnfold"
    return f"{error.format_message().rstrip('.')}; see `{command} --help`"


def _defect(error: Exception, arguments: Sequence[str]) -> str:
    system = f"bnfold {bnfold.__version__}, Python {platform.python_version()}, {platform.system()}"
    return (
        f"internal error: {type(error).__name__}: {error}; this is a bug of bnfold, please report it with the"
        f" model, if you can, and this line: `{shlex.join(['bnfold', *arguments])}` ({system});"
        " -vv shows the traceback"
    )
