"""The normalizations of a module that have running statistics: found, read, and set.

Those are torch's own and their subclasses, and what works like them while frozen: any module that holds
vectors `running_mean` and `running_var` among its buffers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils import _pytree

from ..errors import InputError
from ..estimate import Layer, Statistics

_DTYPES = {
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(ml_dtypes.bfloat16),
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}
_EPSILON = 1e-5  # of a frozen one that does not say


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalization.

    Attributes:
        name: Its path in the module; the name of its class if it is the module itself.
        module: Itself.
    """

    name: str
    module: nn.Module

    @property
    def channels(self) -> int:
        return int(self.module.running_mean.numel())

    @property
    def buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance, as the module holds them now."""
        return self.module.running_mean, self.module.running_var

    def layer(self) -> Layer:
        """It, as it is now."""
        scale = getattr(self.module, "weight", None)
        mean, var = (_float64(buffer) for buffer in self.buffers)
        return Layer(
            name=self.name,
            mean=mean,
            var=var,
            scale=_float64(scale) if isinstance(scale, torch.Tensor) else None,
            epsilon=float(getattr(self.module, "eps", _EPSILON)),
            dtype=_DTYPES[self.module.running_mean.dtype],
        )

    def mend(self) -> None:
        """Where statistics would make NaN of everything, put those with which training begins."""
        layer = self.layer()
        with np.errstate(invalid="ignore"):
            is_usable = np.isfinite([layer.mean, layer.var]).all() and (layer.var + layer.epsilon > 0).all()
        if not is_usable:
            self.set(Statistics(np.zeros(self.channels), np.ones(self.channels)))

    def set(self, new: Statistics) -> None:
        """Put statistics into the buffers, where they are."""
        for buffer, numbers in zip(self.buffers, (new.mean, new.var), strict=True):
            put(buffer, torch.from_numpy(numbers.astype(np.float64)))


def put(buffer: torch.Tensor, numbers: torch.Tensor) -> None:
    """Overwrite a tensor in place, on its device and in its type."""
    with torch.inference_mode(buffer.is_inference()), torch.no_grad():
        buffer.copy_(numbers)


def find(module: nn.Module, name: str, leave: Collection[str] = ()) -> list[Norm]:
    """All normalizations whose statistics can be set, in the order of the module's parts.

    Args:
        module: Where to look.
        name: What the user calls it, for messages.
        leave: Paths of those that do not count, or of parts that hold them.

    Raises:
        InputError: There is none, or one whose statistics cannot be set.
    """
    unknown = set(leave)
    found = []
    for path, part in module.named_modules():
        if isinstance(part, _InstanceNorm) or not _normalizes(part):
            continue
        left = {other for other in leave if path == other or path.startswith(f"{other}.")}
        unknown -= left
        if not left:
            norm = Norm(path or type(part).__name__, part)
            _need_settable(norm)
            found.append(norm)
    if unknown:
        raise InputError(f"{name}: has no BatchNormalization '{min(unknown)}' that could be left out")
    if not found:
        raise InputError(f"{name}: has no BatchNormalization, so there is nothing to recalibrate")
    _need_own_buffers(found)
    _need_own_memory(module, found)
    return found


def _normalizes(part: nn.Module) -> bool:
    if isinstance(part, _BatchNorm):
        return True
    held = dict(part.named_buffers(recurse=False))
    mean, var = held.get("running_mean"), held.get("running_var")
    if mean is None or var is None or nn.parameter.is_lazy(mean):
        return False
    return bool(mean.ndim == 1 and mean.shape == var.shape and mean.is_floating_point())


def _need_settable(norm: Norm) -> None:
    part, where = norm.module, f"BatchNormalization '{norm.name}'"
    if isinstance(part, torch.jit.ScriptModule):
        raise InputError(
            f"{where}: is part of a ScriptModule, which runs past Python, where nothing can be measured; "
            "give the module that it was made from, or recalibrate its ONNX model"
        )
    mean = part.running_mean
    if mean is None:
        raise InputError(
            f"{where}: has no running statistics (track_running_stats=False), so it always normalizes by the "
            "batch, and what comes after it depends on how samples are batched; replace it by one that has"
        )
    if nn.parameter.is_lazy(mean):
        raise InputError(f"{where}: is lazy and has no channels yet; run the module once before")
    if mean.is_meta:
        raise InputError(f"{where}: has no numbers (it is on the meta device); load them before")
    if any(0 in buffer.stride() and buffer.numel() > 1 for buffer in norm.buffers):
        raise InputError(
            f"{where}: has one number for all channels in memory (expand); give it tensors of its own (clone)"
        )
    if mean.dtype not in _DTYPES:
        raise InputError(
            f"{where}: has statistics of type {mean.dtype}; known are "
            + ", ".join(str(dtype) for dtype in _DTYPES)
        )


def _need_own_buffers(norms: Sequence[Norm]) -> None:
    holder: dict[int, Norm] = {}
    for norm in norms:
        if norm.buffers[0] is norm.buffers[1]:
            raise InputError(
                f"BatchNormalization '{norm.name}': its mean and variance are one tensor; give it two"
            )
        for buffer in norm.buffers:
            if not buffer.numel():
                continue
            first = holder.setdefault(id(buffer), norm)
            if first is not norm:
                raise InputError(
                    f"BatchNormalization '{norm.name}': shares its statistics with '{first.name}', though "
                    "what comes into them differs; give each tensors of its own"
                )


def _need_own_memory(module: nn.Module, norms: Sequence[Norm]) -> None:
    """Refuse statistics that other tensors see as well: in a copy, where all are apart, they would not."""
    owner = {id(buffer): norm for norm in norms for buffer in norm.buffers}
    spans = sorted(
        ((span, id(tensor), path) for path, tensor in _held(module) if (span := _span(tensor))),
        key=lambda found: found[0],
    )
    last = ""  # the device of the tensor that reaches furthest so far, and how far, and which it is
    reach = first = 0
    for (device, start, end), tensor, path in spans:
        norm = owner.get(tensor) or owner.get(first)
        if norm is not None and tensor != first and device == last and start < reach:
            raise InputError(
                f"BatchNormalization '{norm.name}': its statistics share memory with another tensor (see "
                f"'{path or type(module).__name__}'), which would not see new ones in a copy, where they are "
                "measured; give them memory of their own (clone)"
            )
        if device != last or end > reach:
            last, reach, first = device, end, tensor


def _held(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors that the parts of a module hold, each with the path of the part."""
    for path, part in module.named_modules():
        for leaf in _pytree.tree_leaves(list(vars(part).values())):
            if isinstance(leaf, torch.Tensor):
                yield path, leaf


def _span(tensor: torch.Tensor) -> tuple[str, int, int] | None:
    """The device of a tensor, and from where to where it reaches in memory; None if it has no such place."""
    if nn.parameter.is_lazy(tensor) or tensor.layout is not torch.strided or tensor.is_nested:
        return None
    if tensor.is_meta or not tensor.numel():
        return None
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return str(tensor.device), start, start + (steps + 1) * tensor.element_size()


def _float64(tensor: Any) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = tensor.detach().cpu().double().numpy().reshape(-1).copy()
    return numbers
