"""Where and how a report was made, for those who want to make it again."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from .. import __version__
from .page import printable

_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "ml_dtypes", "torch")


@dataclass(frozen=True)
class Surroundings:
    """What a result may depend on beside the model.

    Attributes:
        command: The command line that gives it again; "" if there was none.
        versions: Of what takes part, by name: bnfold, Python, numpy, onnx, onnx-ir, onnxruntime, ...
        system: Operating system and processor, in words.
    """

    command: str
    versions: Mapping[str, str]
    system: str


def surroundings(command: str) -> Surroundings:
    """Those of this process; they name neither the host nor its user."""
    versions = {"bnfold": __version__, "Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # torch need not be there
            continue
    processors = os.cpu_count() or 1
    system = f"{platform.system()} {platform.machine()}, {processors} processor{'s' * (processors > 1)}"
    return Surroundings(printable(command), versions, system)
