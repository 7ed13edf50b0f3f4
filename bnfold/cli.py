"""The command line: parse, one library call, print, exit code. Data go to stdout, messages to stderr."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import shlex
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click

import bnfold

from .kinds import is_torch
from .later import postpone

if TYPE_CHECKING:
    from .render.page import Page

Command = TypeVar("Command", bound=Callable[..., Any])

STREAM = "-"
INTERRUPTED, READER_GONE = 130, 141  # as a shell reports SIGINT and SIGPIPE
INTERNAL_ERROR = 4
_VERDICTS = {bnfold.Verdict.PASS: 0, bnfold.Verdict.FAIL: 1, bnfold.Verdict.UNDECIDED: 3}
_PATIENCE = 1.0  # seconds before work counts as long

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
            _give_up_stdout()
            ctx.exit(READER_GONE)


class _Codes(click.Choice[str]):
    """Reason codes, in any case."""

    def normalize_choice(self, choice: object, ctx: click.Context | None) -> str:
        return str(choice).upper()


class _Bound(click.ParamType[tuple[str, float]]):
    """VALUE for all outputs, or NAME:VALUE for one."""

    name = "[NAME:]VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, _, number = value.rpartition(":")
        try:
            bound = float(number)
        except ValueError:
            self.fail(f"'{number}' is no number", param, ctx)
        if not bound >= 0:
            self.fail(f"{number} is no distance", param, ctx)
        return name, bound


class _Positive(click.FloatRange):
    """A number above 0, of which there is a larger one."""

    def __init__(self, largest: float | None = None) -> None:
        super().__init__(min=0, min_open=True, max=largest)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is no number to count with", param, ctx)
        return number


class _Size(click.ParamType[tuple[str, int]]):
    """NAME=SIZE."""

    name = "NAME=SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, _, size = value.rpartition("=")
        if not name or not size.isdecimal() or not int(size):
            self.fail(f"'{value}' is not NAME=SIZE with a positive size", param, ctx)
        return name, int(size)


class _Arguments(click.ParamType[Any]):
    """JSON: an object of named arguments, or a list of positional ones."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            arguments = json.loads(value)
        except ValueError as error:
            self.fail(f"'{value}' is no JSON: {error}", param, ctx)
        if not isinstance(arguments, dict | list):
            self.fail(f"'{value}' is neither an object nor a list", param, ctx)
        return arguments


def _source(command: Command) -> Command:
    return click.argument("source", metavar="[MODEL]", required=False, type=click.Path(allow_dash=True))(
        command
    )


# How PyTorch models are opened: parameter of `bnfold.load_torch`, or of what follows it, and option.
_LOADING = {
    "factory": "--model",
    "arguments": "--model-args",
    "state_key": "--state-key",
    "pythonpath": "--pythonpath",
    "torchscript": "--torchscript",
    "unsafe_pickle": "--unsafe-pickle",
}
_EXPORTING = {"inputs": "--input", "opset": "--opset"}
_OF_ONNX = {"freeze_initializers": "--freeze-initializers", "inline_functions": "--inline-functions"}


def _torch(command: Command) -> Command:
    """The options of everything that takes PyTorch models."""
    for option in (
        click.option("--unsafe-pickle", is_flag=True, help="Load pickled modules, which can run any code."),
        click.option("--torchscript", is_flag=True, help="Load TorchScript."),
        click.option(
            "--pythonpath", multiple=True, metavar="DIR", help="Where --model's package is; repeatable."
        ),
        click.option("--state-key", metavar="KEY", help="Where the state dict is in a checkpoint: a.b.c."),
        click.option(
            "--model-args", "arguments", type=_Arguments(), help="What the --model function is called with."
        ),
        click.option(
            "--model",
            "factory",
            metavar="PKG.MOD:NAME",
            help="A function that makes the module, whose weights are in MODEL; or its own, without MODEL.",
        ),
        click.option("--opset", type=int, help="Version of the ONNX operators that PyTorch shall write."),
        click.option(
            "--input",
            "inputs",
            multiple=True,
            metavar="NAME:DTYPE[SIZE,...]",
            help="What a PyTorch module is called with: x:float32[N,3,224,224]; N is free. Repeatable.",
        ),
    ):
        command = option(command)
    return command


