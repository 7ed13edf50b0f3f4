"""`bnfold verify` as a user meets it: verdicts as exit codes, options, and one line for what is wrong."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from graphs import model, norm

import bnfold
from bnfold.cli import main

ROOT = Path(__file__).parent.parent
TEXT = """(float[N,3,H,W] x) => (float[N,4,P,Q] y)
{ c = Conv(x, w)  n = BatchNormalization(c, scale, bias, mean, var)  y = Relu(n) }"""


def run(*arguments: object) -> Result:
    """A command, in this process."""
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, [str(a) for a in arguments])


def refused(result: Result, code: int = 2) -> str:
    """The one line on stderr."""
    assert result.exit_code == code, result.output
    assert not result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A model and its fold."""
    original = tmp_path / "model.onnx"
    onnx.save(model(TEXT, w=(4, 3, 3, 3), **norm(4)), original)
    bnfold.optimize(original, tmp_path / "folded.onnx", verify="none")
    return original, tmp_path / "folded.onnx"


@pytest.fixture
def wrong(pair: tuple[Path, Path]) -> Path:
    """The fold with one weight that is a thousandth too large."""
    proto = onnx.load(pair[1])
    weight = next(t for t in proto.graph.initializer if len(t.dims) == 4)
    numbers = onnx.numpy_helper.to_array(weight).copy()
    numbers[2] *= np.float32(1.001)
    weight.CopyFrom(onnx.numpy_helper.from_array(numbers, weight.name))
    path = pair[1].with_name("wrong.onnx")
    onnx.save(proto, path)
    return path


class TestVerdicts:
    def test_pass(self, pair: tuple[Path, Path]) -> None:
        result = run("verify", *pair)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith(f"PASS: {pair[1]}")
        assert "onnxruntime: pass" in result.stdout

    def test_fail(self, pair: tuple[Path, Path], wrong: Path) -> None:
        result = run("verify", pair[0], wrong)
        assert (result.exit_code, result.stderr) == (1, "")
        text = " ".join(result.stdout.split())
        assert text.startswith("FAIL: ")
        assert "'n' (BatchNormalization 'n') differs by" in text and "index 2 of axis 1" in text
        assert "Next: compare what computes 'n' in the two files." in text

    def test_undecided(self, tmp_path: Path) -> None:
        path = tmp_path / "nan.onnx"
        onnx.save(model("(float[4] x) => (float[4] y) { z = Sub(x, x)  y = Div(z, z) }"), path)
        result = run("verify", path, path, "--outputs-only")
        assert result.exit_code == 3
        assert result.stdout.startswith("UNDECIDED: ")

    @pytest.mark.parametrize("option", ["-q", "--quiet"])
    def test_quiet(self, option: str, pair: tuple[Path, Path], wrong: Path) -> None:
        assert run("verify", *pair, option).output == ""
        result = run("verify", pair[0], wrong, option)
        assert (result.exit_code, result.output) == (1, "")

    def test_json(self, pair: tuple[Path, Path], wrong: Path) -> None:
        result = run("verify", pair[0], wrong, "--json", "--no-runtime", "--seed", 3)
        report = bnfold.verify(pair[0], wrong, runtime=False, seed=3)
        assert json.loads(result.stdout)["verdict"] == "fail"
        assert json.loads(result.stdout) == json.loads(json.dumps(bnfold.as_dict(report)))
        assert (result.exit_code, result.stderr) == (1, "")


