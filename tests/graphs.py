"""Small models from ONNX text, and the question whether two models are one function.

A graph is three lines of text, with its constants drawn by shape from a seed that is their name:

    before = model("(float[N,3,8,8] x) => (float[] y) { c = Conv(x, w)  y = Relu(c) }", w=(4, 3, 3, 3))
    after, report = folded(before)
    same(before, after)

`model` also draws what the text declares and no node computes: `... => (float[] y) <float[4] b> {...}`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper, numpy_helper

from bnfold import fold
from bnfold.evaluate import evaluate
from bnfold.report import FoldReport

Array = npt.NDArray[Any]

BITS = {
    np.dtype(np.float64): 53,
    np.dtype(np.float32): 24,
    np.dtype(np.float16): 11,
    np.dtype(ml_dtypes.bfloat16): 8,
}
DRAWS = 8
# What the number of a floating input means to its operator: sizes and ratios are no weights.
NOT_WEIGHTS = {"Resize": (1, 2, 3), "Upsample": (1,), "Dropout": (1,), "Clip": (1, 2)}


# --- Making models ------------------------------------------------------------------------------------


def model(text: str, *, opset: int = 17, ir_version: int | None = None, **constants: Any) -> onnx.ModelProto:
    """A model from the text of its graph and the numbers of its constants.

    Args:
        text: `(inputs) => (outputs) { nodes }`, or a whole model text that starts with `<`.
        opset: The version of ai.onnx, unless the text says it.
        ir_version: The IR version; by default 8 or what the opset needs. Below 4, constants become inputs.
        constants: By name, in the order in which they are stored: a tuple is a shape, drawn in the floating
            type of the first input that has one; all else is numbers (Python's are float32 and int64).
    """
    if not text.lstrip().startswith("<"):
        minimum = helper.find_min_ir_version_for([helper.make_opsetid("", opset)], ignore_unknown=True)
        version = ir_version or max(8, minimum)
        text = f'<ir_version: {version}, opset_import: ["": {opset}]> test {text}'
    proto = onnx.parser.parse_model(text)
    graph = proto.graph
    computed = {name for node in graph.node for name in node.output}
    for info in [v for v in graph.value_info if v.name not in computed]:
        graph.value_info.remove(info)
        kind = info.type.tensor_type
        shape = tuple(d.dim_value for d in kind.shape.dim)
        drawn_as = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        constants = {info.name: drawn(info.name, *shape, dtype=drawn_as), **constants}
    types = [helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in graph.input]
    dtype = next((t for t in types if t in BITS), np.dtype(np.float32))
    for name, numbers in constants.items():
        array = drawn(name, *numbers, dtype=dtype) if isinstance(numbers, tuple) else _array(numbers)
        graph.initializer.append(numpy_helper.from_array(array, name))
        if proto.ir_version < 4 and name not in {v.name for v in graph.input}:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
    return proto


def _array(numbers: Any) -> Array:
    if isinstance(numbers, (np.ndarray, np.generic)):
        return np.asarray(numbers)
    array = np.asarray(numbers)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def drawn(name: str, *shape: int, dtype: npt.DTypeLike = np.float32) -> Array:
    """Numbers from N(0, 1), or from [0.5, 2) if the name starts with "var" or "pos"; the name is the seed."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    positive = name.startswith(("var", "pos"))
    numbers = random.uniform(0.5, 2.0, shape) if positive else random.standard_normal(shape)
    return np.asarray(numbers).astype(dtype)


def positive(name: str, *shape: int, dtype: npt.DTypeLike = np.float32) -> Array:
    """Numbers from [0.5, 2)."""
    return drawn("pos" + name, *shape, dtype=dtype)


def norm(channels: int, suffix: str = "") -> dict[str, Any]:
    """The four constants of a BatchNormalization: scale, bias, mean, var."""
    return {name + suffix: (channels,) for name in ("scale", "bias", "mean", "var")}


# --- Reading models -----------------------------------------------------------------------------------


def ops(proto: onnx.ModelProto) -> list[str]:
    """The operators of the main graph, in order."""
    return [node.op_type for node in proto.graph.node]


def numbers(proto: onnx.ModelProto) -> dict[str, Array]:
    """The initializers by name."""
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


# --- Folding, running, comparing ----------------------------------------------------------------------


def folded(proto: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, FoldReport]:
    """What fold makes of a model, and its report; the argument stays as it is.

    Also asserts what holds for every model: the result is as valid as the original, its signature is the
    same, and folding it again finds nothing more to do.
    """
    work = ir.from_proto(proto)
    report = fold(work, **options)
    result: onnx.ModelProto = ir.to_proto(work)
    if _is_valid(proto):
        onnx.checker.check_model(result, full_check=True)
    again = ir.from_proto(result)
    second = fold(again, **options)
    assert not second.modified, [d for d in second.decisions if d not in second.kept]
    assert ir.to_proto(again) == result, "a second fold changed the model"
    if not options.get("freeze_initializers"):
        assert _signature(result) == _signature(proto)
    return result, report


def same(
    before: onnx.ModelProto, after: onnx.ModelProto, *feeds: Mapping[str, Array], runtime: bool = True
) -> None:
    """Assert that two models are the same function.

    In float64 the two differ by the rounding of the folded constants alone, each off by at most u, the unit
    roundoff of its type. What that does to an output is measured: the original's constants are nudged by up
    to u at random. A correct fold has about one such error per nudge; 8 leaves room for those that the draws
    did not meet, and 2**-40 of the result for the float64 sums of the evaluator itself.
    In onnxruntime, every operation rounds: up to a few hundred terms of u each are added on the way.

    Args:
        before: The original.
        after: The candidate.
        feeds: Inputs by name; by default one seeded set.
        runtime: Whether to compare in onnxruntime as well, if it has the kernels for `before`.
    """
    unit = unit_roundoff(before)
    for feed in feeds or (inputs(before),):
        expected, got = evaluate(before, feed), evaluate(after, feed)
        room = _noise(before, feed, unit)
        assert list(got) == list(expected)
        for name, value in expected.items():
            _assert_close(name, value, got[name], 8 * room[name] + 2.0**-40 * _largest(value))
        if runtime and (ran := _try_run(before, feed)) is not None:
            for name, value in run(after, feed).items():
                assert value.dtype == ran[name].dtype, name
                bound = 16 * room[name] + 256 * unit * max(_largest(expected[name]), 1.0)
                _assert_close(f"{name} in onnxruntime", expected[name], value, bound)


def inputs(proto: onnx.ModelProto, seed: int = 0, **sizes: int) -> dict[str, Array]:
    """Numbers for every input that has no initializer; N(0, 1), or small indices, or booleans.

    Args:
        proto: The model.
        seed: Another seed, other numbers.
        sizes: Of symbolic dimensions; by default N is 2 and the others are 9, 10, ...
    """
    random = np.random.default_rng(seed)
    known = {t.name for t in proto.graph.initializer}
    sizes = {"N": 2, **sizes}
    feeds: dict[str, Array] = {}
    for value in proto.graph.input:
        if value.name in known:
            continue
        kind = value.type.tensor_type
        shape = [
            d.dim_value if d.HasField("dim_value") else sizes.setdefault(d.dim_param, len(sizes) + 8)
            for d in kind.shape.dim
        ]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        values = random.standard_normal(shape) if dtype in BITS else random.integers(0, 2, shape)
        feeds[value.name] = np.asarray(values).astype(dtype)
    return feeds


def run(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs in onnxruntime, which must not optimize: it would fold by itself."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def unit_roundoff(proto: onnx.ModelProto) -> float:
    """u of the coarsest floating type among the constants and inputs of a model."""
    kinds = {np.dtype(a.dtype) for a in numbers(proto).values()}
    kinds |= {helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in proto.graph.input}
    return max((2.0 ** -BITS[t] for t in kinds if t in BITS), default=2.0**-24)


# --- How they are done --------------------------------------------------------------------------------


def _try_run(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array] | None:
    """The outputs in onnxruntime; None if it has no kernel for an operator or refuses the model."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        return run(proto, feeds)
    except (state.NotImplemented, state.InvalidGraph, state.Fail, state.InvalidArgument, RuntimeError):
        return None
    except TypeError:  # numpy arrays of bfloat16 are strange to it
        return None


def _noise(proto: onnx.ModelProto, feeds: Mapping[str, Array], unit: float) -> dict[str, float]:
    """By output, how far nudges of the constants by a unit roundoff move it: the largest RMS."""
    reference = evaluate(proto, feeds)
    squares = {name: np.zeros(value.shape) for name, value in reference.items()}
    random = np.random.default_rng(1)
    for _ in range(DRAWS):
        nudged = onnx.ModelProto()
        nudged.CopyFrom(proto)
        for tensor in _weights(nudged):
            exact = numpy_helper.to_array(tensor).astype(np.float64)
            moved = exact * (1.0 + unit * random.uniform(-1.0, 1.0, exact.shape))
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(moved), tensor.name))
        for name, value in evaluate(nudged, feeds).items():
            with np.errstate(invalid="ignore"):
                squares[name] += np.nan_to_num(np.square(value.astype(float) - reference[name].astype(float)))
    return {name: float(np.sqrt(s.max(initial=0.0) / DRAWS)) for name, s in squares.items()}


def _weights(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The floating constants that are operands, in all graphs and functions."""
    graphs = [(proto.graph.initializer, proto.graph.node), *(((), f.node) for f in proto.functions)]
    while graphs:
        initializers, nodes = graphs.pop()
        spared = {
            name
            for node in nodes
            for i, name in enumerate(node.input)
            if i in NOT_WEIGHTS.get(node.op_type, ())
        }
        tensors = [(t.name, t) for t in initializers]
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    graphs.append((attribute.g.initializer, attribute.g.node))
                if node.op_type == "Constant" and attribute.name == "value":
                    tensors.append((node.output[0], attribute.t))
        for name, tensor in tensors:
            if name not in spared and helper.tensor_dtype_to_np_dtype(tensor.data_type) in BITS:
                yield tensor


def _assert_close(name: str, expected: Array, got: Array, bound: float) -> None:
    assert got.shape == expected.shape, name
    if expected.dtype.kind in "biu":
        np.testing.assert_array_equal(got, expected, err_msg=name)
        return
    expected, got = expected.astype(np.float64), got.astype(np.float64)
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(expected), err_msg=name)
    finite = np.isfinite(expected)
    np.testing.assert_allclose(got[finite], expected[finite], rtol=0, atol=bound, err_msg=name)


def _largest(value: Array) -> float:
    finite = np.abs(value.astype(np.float64))
    return float(finite[np.isfinite(finite)].max(initial=0.0))


def _signature(proto: onnx.ModelProto) -> list[Any]:
    known = {t.name for t in proto.graph.initializer} if proto.ir_version < 4 else set()
    return [*(v for v in proto.graph.input if v.name not in known), *proto.graph.output]


def _is_valid(proto: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True
