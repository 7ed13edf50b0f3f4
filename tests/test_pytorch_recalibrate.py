"""A module gets the statistics of what comes in, to the last bit whatever the batches; or stays as it was."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from bnfold import InputError, NotCalibrated

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  # torch comes first
from torch.nn.utils.rnn import PackedSequence, pack_sequence  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from bnfold.pytorch import recalibrate  # noqa: E402
from bnfold.pytorch.norms import Norm  # noqa: E402
from bnfold.pytorch.recalibrate import recalibrate_module  # noqa: E402


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.down: nn.Module = nn.Identity()
        if inside != outside or stride != 1:
            self.down = nn.Sequential(nn.Conv2d(inside, outside, 1, stride), nn.BatchNorm2d(outside))

    def forward(self, x: Any) -> Any:
        y = self.drop(self.relu(self.bn1(self.conv1(x))))
        return self.relu(self.bn2(self.conv2(y)) + self.down(x))


def randomized(net: Any, seed: int = 0) -> Any:
    """With parameters and statistics as after training, in training mode."""
    generator = torch.Generator().manual_seed(seed)
    for part in net.modules():
        if getattr(part, "running_mean", None) is not None:
            for tensor, low, high in (
                (part.weight.data, 0.5, 1.5),
                (part.bias.data, -0.5, 0.5),
                (part.running_mean, -0.5, 0.5),
                (part.running_var, 0.5, 1.5),
            ):
                tensor.uniform_(low, high, generator=generator)
    return net.train()


def resnet() -> Any:
    """21 BatchNormalizations."""
    torch.manual_seed(0)
    widths = [4, 4, 4, 4, 8, 8, 8, 12, 12, 12]
    blocks = [Block(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    stem = [nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4), nn.ReLU()]
    return randomized(nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)))


def small() -> Any:
    """Two BatchNormalizations, one after the other."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)]
    return randomized(nn.Sequential(*parts))


def images(count: int, size: int = 8, seed: int = 1) -> Any:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def norms(net: Any) -> dict[str, Any]:
    return {n: m for n, m in net.named_modules() if getattr(m, "running_mean", None) is not None}


def statistics(net: Any) -> dict[str, Any]:
    """Copies of all running statistics."""
    return {
        f"{n}.{k}": getattr(m, k).clone()
        for n, m in norms(net).items()
        for k in ("running_mean", "running_var")
    }


def whole(net: Any) -> dict[str, Any]:
    """All that must be as it was: numbers, modes, momenta, hooks, attributes."""
    found: dict[str, Any] = {k: v.clone() for k, v in net.state_dict().items()}
    for name, part in net.named_modules():
        found |= {f"{name}:{k}": v for k, v in vars(part).items() if not k.startswith("_")}
        found[f"{name} hooks"] = len(part._forward_pre_hooks) + len(part._forward_hooks)
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(v, other[k]) if isinstance(v, torch.Tensor) else v == other[k] for k, v in one.items()
    )


def inputs(
    net: Any, data: Sequence[Any], run: Callable[[Any, Any], Any] | None = None
) -> dict[str, NDArray[Any]]:
    """What comes into each normalization in a plain run in evaluation mode, shape (values, C), in float64."""
    net = copy.deepcopy(net).eval()
    seen: dict[str, list[Any]] = {name: [] for name in norms(net)}
    for name, part in norms(net).items():
        part.register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0].double().clone()))
    with torch.no_grad():
        for batch in data:
            (run or (lambda model, x: model(x)))(net, batch)
    return {
        name: np.concatenate([x.detach().movedim(1, -1).reshape(-1, x.shape[1]).numpy() for x in found])
        for name, found in seen.items()
        if found
    }


def need_exact(net: Any, data: Sequence[Any], run: Callable[[Any, Any], Any] | None = None) -> None:
    """In a plain run, the gaps of means (in standard deviations) and log variances are those of rounding."""
    for name, x in inputs(net, data, run).items():
        part = norms(net)[name]
        mean, var = x.mean(0), x.var(0)
        width = np.sqrt(var + part.eps)
        u = torch.finfo(part.running_mean.dtype).eps / 2
        bar = np.maximum(max(1e-6, 4 * u), 4 * u * np.abs(mean) / width)
        assert (np.abs(part.running_mean.double().numpy() - mean) / width <= bar).all(), name
        stored = part.running_var.double().numpy() + part.eps
        assert (np.abs(np.log(stored / (var + part.eps))) <= bar).all(), name


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tests run side by side, and torch's threads wait for one another in busy loops."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


