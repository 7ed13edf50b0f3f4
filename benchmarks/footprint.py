"""Recalibrates the network of `residual.py` in a process of its own, and prints the memory that this took.

python benchmarks/footprint.py model.onnx 1024 none
"""

from __future__ import annotations

import json
import re
import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import bnfold

BATCH = 64


@dataclass(frozen=True)
class Footprint:
    """Largest resident memory in bytes, of the process that reads data and of the one for onnxruntime."""

    reader: int
    runtime: int

    @property
    def total(self) -> int:
        return self.reader + self.runtime


class Stream:
    """So many images (n, 1, 32, 32), made while they are read, so that they take no memory themselves."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        random = np.random.default_rng(0)
        for start in range(0, self.count, BATCH):
            rows = min(BATCH, self.count - start)
            yield random.random((rows, 1, 32, 32), np.float32)


def peaks() -> Footprint:
    """So far. (Linux)

    `getrusage` would tell of this process what its parent had when it started it; VmHWM is its own.
    """
    own = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert own is not None
    return Footprint(int(own[1]) * 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


def main() -> None:
    model, count, cache = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "result.onnx")
        bnfold.recalibrate(model, target, data=Stream(int(count)), cache=cache)  # type: ignore[arg-type]
    print(json.dumps(asdict(peaks())))


if __name__ == "__main__":
    main()
