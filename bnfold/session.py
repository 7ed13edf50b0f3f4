"""Runs models in onnxruntime, in a process of its own.

onnxruntime can crash or hang on a model that it cannot handle; here that ends a child process and
becomes an `Unrunnable`. The child is this very file, run as a script: it imports little more than numpy
and onnxruntime, so it starts fast, and it needs no `__main__` guard in the program that uses it.
Parent and child speak over pipes: a JSON header, then the bytes of the arrays it announces. What only the
next run needs stays in the child, and so do activations of which only moments are wanted.
"""

from __future__ import annotations

import json
import os
import re
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
from numpy.typing import NDArray

from bnfold.moments import SampleMoments  # by its full name: the child runs this file as a script

Array = NDArray[Any]
Message = tuple[dict[str, Any], dict[str, Array]]  # header and arrays

CPU = "CPUExecutionProvider"


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
        # -P: the folder of this file has modules like `model` that must not shadow others. The
        # child finds packages where the parent does, however the parent came to its path.
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "TMPDIR": self._folder.name,
        }
        self._complaints.seek(0)
        self._complaints.truncate()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", __file__],
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
            _send(requests, request, arrays)
            reply, results = _receive(replies)
        if "provider" in reply:
            from .errors import InputError  # not above: the child runs this file outside of its package

            raise InputError(reply["provider"])
        if "disk" in reply:
            from .errors import OutputError

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
        return _one_line(f"onnxruntime crashed ({ended})" + (f": {lines[-1]}" if lines else ""))


# What goes over the pipes


