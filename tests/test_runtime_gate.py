"""onnxruntime as a witness: faults of the candidate, faults of its own, and luck."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from bnfold.evaluate import Program
from bnfold.feeds import Feed, bindings
from bnfold.runtime_gate import feeds_for, witness
from bnfold.session import Session
from bnfold.verification import RuntimeReport, Verdict

Array = NDArray[Any]
Ask = Callable[..., RuntimeReport]


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(timeout=60) as session:
        yield session


@pytest.fixture
def ask(session: Session, tmp_path: Path) -> Ask:
    def asked(
        reference: onnx.ModelProto,
        candidate: onnx.ModelProto,
        feeds: list[Feed] | None = None,
        **options: Any,
    ) -> RuntimeReport:
        paths = tmp_path / "reference.onnx", tmp_path / "candidate.onnx"
        for path, proto in zip(paths, (reference, candidate), strict=True):
            onnx.save(proto, path)
        drawn = feeds_for(next(bindings(reference)), 0) if feeds is None else feeds
        return witness(session, Program(paths[0]), Program(paths[1]), paths, drawn, **options)

    return asked


def graph(text: str, **constants: Any) -> onnx.ModelProto:
    parsed = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    parsed.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    return parsed


RNG = np.random.default_rng(0)


def random(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


NORM = {"s": 1 + random(4) ** 2, "b": random(4), "m": random(4), "v": 0.5 + random(4) ** 2}
SCALE = NORM["s"] / np.sqrt(NORM["v"] + np.float32(1e-5))
SHIFT = NORM["b"] - SCALE * NORM["m"]
WEIGHT = random(6, 4)

# onnxruntime's fusion takes the columns of the MatMul for what BatchNormalization normalizes: its rows.
ROWS = "(float[4,6] x) => (float[4,4] y) { a = MatMul(x, w)  c = Transpose<perm = [1, 0]>(a)"
DEFECTIVE = graph(ROWS + " y = BatchNormalization(c, s, b, m, v) }", w=WEIGHT, **NORM)
SOUND = graph(ROWS + " d = Mul(c, k)  y = Add(d, t) }", w=WEIGHT, k=SCALE, t=SHIFT)

CONV = "(float[N,3,H,W] x) => (float[N,4,H,W] y) { c = Conv<pads = [1, 1, 1, 1]>(x, w"
KERNEL = random(4, 3, 3, 3)
ORIGINAL = graph(CONV + ")  y = BatchNormalization(c, s, b, m, v) }", w=KERNEL, **NORM)
FOLDED = graph(CONV + ", t)  y = Identity(c) }", w=KERNEL * SCALE.reshape(-1, 1, 1, 1), t=SHIFT)


class TestVerdicts:
    def test_a_correct_fold_passes_at_both_levels_on_two_batches_and_sizes(self, ask: Ask) -> None:
        report = ask(ORIGINAL, FOLDED)
        assert (report.verdict, report.message, report.findings) == (Verdict.PASS, "", ())
        assert {check.level for check in report.checks} == {"disabled", "default"}
        assert len({check.feed for check in report.checks}) == 4
        assert {check.feed[:3] for check in report.checks} == {"N=1", "N=3"}
        assert all(0 < check.reference_error < 1e-5 for check in report.checks)

    def test_each_model_is_held_against_itself(self, ask: Ask) -> None:
        """Whether they are the same function is another gate's matter."""
        other = graph(CONV + ", t)  y = Identity(c) }", w=KERNEL, t=SHIFT)
        assert ask(ORIGINAL, other).verdict is Verdict.PASS

    def test_arithmetic_that_loses_digits_fails(self, ask: Ask) -> None:
        text = "(float[N,6] x) => (float[N,4] y) {{ {} }}"
        plain = graph(text.format("y = MatMul(x, w)"), w=WEIGHT)
        lossy = graph(
            text.format("a = MatMul(x, w)  c = Add(a, k)  y = Sub(c, k)"), w=WEIGHT, k=np.float32(1e4)
        )
        report = ask(plain, lossy)
        assert report.verdict is Verdict.FAIL
        assert "output 'y' of" in report.message and "candidate.onnx" in report.message
        assert "optimizations disabled" in report.message or "optimizations default" in report.message
        assert ask(plain, lossy, tolerance=1e6).verdict is Verdict.PASS
        assert ask(lossy, plain).verdict is Verdict.PASS

    def test_an_overflow_of_the_candidate_alone_fails(self, ask: Ask) -> None:
        text = "(float[N,6] x) => (float[N,6] y) {{ a = Mul(x, k)  y = {}(a, k) }}"
        large, small = np.float32(3e38), np.float32(2)
        fine = graph(text.format("Div"), k=small)
        report = ask(fine, graph(text.format("Div"), k=large))
        assert (report.verdict, report.checks[0].ratio) == (Verdict.FAIL, np.inf)

    def test_a_candidate_that_onnxruntime_refuses_fails(self, ask: Ask) -> None:
        text = "(float[N,6] x) => (float[N,6] y) {{ {} }}"
        halves = graph(text.format("a = Cast<to = 16>(x)  c = Relu(a)  y = Cast<to = 1>(c)"))
        report = ask(graph(text.format("y = Relu(x)")), halves)
        assert report.verdict is Verdict.FAIL
        assert "Could not find an implementation for Relu" in report.message
        report = ask(halves, graph(text.format("y = Relu(x)")))
        assert report.verdict is Verdict.UNDECIDED
        assert report.message.startswith("not available: onnxruntime cannot run")

    def test_a_crash_of_the_reference_is_a_finding_and_of_the_candidate_a_failure(self, ask: Ask) -> None:
        text = "(float[1,4] x) => (float[1,4] y) { y = BatchNormalization(x, s, b, m, v) }"
        sound, crashing = graph(text, **NORM), graph(text, **NORM)
        sound.opset_import[0].version = crashing.opset_import[0].version = 8
        crashing.graph.node[0].output.extend(["", "", "", ""])
        report = ask(crashing, sound)
        assert (report.verdict, report.checks) == (Verdict.UNDECIDED, ())
        assert "crashed" in report.message
        assert len(report.findings) == 1 and "crashed" in report.findings[0]
        report = ask(sound, crashing)
        assert report.verdict is Verdict.FAIL
        assert "crashed" in report.message

    def test_nothing_to_compare_is_undecided(self, ask: Ask) -> None:
        relu = graph("(float[N,6] x) => (float[N,6] y) { y = Relu(x) }")
        assert ask(relu, relu, []).verdict is Verdict.UNDECIDED
        other = graph("(float[N,6] x) => (float[N,6] z) { z = Relu(x) }")
        assert ask(relu, other).verdict is Verdict.UNDECIDED

    def test_given_feeds_are_used(self, ask: Ask) -> None:
        x = np.ones((2, 3, 5, 5), np.float32)
        report = ask(ORIGINAL, FOLDED, [Feed({"x": x}, "mine.npz")])
        assert report.verdict is Verdict.PASS
        assert {check.feed for check in report.checks} == {"mine.npz"}

    def test_feeds_that_the_reference_does_not_take_are_left_out(self, ask: Ask) -> None:
        text = "(float[N,6] x) => (float[M,3] y) { y = Reshape(x, i) }"
        fixed = graph(text, i=np.array([2, 3]))
        report = ask(fixed, fixed)
        assert report.verdict is Verdict.PASS
        assert {check.feed[:3] for check in report.checks} == {"N=1"}

    def test_the_same_seed_gives_the_same_report(self, ask: Ask) -> None:
        assert ask(ORIGINAL, FOLDED, seed=3) == ask(ORIGINAL, FOLDED, seed=3)


