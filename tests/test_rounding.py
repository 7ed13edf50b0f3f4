"""What rounding may do to the outputs of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from bnfold.evaluate import Program
from bnfold.rounding import Gap, Rounding, gap


def program(text: str, **constants: Any) -> Program:
    parsed: onnx.ModelProto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    parsed.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    return Program(parsed)


def noise(model: Program, **feed: Any) -> float:
    """Of the only output, relative to it."""
    exact = {name: np.asarray(value) for name, value in model.run(feed)}
    (name,) = model.outputs
    return Rounding(model, 0).noise(feed, exact)[name] / float(np.sqrt(np.mean(exact[name] ** 2)))


class TestNoise:
    @pytest.mark.parametrize(
        ("kind", "eps"), [("float", 2.0**-23), ("float16", 2.0**-10), ("double", 2.0**-52)]
    )
    def test_one_rounding_is_that_of_the_type(self, kind: str, eps: float) -> None:
        model = program(f"({kind}[1000] x) => ({kind}[1000] y) {{ y = Abs(x) }}")
        x = np.linspace(1, 2, 1000).astype({"float": "float32", "double": "float64"}.get(kind, kind))
        # U(-1, 1) has deviation 1/sqrt(3); of 8000 numbers it is known to 1 %.
        assert noise(model, x=x) == pytest.approx(eps / 2 / np.sqrt(3), rel=0.05)

    def test_the_type_on_the_way_counts_not_that_of_the_output(self) -> None:
        text = "(float[1000] x) => (float[1000] y) { a = Cast<to = 10>(x)  b = Neg(a)  y = Cast<to = 1>(b) }"
        assert noise(program(text), x=np.linspace(1, 2, 1000, dtype=np.float32)) > 2.0**-11 / np.sqrt(3)

    @pytest.mark.parametrize(
        ("node", "shape", "weight"),
        [
            ("MatMul(x, w)", (64, 512), (512, 64)),
            ("Gemm(x, w)", (64, 512), (512, 64)),
            ("Gemm<transB = 1>(x, w)", (64, 512), (64, 512)),
            ("Conv(x, w)", (1, 512, 64), (64, 512, 1)),
            ("ConvTranspose(x, w)", (1, 512, 64), (512, 64, 1)),
        ],
    )
    def test_a_sum_of_n_terms_has_the_square_root_of_half_as_many(
        self, node: str, shape: tuple[int, ...], weight: tuple[int, ...]
    ) -> None:
        dims = ",".join(map(str, shape))
        model = program(f"(float[{dims}] x) => (float[] y) {{ y = {node} }}", w=np.ones(weight, np.float32))
        # The nudges of the weights average out: 512 of equal sign leave a 22nd part of one.
        expected = 2.0**-24 * np.sqrt(512 / 2) / np.sqrt(3)
        assert noise(model, x=np.ones(shape, np.float32)) == pytest.approx(expected, rel=0.1)

    @pytest.mark.parametrize("node", ["ReduceMean<axes = [2, 3]>(x)", "GlobalAveragePool(x)"])
    def test_so_has_a_mean(self, node: str) -> None:
        model = program(f"(float[9,9,16,16] x) => (float[] y) {{ y = {node} }}")
        expected = 2.0**-24 * np.sqrt(256 / 2) / np.sqrt(3)
        assert noise(model, x=np.ones((9, 9, 16, 16), np.float32)) == pytest.approx(expected, rel=0.2)

    def test_bounded_functions_are_known_to_so_much_of_their_range(self) -> None:
        model = program("(float[1000] x) => (float[1000] y) { y = Sigmoid(x) }")
        x = np.full(1000, -40, np.float32)
        (y,) = (np.asarray(value) for _, value in model.run({"x": x}))
        assert Rounding(model, 0).noise({"x": x}, {"y": y})["y"] == pytest.approx(
            2.0**-24 / np.sqrt(3), rel=0.05
        )

    def test_constants_are_nudged(self) -> None:
        """A mean over pixels takes away what each pixel's rounding adds, but not what a channel's does."""
        model = program("(float[1,1,99,99] x) => (float[] y) { y = Mul(x, k) }", k=np.float32(1.5))
        x = np.ones((1, 1, 99, 99), np.float32)
        means = []
        for draw in range(8):
            (y,) = (
                np.asarray(value) for name, value in Rounding(model, 0)._moved({"x": x}, draw) if name == "y"
            )
            means.append(float(y.mean()) - 1.5)
        assert np.std(means) > 1.5 * 2.0**-24 / 4  # 99 times as much as without

    def test_sizes_are_not_touched(self) -> None:
        text = """(float[N,3] x) => (float[] y) { d = Shape(x)  f = Cast<to = 1>(d)  h = Mul(f, two)
            g = Floor(h)  i = Cast<to = 7>(g)  y = ConstantOfShape<value = float[1] {1}>(i) }"""
        model = program(text, two=np.float32(2))
        # Of another size, y could not be compared; its ones are a constant like any other.
        assert 0 < noise(model, x=np.ones((4, 3), np.float32)) < 2.0**-24


class TestJumps:
    @pytest.mark.parametrize(
        ("nodes", "expected"),
        [
            ("y = Relu(x)", False),
            ("y = Sign(x)", True),
            ("a = Round(x)  b = Mul(a, a)  y = Relu(b)", True),
            ("a = Greater(x, x)  y = Where(a, x, x)", True),
            ("a = Cast<to = 7>(x)  y = Cast<to = 1>(a)", True),
            ("a = Cast<to = 11>(x)  y = Cast<to = 1>(a)", False),
            ("a = Sign(x)  y = Relu(x)", False),
            (
                "s = Shape(x)  f = Cast<to = 1>(s)  g = Floor(f)  i = Cast<to = 7>(g)  y = Reshape(x, i)",
                False,
            ),
        ],
    )
    def test_which_outputs_depend_on_decisions(self, nodes: str, expected: bool) -> None:
        model = program(f"(float[N,3] x) => (float[N,3] y) {{ {nodes} }}")
        assert Rounding(model, 0).jumps("y") is expected

    def test_decisions_about_integers_are_exact(self) -> None:
        text = "(int64[N] i, float[N] x) => (float[N] y) { m = Equal(i, i)  y = Where(m, x, x) }"
        assert not Rounding(program(text), 0).jumps("y")

    def test_inner_graphs_and_functions_are_looked_into(self) -> None:
        inner = """(bool c, float[1] x) => (float[1] y) {{
            y = If(c) <then_branch = t () => (float[1] a) {{ a = {}(x) }},
                       else_branch = e () => (float[1] b) {{ b = Relu(x) }}> }}"""
        assert Rounding(program(inner.format("Round")), 0).jumps("y")
        assert not Rounding(program(inner.format("Neg")), 0).jumps("y")
        function = """<ir_version: 8, opset_import: ["" : 17, "own" : 1]>
            g (float[1] x) => (float[1] y) {{ y = own.f(x) }}
            <domain: "own", opset_import: ["" : 17]> f (a) => (b) {{ b = {}(a) }}"""
        assert Rounding(Program(parser.parse_model(function.format("Sign"))), 0).jumps("y")
        assert not Rounding(Program(parser.parse_model(function.format("Neg"))), 0).jumps("y")


class TestGap:
    def test_floats(self) -> None:
        found = gap(np.array([1, 2, np.inf, np.nan], np.float32), np.array([1, 5, np.inf, np.nan]))
        assert found == Gap(np.sqrt(9 / 2), 0.0)

    def test_what_is_finite_in_one_only(self) -> None:
        assert gap(np.array([1, np.inf], np.float32), np.array([1.0, 70000.0])) == Gap(0.0, 0.5)

    def test_integers_and_shapes(self) -> None:
        assert gap(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == Gap(0.25, 0.0)
        assert gap(np.array([1.0]), np.array([[1.0]])).spoiled == 1
