"""action.yml, run as GitHub runs it: its steps in bash, with the files and variables of a runner."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import yaml
from graphs import model, norm

ROOT = Path(__file__).parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
KEPT = ("HOME", "PATH", "SSL_CERT_FILE", "TMPDIR", *(name for name in os.environ if name.startswith("PIP_")))
EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)

FOLDS = """(float[N,3,H,W] x) => (float[N,4,P,Q] y)
{ c = Conv(x, w)  n = BatchNormalization(c, scale, bias, mean, var)  y = Relu(n) }"""
STAYS = "(float[N,4,H,W] x) => (float[N,4,H,W] y) { y = BatchNormalization(x, scale, bias, mean, var) }"
NAN = "(float[4] x) => (float[4] y) { z = Sub(x, x)  y = Div(z, z) }"
HOSTILE = "-a $(touch ran) `touch ran` ##[error] ::error::b.onnx"


@dataclass(frozen=True)
class Run:
    """What became of one use of the action."""

    exit_code: int
    outputs: Mapping[str, str]
    log: str
    summary: str

    @property
    def annotations(self) -> list[str]:
        """The commands that the runner obeys: not those between a stop and its end."""
        found, stopped = [], ""
        for line in self.log.splitlines():
            command = re.match(r"\s*::([\w-]+)(?: .*?)?::(.*)", line) or re.search(
                r"##\[([\w-]+)[^]]*\](.*)", line
            )
            if stopped:
                stopped = "" if line.strip() == f"::{stopped}::" else stopped
            elif command and command[1] == "stop-commands":
                stopped = command[2]
            elif command:
                found.append(line)
        return found


class Runner:
    """A runner: one checkout, one folder for temporary files, and any number of uses of the action."""

    def __init__(self, folder: Path) -> None:
        self.workspace, self.temporary = folder / "my workspace", folder / "its temp"
        self.workspace.mkdir()
        self.temporary.mkdir()
        self.installed: dict[tuple[str, ...], dict[str, str]] = {}

    def use(self, **given: str) -> Run:
        """What `uses:` does with these inputs."""
        declared = ACTION["inputs"]
        assert set(given) <= set(declared), "GitHub warns, and ignores them"
        inputs = {name: given.get(name, declared[name].get("default", "")) for name in declared}
        steps: dict[str, dict[str, str]] = {}
        log, summary, code = "", self.temporary / "summary", 0
        summary.write_text("", encoding="utf-8")
        for step in ACTION["runs"]["steps"]:
            assert set(step) == {"id", "shell", "env", "run"} and step["shell"] == "bash"
            given_to = {name: evaluated(value, inputs, steps) for name, value in step["env"].items()}
            before = (step["id"], *given_to.values())
            if before in self.installed:  # ten seconds each time
                steps[step["id"]] = self.installed[before]
                continue
            code, text, output = self._run(evaluated(step["run"], inputs, steps), given_to, summary)
            log, steps[step["id"]] = log + text, output
            if code:
                break
            if step["id"] == "install":
                self.installed[before] = output
        outputs = {
            name: evaluated(output["value"], inputs, steps) for name, output in ACTION["outputs"].items()
        }
        return Run(code, outputs, log, summary.read_text(encoding="utf-8"))

    def _run(self, text: str, given: Mapping[str, str], summary: Path) -> tuple[int, str, dict[str, str]]:
        """A step: its exit code, what it says, and its outputs."""
        script, output = self.temporary / "script.sh", self.temporary / "output"
        script.write_text(text, encoding="utf-8")
        output.write_text("", encoding="utf-8")
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.workspace,
            env={
                **{name: os.environ[name] for name in KEPT if name in os.environ},
                "GITHUB_ACTIONS": "true",
                "GITHUB_ACTION_PATH": str(ROOT),
                "GITHUB_OUTPUT": str(output),
                "GITHUB_STEP_SUMMARY": str(summary),
                "GITHUB_WORKSPACE": str(self.workspace),
                "PIP_CONSTRAINT": str(ROOT / "constraints.txt"),
                "RUNNER_OS": "Linux",
                "RUNNER_TEMP": str(self.temporary),
                **given,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="surrogateescape",
        )
        lines = output.read_text(encoding="utf-8").splitlines()
        return done.returncode, done.stdout, dict(line.split("=", 1) for line in lines)


def evaluated(text: str, inputs: Mapping[str, str], steps: Mapping[str, Mapping[str, str]]) -> str:
    """With each `${{ }}` replaced. Of GitHub's expressions, these are all that the action uses."""

    def term(expression: str) -> str:
        if literal := re.fullmatch(r"'([^']*)'", expression):
            return literal[1]
        if of_input := re.fullmatch(r"inputs\.(\w+)", expression):
            return inputs[of_input[1]]
        of_step = re.fullmatch(r"steps\.(\w+)\.outputs\.(\w+)", expression)
        assert of_step, f"not known here: {expression}"
        assert of_step[1] in {step["id"] for step in ACTION["runs"]["steps"]}
        return steps.get(of_step[1], {}).get(of_step[2], "")

    def first(match: re.Match[str]) -> str:
        return next(filter(None, (term(part.strip()) for part in match[1].split("||"))), "")

    return EXPRESSION.sub(first, text)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    runner = Runner(tmp_path_factory.mktemp("runner"))
    for name, proto in {
        "model.onnx": model(FOLDS, w=(4, 3, 3, 3), **norm(4)),
        "other.onnx": model(FOLDS, w=np.ones((4, 3, 3, 3), np.float32), **norm(4)),
        "nan.onnx": model(NAN),
        "kept/a.onnx": model(STAYS, **norm(4)),
        "kept/deep down/b.onnx": model(STAYS, **norm(4)),
        HOSTILE: model(FOLDS, w=(4, 3, 3, 3), **norm(4)),
        "kept/no model.txt": None,
    }.items():
        path = runner.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if proto is not None:
            onnx.save(proto, path)
    for module in ("venv", "numpy", "bnfold", "glob"):  # nobody's but the workspace's
        (runner.workspace / f"{module}.py").write_text(
            "raise SystemExit('the wrong one')\n", encoding="utf-8"
        )
    return runner


