"""Where the time of `bnfold optimize` goes, stage by stage, and what the least is that it could take.

Runs as a process of its own, `python benchmarks/stages.py MODEL`, and prints one line of JSON: a `Stages`.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

REPEATS = 3
FLOAT64 = 8  # bytes


@dataclass(frozen=True)
class Stages:
    """Seconds, unless said otherwise; the best of some where a stage can be repeated.

    Attributes:
        imports: Of the library and all that it needs.
        load, fold, write: Of the model, without verification.
        certificate: Every folded constant recomputed exactly.
        algebra: Both models in float64, as often as `runs` says.
        runs: How often either model is run, the reference's nudged runs included.
        run: One such run alone.
        nudged: One with nudged constants.
        products: The float64 matrix products of one run alone, as one does them with numpy; depthwise
            convolutions are none.
        runtime: One run of onnxruntime, optimizations disabled, for scale.
        model: Bytes of the file.
        activations: Bytes of the two largest activations of one sample in float64.
    """

    imports: float
    load: float
    fold: float
    write: float
    certificate: float
    algebra: float
    runs: int
    run: float
    nudged: float
    products: float
    runtime: float
    model: int
    activations: int


def main() -> None:
    print(json.dumps(asdict(measure(Path(sys.argv[1])))))


def measure(path: Path) -> Stages:
    """All stages of one model, whose free sizes are 1."""
    start = time.perf_counter()
    import bnfold
    from bnfold.certificate import certify
    from bnfold.evaluate import Program
    from bnfold.nudge import Nudge

    _ = bnfold.load, bnfold.fold, bnfold.save, bnfold.verify  # imported when first asked for
    imports = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.onnx")
        load, model = _timed(lambda: bnfold.load(path))
        fold, folded = _timed(lambda: bnfold.fold(model))
        write, _ = _timed(lambda: bnfold.save(model, result))
        certificate, _ = _timed(lambda: certify(path, result, folded.formulas))
        algebra, report = _timed(lambda: bnfold.verify(path, result, runtime=False))
    program = Program(path)
    feeds, shapes = _feeds(program.model), _shapes(program.model)
    change = Nudge(program.model).draw(0)
    sizes = sorted(math.prod(shapes[name]) for node in program.model.graph.node for name in node.output)
    return Stages(
        imports,
        load,
        fold,
        write,
        certificate,
        algebra,
        runs=report.algebra.draws + 2 * len(report.algebra.feeds),
        run=_best(lambda: list(program.run(feeds))),
        nudged=_best(lambda: list(program.run(feeds, change=change))),
        products=_products(list(_matrices(program.model, shapes))),
        runtime=_runtime(path, feeds),
        model=path.stat().st_size,
        activations=FLOAT64 * sum(sizes[-2:]),
    )


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _best(work: Callable[[], Any]) -> float:
    return min(_timed(work)[0] for _ in range(REPEATS))


def _feeds(model: onnx.ModelProto) -> dict[str, Any]:
    import numpy

    random = numpy.random.default_rng(0)
    value = model.graph.input[0]
    shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    return {value.name: random.standard_normal(shape).astype(numpy.float32)}


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Of every value; free sizes are 1."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    known = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        known[value.name] = tuple(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
    return known


def _matrices(
    model: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shapes of the two factors of every Conv and Gemm."""
    for node in model.graph.node:
        if node.op_type == "Conv":
            outputs, inputs, *kernel = shapes[node.input[1]]
            batch, _, *space = shapes[node.output[0]]
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            if inputs == 1 and group > 1:
                continue
            depth = inputs * math.prod(kernel)
            yield (batch, group, outputs // group, depth), (batch, group, depth, math.prod(space))
        elif node.op_type == "Gemm":
            rows, columns = shapes[node.output[0]]
            depth = math.prod(shapes[node.input[1]]) // columns
            yield (rows, depth), (depth, columns)


def _products(matrices: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> float:
    """Seconds of all products, each alone: their factors need not be in memory together."""
    import numpy

    random = numpy.random.default_rng(0)
    total = 0.0
    for left, right in matrices:
        a, b = random.random(left), random.random(right)
        out = numpy.matmul(a, b)
        total += _best(lambda a=a, b=b, out=out: numpy.matmul(a, b, out=out))  # type: ignore[misc]
    return total


def _runtime(path: Path, feeds: dict[str, Any]) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return _best(lambda: session.run(None, feeds))


if __name__ == "__main__":
    main()