class TestExact:
    @pytest.mark.parametrize("cache", ["auto", "ram", "none"])
    def test_statistics_are_those_of_the_finished_module(self, cache: Any) -> None:
        net, x = resnet(), images(75)
        report = recalibrate_module(net, [x], cache=cache).report
        need_exact(net, [x])
        assert (len(report.layers), report.samples, report.micro_batch) == (21, 75, 32)
        assert report.is_exact and not report.notes
        assert report.cache == ("none" if cache == "none" else "ram")
        assert net.training

    def test_bits_are_a_function_of_the_samples(self) -> None:
        x = images(50)
        net = resnet()
        recalibrate_module(net, [x])
        expected = statistics(net)
        order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
        cases: list[tuple[Any, dict[str, Any]]] = [
            (x.split(1), {}),
            (x.split(2), {"cache": "none"}),
            (x.split(8), {"cache": "ram"}),
            (x.split(32), {}),
            (x[order].split(7), {}),
            (x[order].split(16), {"cache": "none"}),
            (DataLoader(TensorDataset(x), batch_size=6, shuffle=True), {}),
        ]
        for data, how in cases:
            net = resnet()
            recalibrate_module(net, data, **how)
            assert same(statistics(net), expected), (type(data), how)

    def test_levels_are_found(self) -> None:
        """The branch beside a block runs at the level of the block's first."""
        report = recalibrate_module(resnet(), [images(8)], cache="none", micro_batch=8).report
        levels = {layer.name: layer.level for layer in report.layers}
        assert levels["6.bn1"] == levels["6.down.1"] == 7
        assert (levels["6.bn2"], levels["7.bn1"], report.levels) == (8, 9, 19)

    def test_what_cannot_be_seen_by_experiment(self) -> None:
        """A rectifier stays closed, whatever is tried, until the first has the right statistics."""

        class Hidden(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

            def forward(self, x: Any) -> Any:
                return self.second(torch.relu(self.first(x) - 18) + x * 0)

        net, x = Hidden(), images(40)
        net.first.running_var.fill_(1e10)
        x[7, :, 3, 3] = 1e4
        report = recalibrate_module(net, [x], cache="none").report
        need_exact(net, [x])
        assert (report.levels, report.cache) == (2, "none, one after the other")
        assert "'second'" in report.notes[0] and report.notes[0].endswith("done again in another way")

    def test_one_normalization(self) -> None:
        net = nn.BatchNorm1d(3)
        x = images(9).flatten(2)
        assert recalibrate_module(net, [x]).report.layers[0].name == "BatchNorm1d"
        need_exact(net, [x])

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_types(self, dtype: Any) -> None:
        net = small().to(dtype)
        net.to(dtype)
        x = images(40).to(dtype)
        recalibrate_module(net, [x])
        assert net[1].running_mean.dtype == dtype
        need_exact(net, [x])

    @pytest.mark.parametrize(
        ("norm", "shape"),
        [
            (nn.BatchNorm1d, (3,)),
            (nn.BatchNorm1d, (3, 7)),
            (nn.BatchNorm3d, (3, 2, 3, 4)),
            (nn.SyncBatchNorm, (3, 4)),
        ],
    )
    def test_kinds(self, norm: Any, shape: tuple[int, ...]) -> None:
        x = torch.randn(21, *shape, generator=torch.Generator().manual_seed(0)).exp()
        net = nn.Sequential(norm(3), nn.ReLU(), norm(3))
        recalibrate_module(net, [x])
        need_exact(net, [x])

    def test_converted_to_sync(self) -> None:
        nets = [small(), nn.SyncBatchNorm.convert_sync_batchnorm(small())]
        for net in nets:
            recalibrate_module(net, [images(9)])
        assert same(*map(statistics, nets))

    def test_frozen_and_with_activation(self) -> None:
        class FrozenBatchNorm2d(nn.Module):
            def __init__(self, channels: int) -> None:
                super().__init__()
                self.eps = 1e-3
                self.register_buffer("weight", torch.ones(channels))
                self.register_buffer("bias", torch.zeros(channels))
                self.register_buffer("running_mean", torch.zeros(channels))
                self.register_buffer("running_var", torch.ones(channels))

            def forward(self, x: Any) -> Any:
                scale = self.weight * (self.running_var + self.eps).rsqrt()
                return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]

        class BatchNormAct2d(nn.BatchNorm2d):
            def forward(self, x: Any) -> Any:
                return torch.relu(super().forward(x))

        net = nn.Sequential(FrozenBatchNorm2d(3), BatchNormAct2d(3), nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4))
        recalibrate_module(net, [images(40)])
        need_exact(net, [images(40)])

    def test_instance_norms_are_no_batch_norms(self) -> None:
        net = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), nn.BatchNorm2d(3))
        recalibrate_module(net, [images(9)])
        assert not net[0].running_mean.any() and net[1].running_mean.any()

    def test_dead_channels_have_no_variance(self) -> None:
        net = nn.Sequential(nn.BatchNorm2d(3))
        x = images(9)
        x[:, 1] = 5.0
        report = recalibrate_module(net, [x]).report
        assert (float(net[0].running_var[1]), report.layers[0].dead) == (0.0, 1)


