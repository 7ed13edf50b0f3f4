"""Fold BatchNormalization into the weights around it, and prove that nothing else changed.

The functions are imported when they are first asked for: `bnfold --help` needs no onnx.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from .errors import BnfoldError, InputError, NotEquivalent, OutputError, Undecided
from .report import (
    BatchNormFacts,
    Counts,
    Decision,
    FoldReport,
    InspectReport,
    OptimizeReport,
    Outcome,
    Reason,
    as_dict,
)
from .verification import (
    AlgebraReport,
    Certificate,
    Difference,
    Limit,
    Metrics,
    OutputCheck,
    RuntimeCheck,
    RuntimeReport,
    TensorCheck,
    Verdict,
    VerifyReport,
)

if TYPE_CHECKING:
    from .fold import FoldPass, fold
    from .model import load, save
    from .optimize import inspect, optimize
    from .verify import verify

__version__ = "0.1.0"
__all__ = [  # noqa: RUF022  # sorted by use: functions, types, errors
    "load",
    "fold",
    "inspect",
    "optimize",
    "verify",
    "save",
    "as_dict",
    "FoldPass",
    "OptimizeReport",
    "InspectReport",
    "FoldReport",
    "Decision",
    "Outcome",
    "Reason",
    "Counts",
    "BatchNormFacts",
    "VerifyReport",
    "Verdict",
    "Limit",
    "Difference",
    "AlgebraReport",
    "OutputCheck",
    "TensorCheck",
    "Metrics",
    "RuntimeReport",
    "RuntimeCheck",
    "Certificate",
    "BnfoldError",
    "InputError",
    "OutputError",
    "NotEquivalent",
    "Undecided",
]

_HOMES = {  # of what is imported late
    "load": "model",
    "fold": "fold",
    "inspect": "optimize",
    "optimize": "optimize",
    "verify": "verify",
    "save": "model",
    "FoldPass": "fold",
}


class _Package(ModuleType):
    """This package. Python binds an imported submodule to its name here; where that is also the name of a
    public function, as with `fold`, the function is meant."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES})


sys.modules[__name__].__class__ = _Package
