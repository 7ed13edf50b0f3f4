"""What each tool leaves of BatchNormalization in models made by others, and whether it is right.

Reads ../shared/models, seen from the project, and the light models inside the onnx package. A model
with neither a BatchNormalization nor a constant affine is left out.

    python benchmarks/coverage.py --tools bnfold,onnxruntime
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import judge
import process
from judge import Fault
from options import several_of
from table import table
from tools import TOOLS, Role, Tool

SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
FOLDING = tuple(tool for tool in TOOLS if tool.role is not Role.BASELINE)
ERROR_BAR = 1e-4  # right results stay below 3e-5 here; one bias off by 0.1 shows from 8e-4 on

LEGEND = f"""\
A cell tells how many BatchNormalization nodes are left, then the error relative to the original, both
run by onnxruntime with optimizations disabled on one seeded input. `crash`: a signal ended the tool;
`fails`: it returned an exit code other than 0, or no file. `invalid`: onnxruntime does not run the
result. `differs`: other inputs, outputs, shapes, integers, or places of NaN. `?`: the original does not
run either, or draws random numbers. A result is wrong when it is invalid, differs, or errs by more than
{ERROR_BAR:g}. `*`: inputs with a default value are gone, so the result no longer lets a caller set them."""


@dataclass(frozen=True)
class Outcome:
    """What one tool made of one model.

    Attributes:
        done: The process.
        count: The nodes left; None without a readable result.
        comparison: The result against the original.
    """

    done: process.Run
    count: judge.Count | None
    comparison: judge.Comparison

    @property
    def wrong(self) -> bool:
        """Whether there is a result, and it is not the original's function."""
        if self.comparison.error is not None:
            return self.comparison.error > ERROR_BAR
        return not self.done.failure and self.comparison.fault is not Fault.UNKNOWN

    def __str__(self) -> str:
        if self.done.failure:
            return "time-out" if self.done.timed_out else "crash" if self.done.crashed else "fails"
        error, fault = self.comparison.error, self.comparison.fault
        left = "" if self.count is None else self.count.batchnorms
        verdict = fault if error is None else f"{error:.0e}"
        return f"{left} {verdict}{'*' if self.comparison.frozen else ''}".strip()


def main() -> None:
    options = _options()
    tools = [tool for tool in FOLDING if tool.name in options.tools]
    before: list[int] = []
    rows: list[list[str]] = []
    outcomes: list[list[Outcome]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path in _models():
            original, itself = judge.judge(path, path, timeout=options.timeout)
            if original is None or not (original.batchnorms or original.affines):
                continue
            print(name, file=sys.stderr)
            target = Path(folder) / "work" / "result.onnx"
            made = [_outcome(tool, path, target, itself, options.timeout) for tool in tools]
            before.append(original.batchnorms)
            rows.append([name, str(original.batchnorms), str(original.affines), *map(str, made)])
            outcomes.append(made)
    if rows:
        columns = list(zip(*outcomes, strict=True))
        totals = [_total(tool, before, column) for tool, column in zip(tools, columns, strict=True)]
        print(f"{LEGEND}\n")
        print(table(["model", "BN", "affines", *(tool.name for tool in tools)], rows))
        print(f"\nAll {len(rows)} models; one without a right result counts as if nothing was folded:\n")
        print(
            table(
                ["tool", "version", f"BN left of {sum(before)}", "no result", "wrong", "inputs gone"], totals
            )
        )


def _options() -> argparse.Namespace:
    every = [tool.name for tool in FOLDING]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tools", type=several_of(every), default=every, help=f"of {','.join(every)}")
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one run (%(default)s)")
    return parser.parse_args()


def _models() -> Iterator[tuple[str, Path]]:
    """The models with the name to show."""
    if not SHARED.is_dir():
        print("../shared/models is absent: only the light models of onnx are tried", file=sys.stderr)
    for path in sorted(SHARED.glob("*/*.onnx")):
        yield f"{path.parent.name}/{path.stem}", path
    package = importlib.util.find_spec("onnx")  # not imported: this process stays small, see `process`
    if package is None or package.origin is None:
        raise SystemExit("the onnx package is not installed")
    for path in sorted(Path(package.origin).parent.glob("backend/test/data/light/*.onnx")):
        yield f"onnx/{path.stem}", path


def _outcome(tool: Tool, source: Path, target: Path, itself: judge.Comparison, timeout: float) -> Outcome:
    done = tool.run(source, target, timeout=timeout)
    if done.failure:
        return Outcome(done, None, judge.Comparison())
    count, comparison = judge.judge(source, target, timeout=timeout)
    # An original that takes the runtime down, or is not equal to itself, says nothing about a result.
    return Outcome(done, count, comparison if itself.error == 0 else judge.Comparison(fault=Fault.UNKNOWN))


def _total(tool: Tool, before: list[int], outcomes: Sequence[Outcome]) -> list[str]:
    left = sum(
        had if made.wrong or made.count is None else made.count.batchnorms
        for had, made in zip(before, outcomes, strict=True)
    )
    failures = sum(bool(made.done.failure) for made in outcomes)
    wrong = sum(made.wrong for made in outcomes)
    frozen = sum(made.comparison.frozen > 0 for made in outcomes)
    return [tool.name, tool.version, str(left), str(failures), str(wrong), str(frozen)]


if __name__ == "__main__":
    main()
