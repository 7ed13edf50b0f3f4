"""Re-estimates the running statistics of an ONNX model from data, and writes the model that has them.

The model runs in onnxruntime, in inference mode and with its optimizations off, so that what it computes for
a sample is the same wherever the graph is cut. Nothing is written before the finished model has been shown
to have the statistics that it stores.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx
import onnx_ir as ir

from .data import Data, check, open_data
from .errors import InputError, NotCalibrated
from .estimate import Estimator
from .feeds import Input, inputs_of
from .fold import inline
from .images import ImageOptions
from .journal import Journal
from .model import is_trainable, load, stage, to_bytes
from .network import Cache, OnnxNetwork
from .places import STREAM, beside, copy, need_free, scratch, streamed, title, write_out
from .ranks import Alone, Ranks
from .recalibration import Method, RecalibrateReport
from .running import RunningStatistics
from .samples import Rows, Selection
from .session import Session
from .stages import Stages
from .sweep import Gate, Sweep


def recalibrate(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    data: str | os.PathLike[str] | Iterable[Any] | Callable[[], Iterable[Any]],
    images: ImageOptions | None = None,
    sample: Literal["auto", "row", "feed"] = "auto",
    limit: int | None = None,
    shuffle_seed: int | None = None,
    method: Literal["exact", "onepass", "blend"] = "exact",
    prior_samples: int | None = None,
    min_samples: int | None = None,
    max_standard_error: float | None = None,
    shared: Literal["refuse", "split"] = "refuse",
    cache: Literal["auto", "ram", "disk", "none"] = "auto",
    resume: str | os.PathLike[str] | None = None,
    inline_functions: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> RecalibrateReport:
    """Give every BatchNormalization of a model file the mean and population variance of what comes in.

    The result is a function of the model, of onnxruntime, and of the multiset of samples: neither their order
    nor the batches in which they come matter, to the last bit. Started by `torchrun`, processes share the
    data; the first one writes.

    Args:
        source: The model; "-" is the standard input. Those of its BatchNormalizations that are in training
            mode are in inference mode afterwards.
        target: Where the result goes; "-" is the standard output. None means `<stem>.recalibrated.onnx`
            beside the source, or the standard output for a source "-".
        data: A path or `package.module:name`, see `data.open_data`; or batches, see `data.check`. They are
            read several times.
        images: For a folder of images, what the model does not tell.
        sample: What a sample is: one index of axis 0 of all inputs that have a batch axis ("row"), or all of
            a file or batch ("feed"). "auto" is "row", if rows have no influence on each other.
        limit: Use the first so many samples.
        shuffle_seed: Draw those at random instead.
        method: "exact" goes level by level, "onepass" uses the statistics of batches (PreciseBN), "blend"
            is exact and lets the statistics that are there count as `prior_samples` samples.
        prior_samples: For "blend" only, at least 1.
        min_samples: Fail with fewer.
        max_standard_error: Fail if a mean, in standard deviations, or a variance, relative, is less certain.
        shared: What to do with BatchNormalizations that have all their parameters in common (a module that
            is used twice): refuse, or give each statistics of its own.
        cache: Where the values between levels are kept: in memory, in temporary files, or nowhere, so that
            each level starts from the inputs. "auto" chooses by size.
        resume: A file that remembers the levels that are done. If it is there, they are not done again; it
            is removed at the end.
        inline_functions: Inline local functions first: statistics inside cannot be measured.
        force: Whether a file that is there may be replaced.
        dry_run: Do everything but write the result.
        progress: Called with how many sample runs are done, and how many there will be.

    Raises:
        InputError: The source or the data cannot be used.
        OutputError: The target exists and `force` is not given, or it or the cache cannot be written.
        NotCalibrated: A gate is not passed, or the result does not have the statistics it stores. Nothing
            was written.
    """
    origin = os.fspath(source)
    goal = beside(origin, ".recalibrated.onnx") if target is None else os.fspath(target)
    estimator = Estimator.of(Method(method), prior_samples)
    if not dry_run:
        need_free(goal, force=force)
    _need_apart(origin, goal, data, resume)
    with scratch() as folder, _joined() as ranks, Session() as session, _naming(origin):
        content = streamed(origin)
        path = Path(origin) if content is None else copy(content, folder / "original.onnx")
        model = load(origin if content is None else io.BytesIO(content))
        if is_trainable(model):
            raise InputError("has training_info, whose graphs use statistics by name; remove it first")
        if inline_functions and model.functions:
            inline(model)
            path = copy(to_bytes(model), folder / "inlined.onnx")
        stages = Stages(onnx.load(path, load_external_data=False))
        running = RunningStatistics(model, stages, shared=shared)
        inputs = inputs_of(stages.model)
        rows = Rows((), 1) if sample == "feed" else Rows.of(inputs)
        network = OnnxNetwork(
            stages,
            path.parent,
            running.layers,
            _opened(data, inputs, rows, images),
            rows,
            sample == "row",
            Selection(limit, shuffle_seed, ranks.rank, ranks.size),
            session,
            Cache(cache),
            folder,
            passes=1 + (1 if method == "onepass" else len(stages.levels)),
            progress=progress,
            notes=[*_noted(running, stages)],
        )
        _need_alike(
            ranks, lambda: (network.key(method, prior_samples), network.data.count, limit, shuffle_seed)
        )
        network.prepare(ranks)
        gate = Gate(min_samples, max_standard_error)
        while True:
            journal = Journal.of_first(resume, lambda: network.key(method, prior_samples), ranks)
            outcome = Sweep(network, Method(method), estimator, gate, ranks, journal).run()
            if outcome.steady or not network.go_alone(outcome.gap):
                break
            if journal is not None:
                journal.remove()
        if not outcome.steady:
            network.notes.append("onnxruntime does not compute the same bits again here")
        report = RecalibrateReport(
            source=origin,
            target=None,
            method=Method(method),
            variance=estimator.variance,
            samples=outcome.samples,
            micro_batch=network.micro_batch,
            levels=len(stages.levels),
            cache=network.cache,
            processes=ranks.size,
            layers=outcome.layers,
            notes=tuple(network.notes),
        )
        if outcome.failure:
            raise NotCalibrated(f"{outcome.failure}; nothing was written", report)
        running.store(network.statistics)
        ranks.together(lambda: None if dry_run or ranks.rank else _write(model, goal, force))
        if journal is not None:
            journal.remove()
        return report if dry_run else replace(report, target=goal)


def _write(model: ir.Model, goal: str, force: bool) -> None:
    if goal == STREAM:
        write_out(to_bytes(model))
        return
    with stage(model, goal, force=force) as staged:
        staged.commit()


def _noted(running: RunningStatistics, stages: Stages) -> Iterator[str]:
    """What the user should know of the model."""
    if running.training:
        yield f"in training mode before, in inference mode now: {_some(running.training)}"
    if stages.active_dropouts:
        yield (
            "off while measuring, but perhaps in training mode, in the result as before: Dropout "
            f"{_some(stages.active_dropouts)}"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


@contextmanager
def _naming(origin: str) -> Iterator[None]:
    """Errors about the model or its data name the model, unless they begin with its name."""
    try:
        yield
    except (InputError, NotCalibrated) as error:
        if str(error).startswith((origin, title(origin))):
            raise
        error.args = (f"{title(origin)}: {error}",)
        raise


def _need_alike(ranks: Ranks, told: Callable[[], object]) -> None:
    """Refuse processes that do not work on the same."""
    if ranks.size > 1 and len(set(ranks.together(told))) > 1:
        raise InputError(
            "the processes do not have the same model, options, number of samples and onnxruntime; start all "
            "with the same command, on the same files"
        )


def _need_apart(origin: str, goal: str, data: Any, resume: str | os.PathLike[str] | None) -> None:
    """Refuse files that would take each other's place."""
    source, target = os.path.realpath(origin), os.path.realpath(goal)
    if resume is not None and os.path.realpath(resume) in (source, target):
        raise InputError(f"{os.fspath(resume)}: cannot be both a model and the journal of --resume")
    if isinstance(data, str | os.PathLike):
        if not os.fspath(data):
            raise InputError("the name of the calibration data is empty; name a file or folder")
        if goal != STREAM and os.path.realpath(data) == target:
            raise InputError(f"{goal}: holds the calibration data, which the result would replace")


def _opened(data: Any, inputs: Sequence[Input], rows: Rows, images: ImageOptions | None) -> Data:
    if isinstance(data, str | os.PathLike):
        return open_data(data, inputs, rows=rows, images=images)
    return check(data, inputs, "the calibration data", rows=rows)


def _joined() -> AbstractContextManager[Ranks]:
    """The processes that torchrun started, or this one alone."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from .pytorch.ranks import joined

        found: AbstractContextManager[Ranks] = joined()
        return found
    return nullcontext(Alone())
