"""Whether `torch.export.load`, and what is done with a program afterwards, would run code out of the file.

An archive of torch.export.save holds weights, which are harmless, and much that is not. torch (2.13) hands
these parts to an interpreter or a loader of native code:

- pickles: example inputs and the weights of older files (`weights_only` first, but anything after a failure),
  weights and constants marked `use_pickle`, opaque and TorchBind objects (`opaque_obj_*`, `custom_obj_*`);
- strings of the program itself, see `grammar`;
- `data/aotinductor`: compiled libraries.

So a program is plain when each of these parts keeps to a small grammar, and every entry of the archive is
one that torch.export.save writes. `need_plain` reads the entries with torch's own ZIP reader: the reader of
Python finds other bytes under the same name when an archive was tampered with.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable

import torch

from ..errors import InputError
from . import archive, pickles
from .grammar import Unplain, need_plain_fields

_MODEL = re.compile(r"models/([^/]+)\.json")
_TORCH_PICKLE = re.compile(r"data/(sample_inputs|weights|constants)/[^/]+\.pt")
_PAYLOAD_CONFIG = re.compile(r"data/(weights|constants)/[^/]+_config\.json")
_DATA = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|extra/.*"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")

# Before torch 2.8
_OLD_PROGRAM = "serialized_exported_program.json"
_OLD_PICKLE = re.compile(r"serialized_(state_dict|constants|example_inputs)\.(pt|json)")
_OLD_DATA = re.compile(r"version|extra_files/.*")


def need_plain(path: str) -> None:
    """Refuse an exported program that could run code.

    Raises:
        InputError: With the entry, and the class, name or text that is not plain; or the archive is damaged.
    """
    try:
        records = torch._C.PyTorchFileReader(path)
    except RuntimeError as error:
        if _OLD_PROGRAM not in archive.names(path):
            raise archive.damaged(path, error) from None
        with zipfile.ZipFile(path) as old:
            _need_plain_entries(path, old.namelist(), old.namelist(), old.read, _old_check)
        return
    listed = records.get_all_records()
    seen = [name.partition("/")[2] for name in archive.names(path)]
    _need_plain_entries(path, listed, seen, records.get_record, _check)


_Check = Callable[[bytes], None]


def _need_plain_entries(
    path: str,
    entries: list[str],
    other: list[str],
    read: Callable[[str], bytes],
    check_of: Callable[[str], _Check | None],
) -> None:
    """`entries` and `other`: what the two readers of ZIP archives find."""
    if sorted(entries) != sorted(other):
        odd = sorted(set(entries) ^ set(other)) or ["an entry"]
        raise _refused(path, odd[0], "it is seen by one of two ZIP readers only")
    for folded, times in Counter(entry.lower() for entry in entries).items():
        if times > 1:
            raise _refused(path, folded, "there are several entries of this name")
    for entry in entries:
        try:
            check = check_of(entry)
            if check is not None:
                check(read(entry))
        except Unplain as found:
            raise _refused(path, entry, str(found)) from None
        except (ValueError, RecursionError, RuntimeError, zipfile.BadZipFile) as error:
            raise archive.damaged(path, RuntimeError(f"{entry}: {error}")) from None


def _refused(path: str, entry: str, found: str) -> InputError:
    return InputError(
        f"{path}: loading it could run code, entry {entry}: {found}; export the model again with plain "
        "tensors, or pass --unsafe-pickle if you trust whoever made the file"
    )


def _check(entry: str) -> _Check | None:
    if _DATA.fullmatch(entry):
        return None
    if _MODEL.fullmatch(entry):
        return _need_plain_program
    if _PAYLOAD_CONFIG.fullmatch(entry):
        return _need_plain_payloads
    if _TORCH_PICKLE.fullmatch(entry):
        return _need_plain_pickle
    raise Unplain("it is none that torch.export.save writes for plain models")


def _old_check(entry: str) -> _Check | None:
    if _OLD_DATA.fullmatch(entry):
        return None
    if entry == _OLD_PROGRAM:
        return _need_plain_program
    if _OLD_PICKLE.fullmatch(entry):
        return _need_plain_pickle
    raise Unplain("it is none that torch.export.save writes")


def _need_plain_pickle(data: bytes) -> None:
    """torch loads these with `weights_only` first, and falls back to running them: so the first must do."""
    if not data:
        return
    if data.startswith(b"PK\x03\x04"):
        archive.entries(io.BytesIO(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(data), weights_only=True)  # word for word what torch tries first
    except Exception as error:
        named = pickles.strangers_in(data)
        first = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise Unplain(
            f"a pickle that names {_some(named)}" if named else f"no plain pickle: {first}"
        ) from None


def _need_plain_payloads(data: bytes) -> None:
    """Where each weight or constant is stored, and how."""
    config = json.loads(data)
    need_plain_fields(config)
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise Unplain("it lists no weights")
    for name, entry in entries.items():
        stored = entry.get("path_name") if isinstance(entry, dict) else None
        if not isinstance(stored, str) or not _PAYLOAD.fullmatch(stored):
            raise Unplain(f"{name!r} is stored in {stored!r}, no tensor")
        if entry.get("use_pickle") is not False:
            raise Unplain(f"{name!r} is stored as a pickle ({stored}), no plain tensor")


def _need_plain_program(data: bytes) -> None:
    need_plain_fields(json.loads(data))


def _some(named: Iterable[str]) -> str:
    first = list(named)
    return ", ".join(first[:3]) + (f" and {len(first) - 3} more" if len(first) > 3 else "")
