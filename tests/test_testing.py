"""`assert_equivalent`: what it takes, what it says, and what it leaves alone."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import Array, inputs, model, norm
from onnx import numpy_helper

import bnfold
from bnfold import InputError, Verdict
from bnfold.testing import UndecidedError, assert_equivalent

GRAPH = """(float[N,3,H,W] x) => (float[] y) {
    c = Conv(x, w)  b = BatchNormalization(c, scale, bias, mean, var)  y = Relu(b) }"""
ORIGINAL = model(GRAPH, w=(4, 3, 3, 3), **norm(4))
TABLE = model("(int64[N] i) => (float[N,3] y) { y = Gather(table, i) }", table=(5, 3))
FOREIGN = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["": 17, "acme": 1]> g (float[N] x) => (float[N] y) { y = acme.Op(x) }'
)


def changed(proto: onnx.ModelProto, name: str, change: Callable[[Array], Array]) -> onnx.ModelProto:
    """A copy with another constant."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    return copy


def shifted(array: Array) -> Array:
    return np.asarray(array + np.eye(1, len(array), 2, dtype=array.dtype)[0] / 1000)


WRONG = changed(ORIGINAL, "bias", shifted)


def folded(proto: onnx.ModelProto) -> ir.Model:
    work = ir.from_proto(proto)
    assert bnfold.fold(work).after.batchnorms == 0
    return work


def said(*models: Any, **how: Any) -> str:
    with pytest.raises(AssertionError) as error:
        assert_equivalent(*models, **how)
    return str(error.value)


class TestForms:
    @pytest.mark.parametrize("reference", ["path", "string", "proto", "ir"])
    def test_every_form_of_an_onnx_model(self, reference: str, tmp_path: Path) -> None:
        path = tmp_path / "original.onnx"
        onnx.save(ORIGINAL, path)
        forms = {"path": path, "string": str(path), "proto": ORIGINAL, "ir": bnfold.load(path)}
        report = assert_equivalent(forms[reference], folded(ORIGINAL))
        assert report.verdict is Verdict.PASS
        assert report.reference == (str(path) if reference in ("path", "string") else "reference.onnx")
        assert report.candidate == "candidate.onnx"
        assert said(forms[reference], WRONG).startswith("the two models are not equivalent\n")

    def test_models_in_memory_stay_as_they_are(self) -> None:
        candidate, proto = folded(ORIGINAL), onnx.ModelProto()
        proto.CopyFrom(ORIGINAL)
        before = ir.to_proto(candidate)
        assert_equivalent(proto, candidate)
        assert proto == ORIGINAL
        assert ir.to_proto(candidate) == before

    def test_a_model_whose_weights_are_elsewhere(self, tmp_path: Path) -> None:
        path = tmp_path / "m.onnx"
        copy = changed(ORIGINAL, "", lambda array: array)  # onnx.save takes the weights out of it
        onnx.save(copy, path, save_as_external_data=True, size_threshold=0, location="m.data")
        assert assert_equivalent(path, ir.load(path)).verdict is Verdict.PASS
        with pytest.raises(InputError, match="the candidate keeps weights in other files"):
            assert_equivalent(path, onnx.load(path, load_external_data=False))

    def test_a_constant_whose_data_are_elsewhere(self) -> None:
        """In an attribute, in a branch or in a function."""
        external = onnx.TensorProto.EXTERNAL
        elsewhere = onnx.TensorProto(name="t", dims=[3], data_type=1, data_location=external)
        elsewhere.external_data.add(key="location", value="t.bin")
        constant = onnx.helper.make_node("Constant", [], ["t"], value=elsewhere)
        copies = [onnx.ModelProto() for _ in range(3)]
        for copy in copies:
            copy.CopyFrom(ORIGINAL)
        copies[0].graph.node.append(constant)
        branch = onnx.helper.make_graph([constant], "g", [], [])
        copies[1].graph.node.append(onnx.helper.make_node("If", ["x"], [], then_branch=branch))
        copies[2].functions.append(onnx.helper.make_function("f", "f", [], [], [constant], []))
        for copy in copies:
            with pytest.raises(InputError, match="the candidate keeps weights in other files"):
                assert_equivalent(ORIGINAL, copy)

    def test_a_model_that_is_too_large_for_one_piece(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(onnx.checker, "MAXIMUM_PROTOBUF", 100)
        before = ORIGINAL.SerializeToString()
        assert assert_equivalent(ORIGINAL, ORIGINAL).verdict is Verdict.PASS
        assert ORIGINAL.SerializeToString() == before

    def test_what_is_no_model(self) -> None:
        with pytest.raises(InputError, match="the candidate is a dict; give a path"):
            assert_equivalent(ORIGINAL, {})

    def test_a_model_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="there is no such file"):
            assert_equivalent(tmp_path / "m.onnx", ORIGINAL)

    def test_no_message_names_a_folder_that_is_gone(self) -> None:
        other = model("(float[N,3,H,W] z) => (float[] y) { y = Relu(z) }")
        with pytest.raises(InputError, match=r"'reference.onnx' has the inputs x \(float\)"):
            assert_equivalent(ORIGINAL, other)
        assert "/bnfold-" not in said(ORIGINAL, WRONG)


