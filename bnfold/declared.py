"""The element types that a model declares for its values, or that follow from what it declares."""

from __future__ import annotations

from contextlib import suppress

import onnx


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Codes of `TensorProto.DataType` by name of a value of the main graph; unknown ones are left out.

    Weights are not looked into, so this costs no more for a large model.
    """
    given = [onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer]
    names = {value.name for value in given}
    declared = [value for value in model.graph.input if value.name not in names]
    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    skeleton.functions.extend(model.functions)
    graph = onnx.GraphProto(name=model.graph.name, node=model.graph.node, output=model.graph.output)
    graph.input.extend([*declared, *given])
    graph.value_info.extend(model.graph.value_info)
    skeleton.graph.CopyFrom(graph)
    # Where inference fails, what is declared is known all the same.
    with suppress(ValueError, RuntimeError, onnx.shape_inference.InferenceError):
        graph = onnx.shape_inference.infer_shapes(skeleton).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    known = onnx.helper.get_all_tensor_dtypes()
    return {name: code for name, code in types.items() if code in known}
