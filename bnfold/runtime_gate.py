"""Asks onnxruntime whether it computes one model as faithfully as another.

Each model's answers are held against its own values in float64: whether the two are the same function
is not asked here. onnxruntime is a witness, with its optimizations disabled and at its default level: it
rewrites graphs by itself, now and then wrongly, and crashes on some. What it does wrong with the
reference is a finding and decides nothing.

The candidate's error may be `tolerance` times the largest of:

- the reference's error on the same feed, at the same level or with optimizations disabled;
- what the type of the output cannot hold: rounding to it has an error of u/sqrt(3) of the value;
- where that is not enough, what rounding inside the reference may do (`rounding`): the reference may
  have been lucky, above all with few outputs, or exact, as with weights and inputs that are small
  integers;
- where an output depends on decisions (ArgMax, Round, ...) about computed numbers, so much that the
  bound is half of a whole miss: one flip among thousands is luck, and no draw need show it, but an
  answer that is mostly wrong is not. Fewer flips than that are a finding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .evaluate import EvaluationError, Missing, Program
from .feeds import Binding, Feed
from .rounding import Gap, Rounding, gap, rms
from .session import Lost, Session, Unrunnable
from .verification import RuntimeCheck, RuntimeReport, Verdict

Array = NDArray[Any]
Answer = Mapping[str, Array]

_DISABLED, _DEFAULT = _LEVELS = ("disabled", "default")
# An output that depends on decisions is wrong when it misses by half: by half of its own size or, where
# it is made of integers, at half of the elements at which unrelated booleans differ.
_HALF, _QUARTER = 0.5, 0.25


def feeds_for(binding: Binding, seed: int) -> list[Feed]:
    """One row and three, at two sizes, as far as the model leaves them free: four feeds at most."""
    feeds: list[Feed] = []
    for sized in (binding, binding.resized()):
        for batch in (1, 3) if binding.batch else (None,):
            if sized is not None:
                arrays = sized.feed(np.random.default_rng([seed, len(feeds)]), batch)
                feeds.append(Feed(arrays, sized.describe(batch)))
    return feeds


def witness(
    session: Session,
    reference: Program,
    candidate: Program,
    paths: tuple[Path, Path],
    feeds: Sequence[Feed],
    *,
    tolerance: float = 4.0,
    seed: int = 0,
    fed: Callable[[Feed], None] | None = None,
) -> RuntimeReport:
    """Run both models in onnxruntime.

    Args:
        session: Where; it has no model open that is still needed.
        reference, candidate: The models in float64.
        paths: Their files.
        feeds: What to run them on; those that the reference cannot be evaluated on are left out.
        tolerance: How many times the reference's error the candidate's may be.
        seed: Decides the draws of rounding.
        fed: Called with every feed on which the reference could be evaluated.

    Returns:
        Fail where the candidate is further off, or cannot be run where the reference can; undecided
        where the reference cannot be run, or nothing could be compared.
    """
    findings: list[str] = []
    try:
        trials = list(_trials(reference, candidate, feeds, fed))
        runs = [_run(session, paths, trials, level, findings) for level in _LEVELS]
        checks = tuple(_Bench(trials, runs, Rounding(reference, seed), tolerance, findings).checks())
    except _NotAvailable as reason:
        return RuntimeReport(Verdict.UNDECIDED, (), tuple(findings), f"not available: {reason}")
    except _CandidateFails as failure:
        return RuntimeReport(Verdict.FAIL, (), tuple(findings), str(failure))
    if not checks:
        message = "not available: onnxruntime has no answer about the reference that could be believed"
        return RuntimeReport(Verdict.UNDECIDED, (), tuple(findings), message)
    failed = [check for check in checks if not check.passed]
    if not failed:
        return RuntimeReport(Verdict.PASS, checks, tuple(findings))
    worst = max(failed, key=lambda check: check.ratio)
    return RuntimeReport(Verdict.FAIL, checks, tuple(findings), _blame(worst, paths[1], tolerance))


class _NotAvailable(Exception):
    """Why onnxruntime is no witness here."""


class _CandidateFails(Exception):
    """The candidate cannot be run where the reference can."""


@dataclass(frozen=True, eq=False)
class _Trial:
    """One feed, and what float64 arithmetic makes of it in both models."""

    feed: Feed
    reference: Answer
    candidate: Answer


def _trials(
    reference: Program, candidate: Program, feeds: Sequence[Feed], fed: Callable[[Feed], None] | None
) -> Iterator[_Trial]:
    refusal: EvaluationError | None = None
    count = 0
    for feed in feeds:
        try:
            ours = _exact(reference, feed)
        except EvaluationError as error:  # other sizes than those known to be possible
            refusal = refusal or error
            continue
        if fed is not None:
            fed(feed)
        try:
            theirs = _exact(candidate, feed)
        except EvaluationError as error:
            raise _CandidateFails(
                f"fed {feed.description}, the reference can be evaluated and the candidate cannot: {error}"
            ) from error
        count += 1
        yield _Trial(feed, ours, theirs)
    if not count:
        raise _NotAvailable(f"there are no exact values to compare with: {refusal or 'nothing was fed'}")


def _exact(program: Program, feed: Feed) -> dict[str, Array]:
    values = {name: value for name, value in program.run(feed.arrays) if name in program.outputs}
    return {name: value for name, value in values.items() if not isinstance(value, Missing)}


# The runs


@dataclass(frozen=True, eq=False)
class _Run:
    """What onnxruntime answers at one level, trial by trial; None for the reference where it refuses."""

    reference: Sequence[Answer | None]
    candidate: Sequence[Answer | None]


def _run(
    session: Session, paths: tuple[Path, Path], trials: Sequence[_Trial], level: str, findings: list[str]
) -> _Run:
    """Both models at one level; findings grow by what goes wrong with the reference."""
    feeds = [trial.feed for trial in trials]
    ours, why, unsteady = _answers(session, paths[0], feeds, level)
    if why is not None:
        told = f"onnxruntime cannot run '{paths[0]}' (optimizations {level}): {why}"
        # That it refuses a size is the model's affair; a crash is its own, and so is a second opinion.
        if isinstance(why, Lost) or (level == _DEFAULT and not any(ours)):
            findings.append(told)
        if level == _DISABLED and not any(ours):
            raise _NotAvailable(told)
    if not any(ours):
        return _Run(ours, ours)
    if unsteady:
        findings.append(
            f"onnxruntime (optimizations {level}) answers otherwise when '{paths[0]}' is run again on the "
            f"same feed, so its session has a state: {unsteady}"
        )
    wanted = [feed for feed, answer in zip(feeds, ours, strict=True) if answer is not None]
    some, why, theirs_unsteady = _answers(session, paths[1], wanted, level)
    where = f"in onnxruntime (optimizations {level})"
    if why is not None:
        raise _CandidateFails(f"'{paths[0]}' can be run {where}, but '{paths[1]}' cannot: {why}")
    if theirs_unsteady and not unsteady:
        raise _CandidateFails(
            f"'{paths[1]}' answers otherwise {where} when it is run again on the same feed: {theirs_unsteady}"
        )
    rest = iter(some)
    return _Run(ours, [None if answer is None else next(rest) for answer in ours])


def _answers(
    session: Session, path: Path, feeds: Sequence[Feed], level: str
) -> tuple[list[Answer | None], Unrunnable | None, str]:
    """The answer to each feed, or None; why the first was refused; how a second run differs, or "".

    A session that changes as it runs is opened anew for each feed. After a crash or a hang nothing more
    is asked.
    """
    answers: list[Answer | None] = []
    refusal, unsteady, is_open = None, "", False
    for feed in feeds:
        answer = None
        try:
            if not isinstance(refusal, Lost):
                if not is_open:
                    session.open(path, optimized=level == _DEFAULT)
                    is_open = True
                answer = session.run(feed.arrays)
                if not any(answers):
                    unsteady = _change(answer, session.run(feed.arrays))
                is_open = not unsteady
        except Unrunnable as error:
            answer, refusal = None, refusal or error
        answers.append(answer)
    return answers, refusal, unsteady


def _change(first: Answer, again: Answer) -> str:
    """How the second answer differs by more than rounding could explain, or ""."""
    for name, value in again.items():
        exact = first[name].astype(np.float64)
        found = gap(value, exact)
        if found.spoiled or found.error > 4 * _type_error(value, exact):  # two roundings, and some slack
            return f"output '{name}' changes by {found.error:.3g}"
    return ""


# The verdict


class _Bench:
    """The evidence.

    Args:
        trials: The feeds, with exact values.
        runs: The answers at each of `_LEVELS`.
        rounding: Of the reference.
        tolerance: How many times what is explained an error may be.
        findings: Grows by what onnxruntime does wrong with the reference.
    """

    def __init__(
        self,
        trials: Sequence[_Trial],
        runs: Sequence[_Run],
        rounding: Rounding,
        tolerance: float,
        findings: list[str],
    ) -> None:
        self._trials = trials
        self._runs = dict(zip(_LEVELS, runs, strict=True))
        self._rounding = rounding
        self._tolerance = tolerance
        self._findings = findings
        self._noise = cache(lambda i: rounding.noise(trials[i].feed.arrays, trials[i].reference))

    def checks(self) -> Iterator[RuntimeCheck]:
        """Every output on every feed at every level, where the reference itself is computed well."""
        for name in dict.fromkeys(name for trial in self._trials for name in trial.reference):
            if not self._is_believed(name):
                continue
            for level in _LEVELS if self._is_sound(name) else (_DISABLED,):
                for i, trial in enumerate(self._trials):
                    ours, theirs = self._gap(name, i, level), self._candidate_gap(name, i, level)
                    if ours is not None and theirs is not None:
                        yield self._check(name, level, i, trial.feed.description, ours, theirs)

    def _check(self, name: str, level: str, i: int, told: str, ours: Gap, theirs: Gap) -> RuntimeCheck:
        disabled = self._gap(name, i, _DISABLED) or ours
        known = Gap(max(ours.error, disabled.error), max(ours.spoiled, disabled.spoiled))
        ratio = self._ratio(name, i, theirs, known)
        passed = ratio <= self._tolerance
        if not passed and self._is_luck(name, i, theirs):
            passed = True
            self._findings.append(
                f"output '{name}' (optimizations {level}, {told}) depends on decisions between close "
                f"numbers: the candidate's error is {theirs.error:.3g}, the reference's {ours.error:.3g}"
            )
        return RuntimeCheck(name, level, told, ours.error, theirs.error, ratio, passed)

    def _is_believed(self, name: str) -> bool:
        """Whether onnxruntime and float64 arithmetic agree about the reference at all."""
        for i, trial in enumerate(self._trials):
            found = self._gap(name, i, _DISABLED)
            if found is None:
                continue
            miss = max(found.error / _half(trial.reference[name]), found.spoiled / _HALF)
            if miss > 1 and self._ratio(name, i, found, Gap(0.0, 0.0)) > self._tolerance:
                self._findings.append(
                    f"onnxruntime (optimizations disabled) and float64 arithmetic disagree about output "
                    f"'{name}' of the reference by {found.error:.3g} ({trial.feed.description}); it is not "
                    "compared there"
                )
                return False
        return True

    def _is_sound(self, name: str) -> bool:
        """Whether onnxruntime's own optimizations leave this output of the reference as it is."""
        for i, trial in enumerate(self._trials):
            before, after = self._gap(name, i, _DISABLED), self._gap(name, i, _DEFAULT)
            if before is None or after is None or self._ratio(name, i, after, before) <= self._tolerance:
                continue
            if self._is_luck(name, i, after):
                continue
            is_wrong = after.spoiled or after.error > _half(trial.reference[name])
            told = "a defect of onnxruntime" if is_wrong else "less exact, though not wrong"
            self._findings.append(
                f"{told}: at its default level onnxruntime computes output '{name}' of the reference with an "
                f"error of {after.error:.3g}, and of {before.error:.3g} with optimizations disabled "
                f"({trial.feed.description}); disable its optimizations when you run this model"
            )
            return False
        return True

    def _ratio(self, name: str, i: int, found: Gap, known: Gap) -> float:
        """An error over what explains it: another one, the type of the output, rounding inside."""
        exact = self._trials[i].reference[name]
        explained = max(known.error, self._type_errors(name, i))
        if found.error > self._tolerance * explained and exact.size:
            explained = max(explained, self._noise(i)[name])
        return max(_over(found.error, explained), _over(found.spoiled, known.spoiled))

    def _is_luck(self, name: str, i: int, found: Gap) -> bool:
        """Whether an error may come from a few close decisions that fell otherwise."""
        exact = self._trials[i].reference[name]
        return self._rounding.jumps(name) and not found.spoiled and found.error <= _half(exact)

    def _type_errors(self, name: str, i: int) -> float:
        answers = [run.reference[i] for run in self._runs.values()]
        exact = self._trials[i].reference[name]
        return max(_type_error(answer[name], exact) for answer in answers if answer and name in answer)

    def _gap(self, name: str, i: int, level: str) -> Gap | None:
        """The reference's error; None where there is no answer."""
        answer, exact = self._runs[level].reference[i], self._trials[i].reference
        return gap(answer[name], exact[name]) if answer and name in answer else None

    def _candidate_gap(self, name: str, i: int, level: str) -> Gap | None:
        answer, exact = self._runs[level].candidate[i], self._trials[i].candidate
        return gap(answer[name], exact[name]) if answer and name in answer and name in exact else None