def _writing(command: Command) -> Command:
    """The options of what writes a model."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, help="No report."),
        click.option("--no-verify", "verify", flag_value="none", help="The same as --verify none."),
        click.option("--dry-run", is_flag=True, help="Do everything, but write nothing."),
        click.option("--force", is_flag=True, help="Replace a file that is there."),
    ):
        command = option(command)
    return command


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
@click.option(
    "--verify",
    type=click.Choice(["full", "fast", "none"]),
    default="fast",
    show_default=True,
    help="Compare with the original in float64 and recompute all folded constants (fast), and run both in "
    "onnxruntime (full).",
)
@_writing
@_how
@_torch
def optimize(source: str | None, target: str | None, **how: Any) -> None:
    """Fold and verify MODEL, and write the result.

    MODEL is an ONNX model, or a PyTorch model as for `export`. MODEL and FILE may be "-", the standard input
    and output.
    """
    loading, exporting = _taken(how, _LOADING), _taken(how, _EXPORTING)
    if _is_torch(source, loading | exporting):
        _need_none(_taken(how, _OF_ONNX), _OF_ONNX)
        _export(source, loading, target or _beside(source, loading, ".folded.onnx"), **how, **exporting)
        return
    assert source is not None
    to_stdout = _goes_to_stdout(how["dry_run"], *((source, target) if target is None else (target,)))
    reporting = _taken(how, ("quiet", "as_json", "verbose"))
    with _interrupts_later():
        postpone("sympy")
        work = bnfold.optimize
    with _progress("Verifying") as progress:
        report = work(source, target, progress=progress, **how)

    def text() -> str:
        from .render.text import optimized

        return optimized(report, _page(reporting["verbose"], err=to_stdout))

    _report(report, text, to_stdout, reporting)


@main.command()
@_source
@_how
@_torch
def inspect(source: str | None, as_json: bool, verbose: int, **how: Any) -> None:
    """Show which BatchNormalizations would fold.

    Also what is stored in each, and why those that stay do. Nothing is written. MODEL is an ONNX model, or a
    PyTorch model as for `export`.
    """
    loading, exporting = _taken(how, _LOADING), _taken(how, _EXPORTING)
    if _is_torch(source, loading | exporting):
        _need_none(_taken(how, _OF_ONNX), _OF_ONNX)
        loaded = _load(source, loading)
        report = bnfold.inspect_module(loaded, only=how["only"], **exporting)
    else:
        assert source is not None
        with _interrupts_later():
            postpone("sympy")
            work = bnfold.inspect
        report = work(source, **how)

    def text() -> str:
        from .render.text import inspected

        return inspected(report, _page(verbose))

    _report(report, text, False, {"as_json": as_json, "quiet": False})


@main.command()
@_source
@click.option(
    "-o",
    "--output",
    "target",
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="Where the result goes.  [default: beside MODEL, as NAME.onnx]",
)
@click.option("--no-fold", "fold", flag_value=False, default=True, help="Export only.")
@click.option(
    "--verify",
    type=click.Choice(["full", "fast", "none"]),
    default="full",
    show_default=True,
    help="Compare with the module in PyTorch and with the unfolded export in float64 (fast), and in "
    "onnxruntime (full).",
)
@_writing
@click.option("-v", "--verbose", count=True, help="Report every decision; -vv: tracebacks as well.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.option(
    "--only",
    type=click.Choice(["batchnorm"]),
    help="Fold no multiplication or addition that does not belong to a BatchNormalization.",
)
@_torch
def export(source: str | None, target: str | None, **how: Any) -> None:
    """Export the PyTorch model MODEL to ONNX, fold and verify it.

    MODEL is an exported program (.pt2), or the weights (.safetensors, .pt, .pth) of what --model makes, or
    TorchScript. It is exported in evaluation mode.
    """
    loading = _taken(how, _LOADING)
    if source is None and loading["factory"] is None:
        raise click.UsageError("Missing argument 'MODEL'")
    if source is not None and source.endswith(".onnx"):
        raise click.UsageError(f"{source} is an ONNX model already; `bnfold optimize` takes those")
    _export(source, loading, target or _beside(source, loading, ".onnx"), **how)


@main.command()
@click.argument("reference", metavar="REFERENCE", type=click.Path())
@click.argument("candidate", metavar="CANDIDATE", type=click.Path())
@click.option(
    "--tolerance",
    type=_Positive(),
    default=4.0,
    show_default=True,
    help="How many times the reference's own rounding noise an error may be.",
)
@click.option(
    "--rtol", multiple=True, type=_Bound(), help="Judge outputs by a relative limit instead; one, or all."
)
@click.option(
    "--atol", multiple=True, type=_Bound(), help="Judge outputs by an absolute limit instead; one, or all."
)
@click.option(
    "--inputs",
    type=click.Path(),
    help="What to feed: .npz, .npy, a folder of them, or ONNX test data.  [default: drawn at random]",
)
@click.option(
    "--shape", "sizes", multiple=True, type=_Size(), help="Size of a free dimension; INPUT[AXIS] if nameless."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all random draws.")
@click.option("--outputs-only", is_flag=True, help="Equal names of inner tensors need not mean equal values.")
@click.option("--no-runtime", is_flag=True, help="Do not ask onnxruntime.")
@click.option("--provider", default="CPUExecutionProvider", show_default=True, help="Of onnxruntime.")
@click.option(
    "--timeout",
    type=_Positive(1e6),
    default=300.0,
    show_default=True,
    help="Seconds that onnxruntime may take for one load or run.",
)
@click.option("-v", "--verbose", count=True, help="Report every tensor; -vv: tracebacks as well.")
@click.option("--json", "as_json", is_flag=True, help="Report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No report; the exit code tells.")
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    reference: str,
    candidate: str,
    rtol: tuple[tuple[str, float], ...],
    atol: tuple[tuple[str, float], ...],
    sizes: tuple[tuple[str, int], ...],
    outputs_only: bool,
    no_runtime: bool,
    verbose: int,
    as_json: bool,
    quiet: bool,
    **how: Any,
) -> None:
    """Prove that CANDIDATE is the same function as REFERENCE, or find where it is not.

    Both are run in float64 and compared at every tensor that they name alike; then in onnxruntime.
    """
    with _interrupts_later():
        postpone("sympy")
        work = bnfold.verify
    relative, absolute = dict(rtol), dict(atol)
    limits = {
        name: bnfold.Limit(*(given.get(name, given.get("", 0.0)) for given in (relative, absolute)))
        for name in relative | absolute
    }
    with _progress("Verifying") as progress:
        report = work(
            reference,
            candidate,
            limits=limits,
            sizes=dict(sizes),
            by_name=not outputs_only,
            runtime=not no_runtime,
            progress=progress,
            **how,
        )
    if as_json:
        from .render import as_json as render

        _print(render(report))
    elif not quiet:
        from .render.comparison import compared

        _print(compared(report, _page(verbose)))
    ctx.exit(_VERDICTS[report.verdict])


@main.command()
@click.argument("code", metavar="[CODE]", required=False, type=_Codes([str(r) for r in bnfold.Reason]))
def explain(code: str | None) -> None:
    """Explain the reason CODE, or list all of them."""
    from .render.text import explained, reasons

    text = "\n\n".join(explained(reason, _page()) for reason in bnfold.Reason if reason == code)
    _print(text or reasons(_page()))


# PyTorch


def _taken(how: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Some of the options, which are then no longer among the others."""
    return {name: how.pop(name) for name in names}


