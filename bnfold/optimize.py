"""What users do with model files: `optimize` writes the folded, checked model; `inspect` only looks.

A path may be "-": the standard input or output. Nothing is written before the check has passed, and a
model that is only looked at leaves no trace beside the user's files.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .changes import Changes
from .constants import FLOATS, Constant
from .errors import InputError, NotEquivalent, OutputError, Undecided
from .facts import Facts, Op
from .fold import fold, inline
from .model import is_trainable, load, rest, stage, to_bytes
from .places import STREAM, beside, copy, need_free, scratch, streamed, title, write_out
from .recalibration import RecalibrateReport
from .report import (
    BatchNormFacts,
    Counts,
    Decision,
    Declined,
    FoldReport,
    InspectReport,
    OptimizeReport,
)
from .sketch import Sketch
from .verification import Verdict, VerifyReport
from .verify import verify as compare

_NOTHING = FoldReport((), Counts(0, 0, 0), Counts(0, 0, 0), modified=False)


def optimize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
    only: str | None = None,
    verify: Literal["full", "fast", "none"] = "fast",
    freeze_initializers: bool = False,
    inline_functions: bool = False,
    recalibrate: Callable[[str, Path], RecalibrateReport] | None = None,
    changes: bool = False,
    progress: Callable[[float], None] | None = None,
) -> OptimizeReport:
    """Fold the BatchNormalizations of a model file, compare the result with the original, and write it.

    Args:
        source: The model; "-" is the standard input.
        target: Where the result goes; "-" is the standard output, then as one piece. None means
            `<stem>.folded.onnx` beside the source, or the standard output for a source "-".
        force: Whether a file that is there may be replaced.
        dry_run: Do everything but write the result.
        only: "batchnorm" leaves runs without a BatchNormalization alone; None folds all.
        verify: "fast" compares both models in float64 and recomputes every folded constant exactly;
            "full" also runs both in onnxruntime; "none" trusts the fold. There is nothing to compare when
            nothing was changed.
        freeze_initializers: Make initializers that are also inputs (IR version 4 and later: a caller
            may override them) constants, and remove them from the inputs.
        inline_functions: Inline local functions first, so that weights that are arguments can fold.
        recalibrate: Called first, with the source and the path at which it leaves a model that is taken
            instead: `functools.partial(bnfold.recalibrate, data=...)`.
        changes: Whether the report says what became of the graph and of each weight, to be drawn.
        progress: Called with the share of the comparison that is done, from 0 to 1.

    Returns:
        What was folded, what stays and why, and the comparison.

    Raises:
        InputError: The source cannot be read, or it is no valid model.
        OutputError: The target exists and `force` is not given, or it cannot be written.
        NotEquivalent: The result does not compute what the original computes. Nothing was written.
        Undecided: They could not be compared. Nothing was written.
    """
    origin = os.fspath(source)
    goal = beside(origin, ".folded.onnx") if target is None else os.fspath(target)
    work = partial(
        deliver,
        goal=goal,
        called=origin,
        force=force,
        dry_run=dry_run,
        only=only,
        verify=verify,
        freeze_initializers=freeze_initializers,
        inline_functions=inline_functions,
        changes=changes,
        progress=progress,
    )
    if recalibrate is None:
        return work(origin)
    if not dry_run:
        need_free(goal, force=force)
    with scratch() as folder:
        recalibrated = folder / "recalibrated.onnx"
        try:
            first = replace(recalibrate(origin, recalibrated), target=None)
        except OutputError as error:  # nobody knows that file
            raise OutputError(str(error).replace(str(recalibrated), "a temporary file")) from error
        return replace(work(str(recalibrated)), recalibration=first)


def deliver(
    origin: str,
    goal: str,
    *,
    called: str,
    force: bool,
    dry_run: bool,
    only: str | None,
    verify: Literal["full", "fast", "none"],
    freeze_initializers: bool = False,
    inline_functions: bool = False,
    folds: bool = True,
    witness: Callable[[Path, OptimizeReport], None] | None = None,
    changes: bool = False,
    progress: Callable[[float], None] | None = None,
) -> OptimizeReport:
    """What `optimize` does, for a model that may have been made from something else.

    Args:
        origin: The file of the model.
        goal: Where the result goes.
        called: What the user calls what the model was made from.
        folds: Whether anything is folded.
        witness: Called with a file of the result, and what was found until then, before the result counts;
            raises if it must not.
        force, dry_run, only, verify, freeze_initializers, inline_functions, changes, progress: As for
            `optimize`.

    Raises:
        BnfoldError: As `optimize`, and what `witness` raises.
    """
    with _collector_off(), scratch() as folder:
        content = streamed(origin)
        model = load(origin if content is None else io.BytesIO(content))
        folded, drawn = _NOTHING, None
        if folds:
            folded, drawn = _fold(model, called, only, freeze_initializers, inline_functions, changes)
        judge = _Judge(
            called, goal, folded, freeze_initializers, inline_functions, verify == "full", drawn, progress
        )
        compared = verify != "none" and folded.modified
        original = Path(origin)
        if content is not None and compared:
            original = copy(content, folder / "original.onnx")

        def examine(result: Path) -> VerifyReport | None:
            found = judge.need_pass(original, result) if compared else None
            if witness is not None:
                witness(result, OptimizeReport(called, None, folded, found, changes=drawn))
            return found

        verification = None
        examined = compared or witness is not None
        if goal == STREAM:
            result = to_bytes(model)
            if examined:
                verification = examine(copy(result, folder / "result.onnx"))
            if not dry_run:
                write_out(result)
        elif examined or not dry_run:
            place = folder / "result.onnx" if dry_run else goal
            with stage(model, place, force=force) as staged:
                if examined:
                    rest(model)  # the comparison reads the files by itself
                    verification = examine(Path(staged.path))
                staged.commit()
    return OptimizeReport(called, None if dry_run else goal, folded, verification, changes=drawn)


def inspect(
    source: str | os.PathLike[str],
    *,
    only: str | None = None,
    freeze_initializers: bool = False,
    inline_functions: bool = False,
    changes: bool = False,
) -> InspectReport:
    """Say what BatchNormalizations a model file has, and what would become of them; nothing is written.

    Args:
        source: The model; "-" is the standard input.
        only: As for `optimize`.
        freeze_initializers: As for `optimize`.
        inline_functions: As for `optimize`.
        changes: As for `optimize`.

    Raises:
        InputError: The source cannot be read, or it is no valid model.
    """
    origin = os.fspath(source)
    with _collector_off():
        model = load(sys.stdin.buffer if origin == STREAM else origin)
        if inline_functions and model.functions:  # here, so that the names below are those of the decisions
            with _naming(origin):
                inline(model)
        return look(model, origin, only=only, freeze_initializers=freeze_initializers, changes=changes)


def look(
    model: ir.Model,
    called: str,
    *,
    only: str | None = None,
    freeze_initializers: bool = False,
    changes: bool = False,
) -> InspectReport:
    """What `inspect` says of a model that is open; it is folded on the way.

    Raises:
        InputError: It is no valid model.
    """
    found = list(_batchnorms(model))
    folded, drawn = _fold(model, called, only, freeze_initializers, inline_functions=False, changes=changes)
    return InspectReport(called, tuple(_facts(found, folded.decisions)), folded, drawn)


def _fold(
    model: ir.Model,
    origin: str,
    only: str | None,
    freeze_initializers: bool,
    inline_functions: bool,
    changes: bool,
) -> tuple[FoldReport, Changes | None]:
    """`fold`, with errors that name the file as well; and what it changed, if that is asked for."""
    if is_trainable(model):
        raise InputError(
            f"{title(origin)}: has training_info, whose graphs use the weights by name, so they cannot be "
            "folded; remove it first, or export the model for inference"
        )
    sketch = Sketch() if changes else None
    with _naming(origin):
        folded = fold(
            model,
            only=only,
            freeze_initializers=freeze_initializers,
            inline_functions=inline_functions,
            watch=sketch,
        )
    return folded, None if sketch is None else sketch.changes()


@contextmanager
def _naming(origin: str) -> Iterator[None]:
    """Errors about a model name its file as well."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{title(origin)}: {error}") from error


