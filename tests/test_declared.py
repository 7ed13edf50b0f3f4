"""The element types of values, declared or inferred."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import model
from onnx import TensorProto

from bnfold.declared import element_types


def test_types_are_declared_stored_or_inferred() -> None:
    text = "(float16[N,4] x) => (float[N,4] y) { a = Neg(x) s = Shape(a) y = Cast<to = 1>(a) }"
    proto = model(text, b=np.ones(4, np.float64))
    assert element_types(proto) == {
        "x": TensorProto.FLOAT16,
        "a": TensorProto.FLOAT16,
        "s": TensorProto.INT64,
        "y": TensorProto.FLOAT,
        "b": TensorProto.DOUBLE,
    }


@pytest.mark.parametrize("code", [0, 77])
def test_types_that_are_none_are_left_out(code: int) -> None:
    proto = model("(float[N,4] x) => (float[N,4] y) { y = Add(x, b) }", b=(4,))
    proto.graph.input[0].type.tensor_type.elem_type = code
    proto.graph.output[0].type.tensor_type.elem_type = code
    assert "x" not in element_types(proto)
    assert element_types(proto)["b"] == TensorProto.FLOAT
