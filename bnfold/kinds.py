"""Whether a file is PyTorch's, seen without PyTorch: by its first bytes, else by its suffix."""

from __future__ import annotations

import os
from contextlib import suppress

_SUFFIXES = (".pt", ".pt2", ".pth", ".ckpt", ".safetensors")
# ZIP archives, pickles of protocol 2 to 5; a safetensors file is a length and then JSON.
_ZIP, _PICKLE, _OPEN_BRACE = b"PK\x03\x04", b"\x80", 8


def is_torch(path: str) -> bool:
    """Whether a source is to be opened with PyTorch. What is neither here nor called so is not."""
    head = b""
    if os.path.isfile(path):  # from a pipe, what is read is gone
        with suppress(OSError), open(path, "rb") as file:
            head = file.read(_OPEN_BRACE + 1)
    begins_so = head.startswith(_ZIP) or (head.startswith(_PICKLE) and head[1:2] in b"\2\3\4\5")
    return begins_so or head[_OPEN_BRACE:] == b"{" or path.lower().endswith(_SUFFIXES)
