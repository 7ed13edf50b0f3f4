"""`bnfold recalibrate` as a user meets it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

import bnfold
from bnfold.cli import main

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "fixtures" / "digits.onnx"


@pytest.fixture(scope="module")
def images() -> NDArray[Any]:
    data = np.load(DIGITS.with_name("digits.npz"))
    return np.asarray(data["calibration_images"][:, None], np.float32) / 16


@pytest.fixture
def data(tmp_path: Path, images: NDArray[Any]) -> Path:
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "images.npz", image=images)
    return tmp_path / "data" / "images.npz"


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the processes put their temporary files."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def run(*arguments: object, columns: int = 80) -> Result:
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(main, [str(a) for a in arguments])


def recalibrate(*arguments: object) -> Result:
    return run("recalibrate", DIGITS, *arguments)


def refused(result: Result, code: int = 2) -> str:
    assert result.exit_code == code, result.output
    assert not result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip("\n")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "bnfold", *map(str, arguments)]


class TestReport:
    def test_on_one_screen(self, data: Path, tmp_path: Path) -> None:
        result = recalibrate("--data", data, "-o", tmp_path / "out.onnx")
        assert (result.exit_code, result.stderr) == (0, "")
        lines = result.stdout.splitlines()
        assert lines[0] == f"{DIGITS}: 8 BatchNormalizations recalibrated" or len(str(DIGITS)) > 40
        assert max(map(len, lines)) <= max(80, len(str(tmp_path)) + 30) and len(lines) < 30
        for words in (
            "Recalibrated on 256 samples exactly, level by level; 7 levels.",
            "Verified: in the finished model, means are off by",
            "Least certain: /hidden_norm/BatchNormalization, with a standard error of",
            f"Written to {tmp_path / 'out.onnx'}.",
        ):
            assert words in " ".join(result.stdout.split())

    def test_without_a_target(self, data: Path, tmp_path: Path) -> None:
        source = tmp_path / "net.onnx"
        source.write_bytes(DIGITS.read_bytes())
        assert run("recalibrate", source, "--data", data).exit_code == 0
        assert (tmp_path / "net.recalibrated.onnx").exists()

    def test_each_option_arrives(self, data: Path, tmp_path: Path) -> None:
        """The command line and the function give the same report for the same arguments."""
        for flags, arguments in (
            (["--limit", 50], {"limit": 50}),
            (["--limit", 50, "--shuffle-seed", 3], {"limit": 50, "shuffle_seed": 3}),
            (["--method", "onepass"], {"method": "onepass"}),
            (["--method", "blend", "--prior-samples", 9], {"method": "blend", "prior_samples": 9}),
            (["--sample", "row"], {"sample": "row"}),
            (["--cache", "none"], {"cache": "none"}),
            (["--cache", "disk"], {"cache": "disk"}),
            (["--min-samples", 2, "--max-standard-error", 0.5, "--shared", "split"], {"shared": "split"}),
            (["--inline-functions", "--resume", tmp_path / "journal"], {"inline_functions": True}),
        ):
            result = recalibrate("--data", data, "--dry-run", "--json", *flags)
            report = bnfold.recalibrate(DIGITS, data=data, dry_run=True, **arguments)
            assert json.loads(result.stdout) == json.loads(json.dumps(bnfold.as_dict(report)))
        assert not list(tmp_path.glob("*.onnx"))

    def test_quiet(self, data: Path, tmp_path: Path) -> None:
        assert recalibrate("--data", data, "-o", tmp_path / "out.onnx", "-q").output == ""

    def test_a_filter(self, data: Path) -> None:
        done = subprocess.run(
            command("recalibrate", "-", "--data", data),
            input=DIGITS.read_bytes(),
            capture_output=True,
            check=True,
        )
        assert len(onnx.load_from_string(done.stdout).graph.node) == 29
        assert b"8 BatchNormalizations recalibrated" in done.stderr

    def test_a_bar_with_rate_and_time_left(self, images: NDArray[Any], tmp_path: Path) -> None:
        np.savez(tmp_path / "many.npz", image=np.tile(images, (40, 1, 1, 1)))
        reader, terminal = pty.openpty()
        target = tmp_path / "out.onnx"
        process = subprocess.Popen(
            command("recalibrate", DIGITS, "--data", tmp_path / "many.npz", "-o", target, "--cache", "none"),
            stdout=subprocess.DEVNULL,
            stderr=terminal,
        )
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(reader, 10_000):
                shown += piece
        except OSError:  # the other end is closed: the process is gone
            pass
        os.close(reader)
        assert process.wait() == 0
        assert re.search(rb"Recalibrating  \[#+-+\]  +\d+%  [\d,]+ samples/s  \d+ min \d\d s left", shown)
        assert shown.endswith(b"\r\x1b[2K")


@pytest.fixture(scope="module")
def expected(images: NDArray[Any], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the first 40 samples make."""
    folder = tmp_path_factory.mktemp("expected")
    bnfold.recalibrate(DIGITS, folder / "out.onnx", data=[{"image": images[:40]}])
    return (folder / "out.onnx").read_bytes()