@dataclass(frozen=True)
class _Judge:
    """Decides whether a result may be written.

    Attributes:
        origin, goal: What the user calls the two files.
        folded: What was done.
        freeze_initializers, inline_functions: As for `optimize`; they change what a model says of itself.
        runtime: Whether onnxruntime is asked.
        drawn: What was changed, for the report.
        progress: As for `optimize`.
    """

    origin: str
    goal: str
    folded: FoldReport
    freeze_initializers: bool
    inline_functions: bool
    runtime: bool
    drawn: Changes | None
    progress: Callable[[float], None] | None

    def need_pass(self, original: Path, result: Path) -> VerifyReport:
        """The comparison, if it says that the two are the same function."""
        report = compare(
            original, result, runtime=self.runtime, formulas=self.folded.formulas, progress=self.progress
        )
        # Temporary names mean nothing to the reader, and the files are gone when the message is read.
        why = report.message.replace(str(result), self.goal).replace(str(original), self.origin)
        report = replace(report, reference=self.origin, candidate=self.goal, message=why)
        whole = OptimizeReport(self.origin, None, self.folded, report, changes=self.drawn)
        if report.verdict is Verdict.UNDECIDED:
            raise Undecided(
                f"{title(self.origin)}: whether the folded model is equivalent could not be decided: "
                f"{why}; nothing was written (--verify none writes the result unchecked)",
                whole,
            )
        if report.verdict is Verdict.PASS:
            unlike = [d for d in report.differences if d.what not in self._expected]
            if not unlike:
                return report
            why = f"its {unlike[0].what} is {unlike[0].candidate} instead of {unlike[0].reference}"
        raise NotEquivalent(
            f"{title(self.origin)}: the folded model is not equivalent: {why}; nothing was written; please "
            "report this as a bug of bnfold (--verify none writes the result unchecked)",
            whole,
        )

    @property
    def _expected(self) -> set[str]:
        """What may differ because it was asked for."""
        frozen = {"input"} if self.freeze_initializers else set()
        return frozen | ({"opset", "operator domains"} if self.inline_functions else set())


