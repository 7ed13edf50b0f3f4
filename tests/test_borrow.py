"""Single nodes in onnxruntime: what comes back, and what does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from bnfold.borrow import Borrower
from bnfold.evaluate import Missing, Program, Unsupported
from bnfold.session import Session

Borrow = Callable[[onnx.ModelProto], Borrower]
HEADER = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'


@pytest.fixture
def borrow() -> Iterator[Borrow]:
    borrowers = []

    def made(model: onnx.ModelProto) -> Borrower:
        borrowers.append(Borrower(model, lambda: Session(timeout=60)))
        return borrowers[-1]

    yield made
    for borrower in borrowers:
        borrower.close()


def model(graph: str, opset: int = 17) -> onnx.ModelProto:
    return parser.parse_model(f"{HEADER.replace('17', str(opset))} g {graph}")


def test_an_operator_of_another_domain_amid_float64(borrow: Borrow) -> None:
    text = """(float[N,3] x) => (float[N,3] y) <float[3] w = {1, 2, 3}> {
        a = Mul(x, w)  b = com.microsoft.QuickGelu<alpha = 1.0>(a)  y = Add(b, w) }"""
    proto = model(text)
    program = Program(proto, elsewhere=borrow(proto))
    x = np.random.default_rng(0).standard_normal((2, 3))
    y = dict(program.run({"x": x.astype(np.float32)}))["y"]
    a = x.astype(np.float32).astype(np.float64) * [1, 2, 3]
    assert isinstance(y, np.ndarray) and y.dtype == np.float64
    # onnxruntime computes it in float32: a few units of 6e-8 of numbers below 10.
    np.testing.assert_allclose(y, a / (1 + np.exp(-a)) + [1, 2, 3], atol=1e-5)
    assert program.borrowed == ("QuickGelu 'b'",)


def test_floats_are_given_in_the_type_that_the_model_declares(borrow: Borrow) -> None:
    """In float16, 2049 is 2048; in float32 it is itself. The type follows from that of x, over a Cast."""
    for kind, code, expected in (("float16", 10, 2048.0), ("float", 1, 2049.0)):
        proto = model(
            f"(float[1] x) => ({kind}[1] y) {{ c = Cast<to = {code}>(x)  a = Identity(c)  y = Identity(a) }}"
        )
        assert borrow(proto)(proto.graph.node[2], [np.array([2049.0])])[0].tolist() == [expected]


def test_a_type_that_is_not_known_is_that_of_the_other_inputs(borrow: Borrow) -> None:
    proto = model("(float16[1] x) => (float16[1] y) { u = com.microsoft.NoSuch(x)  y = Add(x, u) }")
    one = np.array([1.0])
    assert borrow(proto)(proto.graph.node[1], [one, one * 2048]) == [np.array([2048.0])]  # 2049 in float32


def test_integers_absent_inputs_and_absent_outputs(borrow: Borrow) -> None:
    proto = model(
        "(float[1,1,4] x) => (float[1,1,2] y, int64[1,1,2] i) { y, i = MaxPool<kernel_shape = [3]>(x) }"
    )
    run, x = borrow(proto), np.array([[[1.0, 4.0, 2.0, 3.0]]])
    values, indices = run(proto.graph.node[0], [x])
    assert values.tolist() == [[[4.0, 4.0]]]
    assert indices.dtype == np.int64 and indices.tolist() == [[[1, 1]]]
    proto.graph.node[0].output[1] = ""
    values, nothing = run(proto.graph.node[0], [x])
    assert values.tolist() == [[[4.0, 4.0]]]
    assert nothing.size == 0
    clip = model("(float[2] x, float h) => (float[2] y) { y = Clip(x, , h) }")
    given = [np.array([-5.0, 5.0]), None, np.array(3.0)]
    assert borrow(clip)(clip.graph.node[0], given)[0].tolist() == [-5.0, 3.0]


def test_nodes_that_differ_in_attributes_or_shapes_alone_are_told_apart(borrow: Borrow) -> None:
    proto = model("(float[2,3] x) => (float[3,2] y) { y = Transpose<perm = [1, 0]>(x) }")
    proto.graph.node.append(onnx.helper.make_node("Transpose", ["x"], ["z"], perm=[0, 1]))
    run, x = borrow(proto), np.arange(6.0).reshape(2, 3)
    for node, expected in zip(proto.graph.node, (x.T, x), strict=True):
        for _ in range(2):
            np.testing.assert_array_equal(run(node, [x])[0], expected)
    assert run(proto.graph.node[0], [np.ones((4, 5))])[0].shape == (5, 4)


def test_refusals_carry_the_reason_and_leave_the_next_node_alone(borrow: Borrow) -> None:
    proto = model("(float[1] x) => (float[1] y) { a = com.microsoft.NoSuch(x)  y = Relu(x) }")
    run, x = borrow(proto), np.array([-1.0])
    with pytest.raises(Unsupported, match=r"onnxruntime cannot run it: .*com\.microsoft:NoSuch"):
        run(proto.graph.node[0], [x])
    assert run(proto.graph.node[1], [x])[0].tolist() == [0.0]
    y = dict(
        Program(model("(float[1] x) => (float[1] a) { a = com.microsoft.NoSuch(x) }"), elsewhere=run).run(
            {"x": x}
        )
    )
    assert isinstance(y["a"], Missing) and "NoSuch" in y["a"].reason


def test_a_crash_is_a_refusal_every_time(borrow: Borrow) -> None:
    text = "(float[1,2] x, float[2] s) => (float[1,2] y) { y = BatchNormalization(x, s, s, s, s) }"
    proto = model(text, opset=8)
    node, crashing = proto.graph.node[0], onnx.NodeProto()
    crashing.CopyFrom(node)
    crashing.output.extend([""] * 4)  # onnxruntime 1.31 ends with a segmentation fault
    run, values = borrow(proto), [np.ones((1, 2)), *[np.ones(2)] * 4]
    for _ in range(2):
        with pytest.raises(Unsupported, match="onnxruntime crashed"):
            run(crashing, values)
    np.testing.assert_allclose(run(node, values)[0], [[1, 1]], atol=1e-6)


def test_what_is_no_node_by_itself_or_no_tensor(borrow: Borrow) -> None:
    proto = model(
        """(bool c, float[1] x) => (float[1] y) {
        y = If(c) <then_branch = t () => (float[1] a) { a = Identity(x) },
                   else_branch = e () => (float[1] b) { b = Neg(x) }>  s = SequenceConstruct(x) }"""
    )
    run = borrow(proto)
    with pytest.raises(Unsupported, match="inner graphs"):
        run(proto.graph.node[0], [np.array(True)])
    with pytest.raises(Unsupported, match=r"its results are seq\(tensor\(float\)\)"):
        run(proto.graph.node[1], [np.ones(1)])


def test_several_threads_get_their_own_answers(borrow: Borrow) -> None:
    proto = model("(float[N] x) => (float[N] y) { y = Neg(x)  z = Abs(x) }")
    neg, absolute = proto.graph.node
    run = borrow(proto)

    def both(i: int) -> tuple[float, float]:
        x = np.array([-float(i)])
        return float(run(neg, [x])[0][0]), float(run(absolute, [x])[0][0])

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(both, range(40))) == [(i, i) for i in range(40)]


def test_weights_are_rounded_once_and_not_kept(borrow: Borrow) -> None:
    """The model's own arrays stay what they are."""
    weight = np.array([1 + 2.0**-40])
    proto = model("(float[1] x) => (float[1] y) { y = Mul(x, w) }")
    proto.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
    assert borrow(proto)(proto.graph.node[0], [np.ones(1), weight])[0].tolist() == [1.0]
    assert weight[0] == 1 + 2.0**-40