class TestInputs:
    def test_arrays_by_name(self) -> None:
        feed = inputs(ORIGINAL)
        assert len(assert_equivalent(ORIGINAL, folded(ORIGINAL), inputs=feed).algebra.feeds) == 4
        assert said(ORIGINAL, WRONG, inputs=feed)

    def test_only_what_is_given_is_fed(self) -> None:
        """The row at fault is not read."""
        other = changed(TABLE, "table", lambda t: t * np.array([[1], [1], [1], [1], [2]], t.dtype))
        assert_equivalent(TABLE, other, inputs={"i": np.array([0, 1, 2])})
        feeds = [{"i": np.array([0])}, {"i": np.array([4, 1])}]
        assert "First tensor that differs: 'y' (Gather 'y')" in said(TABLE, other, inputs=feeds)

    def test_an_array_for_the_only_input(self) -> None:
        assert assert_equivalent(TABLE, TABLE, inputs=np.array([1, 3])).verdict is Verdict.PASS

    def test_a_file(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "in.npz", x=inputs(ORIGINAL)["x"])
        assert assert_equivalent(ORIGINAL, ORIGINAL, inputs=tmp_path / "in.npz").verdict is Verdict.PASS

    @pytest.mark.parametrize(
        ("given", "told"),
        [
            ({"z": np.ones(3)}, "has no array for 'x'"),
            ({"x": np.ones((2, 3))}, "has rank 4"),
            ({"x": "text"}, "'x' is a str, no array of numbers"),
            ({"x": object()}, "'x' is a object, no array of numbers"),
            ({"x": [1, [2]]}, "'x' is a list, no array of numbers"),
            ([], "inputs: are empty"),
            ((np.ones(1), np.ones(1)), "there are 2, but the ONNX model has 1"),
        ],
    )
    def test_what_does_not_fit(self, given: Any, told: str) -> None:
        with pytest.raises(InputError, match=told):
            assert_equivalent(ORIGINAL, ORIGINAL, inputs=given)

    def test_an_input_may_have_any_name(self) -> None:
        proto = model("(float[N,3] file) => (float[N,3] y) { y = Relu(file) }")
        assert assert_equivalent(proto, proto, inputs={"file": np.ones((2, 3), np.float32)}).algebra.feeds