@contextmanager
def _collector_off() -> Iterator[None]:
    """Without Python's cyclic collector: a model is a hundred thousand objects that all refer to one
    another and stay, and looking through them again and again finds nothing."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


# What inspect sees


class _Glance:
    """A BatchNormalization as it is before the fold.

    Attributes:
        graph: The path of its graph, as in `Decision`.
        node: Its name.
        channels: C; None when not known.
        scale, mean, var: Shape (C,); None when not known. `numbers` holds all that are.
    """

    def __init__(self, op: Op, graph: str) -> None:
        self.graph = graph
        self.node = op.name
        self.scale, bias, self.mean, self.var = (_numbers(op, i) for i in (1, 2, 3, 4))
        self.numbers = [a for a in (self.scale, bias, self.mean, self.var) if a is not None]
        self.channels = next((a.size for a in self.numbers), _channels_of_data(op))

    def facts(self, decision: Decision) -> BatchNormFacts:
        c = self.channels
        dead = np.zeros(c or 0, bool)
        for numbers in (self.scale, self.var):
            if numbers is not None and numbers.shape == dead.shape:
                dead |= numbers == 0
        untouched = self.mean is not None and self.var is not None
        return BatchNormFacts(
            decision=decision,
            node=self.node,
            channels=c,
            parameters=None if c is None else 4 * c,
            trained=None if c is None else 2 * c,
            untouched=untouched and not np.any(self.mean) and bool(np.all(self.var == 1)),
            dead=int(dead.sum()),
            non_finite=sum(int(np.count_nonzero(~np.isfinite(a))) for a in self.numbers),
        )


def _batchnorms(model: ir.Model) -> Iterator[_Glance]:
    facts = Facts(model)
    for scope in facts.scopes:
        for node in scope.graph:
            if node.op_type == "BatchNormalization" and facts.is_standard(node):
                yield _Glance(facts.op(node), scope.path)


def _numbers(op: Op, i: int) -> NDArray[np.float64] | None:
    """Parameter i as it is stored, also where a caller may override it; None if it is computed from data."""
    value = op.input(i)
    if value is None:
        return None
    try:
        constant = op.facts.constant(value)
    except Declined:
        constant = None
    if constant is None and value.const_value is not None and value.const_value.dtype.is_floating_point():
        constant = Constant(value.const_value.numpy())
    return constant.rounded().astype(np.float64) if constant and constant.dtype in FLOATS else None


def _channels_of_data(op: Op) -> int | None:
    data = op.input(0)
    rank = None if data is None else op.facts.rank(data)
    size = op.facts.dim(data, 1) if data is not None and rank is not None and rank > 1 else None
    return size if isinstance(size, int) else None


def _facts(found: list[_Glance], decisions: tuple[Decision, ...]) -> Iterator[BatchNormFacts]:
    """Each with its decision; names need not be unique, but decisions come in the order of the graph."""
    waiting: defaultdict[tuple[str, str], deque[Decision]] = defaultdict(deque)
    for decision in decisions:
        for node, kind in zip(decision.nodes, decision.op_types, strict=True):
            if kind == "BatchNormalization":
                waiting[decision.graph, node].append(decision)
    for glance in found:
        yield glance.facts(waiting[glance.graph, glance.node].popleft())
