"""TorchScript to ONNX, by torch's older exporter: the newer one does not take it."""

from __future__ import annotations

import inspect
import io
from collections.abc import Sequence

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import from_torch_dtype
from torch.utils import _pytree

from ..errors import InputError
from ..model import load
from .capture import Captured, refusal
from .duplicate import at_rest, cloned, duplicate
from .failure import RAISED, told
from .inputs import DTYPES, Call, Input, bind
from .outputs import called
from .quiet import quiet
from .signature import Slot, need_signature
from .tidy import tidy

SCRIPT_OPSETS = range(9, 21)
"""What the older exporter writes."""


def capture_script(name: str, source: torch.jit.ScriptModule, inputs: Sequence[str | Input]) -> Captured:
    """A TorchScript module, ready to be exported.

    Raises:
        InputError: The inputs do not fit.
    """
    call = bind(name, inputs, _signature(source))
    module = at_rest(duplicate(source, name, cloned))
    names = tuple(i.name for i in call.inputs)
    return Captured(name, None, call, module, names, {}, call.arguments, tuple(filter(None, (call.note(),))))


def write_script(captured: Captured, opset: int) -> ir.Model:
    """The ONNX model of it, unfolded.

    Raises:
        InputError: torch cannot export it.
    """
    call = captured.call
    assert call is not None
    axes = {
        i.name: {axis: size for axis, size in enumerate(i.shape) if isinstance(size, str)}
        for i in call.inputs
    }
    failures: list[BaseException] = []
    for values in call.examples():
        args, kwargs = call.arguments(values)
        file = io.BytesIO()
        try:
            with torch.no_grad(), quiet():
                results = captured.module(*args, **kwargs)
                torch.onnx.export(
                    captured.module,
                    (*args, kwargs) if kwargs else args,
                    file,
                    dynamo=False,
                    do_constant_folding=False,
                    training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fold, in float32
                    input_names=list(captured.inputs),
                    dynamic_axes=axes,
                    opset_version=opset,
                )
        except RAISED as error:  # a module may raise anything
            failures.append(error)
            continue
        model = load(io.BytesIO(file.getvalue()))
        _keep_unused(model, call)
        leaves = [Slot.of(leaf) for leaf in _pytree.tree_leaves(results) if leaf is not None]
        need_signature(captured.name, model, [_slot(i) for i in call.inputs], leaves)
        tidy(model, captured.inputs, called(results), {})
        return model
    first = failures[0]
    if "onnx" in type(first).__module__:
        raise InputError(f"{captured.name}: torch.onnx.export cannot export it: {told(first)}") from first
    raise refusal(captured.name, first, captured.module, call) from first


def _keep_unused(model: ir.Model, call: Call) -> None:
    """The older exporter drops inputs that nothing reads. A caller passes them all the same."""
    left = {value.name: value for value in model.graph.inputs}
    made = []
    for given in call.inputs:
        kind = ir.TensorType(_slot(given).dtype)
        made.append(left.get(given.name) or ir.Value(name=given.name, type=kind, shape=ir.Shape(given.shape)))
    model.graph.inputs[:] = made


def _slot(given: Input) -> Slot:
    return Slot(
        from_torch_dtype(DTYPES[given.dtype]),
        tuple(size if isinstance(size, int) else None for size in given.shape),
    )


def _signature(source: torch.jit.ScriptModule) -> inspect.Signature:
    """Of `forward`, as TorchScript knows it."""
    parameters = [
        inspect.Parameter(
            a.name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=a.default_value if a.has_default_value() else inspect.Parameter.empty,
        )
        for a in source.forward.schema.arguments[1:]
    ]
    return inspect.Signature(parameters)