class TestWhatFailsElsewhere:
    """The cases of `torch.optim.swa_utils.update_bn` and fvcore's `update_bn_stats`."""

    def test_batches_count_by_their_samples(self) -> None:
        x = images(33)
        x[32] += 100.0
        net = small()
        recalibrate_module(net, x.split(32))
        need_exact(net, [x])

    def test_sorted_data(self) -> None:
        x = torch.cat([images(30), images(30) + 20.0])
        net = small()
        recalibrate_module(net, x.split(30))
        need_exact(net, [x])

    @pytest.mark.parametrize("training", [True, False])
    def test_modes_are_kept(self, training: bool) -> None:
        """In evaluation mode it is no silent no-op; frozen ones among others are still frozen afterwards."""
        net = resnet().train(training)
        net[3].bn1.eval()
        net[3].bn1.momentum = None
        before = whole(net)
        recalibrate_module(net, [images(40)])
        after = whole(net)
        changed = {k for k in before if not same({k: before[k]}, {k: after[k]})}
        assert changed == {k for k in before if k.endswith(("running_mean", "running_var"))}
        need_exact(net, [images(40)])

    def test_left_out(self) -> None:
        net = resnet()
        before = statistics(net)
        report = recalibrate_module(net, [images(9)], leave=["3", "4.bn1"]).report
        after = statistics(net)
        kept = {k for k in before if torch.equal(before[k], after[k])}
        assert {k.rpartition(".")[0] for k in kept} == {"3.bn1", "3.bn2", "4.bn1"}
        assert len(report.layers) == 18

    @pytest.mark.parametrize("data", [[], [torch.zeros(0, 3, 8, 8)]])
    def test_no_data(self, data: Any) -> None:
        refuses(small(), data, r"the calibration data hold no sample")

    @pytest.mark.parametrize("cache", ["ram", "none"])
    @pytest.mark.parametrize("reads", range(1, 5))
    def test_an_exception_in_the_loader(self, cache: Any, reads: int) -> None:
        """It is passed on as it is."""

        class Loader(list[Any]):
            left = reads

            def __iter__(self) -> Iterator[Any]:
                for i, batch in enumerate(super().__iter__()):
                    if i == 1:
                        self.left -= 1
                        if not self.left:
                            raise OSError("disk on fire")
                    yield batch

        net = small()
        before = whole(net)
        data = Loader(images(40).split(20))
        try:
            recalibrate_module(net, data, cache=cache)
        except OSError as error:
            assert str(error) == "disk on fire"
            assert same(whole(net), before)
        else:
            assert data.left > 0

    def test_large_means(self) -> None:
        x = images(40).double() + 2e4  # ten thousand standard deviations
        net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        recalibrate_module(net, [x.float()])
        assert (net[0].running_var > 3).all()
        need_exact(net, [x.float()])

    def test_never_reached(self) -> None:
        net = small()
        net.register_module("extra", nn.Identity())
        net.extra.bn = nn.BatchNorm2d(3)
        refuses(net, [images(9)], r"'extra\.bn' is never reached")
        recalibrate_module(net, [images(9)], leave=["extra"])

    def test_nan_in_the_data(self) -> None:
        x = images(40)
        x[37, 1, 2, 3] = torch.nan
        refuses(small(), x.split(8), r"NaN in sample 37 ")

    @pytest.mark.parametrize("cache", ["ram", "none"])
    def test_overflow_in_an_activation(self, cache: Any) -> None:
        x = images(40)
        x[37] *= 1e38
        with torch.no_grad():
            net = small()
            net[0].weight *= 1e3
        refuses(net, x.split(8), r"'1': its input is not finite in sample 37 ", cache=cache)


def refuses(net: Any, data: Any, match: str, **how: Any) -> None:
    before = whole(net)
    with pytest.raises(InputError, match=match) as caught:
        recalibrate_module(net, data, **how)
    assert "\n" not in str(caught.value)
    assert same(whole(net), before)


@dataclass
class Sample:
    x: Any
    label: Any


class Named(NamedTuple):
    x: Any
    label: Any


class Two(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.sum = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Any, y: Any = None) -> Any:
        return self.sum(self.bn(x) + (0 if y is None else y))