def _is_torch(source: str | None, options: Mapping[str, Any]) -> bool:
    """Whether a source is a PyTorch model; if not, it must be one that needs none of these options."""
    if options["factory"] is not None or (source is not None and is_torch(source)):
        return True
    if source is None:
        raise click.UsageError("Missing argument 'MODEL'")
    _need_none(options, _LOADING | _EXPORTING, f"is for PyTorch models, and {source} is none")
    return False


def _need_none(options: Mapping[str, Any], flags: Mapping[str, str], why: str = "is for ONNX models") -> None:
    for name, flag in flags.items():
        if options.get(name):
            raise click.UsageError(f"{flag} {why}")


def _beside(source: str | None, loading: Mapping[str, Any], suffix: str) -> str:
    """The default target: beside the source, or here, called as the function that makes the module."""
    if source is None:
        function = str(loading["factory"]).rpartition(":")[2]
        return f"{function.replace('.', '_')}{suffix}"
    return str(Path(source).with_name(f"{Path(source).stem}{suffix}"))


def _load(source: str | None, loading: Mapping[str, Any]) -> Any:
    with _interrupts_later():  # torch is imported here
        load = bnfold.load_torch
    with redirect_stdout(sys.stderr):  # what a user's function prints is no data
        return load(source, **loading)


