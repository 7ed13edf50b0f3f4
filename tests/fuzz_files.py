"""Damages real models and runs the commands on them: `python tests/fuzz_files.py [COUNT] [--first SEED]`.

Each seed is one damaged file: bytes are flipped, cut or moved, or fields of the parsed model get values
that nobody expects; a third of the models have external data. `inspect`, `optimize --dry-run` and `verify`
must end with a result or with one line that says what is wrong, within limits of time and memory, and leave
nothing behind. What breaks this is kept below --into, in a folder named by its seed; the exit code is 1.

The commands run in a process that lives for many files, for starting one takes longer than a file does.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import onnx
from click.testing import CliRunner

ROOT = Path(__file__).parent.parent
DIGITS = ROOT / "fixtures" / "digits.onnx"
SHARED = ROOT.parent / "shared" / "models"

SECONDS = 60.0  # all commands on one file together; two cores may be shared
MEMORY = 3 << 30  # address space beyond what the imports take
LARGEST_SOURCE = 100_000
LONGEST_LINE = 20_000  # a message may list all inputs of two models
MODEL, DATA, ORIGINAL = "model.onnx", "weights.bin", "original.onnx"

Files = dict[str, bytes]


# --- Running commands ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Attributes:
        arguments: Of the command.
        code: The exit code; None when the process died or was killed.
        stdout: What it said, its first characters.
        stderr: Likewise; all of it.
        wrong: What must not be, or "".
        seconds: How long it took.
    """

    arguments: tuple[str, ...]
    code: int | None
    stdout: str = ""
    stderr: str = ""
    wrong: str = ""
    seconds: float = 0.0


class Worker:
    """A process that runs commands one after the other, and is replaced when it dies or is late."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._scratch = tempfile.mkdtemp(prefix="fuzz-")
        self._process: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def run(self, folder: Path, *commands: Sequence[str]) -> list[Ending]:
        """The endings of the commands in this folder; the last one may be that of the process."""
        if self._process is None:
            self._start()
        before = _listing(folder)
        endings: list[Ending] = []
        for arguments in commands:
            self._pipe.send((str(folder), list(arguments)))
            try:
                late = not self._pipe.poll(self._seconds)
                if not late:
                    endings.append(self._pipe.recv())
                    continue
            except EOFError:
                late = False
            code = self._stop()
            what = f"took more than {self._seconds:g} s" if late else f"the process died: {code}"
            endings.append(Ending(tuple(arguments), None, wrong=what))
            shutil.rmtree(self._scratch, ignore_errors=True)
            os.makedirs(self._scratch)
            break
        left = sorted(_listing(folder) ^ before) + os.listdir(self._scratch)
        if left:
            endings.append(Ending((), None, wrong=f"files appeared, changed or went: {left}"))
        return endings

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, inner = context.Pipe()
        self._process = context.Process(target=_serve, args=(inner, self._scratch), daemon=True)
        self._process.start()
        inner.close()
        self._pipe.recv()  # it is ready: imports are no command's fault

    def _stop(self) -> int | None:
        """Kill the process and its children; returns the exit code of one that had ended."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.join(0.5)
        code: int | None = process.exitcode
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        self._pipe.close()
        return code


def _listing(folder: Path) -> set[tuple[str, int]]:
    return {(p.name, p.lstat().st_size) for p in folder.iterdir()}


