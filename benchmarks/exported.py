"""What becomes of one network of the zoo: exported without folds, with those of torch, and by bnfold.

Runs as a process of its own, `python benchmarks/exported.py NAME FOLDER`. It writes models and the truth
into the folder, and prints one line of JSON for each part of the work, `{part: result}`: the number of
BatchNormalizations, an `Exported`, a `Module`; a complaint instead of what could not be done.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PLAIN, UNFOLDED = "plain.onnx", "unfolded.onnx"
"""As torch exports without its folds, and as `bnfold.export` does without ours."""

DEFAULT, OURS, TRUTH = "default.onnx", "bnfold.onnx", "truth.npz"
EXPORTED, MODULE = "bnfold.export", "fold_module"
"""What the parts of bnfold are called."""


@dataclass(frozen=True)
class Exported:
    """What `bnfold.export` did.

    Attributes:
        before: BatchNormalizations in the model as exported.
        seconds: Wall time of all of it, verification included.
        ratio: The largest of the algebra gate and of the comparison with the module, among the outputs.
        stays: Reasons for each that stays, with how many.
    """

    before: int
    seconds: float
    ratio: float
    stays: dict[str, int]


@dataclass(frozen=True)
class Module:
    """What `bnfold.fold_module` did.

    Attributes:
        left: BatchNormalizations that the result computes.
        seconds: Wall time.
        gap: How far it is from the truth; see `truth.Truth.gap`.
        stays: As in `Exported`.
    """

    left: int
    seconds: float
    gap: float
    stays: dict[str, int]


def main() -> None:
    import torch
    from torch_tools import quiet

    torch.set_num_threads(1)  # so that sums are added in one order
    name, folder = sys.argv[1], Path(sys.argv[2])
    report = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # libraries talk
        network = _Network(name, folder)
        parts: dict[str, Callable[[], Any]] = {
            "before": network.prepare,
            PLAIN: lambda: network.export(PLAIN, optimize=False),
            DEFAULT: lambda: network.export(DEFAULT),
            UNFOLDED: network.unfolded,
            EXPORTED: network.bnfold_export,
            MODULE: network.fold_module,
        }
        for part, work in parts.items():
            try:
                with quiet():
                    result = work()
            except Exception as error:
                result = f"{type(error).__name__}: {error}"
            print(json.dumps({part: result}), file=report, flush=True)


class _Network:
    def __init__(self, name: str, folder: Path) -> None:
        from zoo import ARCHITECTURES

        self.architecture = next(a for a in ARCHITECTURES if a.name == name)
        self.folder = folder

    def prepare(self) -> int:
        """Write the truth."""
        import against_torch
        import torch
        from torch_tools import Module as Run

        self.module, self.x = self.architecture.module(), self.architecture.input()
        run = Run(self.module)
        self.own = run.run(self.x)
        self.double = Run(self.architecture.module().double()).run(self.x.double())
        self.epsilon = torch.finfo(self.x.dtype).eps
        against_torch.save(self.folder / TRUTH, self.x.numpy(), self.double, self.own, self.epsilon)
        return run.left(self.x)

    def export(self, name: str, **options: Any) -> None:
        import torch

        torch.onnx.export(self.module, (self.x,), dynamo=True, verbose=False, **options).save(
            self.folder / name
        )

    def unfolded(self) -> None:
        import bnfold

        bnfold.export(self.module, self.folder / UNFOLDED, inputs=[self._input()], fold=False, verify="none")

    def bnfold_export(self) -> dict[str, Any]:
        import bnfold

        start = time.perf_counter()
        report = bnfold.export(self.module, self.folder / OURS, inputs=[self._input()])
        seconds = time.perf_counter() - start
        assert (
            report.fold and report.verification and report.module
        )  # there was something to fold and compare
        gate = [output.check for output in report.verification.algebra.outputs if output.check]
        ratio = max(check.ratio for check in (*gate, *report.module.outputs))
        before = report.fold.before.batchnorms
        return asdict(Exported(before, seconds, ratio, _stays(report.fold)))

    def _input(self) -> str:
        name = next(iter(inspect.signature(self.module.forward).parameters))
        return f"{name}:float32[{','.join(map(str, self.x.shape))}]"

    def fold_module(self) -> dict[str, Any]:
        from torch_tools import Module as Run
        from truth import Truth

        import bnfold

        start = time.perf_counter()
        folded, report = bnfold.fold_module(self.module, (self.x,))
        seconds = time.perf_counter() - start
        truth = Truth.of(self.double, self.own, self.epsilon)
        run = Run(folded)
        return asdict(Module(run.left(self.x), seconds, truth.gap(run.run(self.x)), _stays(report)))


def _stays(report: Any) -> dict[str, int]:
    kept = [decision for decision in report.kept if decision.batchnorms]
    return dict(Counter(decision.reason.value for decision in kept))


if __name__ == "__main__":
    main()
