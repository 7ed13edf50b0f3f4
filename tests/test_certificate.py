"""The certificate says what is correctly rounded, and nothing else passes.

That all folds of `cases` are certified is asserted there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from graphs import drawn, folded, model, norm, numbers
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

import bnfold
from bnfold import certificate, sources
from bnfold.certificate import certify, in_words
from bnfold.formulas import Formula
from bnfold.model import load, save
from bnfold.report import OptimizeReport, as_dict
from bnfold.verification import Certificate, Verdict

Array = npt.NDArray[Any]
Formulas = Mapping[str, Formula | None]

FIXTURES = Path(__file__).parents[1] / "fixtures"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "models"
DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float": np.dtype(np.float32),
    "double": np.dtype(np.float64),
}
each_dtype = pytest.mark.parametrize("kind", DTYPES)

CONV = "c = Conv(x, w, b)  y = BatchNormalization <epsilon = 0.001> (c, scale, bias, mean, var)"


def conv(kind: str = "float", body: str = CONV, channels: int = 8, **constants: Any) -> onnx.ModelProto:
    """A convolution and what follows it; large enough that the quick sieve takes part."""
    shapes = {"w": (channels, 16, 3, 3), "b": (channels,), **norm(channels), **constants}
    return model(f"({kind}[N,16,8,8] x) => ({kind}[N,{channels},6,6] y) {{ {body} }}", **shapes)


def fold(before: onnx.ModelProto) -> tuple[onnx.ModelProto, Formulas]:
    after, report = folded(before)
    assert report.formulas
    return after, report.formulas


def judged(before: onnx.ModelProto, after: onnx.ModelProto, formulas: Formulas, folder: Path) -> Certificate:
    paths = folder / "before.onnx", folder / "after.onnx"
    for path, proto in zip(paths, (before, after), strict=True):
        path.write_bytes(proto.SerializeToString())
    return certify(*paths, formulas)


def planted(after: onnx.ModelProto, **constants: Array) -> onnx.ModelProto:
    """The model with other numbers in some of its constants."""
    other = onnx.ModelProto()
    other.CopyFrom(after)
    for tensor in other.graph.initializer:
        if tensor.name in constants:
            dtype = numpy_helper.to_array(tensor).dtype
            tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name].astype(dtype), tensor.name))
    return other


class TestPass:
    @pytest.mark.parametrize("name", ["digits", "digits_dynamo"])
    def test_the_fixtures(self, name: str, tmp_path: Path) -> None:
        path = FIXTURES / f"{name}.onnx"
        proto = ir.load(path)
        report = bnfold.fold(proto)
        save(proto, tmp_path / "after.onnx")
        found = certify(path, tmp_path / "after.onnx", report.formulas)
        assert found.verdict is Verdict.PASS
        assert found.parameters == found.correctly_rounded == len(report.formulas) == 16
        assert found.elements > 20_000
        assert 0.49 < found.worst_ulp <= 0.5  # the exact values are no numbers of float32
        assert not found.message

    @each_dtype
    def test_every_type(self, kind: str, tmp_path: Path) -> None:
        before = conv(kind)
        after, formulas = fold(before)
        found = judged(before, after, formulas, tmp_path)
        assert found.verdict is Verdict.PASS, found.message
        assert (found.parameters, found.elements) == (2, 8 * 16 * 9 + 8)
        assert 0.25 < found.worst_ulp <= 0.5

    @each_dtype
    def test_ties(self, kind: str, tmp_path: Path) -> None:
        """Half of all products by 1.5 lie exactly between two numbers."""
        before = conv(kind, "c = Conv(x, w)  y = Mul(c, s)", s=np.asarray(1.5, DTYPES[kind]))
        after, formulas = fold(before)
        found = judged(before, after, formulas, tmp_path)
        assert found.verdict is Verdict.PASS, found.message
        assert found.worst_ulp == 0.5

    def test_external_data(self, tmp_path: Path) -> None:
        source, target = tmp_path / "before.onnx", tmp_path / "after.onnx"
        onnx.save(conv(), source, save_as_external_data=True, size_threshold=0, location="data")
        proto = load(source)
        report = bnfold.fold(proto)
        save(proto, target)
        assert certify(source, target, report.formulas).verdict is Verdict.PASS

    def test_sums_in_blocks(self, tmp_path: Path) -> None:
        """A shift before a convolution becomes a sum over its weights."""
        body = "n = BatchNormalization (x, scale, bias, mean, var)  y = Conv(n, w)"
        before = conv("float", body, channels=300, **norm(16))
        after, formulas = fold(before)
        found = judged(before, after, formulas, tmp_path)
        assert found.verdict is Verdict.PASS, found.message
        assert found.elements == 300 * 16 * 9 + 300

    def test_inside_of_functions_and_inner_graphs(self, tmp_path: Path) -> None:
        constants = "".join(
            f"{c} = Constant <value_floats = [{v}, {v}]> () "
            for c, v in zip("sbmv", (2.1, 3.3, 0.7, 1.9), strict=True)
        )
        weight = "w = Constant <value = float[2,2,1,1] {1.1, 2.2, 3.3, 4.4}> ()"
        inner = f"{{ {constants} {weight} d = Conv(x, w) y = BatchNormalization(d, s, b, m, v) }}"
        text = f"""<ir_version: 8, opset_import: ["": 17, "f": 1]>
            test (float[N,2,4,4] x, bool c) => (float[N,2,4,4] p, float[N,2,4,4] q) {{
                p = f.Layer(x)
                q = If (c) <then_branch = a () => (float[N,2,4,4] y) {inner},
                            else_branch = e () => (float[N,2,4,4] z) {{ z = Identity(x) }}> }}
            <domain: "f", opset_import: ["": 17]> Layer (x) => (y) {inner}"""
        before = model(text)
        after, formulas = fold(before)
        found = judged(before, after, formulas, tmp_path)
        assert found.verdict is Verdict.PASS, found.message
        assert found.parameters == len(formulas) == 4
        for name in formulas:
            fewer = {other: formula for other, formula in formulas.items() if other != name}
            found = judged(before, after, fewer, tmp_path)
            assert found.verdict is Verdict.UNDECIDED
            assert f"{name!r}: the fold gives no account of it" in found.message


class TestFail:
    """One fault each; `exact` says by how much the named number is off."""

    @each_dtype
    @pytest.mark.parametrize("which", ["w_folded", "b_folded"])
    @pytest.mark.parametrize("away", [True, False])
    def test_one_number_one_unit_off(self, kind: str, which: str, away: bool, tmp_path: Path) -> None:
        before = conv(kind)
        after, formulas = fold(before)
        faulty = numbers(after)[which].copy()
        place = (3,) + (1,) * (faulty.ndim - 1)
        toward = np.asarray(math.copysign(np.inf, faulty[place]) if away else 0.0, faulty.dtype)
        faulty[place] = np.nextafter(faulty[place], toward)
        found = judged(before, planted(after, **{which: faulty}), formulas, tmp_path)
        assert found.verdict is Verdict.FAIL
        assert (found.parameters, found.correctly_rounded) == (2, 1)
        assert 0.5 < found.worst_ulp <= 2.0  # two units of the smaller kind, if it is beside a power of two
        index = ", ".join(map(str, place))
        assert f"1 of 2 constants are not correctly rounded: '{which}'[{index}] is" in found.message

    @pytest.mark.parametrize("size", [1, 64])  # of which the quick sieve sees the larger
    def test_below_a_power_of_two_numbers_are_closer(self, size: int, tmp_path: Path) -> None:
        """1 is 0.4 units from the exact value, but its lower neighbour is nearer still."""
        candidates = np.float32(1.9) + np.arange(1, 5000, dtype=np.float32) * np.float32(2.0**-20)
        inverses = np.float32(1.0) / candidates
        below = (1.0 - candidates.astype(np.float64) * inverses.astype(np.float64)) * 2.0**24
        i = int(np.flatnonzero((below > 0.7) & (below < 0.9))[0])
        before = model(
            f"(float[N,{size}] x) => (float[N,{size}] y) {{ m = MatMul(x, w)  y = Mul(m, s) }}",
            w=np.full((size, size), candidates[i]),
            s=inverses[i : i + 1],
        )
        after, formulas = fold(before)
        assert np.all(numbers(after)["w_folded"] == np.float32(1 - 2.0**-24))
        assert judged(before, after, formulas, tmp_path).verdict is Verdict.PASS
        found = judged(before, planted(after, w_folded=np.ones((size, size))), formulas, tmp_path)
        assert found.verdict is Verdict.FAIL
        assert 0.35 < found.worst_ulp < 0.45

    def test_the_message(self, tmp_path: Path) -> None:
        before = model(
            "(float[N,1] x) => (float[N,1] y) { m = MatMul(x, w)  y = Mul(m, s) }",
            w=np.array([[3.0]], np.float32),
            s=np.array([1 / 3], np.float32),
        )
        after, formulas = fold(before)
        exact = "1.0000000298023223877"
        assert Fraction(exact) == pytest.approx(3 * Fraction(float(np.float32(1 / 3))), abs=1e-19)
        faulty = np.array([[1 + 2.0**-23]], np.float32)
        found = judged(before, planted(after, w_folded=faulty), formulas, tmp_path)
        assert found.message == (
            "1 of 1 constants are not correctly rounded: 'w_folded'[0, 0] is 1.0000001192092895508, but "
            f"'w' · 's' is {exact} there, 0.75 ulp of float32 away"
        )

    @pytest.mark.parametrize(
        "fault",
        ["no epsilon", "float32", "float16", "no bias", "no beta", "swapped", "one channel up by 1e-6"],
    )
    def test_what_others_do(self, fault: str, tmp_path: Path) -> None:
        before = conv()
        after, formulas = fold(before)
        stored = numbers(before)
        f: Any = np.float32 if fault == "float32" else np.float64
        w, b, scale, bias, mean, var = (np.asarray(stored[n], f) for n in ("w", "b", *norm(0)))
        s = scale / np.sqrt(var + f(0.0 if fault == "no epsilon" else np.float32(0.001)))
        s = s.astype(np.float16) if fault == "float16" else s
        s[3] *= f(1.000001 if fault.endswith("1e-6") else 1.0)
        b = b * (fault != "no bias")
        t = bias * (fault != "no beta") + (b - mean) * s
        s, t = (s[[1, 0, *range(2, 8)]], t) if fault == "swapped" else (s, t)
        faulty = planted(after, w_folded=w * s.reshape(-1, 1, 1, 1), b_folded=t)
        found = judged(before, faulty, formulas, tmp_path)
        assert found.verdict is Verdict.FAIL
        assert "'w' · 'scale' / √(var + ε)" in found.message or "'b_folded'" in found.message

    def test_all_in_float64_is_not_enough_for_float64(self, tmp_path: Path) -> None:
        before = conv("double")
        after, formulas = fold(before)
        stored = numbers(before)
        s = stored["scale"] / np.sqrt(stored["var"] + np.float32(0.001))
        faulty = planted(after, w_folded=stored["w"] * s.reshape(-1, 1, 1, 1))
        found = judged(before, faulty, formulas, tmp_path)
        assert found.verdict is Verdict.FAIL
        assert 0.5 < found.worst_ulp < 3.0

    @each_dtype
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_what_is_no_number(self, kind: str, value: float, tmp_path: Path) -> None:
        before = conv(kind)
        after, formulas = fold(before)
        for name in ("w_folded", "b_folded"):
            faulty = numbers(after)[name].copy()
            faulty.reshape(-1)[5] = value
            found = judged(before, planted(after, **{name: faulty}), formulas, tmp_path)
            assert found.verdict is Verdict.FAIL
            assert found.worst_ulp == math.inf
            assert f" is {value}, but" in found.message

    def test_ties_the_wrong_way(self, tmp_path: Path) -> None:
        before = conv("float16", "c = Conv(x, w)  y = Mul(c, s)", s=np.asarray(1.5, np.float16))
        after, formulas = fold(before)
        exact = numbers(before)["w"].astype(np.float64) * 1.5
        right = numbers(after)["w_folded"]
        other = np.where(
            exact > right, np.nextafter(right, np.float16(np.inf)), np.nextafter(right, np.float16(-np.inf))
        )
        tied = np.abs(other - exact) == np.abs(right - exact)
        assert tied.sum() > 100
        found = judged(before, planted(after, w_folded=np.where(tied, other, right)), formulas, tmp_path)
        assert found.verdict is Verdict.FAIL
        assert found.worst_ulp <= 1.0

    def test_a_formula_of_another_constant(self, tmp_path: Path) -> None:
        after, formulas = fold(conv())
        swapped = {name: _renamed(formula, "scale", "mean") for name, formula in formulas.items()}
        assert swapped != formulas
        assert judged(conv(), after, swapped, tmp_path).verdict is Verdict.FAIL

    @pytest.mark.parametrize("other", [CONV.replace("var)", "var2)"), CONV.replace("0.001", "0.002")])
    def test_a_normalization_of_another_deviation(self, other: str, tmp_path: Path) -> None:
        after, formulas = fold(conv())
        assert judged(conv("float", other, var2=(8,)), after, formulas, tmp_path).verdict is Verdict.FAIL

    def test_another_shape(self, tmp_path: Path) -> None:
        before = conv()
        after, formulas = fold(before)
        faulty = planted(after, b_folded=numbers(after)["b_folded"].reshape(1, 8))
        found = judged(before, faulty, formulas, tmp_path)
        assert found.verdict is Verdict.FAIL
        assert "'b_folded' has the shape [1, 8], its formula [8]" in found.message

    @pytest.mark.parametrize("fault", ["epsilon", "beta", "mean"])
    def test_faults_of_the_fold_itself(
        self, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What the fold says of its numbers is not derived from how it computes them."""
        original = sources._scale_and_shift
        plant: dict[str, tuple[str, Callable[..., Any]]] = {
            "epsilon": ("_raised", lambda var, epsilon: var),
            "beta": ("_scale_and_shift", lambda s, b, m, d: original(s, b - b, m, d)),
            "mean": ("_scale_and_shift", lambda s, b, m, d: original(s, b, -m, d)),
        }
        monkeypatch.setattr(sources, *plant[fault])
        before = conv()
        after, report = folded(before)
        assert judged(before, after, report.formulas, tmp_path).verdict is Verdict.FAIL


