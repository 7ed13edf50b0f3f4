"""Re-estimates the running statistics of a module from data.

All work is done on a copy, which shares the module's parameters; the module itself gets its new statistics at
the end, in one go. So whatever interrupts the work, the module is as it was.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
from .arguments import call as call_with
from .arguments import chooser, device_of
from .batches import Batches, Unsplittable, need_batches
from .duplicate import at_rest, duplicate
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
    module = _bare(model)
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            f"{name}: a ScriptModule runs past Python, where nothing can be measured; give the module that "
            "it was made from, or recalibrate its ONNX model"
        )
    for what, given, known in (
        ("method", method, tuple(Method)),
        ("variance", variance, ("population", "sample")),
        ("cache", cache, tuple(_WAYS)),
    ):
        if given not in known:
            raise InputError(f"{what} is {given!r}; known are {', '.join(known)}")
    estimator = Estimator.of(Method(method), prior_samples, variance)
    if micro_batch < 1:
        raise InputError(f"micro_batch is {micro_batch}; give 1 or more")
    need_batches(data)
    norms = find(module, name, leave)
    job = _Job(
        module=module,
        name=name,
        leave=leave,
        data=data,
        arguments=chooser(module) if call is None else _as_it_is,
        call=call_with if call is None else call,
        method=Method(method),
        estimator=estimator,
        gate=Gate(min_samples, max_standard_error),
        micro_batch=micro_batch,
        ranks=Alone() if ranks is None else ranks,
        resume=resume,
        cache=cache,
        progress=progress,
    )
    device = device_of(module)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
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
    micro_batch: int
    ranks: Ranks
    resume: str | os.PathLike[str] | None
    cache: str
    progress: Progress | None

    def run(self) -> tuple[RecalibrateReport, Mapping[int, Statistics]]:
        """Go the fastest way that leads to the end. The first may not: experiments can miss that something
        depends on something else, and a module may keep things between its parts, where another pass
        overwrites them. The certificate tells.
        """
        notes: list[str] = []
        ways = [_Way.BY_LEVEL] if self.method is Method.ONEPASS else list(_WAYS[self.cache])
        rows = self.micro_batch
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
                rows = 1
            else:
                break
        if outcome.failure:
            raise NotCalibrated(f"{self.name}: {outcome.failure}; the module is as it was", report)
        if not outcome.steady:
            report = replace(report, notes=(*report.notes, "torch does not compute the same bits again here"))
        return report, statistics

    def _attempt(
        self, way: _Way, rows: int, notes: list[str]
    ) -> tuple[RecalibrateReport, Mapping[int, Statistics], Outcome]:
        """Go one way, with so many samples in a micro-batch if possible."""
        copy = at_rest(duplicate(self.module, self.name))
        observed = Observed(copy, find(copy, self.name, self.leave), self.call, self.name)
        batches = Batches(self.data, self.arguments, self._rows(observed, rows, notes))
        levels, room = self._plan(observed, batches, way)
        cache: Literal["ram", "none"] = "ram" if way is _Way.STANDING else "none"
        network = ModuleNetwork(observed, batches, levels, cache, room, self.progress)
        journal = Journal.of_first(self.resume, lambda: self._key(batches), self.ranks)
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
        try:
            batch = Batches(self.data, self.arguments, wanted).first()
            if batch is None:
                return None
            return wanted if probe.is_by_sample(observed, batch) else 1
        except (Unsplittable, Failed):
            batch = Batches(self.data, self.arguments, None).first()
            assert batch is not None
            probe.order(observed, batch)
            return _AS_IT_IS

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

    def _key(self, batches: Batches) -> str:
        """What moments depend on besides the data."""
        made_by = (torch.__version__, self.method, self.estimator, batches.rows, sorted(self.leave))
        told = hashlib.blake2b(repr(made_by).encode())
        for path, part in self.module.named_modules():
            told.update(f"{path} {type(part).__qualname__}".encode())
        for path, tensor in (*self.module.named_parameters(), *self.module.named_buffers()):
            told.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}".encode())
            told.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
        return told.hexdigest()


_AS_IT_IS = 0  # rows of a batch that cannot be taken apart


def _bare(model: nn.Module) -> nn.Module:
    """The module inside those that torch puts around one."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # of torch.compile
            model = inner
        else:
            return model


def _as_it_is(batch: Any) -> Any:
    return batch


def _forget(journal: Journal | None) -> None:
    if journal is not None:
        journal.remove()


def _quarter_of_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 4
    return room()
