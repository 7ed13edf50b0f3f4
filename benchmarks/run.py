"""bnfold beside its peers: time, memory and outcome of a fold, each tool as a whole process.

python benchmarks/run.py
python benchmarks/run.py --only resnet50,chain500 --tools bnfold,onnxruntime --runs 3
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import judge
import models
import process
from options import several_of
from table import table
from tools import TOOLS, Role, Tool

CACHE = Path(__file__).parent / "models"
SHOWN = tuple(name for name in models.MODELS if name != models.WARM_UP)
BUILD_TIMEOUT = 600.0
CHAIN_BAR = 12.0

HEADER = (
    "tool",
    "version",
    "median s",
    "min-max s",
    "peak MB",
    "BN left",
    "nodes left",
    "bnfold/tool time",
    "bnfold/tool memory",
    "relative error",
)


@dataclass
class Result:
    """What was measured of one tool on one model.

    Attributes:
        tool: The tool.
        runs: One entry per process; after one without a result the tool was not run again.
        count: The nodes left; None without a result.
        comparison: The result against the original.
    """

    tool: Tool
    runs: list[process.Run] = field(default_factory=list)
    count: judge.Count | None = None
    comparison: judge.Comparison = field(default_factory=judge.Comparison)

    @property
    def failed(self) -> bool:
        """Whether the last run gave no result."""
        return bool(self.runs and self.runs[-1].failure)

    @property
    def timed_out(self) -> bool:
        """Whether it gave none because its time was up: then time and memory are lower bounds."""
        return bool(self.runs and self.runs[-1].timed_out)

    @property
    def measured(self) -> bool:
        """Whether time and memory say something, if only as lower bounds."""
        return not self.failed or self.timed_out

    @property
    def seconds(self) -> float:
        """Median wall time."""
        return self.runs[-1].seconds if self.timed_out else median(run.seconds for run in self.runs)

    @property
    def peak(self) -> float:
        """Median peak memory in bytes."""
        return median(run.peak for run in self.runs)


Results = dict[str, Result]
"""The results on one model by the name of the tool."""


def main() -> None:
    options = _options()
    tools = [tool for tool in TOOLS if tool.name in options.tools]
    machine = f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores"
    print(f"{machine}, Python {platform.python_version()}; {options.runs} runs of each tool, interleaved.")
    results: dict[str, Results] = {}
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="run-") as folder:
        for tool in tools:  # unmeasured: leaves every tool's libraries and byte code in the file cache
            tool.run(model(models.WARM_UP), _target(Path(folder), tool), timeout=options.timeout)
        for name in options.only:
            results[name] = measure(name, tools, Path(folder), options.runs, options.timeout)
            print(f"\n## {name}\n\n{show(results[name])}", flush=True)
    print("\n## Bars\n")
    print("\n".join(f"- {line}" for line in bars(results)))
    if options.json:
        options.json.write_text(json.dumps(raw(results), indent=1) + "\n")


def _options() -> argparse.Namespace:
    every = tuple(tool.name for tool in TOOLS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", type=several_of(SHOWN), default=SHOWN, help=f"of {','.join(SHOWN)}")
    parser.add_argument("--tools", type=several_of(every), default=every, help=f"of {','.join(every)}")
    parser.add_argument("--runs", type=int, default=5, help="per tool and model (%(default)s)")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one run (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every single measurement there")
    return parser.parse_args()


def model(name: str) -> Path:
    """The generated model's file, made now if it is missing or older than its generator."""
    path, generator = CACHE / f"{name}.onnx", Path(models.__file__)
    if not path.exists() or path.stat().st_mtime < generator.stat().st_mtime:
        command = [sys.executable, str(generator), name, str(path.resolve())]
        made = process.run(command, cwd=CACHE, timeout=BUILD_TIMEOUT)
        if made.failure:
            raise SystemExit(f"{path} could not be made: {made.failure}")
    return path


def _target(folder: Path, tool: Tool) -> Path:
    return folder / tool.name.replace(" ", "") / "result.onnx"


