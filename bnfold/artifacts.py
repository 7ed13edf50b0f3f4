"""What is kept of two models that did not prove equivalent, so that somebody can look at them afterwards.

failure.txt                        what the test said; it marks the folder as one of these
reference.onnx, candidate.onnx     the models, with their data; of a module .pt and .txt
inputs/                            what both were fed
report.html                        or report.md, where what HTML needs is not installed
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .verification import VerifyReport

if TYPE_CHECKING:
    import numpy as np

MARK = "failure.txt"


@dataclass(frozen=True, eq=False)
class Evidence:
    """All that there is to keep.

    Attributes:
        models: The reference and the candidate: files, or modules.
        inputs: A file or folder of feeds, or what modules are called with; None if nothing was fed.
        report: What was found.
        command: What repeats the comparison inside the folder; "" if no command does.
        message: What the test said.
    """

    models: tuple[Any, Any]
    inputs: Any
    report: VerifyReport
    command: str
    message: str


def keep(evidence: Evidence, folder: Path) -> tuple[list[str], str]:
    """Write a folder, or as much of it as can be.

    Returns:
        What could not be kept and why; and why the report is not in HTML, or "".
    """
    lost: list[str] = []
    told: list[str] = []
    with _losing("", lost):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).write_text(evidence.message + "\n", encoding="utf-8")
    if lost:
        return lost, ""
    for name, model in zip(("reference", "candidate"), evidence.models, strict=True):
        with _losing(name, lost):
            _keep_model(model, folder / f"{name}.onnx")
    with _losing("inputs", lost):
        _copy_inputs(evidence.inputs, folder / "inputs")
    with _losing("report", lost):
        told.append(_write_report(evidence, folder))
    return lost, "".join(told)


@contextmanager
def _losing(what: str, lost: list[str]) -> Iterator[None]:
    """Whatever goes wrong with a part, the others are kept: a module and its inputs may raise anything."""
    try:
        yield
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        lost.append(f"{what}: {why}" if what else why)


def discard(folder: Path) -> None:
    """Remove what an earlier run has kept there; another folder is left alone."""
    if (folder / MARK).is_file() and not folder.is_symlink():
        shutil.rmtree(folder)


def write_feed(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write an .npz file; unlike `numpy.savez` with inputs of any name.

    Raises:
        OSError: It cannot be written.
    """
    import numpy as np

    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _keep_model(model: Any, target: Path) -> None:
    if isinstance(model, Path):
        _copy_model(model, target)
    else:
        from .pytorch.equivalent import save_module

        save_module(model, target)


def _copy_model(source: Path, target: Path) -> None:
    from .model import load, save

    try:
        save(load(source), target, force=True)
    except InputError:  # it is stricter than a comparison; data of such a model stay where they are
        shutil.copyfile(source, target)


def _copy_inputs(inputs: Any, folder: Path) -> None:
    if inputs is None:
        return
    if not isinstance(inputs, Path):
        from .pytorch.equivalent import save_inputs

        folder.mkdir(exist_ok=True)
        save_inputs(inputs, folder / "inputs.pt")
    elif inputs.is_dir():
        shutil.copytree(inputs, folder, dirs_exist_ok=True)
    else:
        folder.mkdir(exist_ok=True)
        shutil.copy(inputs, folder)


def _write_report(evidence: Evidence, folder: Path) -> str:
    from .render import written
    from .render.digest import digest
    from .render.surroundings import surroundings

    content = [digest(evidence.report)], surroundings(evidence.command)
    lacking = ""
    try:
        text, suffix = written(".html", *content), ".html"
    except InputError as error:  # what it needs is not installed
        text, suffix, lacking = written(".md", *content), ".md", str(error)
    with open(folder / f"report{suffix}", "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
    return lacking
