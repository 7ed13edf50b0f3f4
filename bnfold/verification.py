"""What a comparison of two models found, as plain data.

R(model) stands for the model run in float64, where folding and rounding of weights are all that two
models can differ by.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from .changes import Size

ULP_EDGES = (0.0, *(2.0**k for k in range(-1, 25)))
"""Upper edges of the bins of `Metrics.ulp_histogram`; one more bin holds all that is larger."""


class Verdict(StrEnum):
    """What a comparison says."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Limit:
    """|candidate - reference| ≤ atol + rtol · |reference|: a criterion of one's own for an output.

    Attributes:
        rtol: Relative to the reference's value.
        atol: Absolute.
    """

    rtol: float = 0.0
    atol: float = 0.0


@dataclass(frozen=True)
class Difference:
    """Something about the two models themselves that is not alike.

    Attributes:
        what: "inputs", "outputs", "opset", "ir_version", "domains", "metadata", ...
        reference: As the reference has it.
        candidate: As the candidate has it.
    """

    what: str
    reference: str
    candidate: str


@dataclass(frozen=True)
class TensorCheck:
    """A tensor that both models compute under one name, compared in float64.

    Attributes:
        name: Its name.
        node: The reference's node that computes it, as "OpType 'name'"; "" for a graph input.
        error: Root mean square of R(candidate) - R(reference): over the whole tensor, or over the
            part of it that `part` names.
        noise: Root mean square, over the same elements and all draws, of R(reference with nudged
            constants) - R(reference).
        ratio: error / noise; 0 when both are 0.
        part: "" for the whole tensor, else the worst part ("index 3 of axis 1").
        alone: Whether that was found with every shared tensor before it taken from the reference.
        passed: Whether it is within the tolerance.
        problem: What else is wrong (shape, mask of NaN or infinity, integers that differ), or "".
        order: Its place in the order of computation.
    """

    name: str
    node: str
    error: float
    noise: float
    ratio: float
    part: str
    alone: bool
    passed: bool
    problem: str = ""
    order: int = 0


@dataclass(frozen=True)
class Metrics:
    """How far one output is from the reference's, in figures that people know; none of them decides.

    They are those of one feed: that on which the largest difference was seen.

    Attributes:
        max_abs: Largest absolute difference.
        max_rel: Largest difference relative to the reference's value, where that is not 0.
        ulp_p50, ulp_p99, ulp_max: Quantiles of the difference in units in the last place of the
            output's declared type at the reference's value.
        snr_db: 10 log10(Σ reference² / Σ difference²); infinite when they are equal.
        cosine: Cosine of the angle between the two as vectors.
        top1: Share of rows (last axis) whose largest element is the same; None below two columns.
        ulp_histogram: How many elements differ by so many units in the last place, per bin of `ULP_EDGES`.
    """

    max_abs: float
    max_rel: float
    ulp_p50: float
    ulp_p99: float
    ulp_max: float
    snr_db: float
    cosine: float
    top1: float | None
    ulp_histogram: tuple[int, ...] = ()


@dataclass(frozen=True)
class OutputCheck:
    """One graph output of both models.

    Attributes:
        name: Its name.
        check: The comparison; None if the output could not be compared.
        metrics: Figures beside it; None for outputs that are no floats, and where there is no check.
        missing: Why it could not be compared, or "".
        decided: Whether it is known to be alike or not; one that could not be compared is, where in both
            models the same nodes compute it from tensors that were compared.
    """

    name: str
    check: TensorCheck | None
    metrics: Metrics | None = None
    missing: str = ""
    decided: bool = True


