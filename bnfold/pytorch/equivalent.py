"""Are two models one function, where one of them at least is a PyTorch module?

As in `bnfold.verify`, the error of the candidate is measured by how far the reference itself moves when its
constants do, each by at most the unit roundoff of its type. Modules are compared in evaluation mode, as
copies, at what they return; what inside them is called alike need not be alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from ..algebra_gate import blame
from ..errors import InputError
from ..evaluate import Missing, Program
from ..feeds import Binding, Feed, Unfeedable, bindings
from ..given import given
from ..measure import Base, Tally, beyond, metrics
from ..session import Session
from ..verification import (
    AlgebraReport,
    Limit,
    Metrics,
    OutputCheck,
    TensorCheck,
    Verdict,
    VerifyReport,
)
from ..verify import opened
from .against import OWN_TOLERANCE, TOLERANCE, noises
from .outputs import called
from .sides import DRAWS, SEED, Array, HookRaises, ModuleSide, OnnxSide, Raises, Side, Values, caller, is_same

Model: TypeAlias = "nn.Module | Path"

_ROLES = "reference", "candidate"
# Batches and distributions of the feeds that are drawn.
_BATCHES, _OFFSETS = (1, 3, 3, 1), (0, 2, 1, 0)
# By how much two runs of the same may differ, as sums may be taken in another order: in float64, or else.
_STEADY = {True: 2.0**-44, False: 2.0**-20}


class _Unlike(Exception):
    """The candidate is another function, whatever the numbers."""


class _Unsteady(Exception):
    """The reference is no function."""


def compare(
    reference: Model,
    candidate: Model,
    names: tuple[str, str],
    *,
    inputs: Any = None,
    tolerance: float = TOLERANCE,
    limit: Limit | None = None,
    fed: Callable[[Feed], None] | None = None,
) -> VerifyReport:
    """Compare a model with a reference.

    Args:
        reference: The module or ONNX file that is right.
        candidate: The module or ONNX file to judge. One of the two is a module.
        names: What their user calls them.
        inputs: For two modules, what they are called with, as for `fold_module`; for a module and an ONNX
            model, a file or folder as for `verify`, by default drawn at random.
        tolerance: How many times its noise an error may be; where a module does not run in float64, its own
            rounding is allowed for as well, and the report says so.
        limit: A criterion of the caller's own instead.
        fed: Called with every feed of an ONNX model that was compared on.

    Raises:
        InputError: A model cannot be used, or it cannot be called with the inputs.
    """
    with ExitStack() as stack:
        files = [model for model in (reference, candidate) if isinstance(model, Path)]
        program = opened(files[0], Session, stack) if files else None
        pair = _Pair((reference, candidate), program, names, tolerance, limit, fed)
        if program is not None:
            return pair.report(None if inputs is None else list(given(Path(inputs), program.model)))
        if inputs is None:
            raise InputError(f"{names[0]}: two modules need inputs=..., what they are called with")
        if isinstance(inputs, str | os.PathLike | np.ndarray):
            raise InputError(
                "inputs: two modules are called with tensors: one, a tuple of arguments, or a dictionary of "
                f"named ones, not a {type(inputs).__name__}"
            )
        return pair.report([Feed({"": inputs}, "the inputs that were given")])


@dataclass
class _Found:
    """What an output has shown."""

    tally: Tally
    metrics: Metrics | None = None
    beyond: str = ""
    missing: str = ""


class _Pair:
    """Two models to compare."""

    def __init__(
        self,
        models: tuple[Model, Model],
        program: Program | None,
        names: tuple[str, str],
        tolerance: float,
        limit: Limit | None,
        fed: Callable[[Feed], None] | None,
    ) -> None:
        self._models, self._program, self._names = models, program, names
        self._told = tuple(f"the {role} ({name})" for role, name in zip(_ROLES, names, strict=True))
        self._tolerance, self._limit, self._fed = tolerance, limit, fed
        self._feeds: list[str] = []
        self._found: dict[str, _Found] = {}
        modules = [m for m in models if isinstance(m, nn.Module)]
        self._dtype = _dtype(modules[0])
        self._calls = {id(m): caller(m, self._program) for m in modules}

    def report(self, feeds: Sequence[Feed] | None) -> VerifyReport:
        """Compare on these feeds, or on such as are drawn."""
        refused, fails, hooks = "", "", ""
        for wide in (True, False):  # in float64, unless the code insists on its own types
            reference, candidate = (self._side(i, wide) for i in range(2))
            tolerance = self._tolerance * (1.0 if wide else OWN_TOLERANCE / TOLERANCE)
            self._steady = _STEADY[wide]
            try:
                usable = self._drawn(reference, candidate) if feeds is None else feeds
                note = "" if wide else ", the module in its own types"
                self._walk(reference, candidate, usable, note, skips=feeds is None)
                return self._weighed(tolerance, None if feeds is None else feeds[0])
            except HookRaises as error:
                hooks = hooks or str(error)
            except Raises as error:
                refused = refused or str(error)
            except _Unlike as error:
                fails = fails or str(error)
            except _Unsteady as error:
                return self._verdict(Verdict.UNDECIDED, str(error), tolerance)
            except (Unfeedable, MemoryError) as error:
                refused = refused or str(error)
                break
        if fails:
            return self._verdict(Verdict.FAIL, fails, self._tolerance)
        if hooks:
            return self._verdict(Verdict.UNDECIDED, hooks, self._tolerance)
        if feeds is not None:
            raise InputError(f"{self._told[0]} does not take the inputs: {refused}")
        told = f"nothing was compared: {self._told[0]} cannot be evaluated: {refused}"
        return self._verdict(Verdict.UNDECIDED, told, self._tolerance)

    def _side(self, i: int, wide: bool) -> Side:
        model = self._models[i]
        if isinstance(model, nn.Module):
            return ModuleSide(model, self._told[i], wide, self._calls[id(model)])
        assert self._program is not None
        return OnnxSide(self._program)

    def _drawn(self, reference: Side, candidate: Side) -> Iterator[Feed]:
        """Feeds of the first sizes at which the reference runs, and the candidate too if it does at any."""
        assert self._program is not None
        failures: list[Exception] = []
        for binding in bindings(self._program.model):
            first = _draw(binding, 0)
            try:
                reference.values(first)
                self._candidate(candidate, first)
            except HookRaises:
                raise
            except Raises as error:
                failures.append(error)
                continue
            except _Unlike as error:
                failures.insert(0, error)
                continue
            yield first
            other = binding.resized() or binding
            yield from (_draw(b, i) for i, b in enumerate((other, other, binding), 1))
            return
        raise failures[0] if failures else Raises("no sizes were found that it can be fed")

    def _candidate(self, candidate: Side, feed: Feed) -> Values:
        try:
            return candidate.values(feed)
        except HookRaises:
            raise
        except Raises as error:
            raise _Unlike(f"{self._told[1]} cannot be run where {self._told[0]} can: {error}") from error

    def _walk(self, reference: Side, candidate: Side, feeds: Any, note: str, *, skips: bool) -> None:
        """Compare on every feed; where it may skip some, the reference has to bear the first at least."""
        self._feeds.clear()
        self._found.clear()
        for number, feed in enumerate(feeds):
            try:
                ours = reference.values(feed)
            except HookRaises:
                raise
            except Raises as error:
                if number and skips:
                    continue
                where = "" if skips or self._program is None else f"{feed.description}: "
                raise Raises(f"{where}{error}") from error
            if isinstance(reference, ModuleSide) and not is_same(ours, reference.values(feed), self._steady):
                raise _Unsteady(f"{self._told[0]} gives other results for the same inputs, run again")
            if self._fed is not None:
                self._fed(feed)
            self._feeds.append(feed.description + note)
            theirs = self._matched(ours, self._candidate(candidate, feed))
            moved = [reference.nudged(feed, number, k) for k in range(DRAWS)]
            for name, value in ours.items():
                self._judge(name, value, theirs[name], [run[name] for run in moved])

    def _matched(self, ours: Values, theirs: Values) -> Values:
        """The candidate's outputs by the names of the reference's; those of a module and an ONNX model go by
        their order if they are not called alike."""
        names = [list(ours), list(theirs)]
        numbered = self._program is not None and called([0] * len(ours)) in names  # names of our own
        if ours.keys() == theirs.keys() and not numbered:
            return theirs
        if self._program is None or len(ours) != len(theirs):
            has, lacks = (", ".join(map(repr, side)) or "none" for side in (ours, theirs))
            raise _Unlike(f"{self._told[0]} has the outputs {has}; {self._told[1]} has {lacks}")
        return dict(zip(ours, theirs.values(), strict=True))

    def _judge(
        self, name: str, ours: Array | Missing, theirs: Array | Missing, moved: Sequence[Array | Missing]
    ) -> None:
        for either in (ours, theirs):
            if isinstance(either, Missing):
                self._found.setdefault(name, _Found(Tally())).missing = either.reason
                return
        assert not isinstance(ours, Missing) and not isinstance(theirs, Missing)
        base = Base(ours, exact=ours.dtype.kind != "f")
        with np.errstate(all="ignore"):  # an infinity less itself
            tally = Tally.of(theirs, base, list(noises(base, moved)))
        found = self._found.setdefault(name, _Found(Tally(base.exact)))
        found.tally.merge(tally)
        if tally.problem:
            return
        if self._limit is not None and (count := beyond(self._limit, theirs, ours)):
            found.beyond = (
                f"{count} of {ours.size} elements are beyond atol {self._limit.atol:g}, "
                f"rtol {self._limit.rtol:g}"
            )
        if not base.exact and theirs.dtype.kind == "f":
            told = metrics(theirs, ours, self._dtype)
            if found.metrics is None or told.max_abs > found.metrics.max_abs:
                found.metrics = told

    def _weighed(self, tolerance: float, feed: Feed | None) -> VerifyReport:
        checks = [self._check(name, found, tolerance) for name, found in self._found.items()]
        if wrong := [c.check for c in checks if c.check is not None and not c.check.passed]:
            return self._verdict(Verdict.FAIL, blame(wrong[0], tolerance), tolerance, checks)
        if missing := [c for c in checks if not c.decided]:
            told = f"output '{missing[0].name}': {missing[0].missing}"
            return self._verdict(Verdict.UNDECIDED, told, tolerance, checks)
        if not any(found.tally.size.get("") for found in self._found.values()):
            told = "nothing was compared: no output holds a finite number other than 0"
            return self._verdict(Verdict.UNDECIDED, told, tolerance, checks)
        if self._program is None and feed is not None and (told := self._mistyped(feed)):
            return self._verdict(Verdict.FAIL, told, tolerance, checks)
        return self._verdict(Verdict.PASS, "", tolerance, checks)

    def _mistyped(self, feed: Feed) -> str:
        """What two modules return in other types, if both can be run in their own."""
        sides = [self._side(i, wide=False) for i in range(2)]
        try:
            ours, theirs = (side.types(feed) for side in sides if isinstance(side, ModuleSide))
        except Raises:
            return ""
        for name, kind in ours.items():
            if theirs.get(name, kind) != kind:
                return f"output '{name}' of {self._told[1]} is {theirs[name]} instead of {kind}"
        return ""

    def _check(self, name: str, found: _Found, tolerance: float) -> OutputCheck:
        tally = found.tally
        if found.missing or not (tally.finite or tally.problem):
            missing = found.missing or "it holds no finite number"
            return OutputCheck(name, None, missing=missing, decided=False)
        worst, problem = tally.worst(), tally.problem or found.beyond
        passed = not problem and (self._limit is not None or worst.ratio <= tolerance)
        node = None if self._program is None else self._program.producer.get(name)
        made = "" if node is None else f"{node.op_type} '{node.name or name}'"
        check = TensorCheck(
            name, made, worst.error, worst.noise, worst.ratio, worst.part, False, passed, problem
        )
        return OutputCheck(name, check, found.metrics)

    def _verdict(
        self, verdict: Verdict, message: str, tolerance: float, checks: Sequence[OutputCheck] = ()
    ) -> VerifyReport:
        feeds = tuple(dict.fromkeys(self._feeds))
        algebra = AlgebraReport(
            verdict,
            tuple(checks),
            draws=DRAWS * len(self._feeds),
            feeds=feeds,
            borrowed=() if self._program is None else self._program.borrowed,
            message=message,
        )
        return VerifyReport(*self._names, verdict, tolerance, SEED, (), algebra, message=message)


def _draw(binding: Binding, i: int) -> Feed:
    batch, offset = _BATCHES[i], _OFFSETS[i]
    arrays = binding.feed(np.random.default_rng([SEED, i]), batch, offset)
    return Feed(arrays, binding.describe(batch, offset))


def _dtype(module: nn.Module) -> np.dtype[Any]:
    """The type in whose last places differences are told."""
    numbers = (*module.parameters(), *module.buffers())
    kind = next((t.dtype for t in numbers if t.is_floating_point()), torch.float32)
    return np.dtype(str(kind).removeprefix("torch."))  # those of ml_dtypes are known to numpy by now


def save_module(module: nn.Module, path: Path) -> None:
    """Keep a module: its numbers in a .pt file, what it is in a .txt file beside it."""
    torch.save(module.state_dict(), path.with_suffix(".pt"))
    kind = type(module)
    told = f"the state dict of {kind.__module__}.{kind.__qualname__}\n\n{module}\n"
    path.with_suffix(".txt").write_text(told, encoding="utf-8", errors="backslashreplace")


def save_inputs(inputs: Any, path: Path) -> None:
    """Keep what modules are called with."""
    torch.save(pytree.tree_map(lambda v: v.detach() if isinstance(v, torch.Tensor) else v, inputs), path)
