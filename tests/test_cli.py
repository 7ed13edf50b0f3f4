"""The command line as a user meets it: exit codes, streams, and one line for each thing that is wrong."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner, Result
from graphs import model, norm

import bnfold
from bnfold.cli import main

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "models"
DIGITS = ROOT / "fixtures" / "digits.onnx"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the models in ../shared/models are not here")

FOLDABLE = """(float[N,3,8,8] x) => (float[N,4,6,6] y)
{ c = Conv(x, w)  y = BatchNormalization(c, scale, bias, mean, var) }"""
CUSTOM = """<ir_version: 8, opset_import: ["": 17, "somewhere": 1]>
test (float[N,3,8,8] x) => (float[N,4,6,6] y)
{ a = somewhere.Unknown(x)  c = Conv(a, w)  y = BatchNormalization(c, scale, bias, mean, var) }"""


def foldable(text: str = FOLDABLE) -> onnx.ModelProto:
    return model(text, w=(4, 3, 3, 3), **norm(4))


def store(folder: Path, proto: onnx.ModelProto | bytes, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(*arguments: object) -> Result:
    """A command, in this process."""
    return CliRunner(env={"COLUMNS": "80"}).invoke(main, [str(a) for a in arguments])


def spawn(
    *arguments: object, content: bytes | None = None, before: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """A command, in a process of its own; `before` runs there first."""
    command = [sys.executable, "-m", "bnfold", *map(str, arguments)]
    return subprocess.run(
        command, input=content or b"", cwd=ROOT, capture_output=True, preexec_fn=before, check=False
    )


def refused(result: Result, code: int = 2) -> str:
    """The one line on stderr."""
    assert result.exit_code == code, result.output
    assert not result.stdout
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the processes put their temporary files."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


class TestOptimize:
    def test_report(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        result = run("optimize", path)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith(f"{path}:")
        assert "1 of 1 BatchNormalization folded" in " ".join(result.stdout.split())
        assert "Verified: " in result.stdout and "model.folded.onnx." in result.stdout
        assert sorted(snapshot(tmp_path)) == ["model.folded.onnx", "model.onnx"]

    def test_each_option_arrives(self, tmp_path: Path) -> None:
        """The command line and the function give the same report for the same arguments."""
        path = store(tmp_path, foldable())
        for flags, arguments in (
            (["--force"], {"force": True}),
            (["--dry-run"], {"dry_run": True}),
            (["--no-verify", "--dry-run"], {"verify": "none", "dry_run": True}),
            (["--only", "batchnorm", "--dry-run"], {"only": "batchnorm", "dry_run": True}),
            (["--freeze-initializers", "--dry-run"], {"freeze_initializers": True, "dry_run": True}),
            (["--inline-functions", "--dry-run"], {"inline_functions": True, "dry_run": True}),
        ):
            result = run("optimize", path, "--json", *flags)
            report = bnfold.optimize(path, **arguments)
            assert json.loads(result.stdout) == json.loads(json.dumps(bnfold.as_dict(report)))

    def test_json(self, tmp_path: Path) -> None:
        result = run("optimize", store(tmp_path, foldable()), "-o", tmp_path / "out.onnx", "--json")
        report = json.loads(result.stdout)
        assert list(report) == ["schema_version", "source", "target", "fold", "verification", "recalibration"]
        assert report["schema_version"] == 1
        assert report["target"] == str(tmp_path / "out.onnx")
        assert report["fold"]["decisions"][0]["outcome"] == "pulled"
        assert report["verification"]["verdict"] == "pass"

    def test_quiet(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        assert run("optimize", path, "-q").output == ""
        refused(run("optimize", path, "-q"))

    def test_verbose(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        brief, full = (run("optimize", path, "--dry-run", *flag).stdout for flag in ([], ["-v"]))
        assert "(BatchNormalization)" not in brief
        assert "pulled  y (BatchNormalization) into c" in full

    def test_not_equivalent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def forgets_the_bias(graph: ir.Model, **_: object) -> bnfold.FoldReport:
            report = bnfold.fold(graph)
            graph.graph.node("c").replace_input_with(2, None)
            return report

        monkeypatch.setattr(import_module("bnfold.optimize"), "fold", forgets_the_bias)
        proto = foldable()
        proto.graph.node[0].name = "c"
        path = store(tmp_path, proto)
        assert "not equivalent: 'y' (BatchNormalization " in refused(run("optimize", path), 1)
        assert list(snapshot(tmp_path)) == ["model.onnx"]
        result = run("optimize", path, "--json")
        report = json.loads(result.stdout)
        assert result.exit_code == 1 and result.stderr.startswith("error: ")
        assert (report["verification"]["verdict"], report["target"]) == ("fail", None)
        assert report["verification"]["algebra"]["outputs"][0]["check"]["passed"] is False

    def test_undecided(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable(CUSTOM))
        assert "could not be decided" in refused(run("optimize", path), 3)
        assert list(snapshot(tmp_path)) == ["model.onnx"]
        result = run("optimize", path, "--json")
        assert result.exit_code == 3 and result.stderr.startswith("error: ")
        report = json.loads(result.stdout)
        assert (report["verification"]["verdict"], report["fold"]["modified"]) == ("undecided", True)
        assert "Not verified, as asked." in run("optimize", path, "--no-verify").stdout


class TestStreams:
    def test_a_filter(self, tmp_path: Path, scratch: Path) -> None:
        content = foldable().SerializeToString()
        done = spawn("optimize", "-", content=content)
        assert done.returncode == 0, done.stderr
        assert [node.op_type for node in onnx.load_from_string(done.stdout).graph.node] == ["Conv"]
        report = done.stderr.decode()
        assert report.startswith("standard input: 1 of 1") and "Written to standard output." in report
        assert not list(scratch.iterdir())

    def test_json_makes_way_for_the_model(self) -> None:
        done = spawn("optimize", "-", "--json", "--no-verify", content=foldable().SerializeToString())
        assert json.loads(done.stderr)["target"] == "-"
        onnx.load_from_string(done.stdout)

    def test_to_a_file(self, tmp_path: Path) -> None:
        target = tmp_path / "out.onnx"
        done = spawn("optimize", "-", "-o", target, "--no-verify", content=foldable().SerializeToString())
        assert b"1 of 1 BatchNormalization folded" in done.stdout and not done.stderr
        assert target.exists()

    def test_dry_run_reports_on_stdout(self) -> None:
        done = spawn("optimize", "-", "--dry-run", content=foldable().SerializeToString())
        assert done.stdout.startswith(b"standard input: 1 of 1") and not done.stderr

    def test_no_model_in_a_terminal(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        reader, terminal = pty.openpty()
        command = [sys.executable, "-m", "bnfold", "optimize", str(path), "-o", "-"]
        done = subprocess.run(command, cwd=ROOT, stdout=terminal, stderr=subprocess.PIPE, check=False)
        os.close(terminal)
        os.close(reader)
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: the model would go to the terminal")

    def test_stdin_that_is_no_model(self) -> None:
        done = spawn("inspect", "-", content=b"hello")
        assert done.returncode == 2 and not done.stdout
        assert done.stderr.startswith(b"error: the model on standard input: is not an ONNX model")

    @pytest.mark.parametrize("arguments", [["inspect", "MODEL"], ["optimize", "MODEL", "-o", "-", "-q"]])
    def test_a_reader_that_leaves(self, arguments: list[str], tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "bnfold", *(str(path) if a == "MODEL" else a for a in arguments)]
        done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False)
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, b"")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
    @pytest.mark.parametrize("arguments", [["inspect", "MODEL"], ["optimize", "MODEL", "-o", "-", "-q"]])
    def test_a_full_disk_behind_stdout(self, arguments: list[str], tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        command = [sys.executable, "-m", "bnfold", *(str(path) if a == "MODEL" else a for a in arguments)]
        with open("/dev/full", "wb") as full:
            done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: the standard output: ") and done.stderr.count(b"\n") == 1

    @pytest.mark.parametrize("arguments", [["inspect", "MODEL"], ["optimize", "MODEL", "-o", "TARGET"]])
    @pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
    def test_streams_that_are_closed(
        self, closed: tuple[int, ...], arguments: list[str], tmp_path: Path
    ) -> None:
        """As for jobs of cron: what needs no stream does without."""
        names = {"MODEL": store(tmp_path, foldable()), "TARGET": tmp_path / "out.onnx"}
        done = spawn(*(names.get(a, a) for a in arguments), before=closing(*closed))
        assert (done.returncode, done.stderr) == (0, b"")
        assert bool(done.stdout) == (1 not in closed)
        assert (tmp_path / "out.onnx").exists() == ("TARGET" in arguments)

    @pytest.mark.parametrize(
        ("arguments", "closed", "why"),
        [
            (["optimize", "MODEL", "-o", "-"], 1, b"the standard output, which is closed"),
            (["optimize", "-", "-o", "TARGET"], 0, b"the model on standard input: is empty"),
            (["inspect", "-"], 0, b"the model on standard input: is empty"),
        ],
    )
    def test_a_model_through_a_closed_stream(
        self, arguments: list[str], closed: int, why: bytes, tmp_path: Path
    ) -> None:
        names = {"MODEL": store(tmp_path, foldable()), "TARGET": tmp_path / "out.onnx"}
        done = spawn(*(names.get(a, a) for a in arguments), before=closing(closed))
        assert done.returncode == 2 and done.stderr.startswith(b"error: ") and why in done.stderr
        assert done.stderr.count(b"\n") == 1 and list(snapshot(tmp_path)) == ["model.onnx"]

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
    @pytest.mark.parametrize(
        ("arguments", "full", "code"),
        [
            (["optimize", "missing.onnx"], 2, 2),
            (["optimize", "MODEL", "-o", "-", "-q"], 2, 0),
            (["optimize", "MODEL", "-o", "-"], 2, 2),
            (["--help"], 1, 2),
            (["--version"], 1, 2),
            (["explain"], 1, 2),
        ],
        ids=str,
    )
    def test_a_full_disk_behind_a_stream(
        self, arguments: list[str], full: int, code: int, tmp_path: Path
    ) -> None:
        """1 would say that the result is not equivalent, 4 that this is a bug."""
        path = store(tmp_path, foldable())
        done = spawn(*(path if a == "MODEL" else a for a in arguments), before=filling(full))
        assert done.returncode == code, done.stderr
        if full == 1:
            assert done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1

    @pytest.mark.parametrize("command", ["optimize", "inspect"])
    def test_a_model_from_a_pipe(self, command: str, tmp_path: Path, scratch: Path) -> None:
        """What can be read once is read once: process substitution, a FIFO, /dev/stdin."""
        content = foldable().SerializeToString()
        flags = ["-o", tmp_path / "out.onnx", "--force"] if command == "optimize" else []
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        writer = Thread(target=fifo.write_bytes, args=(content,))
        writer.start()
        done = spawn(command, fifo, *flags)
        writer.join()
        assert done.returncode == 0 and not done.stderr and b"BatchNormalization" in done.stdout
        done = spawn(command, "/dev/stdin", *flags, content=content)
        assert done.returncode == 0 and not done.stderr and b"BatchNormalization" in done.stdout
        if command == "optimize":
            assert b"Verified: " in done.stdout
            assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node] == ["Conv"]
        assert not list(scratch.iterdir())


def closing(*streams: int) -> Callable[[], None]:
    def close() -> None:
        for stream in streams:
            os.close(stream)

    return close


def filling(stream: int) -> Callable[[], None]:
    def fill() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), stream)

    return fill


def cyclic() -> onnx.ModelProto:
    return model("(float[N,4] x) => (float[N,4] y) { a = Add(x, b)  b = Relu(a)  y = Relu(b) }")


def dangling() -> onnx.ModelProto:
    return model("(float[N,4] x) => (float[N,4] y) { y = Add(x, nowhere) }")


def external(location: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "in" / "model.onnx"
        path.parent.mkdir()
        onnx.save(foldable(), path, save_as_external_data=True, location="data.bin", size_threshold=0)
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            tensor.external_data[0].value = location
        (folder / "outside.bin").write_bytes((folder / "in" / "data.bin").read_bytes())
        (folder / "in" / "data.bin").unlink()
        (folder / "in" / "link.bin").symlink_to(folder / "outside.bin")
        return store(folder / "in", proto)

    return make


def invalid(content: onnx.ModelProto | bytes) -> Callable[[Path], Path]:
    return lambda folder: store(folder, content)


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda folder: folder / "model.onnx", "there is no such file"),
    "folder": (lambda folder: folder, "is a folder"),
    "empty": (invalid(b""), "is empty"),
    "text": (invalid(b"Hello, I am a text file.\n"), "is not an ONNX model"),
    "truncated": (invalid(foldable().SerializeToString()[:-40]), "is cut off"),
    "no model": (invalid(foldable().graph.initializer[0].SerializeToString()), "is not an ONNX model"),
    "cyclic": (invalid(cyclic()), "cycle"),
    "dangling": (invalid(dangling()), "'nowhere', which no node, input or initializer makes"),
    "lengths": (
        invalid(model(FOLDABLE, w=(4, 3, 3, 3), **norm(4) | {"mean": (5,)})),
        "BatchNormalization 'y': 'mean' has shape [5], but 'c' has 4 channels",
    ),
    "lost data": (external("data.bin"), "missing"),
    "data elsewhere": (external("../outside.bin"), "must be in the model's folder"),
    "absolute data": (external("/etc/hostname"), "must be in the model's folder"),
    "link elsewhere": (external("link.bin"), "a link that leaves the model's folder"),
}
each_bad = pytest.mark.parametrize(("make", "why"), BAD.values(), ids=BAD)


class TestBadInput:
    @each_bad
    @pytest.mark.parametrize("command", ["optimize", "inspect"])
    def test_one_line(self, command: str, make: Callable[[Path], Path], why: str, tmp_path: Path) -> None:
        path = make(tmp_path)
        before = snapshot(tmp_path)
        message = refused(run(command, path))
        assert message.startswith(f"{path}: ") and why in message
        assert snapshot(tmp_path) == before

    @each_bad
    def test_nothing_is_lost(self, make: Callable[[Path], Path], why: str, tmp_path: Path) -> None:
        path = make(tmp_path)
        store(tmp_path, b"mine", "out.onnx")
        before = snapshot(tmp_path)
        refused(run("optimize", path, "-o", tmp_path / "out.onnx", "--force"))
        assert snapshot(tmp_path) == before

    @needs_shared
    @pytest.mark.parametrize(
        "name",
        [
            "edge/deeploy__BatchNorm_ChannelsLast_network.onnx",
            "real/onnxruntime-qnn__fuse-matmul-bn-directly-dont-fuse.onnx",
        ],
    )
    def test_real_files_whose_lengths_disagree(self, name: str, tmp_path: Path) -> None:
        message = refused(run("optimize", SHARED / name, "-o", tmp_path / "out.onnx"))
        assert message.startswith(f"{SHARED / name}: BatchNormalization 'output'") and "channels" in message
        assert not snapshot(tmp_path)


class TestInlining:
    @pytest.mark.parametrize("command", ["optimize", "inspect"])
    def test_what_cannot_be_inlined_is_one_line(self, command: str, tmp_path: Path) -> None:
        text = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
        test (float[N,3,8,8] x) => (float[] y) { y = own.f(x) }
        <domain: "own", opset_import: ["": 17, "own": 1]> f (a) => (o) { o = own.f(a) }"""
        path = store(tmp_path, model(text))
        assert refused(run(command, path, "--inline-functions")).startswith(f"{path}: ")
        assert run(command, path).exit_code == 0


