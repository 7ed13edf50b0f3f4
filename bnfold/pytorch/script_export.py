"""TorchScript to ONNX, by torch's older exporter: the newer one does not take it."""

from __future__ import annotations

import inspect
import io
from collections.abc import Sequence

import onnx_ir as ir
import torch

from ..errors import InputError
from ..model import load
from .capture import Captured, refusal
from .duplicate import at_rest, cloned, duplicate
from .failure import told
from .inputs import Input, bind
from .outputs import called
from .quiet import quiet
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
    failures: list[Exception] = []
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
        except Exception as error:  # a module may raise anything
            failures.append(error)
            continue
        model = load(io.BytesIO(file.getvalue()))
        tidy(model, captured.inputs, called(results), {})
        return model
    first = failures[0]
    if "onnx" in type(first).__module__:
        raise InputError(f"{captured.name}: torch.onnx.export cannot export it: {told(first)}") from first
    raise refusal(captured.name, first, captured.module, call) from first


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
