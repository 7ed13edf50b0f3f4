"""The pytest plugin, in sessions of its own: properties, artifacts, and that nobody else is disturbed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ET
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import model
from test_session import crashing
from test_testing import FOREIGN, ORIGINAL, WRONG

from bnfold.testing import assert_equivalent

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent
HEAD = "from bnfold.testing import UndecidedError, assert_equivalent\n"
Properties = dict[str, dict[str, str]]

# Losing digits is a fault of the arithmetic alone: in float64 both are the same.
PLAIN = "(float[N,6] x) => (float[N,4] y) { y = MatMul(x, w) }"
LOSSY = "(float[N,6] x) => (float[N,4] y) { a = MatMul(x, w)  c = Add(a, k)  y = Sub(c, k) }"
PAIRS = {
    "original": ORIGINAL,
    "wrong": WRONG,
    "foreign": FOREIGN,
    "plain": model(PLAIN, w=(6, 4)),
    "lossy": model(LOSSY, w=(6, 4), k=np.float32(1e4)),
    "crashing": crashing(),
}


def save_models(folder: Path) -> None:
    for name, proto in PAIRS.items():
        onnx.save(proto, folder / f"{name}.onnx")
    sound = onnx.ModelProto()
    sound.CopyFrom(PAIRS["crashing"])
    del sound.graph.node[0].output[1:]
    onnx.save(sound, folder / "sound.onnx")


@pytest.fixture(scope="module")
def imported() -> None:
    """All that a comparison imports: a session inside forgets its modules, and some bear only one import."""
    with pytest.raises(AssertionError):
        assert_equivalent(ORIGINAL, WRONG)
    for part in ("artifacts", "render.digest", "render.markdown", "render.surroundings"):
        import_module(f"bnfold.{part}")


@pytest.fixture
def project(imported: None, pytester: pytest.Pytester) -> pytest.Pytester:
    save_models(pytester.path)
    return pytester


def properties(path: Path) -> Properties:
    """Of every test in a JUnit file, by its name."""
    found: Properties = {}
    for case in ET.parse(path).iter("testcase"):
        own = [(str(p.get("name")), str(p.get("value"))) for p in case.iter("property")]
        assert len(dict(own)) == len(own)  # whoever reads it may keep the first or the last
        found[str(case.get("name"))] = dict(own)
    return found


def run(project: pytest.Pytester, text: str, *options: str) -> tuple[pytest.RunResult, Properties]:
    project.makepyfile(test_models=HEAD + text)
    # A session in this process forgets what it imports, and PyTorch bears to be imported only once.
    start = project.runpytest_subprocess if "import torch" in text else project.runpytest_inprocess
    result = start("--junit-xml=junit.xml", "-p", "no:cacheprovider", *options)
    return result, properties(project.path / "junit.xml")


def kept(project: pytest.Pytester, folder: str = "kept") -> list[Path]:
    """The folders of failures, in order."""
    return sorted(mark.parent for mark in (project.path / folder).rglob("failure.txt"))


FAILS = """
def test_fails():
    assert_equivalent("original.onnx", "wrong.onnx")
"""


AGAIN = """
from _pytest.runner import runtestprotocol

def pytest_runtest_protocol(item, nextitem):
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    runtestprotocol(item, nextitem=item, log=False)
    item._initrequest()
    runtestprotocol(item, nextitem=nextitem)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
