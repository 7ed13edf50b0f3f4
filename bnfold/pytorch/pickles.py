"""The classes and functions that a pickle names, read off its opcodes: nothing is imported or called.

For messages. Whether a pickle is harmless is not decided here, but by torch's own `weights_only`
loading, which refuses what it does not know.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from typing import BinaryIO

from .archive import LEGACY_MAGIC

# What a state dict is made of: `weights_only` knows these.
_TENSORS = re.compile(
    r"torch\._utils\._rebuild_\w+|torch\.\w*Storage|torch\.storage\.\w+|torch\._tensor\._rebuild_\w+"
    r"|torch\.(Tensor|Size|device|dtype|bfloat16|serialization\._get_layout|nn\.parameter\.\w+)"
    r"|torch\.(float|int|uint|complex|bool)\w*|torch\.utils\._\w+"
    r"|collections\.(OrderedDict|defaultdict|Counter)|_codecs\.encode"
    r"|(builtins|__builtin__)\.(bytearray|complex|frozenset|set)"
)
_LEGACY_PICKLES = 5  # magic number, protocol, system, the object, the keys of its storages
_STRINGS = {
    "UNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "SHORT_BINUNICODE",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
}


def strangers(path: str) -> tuple[str, ...]:
    """What a file of torch.save names besides tensors and plain containers, each once, in order."""
    return _strangers(open(path, "rb"))


def strangers_in(data: bytes) -> tuple[str, ...]:
    """The same for a file held in memory."""
    return _strangers(io.BytesIO(data))


def _strangers(file: BinaryIO) -> tuple[str, ...]:
    with file:
        found: list[str] = []
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    if name.endswith(".pkl"):
                        found += _named(io.BytesIO(archive.read(name)))
        else:
            file.seek(0)
            legacy = LEGACY_MAGIC in file.read(32)
            file.seek(0)
            for _ in range(_LEGACY_PICKLES if legacy else 1):
                found += _named(file)
    return tuple(dict.fromkeys(name for name in found if not _TENSORS.fullmatch(name)))


def _named(stream: BinaryIO) -> list[str]:
    """The globals of the next pickle in a stream."""
    found: list[str] = []
    strings: list[str] = []
    memo: dict[int, str] = {}
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            match opcode.name:
                case "GLOBAL" | "INST":
                    found.append(str(argument).replace(" ", "."))
                case "STACK_GLOBAL":
                    found.append(".".join(strings[-2:]))
                case "MEMOIZE":
                    memo[len(memo)] = strings[-1] if strings else "?"
                case "PUT" | "BINPUT" | "LONG_BINPUT" if isinstance(argument, int):
                    memo[argument] = strings[-1] if strings else "?"
                case "GET" | "BINGET" | "LONG_BINGET" if isinstance(argument, int):
                    strings.append(memo.get(argument, "?"))
                case name if name in _STRINGS:
                    strings.append(str(argument))
    except Exception:  # damaged pickles raise all sorts of errors; what was found until then counts
        return found
    return found