class TestDefects:
    def test_onnxruntimes_own_fusion_is_a_finding_about_the_reference(self, ask: Ask) -> None:
        report = ask(DEFECTIVE, SOUND)
        assert report.verdict is Verdict.PASS
        assert len(report.findings) == 1
        assert report.findings[0].startswith("a defect of onnxruntime: at its default level")
        assert {check.level for check in report.checks} == {"disabled"}
        assert ask(DEFECTIVE, DEFECTIVE).verdict is Verdict.PASS

    def test_and_a_failure_of_the_candidate(self, ask: Ask) -> None:
        report = ask(SOUND, DEFECTIVE)
        assert report.verdict is Verdict.FAIL
        assert "optimizations default" in report.message
        assert not report.findings

    STATE = """(float[N,4] x) => (float[N,4] y) {{
        a = Add(x, m)  u, p, q = BatchNormalization<training_mode = 1>(a, s, b, {}, v)  y = Add(u, a) }}"""

    def test_a_session_that_changes_as_it_runs(self, ask: Ask) -> None:
        """In training mode onnxruntime writes the statistics that nobody reads over the initializers."""
        stateful = graph(self.STATE.format("m"), **NORM)
        report = ask(stateful, stateful)
        assert report.verdict is Verdict.PASS
        assert len(report.findings) == 2
        assert all("run again on the same feed" in finding for finding in report.findings)
        # Every feed has a session of its own, so none sees what another left behind.
        # (A row alone has variance 0, so that its rounding errors are divided by sqrt(1e-5).)
        assert len(report.checks) == 4
        assert all(check.reference_error < 1e-4 for check in report.checks)

    def test_a_candidate_that_changes_as_it_runs(self, ask: Ask) -> None:
        apart = graph(self.STATE.format("n"), n=NORM["m"], **NORM)
        report = ask(apart, graph(self.STATE.format("m"), **NORM))
        assert report.verdict is Verdict.FAIL
        assert "output 'y' changes by" in report.message
        assert not report.findings

    def test_a_reference_that_float64_does_not_confirm_says_nothing(self, ask: Ask) -> None:
        """What overflows on the way is finite in float64."""
        text = "(float[N,6] x) => (float[N,6] y, float[N,6] z) { a = Mul(x, k)  c = Mul(a, k)  d = Div(c, k)"
        lost = graph(text + "  y = Div(d, k)  z = Relu(x) }", k=np.float32(1e30))
        report = ask(lost, lost)
        assert report.verdict is Verdict.PASS
        assert {check.output for check in report.checks} == {"z"}
        assert len(report.findings) == 1
        assert "float64 arithmetic disagree about output 'y'" in report.findings[0]
        del lost.graph.output[1]
        assert ask(lost, lost).verdict is Verdict.UNDECIDED