"""


class TestProperties:
    def test_of_a_pass(self, project: pytest.Pytester) -> None:
        result, found = run(
            project, "def test_it():\n    assert_equivalent('original.onnx', 'original.onnx')\n"
        )
        result.assert_outcomes(passed=1)
        expected = {
            "verdict": "pass",
            "tolerance": "4",
            "tensors": "3",
            "worst_ratio": "0",
            "worst_tensor": "c",
        }
        assert found["test_it"] == {f"bnfold_{name}": value for name, value in expected.items()}
        assert "bnfold" not in "\n".join(line for line in result.outlines if not line.startswith("plugins:"))

    def test_of_a_failure(self, project: pytest.Pytester) -> None:
        result, found = run(project, FAILS)
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(
            [
                ">*assert_equivalent(*",
                "E * AssertionError: the two models are not equivalent",
                "E * First tensor that differs: 'b' (BatchNormalization 'b')*",
                "E * To look further: bnfold verify original.onnx wrong.onnx",
                "E * To keep models, inputs and a report: pytest --bnfold-artifacts DIR*",
            ]
        )
        assert "testing.py" not in result.stdout.str()
        own = found["test_fails"]
        assert (own["bnfold_verdict"], own["bnfold_culprit"]) == ("fail", "b")
        assert own["bnfold_culprit_node"] == "BatchNormalization 'b'"
        assert float(own["bnfold_worst_ratio"]) > 1000
        assert own["bnfold_message"].startswith("'b' (BatchNormalization 'b') differs by")
        assert "bnfold_artifacts" not in own

    def test_calls_phases_and_threads_are_told_apart(self, project: pytest.Pytester) -> None:
        text = """
        import threading, pytest
        @pytest.fixture
        def model():
            assert_equivalent("original.onnx", "original.onnx")
            yield "original.onnx"
            assert_equivalent("plain.onnx", "plain.onnx", tolerance=9)
        def test_all(model):
            thread = threading.Thread(target=assert_equivalent, args=(model, model), kwargs={"tolerance": 7})
            thread.start()
            thread.join()
            with pytest.raises(UndecidedError):
                assert_equivalent("foreign.onnx", "foreign.onnx")
        def test_without():
            pass
        """
        result, found = run(project, re.sub("^ {8}", "", text, flags=re.M))
        result.assert_outcomes(passed=2)
        own = found["test_all"]
        assert [own[f"bnfold_{n}verdict"] for n in ("", "2_", "3_", "4_")] == [
            "pass",
            "pass",
            "undecided",
            "pass",
        ]
        assert [own[f"bnfold_{n}tolerance"] for n in ("", "2_", "3_", "4_")] == ["4", "7", "4", "9"]
        assert found["test_without"] == {}

    def test_an_unusable_model_is_an_error_of_its_own(self, project: pytest.Pytester) -> None:
        result, found = run(project, "def test_it():\n    assert_equivalent('original.onnx', 'none.onnx')\n")
        result.stdout.fnmatch_lines(
            [">*assert_equivalent(*", "E *InputError: none.onnx: there is no such file*"]
        )
        assert "testing.py:" not in result.stdout.str()
        assert found["test_it"] == {"bnfold_verdict": "error"}

    def test_whatever_else_goes_wrong_is_an_error_too(self, project: pytest.Pytester) -> None:
        text = """
class Odd:
    def __fspath__(self):
        raise ValueError("nowhere")
def test_it():
    assert_equivalent("original.onnx", Odd())
"""
        result, found = run(project, text)
        result.stdout.fnmatch_lines(["E *ValueError: nowhere"])
        assert found["test_it"] == {"bnfold_verdict": "error"}

    def test_a_test_that_somebody_else_skips_is_watched_when_it_ends(self, project: pytest.Pytester) -> None:
        """Before anything of ours runs at its set-up; its module's fixture ends with it."""
        hook = "@pytest.hookimpl(tryfirst=True)\ndef pytest_runtest_setup(item):\n"
        project.makeconftest(f"import pytest\n{hook}    if 'skipped' in item.name: pytest.skip('so')\n")
        text = """
import pytest
@pytest.fixture(scope="module", autouse=True)
def models():
    yield
    assert_equivalent("original.onnx", "original.onnx")
def test_one():
    pass
def test_skipped():
    pass
"""
        result, found = run(project, text, "--bnfold-artifacts=kept")
        result.assert_outcomes(passed=1, skipped=1)
        assert found["test_skipped"]["bnfold_verdict"] == "pass"

    def test_properties_of_others_stay(self, project: pytest.Pytester) -> None:
        add = "for item in items: item.user_properties.append(('bnfold_models', 'mine'))"
        again = AGAIN + f"\ndef pytest_collection_modifyitems(items):\n    {add}\n"
        project.makeconftest(again)
        _, found = run(project, FAILS)
        assert found["test_fails"]["bnfold_models"] == "mine"
        assert not any(name.startswith("bnfold_2") for name in found["test_fails"])

    def test_hostile_names_leave_the_file_valid(self, project: pytest.Pytester) -> None:
        name = 'y]]>&<"\x1b\x00\uffff\U0001f600::error::'
        for file in ("original", "wrong"):
            proto = onnx.load(project.path / f"{file}.onnx")
            proto.graph.node[1].output[0] = proto.graph.node[2].input[0] = name
            onnx.save(proto, project.path / f"{file}.onnx")
        result, found = run(project, FAILS, "--bnfold-artifacts=kept")
        result.assert_outcomes(failed=1)
        assert found["test_fails"]["bnfold_culprit"].startswith('y]]>&<"\\x1b\\x00')
        assert "\x1b" not in (kept(project)[0] / "failure.txt").read_text(encoding="utf-8")

    def test_a_crash_of_the_reference_is_a_finding_and_of_the_candidate_a_failure(
        self, project: pytest.Pytester
    ) -> None:
        text = """
def test_finding():
    report = assert_equivalent("crashing.onnx", "sound.onnx")
    assert "crashed" in report.runtime.findings[0]
def test_failure():
    assert_equivalent("sound.onnx", "crashing.onnx")
"""
        result, found = run(project, text)
        result.assert_outcomes(passed=1, failed=1)
        result.stdout.fnmatch_lines(["E *Reason: onnxruntime: 'sound.onnx' can be run*but*crashed*"])
        assert "crashed" in found["test_finding"]["bnfold_findings"]


