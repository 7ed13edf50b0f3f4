"""Whether a file is PyTorch's, seen without PyTorch: by its first bytes, else by its suffix."""

from __future__ import annotations

import os
from contextlib import suppress

_SUFFIXES = (".pt", ".pt2", ".pth", ".ckpt", ".safetensors")
# ZIP archives, pickles of protocol 2 to 5
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def is_torch(path: str) -> bool:
    """Whether a source is to be opened with PyTorch. What is neither here nor called so is not."""
    head, size = b"", 0
    if os.path.isfile(path):  # from a pipe, what is read is gone
        with suppress(OSError), open(path, "rb") as file:
            head, size = file.read(9), os.fstat(file.fileno()).st_size
    begins_so = head.startswith(_ZIP) or (head.startswith(_PICKLE) and head[1:2] in b"\2\3\4\5")
    return begins_so or _is_safetensors(head, size) or path.lower().endswith(_SUFFIXES)


def _is_safetensors(head: bytes, size: int) -> bool:
    """The length of a header that fits into the file, and the header: JSON. In ONNX both may be any bytes."""
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8
