"""What two models say of themselves: their inputs and outputs, opsets, metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest

import onnx

from .verification import Difference


def differences(reference: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[Difference, ...]:
    """All that is not alike, in the order in which a reader would ask."""
    return tuple(_differences(reference, candidate))


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
    """The domains of all nodes, those of inner graphs and functions included."""
    found: set[str] = set()
    pending = [model.graph.node, *(function.node for function in model.functions)]
    while pending:
        for node in pending.pop():
            found.add(node.domain or "ai.onnx")
            for attribute in node.attribute:
                graphs = [attribute.g] if attribute.HasField("g") else attribute.graphs
                pending += [graph.node for graph in graphs]
    return ", ".join(sorted(found))


def _metadata(model: onnx.ModelProto) -> str:
    return ", ".join(sorted(f"{entry.key}={entry.value}" for entry in model.metadata_props))