def repeated(folder: Path) -> int:
    """What the command that a failure names comes to, in its folder."""
    report = re.sub(r"<[^>]*>", "", next(folder.glob("report.*")).read_text(encoding="utf-8"))
    fed = " --inputs inputs" if (folder / "inputs").is_dir() else ""
    command = f"bnfold verify reference.onnx candidate.onnx{fed}"
    assert command in report
    line = [sys.executable, "-m", *shlex.split(command), "--quiet"]
    return subprocess.run(line, cwd=folder, check=False).returncode


class TestArtifacts:
    @pytest.mark.parametrize(
        ("reference", "candidate", "code"),
        [("original", "wrong", 1), ("plain", "lossy", 1), ("foreign", "foreign", 3)],
    )
    def test_what_is_kept_gives_the_verdict_again(
        self, reference: str, candidate: str, code: int, project: pytest.Pytester
    ) -> None:
        text = f"def test_it():\n    assert_equivalent('{reference}.onnx', '{candidate}.onnx')\n"
        result, found = run(project, text, "--bnfold-artifacts=kept")
        result.assert_outcomes(failed=1)
        (folder,) = kept(project)
        assert found["test_it"]["bnfold_artifacts"] == str(folder.relative_to(project.path))
        result.stdout.fnmatch_lines([f"E *Kept in {folder.relative_to(project.path)}; there, bnfold verify*"])
        assert (folder / "failure.txt").read_text(encoding="utf-8").split()[0] in ("the", "undecided:")
        assert repeated(folder) == code
        if candidate == "lossy":  # onnxruntime decided, so its feeds: of one row and of three
            rows = [len(np.load(file)["x"]) for file in sorted((folder / "inputs").iterdir())]
            assert rows == [1, 3]

    def test_nothing_is_kept_of_a_pass_and_what_passes_now_is_gone(self, project: pytest.Pytester) -> None:
        project.makeini("[pytest]\nbnfold_artifacts = kept\n")
        run(project, FAILS)
        (folder,) = kept(project)
        (folder / "old").touch()
        run(project, FAILS)
        assert kept(project) == [folder] and not (folder / "old").exists()
        run(project, FAILS.replace("wrong", "original"))
        assert not folder.exists()

    def test_a_test_that_is_run_again_begins_anew(self, project: pytest.Pytester) -> None:
        """As plugins do it that repeat what failed."""
        project.makeconftest(AGAIN)
        result, found = run(project, FAILS, "--bnfold-artifacts=kept")
        result.assert_outcomes(failed=1)
        assert len(kept(project)) == 1
        assert not any(name.startswith("bnfold_2") for name in found["test_fails"])
        assert not (kept(project)[0] / "2").exists()

    def test_given_inputs_and_models_in_memory(self, project: pytest.Pytester) -> None:
        text = """
import numpy, onnx
def test_it():
    x = {"x": numpy.ones((1, 3, 5, 5), "float32")}
    models = [onnx.load(f"{name}.onnx") for name in ("original", "wrong")]
    try:
        assert_equivalent(*models, inputs=x)
    finally:
        assert_equivalent(models[0], "wrong.onnx", inputs=[x, x])
"""
        run(project, text, "--bnfold-artifacts=kept")
        one, two = kept(project)
        assert two == one / "2"
        assert [len(list((folder / "inputs").iterdir())) for folder in (one, two)] == [1, 2]
        assert repeated(one) == repeated(two) == 1

    def test_external_data_come_along(self, project: pytest.Pytester) -> None:
        proto = onnx.load(project.path / "wrong.onnx")
        onnx.save(proto, project.path / "wrong.onnx", save_as_external_data=True, size_threshold=0)
        run(project, FAILS, "--bnfold-artifacts=kept")
        assert repeated(kept(project)[0]) == 1

    def test_without_what_html_needs_the_report_is_markdown(self, project: pytest.Pytester) -> None:
        project.makeconftest("import sys\nsys.modules['jinja2'] = None\n")
        result, _ = run(project, FAILS, "--bnfold-artifacts=kept")
        (folder,) = kept(project)
        assert (folder / "report.md").is_file() and not (folder / "report.html").exists()
        result.stdout.fnmatch_lines(["E * Kept in *the report is Markdown:*pip install 'bnfold?report?'*"])

    def test_a_folder_that_cannot_be_written_hides_nothing(self, project: pytest.Pytester) -> None:
        (project.path / "kept").touch()
        result, found = run(project, FAILS, "--bnfold-artifacts=kept")
        result.assert_outcomes(failed=1)
        result.stdout.fnmatch_lines(
            [
                "E * the two models are not equivalent",
                "E * Not all could be kept in kept*: *Not a directory*",
            ]
        )
        assert found["test_fails"]["bnfold_verdict"] == "fail"

    def test_a_folder_of_somebody_else_is_left_alone(self, project: pytest.Pytester) -> None:
        run(project, FAILS, "--bnfold-artifacts=kept")
        (folder,) = kept(project)
        (folder / "failure.txt").unlink()
        run(project, FAILS.replace("wrong", "original"), "--bnfold-artifacts=kept")
        assert (folder / "reference.onnx").exists()

    def test_names_of_tests_become_names_of_folders(self, project: pytest.Pytester) -> None:
        text = """
import pytest
@pytest.mark.parametrize("name", ["a/../b", "a_.._b", "ü" * 300, "x" * 300])
def test_it(name):
    assert_equivalent("original.onnx", "wrong.onnx", inputs={"x": 1})
""".replace(', inputs={"x": 1}', "")
        run(project, text, "--bnfold-artifacts=kept")
        folders = kept(project)
        assert len(folders) == 4
        assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,120}", folder.name) for folder in folders)
        assert {folder.parent.name for folder in folders} == {"kept"}

    def test_folders_are_told_as_they_are(self, project: pytest.Pytester) -> None:
        _, found = run(project, FAILS, "--bnfold-artifacts=sub/../../elsewhere")
        (folder,) = (project.path.parent / "elsewhere").iterdir()
        assert found["test_fails"]["bnfold_artifacts"] == str(folder)

    def test_an_empty_folder_turns_it_off(self, project: pytest.Pytester) -> None:
        project.makeini("[pytest]\nbnfold_artifacts = kept\n")
        result, _ = run(project, FAILS, "--bnfold-artifacts=")
        result.stdout.fnmatch_lines(["E * To keep models, inputs and a report: *"])
        assert not (project.path / "kept").exists()

    def test_a_folder_in_the_home(self, project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(project.path / "home"))
        run(project, FAILS, "--bnfold-artifacts=~/kept")
        assert len(kept(project, "home/kept")) == 1

    def test_what_cannot_be_kept_leaves_the_rest(self, project: pytest.Pytester) -> None:
        text = """
import torch
class Odd(torch.nn.Linear):
    def __repr__(self):
        raise ValueError("no words")
    def forward(self, x, f):
        return super().forward(x)
def test_it():
    assert_equivalent(Odd(3, 2), Odd(3, 2), inputs=(torch.ones(1, 3), lambda: 1))
"""
        pytest.importorskip("torch")
        result, found = run(project, text, "--bnfold-artifacts=kept")
        (folder,) = kept(project)
        assert found["test_it"]["bnfold_artifacts"] == str(folder.relative_to(project.path))
        assert "bnfold_culprit_node" not in found["test_it"]
        result.stdout.fnmatch_lines(["E * Not all could be kept in kept*: *no words*inputs*pickle*"])
        assert (folder / "reference.pt").is_file() and list(folder.glob("report.*"))

    def test_modules(self, project: pytest.Pytester) -> None:
        text = """
import torch
def test_it():
    one, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert_equivalent(one, other, inputs=torch.ones(1, 3))
"""
        torch = pytest.importorskip("torch")
        run(project, text, "--bnfold-artifacts=kept")
        (folder,) = kept(project)
        assert torch.load(folder / "reference.pt", weights_only=True).keys() == {"weight", "bias"}
        assert torch.load(folder / "inputs" / "inputs.pt", weights_only=True).shape == (1, 3)
        assert "torch.nn.modules.linear.Linear" in (folder / "candidate.txt").read_text(encoding="utf-8")
        assert list(folder.glob("report.*"))


