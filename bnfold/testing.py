"""`assert_equivalent`: in a test, that two models are the same function.

It needs no pytest. A test runner that wants to know of each comparison sets `watcher`, as the plugin of
this package does (`pytest_plugin`).
"""

from __future__ import annotations

import math
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from .errors import BnfoldError, InputError
from .render.assertion import asserted
from .render.page import printable
from .verification import Limit, Verdict, VerifyReport

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from .feeds import Feed

    Model: TypeAlias = str | os.PathLike[str] | ir.Model | onnx.ModelProto | Any  # or a torch.nn.Module

_TOLERANCE = 4.0
_UNKEPT = (
    "To keep models, inputs and a report: pytest --bnfold-artifacts DIR, or the ini option bnfold_artifacts"
)


class UndecidedError(AssertionError):
    """Nothing could be compared, or not all of it: neither a pass nor a difference."""


class Watcher(Protocol):
    """Whoever wants to know of each comparison."""

    @property
    def keeps(self) -> bool:
        """Whether failures are kept."""

    def folder(self) -> Path:
        """Where this failure is to be kept; another one at each call."""

    def called(self, folder: Path) -> str:
        """How such a folder is called in what people read."""

    def note(self, properties: Mapping[str, str]) -> None:
        """Take down what a comparison has found."""


watcher: Watcher | None = None


def assert_equivalent(
    reference: Model,
    candidate: Model,
    *,
    tolerance: float = _TOLERANCE,
    inputs: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
) -> VerifyReport:
    """Assert that two models are the same function, up to the rounding that any stored model has.

    Args:
        reference: The model that is right: the path of an ONNX file, an `onnx_ir.Model`, an
            `onnx.ModelProto`, or a `torch.nn.Module`, which is compared in evaluation mode.
        candidate: The model to judge, in any of these forms.
        tolerance: How many times the reference's own rounding noise an error may be, see `bnfold.verify`.
        inputs: What to feed. For ONNX models the path of a file or folder as for `bnfold.verify`, arrays by
            name, or a sequence of such mappings; by default drawn at random. For a module and an ONNX model
            also tensors in the order of the ONNX model's inputs. For two modules, which need it, what
            they are called with: a tensor, a tuple of arguments, or a dictionary of named ones.
        rtol: For people who must: a relative limit by which outputs are judged instead.
        atol: The same, absolute. Given one, the other is 0.

    Returns:
        What was found.

    Raises:
        AssertionError: They are not equivalent; the message says where they part.
        UndecidedError: An AssertionError too: there is nothing to tell it by.
        InputError: A model or the inputs cannot be used at all.
    """
    __tracebackhide__ = True
    try:
        tolerance, limit = _limits(tolerance, rtol, atol)
        report, failure = _compared(reference, candidate, inputs, tolerance, limit)
    except Exception as error:
        if watcher is not None:
            watcher.note({"verdict": "error"})
        if isinstance(error, BnfoldError):
            raise error.with_traceback(None) from None
        raise
    if failure is not None:
        raise failure
    return report


def _limits(tolerance: float, rtol: float | None, atol: float | None) -> tuple[float, Limit | None]:
    """The same as plain numbers."""
    tolerance = _number("tolerance", tolerance)
    if tolerance == 0:
        raise InputError("tolerance: 0 is no number of times; give one above 0")
    if rtol is None and atol is None:
        return tolerance, None
    relative, absolute = (
        0.0 if given is None else _number(what, given) for what, given in (("rtol", rtol), ("atol", atol))
    )
    return tolerance, Limit(relative, absolute)


def _number(what: str, given: Any) -> float:
    """Whatever type of number it is."""
    is_number = hasattr(given, "__float__") and not isinstance(given, bool)
    try:
        number = float(given) if is_number else math.nan
    except (TypeError, ValueError, OverflowError, RuntimeError):  # an array of many
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise InputError(f"{what}: {given!r:.100} is no number from 0 on; give a finite one")
    return number


