"""Are two models the same function, up to the rounding that any stored model has?

Four parts answer: what the models say of themselves (`structure`), both in float64 (`algebra_gate`), both
in onnxruntime (`runtime_gate`), and the folded constants recomputed (`certificate`). Nothing passes
without having been compared, and nothing here is shared with the code that folds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path

import numpy as np

from .algebra_gate import DRAWS, CandidateFails, Comparison
from .errors import InputError
from .evaluate import EvaluationError, Program
from .feeds import Binding, Feed, Unfeedable, bindings
from .formulas import Formula
from .session import Session
from .structure import differences, element, size
from .verification import AlgebraReport, Certificate, Limit, RuntimeReport, Verdict, VerifyReport

# Two walks of each kind, of four draws: what goes astray must be known before the first walk alone.
_THROUGH, _ALONE = False, True
_WALKS = (_THROUGH, _ALONE, _THROUGH, _ALONE)
# Which distribution a feed begins with: those with much in them first, for one sample may be all there is.
_OFFSETS = (0, 2, 1, 0)
# An output of few elements gives a lucky draw too much weight: it gets twice the draws.
_TINY, _MORE_FOR_TINY = 64, (_THROUGH, _THROUGH)
# Walks that may follow while a ratio is neither clearly good nor hopeless.
_EXTRA = 4
# Feeds that onnxruntime is asked about, if more are given: all their outputs are kept until they are judged.
_WITNESSED = 8
# Above so many elements per sample, one sample at a time; and two at the end, at a glance, for what goes
# wrong between samples.
_LARGE = 1 << 15
_POINTER = b"version https://git-lfs"  # how those of Git LFS begin

Formulas = Mapping[str, Formula | None]


def verify(
    reference: str | os.PathLike[str],
    candidate: str | os.PathLike[str],
    *,
    tolerance: float = 4.0,
    limits: Mapping[str, Limit] | None = None,
    inputs: str | os.PathLike[str] | None = None,
    sizes: Mapping[str, int] | None = None,
    seed: int = 0,
    by_name: bool = True,
    runtime: bool = True,
    provider: str = "CPUExecutionProvider",
    timeout: float = 300.0,
    formulas: Formulas | None = None,
    progress: Callable[[float], None] | None = None,
    fed: Callable[[Feed], None] | None = None,
) -> VerifyReport:
    """Compare a model with a reference.

    Args:
        reference: The file of the model that is right.
        candidate: The file of the model to judge.
        tolerance: How many times its noise an error may be. The noise is how far the reference's own
            values move when its floating constants do, each by at most the unit roundoff of its type.
        limits: For people who must: absolute and relative limits by which outputs are judged instead,
            by name; "" is for all outputs without their own.
        inputs: What to feed: an .npz or .npy file, a folder of them, or ONNX test data. By default a
            seeded mix of N(0, 1), U[0, 1), 3 N(0, 1) and zeros.
        sizes: Sizes of free dimensions, by symbol; "INPUT[axis]" for one without a symbol.
        seed: Decides inputs and nudges. The same seed gives the same report.
        by_name: Whether inner tensors of the same name must have the same values; False judges the
            outputs alone.
        runtime: Whether onnxruntime is asked as well.
        provider: Its execution provider.
        timeout: Seconds that onnxruntime may take for any single load or run.
        formulas: The account of a fold (`FoldReport.formulas`), to recompute its constants by.
        progress: Called with the share of the work that is done, from 0 to 1.
        fed: Called with every feed that was compared on, in order: those of `algebra.feeds`, then those of
            onnxruntime. Who wants to keep the arrays has to do it there.

    Returns:
        All that was found, and a verdict.

    Raises:
        InputError: A file cannot be read, the two have different inputs, or what is to be fed does not
            fit the model.
    """
    paths = Path(reference), Path(candidate)
    with ExitStack() as stack:

        def session() -> Session:
            return Session(timeout, provider)

        ours, theirs = (opened(path, session, stack) for path in paths)
        _need_same_inputs(ours, theirs, paths)
        limits = limits or {}
        if unknown := limits.keys() - {"", *ours.outputs}:
            raise InputError(
                f"{paths[0]}: has no output '{min(unknown)}' to set a limit for; its outputs are "
                f"{', '.join(ours.outputs)}"
            )
        if inputs is not None and sizes:
            raise InputError(f"{inputs}: the sizes are those of what is given; leave out --shape")
        given = None if inputs is None else _given(Path(inputs), ours)
        planned = len(_WALKS) if given is None else max(len(given), 2) + 2
        certificate = _certificate((ours, theirs), paths, formulas)
        comparison = stack.enter_context(
            Comparison(
                ours,
                theirs,
                tolerance=tolerance,
                seed=seed,
                by_name=by_name,
                limits=limits,
                certified=certificate is not None and certificate.verdict is Verdict.PASS,
                progress=None if progress is None else lambda walks: progress(min(walks / planned, 1.0)),
                fed=fed,
            )
        )
        algebra, binding = _algebra(comparison, paths, given, sizes or {}, seed)
        witnessed = (
            _runtime(session, (ours, theirs), paths, given, binding, tolerance, seed, fed)
            if runtime
            else None
        )
    differ = differences(ours.model, theirs.model)
    verdict, message = _weigh(algebra, witnessed, certificate)
    return VerifyReport(
        str(reference),
        str(candidate),
        verdict,
        tolerance,
        seed,
        differ,
        algebra,
        witnessed,
        certificate,
        message,
        (size(ours.model), size(theirs.model)),
    )


def opened(path: Path, session: Callable[[], Session], stack: ExitStack) -> Program:
    """A model that is ready to be compared, until the stack is closed.

    Raises:
        InputError: It cannot be read.
    """
    from .borrow import Borrower

    if path.is_dir():
        raise InputError(f"{path}: is a folder; name the model file in it")
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; a comparison reads files, no streams")
    if _is_pointer(path):
        raise InputError(f"{path}: is a pointer of Git LFS, not the model itself; run git lfs pull")
    try:
        program = Program(path)
        program.read_constants()  # what is damaged does not depend on what is fed
        borrower = Borrower(program.model, session)
        stack.callback(borrower.close)
        return Program(program.model, folder=path.parent, elsewhere=borrower)
    except EvaluationError as error:
        told = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise InputError(f"{told}; export or copy the model again, with its data") from error


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_POINTER)) == _POINTER
    except OSError:  # the reader says why
        return False


def _need_same_inputs(ours: Program, theirs: Program, paths: tuple[Path, Path]) -> None:
    expected, found = (_inputs(program) for program in (ours, theirs))
    if expected != found:
        raise InputError(
            f"the two models cannot be fed alike: '{paths[0]}' has the inputs {', '.join(expected)}; "
            f"'{paths[1]}' has {', '.join(found)}; rename or cast the inputs of one of them"
        )


def _inputs(program: Program) -> list[str]:
    """Names and types; their order does not matter for feeding by name."""
    return sorted(f"{v.name} ({element(v.type.tensor_type.elem_type)})" for v in program.inputs)


def _certificate(
    programs: tuple[Program, Program], paths: tuple[Path, Path], formulas: Formulas | None
) -> Certificate | None:
    if formulas is None:
        return None
    from .certificate import certify
    from .tensors import Tensors

    original, result = (Tensors(p.model, path.parent) for p, path in zip(programs, paths, strict=True))
    return certify(original, result, formulas)


def _given(path: Path, program: Program) -> list[Feed]:
    from .given import given

    return list(given(path, program.model))


# The algebra gate


def _algebra(
    comparison: Comparison,
    paths: tuple[Path, Path],
    given: list[Feed] | None,
    sizes: Mapping[str, int],
    seed: int,
) -> tuple[AlgebraReport, Binding | None]:
    """Walk as often as it takes. Also returns the binding of the inputs, unless they were given."""
    binding = None
    try:
        if given is not None:
            _walk_given(comparison, given)
        else:
            binding = _walk_drawn(comparison, sizes, seed)
    except CandidateFails as failure:
        message = f"'{paths[1]}' cannot be evaluated where '{paths[0]}' can: {failure}"
        return replace(comparison.report(), verdict=Verdict.FAIL, message=message), binding
    except (EvaluationError, Unfeedable, MemoryError) as error:
        why = str(error)
        if isinstance(error, MemoryError):
            why = f"its values do not fit into memory ({error}); give its free dimensions smaller sizes"
        if given is not None or sizes:
            raise InputError(f"'{paths[0]}' cannot be evaluated on what it is to be fed: {why}") from error
        message = f"nothing was compared, because '{paths[0]}' cannot be evaluated: {why}"
        return AlgebraReport(Verdict.UNDECIDED, message=message), binding
    return comparison.report(), binding


def _walk_given(comparison: Comparison, feeds: Sequence[Feed]) -> None:
    """Through with every feed, twice at least; alone with the first two."""
    for feed in feeds if len(feeds) > 1 else (*feeds, *feeds):
        comparison.walk(feed, alone=_THROUGH)
    for feed in feeds[0], feeds[1 % len(feeds)]:
        comparison.walk(feed, alone=_ALONE)
    _walk_on(comparison, cycle(feeds))


def _walk_drawn(comparison: Comparison, sizes: Mapping[str, int], seed: int) -> Binding:
    """With the first binding of the inputs on which the reference can be evaluated."""
    first: EvaluationError | None = None
    for binding in bindings(comparison.reference.model, sizes):
        feeds = _feeds(binding, seed)
        try:
            comparison.walk(next(feeds), alone=_WALKS[0])
        except EvaluationError as error:
            first = first or error
            continue
        for kind in _WALKS[1:]:
            _try(comparison, next(feeds), kind)
        if _is_large(binding) and binding.batch:
            _try(comparison, _feed(binding, seed, len(_WALKS), 2), _THROUGH, draws=0)
        # Padding and strides do something else at even sizes than at odd ones.
        resized = binding.resized()
        if resized is not None:
            _try(comparison, _feed(resized, seed, 0, 1), _THROUGH, draws=0)
        _walk_on(comparison, feeds)
        return binding
    raise EvaluationError(f"no sizes were found at which it can be; at first: {first}")


def _walk_on(comparison: Comparison, feeds: Iterator[Feed]) -> None:
    """The walks that small outputs and unclear ratios need beside the usual ones."""
    if comparison.smallest_output < _TINY:
        for kind in _MORE_FOR_TINY:
            _try(comparison, next(feeds), kind)
    for _ in range(_EXTRA):
        unclear = [kind for kind in (_THROUGH, _ALONE) if comparison.is_unclear(alone=kind)]
        if not unclear:
            return
        _try(comparison, next(feeds), unclear[0])


def _try(comparison: Comparison, feed: Feed, kind: bool, draws: int = DRAWS) -> None:
    """A walk that counts for nothing if the reference does not bear the feed (all zeros, say)."""
    with suppress(EvaluationError):
        comparison.walk(feed, alone=kind, draws=draws)


def _feeds(binding: Binding, seed: int) -> Iterator[Feed]:
    large = _is_large(binding)
    for i in count():
        yield _feed(binding, seed, i, 1 if large else (2, 3, 1, 4)[i % 4])


def _feed(binding: Binding, seed: int, i: int, batch: int) -> Feed:
    offset = _OFFSETS[i % len(_OFFSETS)]
    arrays = binding.feed(np.random.default_rng([seed, i]), batch, offset)
    return Feed(arrays, binding.describe(batch, offset))


def _is_large(binding: Binding) -> bool:
    return sum(array.size for array in binding.feed(np.random.default_rng(0), 1).values()) > _LARGE


# The other gates


def _runtime(
    session: Callable[[], Session],
    programs: tuple[Program, Program],
    paths: tuple[Path, Path],
    given: list[Feed] | None,
    binding: Binding | None,
    tolerance: float,
    seed: int,
    fed: Callable[[Feed], None] | None,
) -> RuntimeReport:
    from .runtime_gate import feeds_for, witness

    if given is None and binding is None:
        return RuntimeReport(Verdict.UNDECIDED, message="not available: nothing was found to feed the models")
    feeds = feeds_for(binding, seed) if binding is not None else given or []
    with session() as runtime:
        return witness(runtime, *programs, paths, feeds[:_WITNESSED], tolerance=tolerance, seed=seed, fed=fed)


def _weigh(
    algebra: AlgebraReport, runtime: RuntimeReport | None, certificate: Certificate | None
) -> tuple[Verdict, str]:
    for name, part in (("", algebra), ("certificate: ", certificate), ("onnxruntime: ", runtime)):
        if part is not None and part.verdict is Verdict.FAIL:
            return Verdict.FAIL, f"{name}{part.message}"
    return algebra.verdict, algebra.message
