"""What goes over a pipe between two processes: a JSON header, then the bytes of the arrays it announces."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Message = tuple[dict[str, Any], dict[str, Array]]  # header and arrays


def send(stream: IO[bytes], header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write a message."""
    plain = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    announced = [[name, value.dtype.str, value.shape] for name, value in plain.items()]
    text = json.dumps({**header, "arrays": announced}).encode()
    stream.write(len(text).to_bytes(8, "little") + text)
    for value in plain.values():
        stream.write(value.reshape(-1).view(np.uint8).data)
    stream.flush()


def receive(stream: IO[bytes]) -> Message:
    """Read one.

    Raises:
        EOFError: The other end is closed.
    """
    length = int.from_bytes(_read(stream, 8).tobytes(), "little")
    header: dict[str, Any] = json.loads(_read(stream, length).tobytes())
    arrays = {}
    for name, code, shape in header["arrays"]:
        dtype = np.dtype(code)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        arrays[name] = _read(stream, size).view(dtype).reshape(shape)
    return header, arrays


def _read(stream: IO[bytes], size: int) -> NDArray[np.uint8]:
    buffer = np.empty(size, np.uint8)
    done = 0
    while done < size:
        got = stream.readinto(buffer[done:].data)  # type: ignore[attr-defined]  # IO lacks it, pipes have it
        if not got:
            raise EOFError
        done += got
    return buffer


def one_line(text: str) -> str:
    """A message of onnxruntime without its head and its line breaks."""
    short = re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", " ".join(text.split()))
    return short if len(short) <= 400 else short[:397] + "..."
