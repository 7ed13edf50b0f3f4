"""Fold BatchNormalization into the weights around it, and prove that nothing else changed.

The functions are imported when they are first asked for: `bnfold --help` needs no onnx.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

from .errors import BnfoldError, InputError, NotCalibrated, NotEquivalent, OutputError, Undecided
from .recalibration import LayerReport, Method, RecalibrateReport
from .report import (
    BatchNormFacts,
    Counts,
    Decision,
    ExportReport,
    FailureReport,
    FoldReport,
    InspectReport,
    ModuleCheck,
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
    from .images import ImageOptions
    from .model import load, save
    from .moments import Moments, SampleMoments
    from .optimize import inspect, optimize
    from .pytorch.export import export, inspect_module
    from .pytorch.fold import fold_module
    from .pytorch.load import load_torch
    from .pytorch.recalibrate import Recalibration, recalibrate_module
    from .recalibrate import recalibrate
    from .verify import verify

__version__ = "0.1.0"
__all__ = [  # noqa: RUF022  # sorted by use: functions, types, errors
    "load",
    "fold",
    "inspect",
    "optimize",
    "recalibrate",
    "verify",
    "save",
    "load_torch",
    "export",
    "inspect_module",
    "fold_module",
    "recalibrate_module",
    "as_dict",
    "FoldPass",
    "OptimizeReport",
    "ExportReport",
    "ModuleCheck",
    "InspectReport",
    "FoldReport",
    "Decision",
    "Outcome",
    "Reason",
    "Counts",
    "BatchNormFacts",
    "RecalibrateReport",
    "LayerReport",
    "Method",
    "Recalibration",
    "ImageOptions",
    "Moments",
    "SampleMoments",
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
    "FailureReport",
    "BnfoldError",
    "InputError",
    "OutputError",
    "NotEquivalent",
    "NotCalibrated",
    "Undecided",
]

_HOMES = {  # of what is imported late
    "load": "model",
    "fold": "fold",
    "inspect": "optimize",
    "optimize": "optimize",
    "recalibrate": "recalibrate",
    "verify": "verify",
    "save": "model",
    "FoldPass": "fold",
    "load_torch": "pytorch.load",
    "export": "pytorch.export",
    "inspect_module": "pytorch.export",
    "fold_module": "pytorch.fold",
    "recalibrate_module": "pytorch.recalibrate",
    "Recalibration": "pytorch.recalibrate",
    "ImageOptions": "images",
    "Moments": "moments",
    "SampleMoments": "moments",
}


class _Unavailable:
    """A function whose requirements are not installed."""

    def __init__(self, error: InputError) -> None:
        self._error = error

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise self._error


class _Package(ModuleType):
    """This package. Python binds an imported submodule to its name here; where that is also the name of a
    public function, as with `fold`, the function is meant."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
        except InputError as error:  # without PyTorch, what needs it may be named, but not called
            return _Unavailable(error)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOMES})


sys.modules[__name__].__class__ = _Package