def _compared(
    reference: Model, candidate: Model, inputs: Any, tolerance: float, limit: Limit | None
) -> tuple[VerifyReport, AssertionError | None]:
    watching = watcher  # another thread may end the test meanwhile
    keeps = watching is not None and watching.keeps
    with tempfile.TemporaryDirectory(prefix="bnfold-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        models = _model(reference, folder / "reference.onnx"), _model(candidate, folder / "candidate.onnx")
        feeds = _Feeds(folder / "inputs", wanted=keeps and inputs is None)
        try:
            given = _given(inputs, models, folder / "inputs")
            report = _verify(models, given, tolerance, limit, feeds)
        except InputError as error:
            raise InputError(_without(str(error), folder)) from None
        report = _without(report, folder)
        properties = _properties(report)
        failure = None
        if report.verdict is not Verdict.PASS:
            options = _options(tolerance, limit)
            message = asserted(report)
            where = _look(models, inputs, options, folder)
            if watching is None or not keeps:
                where += [_UNKEPT]
            else:
                used = feeds.evidence(report) if inputs is None else given
                told, kept = _keep(watching, models, used, report, options, message)
                where, properties = [*where, told], properties | kept
            kind = UndecidedError if report.verdict is Verdict.UNDECIDED else AssertionError
            failure = kind("\n".join([message, "", *where]))
        if watching is not None:
            watching.note(properties)
    return report, failure


# What is compared


def _is_module(model: object) -> bool:
    """Whether it is PyTorch's; who has one has imported PyTorch."""
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def _model(model: Model, path: Path) -> Any:
    """A module as it is; what else it may be as a file, written under that path where it is none yet."""
    if _is_module(model):
        return model
    if isinstance(model, str | os.PathLike):
        return Path(model)
    import onnx
    import onnx_ir as ir

    from .model import save

    if isinstance(model, onnx.ModelProto):
        if _keeps_elsewhere(model):
            raise InputError(
                f"the {path.stem} keeps weights in other files, which were not loaded with it: give its "
                "path, or load it with onnx.load(path)"
            )
        if model.ByteSize() < onnx.checker.MAXIMUM_PROTOBUF:
            onnx.save(model, path)
            return path
        model = ir.from_proto(model)
    if not isinstance(model, ir.Model):
        raise InputError(
            f"the {path.stem} is a {type(model).__name__}; give a path, an onnx_ir.Model, an onnx.ModelProto "
            "or a torch.nn.Module"
        )
    save(model, path)
    return path


def _keeps_elsewhere(part: Any) -> bool:
    """Whether data of any tensor in a message of ONNX's are in another file."""
    import onnx

    if isinstance(part, onnx.TensorProto):
        return part.data_location == onnx.TensorProto.EXTERNAL
    messages = [value for field, value in part.ListFields() if field.message_type is not None]
    return any(
        _keeps_elsewhere(inner)
        for value in messages
        for inner in ([value] if hasattr(value, "ListFields") else value)
    )


def _given(inputs: Any, models: tuple[Any, Any], folder: Path) -> Any:
    """What to feed, as a path where an ONNX model takes part."""
    files = [model for model in models if isinstance(model, Path)]
    if inputs is None or not files:
        return inputs
    if isinstance(inputs, str | os.PathLike):
        return Path(inputs)
    from .artifacts import write_feed

    several = isinstance(inputs, list | tuple) and all(isinstance(feed, Mapping) for feed in inputs)
    for i, feed in enumerate(inputs if several else [inputs]):
        by_name = feed if isinstance(feed, Mapping) else _in_order(feed, files[0])
        write_feed(folder / f"{i}.npz", {name: _array(name, value) for name, value in by_name.items()})
    if not folder.is_dir():
        raise InputError("inputs: are empty; leave them out to have some drawn")
    return folder


def _in_order(values: Any, file: Path) -> dict[str, Any]:
    from .evaluate.file import read
    from .feeds import inputs_of

    names = [i.name for i in inputs_of(read(file))]
    values = list(values) if isinstance(values, list | tuple) else [values]
    if len(names) != len(values):
        raise InputError(f"inputs: there are {len(values)}, but the ONNX model has {len(names)}: {names}")
    return dict(zip(names, values, strict=True))


def _array(name: str, value: Any) -> Any:
    import numpy as np

    if hasattr(value, "detach"):  # a tensor of PyTorch; numpy knows no bfloat16
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # lists of lists that are not of one length
        array = np.asarray(None)
    if array.dtype.hasobject or array.dtype.kind in "SU":
        raise InputError(f"inputs: '{name}' is a {type(value).__name__}, no array of numbers")
    return array


class _Feeds:
    """What was fed, on disk rather than in memory: most comparisons pass, and then it is gone.

    Args:
        folder: Where.
        wanted: Whether anybody wants it.
    """

    def __init__(self, folder: Path, *, wanted: bool) -> None:
        self._folder = folder
        self._count = 0
        self.take = self._write if wanted else None

    def _write(self, feed: Feed) -> None:
        from .artifacts import write_feed

        write_feed(self._folder / f"{self._count:03}.npz", feed.arrays)
        self._count += 1

    def evidence(self, report: VerifyReport) -> Path | None:
        """What shows the verdict again: if onnxruntime decided, what it was fed."""
        if report.algebra.verdict is Verdict.PASS:
            for i in range(len(report.algebra.feeds)):
                (self._folder / f"{i:03}.npz").unlink(missing_ok=True)
        return self._folder if self._folder.is_dir() and any(self._folder.iterdir()) else None


def _verify(
    models: tuple[Any, Any], inputs: Any, tolerance: float, limit: Limit | None, feeds: _Feeds
) -> VerifyReport:
    if all(isinstance(model, Path) for model in models):
        from .verify import verify

        limits = None if limit is None else {"": limit}
        return verify(*models, tolerance=tolerance, limits=limits, inputs=inputs, fed=feeds.take)
    from .pytorch.equivalent import compare

    names = [str(model) if isinstance(model, Path) else type(model).__name__ for model in models]
    return compare(
        *models, (names[0], names[1]), inputs=inputs, tolerance=tolerance, limit=limit, fed=feeds.take
    )


def _without(told: Any, folder: Path) -> Any:
    """The same without the name of a folder that is about to vanish."""
    if type(told) is str:  # members of enumerations are strings too
        return told.replace(f"{folder}{os.sep}", "")
    if isinstance(told, tuple):
        return tuple(_without(part, folder) for part in told)
    if is_dataclass(told) and not isinstance(told, type):
        return replace(told, **{f.name: _without(getattr(told, f.name), folder) for f in fields(told)})
    return told


# What is said


def _look(models: tuple[Any, Any], inputs: Any, options: Sequence[str], folder: Path) -> list[str]:
    """The command that repeats it, where it is about files that stay."""
    files = [model for model in models if isinstance(model, Path) and folder not in model.parents]
    feed = isinstance(inputs, str | os.PathLike)
    if len(files) < 2 or (inputs is not None and not feed):
        return []
    more = ["--inputs", str(inputs)] if feed else []
    names = [f".{os.sep}{file}" if str(file).startswith("-") else str(file) for file in files]
    command = ["bnfold", "verify", *names, *more, *options]
    return [f"To look further: {printable(shlex.join(command))}"]


def _options(tolerance: float, limit: Limit | None) -> list[str]:
    options = [] if tolerance == _TOLERANCE else ["--tolerance", f"{tolerance!r}"]
    return options if limit is None else [*options, "--rtol", f"{limit.rtol!r}", "--atol", f"{limit.atol!r}"]


def _properties(report: VerifyReport) -> dict[str, str]:
    checks = [*report.algebra.tensors, *(o.check for o in report.algebra.outputs if o.check is not None)]
    found = {
        "verdict": report.verdict.value,
        "tolerance": f"{report.tolerance:g}",
        "tensors": str(len(checks)),
    }
    if checks:
        worst = max(checks, key=lambda check: check.ratio)
        found |= {"worst_ratio": f"{worst.ratio:.6g}", "worst_tensor": worst.name}
    if report.culprit is not None:
        found |= {"culprit": report.culprit.name, "culprit_node": report.culprit.node}
    if report.message:
        found["message"] = report.message
    if report.runtime is not None and report.runtime.findings:
        found["findings"] = "; ".join(report.runtime.findings)
    return {name: printable(value) for name, value in found.items() if value}


def _keep(
    watching: Watcher,
    models: tuple[Any, Any],
    inputs: Any,
    report: VerifyReport,
    options: Sequence[str],
    message: str,
) -> tuple[str, dict[str, str]]:
    """Keep the evidence; a sentence about it, and properties. Whatever goes wrong, the failure counts."""
    from .artifacts import Evidence, keep

    place, command = watching.folder(), ""
    called = watching.called(place)
    if all(isinstance(model, Path) for model in models):
        feed = [] if inputs is None else ["--inputs", "inputs"]
        command = shlex.join(["bnfold", "verify", "reference.onnx", "candidate.onnx", *feed, *options])
    lost, lacking = keep(Evidence(models, inputs, report, command, message), place)
    properties = {"artifacts": printable(called)} if place.is_dir() else {}
    if lost:
        return printable(f"Not all could be kept in {called}: {'; '.join(lost)}"), properties
    again = f"; there, {command} repeats this" if command else ""
    plain = f"; the report is Markdown: {lacking}" if lacking else ""
    return printable(f"Kept in {called}{again}{plain}"), properties
