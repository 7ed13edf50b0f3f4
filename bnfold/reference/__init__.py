"""Reference normalizations in NumPy, forward and backward: what all else about BatchNormalization is held to.

    batch_normalization                    inference           batch_normalization_backward
    batch_normalization_training           by the batch        batch_normalization_training_backward
    batch_renormalization                  by both             batch_renormalization_backward
    layer_, instance_, group_normalization by each sample      ..._backward
    batch_statistics, dataset_statistics   mean and variance of a batch, of a whole data set
    Convention: PYTORCH, ONNX, ...         how running statistics are averaged, and converted
    Standardization                        of a network's inputs

Arrays come in float16, bfloat16, float32 or float64. All is computed in float64, and results are rounded
once, to the dtype of x (gradients of scale and bias to that of scale, running statistics to their own);
statistics of a batch stay in float64. NaN and infinity go through as in any NumPy code. The names are those
of ONNX, the formulas stand in `kernel`, `batch`, `conventions` and `renormalization`.
"""

from __future__ import annotations

from .batch import (
    batch_normalization,
    batch_normalization_backward,
    batch_normalization_training,
    batch_normalization_training_backward,
)
from .conventions import FLAX, KERAS, ONNX, PYTORCH, TENSORFLOW_FUSED, Convention, Running
from .kernel import Gradients, Normalized
from .per_sample import (
    group_normalization,
    group_normalization_backward,
    instance_normalization,
    instance_normalization_backward,
    layer_normalization,
    layer_normalization_backward,
)
from .renormalization import (
    Clip,
    Renormalized,
    RunningDeviation,
    Schedule,
    batch_renormalization,
    batch_renormalization_backward,
)
from .standardization import Standardization
from .statistics import Statistics, batch_statistics, dataset_statistics

__all__ = [
    "FLAX",
    "KERAS",
    "ONNX",
    "PYTORCH",
    "TENSORFLOW_FUSED",
    "Clip",
    "Convention",
    "Gradients",
    "Normalized",
    "Renormalized",
    "Running",
    "RunningDeviation",
    "Schedule",
    "Standardization",
    "Statistics",
    "batch_normalization",
    "batch_normalization_backward",
    "batch_normalization_training",
    "batch_normalization_training_backward",
    "batch_renormalization",
    "batch_renormalization_backward",
    "batch_statistics",
    "dataset_statistics",
    "group_normalization",
    "group_normalization_backward",
    "instance_normalization",
    "instance_normalization_backward",
    "layer_normalization",
    "layer_normalization_backward",
]
