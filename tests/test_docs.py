"""What the pages in docs/ show is what happens."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from bnfold.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "pytorch.md"
PROCESSES = {
    "bnfold": [sys.executable, "-m", "bnfold"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone"],
}
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "bnfold"
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, f"{line}\n{result.output}"


def test_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert [language for language, _ in blocks] == ["python", "python", "sh", "python", "python"]
    expected: list[str] = []
    names: dict[str, object] = {}
    (tmp_path / "nets.py").write_text(blocks[0][1], encoding="utf-8")
    for language, text in blocks:
        if language == "sh":
            for line in text.splitlines():
                run(line)
        else:
            exec(compile(text, str(PAGE), "exec"), names)
            expected += re.findall(r"^print\(.*\)  # ([^:\n]*)", text, re.MULTILINE)
    del sys.modules["nets"]
    printed = capsys.readouterr().out
    assert len(expected) == 4
    assert all(line in printed.splitlines() for line in expected), printed
    for name in ("net", "small", "program", "unfolded", "from_python"):
        kinds = [node.op_type for node in onnx.load(f"{name}.onnx").graph.node]
        assert kinds.count("BatchNormalization") == (4 if name == "unfolded" else 0), name


def test_the_conventions(capsys: pytest.CaptureFixture[str]) -> None:
    page = PAGE.with_name("conventions.md").read_text(encoding="utf-8")
    text = "".join(block for _, block in BLOCK.findall(page))
    exec(compile(text, "conventions.md", "exec"), {})
    expected = re.findall(r"^print\(.*\)  # (.*)$", text, re.MULTILINE)
    assert len(expected) == 8
    assert capsys.readouterr().out.splitlines() == expected


def test_recalibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However it is run, it comes to the same bytes."""
    monkeypatch.chdir(tmp_path)
    for name in ("digits.onnx", "digits.npz"):
        shutil.copy(PAGE.parent.parent / "fixtures" / name, tmp_path)
    page = PAGE.with_name("recalibration.md").read_text(encoding="utf-8")
    names: dict[str, object] = {}
    expected: list[str] = []
    for language, text in BLOCK.findall(page):
        if language == "python":
            exec(compile(text, "recalibration.md", "exec"), names)
            expected += re.findall(r"^ *print\(.*\)  # (.*)$", text, re.MULTILINE)
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            subprocess.run([*PROCESSES[program], *arguments], check=True)
    printed = capsys.readouterr().out.splitlines()
    assert len(expected) == 5
    assert printed[:5] == expected
    assert printed[5].startswith("/")  # the name of a node, and figures
    same = {
        name: Path(f"{name}.onnx").read_bytes() for name in ("ready", "resumed", "shared", "again", "sure")
    }
    assert [name for name, content in same.items() if content != same["ready"]] == []
    assert Path("drawn.onnx").read_bytes() != same["ready"]
    assert not Path("progress.npz").exists()
    kinds = [node.op_type for node in onnx.load("deployed.onnx").graph.node]
    assert "BatchNormalization" not in kinds
