"""PyTorch's files are told from others without PyTorch."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bnfold.kinds import is_torch

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("m.pt2", None, True),
        ("m.PTH", None, True),
        ("m.safetensors", None, True),
        ("m.onnx", None, False),
        ("-", None, False),
        ("m.onnx", b"\x08\x0a\x12\x07pytorch", False),
        ("m.bin", b"PK\x03\x04rest", True),
        ("m.bin", b"\x80\x02\x8a\x0al\xfc", True),
        ("m.bin", (8).to_bytes(8, "little") + b'{"a":{}}', True),
        ("m.bin", (9).to_bytes(8, "little") + b'{"a":{}}', False),
        # A graph of 2 MB, whose first node has 123 bytes: a brace
        ("m.onnx", bytes.fromhex("08093aa2a290010a7b") + bytes(100), False),
        ("m.bin", b"", False),
        ("m.bin", b"\x80 text", False),
    ],
)
def test_by_content_or_suffix(name: str, content: bytes | None, expected: bool, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
        name = str(tmp_path / name)
    assert is_torch(name) is expected


def test_what_torch_writes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    for zipped in (True, False):
        file = io.BytesIO()
        torch.save({"w": torch.zeros(2)}, file, _use_new_zipfile_serialization=zipped)
        (tmp_path / "weights").write_bytes(file.getvalue())
        assert is_torch(str(tmp_path / "weights"))


def test_folders_and_pipes_are_left_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert not is_torch(str(tmp_path / "pipe"))  # opening it would wait for a writer
    assert not is_torch(str(tmp_path))


def test_without_torch() -> None:
    """Every way in says what to install; names alone cost nothing."""
    code = """
import sys
sys.modules["torch"] = None
import bnfold
from bnfold import *
for name in ("export", "inspect_module", "load_torch", "fold_module"):
    try:
        getattr(bnfold, name)("x")
    except bnfold.InputError as error:
        print(error)
from bnfold.cli import main
main(["export", "model.pt2"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    told = "PyTorch models need PyTorch, which is not installed; pip install 'bnfold[torch]'"
    assert done.stdout.splitlines() == [told] * 4
    assert (done.returncode, done.stderr) == (2, f"error: {told}\n")
