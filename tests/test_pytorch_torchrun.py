"""`torchrun -m bnfold recalibrate`: the same bits as alone, and one clear end when a process fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import bnfold

DIGITS = Path(__file__).parent.parent / "fixtures" / "digits.onnx"


def images() -> NDArray[Any]:
    data = np.load(DIGITS.with_name("digits.npz"))
    return np.asarray(data["calibration_images"][:71, None], np.float32) / 16


def torchrun(processes: int, folder: Path, data: object, *more: object) -> subprocess.CompletedProcess[str]:
    """The command, with shares of 71 samples that are not equal."""
    (folder / "tmp").mkdir(exist_ok=True)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [
        *launch,
        "-m",
        "bnfold",
        "recalibrate",
        DIGITS,
        "--data",
        data,
        "-o",
        folder / "out.onnx",
        *more,
    ]
    # Without OMP_NUM_THREADS, torchrun writes a warning.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp")}
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the processes said; torchrun adds its own."""
    return re.findall(r"^(?:\[[^\]]*\]:)?error: (.*)$", done.stderr, re.MULTILINE)


@pytest.mark.parametrize("processes", [2, 3])
def test_the_same_bits(processes: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=images())
    bnfold.recalibrate(DIGITS, tmp_path / "alone.onnx", data=tmp_path / "data.npz")
    done = torchrun(processes, tmp_path, tmp_path / "data.npz", "--resume", "journal")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("recalibrated\n") == 1  # the first process speaks, the others do not
    assert f"in {processes} processes" in " ".join(done.stdout.split())
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "alone.onnx").read_bytes()
    assert not (tmp_path / "journal").exists()


def test_fewer_samples_than_processes(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=images()[:1])
    bnfold.recalibrate(DIGITS, tmp_path / "alone.onnx", data=tmp_path / "data.npz")
    assert torchrun(2, tmp_path, tmp_path / "data.npz").returncode == 0
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "alone.onnx").read_bytes()


def test_an_error_in_one_ends_all(tmp_path: Path) -> None:
    bad = images()
    bad[37] = np.inf
    np.savez(tmp_path / "data.npz", image=bad)
    done = torchrun(2, tmp_path, tmp_path / "data.npz")
    assert done.returncode != 0
    told = errors(done)
    assert told and all("rank 1: BatchNormalization '/stem_norm" in line for line in told)
    assert all("sample 37 of the data brings NaN or infinity" in line for line in told)
    assert not (tmp_path / "out.onnx").exists() and not list((tmp_path / "tmp").glob("bnfold-*"))


def test_a_process_that_dies_ends_all(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images())
    (tmp_path / "loaders.py").write_text(
        "import os, numpy\n"
        "reads = 0\n"
        "def batches():\n"
        "    global reads\n"
        "    reads += 1\n"
        "    for part in numpy.split(numpy.load('x.npy'), [10, 20, 30]):\n"
        "        if os.environ['RANK'] == '1' and reads == 4:\n"
        "            os._exit(9)\n"
        "        yield {'image': part}\n"
    )
    start = time.monotonic()
    done = torchrun(2, tmp_path, "loaders:batches", "--cache", "none")
    assert done.returncode != 0
    assert time.monotonic() - start < 60
    assert not (tmp_path / "out.onnx").exists()
    told = errors(done)
    assert not told or "another of the 2 processes has ended" in told[0]


def test_processes_that_do_not_work_on_the_same(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images())
    (tmp_path / "start.py").write_text(
        "import os, bnfold\n"
        f"bnfold.recalibrate({str(DIGITS)!r}, 'out.onnx', data='x.npy', limit=5 + int(os.environ['RANK']))\n"
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "start.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and not (tmp_path / "out.onnx").exists()
    assert "the processes do not have the same model, options" in done.stderr
