"""The command line: parse, one library call, print, exit code. Data go to stdout, messages to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import click

import bnfold

from ..kinds import is_torch
from ..later import postpone
from .failures import say
from .options import (
    EXPORTING,
    IMAGES,
    LOADING,
    OF_ONNX,
    READING,
    Bound,
    Codes,
    Positive,
    Size,
    data_options,
    fold_options,
    output_option,
    report_options,
    source_argument,
    torch_options,
    writing_options,
)
from .program import Program
from .reporting import Reporting, reporting
from .terminal import count_bar, interrupts_later, is_alone, is_closed, page, progress_bar, write

STREAM = "-"
_VERDICTS = {bnfold.Verdict.PASS: 0, bnfold.Verdict.FAIL: 1, bnfold.Verdict.UNDECIDED: 3}

_EPILOG = """\
\b
Exit codes: 0 fine, 1 not equivalent, 2 usage or unusable input, 3 undecided, 4 internal error.
Completion: eval "$(_BNFOLD_COMPLETE=bash_source bnfold)"; zsh_source and fish_source likewise.
"""


@click.group(
    cls=Program,
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
@source_argument
@output_option(".folded.onnx")
@click.option(
    "--verify",
    type=click.Choice(["full", "fast", "none"]),
    default="fast",
    show_default=True,
    help="Compare with the original in float64 and recompute all folded constants (fast), and run both in "
    "onnxruntime (full).",
)
@click.option("--recalibrate", "data", metavar="DATA", help="Recalibrate first, see `bnfold recalibrate`.")
@data_options
@writing_options
@fold_options
@report_options
@torch_options
def optimize(source: str | None, target: str | None, data: str | None, **how: Any) -> None:
    """Fold and verify MODEL, and write the result.

    MODEL is an ONNX model, or a PyTorch model as for `export`. MODEL and FILE may be "-", the standard input
    and output.
    """
    to_stdout = _goes_to_stdout(how, target, source)
    with reporting(how, _title(source, how), target, data, err=to_stdout) as out:
        loading, exporting = _taken(how, LOADING), _taken(how, EXPORTING)
        reading, images = _taken(how, READING), _taken(how, IMAGES)
        if data is not None and not is_alone():
            raise click.UsageError(
                "--recalibrate is for one process: use `bnfold recalibrate` with torchrun first"
            )
        if data is None:
            _need_none(reading | images, READING | IMAGES, "is for --recalibrate")
        if _is_torch(source, loading | exporting):
            _need_none(_taken(how, OF_ONNX) | {"data": data}, OF_ONNX | {"data": "--recalibrate"})
            target = _beside(source, loading, ".folded.onnx") if target is None else target
            _export(out, source, loading, target, **how, **exporting)
            return
        assert source is not None
        _need_pipe(to_stdout)
        with interrupts_later():
            postpone("sympy")
            work = bnfold.optimize
        with progress_bar("Verifying") as progress, count_bar("Recalibrating") as counting:
            if data is not None:
                how["recalibrate"] = partial(
                    bnfold.recalibrate,
                    data=data,
                    images=_images(images),
                    inline_functions=how["inline_functions"],
                    progress=counting,
                    **_given(reading),
                )
            out.add(work(source, target, changes=out.pictured, progress=progress, **how))


@main.command()
@click.argument("source", metavar="MODEL", type=click.Path(allow_dash=True))
@click.option(
    "--data",
    required=True,
    help="To measure on: .npz, .npy, a folder of them or of images, ONNX test data, or package.module:name.",
)
@output_option(".recalibrated.onnx")
@data_options
@click.option(
    "--method",
    type=click.Choice([method.value for method in bnfold.Method]),
    default="exact",
    show_default=True,
    help="Level by level, so that the result is self-consistent; in one pass with the statistics of batches; "
    "or exact, but blended with the statistics that are there.",
)
@click.option("--prior-samples", type=click.IntRange(min=1), help="How many samples those count as (blend).")
@click.option("--min-samples", type=click.IntRange(min=1), help="Fail with fewer.")
@click.option(
    "--max-standard-error",
    type=Positive(),
    help="Fail if a mean (in standard deviations) or a variance (relative) is less certain.",
)
@click.option(
    "--shared",
    type=click.Choice(["refuse", "split"]),
    default="refuse",
    show_default=True,
    help="BatchNormalizations with all parameters in common: give each statistics of its own, or refuse.",
)
@click.option(
    "--cache",
    type=click.Choice(["auto", "ram", "disk", "none"]),
    default="auto",
    show_default=True,
    help="Where values between levels are kept; with none, each level starts from the inputs.",
)
@click.option("--resume", metavar="FILE", type=click.Path(), help="Remember the levels that are done here.")
@click.option("--inline-functions", is_flag=True, help="Inline local functions first.")
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--dry-run", is_flag=True, help="Do everything, but write nothing.")
@click.option("-v", "--verbose", count=True, help="Report every layer; -vv: tracebacks as well.")
@click.option("-q", "--quiet", is_flag=True, help="No report.")
@report_options
def recalibrate(source: str, target: str | None, **how: Any) -> None:
    """Give the BatchNormalizations of MODEL the statistics of DATA.

    MODEL is an ONNX model. The result depends on neither order nor batches of the data, and every running
    mean and variance in it is what really comes in. In several processes: torchrun -m bnfold recalibrate ...
    """
    to_stdout = _goes_to_stdout(how, target, source)
    with reporting(how, source, target, how["data"], how["resume"], err=to_stdout) as out:
        if is_torch(source):
            raise click.UsageError(
                f"{source} is a PyTorch model: export it first (bnfold export --no-fold), or use "
                "bnfold.recalibrate_module"
            )
        images, reading = _taken(how, IMAGES), _given(_taken(how, READING))
        _need_pipe(to_stdout)
        with interrupts_later():
            postpone("sympy")
            work = bnfold.recalibrate
        with count_bar("Recalibrating") as progress:
            out.add(work(source, target, images=_images(images), progress=progress, **reading, **how))


@main.command()
@click.argument("sources", metavar="[MODEL]...", nargs=-1, type=click.Path(allow_dash=True))
@click.option(
    "--fail-on",
    multiple=True,
    type=click.Choice(["foldable"]),
    help="Exit with 1 if a BatchNormalization is left that could be folded.",
)
@click.option("-q", "--quiet", is_flag=True, help="No report; the exit code tells.")
@fold_options
@report_options
@torch_options
def inspect(sources: tuple[str, ...], fail_on: tuple[str, ...], **how: Any) -> None:
    """Show which BatchNormalizations would fold.

    Also what is stored in each, and why those that stay do. Nothing is written. MODEL is an ONNX model, or a
    PyTorch model as for `export`.
    """
    with reporting(how, _title(sources[0] if sources else None, how), *sources[1:], fail_on=fail_on) as out:
        if len(sources) < 2:
            _inspect(out, sources[0] if sources else None, fail_on, **how)
        else:
            for source in sources:
                with out.one_of_many(source):
                    _inspect(out, source, fail_on, **how)


def _inspect(out: Reporting, source: str | None, fail_on: tuple[str, ...], **how: Any) -> None:
    loading, exporting = _taken(how, LOADING), _taken(how, EXPORTING)
    if _is_torch(source, loading | exporting):
        _need_none(_taken(how, OF_ONNX), OF_ONNX)
        loaded = _load(source, loading)
        report = bnfold.inspect_module(loaded, only=how["only"], changes=out.pictured, **exporting)
    else:
        assert source is not None
        with interrupts_later():
            postpone("sympy")
            work = bnfold.inspect
        report = work(source, changes=out.pictured, **how)
    unwanted = len(report.foldable) if fail_on else 0
    out.add(report, 1 if unwanted else 0)
    if unwanted:
        from ..render.page import called

        say("error", f"{called(report.source)}: {unwanted} could be folded, and --fail-on foldable was given")


@main.command()
@source_argument
@output_option(".onnx")
@click.option("--no-fold", "fold", flag_value=False, default=True, help="Export only.")
@click.option(
    "--verify",
    type=click.Choice(["full", "fast", "none"]),
    default="full",
    show_default=True,
    help="Compare with the module in PyTorch and with the unfolded export in float64 (fast), and in "
    "onnxruntime (full).",
)
@writing_options
@click.option("-v", "--verbose", count=True, help="Report every decision; -vv: tracebacks as well.")
@click.option(
    "--only",
    type=click.Choice(["batchnorm"]),
    help="Fold no multiplication or addition that does not belong to a BatchNormalization.",
)
@report_options
@torch_options
def export(source: str | None, target: str | None, **how: Any) -> None:
    """Export the PyTorch model MODEL to ONNX, fold and verify it.

    MODEL is an exported program (.pt2), or the weights (.safetensors, .pt, .pth) of what --model makes, or
    TorchScript. It is exported in evaluation mode.
    """
    with reporting(how, _title(source, how), target, err=_goes_to_stdout(how, target)) as out:
        loading = _taken(how, LOADING)
        if source is None and loading["factory"] is None:
            raise click.UsageError("Missing argument 'MODEL'")
        if source is not None and source.endswith(".onnx"):
            raise click.UsageError(f"{source} is an ONNX model already; `bnfold optimize` takes those")
        _export(out, source, loading, _beside(source, loading, ".onnx") if target is None else target, **how)


@main.command()
@click.argument("reference", metavar="REFERENCE", type=click.Path())
@click.argument("candidate", metavar="CANDIDATE", type=click.Path())
@click.option(
    "--tolerance",
    type=Positive(),
    default=4.0,
    show_default=True,
    help="How many times the reference's own rounding noise an error may be.",
)
@click.option(
    "--rtol", multiple=True, type=Bound(), help="Judge outputs by a relative limit instead; one, or all."
)
@click.option(
    "--atol", multiple=True, type=Bound(), help="Judge outputs by an absolute limit instead; one, or all."
)
@click.option(
    "--inputs",
    type=click.Path(),
    help="What to feed: .npz, .npy, a folder of them, or ONNX test data.  [default: drawn at random]",
)
@click.option(
    "--shape", "sizes", multiple=True, type=Size(), help="Size of a free dimension; INPUT[AXIS] if nameless."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of all random draws.")
@click.option("--outputs-only", is_flag=True, help="Equal names of inner tensors need not mean equal values.")
@click.option("--no-runtime", is_flag=True, help="Do not ask onnxruntime.")
@click.option("--provider", default="CPUExecutionProvider", show_default=True, help="Of onnxruntime.")
@click.option(
    "--timeout",
    type=Positive(1e6),
    default=300.0,
    show_default=True,
    help="Seconds that onnxruntime may take for one load or run.",
)
@click.option("-v", "--verbose", count=True, help="Report every tensor; -vv: tracebacks as well.")
@click.option("-q", "--quiet", is_flag=True, help="No report; the exit code tells.")
@report_options
def verify(
    reference: str,
    candidate: str,
    rtol: tuple[tuple[str, float], ...],
    atol: tuple[tuple[str, float], ...],
    sizes: tuple[tuple[str, int], ...],
    outputs_only: bool,
    no_runtime: bool,
    **how: Any,
) -> None:
    """Prove that CANDIDATE is the same function as REFERENCE, or find where it is not.

    Both are run in float64 and compared at every tensor that they name alike; then in onnxruntime.
    """
    with reporting(how, candidate, reference, how["inputs"]) as out:
        with interrupts_later():
            postpone("sympy")
            work = bnfold.verify
        relative, absolute = dict(rtol), dict(atol)
        limits = {
            name: bnfold.Limit(*(given.get(name, given.get("", 0.0)) for given in (relative, absolute)))
            for name in relative | absolute
        }
        with progress_bar("Verifying") as progress:
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
        out.add(report, _VERDICTS[report.verdict])


@main.command()
@click.argument("code", metavar="[CODE]", required=False, type=Codes([str(r) for r in bnfold.Reason]))
def explain(code: str | None) -> None:
    """Explain the reason CODE, or list all of them."""
    from ..render.text import explained, reasons

    text = "\n\n".join(explained(reason, page()) for reason in bnfold.Reason if reason == code)
    write(text or reasons(page()))


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
    _need_none(options, LOADING | EXPORTING, f"is for PyTorch models, and {source} is none")
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
    if not Path(source).name:
        raise click.UsageError(f"'{source}' names no file")
    return str(Path(source).with_name(f"{Path(source).stem}{suffix}"))


def _load(source: str | None, loading: Mapping[str, Any]) -> Any:
    with interrupts_later():  # torch is imported here
        load = bnfold.load_torch
    with redirect_stdout(sys.stderr):  # what a user's function prints is no data
        return load(source, **loading)


def _export(out: Reporting, source: str | None, loading: Mapping[str, Any], target: str, **how: Any) -> None:
    to_stdout = _goes_to_stdout(how, target)
    _need_pipe(to_stdout)
    if not (to_stdout or how["dry_run"] or how["force"]) and os.path.lexists(target):
        raise bnfold.OutputError(f"{target}: exists already; choose another name, or pass --force")
    loaded = _load(source, loading)
    with progress_bar("Exporting") as progress:
        out.add(bnfold.export(loaded, target, changes=out.pictured, progress=progress, **how))


# Data


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were."""
    return {name: value for name, value in options.items() if value is not None}


def _images(options: Mapping[str, Any]) -> bnfold.ImageOptions | None:
    """What was said about images; None if nothing was."""
    return bnfold.ImageOptions(**options) if _given(options) else None


# Streams


def _title(source: str | None, how: Mapping[str, Any]) -> str | None:
    """What the user calls the model: its file, or the function that makes it."""
    return source if source is not None else how["factory"]


def _goes_to_stdout(how: Mapping[str, Any], target: str | None, source: str | None = None) -> bool:
    """Whether the model does; without a target, if it also comes from a stream."""
    return not how["dry_run"] and (source if target is None else target) == STREAM


def _need_pipe(to_stdout: bool) -> None:
    """Refuse a standard output that is closed or a terminal, if the model goes there."""
    if to_stdout and is_closed(sys.stdout):
        raise click.UsageError("the model would go to the standard output, which is closed")
    if to_stdout and sys.stdout.isatty():
        raise click.UsageError("the model would go to the terminal; redirect it, or name a file with -o")
