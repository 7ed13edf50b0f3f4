"""Options that several commands have, and the types of their values."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

REPORTS = (".json", ".xml", ".md", ".html")
Command = TypeVar("Command", bound=Callable[..., Any])


class Codes(click.Choice[str]):
    """Reason codes, in any case."""

    def normalize_choice(self, choice: object, ctx: click.Context | None) -> str:
        return str(choice).upper()


class Bound(click.ParamType[tuple[str, float]]):
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


class Positive(click.FloatRange):
    """A number above 0, of which there is a larger one."""

    def __init__(self, largest: float | None = None) -> None:
        super().__init__(min=0, min_open=True, max=largest)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is no number to count with", param, ctx)
        return number


class Pixels(click.ParamType[tuple[int, int]]):
    """HEIGHTxWIDTH, or one number for both."""

    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        sides = str(value).lower().split("x")
        if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
            self.fail(f"'{value}' is no size such as 224 or 224x320", param, ctx)
        return int(sides[0]), int(sides[-1])


class Numbers(click.ParamType[tuple[float, ...]]):
    """Numbers with commas between them."""

    name = "NUMBER,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            numbers = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"'{value}' is not a list of numbers such as 0.5,0.5,0.5", param, ctx)
        if not all(map(math.isfinite, numbers)):
            self.fail(f"'{value}' holds a number that is not finite", param, ctx)
        return numbers


class Size(click.ParamType[tuple[str, int]]):
    """NAME=SIZE."""

    name = "NAME=SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, _, size = value.rpartition("=")
        if not name or not size.isdecimal() or not int(size):
            self.fail(f"'{value}' is not NAME=SIZE with a positive size", param, ctx)
        return name, int(size)


class Arguments(click.ParamType[Any]):
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


class ReportPath(click.Path):
    """A file whose suffix says what kind of report it is."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        suffix = os.path.splitext(value)[1].lower()
        if suffix not in REPORTS:
            self.fail(f"'{value}' ends with none of {', '.join(REPORTS)}", param, ctx)
        return value


def report_options(command: Command) -> Command:
    """The options of everything that reports."""
    for option in (
        click.option(
            "--report",
            "reports",
            multiple=True,
            type=ReportPath(),
            metavar="PATH",
            help="Also write a report: .json, .xml (JUnit), .md or .html; repeatable.",
        ),
        click.option("--json", "as_json", is_flag=True, help="The same as --format json."),
        click.option(
            "--format",
            "form",
            type=click.Choice(["text", "json", "markdown", "junit", "github"]),
            help="How to report; github: annotations, and a summary of the step.  [default: text]",
        ),
    ):
        command = option(command)
    return command


def source_argument(command: Command) -> Command:
    return click.argument("source", metavar="[MODEL]", required=False, type=click.Path(allow_dash=True))(
        command
    )


def output_option(suffix: str) -> Callable[[Command], Command]:
    """Where the result goes; by default, beside the model with another suffix."""
    return click.option(
        "-o",
        "--output",
        "target",
        metavar="FILE",
        type=click.Path(allow_dash=True),
        help=f"Where the result goes.  [default: beside MODEL, as NAME{suffix}]",
    )


# How PyTorch models are opened: parameter of `bnfold.load_torch`, or of what follows it, and option.
LOADING = {
    "factory": "--model",
    "arguments": "--model-args",
    "state_key": "--state-key",
    "pythonpath": "--pythonpath",
    "torchscript": "--torchscript",
    "unsafe_pickle": "--unsafe-pickle",
}
EXPORTING = {"inputs": "--input", "opset": "--opset"}
OF_ONNX = {"freeze_initializers": "--freeze-initializers", "inline_functions": "--inline-functions"}


def torch_options(command: Command) -> Command:
    """The options of everything that takes PyTorch models."""
    for option in (
        click.option("--unsafe-pickle", is_flag=True, help="Load pickled modules, which can run any code."),
        click.option("--torchscript", is_flag=True, help="Load TorchScript."),
        click.option(
            "--pythonpath", multiple=True, metavar="DIR", help="Where --model's package is; repeatable."
        ),
        click.option("--state-key", metavar="KEY", help="Where the state dict is in a checkpoint: a.b.c."),
        click.option(
            "--model-args", "arguments", type=Arguments(), help="What the --model function is called with."
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


def writing_options(command: Command) -> Command:
    """The options of what writes a model."""
    for option in (
        click.option("-q", "--quiet", is_flag=True, help="No report."),
        click.option("--no-verify", "verify", flag_value="none", help="The same as --verify none."),
        click.option("--dry-run", is_flag=True, help="Do everything, but write nothing."),
        click.option("--force", is_flag=True, help="Replace a file that is there."),
    ):
        command = option(command)
    return command


def fold_options(command: Command) -> Command:
    """The options that `optimize` and `inspect` share."""
    for option in (
        click.option("-v", "--verbose", count=True, help="Report every decision; -vv: tracebacks as well."),
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


# How calibration data are read: parameter of `bnfold.recalibrate`, or of `ImageOptions`, and option.
READING = {"sample": "--sample", "limit": "--limit", "shuffle_seed": "--shuffle-seed"}
IMAGES = {"size": "--image-size", "mean": "--mean", "std": "--std", "layout": "--layout"}


def data_options(command: Command) -> Command:
    """The options of everything that takes calibration data."""
    for option in (
        click.option(
            "--layout",
            type=click.Choice(["nchw", "nhwc"]),
            help="Of images.  [default: by the model's shape]",
        ),
        click.option("--std", type=Numbers(), help="What images of 0 to 1 are divided by after that."),
        click.option("--mean", type=Numbers(), help="What is subtracted from images of 0 to 1."),
        click.option(
            "--image-size",
            "size",
            type=Pixels(),
            help="Of images, cut from their middle.  [default: the model's]",
        ),
        click.option(
            "--shuffle-seed", type=click.IntRange(min=0), help="Draw the --limit samples at random."
        ),
        click.option(
            "--sample",
            type=click.Choice(["auto", "row", "feed"]),
            help="What counts as one: a row (an index of axis 0), or all of a file or batch (feed).  "
            "[default: a row, if rows have no influence on each other]",
        ),
        click.option("--limit", type=click.IntRange(min=1), help="Use the first so many samples."),
    ):
        command = option(command)
    return command
