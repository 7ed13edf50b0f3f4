"""A fold as data: a graph in a line or two, what must be left of it, and what must hold for every fold.

    case("a bias", "c = Conv(x, w, b)  y = BN(c)", "Conv", PULLED, w=(4, 3, 3, 3), b=(4,), **norm(4))

`BN(c)` stands for `BatchNormalization(c, scale, bias, mean, var)`, and `BN2(c)` for the same with `scale2`,
`bias2`, ... The data come in as `x` and the result goes out as `y`. Every case is folded three times: bare,
with names and metadata as an exporter writes them, and with all shapes, as the checker of ONNX wants it.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from graphs import folded, inputs, model, same
from onnx import numpy_helper

from bnfold import fold
from bnfold.certificate import certify
from bnfold.evaluate import EvaluationError, evaluate
from bnfold.report import Decision, FoldReport, Outcome, Reason
from bnfold.verification import Certificate, Verdict

Array = npt.NDArray[Any]

PULLED, PUSHED, REMOVED, MERGED = Outcome.PULLED, Outcome.PUSHED, Outcome.REMOVED, Outcome.MERGED

IMAGE = "float[N,3,8,8]"


@dataclass(frozen=True)
class Case:
    """One graph and its fate.

    Attributes:
        proto: The model.
        left: The operators that remain in all its graphs and functions, in any order.
        fates: What is decided on each run of affine nodes, in the order of the graph: the outcome, or the
            reason if it stays.
        options: Of `fold`.
        feeds: Inputs by name; drawn by default.
        runtime: Whether onnxruntime may be trusted with the graph: it dies of some.
    """

    proto: onnx.ModelProto
    left: Counter[str]
    fates: tuple[Outcome | Reason, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    feeds: Mapping[str, Array] | None = None
    runtime: bool = True


def case(
    name: str,
    body: str,
    left: str,
    *fates: Outcome | Reason,
    x: str = IMAGE,
    also: str = "",
    gives: str = "",
    opset: int = 17,
    ir_version: int | None = None,
    options: Mapping[str, Any] | None = None,
    feeds: Mapping[str, Array] | None = None,
    runtime: bool = True,
    **constants: Any,
) -> Any:
    """A parameter for `pytest.mark.parametrize`.

    Args:
        name: What the case is about.
        body: The nodes, or a whole graph or model as for `graphs.model`.
        left: The operators that remain, divided by spaces.
        fates: See `Case`.
        x: The type of the data.
        also: More inputs.
        gives: More outputs.
        opset: Of ai.onnx.
        ir_version: Of the file.
        options: Of `fold`.
        feeds: See `Case`.
        runtime: See `Case`.
        constants: As for `graphs.model`.
    """
    text = spelled_out(body)
    if not text.lstrip().startswith(("(", "<")):
        floating = x.partition("[")[0]
        in_ = f"{x} x, {also}" if also else f"{x} x"
        out = f"{floating}[] y, {gives}" if gives else f"{floating}[] y"
        text = f"({in_}) => ({out}) {{ {text} }}"
    proto = model(text, opset=opset, ir_version=ir_version, **constants)
    kept = Case(proto, Counter(left.split()), fates, options or {}, feeds, runtime)
    return pytest.param(kept, id=name)


def spelled_out(text: str) -> str:
    """`BN2 <...> (c)` written as a BatchNormalization with its four constants."""
    return re.sub(
        r"\bBN(\w*)\s*(<[^>]*>)?\s*\(([^)]*)\)",
        r"BatchNormalization \2 (\3, scale\1, bias\1, mean\1, var\1)",
        text,
    )


def check(case: Case) -> None:
    """Fold and compare; every promise that holds for all folds is checked as well."""
    checked = as_checked(case.proto, case.feeds)
    for before in (case.proto, as_exported(case.proto), checked):
        after, report = prove(before, **case.options)
        assert Counter(all_ops(after)) == case.left, [*report.decisions]
        assert fates(report) == case.fates, [*report.decisions]
    after, report = folded(case.proto, **case.options)
    if report.modified:
        onnx.checker.check_model(checked, full_check=True)  # so `folded` has checked the result as well
        compare(case.proto, after, case.feeds, runtime=case.runtime)
    else:
        assert serialized(after) == serialized(ir.to_proto(ir.from_proto(case.proto)))


def prove(before: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, FoldReport]:
    """Fold, and assert what needs no numbers to be compared."""
    untouched = before.SerializeToString(deterministic=True)
    after, report = folded(before, **options)
    assert before.SerializeToString(deterministic=True) == untouched, "the fold wrote into the original"
    twin = ir.from_proto(before)
    fold(twin, **options)
    assert serialized(ir.to_proto(twin)) == serialized(after), "two runs differ"
    carried = ir.to_proto(ir.from_proto(before))  # which drops fields that are there and empty
    assert report.modified == (serialized(after) != serialized(carried))
    _assert_invisible(carried, after, **options)
    _assert_tidy(before, after)
    _assert_true_to(report, before, after, inlined=bool(options.get("inline_functions")))
    _assert_certified(before, after, report, inlined=bool(options.get("inline_functions")))
    return after, report


def compare(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    feeds: Mapping[str, Array] | None = None,
    *,
    runtime: bool = True,
) -> None:
    """Assert that outputs, and all values whose name both models have, are the same."""
    shared = sorted(_computed(before) & _computed(after) - {v.name for v in before.graph.output})
    same(exposed(before, shared), exposed(after, shared), feeds or inputs(before), runtime=runtime)


def fates(report: FoldReport) -> tuple[Outcome | Reason, ...]:
    """The outcome of each decision, or why it stays."""
    return tuple(fate(d) for d in report.decisions)


def fate(decision: Decision) -> Outcome | Reason:
    if decision.outcome is not Outcome.KEPT:
        return decision.outcome
    assert decision.reason is not None
    return decision.reason


def all_ops(proto: onnx.ModelProto) -> list[str]:
    """The operators of all graphs and functions."""
    return [node.op_type for node in all_nodes(proto)]


def all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of all graphs and functions, inner graphs after their node."""
    waiting: list[Sequence[onnx.NodeProto]] = [proto.graph.node, *(f.node for f in proto.functions)]
    while waiting:
        for node in waiting.pop(0):
            yield node
            waiting += [a.g.node for a in node.attribute if a.HasField("g")]