def _serve(pipe: Any, scratch: str) -> None:
    """The process: commands come in, endings go out. What is written past Python counts as well."""
    from bnfold.cli import main

    os.setsid()  # so that its children can be killed with it
    tempfile.tempdir = scratch
    noise = os.open(scratch + ".noise", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.unlink(scratch + ".noise")
    os.dup2(noise, 2)
    runner = CliRunner(env={"COLUMNS": "100", "GITHUB_ACTIONS": None, "GITHUB_STEP_SUMMARY": None})
    runner.invoke(main, ["verify", str(DIGITS), str(DIGITS), "--no-runtime"])  # imports what is lazy
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send(None)
    while True:
        try:
            folder, arguments = pipe.recv()
        except EOFError:
            return
        os.chdir(folder)
        os.ftruncate(noise, 0)
        start = time.perf_counter()
        result = runner.invoke(main, arguments)
        seconds = time.perf_counter() - start
        noisy = os.pread(noise, 300, 0).decode(errors="replace")
        # surrogates would not go through the pipe
        stderr = result.stderr.encode(errors="replace").decode()
        stdout = result.stdout.encode(errors="replace").decode()
        wrong = _wrong(arguments[0], result.exit_code, stdout, stderr)
        if not wrong and noisy:
            wrong = f"a library wrote to the standard error: {noisy!r}"
        pipe.send(Ending(tuple(arguments), result.exit_code, stdout[:4000], stderr, wrong, seconds))
        del result
        gc.unfreeze()  # the command freezes what it leaves, for it is its process's last
        gc.collect()


def _wrong(command: str, code: int, stdout: str, stderr: str) -> str:
    if code not in (0, 1, 2, 3):
        return f"exit code {code}: {stderr.strip()[:500]}"
    if "Traceback" in stderr:
        return "a traceback"
    if code == 2 and (stdout or not stderr.startswith("error: ") or stderr.count("\n") != 1):
        return "an error is not one line"
    if any(len(line) > LONGEST_LINE for line in stderr.splitlines()):
        return "a line is too long to read"
    if command == "optimize" and code == 1:
        return f"the fold is not what the model was: {stderr.strip()[:500]}"
    return ""


# --- Damaging files -----------------------------------------------------------------------------------


@cache
def sources() -> tuple[Path, ...]:
    """Real models that are small enough to be many; the light ones are large when they are run."""
    others = SHARED.rglob("*.onnx") if SHARED.is_dir() else iter(())
    small = (p for p in others if p.stat().st_size <= LARGEST_SOURCE and "light_" not in p.name)
    return DIGITS, *sorted(small)


def damaged(seed: int, paths: Sequence[Path]) -> tuple[str, Files]:
    """What was done, and the files: the damaged model, its data if it has any, and the original."""
    rng = random.Random(seed)
    path = DIGITS if rng.random() < 0.2 else rng.choice(paths)
    original = path.read_bytes()
    files = _with_data(original) if rng.random() < 1 / 3 else {MODEL: original}
    files[ORIGINAL] = original
    done = [path.stem]
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        kind = rng.choice((_bytes, _field, _field, _data) if DATA in files else (_bytes, _field, _field))
        done.append(kind(rng, files, paths))
    return " ".join(done), files


def _with_data(content: bytes) -> Files:
    """The model with its weights in a file beside it."""
    model = onnx.ModelProto.FromString(content)
    data = bytearray()
    for tensor in model.graph.initializer:
        if not tensor.raw_data:
            continue
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", DATA), ("offset", len(data)), ("length", len(tensor.raw_data))):
            tensor.external_data.add(key=key, value=str(value))
        data += tensor.raw_data
        tensor.ClearField("raw_data")
    return {MODEL: model.SerializeToString(), DATA: bytes(data)} if data else {MODEL: content}


def _data(rng: random.Random, files: Files, _: Sequence[Path]) -> str:
    if rng.random() < 0.3:
        del files[DATA]
        return "data-gone"
    what, files[DATA] = _bent(rng, files[DATA], b"")
    return f"data-{what}"


def _bytes(rng: random.Random, files: Files, paths: Sequence[Path]) -> str:
    what, files[MODEL] = _bent(rng, files[MODEL], rng.choice(paths).read_bytes())
    return what


def _bent(rng: random.Random, content: bytes, other: bytes) -> tuple[str, bytes]:
    new = bytearray(content)
    # Weights are most of a file, and what they are does not matter much: most is done near the ends.
    window = rng.choice((len(new), min(len(new), 400)))
    base = rng.choice((0, len(new) - window))
    at = base + rng.randrange(window + 1)
    size = rng.choice((1, 2, 4, 16, 200))
    what = rng.choice(("flip", "set", "cut", "drop", "insert", "twice", "splice", "varint", "swap"))
    if what == "flip":
        for _ in range(size if new else 0):
            new[(at + rng.randrange(64)) % len(new)] ^= 1 << rng.randrange(8)
    elif what == "set":
        new[at : at + 1] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF))])
    elif what == "cut":
        del new[at:]
    elif what == "drop":
        del new[at : at + size]
    elif what == "insert":
        new[at:at] = rng.randbytes(size)
    elif what == "twice":
        new[at:at] = new[at : at + size]
    elif what == "splice":
        start = rng.randrange(len(other) + 1)
        new[at : at + rng.choice((0, size))] = other[start : start + size]
    elif what == "varint":
        new[at : at + 1] = rng.choice((b"\xff" * 9 + b"\x01", b"\xff" * 4 + b"\x07", b"\x80\x80\x80\x00"))
    else:
        new[at : at + size] = new[at : at + size][::-1]
    return what, bytes(new)


