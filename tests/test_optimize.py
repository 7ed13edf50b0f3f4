"""Whole files: what `optimize` writes and when it writes nothing, what `inspect` sees."""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import model, norm, same
from onnx import numpy_helper

import bnfold
from bnfold import Outcome, Reason, Verdict

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "models"
EVERY = sorted(SHARED.glob("*/*.onnx"))
INVALID = {"deeploy__BatchNorm_ChannelsLast_network", "onnxruntime-qnn__fuse-matmul-bn-directly-dont-fuse"}
needs_shared = pytest.mark.skipif(not EVERY, reason="the models in ../shared/models are not here")

NORM: dict[str, Any] = norm(4)
FOLDABLE = """(float[N,3,8,8] x) => (float[N,4,6,6] y)
{ c = Conv(x, w)  y = BatchNormalization(c, scale, bias, mean, var) }"""
STAYS = """(float[N,4,8,8] x) => (float[N,4,8,8] y)
{ r = BatchNormalization(x, scale, bias, mean, var)  y = Sin(r) }"""
CUSTOM = """<ir_version: 8, opset_import: ["": 17, "somewhere": 1]>
test (float[N,3,8,8] x) => (float[N,4,6,6] y)
{ a = somewhere.Unknown(x)  c = Conv(a, w)  y = BatchNormalization(c, scale, bias, mean, var) }"""


PARTS = "scale, bias, mean, var"
NOT_INLINED = {
    "fewer outputs": ("z = own.f(x)", '"": 17]> f (a) => (o, p) { o = Relu(a)  p = Neg(o) }'),
    "an output left out": (", z = own.f(x)", '"": 17]> f (a) => (o, p) { o = Relu(a)  p = Neg(o) }'),
    "too many inputs": ("z = own.f(x, x, x)", '"": 17]> f (a) => (o) { o = Relu(a) }'),
    "recursion": ("z = own.f(x)", '"": 17, "own": 1]> f (a) => (o) { o = own.f(a) }'),
    "another opset": (
        "z = own.f(x)",
        '"": 9]> f (a) => (o) { u = Unsqueeze<axes=[4]>(a)  o = Squeeze<axes=[4]>(u) }',
    ),
}


def foldable() -> onnx.ModelProto:
    return model(FOLDABLE, w=(4, 3, 3, 3), **NORM)