def _send(stream: IO[bytes], header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    plain = {name: np.asarray(value, order="C") for name, value in arrays.items()}
    announced = [[name, value.dtype.str, value.shape] for name, value in plain.items()]
    text = json.dumps({**header, "arrays": announced}).encode()
    stream.write(len(text).to_bytes(8, "little") + text)
    for value in plain.values():
        stream.write(value.reshape(-1).view(np.uint8).data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Message:
    length = int.from_bytes(_read(stream, 8).tobytes(), "little")
    header: dict[str, Any] = json.loads(_read(stream, length).tobytes())
    arrays = {}
    for name, code, shape in header["arrays"]:
        dtype = np.dtype(code)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        arrays[name] = _read(stream, size).view(dtype).reshape(shape)
    return header, arrays


def _read(stream: IO[bytes], size: int) -> NDArray[np.uint8]:
    buffer = np.empty(size, np.uint8)
    done = 0
    while done < size:
        got = stream.readinto(buffer[done:].data)  # type: ignore[attr-defined]  # IO lacks it, pipes have it
        if not got:
            raise EOFError
        done += got
    return buffer


def _one_line(text: str) -> str:
    short = re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", " ".join(text.split()))
    return short if len(short) <= 400 else short[:397] + "..."


# The child

# The types that numpy has too, as onnxruntime spells them.
_NUMBERS = ("float", "double", "float16", "bool", *(f"{s}int{n}" for s in ("", "u") for n in (8, 16, 32, 64)))
_TENSORS = {f"tensor({name})" for name in _NUMBERS}


class _NoProvider(Exception):
    """The execution provider cannot be had; a sentence for the user."""


class _Full(Exception):
    """There is no room for what is to be kept; a sentence for the user."""


class _Shelf:
    """Arrays that are kept between runs, by a number: in memory, or each number's in a file."""

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self._kept: dict[int, dict[str, Array]] = {}

    def put(self, key: int, arrays: dict[str, Array]) -> None:
        if self._folder is None:
            self._kept[key] = arrays
            return
        try:
            with open(self._path(key), "wb") as file:
                names = {str(i): np.asarray(array, order="C") for i, array in enumerate(arrays.values())}
                np.savez(file, **names, names=np.array(json.dumps([*arrays])))  # type: ignore[arg-type]
        except OSError as error:
            raise _Full(
                f"values between levels cannot be kept in a temporary file: {error.strerror or error}; free "
                "some space, set TMPDIR to another folder, or pass --cache none"
            ) from error

    def take(self, key: int) -> dict[str, Array]:
        """What was put there, which is then gone; nothing if nothing was."""
        if self._folder is None:
            return self._kept.pop(key, {})
        path = self._path(key)
        if not os.path.exists(path):
            return {}
        with np.load(path, allow_pickle=False) as file:
            names = json.loads(str(file["names"]))
            found = {name: file[str(i)] for i, name in enumerate(names)}
        os.unlink(path)
        return found

    def _path(self, key: int) -> str:
        return os.path.join(self._folder or "", f"{key}.npz")


class _Runtime:
    """The other end of the pipes: holds the one open model."""

    def __init__(self) -> None:
        import onnxruntime

        self._onnxruntime = onnxruntime
        self._session: Any = None
        self._inputs: list[str] = []
        self._outputs: list[str] = []
        self._shelf = _Shelf(None)
        # onnxruntime does not own the values that it is given: they live as long as the session.
        self._values: dict[str, Any] = {}
        self._pending: dict[str, Any] = {}

    def answer(self, request: dict[str, Any], arrays: dict[str, Array]) -> Message:
        match request["do"]:
            case "initializer":
                convert = self._onnxruntime.OrtValue.ortvalue_from_numpy
                self._pending |= {name: convert(value) for name, value in arrays.items()}
                return {}, {}
            case "open":
                return self._open(request, arrays.get("model")), {}
            case "hold":
                self._shelf = _Shelf(request["folder"])
                return {}, {}
            case "measure":
                return self._measure(request, arrays)
            case _:
                return {}, self._run(arrays)

    def _open(self, request: dict[str, Any], model: Array | None) -> dict[str, Any]:
        self._session = None  # free the model before, so that there is never more than one
        self._values, self._pending = self._pending, {}
        self._need_known(request["provider"])
        options = self._options(request)
        for name, value in self._values.items():
            options.add_initializer(name, value)
        source = request["path"] if model is None else model.tobytes()
        providers = list(dict.fromkeys([request["provider"], CPU]))
        session = self._onnxruntime.InferenceSession(source, options, providers=providers)
        if request["provider"] not in session.get_providers():
            # Listed, but its libraries or its device are missing: onnxruntime then takes the CPU alone.
            raise _NoProvider(
                f"the execution provider '{request['provider']}' could not be started by onnxruntime "
                f"{self._onnxruntime.__version__}; check its driver and libraries, or use '{CPU}'"
            )
        self._session = session
        self._inputs = [i.name for i in session.get_inputs()]
        types = {o.name: o.type for o in session.get_outputs()}
        self._outputs = [name for name, kind in types.items() if kind in _TENSORS]
        return {
            "inputs": self._inputs,
            "outputs": self._outputs,
            "left_out": {name: kind for name, kind in types.items() if kind not in _TENSORS},
        }

    def _need_known(self, provider: str) -> None:
        available = self._onnxruntime.get_available_providers()
        if provider not in available:
            raise _NoProvider(
                f"the execution provider '{provider}' is not available in onnxruntime "
                f"{self._onnxruntime.__version__}, which has {', '.join(available)}; name one of these, or "
                "install the onnxruntime package that has it"
            )

    def _options(self, request: dict[str, Any]) -> Any:
        options = self._onnxruntime.SessionOptions()
        levels = self._onnxruntime.GraphOptimizationLevel
        if not request["optimized"]:  # else as onnxruntime has it
            options.graph_optimization_level = levels.ORT_DISABLE_ALL
        options.intra_op_num_threads = 2  # a fixed number: sums are split by it
        options.inter_op_num_threads = 1
        options.use_deterministic_compute = True
        options.log_severity_level = 4
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if request["folder"] is not None:
            entry = "session.model_external_initializers_file_folder_path"
            options.add_session_config_entry(entry, request["folder"])
        return options

    def _run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        if self._session is None:
            raise ValueError("no model is open")
        if not self._outputs:  # to onnxruntime an empty list means all
            raise ValueError("none of its outputs is a tensor of numbers")
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))

    def _measure(self, request: dict[str, Any], feeds: dict[str, Array]) -> Message:
        values = self._shelf.take(request["key"]) | feeds
        if request["runs"]:
            values |= self._run({name: values[name] for name in self._inputs})
        kept = {name: values[name] for name in request["keep"]}
        if kept:
            self._shelf.put(request["key"], kept)
        sizes: dict[str, int] = {}
        arrays: dict[str, Array] = {}
        for name in request["measure"]:
            try:
                moments = SampleMoments.of(values[name], request["samples"])
            except ValueError as error:
                raise ValueError(f"'{name}' cannot be measured: {error}") from error
            sizes[name] = moments.size
            arrays |= {f"mean:{name}": moments.mean, f"m2:{name}": moments.m2}
        reply = {
            "sizes": sizes,
            "kept": {name: [value.dtype.str, value.nbytes] for name, value in kept.items()},
        }
        return reply, arrays


def _serve() -> None:
    """Answer until the parent closes the pipe."""
    # What native code prints must not get among the replies.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    runtime: _Runtime | None = None
    while True:
        try:
            request, arrays = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            runtime = runtime or _Runtime()
            reply, results = runtime.answer(request, arrays)
        except _NoProvider as error:
            reply, results = {"provider": str(error)}, {}
        except _Full as error:
            reply, results = {"disk": str(error)}, {}
        except Exception as error:  # onnxruntime's errors have no base of their own; all go to the parent
            reply, results = {"error": _one_line(str(error) or type(error).__name__)}, {}
        _send(replies, reply, results)


if __name__ == "__main__":
    _serve()
