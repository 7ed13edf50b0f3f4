"""What was decided and why, as plain data.

`Reason` is closed and its codes never change, machines and tests may rely on them; the sentences may
get better. `Declined` is how a rule says no: the recogniser and the planner turn it into a
`Decision`, and it never leaves the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Self, TypeAlias

from .changes import Changes
from .formulas import Formula
from .recalibration import RecalibrateReport
from .verification import TensorCheck, Verdict, VerifyReport

SCHEMA_VERSION = 1


class Reason(StrEnum):
    """Why an affine node stays. The value is the code; 1xx the node itself, 2xx the way to its
    neighbours, 3xx the algebra of a neighbour, 4xx the constants, 5xx the numbers."""

    sentence: str
    remedy: str

    def __new__(cls, code: str, sentence: str, remedy: str) -> Self:
        member = str.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        member.remedy = remedy
        return member

    TRAINING_MODE = (
        "BNF101",
        "The BatchNormalization runs in training mode: it uses the statistics of each batch.",
        "Export the model in evaluation mode (in PyTorch: model.eval() before the export).",
    )
    EXTRA_OUTPUTS = (
        "BNF102",
        "The BatchNormalization declares a number of outputs that inference mode does not have.",
        "Remove the extra outputs, or export the model again in evaluation mode.",
    )
    SPATIAL = (
        "BNF103",
        "The BatchNormalization has spatial=0: its parameters vary per position, not only per channel.",
        "Export with spatial=1; parameters per position cannot be part of a convolution.",
    )
    RUNTIME_PARAMETERS = (
        "BNF104",
        "A parameter of the normalization is computed at run time, so its value is not known.",
        "Make scale, bias, mean and variance constants of the model.",
    )
    NOT_PER_CHANNEL = (
        "BNF105",
        "The constant is not one number per index of a single axis, or it broadcasts the data.",
        "Nothing to do, unless the constant was meant to be per channel: then give it the shape [C, 1, ...].",
    )
    NEGATIVE_VARIANCE = (
        "BNF106",
        "The variance plus epsilon is not positive, so its square root is not a positive number.",
        "Recalibrate or repair the running variance of this layer.",
    )
    NOT_FINITE = (
        "BNF107",
        "A constant that takes part holds NaN or infinity.",
        "Repair the named constant; training most likely diverged there.",
    )
    FROM_CONSTANT = (
        "BNF108",
        "The affine is applied to a constant, so there is no operator to fold it into.",
        "Run a constant-folding tool first.",
    )
    SEVERAL_READERS = (
        "BNF201",
        "A value on the way is read by several nodes, and the others need it as it is.",
        "Nothing to do: folding would change what the other readers see.",
    )
    GRAPH_OUTPUT = (
        "BNF202",
        "A value on the way is an output of its graph, so it has to stay what it is.",
        "Drop that output from the model if nobody needs it.",
    )
    CAPTURED = (
        "BNF203",
        "A value on the way is read across the border of an inner graph (If, Loop, Scan).",
        "Nothing to do, unless the control flow can be removed before the export.",
    )
    GRAPH_INPUT = (
        "BNF204",
        "The data comes straight from an input of the graph: there is no operator before it.",
        "Nothing to do: the readers after it were tried as well.",
    )
    FUNCTION_ARGUMENT = (
        "BNF205",
        "A constant is an argument of a local function, so it differs from call to call.",
        "Use --inline-functions.",
    )
    UNREAD = (
        "BNF206",
        "Nothing reads the result, so there is no operator after it.",
        "Remove the dead node.",
    )
    UNTRACED = (
        "BNF207",
        "The code around the module cannot be traced, so what comes before and after it is not known.",
        "Keep the control flow of that code free of tensors, or export the model and fold it as ONNX.",
    )
    IN_CODE = (
        "BNF208",
        "The fold would have to change code that is kept as it is.",
        "Fold a copy instead of the module itself, or make the call a module of its own.",
    )
    MUTATED = (
        "BNF209",
        "A value on the way is changed in place while others still read it.",
        "Use the variant of the operation that makes a new tensor (inplace=False).",
    )
    NOT_LINEAR = (
        "BNF301",
        "The neighbouring operator does not commute with an affine map.",
        "Nothing to do: no exact fold exists.",
    )
    AXIS = (
        "BNF302",
        "The affine lies along another axis than the one the neighbouring operator's weights cover.",
        "Check the shape of the constant: [C] is aligned to the last axis, [C, 1, 1] to the channels.",
    )
    PADDING = (
        "BNF303",
        "Zero padding reaches the input, so a shift before the operator is not a bias after it.",
        "Train or export with the normalization after the convolution, or without padding.",
    )
    SIGN = (
        "BNF304",
        "The operator only commutes with positive scales, and at least one scale is not positive.",
        "Nothing to do: a maximum turns into a minimum under a negative scale.",
    )
    SHIFT = (
        "BNF305",
        "The operator passes a scale, but not the shift.",
        "Nothing to do: no exact fold exists.",
    )
    BROADCAST = (
        "BNF306",
        "An operand is broadcast along the axis of the affine, so it cannot take a value per channel.",
        "Nothing to do: no exact fold exists.",
    )
    MIXED_CHANNELS = (
        "BNF307",
        "The operator mixes channels that have different scales or shifts.",
        "Nothing to do: no exact fold exists.",
    )
    PARTS_DISAGREE = (
        "BNF308",
        "The operator is reached by several affines that are not the same.",
        "Nothing to do: no exact fold exists.",
    )
    OTHER_OUTPUT = (
        "BNF309",
        "Another output of the operator (indices, mask, statistics) is in use and would change.",
        "Nothing to do, unless that output is not needed.",
    )
    OVERRIDABLE = (
        "BNF401",
        "The constant is also an input of the graph, so a caller may override it.",
        "Use --freeze-initializers to make such inputs constants and remove them from the signature.",
    )
    QUANTIZED = (
        "BNF402",
        "The weight is quantized; the fold would need new quantization parameters.",
        "Fold before quantizing.",
    )
    TOO_LARGE = (
        "BNF403",
        "The constant is computed by the model and would be larger than the limit.",
        "Store the constant in the model instead of computing it.",
    )
    DTYPE = (
        "BNF404",
        "The constant has a type that cannot hold the folded value.",
        "Store the weights in a floating type.",
    )
    UNKNOWN_SHAPE = (
        "BNF405",
        "The fold needs a rank or a size that the model does not tell.",
        "Run shape inference on the model, or export it with static channel counts.",
    )
    NOT_STATIC = (
        "BNF406",
        "An argument of the operator that decides the fold (sizes, axes, padding) is not a constant.",
        "Export with that argument as a constant.",
    )
    NOT_CONSTANT = (
        "BNF407",
        "The operand that would take the affine is computed at run time, and cannot pass it on.",
        "Make the weight a constant of the model.",
    )
    MALFORMED = (
        "BNF408",
        "The node does not fit the definition of its operator.",
        "Check the model with onnx.checker.check_model(path, full_check=True).",
    )
    OVERFLOW = (
        "BNF501",
        "A folded value would exceed the range of its type.",
        "Store the weights in a wider type.",
    )
    UNDERFLOW = (
        "BNF502",
        "The folded weights of a channel would vanish or lose their precision in float16.",
        "Store the weights in a wider type.",
    )
    NARROWER = (
        "BNF503",
        "Behind a Cast, the affine would be computed in a type of fewer digits than before.",
        "Cast after the normalization, or store the weights in the wider type.",
    )
    NO_GAIN = (
        "BNF601",
        "A fold exists, but it would leave as many affine nodes behind as it removes.",
        "Nothing to do: the model is as small as this fold can make it.",
    )


class Declined(Exception):
    """A rule or a reader of facts says no.

    Attributes:
        reason: The code.
        detail: What exactly stood in the way, naming node, value and numbers.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Outcome(StrEnum):
    """What happened to a site (a run of affine nodes)."""

    PULLED = "pulled"  # into the operators before it ("backward fold" elsewhere)
    PUSHED = "pushed"  # into the operators after it ("forward fold" elsewhere)
    REMOVED = "removed"  # it was the identity
    MERGED = "merged"  # several nodes became fewer
    KEPT = "kept"


