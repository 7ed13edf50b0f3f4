"""Whether recalibrated statistics are those of what comes in, and the same bits however the data come."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import process
import residual
import torch
from numpy.typing import NDArray
from recalibrators import by_bnfold, peers
from section import Section
from selfconsistency import Gap, of_module, of_onnx, stored_in_module, stored_in_onnx
from table import table

import bnfold

F32 = NDArray[np.float32]

BATCHES = (1, 2, 8, 32, 128)
IMAGES = 251  # a prime, so that the last batch and one of the shards are always shorter
TIMEOUT = 300.0
KILLED_AFTER = 9  # of 19 levels in ONNX, of 21 layers in PyTorch

ONNX, ONEPASS, MODULE = "bnfold, ONNX", "bnfold --method onepass", "bnfold, PyTorch"

LEGEND = f"""\
{IMAGES} images. A cell is the largest |Δμ|/√(σ²+ε) and the largest |Δlog(σ²+ε)| of all channels of all 21
layers: between what the finished network stores and what comes in, in a plain pass. What is made in PyTorch
is measured in PyTorch, ONNX in onnxruntime. update_bn stores the sample variance, as training does: n/(n - 1)
times as much, n being the values per channel in a batch: at least 64 for each image."""


@dataclass(frozen=True)
class Result:
    """What a recalibration left.

    Attributes:
        gap: None where it was not measured.
        bits: Of all statistics, layer by layer.
    """

    gap: Gap | None
    bits: bytes


def exactness() -> Section:
    """Of all tools."""
    images = residual.calibration_images()[0][:IMAGES]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = _Bench(images, folder)
        rows, ours = bench.gaps()
        same = bench.variations(ours)
    missed = [
        f"{tool}: batches of {size}: {result.gap.used:.2g} times what rounding explains"
        for tool, results in ours.items()
        for size, result in zip(BATCHES, results, strict=True)
        if result.gap is not None and result.gap.used > 1
    ]
    missed += [f"{tool}: {how}: other bits" for how, cells in same for tool, ok in cells.items() if not ok]
    used = max(r.gap.used for results in ours.values() for r in results if r.gap is not None)
    limit = f"Of max(1e-6, 4u·|μ|/√(σ²+ε)), bnfold uses {used:.0%} at most."
    bits = [[how, *("same bits" if ok else "OTHER BITS" for ok in cells.values())] for how, cells in same]
    left_out = "" if "fvcore update_bn_stats" in peers() else "\nfvcore is not installed, and left out."
    text = [
        LEGEND + left_out,
        table(["calibrated in batches of", *map(str, BATCHES)], rows),
        limit,
        table(["compared with batches of 1", ONNX, MODULE], bits),
    ]
    return Section("Exactness", "\n\n".join(text), missed)


class _Bench:
    """The trained network in both forms, and the images."""

    def __init__(self, images: F32, folder: Path) -> None:
        self.model = residual.trained()
        self.path = residual.exported(self.model)
        self.images = images
        self.folder = folder

    def gaps(self) -> tuple[list[list[str]], dict[str, list[Result]]]:
        """The rows of the table, and the results of the exact ones."""
        before = of_module(self.model, self.images)
        rows = [["as trained", *[before.show()] * len(BATCHES)]]
        for name, recalibrator in peers().items():
            made = [recalibrator(self.model, self.tensors(size)) for size in BATCHES]
            rows.append([name, *(of_module(model, self.images).show() for model in made)])
        onepass = [self.onnx(self.arrays(size), "onepass") for size in BATCHES]
        ours = {
            ONNX: [self.onnx(self.arrays(size)) for size in BATCHES],
            MODULE: [self.module(self.tensors(size)) for size in BATCHES],
        }
        for name, results in {ONEPASS: onepass, **ours}.items():
            rows.append([name, *(result.gap.show() for result in results if result.gap)])
        return rows, ours

    def variations(self, ours: dict[str, list[Result]]) -> list[tuple[str, dict[str, bool]]]:
        """What must not change a bit, and whether it does, by tool."""
        expected = {tool: results[0].bits for tool, results in ours.items()}
        found: list[tuple[str, dict[str, bytes]]] = [
            (f"batches of {size}", {tool: results[i].bits for tool, results in ours.items()})
            for i, size in enumerate(BATCHES)
            if i
        ]
        order = np.random.default_rng(0).permutation(IMAGES)
        shuffled = self.images[order]
        onnx = self.onnx([*np.split(shuffled, [7, 40, 170])]).bits
        module = self.module(torch.from_numpy(shuffled).split([7, 33, 130, 81])).bits
        found.append(("in another order", {ONNX: onnx, MODULE: module}))
        found += [(f"{count} processes", self.processes(count)) for count in (2, 3)]
        found.append(("killed half-way, then resumed", self.resumed()))
        return [(how, {tool: bits == expected[tool] for tool, bits in cells.items()}) for how, cells in found]

    def arrays(self, size: int) -> list[F32]:
        return [tensor.numpy() for tensor in self.tensors(size)]

    def tensors(self, size: int) -> list[torch.Tensor]:
        return [*torch.from_numpy(self.images).split(size)]

    def onnx(self, batches: Sequence[F32], method: str = "exact") -> Result:
        target = self.folder / "result.onnx"
        bnfold.recalibrate(self.path, target, data=batches, method=method, force=True)  # type: ignore[arg-type]
        return Result(of_onnx(target, self.images), _onnx_bits(target))

    def module(self, batches: Sequence[torch.Tensor]) -> Result:
        model = by_bnfold(self.model, batches)
        return Result(of_module(model, self.images), _module_bits(model))

    def processes(self, count: int) -> dict[str, bytes]:
        """By torchrun; 2 and 3 are no divisors of the number of images, so shards are unequal."""
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        onnx, module = self._jobs()
        _run([*start, "-m", *onnx.command(f"{count}")[2:]])
        _run([*start, *module.command(f"{count}")[1:]])
        return {ONNX: onnx.bits(f"{count}"), MODULE: module.bits(f"{count}")}

    def resumed(self) -> dict[str, bytes]:
        """By a process that goes on where another one was killed."""
        bits: dict[str, bytes] = {}
        for tool, job in zip((ONNX, MODULE), self._jobs(), strict=True):
            journal = self.folder / f"journal{len(bits)}"
            command = [*job.command("resumed"), "--resume", str(journal)]
            _kill(command, journal, self.folder)
            _run(command)
            bits[tool] = job.bits("resumed")
        return bits

    def _jobs(self) -> Iterator[_Job]:
        data = self.folder / "images.npy"
        np.save(data, self.images)
        script = str(Path(__file__).with_name("recalibrated_module.py"))
        start = [
            sys.executable,
            "-m",
            "bnfold",
            "recalibrate",
            str(self.path),
            "--data",
            str(data),
            "-q",
            "-o",
        ]
        yield _Job(start, self.folder / "onnx", ".onnx", _onnx_bits)
        yield _Job([sys.executable, script, str(data)], self.folder / "module", ".npz", _archive_bits)


@dataclass(frozen=True)
class _Job:
    """A recalibration in processes of their own.

    Attributes:
        start: Its command, up to where the result goes.
        target: That, without
        suffix: its suffix.
        read: The bits in it.
    """

    start: list[str]
    target: Path
    suffix: str
    read: Callable[[Path], bytes]

    def command(self, name: str) -> list[str]:
        return [*self.start, str(self._path(name))]

    def bits(self, name: str) -> bytes:
        return self.read(self._path(name))

    def _path(self, name: str) -> Path:
        return self.target.with_name(f"{self.target.name}-{name}{self.suffix}")


def _onnx_bits(path: Path) -> bytes:
    return b"".join(layer.bits for layer in stored_in_onnx(path).values())


def _module_bits(model: torch.nn.Module) -> bytes:
    return b"".join(layer.bits for layer in stored_in_module(model).values())


def _archive_bits(path: Path) -> bytes:
    with np.load(path) as file:
        return b"".join(file[name].tobytes() for name in file.files)


def _run(command: list[str]) -> None:
    done = process.run(command, cwd=Path.cwd(), timeout=TIMEOUT)
    if done.failure:
        raise SystemExit(f"{' '.join(command)}: {done.failure}")


def _kill(command: list[str], journal: Path, folder: Path) -> None:
    """Start it, and end it without warning when it has written its journal some times."""
    # What it cannot clean up any more shall be in a folder that is.
    started = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(folder)})
    seen: set[tuple[int, int]] = set()
    try:
        while len(seen) < KILLED_AFTER:
            if started.poll() is not None:
                raise SystemExit(f"{' '.join(command)}: ended before it could be killed")
            if journal.exists():
                status = journal.stat()
                seen.add((status.st_ino, status.st_mtime_ns))
            time.sleep(0.001)
    finally:
        started.kill()
        started.wait()
    if not journal.exists():
        raise SystemExit(f"{' '.join(command)}: was done before it could be killed")