def _export(source: str | None, loading: Mapping[str, Any], target: str, **how: Any) -> None:
    reporting = _taken(how, ("quiet", "as_json", "verbose"))
    to_stdout = _goes_to_stdout(how["dry_run"], target)
    if not (to_stdout or how["dry_run"] or how["force"]) and os.path.lexists(target):
        raise bnfold.OutputError(f"{target}: exists already; choose another name, or pass --force")
    loaded = _load(source, loading)
    with _progress("Exporting") as progress:
        report = bnfold.export(loaded, target, progress=progress, **how)

    def text() -> str:
        from .render.text import exported

        return exported(report, _page(reporting["verbose"], err=to_stdout))

    _report(report, text, to_stdout, reporting)


# Streams


def _goes_to_stdout(dry_run: bool, *names: str) -> bool:
    """Whether the model does, which must then be neither closed nor a terminal."""
    to_stdout = not dry_run and STREAM in names
    if to_stdout and _is_closed(sys.stdout):
        raise click.UsageError("the model would go to the standard output, which is closed")
    if to_stdout and sys.stdout.isatty():
        raise click.UsageError("the model would go to the terminal; redirect it, or name a file with -o")
    return to_stdout


def _report(report: Any, text: Callable[[], str], to_stdout: bool, reporting: Mapping[str, Any]) -> None:
    """Print a report, as it was asked for, beside a model that may go to the standard output."""
    if reporting["as_json"]:
        from .render import as_json as render

        _print(render(report), err=to_stdout)
    elif not reporting["quiet"]:
        _print(text(), err=to_stdout)


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Native modules abort when Ctrl-C hits them while they are being imported, so there it has to wait."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _progress(label: str) -> Iterator[Callable[[float], None] | None]:
    """A bar on the terminal while work takes long; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    start, bar = time.monotonic(), click.progressbar(length=1000, label=label, file=sys.stderr)
    shown = 0

    def progress(share: float) -> None:
        nonlocal shown
        if time.monotonic() - start > _PATIENCE and (step := int(share * 1000) - shown) > 0:
            shown += step
            bar.update(step)

    try:
        yield progress
    finally:
        if shown:
            click.echo("\r\x1b[2K", nl=False, err=True)


def _page(verbose: int = 0, *, err: bool = False) -> Page:
    """The terminal, or what takes its place."""
    from .render.page import Page

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
    from .render.page import printable

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
