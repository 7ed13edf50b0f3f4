"""Runs models in onnxruntime: the child process of a `Session`, and the only file that knows onnxruntime.

It is run as a script and imports little more than numpy and onnxruntime, so it starts fast and needs no
`__main__` guard in the program that uses it. What only the next run needs stays here, and so do activations
of which only moments are wanted.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np

# By their full names: this file is run as a script.
from bnfold.moments import SampleMoments
from bnfold.pipes import Array, Message, one_line, receive, send

CPU = "CPUExecutionProvider"

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
            request, arrays = receive(sys.stdin.buffer)
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
            reply, results = {"error": one_line(str(error) or type(error).__name__)}, {}
        send(replies, reply, results)


if __name__ == "__main__":
    _serve()
