"""What a tool's result is worth: the nodes it has left, and how far it computes from the original.

Runs as a process of its own, `python benchmarks/judge.py ORIGINAL RESULT`, because a broken model can
take the runtime down with it. It prints a `Count`, then a `Comparison`, one line of JSON each.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import process

if TYPE_CHECKING:
    import numpy
    import onnx
    import onnxruntime

SEED = 7
FREE_SIZE = 64  # of a symbolic dimension that is not the batch: networks stride over powers of two
RANDOM = {
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
}


@dataclass(frozen=True)
class Count:
    """How many nodes a model has, inner graphs and functions included.

    Attributes:
        batchnorms: BatchNormalization nodes.
        affines: Mul, Add, Sub and Div by a stored float constant that varies along one axis at most.
        nodes: All nodes.
    """

    batchnorms: int
    affines: int
    nodes: int


class Fault(StrEnum):
    """Why a comparison has no figure."""

    INVALID = "invalid"  # the runtime refuses the result, or goes down with it
    DIFFERS = "differs"  # in inputs, outputs, shapes, integers, or the places of NaN and infinity
    UNKNOWN = "?"  # the original does not run or draws random numbers, or time was up


@dataclass(frozen=True)
class Comparison:
    """A result against its original, both run by onnxruntime with optimizations disabled.

    Attributes:
        error: The largest RMS of a difference over the RMS of the original, among the graph outputs
            and every Relu output that both models name alike. None with a fault.
        fault: Why there is no figure; None with one.
        detail: The fault's particulars, or "".
        frozen: How many inputs with a default value (initializers that a caller may override, from IR
            version 4 on) the result has lost: the same function, for those who never override them.
    """

    error: float | None = None
    fault: Fault | None = None
    detail: str = ""
    frozen: int = 0


def judge(original: Path, result: Path, *, timeout: float) -> tuple[Count | None, Comparison]:
    """Count and compare in a child process. The count is None for a result that cannot be read."""
    command = [sys.executable, __file__, str(original.resolve()), str(result.resolve())]
    child = process.run(command, cwd=result.parent, timeout=timeout)
    lines = [json.loads(line) for line in child.output.splitlines()]
    count = Count(**lines[0]) if lines else None
    if len(lines) < 2:
        why = Fault.UNKNOWN if child.timed_out else Fault.INVALID
        return count, Comparison(fault=why, detail=child.failure)
    compared = Comparison(**lines[1])
    return count, replace(compared, fault=Fault(compared.fault) if compared.fault else None)


def main() -> None:
    import onnx

    original, result = (onnx.load(path) for path in sys.argv[1:3])
    print(json.dumps(asdict(count(result))), flush=True)  # known even if the comparison crashes
    print(json.dumps(asdict(compare(original, result))))


def count(model: onnx.ModelProto) -> Count:
    """The nodes of a model, by kind."""
    bodies = [inner for body in (model.graph, *model.functions) for inner in _bodies(body)]
    nodes = [node for body in bodies for node in body.node]
    stored = {tensor.name: tensor for body in bodies for tensor in getattr(body, "initializer", ())}
    for node in nodes:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            stored[node.output[0]] = node.attribute[0].t
    return Count(
        batchnorms=sum(node.op_type == "BatchNormalization" for node in nodes),
        affines=sum(_is_affine(node, stored) for node in nodes),
        nodes=len(nodes),
    )


def _bodies(body: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.GraphProto | onnx.FunctionProto]:
    yield body
    for node in body.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _bodies(inner)


def _is_affine(node: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> bool:
    if node.op_type not in ("Mul", "Add", "Sub", "Div"):
        return False
    operands = node.input[1:] if node.op_type == "Div" else node.input  # constant / x is no affine map
    constants = [stored[name] for name in operands if name in stored]
    return len(constants) == 1 and _is_per_channel_float(constants[0])


def _is_per_channel_float(tensor: onnx.TensorProto) -> bool:
    import onnx

    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    return tensor.data_type in floats and sum(size > 1 for size in tensor.dims) <= 1


def compare(original: onnx.ModelProto, result: onnx.ModelProto) -> Comparison:
    """Run both models on one seeded input.

    The outputs of most networks hardly react to a fault many layers back, so Relu outputs take part:
    no tool carries an affine map through a Relu, so that name means the same values in both.
    """
    if any(node.op_type in RANDOM for node in original.graph.node):
        return Comparison(fault=Fault.UNKNOWN, detail="the original draws random numbers")
    shared = sorted(_relu_outputs(original) & _relu_outputs(result))
    sigmoids = _outputs_of("Sigmoid", original)
    try:
        reference = _session(original, shared)
        feeds = _feeds(original)
        expected = reference.run(None, feeds)
    except Exception as error:
        return Comparison(fault=Fault.UNKNOWN, detail=f"the original does not run: {_last_line(error)}")
    try:
        candidate = _session(result, shared)
        if _signature(candidate) != _signature(reference):
            return Comparison(fault=Fault.DIFFERS, detail="other inputs or outputs")
        actual = candidate.run(None, feeds)
    except Exception as error:
        return Comparison(fault=Fault.INVALID, detail=_last_line(error))
    try:
        names = [output.name for output in reference.get_outputs()]
        triples = zip(names, expected, actual, strict=True)
        worst = max(_error(a, b, at_least=float(name in sigmoids)) for name, a, b in triples)
        return Comparison(worst, frozen=len(_overridable(reference) - _overridable(candidate)))
    except ValueError as error:
        return Comparison(fault=Fault.DIFFERS, detail=str(error))


def _relu_outputs(model: onnx.ModelProto) -> set[str]:
    return _outputs_of("Relu", model) - {output.name for output in model.graph.output}


def _outputs_of(op_type: str, model: onnx.ModelProto) -> set[str]:
    return {node.output[0] for node in model.graph.node if node.op_type == op_type}


def _session(model: onnx.ModelProto, shared: list[str]) -> onnxruntime.InferenceSession:
    import onnx
    import onnxruntime

    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in shared)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=providers)


def _signature(session: onnxruntime.InferenceSession) -> list[list[tuple[str, str]]]:
    return [[(i.name, i.type) for i in side] for side in (session.get_inputs(), session.get_outputs())]


def _overridable(session: onnxruntime.InferenceSession) -> set[str]:
    return {value.name for value in session.get_overridable_initializers()}


def _feeds(model: onnx.ModelProto) -> dict[str, Any]:
    import numpy
    from onnx import helper

    random = numpy.random.default_rng(SEED)
    stored = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in stored:
            continue
        tensor = value.type.tensor_type
        free = [1] + [FREE_SIZE] * len(tensor.shape.dim)
        # Some exporters write a free dimension as -1.
        shape = [max(dim.dim_value, 0) or size for dim, size in zip(tensor.shape.dim, free, strict=False)]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        # Zero is a valid index, flag and length, so integers are zero.
        draw = random.standard_normal(shape) if dtype.kind == "f" else numpy.zeros(shape)
        feeds[value.name] = draw.astype(dtype)
    return feeds


def _error(expected: numpy.ndarray, actual: numpy.ndarray, *, at_least: float) -> float:
    """The RMS of the difference over that of `expected`, or over `at_least` where that is more.

    onnxruntime's Sigmoid errs by some 1e-7 absolutely, so where it saturates at 0 a relative error
    would be of its rounding alone: such an output is compared on the scale of its range, 1.
    """
    import numpy

    if expected.shape != actual.shape:
        raise ValueError(f"shape {actual.shape} instead of {expected.shape}")
    if not numpy.issubdtype(expected.dtype, numpy.floating):
        if not numpy.array_equal(expected, actual):
            raise ValueError("other integers")
        return 0.0
    finite = numpy.isfinite(expected)
    if not numpy.array_equal(finite, numpy.isfinite(actual)):
        raise ValueError("NaN or infinity in other places")
    wanted, got = expected[finite].astype(float), actual[finite].astype(float)
    difference, magnitude = _rms(got - wanted), max(_rms(wanted), at_least)
    if difference and not magnitude:
        raise ValueError("not zero where the original is zero")
    return difference / magnitude if magnitude else 0.0


def _rms(array: numpy.ndarray) -> float:
    return float((array**2).mean() ** 0.5) if array.size else 0.0


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


if __name__ == "__main__":
    main()
