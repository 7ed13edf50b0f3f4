"""What a torch file is, read off its bytes without running any of them.

torch.save, torch.jit.save and torch.export.save all write ZIP archives, and people rename files: the content
says what a file is, its suffix does not. Whatever is none of torch's files is named for what it is.
"""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from enum import StrEnum
from typing import BinaryIO, Final

from ..errors import InputError

LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
"""What torch.save wrote first before it wrote ZIP archives (torch < 1.6): a pickled integer."""

_HEAD_BYTES = 1024
_CHUNK_BYTES = 1 << 20
_INFLATED_BYTES = 1 << 26
"""What an archive may hold beyond its own size: torch.jit.save compresses code, and nothing else is."""
_DAMAGED = (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError)
"""What Python raises for an archive that it cannot list."""


class Kind(StrEnum):
    """The files that torch, and safetensors, write."""

    PROGRAM = "an exported program (torch.export.save)"
    TORCHSCRIPT = "a TorchScript archive (torch.jit.save)"
    PICKLED = "a checkpoint (torch.save)"
    LEGACY = "a checkpoint in the old format (torch.save before 1.6)"
    SAFETENSORS = "a safetensors file"


def identify(path: str) -> Kind:
    """What the file is.

    Raises:
        InputError: There is no such file, it is cut off, or it is none of torch's.
    """
    head, size = _head(path)
    if head.startswith(b"PK\x03\x04"):
        return _zipped(path)
    if LEGACY_MAGIC in head[:32]:
        return Kind.LEGACY
    if _is_safetensors(path, head, size):
        return Kind.SAFETENSORS
    raise InputError(f"{path}: is {_foreign(head)}")


def names(path: str) -> list[str]:
    """The entries of a ZIP archive, as Python reads it.

    Raises:
        InputError: It is cut off or damaged.
    """
    return [entry.filename for entry in _entries(path)]


def entries(file: BinaryIO) -> list[zipfile.ZipInfo]:
    """The entries of an archive that memory has room for; none of them is read.

    Raises:
        ValueError: It is cut off, or made to fill the memory.
        zipfile.BadZipFile, EOFError, NotImplementedError: It is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        found = archive.infolist()
    # Of an archive that is cut off, Python reads the last one inside it.
    if found and min(entry.header_offset for entry in found) > 0:
        raise ValueError("its end is missing")
    held, size = sum(entry.file_size for entry in found), file.seek(0, os.SEEK_END)
    if held > size + _INFLATED_BYTES:
        raise ValueError(f"it has {size} bytes, and claims to hold {held}")
    return found


def need_intact(path: str) -> None:
    """Hold an archive against its own checksums: torch does not, and takes a flipped bit for a weight.

    Raises:
        InputError: With the entry that is damaged.
    """
    try:
        with zipfile.ZipFile(path) as file:
            for entry in file.infolist():
                if entry.CRC:  # torch.serialization.set_crc32_options(False) writes none
                    with file.open(entry) as stream:
                        while stream.read(_CHUNK_BYTES):
                            pass
    except (*_DAMAGED, RuntimeError, zlib.error) as error:
        raise damaged(path, error) from None


def damaged(path: str, error: BaseException) -> InputError:
    """The error for a file that is what it seems to be, but cannot be read to the end."""
    said = (str(error).splitlines() or [type(error).__name__])[0][:160]
    return InputError(f"{path}: is cut off or damaged ({said.rstrip('.')}); copy or save it again")


def _entries(path: str) -> list[zipfile.ZipInfo]:
    try:
        with open(path, "rb") as file:
            return entries(file)
    except _DAMAGED as error:
        raise damaged(path, error) from None


def _head(path: str) -> tuple[bytes, int]:
    if not path:
        raise InputError("the name of the model is empty; give the path of a file")
    try:
        info = os.stat(path)
        if stat.S_ISDIR(info.st_mode):
            raise InputError(f"{path}: is a folder; {_inside(path)}")
        if not stat.S_ISREG(info.st_mode):
            raise InputError(f"{path}: is no regular file, and it has to be read twice; copy it into one")
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not head:
        raise InputError(f"{path}: is empty; save it or download it again")
    return head, info.st_size


def _inside(folder: str) -> str:
    suffixes = (".pt2", ".safetensors", ".pt", ".pth", ".ckpt", ".bin")
    files = sorted(name for name in os.listdir(folder) if name.endswith(suffixes))
    if not files:
        return "give the file with the model or its weights"
    more = ", …" if len(files) > 3 else ""
    return f"give one of the files in it: {', '.join(files[:3])}{more}"


def _zipped(path: str) -> Kind:
    found = _entries(path)
    kind = _kind(path, [entry.filename for entry in found])
    written = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED if kind is Kind.TORCHSCRIPT else zipfile.ZIP_STORED}
    packed = [entry.filename for entry in found if entry.compress_type not in written]
    if packed:
        raise InputError(
            f"{path}: its entry {packed[0]} is compressed, which torch never does, nor can map into memory; "
            "save it again, or unpack it and pack it without compression"
        )
    return kind


def _kind(path: str, entries: list[str]) -> Kind:
    inner = {name.partition("/")[2] for name in entries}
    # In this order: a program may hold whatever it likes, and `plain` then refuses it.
    if "archive_format" in inner or "serialized_exported_program.json" in entries:
        return Kind.PROGRAM
    if "constants.pkl" in inner:
        return Kind.TORCHSCRIPT
    if "data.pkl" in inner:
        return Kind.PICKLED
    first = entries[0] if entries else "nothing"
    raise InputError(
        f"{path}: is a ZIP archive that torch did not write (it holds {first}); "
        "give a file written by torch.export.save, torch.save or safetensors"
    )


def _is_safetensors(path: str, head: bytes, size: int) -> bool:
    """A header length of eight bytes, then JSON."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    length = int.from_bytes(head[:8], "little")
    if length <= size - 8:
        return True
    if length >> 40:  # text that happens to have a brace there
        return False
    raise damaged(path, ValueError(f"its header alone has {length} bytes, the file {size}"))


def _foreign(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights themselves; fetch them with: git lfs pull"
    if re.match(rb"<(!doctype|html|\?xml|head)", text, re.IGNORECASE):
        return "a web page, most likely the error of a failed download; download the file again"
    for start, what in _OTHERS:
        if head.startswith(start):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it and give the file inside"
    if text[:1] in (b"{", b"["):
        return "JSON, no weights; an index of shards does not do, give a file that holds all weights"
    return (
        "no file that torch writes; give a program (torch.export.save), a state dict (torch.save, "
        "safetensors) or an ONNX model"
    )


_OTHERS = (
    (b"\x80", "a pickle that torch.save did not write; save the model's state dict with torch.save"),
    (b"\x1f\x8b", "compressed (gzip); unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd); unpack it first"),
    (b"\xfd7zXZ", "compressed (xz); unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes them; bnfold reads PyTorch and ONNX models"),
    (b"GGUF", "a GGUF file; bnfold reads PyTorch and ONNX models"),
    (b"\x93NUMPY", "a numpy array, no model"),
)
