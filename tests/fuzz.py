"""Random graphs, and what must hold for each: `python tests/fuzz.py --count 20000`.

A seed is a graph: operators with and without a rule, four types, opsets 7 to 22, constants spelled in many
ways and shared, several readers, inner graphs, local functions, nodes without a name or with another's. How
it grows is in `fuzz_graphs`. A graph that breaks a promise is left in build/fuzz.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import count
from pathlib import Path
from types import FrameType

import onnx
from cases import all_ops
from fuzz_graphs import grown
from graphs import folded
from threadpoolctl import threadpool_limits

import bnfold

SECONDS_EACH = 60  # for one graph: some take a second
RUNTIME_EVERY = 50  # onnxruntime's part starts a process, which takes longer than all the rest
CHUNK = 20
LEFT_IN = Path(__file__).parent.parent / "build" / "fuzz"


def check(proto: onnx.ModelProto, folder: Path, *, runtime: bool = False) -> str:
    """Assert all that holds for every model, and say what became of this one.

    Args:
        proto: The model.
        folder: For its files, which must be new.
        runtime: Whether onnxruntime compares the two as well.
    """
    source, target = folder / "model.onnx", folder / "model.folded.onnx"
    onnx.save(proto, source)
    try:
        after, _ = folded(proto)
        report = bnfold.optimize(source, target)
    except bnfold.InputError as error:
        return f"refused: {str(error).replace(str(folder), '')[:60]}"
    except bnfold.Undecided:
        return "undecided"
    assert sorted(all_ops(onnx.load(target))) == sorted(all_ops(after)), "optimize folds what fold does not"
    if runtime:
        compared = bnfold.verify(source, target)
        assert compared.verdict is not bnfold.Verdict.FAIL, compared.message
    return "folded" if report.fold.modified else "nothing to fold"


def failure(seed: int) -> tuple[str, str]:
    """What became of the graph of a seed, and, if it broke a promise, how."""
    proto = grown(seed)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return check(proto, Path(folder), runtime=seed % RUNTIME_EVERY == 0), ""
        except Exception as error:
            LEFT_IN.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder) / "model.onnx", LEFT_IN / f"graph-{seed}.onnx")
            where = traceback.extract_tb(error.__traceback__)[-1]
            what = " ".join(str(error).split())[:300]
            return "failed", f"{type(error).__name__}: {what} ({Path(where.filename).name}:{where.lineno})"


def failures(seeds: range) -> list[tuple[int, str, str]]:
    """For each seed what became of its graph; a graph that takes too long fails."""
    signal.signal(signal.SIGALRM, _too_long)
    found = []
    with threadpool_limits(1, user_api="blas"):
        for seed in seeds:
            signal.alarm(SECONDS_EACH)
            found.append((seed, *failure(seed)))
            signal.alarm(0)
    return found


def _too_long(_: int, __: FrameType | None) -> None:
    raise TimeoutError(f"takes longer than {SECONDS_EACH} s")


def main() -> int:
    """The long run: how many graphs there were and what became of them; 1 if one broke a promise."""
    parser = argparse.ArgumentParser(description="Random graphs, and what must hold for each.")
    parser.add_argument("--count", type=int, help="how many graphs; by default, as many as the time allows")
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which no graph is begun")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    fates: Counter[str] = Counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.processes, mp_context=context) as pool:
        waiting = set()
        for seeds in _chunks(arguments.first, arguments.count):
            waiting.add(pool.submit(failures, seeds))
            while len(waiting) >= 2 * arguments.processes:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    fates.update(_told(future.result()))
            if time.monotonic() > end:
                break
        for future in waiting:
            fates.update(_told(future.result()))
    print(f"{fates.total()} graphs from seed {arguments.first}:")
    for fate, times in fates.most_common():
        print(f"{times:8d} {fate}")
    return 1 if fates["failed"] else 0


def _chunks(first: int, length: int | None) -> Iterator[range]:
    for start in count(first, CHUNK):
        end = start + CHUNK if length is None else min(start + CHUNK, first + length)
        if start >= end:
            return
        yield range(start, end)


def _told(found: list[tuple[int, str, str]]) -> list[str]:
    for seed, _, what in found:
        if what:
            print(f"seed {seed}: {what}", flush=True)
    return [fate for _, fate, _ in found]


if __name__ == "__main__":
    sys.exit(main())
