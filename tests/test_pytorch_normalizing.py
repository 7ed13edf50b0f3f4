"""What a class normalizes in a `forward` of its own is what comes in; or it is refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bnfold import InputError

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  # torch comes first

from bnfold.pytorch.recalibrate import recalibrate_module  # noqa: E402

X = torch.randn(40, 6, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7) + 1


class Frozen(nn.Module):
    """The formula, spelt out."""

    def __init__(self, channels: int = 6) -> None:
        super().__init__()
        self.eps = 1e-3
        self.register_buffer("weight", torch.linspace(0.5, 2, channels))
        self.register_buffer("bias", torch.linspace(-1, 1, channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Any) -> Any:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale[:, None] + (self.bias - self.running_mean * scale)[:, None]


class FrozenAct(Frozen):
    def forward(self, x: Any) -> Any:
        return torch.relu_(super().forward(x))


class Act(nn.BatchNorm1d):
    def forward(self, input: Any) -> Any:
        return nn.functional.silu(super().forward(input), inplace=True)


class Flat(nn.BatchNorm1d):
    """(N, C, L) as rows."""

    def forward(self, input: Any) -> Any:
        rows = super().forward(input.transpose(1, 2).reshape(-1, 6))
        return rows.view(len(input), -1, 6).transpose(1, 2)


class Scaled(nn.BatchNorm1d):
    def forward(self, x: Any, scale: Any = 1) -> Any:
        return super().forward(x) * scale


class Wide(nn.BatchNorm1d):
    """Computes in float32."""

    def forward(self, x: Any) -> Any:
        return nn.functional.batch_norm(
            x.float(), self.running_mean.float(), self.running_var.float(), eps=self.eps
        ).to(x.dtype)


class InPlace(nn.BatchNorm1d):
    def forward(self, x: Any) -> Any:
        x.copy_(super().forward(x))
        return x


class Last(nn.BatchNorm1d):
    """Channels come last."""

    def forward(self, x: Any) -> Any:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Rows(nn.BatchNorm1d):
    def forward(self, x: Any) -> Any:
        return super().forward(x.reshape(-1, 6)).view_as(x)


class Fused(Frozen):
    """A convolution as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 1)

    def forward(self, x: Any) -> Any:
        return super().forward(self.conv(x))


class FusedFunction(Fused):
    def forward(self, x: Any) -> Any:
        return nn.functional.batch_norm(self.conv(x), self.running_mean, self.running_var)


class Unused(nn.BatchNorm1d):
    def forward(self, x: Any) -> Any:
        return x


def need_exact(norm: Any, x: Any) -> None:
    values = x.double().movedim(1, -1).reshape(-1, 6).numpy()
    for stored, expected in ((norm.running_mean, values.mean(0)), (norm.running_var, values.var(0))):
        u = torch.finfo(stored.dtype).eps / 2
        # Rounded once to the type; the sums of 240 numbers here are rounded in float64.
        np.testing.assert_allclose(stored.double().numpy(), expected, rtol=u * (1 + 1e-6), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "norm", [Frozen, FrozenAct, *(lambda k=k: k(6) for k in (Act, Flat, Scaled, Wide, InPlace))]
)
@pytest.mark.parametrize("cache", ["ram", "none"])
def test_measured(norm: Any, dtype: Any, cache: Any) -> None:
    net, x = (
        nn.Sequential(nn.Identity(), norm(), nn.Conv1d(6, 6, 1), nn.BatchNorm1d(6)).to(dtype),
        X.to(dtype),
    )
    recalibrate_module(net, [x.clone()], cache=cache)
    need_exact(net[1], x)
    assert "forward" not in vars(net[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [Fused, FusedFunction, *(lambda k=k: k(6) for k in (Last, Rows, Unused))])
@pytest.mark.parametrize("cache", ["ram", "none"])
def test_refused(norm: Any, dtype: Any, cache: Any) -> None:
    net = nn.Sequential(nn.Identity(), norm()).to(dtype)
    before = [b.clone() for b in net.buffers()]
    with pytest.raises(InputError, match=r"^BatchNormalization '1' \(\w+\): does not compute \(input"):
        recalibrate_module(net, [X.to(dtype)], cache=cache)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), before, strict=True))


class By(nn.Module):
    """Calls it by name, in whatever order."""

    def __init__(self, norm: Any, **more: Any) -> None:
        super().__init__()
        self.norm, self.more = norm, more

    def forward(self, x: Any) -> Any:
        return self.norm(**self.more, **{"input" if type(self.norm) is nn.BatchNorm1d else "x": x})


def test_by_name() -> None:
    for norm, more in ((Scaled(6), {"scale": torch.full((1, 6, 6), 3.0)}), (nn.BatchNorm1d(6), {})):
        net = By(norm, **more)
        recalibrate_module(net, [X])
        need_exact(net.norm, X)


def test_no_tensor() -> None:
    class Of(nn.BatchNorm1d):
        def forward(self, x: Any) -> Any:
            return super().forward(x[0])

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = Of(6)

        def forward(self, x: Any) -> Any:
            return self.bn((x, x))

    with pytest.raises(InputError, match="'bn': what comes into it is a tuple, no tensor"):
        recalibrate_module(Pair(), [X])


class TestMemory:
    """Statistics that another tensor sees as well."""

    @staticmethod
    def net() -> Any:
        net = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6))
        net.register_buffer("both", torch.stack([torch.zeros(6), torch.ones(6)]))
        return net

    def test_a_view_of_a_buffer(self) -> None:
        net = self.net()
        net[0].running_mean, net[0].running_var = net.both[0], net.both[1]
        self.refuses(net, "'0': its statistics share memory")

    def test_a_view_as_an_attribute(self) -> None:
        net = self.net()
        net.kept = {"mean": net[2].running_mean.view(6, 1)}
        self.refuses(net, "'2': its statistics share memory")

    def test_a_parameter(self) -> None:
        net = self.net()
        net[1].bias = nn.Parameter(net[0].running_mean)
        self.refuses(net, "'0': its statistics share memory")

    def test_parts_of_each_other(self) -> None:
        net, all_ = self.net(), torch.zeros(9)
        net[0].running_mean, net[2].running_mean = all_[:6], all_[3:]
        self.refuses(net, "'[02]': its statistics share memory")

    def test_mean_and_variance(self) -> None:
        net = self.net()
        net[0].running_var = net[0].running_mean
        self.refuses(net, "'0': its mean and variance are one tensor")

    def test_side_by_side(self) -> None:
        """Parts of one tensor that do not overlap; and the same tensor under another name."""
        net, all_ = self.net(), torch.arange(12.0)
        net[0].running_mean, net[2].running_mean = all_[:6], all_[6:]
        net.same = net[0].running_mean
        recalibrate_module(net, [X[:, 0]])
        need_exact(net[0], X[:, 0])

    @staticmethod
    def refuses(net: Any, match: str) -> None:
        with pytest.raises(InputError, match=match):
            recalibrate_module(net, [X[:, 0]])