class TestOptions:
    def test_each_arrives(self, pair: tuple[Path, Path]) -> None:
        cases: list[tuple[list[object], dict[str, Any]]] = [
            (["--tolerance", 2.5], {"tolerance": 2.5}),
            (["--seed", 7], {"seed": 7}),
            (["--outputs-only"], {"by_name": False}),
            (["--shape", "N=5", "--shape", "H=9"], {"sizes": {"N": 5, "H": 9}}),
            (
                ["--rtol", "1e-3", "--atol", "y:0.5"],
                {"limits": {"": bnfold.Limit(1e-3), "y": bnfold.Limit(1e-3, 0.5)}},
            ),
        ]
        for flags, arguments in cases:
            result = run("verify", *pair, "--json", "--no-runtime", *flags)
            report = bnfold.verify(*pair, runtime=False, **arguments)
            assert json.loads(result.stdout) == json.loads(json.dumps(bnfold.as_dict(report)))

    def test_limits_replace_the_noise(self, pair: tuple[Path, Path], wrong: Path) -> None:
        assert run("verify", pair[0], wrong, "--rtol", 0.1, "--atol", 0.1, "-q").exit_code == 0
        assert run("verify", pair[0], wrong, "--atol", "y:1e-9", "-q").exit_code == 1

    def test_inputs(self, pair: tuple[Path, Path], wrong: Path, tmp_path: Path) -> None:
        np.savez(tmp_path / "in.npz", x=np.ones((2, 3, 8, 8), np.float32))
        result = run("verify", *pair, "--inputs", tmp_path / "in.npz", "--json")
        assert result.exit_code == 0
        assert all("in.npz" in told for told in json.loads(result.stdout)["algebra"]["feeds"])
        assert run("verify", pair[0], wrong, "--inputs", tmp_path / "in.npz", "-q").exit_code == 1

    @pytest.mark.parametrize(
        ("option", "value", "message"),
        [
            ("--tolerance", "0", "0.0 is not in the range x>0"),
            ("--rtol", "y:small", "'small' is no number"),
            ("--atol", "-1", "-1 is no distance"),
            ("--atol", "nan", "nan is no distance"),
            ("--tolerance", "nan", "nan is no number to count with"),
            ("--timeout", "inf", "inf is not in the range 0<x<=1000000.0"),
            ("--shape", "N", "'N' is not NAME=SIZE with a positive size"),
            ("--shape", "N=0", "'N=0' is not NAME=SIZE with a positive size"),
        ],
    )
    def test_usage(self, option: str, value: str, message: str, pair: tuple[Path, Path]) -> None:
        told = refused(run("verify", *pair, option, value))
        assert message in told and "bnfold verify --help" in told