class TestData:
    """Every kind of data that holds the same samples gives the same bytes."""

    def written(self, tmp_path: Path, *arguments: object) -> bytes:
        result = recalibrate("-o", tmp_path / "out.onnx", *arguments)
        assert result.exit_code == 0, result.output
        return (tmp_path / "out.onnx").read_bytes()

    def test_one_array(self, images: NDArray[Any], expected: bytes, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", images[:40])
        assert self.written(tmp_path, "--data", tmp_path / "x.npy") == expected

    def test_the_first_of_them(self, data: Path, expected: bytes, tmp_path: Path) -> None:
        assert self.written(tmp_path, "--data", data, "--limit", 40) == expected

    def test_a_folder(self, images: NDArray[Any], expected: bytes, tmp_path: Path) -> None:
        (tmp_path / "many").mkdir()
        for i, part in enumerate(np.split(images[:40], [7, 19])):
            np.savez_compressed(tmp_path / "many" / f"{i}.npz", image=part)
        assert self.written(tmp_path, "--data", tmp_path / "many") == expected

    def test_onnx_test_data(self, images: NDArray[Any], expected: bytes, tmp_path: Path) -> None:
        for i, part in enumerate(np.split(images[:40], 2)):
            folder = tmp_path / "sets" / f"test_data_set_{i}"
            folder.mkdir(parents=True)
            (folder / "input_0.pb").write_bytes(onnx.numpy_helper.from_array(part).SerializeToString())
        assert self.written(tmp_path, "--data", tmp_path / "sets") == expected

    def test_an_iterable(
        self, images: NDArray[Any], expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        np.save(tmp_path / "x.npy", images[:40])
        (tmp_path / "loaders.py").write_text(
            "import numpy\n"
            "def batches():\n"
            "    print('reading')\n"
            "    for part in numpy.split(numpy.load('x.npy'), 5):\n"
            "        yield {'image': part}\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", list(sys.path))
        assert self.written(tmp_path, "--data", "loaders:batches") == expected

    def test_images(self, images: NDArray[Any], expected: bytes, tmp_path: Path) -> None:
        """8-bit pixels, which are divided by 255 where the fixture's are by 16: close, not the same."""
        from PIL import Image

        (tmp_path / "pictures").mkdir()
        for i, image in enumerate(images[:40, 0]):
            pixels = np.rint(image * 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i:02}.png")
        close = self.written(tmp_path, "--data", tmp_path / "pictures")
        assert close != expected
        flags = ["--image-size", "8", "--mean", "0", "--std", "1", "--layout", "nchw", "--force"]
        assert self.written(tmp_path, "--data", tmp_path / "pictures", *flags) == close
        shifted = self.written(tmp_path, "--data", tmp_path / "pictures", "--mean", "0.5", "--force")
        assert shifted != close


class TestBeforeFolding:
    def test_it_is_the_two_commands(self, data: Path, tmp_path: Path) -> None:
        steps = [tmp_path / name for name in ("first.onnx", "second.onnx", "once.onnx")]
        assert recalibrate("--data", data, "-o", steps[0], "--limit", 100).exit_code == 0
        assert run("optimize", steps[0], "-o", steps[1]).exit_code == 0
        result = run("optimize", DIGITS, "--recalibrate", data, "--limit", 100, "-o", steps[2])
        assert result.exit_code == 0, result.output
        assert steps[1].read_bytes() == steps[2].read_bytes()
        assert "Recalibrated on 100 samples" in result.stdout
        assert "8 of 8 BatchNormalizations folded" in result.stdout

    def test_the_report_has_both(self, data: Path) -> None:
        result = run("optimize", DIGITS, "--recalibrate", data, "--dry-run", "--json")
        report = json.loads(result.stdout)
        assert report["recalibration"]["samples"] == 256
        assert (report["source"], report["target"], report["verification"]["verdict"]) == (
            str(DIGITS),
            None,
            "pass",
        )
        assert str(DIGITS) == report["verification"]["reference"]

    def test_options_that_say_nothing_without_data(self) -> None:
        assert "--limit is for --recalibrate" in refused(run("optimize", DIGITS, "--limit", 3))

    def test_a_target_that_exists_is_seen_first(self, tmp_path: Path) -> None:
        (tmp_path / "out.onnx").write_text("mine")
        result = run("optimize", DIGITS, "--recalibrate", "missing.npz", "-o", tmp_path / "out.onnx")
        assert "exists already" in refused(result)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--data", "missing.npz"], "missing.npz: there is no such file or folder"),
            (["--data", "DATA", "--limit", "0"], "'--limit'"),
            (["--data", "DATA", "--method", "blend"], "prior_samples"),
            (["--data", "DATA", "--image-size", "8"], "DATA"),
            (["--data", "DATA", "--image-size", "8x"], "no size such as"),
            (["--data", "DATA", "--mean", "a"], "not a list of numbers"),
            (["--data", "nowhere:data"], "nowhere"),
            ([], "--data"),
        ],
    )
    def test_one_line(self, arguments: list[str], message: str, data: Path, tmp_path: Path) -> None:
        before = sorted(tmp_path.rglob("*"))
        given = [str(data) if a == "DATA" else a for a in arguments]
        told = refused(recalibrate("-o", tmp_path / "out.onnx", *given))
        assert message.replace("DATA", str(data)) in told
        assert sorted(tmp_path.rglob("*")) == before

    def test_pytorch(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "net.pt2").write_bytes(b"PK\x03\x04")
        told = refused(run("recalibrate", tmp_path / "net.pt2", "--data", data))
        assert "bnfold export --no-fold" in told and "recalibrate_module" in told

    def test_a_gate_is_exit_code_1(self, data: Path, tmp_path: Path) -> None:
        gates = (
            (["--min-samples", 300], "256 samples are fewer than the 300 asked for"),
            (["--max-standard-error", 0.01], "leave a standard error of"),
        )
        for flags, message in gates:
            told = refused(recalibrate("--data", data, "-o", tmp_path / "out.onnx", *flags), 1)
            assert message in told and "nothing was written" in told and str(DIGITS) in told
        result = recalibrate("--data", data, "--min-samples", 300, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["samples"] == 256
        assert not (tmp_path / "out.onnx").exists()


class TestInterrupt:
    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def wait(self, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < end, "it never came so far"
            time.sleep(0.01)

    def many(self, images: NDArray[Any], tmp_path: Path) -> Path:
        np.savez(tmp_path / "many.npz", image=np.tile(images, (40, 1, 1, 1)))
        return tmp_path / "many.npz"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_nothing_is_left(
        self, number: signal.Signals, images: NDArray[Any], tmp_path: Path, scratch: Path
    ) -> None:
        data = self.many(images, tmp_path)
        before = sorted(tmp_path.rglob("*"))
        target = tmp_path / "out.onnx"
        process = self.start("recalibrate", DIGITS, "--data", data, "-o", target, "--cache", "disk")
        self.wait(lambda: any(scratch.glob("bnfold-*/levels/*.npz")))
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert not out and err.strip() in (b"", b"Aborted!")
        assert sorted(tmp_path.rglob("*")) == before
        assert not list(scratch.iterdir())

    def test_killed_and_resumed(self, images: NDArray[Any], tmp_path: Path, scratch: Path) -> None:
        data, journal = self.many(images, tmp_path), tmp_path / "journal"
        plain, resumed = tmp_path / "plain.onnx", tmp_path / "resumed.onnx"
        assert recalibrate("--data", data, "-o", plain).exit_code == 0
        process = self.start("recalibrate", DIGITS, "--data", data, "-o", resumed, "--resume", journal)
        self.wait(journal.exists)
        process.kill()
        process.communicate()
        assert not resumed.exists()
        assert recalibrate("--data", data, "-o", resumed, "--resume", journal).exit_code == 0
        assert resumed.read_bytes() == plain.read_bytes()
        assert not journal.exists()

    def test_other_data_after_an_interruption(
        self, images: NDArray[Any], tmp_path: Path, scratch: Path
    ) -> None:
        data, journal = self.many(images, tmp_path), tmp_path / "journal"
        target = tmp_path / "out.onnx"
        process = self.start("recalibrate", DIGITS, "--data", data, "-o", target, "--resume", journal)
        self.wait(journal.exists)
        process.kill()
        process.communicate()
        changed = ["--data", data, "--limit", 1000, "-o", target, "--resume", journal]
        assert "differ from those of the interrupted run: 1000 samples instead of 10240" in refused(
            recalibrate(*changed)
        )
        other = ["--data", data, "--method", "onepass", "-o", target, "--resume", journal]
        assert "is the journal of another run" in refused(recalibrate(*other))
