"""What is seen of a fold: names, inputs and outputs, dead nodes, options; and that comparing can fail."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cases import (
    MERGED,
    PULLED,
    REMOVED,
    all_ops,
    as_exported,
    compare,
    fates,
    initializer,
    prove,
    spelled_out,
)
from graphs import inputs, model, norm, numbers, ops, run
from onnx import numpy_helper

from bnfold import FoldPass, fold
from bnfold.errors import InputError
from bnfold.model import load, to_bytes
from bnfold.report import Outcome, Reason


def graph(body: str, *, x: str = "float[N,3,8,8]", gives: str = "", **constants: Any) -> onnx.ModelProto:
    """A model from its nodes, as for `cases.case`."""
    more = f", {gives}" if gives else ""
    return model(spelled_out(f"({x} x) => (float[] y{more}) {{ {body} }}"), **constants)


def node_of(proto: onnx.ModelProto, output: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(n for n in proto.graph.node if output in n.output)
    return found


# --- Names --------------------------------------------------------------------------------------------


def test_the_folded_node_keeps_its_name_and_computes_the_name_of_the_normalization() -> None:
    before = as_exported(graph("c = Conv(x, w) b = BN(c) y = Relu(b)", w=(4, 3, 1, 1), **norm(4)))
    after, _ = prove(before)
    conv = node_of(after, "b")
    assert (conv.op_type, conv.name) == ("Conv", node_of(before, "c").name)
    assert not any("c" in n.output for n in after.graph.node)
    assert {v.name for v in after.graph.value_info} == {"b", *numbers(after)}


def test_a_value_on_the_way_gets_a_fresh_name() -> None:
    before = graph("c = Conv(x, w) p = Transpose(c) y = Mul(p, s)", w=(4, 3, 1, 1), s=(4, 1))
    after, _ = prove(before)
    names = {o for n in after.graph.node for o in n.output}
    assert names.isdisjoint({"c", "p"})
    assert len(names) == 2


def test_pushed_names_end_where_the_values_are_the_same_again() -> None:
    before = graph("b = BN(x) p = Transpose(b) q = Transpose(p) y = Conv(q, w)", w=(4, 3, 1, 1), **norm(3))
    after, _ = prove(before)
    names = {o for n in after.graph.node for o in n.output}
    assert names.isdisjoint({"b", "p", "q"})
    assert "y" in names


def test_fresh_names_avoid_those_in_use() -> None:
    before = graph(
        "c = Conv(x, w) y = BN(c) w_folded = Relu(x) bias_folded = Tanh(x) c_folded = Tanh(x) "
        "z = Sum(w_folded, c_folded)",
        gives="float[] z, float[] bias_folded",
        w=(4, 3, 1, 1),
        y_bias=(1,),
        **norm(4),
    )
    after, report = prove(before)
    assert fates(report) == (PULLED,)
    compare(before, after)


def test_names_of_inner_graphs_are_avoided_too() -> None:
    before = model(
        "(float[N,3,8,8] x, bool p) => (float[] y) { c = Conv(x, w) b = Mul(c, s) y = If (p) "
        "<then_branch = t () => (float[] u) { w_folded = Relu(b) u = Neg(w_folded) }, "
        "else_branch = e () => (float[] v) { v = Identity(b) }> }",
        w=(4, 3, 1, 1),
        s=(4, 1, 1),
    )
    after, report = prove(before)
    assert fates(report)[0] is Reason.CAPTURED or fates(report)[0] is PULLED
    inner = {o for n in after.graph.node[-1].attribute[0].g.node for o in n.output}
    assert inner.isdisjoint({t.name for t in after.graph.initializer})


def test_a_name_of_the_original_never_means_other_values() -> None:
    """A model that was folded before and got another normalization has such names."""
    before = graph("c_folded = Conv(x, w_folded) y = BN(c_folded)", w_folded=(4, 3, 1, 1), **norm(4))
    after, report = prove(before)
    assert fates(report) == (PULLED,)
    assert "w_folded" not in numbers(after)
    compare(before, after)
    again, _ = prove(graph("b = BN(x) y = Conv(b, w_folded)", w_folded=(4, 3, 1, 1), **norm(3)))
    assert "w_folded" not in numbers(again)


def test_names_that_only_the_file_has_are_avoided() -> None:
    """Sparse initializers, shapes of values that are no more, and quantization annotations."""
    before = graph("c = Conv(x, w) r = Relu(c) y = BN(r) z = Identity(c_folded)", gives="float[] z",
                   w=(4, 3, 1, 1), **norm(4) | {"scale": [1.0, 2.0, 3.0, 4.0]})  # fmt: skip
    stored = before.graph.sparse_initializer.add()
    stored.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "c_folded"))
    stored.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "c_folded_indices"))
    stored.dims.append(5)
    stale = onnx.helper.make_tensor_value_info("w_folded", onnx.TensorProto.FLOAT16, [7, 7])
    before.graph.value_info.append(stale)
    before.graph.quantization_annotation.add(tensor_name="r_folded")
    work = load(io.BytesIO(before.SerializeToString()))
    report = fold(work)
    assert fates(report) == (PULLED,)
    after = onnx.load_from_string(to_bytes(work))
    made = [*numbers(after), *(name for node in after.graph.node for name in node.output)]
    assert not set(made) & {"c_folded", "w_folded", "r_folded"}
    assert after.graph.sparse_initializer == before.graph.sparse_initializer
    same_parts = graph("c = Conv(x, w) r = Relu(c) y = BN(r)", w=(4, 3, 1, 1),
                       **norm(4) | {"scale": [1.0, 2.0, 3.0, 4.0]})  # fmt: skip
    feed = inputs(same_parts)
    np.testing.assert_allclose(run(after, feed)["y"], run(same_parts, feed)["y"], atol=1e-5)


def test_an_output_that_is_listed_twice() -> None:
    before = graph("c = Conv(x, w) y = BN(c)", w=(4, 3, 1, 1), **norm(4))
    before.graph.output.append(before.graph.output[0])
    work = ir.from_proto(before)
    report = fold(work)
    after = ir.to_proto(work)
    assert (ops(after), fates(report)) == (["Conv"], (PULLED,))
    assert after.graph.output == before.graph.output and after.graph.node[0].output == ["y"]


@pytest.mark.parametrize("only", ["nonsense", "", "BatchNormalization"])
def test_only_what_there_is(only: str) -> None:
    before = graph("c = Conv(x, w) y = BN(c)", w=(4, 3, 1, 1), **norm(4))
    work = ir.from_proto(before)
    for refused in (lambda: fold(work, only=only), lambda: FoldPass(only=only)(work)):
        with pytest.raises(Exception, match="batchnorm") as caught:
            refused()
        assert isinstance(caught.value, InputError) or isinstance(caught.value.__cause__, InputError)
    assert ir.to_proto(work) == ir.to_proto(ir.from_proto(before))


def test_from_input_to_output_stays_an_identity() -> None:
    undone: dict[str, Any] = {"scale": [2.0] * 3, "bias": [1.0] * 3, "mean": [1.0] * 3, "var": [4.0] * 3}
    before = graph("y = BN <epsilon = 0.0> (x)", **undone)
    after, report = prove(before)
    assert (ops(after), fates(report)) == (["Identity"], (REMOVED,))
    assert (after.graph.node[0].input, after.graph.node[0].output) == (["x"], ["y"])
    assert not after.graph.initializer
    compare(before, after)


def test_from_output_to_output_stays_an_identity() -> None:
    before = graph("z = Sigmoid(x) y = Mul(z, s)", gives="float[] z", s=np.float32(1))
    after, report = prove(before)
    assert (ops(after), fates(report)) == (["Sigmoid", "Identity"], (REMOVED,))
    compare(before, after)


def test_an_identity_before_an_output_is_not_needed() -> None:
    after, report = prove(graph("z = Sigmoid(x) y = Mul(z, s)", s=np.float32(1)))
    assert (ops(after), fates(report)) == (["Sigmoid"], (REMOVED,))
    assert after.graph.node[0].output == ["y"]


def test_values_that_are_outputs_keep_their_names_in_the_middle_of_a_run() -> None:
    before = graph(
        "c = Conv(x, w) z = BN(c) m = Mul(z, s) y = Add(m, t)",
        gives="float[] z",
        w=(4, 3, 1, 1),
        s=(4, 1, 1),
        t=(4, 1, 1),
        **norm(4),
    )
    after, _ = prove(before)
    assert ops(after) == ["Conv", "Mul", "Add"]
    assert node_of(after, "z").op_type == "Conv"
    compare(before, after)


# --- What is left alone -------------------------------------------------------------------------------


def test_constants_that_the_fold_made_unread_are_gone() -> None:
    stored = np.ones((4, 3, 1, 1), np.float16)
    after, _ = prove(graph("v = Cast <to = 1> (w) c = Conv(x, v) y = BN(c)", w=stored, **norm(4)))
    assert ops(after) == ["Conv"]
    assert len(after.graph.initializer) == 2
    assert not {t.name for t in after.graph.initializer} & {"w", "scale", "bias", "mean", "var"}


def test_nodes_and_constants_that_were_dead_before_stay() -> None:
    before = graph(
        "c = Conv(x, w) y = BN(c) dead = Tanh(x) also = Constant <value_float = 1.0> ()",
        w=(4, 3, 1, 1),
        unused=(7,),
        **norm(4),
    )
    after, _ = prove(before)
    assert sorted(ops(after)) == ["Constant", "Conv", "Tanh"]
    assert initializer(after, "unused").tobytes() == initializer(before, "unused").tobytes()


def test_metadata_of_nodes_and_values_stays() -> None:
    before = as_exported(graph("c = Conv(x, w) b = BN(c) y = Relu(b)", w=(4, 3, 1, 1), **norm(4)))
    before.graph.node[0].metadata_props.add(key="pkg.torch.name", value="conv1")
    before.graph.node[2].metadata_props.add(key="pkg.torch.name", value="relu1")
    before.graph.metadata_props.add(key="a", value="b")
    after, _ = prove(before)
    assert [n.metadata_props[0].value for n in after.graph.node] == ["conv1", "relu1"]


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13])
@pytest.mark.parametrize("absent", [1, 2, 4])
def test_optional_outputs_of_empty_name_are_no_outputs(opset: int, absent: int) -> None:
    """onnxruntime dies of this model at opset 8, so only the evaluator runs it."""
    before = graph("c = Conv(x, w) y = BN(c)", opset=opset, w=(4, 3, 1, 1), **norm(4))
    before.graph.node[1].output.extend([""] * absent)
    after, report = prove(before)
    assert (ops(after), fates(report)) == (["Conv"], (PULLED,))
    compare(before, after, runtime=False)


def test_the_original_arrays_are_not_written_into() -> None:
    before = graph("c = Conv(x, w, k) y = BN(c)", w=(4, 3, 1, 1), k=(4,), **norm(4))
    work = ir.from_proto(before)
    tensors = [v.const_value for v in work.graph.initializers.values() if v.const_value is not None]
    copies = [tensor.numpy().copy() for tensor in tensors]
    fold(work)
    for tensor, copy in zip(tensors, copies, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), copy)


# --- Inputs that are initializers ---------------------------------------------------------------------


def test_frozen_inputs_are_gone_and_the_others_stay_in_order() -> None:
    before = model(
        spelled_out(
            "(float[4,3,1,1] w, float[N,3,8,8] x, float[7] free, float[4] scale, float[N,4,8,8] z) "
            "=> (float[] y) { c = Conv(x, w) b = BN(c) y = Add(b, z) t = Neg(free) }"
        ),
        w=(4, 3, 1, 1),
        free=(7,),
        **norm(4),
    )
    after, _ = prove(before, freeze_initializers=True)
    assert [v.name for v in after.graph.input] == ["x", "z"]
    assert sorted(all_ops(after)) == ["Add", "Conv", "Neg"]
    compare(before, after)


def test_overridable_inputs_work_as_before() -> None:
    before = model(
        spelled_out("(float[N,3,8,8] x, float[4] scale) => (float[] y) { c = Conv(x, w) y = BN(c) }"),
        w=(4, 3, 1, 1),
        **norm(4),
    )
    after, report = prove(before)
    assert not report.modified
    override = inputs(before) | {"scale": np.arange(4, dtype=np.float32)}
    np.testing.assert_array_equal(run(after, override)["y"], run(before, override)["y"])


def test_new_initializers_are_inputs_before_ir_version_4() -> None:
    before = graph("b = BN(x) y = Conv(b, w)", opset=8, ir_version=3, w=(4, 3, 1, 1), **norm(3))
    after, _ = prove(before)
    assert {v.name for v in after.graph.input} == {"x", *numbers(after)}
    assert after.graph.input[0] == before.graph.input[0]


def test_old_files_that_do_not_list_initializers_still_do_not() -> None:
    constants: dict[str, Any] = {"w": (4, 3, 1, 1), "s": (4, 1, 1), "t": (4, 1, 1)}
    before = graph("c = Conv(x, w) a = Mul(c, s) y = Add(a, t)", opset=8, ir_version=3, **constants)
    del before.graph.input[1:]
    after, report = prove(before)
    assert (ops(after), fates(report)) == (["Conv"], (PULLED,))
    assert [v.name for v in after.graph.input] == ["x"]


# --- Options and errors -------------------------------------------------------------------------------


def test_only_batchnorm_leaves_other_affines_alone() -> None:
    before = graph(
        "c = Conv(x, w) m = Mul(c, s) r = Sigmoid(m) d = Conv(r, v) b = BN(d) y = Mul(b, s)",
        w=(4, 3, 1, 1),
        v=(4, 4, 1, 1),
        s=(4, 1, 1),
        **norm(4),
    )
    after, report = prove(before, only="batchnorm")
    assert ops(after) == ["Conv", "Mul", "Sigmoid", "Conv"]
    assert fates(report) == (PULLED,)
    compare(before, after)
    assert ops(prove(before)[0]) == ["Conv", "Sigmoid", "Conv"]


def test_a_pass_among_others() -> None:
    before = graph("i = Identity(x) c = Conv(i, w) y = BN(c)", w=(4, 3, 1, 1), unused=(3,), **norm(4))
    from onnx_ir.passes import Sequential
    from onnx_ir.passes.common import IdentityEliminationPass, RemoveUnusedNodesPass

    step = FoldPass()
    assert step.report is None
    result = Sequential(IdentityEliminationPass(), step, RemoveUnusedNodesPass())(ir.from_proto(before))
    assert result.modified
    after = ir.to_proto(result.model)
    assert ops(after) == ["Conv"]
    assert step.report is not None
    assert fates(step.report) == (PULLED,)
    compare(before, after)
    again = FoldPass(only="batchnorm")(result.model)
    assert not again.modified


def test_an_invalid_model_is_an_error_that_names_it() -> None:
    with pytest.raises(InputError, match=r"'mean'.*\[5\].*4 channels"):
        fold(ir.from_proto(graph("c = Conv(x, w) y = BN(c)", w=(4, 3, 1, 1), **(norm(4) | {"mean": (5,)}))))
    with pytest.raises(InputError, match=r"5 channels.*Conv.*4"):
        fold(ir.from_proto(graph("c = Conv(x, w) y = BN(c)", x="float[]", w=(4, 3, 1, 1), **norm(5))))


def test_a_report_says_what_went_where() -> None:
    before = as_exported(
        graph(
            "c = Conv(x, w) b = BN(c) m = Mul(b, s) r = Relu(m) p = MatMul(r, v) q = Mul(p, t) y = Add(q, u)",
            w=(4, 3, 1, 1),
            s=(4, 1, 1),
            v=(8, 5),
            t=(5,),
            u=(5,),
            **norm(4),
        )
    )
    _, report = prove(before)
    first, second = report.decisions
    assert first.op_types == ("BatchNormalization", "Mul")
    assert first.nodes == ("layers.1/BatchNormalization", "layers.2/Mul")
    assert (first.outcome, first.value, first.channels, first.into) == (PULLED, "m", 4, ("layers.0/Conv",))
    assert (second.outcome, second.into, second.left) == (PULLED, ("layers.4/MatMul",), ("Add",))
    assert (report.before.batchnorms, report.before.affines, report.before.nodes) == (1, 3, 7)
    assert (report.after.batchnorms, report.after.affines, report.after.nodes) == (0, 1, 4)
    assert report.kept == ()


def test_a_merge_says_what_is_left() -> None:
    _, report = prove(graph("a = Add(x, s) b = Mul(a, t) y = Add(b, s)", s=(3, 1, 1), t=(3, 1, 1)))
    (decision,) = report.decisions
    assert (decision.outcome, decision.op_types, decision.left) == (
        MERGED,
        ("Add", "Mul", "Add"),
        ("Mul", "Add"),
    )
    assert (report.before.affines, report.after.affines) == (3, 2)


# --- The comparison can fail --------------------------------------------------------------------------


def _nudged(after: onnx.ModelProto) -> None:
    for tensor in after.graph.initializer:
        if len(tensor.dims) == 4:
            numbers = numpy_helper.to_array(tensor).copy()
            numbers[1] *= np.float32(1.00001)
            tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))


def _without_bias(after: onnx.ModelProto) -> None:
    node_of(after, "b").input.pop()


def _misnamed(after: onnx.ModelProto) -> None:
    node_of(after, "b").output[0] = "c"
    node_of(after, "y").input[0] = "c"


@pytest.mark.parametrize("fault", [_nudged, _without_bias, _misnamed])
@pytest.mark.parametrize("runtime", [False, True])
def test_a_wrong_fold_is_seen(fault: Callable[[onnx.ModelProto], None], runtime: bool) -> None:
    before = graph("c = Conv(x, w) b = BN(c) y = Relu(b)", w=(4, 3, 1, 1), **norm(4))
    after, report = prove(before)
    assert report.decisions[0].outcome is Outcome.PULLED
    compare(before, after, runtime=runtime)
    fault(after)
    with pytest.raises(AssertionError):
        compare(before, after, runtime=runtime)
