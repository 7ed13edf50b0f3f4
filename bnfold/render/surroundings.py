"""Where and how a report was made, for those who want to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
