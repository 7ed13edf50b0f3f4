"""Who folds the BatchNormalizations of a PyTorch module: torch's own tools and bnfold, as users call them.

Each takes a module and an input, and makes a function that computes the same: of a module, of a TorchScript
graph, or of an ONNX model that is run by onnxruntime with its own optimizations disabled. What counts as left
is every BatchNormalization that is still computed.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import judge
import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bnfold.evaluate import evaluate

Array = NDArray[Any]


class Made(Protocol):
    """What a tool has made."""

    def run(self, x: Tensor) -> list[Array] | None:
        """The outputs, flat, or None where the result is made for another shape of input."""

    def left(self, x: Tensor) -> int:
        """How many BatchNormalizations it computes."""


@dataclass(frozen=True)
class Tool:
    """One way to fold.

    Attributes:
        name: As shown.
        fold: Folds a module, given an input and the axes of it that are free.
        exports: Whether it makes a model for inference, whatever the mode of the module's parts.
    """

    name: str
    fold: Callable[[nn.Module, Tensor, tuple[int, ...]], Made]
    exports: bool = False


# What they make


@dataclass(frozen=True)
class Module:
    """A module in PyTorch; running it leaves it as it was."""

    module: nn.Module

    def run(self, x: Tensor) -> list[Array]:
        with torch.no_grad(), _unchanged(self.module):
            return flat(self.module(x))

    def left(self, x: Tensor) -> int:
        calls = _Calls()
        with torch.no_grad(), _unchanged(self.module), calls:
            self.module(x)
        return calls.batchnorms


@dataclass(frozen=True)
class Script:
    """A frozen TorchScript graph, whose calls Python does not see."""

    module: Any

    def run(self, x: Tensor) -> list[Array]:
        with torch.no_grad():
            return flat(self.module(x))

    def left(self, x: Tensor) -> int:
        calls: list[Any] = self.module.inlined_graph.findAllNodes("aten::batch_norm")
        return len(calls)


@dataclass(frozen=True)
class Model:
    """An ONNX model."""

    model: onnx.ModelProto

    def run(self, x: Tensor) -> list[Array] | None:
        value = self.model.graph.input[0]
        sizes = [
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        ]
        if any(size not in (None, given) for size, given in zip(sizes, x.shape, strict=True)):
            return None
        if x.dtype is torch.bfloat16:  # numpy has no such type, and onnxruntime no kernels for it
            return self._evaluated(value.name, x.double().numpy())
        try:
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.log_severity_level = 4
            content = self.model.SerializeToString()
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
            return [np.asarray(y, np.float64) for y in session.run(None, {value.name: x.numpy()})]
        except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:  # no kernel: no fault of the model
            return self._evaluated(value.name, x.numpy())

    def _evaluated(self, name: str, x: Array) -> list[Array]:
        outputs = evaluate(self.model, {name: x})
        return [np.asarray(outputs[output.name], np.float64) for output in self.model.graph.output]

    def left(self, x: Tensor) -> int:
        return judge.count(self.model).batchnorms


def flat(outputs: Any) -> list[Array]:
    """The tensors of a module's result, in float64."""
    return [y.double().numpy() for y in torch.utils._pytree.tree_leaves(outputs) if isinstance(y, Tensor)]


class _Calls(TorchFunctionMode):
    """Counts calls of batch_norm, by whatever module, function or graph."""

    def __init__(self) -> None:
        super().__init__()
        self.batchnorms = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(function, "__name__", "")
        self.batchnorms += "batch_norm" in name
        return function(*args, **(kwargs or {}))


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """A BatchNormalization in training mode moves its statistics whenever it runs."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    yield
    with torch.no_grad():
        for buffer, content in before:
            buffer.copy_(content)


# Torch's own tools


def _fx_fuse(module: nn.Module, x: Tensor, free: tuple[int, ...]) -> Made:
    from torch.fx.experimental.optimization import fuse

    return Module(fuse(module))


def _fusion(module: nn.Module, x: Tensor, free: tuple[int, ...]) -> Made:
    """`torch.nn.utils.fusion` has the arithmetic alone. The usual loop around it replaces a layer and the
    BatchNormalization that was registered next to it, wherever they are."""
    result = copy.deepcopy(module)
    for parent in list(result.modules()):
        children = list(parent.named_children())
        for (name, layer), (norm_name, norm) in pairwise(children):
            fused = _fused(layer, norm)
            if fused is not None:
                setattr(parent, name, fused)
                setattr(parent, norm_name, nn.Identity())
    return Module(result)


def _fused(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return None
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    if isinstance(layer, nn.modules.conv._ConvNd):
        return fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, nn.modules.conv._ConvTransposeNd))
    return None


def _jit_freeze(module: nn.Module, x: Tensor, free: tuple[int, ...]) -> Made:
    return Script(torch.jit.freeze(torch.jit.trace(module, x, strict=False)))


def _onnx_export(module: nn.Module, x: Tensor, free: tuple[int, ...]) -> Made:
    def exported(dynamic: Any) -> Model:
        program = torch.onnx.export(module, (x,), dynamo=True, verbose=False, dynamic_shapes=dynamic)
        return Model(program.model_proto)

    try:
        return exported(({axis: torch.export.Dim.AUTO for axis in free},))
    except Exception:
        return exported(None)


# bnfold


def _fold_module(module: nn.Module, x: Tensor, free: tuple[int, ...]) -> Made:
    import bnfold

    folded, _ = bnfold.fold_module(module, (x,))
    return Module(folded)


def _bnfold_export(module: nn.Module, x: Tensor, free: tuple[int, ...]) -> Made:
    import bnfold

    def exported(free: tuple[int, ...]) -> Model:
        name = next(iter(inspect.signature(module.forward).parameters))
        sizes = ",".join(f"d{axis}" if axis in free else str(size) for axis, size in enumerate(x.shape))
        dtype = str(x.dtype).removeprefix("torch.")
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "model.onnx")
            bnfold.export(module, target, inputs=[f"{name}:{dtype}[{sizes}]"])
            return Model(onnx.load(target))

    try:
        return exported(free)
    except bnfold.InputError:
        return exported(())


TOOLS = (
    Tool("fx fuse", _fx_fuse),
    Tool("utils.fusion", _fusion),
    Tool("jit.freeze", _jit_freeze),
    Tool("onnx.export", _onnx_export, exports=True),
    Tool("fold_module", _fold_module),
    Tool("bnfold.export", _bnfold_export, exports=True),
)
MODULE, EXPORT = OURS = ("fold_module", "bnfold.export")
"""What bnfold's own tools are called."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without the remarks that torch's tools make while they work."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