def test_without_the_plugin_it_is_an_assertion_still(project: pytest.Pytester) -> None:
    result, found = run(project, FAILS, "-p", "no:bnfold")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E * the two models are not equivalent"])
    assert found["test_fails"] == {}


def test_the_help(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess("--help")
    result.stdout.fnmatch_lines(
        ["models that are compared (bnfold):", "  --bnfold-artifacts=DIR*", "  bnfold_artifacts *"]
    )


# From the wheel

SCRATCH = (
    HEAD
    + """
import bnfold, numpy, onnx, pytest, sys
def test_where():
    assert bnfold.__file__.startswith(sys.prefix)
def test_passes():
    assert_equivalent("original.onnx", onnx.load("original.onnx"))
def test_fails():
    assert_equivalent("original.onnx", "wrong.onnx")
def test_undecided():
    assert_equivalent("foreign.onnx", "foreign.onnx")
def test_crashes_already():
    assert_equivalent("crashing.onnx", "sound.onnx")
def test_crashes_now():
    assert_equivalent("sound.onnx", "crashing.onnx")
def test_unusable():
    assert_equivalent("original.onnx", "none.onnx")
"""
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has bnfold from its wheel, and all else from here."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip"]
    build = ["wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *build], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = folder.glob("bnfold-*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)], check=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    # a path, so that the editable installation that is named in a .pth file there does not count
    (Path(own) / "rest.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["-n", "2"]])
def test_a_project_that_has_the_wheel(options: list[str], installed: Path, tmp_path: Path) -> None:
    save_models(tmp_path)
    (tmp_path / "test_models.py").write_text(SCRATCH, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\nbnfold_artifacts = kept\n")
    command = [str(installed), "-m", "pytest", "-p", "no:hypothesispytest", "--junit-xml=junit.xml", *options]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stdout + result.stderr
    cases = {str(case.get("name")): case for case in ET.parse(tmp_path / "junit.xml").iter("testcase")}
    failures = {name: [str(f.get("message")) for f in case.iter("failure")] for name, case in cases.items()}
    said = {name: messages[0].splitlines()[0] for name, messages in failures.items() if messages}
    assert said == {
        "test_fails": "AssertionError: the two models are not equivalent",
        "test_undecided": "bnfold.testing.UndecidedError: undecided: nothing could be compared, or not all "
        "of it",
        "test_crashes_now": "AssertionError: the two models are not equivalent",
        "test_unusable": "bnfold.errors.InputError: none.onnx: there is no such file; a comparison reads "
        "files, no streams",
    }
    found = properties(tmp_path / "junit.xml")
    assert {name: own.get("bnfold_verdict") for name, own in found.items()} == {
        "test_where": None,
        "test_passes": "pass",
        "test_fails": "fail",
        "test_undecided": "undecided",
        "test_crashes_already": "pass",
        "test_crashes_now": "fail",
        "test_unusable": "error",
    }
    assert "crashed" in found["test_crashes_already"]["bnfold_findings"]
    assert "crashed" in found["test_crashes_now"]["bnfold_message"]
    folders = {name: own["bnfold_artifacts"] for name, own in found.items() if "bnfold_artifacts" in own}
    assert folders.keys() == {"test_fails", "test_undecided", "test_crashes_now"}
    assert all(folder.startswith("kept/") and (tmp_path / folder).is_dir() for folder in folders.values())
    assert repeated(tmp_path / folders["test_fails"]) == 1
