"""Constants are found where a file holds them, and computed as the model states it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import drawn, model, norm

from bnfold.tensors import Tensors, Unavailable


def tensors(text: str, folder: Path = Path(), *, opset: int = 17, **constants: Any) -> Tensors:
    return Tensors(model(text, opset=opset, **constants), folder)


class TestStored:
    def test_an_initializer(self) -> None:
        found = tensors("(float[N] x) => (float[N] y) { y = Add(x, b) }", b=(4,))
        np.testing.assert_array_equal(found.constant("", "b"), drawn("b", 4))
        assert found.shape("", "b") == (4,)
        assert found.names == {"b"}

    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
    def test_all_floats(self, dtype: Any) -> None:
        b = drawn("b", 4, dtype=dtype)
        found = tensors("(float[N] x) => (float[N] y) { y = Relu(x) }", b=b).constant("", "b")
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, b)

    def test_external_data(self, tmp_path: Path) -> None:
        proto = model("(float[N] x) => (float[N] y) { y = Add(x, b) }", b=(400,))
        path = tmp_path / "model.onnx"
        onnx.save(proto, path, save_as_external_data=True, size_threshold=0)
        np.testing.assert_array_equal(Tensors.of(path).constant("", "b"), drawn("b", 400))
        Path(tmp_path, next(p.name for p in tmp_path.iterdir() if p != path)).unlink()
        with pytest.raises(Unavailable, match="'b' cannot be read"):
            Tensors.of(path).constant("", "b")

    def test_an_inner_graph(self) -> None:
        branch = "{ y = Add(x, b) }"
        text = f"""(float[4] x, bool c) => (float[4] z) {{
            [n] z = If (c) <then_branch = a () => (float[4] y) <float[4] b = {{1,2,3,4}}> {branch},
                            else_branch = d () => (float[4] y) <float[4] b = {{5,6,7,8}}> {branch}> }}"""
        found = tensors(text)
        assert found.constant("n.then_branch", "b").tolist() == [1, 2, 3, 4]
        assert found.constant("n.else_branch", "b").tolist() == [5, 6, 7, 8]
        with pytest.raises(Unavailable, match="'b' is not computed or stored in the main graph"):
            found.constant("", "b")
        assert found.anywhere("b").shape == (4,)

    def test_two_graphs_of_one_path(self) -> None:
        then = (
            "If (c) <then_branch = a () => (float y) { y = Constant <value_float = 1.0> () }, else_branch = "
        )
        text = f"""(bool c) => (float p, float q) {{
            [n] p = {then} d () => (float z) {{ z = Identity(c) }}>
            [n] q = {then} e () => (float z) {{ z = Identity(c) }}> }}"""
        with pytest.raises(Unavailable, match="'y' is several times"):
            tensors(text).constant("n.then_branch", "y")


class TestComputed:
    def test_a_constant_node(self) -> None:
        found = tensors(
            "(float[2] x) => (float[2] y) { b = Constant <value_floats = [1.5, 2.5]> () y = Add(x, b) }"
        )
        assert found.constant("", "b").tolist() == found.anywhere("b").tolist() == [1.5, 2.5]
        assert found.shape("", "b") == (2,)

    def test_a_chain_is_computed_in_its_own_type(self) -> None:
        text = "(float[2] x) => (float[2] y) { p = Mul(a, a) q = Transpose(p) r = Neg(q) y = Add(x, r) }"
        a = np.array([1 + 2.0**-20, 3.0], np.float32)
        np.testing.assert_array_equal(tensors(text, a=a).constant("", "r"), -(a * a))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
    def test_cast_like_data(self, dtype: str) -> None:
        text = f"""({dtype}[N,4] x) => ({dtype}[N,4] y) {{
            like = CastLike(zero, x) b = Expand(like, shape) y = Add(x, b) }}"""
        b = tensors(text, zero=np.float32(0.1), shape=[4]).constant("", "b")
        assert b.shape == (4,) and "float" in b.dtype.name
        assert float(b[0]) == float(np.float32(0.1).astype(b.dtype))
        assert b.dtype.name == {"double": "float64"}.get(dtype, dtype)

    def test_a_type_that_has_to_be_inferred(self) -> None:
        text = "(float16[N,4] x) => (float16[N,4] y) { r = Relu(x) b = CastLike(zero, r) y = Add(x, b) }"
        assert tensors(text, zero=np.float32(0.1)).constant("", "b").dtype == np.float16

    def test_a_known_part_of_a_shape(self) -> None:
        text = (
            "(float[N,4] x) => (float[N,4] y) { s = Shape <start = 1> (x) b = Expand(one, s) y = Add(x, b) }"
        )
        assert tensors(text, one=1.0).constant("", "b").tolist() == [1, 1, 1, 1]
        with pytest.raises(Unavailable, match="the shape of 'x' is not known"):
            tensors(text.replace("<start = 1>", ""), one=1.0).constant("", "b")

    def test_a_type_that_is_none(self) -> None:
        text = "(float[N,4] x) => (float[N,4] y) { b = CastLike(zero, x) y = Add(x, b) }"
        found = tensors(text, zero=np.float32(0.1))
        found.model.graph.input[0].type.tensor_type.elem_type = 77
        with pytest.raises(Unavailable, match=r"the type of 'x' is not known \(77\)"):
            found.constant("", "b")

    def test_a_long_chain(self) -> None:
        links = " ".join(f"b{i + 1} = Identity(b{i})" for i in range(1500))
        found = tensors(f"(float[N] x) => (float[N] y) {{ {links} y = Add(x, b1500) }}", b0=(4,))
        np.testing.assert_array_equal(found.constant("", "b1500"), drawn("b0", 4))

    @pytest.mark.parametrize(
        ("body", "opset", "why"),
        [
            ("b = Neg(x)", 17, "depends on 'x', which is no constant"),
            ("b = Mul <broadcast = 1> (one, one)", 6, "broadcasting of old opsets"),
            ("b = Reshape(one, one)", 17, "cannot be computed"),
        ],
    )
    def test_what_cannot_be_computed(self, body: str, opset: int, why: str) -> None:
        found = tensors(f"(float[N] x) => (float[N] y) {{ {body} y = Add(x, b) }}", opset=opset, one=1.0)
        with pytest.raises(Unavailable, match=why):
            found.constant("", "b")


class TestVariance:
    TEXT = "(float[N,4] x) => (float[N,4] y) { y = BatchNormalization %s (x, scale, bias, mean, var) }"

    def test_given(self) -> None:
        found = tensors(self.TEXT % "<epsilon = 0.25>", **norm(4))
        var, epsilon = found.variance("", "y")
        assert epsilon == 0.25
        np.testing.assert_array_equal(var, drawn("var", 4))

    def test_by_default_a_float32(self) -> None:
        assert tensors(self.TEXT % "", **norm(4)).variance("", "y")[1] == float(np.float32(1e-5))

    def test_of_another_node(self) -> None:
        found = tensors("(float[N] x) => (float[N] y) { y = Relu(x) }")
        for name in ("x", "y"):
            with pytest.raises(Unavailable):
                found.variance("", name)

    def test_computed_from_data(self) -> None:
        found = tensors(
            "(float[N,4] x, float[4] v) => (float[N,4] y) { y = BatchNormalization(x, c, c, c, v) }", c=(4,)
        )
        with pytest.raises(Unavailable, match="'v', the variance of 'y', is no constant"):
            found.variance("", "y")

    def test_a_parameter_of_a_function(self) -> None:
        text = """<ir_version: 8, opset_import: ["": 17, "f": 1]>
            test (float[N,4] x) => (float[N,4] y) { y = f.Norm <e: float = 0.5> (x) }
            <domain: "f", opset_import: ["": 17]> Norm <e> (x) => (y) {
                c = Constant <value_floats = [1.0, 1.0, 1.0, 1.0]> ()
                y = BatchNormalization <epsilon: float = @e> (x, c, c, c, c) }"""
        found = tensors(text)
        assert found.constant("f::Norm", "c").tolist() == [1, 1, 1, 1]
        assert found.names == {"c"}
        with pytest.raises(Unavailable, match="differs from call to call"):
            found.variance("f::Norm", "y")
