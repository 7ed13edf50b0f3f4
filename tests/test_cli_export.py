"""`bnfold export`, and PyTorch models in `optimize` and `inspect`, as a user meets them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result

from bnfold.cli import main

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "fixtures" / "digits.onnx"
GIVEN = "x:float32[N,3,8,8]"

NETS = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x):
        return self.bn(self.conv(x))

def small(width=4):
    print("building")
    torch.manual_seed(0)
    net = Small(width)
    net.bn.running_mean.normal_()
    return net

class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x + 1
        return x

class Doubtful(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x * 2)

class Narrow(nn.Module):
    def forward(self, x):
        if x.dtype is torch.float64:
            raise TypeError("no doubles")
        return x * 0.3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules in it, where the command runs."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object) -> Result:
    """A command, in this process."""
    return CliRunner(env={"COLUMNS": "100"}).invoke(main, [str(a) for a in arguments])


def small(*arguments: object, factory: str = "small", command: str = "export") -> Result:
    made = ("--model", f"nets:{factory}", "--pythonpath", "code", "--input", GIVEN)
    return run(command, *made, *arguments)


def onnx_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.onnx"))


class TestExport:
    def test_a_factory(self, here: Path) -> None:
        result = small()
        assert result.exit_code == 0, result.output
        assert onnx_files(here) == ["small.onnx"]
        (node,) = onnx.load("small.onnx").graph.node
        assert (node.op_type, node.name) == ("Conv", "conv")
        for told in (
            "nets:small: 1 of 1 BatchNormalization folded",
            "inputs: x: float32[N, 3, 8, 8]",
            "outputs: output: float32[N, 4, 6, 6]",
            "ONNX opset: 20",
            "- 3 of 3 modules were in training mode; exported in evaluation mode",
            "Verified: 1 output differs from the module in PyTorch in double precision by",
            "onnxruntime computes both alike",
            "Written to small.onnx.",
        ):
            assert told in result.stdout
        assert "building" not in result.stdout and "building" in result.stderr

    def test_weights_for_a_factory(self, here: Path) -> None:
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, bias=False), torch.nn.BatchNorm2d(6))
        names = {"0": "module.conv", "1": "module.bn"}
        state = {names[k[0]] + k[1:]: v for k, v in net.state_dict().items()}
        torch.save({"model": state}, "best.pth")
        result = run(
            "export", "best.pth", "--model", "nets:small", "--model-args", '{"width": 6}',
            "--state-key", "model", "--pythonpath", "code", "--input", GIVEN, "--opset", "19",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert onnx_files(here) == ["best.onnx"]
        assert "outputs: output: float32[N, 6, 6, 6]" in result.stdout and "ONNX opset: 19" in result.stdout

    def test_a_program(self, here: Path) -> None:
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6)).eval()
        torch.export.save(torch.export.export(net, (torch.randn(2, 3, 8, 8),)), "net.pt2")
        result = run("export", "net.pt2", "-q")
        assert (result.exit_code, result.output) == (0, "")
        assert onnx_files(here) == ["net.onnx"]
        assert run("optimize", "net.pt2", "-q").exit_code == 0
        assert onnx_files(here) == ["net.folded.onnx", "net.onnx"]

    def test_no_fold(self, here: Path) -> None:
        result = small("--no-fold")
        assert (
            "nets:small: exported; nothing was folded, as asked; it has 1 BatchNormalization" in result.stdout
        )
        assert [node.op_type for node in onnx.load("small.onnx").graph.node] == ["Conv", "BatchNormalization"]

    def test_to_the_standard_output(self, here: Path) -> None:
        command = [sys.executable, "-m", "bnfold", "export", "--model", "nets:small", "--pythonpath", "code"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command += ["--input", GIVEN, "-o", "-"]
        done = subprocess.run(command, capture_output=True, check=True, env=environment)
        assert [node.op_type for node in onnx.load_from_string(done.stdout).graph.node] == ["Conv"]
        assert b"Written to standard output." in done.stderr
        assert onnx_files(here) == []

    def test_dry_run(self, here: Path) -> None:
        assert "Nothing was written: this was a dry run." in small("--dry-run").stdout
        assert onnx_files(here) == []


class TestReports:
    def test_json(self, here: Path) -> None:
        found = json.loads(small("--json", "--dry-run").stdout)
        assert found["schema_version"] == 1
        assert (found["source"], found["target"], found["batchnorms"]) == ("nets:small", None, 0)
        assert found["module"]["verdict"] == "pass" and found["module"]["precision"] == "double"
        assert found["verification"]["verdict"] == "pass"
        assert found["fold"]["decisions"][0]["nodes"] == ["bn"] and "formulas" not in found["fold"]

    def test_json_without_a_fold(self, here: Path) -> None:
        assert json.loads(small("--json", "--dry-run", "--no-fold").stdout)["fold"] is None

    def test_undecided(self, here: Path) -> None:
        result = small("--json", factory="Doubtful")
        assert result.exit_code == 3
        assert "could not be decided" in result.stderr
        assert json.loads(result.stdout)["module"]["verdict"] == "undecided"
        assert onnx_files(here) == []

    def test_what_the_module_was_compared_in(self, here: Path) -> None:
        result = small("--dry-run", factory="Narrow")
        assert result.exit_code == 0, result.output
        told = "in its own precision (it does not run in double precision (TypeError: no doubles)) by"
        text = " ".join(result.stdout.split())
        assert told in text and "(64 is accepted" in text

    def test_inspect(self, here: Path) -> None:
        result = small(command="inspect")
        assert result.exit_code == 0, result.output
        assert "nets:small: 1 BatchNormalization with 16 parameters" in result.stdout
        assert onnx_files(here) == []

    def test_optimize(self, here: Path) -> None:
        result = small("-v", command="optimize")
        assert result.exit_code == 0, result.output
        assert "pulled  bn (BatchNormalization) into conv" in result.stdout
        assert "onnxruntime" not in result.stdout, "its default is --verify fast"
        assert onnx_files(here) == ["small.folded.onnx"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["export"], 2, "Missing argument 'MODEL'; see `bnfold export --help`"),
            (
                ["export", "model.onnx"],
                2,
                "model.onnx is an ONNX model already; `bnfold optimize` takes those",
            ),
            (["export", "no.pt2"], 2, "no.pt2: there is no such file"),
            (
                ["optimize", DIGITS, "--input", GIVEN],
                2,
                f"--input is for PyTorch models, and {DIGITS} is none",
            ),
            (["inspect", DIGITS, "--torchscript"], 2, "--torchscript is for PyTorch models"),
            (["optimize", "a.pt2", "--freeze-initializers"], 2, "--freeze-initializers is for ONNX models"),
            (["export", "--model", "nets:small", "--model-args", "{"], 2, "'{' is no JSON"),
            (["export", "--model", "nets:small", "--model-args", "3"], 2, "neither an object nor a list"),
        ],
    )
    def test_usage(self, arguments: list[object], code: int, message: str, here: Path) -> None:
        result = run(*arguments)
        assert result.exit_code == code and message in result.stderr
        assert len(result.stderr.splitlines()) == 1 and result.stdout == ""

    @pytest.mark.parametrize(
        ("factory", "given", "message"),
        [
            (
                "small",
                [],
                "what it is called with has to be told; its forward(x) takes x; for example --input x:",
            ),
            ("small", ["x:float[1]"], "the dtype 'float' is not known"),
            ("small", ["x:float32"], "not of the form NAME:DTYPE[SIZE,...]"),
            ("small", [GIVEN, "y:float32[1]"], "has no parameter 'y'"),
            ("small", ["x:float32[N,4,8,8]"], "in 'conv' (Conv2d), at "),
            ("Branching", [GIVEN], "nets.py:23: `if x.sum() > 0:`"),
        ],
    )
    def test_one_line(self, factory: str, given: list[str], message: str, here: Path) -> None:
        inputs = [word for text in given for word in ("--input", text)]
        result = run("export", "--model", f"nets:{factory}", "--pythonpath", "code", *inputs)
        assert result.exit_code == 2, result.output
        (line,) = [line for line in result.stderr.splitlines() if line != "building"]
        assert line.startswith("error: ") and message in line
        assert onnx_files(here) == []

    def test_a_traceback_when_asked_for(self, here: Path) -> None:
        assert "Traceback" not in small(factory="Branching").stderr
        assert "Traceback" in small("-vv", factory="Branching").stderr

    def test_a_target_that_is_there(self, here: Path) -> None:
        (here / "small.onnx").write_bytes(b"mine")
        result = small()
        assert result.exit_code == 2
        assert result.stderr == "error: small.onnx: exists already; choose another name, or pass --force\n"
        assert small("--force", "--verify", "none").exit_code == 0

    @pytest.mark.parametrize("source", [".", ""])
    def test_no_file(self, here: Path, source: str) -> None:
        result = run("export", source)
        assert result.exit_code == 2 and "names no file" in result.stderr

    def test_an_empty_target(self, here: Path) -> None:
        result = small("-o", "")
        assert result.exit_code == 2 and "target is empty" in result.stderr
        assert not onnx_files(here)

    @pytest.mark.parametrize("size", ["99999999999", "99999999999999999999"])
    def test_sizes_beyond_memory(self, here: Path, size: str) -> None:
        given = f"x:float32[{size},3,999]"
        result = run("export", "--model", "nets:small", "--pythonpath", "code", "--input", given)
        assert result.exit_code == 2 and "does not fit into memory" in result.stderr
