"""Are two models one function, where one of them at least is a PyTorch module?

As in `bnfold.verify`, the error of the candidate is measured by how far the reference itself moves when its
constants do, each by at most the unit roundoff of its type. Modules are compared in evaluation mode, as
copies, at what they return; what inside them is called alike need not be alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils import _pytree as pytree

from ..algebra_gate import blame
from ..errors import InputError
from ..evaluate import EvaluationError, Missing, Program
from ..feeds import Binding, Feed, Unfeedable, bindings
from ..given import given
from ..measure import Base, Tally, beyond, metrics
from ..nudge import Nudge
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
from .against import OWN_TOLERANCE, TOLERANCE, noises, tensor_of
from .equal import Run
from .failure import RAISED, told
from .inputs import Input, bind
from .outputs import called
from .quiet import quiet
from .wide import Wide, is_double

Array = NDArray[Any]
Values = Mapping[str, Array | Missing]
Model: TypeAlias = "nn.Module | Path"

_ROLES = "reference", "candidate"
_DRAWS = 8
_SEED = 0
# Batches and distributions of the feeds that are drawn.
_BATCHES, _OFFSETS = (1, 3, 3, 1), (0, 2, 1, 0)
# In float64, unless the code insists on its own types; without hooks, unless it needs what they keep.
_WAYS = [(wide, hooks) for hooks in (False, True) for wide in (True, False)]


class _Raises(Exception):
    """A model does not take what it is fed."""


class _Unlike(Exception):
    """The candidate is another function, whatever the numbers."""


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
        return pair.report([Feed({"": inputs}, "the inputs that were given")])


class _Side(Protocol):
    """A model that can be run."""

    def values(self, feed: Feed) -> Values:
        """Its outputs, in order."""

    def nudged(self, feed: Feed, number: int, k: int) -> Values:
        """The same for draw `k` of its constants on the feed of that number."""


class _OnnxSide:
    def __init__(self, program: Program) -> None:
        self._program = program
        self._nudge = Nudge(program.model)

    def values(self, feed: Feed) -> Values:
        return self._outputs(feed, None)

    def nudged(self, feed: Feed, number: int, k: int) -> Values:
        return self._outputs(feed, self._nudge.draw(_SEED, number, k))

    def _outputs(self, feed: Feed, change: Any) -> Values:
        try:
            found = dict(self._program.run(feed.arrays, change=change))
        except EvaluationError as error:
            raise _Raises(str(error)) from error
        return {name: found[name] for name in self._program.outputs}


class _ModuleSide:
    """A module.

    Args:
        module: It stays as it is.
        wide: Whether it is run in float64.
        hooks: Whether hooks run.
        examples: Makes of a feed what the module is called with.
    """

    def __init__(self, module: nn.Module, wide: bool, hooks: bool, examples: Callable[[Feed], Any]) -> None:
        double = is_double(module)
        arithmetic = partial(Wide, rounded=not double, double=double)
        how = (torch.float64, hooks, arithmetic) if wide else (None, hooks)
        self._make = partial(Run, module, *how)
        self._run = self._make()
        self._moved: Run | None = None  # its constants are nudged
        self._examples = examples

    def values(self, feed: Feed) -> Values:
        return self._outputs(lambda: self._run.results(self._examples(feed)))

    def nudged(self, feed: Feed, number: int, k: int) -> Values:
        moved = self._moved = self._moved or self._make()
        return self._outputs(lambda: moved.nudged(self._examples(feed), number * _DRAWS + k))

    def _outputs(self, run: Callable[[], Any]) -> Values:
        try:
            with quiet():
                results = run()
        except RAISED as error:  # a module may raise anything
            raise _Raises(f"{type(error).__name__}: {told(error)}") from error
        leaves = [leaf for leaf in pytree.tree_leaves(results) if leaf is not None]
        return {name: _array(leaf) for name, leaf in zip(called(results), leaves, strict=True)}


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
        self._calls = {id(m): _caller(m, self._program) for m in modules}

    def report(self, feeds: Sequence[Feed] | None) -> VerifyReport:
        """Compare on these feeds, or on such as are drawn."""
        refused, fails = "", ""
        for wide, hooks in _WAYS:
            reference, candidate = (self._side(model, wide, hooks) for model in self._models)
            tolerance = self._tolerance * (1.0 if wide else OWN_TOLERANCE / TOLERANCE)
            try:
                usable = self._drawn(reference, candidate) if feeds is None else feeds
                self._walk(reference, candidate, usable, "" if wide else ", the module in its own types")
                return self._weighed(tolerance)
            except _Raises as error:
                refused = refused or str(error)
            except _Unlike as error:
                fails = fails or str(error)
            except (Unfeedable, MemoryError) as error:
                refused = refused or str(error)
                break
        if fails:
            return self._verdict(Verdict.FAIL, fails, self._tolerance)
        if feeds is not None:
            raise InputError(f"{self._told[0]} does not take the inputs: {refused}")
        told = f"nothing was compared: {self._told[0]} cannot be evaluated: {refused}"
        return self._verdict(Verdict.UNDECIDED, told, self._tolerance)

    def _side(self, model: Model, wide: bool, hooks: bool) -> _Side:
        if isinstance(model, nn.Module):
            return _ModuleSide(model, wide, hooks, self._calls[id(model)])
        assert self._program is not None
        return _OnnxSide(self._program)

    def _drawn(self, reference: _Side, candidate: _Side) -> Iterator[Feed]:
        """Feeds of the first sizes at which the reference runs, and the candidate too if it does at any."""
        assert self._program is not None
        failures: list[Exception] = []
        for binding in bindings(self._program.model):
            first = _draw(binding, 0)
            try:
                reference.values(first)
                candidate_runs = self._try(candidate, first)
            except _Raises as error:
                failures.append(error)
                continue
            if candidate_runs is not None:
                failures.insert(0, candidate_runs)
                continue
            yield first
            other = binding.resized() or binding
            yield from (_draw(b, i) for i, b in enumerate((other, other, binding), 1))
            return
        raise failures[0] if failures else _Raises("no sizes were found that it can be fed")

    def _try(self, candidate: _Side, feed: Feed) -> _Unlike | None:
        try:
            candidate.values(feed)
        except _Raises as error:
            return _Unlike(f"{self._told[1]} cannot be run where {self._told[0]} can: {error}")
        return None

    def _walk(self, reference: _Side, candidate: _Side, feeds: Any, note: str) -> None:
        """Compare on every feed; the reference has to bear the first at least."""
        self._feeds.clear()
        self._found.clear()
        for number, feed in enumerate(feeds):
            try:
                ours = reference.values(feed)
            except _Raises:
                if number:
                    continue
                raise
            if self._fed is not None:
                self._fed(feed)
            self._feeds.append(feed.description + note)
            if failure := self._try(candidate, feed):
                raise failure
            theirs = self._matched(ours, candidate.values(feed))
            moved = [reference.nudged(feed, number, k) for k in range(_DRAWS)]
            for name, value in ours.items():
                self._judge(name, value, theirs[name], [run[name] for run in moved])

    def _matched(self, ours: Values, theirs: Values) -> Values:
        """The candidate's outputs by the names of the reference's: those of two modules have to be the same,
        those of a module and an ONNX model go by their order."""
        same = list(ours) == list(theirs) if self._program is None else len(ours) == len(theirs)
        if not same:
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
        if not base.exact and theirs.dtype.kind == "f" and found.metrics is None:
            found.metrics = metrics(theirs, ours, self._dtype)

    def _weighed(self, tolerance: float) -> VerifyReport:
        checks = [self._check(name, found, tolerance) for name, found in self._found.items()]
        if wrong := [c.check for c in checks if c.check is not None and not c.check.passed]:
            return self._verdict(Verdict.FAIL, blame(wrong[0], tolerance), tolerance, checks)
        if missing := [c for c in checks if not c.decided]:
            told = f"output '{missing[0].name}': {missing[0].missing}"
            return self._verdict(Verdict.UNDECIDED, told, tolerance, checks)
        if not any(found.tally.size.get("") for found in self._found.values()):
            told = "nothing was compared: no output holds a finite number other than 0"
            return self._verdict(Verdict.UNDECIDED, told, tolerance, checks)
        return self._verdict(Verdict.PASS, "", tolerance, checks)

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
            draws=_DRAWS * len(self._feeds),
            feeds=feeds,
            borrowed=() if self._program is None else self._program.borrowed,
            message=message,
        )
        return VerifyReport(*self._names, verdict, tolerance, _SEED, (), algebra, message=message)


def _caller(module: nn.Module, program: Program | None) -> Callable[[Feed], Any]:
    """What makes of a feed the arguments of a module: by name where the names of the ONNX model's inputs are
    those of its parameters, else by position."""
    if program is None:
        return lambda feed: feed.arrays[""]
    types = {v.name: v.type.tensor_type.elem_type for v in program.inputs}
    dtypes = {name: onnx.helper.tensor_dtype_to_np_dtype(code).name for name, code in types.items()}
    inputs = [Input(name, dtype, ()) for name, dtype in dtypes.items()]
    call = bind(type(module).__name__, inputs, inspect.signature(module.forward))
    device = next((p.device for p in module.parameters()), torch.device("cpu"))

    def examples(feed: Feed) -> Any:
        values = [tensor_of(feed.arrays[i.name], wide=False).to(device) for i in call.inputs]
        return (
            tuple(values)
            if call.positional == len(values)
            else dict(zip(call.parameters, values, strict=True))
        )

    return examples


def _draw(binding: Binding, i: int) -> Feed:
    batch, offset = _BATCHES[i], _OFFSETS[i]
    arrays = binding.feed(np.random.default_rng([_SEED, i]), batch, offset)
    return Feed(arrays, binding.describe(batch, offset))


def _array(leaf: Any) -> Array | Missing:
    """What a module returns, as a number or an array of them."""
    if isinstance(leaf, bool | int | float):
        return np.asarray(leaf)
    if not isinstance(leaf, torch.Tensor) or leaf.layout is not torch.strided or leaf.is_quantized:
        return Missing(f"it is a {type(leaf).__name__}, which is not compared")
    leaf = leaf.detach().resolve_conj().resolve_neg().cpu()
    leaf = torch.view_as_real(leaf) if leaf.is_complex() else leaf
    return np.asarray((leaf.to(torch.float64) if leaf.is_floating_point() else leaf).numpy())


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
