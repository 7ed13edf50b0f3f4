"""Why a state dict does not fit a module, and what may have been meant."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from .factory import described, said

_SHOWN: Final = 3  # names in a message
_LONGEST: Final = 100  # characters of each
_COMPARED: Final = 1000  # names that may be what was meant


@dataclass(frozen=True, eq=False)
class Misfit:
    """A state dict and the module that it was meant for; as text, one line of bounded length.

    Attributes:
        own: What the module has, as its `state_dict()`.
        state: What was to be loaded.
        missing: Names that the module has alone.
        unexpected: Names that the state dict has alone.
        path: Where in its file the state dict was, dotted.
        error: What torch said, if anything.
    """

    own: Mapping[str, Any]
    state: Mapping[str, Any]
    missing: list[str]
    unexpected: list[str]
    path: str
    error: Exception | None

    def __str__(self) -> str:
        shapes = [key for key in self.own if key in self.state and self._differs(key)]
        parts = []
        if self.missing:
            parts.append(f"{counted(len(self.missing), 'name')} missing ({few(self.missing)})")
        if self.unexpected:
            parts.append(f"{counted(len(self.unexpected), 'name')} unexpected ({few(self.unexpected)})")
        if shapes:
            each = "; ".join(
                f"{key} is {list(self.state[key].shape)} in the file, but {list(self.own[key].shape)} here"
                for key in shapes[:_SHOWN]
            )
            more = ", …" if len(shapes) > _SHOWN else ""
            parts.append(f"{counted(len(shapes), 'shape')} different ({each}{more})")
        if not parts and self.error is not None:
            return said(self.error)
        return f"{', '.join(parts)}; {self._hint()}"

    def _differs(self, key: str) -> bool:
        ours, theirs = self.own[key], self.state[key]
        if not (isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor)):
            return False
        # A lazy layer takes its shape from the file.
        return not torch.nn.parameter.is_lazy(ours) and ours.shape != theirs.shape

    def _hint(self) -> str:
        if not self.missing and not self.unexpected:
            return "was the module built with other arguments? give them with --model-args"
        if not self.missing:
            odd = [key for key in self.unexpected if not isinstance(self.state[key], torch.Tensor)]
            if odd:
                return (
                    f"{few(odd[:1])} is {described(self.state[odd[0]])}, no weight: save the state dict alone"
                )
            return "the module has fewer parts than the one that was saved"
        if not self.unexpected:
            return "the file holds a part of the module only"
        front = _front(self.unexpected, self.own)
        if front:
            key = f"{self.path}.{front}" if self.path else front
            return f"names fit without {front + '.'!r}: use --state-key {key}"
        front = _front(self.missing, self.state)
        if front:
            return f"the module has them beneath {front + '.'!r}: let the factory return that part of it"
        if not self.own.keys() & self.state.keys():
            return "no name fits, so these are the weights of another model"
        near = [
            f"{key!r} may be {close[0]!r}"
            for key in self.missing[:_SHOWN]
            if (close := difflib.get_close_matches(key, self.unexpected[:_COMPARED], 1, 0.85))
        ]
        return ", ".join(near) or "these are the weights of another model, or of another version of it"


def _front(names: list[str], others: Mapping[str, Any]) -> str:
    """The beginning without which most of the names are among the others; "" when there is none."""
    starts = Counter(
        name[: match.start()]
        for name in names
        for match in re.finditer(r"\.", name)
        if name[match.end() :] in others
    )
    front, times = max(starts.items(), key=lambda item: item[1], default=("", 0))
    return front if 2 * times > len(names) else ""


def few(names: list[str]) -> str:
    """The first of many names."""
    shown = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names[:_SHOWN]]
    return ", ".join(shown) + (", …" if len(names) > _SHOWN else "")


def counted(number: int, what: str) -> str:
    """ "1 name", "2 names"."""
    return f"{number} {what}{'' if number == 1 else 's'}"
