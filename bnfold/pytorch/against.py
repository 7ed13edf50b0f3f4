"""Is the exported model the function that the module is? The module in float64, in torch, is the reference.

The yardstick is that of every comparison here: how far the model's own values move when its floating
constants are moved by what their type cannot hold. Where a module does not run in float64 it is compared in
its own precision, whose rounding then has to be allowed for, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree

from ..errors import InputError
from ..evaluate import EvaluationError, Missing, Program
from ..feeds import Binding, Feed, Unfeedable, bindings
from ..measure import Base, Sums, Tally, Unlike
from ..nudge import Nudge
from ..report import ModuleCheck
from ..verification import TensorCheck, Verdict
from .capture import Captured
from .duplicate import at_rest, cloned, duplicate
from .failure import RAISED, told
from .inputs import DTYPES
from .quiet import quiet
from .wide import is_double, widened

Array = NDArray[Any]

TOLERANCE = 4.0
# Arithmetic in a model's own precision rounds after every operation, while a nudged constant moves once: that
# leads up to some ten times as far.
OWN_TOLERANCE = 64.0
_DRAWS = 8
_BATCHES = (1, 3)
_OFFSETS = (0, 2, 1, 0)
_EXTRA = 4  # feeds that may follow while a ratio is unclear
_HOPELESS = 100.0
_LARGE = 1 << 17  # elements per sample above which two feeds have to do


_ATTRIBUTES = "the numbers in its code are taken as float32, which is all that ONNX attributes hold"


class _Fails(Exception):
    """The module does not take what it is fed."""


class _Precision(Enum):
    """What the module computes in."""

    EXACT = "float64, numbers in its code included"
    DOUBLE = "float64"
    OWN = "its own types"


def compare(
    captured: Captured,
    exported: Program,
    result: Program,
    *,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> ModuleCheck:
    """Compare a model with the module that it was made from.

    Args:
        captured: The module.
        exported: The model as it was exported; its constants are nudged.
        result: The model that is judged.
        seed: Decides feeds and nudges.
        progress: Called with the share of the work that is done, from 0 to 1.

    Raises:
        InputError: The module decides something by sizes that were to be free.
    """
    comparison = _Comparison(captured, exported, result, seed, progress)
    double = is_double(captured.module)
    try:
        found = comparison.run(_Precision.EXACT if double else _Precision.DOUBLE)
        if double and found.verdict is Verdict.FAIL:
            found = replace(comparison.run(_Precision.DOUBLE), note=_ATTRIBUTES)
    except _Fails as failure:
        return comparison.in_own_precision(f"it does not run in double precision ({failure})")
    except (EvaluationError, Unfeedable, MemoryError) as error:
        return ModuleCheck(Verdict.UNDECIDED, "double", TOLERANCE, message=f"nothing was compared: {error}")
    if found.verdict is Verdict.PASS:
        comparison.need_both_sides(_Precision.DOUBLE)
    hopeless = [c for c in found.outputs if c.problem or c.ratio > OWN_TOLERANCE]
    if found.verdict is Verdict.FAIL and hopeless:
        # What is so far off is either wrong in any precision, or another function in double precision only.
        own = comparison.in_own_precision("in double precision it computes something else than in its own")
        return own if own.verdict is Verdict.PASS else found
    return found


@dataclass
class _Comparison:
    captured: Captured
    exported: Program
    result: Program
    seed: int
    progress: Callable[[float], None] | None

    def in_own_precision(self, why: str) -> ModuleCheck:
        """The module as it is, with a tolerance for its own rounding."""
        try:
            found = self.run(_Precision.OWN)
        except (_Fails, EvaluationError, Unfeedable, MemoryError) as error:
            return ModuleCheck(Verdict.UNDECIDED, "own", OWN_TOLERANCE, message=f"{why}; {error}")
        return replace(found, note=why)

    def run(self, precision: _Precision) -> ModuleCheck:
        """Compare on as many feeds as it takes.

        Raises:
            _Fails: The module takes nothing that it is fed.
            EvaluationError: The exported model cannot be evaluated.
        """
        wide = precision is not _Precision.OWN
        tolerance = TOLERANCE if wide else OWN_TOLERANCE
        module, name = self.captured.module, self.captured.name
        run: Callable[..., Any]
        if wide:
            run = widened(module, name, rounded=precision is _Precision.DOUBLE)
        else:  # a run may change buffers, and those of the captured module are the user's
            run = at_rest(duplicate(module, name, cloned))
        fed, tallies, missing = [], dict[str, Tally](), dict[str, str]()
        nudge, draws = Nudge(self.exported.model), 0
        for i, (feed, truth, planned) in enumerate(self._feeds(run, wide)):
            draws = _DRAWS // planned
            for output, shown in self._judge(feed, truth, nudge, i, draws).items():
                if isinstance(shown, str):
                    missing.setdefault(output, shown)
                else:
                    tallies.setdefault(output, Tally(shown.exact)).merge(shown)
            fed.append(feed.description)
            if self.progress is not None:
                self.progress(min((i + 1) / planned, 1.0))
            ratios = [t.worst().ratio for t in tallies.values() if not t.problem]
            unclear = tolerance / 2 < max(ratios, default=0.0) < _HOPELESS * tolerance
            if i + 1 >= planned + (_EXTRA if unclear else 0):
                break
        checks = tuple(self._check(name, tally, tolerance) for name, tally in tallies.items())
        found = ModuleCheck(
            Verdict.PASS,
            "double" if wide else "own",
            tolerance,
            checks,
            draws * len(fed),
            tuple(dict.fromkeys(fed)),
        )
        if wrong := [c for c in checks if not c.passed]:
            worst = max(wrong, key=lambda c: c.ratio)
            why = worst.problem or f"it is {worst.ratio:.3g} times its rounding noise off"
            return replace(found, verdict=Verdict.FAIL, message=f"output '{worst.name}': {why}")
        if missing:
            output, why = next(iter(missing.items()))
            return replace(found, verdict=Verdict.UNDECIDED, message=f"output '{output}': {why}")
        if not any(tally.finite for tally in tallies.values()):
            return replace(
                found,
                verdict=Verdict.UNDECIDED,
                message="nothing was compared: no output holds a finite number",
            )
        return found

    def need_both_sides(self, precision: _Precision) -> None:
        """Refuse a model that is wrong at sizes that were to be free.

        Where the module does not run, or the model cannot be evaluated, nothing is silently wrong.
        """
        run = widened(self.captured.module, self.captured.name, rounded=precision is _Precision.DOUBLE)
        nudge = Nudge(self.exported.model)
        binding = next(iter(bindings(self.exported.model)))
        for other in self.captured.beyond():
            shapes = dict(zip(self.captured.inputs, other.shapes, strict=True))
            inputs = tuple(replace(i, shape=shapes[i.name]) for i in binding.inputs)
            feed = self._fed(replace(binding, inputs=inputs), 0, _BATCHES[0])
            try:
                judged = self._judge(feed, self._truth(run, feed, True), nudge, 0, 2)
            except (_Fails, EvaluationError, MemoryError):
                continue
            tallies = [shown for shown in judged.values() if isinstance(shown, Tally)]
            if any(t.problem or t.worst().ratio > OWN_TOLERANCE for t in tallies):
                given = ", ".join(f"{name}[{','.join(map(str, shape))}]" for name, shape in shapes.items())
                raise InputError(
                    f"{self.captured.name}: the module goes another way where not {other.guard}, and an ONNX "
                    f"model goes one way only: it is wrong for {given}"
                    + (f"; {other.place}" if other.place else "")
                    + "; make the size fixed, or decide by torch.where or torch.cond"
                )

    def _feeds(self, module: Callable[..., Any], wide: bool) -> Iterator[tuple[Feed, list[Array], int]]:
        """Feeds, what the module makes of them, and how many of them are planned; sizes are those that the
        program, the model and the module take."""
        admitted = self.captured.admits()
        failure: Exception = EvaluationError("no sizes were found that the program admits")
        for binding in bindings(self.exported.model):
            if not _is_admitted(binding, admitted, self.captured.inputs):
                continue
            try:
                first = self._fed(binding, 0, _BATCHES[0])
                truth = self._truth(module, first, wide)
                dict(self.exported.run(first.arrays))
            except (_Fails, EvaluationError) as error:
                failure = error
                continue
            planned = 2 if max((a.size for a in first.arrays.values()), default=0) > _LARGE else 4
            yield first, truth, planned
            other = binding.resized()
            if other is None or not _is_admitted(other, admitted, self.captured.inputs):
                other = binding
            for i in range(1, 4 + _EXTRA):
                feed = self._fed((binding, other, other, binding)[i % 4], i, _BATCHES[i % 2])
                yield feed, self._truth(module, feed, wide), planned
            return
        raise failure

    def _fed(self, binding: Binding, i: int, batch: int) -> Feed:
        offset = _OFFSETS[i % len(_OFFSETS)]
        arrays = binding.feed(np.random.default_rng([self.seed, i]), batch, offset)
        return Feed(arrays, binding.describe(batch, offset))

    def _truth(self, module: Callable[..., Any], feed: Feed, wide: bool) -> list[Array]:
        """The tensors among the module's results, in order."""
        types = {v.name: v.type.tensor_type.elem_type for v in self.exported.inputs}
        assert set(types) <= set(self.captured.inputs)
        values = [tensor_of(feed.arrays[name], wide) for name in self.captured.inputs]
        args, kwargs = self.captured.arguments(values)
        try:
            with torch.no_grad(), quiet():
                results = module(*args, **kwargs)
        except RAISED as error:  # a module may raise anything
            raise _Fails(f"{type(error).__name__}: {told(error)}") from error
        return [_array(leaf) for leaf in _pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor | int)]

    def _judge(
        self, feed: Feed, truth: Sequence[Array], nudge: Nudge, number: int, draws: int
    ) -> Mapping[str, Tally | str]:
        """Per output what this feed has shown, or why it could not be compared."""
        outputs = self.result.outputs
        if len(truth) != len(outputs):
            raise EvaluationError(f"the module has {len(truth)} outputs, the model {len(outputs)}")
        own = dict(self.exported.run(feed.arrays))
        values = own if self.result is self.exported else dict(self.result.run(feed.arrays))
        moved = [
            dict(self.exported.run(feed.arrays, change=nudge.draw(self.seed, number, k)))
            for k in range(draws)
        ]
        found: dict[str, Tally | str] = {}
        for name, original, expected in zip(outputs, self.exported.outputs, truth, strict=True):
            value, base = values[name], own[original]
            if isinstance(value, Missing):
                found[name] = value.reason
                continue
            if isinstance(base, Missing):
                found[name] = base.reason
                continue
            exact = value.dtype.kind != "f"
            with np.errstate(all="ignore"):  # an infinity less itself
                moved_by = list(noises(Base(base, exact=exact), [run[original] for run in moved]))
                found[name] = Tally.of(value, Base(expected, exact=exact), moved_by)
        return found

    def _check(self, name: str, tally: Tally, tolerance: float) -> TensorCheck:
        worst = tally.worst()
        producer = self.result.producer.get(name)
        node = "" if producer is None else f"{producer.op_type} '{producer.name or name}'"
        passed = not tally.problem and worst.ratio <= tolerance
        return TensorCheck(
            name, node, worst.error, worst.noise, worst.ratio, worst.part, False, passed, tally.problem
        )


