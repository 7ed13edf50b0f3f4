"""The one table: for each operator, what happens to an affine behind it (`PULL`) or before it (`PUSH`).

Adding an operator is one entry in one of the four modules that this table joins, and one line in the
cases of the law test:

    carriers      hand an affine on            Transpose, Reshape, pools, Resize, ...
    arithmetic    sums, products, Relu, Pad    Add, Mul, Relu, ...
    selections    join and choose channels     Concat, Split, Slice, Gather
    sinks         take it into their weights   Conv, ConvTranspose, Gemm, MatMul, normalizations
"""

from __future__ import annotations

from . import arithmetic, carriers, selections, sinks
from .moves import Pull, Push

PULL: dict[str, Pull] = {
    **{name: carrier.pull for name, carrier in carriers.CARRIERS.items()},
    **arithmetic.PULL,
    **selections.PULL,
    **sinks.PULL,
}
"""What an operator's inputs become when an affine follows one of its outputs."""

PUSH: dict[str, Push] = {
    **{name: carrier.push for name, carrier in carriers.CARRIERS.items()},
    **arithmetic.PUSH,
    **selections.PUSH,
    **sinks.PUSH,
}
"""What an operator's outputs still need when an affine precedes its inputs."""
