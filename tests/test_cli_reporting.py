"""Where reports go, whatever happens: formats, files, exit codes, and what is left of earlier runs."""

from __future__ import annotations

import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from shutil import which
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from graphs import model, norm
from reports import HOSTILE

import bnfold
from bnfold.cli import main
from bnfold.cli.files import make_ready, replace

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "fixtures" / "digits.onnx"
FOLDABLE = """(float[N,3,8,8] x) => (float[N,4,6,6] y)
{ c = Conv(x, w)  y = BatchNormalization(c, scale, bias, mean, var) }"""
STAYS = """(float[N,4,8,8] x) => (float[N,4,8,8] y)
{ c = Relu(x)  y = BatchNormalization(c, scale, bias, mean, var) }"""
CUSTOM = """<ir_version: 8, opset_import: ["": 17, "somewhere": 1]>
test (float[N,3,8,8] x) => (float[N,4,6,6] y)
{ a = somewhere.Unknown(x)  c = Conv(a, w)  y = BatchNormalization(c, scale, bias, mean, var) }"""
KINDS = (".json", ".xml", ".md", ".html")
STALE = {
    ".json": '{\n  "schema_version": 1,\n  "verdict": "pass"\n}\n',
    ".xml": '<?xml version="1.0" encoding="UTF-8"?>\n<testsuites name="bnfold" tests="1"/>\n',
    ".md": "<!-- bnfold -->\n## PASS: of an earlier run\n",
    ".html": '<!doctype html>\n<html>\n<head>\n<meta name="generator" content="bnfold">\n',
}
FOREIGN = {
    ".json": '{"weights": "schema_version"}',
    ".xml": '<?xml version="1.0"?>\n<testsuites name="pytest"/>',
    ".md": "# Notes on <!-- bnfold -->\n",
    ".html": "<!doctype html>\n<html><head><title>bnfold</title>",
}


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner(env={"COLUMNS": "80", **environment}).invoke(main, [str(a) for a in arguments])


def spawn(
    *arguments: object, before: Callable[[], None] | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bnfold", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        preexec_fn=before,
        check=False,
    )