class TestBadTarget:
    def test_the_source(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        before = snapshot(tmp_path)
        assert "is the model that was read" in refused(run("optimize", path, "-o", path))
        assert snapshot(tmp_path) == before

    def test_there_already(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        store(tmp_path, b"mine", "model.folded.onnx")
        assert "model.folded.onnx: exists already" in refused(run("optimize", path))
        assert snapshot(tmp_path)["model.folded.onnx"] == b"mine"

    @pytest.mark.parametrize(
        ("target", "why"),
        [("none/out.onnx", "the folder"), (".", "is a folder"), ("model.onnx/out.onnx", "cannot be written")],
    )
    def test_no_place_for_a_file(self, target: str, why: str, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        message = refused(run("optimize", path, "-o", tmp_path / target))
        assert message.startswith(str(tmp_path)) and why in message
        assert list(snapshot(tmp_path)) == ["model.onnx"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_not_allowed(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        (tmp_path / "locked").mkdir(mode=0o555)
        assert "Permission denied" in refused(run("optimize", path, "-o", tmp_path / "locked" / "out.onnx"))

    def test_a_kernel_file_system(self, tmp_path: Path) -> None:
        """Not even root may write there."""
        message = refused(run("optimize", store(tmp_path, foldable()), "-o", "/proc/out.onnx"))
        assert message.startswith("/proc/out.onnx: cannot be written")

    @pytest.mark.parametrize("flags", [[], ["--dry-run"]])
    def test_no_room(self, flags: list[str], tmp_path: Path, scratch: Path) -> None:
        """A limit on the size of files is met where a full disk would be."""
        before = snapshot(tmp_path)
        limit = DIGITS.stat().st_size // 2
        done = spawn(
            "optimize",
            DIGITS,
            "-o",
            tmp_path / "out.onnx",
            *flags,
            before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert done.returncode == 2 and not done.stdout
        assert b": cannot be written: File too large" in done.stderr and done.stderr.count(b"\n") == 1
        assert snapshot(tmp_path) == before and not list(scratch.iterdir())


class TestInspect:
    def test_report(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        result = run("inspect", path)
        assert result.exit_code == 0 and not result.stderr
        assert "16 parameters, 8 of them trainable" in " ".join(result.stdout.split())
        assert list(snapshot(tmp_path)) == ["model.onnx"]

    def test_json(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        report = json.loads(run("inspect", path, "--json").stdout)
        assert list(report) == ["schema_version", "source", "batchnorms", "fold"]
        assert report["batchnorms"][0]["parameters"] == 16

    def test_json_of_what_is_not_finite(self, tmp_path: Path) -> None:
        proto = foldable()
        proto.graph.initializer[1].CopyFrom(
            onnx.numpy_helper.from_array(np.full(4, np.nan, np.float32), "scale")
        )
        result = run("inspect", store(tmp_path, proto), "--json")
        assert json.loads(result.stdout)["batchnorms"][0]["non_finite"] == 4

    @pytest.mark.parametrize("stored", [True, False])
    def test_a_file_that_asks_for_much_memory(self, stored: bool, tmp_path: Path) -> None:
        """Inference of shapes would make the tensor: of any size, in a file as small."""
        size = "" if stored else "n = Constant <value = int64[1] {16777216}> () "
        nodes = (
            f"{size}i = ConstantOfShape <value = int64[1] {{1}}> (n) j = Concat <axis = 0> (i, i) "
            "r = Reshape(x, j) a = Sigmoid(r) b = Mul(a, k) y = Conv(b, w)"
        )
        constants: dict[str, Any] = {"k": (3, 1, 1), "w": (4, 3, 1, 1)}
        if stored:
            constants["n"] = [16777216]
        path = store(tmp_path, model(f"(float[N,3,8,8] x) => (float[] y) {{ {nodes} }}", **constants))
        command = [sys.executable, "-m", "bnfold", "inspect", str(path)]
        limit = 4 << 30  # so that a fault does not bring down the machine
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0 and usage.ru_maxrss < 500 * 1024  # KiB


class TestExplain:
    @pytest.mark.parametrize("reason", bnfold.Reason)
    def test_each(self, reason: bnfold.Reason) -> None:
        text = " ".join(run("explain", reason.value).stdout.split())
        assert reason.value in text and reason.sentence in text and reason.remedy in text

    def test_lower_case(self) -> None:
        assert run("explain", "bnf303").stdout == run("explain", "BNF303").stdout != ""

    def test_all(self) -> None:
        text = run("explain").stdout
        assert all(reason.value in text for reason in bnfold.Reason)

    def test_unknown(self) -> None:
        message = refused(run("explain", "BNF999"))
        assert "BNF999" in message and all(reason.value in message for reason in bnfold.Reason)


class TestProgram:
    def test_version(self) -> None:
        assert run("--version").stdout == f"bnfold, version {bnfold.__version__}\n"

    def test_without_a_command(self) -> None:
        result = run()
        assert result.exit_code == 2 and not result.stdout and "optimize" in result.stderr

    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            (["optimise", "model.onnx"], "No such command 'optimise'"),
            (["optimize"], "Missing argument 'MODEL'; see `bnfold optimize --help`"),
            (["optimize", "model.onnx", "--hurry"], "No such option"),
            (["optimize", "model.onnx", "--only", "relu"], "'batchnorm'"),
            (["optimize", "a.onnx", "b.onnx"], "unexpected extra argument"),
        ],
    )
    def test_usage(self, arguments: list[str], why: str) -> None:
        assert why in refused(run(*arguments))

    def test_a_bug(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No traceback reaches a user who does not ask; what a report needs does."""

        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("integer modulo by zero\nor so")

        monkeypatch.setattr(import_module("bnfold.optimize"), "load", broken)
        message = refused(run("inspect", "some model.onnx"), 4)
        assert message.startswith("internal error: ZeroDivisionError: integer modulo by zero or so; ")
        assert (
            "report" in message
            and bnfold.__version__ in message
            and "`bnfold inspect 'some model.onnx'`" in message
        )
        result = run("inspect", "some model.onnx", "-vv")
        assert result.exit_code == 4 and "Traceback" in result.stderr and "in broken" in result.stderr

    def test_module(self) -> None:
        done = spawn("--version")
        assert (done.returncode, done.stderr) == (0, b"")

    def test_names_cannot_speak_to_the_terminal(self, tmp_path: Path) -> None:
        """What a model calls its nodes is printed, but not obeyed."""
        proto = foldable()
        proto.graph.node[1].name = "red\x1b[31m\nnode \u4e2d"
        path = store(tmp_path, proto)
        for command in (["inspect", path], ["optimize", path, "--dry-run", "-v"]):
            text = run(*command).stdout
            assert "\x1b" not in text and "red\\x1b[31m\\nnode \u4e2d" in text
        initializer = next(t for t in proto.graph.initializer if t.name == "mean")
        initializer.CopyFrom(onnx.numpy_helper.from_array(np.zeros(5, np.float32), "mean"))
        assert "\x1b" not in refused(run("inspect", store(tmp_path, proto)))

    def test_a_stream_with_few_characters(self, tmp_path: Path) -> None:
        proto = foldable()
        proto.graph.node[1].name = "\u4e2d"
        command = [sys.executable, "-m", "bnfold", "inspect", str(store(tmp_path, proto))]
        environment = os.environ | {"PYTHONIOENCODING": "ascii"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment, check=False)
        assert done.returncode == 0 and b"\\u4e2d" in done.stdout

    @pytest.mark.parametrize(
        ("environment", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
    )
    def test_colors_in_a_terminal(self, environment: dict[str, str], colored: bool, tmp_path: Path) -> None:
        variables = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"} | environment
        command = [sys.executable, "-m", "bnfold", "explain", "BNF303"]
        reader, terminal = pty.openpty()
        subprocess.run(command, cwd=ROOT, stdout=terminal, env=variables, check=True)
        os.close(terminal)
        assert (b"\x1b[" in os.read(reader, 10_000)) == colored
        os.close(reader)


class TestInterrupt:
    def test_while_reading(self, scratch: Path) -> None:
        process = self.start("optimize", "-", stdin=subprocess.PIPE)
        self.wait(lambda: any(scratch.glob("bnfold-*")))  # tempfile itself tries out the folder before
        assert self.interrupt(process) == (130, b"", b"\n")
        assert not list(scratch.iterdir())

    def test_while_checking(self, tmp_path: Path, scratch: Path) -> None:
        path = store(tmp_path, foldable())
        process = self.start("optimize", path)
        self.wait(lambda: any(name.startswith(".bnfold-") for name in os.listdir(tmp_path)))
        assert self.interrupt(process) == (130, b"", b"\n")
        assert list(snapshot(tmp_path)) == ["model.onnx"] and not list(scratch.iterdir())

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
    @pytest.mark.parametrize("outside", [False, True])
    def test_being_told_to_end(
        self, outside: bool, number: signal.Signals, code: int, tmp_path: Path, scratch: Path
    ) -> None:
        """`kill`, `timeout`, a closed terminal: nothing stays behind, neither files nor processes."""
        path = tmp_path / "model.onnx"
        onnx.save(foldable(), path, save_as_external_data=outside, location="data.bin", size_threshold=0)
        store(tmp_path, b"mine", "out.onnx")
        before = snapshot(tmp_path)
        process = self.start("optimize", path, "-o", tmp_path / "out.onnx", "--force")
        self.wait(lambda: any(name.startswith(".bnfold-") for name in os.listdir(tmp_path)))
        os.kill(process.pid, number)  # to this one alone: its child has to be ended by it
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (code, b"", b"")
        assert snapshot(tmp_path) == before and not list(scratch.iterdir())
        self.wait(lambda: not runs_in(process.pid))

    def start(self, *arguments: object, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "bnfold", *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=ROOT, stdin=stdin, stdout=pipe, stderr=pipe, start_new_session=True
        )

    def wait(self, until: Callable[[], bool]) -> None:
        end = time.monotonic() + 30
        while not until():
            assert time.monotonic() < end
            time.sleep(0.002)

    def interrupt(self, process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the process of onnxruntime gets it, too
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err


def runs_in(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
