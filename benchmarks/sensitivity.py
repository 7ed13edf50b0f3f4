"""How many planted faults `bnfold.verify` finds, how many correct folds it rejects; beside it, others' rules.

python benchmarks/sensitivity.py --quick
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from faults import FAULTS, SINGLE_PRECISION, Folded, fold, plant, size
from numpy.typing import NDArray
from onnx import helper
from options import several_of
from sensitivity_nets import NETS
from table import table

import bnfold

Array = NDArray[Any]
Outputs = Mapping[str, Array]

OURS = "bnfold"
CORRECT = "correct fold"
UNITS = 8.0  # smaller faults are left out of the count: see `faults.size`
CORRECT_FOLDS = 210
CAUGHT_BAR = 0.97

QUICK_NETS = ("mlp", "sequence", "unet", "large_means_mixed")
QUICK_FAULTS = (
    "epsilon dropped",
    "one channel x 1.00001",
    "weight in bfloat16",
    "one bias (BN) lost",
    "padding off by one",
)
QUICK_CORRECT_FOLDS = 12

LEGEND = f"""\
A row is a fault, planted into the first, the middle and the last layer of each net that was folded in place
("everywhere": into all layers at once), or a net with all its faults. A cell tells how many of the counted
results a rule rejects. Not counted: `same` has the bits of the correct fold; `small` changes no folded
constant by {UNITS:g} unit roundoffs of its type. `named`: how often the first tensor that bnfold finds beyond
tolerance is the output of the layer with the fault, of those that it rejects. The other rules see one input
of batch 1, and what onnxruntime computes from it with optimizations disabled. Correct folds are of nets
with other seeds; "float32 folds" are the same nets, folded in float32 as most tools do: for information."""


# The rules of others


@dataclass(frozen=True)
class Rule:
    """What others take for equal.

    Attributes:
        name: As shown.
        uniform: Whether its users feed U[0, 1), else N(0, 1).
        accepts: The rule, for one output: (reference, candidate).
    """

    name: str
    uniform: bool
    accepts: Callable[[Array, Array], bool]


def _close(rtol: float, atol: float) -> Callable[[Array, Array], bool]:
    def accepts(expected: Array, actual: Array) -> bool:
        return bool(np.allclose(actual.astype(np.float64), expected.astype(np.float64), rtol, atol))

    return accepts


def _loud(expected: Array, actual: Array) -> bool:
    """Signal to noise of 20 dB."""
    signal = expected.astype(np.float64)
    return bool(np.sum(signal**2) >= 100 * np.sum((actual.astype(np.float64) - signal) ** 2))


def _same_class(expected: Array, actual: Array) -> bool:
    """The same class, of the sample or, in a map, at every position."""
    return bool(np.isfinite(actual).all() and np.array_equal(expected.argmax(axis=1), actual.argmax(axis=1)))


RULES = (
    Rule("allclose 1e-4/1e-5", True, _close(1e-4, 1e-5)),
    Rule("allclose 1e-3/1e-4", True, _close(1e-3, 1e-4)),
    Rule("allclose 1e-5/1e-5", True, _close(1e-5, 1e-5)),
    Rule("SNR 20 dB", False, _loud),
    Rule("top-1", False, _same_class),
)
JUDGES = (OURS, *(rule.name for rule in RULES))


def _answers(model: onnx.ModelProto, seed: int) -> dict[bool, Outputs] | None:
    """What onnxruntime computes from either kind of input; None if it does not run the model."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        names = [output.name for output in session.get_outputs()]
        return {
            uniform: dict(zip(names, session.run(names, _feeds(model, uniform, seed)), strict=True))
            for uniform in (True, False)
        }
    except Exception:  # onnxruntime's errors have no base of their own
        return None


