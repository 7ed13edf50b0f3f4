"""The wire format: protobuf itself is the oracle."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold import wire
from bnfold.wire import Field, Item


def model(*sizes: int) -> onnx.ModelProto:
    """A model with one float32 initializer per size, in the order w0, w1, ..."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal(n).astype(np.float32), f"w{i}")
        for i, n in enumerate(sizes)
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def join(parts: list[wire.Part] | None) -> bytes:
    assert parts is not None
    return b"".join(part for part in parts if not isinstance(part, wire.Deferred))


def entries(name: str, *values: str) -> tuple[memoryview, list[Field]]:
    """A NodeProto with these inputs."""
    view = memoryview(onnx.NodeProto(input=values, name=name, op_type="Concat").SerializeToString())
    return view, wire.fields(view, 0, len(view))


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 2**21, 2**35])
def test_head_announces_the_size(size: int) -> None:
    view = memoryview(wire.head(20, size))
    with pytest.raises(wire.Malformed) as caught:
        wire.fields(memoryview(bytes(view) if size else bytes(view[:-1])), 0, len(view) - (size == 0))
    assert caught.value.missing == (size or 1)


def test_fields_cover_the_message() -> None:
    view = memoryview(model(10, 2000, 3).SerializeToString())
    found = wire.fields(view, 0, len(view))
    assert [f.start for f in found[1:]] == [f.end for f in found[:-1]]
    assert (found[0].start, found[-1].end) == (0, len(view))
    graph = next(f for f in found if f.number == wire.MODEL_GRAPH)
    assert onnx.GraphProto.FromString(bytes(view[graph.body : graph.end])) == model(10, 2000, 3).graph


def test_fields_of_every_kind() -> None:
    attribute = onnx.AttributeProto(name="a", f=1.5, i=-1, type=onnx.AttributeProto.FLOAT, floats=[1.0, 2.0])
    content = attribute.SerializeToString() + b"\x99\x3e" + bytes(8)  # and an unknown one of 8 bytes
    view = memoryview(content)
    found = wire.fields(view, 0, len(view))
    assert [f.number for f in found] == [1, 2, 3, 7, 7, 20, 995]
    assert found[-1].end == len(content)


@pytest.mark.parametrize(
    "content", [b"\x0b", b"\x0c", b"\x0e\x00", b"\x02\x00", b"\x00\x01", b"\x08" + b"\xff" * 11]
)
def test_what_is_no_message(content: bytes) -> None:
    with pytest.raises(wire.Malformed):
        wire.fields(memoryview(content), 0, len(content))


def test_every_truncation_is_noticed_or_ends_between_fields() -> None:
    content = model(3).SerializeToString()
    borders = {f.end for f in wire.fields(memoryview(content), 0, len(content))} | {0}
    for end in range(len(content)):
        view = memoryview(content[:end])
        if end in borders:
            wire.fields(view, 0, end)
        else:
            with pytest.raises(wire.Malformed):
                wire.fields(view, 0, end)


def test_splice_leaves_what_is_intact() -> None:
    view, old = entries("n", "a", "b", "c")
    assert wire.splice(view, old, {1: [Item(0), Item(1), Item(2)], 5: []}) is None


@pytest.mark.parametrize(
    ("items", "names"),
    [
        ([Item(0), Item(2)], ["a", "c"]),
        ([Item(2), Item(0), Item(1)], ["c", "a", "b"]),
        ([], []),
        ([Item(None, wire.field(1, [b"new"])), Item(1)], ["new", "b"]),
        ([Item(0), Item(1, wire.field(1, [b"new"])), Item(2)], ["a", "new", "c"]),
        ([Item(0), Item(1), Item(2), Item(None, wire.field(1, [b"new"]))], ["a", "b", "c", "new"]),
        ([Item(0), Item(None, wire.field(1, [b"new"])), Item(1)], ["a", "new", "b"]),
    ],
)
def test_splice_replaces_entries(items: list[Item], names: list[str]) -> None:
    view, old = entries("n", "a", "b", "c")
    node = onnx.NodeProto.FromString(join(wire.splice(view, old, {1: items})))
    assert node == onnx.NodeProto(input=names, name="n", op_type="Concat")


def test_splice_keeps_survivors_where_they_were() -> None:
    """Entries that are not side by side stay between the other fields, in the order that is asked for."""
    nodes = (onnx.NodeProto(input=["a"]), onnx.NodeProto(name="n"), onnx.NodeProto(input=["b"]))
    first, name, second = (node.SerializeToString() for node in nodes)
    view = memoryview(first + name + second + b"\x99\x3e" + bytes(8))
    old = wire.fields(view, 0, len(view))
    new = wire.field(1, [b"new"])
    assert join(wire.splice(view, old, {1: [Item(0), Item(None, new), Item(1)]})) == (
        first + name + join(new) + second + b"\x99\x3e" + bytes(8)
    )


def test_splice_appends_fields_that_were_not_there() -> None:
    view, old = entries("n", "a")
    parts = wire.splice(view, old, {2: [Item(None, wire.field(2, [b"y"]))]})
    assert join(parts) == bytes(view) + join(wire.field(2, [b"y"]))


def test_split_takes_only_large_weights() -> None:
    whole = model(10, wire.LARGE // 4, wire.LARGE // 4 - 1, 5000)
    view = memoryview(whole.SerializeToString())
    split = wire.split(view)
    assert split is not None and sorted(split.weights) == [1, 3]
    for place, raw in split.weights.items():
        assert bytes(view[raw.body : raw.end]) == whole.graph.initializer[place].raw_data
        whole.graph.initializer[place].ClearField("raw_data")
    assert onnx.ModelProto.FromString(split.skeleton) == whole


def test_split_leaves_odd_tensors_to_the_parser() -> None:
    """Of two raw_data the last one counts, as protobuf has it; both stay."""
    whole = model(2000)
    tensor = whole.graph.initializer.pop().SerializeToString()
    twice = tensor + join(wire.field(wire.TENSOR_RAW_DATA, [bytes(8000)]))
    graph = whole.graph.SerializeToString() + join(wire.field(wire.GRAPH_INITIALIZER, [twice]))
    whole.ClearField("graph")
    view = memoryview(whole.SerializeToString() + join(wire.field(wire.MODEL_GRAPH, [graph])))
    split = wire.split(view)
    assert split is not None and not split.weights
    assert onnx.ModelProto.FromString(split.skeleton).graph.initializer[0].raw_data == bytes(8000)


def test_split_of_what_has_no_single_graph() -> None:
    assert wire.split(memoryview(onnx.ModelProto(ir_version=9).SerializeToString())) is None
    twice = model(1).SerializeToString() + join(wire.field(wire.MODEL_GRAPH, [b""]))
    assert wire.split(memoryview(twice)) is None


def test_deferred_parts_count_before_they_are_made() -> None:
    parts = wire.field(9, [wire.Deferred(300, lambda: [bytes(300)])])
    assert parts[0] == wire.head(9, 300)
