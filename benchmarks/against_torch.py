"""How far an ONNX model is from the PyTorch module that it was made of, and what it has left.

Runs as a process of its own, `python benchmarks/against_torch.py TRUTH MODEL`, because a broken model can
take the runtime down with it. TRUTH is what `save` wrote. It prints a `judge.Count`, then the gap, one line
of JSON each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import judge
import process
from judge import Count


def judged(truth: Path, model: Path, *, timeout: float) -> tuple[Count | None, float | None, str]:
    """The nodes of the model, its gap, and why there is none; see `truth.Truth.gap`."""
    command = [sys.executable, __file__, str(truth.resolve()), str(model.resolve())]
    child = process.run(command, cwd=model.parent, timeout=timeout)
    count, gap = [*map(json.loads, child.output.splitlines()), None, None][:2]
    return None if count is None else Count(**count), gap, child.failure


def save(path: Path, x: Any, double: Sequence[Any], own: Sequence[Any], epsilon: float) -> None:
    """Write what a module takes and computes; see `truth.Truth.of`."""
    import numpy

    outputs = {f"{kind}{i}": y for kind, ys in (("double", double), ("own", own)) for i, y in enumerate(ys)}
    numpy.savez(path, x=x, epsilon=epsilon, **outputs)


def main() -> None:
    import numpy
    import onnx
    from truth import Truth

    model = onnx.load(sys.argv[2])
    print(json.dumps(asdict(judge.count(model))), flush=True)  # known even if the run crashes
    with numpy.load(sys.argv[1]) as stored:
        outputs = len(stored.files) // 2 - 1
        double, own = ([stored[f"{kind}{i}"] for i in range(outputs)] for kind in ("double", "own"))
        truth, x = Truth.of(double, own, float(stored["epsilon"])), stored["x"]
    print(json.dumps(truth.gap(_run(model, x))))


def _run(model: Any, x: Any) -> list[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs: list[Any] = session.run(None, {session.get_inputs()[0].name: x})
    return outputs


if __name__ == "__main__":
    main()
