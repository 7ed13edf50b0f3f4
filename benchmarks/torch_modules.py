"""Small PyTorch modules around a BatchNormalization: what tools fold, what they miss, what they get wrong.

Each has statistics as training would leave them, scales of both signs included, and takes one tensor. The
numbers come from a fixed seed, so a module can be made again instead of copied: some cannot be copied.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

SEED = 5
ROWS = 10  # of an embedding table

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Pattern:
    """A module to fold.

    Attributes:
        name: As shown.
        make: Makes the module from random numbers; see `module`.
        shapes: Of its input: the first is the one that tools get to see, and at all of them the results
            are compared. Axes on which they differ are free.
        stays: How many BatchNormalizations have to stay, by the algebra that bnfold knows.
        dtype: Of the input; the module's own type is what `make` gives it.
    """

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    stays: int = 0
    dtype: torch.dtype = torch.float32

    def module(self) -> nn.Module:
        """The module in evaluation mode, except for parts whose mode `make` has chosen: those are marked."""
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weight_norm and lazy modules say that they are not the latest
            torch.manual_seed(SEED)
            module = self.make().eval()
        for part in module.modules():
            part.train(getattr(part, "keeps_training", False))
        return module

    def inputs(self) -> Iterator[Tensor]:
        """One input of each shape."""
        random = torch.Generator().manual_seed(SEED)
        for shape in self.shapes:
            if self.dtype is torch.int64:
                yield torch.randint(ROWS, shape, generator=random)
            else:
                yield torch.randn(shape, generator=random).to(self.dtype)

    @property
    def free(self) -> tuple[int, ...]:
        """The axes on which the shapes differ."""
        return tuple(i for i, sizes in enumerate(zip(*self.shapes, strict=True)) if len(set(sizes)) > 1)


class Wired(nn.Module):
    """Parts by name, and how data goes through them: `wiring(module, x)`."""

    def __init__(self, wiring: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.wiring = wiring
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.wiring(self, x)


class BatchNormAct(nn.BatchNorm2d):
    """A BatchNorm2d that is more than one: its activation is part of it, as in timm."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class BatchNormWithCasts(nn.BatchNorm2d):
    """A BatchNorm2d that computes in its own type whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class ClampedConv(nn.Conv2d):
    """A Conv2d that is more than one: its weight is clamped whenever it is used."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.clamp(-0.1, 0.1), self.bias)


def learned(norm: nn.Module, *, positive: bool = False) -> nn.Module:
    """A normalization with random parameters and statistics; about a third of the scales are negative."""
    with torch.no_grad():
        if norm.weight is not None:
            norm.weight.uniform_(0.5, 1.5)
            if not positive:
                norm.weight.mul_(torch.where(torch.rand(norm.weight.shape) < 0.3, -1.0, 1.0))
            norm.bias.normal_()
        if norm.running_mean is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.3, 2.0)
    return norm


def bn1(channels: int, **options: Any) -> nn.Module:
    return learned(nn.BatchNorm1d(channels, **options))


def bn2(channels: int, **options: Any) -> nn.Module:
    return learned(nn.BatchNorm2d(channels, **options))


def bn3(channels: int, **options: Any) -> nn.Module:
    return learned(nn.BatchNorm3d(channels, **options))


def positive(channels: int) -> nn.Module:
    return learned(nn.BatchNorm2d(channels), positive=True)


def without_shift(channels: int) -> nn.Module:
    """A BatchNorm2d that maps zero to zero."""
    norm = learned(nn.BatchNorm2d(channels))
    with torch.no_grad():
        norm.running_mean.zero_()
        norm.bias.zero_()
    return norm


def in_training(norm: nn.Module) -> nn.Module:
    """A part that is in training mode although the module around it is not."""
    norm.keeps_training = True
    return norm


def hooked(module: nn.Module, hook: Callable[..., Any]) -> nn.Module:
    module.register_forward_hook(hook)
    return module


