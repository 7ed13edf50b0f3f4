"""Memory that is a file is given back, and nothing else is."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import model, norm
from onnx import numpy_helper

import bnfold
from bnfold.pages import let_go

STATUS = Path("/proc/self/status")
MB = 1 << 20

needs_status = pytest.mark.skipif(
    not STATUS.exists() or "RssFile" not in STATUS.read_text(), reason="the system does not tell its pages"
)


def resident() -> int:
    """Bytes of mapped files in memory."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) << 10


@pytest.fixture
def mapped(tmp_path: Path) -> mmap.mmap:
    path = tmp_path / "numbers"
    np.arange(8 * MB, dtype=np.float32).tofile(path)
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


@needs_status
@pytest.mark.parametrize("view", [False, True])
def test_pages_are_given_back_and_come_again(mapped: mmap.mmap, view: bool) -> None:
    array = np.frombuffer(memoryview(mapped)[4 : 16 * MB + 4] if view else mapped, np.float32).reshape(4, -1)
    before = resident()
    total = array.sum(dtype=np.float64)
    grown = resident() - before
    assert grown > array.nbytes // 2
    let_go(array[1:])
    assert resident() - before < grown // 2
    assert array.sum(dtype=np.float64) == total


def test_what_was_written_to_a_private_mapping_stays(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    np.zeros(MB, np.float32).tofile(path)
    array = np.memmap(path, np.float32, "c")
    array[:] = 1
    let_go(array)
    assert array.min() == 1


@pytest.mark.parametrize("count", [0, 1, MB])
def test_what_is_no_file_is_left_alone(count: int) -> None:
    array = np.ones(count, np.float32)
    let_go(array)
    let_go(array[::2])
    assert array.sum() == count


# Not what getrusage says: that begins with the peak of the process that starts this one.
PEAK = """
import sys
from bnfold.cli import main
try:
    main(["optimize", sys.argv[1], "-o", sys.argv[2], "-q", "--no-verify"])
except SystemExit as end:
    assert not end.code
(line,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(line.split()[1]) >> 10)
"""


def convolutions(path: Path, length: int) -> None:
    """Each of 4 MB, in a file beside the model, with a BatchNormalization behind it."""
    nodes = " ".join(
        f"c{i} = Conv({f'n{i - 1}' if i else 'x'}, w{i}) "
        f"n{i} = BatchNormalization(c{i}, scale, bias, mean, var)"
        for i in range(length)
    )
    text = f"(float[N,1024,8,8] x) => (float[N,1024,8,8] n{length - 1}) {{ {nodes} }}"
    weights: dict[str, Any] = {f"w{i}": (1024, 1024, 1, 1) for i in range(length)}
    proto = model(text, **weights, **norm(1024))
    onnx.save(proto, path, save_as_external_data=True, location=f"{path.name}.data")


@needs_status
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_weights(tmp_path: Path) -> None:
    """24 weights of 4 MB more may cost a few of them, not 96 MB."""
    peaks = []
    for length in (4, 28):
        path = tmp_path / f"{length}.onnx"
        convolutions(path, length)
        command = [sys.executable, "-c", PEAK, str(path), str(tmp_path / "folded.onnx")]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        (tmp_path / "folded.onnx").unlink()
    assert peaks[1] - peaks[0] < 24, peaks


def test_lazy_weights_are_right(tmp_path: Path) -> None:
    """They are let go of between the check and the rounding, and are read again."""
    convolutions(tmp_path / "m.onnx", 1)
    bnfold.optimize(tmp_path / "m.onnx", tmp_path / "f.onnx", verify="none")
    before, after = (onnx.load(tmp_path / name) for name in ("m.onnx", "f.onnx"))
    stored = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in before.graph.initializer}
    scale = stored["scale"] / np.sqrt(stored["var"] + float(np.float32(1e-5)))
    (weight,) = (numpy_helper.to_array(t) for t in after.graph.initializer if len(t.dims) == 4)
    np.testing.assert_array_equal(weight, (stored["w0"] * scale[:, None, None, None]).astype(np.float32))
