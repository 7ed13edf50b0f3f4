"""Which BatchNormalizations of small PyTorch modules each tool folds, and whether the result is right.

The exit code is 1 when a bar is missed: bnfold folds all that any of torch's tools folds rightly, and is
wrong nowhere.

    python benchmarks/torch_patterns.py --tools fold_module --only linear,conv2d
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from options import several_of
from table import table
from torch import Tensor, nn
from torch_modules import PATTERNS, Pattern
from torch_tools import MODULE, OURS, TOOLS, Made, Module, Tool, quiet
from truth import TOLERANCE, Truth

LEGEND = f"""\
`BN`: how many BatchNormalizations the module computes in evaluation mode. A cell tells how many are left,
or why there is no result. A result is judged at two sizes of input where the tool has left them free, by
its distance from the module in double precision. That of the module itself, in its own type, is the unit:
WRONG is more than {TOLERANCE:g} of it, other shapes, or a result that does not run. `*`: fewer stay than in
`stays`, which is what the algebra allows; `+`: more."""


@dataclass(frozen=True)
class Outcome:
    """What a tool has made of a pattern.

    Attributes:
        left: The BatchNormalizations left; None without a result.
        gap: The largest distance from the truth, in units; infinite for a result that does not run.
        failure: Why there is no result, or it does not run; else "".
    """

    left: int | None
    gap: float
    failure: str = ""

    @property
    def right(self) -> bool:
        return self.left is not None and self.gap <= TOLERANCE

    @property
    def wrong(self) -> bool:
        return self.left is not None and not self.right

    def show(self, stays: int) -> str:
        if self.left is None:
            return "raises"
        mark = "" if self.left == stays else "*" if self.left < stays else "+"
        return f"{'WRONG ' if self.wrong else ''}{self.left}{mark}"


Results = dict[str, dict[str, Outcome]]
"""By the names of pattern and tool."""


def main() -> int:
    options = _options()
    tools = [tool for tool in TOOLS if tool.name in options.tools]
    patterns = [pattern for pattern in PATTERNS if pattern.name in options.only]
    torch.set_num_threads(1)  # so that sums are added in one order
    results: Results = {}
    rows = []
    for pattern in patterns:
        print(pattern.name, file=sys.stderr)
        with quiet():
            before = Module(pattern.module().eval()).left(next(pattern.inputs()))
            results[pattern.name] = outcomes = {tool.name: outcome(tool, pattern) for tool in tools}
        cells = [outcome.show(pattern.stays) for outcome in outcomes.values()]
        rows.append([pattern.name, str(before), str(pattern.stays), *cells])
    print(f"{LEGEND}\n")
    print(table(["pattern", "BN", "stays", *(tool.name for tool in tools)], rows))
    print()
    print(
        table(
            ["tool", "right and complete", "right", "wrong", "raises"],
            list(_totals(results, patterns, tools)),
        )
    )
    print()
    print("\n".join(_remarks(results)))
    print("\n## Within reach of the algebra\n")
    print("\n".join(f"- {line}" for line in _beyond(results, patterns)) or "- nothing")
    missed = list(_missed(results, patterns))
    print("\n## Bars\n")
    print("\n".join(f"- {line}" for line in missed) or "- all met")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    names, tools = [pattern.name for pattern in PATTERNS], [tool.name for tool in TOOLS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", type=several_of(names), default=names, help="patterns, by name")
    parser.add_argument("--tools", type=several_of(tools), default=tools, help=f"of {','.join(tools)}")
    return parser.parse_args()


def truths(pattern: Pattern, *, evaluation: bool) -> Iterator[tuple[Tensor, Truth]]:
    """The inputs, each with what the module computes in double precision.

    Args:
        evaluation: Whether all of its parts are in evaluation mode, else they are as the pattern has them.
    """
    original, double = pattern.module(), pattern.module().double()
    if evaluation:
        original.eval()
        double.eval()
    for x in pattern.inputs():
        outputs = Module(double).run(x.double() if x.dtype.is_floating_point else x)
        yield x, Truth.of(outputs, Module(original).run(x), _epsilon(original))


def _epsilon(module: nn.Module) -> float:
    """Of the least exact among a module's types."""
    return max(float(torch.finfo(parameter.dtype).eps) for parameter in module.parameters())


