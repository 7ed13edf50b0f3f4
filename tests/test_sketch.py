"""What a fold changed: the pictures of its sites, the ranges of weights, the sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import drawn, model, norm

from bnfold import fold, inspect
from bnfold.changes import Changes, Picture, Role, Size
from bnfold.report import FoldReport, Outcome
from bnfold.sketch import Sketch

MODELS = Path(__file__).parents[2] / "shared" / "models"
BN = "BatchNormalization({}, scale, bias, mean, var)"
X = "(float[N,3,8,8] x) => (float[] y)"


def sketched(proto: onnx.ModelProto, **how: Any) -> tuple[Changes, FoldReport]:
    sketch = Sketch()
    report = fold(ir.from_proto(proto), watch=sketch, **how)
    return sketch.changes(), report


def normal(channels: int) -> dict[str, Any]:
    """With scales that pass a Relu."""
    return {**norm(channels), "scale": np.ones(channels, np.float32)}


def shown(picture: Picture) -> str:
    """Nodes with the first letters of their roles, and edges by place."""
    keys = [node.key for node in picture.nodes]
    nodes = " ".join(f"{node.op_type}:{node.role[:2]}" for node in picture.nodes)
    return nodes + "".join(f" {keys.index(a)}-{keys.index(b)}" for a, b in picture.edges)


SITES = {
    "backward": (
        f"r = Relu(x) c = Conv(r, w) n = {BN.format('c')} y = Relu(n)",
        "Relu:ne Conv:ab BatchNormalization:go Relu:ne 0-1 1-2 2-3",
        "Relu:ne Conv:ab Relu:ne 0-1 1-2",
    ),
    "through a Relu, which lets no shift pass": (
        f"c = Conv(x, w) r = Relu(c) n = {BN.format('r')} y = Tanh(n)",
        "Conv:ab Relu:pa BatchNormalization:go Tanh:ne 0-1 1-2 2-3",
        "Conv:ab Relu:pa Add:ar Tanh:ne 0-1 1-2 2-3",
    ),
    "into both halves": (
        f"a = Conv(x, half) b = Conv(x, other) c = Concat <axis = 1> (a, b) y = {BN.format('c')}",
        "Conv:ab Conv:ab Concat:pa BatchNormalization:go 0-2 1-2 2-3",
        "Conv:ab Conv:ab Concat:pa 0-2 1-2",
    ),
    "what computes a constant is not drawn": (
        f"t = Transpose <perm = [1,0,2,3]> (turned) c = Conv(x, t) y = {BN.format('c')}",
        "Conv:ab BatchNormalization:go 0-1",
        "Conv:ab",
    ),
    "nothing is left to draw but what stood around": (
        "r = Relu(x) n = Mul(r, one) y = Tanh(n)",
        "Relu:ne Mul:go Tanh:ne 0-1 1-2",
        "Relu:ne Tanh:ne 0-1",
    ),
}


@pytest.mark.parametrize("name", SITES)
def test_a_site(name: str) -> None:
    text, before, after = SITES[name]
    half, other = (2, 3, 1, 1), (2, 3, 1, 1)
    one = np.ones((1, 3, 1, 1), np.float32)
    proto = model(
        f"{X} {{ {text} }}", w=(4, 3, 1, 1), turned=(3, 4, 1, 1), half=half, other=other, one=one, **normal(4)
    )
    (site,) = sketched(proto)[0].sites
    assert (site.decision, shown(site.before), shown(site.after)) == (0, before, after)


def test_forward_into_all_readers() -> None:
    text = f"n = {BN.format('x')} a = Conv(n, w) b = Conv(n, v) y = Add(a, b)"
    (site,) = sketched(model(f"{X} {{ {text} }}", w=(4, 3, 1, 1), v=(4, 3, 1, 1), **norm(3)))[0].sites
    assert shown(site.before) == "BatchNormalization:go Conv:ab Conv:ab Add:ne 0-1 0-2 1-3 2-3"
    assert shown(site.after) == "Conv:ab Conv:ab Add:ne 0-2 1-2"


def test_what_a_neighbour_left_behind_is_not_this_one_s() -> None:
    text = f"""c = Conv(x, w)  r = Relu(c)  n = {BN.format("r")}  p = Tanh(n)
               d = Conv(p, v)  m = {BN.format("d")}  y = Sigmoid(m)"""
    first, second = sketched(model(f"{X} {{ {text} }}", w=(3, 3, 1, 1), v=(3, 3, 1, 1), **normal(3)))[0].sites
    assert shown(first.after) == "Conv:ab Relu:pa Add:ar Tanh:ne 0-1 1-2 2-3"
    assert shown(second.after) == "Tanh:ne Conv:ab Sigmoid:ne 0-1 1-2"


def test_nodes_of_one_name() -> None:
    """Each site is drawn where it is, by the order of the decisions."""
    text = f"""c = Conv(x, w)  n = {BN.format("c")}  t = Tanh(n)
               d = Conv(t, v)  m = {BN.format("d")}  y = Sigmoid(m)"""
    proto = model(f"{X} {{ {text} }}", w=(3, 3, 1, 1), v=(3, 3, 1, 1), **norm(3))
    for node in proto.graph.node:
        node.name = "same"
    first, second = sketched(proto)[0].sites
    assert shown(first.before) == "Conv:ab BatchNormalization:go Tanh:ne 0-1 1-2"
    assert shown(second.after) == "Tanh:ne Conv:ab Sigmoid:ne 0-1 1-2"
    assert {node.key for node in first.before.nodes} & {node.key for node in second.before.nodes} == {2}


def test_what_an_earlier_fold_put_in_is_no_node_of_the_original() -> None:
    text = f"""r = Relu(x)  c = Conv(r, w)  s = Relu(c)  n = {BN.format("s")}  m = Mul(n, k)  y = Tanh(m)"""
    positive = np.full((1, 3, 1, 1), 2, np.float32)
    changes, report = sketched(model(f"{X} {{ {text} }}", w=(3, 3, 1, 1), k=positive, **normal(3)))
    assert len(changes.sites) == sum(d.outcome is not Outcome.KEPT for d in report.decisions)
    (site,) = changes.sites
    assert [node.op_type for node in site.after.nodes if node.role is Role.ARRIVES] == ["Add"]


def test_the_way_is_the_one_that_was_taken() -> None:
    """Not the shortest between two nodes."""
    text = """c = Conv(x, w)  a = MaxPool <kernel_shape = [1,1]> (c)  b = Sigmoid(x)  d = Conv(b, v)
               e = Concat <axis = 1> (a, d)  n = BatchNormalization(e, scale, bias, mean, var)  y = Tanh(n)"""
    (site,) = sketched(model(f"{X} {{ {text} }}", w=(2, 3, 1, 1), v=(2, 3, 1, 1), **normal(4)))[0].sites
    roles = {node.op_type: node.role for node in site.before.nodes}
    assert (roles["MaxPool"], roles["Concat"], roles["Sigmoid"]) == (Role.PASSES, Role.PASSES, Role.NEAR)


def test_a_run_that_becomes_one_node_keeps_it() -> None:
    text = f"r = Relu(x)  m = Mul(r, k)  n = {BN.format('m')}  a = Add(n, k)  y = Tanh(a)"
    changes, report = sketched(model(f"{X} {{ {text} }}", k=np.full((1, 3, 1, 1), 3, np.float32), **norm(3)))
    assert [d.outcome for d in report.decisions] == [Outcome.MERGED]
    (site,) = changes.sites
    assert shown(site.before) == "Relu:ne Mul:go BatchNormalization:ab Add:go Tanh:ne 0-1 1-2 2-3 3-4"
    assert shown(site.after) == "Relu:ne BatchNormalization:ab Tanh:ne 0-1 1-2"


def test_what_arrives_where_nothing_was_around() -> None:
    (site,) = sketched(model(f"{X} {{ m = Mul(x, k)  y = Mul(m, k) }}", k=np.full((3, 1, 1), 2, np.float32)))[
        0
    ].sites
    assert (shown(site.before), shown(site.after)) == ("Mul:go Mul:go 0-1", "Mul:ar")


def test_a_kept_run_has_no_site() -> None:
    changes, report = sketched(model(f"{X} {{ r = Relu(x)  n = {BN.format('r')}  y = Tanh(n) }}", **norm(3)))
    assert [d.outcome for d in report.decisions] == [Outcome.KEPT]
    assert changes.sites == () and changes.ranges == ()


def test_a_nameless_node_is_called_the_same_before_and_after() -> None:
    (site,) = sketched(model(f"{X} {{ c = Conv(x, w)  y = {BN.format('c')} }}", w=(4, 3, 1, 1), **norm(4)))[
        0
    ].sites
    assert [node.name for node in site.before.nodes] == ["c", "y"]
    assert [node.name for node in site.after.nodes] == ["c"]


def test_inside_an_inlined_function() -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17, "own": 1]>
    main (float[N,3,8,8] x) => (float[N,3,8,8] y) {{ y = own.block(x, w, scale, bias, mean, var) }}
    <domain: "own", opset_import: ["": 17]>
    block (x, w, scale, bias, mean, var) => (y) {{ c = Conv(x, w)  y = {BN.format("c")} }}"""
    proto = onnx.parser.parse_model(text)
    numbers = {
        "w": drawn("w", 3, 3, 1, 1),
        **{k: np.ones(3, np.float32) for k in ["scale", "bias", "mean", "var"]},
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in numbers.items())
    (site,) = sketched(proto, inline_functions=True)[0].sites
    assert shown(site.before) == "Conv:ab BatchNormalization:go 0-1"