class TestBatches:
    X, Y = images(40), images(40, seed=5)

    @pytest.mark.parametrize(
        "pack",
        [
            lambda x, y: x,
            lambda x, y: (x, torch.zeros(len(x))),
            lambda x, y: [x, ["name"] * len(x)],
            lambda x, y: {"x": x},
            lambda x, y: {"x": x, "label": torch.zeros(len(x))},
            lambda x, y: Sample(x, None),
            lambda x, y: Named(x, torch.zeros(len(x), 2)),
            lambda x, y: (x.numpy(), None),
        ],
        ids=["tensor", "tuple", "list", "mapping", "more", "dataclass", "named", "array"],
    )
    def test_structures(self, pack: Callable[[Any, Any], Any]) -> None:
        expected, net = Two(), Two()
        recalibrate_module(expected, [self.X])
        recalibrate_module(net, [pack(*p) for p in zip(self.X.split(7), self.Y.split(7), strict=True)])
        assert same(statistics(net), statistics(expected))

    @pytest.mark.parametrize("call", [None, lambda model, batch: model(batch["x"], batch["y"])])
    def test_several_inputs(self, call: Any) -> None:
        batches = [{"x": x, "y": y} for x, y in zip(self.X.split(7), self.Y.split(7), strict=True)]
        net = Two()
        recalibrate_module(net, batches, call=call)
        need_exact(net, batches, lambda model, batch: model(**batch))

    def test_a_mapping_as_it_is(self) -> None:
        """If a parameter that is needed is not in it."""

        class Whole(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bn = nn.BatchNorm2d(3)

            def forward(self, batch: Any, x: Any = None) -> Any:
                return self.bn(batch["x"])

        net = Whole()
        recalibrate_module(net, [{"x": self.X}])
        need_exact(net, [{"x": self.X}])

    def test_a_call(self) -> None:
        net = small()
        data = [{"deep": [(x, "text")], "scale": torch.tensor(2.0)} for x in self.X.split(7)]
        recalibrate_module(net, data, call=lambda model, batch: model(batch["deep"][0][0] * batch["scale"]))
        need_exact(net, [self.X * 2])

    def test_what_the_model_does_not_get(self) -> None:
        """May be NaN, if a call leaves it out."""
        net = small()
        data = [(x, torch.full((len(x),), torch.nan)) for x in self.X.split(7)]
        recalibrate_module(net, data, call=lambda model, batch: model(batch[0]))
        need_exact(net, [self.X])

    @pytest.mark.parametrize("cache", ["auto", "none"])
    def test_sparse_tensors(self, cache: Any) -> None:
        net = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))
        data = [torch.eye(6)[:4], torch.eye(6)[2:]]
        report = recalibrate_module(
            net, [x.to_sparse() for x in data], call=lambda model, x: model(x.to_dense()), cache=cache
        ).report
        assert report.notes == (AS_THEY_ARE,)
        need_exact(net, data)

    def test_what_cannot_be_taken_apart(self) -> None:
        """A list of images of different sizes, one run each."""
        data = [[images(1, size)[0] for size in (6, 7, 8)], [images(1, size)[0] for size in (8, 9)]]

        class Lists(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = small()

            def forward(self, some: Any) -> Any:
                return self.net(torch.cat([image[None, :, :6, :6] for image in some]))

        net = Lists()
        report = recalibrate_module(net, data, call=lambda model, batch: model(batch)).report
        assert (report.samples, report.micro_batch) == (2, 1)
        assert "as they are" in report.notes[0]
        need_exact(net, data)

    def test_sizes_do_not_meet(self) -> None:
        data = [images(5, 8), images(5, 9), images(5, 8, seed=7)]
        net, other = small(), small()
        recalibrate_module(net, data)
        need_exact(net, data)
        recalibrate_module(other, [*images(5, 9).split(2), torch.cat([data[2], data[0]])])
        assert same(statistics(net), statistics(other))

    @pytest.mark.parametrize(
        ("data", "match"),
        [
            (images(4), "a single Tensor"),
            ({"x": images(4)}, "a single dict"),
            (iter([images(4)]), "only once"),
            (7, "cannot be iterated"),
            ([images(4)[:, :2]], r"Sequential: cannot run on batch 0.*expected input.* to have 3 channels"),
            ([images(4).double()], r"cannot run on batch 0"),
            ([()], "an empty tuple"),
            (["abc"], "cannot run on batch 0"),
        ],
    )
    def test_unusable(self, data: Any, match: str) -> None:
        refuses(small(), data, match)

    def test_data_that_change(self) -> None:
        class Random(list[Any]):
            def __iter__(self) -> Iterator[Any]:
                yield torch.rand(8, 3, 8, 8)

        refuses(small(), Random([0]), "differ from those of the first pass")


MIXED = r"for a row of the data depends on the other rows .* pass sample='batch'"
AS_THEY_ARE = "batches were run as they are, so the result depends on which samples are in which"


class TestOtherModules:
    def test_samples_that_depend_on_each_other(self) -> None:
        class Mixed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = small()

            def forward(self, x: Any) -> Any:
                return self.net(x - x.mean(0))

        net, data = Mixed(), [images(6), images(7, seed=4)]
        refuses(net, data, MIXED)
        report = recalibrate_module(net, data, sample="batch").report
        assert report.samples == 2 and report.notes == (AS_THEY_ARE,)
        need_exact(net, data)
        report = recalibrate_module(net, data, sample="row").report
        assert report.samples == 13 and "one by one" in report.notes[0]
        need_exact(net, [*data[0].split(1), *data[1].split(1)])

    @pytest.mark.parametrize("how", [{}, {"micro_batch": 1}, {"cache": "none"}])
    def test_few_samples_that_depend_on_each_other(self, how: Any) -> None:
        """The first is the largest, so that the first micro-batch does not show it."""

        class Largest(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = small()

            def forward(self, x: Any) -> Any:
                return self.net(x - x.amax(0))

        x = images(12)
        x[0] = 50.0
        for data in ([x], [x.flip(0)]):
            net = Largest()
            refuses(net, data, MIXED, **how)
            recalibrate_module(net, data, sample="row", **how)
            need_exact(net, x.split(1))
            assert recalibrate_module(net, data, sample="batch", **how).report.notes == (AS_THEY_ARE,)
            need_exact(net, data)

    @pytest.mark.parametrize("micro_batch", [1, 32])
    def test_axis_0_that_counts_steps(self, micro_batch: int) -> None:
        """Or nodes; a row alone cannot run, or is something else."""

        class Recurrent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lstm, self.bn = nn.LSTM(6, 6), nn.BatchNorm1d(6)

            def forward(self, x: Any) -> Any:
                return self.bn(getattr(self.lstm(x)[0], "data", self.lstm(x)[0]).reshape(-1, 6))

        class Graph(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bn = nn.BatchNorm1d(6)

            def forward(self, x: Any, edges: Any) -> Any:
                return self.bn(x.index_add(0, edges[1], x[edges[0]]))

        class Shifted(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bn = nn.BatchNorm1d(6)

            def forward(self, x: Any) -> Any:
                return self.bn(x.view(-1, 8, 6).roll(1, 1).cumsum(1).view(-1, 6))

        torch.manual_seed(0)
        edges = torch.randint(0, 12, (2, 30))
        cases: list[tuple[Any, list[Any], Any]] = [
            (Recurrent(), [torch.randn(10, 4, 6), torch.randn(9, 4, 6)], None),
            (Recurrent(), [pack_sequence([torch.randn(n, 6) for n in (5, 3)]) for _ in range(4)], None),
            (Graph(), [{"x": torch.randn(12, 6), "edges": edges}], lambda net, batch: net(**batch)),
            (Shifted(), [torch.randn(16, 6), torch.randn(8, 6)], None),
        ]
        for net, data, run in cases:
            if not isinstance(data[0], PackedSequence):  # which has no rows
                if micro_batch > 1 or not isinstance(net, Graph | Shifted):  # of which no row runs alone
                    refuses(net, data, MIXED, micro_batch=micro_batch)
                recalibrate_module(net, data, micro_batch=micro_batch, sample="batch")
                need_exact(net, data, run)
                continue
            report = recalibrate_module(net, data, micro_batch=micro_batch).report
            assert report.notes == (AS_THEY_ARE,), type(net)
            need_exact(net, data, run)

    def test_a_module_that_takes_one_sample_only(self) -> None:
        class One(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bn = nn.BatchNorm2d(3)

            def forward(self, x: Any) -> Any:
                return self.bn(x.view(1, 3, 8, 8))

        for how in ({}, {"micro_batch": 1}):
            net = One()
            assert recalibrate_module(net, [images(9)], **how).report.samples == 9  # type: ignore[arg-type]
            need_exact(net, images(9).split(1))

    def test_samples_that_depend_on_the_second(self) -> None:
        """The first micro-batch does not show it, but the last run, where samples have other neighbours."""

        class Second(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bn, self.end = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

            def forward(self, x: Any) -> Any:
                return self.end(self.bn(x) + (x[:1].amax() > 50) * 1e-6)

        net, x = Second(), images(9)
        x[4] = 60.0
        report = recalibrate_module(net, [x], micro_batch=4).report
        assert report.micro_batch == 1 and "one by one" in report.notes[0]
        need_exact(net, list(x.split(1)))

    def test_samples_that_depend_on_each_other_later(self) -> None:
        """In the first batch they do not."""

        class Peak(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bn = nn.BatchNorm2d(3)

            def forward(self, x: Any) -> Any:
                return self.bn(x + (x.amax() > 50))

        net, data = Peak(), [images(9), images(9, seed=4)]
        data[1][4] = 60.0
        refuses(net, data, MIXED, micro_batch=9)
        recalibrate_module(net, data, sample="batch")
        need_exact(net, data)

    def test_rows_that_are_no_samples(self) -> None:
        """(N, T, C) → (T·N, C): the rows of a sample do not stand together."""

        class Steps(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bn = nn.BatchNorm1d(3)

            def forward(self, x: Any) -> Any:
                return self.bn(x.transpose(0, 1).reshape(-1, 3))

        net, x = Steps(), torch.randn(9, 5, 3, generator=torch.Generator().manual_seed(0))
        assert recalibrate_module(net, x.split(4)).report.micro_batch == 1
        need_exact(net, [x])

    def test_rows_that_are_of_no_sample(self) -> None:
        class More(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bn = nn.BatchNorm2d(3)

            def forward(self, x: Any) -> Any:
                return self.bn(torch.cat([x, torch.ones(1, *x.shape[1:])]))

        net = More()
        refuses(net, [images(9)], MIXED)
        report = recalibrate_module(net, [images(9)], sample="batch").report
        assert report.layers[0].count == 10 * 64 and report.notes == (AS_THEY_ARE,)
        need_exact(net, [images(9)])

    def test_random_numbers(self) -> None:
        class Noisy(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bn = nn.BatchNorm2d(3)

            def forward(self, x: Any) -> Any:
                return self.bn(nn.functional.dropout(x))

        refuses(Noisy(), [images(9)], r"'bn': gets other numbers each time")

    @pytest.mark.parametrize("size", [8, 9])
    def test_what_is_kept_between_parts(self, size: int) -> None:
        """Passes that stand still at the same time overwrite each other's."""

        class Keeps(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.kept: Any = None
                self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

            def forward(self, x: Any) -> Any:
                self.kept = x
                y = self.first(x)
                return self.second(y * self.kept)

        net, other = Keeps(), Keeps()
        data = [images(40), images(40, size, seed=4)]
        notes = recalibrate_module(net, data).report.notes
        recalibrate_module(other, data, cache="none")
        need_exact(net, data)
        assert same(statistics(net), statistics(other)) and net.kept is None
        assert len(notes) == 1 and notes[0].endswith(("in another way", "from the inputs"))

    def test_used_twice(self) -> None:
        bn = nn.BatchNorm2d(3)
        for cache in ("ram", "none"):
            refuses(
                nn.Sequential(nn.Sequential(bn), nn.ReLU(), bn),
                [images(9)],
                r"'0\.0': is used twice",
                cache=cache,
            )

    def test_shared_statistics(self) -> None:
        net = small()
        net[4] = nn.BatchNorm2d(4)
        net[3] = nn.Conv2d(4, 4, 1)
        net[4].running_mean = net[1].running_mean
        refuses(net, [images(9)], "'4': shares its statistics with '1'")

    @pytest.mark.parametrize("cache", ["auto", "none"])
    def test_of_some_samples_only_and_first(self, cache: Any) -> None:
        """What the first micro-batch does not call may come before what it does."""

        class Optional(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.always, self.sometimes = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

            def forward(self, x: Any, y: Any = None) -> Any:
                return self.always(x if y is None else x + self.sometimes(y))

        data = [{"x": images(5)}, {"x": images(6), "y": images(6, seed=3)}]
        net = Optional()
        report = recalibrate_module(net, data, cache=cache).report
        need_exact(net, data, lambda model, batch: model(**batch))
        assert [layer.level for layer in report.layers] == [1, 0]
        assert report.notes and report.cache == "none, one after the other"

    def test_in_no_order(self) -> None:
        class Either(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b, self.c = nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

            def forward(self, x: Any, y: Any = None) -> Any:
                return self.c(self.a(self.b(x)) if y is None else self.b(self.a(x)))

        data = [{"x": images(5)}, {"x": images(6), "y": images(6, seed=3)}]
        refuses(Either(), data, "'[ab]' is used before '[ab]' for some samples")

    def test_of_some_samples_only(self) -> None:
        class Optional(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.always, self.sometimes = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

            def forward(self, x: Any, y: Any = None) -> Any:
                return self.always(x) + (0 if y is None else self.sometimes(y))

        data = [{"x": images(5)}, {"x": images(6), "y": images(6, seed=3)}]
        net = Optional()
        report = recalibrate_module(net, data).report
        assert [layer.samples for layer in report.layers] == [11, 6]
        need_exact(net, data, lambda model, batch: model(**batch))

    @pytest.mark.parametrize(
        ("net", "match"),
        [
            (lambda: nn.Linear(2, 2), "Linear: has no BatchNormalization"),
            (
                lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)),
                "'0': has no running statistics",
            ),
            (lambda: nn.Sequential(nn.LazyBatchNorm2d()), "'0': is lazy"),
            (lambda: nn.Sequential(nn.BatchNorm2d(3, device="meta")), "'0': has no numbers"),
            (lambda: nn.Sequential(nn.BatchNorm2d(4)), "'0': its input has shape"),
        ],
    )
    def test_refused(self, net: Any, match: str) -> None:
        with pytest.raises(InputError, match=match):
            recalibrate_module(net(), [images(9)])

    @pytest.mark.parametrize("cache", ["ram", "none"])
    def test_threads_of_its_own(self, cache: Any) -> None:
        """Which cannot stand still; so each level starts from the inputs."""

        class Threads(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.parts = nn.ModuleList([small(), small()])

            def forward(self, x: Any) -> Any:
                with ThreadPoolExecutor(2) as pool:
                    return list(pool.map(lambda part: part(x), self.parts))

        net, x = Threads(), images(40)
        notes = recalibrate_module(net, [x], cache=cache).report.notes
        need_exact(net, [x])
        assert len(notes) == (cache == "ram") and all("cannot be stopped" in note for note in notes)

    @pytest.mark.parametrize("compiled", ["part", "in place"])
    @pytest.mark.parametrize("cache", ["ram", "none"])
    def test_compiled_parts(self, compiled: str, cache: Any) -> None:
        expected, net, x = nn.Sequential(small()), nn.Sequential(small()), images(40)
        if compiled == "part":
            net[0] = torch.compile(net[0], backend="eager")
        else:
            net[0].compile(backend="eager")
        recalibrate_module(net, [x], cache=cache)
        recalibrate_module(expected, [x])
        pairs = zip(statistics(net).values(), statistics(expected).values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)

    def test_mapped_over_rows(self) -> None:
        class Mapped(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bn = nn.BatchNorm2d(3)

            def forward(self, x: Any) -> Any:
                return self.bn(torch.vmap(lambda row: row * 2 - row.sum())(x))

        net, x = Mapped(), images(9)
        recalibrate_module(net, [x])
        need_exact(net, [x])

    @pytest.mark.parametrize(("mean", "var"), [(torch.nan, 1.0), (0.0, torch.inf), (0.0, -1.0)])
    @pytest.mark.parametrize("cache", ["ram", "none"])
    def test_broken_statistics(self, mean: float, var: float, cache: Any) -> None:
        net, x = small(), images(40)
        net[1].running_mean.fill_(mean)
        net[1].running_var[2] = var
        layer = recalibrate_module(net, [x], cache=cache).report.layers[0]
        need_exact(net, [x])
        assert max(layer.mean_drift, layer.var_drift) == np.inf

    def test_one_number_for_all_channels(self) -> None:
        net = small()
        net[1].running_mean = torch.zeros(1).expand(4)
        refuses(net, [images(9)], r"'1': has one number for all channels")

    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
    def test_scripted(self) -> None:
        scripted = torch.jit.script(small())
        for net, match in (
            (scripted, "a ScriptModule runs past Python"),
            (nn.Sequential(scripted), "'0.1': is part of"),
        ):
            with pytest.raises(InputError, match=match):
                recalibrate_module(net, [images(9)])

    def test_wrapped(self) -> None:
        net, expected = small(), small()
        recalibrate_module(expected, [images(9)])
        recalibrate_module(torch.compile(nn.DataParallel(net), backend="eager"), [images(9)])
        assert same(statistics(net), statistics(expected))

    def test_unlike_arguments(self) -> None:
        for how in (
            {"method": "best"},
            {"variance": "both"},
            {"cache": "disk"},
            {"micro_batch": 0},
            {"micro_batch": 2.5},
            {"leave": ["9"]},
            {"leave": "1"},
            {"sample": "feed"},
        ):
            refuses(
                small(),
                [images(9)],
                r"known are|micro_batch is (0|2\.5)|no BatchNormalization '9'|leave is '1'",
                **how,
            )
        with pytest.raises(InputError, match="the model is a NoneType"):
            recalibrate_module(None, [images(9)])


class TestMethods:
    def test_onepass(self) -> None:
        """Each micro-batch is normalized by its own; pooled by the law of total variance."""
        net, x = small(), images(40)
        report = recalibrate_module(net, [x], method="onepass").report
        training = small()
        found = [inputs_while_training(training, part) for part in x.split(32)]
        means = [np.concatenate(parts).mean(0) for parts in zip(*found, strict=True)]
        variances = [np.concatenate(parts).var(0) for parts in zip(*found, strict=True)]
        # Batch statistics are rounded to float32 once here and otherwise in torch.
        np.testing.assert_allclose(net[4].running_mean, means[1], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(net[4].running_var, variances[1], rtol=1e-4)
        assert not report.is_exact and report.cache == "none"

    def test_blend(self) -> None:
        net, x = nn.Sequential(nn.BatchNorm2d(3)), images(30)
        net[0].running_mean.fill_(4.0)
        net[0].running_var.fill_(2.0)
        recalibrate_module(net, [x], method="blend", prior_samples=10)
        values = x.double().movedim(1, 0).flatten(1)
        mean, var = values.mean(1), values.var(1, correction=0)
        assert torch.allclose(net[0].running_mean.double(), 0.25 * 4 + 0.75 * mean, rtol=1e-7)  # float32
        mixed = 0.25 * 2 + 0.75 * var + 0.25 * 0.75 * (4 - mean) ** 2
        assert torch.allclose(net[0].running_var.double(), mixed, rtol=1e-7)
        for how in ({"method": "blend"}, {"prior_samples": 3}, {"method": "blend", "prior_samples": 0}):
            refuses(net, [x], "prior_samples", **how)
        net[0].running_var.fill_(torch.nan)
        with pytest.raises(InputError, match="not finite"):
            recalibrate_module(net, [x], method="blend", prior_samples=1)

    def test_sample_variance(self) -> None:
        net, x = nn.BatchNorm2d(3), images(2, 2)
        recalibrate_module(net, [x], variance="sample")
        expected = x.double().movedim(1, 0).flatten(1).var(1, correction=1)
        assert torch.equal(net.running_var, expected.float())

    @pytest.mark.parametrize(
        ("gate", "match"), [({"min_samples": 41}, "41"), ({"max_standard_error": 1e-3}, "error")]
    )
    def test_gates(self, gate: Any, match: str) -> None:
        net = small()
        before = whole(net)
        with pytest.raises(NotCalibrated, match=match) as caught:
            recalibrate_module(net, [images(40)], **gate)
        assert same(whole(net), before)
        assert caught.value.report.samples == 40  # type: ignore[attr-defined]


def inputs_while_training(net: Any, x: Any) -> list[NDArray[Any]]:
    found = []
    for part in net:
        if isinstance(part, nn.BatchNorm2d):
            found.append(x.detach().double().movedim(1, -1).reshape(-1, x.shape[1]).numpy())
        x = part(x)
    return found


class TestAround:
    def test_undo(self) -> None:
        net = resnet()
        before = whole(net)
        done = recalibrate_module(net, [images(9)])
        assert not same(whole(net), before)
        done.undo()
        assert same(whole(net), before)
        done.undo()
        with pytest.raises(ZeroDivisionError), recalibrate_module(net, [images(9)]):
            raise ZeroDivisionError
        assert same(whole(net), before)

    def test_buffers_are_changed_in_place(self) -> None:
        net = small()
        buffers = [id(b) for b in net.buffers()]
        pointers = [b.data_ptr() for b in net.buffers()]
        recalibrate_module(net, [images(9)])
        assert [id(b) for b in net.buffers()] == buffers and [b.data_ptr() for b in net.buffers()] == pointers

    def test_training_goes_on(self) -> None:
        net = small()
        with torch.inference_mode():
            recalibrate_module(net, [images(9)])
        assert not any(b.is_inference() for b in net.buffers())
        net(images(9)).sum().backward()

    def test_a_module_made_for_inference(self) -> None:
        with torch.inference_mode():
            net = nn.Sequential(nn.BatchNorm2d(3, affine=False))
        recalibrate_module(net, [images(9)])
        assert net[0].running_mean.is_inference()
        need_exact(net, [images(9)])

    def test_interrupted_at_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ctrl-C while the statistics are stored."""
        net, done = small(), Norm.set
        before, own = whole(net), list(norms(net).values())

        def interrupted(norm: Any, new: Any) -> None:
            if norm.module is own[1]:
                raise KeyboardInterrupt
            done(norm, new)

        monkeypatch.setattr(Norm, "set", interrupted)
        with pytest.raises(KeyboardInterrupt):
            recalibrate_module(net, [images(9)])
        assert same(whole(net), before)

    def test_a_level_ends_when_it_is_seen(self) -> None:
        calls = []

        class Head(nn.Module):
            def forward(self, x: Any) -> Any:
                calls.append(len(x))
                return x

        for count in (3, 6):
            data = images(count).split(1)
            recalibrate_module(nn.Sequential(small(), Head()), data, cache="none", micro_batch=1)
            calls.append(0)
        assert calls.index(0) == len(calls) // 2 - 1

    def test_random_numbers_go_on_as_if_nothing_had_been(self) -> None:
        loader = DataLoader(TensorDataset(images(20)), batch_size=4, shuffle=True)
        net = small()
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        recalibrate_module(net, loader)
        assert torch.equal(torch.rand(4), expected)

    @pytest.mark.parametrize("cache", ["ram", "none"])
    @pytest.mark.parametrize("at", [1, 4, 9, 30])
    def test_interrupted_and_resumed(self, cache: Any, at: int, tmp_path: Path) -> None:
        """Ctrl-C after some micro-batches; then it goes on, and ends with the same bits."""
        net, expected, x = small(), small(), images(40)
        recalibrate_module(expected, [x], micro_batch=8)
        before, calls = whole(net), 0

        def interrupt(done: int, total: int | None) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise KeyboardInterrupt

        file = tmp_path / "journal"
        how: Any = {"micro_batch": 8, "cache": cache, "resume": file}
        if at < 15:  # of five micro-batches twice, and then six
            with pytest.raises(KeyboardInterrupt):
                recalibrate_module(net, [x], progress=interrupt, **how)
            assert same(whole(net), before)
            assert file.exists() == (at > 5)
        calls = 100
        recalibrate_module(net, x.split(3), progress=interrupt, **how)
        assert calls == 100 + (16 if at <= 5 or at >= 15 else 11)
        assert same(statistics(net), statistics(expected))
        assert not list(tmp_path.iterdir())

    def test_interrupted_when_rows_turned_out_to_matter(self, tmp_path: Path) -> None:
        """In the second attempt; it begins anew, and ends with the same bits."""

        class Second(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.bn, self.end = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

            def forward(self, x: Any) -> Any:
                return self.end(self.bn(x) + (x[:1].amax() > 50) * 1e-6)

        class Loader(list[Any]):
            reads, stop = 0, 0

            def __iter__(self) -> Iterator[Any]:
                self.reads += 1
                if self.reads == self.stop:
                    raise KeyboardInterrupt
                return super().__iter__()

        x = images(9)
        x[4] = 60.0
        data, expected, file = Loader(x.split(4)), Second(), tmp_path / "journal"
        how: Any = {"micro_batch": 4, "cache": "none", "resume": file}
        assert recalibrate_module(expected, data, **how).report.micro_batch == 1
        last = data.reads
        for stop in range(2, last + 1):
            data.reads, data.stop, net = 0, stop, Second()
            with pytest.raises(KeyboardInterrupt):
                recalibrate_module(net, data, **how)
            data.stop = 0
            recalibrate_module(net, data, **how)
            assert same(statistics(net), statistics(expected)) and not file.exists()

    def test_another_run_s_journal(self, tmp_path: Path) -> None:
        def interrupt(done: int, total: int | None) -> None:
            if done > 40:
                raise KeyboardInterrupt

        net, file = small(), tmp_path / "journal"
        with pytest.raises(KeyboardInterrupt):
            recalibrate_module(net, [images(40)], resume=file, progress=interrupt)
        refuses(net, [images(40, seed=9)], "differ from those of the interrupted run", resume=file)
        with torch.no_grad():
            net[0].weight += 1
        refuses(net, [images(40)], "is the journal of another run", resume=file)

    def test_progress(self) -> None:
        told: list[tuple[int, int | None]] = []
        recalibrate_module(small(), [images(40)], progress=lambda *now: told.append(now))
        assert told == [(32, None), (40, None), (72, 120), (80, 120), (96, 120), (120, 120)]

    def test_too_little_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(recalibrate, "room", lambda: 100_000)
        net, expected = resnet(), resnet()
        report = recalibrate_module(net, [images(70)]).report
        assert report.cache == "none" and "more than a quarter of the memory" in report.notes[0]
        recalibrate_module(expected, [images(70)], cache="ram")
        assert same(statistics(net), statistics(expected))
