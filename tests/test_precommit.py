""".pre-commit-hooks.yaml, run as pre-commit runs it: the entry, then the names of files."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import yaml
from click.testing import CliRunner, Result
from graphs import model, norm

from bnfold.cli import main

ROOT = Path(__file__).parent.parent
(HOOK,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
PRE_COMMIT = shutil.which("pre-commit", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

FOLDS = """(float[N,3,8,8] x) => (float[N,4,6,6] y)
{ c = Conv(x, w)  y = BatchNormalization(c, scale, bias, mean, var) }"""
STAYS = "(float[N,4,8,8] x) => (float[N,4,8,8] y) { y = BatchNormalization(x, scale, bias, mean, var) }"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(model(FOLDS, w=(4, 3, 3, 3), **norm(4)), "folds.onnx")
    onnx.save(model(STAYS, **norm(4)), "its name.onnx")
    Path("notes.onnx.md").write_text("no model", encoding="utf-8")
    return tmp_path


def hook(*names: str) -> Result:
    program, *arguments = shlex.split(HOOK["entry"])
    assert program == "bnfold"
    return CliRunner().invoke(main, [*arguments, *HOOK.get("args", ()), *names])


def test_what_pre_commit_wants() -> None:
    assert {"id", "name", "entry", "language"} <= set(HOOK)
    assert (HOOK["id"], HOOK["language"]) == ("bnfold-inspect", "python")


@pytest.mark.parametrize(("name", "looked_at"), [("a/b.onnx", True), ("b.onnx.md", False), ("onnx", False)])
def test_which_files(name: str, looked_at: bool) -> None:
    assert bool(re.search(HOOK["files"], name)) is looked_at


@pytest.mark.usefixtures("repository")
def test_what_could_be_folded_fails() -> None:
    assert hook("its name.onnx").exit_code == 0
    assert hook("its name.onnx", "its name.onnx").exit_code == 0
    result = hook("its name.onnx", "folds.onnx")
    assert result.exit_code == 1
    assert "folds.onnx" in result.output


@pytest.mark.usefixtures("repository")
def test_a_name_that_looks_like_an_option() -> None:
    Path("its name.onnx").rename("-v.onnx")
    assert hook("-v.onnx").exit_code == 0


@pytest.mark.usefixtures("repository")
def test_what_is_no_model_fails() -> None:
    Path("pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "utf-8")
    result = hook("pointer.onnx", "its name.onnx")
    assert result.exit_code == 2
    assert "git lfs pull" in result.output and "its name.onnx" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(PRE_COMMIT is None, reason="pre-commit is not installed")
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the project is no git repository here")
def test_pre_commit_itself(repository: Path) -> None:
    """It clones the project, installs it into an environment of its own, and runs the hook there."""
    assert PRE_COMMIT is not None
    surroundings = os.environ | {
        "PRE_COMMIT_HOME": str(repository / ".cache"),
        "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
    }
    for command in (["git", "init", "--quiet"], ["git", "add", "--", "its name.onnx", "notes.onnx.md"]):
        subprocess.run(command, check=True)

    def tried() -> subprocess.CompletedProcess[str]:
        command = [PRE_COMMIT, "try-repo", str(ROOT), HOOK["id"], "--all-files"]
        return subprocess.run(command, env=surroundings, capture_output=True, text=True)

    done = tried()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Passed" in done.stdout
    subprocess.run(["git", "add", "folds.onnx"], check=True)
    done = tried()
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Failed" in done.stdout and "folds.onnx" in done.stdout