def test_ranges_are_those_of_the_numbers() -> None:
    w, s = np.arange(-3, 3, dtype=np.float32).reshape(2, 3, 1, 1), np.array([2, -4], np.float32)
    text = "c = Conv(x, w)  m = Mul(c, s)  y = Add(m, b)"
    proto = model(f"{X} {{ {text} }}", w=w, s=s.reshape(1, 2, 1, 1), b=np.full((1, 2, 1, 1), 7, np.float32))
    weight, bias = sketched(proto)[0].ranges
    assert (weight.op_type, weight.input, bias.input) == ("Conv", 1, 2)
    assert weight.before is not None and (weight.before.low, weight.before.high) == (-3, 2)
    assert weight.after is not None and (weight.after.low, weight.after.high) == (-8, 0)
    assert bias.before is None and bias.after is not None and (bias.after.low, bias.after.high) == (7, 7)


def test_sizes() -> None:
    proto = model(f"{X} {{ c = Conv(x, w)  y = {BN.format('c')} }}", w=(4, 3, 1, 1), **norm(4))
    changes, _ = sketched(proto)
    assert changes.before == Size(28, 112, {"Conv": 1, "BatchNormalization": 1})
    assert changes.after == Size(16, 64, {"Conv": 1})


@pytest.mark.skipif(not MODELS.is_dir(), reason="the shared models are not here")
@pytest.mark.parametrize("name", ["exported/hf_levit.legacy_preserve", "real/mesonet__model"])
def test_real_models(name: str) -> None:
    """Every site that goes has its picture, with all that is said to take part."""
    report = inspect(MODELS / f"{name}.onnx", changes=True)
    assert report.changes is not None
    gone = [i for i, d in enumerate(report.fold.decisions) if d.outcome is not Outcome.KEPT]
    assert [site.decision for site in report.changes.sites] == gone
    for site in report.changes.sites:
        decision = report.fold.decisions[site.decision]
        drawn_names = {node.name for node in (*site.before.nodes, *site.after.nodes)}
        assert {*decision.nodes, *decision.into} <= drawn_names
