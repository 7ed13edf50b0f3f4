"""Programs: what is handed out and in which order, what is kept in memory, what cannot be computed."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper, parser

from bnfold.evaluate import EvaluationError, Missing, Program, Unsupported, evaluate

Array = npt.NDArray[Any]


def parse(
    body: str, inputs: str = "float[] x", outputs: str = "float[] y", *, more: str = ""
) -> onnx.ModelProto:
    """A model from the text of its graph and functions; it need not pass the checker."""
    return parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18, "local": 1, "custom": 1]>'
        f" g ({inputs}) => ({outputs}) {{ {body} }} {more}"
    )


def single(*values: float) -> Array:
    return np.array(values, np.float32)


def with_initializers(model: onnx.ModelProto, **values: Any) -> onnx.ModelProto:
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), name) for name, v in values.items())
    return model


def computed(program: Program, feeds: dict[str, Any], **options: Any) -> dict[str, Array]:
    """What a run hands out, in order, if nothing is missing."""
    values = {}
    for name, value in program.run(feeds, **options):
        assert not isinstance(value, Missing), value.reason
        values[name] = value
    return values


def listed(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value.tolist()) for name, value in computed(Program(model), feeds).items()]


# --- What is handed out -------------------------------------------------------------------------------

DIAMOND = "a = Neg(x) b = Add(a, c) d = Mul(a, c) unused = Exp(d) y = Sub(b, d)"


def diamond() -> onnx.ModelProto:
    return with_initializers(parse(DIAMOND), c=single(2))


def test_a_program_says_what_it_needs_and_makes() -> None:
    program = Program(diamond())
    assert [value.name for value in program.inputs] == ["x"]
    assert program.outputs == ("y",)
    assert program.computed == ("a", "b", "d", "y")  # `unused` leads to no output
    assert program.producer["d"].op_type == "Mul"
    assert program.borrowed == ()


def test_values_come_in_order_of_computation_each_once() -> None:
    names = [name for name, _ in Program(diamond()).run({"x": [1.0]}, wanted=["y", "d", "c", "x", "a"])]
    assert names == ["x", "c", "a", "d", "y"]


def test_only_outputs_come_unasked() -> None:
    assert listed(diamond(), {"x": [1.0]}) == [("y", [3.0])]


def test_outputs_that_no_node_makes() -> None:
    model = with_initializers(parse("a = Neg(x)", outputs="float[] x, float[] c, float[] a"), c=single(2))
    assert listed(model, {"x": [1.0]}) == [("x", [1.0]), ("c", [2.0]), ("a", [-1.0])]


@pytest.mark.parametrize(
    "name, y", [("a", 10 + 2 - 20), ("b", 10 - -2), ("c", (-1 + 10) - -10), ("x", (-10 + 2) - -20), ("y", 3)]
)
def test_what_is_sent_replaces_the_value_for_all_later_readers(name: str, y: float) -> None:
    run = Program(diamond()).run({"x": [1.0]}, wanted=[name])
    results = {}
    send = None
    while True:
        try:
            got, value = run.send(send)
        except StopIteration:
            break
        results[got] = value
        send = np.array([10.0]) if got == name else None
    assert results["y"] == y


def test_a_run_can_be_given_up() -> None:
    run = Program(diamond()).run({"x": [1.0]}, wanted=["a"])
    assert next(run)[0] == "a"
    run.close()


def test_other_outputs_can_be_chosen() -> None:
    program = Program(diamond(), outputs=["d"])
    assert program.computed == ("a", "d")
    assert [name for name, _ in program.run({"x": [1.0]})] == ["d"]


# --- Order and scopes ---------------------------------------------------------------------------------


def test_nodes_are_sorted_when_they_are_not() -> None:
    model = with_initializers(parse("y = Sub(b, d) d = Mul(a, c) b = Add(a, c) a = Neg(x)"), c=single(2))
    assert Program(model).computed == ("a", "d", "b", "y")
    assert listed(model, {"x": [1.0]}) == [("y", [3.0])]


def test_captured_values_take_part_in_the_order_and_live_long_enough() -> None:
    body = """
        y = If(t) <
            then_branch=p () => (float[] r) { r = Add(a, x) },
            else_branch=q () => (float[] s) { s = Neg(b) }
        >
        b = Exp(a)
        a = Neg(x)
    """
    model = parse(body, "float[] x, bool t")
    assert listed(model, {"x": [1.0], "t": True}) == [("y", [0.0])]
    assert Program(model).computed == ("a", "b", "y")


def test_a_cycle_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="cycle, in which is Neg 'a'"):
        Program(parse("a = Neg(b) b = Neg(a) y = Add(a, x)"))


def test_a_value_made_twice_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="'a' is made twice, last by Exp 'a'"):
        Program(parse("a = Neg(x) a = Exp(x) y = Add(a, x)"))


def test_inner_names_hide_outer_ones() -> None:
    body = """
        a = Neg(x)
        z = If(t) <
            then_branch=p () => (float[] a) { b = Add(x, x) a = Add(b, b) },
            else_branch=q () => (float[] b) { b = Neg(a) }
        >
        b = Mul(a, z)
        y = Identity(b)
    """
    model = parse(body, "float[] x, bool t")
    assert listed(model, {"x": [3.0], "t": True}) == [("y", [-36.0])]
    assert listed(model, {"x": [3.0], "t": False}) == [("y", [-9.0])]


def test_nested_scopes_have_initializers_of_their_own() -> None:
    model = with_initializers(parse("z = Identity(x) y = Add(z, c)"), c=single(2))
    inner = parse("r = Mul(x, c)", "", "float[] r").graph
    inner.initializer.append(numpy_helper.from_array(single(5), "c"))
    outer = parse("", "", "float[] w").graph
    outer.node.append(helper.make_node("If", ["t"], ["w"], then_branch=inner, else_branch=inner))
    model.graph.node[0].CopyFrom(helper.make_node("If", ["t"], ["z"], then_branch=outer, else_branch=outer))
    model.graph.input.append(helper.make_tensor_value_info("t", TensorProto.BOOL, []))
    assert listed(model, {"x": [3.0], "t": True}) == [("y", [17.0])]


def test_functions_do_not_see_the_graph_that_calls_them() -> None:
    more = '<domain: "local", opset_import: ["": 18]> F (p) => (q) { q = Add(p, c) }'
    model = with_initializers(parse("y = local.F(x)", more=more), c=single(2))
    with pytest.raises(EvaluationError, match="Add 'q': there is no value 'c'"):
        evaluate(model, {"x": [1.0]})


def test_functions_without_end_are_an_error() -> None:
    more = '<domain: "local", opset_import: ["": 18, "local": 1]> F (p) => (q) { q = local.F(p) }'
    with pytest.raises(EvaluationError, match="F 'q'"):
        evaluate(parse("y = local.F(x)", more=more), {"x": [1.0]})


# --- Memory -------------------------------------------------------------------------------------------

MEGABYTE = 1 << 20


def peak_of(model: onnx.ModelProto, feeds: dict[str, Any], **options: Any) -> float:
    """Peak memory of a run beside the model and the feeds, in MB."""
    program = Program(model, **options)
    tracemalloc.start()
    try:
        for _ in program.run(feeds, wanted=program.computed):
            pass
        return tracemalloc.get_traced_memory()[1] / MEGABYTE
    finally:
        tracemalloc.stop()


def test_dead_values_are_dropped() -> None:
    chain = " ".join(f"v{i + 1} = Neg(v{i})" for i in range(20))
    model = parse(f"v0 = Neg(x) {chain} y = Neg(v20)")
    x = np.zeros(MEGABYTE // 8)
    # A value and the one that it is computed from.
    assert peak_of(model, {"x": x}) < 2.5


def test_values_are_kept_until_their_last_reader() -> None:
    body = "a = Neg(x) b = Exp(a) c = Neg(b) d = Neg(c) e = Neg(d) y = Add(a, e)"
    assert 2.5 < peak_of(parse(body), {"x": np.zeros(MEGABYTE // 8)}) < 3.5


def test_dead_values_of_inner_graphs_and_functions_are_dropped() -> None:
    chain = " ".join(f"v{i + 1} = Neg(v{i})" for i in range(20))
    more = f'<domain: "local", opset_import: ["": 18]> F (p) => (q) {{ v0 = Neg(p) {chain} q = Neg(v20) }}'
    body = f"""
        z = If(t) <
            then_branch=a () => (float[] w) {{ v0 = Neg(x) {chain} w = Neg(v20) }},
            else_branch=b () => (float[] w) {{ w = Neg(x) }}
        >
        y = local.F(z)
    """
    model = parse(body, "float[] x, bool t", more=more)
    # What goes into the function is alive while it runs.
    assert peak_of(model, {"x": np.zeros(MEGABYTE // 8), "t": True}) < 3.5


def test_constants_are_read_when_needed_and_dropped() -> None:
    count = 12
    body = " ".join(f"v{i + 1} = Add(v{i}, c{i})" for i in range(count))
    constants = {f"c{i}": np.full(MEGABYTE // 8, i, np.float32) for i in range(count)}
    model = with_initializers(parse(f"v0 = Neg(x) {body} y = Neg(v{count})"), **constants)
    # Two values, one constant in float64, its stored form of half a megabyte, and what is handed out.
    assert peak_of(model, {"x": np.zeros(MEGABYTE // 8)}) < 5


def external(name: str, location: str, offset: int, count: int) -> TensorProto:
    proto = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[count])
    proto.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(count * 4))):
        proto.external_data.add(key=key, value=value)
    return proto


def test_external_data_are_read_one_at_a_time_and_not_kept(tmp_path: Path) -> None:
    count = 12
    np.arange(count * MEGABYTE // 8, dtype=np.float32).tofile(tmp_path / "data")
    body = " ".join(f"v{i + 1} = Add(v{i}, c{i})" for i in range(count))
    model = parse(f"v0 = Neg(x) {body} y = Neg(v{count})")
    size = MEGABYTE // 8
    model.graph.initializer.extend(external(f"c{i}", "data", i * size * 4, size) for i in range(count))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    program = Program(path)
    tracemalloc.start()
    y = computed(program, {"x": np.zeros(size)})["y"]
    peak = tracemalloc.get_traced_memory()[1] / MEGABYTE
    tracemalloc.stop()
    assert y[3] == -sum(i * size + 3 for i in range(count))
    assert peak < 5
    assert not any(proto.HasField("raw_data") for proto in program.model.graph.initializer)
    assert evaluate(model, {"x": np.zeros(size)}, folder=tmp_path)["y"][3] == y[3]


@pytest.mark.parametrize("location", ["../data", "missing", "", "/etc/hostname", "link"])
def test_external_data_stay_in_their_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "data").write_bytes(bytes(64))
    os.symlink(tmp_path / "data", folder / "link")
    model = parse("y = Add(x, c)")
    model.graph.initializer.append(external("c", location, 0, 4))
    with pytest.raises(EvaluationError, match="Add 'y': the constant 'c' cannot be read"):
        evaluate(model, {"x": [1.0]}, folder=folder)


def test_external_data_need_a_folder_and_all_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(15))
    model = parse("y = Add(x, c)")
    model.graph.initializer.append(external("c", "data", 0, 4))
    with pytest.raises(EvaluationError, match="no folder was given"):
        evaluate(model, {"x": [1.0]})
    with pytest.raises(EvaluationError, match="'c' cannot be read"):
        evaluate(model, {"x": [1.0]}, folder=tmp_path)


# --- Changed constants --------------------------------------------------------------------------------


def test_every_floating_constant_can_be_changed() -> None:
    body = """
        n = Constant<value_float=3.0>()
        m = Constant<value=double[1] {4.0}>()
        i = Constant<value_int=5>()
        z = If(t) <
            then_branch=p () => (float[] r) {
                k = Constant<value_floats=[7.0]>()
                l = Mul(x, k)
                r = Mul(l, inner)
            },
            else_branch=q () => (float[] s) { s = Neg(x) }
        >
        f = local.F<by=11.0>(z)
        g = Mul(n, m)
        h = Mul(g, w)
        o = Cast<to=1>(i)
        u = Mul(h, b)
        v = Mul(u, f)
        y = Mul(v, o)
    """
    more = """<domain: "local", opset_import: ["": 18]> F <by> (p) => (q) {
        c = Constant<value_float: float = @by>()
        q = Mul(p, c)
    }"""
    model = with_initializers(parse(body, "float[] x, bool t", more=more), w=single(13), whole=[2])
    model.graph.initializer.append(numpy_helper.from_array(np.array([17], ml_dtypes.bfloat16), "b"))
    branch = next(node for node in model.graph.node if node.op_type == "If").attribute[0].g
    branch.initializer.append(numpy_helper.from_array(np.array([19.0]), "inner"))
    seen: dict[str, tuple[str, float]] = {}

    def double(name: str, dtype: np.dtype[Any], value: Array) -> Array:
        assert name not in seen
        assert value.dtype == np.float64
        seen[name] = (dtype.name, float(value.item()))
        return value * 2

    feeds: dict[str, Any] = {"x": [1.0], "t": True}
    plain = computed(Program(model), feeds)["y"]
    changed = computed(Program(model), feeds, change=double)["y"]
    assert seen == {
        "n": ("float32", 3),
        "m": ("float64", 4),
        "k": ("float32", 7),
        "inner": ("float64", 19),
        "c": ("float32", 11),
        "w": ("float32", 13),
        "b": ("bfloat16", 17),
    }
    assert plain.item() == 3 * 4 * 7 * 19 * 11 * 13 * 17 * 5
    assert changed.item() == plain.item() * 2**7


def test_sparse_constants_can_be_changed() -> None:
    model = parse("y = Add(x, c)")
    stored = numpy_helper.from_array(single(5), "c")
    sparse = helper.make_sparse_tensor(stored, numpy_helper.from_array(np.array([1])), [2])
    model.graph.sparse_initializer.append(sparse)
    values = computed(Program(model), {"x": [0.0]}, change=lambda name, dtype, value: value + 1)
    assert values["y"].tolist() == [1, 6]


def test_what_is_fed_is_no_constant() -> None:
    model = with_initializers(parse("y = Mul(x, c)", "float[] x, float[] c"), c=single(2))
    feeds = {"x": [3.0], "c": [5.0]}
    values = computed(Program(model), feeds, change=lambda name, dtype, value: value + 1)
    assert values["y"].tolist() == [15]


# --- What cannot be computed --------------------------------------------------------------------------

CUSTOM = "a = custom.Thing<size=2>(x) b = Neg(a) d = Neg(x) y = Add(b, d)"


def test_what_depends_on_a_missing_value_is_missing() -> None:
    program = Program(parse(CUSTOM))
    values = dict(program.run({"x": [1.0]}, wanted=["a", "b", "d"]))
    missing = Missing("Thing 'a': the domain custom is not known here")
    assert values["a"] == values["b"] == values["y"] == missing
    assert not isinstance(values["d"], Missing)
    with pytest.raises(EvaluationError, match="there is no value for 'y': Thing 'a'"):
        evaluate(parse(CUSTOM), {"x": [1.0]})


def test_a_missing_value_can_be_replaced() -> None:
    run = Program(parse(CUSTOM)).run({"x": [1.0]}, wanted=["a"])
    assert next(run) == ("a", Missing("Thing 'a': the domain custom is not known here"))
    name, y = run.send(np.array([5.0]))
    assert not isinstance(y, Missing)
    assert (name, y.tolist()) == ("y", [-6.0])


def test_a_missing_value_in_an_inner_graph() -> None:
    body = """
        y = If(t) <
            then_branch=p () => (float[] r) { r = custom.Thing(x) },
            else_branch=q () => (float[] s) { s = Neg(x) }
        >
    """
    model = parse(body, "float[] x, bool t")
    assert listed(model, {"x": [1.0], "t": False}) == [("y", [-1.0])]
    ((_, y),) = Program(model).run({"x": [1.0], "t": True})
    assert y == Missing("Thing 'r': the domain custom is not known here")


@pytest.mark.parametrize(
    "body",
    ["y = RandomNormalLike(x)", "y = Bernoulli(x)", "t = Constant<value_int=1>() y = Dropout(x, , t)"],
)
def test_nothing_random_has_a_value(body: str) -> None:
    def elsewhere(node: NodeProto, inputs: Sequence[Array | None]) -> list[Array]:
        raise AssertionError("it must not be asked")

    model = parse(body)
    ((_, y),) = Program(model, elsewhere=elsewhere).run({"x": [1.0]})
    assert isinstance(y, Missing)
    assert "random" in y.reason


def test_strings_have_no_value() -> None:
    model = parse('s = Constant<value_string="a">() y = Identity(s)')
    assert dict(Program(model).run({"x": [1.0]})) == {"y": Missing("Constant 's': it holds strings")}
    initializer = parse("y = Identity(s)")
    initializer.graph.initializer.append(numpy_helper.from_array(np.array(["a"], object), "s"))
    values = dict(Program(initializer).run({"x": [1.0]}))
    assert values == {"y": Missing("the constant 's': it holds strings")}


def test_sequences_are_handed_on_inside_but_not_out() -> None:
    body = """
        n = Constant<value_int=1>()
        many = Constant<value_int=3>()
        go = Constant<value=bool {1}>()
        s = SequenceConstruct(x)
        t = Loop(many, go, s) <body=b (int64 i, bool c, seq(float[]) u) => (bool c, seq(float[]) v) {
            first = SequenceAt(u, i)
            next = Add(first, x)
            v = SequenceInsert(u, next)
        }>
        z = Neg(t)
        y = ConcatFromSequence<axis=0>(t)
    """
    values = dict(Program(parse(body), outputs=["y", "t", "z"]).run({"x": [1.0]}))
    assert values["t"] == Missing("'t' is a sequence, no tensor")
    assert values["z"] == Missing("Neg 'z': it is given a sequence")
    assert not isinstance(values["y"], Missing)
    assert values["y"].tolist() == [1, 2, 3, 4]


def test_what_is_not_available_here_is_run_elsewhere() -> None:
    seen = []

    def elsewhere(node: NodeProto, inputs: Sequence[Array | None]) -> list[Array]:
        seen.append(
            (node.op_type, {a.name: helper.get_attribute_value(a) for a in node.attribute}, inputs[1])
        )
        assert inputs[0] is not None
        return [(inputs[0] + 1).astype(np.float32)]

    more = """<domain: "local", opset_import: ["": 18, "custom": 1]> F <k> (p) => (q) {
        q = custom.Thing<j: int = @k>(p, "")
    }"""
    program = Program(parse("a = local.F<k=3>(x) y = Neg(a)", more=more), elsewhere=elsewhere)
    y = computed(program, {"x": [1.0]})["y"]
    assert y.dtype == np.float64
    assert y.tolist() == [-2]
    assert seen == [("Thing", {"j": 3}, None)]
    assert program.borrowed == ("Thing 'q'",)


def test_what_numpy_has_no_operation_for_is_run_elsewhere() -> None:
    """Of types that are none here, such as booleans for Sub, it is not known whether a runtime takes them."""
    model = parse("a = Constant<value=bool[1] {1}>() y = Sub(a, a)")
    ((_, y),) = Program(model, elsewhere=lambda node, inputs: [np.zeros(1)]).run({"x": [1.0]})
    assert isinstance(y, np.ndarray) and y.tolist() == [0]
    ((_, y),) = Program(model).run({"x": [1.0]})
    assert isinstance(y, Missing) and y.reason.startswith("Sub 'y': numpy boolean subtract")


def test_what_cannot_be_run_elsewhere_either_is_missing() -> None:
    def elsewhere(node: NodeProto, inputs: Sequence[Array | None]) -> list[Array]:
        raise Unsupported("nor elsewhere")

    program = Program(parse(CUSTOM), elsewhere=elsewhere)
    ((_, y),) = program.run({"x": [1.0]})
    assert y == Missing("Thing 'a': the domain custom is not known here; nor elsewhere")
    assert program.borrowed == ()


def test_what_onnx_reference_rounds_is_not_taken_from_it() -> None:
    body = "n = Constant<value_int=4>() y = MelWeightMatrix(n, n, n, x, x)"
    ((_, y),) = Program(parse(body)).run({"x": 1.0})
    assert isinstance(y, Missing)
    assert "onnx.reference" in y.reason


@pytest.mark.parametrize("code", [0, 77])
def test_an_element_type_that_is_none_has_no_values(code: int) -> None:
    ((_, y),) = Program(parse(f"y = Cast<to={code}>(x)")).run({"x": [1.0]})
    assert y == Missing(f"Cast 'y': the element type {code} is not known here")
    model = parse(
        "y = Loop<body=b (int64 i, bool c) => (bool d, float[2] o) { d = Identity(c) o = Neg(x) }>(n)",
        "float[2] x, int64 n",
    )
    body = model.graph.node[0].attribute[0].g
    body.output[1].type.tensor_type.elem_type = code
    ((_, y),) = Program(model).run({"x": [1.0, 2.0], "n": 0})
    assert y == Missing(f"Loop 'y': the element type {code} is not known here")
    ((_, y),) = Program(model).run({"x": [1.0, 2.0], "n": 1})
    assert isinstance(y, np.ndarray) and y.tolist() == [[-1, -2]]


# --- What is wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body, message",
    [
        ("y = Add(x, c)", r"^Add 'y', which computes 'y': operands .* float64\[2\], float64\[3\]$"),
        ("y = MatMul(x, c)", r"^MatMul 'y', .*float64\[2\], float64\[3\]$"),
        ("y = Conv(x, c)", r"^Conv 'y', .*X of rank 1 and W of rank 1"),
        ("s = Constant<value_ints=[3,5]>() y = Reshape(x, s)", r"^Reshape 'y', .*float64\[2\], int64\[2\]$"),
        ("y = Softmax<axis=3>(x)", r"^Softmax 'y'"),
        ("y = Add(x)", r"^Add 'y', .*lacks its input 1"),
        ("y = BatchNormalization(x, c, c, c, c)", "parameters are not for 1 channels"),
        (
            "s = Constant<value_ints=[1000000, 1000000, 1000000]>() y = Tile(x2, s)",
            "do not fit into memory",
        ),
    ],
)
def test_an_invalid_node_is_named_with_its_shapes(body: str, message: str) -> None:
    model = with_initializers(parse(body), c=np.zeros(3, np.float32), x2=np.zeros((1, 1, 1), np.float32))
    with pytest.raises(EvaluationError, match=message) as caught:
        evaluate(model, {"x": [1.0, 2.0]})
    assert "\n" not in str(caught.value)


def test_feeds_and_wanted_names_are_checked_before_anything_is_run() -> None:
    program = Program(diamond())
    with pytest.raises(EvaluationError, match=r"inputs without a value: \['x'\]"):
        program.run({})
    with pytest.raises(EvaluationError, match=r"no inputs of the graph: \['c'\]"):
        program.run({"x": [1.0], "c": [1.0]})
    with pytest.raises(EvaluationError, match=r"\['unused'\]"):
        program.run({"x": [1.0]}, wanted=["a", "unused"])


def test_an_output_that_nothing_makes_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="'nowhere'"):
        Program(parse("y = Neg(x)", outputs="float[] nowhere"))


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_a_file_that_is_no_model_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EvaluationError, match=r"model\.onnx cannot be read as a model"):
        Program(path)


# --- Several runs at a time ---------------------------------------------------------------------------


def test_runs_at_the_same_time_give_the_same_bits_as_one() -> None:
    rng = np.random.default_rng(0)
    body = """
        a = Conv<pads=[1,1,1,1]>(x, w)
        b = BatchNormalization(a, s, s, s, s)
        c = Relu(b)
        d = Conv<pads=[1,1,1,1], group=32>(c, v)
        e = Conv(d, u)
        f = GlobalAveragePool(e)
        y = Softmax<axis=1>(f)
    """
    model = with_initializers(
        parse(body, "float[1,16,40,40] x"),
        w=rng.standard_normal((32, 16, 3, 3)),
        v=rng.standard_normal((32, 1, 3, 3)),
        u=rng.standard_normal((64, 32, 1, 1)),
        s=rng.uniform(1, 2, 32),
    )
    program = Program(model)
    feeds = {"x": rng.standard_normal((1, 16, 40, 40))}
    alone = computed(program, feeds, wanted=program.computed)
    assert len(alone) == 7
    with ThreadPoolExecutor(2) as pool:
        for together in pool.map(lambda _: computed(program, feeds, wanted=program.computed), range(8)):
            assert all(np.array_equal(alone[name], together[name]) for name in alone)