class TestMetadata:
    def test_an_input_reaches_a_script_through_its_environment_only(self) -> None:
        for step in ACTION["runs"]["steps"]:
            assert not EXPRESSION.search(step["run"])

    def test_what_github_wants(self) -> None:
        assert {"name", "description", "inputs", "outputs", "runs"} <= set(ACTION)
        assert ACTION["runs"]["using"] == "composite"
        for entry in (*ACTION["inputs"].values(), *ACTION["outputs"].values()):
            assert entry["description"]
        assert all(i.get("required") or "default" in i for i in ACTION["inputs"].values())

    def test_a_shell_without_comforts_reads_it(self) -> None:
        """No `mapfile` and no bare empty list under -u: macOS has bash 3.2."""
        text = "".join(step["run"] for step in ACTION["runs"]["steps"])
        assert not re.search(r"\b(mapfile|readarray|declare -A|globstar)\b", text)
        assert text.count("set -euo pipefail") == len(ACTION["runs"]["steps"])


@pytest.mark.slow
class TestRuns:
    """The first installs bnfold, as the action does: some ten seconds and more."""

    def test_pass(self, runner: Runner) -> None:
        done = runner.use(command="verify", reference="model.onnx", candidate="model.onnx")
        assert done.exit_code == 0, done.log
        assert done.outputs["verdict"] == "pass"
        report = Path(done.outputs["report"])
        assert report.parent.parent == runner.temporary and report.name == "report.html"
        assert "<html" in report.read_text(encoding="utf-8")
        assert json.loads(report.with_suffix(".json").read_text(encoding="utf-8"))["verdict"] == "pass"
        assert ElementTree.parse(report.with_suffix(".xml")).getroot().tag == "testsuites"
        assert "model.onnx" in done.summary and "pass" in done.summary.lower()
        assert [a for a in done.annotations if a.startswith(("::error", "::warning"))] == []

    def test_fail(self, runner: Runner) -> None:
        done = runner.use(command="verify", reference="model.onnx", candidate="other.onnx")
        assert (done.exit_code, done.outputs["verdict"]) == (1, "fail"), done.log
        assert Path(done.outputs["report"]).exists()
        (annotation,) = done.annotations
        assert annotation.startswith("::error file=other.onnx,")
        assert "fail" in done.summary.lower()

    def test_undecided(self, runner: Runner) -> None:
        done = runner.use(
            command="verify",
            reference="nan.onnx",
            candidate="nan.onnx",
            args="--outputs-only\r\n\n--seed\n3\n",
        )
        assert (done.exit_code, done.outputs["verdict"]) == (3, "undecided"), done.log
        assert len(done.annotations) == 1
        stored = Path(done.outputs["report"]).with_suffix(".json").read_text(encoding="utf-8")
        assert json.loads(stored)["seed"] == 3

    @pytest.mark.parametrize(
        ("candidate", "code", "verdict"),
        [("model.onnx", 2, "pass"), ("other.onnx", 1, "fail"), ("absent.onnx", 2, "error")],
    )
    def test_a_report_that_cannot_be_written(
        self, runner: Runner, candidate: str, code: int, verdict: str
    ) -> None:
        done = runner.use(
            command="verify", reference="model.onnx", candidate=candidate, report="model.onnx/below"
        )
        assert (done.exit_code, done.outputs) == (code, {"verdict": verdict, "report": ""}), done.log
        assert "cannot be written" in done.log

    def test_each_use_has_a_report_of_its_own(self, runner: Runner) -> None:
        first = runner.use(command="verify", reference="model.onnx", candidate="model.onnx")
        second = runner.use(command="inspect", models="kept/a.onnx", args="--json\n--format\njson")
        assert (first.exit_code, second.exit_code) == (0, 2)
        third = runner.use(command="inspect", models="kept/a.onnx", args="--format\njson")
        assert third.exit_code == 0 and len(third.annotations) == 1
        assert "bnfold verify" in Path(first.outputs["report"]).read_text(encoding="utf-8")
        assert "bnfold inspect" in Path(third.outputs["report"]).read_text(encoding="utf-8")

    def test_inspect(self, runner: Runner) -> None:
        done = runner.use(command="inspect", models="kept/**/*.onnx\n\n", report="out put")
        assert (done.exit_code, done.outputs["verdict"]) == (0, "pass"), done.log
        assert done.outputs["report"] == "out put/report.html"
        found = json.loads((runner.workspace / "out put" / "report.json").read_text(encoding="utf-8"))
        assert [m["source"] for m in found] == ["kept/a.onnx", "kept/deep down/b.onnx"]

    def test_foldable(self, runner: Runner) -> None:
        done = runner.use(command="inspect", models="model.onnx\nkept/a.onnx")
        assert (done.exit_code, done.outputs["verdict"]) == (1, "fail"), done.log
        assert [a.partition(",")[0] for a in done.annotations if a.startswith("::error")] == [
            "::error file=model.onnx"
        ]

    def test_names_that_are_commands_elsewhere(self, runner: Runner) -> None:
        done = runner.use(command="inspect", models=HOSTILE)
        assert (done.exit_code, done.outputs["verdict"]) == (1, "fail"), done.log
        assert len(done.annotations) == 1 and done.annotations[0].startswith("::error file=")
        again = runner.use(command="verify", reference=HOSTILE, candidate=HOSTILE)
        assert (again.exit_code, again.outputs["verdict"]) == (0, "pass"), again.log
        assert not (runner.workspace / "ran").exists()

    def test_a_name_in_an_error_is_no_command(self, runner: Runner) -> None:
        done = runner.use(command="inspect", models="##[stop-commands]a\n::add-mask::b\nc##[error]d")
        assert (done.exit_code, done.outputs["verdict"]) == (2, "error"), done.log
        assert [a.startswith("::error title=bnfold") for a in done.annotations] == [True] * 3
        with_usage = runner.use(command="inspect", models="model.onnx", args="--##[error]")
        (annotation,) = with_usage.annotations
        assert annotation.startswith("::error title=bnfold") and "--##[error]" in annotation
        assert "No such option" in with_usage.summary

    @pytest.mark.parametrize(
        ("given", "why"),
        [
            ({"command": "verify", "reference": "model.onnx", "candidate": "absent.onnx"}, "absent.onnx"),
            ({"command": "inspect", "models": "absent/*.onnx"}, "absent/*.onnx"),
            ({"command": "inspect", "models": "kept/no model.txt"}, "no model.txt"),
            ({"command": "inspect", "models": "model.onnx", "args": "--colour"}, "--colour"),
        ],
    )
    def test_what_cannot_be_used(self, runner: Runner, given: dict[str, str], why: str) -> None:
        done = runner.use(**given)
        assert (done.exit_code, done.outputs["verdict"]) == (2, "error"), done.log
        assert why in done.log

    @pytest.mark.parametrize(
        ("given", "why"),
        [
            ({"command": "verify", "reference": "model.onnx"}, "'reference' and 'candidate'"),
            ({"command": "inspect"}, "needs 'models'"),
            ({"command": "; touch ran"}, "neither verify nor inspect"),
            (
                {"command": "inspect", "models": "model.onnx", "report": "a\nverdict=pass"},
                "more than one line",
            ),
        ],
    )
    def test_inputs_that_say_nothing(self, runner: Runner, given: dict[str, str], why: str) -> None:
        done = runner.use(**given)
        assert (done.exit_code, done.outputs) == (2, {"verdict": "error", "report": ""})
        (annotation,) = done.annotations
        assert annotation.startswith("::error") and why in annotation

    def test_what_cannot_be_installed_is_an_error(self, runner: Runner) -> None:
        done = runner.use(command="inspect", models="kept/a.onnx", version="0.0.0.dev999")
        assert done.exit_code != 0
        assert done.outputs == {"verdict": "error", "report": ""}
        assert "bnfold==0.0.0.dev999" in done.log.replace("[report]", "")

    def test_another_python(self, runner: Runner) -> None:
        assert runner.use(command="inspect", python="no such python").outputs["verdict"] == "error"
        done = runner.use(command="inspect", models="kept/a.onnx", python=sys.executable)
        assert done.outputs["verdict"] == "pass", done.log


LOG = """::stop-commands::t1
::error::no
 ##[error]no
::t1::
 ::warning file=a::yes
plain ::error::text
and ##[notice]yes
"""


def test_the_runner_obeys_no_stopped_command() -> None:
    assert Run(0, {}, LOG, "").annotations == [" ::warning file=a::yes", "and ##[notice]yes"]