def keeping(module: nn.Module) -> nn.Module:
    """A module with a hook that keeps what it has seen last, as those do who want features."""
    module.kept = []

    def keep(module: Any, inputs: Any, output: Tensor) -> None:
        module.kept[:] = [output]

    return hooked(module, keep)


def initialized(module: nn.Module, shape: Shape) -> nn.Module:
    """Lazy parts become what they are at the first use."""
    module.eval()(torch.zeros(shape))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            learned(part)
    return module


def tied(first: nn.Module, second: nn.Module) -> dict[str, nn.Module]:
    second.weight = first.weight
    return {"first": first, "second": second}


def functional_norm(m: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, m.mean, m.var, m.scale, m.shift, training=False, eps=1e-3)


def statistics(channels: int) -> dict[str, Tensor | nn.Parameter]:
    return {
        "mean": nn.Buffer(torch.randn(channels)),
        "var": nn.Buffer(torch.rand(channels) + 0.3),
        "scale": nn.Parameter(torch.randn(channels)),
        "shift": nn.Parameter(torch.randn(channels)),
    }


class DependsOnData(nn.Module):
    """Goes one way with the first input, the other way with the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3), bn2(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3), bn2(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x))) if x.flatten()[0] > 0 else self.bn2(self.conv2(x))


def loop(m: Any, x: Tensor) -> Tensor:
    for conv, norm in zip(m.convs, m.norms, strict=True):
        x = F.relu(norm(conv(x)))
    return x


seq = nn.Sequential
IMAGES = ((2, 3, 9, 9), (3, 3, 12, 8))
MAPS = ((2, 4, 6, 6), (3, 4, 8, 5))
ROWS_OF_6 = ((5, 6), (2, 6))
SERIES = ((2, 3, 12), (3, 3, 17))
VOLUMES = ((2, 3, 5, 6, 5), (1, 3, 7, 5, 6))


def _after_convolutions() -> Iterator[Pattern]:
    yield Pattern("conv1d", lambda: seq(nn.Conv1d(3, 4, 3), bn1(4)), SERIES)
    yield Pattern("conv2d", lambda: seq(nn.Conv2d(3, 4, 3), bn2(4)), IMAGES)
    yield Pattern("conv3d", lambda: seq(nn.Conv3d(3, 4, 3), bn3(4)), VOLUMES)
    yield Pattern("conv3d without bias", lambda: seq(nn.Conv3d(3, 4, 3, bias=False), bn3(4)), VOLUMES)
    yield Pattern(
        "strided and dilated without bias",
        lambda: seq(nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2, bias=False), bn2(4)),
        IMAGES,
    )
    yield Pattern("grouped", lambda: seq(nn.Conv2d(4, 6, 3, groups=2), bn2(6)), MAPS)
    yield Pattern("depthwise", lambda: seq(nn.Conv2d(4, 8, 3, groups=4), bn2(8)), MAPS)
    for mode in ("reflect", "circular"):
        yield Pattern(
            f"padding_mode={mode}",
            lambda mode=mode: seq(nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode), bn2(4)),  # type: ignore[misc]
            IMAGES,
        )
    yield Pattern("padding=same", lambda: seq(nn.Conv2d(3, 4, 4, padding="same"), bn2(4)), IMAGES)
    yield Pattern("transposed 1d", lambda: seq(nn.ConvTranspose1d(3, 4, 3, stride=2), bn1(4)), SERIES)
    yield Pattern("transposed 2d", lambda: seq(nn.ConvTranspose2d(3, 4, 3, stride=2), bn2(4)), IMAGES)
    yield Pattern("transposed 3d", lambda: seq(nn.ConvTranspose3d(3, 4, 2), bn3(4)), VOLUMES)
    yield Pattern("transposed with equal channels", lambda: seq(nn.ConvTranspose2d(4, 4, 3), bn2(4)), MAPS)
    yield Pattern("transposed and grouped", lambda: seq(nn.ConvTranspose2d(4, 6, 3, groups=2), bn2(6)), MAPS)
    yield Pattern(
        "transposed and depthwise", lambda: seq(nn.ConvTranspose2d(4, 4, 3, groups=4), bn2(4)), MAPS
    )


def _after_linear() -> Iterator[Pattern]:
    yield Pattern("linear", lambda: seq(nn.Linear(6, 5), bn1(5)), ROWS_OF_6)
    yield Pattern("linear without bias", lambda: seq(nn.Linear(6, 5, bias=False), bn1(5)), ROWS_OF_6)
    # The norm is along axis 1, the weight covers the last one; (N, 5, 5) hides that from who looks at sizes.
    cubes = ((2, 5, 6), (3, 5, 6))
    yield Pattern("linear on N x C x L where L = C", lambda: seq(nn.Linear(6, 5), bn1(5)), cubes, stays=1)
    yield Pattern("linear on N x C x L elsewhere", lambda: seq(nn.Linear(6, 4), bn1(5)), cubes, stays=1)
    yield Pattern(
        "linear with flatten around it (LeViT)",
        lambda: Wired(
            lambda m, x: m.bn(m.linear(x).flatten(0, 1)).reshape(x.shape[0], -1, 5),
            linear=nn.Linear(6, 5, bias=False),
            bn=bn1(5),
        ),
        ((2, 7, 6), (3, 4, 6)),
    )
    yield Pattern(
        "linear with transpose around it",
        lambda: Wired(
            lambda m, x: m.bn(m.linear(x).transpose(1, 2)).transpose(1, 2), linear=nn.Linear(6, 5), bn=bn1(5)
        ),
        ((2, 7, 6), (3, 4, 6)),
    )
    yield Pattern(
        "functional linear",
        lambda: Wired(lambda m, x: m.bn(F.linear(x, m.w)), w=nn.Parameter(torch.randn(5, 6)), bn=bn1(5)),
        ROWS_OF_6,
    )
    yield Pattern(
        "matmul with a parameter",
        lambda: Wired(lambda m, x: m.bn(x @ m.w), w=nn.Parameter(torch.randn(6, 5)), bn=bn1(5)),
        ROWS_OF_6,
    )
    yield Pattern(
        "embedding",
        lambda: Wired(lambda m, x: m.bn(m.table(x).transpose(1, 2)), table=nn.Embedding(ROWS, 5), bn=bn1(5)),
        ((2, 7), (3, 4)),
        dtype=torch.int64,
    )


def _used_more_than_once() -> Iterator[Pattern]:
    yield Pattern(
        "a conv twice and one norm",
        lambda: Wired(lambda m, x: m.bn(m.conv(m.conv(x))), conv=nn.Conv2d(4, 4, 3), bn=bn2(4)),
        MAPS,
    )
    yield Pattern(
        "a conv twice and two norms",
        lambda: Wired(
            lambda m, x: m.b(m.conv(F.relu(m.a(m.conv(x))))), conv=nn.Conv2d(4, 4, 3), a=bn2(4), b=bn2(4)
        ),
        MAPS,
    )
    yield Pattern(
        "a norm twice",
        lambda: Wired(
            lambda m, x: m.bn(m.second(F.relu(m.bn(m.first(x))))),
            first=nn.Conv2d(4, 4, 3),
            second=nn.Conv2d(4, 4, 3),
            bn=bn2(4),
        ),
        MAPS,
    )
    yield Pattern(
        "conv and norm twice",
        lambda: Wired(lambda m, x: m.bn(m.conv(F.relu(m.bn(m.conv(x))))), conv=nn.Conv2d(4, 4, 3), bn=bn2(4)),
        MAPS,
    )
    yield Pattern(
        "a conv with and without norm",
        lambda: Wired(lambda m, x: m.bn(m.conv(F.relu(m.conv(x)))), conv=nn.Conv2d(4, 4, 3), bn=bn2(4)),
        MAPS,
    )
    yield Pattern(
        "tied weights",
        lambda: Wired(
            lambda m, x: m.b(m.second(F.relu(m.a(m.first(x))))),
            a=bn2(4),
            b=bn2(4),
            **tied(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)),
        ),
        MAPS,
    )
    yield Pattern(
        "weight tied to a linear",
        lambda: Wired(
            lambda m, x: m.second(F.relu(m.a(m.first(x)))), a=bn1(6), **tied(nn.Linear(6, 6), nn.Linear(6, 6))
        ),
        ROWS_OF_6,
    )
    yield Pattern(
        "one conv before two norms",
        lambda: Wired(
            lambda m, x: (lambda y: F.relu(m.a(y)) + F.relu(m.b(y)))(m.conv(x)),
            conv=nn.Conv2d(3, 4, 3),
            a=bn2(4),
            b=bn2(4),
        ),
        IMAGES,
        stays=2,
    )
    yield Pattern(
        "norm read twice",
        lambda: Wired(
            lambda m, x: (lambda y: F.relu(y) * torch.sigmoid(y))(m.bn(m.conv(x))),
            conv=nn.Conv2d(3, 4, 3),
            bn=bn2(4),
        ),
        IMAGES,
    )
    yield Pattern(
        "conv returned as well",
        lambda: Wired(lambda m, x: (lambda y: (y, m.bn(y)))(m.conv(x)), conv=nn.Conv2d(3, 4, 3), bn=bn2(4)),
        IMAGES,
        stays=1,
    )
    yield Pattern(
        "the same module twice in a row",
        lambda: (lambda block: seq(block, nn.ReLU(), block))(seq(nn.Conv2d(4, 4, 3), bn2(4))),
        MAPS,
    )


def _weights_that_are_computed() -> Iterator[Pattern]:
    yield Pattern(
        "weight_norm", lambda: seq(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), bn2(4)), IMAGES
    )
    yield Pattern(
        "weight_norm of the old kind", lambda: seq(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), bn2(4)), IMAGES
    )
    yield Pattern(
        "weight_norm on linear", lambda: seq(parametrizations.weight_norm(nn.Linear(6, 5)), bn1(5)), ROWS_OF_6
    )
    yield Pattern(
        "spectral_norm", lambda: seq(parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), bn2(4)), IMAGES
    )
    yield Pattern("clamped weight (subclass)", lambda: seq(ClampedConv(3, 4, 3), bn2(4)), IMAGES)
    yield Pattern(
        "functional conv",
        lambda: Wired(
            lambda m, x: m.bn(F.conv2d(x, m.w, stride=2)), w=nn.Parameter(torch.randn(4, 3, 3, 3)), bn=bn2(4)
        ),
        IMAGES,
    )
    yield Pattern(
        "lazy modules",
        lambda: initialized(seq(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d()), (1, 3, 9, 9)),
        IMAGES,
    )


def _kinds_of_norms() -> Iterator[Pattern]:
    yield Pattern("affine=False", lambda: seq(nn.Conv2d(3, 4, 3), bn2(4, affine=False)), IMAGES)
    yield Pattern("momentum=None", lambda: seq(nn.Conv2d(3, 4, 3), bn2(4, momentum=None)), IMAGES)
    yield Pattern("eps=0.1", lambda: seq(nn.Conv2d(3, 4, 3), bn2(4, eps=0.1)), IMAGES)
    yield Pattern(
        "track_running_stats=False",
        lambda: seq(nn.Conv2d(3, 4, 3), bn2(4, track_running_stats=False)),
        IMAGES,
        stays=1,
    )
    yield Pattern(
        "a norm in training mode", lambda: seq(nn.Conv2d(3, 4, 3), in_training(bn2(4))), IMAGES, stays=1
    )
    yield Pattern("SyncBatchNorm", lambda: seq(nn.Conv2d(3, 4, 3), learned(nn.SyncBatchNorm(4))), IMAGES)
    yield Pattern(
        "subclass with activation", lambda: seq(nn.Conv2d(3, 4, 3), learned(BatchNormAct(4))), IMAGES
    )
    yield Pattern(
        "subclass with casts", lambda: seq(nn.Conv2d(3, 4, 3), learned(BatchNormWithCasts(4))), IMAGES
    )
    yield Pattern(
        "functional norm",
        lambda: Wired(lambda m, x: functional_norm(m, m.conv(x)), conv=nn.Conv2d(3, 4, 3), **statistics(4)),
        IMAGES,
    )
    yield Pattern("InstanceNorm", lambda: seq(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True)), IMAGES)
    yield Pattern(
        "norm before InstanceNorm",
        lambda: seq(nn.Conv2d(3, 4, 3), bn2(4), nn.InstanceNorm2d(4, affine=True)),
        IMAGES,
    )
    yield Pattern("norm after norm", lambda: seq(nn.Conv2d(3, 4, 3), bn2(4), bn2(4)), IMAGES)
    yield Pattern(
        "norm before LayerNorm",
        lambda: Wired(
            lambda m, x: m.last(m.bn(m.conv(x)).transpose(1, 2)),
            conv=nn.Conv1d(3, 4, 3),
            bn=bn1(4),
            last=nn.LayerNorm(4),
        ),
        SERIES,
    )
    yield Pattern(
        "norm after LayerNorm",
        lambda: Wired(lambda m, x: m.bn(m.first(x).transpose(1, 2)), first=nn.LayerNorm(6), bn=bn1(6)),
        ((2, 7, 6), (3, 4, 6)),
    )


def _before_a_layer() -> Iterator[Pattern]:
    """Nothing is before the norm but the input."""
    yield Pattern("before a conv", lambda: seq(bn2(3), nn.Conv2d(3, 4, 3)), IMAGES)
    yield Pattern("before a grouped conv", lambda: seq(bn2(4), nn.Conv2d(4, 6, 3, groups=2)), MAPS)
    yield Pattern("before a padded conv", lambda: seq(bn2(3), nn.Conv2d(3, 4, 3, padding=1)), IMAGES, stays=1)
    yield Pattern(
        "before a padded conv without shift",
        lambda: seq(without_shift(3), nn.Conv2d(3, 4, 3, padding=1)),
        IMAGES,
    )
    yield Pattern(
        "before a conv with reflected padding",
        lambda: seq(bn2(3), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")),
        IMAGES,
    )
    yield Pattern(
        "before two convs",
        lambda: Wired(
            lambda m, x: (lambda y: F.relu(m.a(y)) * m.b(y))(m.bn(x)),
            bn=bn2(3),
            a=nn.Conv2d(3, 4, 3),
            b=nn.Conv2d(3, 4, 3),
        ),
        IMAGES,
    )
    yield Pattern(
        "before two convs of which one is padded",
        lambda: Wired(
            lambda m, x: (lambda y: (m.a(y), m.b(y)))(m.bn(x)),
            bn=bn2(3),
            a=nn.Conv2d(3, 4, 3),
            b=nn.Conv2d(3, 4, 3, padding=1),
        ),
        IMAGES,
        stays=1,
    )
    yield Pattern(
        "before a transposed conv",
        lambda: seq(without_shift(3), nn.ConvTranspose2d(3, 4, 3, stride=2)),
        IMAGES,
    )
    yield Pattern("before a linear", lambda: seq(bn1(6), nn.Linear(6, 5)), ROWS_OF_6)
    yield Pattern(
        "before flatten and linear",
        lambda: seq(bn2(3), nn.Flatten(), nn.Linear(48, 5)),
        ((2, 3, 4, 4), (3, 3, 4, 4)),
    )
    yield Pattern(
        "before a global pool and linear",
        lambda: seq(bn2(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)),
        IMAGES,
    )
    yield Pattern("before dropout and linear", lambda: seq(bn1(6), nn.Dropout(), nn.Linear(6, 5)), ROWS_OF_6)
    yield Pattern("before an activation", lambda: seq(bn2(3), nn.ReLU(), nn.Conv2d(3, 4, 3)), IMAGES, stays=1)


def _at_a_distance() -> Iterator[Pattern]:
    yield Pattern(
        "concat of two convs",
        lambda: Wired(
            lambda m, x: m.bn(torch.cat([m.a(x), m.b(x)], 1)),
            a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(3, 2, 1),
            bn=bn2(6),
        ),
        IMAGES,
    )
    yield Pattern(
        "sum of two convs",
        lambda: Wired(
            lambda m, x: m.bn(m.a(x) + m.b(x)),
            a=nn.Conv2d(3, 4, 3, padding=1),
            b=nn.Conv2d(3, 4, 1),
            bn=bn2(4),
        ),
        IMAGES,
    )
    yield Pattern(
        "sum with the input",
        lambda: Wired(lambda m, x: m.bn(x + m.conv(x)), conv=nn.Conv2d(4, 4, 3, padding=1), bn=bn2(4)),
        MAPS,
        stays=1,
    )
    yield Pattern("average pool", lambda: seq(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), bn2(4)), IMAGES)
    yield Pattern(
        "average pool that counts padding",
        lambda: seq(nn.Conv2d(3, 4, 3), nn.AvgPool2d(3, padding=1), bn2(4)),
        IMAGES,
        stays=1,
    )
    yield Pattern(
        "max pool and positive scales", lambda: seq(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), positive(4)), IMAGES
    )
    yield Pattern(
        "max pool and mixed signs", lambda: seq(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), bn2(4)), IMAGES, stays=1
    )
    yield Pattern("global pool", lambda: seq(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), bn2(4)), IMAGES)
    yield Pattern(
        "flatten",
        lambda: seq(nn.Conv2d(3, 4, 3), nn.Flatten(), bn1(36)),
        ((2, 3, 5, 5), (3, 3, 5, 5)),
        stays=1,  # a number for each position
    )
    yield Pattern(
        "pool and flatten",
        lambda: seq(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), bn1(4)),
        IMAGES,
    )
    yield Pattern("flatten the positions", lambda: seq(nn.Conv2d(3, 4, 3), nn.Flatten(2), bn1(4)), IMAGES)
    yield Pattern("dropout", lambda: seq(nn.Conv2d(3, 4, 3), nn.Dropout(), bn2(4)), IMAGES)
    yield Pattern("identity", lambda: seq(nn.Conv2d(3, 4, 3), nn.Identity(), bn2(4)), IMAGES)
    yield Pattern("upsampling", lambda: seq(nn.Conv2d(3, 4, 3), nn.Upsample(scale_factor=2), bn2(4)), IMAGES)
    yield Pattern("pixel shuffle", lambda: seq(nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), bn2(2)), IMAGES)
    yield Pattern("zero padding", lambda: seq(nn.Conv2d(3, 4, 3), nn.ZeroPad2d(1), bn2(4)), IMAGES, stays=1)
    yield Pattern("reflected padding", lambda: seq(nn.Conv2d(3, 4, 3), nn.ReflectionPad2d(1), bn2(4)), IMAGES)
    yield Pattern(
        "slice",
        lambda: Wired(lambda m, x: m.bn(m.conv(x)[:, :, 1:-1]), conv=nn.Conv2d(3, 4, 3), bn=bn2(4)),
        IMAGES,
    )
    yield Pattern(
        "half of the channels",
        lambda: Wired(
            lambda m, x: (lambda a, b: (m.bn(a), F.relu(b)))(*m.conv(x).chunk(2, 1)),
            conv=nn.Conv2d(3, 8, 3),
            bn=bn2(4),
        ),
        IMAGES,
    )
    yield Pattern(
        "a constant per channel between",
        lambda: Wired(
            lambda m, x: m.bn(m.conv(x) * m.scale + m.shift),
            conv=nn.Conv2d(3, 4, 3),
            scale=nn.Parameter(torch.randn(4, 1, 1)),
            shift=nn.Buffer(torch.randn(1, 4, 1, 1)),
            bn=bn2(4),
        ),
        IMAGES,
    )
    yield Pattern("activation between", lambda: seq(nn.Conv2d(3, 4, 3), nn.GELU(), bn2(4)), IMAGES, stays=1)
    yield Pattern(
        "recurrent",
        lambda: Wired(
            lambda m, x: m.bn(m.gru(x)[0].transpose(1, 2)), gru=nn.GRU(6, 5, batch_first=True), bn=bn1(5)
        ),
        ((2, 7, 6), (3, 7, 6)),
        stays=1,
    )


def _ways_of_writing() -> Iterator[Pattern]:
    yield Pattern(
        "nested Sequentials",
        lambda: seq(
            seq(seq(nn.Conv2d(3, 4, 3)), seq(bn2(4), nn.ReLU())), seq(seq(nn.Conv2d(4, 4, 1), bn2(4)))
        ),
        IMAGES,
    )
    yield Pattern(
        "ModuleLists in a loop",
        lambda: Wired(
            loop,
            convs=nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)]),
            norms=nn.ModuleList([bn2(4) for _ in range(3)]),
        ),
        MAPS,
    )
    yield Pattern(
        "registered in another order",
        lambda: Wired(
            lambda m, x: m.b(m.second(F.relu(m.a(m.first(x))))),
            first=nn.Conv2d(4, 4, 3),
            b=bn2(4),
            second=nn.Conv2d(4, 4, 3),
            a=bn2(4),
        ),
        MAPS,
    )
    yield Pattern("control flow on data", DependsOnData, MAPS)
    yield Pattern(
        "hook that keeps",
        lambda: Wired(
            lambda m, x: (m.bn(m.conv(x)), m.conv.kept[-1]), conv=keeping(nn.Conv2d(3, 4, 3)), bn=bn2(4)
        ),
        IMAGES,
        stays=1,
    )
    yield Pattern(
        "hook that changes",
        lambda: seq(hooked(nn.Conv2d(3, 4, 3), lambda module, inputs, output: output.clamp(min=0)), bn2(4)),
        IMAGES,
        stays=1,
    )
    yield Pattern(
        "hook on the norm",
        # in PyTorch a hook is given the norm and its input, so they have to stay
        lambda: seq(nn.Conv2d(3, 4, 3), hooked(bn2(4), lambda module, inputs, output: output.clamp(min=0))),
        IMAGES,
        stays=1,
    )
    yield Pattern(
        "results by name",
        lambda: Wired(lambda m, x: {"out": m.bn(m.conv(x)), "in": x + 1}, conv=nn.Conv2d(3, 4, 3), bn=bn2(4)),
        IMAGES,
    )
    yield Pattern(
        "residual block",
        lambda: Wired(
            lambda m, x: F.relu(m.b(m.second(F.relu(m.a(m.first(x))))) + m.c(m.skip(x))),
            first=nn.Conv2d(3, 4, 3, padding=1, bias=False),
            a=bn2(4),
            second=nn.Conv2d(4, 4, 3, padding=1, bias=False),
            b=bn2(4),
            skip=nn.Conv2d(3, 4, 1, bias=False),
            c=bn2(4),
        ),
        IMAGES,
    )
    yield Pattern(
        "channels_last", lambda: seq(nn.Conv2d(3, 4, 3), bn2(4)).to(memory_format=torch.channels_last), IMAGES
    )


def _types() -> Iterator[Pattern]:
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield Pattern(
            name,
            lambda dtype=dtype: seq(nn.Conv2d(3, 4, 3), bn2(4)).to(dtype),  # type: ignore[misc]
            IMAGES,
            dtype=dtype,
        )
    yield Pattern(
        "float16 with norm in float32",
        lambda: Wired(lambda m, x: m.bn(m.conv(x)), conv=nn.Conv2d(3, 4, 3).half(), bn=bn2(4)),
        IMAGES,
        dtype=torch.float16,
    )
    yield Pattern(
        "cast between",
        lambda: Wired(
            lambda m, x: m.bn(m.conv(x).to(m.bn.weight.dtype)), conv=nn.Conv2d(3, 4, 3).half(), bn=bn2(4)
        ),
        IMAGES,
        stays=1,  # the sums would be rounded to float16
        dtype=torch.float16,
    )


PATTERNS: Sequence[Pattern] = (
    *_after_convolutions(),
    *_after_linear(),
    *_used_more_than_once(),
    *_weights_that_are_computed(),
    *_kinds_of_norms(),
    *_before_a_layer(),
    *_at_a_distance(),
    *_ways_of_writing(),
    *_types(),
)
