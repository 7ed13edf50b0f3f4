"""A fingerprint of samples that does not depend on their order, or on which process read them."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Multiset:
    """Samples added so far.

    Attributes:
        value: The sum of their hashes: those of two multisets add up to that of their union.
        samples: How many there were.
    """

    def __init__(self) -> None:
        self.value = 0
        self.samples = 0

    def add(self, parts: Iterable[NDArray[Any]]) -> None:
        """Add one sample, all of whose parts count, in their order."""
        digest = blake2b(digest_size=16)
        for part in parts:
            digest.update(repr((part.dtype.str, part.shape)).encode())
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        self.value += int.from_bytes(digest.digest(), "big")
        self.samples += 1