_INTEGERS = (0, 1, -1, 2, 3, 5, 7, 64, 127, 2**20, 2**31 - 1, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63))
_NUMBERS = (0.0, -0.0, -1.0, 1e-45, 3.4e38, float("inf"), float("-inf"), float("nan"))
_STRINGS = (
    *("", "x", "y", "0", "-1", "9" * 30, "4611686018427387904", "length", "offset", "location"),
    *(
        "..",
        "../model.onnx",
        "/etc/passwd",
        "/dev/zero",
        ".",
        "weights.bin/",
        "a\0b",
        "::error::x",
        "\x1b[2J",
    ),
    *("\u202e", "<b>", "ai.onnx", "com.microsoft", "Conv", "BatchNormalization", "If", "Identity", "Expand"),
)


def _field(rng: random.Random, files: Files, _: Sequence[Path]) -> str:
    """Change one field of the parsed model."""
    try:
        model = onnx.ModelProto.FromString(files[MODEL])
    except Exception:
        return "unparsed"
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    message = rng.choice([*_messages(model)])
    known = message.DESCRIPTOR.fields
    present = [descriptor for descriptor, _ in message.ListFields()]
    descriptor = rng.choice(known if rng.random() < 0.3 or not present else present)
    _change(rng, message, descriptor, names)
    with suppress(Exception):  # a message that cannot be written is none that can be read
        files[MODEL] = model.SerializeToString()
    return f"{message.DESCRIPTOR.name}.{descriptor.name}"


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for part in value if descriptor.is_repeated else (value,):
                yield from _messages(part)


def _change(rng: random.Random, message: Any, descriptor: Any, names: Sequence[str]) -> None:
    name = descriptor.name
    value = getattr(message, name)
    if not descriptor.is_repeated:
        if descriptor.message_type is not None:
            message.ClearField(name) if message.HasField(name) else value.SetInParent()
        elif rng.random() < 0.2:
            message.ClearField(name)
        else:
            with suppress(ValueError):  # out of the range of the field
                setattr(message, name, _scalar(rng, descriptor, names))
        return
    what = rng.choice(("drop", "twice", "shuffle", "add", "replace", "clear", "many"))
    entries = [*value]
    if what == "drop" and entries:
        del entries[rng.randrange(len(entries))]
    elif what == "twice" and entries:
        entries.insert(rng.randrange(len(entries) + 1), rng.choice(entries))
    elif what == "shuffle":
        rng.shuffle(entries)
    elif what == "many" and entries and message.ByteSize() < 5000:
        entries = entries * rng.choice((10, 300))
    elif what == "clear" and rng.random() < 0.5:
        entries = []
    elif descriptor.message_type is not None:
        entries.append(type(value.add())())
    else:
        at = rng.randrange(len(entries) + 1)
        entries[at : at + (what == "replace")] = [_scalar(rng, descriptor, names)]
    kept = [
        type(e).FromString(e.SerializePartialToString()) if descriptor.message_type else e for e in entries
    ]
    message.ClearField(name)
    with suppress(ValueError):
        getattr(message, name).extend(kept)


