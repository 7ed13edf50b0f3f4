"""What is left of BatchNormalization in networks that people deploy, exported from PyTorch, and is it right?

The exit code is 1 when a bar is missed: `bnfold.export` leaves what its algebra has to leave and nothing
else, no more than anyone else, and it and `fold_module` are right everywhere.

    python benchmarks/architectures.py --only "ResNet-18,LeViT (transformers)" --jobs 1
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import against_torch
import exported
import process
from exported import DEFAULT, EXPORTED, MODULE, OURS, PLAIN, TRUTH, UNFOLDED
from options import several_of
from table import table
from tools import TOOLS, Role, Tool
from truth import TOLERANCE
from zoo import ARCHITECTURES, Architecture

PEERS = tuple(tool for tool in TOOLS if tool.role in (Role.PYTHON, Role.RUNTIME))
EXPORTER = "onnx.export"
OWN = (EXPORTED, MODULE, EXPORTER)
"""What starts from PyTorch. Others start from one of two files."""

START = {PLAIN: "torch's file", UNFOLDED: "bnfold's file"}
PACKAGES = ("torch", "torchvision", "timm", "segmentation-models-pytorch", "monai", "transformers")

LEGEND = f"""\
`BN`: how many BatchNormalizations the network computes. `ratio`: the largest that bnfold.export has measured,
of the algebra gate or against the module in double precision; 4 would fail. `s`: its seconds, verification
included. The columns after that tell how many are left: by bnfold.export and fold_module, by torch's exporter
with its own folds; then by others, twice: in what torch exports without its folds, / in what bnfold exports
with --no-fold. A result is compared with the module in double precision, run by onnxruntime with
optimizations disabled; the module's own distance is the unit, and WRONG is more than {TOLERANCE:g} of it.
`invalid`: onnxruntime does not run it; `fails`, `crash`, `late`: no result; `-`: nothing to start from,
because onnxruntime does not run that either."""


@dataclass(frozen=True)
class Cell:
    """What one tool has made of a network.

    Attributes:
        left: The BatchNormalizations left; None without a result.
        gap: How far it is from the truth, in units; None where it could not be run.
        word: What is shown where there is no result that runs.
        failure: Why, in the tool's or the runtime's words.
    """

    left: int | None = None
    gap: float | None = None
    word: str = ""
    failure: str = ""

    @property
    def right(self) -> bool:
        return self.gap is not None and self.gap <= TOLERANCE

    def __str__(self) -> str:
        return self.word or f"{'' if self.right else 'WRONG '}{self.left}"


@dataclass(frozen=True)
class Row:
    """All that was measured of a network.

    Attributes:
        network: The network.
        before: Its BatchNormalizations.
        ours: What `exported.Exported` holds; empty without a result.
        module: What `exported.Module` holds; empty without a result.
        cells: By tool, and for those that start from a file, by (tool, file).
    """

    network: Architecture
    before: int
    ours: dict[str, Any] = field(default_factory=dict)
    module: dict[str, Any] = field(default_factory=dict)
    cells: dict[str | tuple[str, str], Cell] = field(default_factory=dict)

    def show(self) -> list[str]:
        figures = [f"{self.ours['ratio']:.2f}", f"{self.ours['seconds']:.1f}"] if self.ours else ["-", "-"]
        numbers = [str(self.before), str(self.network.stays), *figures]
        own = [str(self.cells[name]) for name in OWN]
        others = [" / ".join(str(self.cells[peer.name, start]) for start in START) for peer in PEERS]
        return [self.network.name, self.network.kind, *numbers, *own, *others]


def main() -> int:
    options = _options()
    networks = [network for network in ARCHITECTURES if network.name in options.only]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(partial(measure, Path(folder), options.timeout), networks))
    print(f"{', '.join(f'{name} {metadata.version(name)}' for name in PACKAGES)}\n\n{LEGEND}\n")
    header = ["network", "of interest", "BN", "stays", "ratio", "s", *OWN, *(peer.name for peer in PEERS)]
    print(table(header, [row.show() for row in rows]))
    print(f"\nAll {len(rows)}; one without a right result counts as if nothing was folded:\n")
    left = f"BN left of {sum(row.before for row in rows)}"
    print(
        table(["tool", left, "no result", "invalid or wrong"], [_total(name, rows) for name in rows[0].cells])
    )
    print()
    print("\n".join(_remarks(rows)))
    missed = list(_missed(rows))
    print("\n## Bars\n")
    print("\n".join(f"- {line}" for line in missed) or "- all met")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    names = [network.name for network in ARCHITECTURES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", type=several_of(names), default=names, help="networks, by name")
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time (%(default)s)")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one run (%(default)s)")
    return parser.parse_args()


def measure(scratch: Path, timeout: float, network: Architecture) -> Row:
    """Export one network by all tools, and judge the results."""
    print(network.name, file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        command = [sys.executable, exported.__file__, network.name, name]
        child = process.run(command, cwd=folder, timeout=timeout)
        parts: dict[str, Any] = {}
        for line in child.output.splitlines():
            parts.update(json.loads(line))
        if not isinstance(parts.get("before"), int):
            raise SystemExit(f"{network.name} could not be made: {parts.get('before', child.failure)}")
        judge = partial(_judged, folder / TRUTH, timeout=timeout)
        cells: dict[str | tuple[str, str], Cell] = {
            EXPORTED: judge(folder / OURS, _complaint(parts, EXPORTED, child)),
            MODULE: _module(parts, child),
            EXPORTER: judge(folder / DEFAULT, _complaint(parts, DEFAULT, child)),
        }
        for start in START:
            itself = judge(folder / start, _complaint(parts, start, child))
            for peer in PEERS:
                cells[peer.name, start] = _peer(peer, folder / start, itself, timeout)
    ours, module = (parts[part] if isinstance(parts.get(part), dict) else {} for part in (EXPORTED, MODULE))
    return Row(network, parts["before"], ours, module, cells)


def _complaint(parts: dict[str, Any], part: str, child: process.Run) -> str:
    """Why a part of the child's work is missing; "" when it is there."""
    if part not in parts:
        return child.failure or "no result"
    return parts[part] if isinstance(parts[part], str) else ""