def noises(base: Base, moved: Sequence[Array | Missing]) -> Iterator[Sums]:
    """How far nudged runs are from the model's own value."""
    for value in moved:
        with suppress(Unlike):
            sums = None if isinstance(value, Missing) else base.apart(value)
            if sums is not None and np.isfinite(sums[""]):
                yield sums


def _is_admitted(
    binding: Binding, admitted: Callable[[Sequence[Sequence[int]]], bool], names: Sequence[str]
) -> bool:
    shapes = {i.name: binding.shape(i, _BATCHES[-1]) for i in binding.inputs}
    return admitted([shapes[name] for name in names])


def tensor_of(array: Array, wide: bool) -> torch.Tensor:
    """An array of a feed for a module: floats in double precision, or in their own."""
    name = array.dtype.name
    if name in DTYPES and not DTYPES[name].is_floating_point:
        return torch.from_numpy(np.array(array))
    tensor = torch.from_numpy(np.array(array, np.float64))
    return tensor if wide else tensor.to(DTYPES[name])


def _array(leaf: torch.Tensor | int) -> Array:
    if not isinstance(leaf, torch.Tensor):
        return np.asarray(leaf)
    leaf = leaf.detach()
    return np.asarray((leaf.to(torch.float64) if leaf.is_floating_point() else leaf).numpy())
