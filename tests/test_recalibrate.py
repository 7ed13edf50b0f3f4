"""Recalibration of ONNX models: against statistics that numpy takes from the finished model's activations."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import model
from numpy.typing import NDArray
from onnx import numpy_helper

import bnfold
from bnfold import InputError, NotCalibrated, OutputError, RecalibrateReport, runtime
from bnfold.network import OnnxNetwork

Array = NDArray[Any]

FIXTURE = Path(__file__).parent.parent / "fixtures" / "digits.onnx"

NORM = "BatchNormalization<epsilon=0.001>"
# Three levels, with two on parallel branches, a skip over all of them, and one behind a pool.
BRANCHED = f"""(float[N,2,6,6] x) => (float[N,3] y) {{
    c = Conv<pads=[1,1,1,1]>(x, w)
    n = {NORM}(c, s1, b1, m1, v1)
    r = Relu(n)
    p = Conv<pads=[1,1,1,1]>(r, w2)
    q = Conv(r, w3)
    pn = {NORM}(p, s2, b2, m2, v2)
    qn = {NORM}(q, s3, b3, m3, v3)
    sum = Add(pn, qn)
    skip = Add(sum, r)
    g = GlobalAveragePool(skip)
    f = Flatten(g)
    h = Gemm(f, w4, b5)
    y = {NORM}(h, s4, b4, m4, v4)
}}"""


def branched(**more: Any) -> onnx.ModelProto:
    kernels: dict[str, Any] = {
        "w": (4, 2, 3, 3),
        "w2": (4, 4, 3, 3),
        "w3": (4, 4, 1, 1),
        "w4": (4, 3),
        "b5": (3,),
    }
    return model(BRANCHED, **kernels, **norm(1, 4), **norm(2, 4), **norm(3, 4), **norm(4, 3), **more)


def norm(number: int, channels: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    drawn = rng.standard_normal((3, channels)).astype(np.float32)
    var = np.abs(rng.standard_normal(channels)).astype(np.float32)
    return {f"{name}{number}": a for name, a in zip("sbmv", [*drawn, var], strict=True)}


def images(count: int = 70, seed: int = 0, shape: tuple[int, ...] = (2, 6, 6)) -> Array:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32) * 2 + 1


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(proto: onnx.ModelProto, name: str = "in.onnx", **how: Any) -> Path:
        onnx.save(proto, tmp_path / name, **how)
        return tmp_path / name

    return save


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; none may be left."""
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield folder
    assert not list(folder.iterdir())


