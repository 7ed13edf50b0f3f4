"""How far the statistics that a model stores are from those of what comes into its BatchNormalizations.

The model runs as it is deployed: a module in evaluation mode, an ONNX file in onnxruntime at its default
settings. Means and population variances are computed in float64 by NumPy, with nothing of bnfold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

Array = NDArray[np.floating]

SMALL = 1e-6  # no deployment can tell such a distance
ROUNDINGS = 4  # unit roundoffs of float32, in which statistics are stored
STEP = 64  # images at a time


@dataclass(frozen=True)
class Stored:
    """What one BatchNormalization has, shape (C,) each."""

    mean: Array
    var: Array
    epsilon: float

    @property
    def bits(self) -> bytes:
        return self.mean.tobytes() + self.var.tobytes()


@dataclass(frozen=True)
class Gap:
    """The largest over layers and channels.

    Attributes:
        mean: |true mean - stored mean|/√(var + ε).
        var: |log((true var + ε)/(stored var + ε))|.
        used: The larger of the two, over max(SMALL, ROUNDINGS·u·|mean|/√(var + ε)) of that channel.
    """

    mean: float
    var: float
    used: float

    def show(self) -> str:
        return f"{self.mean:.1e} / {self.var:.1e}"


def of_module(model: nn.Module, images: Array) -> Gap:
    """In a plain forward pass in evaluation mode."""
    seen: dict[str, list[Array]] = {}
    norms = {name: part for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)}

    def watch(name: str, norm: nn.Module) -> torch.utils.hooks.RemovableHandle:
        record = seen.setdefault(name, [])
        return norm.register_forward_pre_hook(lambda _, inputs: record.append(inputs[0].numpy().copy()))

    handles = [watch(name, norm) for name, norm in norms.items()]
    with torch.no_grad():
        for part in _parts(images):
            model(torch.from_numpy(part))
    for handle in handles:
        handle.remove()
    return _worst(seen, stored_in_module(model))


def of_onnx(path: Path, images: Array) -> Gap:
    """In onnxruntime with its default settings; the inputs of all BatchNormalizations are made outputs."""
    model = onnx.load(path)
    data = {node.name: node.input[0] for node in _norms(model)}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(data.values()))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (source,) = session.get_inputs()
    seen: dict[str, list[Array]] = {name: [] for name in data}
    for part in _parts(images):
        for name, value in zip(data, session.run([*data.values()], {source.name: part}), strict=True):
            seen[name].append(value)
    return _worst(seen, stored_in_onnx(path))


def stored_in_module(model: nn.Module) -> dict[str, Stored]:
    """By the name of the layer."""
    return {
        name: Stored(part.running_mean.numpy().copy(), part.running_var.numpy().copy(), part.eps)
        for name, part in model.named_modules()
        if isinstance(part, nn.BatchNorm2d)
    }


def stored_in_onnx(path: Path) -> dict[str, Stored]:
    """By the name of the node."""
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in _norms(model):
        mean, var = (numpy_helper.to_array(constants[name]) for name in node.input[3:5])
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        found[node.name] = Stored(mean, var, epsilon)
    return found


def _norms(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "BatchNormalization"]


def _parts(images: Array) -> Iterator[Array]:
    return (images[start : start + STEP] for start in range(0, len(images), STEP))


def _worst(seen: Mapping[str, list[Array]], stored: Mapping[str, Stored]) -> Gap:
    gaps = [_gap(np.concatenate(seen[name]), layer) for name, layer in stored.items()]
    return Gap(max(g.mean for g in gaps), max(g.var for g in gaps), max(g.used for g in gaps))


def _gap(x: Array, layer: Stored) -> Gap:
    """Of one layer, whose inputs have shape (N, C, H, W)."""
    wide = x.astype(np.float64)
    true_mean, true_var = wide.mean(axis=(0, 2, 3)), wide.var(axis=(0, 2, 3))
    mean, width = layer.mean.astype(np.float64), layer.var.astype(np.float64) + layer.epsilon
    of_mean = np.abs(true_mean - mean) / np.sqrt(width)
    of_var = np.abs(np.log((true_var + layer.epsilon) / width))
    limit = np.maximum(SMALL, ROUNDINGS * 2.0**-24 * np.abs(mean) / np.sqrt(width))
    return Gap(*(float(a.max()) for a in (of_mean, of_var, np.maximum(of_mean, of_var) / limit)))