@dataclass(frozen=True)
class Decision:
    """One site and its fate.

    Attributes:
        graph: Where: "" for the main graph, else the path of the inner graph or function.
        nodes: The names of the site's nodes in the original model, in order (a nameless node is
            called by its output).
        op_types: Their operators.
        value: The name of the value that the site computed.
        channels: Length of scale and shift; None for a scalar or when not known.
        outcome: What happened.
        into: Names of the nodes whose constants took the affine.
        into_types: Their operators.
        left: Operators that had to stay behind ("Add").
        reason: Why it was kept, or why what a merge left of it stays; None otherwise.
        detail: The reason's particulars; for folds, a precision note or "".
    """

    graph: str
    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    value: str
    channels: int | None
    outcome: Outcome
    into: tuple[str, ...] = ()
    into_types: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    reason: Reason | None = None
    detail: str = ""

    @property
    def batchnorms(self) -> int:
        """How many BatchNormalization nodes the site held."""
        return self.op_types.count("BatchNormalization")


@dataclass(frozen=True)
class Counts:
    """How many nodes of which kind a model has, inner graphs and functions included.

    Attributes:
        batchnorms: BatchNormalization nodes, in any mode.
        affines: Mul, Add, Sub, Div, Neg nodes by a constant that are affine maps of floats.
        nodes: All nodes.
    """

    batchnorms: int
    affines: int
    nodes: int


@dataclass(frozen=True)
class FoldReport:
    """What `fold` did.

    Attributes:
        decisions: One per site, in the order of the graph.
        before: Counts before the fold.
        after: Counts after it.
        modified: Whether the model was changed at all.
        formulas: What each constant that the fold made is, by name, in terms of the original's constants:
            see `formulas`. None for one whose origin got lost. Not part of `as_dict`.
    """

    decisions: tuple[Decision, ...]
    before: Counts
    after: Counts
    modified: bool
    formulas: Mapping[str, Formula | None] = field(default_factory=dict, repr=False)

    @property
    def kept(self) -> tuple[Decision, ...]:
        """The sites that stay."""
        return tuple(d for d in self.decisions if d.outcome is Outcome.KEPT)


