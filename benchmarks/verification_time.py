"""What verification costs: seconds and memory of a whole `bnfold optimize`, with and without it.

python benchmarks/verification_time.py --runs 3
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import process
from models import WARM_UP
from options import several_of
from run import CACHE, model
from stages import Stages
from table import table

SECONDS_BAR = {"mobilenetv2": 6.0, "resnet50": 15.0}
MODELS_BAR = 4  # of the model's bytes, beside the two largest activations
TIMEOUT = 600.0

LEGEND = """\
`peak` is resident memory, `base` what the interpreter and the libraries need for a model of a few bytes, and
`limit` four times the model and its two largest activations in float64, to which `peak - base` is held.
`runs` counts the float64 runs of a whole verification; some go side by side on several cores. The floor is
the matrix products of the convolutions and dense layers alone, as numpy computes them, for all runs;
depthwise convolutions are left out."""


@dataclass(frozen=True)
class Cost:
    """A command of bnfold, as a whole process.

    Attributes:
        seconds: Wall time, median.
        peak: Resident memory in bytes, median.
    """

    seconds: float
    peak: float


def optimize(source: Path, verify: str, runs: int) -> Cost:
    """Cost of `bnfold optimize --verify ...`."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "result.onnx")
        command = [sys.executable, "-m", "bnfold", "optimize", str(source.resolve()), "-o", str(target)]
        command += ["--force", "--verify", verify, "-q"]
        done = [_run(command) for _ in range(runs)]
    return Cost(median(run.seconds for run in done), median(run.peak for run in done))


def stages(source: Path) -> Stages:
    """Where the time goes."""
    command = [sys.executable, str(Path(__file__).with_name("stages.py")), str(source.resolve())]
    return Stages(**json.loads(_run(command).output))


def _run(command: list[str]) -> process.Run:
    done = process.run(command, cwd=Path.cwd(), timeout=TIMEOUT)
    if done.failure:
        raise SystemExit(f"{' '.join(command)}: {done.failure}")
    return done


def costs(fast: Cost, none: Cost, base: Cost, parts: Stages) -> list[str]:
    """The row of one model, without its name."""
    limit = MODELS_BAR * parts.model + parts.activations
    seconds = (fast.seconds, none.seconds, parts.runs * parts.products, parts.runtime)
    megabytes = (fast.peak, none.peak, base.peak, fast.peak - base.peak, limit)
    return [*(f"{s:.2f}" for s in seconds), *(f"{m / 1e6:.0f}" for m in megabytes)]


def breakdown(parts: dict[str, Stages]) -> str:
    """Stages downwards, models to the right."""
    rows = [
        ("imports", *(f"{p.imports:.2f}" for p in parts.values())),
        ("load", *(f"{p.load:.2f}" for p in parts.values())),
        ("fold", *(f"{p.fold:.2f}" for p in parts.values())),
        ("write", *(f"{p.write:.2f}" for p in parts.values())),
        ("certificate", *(f"{p.certificate:.2f}" for p in parts.values())),
        ("algebra gate", *(f"{p.algebra:.2f}" for p in parts.values())),
        ("- runs", *(str(p.runs) for p in parts.values())),
        ("- one run alone", *(f"{p.run:.3f}" for p in parts.values())),
        ("- one nudged run alone", *(f"{p.nudged:.3f}" for p in parts.values())),
        ("- products of one run", *(f"{p.products:.3f}" for p in parts.values())),
        ("- products of all runs", *(f"{p.runs * p.products:.2f}" for p in parts.values())),
    ]
    return table(("stage, seconds", *parts), rows)


def bars(name: str, fast: Cost, base: Cost, parts: Stages) -> list[str]:
    """What bnfold has set itself, a line each."""
    limit = MODELS_BAR * parts.model + parts.activations
    lines = []
    if name in SECONDS_BAR:
        met = "yes" if fast.seconds <= SECONDS_BAR[name] else "NO"
        lines.append(f"{name}: under {SECONDS_BAR[name]:.0f} s: {met}, {fast.seconds:.2f} s")
    need = fast.peak - base.peak
    met = "yes" if need <= limit else "NO"
    lines.append(f"{name}: under {limit / 1e6:.0f} MB beyond the base: {met}, {need / 1e6:.0f} MB")
    return lines


def main() -> None:
    options = _options()
    CACHE.mkdir(exist_ok=True)
    optimize(model(WARM_UP), "fast", 1)  # unmeasured: leaves libraries and byte code in the file cache
    base = optimize(model(WARM_UP), "fast", options.runs)
    rows, parts, lines = [], {}, []
    for name in options.only:
        source = model(name)
        fast, none = (optimize(source, verify, options.runs) for verify in ("fast", "none"))
        parts[name] = stages(source)
        rows.append([name, *costs(fast, none, base, parts[name])])
        lines += bars(name, fast, base, parts[name])
    seconds = ("optimize s", "unverified s", "floor s", "one onnxruntime run s")
    header = ("model", *seconds, "peak MB", "unverified MB", "base MB", "peak - base", "limit MB")
    print(
        "\n\n".join([table(header, rows), breakdown(parts), LEGEND, "\n".join(f"- {line}" for line in lines)])
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    names = list(SECONDS_BAR)
    parser.add_argument(
        "--only", type=several_of(names), default=names, metavar="MODEL,...", help="these models"
    )
    parser.add_argument("--runs", type=int, default=3, help="of each command (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
