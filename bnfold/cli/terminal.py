"""The streams of the command: reports, a bar while work takes long, and when Ctrl-C has to wait."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

import click

import bnfold

if TYPE_CHECKING:
    from ..render.page import Page

_PATIENCE = 1.0  # seconds before work counts as long
_REFRESH = 0.1  # seconds between two pictures of a bar
_BAR = 30  # characters


@contextmanager
def interrupts_later() -> Iterator[None]:
    """Native modules abort when Ctrl-C hits them while they are being imported, so there it has to wait."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[float], None] | None]:
    """A bar on the terminal while work takes long; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    start, bar = time.monotonic(), click.progressbar(length=1000, label=label, file=sys.stderr)
    shown = 0

    def progress(share: float) -> None:
        nonlocal shown
        if time.monotonic() - start > _PATIENCE and (step := int(share * 1000) - shown) > 0:
            shown += step
            bar.update(step)

    try:
        yield progress
    finally:
        if shown:
            click.echo("\r\x1b[2K", nl=False, err=True)


@contextmanager
def count_bar(label: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar with the rate and the time left, for work on so many samples; nothing but on a terminal."""
    if not sys.stderr.isatty() or not is_first():
        yield None
        return
    start, shown = time.monotonic(), -math.inf

    def progress(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - start < _PATIENCE or now - shown < _REFRESH or not done:
            return
        shown, rate = now, done / (now - start)
        share, left = done / max(done, total), max(0, total - done) / rate
        filled = round(share * _BAR)
        bar = f"[{'#' * filled}{'-' * (_BAR - filled)}]"
        figures = f"{share:4.0%}  {rate:,.0f} samples/s  {left / 60:.0f} min {left % 60:02.0f} s left"
        click.echo(f"\r\x1b[2K{label}  {bar}  {figures}", nl=False, err=True)

    try:
        yield progress
    finally:
        if shown > 0:
            click.echo("\r\x1b[2K", nl=False, err=True)


def is_first() -> bool:
    """Whether this is the one that speaks, of processes that `torchrun` started."""
    return is_alone() or os.environ.get("RANK", "0") == "0"


def is_alone() -> bool:
    """Whether `torchrun` started no others."""
    return os.environ.get("WORLD_SIZE", "1") == "1"


def page(verbose: int = 0, *, err: bool = False) -> Page:
    """The terminal, or what takes its place."""
    from ..render.page import Page

    stream = sys.stderr if err else sys.stdout
    color = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Page(shutil.get_terminal_size().columns, color, verbose > 0)


def write(text: str, *, err: bool = False, utf8: bool = False) -> None:
    """Write a report.

    Args:
        text: Names in it that the stream has no characters for are spelled out.
        err: To the standard error.
        utf8: In this encoding, whatever the stream has.
    """
    stream = sys.stderr if err else sys.stdout
    encoding = "utf-8" if utf8 else stream.encoding or "utf-8"
    content = text.encode(encoding, "backslashreplace")
    try:
        click.echo(content if utf8 else content.decode(encoding), file=stream, color=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        give_up_stdout()
        why = error.strerror or error
        raise bnfold.OutputError(f"the standard output: the report cannot be written: {why}") from error


def give_up_stdout() -> None:
    """Nothing more can be written there, so Python shall not try when it ends."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:  # a stream without a file, as in tests
        return


def is_closed(stream: TextIO) -> bool:
    return getattr(stream, "name", None) == os.devnull