@dataclass(frozen=True)
class OptimizeReport:
    """What `optimize` did.

    Attributes:
        source: The model that was read ("-" for standard input).
        target: Where the result went; None when nothing was written.
        fold: What was folded.
        verification: The comparison with the original; None when it was not asked for, or nothing was
            changed.
        recalibration: What was done to the statistics before; None if nothing was. The original that the
            result was compared with is then the recalibrated one.
        changes: What became of the graph, for pictures; None when not asked for. Not part of `as_dict`.
    """

    source: str
    target: str | None
    fold: FoldReport
    verification: VerifyReport | None
    recalibration: RecalibrateReport | None = None
    changes: Changes | None = None


@dataclass(frozen=True)
class ModuleCheck:
    """An exported model against the PyTorch module that it was made from.

    Attributes:
        verdict: Undecided where nothing could be compared.
        precision: Of the module: "double", or "own" where it does not run in double precision.
        tolerance: The largest ratio that passes.
        outputs: One entry per output.
        draws: How many runs with nudged constants the noise was taken from.
        feeds: What both were fed, in words, one entry per feed.
        message: What decided, in words; "" on a pass.
        note: Why the module was compared in its own precision; "" otherwise.
    """

    verdict: Verdict
    precision: str
    tolerance: float
    outputs: tuple[TensorCheck, ...] = ()
    draws: int = 0
    feeds: tuple[str, ...] = ()
    message: str = ""
    note: str = ""


@dataclass(frozen=True)
class ExportReport:
    """What `export` did.

    Attributes:
        source: What the module is called.
        target: Where the result went; None when nothing was written.
        notes: What the user should know of how it was loaded and exported, one line each.
        inputs: The model's inputs, as "x: float[N, 3, 224, 224]".
        outputs: Its outputs.
        opset: Its version of the ONNX operators.
        batchnorms: How many BatchNormalizations it has.
        fold: What was folded; None when that was not asked for.
        verification: The folded model against the exported one; None when it was not asked for, or nothing
            was folded.
        module: The result against the module; None when not asked for.
        changes: As for `OptimizeReport`.
    """

    source: str
    target: str | None
    notes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    batchnorms: int
    fold: FoldReport | None
    verification: VerifyReport | None
    module: ModuleCheck | None
    changes: Changes | None = None


@dataclass(frozen=True)
class BatchNormFacts:
    """A BatchNormalization at a glance.

    Attributes:
        decision: Its site and what would happen to it.
        node: Its name.
        channels: C; None when not known.
        parameters: 4C stored numbers; None when not known.
        trained: 2C of them (scale and bias) are trained.
        untouched: Whether mean is all 0 and variance all 1, as before any training.
        dead: Channels whose scale is 0 or whose variance is 0.
        non_finite: Numbers among the 4C that are NaN or infinite.
    """

    decision: Decision
    node: str
    channels: int | None
    parameters: int | None
    trained: int | None
    untouched: bool
    dead: int
    non_finite: int


@dataclass(frozen=True)
class InspectReport:
    """What `inspect` found.

    Attributes:
        source: The model that was read.
        batchnorms: One entry per BatchNormalization.
        fold: What `fold` would do.
        changes: What would become of the graph, as for `OptimizeReport`.
    """

    source: str
    batchnorms: tuple[BatchNormFacts, ...]
    fold: FoldReport
    changes: Changes | None = None

    @property
    def foldable(self) -> tuple[BatchNormFacts, ...]:
        """The BatchNormalizations that would be gone. Of a merged run, the last ones are."""
        staying = {
            id(d): d.batchnorms if d.outcome is Outcome.KEPT else d.left.count("BatchNormalization")
            for d in self.fold.decisions
        }
        gone = []
        for b in self.batchnorms:
            staying[id(b.decision)] -= 1
            if staying[id(b.decision)] < 0:
                gone.append(b)
        return tuple(gone)


@dataclass(frozen=True)
class FailureReport:
    """A command that came to no result.

    Attributes:
        source: What the user calls the model; "" when it did not come that far.
        message: What, where, why, and what to do.
        exit_code: What the command line answers.
    """

    source: str
    message: str
    exit_code: int


Report: TypeAlias = (
    OptimizeReport | ExportReport | InspectReport | VerifyReport | RecalibrateReport | FailureReport
)


def as_dict(report: Report) -> dict[str, Any]:
    """The report as JSON-ready data, with its `schema_version`."""
    if isinstance(report, OptimizeReport | ExportReport | InspectReport):
        report = replace(report, changes=None)
        if report.fold is not None:  # its formulas share parts, which no JSON can
            report = replace(report, fold=replace(report.fold, formulas={}))
    data = asdict(report)
    data.pop("changes", None)
    if data.get("fold") is not None:
        del data["fold"]["formulas"]
    return {"schema_version": SCHEMA_VERSION, **data}
