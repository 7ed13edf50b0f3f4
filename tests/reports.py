"""Reports made by hand, of one or two of each thing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bnfold import (
    AlgebraReport,
    BatchNormFacts,
    Counts,
    Decision,
    FoldReport,
    InspectReport,
    LayerReport,
    Method,
    Metrics,
    OptimizeReport,
    Outcome,
    OutputCheck,
    Reason,
    RecalibrateReport,
    TensorCheck,
    Verdict,
    VerifyReport,
)


def decision(name: str, outcome: Outcome = Outcome.PULLED, **changes: object) -> Decision:
    plain = Decision(
        "", (name,), ("BatchNormalization",), name + "_out", 8, outcome, into=("conv",), into_types=("Conv",)
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def kept(name: str, reason: Reason, op_type: str = "BatchNormalization", **changes: object) -> Decision:
    usual = {"op_types": (op_type,), "into": (), "reason": reason, "detail": f"what is at {name}"}
    return decision(name, Outcome.KEPT, **usual | changes)


def check(name: str, ratio: float = 0.5, **changes: object) -> TensorCheck:
    plain = TensorCheck(name, f"Conv '{name}'", ratio * 1e-7, 1e-7, ratio, "", alone=False, passed=ratio <= 4)
    return replace(plain, **changes)  # type: ignore[arg-type]


def verification(*tensors: TensorCheck, **changes: object) -> VerifyReport:
    figures = Metrics(2e-7, 3e-6, 0.5, 1.5, 12.0, 141.2, 1.0, 1.0)
    algebra = AlgebraReport(
        Verdict.PASS, (OutputCheck("y", check("y", 1.96), figures),), tensors, 16, ("N=1, N(0, 1)",) * 4
    )
    plain = VerifyReport("model.onnx", "other.onnx", Verdict.PASS, 4.0, 0, (), algebra)
    return replace(plain, **changes)  # type: ignore[arg-type]


def report(*decisions: Decision, **changes: object) -> OptimizeReport:
    batchnorms = sum(d.batchnorms for d in decisions)
    left = sum(d.batchnorms for d in decisions if d.outcome is Outcome.KEPT)
    fold = FoldReport(decisions, Counts(batchnorms, 4, 90), Counts(left, 3, 80), modified=True)
    whole = OptimizeReport("model.onnx", "model.folded.onnx", fold, verification(check("a"), check("b")))
    return replace(whole, **changes)  # type: ignore[arg-type]


def facts(name: str, **changes: object) -> BatchNormFacts:
    plain = BatchNormFacts(decision(name), name, 8, 32, 16, untouched=False, dead=0, non_finite=0)
    return replace(plain, **changes)  # type: ignore[arg-type]


def inspection(*found: BatchNormFacts) -> InspectReport:
    decisions = tuple(b.decision for b in found)
    fold = FoldReport(decisions, Counts(len(found), 0, 90), Counts(0, 0, 80), modified=True)
    return InspectReport("model.onnx", found, fold)


def layer(name: str = "norm", **figures: float) -> LayerReport:
    facts: dict[str, Any] = {
        **{"level": 0, "channels": 4, "samples": 40, "count": 160, "dead": 0, "untouched": False},
        **{"mean_drift": 0.1, "var_drift": 0.2, "output_drift": 0.3, "mean_error": 0.01, "var_error": 0.02},
        **{"mean_gap": 1e-8, "var_gap": 2e-8, "limit_used": 0.02},
    }
    return LayerReport(name=name, **facts | figures)


def recalibration(*layers: LayerReport, **facts: Any) -> RecalibrateReport:
    usual: dict[str, Any] = {
        **{"source": "in.onnx", "target": "out.onnx", "method": Method.EXACT, "variance": "population"},
        **{"samples": 40, "micro_batch": 32, "levels": 3, "cache": "ram", "processes": 1},
    }
    return RecalibrateReport(layers=layers, **usual | facts)


# Names that mean something where they may be written to.
HOSTILE = [
    "<script>alert(1)</script>",
    "]]> & </testsuite>",
    "::error::x",
    "a|b",
    "two\nlines\r\n",
    "\x1b[31mred",
    "\x00",
    "\U0001f389",
    "\ud800",
    "\uffff",
    "@somebody #12 `code` *bold* _it_ $x$ ~~no~~ [a](b) https://a.b",
]