def _type_error(value: Array, exact: Array) -> float:
    """Root mean square of what is lost by rounding exact numbers to the type of a value."""
    if value.dtype.kind != "f":
        return 0.0
    info = np.finfo(value.dtype)
    finite = exact[np.isfinite(exact)]
    return float(info.eps) / 2 * rms(finite) / math.sqrt(3) + float(info.smallest_subnormal) / 2


def _half(exact: Array) -> float:
    """An error so large that the answer is mostly wrong."""
    if exact.dtype.kind != "f":
        return _QUARTER
    return _HALF * rms(exact[np.isfinite(exact)]) or math.ulp(0.0)


def _over(error: float, explained: float) -> float:
    if error == 0:
        return 0.0
    return error / explained if explained else math.inf


def _blame(check: RuntimeCheck, path: Path, tolerance: float) -> str:
    what = f"output '{check.output}' of '{path}' in onnxruntime (optimizations {check.level}, {check.feed})"
    if check.candidate_error == 0:  # what is off is no number
        return (
            f"{what} has NaN or infinities in other places than its own exact values, and the reference fewer"
        )
    return (
        f"{what} is off by {check.candidate_error:.3g} from its own exact values, {check.ratio:.3g} times "
        f"what rounding and the reference's error there ({check.reference_error:.3g}) explain; {tolerance:g} "
        "times is accepted"
    )
