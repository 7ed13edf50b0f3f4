"""Re-estimates the running statistics of a module from data.

All work is done on a copy, with parameters of its own, since some modules write into theirs as they run. The
module itself gets its new statistics at the end, in one go. So whatever interrupts the work, it is as it was.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from enum import Enum
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import nn

from ..errors import InputError, NotCalibrated
from ..estimate import Estimator, Statistics
from ..feeds import room
from ..journal import Journal
from ..ranks import Alone, Ranks
from ..recalibration import Method, RecalibrateReport
from ..sweep import Gate, Outcome, Sweep
from . import probe
from .apart import Apart, need_apart
from .arguments import call as call_with
from .arguments import chooser, device_of
from .batches import Batches, MicroBatch, Unsplittable, need_batches
from .duplicate import at_rest, cloned, duplicate
from .network import ModuleNetwork, Progress, Room, Unkept
from .norms import Norm, find, put
from .observed import Failed, Observed


def recalibrate_module(
    model: nn.Module,
    data: Iterable[Any],
    *,
    method: Literal["exact", "onepass", "blend"] = "exact",
    variance: Literal["population", "sample"] = "population",
    prior_samples: int | None = None,
    call: Callable[[nn.Module, Any], object] | None = None,
    leave: Collection[str] = (),
    sample: Literal["auto", "row", "batch"] = "auto",
    micro_batch: int = 32,
    min_samples: int | None = None,
    max_standard_error: float | None = None,
    resume: str | os.PathLike[str] | None = None,
    cache: Literal["auto", "ram", "none"] = "auto",
    ranks: Ranks | None = None,
    progress: Progress | None = None,
) -> Recalibration:
    """Give every BatchNormalization of a module the mean and variance of what comes in.

    The result is a function of the module, of torch, of `micro_batch`, and of the multiset of samples:
    neither their order nor the batches in which they come matter, to the last bit. The module runs in
    evaluation mode whatever mode it is in, and keeps that. Frozen BatchNormalizations, whose statistics are
    buffers as well, are recalibrated like others.

    Args:
        model: The module; its buffers are updated where they are. Modules around it that torch made
            (DataParallel, DistributedDataParallel, torch.compile) are looked through.
        data: Batches, read several times: a DataLoader, or a list. They may be tensors, tuples, lists,
            mappings or dataclasses of tensors, whose axis 0 counts samples.
        method: "exact" goes level by level; "onepass" uses the statistics of micro-batches (PreciseBN);
            "blend" is exact and lets the statistics that are there count as `prior_samples` samples.
        variance: What is stored: the variance of the population, by which BatchNormalizations normalize while
            they train, or of the sample, which they store then: n/(n - 1) times as much.
        prior_samples: For "blend" only, at least 1.
        call: Runs a copy of the module on a batch: `call(copy, batch)`. By default the copy gets the entries
            of a mapping that are its parameters, the first part of a tuple or list, or else the batch itself,
            moved to its device.
        leave: Paths of BatchNormalizations whose statistics stay as they are, or of parts that hold them:
            some are frozen on purpose, some are not used in evaluation mode.
        sample: What a sample is: one index of axis 0 ("row"), or a batch as it is ("batch"), on which the
            result depends then. "auto" is "row" if rows have no influence on each other, and "batch" if there
            are none. Rows whose last digits depend on their neighbours are run one by one.
        micro_batch: How many samples run at a time.
        min_samples: Fail with fewer.
        max_standard_error: Fail if a mean, in standard deviations, or a variance, relative, is less certain.
        resume: A file that remembers the levels that are done. If it is there, they are not done again; it is
            removed at the end.
        cache: Whether every micro-batch is kept where it stands, so that all run through the module only
            once ("ram"), or each level starts from the inputs ("none"). "auto" is "ram" up to a quarter of
            the memory.
        ranks: The processes that take part, each with its own share of the data, see `ranks.joined`.
        progress: Called with how often a sample has been looked at, and how often one will be at most; None
            if that is not known yet.

    Returns:
        What was found, and the way back.

    Raises:
        InputError: The module or the data cannot be used. What a loader raises is passed on as it is.
        NotCalibrated: A gate is not passed, or the finished module does not have the statistics that it
            stores. It is as it was.
    """
    module, ranks = _bare(model), Alone() if ranks is None else ranks
    choices = {"method": method, "variance": variance, "cache": cache, "sample": sample}

    def need_usable() -> None:
        _need_known(choices)
        Estimator.of(Method(method), prior_samples, variance)
        if not isinstance(micro_batch, int) or micro_batch < 1:
            raise InputError(f"micro_batch is {micro_batch!r}; give a whole number, 1 or more")
        if isinstance(leave, str):
            raise InputError(f"leave is {leave!r}; give a list of paths")
        need_batches(data)
        _need_module(module)
        find(module, type(module).__name__, leave)

    ranks.together(need_usable)  # if one process refuses, the others are not to wait for it
    norms = find(module, type(module).__name__, leave)
    job = _Job(
        module=module,
        name=type(module).__name__,
        leave=leave,
        data=data,
        arguments=chooser(module) if call is None else _as_it_is,
        call=call_with if call is None else call,
        method=Method(method),
        estimator=Estimator.of(Method(method), prior_samples, variance),
        gate=Gate(min_samples, max_standard_error),
        sample=sample,
        micro_batch=micro_batch,
        ranks=ranks,
        resume=resume,
        cache=cache,
        progress=progress,
    )
    device = device_of(module)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _uncompiled():
        report, statistics = job.run()
    return Recalibration._apply(norms, statistics, report)


class Recalibration:
    """A module that was recalibrated. As a context manager, it undoes that at the end.

    Attributes:
        report: What was found out.
    """

    def __init__(self, report: RecalibrateReport, norms: Sequence[Norm]) -> None:
        self.report = report
        self._before = [(norm, tuple(b.detach().clone() for b in norm.buffers)) for norm in norms]

    @classmethod
    def _apply(cls, norms: Sequence[Norm], new: Mapping[int, Statistics], report: RecalibrateReport) -> Self:
        done = cls(report, norms)
        try:
            for i, norm in enumerate(norms):
                norm.set(new[i])
        except BaseException:
            done.undo()
            raise
        return done

    def undo(self) -> None:
        """Give all normalizations the statistics that they had before, bit for bit."""
        for norm, before in self._before:
            for buffer, old in zip(norm.buffers, before, strict=True):
                put(buffer, old)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


Levels = list[list[int]]


class _Way(Enum):
    """In which order normalizations are measured, and from where. The value is what the report calls it."""

    STANDING = "ram"  # one after the other, all passes standing still meanwhile
    BY_LEVEL = "none"  # level by level, from the inputs
    IN_ORDER = "none, one after the other"  # from the inputs


_WAYS = {"auto": tuple(_Way), "ram": tuple(_Way), "none": (_Way.BY_LEVEL, _Way.IN_ORDER)}


@dataclass(frozen=True, eq=False)
class _Job:
    """What `recalibrate_module` is asked for, checked."""

    module: nn.Module
    name: str
    leave: Collection[str]
    data: Iterable[Any]
    arguments: Callable[[Any], Any]
    call: Callable[[nn.Module, Any], object]
    method: Method
    estimator: Estimator
    gate: Gate
    sample: str
    micro_batch: int
    ranks: Ranks
    resume: str | os.PathLike[str] | None
    cache: str
    progress: Progress | None

    def run(self) -> tuple[RecalibrateReport, Mapping[int, Statistics]]:
        """Go the fastest way that leads to the end. The first may not: experiments can miss that something
        depends on something else, and a module may keep things between its parts, where another pass
        overwrites them. The certificate tells; also that the last digits depend on the neighbours.
        """
        self._need_same_everywhere()
        notes: list[str] = []
        ways, rows = self._ways, self._first_rows
        while True:
            try:
                report, statistics, outcome = self._attempt(ways[0], rows, notes)
            except Unkept as error:
                notes.append(f"{error}; so each level started from the inputs")
                ways.pop(0)
                continue
            if not report.is_exact and len(ways) > 1:
                notes.append(f"{outcome.failure}; so it was done again in another way")
                ways.pop(0)
            elif not outcome.steady and report.micro_batch > 1:
                if outcome.gap > probe.LAST_DIGITS and self.sample != "row":
                    raise InputError(self._mixed)
                ways, rows, notes = self._ways, 1, []
            else:
                break
        if outcome.failure:
            raise NotCalibrated(f"{self.name}: {outcome.failure}; the module is as it was", report)
        if not outcome.steady:
            report = replace(report, notes=(*report.notes, "torch does not compute the same bits again here"))
        return report, statistics

    @property
    def _ways(self) -> list[_Way]:
        return [_Way.BY_LEVEL] if self.method is Method.ONEPASS else list(_WAYS[self.cache])

    @property
    def _first_rows(self) -> int:
        return _AS_IT_IS if self.sample == "batch" else self.micro_batch

    def _attempt(
        self, way: _Way, rows: int, notes: list[str]
    ) -> tuple[RecalibrateReport, Mapping[int, Statistics], Outcome]:
        """Go one way, with so many samples in a micro-batch if possible."""
        copies: list[nn.Module] = []
        self.ranks.together(lambda: copies.append(self._copy()))
        with Apart(self.module, self.name) as apart:
            return self._attempt_on(at_rest(copies[0]), apart, way, rows, notes)

    def _copy(self) -> nn.Module:
        copy = duplicate(self.module, self.name, cloned)
        need_apart(self.module, copy, self.name)
        find(copy, self.name, self.leave)
        return copy

    def _attempt_on(
        self, copy: nn.Module, apart: Apart, way: _Way, rows: int, notes: list[str]
    ) -> tuple[RecalibrateReport, Mapping[int, Statistics], Outcome]:
        norms = find(copy, self.name, self.leave)
        layers = [norm.layer() for norm in norms]
        for norm in norms:
            norm.mend()
        observed = Observed(copy, norms, self.call, self.name, apart)
        batches = self._batches(self._rows(observed, rows, notes))
        levels, room = self._plan(observed, batches, way)
        cache: Literal["ram", "none"] = "ram" if way is _Way.STANDING else "none"
        network = ModuleNetwork(observed, layers, batches, levels, cache, room, self.progress)
        # Only of the first rows: what is tried afterwards begins anew after an interruption
        resume = self.resume if rows == self._first_rows else None
        journal = Journal.of_first(resume, lambda: self._key(batches.rows), self.ranks)
        try:
            outcome = Sweep(network, self.method, self.estimator, self.gate, self.ranks, journal).run()
        except Unkept:
            _forget(journal)  # what it holds may be wrong
            raise
        finally:
            network.close()
        _forget(journal)
        return self._report(outcome, batches, len(levels), way, notes), network.statistics, outcome

    def _report(
        self, outcome: Outcome, batches: Batches, levels: int, way: _Way, notes: Sequence[str]
    ) -> RecalibrateReport:
        return RecalibrateReport(
            source=self.name,
            target=None,
            method=self.method,
            variance=self.estimator.variance,
            samples=outcome.samples,
            micro_batch=batches.rows or 1,
            levels=levels,
            cache=way.value,
            processes=self.ranks.size,
            layers=outcome.layers,
            notes=tuple(dict.fromkeys(notes)),
        )

    def _batches(self, rows: int | None) -> Batches:
        """The data in micro-batches of so many rows. What a user's `call` does not use may well be NaN."""
        return Batches(self.data, self.arguments, rows, all_used=self.call is call_with)

    def _rows(self, observed: Observed, wanted: int, notes: list[str]) -> int | None:
        """How many samples can run together in all processes; None if batches have to be run as they are."""
        found = [r for r in self.ranks.together(lambda: self._own_rows(observed, wanted)) if r is not None]
        if not found:
            raise InputError("the calibration data hold no sample; nothing was changed")
        rows = min(found)
        if rows == _AS_IT_IS:
            notes.append("batches were run as they are, so the result depends on which samples are in which")
            return None
        if rows < self.micro_batch:
            notes.append(
                "samples were run one by one, as what comes into the normalizations depends on their "
                "neighbours in the micro-batch"
            )
        return rows

    def _own_rows(self, observed: Observed, wanted: int) -> int | None:
        """The same of this process; None if it has no data."""
        whole = self._batches(None).first()
        if whole is None:
            return None
        if not wanted:
            return _AS_IT_IS
        try:
            batch = self._batches(wanted).first()
            return None if batch is None else self._rows_of(observed, batch, whole)
        except (Unsplittable, Failed):  # it has no rows; or what seem to be rows are none
            probe.order(observed, whole)
            return _AS_IT_IS

    def _rows_of(self, observed: Observed, batch: MicroBatch, whole: MicroBatch) -> int:
        """How many samples can run together.

        Raises:
            Failed: Rows cannot run, neither together nor one by one.
        """
        runs = False
        with suppress(Failed):
            if batch.rows > 1 and probe.is_by_sample(observed, batch):
                return batch.rows
            runs = batch.rows > 1
        if self.sample == "row":
            probe.order(observed, batch.repeated(1))
            return 1
        try:
            if probe.agree(observed, probe.pooled(observed, whole.one_by_one()), whole):
                return 1
        except Failed:
            if not runs:
                raise
        raise InputError(self._mixed)

    @property
    def _mixed(self) -> str:
        return (
            f"{self.name}: what comes into its BatchNormalizations for a row of the data depends on the "
            "other rows (or on chance); pass sample='batch' if axis 0 does not count samples, so that each "
            "batch is run as it is, or sample='row' to run rows one by one"
        )

    def _plan(self, observed: Observed, batches: Batches, way: _Way) -> tuple[Levels, Room]:
        """Levels, the same in all processes, and the room for passes in this one."""
        if self.method is Method.ONEPASS:
            return [list(range(len(observed.norms)))], Room(None, 0)
        if way is _Way.IN_ORDER:
            pairs = self.ranks.together(lambda: probe.successions(observed, batches))
            return [[i] for i in probe.merged(observed, set().union(*pairs))], Room(None, 0)
        plans = self.ranks.together(lambda: self._own_plan(observed, batches, way))
        levels = next(levels for levels, _ in plans if levels)
        limit = _quarter_of_memory(device_of(self.module)) if self.cache == "auto" else None
        return levels, Room(limit, plans[self.ranks.rank][1])

    def _own_plan(self, observed: Observed, batches: Batches, way: _Way) -> tuple[Levels, int]:
        """What the first micro-batch tells of levels, and of how much a pass holds; nothing without data."""
        batch = batches.first()
        if batch is None:
            return [], 0
        order = probe.order(observed, batch)
        if way is _Way.BY_LEVEL:
            return probe.levels(observed, batch.repeated(1), order), 0
        return [[i] for i in order], probe.held(observed, batch) if self.cache == "auto" else 0

    def _need_same_everywhere(self) -> None:
        """Refuse processes that do not do the same: what they have measured could not be put together."""
        if self.ranks.size == 1:
            return
        how = (self.gate, self.sample, self.cache, self.resume is None)
        told = self.ranks.together(lambda: (self._key(self.micro_batch), how))
        unlike = [rank for rank, one in enumerate(told) if one != told[0]]
        if unlike:
            raise InputError(
                f"{self.name}: rank {unlike[0]} has another module than rank 0, or other options; load the "
                "same weights and buffers in all processes, and give the same options"
            )

    def _key(self, rows: int | None) -> str:
        """What moments depend on besides the data."""
        made_by = (torch.__version__, self.method, self.estimator, rows, sorted(self.leave))
        told = hashlib.blake2b(repr(made_by).encode())
        for path, part in self.module.named_modules():
            told.update(f"{path} {type(part).__qualname__}".encode())
        for path, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            told.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}".encode())
            told.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
        return told.hexdigest()


_AS_IT_IS = 0  # rows of a batch that cannot be taken apart


def _need_known(choices: Mapping[str, str]) -> None:
    known = {
        "method": tuple(Method),
        "variance": ("population", "sample"),
        "cache": tuple(_WAYS),
        "sample": ("auto", "row", "batch"),
    }
    for what, given in choices.items():
        if given not in known[what]:
            raise InputError(f"{what} is {given!r}; known are {', '.join(known[what])}")


def _need_module(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is a {type(model).__name__}; give a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(
            f"{type(model).__name__}: a ScriptModule runs past Python, where nothing can be measured; give "
            "the module that it was made from, or recalibrate its ONNX model"
        )


def _bare(model: nn.Module) -> nn.Module:
    """The module inside those that torch puts around one."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # of torch.compile
            model = inner
        else:
            return model


def _uncompiled() -> AbstractContextManager[object]:
    """What `torch.compile` has made runs as it was written, where it can be measured."""
    if "torch._dynamo" not in sys.modules:  # then there is nothing, and it would take seconds to load
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


def _as_it_is(batch: Any) -> Any:
    return batch


def _forget(journal: Journal | None) -> None:
    if journal is not None:
        journal.remove()


def _quarter_of_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 4
    return room()