def measure(name: str, tools: list[Tool], folder: Path, runs: int, timeout: float) -> Results:
    """Run every tool `runs` times on one model, then judge what it wrote last."""
    source = model(name)
    results = {tool.name: Result(tool) for tool in tools}
    for turn in range(runs):
        # Interleaved, so that noise hits all alike; shuffled, so that nobody always follows the heaviest.
        for tool in random.Random(turn).sample(tools, len(tools)):
            result = results[tool.name]
            if not result.failed:
                print(f"{name}: {tool.name}, run {turn + 1} of {runs}", file=sys.stderr)
                result.runs.append(tool.run(source, _target(folder, tool), timeout=timeout))
    for result in results.values():
        if not result.failed:
            result.count, result.comparison = judge.judge(
                source, _target(folder, result.tool), timeout=timeout
            )
    return results


def show(results: Results) -> str:
    """The table of one model, and below it why a cell of it is empty."""
    ours = _ours(results)
    rows = [_row(result, ours) for result in results.values()]
    remarks = [f"- {name}: {_remark(result)}" for name, result in results.items() if _remark(result)]
    return "\n".join([table(HEADER, rows), *([""] if remarks else []), *remarks])


def _row(result: Result, ours: Result | None) -> tuple[str, ...]:
    if not result.measured:
        return (result.tool.name, result.tool.version, "failed", *["-"] * (len(HEADER) - 3))
    more, less = (">", "<") if result.timed_out else ("", "")
    seconds = [run.seconds for run in result.runs]
    return (
        result.tool.name,
        result.tool.version,
        f"{more}{result.seconds:.0f}" if result.timed_out else f"{result.seconds:.2f}",
        "-" if result.timed_out else f"{min(seconds):.2f}-{max(seconds):.2f}",
        f"{more}{result.peak / 1e6:.0f}",
        str(result.count.batchnorms) if result.count else "-",
        str(result.count.nodes) if result.count else "-",
        f"{less}{ours.seconds / result.seconds:.2f}" if ours else "-",
        f"{less}{ours.peak / result.peak:.2f}" if ours else "-",
        "-" if result.comparison.error is None else f"{result.comparison.error:.1e}",
    )


def _remark(result: Result) -> str:
    if result.timed_out:
        return f"no result after {result.seconds:.0f} s, not run again"
    return f"failed: {result.runs[-1].failure}" if result.failed else result.comparison.detail


def bars(results: dict[str, Results]) -> Iterator[str]:
    """What the measurements say about each bar that bnfold has set itself, a line each."""
    for name in ("resnet50", "resnet152"):
        if name in results:
            yield _best(f"{name}: faster than every Python peer", results[name], [Role.PYTHON], "seconds")
            yield _best(f"{name}: lighter than every Python peer", results[name], [Role.PYTHON], "peak")
    if "chain5000" in results:
        every = [Role.PYTHON, Role.RUNTIME]
        yield _best("chain5000: faster than every peer", results["chain5000"], every, "seconds")
    if "chain500" in results and "chain5000" in results:
        question = f"chain5000: within {CHAIN_BAR:.0f} times the time of chain500"
        short, long = _ours(results["chain500"]), _ours(results["chain5000"])
        ratio = long.seconds / short.seconds if short and long else None
        yield _answer(question, ratio, CHAIN_BAR, "times")


def _best(question: str, results: Results, roles: list[Role], measure: str) -> str:
    peers = [peer for peer in results.values() if peer.tool.role in roles and peer.measured]
    ours = _ours(results)
    if ours is None or not peers:
        return _answer(question, None, 1, "")
    closest = min(peers, key=lambda peer: getattr(peer, measure))
    ratio = getattr(ours, measure) / getattr(closest, measure)
    return _answer(question, ratio, 1, f"of the closest, {closest.tool.name}")


def _ours(results: Results) -> Result | None:
    ours = results.get("bnfold")
    return ours if ours and not ours.failed else None


def _answer(question: str, ratio: float | None, bar: float, unit: str) -> str:
    if ratio is None:
        return f"{question}: not shown, a result is missing"
    return f"{question}: {'yes' if ratio <= bar else 'NO'}, {ratio:.2f} {unit}"


def raw(results: dict[str, Results]) -> dict[str, Any]:
    """Every single measurement, JSON-ready: model, tool, runs."""
    return {name: {tool: _raw(result) for tool, result in of.items()} for name, of in results.items()}


def _raw(result: Result) -> dict[str, Any]:
    return {
        "version": result.tool.version,
        "runs": [asdict(run) for run in result.runs],
        "count": asdict(result.count) if result.count else None,
        "comparison": asdict(result.comparison),
    }


if __name__ == "__main__":
    main()