class TestVerdicts:
    def test_a_failure_says_which_output_how_far_where_and_who_is_at_fault(self) -> None:
        lines = said(ORIGINAL, WRONG).splitlines()
        assert lines[0] == "the two models are not equivalent"
        assert "Mismatched outputs: 1 / 1" in lines
        text = "\n".join(lines)
        assert re.search(r"^Worst output: 'y': .* times its rounding noise at index 2 of axis 1", text, re.M)
        assert "(up to 4 allowed)" in text
        assert re.search(r"^Greatest absolute difference: 0.0009999", text, re.M)
        assert re.search(r"^Greatest relative difference: [\d.]+", text, re.M)
        assert re.search(r"^Greatest difference in units in the last place: [\d.e+]+", text, re.M)
        assert "First tensor that differs: 'b' (BatchNormalization 'b') differs by" in text
        assert lines[-1].startswith("To keep models, inputs and a report: pytest --bnfold-artifacts DIR")

    def test_files_can_be_looked_at_again(self, tmp_path: Path) -> None:
        paths = tmp_path / "a b.onnx", tmp_path / "c.onnx"
        for path, proto in zip(paths, (ORIGINAL, WRONG), strict=True):
            onnx.save(proto, path)
        command = f"To look further: bnfold verify '{paths[0]}' {paths[1]}"
        assert f"{command}\n" in said(*paths)
        assert f"{command} --tolerance 8.0\n" in said(*paths, tolerance=8.0)
        assert f"{command} --rtol 0.0 --atol 1e-05\n" in said(*paths, atol=1e-5)

    def test_tolerance_and_limits(self) -> None:
        assert_equivalent(ORIGINAL, WRONG, tolerance=1e6)
        assert_equivalent(ORIGINAL, WRONG, atol=1e-2)
        assert "elements are beyond atol 1e-05, rtol 0" in said(ORIGINAL, WRONG, atol=1e-5)
        assert "elements are beyond atol 0, rtol 1e-05" in said(ORIGINAL, WRONG, rtol=1e-5)

    @pytest.mark.parametrize("what", ["tolerance", "rtol", "atol"])
    @pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), np.float32("nan"), "4", [1], True])
    def test_what_is_no_limit(self, what: str, value: Any) -> None:
        with pytest.raises(InputError, match=rf"^{what}: .* is no number .*; give") as error:
            assert_equivalent(ORIGINAL, WRONG, **{what: value})
        assert len(str(error.value).splitlines()) == 1

    @pytest.mark.parametrize("value", [0, None])
    def test_a_tolerance_of_nothing(self, value: Any) -> None:
        with pytest.raises(InputError, match=r"^tolerance: "):
            assert_equivalent(ORIGINAL, WRONG, tolerance=value)

    def test_numbers_of_numpy_are_told_as_numbers(self, tmp_path: Path) -> None:
        paths = tmp_path / "a.onnx", tmp_path / "b.onnx"
        for path, proto in zip(paths, (ORIGINAL, WRONG), strict=True):
            onnx.save(proto, path)
        assert "--tolerance 4.5\n" in said(*paths, tolerance=np.float32(4.5))
        assert "--rtol 1e-06 --atol 0.0\n" in said(*paths, rtol=np.float64(1e-6), atol=np.int64(0))

    def test_a_path_that_looks_like_an_option(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        onnx.save(ORIGINAL, "a.onnx")
        onnx.save(WRONG, "-b.onnx")
        assert "bnfold verify a.onnx ./-b.onnx\n" in said("a.onnx", "-b.onnx")

    def test_undecided_is_no_pass(self) -> None:
        with pytest.raises(UndecidedError, match=r"^undecided: nothing could be compared"):
            assert_equivalent(FOREIGN, FOREIGN)

    def test_names_cannot_speak_for_themselves(self) -> None:
        text = WRONG.SerializeToString().replace(b"\x01y", b"\x01\x1b")
        hostile = onnx.ModelProto.FromString(text)
        original = onnx.ModelProto.FromString(ORIGINAL.SerializeToString().replace(b"\x01y", b"\x01\x1b"))
        message = said(original, hostile)
        assert "\x1b" not in message and r"\x1b" in message


class TestWhereItEnds:
    @pytest.mark.parametrize("proto", [WRONG, FOREIGN, None])
    def test_the_traceback_ends_at_the_call(self, proto: onnx.ModelProto | None) -> None:
        with pytest.raises((AssertionError, InputError)) as error:
            assert_equivalent(ORIGINAL if proto is WRONG else FOREIGN, proto)
        assert error.traceback[-1].name == "assert_equivalent"
        assert [entry.name for entry in error.traceback.filter(error)] == [
            "test_the_traceback_ends_at_the_call"
        ]
        assert error.value.__cause__ is None

    def test_nothing_heavy_is_imported(self) -> None:
        code = "import bnfold.testing, bnfold.pytest_plugin, sys; print(*sys.modules)"
        command = [sys.executable, "-c", code]
        loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert "bnfold.pytest_plugin" in loaded
        heavy = {"numpy", "onnx", "onnx_ir", "onnxruntime", "torch", "matplotlib", "jinja2", "click"}
        assert not heavy & set(loaded)

    def test_without_torch_there_is_no_torch(self) -> None:
        code = "import sys, test_testing as t; t.assert_equivalent(t.TABLE, t.TABLE); print(*sys.modules)"
        command = [sys.executable, "-c", code]
        where = Path(__file__).parent
        loaded = subprocess.run(command, capture_output=True, text=True, check=True, cwd=where).stdout
        assert "onnx_ir" in loaded.split() and "torch" not in loaded.split()