class TestUndecided:
    def test_no_formulas(self, tmp_path: Path) -> None:
        before = conv()
        found = judged(before, before, {}, tmp_path)
        assert found.verdict is Verdict.UNDECIDED
        assert found.message == "not available: the fold made no constants"

    def test_a_missing_formula(self, tmp_path: Path) -> None:
        before = conv()
        after, formulas = fold(before)
        found = judged(before, after, {"w_folded": formulas["w_folded"]}, tmp_path)
        assert found.verdict is Verdict.UNDECIDED
        assert (found.parameters, found.correctly_rounded) == (1, 1)
        expected = "not available for 1 of 2 constants: 'b_folded': the fold gives no account of it"
        assert found.message == expected

    def test_a_lost_formula(self, tmp_path: Path) -> None:
        before = conv()
        after, formulas = fold(before)
        found = judged(before, after, {**formulas, "b_folded": None}, tmp_path)
        assert found.verdict is Verdict.UNDECIDED
        assert "1 of 2 constants: 'b_folded': the fold cannot tell how it was made" in found.message

    def test_a_constant_that_is_not_there(self, tmp_path: Path) -> None:
        before = conv()
        after, formulas = fold(before)
        found = judged(before, after, {**formulas, "v_folded": formulas["w_folded"]}, tmp_path)
        assert found.verdict is Verdict.UNDECIDED
        assert "'v_folded': there is no constant 'v_folded'" in found.message

    def test_a_wrong_number_weighs_more(self, tmp_path: Path) -> None:
        before = conv()
        after, formulas = fold(before)
        faulty = planted(after, w_folded=numbers(after)["w_folded"] * np.float32(1.01))
        assert judged(before, faulty, {**formulas, "b_folded": None}, tmp_path).verdict is Verdict.FAIL

    def test_more_near_ties_than_can_be_settled(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At the bottom of float64, nothing but rationals is sure of anything."""
        body = "c = Conv(x, w)  y = Mul(c, s)"
        before = conv(
            "double", body, w=drawn("w", 8, 16, 3, 3, dtype=np.float64) * 2.0**-1000, s=(1, 8, 1, 1)
        )
        after, formulas = fold(before)
        assert judged(before, after, formulas, tmp_path).verdict is Verdict.PASS
        monkeypatch.setattr(certificate, "_MOST_EXACT", 1000)
        found = judged(before, after, formulas, tmp_path)
        assert found.verdict is Verdict.UNDECIDED
        assert "1152 numbers are too close to a tie" in found.message


class TestFormats:
    @each_dtype
    @given(a=st.floats(allow_nan=False, allow_infinity=False), share=st.integers(-8, 8))
    def test_nearest(self, kind: str, a: float, share: int) -> None:
        """Around the middle between two neighbours of the type, where it is hardest."""
        dtype = DTYPES[kind]
        with np.errstate(all="ignore"):
            low = (
                np.asarray(a).astype(np.float32).astype(dtype)
                if kind == "bfloat16"
                else np.asarray(a).astype(dtype)
            )
            high = np.nextafter(low, np.asarray(np.inf, dtype))
        form = certificate._FORMATS[dtype]
        if not (np.isfinite(low) and np.isfinite(high)):
            return
        ends = Fraction(float(low)), Fraction(float(high))
        middle = (ends[0] + ends[1]) / 2
        even = low if int(low.view(f"u{dtype.itemsize}")) % 2 == 0 else high
        expected = even if share == 0 else high if share > 0 else low
        assert form.nearest(middle + (ends[1] - ends[0]) * Fraction(share, 100)) == float(expected)
        assert form.nearest(ends[0]) == float(low)

    @each_dtype
    def test_the_end_of_the_range(self, kind: str) -> None:
        form = certificate._FORMATS[DTYPES[kind]]
        largest = Fraction(float(ml_dtypes.finfo(DTYPES[kind]).max))  # type: ignore[no-untyped-call]
        half = Fraction(float(form.ulp(np.array([float(largest)]))[0])) / 2
        assert form.nearest(largest + half) == math.inf
        assert form.nearest(-largest - half) == -math.inf
        assert form.nearest(largest + half * Fraction(99, 100)) == float(largest)

    @each_dtype
    def test_ulp(self, kind: str) -> None:
        dtype = DTYPES[kind]
        a = np.abs(drawn("a", 200, dtype=dtype))
        a = np.concatenate([a, np.zeros(1, dtype), np.nextafter(np.zeros(1, dtype), np.ones(1, dtype))])
        spacing = np.nextafter(a, np.full_like(a, np.inf)).astype(np.float64) - a.astype(np.float64)
        np.testing.assert_array_equal(certificate._FORMATS[dtype].ulp(a.astype(np.float64)), spacing)


class TestFormulas:
    def test_they_are_plain_data_of_names_and_shapes(self) -> None:
        before = conv()
        _, formulas = fold(before)
        json.dumps(formulas)
        slope = ("div", ("constant", "", "scale"), ("deviation", "", "y"))
        spread = ("reshape", slope, (-1, 1, 1, 1))
        assert formulas["w_folded"] == ("mul", ("constant", "", "w"), spread)

    def test_they_are_not_in_the_json_of_a_report(self) -> None:
        report = bnfold.fold(ir.from_proto(conv()))
        data = as_dict(OptimizeReport("a", "b", report, None))
        assert report.formulas
        assert "formulas" not in data["fold"]
        json.dumps(data)

    def test_what_is_replaced_again_is_not_in_the_account(self) -> None:
        """The first run is pulled into the weights before the second one can be."""
        before = conv("float", f"{CONV.replace('y =', 'd =')}  e = Relu(d)  f = Neg(e)  y = Neg(f)")
        after, formulas = fold(before)
        assert formulas.keys() == {"w_folded", "b_folded"} == set(numbers(after))

    @pytest.mark.parametrize(
        ("formula", "words"),
        [
            (("constant", "f::g", "w"), "'w'"),
            (("number", 2.0), "2"),
            (("add", ("number", 1), ("neg", ("number", 2))), "(1 - 2)"),
            (("div", ("number", 1), ("mul", ("number", 2), ("number", 3))), "1 / (2 · 3)"),
            (("sum", ("line", ("number", 1), None), 0), "Σ(1)"),
            (("concat", ("number", 1), ("number", 2), ("number", 3)), "(1, 2, …)"),
        ],
    )
    def test_words(self, formula: Formula, words: str) -> None:
        assert in_words(formula) == words

    def test_words_are_few(self) -> None:
        deep: Formula = ("number", 1)
        for _ in range(10_000):
            deep = ("neg", deep)
        assert in_words(deep) == "-" * 17 + "…"
        wide: Formula = ("constant", "", "w" * 60)
        assert len(in_words(("mul", wide, wide))) == 101


def _renamed(formula: Any, old: str, new: str) -> Any:
    if isinstance(formula, tuple):
        return tuple(_renamed(part, old, new) for part in formula)
    return new if formula == old else formula


@pytest.mark.skipif(not SHARED.is_dir(), reason="the models beside the project are not there")
@pytest.mark.parametrize(("folder", "least"), [("real", 100), ("exported", 100), ("edge", 5)])
def test_models_made_by_others(folder: str, least: int, tmp_path: Path) -> None:
    parameters = 0
    for path in sorted((SHARED / folder).glob("*.onnx")):
        try:
            proto = load(path)
            report = bnfold.fold(proto, freeze_initializers=True)
        except bnfold.BnfoldError:
            continue  # no valid model
        if not report.formulas:
            continue
        target = tmp_path / path.name
        save(proto, target)
        found = certify(path, target, report.formulas)
        assert found.verdict is Verdict.PASS, f"{path.name}: {found.message}"
        assert found.parameters == len(report.formulas)
        parameters += found.parameters
        target.unlink()
    assert parameters > least
