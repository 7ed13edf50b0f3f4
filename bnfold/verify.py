"""Says whether two models are the same function, up to the rounding that any stored model has.

The yardstick is the original itself: how far its outputs move when its inputs and its floating
constants move by one unit in the last place. A result may be a few times that far from the original
(`tolerance`), whatever the size of the outputs. Nothing here is shared with the code that folds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .feeds import Binding, Values, bindings
from .nudge import Constants, nudged
from .report import CheckReport, OutputCheck, Verdict
from .session import Lost, Session, Unrunnable

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]

# Nudged runs: so many at least, more for outputs of few elements (one unlucky draw must not make the
# yardstick short), and up to the most while a ratio is not clearly good.
_DRAWS, _DRAWS_SMALL, _DRAWS_MOST = 4, 8, 16
_SMALL = 64
# A finite ratio beyond so many tolerances is no bad luck: no further draws.
_HOPELESS = 100
# A single channel may be so many times further off than the whole, and more when it has less than so
# many elements: its error and its noise come from few numbers, and there are many channels. Without
# this measure, a channel of huge values would hide all others.
_CHANNEL_SLACK, _CHANNEL_ELEMENTS = 10.0, 16


def check(
    reference: Path,
    candidate: Path,
    *,
    tolerance: float = 4.0,
    seed: int = 0,
    timeout: float = 300.0,
) -> CheckReport:
    """Compare a model with its original by running both in onnxruntime, in a child process.

    Args:
        reference: The original; its noise is the yardstick.
        candidate: The model to judge.
        tolerance: How many times the noise the error may be, per output and feed.
        seed: Decides the inputs and the nudges; the same seed gives the same report.
        timeout: Seconds that a single load or run may take.

    Returns:
        Pass; fail, with the worst output in the message; or undecided, when the original cannot be
        run or no output holds a finite number. A candidate that cannot be run while the original
        can has failed.
    """
    with Session(timeout) as session:
        return compare(session, reference, candidate, tolerance=tolerance, seed=seed)


def compare(
    session: Session, reference: Path, candidate: Path, *, tolerance: float = 4.0, seed: int = 0
) -> CheckReport:
    """`check` in a session that is there already; for many comparisons one process will do."""
    try:
        trials = _run_reference(session, reference, seed)
    except Unrunnable as error:
        message = f"nothing was compared, because the original cannot be run: '{reference}': {error}"
        return CheckReport(Verdict.UNDECIDED, tolerance, message=message)
    try:
        tallies = _run_candidate(session, candidate, trials)
    except Unrunnable as error:
        message = f"the original runs, but the result does not: '{candidate}': {error}"
        return CheckReport(Verdict.FAIL, tolerance, message=message)
    except _Different as difference:
        message = f"the result '{candidate}' is not the original '{reference}': {difference}"
        return CheckReport(Verdict.FAIL, tolerance, message=message)
    if not tallies:
        message = f"nothing was compared, because no output of '{reference}' holds a finite number"
        return CheckReport(Verdict.UNDECIDED, tolerance, runs=len(trials), message=message)
    _measure_noise(session, reference, trials, tallies, tolerance, seed)
    return _judge(reference, trials, tallies, tolerance)


class _Different(Exception):
    """The two models need not be measured: they have different signatures."""


@dataclass(frozen=True)
class _Trial:
    """One feed and what the original answers."""

    description: str
    feeds: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class _Distance:
    """How far an array is from the original's.

    Attributes:
        rms: Root mean square of the difference, over the elements finite in both; 0 for integers.
        channels: The same per index of axis 1, shape [C]; empty where there is no such axis.
        flips: Share of elements of another kind (NaN, infinity), or, among integers, other value.
        max_abs: Largest absolute difference.
    """

    rms: float
    channels: NDArray[np.float64]
    flips: float
    max_abs: float


@dataclass(frozen=True)
class _Measure:
    """An error beside what rounding explains of it; `what` says in words what was measured."""

    error: float
    noise: float
    what: str

    @property
    def ratio(self) -> float:
        if self.error == 0:
            return 0.0
        return self.error / self.noise if self.noise else float("inf")


@dataclass
class _Tally:
    """One output on one trial: the error, and the noise as it comes in draw by draw.

    Attributes:
        trial: The trial, by index.
        name: The output.
        original: What the original answers there.
        shape: Shape of the result's answer.
        error: How far that is from the original's.
        draws: How far the nudged originals are from it.
    """

    trial: int
    name: str
    original: Array
    shape: tuple[int, ...]
    error: _Distance
    draws: list[_Distance] = field(default_factory=list)

    @cached_property
    def floor(self) -> _Distance:
        """Noise that every output has: it cannot be more exact than its own type."""
        if self.original.dtype.kind != "f":
            return _distance(self.original, self.original)
        unit = np.asarray(np.finfo(self.original.dtype).eps / 2, self.original.dtype)
        return _distance(self.original * unit, np.zeros_like(self.original))

    def worst(self) -> _Measure:
        """The measure with the largest ratio: all values, the values of one channel, or flips."""
        draws = self.draws
        noise = float(np.hypot(_rms(np.array([d.rms for d in draws])), self.floor.rms))
        measures = [_Measure(self.error.rms, noise, "the error")]
        flips = float(np.mean([d.flips for d in draws])) if draws else 0.0
        measures.append(_Measure(self.error.flips, flips, "the share of elements with another value or kind"))
        errors = self.error.channels
        if errors.size:
            alike = [d.channels**2 for d in draws if d.channels.shape == errors.shape]
            slack = _CHANNEL_SLACK * max(1.0, _CHANNEL_ELEMENTS * errors.size / self.original.size)
            noises = slack * np.sqrt(sum(alike) / max(len(alike), 1) + self.floor.channels**2)
            with np.errstate(divide="ignore"):
                ratios = np.divide(errors, noises, out=np.zeros_like(errors), where=errors > 0)
            c = int(ratios.argmax())
            measures.append(_Measure(float(errors[c]), float(noises[c]), f"the error of channel {c}"))
        return max(measures, key=lambda m: m.ratio)


# The runs


def _run_reference(session: Session, path: Path, seed: int) -> list[_Trial]:
    signature = session.open(path)
    binding, first = _runnable(session, _proto(path), seed)
    batches = (1, 2, 3) if first == 2 else (1, 1, 1)
    trials = []
    for number, (batch, values) in enumerate(zip(batches, Values, strict=True)):
        feeds = binding.feed(np.random.default_rng([seed, number]), batch, values)
        try:
            outputs = session.run(feeds)
        except Lost:
            raise
        except Unrunnable:  # a batch that does not suit, or wild values behind an index
            continue
        sizes = dict.fromkeys(sorted(binding.batch), batch) | dict(binding.sizes)
        told = ", ".join([f"inputs {values.value}", *(f"{name}={size}" for name, size in sizes.items())])
        trials.append(_Trial(told, feeds, {name: outputs[name] for name in signature.outputs}))
    if not trials:
        raise Unrunnable("it runs on some inputs, but not on any that a comparison would need")
    # A feed on which the original overflows says little; it serves only if there is no better one.
    return [t for t in trials if all(map(_mostly_finite, t.outputs.values()))] or trials


def _runnable(session: Session, model: onnx.ModelProto, seed: int) -> tuple[Binding, int]:
    """The first binding on which the open model runs, with batch size 2 if it can."""
    first: Unrunnable | None = None
    for binding in bindings(model):
        for batch in (2, 1) if binding.batch else (1,):
            try:
                session.run(binding.feed(np.random.default_rng(seed), batch, Values.UNIFORM))
                return binding, batch
            except Lost:
                raise
            except Unrunnable as error:
                first = first or error
    raise Unrunnable(f"no sizes were found at which it runs; at first: {first}")


def _run_candidate(session: Session, path: Path, trials: Sequence[_Trial]) -> list[_Tally]:
    signature = session.open(path)
    for kind, found, expected in (
        ("inputs", signature.inputs, tuple(trials[0].feeds)),
        ("outputs", tuple(dict.fromkeys(signature.outputs)), tuple(trials[0].outputs)),
    ):
        if found != expected:
            raise _Different(f"its {kind} are {', '.join(found)}, the original's {', '.join(expected)}")
    tallies = []
    for number, trial in enumerate(trials):
        outputs = session.run(trial.feeds)
        for name, original in trial.outputs.items():
            result = outputs[name]
            if result.dtype != original.dtype:
                raise _Different(f"output '{name}' has type {result.dtype}, the original's {original.dtype}")
            error = _distance(result, original)
            if np.isfinite(original).any() or error.flips:  # else nothing there says anything
                tallies.append(_Tally(number, name, original, result.shape, error))
    return tallies


def _measure_noise(
    session: Session,
    path: Path,
    trials: Sequence[_Trial],
    tallies: Sequence[_Tally],
    tolerance: float,
    seed: int,
) -> None:
    """Run the original nudged, until every ratio is clearly good or there are draws enough."""
    constants = Constants(_proto(path), path.parent)
    least = _DRAWS_SMALL if min(t.original.size for t in tallies) < _SMALL else _DRAWS
    for draw in range(_DRAWS_MOST):
        ratio = max(t.worst().ratio for t in tallies)
        if draw >= least and (ratio <= tolerance / 2 or _HOPELESS * tolerance < ratio < float("inf")):
            return
        rng = np.random.default_rng([seed, 1_000 + draw])
        try:
            model, initializers = constants.nudged(rng)
            session.open(model or path, initializers=initializers, folder=path.parent)
            for number, trial in enumerate(trials):
                outputs = session.run({name: nudged(value, rng) for name, value in trial.feeds.items()})
                for tally in tallies:
                    if tally.trial == number:
                        tally.draws.append(_distance(outputs[tally.name], trial.outputs[tally.name]))
        except Lost:
            return
        except Unrunnable:  # a nudge that the model does not bear; the other draws may
            continue


def _judge(
    reference: Path, trials: Sequence[_Trial], tallies: Sequence[_Tally], tolerance: float
) -> CheckReport:
    measured = [(tally, tally.worst()) for tally in tallies]
    outputs = []
    for name in dict.fromkeys(tally.name for tally in tallies):
        tally, worst = max(((t, m) for t, m in measured if t.name == name), key=lambda pair: pair[1].ratio)
        passed = worst.ratio <= tolerance
        outputs.append(OutputCheck(name, worst.error, worst.noise, worst.ratio, tally.error.max_abs, passed))

    def report(verdict: Verdict, message: str = "") -> CheckReport:
        return CheckReport(verdict, tolerance, tuple(outputs), len(trials), message)

    failed = [(t, m) for t, m in measured if not m.ratio <= tolerance]
    if not failed:
        return report(Verdict.PASS)
    # Where the original itself overflows, which elements do is no property of the function.
    telling = [(t, m) for t, m in failed if _mostly_finite(t.original)]
    tally, worst = max(telling or failed, key=lambda pair: pair[1].ratio)
    where = f"output '{tally.name}' on {trials[tally.trial].description}"
    if not telling:
        return report(Verdict.UNDECIDED, f"'{reference}' answers mostly NaN or infinity: {where}")
    if not tally.draws:
        return report(
            Verdict.UNDECIDED,
            f"the result differs from '{reference}', whose own noise could not be measured: {where}",
        )
    return report(Verdict.FAIL, f"{where}: {_blame(tally, worst, tolerance)}")


def _blame(tally: _Tally, worst: _Measure, tolerance: float) -> str:
    """What is wrong with the worst output."""
    if tally.shape != tally.original.shape:
        return f"its shape is {tally.shape} instead of {tally.original.shape}"
    if not worst.noise:
        return f"{worst.what} is {worst.error:.3g}, where rounding changes nothing"
    return (
        f"{worst.what} is {worst.error:.3g}, which is {worst.ratio:.3g} times what rounding explains"
        f" ({worst.noise:.3g}); {tolerance:g} times is accepted"
    )


# Distances


def _distance(value: Array, original: Array) -> _Distance:
    none = np.zeros(0)
    if value.shape != original.shape:
        return _Distance(0.0, none, 1.0, float("inf"))
    if value.size == 0:
        return _Distance(0.0, none, 0.0, 0.0)
    a, b = value.astype(np.float64), original.astype(np.float64)
    if value.dtype.kind != "f":
        return _Distance(0.0, none, float(np.mean(value != original)), float(np.abs(a - b).max()))
    finite = np.isfinite(a) & np.isfinite(b)
    same = finite | (a == b) | (np.isnan(a) & np.isnan(b))
    apart = np.abs(np.subtract(a, b, out=np.zeros(a.shape), where=finite))
    others = (0, *range(2, a.ndim))
    channels = np.sqrt(np.mean(apart**2, axis=others)) if a.ndim > 1 else none
    return _Distance(_rms(apart[finite]), channels, 1.0 - float(np.mean(same)), float(apart.max()))


def _mostly_finite(values: Array) -> bool:
    return values.size == 0 or bool(np.mean(np.isfinite(values)) >= 0.5)


def _rms(values: NDArray[np.float64]) -> float:
    """Root mean square, also of values whose squares are out of range."""
    largest = float(np.abs(values).max(initial=0.0))
    return largest * float(np.sqrt(np.mean((values / largest) ** 2))) if largest else 0.0


def _proto(path: Path) -> onnx.ModelProto:
    import onnx

    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # onnxruntime has read it, so this is not the user's concern but ours
        raise Unrunnable(f"its file cannot be read: {error}") from error
