"""Files that want to harm: traps that were built, and a slice of the damaged files of `fuzz_files`.

All commands are run on each, in a process with limits of time and memory that it must not leave.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fuzz_files import DIGITS, MODEL, Worker, fuzz
from graphs import model, norm
from onnx import AttributeProto, TensorProto, helper

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are set as Linux has them")

HUGE = 2**40
INPUT = "(float[2,3] x) => (float[] y)"
FOLDED = "c = Conv(x, w)  y = BatchNormalization(c, scale, bias, mean, var)"
COMMANDS = (
    ("inspect", MODEL),
    ("optimize", MODEL, "--dry-run"),
    ("verify", MODEL, MODEL, "--no-runtime"),  # what onnxruntime does of it is in a process apart
)

Make = Callable[[Path], onnx.ModelProto | bytes]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker(seconds=30.0) as worker:
        yield worker


# --- Traps --------------------------------------------------------------------------------------------


def text(body: str, **constants: Any) -> Make:
    return lambda _: model(f"{INPUT} {{ {body} }}", **constants)


def foldable() -> onnx.ModelProto:
    graph = f"(float[N,3,8,8] x) => (float[N,4,6,6] y) {{ {FOLDED} }}"
    return model(graph, w=(4, 3, 3, 3), **norm(4))


def weight(change: Callable[[TensorProto], object]) -> Make:
    """A model whose convolution has something odd for a weight."""

    def make(_: Path) -> onnx.ModelProto:
        proto = foldable()
        change(proto.graph.initializer[0])
        return proto

    return make


def external(location: str, offset: int | str | None = None, length: int | str | None = None) -> Make:
    """A weight in a file; `w.bin` is there and as long as it should be."""

    def make(folder: Path) -> onnx.ModelProto:
        (folder / "w.bin").write_bytes(bytes(4 * 3 * 3 * 3 * 4))
        proto = foldable()
        tensor = proto.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            if value is not None:
                tensor.external_data.add(key=key, value=str(value))
        return proto

    return make


def beside(make_file: Callable[[Path], object]) -> Make:
    """A weight in a file that is none."""

    def make(folder: Path) -> onnx.ModelProto | bytes:
        make_file(folder / "odd")
        return external("odd")(folder)

    return make


def sparse_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(HUGE)


def nested(depth: int) -> bytes:
    """An If in an If in an If."""
    graph = wrap(1, helper.make_node("Identity", ["x"], ["y"]).SerializeToString()) + wrap(2, b"g")
    for _ in range(depth):
        branch = wrap(5, wrap(1, b"then_branch") + wrap(6, graph) + b"\xa0\x01\x05")  # its type is GRAPH
        graph = wrap(1, wrap(1, b"x") + wrap(2, b"y") + wrap(4, b"If") + branch) + wrap(2, b"g")
    head = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
    return bytes(head.SerializeToString() + wrap(7, graph))


def wrap(number: int, body: bytes) -> bytes:
    size, out = len(body), bytearray()
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *out, size]) + body


def nested_type(depth: int) -> Make:
    """A sequence of sequences of ..."""

    def make(folder: Path) -> bytes:
        kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [1]).SerializeToString()
        for _ in range(depth):
            kind = wrap(4, wrap(1, kind))
        graph = wrap(1, helper.make_node("Relu", ["x"], ["y"]).SerializeToString()) + wrap(2, b"g")
        graph += wrap(11, wrap(1, b"x") + wrap(2, kind)) + wrap(12, wrap(1, b"y"))
        head = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
        return bytes(head.SerializeToString() + wrap(7, graph))

    return make


def row(count: int) -> Make:
    """Identities, one after the other."""

    def make(_: Path) -> onnx.ModelProto:
        names = ["x", *(f"v{i}" for i in range(count - 1)), "y"]
        nodes = [helper.make_node("Identity", [a], [b]) for a, b in pairwise(names)]
        x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
        return helper.make_model(
            helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        )

    return make


def doubled(times: int) -> Make:
    """Each node joins its input with itself: 2^times."""
    body = "  ".join(f"v{i + 1} = Concat <axis = 0> (v{i}, v{i})" for i in range(times))
    return text(f"v0 = Identity(x)  {body}  y = Identity(v{times})")


def functions(depth: int, calls: int) -> Make:
    """Each function calls the one before it, once or more."""

    def make(_: Path) -> onnx.ModelProto:
        proto = model(f"{INPUT} {{ y = Identity(x) }}")
        proto.opset_import.append(helper.make_opsetid("f", 1))
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
        for i in range(depth):
            callee, domain = (f"F{i - 1}", "f") if i else ("Neg", "")
            nodes = [helper.make_node(callee, [f"v{k}"], [f"v{k + 1}"], domain=domain) for k in range(calls)]
            proto.functions.append(helper.make_function("f", f"F{i}", ["v0"], [f"v{calls}"], nodes, opsets))
        proto.graph.node[0].CopyFrom(helper.make_node(f"F{depth - 1}", ["x"], ["y"], domain="f"))
        return proto

    return make


def recursive(_: Path) -> onnx.ModelProto:
    """A function that calls itself."""
    proto = model(f"{INPUT} {{ y = Identity(x) }}")
    proto.opset_import.append(helper.make_opsetid("f", 1))
    call = helper.make_node("F", ["a"], ["b"], domain="f")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    proto.functions.append(helper.make_function("f", "F", ["a"], ["b"], [call], opsets))
    proto.graph.node[0].CopyFrom(helper.make_node("F", ["x"], ["y"], domain="f"))
    return proto


def attribute(name: str, kind: AttributeProto.AttributeType, **values: object) -> Make:
    """A Conv with a strange attribute."""

    def make(_: Path) -> onnx.ModelProto:
        proto = foldable()
        proto.graph.node[0].attribute.add(name=name, type=kind, **values)
        return proto

    return make


def edited(change: Callable[[onnx.ModelProto], object]) -> Make:
    def make(_: Path) -> onnx.ModelProto:
        proto = foldable()
        change(proto)
        return proto

    return make


def replaced(old: bytes, new: bytes) -> Make:
    """Bytes that the parser of the text would not let in."""

    def make(_: Path) -> bytes:
        content = bytes(foldable().SerializeToString())
        assert old in content and len(old) == len(new)
        return content.replace(old, new)

    return make


def _dims(*dims: int) -> Make:
    def change(tensor: TensorProto) -> None:
        tensor.ClearField("dims")
        tensor.dims.extend(dims)

    return weight(change)


def _set(name: str, value: object) -> Callable[[object], None]:
    return lambda message: setattr(message, name, value)


_SIZE = np.array([2**20, 2**20], np.int64)
TRAPS: dict[str, Make] = {
    "a constant of 4 TiB": text("c = ConstantOfShape(s)  y = Add(x, c)", s=_SIZE),
    "an Expand to 4 TiB": text("c = Expand(one, s)  y = Add(x, c)", s=_SIZE, one=1.0),
    "an Expand of the data": text("e = Expand(x, s)  y = Neg(e)", s=np.array([2**37, 2, 3], np.int64)),
    "a Tile": text("t = Tile(w, s)  y = Add(x, t)", w=(1, 1), s=_SIZE),
    "a Tile of the data": text("t = Tile(x, s)  y = Neg(t)", s=_SIZE),
    "a Range": text("r = Range(a, b, d)  f = Cast <to = 1> (r)  y = Add(x, f)", a=0, b=HUGE, d=1),
    "a Range without end": text("r = Range(a, b, d)  y = Add(x, r)", a=0.0, b=1.0, d=1e-30),
    "a Pad": text("p = Pad(x, s)  y = Neg(p)", s=np.array([HUGE, 0, 0, 0], np.int64)),
    "a Resize": text("r = Resize(x, , s)  y = Neg(r)", s=np.array([1e6, 1e6], np.float32)),
    "a OneHot": text(
        "i = Cast <to = 7> (x)  o = OneHot(i, d, v)  y = Neg(o)", d=HUGE, v=np.array([0.0, 1.0], np.float32)
    ),
    "an EyeLike": text("c = ConstantOfShape(s)  e = EyeLike(c)  y = Add(x, e)", s=_SIZE),
    "doubled 60 times": doubled(60),
    "a Loop": text(
        "y = Loop <body = g (int64 i, bool c, float[2,3] a) => (bool d, float[2,3] b)"
        " { d = Identity(c)  b = Neg(a) }> (n, t, x)",
        n=HUGE,
        t=np.array(True),
    ),
    "input of 4 TiB": lambda _: model("(float[1048576,1048576] x) => (float[] y) { y = Neg(x) }"),
    "input of negative size": lambda _: replaced_dim(-5),
    "dims of 4 TiB": _dims(2**20, 2**20),
    "dims whose product overflows": _dims(2**32, 2**32),
    "a negative dim": _dims(-4, 3, 3, 3),
    "two negative dims": _dims(-4, -3, 3, 3),
    "a dim of zero": _dims(0, 3, 3, 3),
    "zero and huge": _dims(0, 2**62, 2**62, 2**62),
    "a million dims": _dims(*[1] * 1_000_000),
    "short raw_data": weight(lambda t: _set("raw_data", t.raw_data[:-1])(t)),
    "no such type": weight(_set("data_type", 99)),
    "no data": weight(lambda t: t.ClearField("raw_data")),
    "beyond the file": external("w.bin", 400, 4 * 108),
    "an offset far away": external("w.bin", 2**62, 4 * 108),
    "a negative offset": external("w.bin", -8, 4 * 108),
    "an offset of 5000 digits": external("w.bin", "9" * 5000, 4 * 108),
    "a negative length": external("w.bin", 0, -1),
    "no number": external("w.bin", "0x10", "ten"),
    "gone": external("gone.bin"),
    "dots": external("../../../../etc/passwd"),
    "dots inside": external("a/../w.bin"),
    "absolute": external("/etc/passwd"),
    "a device": external("/dev/zero", 0, 4 * 108),
    "the folder": external("."),
    "itself": external(MODEL, 0, 4 * 108),
    "a null": external("w.bin\0x"),
    "no location": external(""),
    "a link out": beside(lambda p: p.symlink_to("/etc/passwd")),
    "a link to a device": beside(lambda p: p.symlink_to("/dev/zero")),
    "a link to itself": beside(lambda p: p.symlink_to(p)),
    "a pipe": beside(os.mkfifo),
    "a sparse file of 1 TiB": beside(sparse_file),
    "If in If, 40 deep": lambda _: nested(40),
    "If in If, 2,000 deep": lambda _: nested(2000),
    "types 20 deep": nested_type(20),
    "types 10,000 deep": nested_type(10_000),
    "functions that call each other 2^40 times": functions(40, calls=2),
    "functions 300 deep": functions(300, calls=1),
    "a function that calls itself": recursive,
    "a cycle": lambda _: cycle(),
    "its own input": text("y = Add(y, x)"),
    "made twice": text("y = Neg(x)  y = Abs(x)"),
    "names not UTF-8": replaced(b"scale", b"sc\xff\xfee"),
    "operator not UTF-8": replaced(b"Conv", b"C\xc0\x80v"),
    "opset 2^62": edited(lambda m: _set("version", 2**62)(m.opset_import[0])),
    "opset -1": edited(lambda m: _set("version", -1)(m.opset_import[0])),
    "IR version 2^62": edited(_set("ir_version", 2**62)),
    "IR version -1": edited(_set("ir_version", -1)),
    "100,000 opsets": edited(lambda m: m.opset_import.extend([helper.make_opsetid("d", 1)] * 100_000)),
    "a huge attribute": attribute("pads", AttributeProto.INTS, ints=[0] * 300_000),
    "pads of 2^40": attribute("pads", AttributeProto.INTS, ints=[HUGE] * 4),
    "dilations of 2^62": attribute("dilations", AttributeProto.INTS, ints=[2**62, 2**62]),
    "strides of 0": attribute("strides", AttributeProto.INTS, ints=[0, 0]),
    "groups of 0": attribute("group", AttributeProto.INT, i=0),
    "groups of -1": attribute("group", AttributeProto.INT, i=-1),
    "epsilon is text": edited(
        lambda m: m.graph.node[1].attribute.add(name="epsilon", type=AttributeProto.STRING, s=b"\xff")
    ),
    "500 nodes": row(500),
}


def replaced_dim(size: int) -> onnx.ModelProto:
    proto = foldable()
    proto.graph.input[0].type.tensor_type.shape.dim[2].dim_value = size
    return proto


def cycle() -> onnx.ModelProto:
    proto = model(f"{INPUT} {{ a = Neg(x)  b = Add(a, x)  y = Neg(b) }}")
    proto.graph.node[0].input[0] = "b"
    return proto


# Traps that still catch something, and what they catch. One that no longer does makes the test fail.
KNOWN = {
    "a million dims": "the message quotes all dims",
    "a huge attribute": "the message quotes the whole attribute",
    "functions 300 deep": "onnx's own limit of 100 becomes an internal error",
    "names not UTF-8": "verify sorts names that are bytes among names that are text",
}
# Those that would take all the time there is, or all the memory.
ENDLESS = {
    "a Loop": "verify runs a Loop as often as it says",
    "functions that call each other 2^40 times": "onnx's inference of types expands each call",
    "doubled 60 times": "verify has no bound of its own for the memory of one value",
}


def _marks(name: str) -> list[pytest.MarkDecorator]:
    if name in ENDLESS:
        return [pytest.mark.skip(reason=ENDLESS[name])]
    return [pytest.mark.xfail(reason=KNOWN[name])] if name in KNOWN else []


@pytest.mark.parametrize(
    "make", [pytest.param(make, id=name, marks=_marks(name)) for name, make in TRAPS.items()]
)
def test_a_trap(make: Make, worker: Worker, tmp_path: Path) -> None:
    made = make(tmp_path)
    (tmp_path / MODEL).write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    endings = worker.run(tmp_path, *COMMANDS)
    assert not [ending for ending in endings if ending.wrong]


# --- Damage -------------------------------------------------------------------------------------------


SEEDS = 30
KNOWN_SEEDS: frozenset[int] = frozenset(
    {0}
)  # onnx warns of an unknown key of external data, past the one line


def test_damaged_files() -> None:
    tally = fuzz([seed for seed in range(SEEDS) if seed not in KNOWN_SEEDS], [DIGITS], workers=1)
    assert not tally.wrong
    assert tally.files == SEEDS - len(KNOWN_SEEDS)
