"""Compares two models in float64, tensor by tensor, with the reference's own noise as the yardstick.

The reference, some runs of it with nudged constants, and the candidate walk through their graphs side by
side. Whatever both name alike is compared as soon as both have it, and dropped. There are two ways to
walk:

- *through*: each goes on with its own values, so errors and noise add up as they do in use;
- *alone*: after each comparison all go on with the reference's value. So every stretch between two
  shared names is judged alone: a small fault does not drown in the noise of the layers before it, nor
  in a saturated output after it, and the stretch at fault is the one that is named.

Decisions (integers, booleans, what Round and its like make) are handed on by the reference in both ways:
a tie that rounding breaks the other way is judged where it is broken, not in all that follows from it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import onnx
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from .alike import Alike, names_read
from .evaluate import EvaluationError, Missing, Program
from .feeds import Feed
from .lane import Lane
from .measure import FLOAT64, SMALLEST, Base, Sums, Tally, Unlike, beyond, metrics
from .nudge import Nudge
from .verification import AlgebraReport, Limit, Metrics, OutputCheck, TensorCheck, Verdict

Array = NDArray[Any]

WORKERS = "bnfold-float64"
"""How the threads of a comparison are called. After an interruption one may go on for a while."""

DRAWS = 4
"""Nudged runs that go along on a walk, if not said otherwise."""

# Float operators that jump: a difference in the last place may become one of a whole step.
_JUMPING = {"Ceil", "Floor", "Hardmax", "Round", "Sign"}
# Operators that make integers or booleans of floats.
_DECIDING = {"ArgMax", "ArgMin", "DynamicQuantizeLinear", "Equal", "Greater", "GreaterOrEqual", "IsInf"}
_DECIDING |= {"IsNaN", "Less", "LessOrEqual", "NonMaxSuppression", "NonZero", "QuantizeLinear", "TopK"}
_DECIDING |= {"Unique"}
_FLOATS = {onnx.TensorProto.DataType.Value(name) for name in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")}
# Below so many elements, handing work to a thread takes longer than the work.
_WORTH_A_THREAD = 1 << 13
# So many tolerances off, a value is no rounding of the one it should be: it may be another one.
_HOPELESS = 100.0
# Of those, the last few are kept until the reference has made what they may be instead.
_STRAYS = 16
# How many values are looked at on the way back from one of the reference to those of both models.
_FAR = 16


class CandidateFails(Exception):
    """The candidate cannot be evaluated where the reference can."""


@dataclass(frozen=True, eq=False)
class _Held:
    """What the reference has at a name, until the candidate gets there."""

    base: Base | Missing
    noises: Sequence[Sums] = ()


class Comparison:
    """Two models side by side; walks add evidence, `report` weighs it. Use it in a `with`.

    Args:
        reference, candidate: The models.
        tolerance: How many times the noise an error may be.
        seed: Decides the nudges.
        by_name: Whether equal names of inner tensors mean equal values; False compares outputs only.
        limits: Criteria that outputs are judged by instead, by name; "" is for all the others.
        certified: Whether the folded constants are known to be correctly rounded. That decides where the
            nudged constants move nothing, and where each stretch alone is right but the whole is not within
            tolerance.
        progress: Called with the number of walks done, fractions included.
        fed: Called with every feed on which the reference could be evaluated.
    """

    def __init__(
        self,
        reference: Program,
        candidate: Program,
        *,
        tolerance: float,
        seed: int,
        by_name: bool = True,
        limits: Mapping[str, Limit],
        certified: bool = False,
        progress: Callable[[float], None] | None = None,
        fed: Callable[[Feed], None] | None = None,
    ) -> None:
        self.reference, self.candidate = reference, candidate
        self.tolerance = tolerance
        self.walks: list[str] = []
        self.draws = 0
        self._alike = Alike(reference, candidate)
        self._seed = seed
        self._limits = limits
        self._certified = certified
        self._progress = progress
        self._fed = fed
        self._nudge = Nudge(reference.model)
        theirs = {*candidate.computed, *candidate.outputs}
        names = [n for n in dict.fromkeys((*reference.computed, *reference.outputs)) if n in theirs]
        self._shared = [n for n in names if by_name or n in reference.outputs]
        self._order = {name: i for i, name in enumerate(names)}
        self._vanished = [
            n
            for n in reference.computed
            if (by_name and n not in theirs) or (not by_name and n not in names and self._may_decide(n))
        ]
        self._mutual = frozenset(self._shared)
        self._origins = {name: self._origins_of(name) for name in self._vanished}
        self._through: dict[str, Tally] = {}
        self._alone: dict[str, Tally] = {}
        self._missing: dict[str, str] = {}
        self._metrics: dict[str, Metrics] = {}
        self._astray: set[str] = set()
        self._strays: dict[str, Array] = {}
        self._later: dict[str, list[tuple[str, _Held]]] = {}
        self._moved: dict[str, str] = {}
        self._beyond: dict[str, str] = {}
        self._off: dict[str, str] = {}
        self._types = {v.name: _dtype(v) for v in reference.model.graph.output}
        self._workers = ExitStack()
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix=WORKERS)

    def __enter__(self) -> Self:
        self._workers.callback(self._pool.shutdown, wait=False, cancel_futures=True)
        # Side by side, runs that each ask for all cores wait for one another: several times slower. And
        # sums are split by the number of threads: with one, the report is the same on every machine.
        self._workers.enter_context(threadpool_limits(1, user_api="blas"))
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    # Walking

    def walk(self, feed: Feed, *, alone: bool, draws: int = DRAWS) -> None:
        """Compare on one feed.

        Args:
            feed: Values of the inputs.
            alone: Whether each stretch is judged alone.
            draws: How many nudged runs go along. Without any, only what is hopelessly far off counts,
                by the noise that other walks have shown.

        Raises:
            EvaluationError: The reference cannot be evaluated on this feed; the walk counts for nothing.
            CandidateFails: The reference can, the candidate cannot.
        """
        # What went astray on the way through would lead everything astray if it were handed on.
        shared = [name for name in self._shared if not alone or name not in self._astray]
        number, asked = len(self.walks), [*shared, *self._vanished]
        changes = [None, *(self._nudge.draw(self._seed, number, k) for k in range(draws))]
        group = [Lane(self.reference, feed.arrays, asked, change) for change in changes]
        other = Lane(self.candidate, feed.arrays, shared)
        found = self._side_by_side(group, other, set(shared), alone)
        if self._fed is not None:
            self._fed(feed)
        if other.failure:
            raise CandidateFails(other.failure)
        for name, tally in found.items():
            if not draws:
                self._glance(name, tally)
                continue
            (self._alone if alone else self._through).setdefault(name, Tally(tally.exact)).merge(tally)
        self._strays.clear()
        self._later.clear()
        self.walks.append(feed.description)
        self.draws += draws

    def _side_by_side(
        self, group: Sequence[Lane], other: Lane, shared: set[str], alone: bool
    ) -> dict[str, Tally]:
        """Let the reference, its nudged runs and the candidate go on until all have come to their end."""
        found: dict[str, Tally] = {}
        held: dict[str, _Held] = {}
        turn, size = [*group, other], 0
        while turn:
            self._advance(turn, size)
            if group[0].failure:
                raise EvaluationError(group[0].failure)
            if group[0] in turn and (name := group[0].name) is not None:
                mine = self._settle(group, alone and name in shared)
                if name in shared:
                    held[name] = mine
                elif name in self._origins:
                    self._offer(name, mine, held, found)
            turn = []
            if other.name is None:
                held.clear()
            elif other.name not in shared:  # an output that nothing is held against: nobody waits for it
                turn.append(other)
            elif other.name in held:
                mine = held.pop(other.name)
                size = mine.base.value.size if isinstance(mine.base, Base) else 0
                other.reply = self._meet(other.name, other.value, mine, found, alone)
                for vanished, theirs in self._later.pop(other.name, ()):
                    self._recognise(other.name, vanished, theirs, found)
                turn.append(other)
                if self._progress is not None:
                    self._progress(len(self.walks) + len(found) / len(shared))
            if group[0].name is not None and not (turn and held):
                turn += group
        return found

    def _glance(self, name: str, tally: Tally) -> None:
        """Note what is wrong beyond all noise with a tensor that has been compared on other feeds.

        Where both models have the same node, that is left to what it reads: a Sigmoid may be saturated on
        those feeds and not on this one.
        """
        known = self._through.get(name)
        ours, theirs = self.reference.producer.get(name), self.candidate.producer.get(name)
        is_same = ours is not None and theirs is not None and self._alike.is_same_node(ours, theirs)
        if is_same and ours is not None:
            stored = (name for name in ours.input if name and name not in self.reference.producer)
            is_same = all(map(self._alike.is_same_constant, stored))
        if known is None or known.problem or name in self._moved or is_same:
            return
        known.problem = tally.problem
        if not tally.exact and not tally.problem and known.size[""] > 0:
            noise = float(known.noise.get("", 0.0) / known.size[""]) + FLOAT64**2
            explained = max(float(tally.size[""]) * noise, SMALLEST)
            ratio = math.sqrt(float(tally.error[""]) / explained)
            if ratio > _HOPELESS * self.tolerance:
                self._off[name] = f"it is {ratio:.3g} times its noise off, though it agrees at other sizes"

    def _advance(self, lanes: Sequence[Lane], size: int) -> None:
        going = [lane for lane in lanes if lane.name is not None]
        for _ in (self._pool.map if size >= _WORTH_A_THREAD else map)(Lane.advance, going):
            pass

    def _settle(self, group: Sequence[Lane], hand_on: bool) -> _Held:
        """Take the reference's value and the noise around it, and let the nudged runs have that value
        if it is to be handed on, or is a decision."""
        first, *nudged = group
        value = first.value
        if isinstance(value, Missing):
            return _Held(value)
        base = Base(value, exact=self._is_decision(first.name, value))
        lanes = [lane for lane in nudged if lane.name == first.name]

        def noise(lane: Lane) -> Sums | None:
            try:
                sums = None if isinstance(lane.value, Missing) else base.apart(lane.value)
            except Unlike:
                return None
            return sums if sums and np.isfinite(sums[""]) else None

        noises = list((self._pool.map if value.size >= _WORTH_A_THREAD else map)(noise, lanes))
        if hand_on or base.exact:
            for lane in lanes:
                lane.reply = value
        return _Held(base, [sums for sums in noises if sums is not None])

    def _meet(
        self, name: str, value: Array | Missing, mine: _Held, tallies: dict[str, Tally], alone: bool
    ) -> Array | None:
        """Compare the candidate's value, and say what it is to go on with."""
        base = mine.base
        for either in (base, value):
            if isinstance(either, Missing):
                self._missing.setdefault(name, either.reason)
                return None
        assert isinstance(base, Base) and not isinstance(value, Missing)
        if base.exact and self._is_tie(name, tallies):
            value = base.value
        tally = tallies[name] = Tally.of(value, base, mine.noises)
        is_output = name in self.reference.outputs
        if not alone and is_output and not tally.problem:
            self._look_closely(name, value, base.value)
        if base.exact or alone:
            return base.value
        ratio = tally.worst().ratio
        if ratio > self.tolerance / 2 and not tally.problem:
            tally.excused = self._is_tie(name, tallies, but=name)
        if is_output or tally.excused:
            return None
        if tally.problem or ratio > _HOPELESS * self.tolerance or name in self._moved:
            self._astray.add(name)
            self._strays[name] = value
            if len(self._strays) > _STRAYS:
                del self._strays[next(iter(self._strays))]
        return None

    def _is_decision(self, name: str | None, value: Array) -> bool:
        node = self.reference.producer.get(name or "")
        return value.dtype.kind != "f" or (node is not None and node.op_type in _JUMPING)

    def _may_decide(self, name: str) -> bool:
        """Whether a value is a decision, as far as its node tells."""
        node = self.reference.producer[name]
        to = next((a.i for a in node.attribute if a.name == "to"), 0)
        return node.op_type in _JUMPING | _DECIDING or (node.op_type == "Cast" and to not in _FLOATS)

    def _is_tie(self, name: str, tallies: Mapping[str, Tally], but: str = "") -> bool:
        """Whether both models compute a value by the same nodes, from values that are alike: compared and
        found so (`but` one of them), stored with the same bits, or fed."""
        pending, seen = [name], {but}
        while pending:
            current = pending.pop()
            ours, theirs = self.reference.producer.get(current), self.candidate.producer.get(current)
            if ours is None and theirs is None:
                if not self._alike.is_same_constant(current):
                    return False
                continue
            if ours is None or theirs is None or not self._alike.is_same_node(ours, theirs):
                return False
            for read in sorted(names_read(ours) - seen):
                seen.add(read)
                tally = tallies.get(read)
                if tally is None or not (tally.finite or tally.problem):
                    pending.append(read)
                elif tally.problem or (tally.worst().ratio > self.tolerance and not tally.excused):
                    return False
        return True

    def _look_closely(self, name: str, value: Array, reference: Array) -> None:
        """An output: the figures that people know, and the criteria that they gave."""
        limit = self._limits.get(name, self._limits.get(""))
        if limit is not None and (count := beyond(limit, value, reference)):
            told = f"{count} of {value.size} elements are beyond atol {limit.atol:g}, rtol {limit.rtol:g}"
            self._beyond.setdefault(name, told)
        if value.dtype.kind == reference.dtype.kind == "f":
            found, before = metrics(value, reference, self._types[name]), self._metrics.get(name)
            if before is None or found.max_abs > before.max_abs:
                self._metrics[name] = found

    # Other tools let a folded convolution keep its own output's name. So a value that is not what its name
    # says may be that of a name which the candidate lacks, and which follows from it in the reference.

    def _offer(
        self, vanished: str, mine: _Held, held: Mapping[str, _Held], tallies: dict[str, Tally]
    ) -> None:
        """A value that the candidate has under another name, if at all: met already, or still to come."""
        for name in self._origins[vanished]:
            if name in held:
                self._later.setdefault(name, []).append((vanished, mine))
            else:
                self._recognise(name, vanished, mine, tallies)

    def _recognise(self, name: str, vanished: str, mine: _Held, tallies: dict[str, Tally]) -> None:
        if name not in self._strays or isinstance(mine.base, Missing):
            return
        tally = Tally.of(self._strays[name], mine.base, mine.noises)
        if not tally.problem and tally.worst().ratio <= self.tolerance:
            self._moved[name] = vanished
            tallies[name] = tally
            del self._strays[name]

    def _origins_of(self, vanished: str) -> tuple[str, ...]:
        """The nearest shared values from which the reference computes one that the candidate lacks."""
        found: dict[str, None] = {}
        pending, seen = [vanished], {vanished}
        while pending and len(seen) < _FAR:
            for name in self.reference.producer[pending.pop()].input:
                if name in self.reference.producer and name not in seen:
                    seen.add(name)
                    if name in self._mutual:
                        found[name] = None
                    else:
                        pending.append(name)
        return tuple(name for name in found if name not in self.reference.outputs)

    # Weighing

    @property
    def smallest_output(self) -> int:
        """Elements of the smallest floating output in a walk; many where there is none."""
        tallies = (self._through[n] for n in self.reference.outputs if n in self._through)
        sizes = [t.elements // max(len(self.walks), 1) for t in tallies if t.elements and not t.exact]
        return min(sizes, default=1 << 30)

    def is_unclear(self, *, alone: bool) -> bool:
        """Whether the worst ratio in that kind of walk is neither clearly good nor hopeless."""
        tallies = (self._alone if alone else self._through).items()
        ratios = [t.worst().ratio for _, t in tallies if not t.problem]
        worst = max(ratios, default=0.0)
        return self.tolerance / 2 < worst < _HOPELESS * self.tolerance

    def report(self) -> AlgebraReport:
        """What all walks together say."""
        outputs = tuple(self._output(name) for name in dict.fromkeys(self.reference.outputs))
        inner = (n for n in self._shared if n not in self.reference.outputs and n in self._through)
        tensors = tuple(self._check(name) for name in inner)
        found = AlgebraReport(
            Verdict.PASS,
            outputs,
            tensors,
            self.draws,
            tuple(self.walks),
            tuple(dict.fromkeys((*self.reference.borrowed, *self.candidate.borrowed))),
        )
        verdict, message = self._verdict(found)
        return replace(found, verdict=verdict, message=message)

    def _verdict(self, found: AlgebraReport) -> tuple[Verdict, str]:
        if found.culprit is not None:
            return Verdict.FAIL, blame(found.culprit, self.tolerance)
        lacking = [o.name for o in found.outputs if o.name not in self.candidate.outputs]
        if lacking and len(lacking) < len(found.outputs):
            return Verdict.FAIL, f"the candidate lacks the output '{lacking[0]}'"
        open_questions = [f"output '{o.name}': {o.missing}" for o in found.outputs if not o.decided]
        if open_questions:
            return Verdict.UNDECIDED, "; ".join(open_questions)
        if not any(tally.finite for tally in self._through.values()):
            return Verdict.UNDECIDED, "nothing was compared: no tensor of both models holds a finite number"
        if not any(tally.size.get("") for tally in self._through.values()):
            return Verdict.UNDECIDED, "nothing was compared but zeros: feed something that shows more"
        return Verdict.PASS, ""

    def _output(self, name: str) -> OutputCheck:
        tally = self._through.get(name)
        if name not in self.candidate.outputs:
            return OutputCheck(name, None, missing="the candidate has no output of this name", decided=False)
        if tally is not None and (tally.finite or tally.problem):
            return OutputCheck(name, self._check(name), self._metrics.get(name))
        empty = (
            "it has no elements" if tally is not None and not tally.elements else "it holds no finite number"
        )
        why = self._missing.get(name, empty)
        if self._is_tie(name, self._through):
            told = f"{why}; but in both models the same nodes compute it from tensors that were compared"
            return OutputCheck(name, None, missing=told)
        return OutputCheck(name, None, missing=why, decided=False)

    def _check(self, name: str) -> TensorCheck:
        through, alone = self._through[name], self._alone.get(name, Tally())
        worst, is_alone = through.worst(), False
        if alone.worst().ratio > worst.ratio:
            worst, is_alone = alone.worst(), True
        producer = self.reference.producer.get(name)
        node = f"{producer.op_type} '{producer.name or name}'" if producer is not None else ""
        problem = through.problem or alone.problem
        silent = self._certified and not any(t.noise.get("") for t in (through, alone))
        # Where weights are all alike, correct roundings add up through many layers instead of cancelling.
        added_up = (
            self._certified
            and name in self._alone
            and alone.worst().ratio <= self.tolerance
            and worst.ratio <= _HOPELESS * self.tolerance
        )
        passed = not problem and (worst.ratio <= self.tolerance or silent or added_up)
        if passed and name in self._off:
            problem, passed = self._off[name], False
        if name in self._moved and passed:
            problem = f"it holds what the reference calls '{self._moved[name]}'"
        elif name in self.reference.outputs and self._limits.get(name, self._limits.get("")) is not None:
            problem = through.problem or alone.problem or self._beyond.get(name, "")
            passed = not problem
        elif self._limits and name not in self.reference.outputs:
            passed = True  # with criteria of one's own, only outputs are judged
        return TensorCheck(
            name=name,
            node=node,
            error=worst.error,
            noise=worst.noise,
            ratio=worst.ratio,
            part=worst.part,
            alone=is_alone,
            passed=passed,
            problem=problem,
            order=self._order[name],
        )


def blame(check: TensorCheck, tolerance: float) -> str:
    """What is wrong with a tensor, in one sentence."""
    where = f"'{check.name}'" + (f" ({check.node})" if check.node else "")
    if check.problem:
        return f"{where}: {check.problem}"
    part = f" at {check.part}" if check.part else ""
    if not check.noise:
        return f"{where} differs by {check.error:.3g}{part}, where rounding changes nothing"
    return (
        f"{where} differs by {check.error:.3g}{part}, which is {check.ratio:.3g} times what the rounding of "
        f"the reference's own constants explains ({check.noise:.3g}); {tolerance:g} times is accepted"
    )


def _dtype(output: onnx.ValueInfoProto) -> np.dtype[Any]:
    """The declared floating type of an output; float32 where there is none."""
    code = output.type.tensor_type.elem_type
    return onnx.helper.tensor_dtype_to_np_dtype(code if code in _FLOATS else onnx.TensorProto.FLOAT)
