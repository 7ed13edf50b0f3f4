"""The command line: parse, one library call, print, exit code. Data go to stdout, messages to stderr."""

from __future__ import annotations

import gc
import os
import platform
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click

import bnfold

from .later import postpone

if TYPE_CHECKING:
    from .render.text import Page

Command = TypeVar("Command", bound=Callable[..., Any])

STREAM = "-"
INTERRUPTED, READER_GONE = 130, 141  # as a shell reports SIGINT and SIGPIPE
INTERNAL_ERROR = 4

_EPILOG = """\
\b
Exit codes: 0 fine, 1 not equivalent, 2 usage or unusable input, 3 undecided, 4 internal error.
Completion: eval "$(_BNFOLD_COMPLETE=bash_source bnfold)"; zsh_source and fish_source likewise.
"""


class _Program(click.Group):
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
                from .render import as_json

                _print(as_json(report))
            code = _complain(str(error), error.exit_code)
        except OSError as error:
            code = _complain(f"{error.filename or 'a stream'}: {error.strerror or error}", 2)
        except Exception as error:
            if "-vv" in arguments:
                traceback.print_exc()
            code = _complain(_defect(error, arguments), INTERNAL_ERROR)
        gc.freeze()  # the process ends: nobody needs to look for garbage in a model any more
        sys.exit(code or 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # before click, which would answer 1, sees it
            _give_up_stdout()
            ctx.exit(READER_GONE)


class _Codes(click.Choice[str]):
    """Reason codes, in any case."""

    def normalize_choice(self, choice: object, ctx: click.Context | None) -> str:
        return str(choice).upper()


def _source(command: Command) -> Command:
    return click.argument("source", metavar="MODEL", type=click.Path(allow_dash=True))(command)


def _how(command: Command) -> Command:
    """The options that `optimize` and `inspect` share."""
    for option in (
        click.option("-v", "--verbose", count=True, help="Report every decision; -vv: tracebacks as well."),
        click.option("--json", "as_json", is_flag=True, help="Report as JSON."),
        click.option("--inline-functions", is_flag=True, help="Inline local functions first."),
        click.option(
            "--freeze-initializers",
            is_flag=True,
            help="Make initializers that are also inputs constants: they leave the model's inputs.",
        ),
        click.option(
            "--only",
            type=click.Choice(["batchnorm"]),
            help="Fold no multiplication or addition that does not belong to a BatchNormalization.",
        ),
    ):
        command = option(command)
    return command


@click.group(
    cls=_Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)
@click.version_option(bnfold.__version__, prog_name="bnfold")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Fold BatchNormalization into the weights around it, and prove that nothing else changed."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)


@main.command()
@_source
@click.option(
    "-o",
    "--output",
    "target",
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="Where the result goes.  [default: beside MODEL, as NAME.folded.onnx]",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--dry-run", is_flag=True, help="Fold and verify, but write nothing.")
@click.option("--verify/--no-verify", default=True, help="Run both and compare.  [default: verify]")
@click.option("-q", "--quiet", is_flag=True, help="No report.")
@_how
def optimize(
    source: str, target: str | None, dry_run: bool, quiet: bool, as_json: bool, verbose: int, **how: Any
) -> None:
    """Fold and verify MODEL, and write the result.

    MODEL and FILE may be "-", the standard input and output.
    """
    to_stdout = not dry_run and STREAM in ((source, target) if target is None else (target,))
    if to_stdout and _is_closed(sys.stdout):
        raise click.UsageError("the model would go to the standard output, which is closed")
    if to_stdout and sys.stdout.isatty():
        raise click.UsageError("the model would go to the terminal; redirect it, or name a file with -o")
    with _interrupts_later():
        work = bnfold.optimize
    report = work(source, target, dry_run=dry_run, **how)
    if as_json:
        from .render import as_json as render

        _print(render(report), err=to_stdout)
    elif not quiet:
        from .render.text import optimized

        _print(optimized(report, _page(verbose, err=to_stdout)), err=to_stdout)


@main.command()
@_source
@_how
def inspect(source: str, as_json: bool, verbose: int, **how: Any) -> None:
    """Show which BatchNormalizations would fold.

    Also what is stored in each, and why those that stay do. Nothing is written.
    """
    with _interrupts_later():
        work = bnfold.inspect
    report = work(source, **how)
    if as_json:
        from .render import as_json as render

        _print(render(report))
    else:
        from .render.text import inspected

        _print(inspected(report, _page(verbose)))


@main.command()
@click.argument("code", metavar="[CODE]", required=False, type=_Codes([str(r) for r in bnfold.Reason]))
def explain(code: str | None) -> None:
    """Explain the reason CODE, or list all of them."""
    from .render.text import explained, reasons

    text = "\n\n".join(explained(reason, _page()) for reason in bnfold.Reason if reason == code)
    _print(text or reasons(_page()))


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Native modules abort when Ctrl-C hits them while they are being imported, so there it has to wait."""
    postpone("sympy")
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _page(verbose: int = 0, *, err: bool = False) -> Page:
    """The terminal, or what takes its place."""
    from .render.text import Page

    stream = sys.stderr if err else sys.stdout
    color = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Page(shutil.get_terminal_size().columns, color, verbose > 0)


def _print(text: str, *, err: bool = False) -> None:
    """Write a report; names that the stream has no characters for are spelled out."""
    stream = sys.stderr if err else sys.stdout
    encoding = stream.encoding or "utf-8"
    try:
        click.echo(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, color=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        _give_up_stdout()
        why = error.strerror or error
        raise bnfold.OutputError(f"the standard output: the report cannot be written: {why}") from error


def _give_up_stdout() -> None:
    """Nothing more can be written there, so Python shall not try when it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:  # a stream without a file, as in tests
        return


def _complain(message: str, code: int) -> int:
    from .render.text import printable

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


def _end(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def _is_closed(stream: TextIO) -> bool:
    return getattr(stream, "name", None) == os.devnull


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
