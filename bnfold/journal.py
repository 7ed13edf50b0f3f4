"""What a recalibration has found so far, in a file, so that an interrupted run can go on."""

from __future__ import annotations

import json
import os
import secrets
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np

from .errors import InputError, OutputError
from .moments import Moments
from .ranks import Ranks

_VERSION = 1


class Journal:
    """The exact moments of the layers that are done.

    It is written anew after each level, under another name first, so the file is always whole.

    Attributes:
        found: Moments by the number of the layer.
        digest: Of the data they were measured on, and their number; None before the first level.
    """

    def __init__(self, path: str | os.PathLike[str], key: str) -> None:
        """Open it.

        Args:
            path: The file; it need not exist.
            key: What the moments depend on besides the data: model, method, runtime.

        Raises:
            InputError: The file is of another run, or no journal.
        """
        self._path = Path(path)
        self._key = key
        self.found: dict[int, Moments] = {}
        self.digest: tuple[int, int] | None = None
        if os.path.lexists(self._path):
            self._read()
        elif not os.access(self._path.parent, os.W_OK):
            raise OutputError(
                f"{self._path}: the folder {self._path.parent} does not exist or may not be written to; "
                "create it, or name another one"
            )

    @classmethod
    def of_first(
        cls, path: str | os.PathLike[str] | None, key: Callable[[], str], ranks: Ranks
    ) -> Self | None:
        """The journal, in the first of several processes; if it cannot be opened, all hear of it.

        Args:
            path: The file; None for no journal.
            key: Tells the key.
            ranks: The processes.
        """
        if path is None:
            return None
        opened: list[Self] = []
        ranks.together(lambda: None if ranks.rank else opened.append(cls(path, key())))
        return opened[0] if opened else None

    def record(self, moments: Mapping[int, Moments], digest: tuple[int, int]) -> None:
        """Add the moments of a level.

        Raises:
            OutputError: The file cannot be written.
        """
        self.found |= moments
        self.digest = digest
        facts = {
            "version": _VERSION,
            "key": self._key,
            "digest": f"{digest[0]:x}",
            "samples": digest[1],
            "layers": list(self.found),
        }
        arrays: dict[str, Any] = {"facts": np.array(json.dumps(facts))}
        for number, found in self.found.items():
            arrays |= {f"{number}.{name}": array for name, array in found.to_arrays().items()}
        unnamed = self._path.with_name(f".bnfold-{secrets.token_hex(6)}.npz")
        try:
            with unnamed.open("xb") as file:
                np.savez(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unnamed, self._path)
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written: {error.strerror or error}") from error
        finally:
            with suppress(OSError):
                unnamed.unlink()

    def remove(self) -> None:
        """The run is complete: nobody will need the file."""
        with suppress(OSError):
            self._path.unlink()

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                facts = json.loads(str(arrays["facts"]))
                if facts["version"] != _VERSION:
                    raise ValueError(f"its format is {facts['version']}")
                for number in facts["layers"]:
                    parts = {p: arrays[f"{number}.{p}"] for p in Moments(0).to_arrays()}
                    self.found[number] = Moments.from_arrays(parts)
                self.digest = (int(facts["digest"], 16), facts["samples"])
                key = facts["key"]
        except OSError as error:
            raise InputError(f"{self._path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{self._path}: is no journal of an interrupted recalibration, or a damaged one; name "
                "another file for --resume"
            ) from error
        if key != self._key:
            raise InputError(
                f"{self._path}: is the journal of another run: the model, the method or the runtime was "
                "another; name another file for --resume, or remove this one to begin anew"
            )
