"""What a traced program takes for granted of its free sizes, and sizes at which that does not hold.

A branch of a module on a size is decided once, when it is traced. Which way was taken is kept as a guard; the
ONNX model has no guards, so that it may be silently wrong on the other side.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .failure import is_users, line
from .inputs import Call

_SIZE = re.compile(r"(?P<name>\w+)\.size\(\)\[(?P<axis>\d+)\]")
# Sizes to look at beside those that guards name, and how many ways to combine them.
_TRIED = (2, 3, 4, 7, 8, 16, 31, 32, 33, 64)
_LARGEST, _WAYS = 512, 600


@dataclass(frozen=True)
class Beyond:
    """Sizes at which a guard does not hold.

    Attributes:
        guard: In the user's names.
        shapes: Per input, in order.
        place: The user's line that asked for it; "" if torch did.
    """

    guard: str
    shapes: tuple[tuple[int, ...], ...]
    place: str


def beyond(
    call: Call, placed: Sequence[Any], guards: Sequence[str], failed: Callable[[Sequence[Sequence[int]]], str]
) -> Iterator[Beyond]:
    """For each guard, sizes at which it does not hold: the smallest that were found, and some of middle size,
    since the module need not run at the smallest.

    Args:
        call: With the names of free sizes.
        placed: What the program knows of the inputs.
        guards: As the program holds them.
        failed: The guard that does not take inputs of such shapes; "" if all do.
    """
    free = list(dict.fromkeys(d for i in call.inputs for d in i.shape if isinstance(d, str)))
    numbers = {int(n) + k for guard in guards for n in re.findall(r"\d+", guard) for k in (-1, 0, 1)}
    tried = sorted({n for n in numbers if 2 <= n <= _LARGEST}.union(_TRIED))
    found: defaultdict[str, dict[tuple[tuple[int, ...], ...], None]] = defaultdict(dict)
    for sizes in itertools.islice(_ways(free, tried), _WAYS):
        shapes = tuple(tuple(d if isinstance(d, int) else sizes[d] for d in i.shape) for i in call.inputs)
        guard = failed(shapes)
        if guard:
            found[guard][shapes] = None
    for guard, every in found.items():
        by_volume = sorted(every, key=_volume)
        for shapes in dict.fromkeys((by_volume[0], by_volume[len(every) // 2])):
            yield Beyond(_in_names(guard, call), shapes, _place(placed, shapes))


def _ways(free: Sequence[str], tried: Sequence[int]) -> Iterator[dict[str, int]]:
    """Free sizes: one out of line, two alike, all alike."""
    base = {name: 32 * k for k, name in enumerate(free, 2)}
    base |= dict.fromkeys(free[:1], 2)
    yield base
    for size in tried:
        yield dict.fromkeys(free, size)
        for count in (1, 2):
            for some in itertools.combinations(free, count):
                yield base | dict.fromkeys(some, size)


def _volume(shapes: Sequence[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _in_names(guard: str, call: Call) -> str:
    by_name = dict(zip(call.parameters, call.inputs, strict=True))

    def named(match: re.Match[str]) -> str:
        given = by_name.get(match["name"])
        return match[0] if given is None else str(given.shape[int(match["axis"])])

    return _SIZE.sub(named, guard)


def _fails(expression: Any, sizes: Mapping[Any, int]) -> bool:
    try:
        return str(expression.xreplace(sizes)) == "False"  # other symbols may be left
    except ArithmeticError:  # it divides by what is 0 at such sizes
        return False


def _place(placed: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> str:
    """The user's line behind the first guard that sizes do not satisfy."""
    free = {
        dim.node.expr: (size, dim.node.shape_env)
        for value, shape in zip(placed, shapes, strict=True)
        for dim, size in zip(value.shape, shape, strict=True)
        if isinstance(dim, torch.SymInt)
    }
    sizes = {symbol: size for symbol, (size, _) in free.items()}
    for _, env in list(free.values())[:1]:
        for guard in env.guards:
            frame = guard.sloc.framework_loc
            if _fails(guard.expr, sizes) and is_users(getattr(frame, "filename", "<")):
                return line(frame.filename, frame.lineno)
    return ""
