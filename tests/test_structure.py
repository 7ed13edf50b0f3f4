"""What two models say of themselves is told as it stands in the file, nonsense included."""

from __future__ import annotations

import onnx
import pytest
from graphs import model

from bnfold.changes import Size
from bnfold.structure import differences, size
from bnfold.verification import Difference

TEXT = "(float[N,3] x) => (float[] y) { y = Relu(x) }"


def inputs(candidate: onnx.ModelProto) -> list[Difference]:
    return [found for found in differences(model(TEXT), candidate) if found.what == "input"]


def test_models_that_say_the_same_do_not_differ() -> None:
    assert differences(model(TEXT), model(TEXT)) == ()


@pytest.mark.parametrize(
    ("code", "told"), [(1, "float"), (10, "float16"), (0, "undefined"), (77, "77"), (-1, "-1")]
)
def test_an_element_type_without_a_name_is_a_number(code: int, told: str) -> None:
    candidate = model(TEXT)
    candidate.graph.input[0].type.tensor_type.elem_type = code
    expected = [] if code == 1 else [Difference("input", "x: float[N, 3]", f"x: {told}[N, 3]")]
    assert inputs(candidate) == expected


def test_an_input_without_a_type() -> None:
    candidate = model(TEXT)
    candidate.graph.input[0].ClearField("type")
    assert inputs(candidate) == [Difference("input", "x: float[N, 3]", "x: no type")]


def test_an_input_that_is_no_tensor() -> None:
    candidate = model(TEXT)
    candidate.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1
    assert inputs(candidate) == [Difference("input", "x: float[N, 3]", "x: sequence")]


def test_the_size_counts_inner_graphs_constants_and_functions() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
    main (float[2,3] x, bool b) => (float[] y) <float[3] w> {
        h = Constant <value = float16[4] {1, 2, 3, 4}> ()
        y = If (b) <then_branch = g1 () => (float[] t) <float[5] v> { t = own.twice(x) },
                    else_branch = g2 () => (float[] e) { e = Add(x, w) }> }
    <domain: "own", opset_import: ["": 17]> twice (a) => (c) { c = Add(a, a) }"""
    proto = model(text, w=(3,))
    branch = proto.graph.node[1].attribute[0].g
    branch.initializer.append(onnx.helper.make_tensor("v", onnx.TensorProto.INT4, [5], [1] * 5))
    assert size(proto) == Size(3 + 4 + 5, 12 + 8 + 3, {"Constant": 1, "If": 1, "own::twice": 1, "Add": 2})
