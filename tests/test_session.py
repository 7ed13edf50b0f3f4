"""onnxruntime in a process of its own: what it answers, and what its end looks like from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, parser

from bnfold import runtime
from bnfold.errors import InputError
from bnfold.session import Lost, Session, Unrunnable

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
SCALED = "g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }"
CRASHING = (
    "g (float[1,2] x) => (float[1,2] y) <float[2] s = {1, 1}, float[2] b = {0, 0}, float[2] m = {0, 0},"
    " float[2] v = {1, 1}> { y = BatchNormalization(x, s, b, m, v) }"
)


def model(graph: str) -> onnx.ModelProto:
    return parser.parse_model(f"{HEADER} {graph}")


def save(path: Path, graph: str) -> Path:
    onnx.save(model(graph), path)
    return path


def crashing() -> onnx.ModelProto:
    """Opset 8, empty names for the unused outputs: onnxruntime 1.31 ends with a segmentation fault."""
    crash = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 8]> {CRASHING}')
    crash.graph.node[0].output.extend(["", "", "", ""])
    return crash


def test_runs_a_file_and_a_serialized_model(tmp_path: Path) -> None:
    x = np.array([[3, 4]], np.float32)
    with Session() as session:
        for source in (save(tmp_path / "m.onnx", SCALED), model(SCALED).SerializeToString()):
            signature = session.open(source)
            assert (signature.inputs, signature.outputs) == (("x",), ("y",))
            np.testing.assert_array_equal(session.run({"x": x})["y"], [[3, 8]])


def test_initializers_are_replaced_for_one_opening_only(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", SCALED)
    x = np.ones((1, 2), np.float32)
    with Session() as session:
        session.open(path, initializers=[("w", np.array([5, 6], np.float32))])
        np.testing.assert_array_equal(session.run({"x": x})["y"], [[5, 6]])
        session.open(path)
        np.testing.assert_array_equal(session.run({"x": x})["y"], [[1, 2]])


def test_external_data_of_a_serialized_model_is_found_in_the_folder(tmp_path: Path) -> None:
    external = model(SCALED)
    onnx.save(external, tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="m.data")
    with Session() as session:
        session.open((tmp_path / "m.onnx").read_bytes(), folder=tmp_path)
        np.testing.assert_array_equal(session.run({"x": np.ones((1, 2), np.float32)})["y"], [[1, 2]])


@pytest.mark.parametrize("shape", [(), (0, 2), (2, 3)])
@pytest.mark.parametrize("kind", ["float", "float16", "double", "int64", "uint8", "bool"])
def test_arrays_cross_the_pipes_unchanged(kind: str, shape: tuple[int, ...]) -> None:
    dtype = helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(kind.upper()))
    dims = ",".join(map(str, shape))
    text = f"g ({kind}[{dims}] x) => ({kind}[{dims}] y) {{ y = Identity(x) }}"
    x = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    with Session() as session:
        session.open(model(text).SerializeToString())
        y = session.run({"x": x})["y"]
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    np.testing.assert_array_equal(y, x)


def test_a_refusal_leaves_the_session_usable(tmp_path: Path) -> None:
    strange = model("g (float[1] x) => (float[1] y) { y = Relu(x) }")
    strange.graph.node[0].domain = "some.where"
    strange.opset_import.append(helper.make_opsetid("some.where", 1))
    with Session() as session:
        with pytest.raises(Unrunnable, match=r"some\.where:Relu") as refusal:
            session.open(strange.SerializeToString())
        assert "\n" not in str(refusal.value)
        assert not isinstance(refusal.value, Lost)
        session.open(save(tmp_path / "m.onnx", SCALED))
        with pytest.raises(Unrunnable, match="no such input"):
            session.run({"no such input": np.ones((1, 2), np.float32)})
        session.run({"x": np.ones((1, 2), np.float32)})


def test_running_before_opening_is_refused() -> None:
    with Session() as session, pytest.raises(Unrunnable, match="no model is open"):
        session.run({})


def test_a_crash_is_an_error_here_and_the_next_model_gets_a_new_process(tmp_path: Path) -> None:
    with Session() as session:
        with pytest.raises(Lost, match="onnxruntime crashed"):
            session.open(crashing().SerializeToString())
            session.run({"x": np.ones((1, 2), np.float32)})
        session.open(save(tmp_path / "m.onnx", SCALED))


def test_a_model_that_does_not_end_is_given_up() -> None:
    endless = (
        "g (float[1] x) => (float[1] y) { go = Constant<value = bool {1}>()"
        "  n = Constant<value = int64 {9000000000000000000}>()"
        "  y = Loop(n, go, x) <body = b (int64 i, bool c, float[1] a) => (bool d, float[1] e)"
        " { d = Identity(c)  e = Identity(a) }> }"
    )
    start = time.monotonic()
    with Session(timeout=2.0) as session:
        session.open(model(endless).SerializeToString())
        with pytest.raises(Lost, match="no answer within 2 s"):
            session.run({"x": np.ones(1, np.float32)})
    assert time.monotonic() - start < 20  # seconds: it was ended, not waited for


def test_it_needs_no_main_guard_and_leaves_onnxruntime_to_the_child(tmp_path: Path) -> None:
    save(tmp_path / "m.onnx", SCALED)
    script = tmp_path / "plain.py"
    script.write_text(
        "import sys, pathlib, numpy\n"
        "from bnfold.session import Session\n"
        "session = Session()\n"
        f"session.open(pathlib.Path({str(tmp_path / 'm.onnx')!r}))\n"
        "print(session.run({'x': numpy.ones((1, 2), numpy.float32)})['y'].tolist())\n"
        "session.close()\n"
        "assert 'onnxruntime' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("[[1.0, 2.0]]\n", "")


def test_modules_beside_it_shadow_no_others_in_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runtime.py").write_text(Path(runtime.__file__).read_text())
    (tmp_path / "json.py").write_text("raise RuntimeError('shadowed')")
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "runtime.py"))
    with Session() as session:
        session.open(save(tmp_path / "m.onnx", SCALED))


def test_an_unknown_provider_is_an_error_that_names_those_there_are(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", SCALED)
    with (
        Session(provider="GraphCalculator") as session,
        pytest.raises(InputError, match=r"'GraphCalculator' is not available .* CPUExecutionProvider"),
    ):
        session.open(path)


def test_the_default_level_is_asked_for(tmp_path: Path) -> None:
    """There onnxruntime takes the rows for columns: its fusion of MatMul and BatchNormalization never
    looks at the Transpose between them."""
    text = (
        "g (float[2,3] x) => (float[2,2] y) <float[3,2] w = {1, 2, 3, 4, 5, 6}, float[2] s = {1, 10},"
        " float[2] b = {0, 5}, float[2] m = {0, 0}, float[2] v = {1, 1}>"
        " { a = MatMul(x, w)  c = Transpose<perm = [1, 0]>(a)  y = BatchNormalization(c, s, b, m, v) }"
    )
    path, x = save(tmp_path / "m.onnx", text), np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    with Session() as session:
        session.open(path)
        y = session.run({"x": x})["y"]
        session.open(path, optimized=True)
        assert not np.allclose(session.run({"x": x})["y"], y, rtol=0.1)
        session.open(path)
        np.testing.assert_array_equal(session.run({"x": x})["y"], y)


def test_outputs_that_are_no_numbers_are_left_out_and_named() -> None:
    text = """g (float[N,2] x) => (seq(float[N,2]) pair, float[N,2] y, string[1] text, bfloat16[N,2] half) {
        pair = SequenceConstruct(x, x)  y = Identity(x)  text = Constant<value_strings = ["a"]>()
        half = Cast<to = 16>(x) }"""
    x = np.ones((1, 2), np.float32)
    with Session() as session:
        signature = session.open(model(text).SerializeToString())
        assert signature.outputs == ("y",)
        assert signature.left_out == {
            "pair": "seq(tensor(float))",
            "text": "tensor(string)",
            "half": "tensor(bfloat16)",
        }
        assert list(session.run({"x": x})) == ["y"]
        session.open(
            model("g (float[1] x) => (seq(float[1]) s) { s = SequenceConstruct(x) }").SerializeToString()
        )
        with pytest.raises(Unrunnable, match="none of its outputs is a tensor of numbers"):
            session.run({"x": x[0, :1]})


def test_types_that_onnxruntime_takes_from_no_array() -> None:
    with Session() as session:
        session.open(model("g (bfloat16[1] x) => (float[1] y) { y = Cast<to = 1>(x) }").SerializeToString())
        with pytest.raises(Unrunnable, match="input 'x': onnxruntime takes no array of bfloat16"):
            session.run({"x": np.ones(1, ml_dtypes.bfloat16)})


@pytest.mark.parametrize("on_disk", [False, True])
def test_what_is_kept_is_had_once(on_disk: bool, tmp_path: Path) -> None:
    """Else a sweep over many samples would hold every level of them."""
    x = np.array([[1, 2], [3, 5]], np.float32)
    with Session() as session:
        session.hold(tmp_path if on_disk else None)
        session.open(save(tmp_path / "m.onnx", SCALED))
        first = session.measure({"x": x}, 7, keep=["x"], measure=["x", "y"], samples=2)
        assert first.kept == {"x": (np.dtype(np.float32), 16)}
        np.testing.assert_array_equal(first.moments["y"].mean, x * [1, 2])
        again = session.measure({}, 7, measure=["y"], samples=2)
        np.testing.assert_array_equal(again.moments["y"].mean, x * [1, 2])
        assert not list(tmp_path.glob("*.npz"))
        with pytest.raises(Unrunnable, match="x"):
            session.measure({}, 7, measure=["y"], samples=2)


def test_rows_that_no_sample_can_have(tmp_path: Path) -> None:
    with Session() as session:
        session.open(save(tmp_path / "m.onnx", SCALED))
        with pytest.raises(Unrunnable, match="'y' cannot be measured: 3 rows cannot belong to 2 samples"):
            session.measure({"x": np.ones((3, 2), np.float32)}, 0, measure=["y"], samples=2)