def outcome(tool: Tool, pattern: Pattern) -> Outcome:
    """What the tool makes of the pattern."""
    expected = list(truths(pattern, evaluation=tool.exports))
    try:
        made = tool.fold(pattern.module(), expected[0][0], pattern.free)
    except Exception as error:
        return Outcome(None, float("inf"), _line(error))
    return judged(made, expected)


def judged(made: Made, expected: Sequence[tuple[Tensor, Truth]]) -> Outcome:
    """A result at each input that it takes."""
    gaps = []
    left = 0
    try:
        left = made.left(expected[0][0])
        for x, truth in expected:
            outputs = made.run(x)
            if outputs is not None:
                gaps.append(truth.gap(outputs))
    except Exception as error:
        return Outcome(left, float("inf"), _line(error))
    return Outcome(left, max(gaps))


def _totals(results: Results, patterns: Sequence[Pattern], tools: Sequence[Tool]) -> Iterator[list[str]]:
    for tool in tools:
        made = [(results[pattern.name][tool.name], pattern.stays) for pattern in patterns]
        complete = sum(one.right and one.left is not None and one.left <= stays for one, stays in made)
        counts = [complete, sum(one.right for one, _ in made), sum(one.wrong for one, _ in made)]
        yield [tool.name, *map(str, counts), str(sum(one.left is None for one, _ in made))]


def _remarks(results: Results) -> Iterator[str]:
    """How clear the verdicts are, and why a tool has no result."""
    every = [one for outcomes in results.values() for one in outcomes.values() if one.left is not None]
    right = max((one.gap for one in every if one.right), default=0.0)
    wrong = min((one.gap for one in every if one.wrong), default=float("inf"))
    yield f"Right results are at most {right:.0f} units off, wrong ones at least {wrong:.0e}.\n"
    for pattern, outcomes in results.items():
        for tool, one in outcomes.items():
            if one.failure:
                yield f"- {pattern}, {tool}: {one.failure}"


def _missed(results: Results, patterns: Sequence[Pattern]) -> Iterator[str]:
    for pattern in patterns:
        outcomes = results[pattern.name]
        for name in OURS:
            if name not in outcomes:
                continue
            ours, best = outcomes[name], _best_rival(outcomes, name)
            if ours.wrong:
                yield f"{pattern.name}: {name} is wrong"
            elif best is not None and ours.left is None:
                yield f"{pattern.name}: {name} raises, others leave {best}"
            # An exporter has nothing to leave of what is in training mode: it does not export that mode.
            elif best is not None and ours.left is not None and ours.left > max(best, pattern.stays):
                yield f"{pattern.name}: {name} leaves {ours.left}, others {best}"


def _best_rival(outcomes: dict[str, Outcome], ours: str) -> int | None:
    """What the best of torch's tools leaves; an exporter vies with exporters, for torch cannot export all."""
    rivals = [tool.name for tool in TOOLS if tool.name not in OURS and (ours == MODULE or tool.exports)]
    right = [outcomes[name] for name in rivals if name in outcomes and outcomes[name].right]
    return min((one.left for one in right if one.left is not None), default=None)


def _beyond(results: Results, patterns: Sequence[Pattern]) -> Iterator[str]:
    """What the algebra would allow, beyond the bars."""
    for pattern in patterns:
        for name in OURS:
            one = results[pattern.name].get(name)
            if one is not None and one.left is not None and one.left > pattern.stays:
                yield f"{pattern.name}: {name} leaves {one.left}, the algebra {pattern.stays}"


def _line(error: Exception) -> str:
    """The first line of a complaint, without colours."""
    lines = [line.strip() for line in re.sub("\x1b\\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:150] if lines else ''}"


if __name__ == "__main__":
    sys.exit(main())
