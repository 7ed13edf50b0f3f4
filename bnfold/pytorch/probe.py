"""What can be found out about a module by running it on one micro-batch: what depends on what.

There is no graph to read that off, and none is needed: what depends changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence, Set
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

import numpy as np
import torch

from ..errors import InputError
from ..estimate import Statistics
from ..moments import Moments, SampleMoments
from .batches import Batches, MicroBatch
from .forks import Held
from .observed import Failed, Observed, Uneven, moments_of, numbers

LAST_DIGITS = 1e-3
"""So many standard deviations may be rounding, also of bfloat16."""

_THREAD = 1 << 20  # bytes, as measured


def order(observed: Observed, batch: MicroBatch) -> list[int]:
    """The normalizations in the order in which they are called; those that are not stand last.

    Raises:
        InputError: The module cannot run, or uses one of them twice.
    """
    called = _called(observed, batch)
    return called + [i for i in range(len(observed.norms)) if i not in called]


def successions(observed: Observed, batches: Batches) -> set[tuple[int, int]]:
    """Which normalizations are called after which, for any of the data."""
    return {pair for batch in batches.read() for pair in pairwise(_called(observed, batch))}


def merged(observed: Observed, pairs: Set[tuple[int, int]]) -> list[int]:
    """The normalizations in an order in which the second of each pair comes after the first.

    Raises:
        InputError: There is none.
    """
    before: dict[int, set[int]] = {i: set() for i in range(len(observed.norms))}
    for first, second in sorted(pairs):
        before[second].add(first)
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError as error:
        first, second = (observed.norms[i].name for i in error.args[1][:2])
        raise InputError(
            f"BatchNormalization '{first}' is used before '{second}' for some samples, and after it for "
            "others, so neither can be measured first; leave one of them out"
        ) from error


def is_by_sample(observed: Observed, batch: MicroBatch) -> bool:
    """Whether what comes into each normalization depends on nothing but the sample, to the last bit: not on
    its place in the micro-batch, nor on what else is in there.

    Raises:
        InputError: It depends on chance.
    """
    try:
        here, alone = (_moments(observed, some) for some in (batch, batch.repeated(batch.rows)))
        if here.keys() == alone.keys() and all(_are_first(alone[i], here[i]) for i in here):
            return True
        again = _moments(observed, batch)
    except Uneven:
        return False
    for i, found in here.items():
        if i not in again or not _same(found, again[i]):
            raise InputError(
                f"BatchNormalization '{observed.norms[i].name}': gets other numbers each time, for the same "
                "samples; the module draws random numbers in evaluation mode, or keeps something between runs"
            )
    return False


def pooled(observed: Observed, batches: Iterable[MicroBatch]) -> list[Moments]:
    """The moments of what comes into each normalization, over several micro-batches.

    Raises:
        Failed: The module cannot run on one of them.
    """
    found = [Moments(norm.channels) for norm in observed.norms]
    for batch in batches:
        for i, some in _moments(observed, batch).items():
            if some is not None:
                found[i].add(some)
    return found


def agree(observed: Observed, one: Sequence[Moments], batch: MicroBatch) -> bool:
    """Whether as many values, of the same mean and variance up to rounding, come into each normalization for
    a micro-batch; also if the module cannot run on that.
    """
    try:
        other = pooled(observed, [batch])
    except Failed:
        return True
    for i, norm in enumerate(observed.norms):
        if one[i].count != other[i].count:
            return False
        if not one[i].count:
            continue
        width = np.sqrt(one[i].population_var + norm.layer().epsilon)
        off = np.abs(one[i].mean - other[i].mean)
        off += np.abs(np.sqrt(one[i].population_var) - np.sqrt(other[i].population_var))
        if not (off <= LAST_DIGITS * width).all():
            return False
    return True


def held(observed: Observed, batch: MicroBatch) -> int:
    """How many bytes a pass holds at most when it comes to a normalization, inputs and thread included."""
    most = 0
    with Held() as made:

        def look(i: int, x: torch.Tensor) -> None:
            nonlocal most
            most = max(most, made.nbytes)

        observed.run(batch, look)
    return most + batch.nbytes + _THREAD


def levels(observed: Observed, batch: MicroBatch, in_order: Sequence[int]) -> list[list[int]]:
    """The normalizations by level: what comes into one depends on those of lower levels only.

    Each one's statistics are changed, and what then changes bit for bit depends on it. They are changed in
    two ways, in opposite directions, since after a rectifier that is closed nothing changes.
    """
    before = _prints(observed, batch)
    level = dict.fromkeys(in_order, 0)
    for place, i in enumerate(in_order):
        later = in_order[place + 1 :]
        for j in _changed(observed, batch, i, before) & set(later):
            level[j] = max(level[j], level[i] + 1)
    return [[i for i in in_order if level[i] == number] for number in range(max(level.values()) + 1)]


def _called(observed: Observed, batch: MicroBatch) -> list[int]:
    called: list[int] = []
    observed.run(batch, lambda i, _: called.append(i))
    return called


def _changed(observed: Observed, batch: MicroBatch, i: int, before: dict[int, bytes]) -> set[int]:
    """The normalizations whose input is another when this one's statistics are, or which were not called."""
    everything = set(range(len(observed.norms)))
    if i not in before:
        return everything
    norm, layer = observed.norms[i], observed.norms[i].layer()
    width = np.sqrt(np.abs(layer.var) + layer.epsilon)
    signs = np.where(np.random.default_rng(i).random(norm.channels) < 0.5, -1.0, 1.0)
    unchanged = everything
    try:
        for direction, factor in ((signs, 4.0), (-signs, 0.25)):
            norm.set(Statistics(layer.mean + 8.0 * width * direction, layer.var * factor))
            after = _prints(observed, batch)
            unchanged = unchanged & {j for j in before if after.get(j) == before[j]}
    except Failed:  # on such numbers; then it cannot be told
        return everything
    finally:
        norm.set(Statistics(layer.mean, layer.var))
    return everything - unchanged


def _prints(observed: Observed, batch: MicroBatch) -> dict[int, bytes]:
    """What identifies the input of each normalization."""
    found: dict[int, bytes] = {}

    def look(i: int, x: torch.Tensor) -> None:
        found[i] = hashlib.blake2b(np.ascontiguousarray(numbers(x)).data).digest()

    observed.run(batch, look)
    return found


def _moments(observed: Observed, batch: MicroBatch) -> dict[int, SampleMoments | None]:
    found: dict[int, SampleMoments | None] = {}

    def look(i: int, x: torch.Tensor) -> None:
        found[i] = moments_of(observed.norms[i], x, batch)

    observed.run(batch, look)
    return found


def _are_first(every: SampleMoments | None, some: SampleMoments | None) -> bool:
    """Whether all samples have the moments of the first of others."""
    if every is None or some is None:
        return every is some
    return every.size == some.size and all(
        np.array_equal(a, np.broadcast_to(b[:1], a.shape))
        for a, b in ((every.mean, some.mean), (every.m2, some.m2))
    )


def _same(one: SampleMoments | None, other: SampleMoments | None) -> bool:
    if one is None or other is None:
        return one is other
    return (
        one.size == other.size and np.array_equal(one.mean, other.mean) and np.array_equal(one.m2, other.m2)
    )
