"""What two models say of themselves: their inputs and outputs, opsets, metadata, sizes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import zip_longest

import onnx
import onnx_ir as ir

from .changes import Size
from .verification import Difference


def differences(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[Difference, ...]:
    """All that is not alike, in the order in which a reader would ask."""
    return tuple(_differences(reference, candidate))


def size(model: onnx.ModelProto) -> Size:
    """How large a model is; its weights need not be loaded."""
    found = list(_nodes(model))
    stored = [*model.graph.initializer, *(t for node in found for g in _inner(node) for t in g.initializer)]
    computed = [
        a.t for node in found if node.op_type == "Constant" for a in node.attribute if a.HasField("t")
    ]
    tensors = [*stored, *computed]
    numbers = [math.prod(t.dims) for t in tensors]
    bits = (
        0 if t.data_type == onnx.TensorProto.STRING else ir.DataType(t.data_type).bitwidth for t in tensors
    )
    operators = Counter(
        f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for node in found
    )
    return Size(
        sum(numbers), sum(-(-n * width // 8) for n, width in zip(numbers, bits, strict=True)), dict(operators)
    )


def _differences(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> Iterator[Difference]:
    yield from _interface("input", _inputs(reference), _inputs(candidate))
    yield from _interface("output", reference.graph.output, candidate.graph.output)
    for what, a, b in (
        ("IR version", str(reference.ir_version), str(candidate.ir_version)),
        ("opset", _opsets(reference), _opsets(candidate)),
        ("operator domains", _domains(reference), _domains(candidate)),
        ("metadata", _metadata(reference), _metadata(candidate)),
    ):
        if a != b:
            yield Difference(what, a, b)


def _interface(
    what: str, ours: Iterable[onnx.ValueInfoProto], theirs: Iterable[onnx.ValueInfoProto]
) -> Iterator[Difference]:
    for a, b in zip_longest(map(_told, ours), map(_told, theirs), fillvalue="none"):
        if a != b:
            yield Difference(what, a, b)


def _inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """What a caller may feed. Below IR version 4 a file lists its initializers there, too."""
    stored = {t.name for t in model.graph.initializer} if model.ir_version < 4 else set()
    return [value for value in model.graph.input if value.name not in stored]


def _told(value: onnx.ValueInfoProto) -> str:
    """A name, its type and its shape, as in "x: float[N, 3, ?]"."""
    kind = value.type.WhichOneof("value")
    if kind is None:
        return f"{value.name}: no type"
    if kind != "tensor_type":
        return f"{value.name}: {kind.removesuffix('_type')}"
    tensor = value.type.tensor_type
    name = element(tensor.elem_type)
    if not tensor.HasField("shape"):
        return f"{value.name}: {name}"
    dims = (d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?") for d in tensor.shape.dim)
    return f"{value.name}: {name}[{', '.join(dims)}]"


def element(code: int) -> str:
    """The name of an element type; its number where it has none."""
    types = onnx.TensorProto.DataType
    return types.Name(code).lower() if code in types.values() else str(code)


def _opsets(model: onnx.ModelProto) -> str:
    imports = sorted((entry.domain or "ai.onnx", entry.version) for entry in model.opset_import)
    return ", ".join(f"{domain} {version}" for domain, version in imports)


def _domains(model: onnx.ModelProto) -> str:
    """The domains of all nodes."""
    return ", ".join(sorted({node.domain or "ai.onnx" for node in _nodes(model)}))


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All of them, those of inner graphs and functions included."""
    pending = [model.graph.node, *(function.node for function in model.functions)]
    while pending:
        for node in pending.pop(0):
            yield node
            pending += [graph.node for graph in _inner(node)]


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


def _metadata(model: onnx.ModelProto) -> str:
    return ", ".join(sorted(f"{entry.key}={entry.value}" for entry in model.metadata_props))