@dataclass(frozen=True)
class AlgebraReport:
    """The algebra gate: both models in float64.

    Attributes:
        verdict: Fail if any compared tensor is beyond tolerance; undecided if an output could not be
            compared; else pass.
        outputs: One entry per output of the reference, in order.
        tensors: All other tensors whose name both models compute, in order of computation.
        draws: How many nudged runs the noise was taken from.
        feeds: What the models were fed, in words, one entry per feed.
        borrowed: Nodes that float64 arithmetic had to take from onnxruntime.
        message: What decided, in words; "" on a pass.
    """

    verdict: Verdict
    outputs: tuple[OutputCheck, ...] = ()
    tensors: tuple[TensorCheck, ...] = ()
    draws: int = 0
    feeds: tuple[str, ...] = ()
    borrowed: tuple[str, ...] = ()
    message: str = ""

    @property
    def checks(self) -> tuple[TensorCheck, ...]:
        """All that was compared, outputs among the others, in order of computation."""
        outputs = (o.check for o in self.outputs if o.check is not None)
        return tuple(sorted((*self.tensors, *outputs), key=lambda check: check.order))

    @property
    def culprit(self) -> TensorCheck | None:
        """The first tensor beyond tolerance, in order of computation; None on a pass."""
        return next((check for check in self.checks if not check.passed), None)


@dataclass(frozen=True)
class RuntimeCheck:
    """One output of both models in onnxruntime, on one feed, at one optimization level.

    Attributes:
        output: Its name.
        level: "disabled" or "default".
        feed: The sizes fed, in words.
        reference_error: Root mean square of onnxruntime(reference) - R(reference); for integers and
            booleans the share of elements that differ.
        candidate_error: The same for the candidate, against its own R.
        ratio: candidate_error over the largest of reference_error (also that with optimizations
            disabled), what the type itself cannot hold, and what rounding inside may do.
        passed: Whether the ratio is within the tolerance, or only a few decisions fell otherwise.
    """

    output: str
    level: str
    feed: str
    reference_error: float
    candidate_error: float
    ratio: float
    passed: bool


@dataclass(frozen=True)
class RuntimeReport:
    """The runtime gate: onnxruntime as a witness.

    Attributes:
        verdict: Undecided where the reference cannot be run.
        checks: What was compared.
        findings: What onnxruntime does wrong by itself (a reference that it computes otherwise at its
            default level, a session that changes from run to run, a crash), one sentence each. They
            decide nothing, and what they are about is not in `checks`.
        message: Why it failed or is not available; "" on a pass.
    """

    verdict: Verdict
    checks: tuple[RuntimeCheck, ...] = ()
    findings: tuple[str, ...] = ()
    message: str = ""


@dataclass(frozen=True)
class Certificate:
    """Folded constants against their exact values.

    Attributes:
        verdict: Pass if every one is correctly rounded; undecided if the fold left no account of them.
        parameters: How many constants (tensors) were recomputed.
        elements: How many numbers those hold.
        correctly_rounded: How many constants have all numbers correctly rounded.
        worst_ulp: Largest distance from the exact value, in units in the last place.
        message: The first that is not, or why there is no certificate; "" on a pass.
    """

    verdict: Verdict
    parameters: int = 0
    elements: int = 0
    correctly_rounded: int = 0
    worst_ulp: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class VerifyReport:
    """Are two models the same function?

    Attributes:
        reference, candidate: The files.
        verdict: Fail if any part failed; undecided if nothing failed but an output could not be
            compared; else pass.
        tolerance: The largest ratio that passes.
        seed: What inputs and nudges were drawn from.
        differences: What the two say of themselves that is not alike.
        algebra: The comparison in float64.
        runtime: The comparison in onnxruntime; None when not asked for.
        certificate: The folded constants recomputed; None when there is no account of a fold.
        message: What decided, and where; "" on a pass.
        sizes: Of the reference and of the candidate.
    """

    reference: str
    candidate: str
    verdict: Verdict
    tolerance: float
    seed: int
    differences: tuple[Difference, ...]
    algebra: AlgebraReport
    runtime: RuntimeReport | None = None
    certificate: Certificate | None = None
    message: str = ""
    sizes: tuple[Size, Size] | None = None

    @property
    def culprit(self) -> TensorCheck | None:
        """The first tensor beyond tolerance, in order of computation; None on a pass."""
        return self.algebra.culprit
