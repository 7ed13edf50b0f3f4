"""What went wrong inside torch, in a line: torch's own first line, and the user's line that led there."""

from __future__ import annotations

import linecache
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

RAISED = (Exception, SystemExit)
"""What a module may raise: code that ends the process must not end ours, least of all with success."""

_NOT_THE_USERS = (
    os.path.dirname(os.path.abspath(torch.__file__)),
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
    sysconfig.get_paths()["stdlib"],
)
_LONGEST = 300
_COLOURS = re.compile(r"\x1b\[[0-9;]*m|\[96m|\[0m")


def told(error: BaseException) -> str:
    """The first line of what an exception says, or its type if it says nothing."""
    lines = [one.strip() for one in _COLOURS.sub("", str(error)).splitlines() if one.strip()]
    return lines[0][:_LONGEST].rstrip(".") if lines else type(error).__name__


def where(error: BaseException, module: nn.Module) -> str:
    """The last line of the user's code before the failure, and the layer that it was in; "" if there is none.

    Args:
        error: As it was caught, with its traceback.
        module: What was called.
    """
    paths = {id(part): (path, type(part).__name__) for path, part in module.named_modules()}
    place = layer = ""
    for frame, number in _frames(error):
        here = paths.get(id(frame.f_locals.get("self")))
        if here is not None and here[0]:
            layer = f"in '{here[0]}' ({here[1]})"
        file = frame.f_code.co_filename
        if is_users(file):
            place = line(file, number)
    return ", ".join(filter(None, (layer, place)))


def is_users(file: str) -> bool:
    """Whether a file is neither torch's, nor ours, nor Python's; what else is installed is the user's."""
    path = os.path.abspath(file)
    installed = "site-packages" in path or "dist-packages" in path
    return not file.startswith("<") and not any(
        path.startswith(folder + os.sep) and not (installed and folder == _NOT_THE_USERS[2])
        for folder in _NOT_THE_USERS
    )


def recorded(error: BaseException) -> str:
    """The user's line behind the node of a graph that torch was working on; "" if there is none."""
    for frame, _ in _frames(error):
        node = frame.f_locals.get("node")
        if isinstance(node, fx.Node):
            found = re.findall(r'File "([^"\n]{1,500})", line (\d{1,7})', node.meta.get("stack_trace") or "")
            for file, number in reversed(found):
                if is_users(file):
                    return line(file, int(number))
    return ""


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it came from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def line(file: str, number: int) -> str:
    """A line of the user's, as a place in a message."""
    source = linecache.getline(file, number).strip() if _is_known(file) else ""
    return f"at {file}:{number}" + (f": `{source}`" if source else "")


def _is_known(file: str) -> bool:
    """Whether Python itself reads a file: a program that was loaded may name any, which is not opened."""
    files = (getattr(module, "__dict__", {}).get("__file__") for module in list(sys.modules.values()))
    return file in linecache.cache or file in files


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    frames: Any = traceback.walk_tb(error.__traceback__)
    yield from frames