def _feeds(model: onnx.ModelProto, uniform: bool, seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        batch, *sizes = kind.shape.dim
        shape = [batch.dim_value or 1, *(d.dim_value or 16 for d in sizes)]
        numbers = random.random(shape) if uniform else random.standard_normal(shape)
        feeds[value.name] = numbers.astype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return feeds


# One trial


@dataclass(frozen=True)
class Trial:
    """One result to judge.

    Attributes:
        net: Its name in `NETS`.
        seed: Decides its numbers, the channels of the fault, and what the judges feed.
        fault: The name of a fault; "" for the correct fold.
        place: Where a fault of one layer goes: 0 first, 1 middle, 2 last. None for everywhere.
    """

    net: str
    seed: int
    fault: str = ""
    place: int | None = None

    def __str__(self) -> str:
        place = "" if self.place is None else f", {('first', 'middle', 'last')[self.place]} layer"
        return f"{self.net}, seed {self.seed}: {self.fault or CORRECT}{place}"


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        trial: It.
        left_out: "same", "small", or "" if it counts; None if there is no room for the fault.
        size: Of the fault, in unit roundoffs.
        rejected: Names of the judges that do not pass the result.
        layer: The output of the layer with the fault; "" for everywhere.
        culprit: The tensor that bnfold names; "" for none.
        message: What bnfold says.
    """

    trial: Trial
    left_out: str | None = ""
    size: float = 0.0
    rejected: frozenset[str] = frozenset()
    layer: str = ""
    culprit: str = ""
    message: str = ""

    @property
    def counts(self) -> bool:
        return self.left_out == ""

    @property
    def named(self) -> bool:
        """Whether the right layer is named."""
        return self.culprit == self.layer

    def __str__(self) -> str:
        return (
            f"{self.trial} ({self.size:.3g} units{self.layer and f' in {self.layer}'}); "
            f"named {self.culprit or '-'}; {self.message or 'passed'}"
        )


@cache
def _net(name: str, seed: int) -> tuple[Folded, dict[bool, Outputs]]:
    folded = fold(NETS[name](seed))
    answers = _answers(folded.original, seed)
    assert answers is not None, name
    return folded, answers


_FAULTS = {fault.name: fault for fault in (*FAULTS, SINGLE_PRECISION)}


def judge(trial: Trial) -> Outcome:
    """Plant, and ask all judges."""
    folded, answers = _net(trial.net, trial.seed)
    if not trial.fault:
        return _judged(Outcome(trial), folded, folded.result, answers)
    fault = _FAULTS[trial.fault]
    places = (0, len(folded.layers) // 2, -1)
    layer = None if trial.place is None else folded.layers[places[trial.place]]
    result = plant(folded, fault, layer, zlib.crc32(f"{trial}".encode()))
    if result is None:
        return Outcome(trial, left_out=None)
    if result == folded.result:
        return Outcome(trial, left_out="same")
    units = size(folded, result)
    if units < UNITS and fault is not SINGLE_PRECISION:
        return Outcome(trial, left_out="small", size=units)
    return _judged(Outcome(trial, size=units, layer=layer or ""), folded, result, answers)


def _judged(
    outcome: Outcome, folded: Folded, result: onnx.ModelProto, answers: dict[bool, Outputs]
) -> Outcome:
    seed = outcome.trial.seed
    with tempfile.TemporaryDirectory() as folder:
        reference, candidate = Path(folder, "reference.onnx"), Path(folder, "candidate.onnx")
        onnx.save(folded.original, reference)
        onnx.save(result, candidate)
        report = bnfold.verify(reference, candidate, seed=seed, runtime=False)
    actual = _answers(result, seed)
    rejected = {rule.name for rule in RULES if actual is None or not _accepts(rule, answers, actual)}
    if report.verdict is not bnfold.Verdict.PASS:
        rejected.add(OURS)
    return Outcome(
        outcome.trial,
        size=outcome.size,
        rejected=frozenset(rejected),
        layer=outcome.layer,
        culprit=report.culprit.name if report.culprit else "",
        message=report.message.replace(folder, ""),
    )


def _accepts(rule: Rule, expected: dict[bool, Outputs], actual: dict[bool, Outputs]) -> bool:
    with np.errstate(all="ignore"):
        candidate = actual[rule.uniform]
        return all(rule.accepts(e, candidate[name]) for name, e in expected[rule.uniform].items())


# All trials


def planted(nets: Iterable[str], faults: Iterable[str], seed: int) -> Iterator[Trial]:
    """Every fault in every net, in three layers or everywhere."""
    for net in nets:
        for name in faults:
            places: tuple[int | None, ...] = (None,) if _FAULTS[name].everywhere else (0, 1, 2)
            yield from (Trial(net, seed, name, place) for place in places)


def correct(nets: Sequence[str], number: int, seed: int, fault: str = "") -> Iterator[Trial]:
    """So many folds of nets with other seeds, each seed once for all nets."""
    seeds = range(seed + 1, seed + 1 + number)
    return islice((Trial(net, other, fault) for other in seeds for net in nets), number)


def run(trials: Sequence[Trial], jobs: int) -> list[Outcome]:
    """The outcomes in the order of the trials."""
    if jobs == 1:
        return [judge(trial) for trial in trials]
    # Each process has a core to itself; BLAS reads this when it is loaded.
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        outcomes = []
        for outcome in pool.map(judge, trials, chunksize=4):
            outcomes.append(outcome)
            if sys.stderr.isatty():
                print(f"\r{len(outcomes)} of {len(trials)}", end="", file=sys.stderr)
        return outcomes


# The tables


@dataclass(frozen=True)
class Results:
    """All outcomes.

    Attributes:
        faulty: Of what is planted.
        correct: Of correct folds.
        single: Of the same nets, folded in float32.
    """

    faulty: list[Outcome]
    correct: list[Outcome]
    single: list[Outcome]

    @property
    def counted(self) -> list[Outcome]:
        return [o for o in self.faulty if o.counts]

    @property
    def missed(self) -> list[Outcome]:
        return [o for o in self.counted if OURS not in o.rejected]

    @property
    def misnamed(self) -> list[Outcome]:
        return [o for o in _in_one_layer(self.counted) if not o.named]

    @property
    def alarms(self) -> list[Outcome]:
        return [o for o in self.correct if OURS in o.rejected]

    @property
    def passed(self) -> bool:
        """Whether every bar is met."""
        enough = len(self.missed) <= (1 - CAUGHT_BAR) * len(self.counted)
        return bool(self.counted and self.correct) and enough and not self.misnamed and not self.alarms


def _in_one_layer(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Those that bnfold caught and that have a layer to name."""
    return [o for o in outcomes if o.layer and OURS in o.rejected]


def _caught(outcomes: Sequence[Outcome], judge: str) -> int:
    return sum(judge in o.rejected for o in outcomes)


def show(results: Results) -> str:
    """All tables, what bnfold got wrong, and the bars in the last line."""
    parts = [_by_judge(results), _by_fault(results), LEGEND, _by_net(results)]
    for title, outcomes in (
        ("Missed", results.missed),
        ("Misnamed", results.misnamed),
        ("False alarms", results.alarms),
    ):
        if outcomes:
            parts.append("\n".join([f"{title}:", *(f"- {o}" for o in outcomes)]))
    return "\n\n".join([*parts, bars(results)])


def _by_judge(results: Results) -> str:
    header = ("rule", "faults caught", "of", "%", "false alarms", "of", "float32 folds rejected", "of")
    rows = []
    for name in JUDGES:
        row = [name]
        for outcomes in (results.counted, results.correct, results.single):
            row += [str(_caught(outcomes, name)), str(len(outcomes))]
        caught, counted = int(row[1]), max(int(row[2]), 1)
        rows.append((*row[:3], f"{100 * caught / counted:.1f}", *row[3:]))
    return table(header, rows)


def _by_fault(results: Results) -> str:
    names = dict.fromkeys(o.trial.fault for o in results.faulty)
    groups = {name: [o for o in results.faulty if o.trial.fault == name] for name in names}
    header = ("fault", "same", "small", "counted", *JUDGES, "named")
    return table(header, [_row(name, outcomes) for name, outcomes in groups.items()])


def _by_net(results: Results) -> str:
    names = dict.fromkeys(o.trial.net for o in results.faulty)
    groups = {name: [o for o in results.faulty if o.trial.net == name] for name in names}
    header = ("net", "same", "small", "counted", *JUDGES, "named")
    return table(header, [_row(name, outcomes) for name, outcomes in groups.items()])


def _row(name: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    left_out = Counter(o.left_out for o in outcomes)
    counted = [o for o in outcomes if o.counts]
    single = _in_one_layer(counted)
    named = f"{sum(o.named for o in single)} of {len(single)}" if single else "-"
    cells = (left_out["same"], left_out["small"], len(counted), *(_caught(counted, j) for j in JUDGES))
    return (name, *map(str, cells), named)


def bars(results: Results) -> str:
    """What bnfold has set itself, and what became of it."""
    counted, single = results.counted, _in_one_layer(results.counted)
    caught = _caught(counted, OURS)
    return (
        f"caught {caught} of {len(counted)} ({100 * caught / max(len(counted), 1):.1f} %), "
        f"named {sum(o.named for o in single)} of {len(single)}, "
        f"false alarms {len(results.alarms)} of {len(results.correct)}"
    )


def main() -> None:
    options = _options()
    names = QUICK_NETS if options.quick else options.nets
    faults = QUICK_FAULTS if options.quick else tuple(fault.name for fault in FAULTS)
    number = QUICK_CORRECT_FOLDS if options.quick else CORRECT_FOLDS
    trials = [
        list(planted(names, faults, options.seed)),
        list(correct(names, number, options.seed)),
        list(correct(names, number, options.seed, SINGLE_PRECISION.name)),
    ]
    outcomes = iter(run([trial for part in trials for trial in part], options.jobs))
    results = Results(*(list(islice(outcomes, len(part))) for part in trials))
    print(show(results))
    sys.exit(0 if results.passed else 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a few nets and faults")
    parser.add_argument(
        "--nets", type=several_of(NETS), default=list(NETS), metavar="NAME,...", help="only these"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all numbers (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
