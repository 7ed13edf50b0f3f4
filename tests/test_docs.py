"""What the pages show is what happens: every command line and every example in them is run.

A page begins in a folder that has what it takes for granted (`GIVEN`), and goes through its blocks in order.
A block that begins with the name of a file, as a comment, becomes that file. A line that is not run stands in
`EXCLUDED`, with the reason.
"""

from __future__ import annotations

import configparser
import contextlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import yaml
from click.testing import CliRunner
from graphs import model, norm
from PIL import Image

import bnfold
from bnfold.cli import main

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "models"

# How many lines of output each page states, behind its examples.
PAGES = {
    "README.md": 5,
    "docs/adding-an-operator.md": 0,
    "docs/algebra.md": 6,
    "docs/ci.md": 0,
    "docs/conventions.md": 8,
    "docs/decisions.md": 0,
    "docs/pytorch.md": 4,
    "docs/reasons.md": 0,
    "docs/recalibration.md": 5,
    "docs/reports.md": 2,
    "docs/schema/README.md": 2,
    "docs/testing.md": 2,
    "docs/verification.md": 0,
}
BY_BLOCK = {"README.md"}  # no block needs what another one has left
IN_PLACE = {"docs/adding-an-operator.md"}  # about the project's own files: run there, and quoted from there

# Command lines that are not run, and why.
EXCLUDED = {
    r"make( |$).*": "makes environments; its targets are what developers and CI run",
    r".*pip install .*": "fetches packages",
    r"torchrun .* loaders:batches": "docs/recalibration.md runs two processes",
    r".*tests/mutants\.py .*": "takes half a minute; tests/test_mutants.py plants a fault",
}

# Models made by others: test data beside the project.
LENT = {
    "mesonet.onnx": "real/mesonet__model.onnx",
    "autoencoder.onnx": "real/deeploy__Models_Autoencoder1D_network.onnx",
}
NETS = """from torch import nn
def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
"""
NET = """(float[N,3,H,W] x) => (float[N,4,P,Q] y)
{ c = Conv(x, w)  r = Relu(c)  y = BatchNormalization(r, scale, bias, mean, var) }"""

TEST = """from bnfold.testing import assert_equivalent
def test_models():
    assert_equivalent("digits.onnx", "digits.onnx")
"""

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STATED = re.compile(r'^(?: *print\(.*\)|}"""\))  # (.*)$', re.MULTILINE)
DATA: dict[str, Callable[[str], object]] = {
    "json": json.loads,
    "toml": tomllib.loads,
    "ini": lambda text: configparser.ConfigParser().read_string(text),
    "text": str,
}
TORCHRUN = "-m torch.distributed.run --standalone"  # no port that another test may have taken


@dataclass(frozen=True)
class Block:
    """What stands between two fences of a page."""

    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The command lines in it."""
        if self.language == "sh":
            return list(joined(self.text))
        if self.language == "console":
            return [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]
        if self.language == "yaml":
            scripts = [
                part[key] for part in mappings(yaml.safe_load(self.text)) for key in SCRIPTS & set(part)
            ]
            return [
                line for script in scripts for text in ([script] if isinstance(script, str) else script)
                for line in joined(text)
            ]  # fmt: skip
        if self.language == "groovy":
            return [text for _, text in re.findall(r"\bsh (['\"])(.*)\1$", self.text, re.MULTILINE)]
        return []

    @property
    def shown(self) -> list[str]:
        """What the commands of a console print."""
        return [line for line in self.text.splitlines() if not line.startswith("$ ")]

    @property
    def lent(self) -> set[str]:
        return LENT.keys() & names_in(self.text)


SCRIPTS = {"run", "script", "before_script", "after_script"}


def joined(text: str) -> Iterator[str]:
    """Lines, with those that go on behind a backslash, and without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def mappings(data: Any) -> Iterator[dict[str, Any]]:
    """All mappings in a document."""
    if isinstance(data, dict):
        yield data
    for part in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from mappings(part)


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = [Block(*parts) for parts in FENCED.findall(text)]
    assert len(re.findall(r"^\s*```", text, re.MULTILINE)) == 2 * len(found), (
        "a fence is not closed, or indented"
    )
    return found


def reason(line: str) -> str | None:
    """Why a line is not run; None if it is."""
    return next((why for pattern, why in EXCLUDED.items() if re.fullmatch(pattern, line)), None)


# What pages take for granted


def names_in(text: str) -> set[str]:
    """Words of a block that may be names of files that it reads."""
    code = "\n".join(line.partition("  # ")[0] for line in text.splitlines())
    return set(re.findall(r"(?<!-o )(?<!> )(?<![\w./-])[\w./-]+", code))


def fixture(path: Path) -> None:
    shutil.copy(ROOT / "fixtures" / path.name, path)


def lent(path: Path) -> None:
    shutil.copy(SHARED / LENT[path.name], path)


def net(path: Path) -> None:
    onnx.save(model(NET, w=(4, 3, 3, 3), **norm(4)), path)


def folded_net(path: Path) -> None:
    net(path)
    bnfold.optimize(path, path, force=True, verify="none")