def serialized(proto: onnx.ModelProto) -> bytes:
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def as_exported(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with what exporters write and a line of text leaves out: names, shapes, metadata."""
    named = onnx.ModelProto()
    named.CopyFrom(proto)
    for i, node in enumerate(named.graph.node):
        node.name = f"layers.{i}/{node.op_type}"
        node.doc_string = f"from layer {i}"
    named.producer_name, named.producer_version, named.model_version = "tests", "1", 7
    named.doc_string = named.graph.doc_string = "a small model"
    named.metadata_props.add(key="author", value="nobody")
    try:
        inferred = onnx.shape_inference.infer_shapes(named, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return named
    named.graph.value_info.extend(inferred.graph.value_info)  # the outputs stay as vague as they were
    return named


def as_checked(proto: onnx.ModelProto, feeds: Mapping[str, Array] | None = None) -> onnx.ModelProto:
    """The model with the shapes of its outputs, without which the checker takes no model."""
    try:
        stated = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        results = evaluate(proto, feeds or inputs(proto))
    except (onnx.shape_inference.InferenceError, EvaluationError):
        return proto  # not valid, and nothing will be folded
    arrays = {**(feeds or {}), **results}
    for value in (*stated.graph.input, *stated.graph.output):
        kind = value.type.tensor_type
        if not kind.HasField("shape"):
            kind.shape.SetInParent()
            for _ in range(arrays[value.name].ndim if value.name in arrays else 0):
                kind.shape.dim.add()
    return stated


def exposed(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with more values of its main graph as outputs."""
    more = onnx.ModelProto()
    more.CopyFrom(proto)
    more.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return more


def _computed(proto: onnx.ModelProto) -> set[str]:
    return {name for node in proto.graph.node for name in node.output if name}


def _assert_invisible(before: onnx.ModelProto, after: onnx.ModelProto, **options: Any) -> None:
    """Metadata, shapes and untouched numbers are bit for bit as before."""
    frames = []
    for proto in (before, after):
        frame = onnx.ModelProto()
        frame.CopyFrom(proto)
        for part in ("node", "initializer", "value_info", "input"):
            frame.graph.ClearField(part)
        frame.ClearField("functions")
        frames.append(frame)
    opsets = [sorted((o.domain, o.version) for o in f.opset_import) for f in frames]
    if options.get("inline_functions"):  # the domains of the functions may go
        opsets[0] = [o for o in opsets[0] if o in opsets[1]]
    assert opsets[0] == opsets[1]
    for frame in frames:
        frame.ClearField("opset_import")
    assert frames[0] == frames[1]
    stored = {t.name: t for t in before.graph.initializer}
    for tensor in after.graph.initializer:
        assert tensor.name not in stored or tensor == stored[tensor.name], f"{tensor.name!r} was changed"
    infos = {v.name: v for v in before.graph.value_info}
    for info in after.graph.value_info:
        assert info.name not in infos or info == infos[info.name], f"the shape of {info.name!r} was changed"
    names = {n.name: n for n in before.graph.node if n.name}
    for node in after.graph.node:
        if node.name in names:
            assert node.op_type == names[node.name].op_type
            assert node.doc_string == names[node.name].doc_string


def _assert_tidy(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """The fold leaves nothing lying about, and does not clean up what it did not need to touch."""
    assert _unread(after) == _unread(before), "values that nothing reads"
    values = _computed(after) | {t.name for t in after.graph.initializer}
    # onnx_ir keeps the shapes of values in functions there as well, as "domain::function/value".
    stale = {v.name for v in after.graph.value_info if "::" not in v.name} - values
    assert not stale - {v.name for v in before.graph.value_info if v.name not in _computed(before)}
    names = [n.name for n in all_nodes(after) if n.name]
    was = [n.name for n in all_nodes(before) if n.name]
    assert len(set(names)) == len(names) or len(set(was)) < len(was), "a node name is there twice"
    if all(n.name for n in all_nodes(before)):
        assert all(n.name for n in all_nodes(after))


def _unread(proto: onnx.ModelProto) -> set[str]:
    """Values of the main graph that nothing reads."""
    read = {name for node in all_nodes(proto) for name in node.input} | {v.name for v in proto.graph.output}
    first = {node.output[0] for node in proto.graph.node}
    return (first | {t.name for t in proto.graph.initializer}) - read


def _assert_true_to(
    report: FoldReport, before: onnx.ModelProto, after: onnx.ModelProto, *, inlined: bool
) -> None:
    """What the report says can be seen in the models."""
    assert report.after.batchnorms == all_ops(after).count("BatchNormalization")
    assert report.after.nodes == len(all_ops(after))
    left = Counter(op for d in report.decisions for op in d.left)
    assert left <= Counter(all_ops(after))
    if not inlined:
        labels = {node.name or node.output[0] for node in all_nodes(before)}
        values = {name for node in all_nodes(before) for name in node.output}
        assert {name for d in report.decisions for name in d.nodes} <= labels
        assert {d.value for d in report.decisions} <= values
    for decision in report.decisions:
        assert decision.nodes and len(decision.nodes) == len(decision.op_types)
        assert (decision.outcome is Outcome.KEPT) <= (decision.reason is not None)
        assert (decision.outcome in (PULLED, PUSHED, REMOVED)) <= (decision.reason is None)
        assert (decision.reason is not None) <= bool(decision.detail)
    if inlined:
        return
    assert report.before.batchnorms == all_ops(before).count("BatchNormalization")
    assert report.before.nodes == len(all_ops(before))
    assert report.before.batchnorms == sum(d.batchnorms for d in report.decisions)
    kept = sum(d.batchnorms for d in report.kept)
    assert kept <= report.after.batchnorms <= kept + sum(d.outcome is MERGED for d in report.decisions)


def certified(before: onnx.ModelProto, after: onnx.ModelProto, report: FoldReport) -> Certificate:
    """The certificate of a fold, taken as always from files."""
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "before.onnx"), Path(folder, "after.onnx")
        for path, proto in zip(paths, (before, after), strict=True):
            path.write_bytes(proto.SerializeToString())
        return certify(*paths, report.formulas)


def _assert_certified(
    before: onnx.ModelProto, after: onnx.ModelProto, report: FoldReport, *, inlined: bool
) -> None:
    """Every constant that the fold made is the correctly rounded exact value."""
    certificate = certified(before, after, report)
    if not report.formulas:
        assert certificate.verdict is Verdict.UNDECIDED
    elif inlined:  # what was inside of a function is not called so any more
        assert certificate.verdict is not Verdict.FAIL, certificate.message
    else:
        assert certificate.verdict is Verdict.PASS, certificate.message
        assert certificate.parameters == certificate.correctly_rounded == len(report.formulas)
        assert certificate.worst_ulp <= 0.5


def initializer(proto: onnx.ModelProto, name: str) -> Array:
    """The numbers of an initializer."""
    (found,) = [t for t in proto.graph.initializer if t.name == name]
    return numpy_helper.to_array(found)
