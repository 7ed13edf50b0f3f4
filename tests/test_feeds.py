"""What a model is fed when nobody says what it takes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, parser

from bnfold.errors import InputError
from bnfold.evaluate import evaluate
from bnfold.feeds import Binding, Integers, Unfeedable, bindings, inputs_of

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def model(graph: str, **weights: Sequence[int]) -> onnx.ModelProto:
    """A model with weights of these shapes."""
    parsed = parser.parse_model(f"{HEADER} g {graph}")
    for name, dims in weights.items():
        zeros = np.zeros(int(np.prod(dims)), np.float32)
        parsed.graph.initializer.append(helper.make_tensor(name, 1, dims, zeros))
    return parsed


def feed(
    binding: Binding, batch: int | None = None, offset: int = 0, seed: int = 0
) -> dict[str, NDArray[Any]]:
    return binding.feed(np.random.default_rng(seed), batch, offset)


class TestSizes:
    def test_free_ones_differ_from_each_other_and_from_the_weights(self) -> None:
        text = "(float[N,3,H,W] x, float[N,H] z) => (float[N,37,H,W] y) { y = Conv(x, w) }"
        first, second = islice(bindings(model(text, w=[37, 3, 1, 1])), 2)
        assert first.batch == {"N"}
        assert len(set(first.sizes.values()) | {37, 3}) == 4
        assert all(size % 32 == 0 for size in second.sizes.values())
        fed = feed(first, 2)
        assert fed["x"].shape == (2, 3, first.sizes["H"], first.sizes["W"])
        assert fed["z"].shape == (2, first.sizes["H"])

    def test_a_symbol_of_several_axes_is_no_batch(self) -> None:
        """Some exporters call every free size by one name; two pixels are too few for a kernel."""
        first = next(bindings(model("(float[N,3,N,N] x) => (float[] y) { y = Conv(x, w) }", w=[4, 3, 3, 3])))
        assert not first.batch
        shape = feed(first, 2)["x"].shape
        assert shape[0] == shape[2] == shape[3] > 4 and shape[1] == 3

    def test_unknown_rank_and_channels_are_read_off_the_weight(self) -> None:
        network = model("(float[] x) => (float[] y) { y = Conv<group = 2>(x, w) }", w=[4, 3, 5, 5])
        network.graph.input[0].type.tensor_type.ClearField("shape")
        shape = feed(next(bindings(network)), 1)["x"].shape
        assert shape[:2] == (1, 6)
        assert len(shape) == 4

    def test_channels_read_off_a_weight_hold_for_every_input_of_that_symbol(self) -> None:
        text = "(float[N,C,H,W] x, float[N,C] z) => (float[] y) { y = Conv(x, w) }"
        fed = feed(next(bindings(model(text, w=[8, 3, 1, 1]))), 1)
        assert fed["x"].shape[1] == fed["z"].shape[1] == 3

    def test_those_that_are_asked_for(self) -> None:
        text = "(float[N,C,H,W] x, float[K,2] z) => (float[] y) { y = Relu(x) }"
        for binding in bindings(model(text), {"N": 5, "W": 9}):
            fed = feed(binding, 2)
            assert (fed["x"].shape[0], fed["x"].shape[3], fed["z"].shape[0]) == (5, 9, 2)
            assert binding.batch == {"K"}
            assert "N=5" in binding.describe()

    def test_a_free_dimension_without_a_name_is_asked_for_by_input_and_axis(self) -> None:
        unnamed = model("(float[N,2] x) => (float[] y) { y = Relu(x) }")
        unnamed.graph.input[0].type.tensor_type.shape.dim[1].Clear()
        assert feed(next(bindings(unnamed, {"x[1]": 6})), 1)["x"].shape == (1, 6)

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ({"M": 4}, "no free dimension 'M' in its inputs; its free dimensions are N, H"),
            ({"x[1]": 4}, "no free dimension 'x\\[1\\]'"),
            ({"H": 0}, "'H' cannot have size 0"),
        ],
    )
    def test_those_that_cannot_be_asked_for(self, sizes: dict[str, int], message: str) -> None:
        with pytest.raises(InputError, match=message):  # at the call, before anything is drawn
            bindings(model("(float[N,3,H] x) => (float[] y) { y = Relu(x) }"), sizes)

    def test_a_model_without_free_dimensions_says_so(self) -> None:
        with pytest.raises(InputError, match="all its dimensions are fixed"):
            bindings(model("(float[1,3] x) => (float[] y) { y = Relu(x) }"), {"N": 1})

    def test_the_same_at_other_sizes(self) -> None:
        binding = next(bindings(model("(float[N,3,H,W] x) => (float[] y) { y = Relu(x) }"), {"W": 8}))
        other = binding.resized()
        assert other is not None
        before, after = feed(binding, 2)["x"].shape, feed(other, 2)["x"].shape
        assert (after[0], after[1], after[3]) == (before[0], before[1], before[3])
        assert after[2] != before[2]
        assert next(bindings(model("(float[N,3] x) => (float[] y) { y = Relu(x) }"))).resized() is None

    def test_the_other_sizes_are_even_and_no_weights(self) -> None:
        """At odd ones only, SAME_UPPER is the same as explicit pads, and a floor may be missed."""
        network = model(
            "(float[N,3,H,W] x, float[N,H] z) => (float[] y) { y = Conv(x, w) }", w=[48, 3, 40, 3]
        )
        first, second, coinciding, *_ = bindings(network)
        other = first.resized()
        assert other is not None
        assert all(size % 2 == 0 and size not in {3, 40, 48} for size in other.sizes.values())
        assert len(set(other.sizes.values())) == 2
        assert np.prod(list(other.sizes.values())) <= 3 * np.prod(list(first.sizes.values()))
        other = second.resized()
        assert other is not None
        for name, size in other.sizes.items():
            assert size % 32 == 0 and size != second.sizes[name] and size <= 2 * second.sizes[name]
        other = coinciding.resized()
        assert other is not None and other.resized() is not None
        (size,) = set(other.sizes.values())
        assert size % 2 == 0 and {size} != set(coinciding.sizes.values())

    def test_every_binding_has_other_sizes_of_its_kind(self) -> None:
        for binding in bindings(model("(float[N,3,H,W] x) => (float[] y) { y = Relu(x) }")):
            other = binding.resized()
            assert other is not None
            ours, theirs = list(binding.sizes.values()), list(other.sizes.values())
            assert all(b % 2 == 0 and b not in (a, 0) for a, b in zip(ours, theirs, strict=True))
            assert len(set(ours)) == len(set(theirs))
            assert np.prod(theirs) <= 4 * np.prod(ours)
            if all(a % 32 == 0 for a in ours):
                assert all(b % 32 == 0 for b in theirs)

    @pytest.mark.parametrize("layer", range(3))
    def test_padding_that_is_off_by_one_shows_at_one_of_the_two(self, layer: int) -> None:
        """Also behind other strides: what an even size becomes when halved is even again, as 38 and 42
        would not be; 33 stays odd."""
        same, explicit = 'auto_pad = "SAME_UPPER", strides = [2, 2]', "pads = [1, 1, 1, 1], strides = [2, 2]"
        ways = [[same] * 3, [explicit if i == layer else same for i in range(3)]]
        ours, theirs = (
            model(
                "(float[N,2,H,33] x) => (float[] y) "
                f"{{ a = Conv<{one}>(x, w)  b = Conv<{two}>(a, w)  y = Conv<{three}>(b, w) }}",
                w=[2, 2, 3, 3],
            )
            for one, two, three in ways
        )
        kernel = np.random.default_rng(0).standard_normal((2, 2, 3, 3)).astype(np.float32)
        for network in ours, theirs:
            network.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(kernel, "w"))
        first = next(bindings(ours))
        sized = [binding for binding in (first, first.resized()) if binding is not None]
        results = [[evaluate(network, feed(b, 1))["y"] for network in (ours, theirs)] for b in sized]
        assert len(results) == 2
        assert not all(np.array_equal(one, other) for one, other in results)

    @pytest.mark.parametrize("size", [2**40, 2**60])
    def test_inputs_that_no_memory_can_hold(self, size: int) -> None:
        with pytest.raises(Unfeedable, match=rf"input 'x' of shape \[{size}, 3, 1024, 8\] would take"):
            bindings(model(f"(float[{size},3,1024,8] x) => (float[] y) {{ y = Relu(x) }}"))
        with pytest.raises(Unfeedable, match="input 'x'"):
            bindings(model("(float[N,3,1024,8] x) => (float[] y) { y = Relu(x) }"), {"N": size})

    def test_sizes_of_our_own_choice_fit_into_the_memory(self) -> None:
        every = list(bindings(model("(float[N,a,b,c,d,e,f,g,h,i] x) => (float[] y) { y = Relu(x) }")))
        assert every  # 37 · 39 · 41 · ... elements, the first choice elsewhere, are too many
        assert all(np.prod(b.shape(b.inputs[0], 4), dtype=float) < 1e10 for b in every)


class TestNumbers:
    def test_each_row_has_a_distribution_of_its_own(self) -> None:
        binding = next(bindings(model("(float[N,2000] x) => (float[] y) { y = Relu(x) }")))
        x = feed(binding)["x"]
        assert x.dtype == np.float32
        deviations = [1, 12**-0.5, 3, 0]
        # The deviation of 2000 numbers is known to about 1.6 %.
        np.testing.assert_allclose(x.std(axis=1), deviations, rtol=0.08)
        assert x[1].min() >= 0
        np.testing.assert_allclose(feed(binding, 2, 2)["x"].std(axis=1), deviations[2:], rtol=0.08)
        assert binding.describe(2, 2) == "N=2, 3 N(0, 1) | 0"

    def test_without_a_batch_the_offset_chooses(self) -> None:
        binding = next(bindings(model("(float[4,2000] x) => (float[] y) { y = Relu(x) }")))
        assert not binding.batch
        np.testing.assert_allclose(feed(binding, None, 2)["x"].std(axis=1), [3] * 4, rtol=0.08)
        assert not feed(binding, None, 3)["x"].any()

    def test_a_batch_that_was_asked_for_is_one_too(self) -> None:
        binding = next(bindings(model("(float[N,20] x) => (float[] y) { y = Relu(x) }"), {"N": 8}))
        assert np.flatnonzero(~feed(binding)["x"].any(axis=1)).tolist() == [3, 7]

    def test_the_seed_decides(self) -> None:
        binding = next(bindings(model("(float[N,3] x, int64[N] i) => (float[] y) { y = Relu(x) }")))
        one, same, other = feed(binding), feed(binding), feed(binding, seed=1)
        assert all(np.array_equal(one[name], same[name]) for name in one)
        assert not np.array_equal(one["x"], other["x"])

    @pytest.mark.parametrize("kind", ["float16", "bfloat16", "double", "float8e4m3fn"])
    def test_floats_of_other_widths(self, kind: str) -> None:
        binding = next(bindings(model(f"({kind}[N,3] x) => ({kind}[] y) {{ y = Relu(x) }}")))
        dtype = helper.tensor_dtype_to_np_dtype(onnx.TensorProto.DataType.Value(kind.upper()))
        x = feed(binding)["x"]
        assert x.dtype == dtype
        assert x.astype(np.float64).any()

    def test_narrow_integers(self) -> None:
        binding = next(bindings(model("(int4[N,3] i, bool[N] b) => (int4[] y) { y = Identity(i) }")))
        fed = feed(binding)
        assert fed["i"].dtype == ml_dtypes.int4
        assert fed["b"].dtype == bool


class TestIntegers:
    def test_small_where_nothing_is_known(self) -> None:
        every = list(bindings(model("(int64[N] i) => (int64[] y) { y = Abs(i) }")))
        assert set(feed(every[0], 100)["i"].tolist()) == {0, 1, 2}
        assert {b.integers for b in every} == set(Integers)

    @pytest.mark.parametrize(("kind", "low", "high"), [("uint8", 0, 255), ("int8", -128, 127)])
    def test_eight_bits_are_all_that_they_can_be(self, kind: str, low: int, high: int) -> None:
        text = f"({kind}[N,4000] i) => ({kind}[] y) {{ y = Identity(i) }}"
        (only, *_) = bindings(model(text))
        # Of 16,000 draws, each of the 256 values is missed with a chance of e^-62.
        assert set(feed(only)["i"].reshape(-1).tolist()) == set(range(low, high + 1))

    @pytest.mark.parametrize(
        "way",
        [
            "y = Gather(t, i)",
            "j = Cast<to = 7>(i)  y = Gather(t, j)",
            "j = Unsqueeze(i, a)  k = Concat<axis = 0>(j, j)  y = Gather(t, k)",
            "h = Cast<to = 10>(t)  y = Gather(h, i)",
            "y = Gather(t, i)  z = Gather<axis = 1>(w, i)",
        ],
    )
    @pytest.mark.parametrize("kind", ["int64", "int32", "uint8", "int8"])
    def test_indices_stay_within_the_table_and_use_all_of_it(self, way: str, kind: str) -> None:
        embedding = model(f"({kind}[N,400] i) => (float[] y) {{ {way} }}", t=[23, 2], w=[2, 31])
        assert inputs_of(embedding)[0].bound == 23
        (binding,) = islice(bindings(embedding), 1)
        assert set(feed(binding, 2)["i"].reshape(-1).tolist()) == set(range(23))

    def test_the_smallest_of_several_tables_counts(self) -> None:
        text = "(int64[N] i) => (float[] y) { y = Gather(t, i)  z = Gather(w, i) }"
        assert inputs_of(model(text, t=[23, 2], w=[5, 2]))[0].bound == 5

    def test_what_is_gathered_from_is_no_index(self) -> None:
        text = "(int64[N] i) => (float[] y) { z = Constant<value = int64 {0}>()  y = Gather(i, z) }"
        assert inputs_of(model(text))[0].bound is None


class TestInputs:
    def test_those_with_an_initializer_are_not_fed(self) -> None:
        lookup = model("(int64[N] i, float[9,2] w) => (float[N,2] y) { y = Gather(w, i) }", w=[9, 2])
        assert [i.name for i in inputs_of(lookup)] == ["i"]

    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            ("string[1]", "'s' has elements of type string"),
            ("complex64[1]", "'s' has elements of type complex64"),
            ("seq(float[1])", "'s' is a sequence"),
        ],
    )
    def test_what_is_no_tensor_of_numbers_cannot_be_fed(self, kind: str, message: str) -> None:
        with pytest.raises(Unfeedable, match=message):
            bindings(model(f"({kind} s) => ({kind} y) {{ y = Identity(s) }}"))
