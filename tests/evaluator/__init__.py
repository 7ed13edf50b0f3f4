"""A float64 evaluator of ONNX models, for tests only.

It covers every opset from 1 on, so that graphs can be compared before and after a fold where
onnxruntime has no kernel, and to 1e-15 instead of 1e-6. Every floating tensor, whatever its declared
type, is carried as float64 and a Cast between floats is the identity: the result is the function that
the graph denotes, without the rounding of its types. It shares no code with bnfold.
"""

from .graph import evaluate

__all__ = ["evaluate"]