def batches(x: Array, size: int, name: str = "x") -> list[dict[str, Array]]:
    return [{name: x[i : i + size]} for i in range(0, len(x), size)]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def gaps(path: Path, feeds: list[dict[str, Array]]) -> dict[str, tuple[float, float]]:
    """How far the statistics that a model stores are from what comes in, by name of the output: of means in
    standard deviations, and of log variances. By numpy in float64, from what plain onnxruntime computes."""
    proto = onnx.load(path)
    norms = [node for node in proto.graph.node if node.op_type == "BatchNormalization"]
    for name in dict.fromkeys(node.input[0] for node in norms):
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    runs = [session.run([node.input[0] for node in norms], feed) for feed in feeds]
    stored = {t.name: numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    found = {}
    for node, parts in zip(norms, zip(*runs, strict=True), strict=True):
        rows = [np.moveaxis(p.astype(np.float64), 1, 0).reshape(p.shape[1], -1) for p in parts]
        values = np.concatenate(rows, 1)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        mean, var = stored[node.input[3]], stored[node.input[4]]
        off = np.abs(values.mean(1) - mean) / np.sqrt(var + epsilon)
        found[node.output[0]] = (
            float(off.max()),
            float(np.abs(np.log((values.var(1) + epsilon) / (var + epsilon))).max()),
        )
    return found


def assert_exact(path: Path, feeds: list[dict[str, Array]], at_most: float = 1e-6) -> None:
    """The bar of the report: statistics are stored in float32, whose rounding is below 1e-6."""
    for name, (mean, var) in gaps(path, feeds).items():
        assert mean <= at_most and var <= at_most, (name, mean, var)


class TestExact:
    def test_every_norm_has_the_statistics_of_what_comes_in(self, saved: Callable[..., Path]) -> None:
        source, x = saved(branched()), images()
        assert max(max(pair) for pair in gaps(source, [{"x": x}]).values()) > 0.3
        before = source.read_bytes()
        report = bnfold.recalibrate(source, source.with_name("out.onnx"), data=batches(x, 16))
        assert_exact(source.with_name("out.onnx"), [{"x": x}])
        assert (report.samples, report.levels) == (70, 3)
        assert [layer.level for layer in report.layers] == [0, 1, 1, 2]
        assert report.is_exact
        assert source.read_bytes() == before

    def test_only_the_statistics_change(self, saved: Callable[..., Path]) -> None:
        source = saved(branched())
        bnfold.recalibrate(source, source.with_name("out.onnx"), data=batches(images(), 16))
        before, after = (onnx.load(source.with_name(name)) for name in ("in.onnx", "out.onnx"))
        assert [t.name for t in before.graph.initializer] == [t.name for t in after.graph.initializer]
        changed = [
            t.name
            for t in after.graph.initializer
            if t.SerializeToString() not in {o.SerializeToString() for o in before.graph.initializer}
        ]
        assert sorted(changed) == sorted(f"{kind}{i}" for kind in "mv" for i in (1, 2, 3, 4))
        for proto in (before, after):
            del proto.graph.initializer[:]
        assert before == after

    def test_a_second_run_writes_the_same_bytes(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
        bnfold.recalibrate(saved(branched()), once, data=batches(images(), 16))
        bnfold.recalibrate(once, twice, data=batches(images(), 16))
        assert digest(once) == digest(twice)

    def test_one_sample(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        report = bnfold.recalibrate(saved(branched()), tmp_path / "out.onnx", data=batches(images(1), 1))
        assert_exact(tmp_path / "out.onnx", [{"x": images(1)}])
        assert report.layers[0].mean_error == float("inf")
        assert report.layers[3].dead == 3  # one value has no variance

    def test_huge_means(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        """The mean is 1e4 standard deviations, where E[x²] - E[x]² in float32 is negative."""
        proto = model(f"(float[N,2,5] x) => (float[] y) {{ y = {NORM}(x, s1, b1, m1, v1) }}", **norm(1, 2))
        x = images(50, shape=(2, 5)) + np.float32(2e4)
        report = bnfold.recalibrate(saved(proto), tmp_path / "out.onnx", data=batches(x, 7))
        ((mean, var),) = gaps(tmp_path / "out.onnx", [{"x": x}]).values()
        assert mean <= 4 * 2.0**-24 * 2e4 / 2  # the mean itself is rounded to float32: relative to 2
        assert var <= 1e-6
        assert report.is_exact

    @pytest.mark.parametrize("size", [1, 3])
    def test_a_fixed_batch(self, size: int, saved: Callable[..., Path], tmp_path: Path) -> None:
        proto = branched()
        for info in (*proto.graph.input, *proto.graph.output):
            if info.name in "xy":
                info.type.tensor_type.shape.dim[0].dim_value = size
        x = images(17)
        report = bnfold.recalibrate(saved(proto), tmp_path / "out.onnx", data=batches(x, 5))
        assert report.micro_batch == size
        padded = np.concatenate([x, x[-1:]]) if size == 3 else x
        feeds = batches(padded, size)
        if size == 1:
            assert_exact(tmp_path / "out.onnx", feeds)
        free, fixed = tmp_path / "free.onnx", tmp_path / "out.onnx"
        bnfold.recalibrate(saved(branched(), "f.onnx"), free, data=batches(x, 5))
        for a, b in zip(statistics(free), statistics(fixed), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # other kernels round otherwise

    def test_real_network(self, tmp_path: Path) -> None:
        data = np.load(FIXTURE.with_name("digits.npz"))
        x = data["calibration_images"][:, None].astype(np.float32) / 16
        bnfold.recalibrate(FIXTURE, tmp_path / "out.onnx", data=batches(x, 50, "image"))
        assert_exact(tmp_path / "out.onnx", [{"image": x}])
        session = onnxruntime.InferenceSession(tmp_path / "out.onnx")
        (logits,) = session.run(None, {"image": data["test_images"][:, None].astype(np.float32) / 16})
        right = int((logits.argmax(1) == data["test_labels"]).sum())
        assert right >= 352  # 357 of 360 before; five images are the noise of such a count


def statistics(path: Path) -> list[Array]:
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    return [stored[name] for name in sorted(stored) if name[0] in "mv"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the one right result."""
    folder = tmp_path_factory.mktemp("expected")
    onnx.save(branched(), folder / "in.onnx")
    bnfold.recalibrate(folder / "in.onnx", folder / "out.onnx", data=batches(images(), 70))
    return digest(folder / "out.onnx")


class TestBits:
    """The result is a function of the multiset of samples."""

    @pytest.mark.parametrize("size", [1, 2, 8, 32, 33])
    def test_batches(self, size: int, expected: str, saved: Callable[..., Path], tmp_path: Path) -> None:
        bnfold.recalibrate(saved(branched()), tmp_path / "out.onnx", data=batches(images(), size))
        assert digest(tmp_path / "out.onnx") == expected

    @pytest.mark.parametrize("seed", [1, 2])
    def test_order(self, seed: int, expected: str, saved: Callable[..., Path], tmp_path: Path) -> None:
        x = np.random.default_rng(seed).permutation(images())
        bnfold.recalibrate(saved(branched()), tmp_path / "out.onnx", data=batches(x, 9))
        assert digest(tmp_path / "out.onnx") == expected

    @pytest.mark.parametrize("cache", ["auto", "ram", "disk", "none"])
    def test_cache(self, cache: Any, expected: str, saved: Callable[..., Path], tmp_path: Path) -> None:
        report = bnfold.recalibrate(
            saved(branched()), tmp_path / "out.onnx", data=batches(images(), 9), cache=cache
        )
        assert report.cache == (cache if cache != "auto" else "ram")
        assert digest(tmp_path / "out.onnx") == expected

    def test_one_sample_more_is_another_result(
        self, expected: str, saved: Callable[..., Path], tmp_path: Path
    ) -> None:
        bnfold.recalibrate(saved(branched()), tmp_path / "out.onnx", data=batches(images(71), 9))
        assert digest(tmp_path / "out.onnx") != expected

    @pytest.mark.parametrize("level", [1, 2, 3])
    def test_killed_and_resumed(
        self,
        level: int,
        expected: str,
        saved: Callable[..., Path],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        measure, calls = OnnxNetwork.measure, []

        def dies(self: OnnxNetwork, *how: Any, **more: Any) -> Any:
            calls.append(how)
            if len(calls) == level + 1:
                raise KeyboardInterrupt
            return measure(self, *how, **more)

        source, journal = saved(branched()), tmp_path / "journal"
        how: Any = {"data": batches(images(), 9), "resume": journal}
        monkeypatch.setattr(OnnxNetwork, "measure", dies)
        with pytest.raises(KeyboardInterrupt):
            bnfold.recalibrate(source, tmp_path / "out.onnx", **how)
        monkeypatch.undo()
        assert journal.exists() and not (tmp_path / "out.onnx").exists()
        calls.clear()

        def counted(self: OnnxNetwork, *how: Any, **more: Any) -> Any:
            calls.append(how)
            return measure(self, *how, **more)

        monkeypatch.setattr(OnnxNetwork, "measure", counted)
        bnfold.recalibrate(source, tmp_path / "out.onnx", **how)
        assert len(calls) == 3 - level + 1  # the levels that are left, and the proof
        assert digest(tmp_path / "out.onnx") == expected
        assert not journal.exists()

    def test_samples_of_different_sizes(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        text = BRANCHED.replace("[N,2,6,6]", "[N,2,H,W]")
        kernels: dict[str, Any] = {
            "w": (4, 2, 3, 3),
            "w2": (4, 4, 3, 3),
            "w3": (4, 4, 1, 1),
            "w4": (4, 3),
            "b5": (3,),
        }
        source = saved(model(text, **kernels, **norm(1, 4), **norm(2, 4), **norm(3, 4), **norm(4, 3)))
        small, large = images(11), images(13, 1, (2, 8, 5))
        feeds = [*batches(small, 4), *batches(large, 6)]
        outs = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
        for out, order in zip(outs, (feeds, feeds[::-1]), strict=True):
            bnfold.recalibrate(source, out, data=order)
            assert_exact(out, feeds)
        assert digest(outs[0]) == digest(outs[1])

    def test_where_neighbours_matter_samples_run_alone(
        self, saved: Callable[..., Path], tmp_path: Path
    ) -> None:
        """A sample is normalized by what it has in common with its batch."""
        text = f"""(float[N,2,5] x) => (float[] y) {{
            m = ReduceMean<axes=[0], keepdims=1>(x)  d = Sub(x, m)  e = Add(d, x)
            y = {NORM}(e, s1, b1, m1, v1) }}"""
        source = saved(model(text, **norm(1, 2)))
        digests = set()
        with pytest.raises(InputError, match="depends on the other rows"):
            bnfold.recalibrate(source, data=batches(images(20, shape=(2, 5)), 4))
        for size in (1, 4, 10):
            report = bnfold.recalibrate(
                source, tmp_path / f"{size}.onnx", data=batches(images(20, shape=(2, 5)), size), sample="row"
            )
            assert report.micro_batch == 1
            assert "one by one" in report.notes[0]
            digests.add(digest(tmp_path / f"{size}.onnx"))
        assert len(digests) == 1

    def test_neighbours_that_matter_later_only(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        """The first samples are alike, so that trying them out tells nothing; the proof does."""
        text = f"""(float[N,2,5] x) => (float[] y) {{
            m = ReduceMax<axes=[0], keepdims=1>(x)  d = Sub(x, m)  e = Add(d, x)
            y = {NORM}(e, s1, b1, m1, v1) }}"""
        source, x = saved(model(text, **norm(1, 2))), images(64, shape=(2, 5))
        x[:32] = 0
        with pytest.raises(InputError, match="depends on the other rows"):
            bnfold.recalibrate(source, tmp_path / "out.onnx", data=batches(x, 8))
        for name, order in (("a", x), ("b", x[::-1])):
            bnfold.recalibrate(
                source, tmp_path / f"{name}.onnx", data=batches(order, 8), sample="row", resume=tmp_path / "j"
            )
            assert_exact(tmp_path / f"{name}.onnx", batches(x, 1))
        assert digest(tmp_path / "a.onnx") == digest(tmp_path / "b.onnx")
        assert not (tmp_path / "j").exists()

    def test_neighbours_among_few(self, saved: Callable[..., Path]) -> None:
        text = f"""(float[N,2,5] x) => (float[] y) {{
            m = ReduceMax<axes=[0], keepdims=1>(x)  d = Sub(x, m)  y = {NORM}(d, s1, b1, m1, v1) }}"""
        source, x = saved(model(text, **norm(1, 2))), images(5, shape=(2, 5))
        x[0] = 9  # what the first run tries out has no influence on it
        with pytest.raises(InputError, match="depends on the other rows"):
            bnfold.recalibrate(source, data=batches(x, 8))

    def test_rows_that_depend_on_the_data(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        """Of each sample, as many rows are left as it has active steps."""
        text = f"""(float[N,5,4] x) => (float[] y) {{
            r = Reshape(x, shape)  first = Gather<axis=1>(r, zero)  on = Greater(first, nothing)
            c = Compress<axis=0>(r, on)  g = MatMul(c, w)  y = {NORM}(g, s1, b1, m1, v1) }}"""
        constants: dict[str, Any] = {
            "shape": np.array([-1, 4]),
            "zero": np.array(0),
            "nothing": np.array(0, np.float32),
        }
        source = saved(model(text, w=(4, 3), **constants, **norm(1, 3)))
        x = np.abs(images(40, shape=(5, 4)))
        x[32:, 1:, 0] *= -1
        with pytest.raises(InputError, match="--sample row"):
            bnfold.recalibrate(source, data=batches(x, 8))
        bnfold.recalibrate(source, tmp_path / "out.onnx", data=batches(x, 8), sample="row")
        assert_exact(tmp_path / "out.onnx", batches(x, 1))

    def test_an_axis_0_that_counts_no_samples(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        text = f"""(float[H,W,2] x) => (float[] y) {{
            t = Transpose<perm=[2,0,1]>(x)  u = Unsqueeze(t, axis)  c = Conv<pads=[1,1,1,1]>(u, w)
            y = {NORM}(c, s1, b1, m1, v1) }}"""
        source = saved(model(text, axis=np.array([0]), w=(4, 2, 3, 3), **norm(1, 4)))
        feeds = [{"x": images(1, i, (20, 20 - i, 2))[0]} for i in range(3)]
        with pytest.raises(InputError, match="--sample feed if axis 0 does not count samples"):
            bnfold.recalibrate(source, data=feeds)
        report = bnfold.recalibrate(source, tmp_path / "out.onnx", data=feeds, sample="feed")
        assert report.samples == 3
        assert_exact(tmp_path / "out.onnx", feeds)

    def test_values_are_kept_between_levels(self, saved: Callable[..., Path]) -> None:
        """So that the data are read twice less often, of three levels, than without."""
        reads = {}
        for cache in ("ram", "none"):
            count = 0

            def counted() -> Iterator[dict[str, Array]]:
                nonlocal count
                count += 1
                yield from batches(images(), 8)

            bnfold.recalibrate(saved(branched()), data=counted, cache=cache, dry_run=True)
            reads[cache] = count
        assert reads["none"] - reads["ram"] == 2

    def test_rows_that_become_others(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        """A Reshape puts time steps into the batch: so many rows belong to a sample."""
        text = f"""(float[N,4,3] x) => (float[] y) {{
            r = Reshape(x, shape)  g = Gemm(r, w)  y = {NORM}(g, s1, b1, m1, v1) }}"""
        source = saved(model(text, shape=np.array([-1, 3]), w=(3, 5), **norm(1, 5)))
        x = images(9, shape=(4, 3))
        report = bnfold.recalibrate(source, tmp_path / "out.onnx", data=batches(x, 4))
        assert (report.micro_batch, report.layers[0].count) == (32, 36)
        assert_exact(tmp_path / "out.onnx", [{"x": x}])


TRAINING = """{x}
    c = Conv(x, w)
    n, rm, rv = BatchNormalization<training_mode=1, momentum=0.5>(c, s1, b1, m1, v1)
    r = Relu(n)
    d, mask = Dropout(r, ratio, on)
    e = Conv(d, w2)
    y, rm2, rv2 = BatchNormalization<training_mode=1>(e, s2, b2, m2, v2)
}}"""


class TestTrainingMode:
    def source(self, batch: object = 1, **more: Any) -> onnx.ModelProto:
        text = TRAINING.format(x=f"(float[{batch},2,6,6] x) => (float[] y) {{")
        constants: dict[str, Any] = {"ratio": np.array(0.5, np.float32), "on": np.array(True)}
        return model(text, w=(4, 2, 3, 3), w2=(4, 4, 1, 1), **constants, **norm(1, 4), **norm(2, 4), **more)

    @pytest.mark.parametrize("batch", [1, "N"])
    def test_measured_and_turned_into_inference(
        self, batch: object, saved: Callable[..., Path], tmp_path: Path
    ) -> None:
        source, x = saved(self.source(batch)), images(40)
        report = bnfold.recalibrate(source, tmp_path / "out.onnx", data=batches(x, 8))
        after = onnx.load(tmp_path / "out.onnx")
        for node in after.graph.node:
            if node.op_type == "BatchNormalization":
                assert len(node.output) == 1
                assert not [a for a in node.attribute if a.name == "training_mode"]
            if node.op_type == "Dropout":
                assert len(node.input) == 3  # not ours to change
                del node.input[2]  # but off while measuring
        assert "in training mode before, in inference mode now: 'n', 'y'" in report.notes[0]
        assert "Dropout" in report.notes[1]
        onnx.save(after, tmp_path / "still.onnx")
        feeds = batches(x, 1) if batch == 1 else [{"x": x}]
        assert_exact(tmp_path / "still.onnx", feeds)

    def test_five_outputs_of_old(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        text = """(float[N,2,6,6] x) => (float[] y) {
            c = Conv(x, w)
            y, rm, rv, sm, sv = BatchNormalization<momentum=0.5>(c, s1, b1, m1, v1)
        }"""
        source = saved(model(text, opset=9, w=(4, 2, 3, 3), **norm(1, 4)))
        bnfold.recalibrate(source, tmp_path / "out.onnx", data=batches(images(), 8))
        assert_exact(tmp_path / "out.onnx", [{"x": images()}])

    def test_initializers_stay_what_they_are(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        """onnxruntime writes into the initializers of a BatchNormalization in training mode whose statistics
        nobody reads; a second pass would see other numbers."""
        text = """(float[1,2,6,6] x) => (float[] y) {
            c = Conv(x, w)
            y, rm, rv = BatchNormalization<training_mode=1>(c, s1, b1, m1, v1) }"""
        source = saved(model(text, w=(4, 2, 3, 3), **norm(1, 4)))
        found = {
            method: statistics_of(source, tmp_path / f"{method}.onnx", method)
            for method in ("exact", "onepass")
        }
        for a, b in zip(found["exact"], found["onepass"], strict=True):
            np.testing.assert_array_equal(a, b)  # one level: both measure the same

    def test_statistics_that_are_used(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        text = """(float[N,2,6,6] x) => (float[] y, float[] rm) {
            c = Conv(x, w)
            y, rm, rv = BatchNormalization<training_mode=1>(c, s1, b1, m1, v1) }"""
        source = saved(model(text, w=(4, 2, 3, 3), **norm(1, 4)))
        with pytest.raises(InputError, match="statistics 'rm' are used elsewhere"):
            bnfold.recalibrate(source, tmp_path / "out.onnx", data=batches(images(), 8))


def statistics_of(source: Path, target: Path, method: Any) -> list[Array]:
    bnfold.recalibrate(source, target, data=batches(images(), 8), method=method)
    return statistics(target)


class TestMethods:
    def test_one_pass_is_precise_bn(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        """Deep layers see what was normalized by the batch, here of 32 and of 8 samples."""
        source, x = saved(branched()), images(40)
        report = bnfold.recalibrate(source, tmp_path / "out.onnx", data=batches(x, 10), method="onepass")
        assert not report.is_exact
        after = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
        proto = onnx.load(source)
        for node in proto.graph.node:
            if node.op_type == "BatchNormalization":
                node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
                node.output.extend([f"{node.output[0]}_m", f"{node.output[0]}_v"])
                proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in node.output[1:])
        proto.graph.output.append(onnx.ValueInfoProto(name="h"))
        session = onnxruntime.InferenceSession(proto.SerializeToString())
        values = np.concatenate([session.run(["h"], {"x": part})[0] for part in (x[:32], x[32:])])
        np.testing.assert_allclose(after["m4"], values.mean(0), rtol=1e-4, atol=1e-5)  # other float32 kernels
        np.testing.assert_allclose(after["v4"], values.var(0), rtol=1e-4)

    def test_blend_is_the_mixture(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        proto = model(f"(float[N,2,5] x) => (float[] y) {{ y = {NORM}(x, s1, b1, m1, v1) }}", **norm(1, 2))
        x, old = images(30, shape=(2, 5)), norm(1, 2)
        bnfold.recalibrate(
            saved(proto), tmp_path / "out.onnx", data=batches(x, 8), method="blend", prior_samples=10
        )
        mean, var = statistics(tmp_path / "out.onnx")
        new_mean, new_var = x.mean((0, 2), np.float64), x.astype(np.float64).var((0, 2))
        mixed = 0.25 * old["m1"] + 0.75 * new_mean
        np.testing.assert_allclose(mean, mixed, rtol=1e-6)  # float32
        second = 0.25 * (old["v1"] + old["m1"].astype(float) ** 2) + 0.75 * (new_var + new_mean**2)
        np.testing.assert_allclose(var, second - mixed**2, rtol=1e-6)

    def test_blend_goes_level_by_level(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        report = bnfold.recalibrate(
            saved(branched()),
            tmp_path / "out.onnx",
            data=batches(images(), 8),
            method="blend",
            prior_samples=5,
        )
        assert report.is_exact  # each layer has the mixture of what it had and what really comes in

    @pytest.mark.parametrize(
        "how", [{"method": "blend"}, {"prior_samples": 3}, {"method": "blend", "prior_samples": 0}]
    )
    def test_priors_are_for_blend(self, how: Any, saved: Callable[..., Path]) -> None:
        with pytest.raises(InputError, match="prior_samples"):
            bnfold.recalibrate(saved(branched()), data=batches(images(), 8), **how)


class TestGates:
    def test_too_few_samples(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        with pytest.raises(NotCalibrated, match="70 samples are fewer than the 100 asked for") as error:
            bnfold.recalibrate(
                saved(branched()), tmp_path / "out.onnx", data=batches(images(), 8), min_samples=100
            )
        assert isinstance(error.value.report, RecalibrateReport)
        assert error.value.exit_code == 1
        assert not (tmp_path / "out.onnx").exists()

    def test_too_uncertain(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        how: Any = {"data": batches(images(), 8)}
        with pytest.raises(NotCalibrated, match=r"above the 0\.01 asked for") as error:
            bnfold.recalibrate(saved(branched()), tmp_path / "out.onnx", max_standard_error=0.01, **how)
        told = re.search(r"about ([\d,]+) samples", str(error.value))
        assert told
        enough = int(told[1].replace(",", ""))
        report = bnfold.recalibrate(
            saved(branched()),
            tmp_path / "out.onnx",
            data=batches(images(enough), 64),
            max_standard_error=0.012,
        )
        assert report.samples == enough

    def test_a_model_that_draws_random_numbers(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        text = f"""(float[N,2,5] x) => (float[] y) {{
            r = RandomNormalLike(x)  z = Add(x, r)  y = {NORM}(z, s1, b1, m1, v1) }}"""
        with pytest.raises(InputError, match="'r' draws random numbers"):
            bnfold.recalibrate(
                saved(model(text, **norm(1, 2))),
                tmp_path / "out.onnx",
                data=batches(images(20, shape=(2, 5)), 5),
            )
        assert not (tmp_path / "out.onnx").exists()


class TestStored:
    def test_shared_constants_are_parted(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        """Untouched statistics that a tool has stored once for all."""
        zero, one = np.zeros(4, np.float32), np.ones(4, np.float32)
        text = f"""(float[N,2,6,6] x) => (float[] y) {{
            c = Conv(x, w)  n = {NORM}(c, one, zero, zero, one)
            d = Conv(n, w2)  y = {NORM}(d, one, zero, zero, one) }}"""
        source = saved(model(text, w=(4, 2, 3, 3), w2=(4, 4, 1, 1), zero=zero, one=one))
        report = bnfold.recalibrate(source, tmp_path / "out.onnx", data=batches(images(), 8))
        assert_exact(tmp_path / "out.onnx", [{"x": images()}])
        assert all(layer.untouched for layer in report.layers)
        stored = {
            t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer
        }
        np.testing.assert_array_equal(stored["one"], one)  # still the scale of both
        assert len(stored) == 8

    def test_a_module_used_twice(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        text = f"""(float[N,2,6,6] x) => (float[] y) {{
            c = Conv(x, w)  n = {NORM}(c, s1, b1, m1, v1)
            d = Conv(n, w2)  y = {NORM}(d, s1, b1, m1, v1) }}"""
        source = saved(model(text, w=(4, 2, 3, 3), w2=(4, 4, 1, 1), **norm(1, 4)))
        how: Any = {"data": batches(images(), 8)}
        with pytest.raises(InputError, match=r"share all their parameters.*--shared split"):
            bnfold.recalibrate(source, tmp_path / "out.onnx", **how)
        bnfold.recalibrate(source, tmp_path / "out.onnx", shared="split", **how)
        assert_exact(tmp_path / "out.onnx", [{"x": images()}])

    def test_computed_statistics(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        text = f"""(float[N,2,6,6] x) => (float[] y) {{
            c = Conv(x, w)  m = Identity(m0)  v = ConstantOfShape<value=float[1]{{1.0}}>(size)
            y = {NORM}(c, s1, b1, m, v) }}"""
        constants: dict[str, Any] = {"m0": np.zeros(4, np.float32), "size": np.array([4])}
        scale: dict[str, Any] = {name: norm(1, 4)[name] for name in ("s1", "b1")}
        source = saved(model(text, w=(4, 2, 3, 3), **constants, **scale))
        bnfold.recalibrate(source, tmp_path / "out.onnx", data=batches(images(), 8))
        assert_exact(tmp_path / "out.onnx", [{"x": images()}])
        assert [n.op_type for n in onnx.load(tmp_path / "out.onnx").graph.node] == [
            "Conv",
            "BatchNormalization",
        ]

    def test_old_files_list_initializers_as_inputs(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        source = saved(branched(opset=9, ir_version=3))
        bnfold.recalibrate(source, tmp_path / "out.onnx", data=batches(images(), 8))
        onnx.checker.check_model(tmp_path / "out.onnx")
        assert_exact(tmp_path / "out.onnx", [{"x": images()}])

    def test_statistics_that_a_caller_may_override(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        proto = branched()
        proto.graph.input.append(onnx.helper.make_tensor_value_info("m1", 1, [4]))
        bnfold.recalibrate(saved(proto), tmp_path / "out.onnx", data=batches(images(), 8))
        assert_exact(tmp_path / "out.onnx", [{"x": images()}])

    @pytest.mark.parametrize("opset", [7, 8, 9, 14, 15, 18, 22, 25])
    def test_every_opset(self, opset: int, saved: Callable[..., Path], tmp_path: Path) -> None:
        source = saved(branched(opset=opset))
        for method in ("exact", "onepass"):
            report = bnfold.recalibrate(
                source, tmp_path / "out.onnx", data=batches(images(), 8), method=method, force=True
            )
            assert report.is_exact == (method == "exact")

    def test_float16(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        text = BRANCHED.replace("float[", "float16[")
        parameters: dict[str, Any] = {
            n: a.astype(np.float16)
            for i, c in ((1, 4), (2, 4), (3, 4), (4, 3))
            for n, a in norm(i, c).items()
        }
        source = saved(
            model(text, w=(4, 2, 3, 3), w2=(4, 4, 3, 3), w3=(4, 4, 1, 1), w4=(4, 3), b5=(3,), **parameters)
        )
        x = images().astype(np.float16)
        bnfold.recalibrate(source, tmp_path / "out.onnx", data=batches(x, 8))
        # rounded to float16, u = 2**-11, are means of up to ten standard deviations
        assert_exact(tmp_path / "out.onnx", [{"x": x}], 10 * 2.0**-11)

    def test_external_data(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        x = images()
        bnfold.recalibrate(saved(branched(), "small.onnx"), tmp_path / "one.onnx", data=batches(x, 8))
        source = saved(
            branched(),
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=0,
            convert_attribute=False,
        )
        (tmp_path / "elsewhere").mkdir()
        bnfold.recalibrate(source, tmp_path / "elsewhere" / "out.onnx", data=batches(x, 8))
        for a, b in zip(
            statistics(tmp_path / "one.onnx"), statistics(tmp_path / "elsewhere" / "out.onnx"), strict=True
        ):
            np.testing.assert_array_equal(a, b)

    def test_inner_graphs_and_functions(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        inside = f"""(float[N,2] x, bool c) => (float[] y) {{ y = If (c) <
            then_branch = g () => (float[] t) {{ t = {NORM}(x, s1, b1, m1, v1) }},
            else_branch = h () => (float[] e) {{ e = Identity(x) }}> }}"""
        data = [{"x": images(4, shape=(2,)), "c": np.array(True)}]
        with pytest.raises(InputError, match="in an inner graph"):
            bnfold.recalibrate(saved(model(inside, **norm(1, 2))), data=data)
        local = f"""<ir_version: 8, opset_import: ["": 17, "own": 1]> test
            (float[N,2] x) => (float[] y) {{ y = own.f(x, s1, b1, m1, v1) }}
            <domain: "own", opset_import: ["": 17]>
            f (a, s, b, m, v) => (r) {{ r = {NORM}(a, s, b, m, v) }}"""
        source = saved(model(local, **norm(1, 2)))
        x = images(40, shape=(2,))
        with pytest.raises(InputError, match="pass --inline-functions"):
            bnfold.recalibrate(source, tmp_path / "out.onnx", data=[{"x": x}])
        bnfold.recalibrate(source, tmp_path / "out.onnx", data=[{"x": x}], inline_functions=True)
        assert_exact(tmp_path / "out.onnx", [{"x": x}])


class TestRefusals:
    """Each: one sentence, nothing written, nothing left behind."""

    @pytest.fixture(autouse=True)
    def untouched(self, tmp_path: Path) -> Iterator[None]:
        yield
        assert not list(tmp_path.glob("*.recalibrated.onnx")) and not list(tmp_path.glob(".bnfold*"))

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ([], "no sample"),
            ([{"x": images(0)}], "no sample"),
            ([{"z": images()}], "'z'"),
            ([{"x": images(shape=(3, 6, 6))}], "shape"),
            ([{"x": images().astype(np.int64)}], "int64"),
            ([{"x": images(), "more": images()}], "more"),
        ],
    )
    def test_data_that_do_not_fit(self, data: Any, message: str, saved: Callable[..., Path]) -> None:
        with pytest.raises(InputError, match=message):
            bnfold.recalibrate(saved(branched()), data=data)

    def test_nan_in_the_data(self, saved: Callable[..., Path]) -> None:
        x = images()
        x[41, 0, 2, 2] = np.nan
        with pytest.raises(InputError, match=r"\b41\b"):
            bnfold.recalibrate(saved(branched()), data=batches(x, 8))

    @pytest.mark.parametrize("cache", ["ram", "none"])
    def test_nan_in_an_activation(self, cache: Any, saved: Callable[..., Path]) -> None:
        text = f"""(float[N,2,5] x) => (float[] y) {{
            a = {NORM}(x, s1, b1, m1, v1)  l = Sqrt(x)  z = Add(a, l)  y = {NORM}(z, s2, b2, m2, v2) }}"""
        proto = model(text, **norm(1, 2), **norm(2, 2))
        proto.graph.node[3].name = "deep"
        x = np.abs(images(40, shape=(2, 5)))
        x[37] *= -1
        with pytest.raises(
            InputError, match="'deep': sample 37 of the data brings NaN or infinity into its input 'z'"
        ):
            bnfold.recalibrate(saved(proto), data=batches(x, 6), cache=cache)

    def test_data_that_change(self, saved: Callable[..., Path]) -> None:
        rng = np.random.default_rng(0)

        def augmented() -> Iterator[dict[str, Array]]:
            yield {"x": images() + rng.standard_normal(1).astype(np.float32)}

        with pytest.raises(InputError, match="must be the same each time"):
            bnfold.recalibrate(saved(branched()), data=augmented)

    @pytest.mark.parametrize(
        ("inside", "message"),
        [
            ("RandomNormalLike(a)", "'own_out' draws random numbers"),
            ("Dropout(a, b, c)", "Dropout 'own_out' in an inner"),
        ],
    )
    def test_chance_in_a_function(self, inside: str, message: str, saved: Callable[..., Path]) -> None:
        """onnxruntime draws the same numbers in each session, so that no second look would tell."""
        text = f"""<ir_version: 8, opset_import: ["": 17, "own": 1]> test (float[N,2] x) => (float[] y) {{
            z = own.f(x, half, on)  y = {NORM}(z, s1, b1, m1, v1) }}
            <domain: "own", opset_import: ["": 17]>
            f (a, b, c) => (r) {{ own_out = {inside}  r = Add(a, own_out) }}"""
        constants: dict[str, Any] = {"half": np.array(0.5, np.float32), "on": np.array(True)}
        with pytest.raises(InputError, match=message):
            bnfold.recalibrate(
                saved(model(text, **constants, **norm(1, 2))), data=[{"x": images(shape=(2,))}]
            )

    def test_training_mode_of_a_constant(self, saved: Callable[..., Path]) -> None:
        text = f"""(float[N,2] x) => (float[] y) {{
            k, rm, rv = BatchNormalization<training_mode=1>(c, s1, b1, m1, v1)
            a = Add(x, k)  y = {NORM}(a, s2, b2, m2, v2) }}"""
        with pytest.raises(InputError, match="'k' is in training mode, and its input is a constant"):
            bnfold.recalibrate(
                saved(model(text, c=(1, 2), **norm(1, 2), **norm(2, 2))), data=[{"x": images(shape=(2,))}]
            )

    def test_an_input_without_channels(self, saved: Callable[..., Path]) -> None:
        text = f"(float[N] x) => (float[] y) {{ a = Abs(x)  y = {NORM}(a, s1, b1, m1, v1) }}"
        with pytest.raises(InputError, match="'a' cannot be measured: float32 of rank 1 has no channels"):
            bnfold.recalibrate(saved(model(text, **norm(1, 1))), data=[{"x": images(shape=())}])

    def test_bfloat16(self, saved: Callable[..., Path]) -> None:
        text = f"""(float[N,2] x) => (bfloat16[] y) {{
            a = Cast<to=16>(x)  y = {NORM}(a, s1, b1, m1, v1) }}"""
        with pytest.raises(InputError, match="its input 'a' is bfloat16"):
            bnfold.recalibrate(saved(model(text, **norm(1, 2))), data=[{"x": images(shape=(2,))}])

    def test_files_in_each_others_place(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        np.savez(tmp_path / "data.npz", x=images())
        before = (tmp_path / "data.npz").read_bytes()
        with pytest.raises(InputError, match="holds the calibration data"):
            bnfold.recalibrate(
                saved(branched()), tmp_path / "data.npz", data=tmp_path / "data.npz", force=True
            )
        assert (tmp_path / "data.npz").read_bytes() == before
        with pytest.raises(InputError, match="name of the calibration data is empty"):
            bnfold.recalibrate(saved(branched()), data="")

    def test_no_norm(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        source = saved(model("(float[N,2] x) => (float[] y) { y = Relu(x) }"))
        with pytest.raises(InputError, match=r"no BatchNormalization.*folded already"):
            bnfold.recalibrate(source, data=[{"x": images(shape=(2,))}])

    def test_a_target_that_exists(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        (tmp_path / "out.onnx").write_text("mine")
        with pytest.raises(OutputError, match="exists already"):
            bnfold.recalibrate(saved(branched()), tmp_path / "out.onnx", data=batches(images(), 8))
        assert (tmp_path / "out.onnx").read_text() == "mine"

    def test_operators_that_onnxruntime_does_not_have(self, saved: Callable[..., Path]) -> None:
        text = f"""<ir_version: 8, opset_import: ["": 17, "own": 1]> test (float[N,2] x) => (float[] y) {{
            a = own.Strange(x)  y = {NORM}(a, s1, b1, m1, v1) }}"""
        with pytest.raises(InputError, match=r"in\.onnx: onnxruntime cannot load the model"):
            bnfold.recalibrate(saved(model(text, **norm(1, 2))), data=[{"x": images(shape=(2,))}])

    def test_a_batch_that_is_fixed_and_mixed(self, saved: Callable[..., Path]) -> None:
        text = f"""(float[4,2,5] x) => (float[] y) {{
            m = ReduceMean<axes=[0], keepdims=1>(x)  d = Sub(x, m)  e = Add(d, x)
            y = {NORM}(e, s1, b1, m1, v1) }}"""
        with pytest.raises(InputError, match="takes 4 samples at a time"):
            bnfold.recalibrate(saved(model(text, **norm(1, 2))), data=batches(images(20, shape=(2, 5)), 5))

    def test_a_disk_that_is_full(self, saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
        """By the limit on the size of files of the process that keeps values: a write fails half-way."""
        code = (
            "import resource, runpy, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); "
            f"runpy.run_path({runtime.__file__!r}, run_name='__main__')"
        )
        start = subprocess.Popen

        def limited(command: list[str], **how: Any) -> Any:
            return start([command[0], "-c", code], **how)

        monkeypatch.setattr(subprocess, "Popen", limited)
        with pytest.raises(
            OutputError, match=r"cannot be kept in a temporary file: File too large.*--cache none"
        ):
            bnfold.recalibrate(saved(branched()), data=batches(images(), 8), cache="disk")

    def test_a_journal_in_the_place_of_a_model(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        source, x = saved(branched()), batches(images(), 8)
        for name in ("in.onnx", "out.onnx"):
            with pytest.raises(InputError, match="cannot be both"):
                bnfold.recalibrate(source, tmp_path / "out.onnx", data=x, resume=tmp_path / name, force=True)
        assert not (tmp_path / "out.onnx").exists()

    def test_a_journal_of_another_run(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        how: Any = {"data": batches(images(), 8), "resume": tmp_path / "journal", "dry_run": True}
        with pytest.raises(NotCalibrated):
            bnfold.recalibrate(saved(branched()), min_samples=1000, **how)
        other = branched()
        other.graph.initializer[0].CopyFrom(
            numpy_helper.from_array(
                numpy_helper.to_array(other.graph.initializer[0]) * 2, other.graph.initializer[0].name
            )
        )
        for source, method in ((saved(other, "other.onnx"), "exact"), (tmp_path / "in.onnx", "onepass")):
            with pytest.raises(InputError, match="is the journal of another run"):
                bnfold.recalibrate(source, method=method, **how)  # type: ignore[arg-type]

    def test_a_journal_of_something_else(self, saved: Callable[..., Path], tmp_path: Path) -> None:
        journal = tmp_path / "journal"
        journal.write_text("no journal")
        how: Any = {"data": batches(images(), 8), "resume": journal}
        with pytest.raises(InputError, match="is no journal"):
            bnfold.recalibrate(saved(branched()), **how)
        assert journal.read_text() == "no journal"
