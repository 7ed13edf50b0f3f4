"""What a PyTorch module computes in double precision, and how far others are from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

TOLERANCE = 100.0
"""In units (see `Truth`): right folds, in whatever precision, are below 10, wrong ones far beyond."""


@dataclass(frozen=True)
class Truth:
    """The outputs of a module at one input.

    Attributes:
        outputs: As computed in double precision.
        units: For each output, the RMS by which the module in its own type is off, which is at least a
            rounding of the output.
    """

    outputs: tuple[Array, ...]
    units: tuple[float, ...]

    @classmethod
    def of(cls, double: Sequence[Array], own: Sequence[Array], epsilon: float) -> Truth:
        """From the outputs in double precision and in the module's own type, whose epsilon is given."""
        pairs = zip(double, own, strict=True)
        units = tuple(max(_rms(y - exact), epsilon / 2 * _rms(exact)) for exact, y in pairs)
        return cls(tuple(double), units)

    def gap(self, outputs: Sequence[Array]) -> float:
        """The RMS by which these are off, in units; infinite where they cannot be compared."""
        if [y.shape for y in outputs] != [y.shape for y in self.outputs]:
            return float("inf")
        triples = zip(outputs, self.outputs, self.units, strict=True)
        gaps = [_rms(y.astype(np.float64) - exact) / unit for y, exact, unit in triples]
        return max(gap if np.isfinite(gap) else float("inf") for gap in gaps)


def _rms(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array)))) if array.size else 0.0