def _module(parts: dict[str, Any], child: process.Run) -> Cell:
    if complaint := _complaint(parts, MODULE, child):
        return Cell(word="fails", failure=complaint)
    return Cell(parts[MODULE]["left"], parts[MODULE]["gap"])


def _peer(peer: Tool, source: Path, itself: Cell, timeout: float) -> Cell:
    """What a peer makes of a file, whose own cell is given."""
    if not itself.right:
        return Cell(word="-", failure=itself.failure)
    target = source.parent / peer.name / "result.onnx"
    done = peer.run(source, target, timeout=timeout)
    if done.failure:
        word = "late" if done.timed_out else "crash" if done.crashed else "fails"
        return Cell(word=word, failure=done.failure)
    return _judged(source.parent / TRUTH, target, timeout=timeout)


def _judged(truth: Path, model: Path, complaint: str = "", *, timeout: float) -> Cell:
    if complaint:
        return Cell(word="fails", failure=complaint)
    count, gap, failure = against_torch.judged(truth, model, timeout=timeout)
    left = None if count is None else count.batchnorms
    return Cell(left, gap, "invalid" if gap is None else "", failure)


def _total(name: str | tuple[str, str], rows: Sequence[Row]) -> list[str]:
    cells = [(row.cells[name], row.before) for row in rows]
    left = sum(cell.left if cell.right and cell.left is not None else before for cell, before in cells)
    missing = sum(cell.word in ("fails", "crash", "late", "-") for cell, _ in cells)
    return [_called(name), str(left), str(missing), str(sum(not cell.right for cell, _ in cells) - missing)]


def _called(name: str | tuple[str, str]) -> str:
    return name if isinstance(name, str) else f"{name[0]}, {START[name[1]]}"


def _remarks(rows: Sequence[Row]) -> Iterator[str]:
    """Why bnfold leaves what it leaves, and why there is no result."""
    for row in rows:
        for part, stays in ((EXPORTED, row.ours.get("stays")), (MODULE, row.module.get("stays"))):
            if stays:
                reasons = ", ".join(f"{many} {code}" for code, many in sorted(stays.items()))
                yield f"- {row.network.name}, {part}: {reasons}. {row.network.why}".rstrip()
        for name, cell in row.cells.items():
            if cell.failure:
                yield f"- {row.network.name}, {_called(name)}: {_last_words(cell.failure)}"


def _last_words(failure: str) -> str:
    """The end of a complaint, which is of the matter; the runtime's begin with names of its own."""
    return failure if len(failure) <= 200 else f"... {failure[-200:]}"


def _missed(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        rivals = [cell for name, cell in row.cells.items() if name not in (EXPORTED, MODULE)]
        best = min((cell.left for cell in rivals if cell.right and cell.left is not None), default=row.before)
        for part in (EXPORTED, MODULE):
            cell = row.cells[part]
            if not cell.right or cell.left is None:
                yield f"{row.network.name}: {part} has no right result ({cell})"
        exported = row.cells[EXPORTED].left  # the others export as well
        if exported is not None and exported > min(best, row.network.stays):
            yield f"{row.network.name}: {EXPORTED} leaves {exported}, not {min(best, row.network.stays)}"


if __name__ == "__main__":
    sys.exit(main())
