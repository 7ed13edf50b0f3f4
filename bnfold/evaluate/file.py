"""Opens a model file without keeping its large tensors in memory.

They become external data of the model's own file. Where they lie in it is found by looking for their
bytes, one after the other: so this needs to know nothing of the format, and cannot be wrong about it.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no stubs
from onnx import ModelProto, TensorProto

from .outcome import EvaluationError, in_a_line

_LARGE = 1 << 16
# Between two large tensors lie a name, a shape, and small tensors: no more than that is searched.
_BETWEEN = 1 << 20
_BEGINNING = 64


def read(path: Path) -> ModelProto:
    """The model of a file; large tensors of its main graph stay there.

    Raises:
        EvaluationError: It cannot be read, or is no model.
    """
    model = ModelProto()
    try:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        ):
            with memoryview(mapped) as view:
                model.ParseFromString(view)
            # onnx reads no external data through links.
            if path.is_symlink() or path.stat().st_nlink > 1 or not _leave_outside(model, mapped, path.name):
                return model
    except (OSError, ValueError, DecodeError) as error:
        raise EvaluationError(f"{path} cannot be read as a model: {in_a_line(error)}") from error
    # A message gives its memory back only as a whole.
    lean: ModelProto = ModelProto.FromString(model.SerializeToString())
    return lean


def _leave_outside(model: ModelProto, mapped: mmap.mmap, name: str) -> bool:
    """Make the large tensors external data of the file of this name; says whether there were any."""
    end, found = 0, False
    for tensor in model.graph.initializer:
        if not tensor.HasField("raw_data") or len(data := tensor.raw_data) < _LARGE:
            continue
        begin = _find(data, mapped, end)
        if begin < 0:
            continue
        end, found = begin + len(data), True
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", begin), ("length", len(data))):
            tensor.external_data.add(key=key, value=str(value))
    return found


def _find(data: bytes, mapped: mmap.mmap, start: int) -> int:
    """Where these bytes lie, not far behind `start`; -1 if they do not."""
    window, begin = mapped[start : start + _BETWEEN + _BEGINNING], 0
    while (begin := window.find(data[:_BEGINNING], begin)) >= 0:
        if mapped[start + begin : start + begin + len(data)] == data:
            return start + begin
        begin += 1
    return -1
