"""Run a command as a whole process: wall time from spawn to exit, and peak resident memory.

Linux counts a child's peak from the memory its parent had when it spawned the child: below a parent
of 400 MB every child seems to need 400 MB. So this module, and all that import it, use only the
standard library; models are built, read and compared in processes of their own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere


@dataclass(frozen=True)
class Run:
    """One process from spawn to exit.

    Attributes:
        seconds: Wall time.
        peak: Largest resident memory in bytes, of the process or of one of its children.
        output: What it wrote to standard output.
        failure: "" when it exited with 0, else why not: the signal, or the last line of its complaint.
        crashed: Whether a signal ended it.
        timed_out: Whether that was ours, because its time was up.
    """

    seconds: float
    peak: int
    output: str
    failure: str
    crashed: bool
    timed_out: bool


def run(command: list[str], *, cwd: Path, timeout: float) -> Run:
    """Run `command` in the folder `cwd` and end it, children included, after `timeout` seconds."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        expired = threading.Event()
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,  # a group of its own, so that its children end with it
        )

        def expire() -> None:
            expired.set()
            os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(timeout, expire)
        timer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            timer.cancel()
        seconds = time.perf_counter() - start
        process.returncode = code = os.waitstatus_to_exitcode(status)
        failure = "" if code == 0 else _failure(code, stderr)
        stdout.seek(0)
        output = stdout.read().decode(errors="replace")
    return Run(seconds, usage.ru_maxrss * _MAXRSS_UNIT, output, failure, code < 0, expired.is_set())


def _failure(code: int, stderr: IO[bytes]) -> str:
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    stderr.seek(0)
    lines = [line.strip() for line in stderr.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code}"
