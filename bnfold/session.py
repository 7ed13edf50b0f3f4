"""Runs models in onnxruntime, in a process of its own.

onnxruntime can crash or hang on a model that it cannot handle; here that ends a child process and
becomes an `Unrunnable`. The child is `runtime`, run as a script; parent and child speak over `pipes`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from . import runtime
from .errors import InputError, OutputError
from .moments import SampleMoments
from .pipes import Array, Message, one_line, receive, send
from .runtime import CPU


class Unrunnable(Exception):
    """What onnxruntime could not load, run or return, and why. It never leaves the package."""


class Lost(Unrunnable):
    """The process that ran onnxruntime crashed or gave no answer in time."""


@dataclass(frozen=True)
class Signature:
    """The names by which an opened model is fed and answers, in its own order.

    Attributes:
        inputs: All that may be fed.
        outputs: Those that `Session.run` returns.
        left_out: Type, in onnxruntime's words, of the outputs that it does not: no tensors, or of
            elements that numpy has no type for.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    left_out: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Observation:
    """What `Session.measure` found.

    Attributes:
        moments: By name, of each sample.
        kept: Type and bytes by name.
    """

    moments: Mapping[str, SampleMoments]
    kept: Mapping[str, tuple[np.dtype[Any], int]]


class Session:
    """One model at a time, open in onnxruntime, in a child process.

    The process starts with the first model and is replaced after a crash. Use it in a `with`.

    Args:
        timeout: Seconds that any single answer may take.
        provider: The execution provider, by onnxruntime's name for it. What it has no kernel for runs
            on the CPU.
    """

    def __init__(self, timeout: float = 300.0, provider: str = CPU) -> None:
        self._timeout = timeout
        self._provider = provider
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        # Importing onnxruntime leaves a file of its telemetry in the temporary folder: let it have one.
        self._folder = tempfile.TemporaryDirectory(prefix="bnfold-", ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; nothing it was doing is waited for."""
        self._stop()
        self._complaints.close()
        self._folder.cleanup()

    def open(
        self,
        model: Path | bytes,
        *,
        initializers: Iterable[tuple[str, Array]] = (),
        folder: Path | None = None,
        optimized: bool = False,
    ) -> Signature:
        """Load a model in place of the one that is open.

        Args:
            model: Its file, or its serialized form.
            initializers: Values to use instead of those stored for these names of the main graph;
                taken one at a time, so they need not be in memory together.
            folder: Where the external data of a serialized model lie.
            optimized: Whether onnxruntime rewrites the graph as it does by default. If not, all its
                optimizations are disabled.

        Raises:
            InputError: The execution provider is unknown, or it cannot be used on this machine.
            Unrunnable: onnxruntime refuses the model.
            Lost: The process crashed or gave no answer in time.
        """
        if self._process is None:
            self._start()
        for name, value in initializers:
            self._ask({"do": "initializer"}, {name: value})
        request = {
            "do": "open",
            "folder": str(folder.resolve()) if folder else None,
            "optimized": optimized,
            "provider": self._provider,
        }
        if isinstance(model, bytes):
            reply, _ = self._ask(request, {"model": np.frombuffer(model, np.uint8)})
        else:
            reply, _ = self._ask(request | {"path": str(model.resolve())}, {})
        return Signature(tuple(reply["inputs"]), tuple(reply["outputs"]), reply["left_out"])

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name, those of `Signature.left_out` aside.

        Raises:
            Unrunnable: The model fails on these feeds.
            Lost: The process crashed or gave no answer in time.
        """
        for name, value in feeds.items():
            if value.dtype.kind == "V":  # bfloat16 and smaller: numpy has them from ml_dtypes alone
                raise Unrunnable(f"input '{name}': onnxruntime takes no array of {value.dtype.name}")
        return self._ask({"do": "run"}, feeds)[1]

    def hold(self, folder: Path | None = None) -> None:
        """Forget all values that were kept; keep those to come in files in this folder, or in memory."""
        if self._process is None:
            self._start()
        self._ask({"do": "hold", "folder": None if folder is None else str(folder)}, {})

    def measure(
        self,
        feeds: Mapping[str, Array],
        key: int,
        *,
        runs: bool = True,
        keep: Iterable[str] = (),
        measure: Iterable[str] = (),
        samples: int,
    ) -> Observation:
        """Run the model on what was kept under a key, which is then forgotten, and on feeds.

        Args:
            feeds: Inputs of the model; more than it reads may be given.
            key: Of what was kept, and of what is to be.
            runs: Whether the model is needed at all.
            keep: Names of inputs and outputs to keep.
            measure: Names of inputs and outputs, of shape (rows, C, ...), whose moments are wanted.
            samples: How many samples the rows belong to.

        Raises:
            OutputError: There is no room for what is to be kept.
            Unrunnable: The model fails on these feeds, or the rows are no multiple of the samples.
            Lost: The process crashed or gave no answer in time.
        """
        if self._process is None:
            self._start()
        request = {
            "do": "measure",
            "key": key,
            "runs": runs,
            "keep": [*keep],
            "measure": [*measure],
            "samples": samples,
        }
        reply, arrays = self._ask(request, feeds)
        return Observation(
            {
                name: SampleMoments(size, arrays[f"mean:{name}"], arrays[f"m2:{name}"])
                for name, size in reply["sizes"].items()
            },
            {name: (np.dtype(code), size) for name, (code, size) in reply["kept"].items()},
        )

    def _start(self) -> None:
        # -P: the folder of that file has modules like `model` that must not shadow others. The
        # child finds packages where the parent does, however the parent came to its path.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "TMPDIR": self._folder.name,
        }
        self._complaints.seek(0)
        self._complaints.truncate()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", runtime.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env=environment,
            )
        except OSError as error:
            raise Lost(f"the process for onnxruntime could not be started: {error}") from error

    def _stop(self) -> int | None:
        """Kill the process, and say how it ended if it had ended by itself."""
        process, self._process = self._process, None
        if process is None or process.stdin is None or process.stdout is None:
            return None
        process.kill()
        for pipe in (process.stdin, process.stdout):
            try:
                pipe.close()
            except OSError:  # what was still buffered for a dead process
                continue
        return process.wait()

    def _ask(self, request: dict[str, Any], arrays: Mapping[str, Array]) -> Message:
        with self._watched() as (requests, replies):
            send(requests, request, arrays)
            reply, results = receive(replies)
        if "provider" in reply:
            raise InputError(reply["provider"])
        if "disk" in reply:
            raise OutputError(reply["disk"])
        if "error" in reply:
            raise Unrunnable(reply["error"])
        return reply, results

    @contextmanager
    def _watched(self) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
        """The pipes; a timer kills the process, so a read ends on every platform."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise Unrunnable("no model is open")
        late = threading.Event()

        def expire() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._timeout, expire)
        timer.daemon = True
        timer.start()
        try:
            yield process.stdin, process.stdout
        except (EOFError, OSError) as error:
            raise Lost(self._epitaph(late.is_set())) from error
        finally:
            timer.cancel()

    def _epitaph(self, late: bool) -> str:
        """Why the process is no more."""
        process = self._process
        if process is not None:
            try:  # its pipe can close a moment before it is gone
                process.wait(1.0)
            except subprocess.TimeoutExpired:
                process.kill()
        code = self._stop()
        if late:
            return f"onnxruntime gave no answer within {self._timeout:g} s"
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").strip().splitlines()
        ended = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return one_line(f"onnxruntime crashed ({ended})" + (f": {lines[-1]}" if lines else ""))