def arrays(path: Path) -> None:
    np.savez(path, x=np.random.default_rng(0).standard_normal((256, 3, 8, 8), np.float32))


def folder_of_arrays(path: Path) -> None:
    path.mkdir()
    np.save(path / "0.npy", np.ones((8, 3, 8, 8), np.float32))


def folder_of_images(path: Path) -> None:
    path.mkdir()
    draw = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(draw.integers(0, 256, (240, 240, 3), np.uint8)).save(path / f"{number}.png")


def nets(path: Path) -> None:
    module = path.with_name("nets.py")
    if not module.exists():  # unless the page has one of its own
        module.write_text(NETS, encoding="utf-8")


def built(path: Path) -> Any:
    nets(path)
    return importlib.import_module("nets").build()


def some_test(path: Path) -> None:
    fixture(path.with_name("digits.onnx"))
    path.with_name("test_models.py").write_text(TEST, encoding="utf-8")


def weights(path: Path) -> None:
    from safetensors.torch import save_file

    save_file(built(path).state_dict(), path)


def program(path: Path) -> None:
    import torch

    torch.export.save(torch.export.export(built(path).eval(), (torch.ones(2, 3, 8, 8),)), path)


GIVEN: dict[str, Callable[[Path], None]] = {
    "digits.onnx": fixture,
    "digits.npz": fixture,
    "fixtures/digits.onnx": fixture,
    "fixtures/digits.npz": fixture,
    "model.onnx": net,
    "other.onnx": folded_net,
    "model.folded.onnx": folded_net,
    "samples.npz": arrays,
    "data/": folder_of_arrays,
    "images/": folder_of_images,
    "nets": nets,
    "pytest": some_test,
    "weights.safetensors": weights,
    "program.pt2": program,
    **dict.fromkeys(LENT, lent),
}


# Running


