"""Runs ONNX models in float64.

It covers every opset from 1 on, so that graphs can be compared where onnxruntime has no kernel, and to
1e-15 instead of 1e-6. Every floating tensor, whatever its declared type, is carried as float64 and a Cast
between floats is the identity: the result is the function that the graph denotes, without the rounding of
its types. It shares no code with what folds.
"""

from .frame import Elsewhere
from .outcome import EvaluationError, Missing, Unsupported
from .program import Program, evaluate
from .stored import Change

__all__ = ["Change", "Elsewhere", "EvaluationError", "Missing", "Program", "Unsupported", "evaluate"]
