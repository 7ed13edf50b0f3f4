"""Weights that are pieces of a mapped file: the pages that were looked at count as memory in use until
somebody lets go of them."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGE = 1 << 17  # bytes: below, the call costs more than it gives


def let_go(array: NDArray[Any]) -> None:
    """Let go of the pages of an array, if it is a piece of a file that is mapped to be read; whoever needs
    them again gets them from the file."""
    if array.nbytes < _LARGE or not hasattr(mmap, "MADV_DONTNEED"):
        return
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    content = owner.obj if isinstance(owner, memoryview) else owner
    # What was written to a private mapping is nowhere else.
    if not isinstance(content, mmap.mmap) or not memoryview(content).readonly:
        return
    whole = np.frombuffer(content, np.uint8)
    low, high = (end - whole.ctypes.data for end in np.lib.array_utils.byte_bounds(array))
    start = -(-low // mmap.PAGESIZE) * mmap.PAGESIZE
    length = high // mmap.PAGESIZE * mmap.PAGESIZE - start
    if length > 0:
        content.madvise(mmap.MADV_DONTNEED, start, length)