class Page:
    """A page that is gone through, in the current folder.

    Attributes:
        printed: What its examples have printed.
    """

    def __init__(self, name: str, programs: Path) -> None:
        self.name, self._programs = name, programs
        self.printed: list[str] = []
        self._names: dict[str, object] = {}

    def run(self, block: Block) -> None:
        for name in sorted(names_in(block.text) & GIVEN.keys()):
            path = Path(name)
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                GIVEN[name](path)
        if file := re.match(r"# (\w+\.\w+)\n", block.text):
            Path(file[1]).write_text(block.text, encoding="utf-8")
        if block.language == "python":
            self._python(block.text)
        elif block.language == "console":
            assert self._commands(block) == block.shown
        elif block.language in DATA:
            DATA[block.language](block.text)
        else:
            self._commands(block)
            assert block.language in {"sh", "yaml", "groovy"}, f"nobody runs {block.language!r}"

    def _python(self, text: str) -> None:
        if self.name in IN_PLACE:
            for part in re.split(r"\n(?=\(|\.\.\.\n)", text):
                assert any(bare(part).strip("()") in source for source in sources()), part
            return
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(compile(text, self.name, "exec"), self._names)
        printed = stream.getvalue().splitlines()
        left = iter(printed)
        for line in STATED.findall(text):
            assert line in left, f"{line!r} is not printed, or not in this order: {printed}"
        self.printed += printed

    def _commands(self, block: Block) -> list[str]:
        lines = [line for line in block.commands if reason(line) is None]
        return [text for line in lines for text in self._command(line).splitlines()]

    def _command(self, line: str) -> str:
        """What a command line prints; it has to succeed."""
        words = shlex.split(line, comments=True)
        if words[0] == "bnfold" and not re.search(r"[|<>&;$`*?]", line):  # in this process, which is faster
            result = CliRunner(env={"COLUMNS": "80"}).invoke(main, words[1:])
            assert result.exit_code == 0, f"{line}\n{result.output}"
            return result.stdout
        folder = ROOT if self.name in IN_PLACE else Path.cwd()
        line = line.replace(".venv/bin/python", shlex.quote(sys.executable))
        search = f"{self._programs}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=folder,
            env=os.environ | {"PATH": search, "COLUMNS": "80"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout


def bare(code: str) -> str:
    """Code without what a formatter adds."""
    return re.sub(r"\s", "", code).replace(",)", ")").rstrip(",")


def sources() -> Iterator[str]:
    for path in (*(ROOT / "bnfold").glob("*.py"), *(ROOT / "tests").glob("*.py")):
        yield bare(path.read_text(encoding="utf-8"))


@pytest.fixture
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the programs that command lines begin with, all of this Python."""
    folder = tmp_path_factory.mktemp("programs")
    for name, arguments in {
        "python": "",
        "bnfold": "-m bnfold",
        "pytest": "-m pytest",
        "torchrun": TORCHRUN,
    }.items():
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n', encoding="utf-8")
        path.chmod(0o755)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder, from which modules can be imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


def gone_through(page: str, some: Sequence[Block], programs: Path) -> Page:
    gone = Page(page, programs)
    for block in some:
        gone.run(block)
    return gone


def pieces() -> Iterator[Any]:
    """The blocks that are run one after another in one folder; with what is lent by others, by itself."""
    for page in PAGES:
        own = [block for block in blocks(page) if not block.lent]
        for number, piece in enumerate([[block] for block in own] if page in BY_BLOCK else [own]):
            yield pytest.param(page, piece, id=f"{page}-{number}" if page in BY_BLOCK else page)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("page", "piece"), list(pieces()))
def test_a_page_runs(page: str, piece: list[Block], programs: Path) -> None:
    gone = gone_through(page, piece, programs)
    if page in AFTERWARDS:
        AFTERWARDS[page](gone.printed)


LENT_TO = [(page, block) for page in PAGES for block in blocks(page) if block.lent]


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("page", "block"), LENT_TO, ids=[f"{p}-{min(b.lent)}" for p, b in LENT_TO])
def test_models_of_others(page: str, block: Block, programs: Path) -> None:
    for name in block.lent:
        if not (SHARED / LENT[name]).exists():
            pytest.skip(f"{LENT[name]} is not there")
    gone_through(page, [block], programs)


# What is true once a page has been run


def after_pytorch(printed: list[str]) -> None:
    languages = [block.language for block in blocks("docs/pytorch.md")]
    assert languages == ["python", "python", "sh", "python", "python"]
    for name in ("net", "small", "program", "unfolded", "from_python"):
        kinds = [node.op_type for node in onnx.load(f"{name}.onnx").graph.node]
        assert kinds.count("BatchNormalization") == (4 if name == "unfolded" else 0), name


def after_conventions(printed: list[str]) -> None:
    assert len(printed) == PAGES["docs/conventions.md"]


def after_recalibration(printed: list[str]) -> None:
    """However it is run, it comes to the same bytes."""
    assert len(printed) == PAGES["docs/recalibration.md"] + 1
    assert printed[-1].startswith("/")  # the name of a node, and figures
    names = ("ready", "resumed", "shared", "again", "sure")
    same = {name: Path(f"{name}.onnx").read_bytes() for name in names}
    assert [name for name, content in same.items() if content != same["ready"]] == []
    assert Path("drawn.onnx").read_bytes() != same["ready"]
    assert not Path("progress.npz").exists()
    kinds = [node.op_type for node in onnx.load("deployed.onnx").graph.node]
    assert "BatchNormalization" not in kinds


def after_reports(printed: list[str]) -> None:
    told = (ROOT / "docs/reports.md").read_text(encoding="utf-8")
    for name in ("fold", "proof"):
        html = Path(f"reports/{name}.html").read_text(encoding="utf-8")
        titles = re.findall(r"<h2[^>]*>(.*?)</h2>", html)
        assert len(titles) > 3
        assert [title for title in titles if f"\n| {title} |" not in told] == []


def after_testing(printed: list[str]) -> None:
    properties = ElementTree.parse("junit.xml").getroot().iter("property")
    assert ("bnfold_verdict", "pass") in [(p.get("name"), p.get("value")) for p in properties]


AFTERWARDS = {
    "docs/conventions.md": after_conventions,
    "docs/pytorch.md": after_pytorch,
    "docs/recalibration.md": after_recalibration,
    "docs/reports.md": after_reports,
    "docs/testing.md": after_testing,
}


# That nothing is left out


def test_every_page_is_listed() -> None:
    written = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    assert {path.relative_to(ROOT).as_posix() for path in written} == set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8"))
    files = [target for target in targets if "://" not in target]
    assert [file for file in files if not (ROOT / page).parent.joinpath(file).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_what_is_printed_is_stated(page: str) -> None:
    found = [
        line for block in blocks(page) if block.language == "python" for line in STATED.findall(block.text)
    ]
    assert len(found) == PAGES[page]


def test_what_is_excluded_is_there() -> None:
    lines = [line for page in PAGES for block in blocks(page) for line in block.commands]
    assert {
        pattern for pattern in EXCLUDED if not any(re.fullmatch(pattern, line) for line in lines)
    } == set()


def test_what_others_lend_is_used() -> None:
    assert {name for _, block in LENT_TO for name in block.lent} == set(LENT)


def test_configurations_name_what_there_is() -> None:
    """Inputs and outputs of the action, and the hook."""
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    page = (ROOT / "docs/ci.md").read_text(encoding="utf-8")
    documents = [yaml.safe_load(block.text) for block in blocks("docs/ci.md") if block.language == "yaml"]
    uses = [part for part in mappings(documents) if "/bnfold@" in str(part.get("uses"))]
    assert len(uses) == 2
    for step in uses:
        assert {"command"} <= set(step["with"]) <= set(action["inputs"])
    assert set(re.findall(r"steps\.bnfold\.outputs\.(\w+)", page)) <= set(action["outputs"])
    assert all(f"`{name}`" in page for name in (*action["inputs"], *action["outputs"]))
    (repository,) = (part for part in mappings(documents) if "hooks" in part)
    assert [hook["id"] for hook in repository["hooks"]] == [hook["id"] for hook in hooks]