class TestLuck:
    """The reference may come out right by chance; that is no standard."""

    def test_a_reference_that_is_exact(self, ask: Ask) -> None:
        """Sums of small integers have no rounding error; those of their folded multiples do."""
        text = "(uint8[N,256,3,3] q) => (float[N,8,1,1] y) {{ x = Cast<to = 1>(q)  c = Conv(x, w)  {} }}"
        signs = np.sign(random(8, 256, 3, 3))
        scale = 0.5 + random(8, 1, 1) ** 2
        exact = graph(text.format("y = Identity(c)"), w=signs)
        scaled = graph(text.format("y = Div(c, k)"), w=signs * scale[..., None], k=scale)
        report = ask(exact, scaled)
        assert report.verdict is Verdict.PASS
        assert all(check.reference_error == 0 < check.candidate_error for check in report.checks)

    def test_outputs_of_a_single_number(self, ask: Ask) -> None:
        """The mean over everything of a net is now and then right to the last bit."""
        for seed in range(12):
            rng = np.random.default_rng(seed)
            w = (rng.standard_normal((16, 3, 3, 3)) / 5).astype(np.float32)
            k = np.exp(rng.standard_normal((16, 1, 1))).astype(np.float32)
            text = (
                "(float[1,3,16,16] x) => (float y) {{ c = Conv(x, w)  {}  y = ReduceMean<keepdims = 0>(r) }}"
            )
            reference = graph(text.format("n = Mul(c, k)  r = Relu(n)"), w=w, k=k)
            candidate = graph(text.format("r = Relu(c)"), w=w * k[..., None])
            assert ask(reference, candidate, seed=seed).verdict is Verdict.PASS

    def test_saturated_outputs_are_no_disagreement(self, ask: Ask) -> None:
        """Sigmoid(-40) is 4e-18; onnxruntime's is some 1e-9."""
        text = "(float[N,6] x) => (float[N,6] y) { a = Sub(x, k)  y = Sigmoid(a) }"
        saturated = graph(text, k=np.float32(40))
        report = ask(saturated, saturated)
        assert (report.verdict, report.findings) == (Verdict.PASS, ())
        assert report.checks

    def test_numbers_so_small_that_their_type_rounds_them_coarsely(self, ask: Ask) -> None:
        """Below 1e-38 a unit in the last place of float32 is 1.4e-45, whatever the value."""
        text = "(float[1000] x) => (float[1000] y) {{ {} }}"
        constants = {"k": np.float32(0.3), "l": np.float32(1 / 0.3)}
        plain, twice = (
            graph(text.format("y = Abs(x)")),
            graph(text.format("a = Mul(x, k)  y = Mul(a, l)"), **constants),
        )
        report = ask(plain, twice, [Feed({"x": np.linspace(1e-43, 1e-42, 1000).astype(np.float32)}, "tiny")])
        assert report.verdict is Verdict.PASS
        assert all(check.reference_error == 0 < check.candidate_error for check in report.checks)

    TOP = "(float[512,2] x) => (int64[512] y) {{ {} y = ArgMax<axis = 1, keepdims = 0>(s) }}"

    def test_a_few_decisions_that_fall_otherwise_are_a_finding(self, ask: Ask) -> None:
        """No rounding of the reference moves its numbers by 1e-4; the candidate's does, in 60 rows of 512."""
        rows = RNG.integers(0, 9, (512, 1)) + np.array([[0, 1]])
        rows = rows.astype(np.float32)
        rows[:60, 1] = rows[:60, 0] + np.float32(1e-4)
        feeds = [Feed({"x": rows}, "close")]
        plain = graph(self.TOP.format("s = Identity(x)"))
        lossy = graph(self.TOP.format("a = Add(x, k)  s = Sub(a, k)"), k=np.float32(1e5))
        report = ask(plain, lossy, feeds)
        assert report.verdict is Verdict.PASS
        assert all(
            check.reference_error == 0 and check.candidate_error == 60 / 512 for check in report.checks
        )
        assert len(report.findings) == 2
        assert all("depends on decisions between close numbers" in finding for finding in report.findings)
        # A quarter of all is no few.
        rows[:160, 1] = rows[:160, 0] + np.float32(1e-4)
        assert ask(plain, lossy, feeds).verdict is Verdict.FAIL

    def test_decisions_that_rounding_explains_are_not_even_that(self, ask: Ask) -> None:
        rows = RNG.integers(0, 9, (512, 1)) * np.ones((1, 2))
        feeds = [Feed({"x": rows.astype(np.float32)}, "ties")]
        plain = graph(self.TOP.format("s = Mul(x, k)"), k=np.float32(1))
        other = graph(self.TOP.format("s = Add(x, k)"), k=np.array([0, 1e-12], np.float32))
        report = ask(plain, other, feeds)  # in float64 the second column wins there, in float32 it does not
        assert (report.verdict, report.findings) == (Verdict.PASS, ())
        assert all(check.reference_error == 0 < check.candidate_error for check in report.checks)


class TestFeeds:
    def test_a_model_without_free_sizes_is_run_once(self) -> None:
        fixed = graph("(float[8,3,5,5] x) => (float[8,3,5,5] y) { y = Relu(x) }")
        assert len(feeds_for(next(bindings(fixed)), 0)) == 1

    def test_one_row_and_three_at_two_sizes(self) -> None:
        shapes = [f.arrays["x"].shape for f in feeds_for(next(bindings(ORIGINAL)), 0)]
        assert [shape[0] for shape in shapes] == [1, 3, 1, 3]
        assert len({shape[2:] for shape in shapes}) == 2
