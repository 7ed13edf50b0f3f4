"""Opening and saving: what cannot be opened says why, what was not changed is not changed."""

from __future__ import annotations

import gc
import hashlib
import io
import logging
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bnfold import model as model_module
from bnfold import wire
from bnfold.errors import InputError, OutputError
from bnfold.model import load, save, stage, to_bytes

SHARED = Path(__file__).parent.parent.parent / "shared" / "models"
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
MODELS = sorted(SHARED.glob("*/*.onnx")) + sorted(LIGHT.glob("*.onnx"))
LARGE = 64  # a square of float32 with this side is stored outside of the parsed part

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the models in ../shared/models are not here")


def floats(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def weight(name: str, side: int, seed: int = 0) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal((side, side)).astype(np.float32)
    return numpy_helper.from_array(values, name)


def chain(**changes: object) -> onnx.ModelProto:
    """x -> MatMul(large) -> h -> Add(small) -> y, with doc strings, metadata and shape information."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first", doc_string="the first"),
        helper.make_node("Add", ["h", "b"], ["y"], name="second"),
    ]
    bias = numpy_helper.from_array(np.arange(LARGE, dtype=np.float32), "b")
    bias.doc_string = "a bias"
    facts: dict[str, object] = {
        "nodes": nodes,
        "name": "g",
        "inputs": [floats("x", "N", LARGE)],
        "outputs": [floats("y", "N", LARGE)],
        "initializer": [weight("w", LARGE), bias],
        "value_info": [floats("h", "N", LARGE)],
    }
    graph = helper.make_graph(**(facts | changes))  # type: ignore[arg-type]
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(proto, {"author": "nobody", "about": "a test"})
    return proto


def store(folder: Path, proto: onnx.ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def saved(model: ir.Model, folder: Path) -> onnx.ModelProto:
    """The model as it is written, after the checks of onnx and onnxruntime."""
    save(model, folder / "saved.onnx", force=True)
    onnx.checker.check_model(folder / "saved.onnx")
    return onnx.load(folder / "saved.onnx")


def external(folder: Path, proto: onnx.ModelProto, data: str = "weights.bin") -> Path:
    """The model with the data of every initializer in the file `data`."""
    path = folder / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location=data, size_threshold=0)
    return path


def run(path: Path | bytes) -> np.ndarray:
    source = path if isinstance(path, bytes) else str(path)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((3, LARGE)).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


def refused(source: Path | io.BytesIO) -> str:
    with pytest.raises(InputError) as caught:
        load(source)
    message = str(caught.value)
    assert "\n" not in message
    if isinstance(source, Path):
        assert message.startswith(f"{source}: ")
    return message


class TestUnchanged:
    @needs_shared
    @pytest.mark.parametrize("path", MODELS, ids=lambda path: path.name)
    def test_is_its_file(self, path: Path, tmp_path: Path) -> None:
        model = load(path)
        save(model, tmp_path / "m.onnx")
        assert (tmp_path / "m.onnx").read_bytes() == path.read_bytes() == to_bytes(model)
        assert os.listdir(tmp_path) == ["m.onnx"]

    def test_from_a_stream(self) -> None:
        content = chain().SerializeToString()
        model = load(io.BytesIO(content))
        assert to_bytes(model) == content

    def test_with_fields_of_tomorrow(self, tmp_path: Path) -> None:
        """Fields that nobody knows, and an order of fields that no writer here produces."""
        graph = chain().graph.SerializeToString()
        parts = wire.fields(memoryview(graph), 0, len(graph))
        turned = b"".join(graph[f.start : f.end] for f in reversed(parts[2:]))
        swapped = turned + b"".join(graph[f.start : f.end] for f in parts[:2]) + b"\x99\x3e" + bytes(8)
        whole = chain()
        whole.ClearField("graph")
        content = (
            whole.SerializeToString() + wire.head(wire.MODEL_GRAPH, len(swapped)) + swapped + b"\xf8\x3e\x01"
        )
        path = tmp_path / "m.onnx"
        path.write_bytes(content)
        model = load(path)
        assert to_bytes(model) == content
        model.graph.node("second").outputs[0].name = "z"
        assert to_bytes(model).endswith(bytes(8) + b"\xf8\x3e\x01")

    def test_garbage_collector_and_loggers_are_as_before(self, tmp_path: Path) -> None:
        path = store(tmp_path, chain())
        load(path)
        assert gc.isenabled() and not logging.getLogger("onnx_ir.serde").disabled
        gc.disable()
        try:
            load(path)
            assert not gc.isenabled()
        finally:
            gc.enable()


class TestOpened:
    @pytest.mark.parametrize("side", [2, LARGE])
    @pytest.mark.parametrize(
        "dtype",
        [
            np.float16,
            np.float64,
            np.int8,
            np.bool_,
            np.complex64,
            ml_dtypes.bfloat16,
            ml_dtypes.float8_e4m3fn,
            ml_dtypes.int4,
            ml_dtypes.uint2,
        ],
    )
    def test_values_of_every_type(self, dtype: type, side: int, tmp_path: Path) -> None:
        values: np.ndarray = (np.arange(4 * side * side) % 2).reshape(2, 2 * side, side).astype(dtype)
        stored = numpy_helper.from_array(values, "c")
        path = store(tmp_path, chain(initializer=[*chain().graph.initializer, stored]))
        model = load(path)
        tensor = model.graph.initializers["c"].const_value
        assert tensor is not None and tensor.dtype == ir.DataType(stored.data_type)
        np.testing.assert_array_equal(tensor.numpy(), values)
        assert to_bytes(model) == path.read_bytes()

    @pytest.mark.parametrize("side", [2, LARGE])
    @pytest.mark.parametrize(
        "dtype", [np.float16, ml_dtypes.bfloat16, ml_dtypes.int4, np.int64, np.complex128]
    )
    def test_new_values_of_every_type(self, dtype: type, side: int, tmp_path: Path) -> None:
        values: np.ndarray = (np.arange(4 * side * side) % 2).reshape(2, 2 * side, side).astype(dtype)
        model = load(store(tmp_path, chain()))
        add_constant(model, "c", ir.Tensor(values))
        written = saved(model, tmp_path).graph.initializer[-1]
        assert written.raw_data == numpy_helper.from_array(values).raw_data
        np.testing.assert_array_equal(numpy_helper.to_array(written), values)

    def test_strings(self, tmp_path: Path) -> None:
        texts = onnx.TensorProto(name="t", data_type=8, dims=[2], string_data=[b"one", b"two"])
        path = store(tmp_path, chain(initializer=[*chain().graph.initializer, texts]))
        model = load(path)
        add_constant(model, "more", ir.StringTensor([b"three"], shape=ir.Shape([1])))
        written = saved(model, tmp_path).graph.initializer
        assert written[2] == texts and written[3].string_data == [b"three"]

    def test_typed_data_stay_typed(self, tmp_path: Path) -> None:
        small = helper.make_tensor("b", TensorProto.FLOAT, [LARGE], range(LARGE))
        path = store(tmp_path, chain(initializer=[weight("w", LARGE), small]))
        model = load(path)
        model.graph.node("second").outputs[0].name = "z"
        assert saved(model, tmp_path).graph.initializer[1].float_data == list(range(LARGE))

    def test_large_weights_are_not_copied(self, tmp_path: Path) -> None:
        model = load(store(tmp_path, chain()))
        array = model.graph.initializers["w"].const_value
        assert array is not None and not array.numpy().flags.owndata and not array.numpy().flags.writeable

    def test_ir_version_3_lists_initializers_as_inputs(self, tmp_path: Path) -> None:
        inputs = [floats("x", "N", LARGE), floats("w", LARGE, LARGE), floats("b", LARGE)]
        proto = chain(inputs=inputs)
        proto.ir_version = 3
        path = store(tmp_path, proto)
        model = load(path)
        assert model.graph.inputs[1].is_initializer() and to_bytes(model) == path.read_bytes()
        value = add_constant(model, "c", ir.tensor(np.ones(LARGE, np.float32)))
        model.graph.inputs.append(value)
        model.graph.node("second").replace_input_with(1, value)
        model.graph.inputs.remove(model.graph.initializers.pop("b"))
        written = saved(model, tmp_path).graph
        assert [i.name for i in written.input] == ["x", "w", "c"]
        assert written.input[1] == inputs[1]
        assert [t.name for t in written.initializer] == ["w", "c"]

    def test_maps_and_sparse_attributes_which_onnx_ir_has_no_words_for(self, tmp_path: Path) -> None:
        proto = chain()
        kind = helper.make_map_type_proto(
            TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        )
        proto.graph.node.add(op_type="ZipMap", domain="ai.onnx.ml", input=["y"], output=["z"])
        proto.graph.output.add(name="z").type.sequence_type.elem_type.CopyFrom(kind)
        constant = proto.graph.node.add(op_type="Constant", output=["s"])
        attribute = constant.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR)
        attribute.sparse_tensor.CopyFrom(sparse("unnamed"))
        path = store(tmp_path, proto)
        model = load(path)
        assert model.graph.outputs[1].type is None and to_bytes(model) == path.read_bytes()
        model.graph.node("first").outputs[0].name = "renamed"
        again = onnx.load_from_string(to_bytes(model)).graph
        assert again.output[1] == proto.graph.output[1] and again.node[3] == constant


class TestRefused:
    def test_missing(self, tmp_path: Path) -> None:
        assert "no such file" in refused(tmp_path / "nothing.onnx")

    def test_folder(self, tmp_path: Path) -> None:
        assert "is a folder" in refused(tmp_path)

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "is empty"),
            (b"just a text file\n", "is not an ONNX model"),
            (np.random.default_rng(0).bytes(5000), "is not an ONNX model"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
            (chain().SerializeToString()[:-100], "is cut off"),
            (chain().SerializeToString()[:40], "is cut off"),
            (weight("w", 3).SerializeToString(), "is not an ONNX model"),
            (onnx.ModelProto(ir_version=9).SerializeToString(), "has no graph"),
            (onnx.ModelProto(ir_version=9, graph=onnx.GraphProto()).SerializeToString(), "is empty"),
            (onnx.ModelProto(graph=chain().graph).SerializeToString(), "states no IR version"),
        ],
    )
    def test_what_is_no_model(self, content: bytes, says: str, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        path.write_bytes(content)
        assert says in refused(path)
        assert says in refused(io.BytesIO(content))

    def test_an_empty_name(self) -> None:
        with pytest.raises(InputError, match="the name of the model is empty"):
            load("")

    def test_names_are_spelled_out(self, tmp_path: Path) -> None:
        """A message is one line, and nothing in it speaks to a terminal."""
        proto = chain()
        proto.graph.node[1].input[0] = "lost\n\x1b[31mname"
        message = refused(store(tmp_path, proto))
        assert message.isprintable() and r"lost\n\x1b[31mname" in message

    def test_every_truncation(self) -> None:
        content = chain(initializer=[weight("w", 2), weight("b", 2)]).SerializeToString()
        fields = wire.fields(memoryview(content), 0, len(content))
        graph = next(f for f in fields if f.number == wire.MODEL_GRAPH)
        whole = {f.end for f in fields if f.end >= graph.end}  # only facts about the model are lost there
        for end in set(range(len(content))) - whole:
            refused(io.BytesIO(content[:end]))

    def test_every_flipped_byte_is_no_traceback(self) -> None:
        content = bytearray(chain(initializer=[weight("w", 1), weight("b", 1)]).SerializeToString())
        for place in range(len(content)):
            for flip in (0x01, 0x08, 0x80, 0xFF):
                content[place] ^= flip
                with suppress(InputError, OutputError):
                    to_bytes(load(io.BytesIO(bytes(content))))
                content[place] ^= flip

    @pytest.mark.parametrize(
        ("reads", "says"),
        [
            (["h", "nowhere"], ["node 'second' (Add)", "'nowhere'", "no node, input or initializer"]),
            (["y", "b"], ["node 'second' (Add)", "cycle"]),
            (["circle", "b"], ["node 'second' (Add)", "cycle"]),
        ],
    )
    def test_names_read_before_they_are_made(self, reads: list[str], says: list[str], tmp_path: Path) -> None:
        proto = chain()
        del proto.graph.node[1].input[:]
        proto.graph.node[1].input.extend(reads)
        proto.graph.node.append(helper.make_node("Relu", ["x"], ["later"], name="third"))
        proto.graph.node.append(helper.make_node("Neg", ["y"], ["circle"], name="fourth"))
        proto.graph.node.append(helper.make_node("Neg", ["x"], ["h2"]))
        message = refused(store(tmp_path, proto))
        assert all(part in message for part in says), message

    def test_nodes_in_another_order(self, tmp_path: Path) -> None:
        proto = chain()
        nodes = [*reversed(proto.graph.node)]
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)
        path = store(tmp_path, proto)
        assert to_bytes(load(path)) == path.read_bytes()

    def test_names_made_twice(self, tmp_path: Path) -> None:
        nodes = [*chain().graph.node, helper.make_node("Relu", ["x"], ["h"], name="third")]
        assert "'h' is the output of node 'third' (Relu)" in refused(store(tmp_path, chain(nodes=nodes)))
        nodes = [*chain().graph.node, helper.make_node("Relu", ["x"], ["w"], name="third")]
        assert "'w' is the output of node 'third' (Relu)" in refused(store(tmp_path, chain(nodes=nodes)))
        twice = [*chain().graph.initializer, weight("w", 2)]
        assert "'w' is an initializer" in refused(store(tmp_path, chain(initializer=twice)))
        inputs = [floats("x", "N", LARGE), floats("w", LARGE, LARGE)]
        assert "'w' is an init" in refused(store(tmp_path, chain(inputs=inputs, initializer=twice)))
        inputs = [floats("x", "N", LARGE)] * 2
        assert "'x' is an input of the graph" in refused(store(tmp_path, chain(inputs=inputs)))

    def test_outputs_that_nothing_makes(self, tmp_path: Path) -> None:
        outputs = [floats("y", "N", LARGE), floats("lost", "N")]
        message = refused(store(tmp_path, chain(outputs=outputs)))
        assert "graph 'g'" in message and "'lost'" in message

    def test_inner_graphs_see_outer_names_made_before_them(self, tmp_path: Path) -> None:
        path = store(tmp_path, conditional("h"))
        assert to_bytes(load(path)) == path.read_bytes()
        message = refused(store(tmp_path, conditional("y")))
        assert "node 'choice' (If)" in message and "cycle" in message
        assert "reads 'nowhere'" in refused(store(tmp_path, conditional("nowhere")))

    def test_inner_graphs_return_values_of_their_own(self, tmp_path: Path) -> None:
        proto = conditional("h")
        proto.graph.node[1].attribute[0].g.output[0].name = "h"
        assert "Identity" in refused(store(tmp_path, proto))

    def test_functions_are_checked_too(self, tmp_path: Path) -> None:
        proto = with_function()
        proto.functions[0].node[0].input[0] = "nowhere"
        assert "reads 'nowhere'" in refused(store(tmp_path, proto))
        proto = with_function()
        proto.functions[0].output[0] = "nowhere"
        assert "function 'Twice' has the output 'nowhere'" in refused(store(tmp_path, proto))
        proto = with_function()
        proto.functions.append(proto.functions[0])
        assert "two local functions" in refused(store(tmp_path, proto))

    def test_nesting_without_end(self, tmp_path: Path) -> None:
        graph = chain().graph.SerializeToString()
        for _ in range(400):
            node = wire.head(6, len(graph)) + graph + b"\xa0\x01\x05\x0a\x01b"
            attribute = wire.head(wire.NODE_ATTRIBUTE, len(node)) + node + b"\x22\x01X"
            graph = wire.head(wire.GRAPH_NODE, len(attribute)) + attribute
        content = b"\x08\x09" + wire.head(wire.MODEL_GRAPH, len(graph)) + graph
        path = tmp_path / "m.onnx"
        path.write_bytes(content)
        assert "nested deeper" in refused(path)

    @pytest.mark.parametrize("side", [3, LARGE])
    def test_raw_data_of_the_wrong_length(self, side: int, tmp_path: Path) -> None:
        wrong = weight("w", side)
        wrong.dims[0] += 1
        message = refused(store(tmp_path, chain(initializer=[wrong])))
        assert "initializer 'w'" in message and f"holds {side * side * 4} bytes" in message

    @pytest.mark.parametrize(
        ("tensor", "says"),
        [
            (onnx.TensorProto(name="w", dims=[3], data_type=1, float_data=[1, 2]), "2 numbers in float_data"),
            (onnx.TensorProto(name="w", dims=[3], data_type=1), "its weights were left out"),
            (onnx.TensorProto(name="w", dims=[3], data_type=22, int32_data=[1]), "needs 2"),
            (onnx.TensorProto(name="w", dims=[-1, -1], data_type=1, float_data=[1]), "negative size"),
            (onnx.TensorProto(name="w", dims=[1], data_type=99, raw_data=b"1234"), "unknown data type 99"),
            (onnx.TensorProto(name="w", dims=[1], data_type=0, raw_data=b"1234"), "unknown data type 0"),
            (onnx.TensorProto(dims=[1], data_type=1, raw_data=b"1234"), "has no name"),
        ],
    )
    def test_tensors_that_cannot_be(self, tensor: onnx.TensorProto, says: str, tmp_path: Path) -> None:
        assert says in refused(store(tmp_path, chain(initializer=[tensor])))

    def test_tensors_in_attributes(self, tmp_path: Path) -> None:
        node = helper.make_node("Constant", [], ["c"], name="constant", value=weight("", 3))
        node.attribute[0].t.dims[0] = 4
        message = refused(store(tmp_path, chain(nodes=[node, *chain().graph.node])))
        assert "attribute 'value' of node 'constant' (Constant)" in message

    def test_attributes_without_a_type(self, tmp_path: Path) -> None:
        proto = chain()
        proto.graph.node[0].attribute.add(name="epsilon", f=1.0)
        assert "attribute 'epsilon' of node 'first' (MatMul)" in refused(store(tmp_path, proto))

    @pytest.mark.parametrize(
        ("location", "says"),
        [
            ("missing.bin", "that file is missing"),
            ("short.bin", "which has only 100"),
            ("/etc/hostname", "in the model's folder"),
            ("../outside.bin", "in the model's folder"),
            ("sub/../../outside.bin", "in the model's folder"),
            ("link.bin", "leaves the model's folder"),
            ("links/outside.bin", "leaves the model's folder"),
            ("hard.bin", "hard link"),
            ("folder", "no regular file"),
            ("", "in the model's folder"),
            ("a\0b", "in the model's folder"),
        ],
    )
    def test_external_data(self, location: str, says: str, tmp_path: Path) -> None:
        home = tmp_path / "home"
        home.mkdir()
        (tmp_path / "outside.bin").write_bytes(bytes(10**6))
        (home / "short.bin").write_bytes(bytes(100))
        (home / "folder").mkdir()
        (home / "link.bin").symlink_to(tmp_path / "outside.bin")
        (home / "links").symlink_to(tmp_path)
        os.link(tmp_path / "outside.bin", home / "hard.bin")
        path = external(home, chain())
        proto = onnx.load(path, load_external_data=False)
        proto.graph.initializer[0].external_data[0].value = location
        message = refused(store(home, proto))
        assert says in message and "initializer 'w'" in message

    @pytest.mark.parametrize(("key", "value"), [("offset", "-1"), ("offset", "x"), ("length", "12")])
    def test_external_places(self, key: str, value: str, tmp_path: Path) -> None:
        proto = onnx.load(external(tmp_path, chain()), load_external_data=False)
        next(e for e in proto.graph.initializer[0].external_data if e.key == key).value = value
        assert "initializer 'w'" in refused(store(tmp_path, proto))

    def test_external_data_of_a_stream(self, tmp_path: Path) -> None:
        content = external(tmp_path, chain()).read_bytes()
        assert "give the path of the model" in refused(io.BytesIO(content))

    def test_without_permission(self, open_folder: Path) -> None:
        path = store(open_folder, chain())
        path.chmod(0)
        assert as_nobody(lambda: refused(path)).endswith("change its permissions")


class TestEdited:
    def test_a_weight_leaves_all_else_alone(self, tmp_path: Path) -> None:
        proto = chain()
        model = load(store(tmp_path, proto))
        old = model.graph.initializers["w"]
        values = np.full((LARGE, LARGE), 0.5, np.float32)
        new = add_constant(model, "w2", ir.tensor(values))
        model.graph.node("first").replace_input_with(1, new)
        del model.graph.initializers["w"]
        assert not old.uses()
        del proto.graph.initializer[0]
        proto.graph.initializer.append(numpy_helper.from_array(values, "w2"))
        proto.graph.node[0].input[1] = "w2"
        assert saved(model, tmp_path) == proto
        assert to_bytes(model) == proto.SerializeToString()  # down to the last byte

    def test_names_of_survivors(self, tmp_path: Path) -> None:
        proto = chain()
        model = load(store(tmp_path, proto))
        model.graph.initializers["w"].name = "weight"
        model.graph.initializers["b"].name = "bias"
        model.graph.node("first").outputs[0].name = "hidden"
        proto.graph.initializer[0].name = proto.graph.node[0].input[1] = "weight"
        proto.graph.initializer[1].name = proto.graph.node[1].input[1] = "bias"
        proto.graph.node[0].output[0] = proto.graph.node[1].input[0] = "hidden"
        proto.graph.value_info[0].name = "hidden"
        assert saved(model, tmp_path) == proto

    def test_nodes_that_come_and_go(self, tmp_path: Path) -> None:
        """The last node is folded away: the first takes its output's name, a new one stands between."""
        proto = chain()
        model = load(store(tmp_path, proto))
        first, second = model.graph.node("first"), model.graph.node("second")
        middle = ir.node("Relu", [first.outputs[0]], name="between")
        model.graph.insert_after(first, middle)
        middle.outputs[0].type, middle.outputs[0].shape = second.outputs[0].type, second.outputs[0].shape
        model.graph.outputs[0] = middle.outputs[0]
        model.graph.remove(second, safe=True)
        second.outputs[0].name = None
        middle.outputs[0].name = "y"
        del model.graph.initializers["b"]
        proto.graph.node.pop()
        proto.graph.node.append(helper.make_node("Relu", ["h"], ["y"], name="between"))
        del proto.graph.initializer[1]
        assert saved(model, tmp_path) == proto

    def test_shape_information_follows_the_values(self, tmp_path: Path) -> None:
        model = load(store(tmp_path, chain()))
        hidden = model.graph.node("first").outputs[0]
        hidden.shape = ir.Shape([7, LARGE])
        added = ir.node("Relu", [hidden], name="side")
        added.outputs[0].name = "s"
        added.outputs[0].type, added.outputs[0].shape = hidden.type, ir.Shape([7, LARGE])
        unknown = ir.node("Relu", [hidden], name="unknown")
        unknown.outputs[0].name = "u"
        model.graph.extend([added, unknown])
        infos = saved(model, tmp_path).graph.value_info
        assert list(infos) == [floats("h", 7, LARGE), floats("s", 7, LARGE)]
        hidden.shape[0] = 5  # changed in place
        assert saved(model, tmp_path).graph.value_info[0] == floats("h", 5, LARGE)
        hidden.name = "other"
        assert [info.name for info in saved(model, tmp_path).graph.value_info] == ["other", "s"]

    def test_no_shape_information_where_there_was_none(self, tmp_path: Path) -> None:
        model = load(store(tmp_path, chain(value_info=[])))
        model.graph.node("first").outputs[0].shape = ir.Shape([7, LARGE])
        add_constant(model, "c", ir.tensor(np.ones(3, np.float32)))
        assert not saved(model, tmp_path).graph.value_info

    def test_quantization_annotations(self, tmp_path: Path) -> None:
        proto = chain()
        for name in ("w", "b", "elsewhere"):
            proto.graph.quantization_annotation.add(tensor_name=name)
        model = load(store(tmp_path, proto))
        model.graph.node("second").replace_input_with(1, add_constant(model, "c", ir.tensor([1.0])))
        del model.graph.initializers["b"]
        notes = saved(model, tmp_path).graph.quantization_annotation
        assert [note.tensor_name for note in notes] == ["w", "elsewhere"]

    def test_optional_inputs(self, tmp_path: Path) -> None:
        """An absent input is an empty name, before and after others are added behind it."""
        node = helper.make_node("Clip", ["y", "", "b0"], ["z"], name="clip")
        nodes = [*chain().graph.node, node]
        constants = [*chain().graph.initializer, numpy_helper.from_array(np.array(1, np.float32), "b0")]
        path = store(tmp_path, chain(nodes=nodes, initializer=constants, outputs=[floats("z", "N", LARGE)]))
        model = load(path)
        assert to_bytes(model) == path.read_bytes()
        clip = model.graph.node("clip")
        clip.replace_input_with(1, clip.inputs[2])
        clip.replace_input_with(2, None)
        assert list(saved(model, tmp_path).graph.node[2].input) == ["y", "b0", ""]

    def test_lazy_tensors_are_computed_one_at_a_time(self, tmp_path: Path) -> None:
        model = load(store(tmp_path, chain()))
        alive: list[str] = []

        def compute(name: str) -> ir.TensorProtocol:
            alive.append(name)
            return ir.tensor(np.full((LARGE, LARGE), len(alive), np.float32))

        for name in ("c1", "c2"):
            shape = ir.Shape([LARGE, LARGE])
            add_constant(model, name, ir.LazyTensor(partial(compute, name), ir.DataType.FLOAT, shape))
        assert not alive
        written = saved(model, tmp_path).graph.initializer
        assert alive == ["c1", "c2"]
        assert [numpy_helper.to_array(t)[0, 0] for t in written[2:]] == [1, 2]

    def test_a_lazy_tensor_of_another_size_is_a_bug(self, tmp_path: Path) -> None:
        model = load(store(tmp_path, chain()))
        wrong = ir.LazyTensor(lambda: ir.tensor([1.0]), dtype=ir.DataType.FLOAT, shape=ir.Shape([2]))
        add_constant(model, "c", wrong)
        with pytest.raises(ValueError, match="8 bytes were announced, 4 came"):
            save(model, tmp_path / "out.onnx")
        assert os.listdir(tmp_path) == ["model.onnx"]

    def test_arrays_of_any_layout(self, tmp_path: Path) -> None:
        model = load(store(tmp_path, chain()))
        values = np.arange(12, dtype=np.float32).reshape(3, 4)
        add_constant(model, "turned", ir.Tensor(values.T))
        add_constant(model, "scalar", ir.Tensor(np.array(2.5, np.float32)))
        add_constant(model, "nothing", ir.Tensor(np.zeros((0, 3), np.float32)))
        written = {t.name: numpy_helper.to_array(t) for t in saved(model, tmp_path).graph.initializer}
        np.testing.assert_array_equal(written["turned"], values.T)
        assert (
            written["scalar"] == 2.5 and written["scalar"].shape == () and written["nothing"].shape == (0, 3)
        )

    def test_the_same_tensor_under_two_names(self, tmp_path: Path) -> None:
        model = load(store(tmp_path, chain()))
        tensor = model.graph.initializers["w"].const_value
        assert tensor is not None
        value = ir.Value(name="copy", const_value=tensor)
        model.graph.initializers["copy"] = value
        written = saved(model, tmp_path).graph.initializer
        assert [t.name for t in written] == ["w", "b", "copy"]
        assert written[0].raw_data == written[2].raw_data

    def test_is_the_same_every_time(self, tmp_path: Path) -> None:
        def once() -> bytes:
            model = load(tmp_path / "model.onnx")
            add_constant(model, "c", ir.tensor(np.ones((LARGE, LARGE), np.float32)))
            return to_bytes(model)

        store(tmp_path, chain())
        assert once() == once()

    def test_opset_imports(self, tmp_path: Path) -> None:
        model = load(store(tmp_path, chain()))
        model.graph.opset_imports["custom"] = 3
        imports = saved(model, tmp_path).opset_import
        assert [(i.domain, i.version) for i in imports] == [("", 18), ("custom", 3)]


class TestCarriedAlong:
    def test_sparse_initializers(self, tmp_path: Path) -> None:
        proto = chain(sparse_initializer=[sparse("s")])
        proto.graph.node[1].input[1] = "s"
        model = load(store(tmp_path, proto))
        unknown = model.graph.node("second").inputs[1]
        assert unknown is not None and unknown.producer() is None and unknown.const_value is None
        model.graph.node("first").outputs[0].name = "hidden"
        written = onnx.load_from_string(to_bytes(model)).graph
        assert written.sparse_initializer == proto.graph.sparse_initializer
        assert list(written.node[1].input) == ["hidden", "s"]

    def test_training_info(self, tmp_path: Path) -> None:
        proto = chain()
        proto.training_info.add().algorithm.CopyFrom(chain().graph)
        model = load(store(tmp_path, proto))
        model.graph.node("first").outputs[0].name = "hidden"
        assert onnx.load_from_string(to_bytes(model)).training_info == proto.training_info

    def test_functions(self, tmp_path: Path) -> None:
        proto = with_function()
        model = load(store(tmp_path, proto))
        function = next(iter(model.functions.values()))
        function.graph.node(0).outputs[0].name = "inside"
        proto.functions[0].node[0].output[0] = proto.functions[0].node[1].input[0] = "inside"
        assert saved(model, tmp_path) == proto
        function.graph.node(1).outputs[0].name = "result"
        proto.functions[0].node[1].output[0] = proto.functions[0].output[0] = "result"
        assert saved(model, tmp_path) == proto

    def test_functions_that_go(self, tmp_path: Path) -> None:
        model = load(store(tmp_path, with_function()))
        call = model.graph.node("call")
        relu = ir.node("Relu", call.inputs, name="instead")
        model.graph.insert_before(call, relu)
        ir.convenience.replace_all_uses_with(call.outputs[0], relu.outputs[0])
        relu.outputs[0].name, call.outputs[0].name = "h2", None
        model.graph.remove(call, safe=True)
        model.functions.clear()
        written = saved(model, tmp_path)
        assert not written.functions and [n.op_type for n in written.graph.node] == ["MatMul", "Relu", "Add"]

    def test_inner_graphs(self, tmp_path: Path) -> None:
        proto = conditional("h")
        model = load(store(tmp_path, proto))
        inner = model.graph.node("choice").attributes["then_branch"].as_graph()
        relu = inner.node(0)
        constant = ir.Value(name="k", const_value=ir.tensor(np.ones(LARGE, np.float32)))
        inner.initializers["k"] = constant
        relu.outputs[0].name = "t0"
        scaled = ir.node("Mul", [relu.outputs[0], constant], name="scaled")
        scaled.outputs[0].name = "t"
        inner.append(scaled)
        inner.outputs[0] = scaled.outputs[0]
        branch = proto.graph.node[1].attribute[0].g
        branch.node[0].output[0] = "t0"
        branch.node.append(helper.make_node("Mul", ["t0", "k"], ["t"], name="scaled"))
        branch.initializer.append(numpy_helper.from_array(np.ones(LARGE, np.float32), "k"))
        branch.output[0].CopyFrom(onnx.ValueInfoProto(name="t"))
        written = onnx.load_from_string(to_bytes(model))
        assert written.graph.node[1].attribute[1] == proto.graph.node[1].attribute[1]
        written_branch = written.graph.node[1].attribute[0].g
        assert written_branch.node == branch.node and written_branch.initializer == branch.initializer

    def test_what_is_captured_takes_its_new_name(self, tmp_path: Path) -> None:
        model = load(store(tmp_path, conditional("h")))
        model.graph.node("first").outputs[0].name = "hidden"
        branches = [a.g for a in saved(model, tmp_path).graph.node[1].attribute]
        assert [b.node[0].input[0] for b in branches] == ["hidden", "hidden"]

    def test_nodes_from_an_inner_graph(self, tmp_path: Path) -> None:
        """A branch is moved into the main graph: its nodes are still those of the file."""
        proto = conditional("h")
        proto.graph.node[1].attribute[0].g.node[0].doc_string = "moved"
        model = load(store(tmp_path, proto))
        choice = model.graph.node("choice")
        inner = choice.attributes["then_branch"].as_graph()
        relu = inner.node(0)
        inner.outputs.clear()
        inner.remove(relu)
        model.graph.insert_before(choice, relu)
        ir.convenience.replace_all_uses_with(choice.outputs[0], relu.outputs[0])
        model.graph.remove(choice, safe=True)
        written = saved(model, tmp_path).graph.node
        assert [(n.op_type, n.doc_string) for n in written] == [
            ("MatMul", "the first"),
            ("Relu", "moved"),
            ("Add", ""),
        ]


class TestForeign:
    """Models that other code made."""

    def test_is_written_whole(self, tmp_path: Path) -> None:
        model = ir.serde.deserialize_model(chain())
        save(model, tmp_path / "out.onnx")
        written = onnx.load(tmp_path / "out.onnx")
        assert {t.name: t.raw_data for t in written.graph.initializer} == {
            t.name: t.raw_data for t in chain().graph.initializer
        }
        assert np.array_equal(run(tmp_path / "out.onnx"), run(chain().SerializeToString()))
        assert model.graph.initializers["w"].const_value is not None

    def test_copies_of_a_model_are_foreign(self, tmp_path: Path) -> None:
        path = store(tmp_path, chain())
        copy = load(path).clone()
        save(copy, tmp_path / "out.onnx")
        assert np.array_equal(run(tmp_path / "out.onnx"), run(path))
        model = load(path)
        model.graph = model.graph.clone()
        save(model, tmp_path / "third.onnx")
        assert np.array_equal(run(tmp_path / "third.onnx"), run(path))

    def test_external_tensors(self, tmp_path: Path) -> None:
        model = ir.load(external(tmp_path, chain()))
        other = tmp_path / "other"
        other.mkdir()
        save(model, other / "out.onnx")
        assert len(os.listdir(other)) == 2
        assert np.array_equal(run(other / "out.onnx"), run(chain().SerializeToString()))


class TestExternal:
    def test_unchanged_in_the_same_folder_shares_the_data(self, tmp_path: Path) -> None:
        path = external(tmp_path, chain())
        save(load(path), tmp_path / "copy.onnx")
        assert (tmp_path / "copy.onnx").read_bytes() == path.read_bytes()
        assert sorted(os.listdir(tmp_path)) == ["copy.onnx", "model.onnx", "weights.bin"]

    def test_unchanged_in_another_folder_brings_the_data(self, tmp_path: Path) -> None:
        path = external(tmp_path, chain())
        other = tmp_path / "other"
        other.mkdir()
        save(load(path), other / "copy.onnx")
        names = sorted(os.listdir(other))
        assert len(names) == 2 and re.fullmatch(r"copy\.onnx\.[0-9a-f]{16}\.data", names[1])
        content = (other / names[1]).read_bytes()
        assert hashlib.sha256(content).hexdigest().startswith(names[1].split(".")[2])
        onnx.checker.check_model(other / "copy.onnx")
        assert np.array_equal(run(other / "copy.onnx"), run(path))
        # all but where the data are is as it was
        old, new = onnx.load(path), onnx.load(other / "copy.onnx")
        assert old == new

    def test_data_named_after_another_model_are_not_shared(self, tmp_path: Path) -> None:
        """Else the next version of that model would take them away."""
        first = external(tmp_path, chain())
        model = load(first)
        change(model)
        save(model, tmp_path / "a.onnx")
        save(load(tmp_path / "a.onnx"), tmp_path / "b.onnx")
        again = load(first)
        save(again, tmp_path / "c.onnx")
        change_data(again, 2.0)
        save(again, tmp_path / "a.onnx", force=True)
        assert run(tmp_path / "b.onnx").shape == (3, LARGE)
        a, b = (sorted(n for n in os.listdir(tmp_path) if n.startswith(f"{x}.onnx.")) for x in "ab")
        assert len(a) == len(b) == 1

    def test_changed(self, tmp_path: Path) -> None:
        path = external(tmp_path, chain())
        model = load(path)
        w = model.graph.initializers["w"].const_value
        assert isinstance(w, ir.ExternalTensor) and Path(w.base_dir) == tmp_path
        change(model, 2.0)
        add_constant(model, "large", ir.tensor(np.ones((200, 200), np.float32)))
        add_constant(model, "small", ir.tensor(np.ones(3, np.float32)))
        save(model, tmp_path / "out.onnx")
        proto = onnx.load(tmp_path / "out.onnx", load_external_data=False)
        outside = {t.name: t for t in proto.graph.initializer if t.external_data}
        assert set(outside) == {"w", "large"} | ({"b"} if "b" in outside else set())
        offsets = {name: int(t.external_data[1].value) for name, t in outside.items()}
        assert offsets["large"] % 4096 == 0
        onnx.checker.check_model(tmp_path / "out.onnx")
        assert run(tmp_path / "out.onnx").shape == (3, LARGE)
        values = {
            t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer
        }
        assert np.array_equal(values["w"], numpy_helper.to_array(chain().graph.initializer[0]))
        assert values["large"].shape == (200, 200) and values["small"].shape == (3,)
        embedded = onnx.load_from_string(to_bytes(model)).graph.initializer
        assert all(np.array_equal(numpy_helper.to_array(t), values[t.name]) for t in embedded)
        assert not any(t.external_data or t.data_location for t in embedded)

    def test_in_attributes_and_inner_graphs(self, tmp_path: Path) -> None:
        proto = conditional("h")
        branch = proto.graph.node[1].attribute[0].g
        branch.initializer.append(weight("inner", 5))
        constant = helper.make_node("Constant", [], ["k"], name="constant", value=weight("value", 6))
        proto.graph.node.insert(0, constant)
        path = tmp_path / "model.onnx"
        onnx.save(
            proto,
            path,
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=0,
            convert_attribute=True,
        )
        stored = onnx.load(path, load_external_data=False)
        inner = stored.graph.node[2].attribute[0].g.initializer[0]
        if not inner.external_data:
            onnx.external_data_helper.set_external_data(inner, "weights.bin", offset=0, length=100)
            inner.ClearField("raw_data")
            path = store(tmp_path, stored)
        want = onnx.load(path)
        want_inner = (tmp_path / "weights.bin").read_bytes()[:100]
        other = tmp_path / "other"
        other.mkdir()
        save(load(path), other / "out.onnx")
        written = onnx.load(other / "out.onnx", load_external_data=False)
        data = next(n for n in os.listdir(other) if n.endswith(".data"))
        content = (other / data).read_bytes()
        entries = {e.key: e.value for e in written.graph.node[2].attribute[0].g.initializer[0].external_data}
        start = int(entries["offset"])
        assert entries["location"] == data and content[start : start + 100] == want_inner
        assert onnx.load(other / "out.onnx").graph.node[0] == want.graph.node[0]

    def test_unknown_keys_are_no_warning(self, tmp_path: Path) -> None:
        proto = onnx.load(external(tmp_path, chain()), load_external_data=False)
        proto.graph.initializer[0].external_data.add(key="prepacked_0", value="x")
        load(store(tmp_path, proto))

    def test_predecessors_data_are_removed(self, tmp_path: Path) -> None:
        path = external(tmp_path, chain())
        out = tmp_path / "out.onnx"
        mine = tmp_path / f"out.onnx.{'0' * 16}.data"  # like ours, but nobody refers to it
        mine.write_bytes(b"precious")
        model = load(path)
        seen = set()
        for factor in (1.0, 2.0, 2.0, 3.0):
            change_data(model, factor)
            save(model, out, force=True)
            data = [n for n in os.listdir(tmp_path) if n.startswith("out.onnx.") and n != mine.name]
            assert len(data) == 1
            seen.add(data[0])
            onnx.load(out)
        assert len(seen) == 3
        assert mine.read_bytes() == b"precious" and (tmp_path / "weights.bin").exists()

    def test_over_its_own_file(self, tmp_path: Path) -> None:
        path = external(tmp_path, chain())
        expected = run(path)
        save(load(path), path, force=True)
        assert np.array_equal(run(path), expected)
        for factor in (2.0, 3.0):
            model = load(path)
            change_data(model, factor)
            save(model, path, force=True)
            onnx.checker.check_model(path)
        assert len([n for n in os.listdir(tmp_path) if n.endswith(".data")]) == 1

    def test_too_large_for_one_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The limit is lowered: 2 GiB are too much for a test that runs in seconds."""
        path = store(tmp_path, chain())
        expected = run(path)
        model = load(path)
        change(model, 0.0)
        monkeypatch.setattr(wire, "MESSAGE_LIMIT", 4000)
        with pytest.raises(OutputError, match="write it to a file"):
            to_bytes(model)
        save(model, tmp_path / "out.onnx")
        assert (tmp_path / "out.onnx").stat().st_size < 4000
        assert np.array_equal(run(tmp_path / "out.onnx") - expected, np.zeros_like(expected))
        monkeypatch.setattr(wire, "MESSAGE_LIMIT", 10)
        with pytest.raises(OutputError, match="even without its weights"):
            save(model, tmp_path / "third.onnx")

    def test_data_that_vanish_meanwhile(self, tmp_path: Path) -> None:
        model = load(external(tmp_path, chain()))
        change(model)
        (tmp_path / "weights.bin").write_bytes(b"short")
        with pytest.raises(InputError, match="the data file has changed"):
            save(model, tmp_path / "out.onnx")
        (tmp_path / "weights.bin").unlink()
        with pytest.raises(InputError, match="cannot be read"):
            save(model, tmp_path / "out.onnx")
        assert os.listdir(tmp_path) == ["model.onnx"]


class TestTransaction:
    def test_staged_model_is_complete(self, tmp_path: Path) -> None:
        model = load(external(tmp_path, chain()))
        change(model, 0.0)
        before = sorted(os.listdir(tmp_path))
        with stage(model, tmp_path / "out.onnx") as staged:
            assert tmp_path in Path(staged.path).parents and not (tmp_path / "out.onnx").exists()
            first = run(Path(staged.path))
            onnx.checker.check_model(staged.path)
        assert sorted(os.listdir(tmp_path)) == before
        with stage(model, tmp_path / "out.onnx") as staged:
            staged.commit()
        assert np.array_equal(run(tmp_path / "out.onnx"), first)
        assert not [n for n in os.listdir(tmp_path) if n.startswith(".")]

    def test_a_run_that_is_given_up_takes_nothing_from_another(self, tmp_path: Path) -> None:
        """Two runs for one target, whose data have one name: the one that fails must not remove them."""
        model = load(external(tmp_path, chain()))
        change_data(model, 2.0)
        with stage(model, tmp_path / "out.onnx"):
            save(model, tmp_path / "out.onnx")
        expected = run(tmp_path / "out.onnx")
        with pytest.raises(KeyboardInterrupt), stage(model, tmp_path / "out.onnx", force=True):
            save(model, tmp_path / "out.onnx", force=True)
            raise KeyboardInterrupt
        with stage(model, tmp_path / "out.onnx", force=True) as staged:
            staged.commit()
        assert np.array_equal(run(tmp_path / "out.onnx"), expected)
        assert len([n for n in os.listdir(tmp_path) if n.startswith("out.onnx.")]) == 1
        assert not [n for n in os.listdir(tmp_path) if n.startswith(".")]

    def test_the_data_are_no_more_public_than_the_model(self, tmp_path: Path) -> None:
        model = load(external(tmp_path, chain()))
        change_data(model, 2.0)
        (tmp_path / "out.onnx").write_bytes(b"mine")
        (tmp_path / "out.onnx").chmod(0o600)
        save(model, tmp_path / "out.onnx", force=True)
        written = [n for n in os.listdir(tmp_path) if n.startswith("out.onnx")]
        assert len(written) == 2
        assert {stat.S_IMODE((tmp_path / n).stat().st_mode) for n in written} == {0o600}

    def test_an_exception_leaves_nothing(self, tmp_path: Path) -> None:
        model = load(external(tmp_path, chain()))
        change(model)
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(KeyboardInterrupt), stage(model, tmp_path / "out.onnx"):
            raise KeyboardInterrupt
        assert sorted(os.listdir(tmp_path)) == before

    def test_an_interrupt_while_writing_leaves_nothing(self, tmp_path: Path) -> None:
        def interrupt() -> ir.TensorProtocol:
            raise KeyboardInterrupt

        model = load(external(tmp_path, chain()))
        add_constant(model, "c", ir.LazyTensor(interrupt, dtype=ir.DataType.FLOAT, shape=ir.Shape([99, 99])))
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(KeyboardInterrupt):
            save(model, tmp_path / "out.onnx")
        assert sorted(os.listdir(tmp_path)) == before

    def test_needs_force(self, tmp_path: Path) -> None:
        model = load(store(tmp_path, chain()))
        (tmp_path / "out.onnx").write_bytes(b"mine")
        with pytest.raises(OutputError, match=r"out\.onnx: exists already; .* --force"):
            save(model, tmp_path / "out.onnx")
        assert (tmp_path / "out.onnx").read_bytes() == b"mine"
        save(model, tmp_path / "out.onnx", force=True)
        assert (tmp_path / "out.onnx").read_bytes() == to_bytes(model)

    def test_what_appears_meanwhile_needs_force_too(self, tmp_path: Path) -> None:
        model = load(store(tmp_path, chain()))
        with stage(model, tmp_path / "out.onnx") as staged:
            (tmp_path / "out.onnx").write_bytes(b"mine")
            with pytest.raises(OutputError, match="exists already"):
                staged.commit()
        assert sorted(os.listdir(tmp_path)) == ["model.onnx", "out.onnx"]
        assert (tmp_path / "out.onnx").read_bytes() == b"mine"

    @pytest.mark.parametrize("kind", ["itself", "symlink", "hard link"])
    def test_the_source_itself(self, kind: str, tmp_path: Path) -> None:
        path = store(tmp_path, chain())
        target = path if kind == "itself" else tmp_path / "other.onnx"
        if kind == "symlink":
            target.symlink_to(path)
        elif kind == "hard link":
            os.link(path, target)
        model = load(path)
        change(model, 0.0)
        with pytest.raises(OutputError, match="is the model that was read"):
            save(model, target)
        expected = to_bytes(model)
        save(model, target, force=True)
        assert target.read_bytes() == expected
        assert target.is_symlink() == (kind == "symlink")
        assert (path.read_bytes() == expected) == (kind != "hard link")
        assert to_bytes(model) == expected  # the mapped file lives on

    @pytest.mark.parametrize(
        ("target", "says"),
        [
            ("", "not the name of a file"),
            ("folder", "is a folder"),
            ("folder/", "not the name of a file"),
            ("nowhere/out.onnx", "nowhere does not exist"),
            ("model.onnx/out.onnx", "cannot be written: Not a directory"),
            ("pipe", "no regular file"),
            ("x" * 300, "cannot be written: File name too long"),
        ],
    )
    @pytest.mark.parametrize("force", [False, True])
    def test_targets_that_cannot_be(
        self, target: str, says: str, force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        model = load(store(tmp_path, chain()))
        with pytest.raises(OutputError, match=says):
            save(model, target, force=force)
        assert sorted(os.listdir(tmp_path)) == ["folder", "model.onnx", "pipe"]

    def test_relative_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store(tmp_path, chain())
        monkeypatch.chdir(tmp_path)
        model = load("model.onnx")
        monkeypatch.chdir("/")
        save(model, tmp_path / "out.onnx")
        monkeypatch.chdir(tmp_path)
        save(model, "again.onnx")
        assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()

    def test_permissions(self, tmp_path: Path) -> None:
        model = load(store(tmp_path, chain()))
        old = os.umask(0o027)
        try:
            save(model, tmp_path / "new.onnx")
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "new.onnx").stat().st_mode) == 0o640
        (tmp_path / "new.onnx").chmod(0o604)
        save(model, tmp_path / "new.onnx", force=True)
        assert stat.S_IMODE((tmp_path / "new.onnx").stat().st_mode) == 0o604

    def test_without_permission(self, open_folder: Path) -> None:
        model = load(store(open_folder, chain()))
        open_folder.chmod(0o555)

        def attempt() -> str:
            with pytest.raises(OutputError) as caught:
                save(model, open_folder / "out.onnx")
            return str(caught.value)

        message = as_nobody(attempt)
        assert "out.onnx: cannot be written: Permission denied; choose another folder" in message
        assert os.listdir(open_folder) == ["model.onnx"]

    @pytest.mark.parametrize("outside", [False, True])
    @pytest.mark.parametrize("room", [0, 100, 10_000])
    def test_a_full_disk(self, room: int, outside: bool, tmp_path: Path) -> None:
        """The child may not write files longer than `room`: write itself fails, as on a full disk."""
        path = external(tmp_path, chain()) if outside else store(tmp_path, chain())
        (tmp_path / "out.onnx").write_bytes(b"mine")
        before = sorted(os.listdir(tmp_path))
        script = (
            "import resource, sys\n"
            "from bnfold.errors import OutputError\n"
            "from bnfold.model import load, save\n"
            "model = load(sys.argv[1])\n"
            "model.graph.node(0).outputs[0].name = 'other'\n"
            "limit = int(sys.argv[3])\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
            "try:\n"
            "    save(model, sys.argv[2], force=True)\n"
            "except OutputError as error:\n"
            "    sys.exit(str(error))\n"
        )
        command = [sys.executable, "-c", script, str(path), str(tmp_path / "out.onnx"), str(room)]
        root = Path(model_module.__file__).parent.parent
        done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
        assert done.returncode == 1
        assert "out.onnx: cannot be written: File too large" in done.stderr
        assert sorted(os.listdir(tmp_path)) == before
        assert (tmp_path / "out.onnx").read_bytes() == b"mine"

    def test_killed_while_writing(self, tmp_path: Path) -> None:
        """The target is untouched; what remains is recognisable."""
        path = store(tmp_path, chain())
        (tmp_path / "out.onnx").write_bytes(b"mine")
        script = (
            "import os, signal, sys\n"
            "import onnx_ir as ir\n"
            "from bnfold.model import load, save\n"
            "model = load(sys.argv[1])\n"
            "kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
            "kill = ir.LazyTensor(kill, ir.DataType.FLOAT, ir.Shape([9]))\n"
            "model.graph.initializers['k'] = ir.Value(name='k', const_value=kill)\n"
            "save(model, sys.argv[2], force=True)\n"
        )
        command = [sys.executable, "-c", script, str(path), str(tmp_path / "out.onnx")]
        root = Path(model_module.__file__).parent.parent
        subprocess.run(command, cwd=root, check=False)
        assert (tmp_path / "out.onnx").read_bytes() == b"mine"
        left = set(os.listdir(tmp_path)) - {"model.onnx", "out.onnx"}
        assert len(left) == 1 and left.pop().startswith(".bnfold-")


def add_constant(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    tensor.name = name
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)  # type: ignore[arg-type]
    model.graph.initializers[name] = value
    return value


def change(model: ir.Model, factor: float = 1.0) -> None:
    """Add `factor` instead of the bias."""
    values = np.arange(LARGE, dtype=np.float32) + np.float32(factor)
    value = ir.Value(name="changed", const_value=ir.tensor(values, name="changed"))
    model.graph.initializers["changed"] = value
    model.graph.node("second").replace_input_with(1, value)


def change_data(model: ir.Model, factor: float) -> None:
    """Add a large weight that nobody reads."""
    add_constant(model, "large", ir.tensor(np.full((LARGE, LARGE), factor, np.float32)))


def sparse(name: str) -> onnx.SparseTensorProto:
    values = helper.make_tensor(name, TensorProto.FLOAT, [1], [2.0])
    return helper.make_sparse_tensor(values, helper.make_tensor("", TensorProto.INT64, [1], [3]), [LARGE])


def conditional(reads: str) -> onnx.ModelProto:
    """The chain, with an If between whose branches read the outer value `reads`."""
    branches = [
        helper.make_graph([helper.make_node(op, [reads], [out])], op, [], [onnx.ValueInfoProto(name=out)])
        for op, out in (("Relu", "t"), ("Neg", "e"))
    ]
    choice = helper.make_node(
        "If", ["c"], ["h2"], name="choice", then_branch=branches[0], else_branch=branches[1]
    )
    proto = chain(initializer=[*chain().graph.initializer, numpy_helper.from_array(np.array(True), "c")])
    proto.graph.node.insert(1, choice)
    del proto.graph.node[1].attribute[:]
    proto.graph.node[1].attribute.extend(
        helper.make_attribute(name, g)
        for name, g in zip(("then_branch", "else_branch"), branches, strict=True)
    )
    proto.graph.node[2].input[0] = "h2"
    return proto


def with_function() -> onnx.ModelProto:
    """The chain, with the call of a local function between."""
    nodes = [
        helper.make_node("Relu", ["a"], ["r"], name="inner1"),
        helper.make_node("Add", ["r", "a"], ["s"], name="inner2"),
    ]
    function = helper.make_function("local", "Twice", ["a"], ["s"], nodes, [helper.make_opsetid("", 18)])
    proto = chain()
    proto.opset_import.append(helper.make_opsetid("local", 1))
    proto.graph.node.insert(1, helper.make_node("Twice", ["h"], ["h2"], name="call", domain="local"))
    proto.graph.node[2].input[0] = "h2"
    proto.functions.append(function)
    return proto


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder into which everybody may look; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        folder.chmod(0o755)


def as_nobody(attempt: Callable[[], str]) -> str:
    """What `attempt` says in a child process that is not root."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            os.write(writable, attempt().encode())
        finally:
            os._exit(0)
    os.close(writable)
    os.waitpid(child, 0)
    with open(readable, "rb") as pipe:
        return pipe.read().decode()


def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path) -> None:
    """With external weights, saving needs the memory of one tensor and not of all."""
    count, side = 16, 1024  # 64 MiB in 4 MiB tensors
    weights = [weight(f"w{i}", side, seed=i) for i in range(count)]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(count)]
    graph = helper.make_graph(
        nodes, "g", [floats("x0", "N", side)], [floats(f"x{count}", "N", side)], weights
    )
    path = external(tmp_path, helper.make_model(graph, ir_version=9))
    script = (
        "import resource, sys\n"
        "from bnfold.model import load, save\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "model = load(sys.argv[1])\n"
        "model.graph.node(0).outputs[0].name = 'other'\n"
        "save(model, sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    command = [sys.executable, "-c", script, str(path), str(tmp_path / "out.onnx")]
    root = Path(model_module.__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert int(done.stdout) < 24 * 1024  # kilobytes: far less than the 64 MiB that were moved


def test_other_edits_arrive(tmp_path: Path) -> None:
    """What a pass of onnx_ir changes is written, although the file is only patched."""
    model = load(store(tmp_path, chain()))
    node = model.graph[0]
    node.attributes["alpha"] = ir.AttrFloat32("alpha", 0.5)
    node.doc_string = "edited"
    model.producer_name = "somebody"
    model.metadata_props["key"] = "value"
    model.graph.name = "renamed"
    model.graph.inputs[0].shape = ir.Shape([7, LARGE])
    written = onnx.load_from_string(to_bytes(model))
    assert [a.name for a in written.graph.node[0].attribute][-1] == "alpha"
    assert (written.graph.node[0].doc_string, written.producer_name) == ("edited", "somebody")
    assert [(p.key, p.value) for p in written.metadata_props] == [*model.metadata_props.items()]
    assert (written.graph.name, written.ir_version) == ("renamed", model.ir_version)
    assert written.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 7
    assert len(written.graph.node) == len(chain().graph.node)