def store(folder: Path, proto: onnx.ModelProto, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(proto.SerializeToString())
    return path


def listing(folder: Path) -> dict[str, bytes]:
    """The files of a folder and what is in them."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], io.BytesIO]:
    """Give the standard input its content; what goes to the standard output is in the result."""

    def redirect(content: bytes) -> io.BytesIO:
        written = io.BytesIO()
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
        monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=written))
        return written

    return redirect


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; nothing may remain there."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture
def wrong_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug: after the fold, one weight is 1 % off."""

    def fold(graph: ir.Model, **options: object) -> bnfold.FoldReport:
        report = bnfold.fold(graph)
        weight = next(
            v for v in graph.graph.initializers.values() if v.shape is not None and len(v.shape) == 4
        )
        assert weight.const_value is not None
        numbers = weight.const_value.numpy().copy()
        numbers[0] *= 1.01
        weight.const_value = ir.tensor(numbers, name=weight.name)
        return report

    monkeypatch.setattr(import_module("bnfold.optimize"), "fold", fold)


class TestOptimize:
    def test_writes_beside_the_source(self, tmp_path: Path, scratch: Path) -> None:
        path = store(tmp_path, foldable(), "net.v2.onnx")
        report = bnfold.optimize(path)
        assert report.source == str(path)
        assert report.target == str(tmp_path / "net.v2.folded.onnx")
        assert report.fold.before.batchnorms == 1 and report.fold.after.batchnorms == 0
        assert report.verification is not None and report.verification.verdict is Verdict.PASS
        assert sorted(listing(tmp_path)) == ["net.v2.folded.onnx", "net.v2.onnx"]
        result = onnx.load(report.target)
        assert [node.op_type for node in result.graph.node] == ["Conv"]
        same(foldable(), result)

    def test_a_second_run_finds_nothing(self, tmp_path: Path) -> None:
        first = bnfold.optimize(store(tmp_path, foldable()))
        assert first.target is not None
        second = bnfold.optimize(first.target)
        assert second.target is not None and not second.fold.modified
        assert Path(second.target).read_bytes() == Path(first.target).read_bytes()

    def test_same_bytes_every_time(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        results = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
        assert [bnfold.optimize(path, target).target for target in results] == [str(r) for r in results]
        assert results[0].read_bytes() == results[1].read_bytes()

    def test_nothing_to_fold_is_a_copy(self, tmp_path: Path) -> None:
        path = store(tmp_path, model(STAYS, **NORM))
        report = bnfold.optimize(path)
        assert report.target is not None and not report.fold.modified
        assert Path(report.target).read_bytes() == path.read_bytes()
        assert report.verification is None  # the same bytes are the same function

    def test_nothing_to_fold_and_nothing_that_could_run(self, tmp_path: Path) -> None:
        """What was not changed need not be run to be known as the same."""
        text = CUSTOM.replace("BatchNormalization(c, scale, bias, mean, var)", "Relu(c)")
        report = bnfold.optimize(store(tmp_path, model(text, w=(4, 3, 3, 3))))
        assert report.target is not None and os.path.exists(report.target)

    def test_over_the_source(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        with pytest.raises(bnfold.OutputError, match=r"model.onnx: is the model that was read; choose"):
            bnfold.optimize(path, path)
        assert listing(tmp_path) == {"model.onnx": foldable().SerializeToString()}
        bnfold.optimize(path, path, force=True)
        assert [node.op_type for node in onnx.load(path).graph.node] == ["Conv"]
        same(foldable(), onnx.load(path))

    def test_existing_target(self, tmp_path: Path) -> None:
        path, other = store(tmp_path, foldable()), store(tmp_path, foldable(), "model.folded.onnx")
        before = listing(tmp_path)
        with pytest.raises(bnfold.OutputError, match=r"model.folded.onnx: exists already"):
            bnfold.optimize(path)
        assert listing(tmp_path) == before
        bnfold.optimize(path, force=True)
        assert len(onnx.load(other).graph.node) == 1

    def test_dry_run(self, tmp_path: Path, scratch: Path) -> None:
        path = store(tmp_path, foldable())
        before = tmp_path.stat().st_mtime_ns
        report = bnfold.optimize(path, dry_run=True)
        assert tmp_path.stat().st_mtime_ns == before  # not even for a moment was there another file
        assert report.target is None
        assert report.fold.after.batchnorms == 0
        assert report.verification is not None and report.verification.verdict is Verdict.PASS
        assert listing(tmp_path) == {"model.onnx": foldable().SerializeToString()}

    def test_without_verification(self, tmp_path: Path) -> None:
        report = bnfold.optimize(store(tmp_path, foldable()), verify="none")
        assert report.verification is None
        assert report.target is not None
        same(foldable(), onnx.load(report.target))

    @pytest.mark.parametrize("dry_run", [False, True])
    @pytest.mark.usefixtures("wrong_fold")
    def test_a_wrong_result_is_not_written(self, dry_run: bool, tmp_path: Path, scratch: Path) -> None:
        path = store(tmp_path, foldable())
        with pytest.raises(bnfold.NotEquivalent) as caught:
            bnfold.optimize(path, dry_run=dry_run)
        message = str(caught.value)
        assert message.startswith(f"{path}: the folded model is not equivalent: 'y' (BatchNormalization ")
        assert "nothing was written" in message and "--verify none" in message and "\n" not in message
        assert ".bnfold-" not in message
        assert list(listing(tmp_path)) == ["model.onnx"]

    @pytest.mark.usefixtures("wrong_fold")
    def test_a_wrong_result_does_not_replace_anything(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        (tmp_path / "model.folded.onnx").write_bytes(b"mine")
        with pytest.raises(bnfold.NotEquivalent):
            bnfold.optimize(path, force=True)
        assert (tmp_path / "model.folded.onnx").read_bytes() == b"mine"

    @pytest.mark.usefixtures("wrong_fold")
    def test_a_wrong_result_does_not_reach_the_standard_output(
        self, streams: Callable[[bytes], io.BytesIO], scratch: Path
    ) -> None:
        written = streams(foldable().SerializeToString())
        with pytest.raises(
            bnfold.NotEquivalent, match=r"^the model on standard input: the folded model is not"
        ):
            bnfold.optimize("-")
        assert not written.getvalue()

    def test_a_result_that_does_not_run(
        self, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The message calls the files what the user calls them, not what they were called for a moment."""

        def fold(graph: ir.Model, **options: object) -> bnfold.FoldReport:
            report = bnfold.fold(graph)
            weight = graph.graph.node(0).inputs[1]
            assert weight is not None
            weight.const_value = ir.tensor(np.zeros((4, 2, 3, 3), np.float32), name=weight.name)
            return report

        monkeypatch.setattr(import_module("bnfold.optimize"), "fold", fold)
        path = store(tmp_path, foldable())
        with pytest.raises(bnfold.NotEquivalent) as caught:
            bnfold.optimize(path)
        message = str(caught.value)
        assert f"'{tmp_path / 'model.folded.onnx'}' cannot be evaluated where '{path}' can: " in message
        assert ".bnfold-" not in message
        assert list(listing(tmp_path)) == ["model.onnx"]

    def test_undecided(self, tmp_path: Path, scratch: Path) -> None:
        path = store(tmp_path, model(CUSTOM, w=(4, 3, 3, 3), **NORM))
        with pytest.raises(bnfold.Undecided) as caught:
            bnfold.optimize(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: whether the folded model is equivalent could not be decided: ")
        assert "Unknown" in message and "--verify none" in message and "\n" not in message
        assert list(listing(tmp_path)) == ["model.onnx"]
        report = bnfold.optimize(path, verify="none")
        assert report.target is not None
        assert [n.op_type for n in onnx.load(report.target).graph.node] == ["Unknown", "Conv"]

    def test_what_nothing_runs_may_follow(self, tmp_path: Path) -> None:
        """Nothing of it was changed, and all that it reads was compared."""
        text = """<ir_version: 8, opset_import: ["": 17, "somewhere": 1]>
        test (float[N,3,8,8] x) => (float[N,4,6,6] y)
        { c = Conv(x, w)  d = BatchNormalization(c, scale, bias, mean, var)  y = somewhere.Unknown(d) }"""
        report = bnfold.optimize(store(tmp_path, model(text, w=(4, 3, 3, 3), **NORM)))
        assert report.verification is not None and report.verification.verdict is Verdict.PASS
        assert "Unknown" in report.verification.algebra.outputs[0].missing

    def test_full_asks_onnxruntime_as_well(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        fast, full = (
            bnfold.optimize(path, dry_run=True, verify=how).verification for how in ("fast", "full")
        )
        assert fast is not None and fast.runtime is None
        assert full is not None and full.runtime is not None and full.runtime.verdict is Verdict.PASS
        for report in (fast, full):
            assert report.certificate is not None and report.certificate.verdict is Verdict.PASS
            assert report.certificate.parameters == 2

    def test_a_result_that_says_something_else_of_itself_is_not_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fold(graph: ir.Model, **options: object) -> bnfold.FoldReport:
            graph.metadata_props["author"] = "me"
            return bnfold.fold(graph)

        monkeypatch.setattr(import_module("bnfold.optimize"), "fold", fold)
        with pytest.raises(bnfold.NotEquivalent, match="its metadata is author=me instead of"):
            bnfold.optimize(store(tmp_path, foldable()))
        assert list(listing(tmp_path)) == ["model.onnx"]

    def test_a_constant_that_is_not_correctly_rounded_is_not_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One unit in the last place of one weight: far below any noise, but not what was promised."""

        def fold(graph: ir.Model, **options: object) -> bnfold.FoldReport:
            report = bnfold.fold(graph)
            weight = graph.graph.node(0).inputs[1]
            assert weight is not None and weight.const_value is not None
            numbers = weight.const_value.numpy().copy()
            numbers.flat[7] = np.nextafter(numbers.flat[7], np.float32(np.inf))
            weight.const_value = ir.tensor(numbers, name=weight.name)
            return report

        monkeypatch.setattr(import_module("bnfold.optimize"), "fold", fold)
        with pytest.raises(bnfold.NotEquivalent, match="certificate: "):
            bnfold.optimize(store(tmp_path, foldable()))
        assert list(listing(tmp_path)) == ["model.onnx"]

    def test_external_data(self, tmp_path: Path, scratch: Path) -> None:
        (tmp_path / "in").mkdir()
        (tmp_path / "out").mkdir()
        path = tmp_path / "in" / "model.onnx"
        onnx.save(foldable(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        before = listing(tmp_path / "in")
        report = bnfold.optimize(path, tmp_path / "out" / "model.onnx")
        assert report.verification is not None and report.target is not None
        same(foldable(), onnx.load(report.target))
        again = bnfold.optimize(path, tmp_path / "out" / "model.onnx", dry_run=True, force=True)
        assert again.verification == report.verification
        assert listing(tmp_path / "in") == before

    def test_freeze_initializers(self, tmp_path: Path) -> None:
        proto = foldable()
        proto.graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in proto.graph.initializer
        )
        path = store(tmp_path, proto)
        (kept,) = bnfold.optimize(path, dry_run=True).fold.kept
        assert kept.reason is Reason.OVERRIDABLE
        report = bnfold.optimize(path, freeze_initializers=True)
        assert (
            report.verification is not None
            and report.verification.verdict is Verdict.PASS
            and report.target is not None
        )
        result = onnx.load(report.target)
        assert [value.name for value in result.graph.input] == ["x"]
        assert [node.op_type for node in result.graph.node] == ["Conv"]

    def test_inline_functions(self, tmp_path: Path) -> None:
        proto = onnx.parser.parse_model(FUNCTION)
        proto.graph.initializer.extend(foldable().graph.initializer)
        path = store(tmp_path, proto)
        assert bnfold.optimize(path, dry_run=True).fold.after.batchnorms == 1
        report = bnfold.optimize(path, inline_functions=True)
        assert report.fold.after.batchnorms == 0 and report.target is not None
        assert [node.op_type for node in onnx.load(report.target).graph.node] == ["Conv"]

    def test_only(self, tmp_path: Path) -> None:
        nodes = (
            "y = BatchNormalization(c, scale, bias, mean, var)  n = Sin(y)  d = Conv(n, w2)  z = Mul(d, two)"
        )
        text = f"(float[N,3,8,8] x) => (float[N,4,6,6] z) {{ c = Conv(x, w)  {nodes} }}"
        path = store(tmp_path, model(text, w=(4, 3, 3, 3), w2=(4, 4, 1, 1), two=2.0, **NORM))
        assert bnfold.optimize(path, dry_run=True).fold.after.affines == 0
        assert bnfold.optimize(path, dry_run=True, only="batchnorm").fold.after.affines == 1

    def test_errors_of_the_fold_name_the_file(self, tmp_path: Path) -> None:
        path = store(tmp_path, model(STAYS, **NORM | {"mean": (5,)}))
        for work in (bnfold.optimize, bnfold.inspect):
            with pytest.raises(
                bnfold.InputError, match="^" + str(path) + ": BatchNormalization 'r': 'mean' has shape"
            ):
                work(path)
        assert list(listing(tmp_path)) == ["model.onnx"]

    @pytest.mark.parametrize("enabled", [True, False])
    @pytest.mark.parametrize("content", [foldable().SerializeToString(), b"nonsense"])
    def test_the_collector_is_as_it_was(self, enabled: bool, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "model.onnx"
        path.write_bytes(content)
        (gc.enable if enabled else gc.disable)()
        try:
            for work in (bnfold.inspect, lambda p: bnfold.optimize(p, verify="none")):
                if content == b"nonsense":
                    with pytest.raises(bnfold.InputError):
                        work(path)
                else:
                    work(path)
                assert gc.isenabled() == enabled
        finally:
            gc.enable()

    @pytest.mark.parametrize("work", [bnfold.optimize, bnfold.inspect])
    def test_only_what_there_is(self, work: Callable[..., object], tmp_path: Path) -> None:
        with pytest.raises(bnfold.InputError, match=r"'nonsense'.*'batchnorm'"):
            work(store(tmp_path, foldable()), only="nonsense")
        assert list(listing(tmp_path)) == ["model.onnx"]

    def test_a_dry_run_without_verification_needs_no_room(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = store(tmp_path, foldable())
        before = tmp_path.stat().st_mtime_ns
        monkeypatch.setattr(import_module("bnfold.optimize"), "stage", None)  # it would be a TypeError
        report = bnfold.optimize(path, dry_run=True, verify="none")
        assert (report.target, report.verification) == (None, None) and report.fold.after.batchnorms == 0
        assert tmp_path.stat().st_mtime_ns == before

    def test_constants_of_shapes_may_be_stored_outside(self, tmp_path: Path) -> None:
        """What is inferred from them must not depend on where they are."""
        nodes = "r = Reshape(x, i)  b = Relu(r)  c = Reshape(b, j)  m = MatMul(c, w)  y = Mul(m, s)"
        proto = model(
            f"(float[N,24] x) => (float[] y) {{ {nodes} }}", i=[-1, 6, 4], j=[-1, 4], w=(4, 5), s=(5,)
        )
        inside, outside = store(tmp_path, proto), tmp_path / "outside.onnx"
        onnx.save(proto, outside, save_as_external_data=True, location="all.data", size_threshold=0)
        reports = [bnfold.optimize(path, verify="none").fold for path in (inside, outside)]
        assert reports[0] == reports[1] and reports[0].after.affines == 0

    @pytest.mark.parametrize(
        "nodes",
        [
            "d = Cast<to=1>(c)  n = BatchNormalization(d, scale, bias, mean, var)  y = Relu(n)",
            "n = BatchNormalization(c, scale, bias, mean, var)  y = Cast<to=1>(n)",
        ],
        ids=["data", "parameters"],
    )
    def test_a_channel_that_float16_cannot_hold(self, nodes: str, tmp_path: Path) -> None:
        """One such channel must not make the whole model one that is not equivalent."""
        random = np.random.default_rng(2)
        stored: dict[str, Any] = {n: random.uniform(0.2, 1.0, 16).astype(np.float32) for n in NORM}
        stored["scale"][5], stored["bias"][5] = 3e-3, 1.37
        w = (random.normal(0, 1, (16, 4, 3, 3)) / 12).astype(np.float16)
        text = f"(float16[1,4,8,8] x) => (float[] y) {{ c = Conv(x, w)  {nodes} }}"
        report = bnfold.optimize(store(tmp_path, model(text, w=w, **stored)))
        assert report.verification is None or report.verification.verdict is Verdict.PASS

    @pytest.mark.usefixtures("wrong_fold")
    def test_a_failure_carries_the_report(self, tmp_path: Path) -> None:
        path = store(tmp_path, foldable())
        with pytest.raises(bnfold.NotEquivalent) as caught:
            bnfold.optimize(path)
        report = caught.value.report
        assert isinstance(report, bnfold.OptimizeReport)
        assert (report.source, report.target) == (str(path), None)
        assert report.fold.after.batchnorms == 0
        assert (
            report.verification is not None
            and report.verification.verdict is Verdict.FAIL
            and report.verification.culprit
        )

    def test_what_is_undecided_carries_the_report(self, tmp_path: Path) -> None:
        with pytest.raises(bnfold.Undecided) as caught:
            bnfold.optimize(store(tmp_path, model(CUSTOM, w=(4, 3, 3, 3), **NORM)))
        report = caught.value.report
        assert isinstance(report, bnfold.OptimizeReport)
        assert report.verification is not None and report.verification.verdict is Verdict.UNDECIDED

    @pytest.mark.parametrize("call", [bnfold.optimize, bnfold.inspect])
    @pytest.mark.parametrize(("calls", "function"), NOT_INLINED.values(), ids=NOT_INLINED)
    def test_functions_that_cannot_be_inlined(
        self, calls: str, function: str, call: Callable[..., Any], tmp_path: Path
    ) -> None:
        text = f"""<ir_version: 8, opset_import: ["": 17, "own": 1]>
        test (float[N,3,8,8] x) => (float[] y) {{ {calls}  y = BatchNormalization(z, {PARTS}) }}
        <domain: "own", opset_import: [{function}"""
        path = store(tmp_path, model(text, **norm(3)))
        with pytest.raises(bnfold.InputError) as caught:
            call(path, inline_functions=True)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and "inlin" in message and "\n" not in message
        assert list(listing(tmp_path)) == ["model.onnx"]


FUNCTION = """<ir_version: 8, opset_import: ["": 17, "own": 1]>
test (float[N,3,8,8] x) => (float[N,4,6,6] y) { y = own.ConvNorm(x, w, scale, bias, mean, var) }
<domain: "own", opset_import: ["": 17]>
ConvNorm (x, w, scale, bias, mean, var) => (y)
{ c = Conv(x, w)  y = BatchNormalization(c, scale, bias, mean, var) }"""


class TestStreams:
    def test_in_and_out(self, streams: Callable[[bytes], io.BytesIO], scratch: Path) -> None:
        written = streams(foldable().SerializeToString())
        report = bnfold.optimize("-")
        assert (report.source, report.target) == ("-", "-")
        assert report.verification is not None and report.verification.algebra.draws
        result = onnx.load_from_string(written.getvalue())
        assert [node.op_type for node in result.graph.node] == ["Conv"]
        same(foldable(), result)

    def test_the_bytes_are_those_of_the_file(
        self, streams: Callable[[bytes], io.BytesIO], tmp_path: Path
    ) -> None:
        content = foldable().SerializeToString()
        path = store(tmp_path, foldable())
        expected = Path(str(bnfold.optimize(path).target)).read_bytes()
        written = streams(content)
        bnfold.optimize(path, "-")
        assert written.getvalue() == expected
        streams(content)
        bnfold.optimize("-", tmp_path / "out.onnx")
        assert (tmp_path / "out.onnx").read_bytes() == expected

    def test_dry_run(self, streams: Callable[[bytes], io.BytesIO], scratch: Path) -> None:
        written = streams(foldable().SerializeToString())
        report = bnfold.optimize("-", dry_run=True)
        assert report.target is None and report.verification is not None
        assert not written.getvalue()

    def test_external_data_leave_with_the_model(
        self, streams: Callable[[bytes], io.BytesIO], tmp_path: Path
    ) -> None:
        path = tmp_path / "model.onnx"
        onnx.save(foldable(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        written = streams(b"")
        bnfold.optimize(path, "-")
        same(foldable(), onnx.load_from_string(written.getvalue()))

    def test_inspect(self, streams: Callable[[bytes], io.BytesIO]) -> None:
        streams(foldable().SerializeToString())
        report = bnfold.inspect("-")
        assert report.source == "-" and len(report.batchnorms) == 1

    def test_errors(self, streams: Callable[[bytes], io.BytesIO]) -> None:
        streams(b"")
        with pytest.raises(bnfold.InputError, match=r"^the model on standard input: is empty"):
            bnfold.optimize("-")


def facts(tmp_path: Path, text: str, **constants: Any) -> tuple[bnfold.BatchNormFacts, ...]:
    return bnfold.inspect(store(tmp_path, model(text, **constants))).batchnorms


class TestInspect:
    def test_foldable_is_what_would_be_gone(self, tmp_path: Path) -> None:
        """Of a run that becomes one BatchNormalization, the others are."""
        text = """(float[N,4,8,8] x) => (float[N,4,8,8] y) {
            r = Relu(x)  n = BatchNormalization(r, scale, bias, mean, var)
            m = BatchNormalization(n, scale, bias, mean, var)  t = Tanh(m)
            k = BatchNormalization(t, scale, bias, mean, var)  y = Sigmoid(k) }"""
        found = bnfold.inspect(store(tmp_path, model(text, **NORM)))
        assert [b.decision.outcome for b in found.batchnorms] == ["merged", "merged", "kept"]
        assert found.foldable == (found.batchnorms[1],)
        assert len(found.foldable) == found.fold.before.batchnorms - found.fold.after.batchnorms

    def test_parameters(self, tmp_path: Path) -> None:
        """A BatchNormalization over n units has 4n parameters, 2n of them trained."""
        path = store(tmp_path, foldable())
        before = listing(tmp_path)
        report = bnfold.inspect(path)
        (found,) = report.batchnorms
        assert (found.node, found.channels, found.parameters, found.trained) == ("y", 4, 16, 8)
        assert (found.untouched, found.dead, found.non_finite) == (False, 0, 0)
        assert found.decision.outcome is Outcome.PULLED and found.decision.into == ("c",)
        assert report.fold.after.batchnorms == 0
        assert listing(tmp_path) == before

    @pytest.mark.parametrize(
        ("parameters", "expected"),
        [
            ({"mean": np.zeros(4), "var": np.ones(4)}, (True, 0, 0)),
            ({"mean": np.zeros(4), "var": np.array([1, 1, 2, 1])}, (False, 0, 0)),
            ({"mean": np.array([0, 1, 0, 0]), "var": np.ones(4)}, (False, 0, 0)),
            ({"scale": np.array([0, 1, 2, 0])}, (False, 2, 0)),
            ({"scale": np.array([0, 1, 2, 3]), "var": np.array([0, 1, 0, 2])}, (False, 2, 0)),
            ({"mean": np.array([np.nan, 1, np.inf, 0]), "bias": np.array([-np.inf, 0, 0, 0])}, (False, 0, 3)),
        ],
    )
    def test_statistics(
        self, parameters: dict[str, Any], expected: tuple[bool, int, int], tmp_path: Path
    ) -> None:
        floats = {name: np.asarray(value, np.float32) for name, value in parameters.items()}
        (found,) = facts(tmp_path, STAYS, **NORM | floats)
        assert (found.untouched, found.dead, found.non_finite) == expected

    def test_what_a_caller_may_override_is_shown_as_stored(self, tmp_path: Path) -> None:
        proto = model(STAYS, **NORM | {"scale": np.zeros(4, np.float32)})
        proto.graph.input.append(onnx.helper.make_tensor_value_info("scale", onnx.TensorProto.FLOAT, (4,)))
        (found,) = bnfold.inspect(store(tmp_path, proto)).batchnorms
        assert found.decision.reason is Reason.OVERRIDABLE
        assert (found.channels, found.dead) == (4, 4)

    def test_what_is_computed_is_not_known(self, tmp_path: Path) -> None:
        text = (
            "(float[N,D,8,8] x, float[D] p) => (float[N,D,8,8] y) { y = BatchNormalization(x, p, p, p, p) }"
        )
        (found,) = facts(tmp_path, text)
        assert (found.channels, found.parameters, found.trained) == (None, None, None)
        assert (found.untouched, found.dead, found.non_finite) == (False, 0, 0)
        assert found.decision.reason is Reason.RUNTIME_PARAMETERS
        (found,) = facts(tmp_path, text.replace("D", "4"))
        assert (found.channels, found.parameters, found.trained) == (4, 16, 8)

    def test_names_that_are_not_unique(self, tmp_path: Path) -> None:
        first_node, second_node = (
            f"[same] {d} = BatchNormalization({x}, scale, bias, mean, var)" for d, x in ("rx", "yc")
        )
        nodes = f"{first_node}  t = Sin(r)  c = Conv(t, w)  {second_node}"
        text = f"(float[N,4,8,8] x) => (float[N,4,8,8] y) {{ {nodes} }}"
        first, second = facts(tmp_path, text, w=(4, 4, 1, 1), **NORM)
        assert (first.node, second.node) == ("same", "same")
        assert (first.decision.value, first.decision.outcome) == ("r", Outcome.KEPT)
        assert (second.decision.value, second.decision.outcome) == ("y", Outcome.PULLED)

    def test_functions(self, tmp_path: Path) -> None:
        proto = onnx.parser.parse_model(FUNCTION)
        proto.graph.initializer.extend(foldable().graph.initializer)
        path = store(tmp_path, proto)
        (found,) = bnfold.inspect(path).batchnorms
        assert found.decision.graph == "own::ConvNorm"
        assert found.decision.reason is Reason.FUNCTION_ARGUMENT
        (found,) = bnfold.inspect(path, inline_functions=True).batchnorms
        assert (found.decision.graph, found.decision.outcome, found.channels) == ("", Outcome.PULLED, 4)

    def test_a_normalization_that_took_part_in_two_runs(self, tmp_path: Path) -> None:
        """The first walk merges Mul and Div into it, the second finds the Sub before them."""
        nodes = f"a = Sub(x, c)  u = Mul(a, w)  v = Div(u, w)  y = BatchNormalization(v, {PARTS})"
        text = f"(float[N,4,2,3] x) => (float[N,4,2,3] y) {{ {nodes} }}"
        constants: dict[str, Any] = {"c": (4, 1, 1), "w": np.array([2, 4, 8], np.float32), **NORM}
        (found,) = facts(tmp_path, text, **constants)
        assert {"u", "v", "y"} <= set(found.decision.nodes)
        path = tmp_path / "model.onnx"
        assert bnfold.inspect(path, only="batchnorm").batchnorms[0].node == "y"

    def test_scales_that_are_no_floats(self, tmp_path: Path) -> None:
        kinds: list[Any] = [np.array(["a"] * 4, object), np.ones(4, np.complex64), np.ones(4, bool)]
        for numbers in kinds:
            (found,) = facts(tmp_path, STAYS, **NORM | {"scale": numbers})
            assert found.decision.outcome is Outcome.KEPT

    def test_a_function_in_its_place(self, tmp_path: Path) -> None:
        text = f"""<ir_version: 8, opset_import: ["": 17]>
        test (float[N,4,8,8] x) => (float[N,4,8,8] y) {{ y = BatchNormalization(x, {PARTS}) }}
        <domain: "", opset_import: ["": 17]> BatchNormalization (a, s, b, m, v) => (o) {{ o = Neg(a) }}"""
        assert facts(tmp_path, text, **NORM) == ()

    def test_a_normalization_without_outputs(self, tmp_path: Path) -> None:
        proto = model(STAYS.replace("Sin(r)", "Sin(x)"), **NORM)
        del proto.graph.node[0].output[:]
        (found,) = bnfold.inspect(store(tmp_path, proto)).batchnorms
        assert found.decision.reason is Reason.MALFORMED

    def test_a_model_without_any(self, tmp_path: Path) -> None:
        assert facts(tmp_path, "(float[N] x) => (float[N] y) { y = Sin(x) }") == ()

    @needs_shared
    @pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
    def test_every_batchnorm_of_real_models(self, path: Path) -> None:
        if path.stem in INVALID:
            with pytest.raises(bnfold.InputError, match=r"has shape|channels"):
                bnfold.inspect(path)
            return
        proto = onnx.load(path)
        stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        nodes = [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
        found = {b.decision.value: b for b in bnfold.inspect(path).batchnorms if len(b.decision.nodes) == 1}
        assert len(bnfold.inspect(path).batchnorms) == len(nodes)
        for node in nodes:
            if node.output[0] in found and node.input[1] in stored:
                assert found[node.output[0]].channels == stored[node.input[1]].size


@needs_shared
@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.stem)
def test_real_models_that_do_not_change_are_copied(path: Path, tmp_path: Path) -> None:
    if path.stem in INVALID:
        pytest.skip("it is no valid model")
    report = bnfold.optimize(path, tmp_path / "out.onnx", verify="none")
    assert report.fold.modified != ((tmp_path / "out.onnx").read_bytes() == path.read_bytes())
