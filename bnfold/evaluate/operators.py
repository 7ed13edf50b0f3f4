"""The table of all operators that are run here; what it lacks goes to `onnx.reference`."""

from __future__ import annotations

from . import (
    control,
    convolutions,
    elementwise,
    linear,
    normalizations,
    pools,
    recurrent,
    resize,
    sampling,
    shapes,
)
from .node import Operator

OPERATORS: dict[str, Operator] = {
    **control.OPERATORS,
    **convolutions.OPERATORS,
    **elementwise.OPERATORS,
    **linear.OPERATORS,
    **normalizations.OPERATORS,
    **pools.OPERATORS,
    **recurrent.OPERATORS,
    **resize.OPERATORS,
    **sampling.OPERATORS,
    **shapes.OPERATORS,
}

SEQUENCES = frozenset({"Identity", "If", "Loop"})
"""Operators of the table that hand on sequences as they are."""

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators without a value that could be compared."""
