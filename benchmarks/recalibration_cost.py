"""What recalibration costs: time against one plain inference pass over the same images, memory, and disk."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
import onnxruntime
import residual
import torch
from footprint import Footprint
from numpy.typing import NDArray
from section import Section
from table import table
from torch import nn

import bnfold

F32 = NDArray[np.float32]
Key = TypeVar("Key")

SIZES = (4, 8, 16, 32, 64, 128)
"""Of the batches of a plain pass."""
MICRO_BATCH = 32
"""That of bnfold."""
TIMES_BAR = 4.0
GROWTH_BAR = 0.05
"""As a share; so much it differs from run to run."""
FACTOR = 4

TIME = """\
Wall time, median of {runs}, of {images:,} images. A plain pass has its model loaded; it is in batches of
{sizes} (the fastest is `best`), or of {micro_batch}, which is what a recalibration takes. That is a
whole call: processes are started, and files read and written."""

MEMORY = """\
Largest resident memory of a whole `bnfold.recalibrate`: of the process that reads data, and of the one that
runs onnxruntime. The images are made while they are read. `disk` is the most that temporary files took."""


def seconds(count: int, runs: int) -> Section:
    """Of everything, on so many images; and of what the bar is about, with as many channels as are usual."""
    sizes = ", ".join(map(str, SIZES))
    legend = TIME.format(runs=runs, images=count, sizes=sizes, micro_batch=MICRO_BATCH)
    thin, caches = residual.trained(), ("ram", "disk", "none")
    wide = residual.network(width=4).eval()
    parts, missed = [legend], []
    for title, model, name, tried, bar in (
        ("16 to 64 channels", thin, "residual", caches, False),
        ("64 to 256 channels, untrained", wide, "residual_wide", caches[:1], True),
    ):
        shown, over = _timed(model, residual.exported(model, name), count, runs, tried)
        parts += [f"### {title}", shown]
        missed += over if bar else []
    return Section("Time", "\n\n".join(parts), missed)


def _timed(
    model: nn.Module, path: Path, count: int, runs: int, caches: Sequence[str]
) -> tuple[str, list[str]]:
    """A table, and what is above the bar."""
    images = residual.varied(residual.calibration_images()[0], count)
    found = _medians(
        {
            **{("onnxruntime", size): partial(plain_onnx, path, images, size) for size in SIZES},
            ("onnxruntime", "off"): partial(plain_onnx, path, images, MICRO_BATCH, optimized=False),
            **{("bnfold", c): partial(onnx_seconds, path, images, c) for c in caches},
            **{("torch", size): partial(plain_torch, model, images, size) for size in SIZES},
            **{("module", c): partial(module_seconds, model, images, c) for c in caches if c != "disk"},
        },
        runs,
    )
    rows, missed = [], []
    for engine, ours in (("onnxruntime", "bnfold"), ("torch", "module")):
        best = min(SIZES, key=lambda size: found[engine, size])
        plain = {f"{engine}, best: {best}": found[engine, best], engine: found[engine, MICRO_BATCH]}
        if engine == "onnxruntime":
            plain["onnxruntime, optimizations disabled"] = found[engine, "off"]
        done = {f"{_CALLS[ours]}, {cache}": s for (name, cache), s in found.items() if name == ours}
        base = [*plain.values()]
        rows += [_row(name, s, base) for name, s in (plain | done).items()]
        times = found[ours, "ram"] / base[0]
        if times > TIMES_BAR:
            missed.append(f"{_CALLS[ours]}, cache in memory: {times:.1f} plain passes, not {TIMES_BAR:g}")
    header = ("", "seconds", "best passes", f"passes of {MICRO_BATCH}", "passes, no optimizations")
    return table(header, rows), missed


_CALLS = {"bnfold": "bnfold.recalibrate", "module": "bnfold.recalibrate_module"}


def _row(name: str, found: float, base: Sequence[float]) -> list[str]:
    return [name, f"{found:.2f}", *(f"{found / b:.1f}" for b in base), *[""] * (3 - len(base))]


def plain_onnx(path: Path, images: F32, size: int, *, optimized: bool = True) -> float:
    """Seconds of a plain pass in onnxruntime, otherwise at its default settings."""
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    session.run(None, {source.name: images[:size]})
    start = time.perf_counter()
    for first in range(0, len(images), size):
        session.run(None, {source.name: images[first : first + size]})
    return time.perf_counter() - start


def plain_torch(model: nn.Module, images: F32, size: int) -> float:
    """The same of a module in evaluation mode."""
    batches = torch.from_numpy(images).split(size)
    with torch.inference_mode():
        model(batches[0])
        start = time.perf_counter()
        for batch in batches:
            model(batch)
        return time.perf_counter() - start


def onnx_seconds(path: Path, images: F32, cache: str) -> float:
    """Of `bnfold.recalibrate`."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        bnfold.recalibrate(path, Path(folder, "result.onnx"), data=[images], cache=cache)  # type: ignore[arg-type]
        return time.perf_counter() - start


def module_seconds(model: nn.Module, images: F32, cache: str) -> float:
    """Of `bnfold.recalibrate_module`."""
    made, batches = copy.deepcopy(model), torch.from_numpy(images).split(MICRO_BATCH)
    start = time.perf_counter()
    bnfold.recalibrate_module(made, batches, cache=cache)  # type: ignore[arg-type]
    return time.perf_counter() - start


def _medians(measures: Mapping[Key, Callable[[], float]], runs: int) -> dict[Key, float]:
    """In rounds, so that a busy minute of the machine meets all alike."""
    rounds = [{key: measure() for key, measure in measures.items()} for _ in range(runs)]
    return {key: median(one[key] for one in rounds) for key in measures}


def memory(count: int) -> Section:
    """For so many images, and for four times as many."""
    path = residual.exported(residual.trained())
    rows, missed = [], []
    for cache in ("none", "disk", "ram"):
        small, large = (footprint(path, n, cache) for n in (count, FACTOR * count))
        for n, (peak, held) in zip((count, FACTOR * count), (small, large), strict=True):
            cells = [f"{b / 1e6:.0f}" for b in (peak.reader, peak.runtime, held)]
            rows.append([f"{cache}, {n:,} images", *cells])
        growth = large[0].total / small[0].total - 1
        if cache == "none" and growth > GROWTH_BAR:
            missed.append(f"--cache none: {growth:.0%} more memory for {FACTOR} times as many images")
    header = ("cache", "reader MB", "onnxruntime MB", "disk MB")
    return Section("Memory", f"{MEMORY}\n\n{table(header, rows)}", missed)


def footprint(path: Path, count: int, cache: str) -> tuple[Footprint, int]:
    """Peaks of memory, and of the size of the temporary folder in bytes."""
    script = str(Path(__file__).with_name("footprint.py"))
    with tempfile.TemporaryDirectory() as folder:
        started = subprocess.Popen(
            [sys.executable, script, str(path), str(count), cache],
            env=os.environ | {"TMPDIR": folder},
            stdout=subprocess.PIPE,
            text=True,
        )
        held = 0
        while started.poll() is None:
            held = max(held, sum(_sizes(folder)))
            time.sleep(0.02)
        output, _ = started.communicate()
    if started.returncode:
        raise SystemExit(f"{script} has failed with {cache}")
    return Footprint(**json.loads(output)), held


def _sizes(folder: str) -> Iterator[int]:
    """Of the files in it, which come and go meanwhile."""
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                yield os.stat(os.path.join(parent, name)).st_size