class TestBadInput:
    def test_no_such_file(self, pair: tuple[Path, Path]) -> None:
        assert "there is no such file" in refused(run("verify", pair[0], "nowhere.onnx"))

    def test_no_model(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        (tmp_path / "text.onnx").write_text("no model")
        assert "text.onnx" in refused(run("verify", pair[0], tmp_path / "text.onnx"))

    def test_other_inputs(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        onnx.save(model("(double[N,3,H,W] z) => (double[N,3,H,W] y) { y = Relu(z) }"), tmp_path / "o.onnx")
        told = refused(run("verify", pair[0], tmp_path / "o.onnx"))
        assert "has the inputs x (float)" in told and "has z (double)" in told and "rename or cast" in told

    def test_an_unknown_dimension(self, pair: tuple[Path, Path]) -> None:
        told = refused(run("verify", *pair, "--shape", "M=3"))
        assert "'M'" in told and "N" in told and "H" in told

    def test_a_size_at_which_it_does_not_run(self, pair: tuple[Path, Path]) -> None:
        told = refused(run("verify", *pair, "--shape", "H=1"))
        assert "cannot be evaluated on what it is to be fed" in told

    def test_an_unknown_output(self, pair: tuple[Path, Path]) -> None:
        assert "has no output 'q'" in refused(run("verify", *pair, "--rtol", "q:1"))

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({}, "x"),
            ({"x": np.ones((2, 3, 8, 8), np.float32), "z": np.ones(1)}, "z"),
            ({"x": np.ones((2, 4, 8, 8), np.float32)}, "4"),
            ({"x": np.ones((0, 3, 8, 8), np.float32)}, "x"),
        ],
        ids=["missing", "extra", "shape", "empty"],
    )
    def test_inputs_that_do_not_fit(
        self, arrays: dict[str, Any], message: str, pair: tuple[Path, Path], tmp_path: Path
    ) -> None:
        np.savez(tmp_path / "in.npz", **arrays)
        told = refused(run("verify", *pair, "--inputs", tmp_path / "in.npz"))
        assert "in.npz" in told and message in told

    @pytest.mark.parametrize("which", [0, 1], ids=["reference", "candidate"])
    @pytest.mark.parametrize("damage", ["cut", "missing", "outside"])
    def test_weights_that_cannot_be_read(self, damage: str, which: int, pair: tuple[Path, Path]) -> None:
        paths = list(pair)
        proto = onnx.load(paths[which])
        weight = next(t for t in proto.graph.initializer if len(t.dims) == 4)
        if damage == "cut":
            weight.raw_data = weight.raw_data[:-3]
        else:
            onnx.external_data_helper.set_external_data(
                weight, "w.data" if damage == "missing" else "../w.data"
            )
            weight.ClearField("raw_data")
        paths[which] = paths[which].with_name("damaged.onnx")
        paths[which].write_bytes(proto.SerializeToString())
        told = refused(run("verify", *paths))
        assert "damaged.onnx" in told and weight.name in told and "with its data" in told

    def test_values_larger_than_the_memory(self, tmp_path: Path) -> None:
        text = "(float[N,3] x) => (float[] y) { e = Expand(x, q)  y = Relu(e) }"
        onnx.save(model(text, q=[10**6, 10**6, 1, 1]), tmp_path / "huge.onnx")
        result = run("verify", tmp_path / "huge.onnx", tmp_path / "huge.onnx")
        assert result.exit_code == 3 and "memory" in result.stdout

    def test_an_input_without_a_type(self, tmp_path: Path) -> None:
        proto = model("(float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
        proto.graph.input[0].type.tensor_type.elem_type = 0
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        told = refused(run("verify", tmp_path / "m.onnx", tmp_path / "m.onnx"))
        assert "input 'x' declares an unknown element type (0)" in told

    def test_sizes_beside_inputs(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        np.savez(tmp_path / "in.npz", x=np.ones((2, 3, 8, 8), np.float32))
        told = refused(run("verify", *pair, "--inputs", tmp_path / "in.npz", "--shape", "N=2"))
        assert "leave out --shape" in told

    def test_a_pointer_of_git_lfs(self, pair: tuple[Path, Path]) -> None:
        Path(pair[1]).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
        for models in pair, pair[::-1]:
            told = refused(run("verify", *models))
            assert told == f"{pair[1]}: is a pointer of Git LFS, not the model itself; run git lfs pull"

    def test_folders_and_streams(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        assert "is a folder" in refused(run("verify", pair[0], tmp_path))
        assert "reads files, no streams" in refused(run("verify", pair[0], "-"))

    def test_an_unknown_provider_where_an_operator_needs_it(self, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[N,4] x) => (float[N,4] y) { y = com.microsoft.FastGelu(x) }"""
        onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
        path = tmp_path / "m.onnx"
        assert run("verify", path, path).exit_code == 0
        assert "Abacus" in refused(run("verify", path, path, "--provider", "AbacusExecutionProvider"))

    def test_an_unknown_provider(self, pair: tuple[Path, Path]) -> None:
        told = refused(run("verify", *pair, "--provider", "AbacusExecutionProvider"))
        assert "AbacusExecutionProvider" in told and "CPUExecutionProvider" in told


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_does_not_wait_for_work(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """Not even for a loop without an end."""
    text = """(float[1,30000] x) => (float[1,30000] y) { t = Relu(x)
        y = Loop(, yes, t) <body = b (int64 i, bool c, float[1,30000] a) => (bool c2, float[1,30000] z)
            { c2 = Identity(c)  z = Relu(a) }> }"""
    onnx.save(model(text, yes=np.array(True)), tmp_path / "endless.onnx")
    command = [sys.executable, "-m", "bnfold", "verify", *[str(tmp_path / "endless.onnx")] * 2]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(3)  # it has begun by then; if it has not, it ends all the same
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode == code


class TestProgress:
    def on_a_terminal(self, *arguments: object) -> tuple[int, bytes]:
        """The exit code, and what a terminal is told on the standard error."""
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "bnfold", *map(str, arguments)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs)
        os.close(theirs)
        told: list[bytes] = []

        def listen() -> None:
            try:
                while piece := os.read(ours, 4096):
                    told.append(piece)
            except OSError:  # the other end is closed
                return

        listener = Thread(target=listen)
        listener.start()
        code = process.wait(timeout=120)
        listener.join(timeout=10)
        os.close(ours)
        return code, b"".join(told)

    def long(self, tmp_path: Path) -> Path:
        """A model that takes more than a second."""
        rng = np.random.default_rng(0)
        nodes = "".join(f" h{i + 1} = Conv<pads = [1, 1, 1, 1]>(h{i}, w)" for i in range(40))
        text = f"(float[1,32,64,64] h0) => (float[1,32,64,64] y) {{ {nodes} y = Relu(h40) }}"
        weight = (rng.standard_normal((32, 32, 3, 3)) / 17).astype(np.float32)
        onnx.save(model(text, w=weight), tmp_path / "long.onnx")
        return tmp_path / "long.onnx"

    def test_a_bar_on_a_terminal_that_goes_when_done(self, tmp_path: Path) -> None:
        path = self.long(tmp_path)
        code, told = self.on_a_terminal("verify", path, path, "--no-runtime")
        assert code == 0
        assert b"Verifying" in told and b"%" in told and told.endswith(b"\r\x1b[2K")

    def test_none_for_short_work(self, pair: tuple[Path, Path]) -> None:
        code, told = self.on_a_terminal("verify", *pair, "--no-runtime")
        assert (code, told) == (0, b"")

    def test_none_elsewhere(self, tmp_path: Path) -> None:
        path = self.long(tmp_path)
        command = [sys.executable, "-m", "bnfold", "verify", str(path), str(path), "--no-runtime"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        assert done.stderr == b""
