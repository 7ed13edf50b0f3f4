"""The parts of a model between its BatchNormalizations."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import model
from numpy.typing import NDArray

from bnfold.stages import Stages, inner_norms

NORM = "BatchNormalization"
# a and b are parallel, c is behind both; k is constant, t leads to no norm, x is read again at the end.
GRAPH = f"""(float[N,4] x) => (float[] y, float[] t) {{
    k = Add(one, one)
    p = Relu(x)
    a = {NORM}(p, one, one, one, one)
    q = Mul(p, k)
    b = {NORM}(q, one, one, one, one)
    s = Add(a, b)
    u = Add(s, x)
    c = {NORM}(u, one, one, one, one)
    d = Sub(c, q)
    y = {NORM}(d, one, one, one, one)
    t = Tanh(y)
}}"""
ONE = np.ones(4, np.float32)


def stages(text: str = GRAPH, **constants: Any) -> Stages:
    return Stages(model(text, **{"one": ONE, **constants}))


def numbers(count: int) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    rng = np.random.default_rng(0)
    return [(rng.random(4).astype(np.float32), rng.random(4).astype(np.float32) + 1) for _ in range(count)]


def run(part: onnx.ModelProto, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(part.SerializeToString(), options)
    names = [o.name for o in session.get_outputs()]
    needed = {i.name: feeds[i.name] for i in session.get_inputs()}
    return dict(zip(names, session.run(names, needed), strict=True))


def test_levels() -> None:
    found = stages()
    assert found.levels == ((0, 1), (2,), (3,))
    assert [norm.data for norm in found.norms] == ["p", "q", "u", "d"]


def test_frontiers_hold_what_is_still_read() -> None:
    found = stages()
    assert found.frontier(0) == {"p", "q", "x"}
    assert found.frontier(1) == {"u", "q"}
    assert found.frontier(2) == set()


def test_a_way_through_frontiers_is_the_whole_way() -> None:
    """Bit for bit; and what leads nowhere is not computed."""
    found, statistics = stages(), numbers(4)
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    targets = [norm.data for norm in found.norms]
    whole = run(found.part(None, targets, statistics), {"x": x})
    held: dict[str, NDArray[Any]] = {"x": x}
    sources = None
    for level, chosen in enumerate(found.levels):
        wanted = [*(targets[i] for i in chosen), *found.frontier(level)]
        part = found.part(sources, wanted, statistics)
        assert "Tanh" not in [node.op_type for node in part.graph.node]
        held |= run(part, held) if part.graph.node else {}
        for i in chosen:
            np.testing.assert_array_equal(held[targets[i]], whole[targets[i]])
        held = {name: held[name] for name in found.frontier(level)}
        sources = {name: value.dtype for name, value in held.items()}
        if level:
            assert len(part.graph.node) <= 5


def test_by_the_statistics_of_the_batch() -> None:
    found = stages()
    x = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    values = run(found.part(None, ["p", "s"], numbers(4), batch_statistics=True), {"x": x})
    p = values["p"].astype(np.float64)
    q = 2 * p

    def normalized(v: NDArray[Any]) -> NDArray[Any]:
        return np.asarray((v - v.mean(0)) / np.sqrt(v.var(0) + 1e-5) + 1)

    # float32 kernels on numbers of magnitude 1
    np.testing.assert_allclose(values["s"], normalized(p) + normalized(q), atol=1e-5)


def test_what_an_inner_graph_reads_is_kept() -> None:
    text = f"""(float[N,4] x, bool flag) => (float[] y) {{
        r = Relu(x)
        a = {NORM}(r, one, one, one, one)
        b = If (flag) <then_branch = g () => (float[] t) {{ t = Add(a, r) }},
                       else_branch = h () => (float[] e) {{ e = Mul(a, x) }}>
        y = {NORM}(b, one, one, one, one) }}"""
    assert stages(text).frontier(0) == {"r", "x", "flag"}


def test_names_of_ours_in_the_model() -> None:
    text = f"""(float[N,4] x) => (float[] y) {{ bnfold0.mean.1 = Relu(x)
        y = {NORM}(bnfold0.mean.1, one, one, one, one)  z = {NORM}(y, one, one, one, one) }}"""
    proto = model(text.replace("bnfold0.mean.1", "taken"), one=ONE)
    for node in proto.graph.node:
        node.input[:] = [name.replace("taken", "bnfold0.mean.1") for name in node.input]
        node.output[:] = [name.replace("taken", "bnfold0.mean.1") for name in node.output]
    found = Stages(proto)
    assert run(found.part(None, ["z"], numbers(2)), {"x": np.ones((2, 4), np.float32)})["z"].shape == (2, 4)


def test_a_norm_of_a_constant_is_none() -> None:
    text = f"(float[N,4] x) => (float[] y) {{ k = {NORM}(c, one, one, one, one)  y = Add(x, k) }}"
    assert not stages(text, c=(2, 4)).norms


def test_nodes_in_any_order() -> None:
    proto = model(GRAPH, one=ONE)
    turned = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(turned)
    found = Stages(proto)
    assert sorted(map(len, found.levels)) == [1, 1, 2]
    x = np.ones((2, 4), np.float32)
    assert run(found.part(None, ["d"], numbers(4)), {"x": x})["d"].shape == (2, 4)


def test_norms_out_of_sight() -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17, "own": 1]> test (float[N,4] x, bool c) => (float[] y) {{
        z = own.f(x)
        y = If (c) <then_branch = g () => (float[] t) {{
                        inside = {NORM}(z, one, one, one, one)  t = Relu(inside) }},
                    else_branch = h () => (float[] e) {{ e = Identity(z) }}> }}
        <domain: "own", opset_import: ["": 17]> f (a) => (r) {{ r = {NORM}(a, a, a, a, a) }}"""
    assert inner_norms(model(text, one=ONE)) == (["inside"], ["r"])


@pytest.mark.parametrize("kind", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_random_numbers_on_the_way(kind: str) -> None:
    text = f"""(float[N,4] x) => (float[] y, float[] o) {{
        r = {kind}(x)  s = Add(r, x)  y = {NORM}(s, one, one, one, one)  o = RandomNormalLike(y) }}"""
    assert stages(text).random == ("r",)