def store(folder: Path, text: str = FOLDABLE, name: str = "model.onnx") -> Path:
    weights = norm(4) if text is STAYS else norm(4) | {"w": (4, 3, 3, 3)}
    onnx.save(model(text, **weights), folder / name)
    return folder / name


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model."""
    monkeypatch.chdir(tmp_path)
    return store(tmp_path)


@pytest.fixture
def wrong(there: Path) -> Path:
    """The fold of the model with a weight that is off."""
    bnfold.optimize(there, "wrong.onnx", verify="none")
    proto = onnx.load("wrong.onnx")
    weight = next(t for t in proto.graph.initializer if len(t.dims) == 4)
    weight.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), weight.name)
    )
    onnx.save(proto, "wrong.onnx")
    return there.with_name("wrong.onnx")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug."""

    def load(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(import_module("bnfold.optimize"), "load", load)


def asked(folder: Path, *kinds: str, stale: bool = True) -> list[object]:
    """Options for a report of each kind, where an earlier run has left some."""
    found: list[object] = []
    for kind in kinds or KINDS:
        path = folder / f"report{kind}"
        if stale:
            path.write_text(STALE[kind])
        found += ["--report", path]
    return found


def verdicts(folder: Path) -> dict[str, str]:
    """What the files say, by kind."""
    xml = ElementTree.parse(folder / "report.xml").getroot()
    code = json.loads((folder / "report.json").read_text()).get("exit_code", 0)
    marks = {"FAIL": "fail", "PASS": "pass", "ERROR": "error", "UNDECIDED": "undecided"}
    text = (folder / "report.md").read_text(encoding="utf-8").removeprefix("<!-- bnfold -->\n")
    head = text.split(":")[0].split()[-1]
    bad = "fail" if xml.get("failures") != "0" else "error" if xml.get("errors") != "0" else "pass"
    return {".json": str(code), ".xml": bad, ".md": marks[head]}


class TestFormat:
    def test_json_is_short_for_the_format(self, there: Path) -> None:
        short, long = (run("inspect", there, *flags) for flags in (["--json"], ["--format", "json"]))
        assert short.stdout == long.stdout and json.loads(long.stdout)["batchnorms"]
        assert run("inspect", there, "--format", "json", "--json").stdout == long.stdout

    def test_junit(self, there: Path) -> None:
        root = ElementTree.fromstring(run("inspect", there, "--format", "junit").stdout)
        assert [suite.get("name") for suite in root] == [str(there)]

    def test_markdown(self, there: Path) -> None:
        result = run("optimize", there, "--format", "markdown")
        assert (
            result.stdout.startswith("<!-- bnfold -->\n## \u2705 PASS: ")
            and f"bnfold optimize {there}" in result.stdout
        )

    @pytest.mark.parametrize("form", ["junit", "markdown"])
    @pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
    def test_in_utf8_whatever_the_stream_has(self, form: str, encoding: str, there: Path) -> None:
        there.write_bytes(named("caf\xe9").SerializeToString())
        command = [sys.executable, "-m", "bnfold", "inspect", "model.onnx", "--format", form]
        environment = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run(command, capture_output=True, check=True, env=environment)
        assert "caf\xe9" in done.stdout.decode("utf-8")
        if form == "junit":
            assert ElementTree.fromstring(done.stdout).tag == "testsuites"

    def test_every_command_has_them(self, there: Path, wrong: Path, tmp_path: Path) -> None:
        np.save(tmp_path / "data.npy", np.ones((9, 3, 8, 8), np.float32))
        for command, code in (
            (["optimize", there], 0),
            (["inspect", there], 0),
            (["verify", there, wrong, "--no-runtime"], 1),
            (["recalibrate", there, "--data", "data.npy", "--dry-run"], 0),
            (["export", "missing.pt2"], 2),
        ):
            result = run(*command, "--format", "junit", *asked(tmp_path, ".xml"))
            assert result.exit_code == code, result.output
            assert ElementTree.fromstring(result.stdout).tag == "testsuites"
            assert (tmp_path / "report.xml").read_text().splitlines() == result.stdout.splitlines()

    @pytest.mark.parametrize("form", ["json", "junit", "markdown"])
    def test_quiet(self, form: str, there: Path) -> None:
        result = run("optimize", there, "-q", "--format", form, *asked(there.parent, ".json"))
        assert result.output == "" and json.loads((there.parent / "report.json").read_text())["target"]

    def test_beside_a_model_on_the_standard_output(self, there: Path) -> None:
        done = run("optimize", there, "-o", "-", "--format", "junit")
        assert ElementTree.fromstring(done.stderr).get("failures") == "0"
        onnx.load_from_string(done.stdout_bytes)

    @pytest.mark.parametrize(
        ("flags", "why"),
        [
            (["--json", "--format", "junit"], "--json is short for --format json"),
            (["--format", "yaml"], "'yaml' is not one of"),
            (["--report", "report.txt"], "'report.txt' ends with none of .json, .xml, .md, .html"),
            (["--report", "a.md", "--report", "./a.md"], "--report ./a.md is given twice"),
        ],
    )
    def test_usage(self, flags: list[str], why: str, there: Path) -> None:
        result = run("optimize", there, *flags)
        assert result.exit_code == 2 and why in result.stderr and not result.stdout
        assert os.listdir(there.parent) == ["model.onnx"]

    def test_no_report_in_the_place_of_another_file(self, there: Path) -> None:
        there.rename("model.json")
        Path("link.json").symlink_to("model.json")
        before = Path("model.json").read_bytes()
        for arguments in (
            ["optimize", "model.json", "--report", "link.json"],
            ["inspect", "other.onnx", "model.json", "--report", "model.json"],
            ["verify", "model.json", "other.onnx", "--report", "model.json"],
            ["optimize", "other.onnx", "-o", "out.json", "--report", "out.json"],
            ["recalibrate", "m.onnx", "--data", "model.json", "--report", "model.json"],
        ):
            result = run(*arguments)
            assert result.exit_code == 2 and "names another file of this command" in result.stderr
        assert Path("model.json").read_bytes() == before and not Path("out.json").exists()


class TestFiles:
    def test_success(self, there: Path, tmp_path: Path) -> None:
        result = run("optimize", there, *asked(tmp_path))
        assert result.exit_code == 0 and result.stderr == ""
        assert "Written to" in result.stdout and Path("model.folded.onnx").exists()
        assert verdicts(tmp_path) == {".json": "0", ".xml": "pass", ".md": "pass"}
        assert "bnfold optimize" in (tmp_path / "report.html").read_text(encoding="utf-8")
        assert not list(tmp_path.glob(".bnfold-*"))

    def test_in_one_piece(self, tmp_path: Path) -> None:
        """Who reads the old file meanwhile reads all of it."""
        (tmp_path / "report.md").write_text(STALE[".md"])
        with open(tmp_path / "report.md") as reader:
            replace(str(tmp_path / "report.md"), "new")
            assert reader.read() == STALE[".md"] and (tmp_path / "report.md").read_text() == "new"

    def test_its_own_are_replaced(self, there: Path, tmp_path: Path) -> None:
        """What it has written is known for that, and so is an empty file."""
        for name in "report.json", "other.json":
            (tmp_path / name).touch()
        for models in [there], [there, there]:
            asked_for = asked(tmp_path, stale=False)
            result = run("inspect", *models, *asked_for, "--report", "other.json")
            assert (result.exit_code, result.stderr) == (0, "")
        assert len(json.loads((tmp_path / "report.json").read_text())) == 2

    @pytest.mark.parametrize("kind", KINDS)
    def test_those_of_others_are_not(self, kind: str, there: Path, tmp_path: Path) -> None:
        path = tmp_path / f"weights{kind}"
        path.write_text(FOREIGN[kind])
        result = run("inspect", there, "--report", path)
        assert result.exit_code == 2 and "1 would fold" in " ".join(result.stdout.split())
        assert result.stderr == (
            f"warning: {path}: the report cannot be written: there is a file that is no report of bnfold; "
            "choose another name, or remove it\n"
        )
        assert path.read_text() == FOREIGN[kind]

    def test_nor_one_that_has_come_meanwhile(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.json"
        assert make_ready(str(path)) == ""
        path.write_text(FOREIGN[".json"])
        with pytest.raises(OSError, match="no report of bnfold"):
            replace(str(path), "new")
        assert path.read_text() == FOREIGN[".json"]

    def test_weights_beside_a_model(self, there: Path) -> None:
        proto = onnx.load(there)
        onnx.save(proto, there, save_as_external_data=True, location="weights.json", size_threshold=0)
        before = Path("weights.json").read_bytes()
        for arguments in ["inspect", there], ["optimize", there], ["verify", there, there, "--no-runtime"]:
            assert "no report of bnfold" in run(*arguments, "--report", "weights.json").stderr
        assert Path("weights.json").read_bytes() == before

    @pytest.mark.parametrize("through", ["it", "a link"])
    def test_a_pipe_is_written_into(self, through: str, there: Path, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.json")
        name = "pipe.json"
        if through == "a link":
            name = "link.json"
            Path(name).symlink_to("pipe.json")
        with subprocess.Popen(["cat", "pipe.json"], stdout=subprocess.PIPE) as reader:
            done = spawn("inspect", there, "--report", tmp_path / name)
            assert json.loads(reader.communicate(timeout=60)[0])["batchnorms"]
        assert done.returncode == 0 and stat.S_ISFIFO(os.stat("pipe.json").st_mode)

    def test_a_device_stays_one(self, there: Path) -> None:
        Path("null.json").symlink_to(os.devnull)
        assert run("inspect", there, "--report", "null.json").exit_code == 0
        assert Path("null.json").is_symlink() and stat.S_ISCHR(os.stat(os.devnull).st_mode)

    def test_folders_are_made(self, there: Path, tmp_path: Path) -> None:
        assert run("inspect", there, "--report", tmp_path / "a" / "b" / "c.JSON").exit_code == 0
        assert json.loads((tmp_path / "a" / "b" / "c.JSON").read_text())["batchnorms"]

    def test_a_link_stays_one(self, there: Path) -> None:
        Path("elsewhere").mkdir()
        Path("report.json").symlink_to("elsewhere/real.json")
        for _ in range(2):
            assert run("inspect", there, "--report", "report.json").exit_code == 0
        assert Path("report.json").is_symlink() and json.loads(Path("elsewhere/real.json").read_text())

    def test_not_equivalent(self, there: Path, wrong: Path, tmp_path: Path) -> None:
        result = run("verify", there, wrong, "--no-runtime", *asked(tmp_path))
        assert result.exit_code == 1
        assert verdicts(tmp_path) == {".json": "0", ".xml": "fail", ".md": "fail"}
        assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "fail"

    def test_undecided(self, there: Path, tmp_path: Path) -> None:
        result = run("optimize", store(tmp_path, CUSTOM, "custom.onnx"), *asked(tmp_path))
        assert result.exit_code == 3
        assert verdicts(tmp_path) == {".json": "0", ".xml": "error", ".md": "undecided"}
        assert json.loads((tmp_path / "report.json").read_text())["verification"]["verdict"] == "undecided"

    @pytest.mark.parametrize(
        "arguments", [["missing.onnx"], ["model.onnx", "-o", "no/where.onnx"], ["model.onnx", "--limit", "3"]]
    )
    def test_no_result(self, arguments: list[str], there: Path, tmp_path: Path) -> None:
        result = run("optimize", *arguments, *asked(tmp_path))
        assert (result.exit_code, result.stdout) == (2, "")
        assert verdicts(tmp_path) == {".json": "2", ".xml": "error", ".md": "error"}
        told = json.loads((tmp_path / "report.json").read_text())
        assert told["source"] == arguments[0] and f"error: {told['message']}\n" == result.stderr

    @pytest.mark.usefixtures("broken")
    def test_a_bug(self, there: Path, tmp_path: Path) -> None:
        result = run("inspect", there, *asked(tmp_path), "--format", "json")
        assert result.exit_code == 4
        assert verdicts(tmp_path) == {".json": "4", ".xml": "error", ".md": "error"}
        assert json.loads(result.stdout)["message"].startswith("internal error: ZeroDivisionError: by zero;")

    @pytest.mark.parametrize(
        "flags", [["--tolerance", "x"], ["--nosuch"], ["third.onnx"], ["--json", "--format", "text"]]
    )
    def test_wrong_usage(self, flags: list[str], there: Path, tmp_path: Path) -> None:
        result = run("verify", there, there, *asked(tmp_path), *flags)
        assert result.exit_code == 2
        assert verdicts(tmp_path) == {".json": "2", ".xml": "error", ".md": "error"}
        told = json.loads((tmp_path / "report.json").read_text())["message"]
        assert result.stderr == f"error: {told}\n" and "see `bnfold verify --help`" in told

    def test_wrong_usage_in_other_words(self, there: Path) -> None:
        """Paths behind an equals sign are found, those behind -- are models, and models are safe."""
        there.rename("model.json")
        before = Path("model.json").read_bytes()
        wrong = ["--nosuch", "--report=a.json", "--report", "model.json", "--report", "b.txt"]
        result = run("inspect", *wrong, "--", "--report", "c.json")
        assert sorted(os.listdir()) == ["a.json", "model.json"]
        assert Path("model.json").read_bytes() == before and "no report of bnfold" in result.stderr
        assert json.loads(run("inspect", "--nosuch", "--format=json").stdout)["exit_code"] == 2
        assert json.loads(run("inspect", "--nosuch", "--json").stdout)["exit_code"] == 2

    def test_killed(self, there: Path, tmp_path: Path) -> None:
        """What an earlier run has left does not pass for this one's."""
        script = (
            "import os, bnfold, bnfold.cli\nbnfold.inspect = lambda *_, **__: os.abort()\nbnfold.cli.main()"
        )
        command = [sys.executable, "-c", script, "inspect", str(there), *map(str, asked(tmp_path))]
        assert subprocess.run(command, capture_output=True, check=False).returncode < 0
        assert os.listdir(tmp_path) == ["model.onnx"]

    def test_only_the_first_process_reports(self, there: Path, tmp_path: Path) -> None:
        for rank in "1", "0":
            flags = asked(tmp_path, ".json", stale=False)
            result = run("inspect", there, *flags, RANK=rank, WORLD_SIZE="2")
            assert (tmp_path / "report.json").exists() == bool(result.stdout) == (rank == "0")

    def test_one_process_is_the_first_whatever_its_rank(self, there: Path, tmp_path: Path) -> None:
        """Launchers of other programs leave a rank in the environment."""
        result = run("inspect", there, *asked(tmp_path, ".json", stale=False), RANK="1")
        assert result.stdout and (tmp_path / "report.json").exists()


class TestUnverified:
    """It is written as asked, and no verdict stands on it."""

    def test_nothing_says_pass(self, there: Path, tmp_path: Path) -> None:
        flags = ["--no-verify", "--format", "github", *asked(tmp_path, ".md", ".xml")]
        result = run("optimize", "model.onnx", *flags, GITHUB_STEP_SUMMARY="s.md")
        assert result.exit_code == 0
        note = result.stdout.splitlines()[-1]
        assert note.startswith("::warning file=model.onnx,title=bnfold optimize%3A not verified::")
        text = Path("report.md").read_text(encoding="utf-8")
        assert "\n## \u26a0\ufe0f NOT VERIFIED: model.onnx" in text and "PASS" not in text
        verdict = ElementTree.parse("report.xml").find("testsuite/testcase/system-out")
        assert verdict is not None and "Not verified: the result was not compared" in str(verdict.text)

    def test_commands_for_names_that_look_like_options(self, there: Path) -> None:
        there.rename("-v.onnx")
        advised = run("optimize", "--no-verify", "--format", "markdown", "--", "-v.onnx").stdout
        assert "`bnfold verify -- -v.onnx -v.folded.onnx`" in advised
        assert run("verify", "--", "-v.onnx", "-v.folded.onnx").exit_code == 0


class TestUnwritable:
    """Neither the verdict nor the model is lost."""

    @pytest.mark.parametrize("path", ["model.onnx/report.json", "folder.md", "/proc/none/report.xml"])
    def test_known_before_the_work(self, path: str, there: Path) -> None:
        Path("folder.md").mkdir()
        result = run("optimize", there, "--report", path, "--report", "other.json")
        assert result.exit_code == 2 and "Verified: " in result.stdout
        assert result.stderr.startswith(f"warning: {path}: the report cannot be written: ")
        assert result.stderr.count("\n") == 1
        assert Path("model.folded.onnx").exists() and json.loads(Path("other.json").read_text())["target"]

    def test_the_verdict_keeps_its_exit_code(self, there: Path, wrong: Path) -> None:
        result = run("verify", there, wrong, "--no-runtime", "--report", "model.onnx/report.json")
        assert result.exit_code == 1 and result.stdout.startswith("FAIL:")

    def test_without_the_extra(self, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bnfold.render.find_spec", lambda name: None)
        result = run("optimize", there, *asked(there.parent, ".html", ".json"))
        assert result.exit_code == 2 and Path("model.folded.onnx").exists()
        assert "pip install 'bnfold[report]'" in result.stderr and result.stderr.count("\n") == 1
        assert not Path("report.html").exists() and json.loads(Path("report.json").read_text())

    @pytest.mark.parametrize("guest", ["jinja2", "matplotlib"])
    def test_with_a_broken_extra(self, guest: str, there: Path, tmp_path: Path) -> None:
        (tmp_path / guest).mkdir()
        (tmp_path / guest / "__init__.py").write_text("raise ImportError('too\\nold')")
        done = spawn("inspect", there, *asked(tmp_path, ".html", ".json"), PYTHONPATH=str(tmp_path))
        assert done.returncode == 2 and json.loads((tmp_path / "report.json").read_text())["batchnorms"]
        assert done.stderr == (
            f"warning: {tmp_path}/report.html: the report cannot be written: it needs {guest}, which does "
            "not work here: ImportError: too old\n"
        )

    def test_with_the_backend_of_a_notebook(self, there: Path, tmp_path: Path) -> None:
        done = spawn("inspect", there, *asked(tmp_path, ".html"), MPLBACKEND="nosuch")
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "it needs matplotlib, which does not work here: ValueError: " in done.stderr
        assert done.stderr.endswith("; try again without MPLBACKEND in the environment\n")

    def test_without_a_home(self, there: Path, tmp_path: Path) -> None:
        """matplotlib would like one."""
        (tmp_path / "home").touch()
        home = str(tmp_path / "home")
        nowhere = {"HOME": home, "XDG_CACHE_HOME": home, "XDG_CONFIG_HOME": home, "MPLCONFIGDIR": ""}
        done = spawn("inspect", there, *asked(tmp_path, ".html"), before=None, **nowhere)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.skipif(not os.getuid() and not which("capsh"), reason="root may write everywhere")
    def test_a_stale_report_in_a_folder_that_is_closed(
        self, there: Path, wrong: Path, tmp_path: Path
    ) -> None:
        """It is written in place; and if that cannot be, it is said that it is still there."""
        folder = tmp_path / "closed"
        folder.mkdir()
        for name, mode in ("open.json", 0o644), ("shut.json", 0o444):
            (folder / name).write_text(STALE[".json"])
            (folder / name).chmod(mode)
        folder.chmod(0o555)
        reports = [f"--report={folder}/{name}.json" for name in ("open", "shut")]
        command = [sys.executable, "-m", "bnfold", "verify", there, wrong, "--no-runtime", *reports]
        plain = [] if os.getuid() else ["capsh", "--drop=cap_dac_override", "--", "-c", 'exec "$@"', "-"]
        done = subprocess.run([*plain, *map(str, command)], capture_output=True, text=True, check=False)
        folder.chmod(0o755)
        assert done.returncode == 1
        assert json.loads((folder / "open.json").read_text())["verdict"] == "fail"
        assert (
            f"warning: {folder}/shut.json: the report cannot be written: Permission denied; "
            "that of an earlier run is still there\n"
        ) == done.stderr

    def test_a_full_disk(self, there: Path, tmp_path: Path) -> None:
        """A limit on the size of files is met where a full disk would be."""
        limit = 1000
        done = spawn(
            "inspect",
            there,
            *asked(tmp_path, ".json", ".md"),
            before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert done.returncode == 2 and "1 would fold" in " ".join(done.stdout.split())
        warning = "warning: {}: the report cannot be written: File too large"
        assert done.stderr.splitlines() == [
            warning.format(tmp_path / f"report{kind}") for kind in (".json", ".md")
        ]
        assert os.listdir(tmp_path) == ["model.onnx"]

    def test_a_bug_in_a_report(self, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bnfold.render.markdown._section", None)
        result = run("inspect", there, *asked(there.parent, ".md", ".xml"))
        assert result.exit_code == 2 and "1 would fold" in " ".join(result.stdout.split())
        assert "report.md: the report cannot be written: internal error: TypeError" in result.stderr
        assert Path("report.xml").read_text() != STALE[".xml"] and not Path("report.md").exists()

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
    @pytest.mark.parametrize(("candidate", "code"), [("model.onnx", 2), ("wrong.onnx", 1)])
    def test_a_full_disk_behind_stdout(self, candidate: str, code: int, there: Path, wrong: Path) -> None:
        command = [sys.executable, "-m", "bnfold", "verify", "model.onnx", candidate, "--no-runtime"]
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*command, "--report", "r.json"], stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert done.returncode == code and b"the standard output: " in done.stderr
        assert json.loads(Path("r.json").read_text())["verdict"] == ("fail" if code == 1 else "pass")


class TestSeveralModels:
    def test_each_in_turn(self, there: Path, tmp_path: Path) -> None:
        other = store(tmp_path, STAYS, "other.onnx")
        result = run("inspect", there, other)
        assert result.exit_code == 0 and result.stderr == ""
        assert result.stdout.index(f"{there}:") < result.stdout.index(f"{other}:")

    def test_what_cannot_be_used_does_not_stop_the_others(self, there: Path, tmp_path: Path) -> None:
        result = run("inspect", "missing.onnx", there, "--json", *asked(tmp_path, ".xml"))
        assert result.exit_code == 2
        assert result.stderr == "error: missing.onnx: there is no such file; check the path\n"
        failure, found = json.loads(result.stdout)
        assert failure == {
            "schema_version": 1,
            "source": "missing.onnx",
            "message": "missing.onnx: there is no such file; check the path",
            "exit_code": 2,
        }
        assert found["source"] == str(there)
        suites = ElementTree.parse(tmp_path / "report.xml").getroot().findall("testsuite")
        assert [suite.get("errors") for suite in suites] == ["1", "0"]

    def test_of_a_kind_that_needs_other_options(self, there: Path) -> None:
        result = run("inspect", there, "missing.pt2", "--freeze-initializers")
        assert result.exit_code == 2 and "would fold" in " ".join(result.stdout.split())
        assert "--freeze-initializers is for ONNX models" in result.stderr

    @pytest.mark.usefixtures("broken")
    def test_a_bug(self, there: Path) -> None:
        result = run("inspect", there, there, "--fail-on", "foldable")
        assert result.exit_code == 4 and result.stderr.count("error: internal error: ") == 2

    @pytest.mark.parametrize(
        ("names", "code"),
        [
            (["stays.onnx"], 0),
            (["model.onnx"], 1),
            (["stays.onnx", "model.onnx"], 1),
            (["model.onnx", "missing.onnx"], 2),
        ],
    )
    def test_fail_on_foldable(self, names: list[str], code: int, there: Path, tmp_path: Path) -> None:
        store(tmp_path, STAYS, "stays.onnx")
        assert run("inspect", *names).exit_code == (2 if code == 2 else 0)
        result = run("inspect", *names, "--fail-on", "foldable", *asked(tmp_path, ".xml"))
        assert result.exit_code == code
        told = "error: model.onnx: 1 could be folded, and --fail-on foldable was given\n"
        assert (told in result.stderr) == ("model.onnx" in names)
        failures = ElementTree.parse(tmp_path / "report.xml").getroot().get("failures")
        assert failures == ("2" if "model.onnx" in names else "0")  # the site, and the verdict

    def test_a_name_of_two_lines(self, there: Path) -> None:
        there.rename("a\nb")
        stderr = run("inspect", "a\nb", "--fail-on", "foldable").stderr
        assert stderr.startswith("error: a\\nb: 1 could be folded, ")

    def test_quiet(self, there: Path) -> None:
        result = run("inspect", "model.onnx", "-q", "--fail-on", "foldable")
        assert (result.exit_code, result.stdout) == (1, "")

    def test_none(self) -> None:
        assert "Missing argument 'MODEL'" in run("inspect").stderr


class TestGitHub:
    def summarized(self, *arguments: object, **environment: str) -> tuple[Result, str]:
        path = Path("summary.md")
        result = run(*arguments, "--format", "github", GITHUB_STEP_SUMMARY=str(path), **environment)
        return result, path.read_text(encoding="utf-8") if path.exists() else ""

    def test_success(self, there: Path) -> None:
        result, summary = self.summarized("optimize", "model.onnx")
        first, *text, last, note = result.stdout.splitlines()
        assert first == f"::stop-commands::{last.strip(':')}" and len(last) > 20
        assert text[0].startswith("model.onnx: 1 of 1") and "::" not in "".join(text)
        assert note.startswith("::notice file=model.onnx,title=bnfold optimize%3A pass::model.onnx: 1 of 1")
        assert summary.startswith("## \u2705 PASS: model.onnx")

    def test_no_result(self, there: Path) -> None:
        result, summary = self.summarized("optimize", "missing.onnx")
        (note,) = result.stdout.splitlines()
        assert note.startswith("::error title=bnfold optimize%3A error::missing.onnx: no result%0A")
        assert result.exit_code == 2 and "ERROR: missing.onnx" in summary

    def test_one_annotation_per_model(self, there: Path) -> None:
        result, summary = self.summarized("inspect", *["model.onnx"] * 3, "--fail-on", "foldable")
        assert result.stdout.count("\n::error file=model.onnx,") == 3
        assert summary.startswith("## 3 models, 3 not passed")

    def test_wrong_usage(self, there: Path) -> None:
        result, summary = self.summarized("inspect", "model.onnx", "--nosuch")
        (note,) = result.stdout.splitlines()
        assert note.startswith("::error title=bnfold inspect%3A error::No result%0ANo such option")
        assert result.exit_code == 2 and summary.startswith("## \u26a0\ufe0f ERROR: No result")

    @pytest.mark.parametrize(("before", "gap"), [("", ""), ("a\n", ""), ("| a |", "\n"), ("\xe9", "\n")])
    def test_begins_a_line(self, before: str, gap: str, there: Path) -> None:
        Path("summary.md").write_text(before, encoding="utf-8")
        _, summary = self.summarized("inspect", "model.onnx")
        assert summary.startswith(f"{before}{gap}## ")

    def test_steps_append(self, there: Path) -> None:
        for _ in range(2):
            _, summary = self.summarized("inspect", "model.onnx")
        assert summary.count("## \u2705 PASS: model.onnx") == 2

    def test_a_summary_that_is_full(self, there: Path) -> None:
        """GitHub throws away all of what is too long."""
        before = "x" * (1024 * 1024 - 100)
        Path("summary.md").write_text(before)
        result, summary = self.summarized("inspect", "model.onnx")
        assert (result.exit_code, summary) == (0, before)
        assert (
            "warning: $GITHUB_STEP_SUMMARY: the report cannot be written: the summary of this step is full"
            in (result.stderr)
        )

    @pytest.mark.parametrize("place", ["none/summary.md", ".", "pipe"])
    def test_a_summary_that_cannot_be_written(self, place: str, there: Path) -> None:
        os.mkfifo("pipe")
        result = run("inspect", "model.onnx", "--format", "github", GITHUB_STEP_SUMMARY=place)
        assert result.exit_code == 0 and result.stderr.startswith("warning: $GITHUB_STEP_SUMMARY: ")
        assert "::notice " in result.stdout

    def test_elsewhere(self, there: Path) -> None:
        result = run("inspect", "model.onnx", "--format", "github", GITHUB_STEP_SUMMARY="")
        assert (result.exit_code, result.stderr) == (0, "") and "::notice " in result.stdout

    def test_errors_are_no_commands(self) -> None:
        """The runner looks for the older kind of commands anywhere in a line."""
        here = run("inspect", "##[warning]x.onnx", GITHUB_ACTIONS="").stderr
        there = run("inspect", "##[warning]x.onnx", GITHUB_ACTIONS="true").stderr
        assert here.startswith("error: ##[warning]x.onnx: ") and there == here.replace("##[", "# #[")

    def test_quiet(self, there: Path) -> None:
        result, summary = self.summarized("optimize", "model.onnx", "-q")
        assert result.output == "" and "PASS" in summary


def named(text: str) -> onnx.ModelProto:
    """A model in which everything is called so."""
    proto = model(FOLDABLE, w=(4, 3, 3, 3), **norm(4))
    for i, node in enumerate(proto.graph.node):
        node.name = f"{text}{i}"
    node = proto.graph.node[1]
    node.output[0] = proto.graph.output[0].name = text
    return proto


class TestBadInput:
    @pytest.mark.parametrize("name", [name for name in HOSTILE if name != "\ud800"], ids=ascii)
    def test_names(self, name: str, there: Path, tmp_path: Path) -> None:
        """A file in UTF-8 can hold all but lone surrogates."""
        there.write_bytes(named(name).SerializeToString())
        result = run("optimize", there, *asked(tmp_path), "--format", "github", GITHUB_STEP_SUMMARY="s.md")
        assert (result.exit_code, result.stderr) == (0, "")
        assert verdicts(tmp_path) == {".json": "0", ".xml": "pass", ".md": "pass"}
        commands = [line for line in result.stdout.splitlines() if line.lstrip().startswith("::")]
        assert len(commands) == 3 or name == "::error::x"
        assert result.stdout.splitlines()[-1] == commands[-1] and "\x1b" not in result.stdout
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["fold"]["decisions"][0]["nodes"] == [f"{name}1"]
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert "<script" not in page and "1 of 1 BatchNormalization folded" in page

    def test_thousands(self, tmp_path: Path) -> None:
        steps = "".join(
            f"c{i} = Conv(h{i}, w)  h{i + 1} = BatchNormalization(c{i}, scale, bias, mean, var) "
            for i in range(2000)
        )
        text = f"(float[N,2,4,4] h0) => (float[N,2,4,4] y) {{ {steps} y = Relu(h2000) }}"
        onnx.save(model(text, w=(2, 2, 1, 1), **norm(2)), tmp_path / "many.onnx")
        result = run("inspect", tmp_path / "many.onnx", *asked(tmp_path, ".json", ".xml", ".md"))
        assert result.exit_code == 0 and len(result.stdout.splitlines()) <= 24
        assert ElementTree.parse(tmp_path / "report.xml").getroot().get("tests") == "2001"
        assert (tmp_path / "report.md").stat().st_size <= 512 * 1024

    def test_a_model_whose_name_is_no_text(self, there: Path, tmp_path: Path) -> None:
        name = os.fsdecode(b"caf\xe9.onnx")
        there.rename(name)
        result = run("inspect", name, *asked(tmp_path), "--format", "github", GITHUB_STEP_SUMMARY="s.md")
        assert result.exit_code == 0, result.output
        assert (
            "caf\\udce9.onnx" in result.stdout and "caf\\udce9.onnx" in (tmp_path / "report.xml").read_text()
        )
        assert json.loads((tmp_path / "report.json").read_text())["source"] == name


def test_a_report_loads_nothing_heavy(there: Path) -> None:
    """Drawing is for HTML."""
    script = """
import sys
from bnfold.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
    print(*sys.modules, file=sys.stderr)
"""
    command = [sys.executable, "-c", script, "inspect", str(there)]
    for flags in ([], ["--report", "a.xml", "--report", "a.md", "--format", "github"]):
        done: Any = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
        assert not {"jinja2", "matplotlib", "torch", "onnxruntime"} & set(done.stderr.split())