def _scalar(rng: random.Random, descriptor: Any, names: Sequence[str]) -> Any:
    kinds = descriptor
    if descriptor.cpp_type in (kinds.CPPTYPE_FLOAT, kinds.CPPTYPE_DOUBLE):
        return rng.choice(_NUMBERS)
    if descriptor.cpp_type == kinds.CPPTYPE_STRING:
        text = rng.choice(names) if names and rng.random() < 0.5 else rng.choice(_STRINGS)
        if descriptor.type == kinds.TYPE_BYTES:
            return rng.choice((text.encode(), rng.randbytes(rng.choice((0, 1, 4, 8, 64))), b"\xff\xfe"))
        return text
    if descriptor.cpp_type == kinds.CPPTYPE_ENUM:
        return rng.choice((0, 1, 2, 5, 12, 99))
    return rng.choice((*_INTEGERS, rng.randrange(24)))


# --- Many of them -------------------------------------------------------------------------------------


def commands(seed: int) -> list[tuple[str, ...]]:
    """What is done with a damaged model; one in forty is also given to onnxruntime."""
    pair = (MODEL, ORIGINAL) if seed % 2 else (ORIGINAL, MODEL)
    judge = () if seed % 40 == 0 else ("--no-runtime",)
    inspect = ("inspect", MODEL, *(("--inline-functions",) if seed % 3 == 0 else ()))
    optimize = ("optimize", MODEL, "--dry-run", *(("--freeze-initializers",) if seed % 3 == 1 else ()))
    return [inspect, optimize, ("verify", *pair, *judge)]


def write(files: Mapping[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


@dataclass
class Tally:
    """What a run of many seeds came to.

    Attributes:
        files: How many there were.
        codes: How often each command ended with each exit code.
        wrong: By seed, what was done to the file and what went wrong.
        slowest: Seconds, seed, and the command.
    """

    files: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    wrong: dict[int, str] = field(default_factory=dict)
    slowest: tuple[float, int, str] = (0.0, 0, "")


def fuzz(
    seeds: Sequence[int],
    paths: Sequence[Path],
    *,
    into: Path | None = None,
    workers: int = 2,
    told: Callable[[str], object] = lambda line: None,
) -> Tally:
    """Run the commands on the damaged files of these seeds; those that break something are kept in `into`."""
    tally, lock, turn = Tally(), threading.Lock(), iter(seeds)

    def work(_: int) -> None:
        with Worker() as worker, tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
            while True:
                with lock:
                    seed = next(turn, None)
                if seed is None:
                    return
                folder = Path(scratch, str(seed))
                what, files = damaged(seed, paths)
                write(files, folder)
                endings = worker.run(folder, *commands(seed))
                shutil.rmtree(folder)
                with lock:
                    _count(tally, seed, what, endings, told)
                    if into is not None and seed in tally.wrong:
                        write(files, into / str(seed))
                        (into / str(seed) / "what.txt").write_text(tally.wrong[seed] + "\n")

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, range(workers)):
            pass
    return tally


def _count(
    tally: Tally, seed: int, what: str, endings: Sequence[Ending], told: Callable[[str], object]
) -> None:
    tally.files += 1
    for ending in endings:
        name = ending.arguments[0] if ending.arguments else "files"
        tally.codes[f"{name} {ending.code}"] += 1
        tally.slowest = max(tally.slowest, (ending.seconds, seed, name))
        if ending.wrong:
            line = f"{' '.join(ending.arguments)}: {ending.wrong} [{what}]"
            tally.wrong[seed] = line
            told(f"seed {seed}: {line}")
    if tally.files % 1000 == 0:
        told(f"{tally.files} files, {len(tally.wrong)} wrong")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("count", nargs="?", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--into", type=Path, default=ROOT / "build" / "fuzz" / "files")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.count)
    start = time.perf_counter()
    tally = fuzz(seeds, sources(), into=options.into, told=lambda line: print(line, flush=True))
    seconds = time.perf_counter() - start
    print(
        f"{tally.files} damaged files of {len(sources())} models in {seconds:.0f} s: {len(tally.wrong)} wrong"
    )
    print(json.dumps(dict(sorted(tally.codes.items()))))
    print("slowest: {:.1f} s, seed {}, {}".format(*tally.slowest))
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
