"""What leads from the copy back to the module is refused, and the module is as it was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from bnfold import InputError, NotCalibrated

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  # torch comes first

from bnfold.pytorch.recalibrate import recalibrate_module  # noqa: E402

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * 2 + 1


def net() -> Any:
    """In training mode, where whatever is run by mistake changes statistics."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 6), nn.BatchNorm1d(6))


def state(module: Any) -> list[Any]:
    numbers = [value.tolist() for value in (*module.parameters(), *module.buffers())]
    return [numbers, [(p.training, dict(p._forward_pre_hooks)) for p in module.modules()]]


class Clamped(nn.Linear):
    """Keeps its weights small, whenever it runs."""

    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            self.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


@pytest.mark.parametrize(
    ("layer", "data"),
    [(nn.Embedding(20, 6, max_norm=1.0), torch.arange(20)), (Clamped(6, 6), X)],
    ids=["embedding", "clamped"],
)
def test_parameters_that_are_written(layer: Any, data: Any) -> None:
    module = nn.Sequential(layer, nn.BatchNorm1d(6))
    before = state(module)
    with pytest.raises(NotCalibrated):
        recalibrate_module(module, [data], min_samples=1000)
    assert state(module) == before
    weight = layer.weight.detach().clone()
    recalibrate_module(module, [data])
    assert torch.equal(layer.weight, weight)


def test_tied_parameters_stay_tied() -> None:
    """A write into one is seen by the other, as it is in the module itself."""
    module = nn.Sequential(Clamped(6, 6), nn.Linear(6, 6), nn.BatchNorm1d(6))
    module[1].weight = module[0].weight
    seen = []

    class Look(nn.Identity):
        def forward(self, x: Any) -> Any:
            seen.append(x)
            return x

    module.insert(2, Look())
    recalibrate_module(module, [X])
    with torch.no_grad():
        expected = module[1](module[0](X))
    assert torch.equal(seen[0][:32], expected[:32]) or torch.allclose(seen[0][:32], expected[:32], rtol=1e-6)


def closure(module: Any) -> None:
    forward = module.forward
    module.forward = lambda x: forward(x)


def function(module: Any) -> None:
    linear, norm = module[0], module[1]
    module[2] = Called(lambda x: norm(linear(x)))


def of_a_part(module: Any) -> None:
    """Nothing else is called but the function."""
    forward = module[1].forward
    module[1].forward = lambda x: forward(x)


def caught(module: Any) -> None:
    def quietly(x: Any) -> Any:
        try:
            return part(x)
        except Exception:
            return x

    part = nn.BatchNorm1d(6)
    module.add_module("extra", part)
    module[2] = Called(quietly)


class Called(nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


@pytest.mark.parametrize("refer", [closure, function, of_a_part, caught])
@pytest.mark.parametrize("cache", ["ram", "none"])
def test_functions_that_refer_to_the_module(refer: Callable[[Any], None], cache: Any) -> None:
    module = net()
    refer(module)
    before = state(module)
    with pytest.raises(
        InputError, match=r"^Sequential: its copy (calls|computes with) .* of the module itself"
    ):
        recalibrate_module(module, [X], cache=cache)
    assert state(module) == before and threading.active_count() == 1


def test_a_part_without_tensors() -> None:
    class Counter(nn.Module):
        count = 0

        def forward(self, x: Any) -> Any:
            self.count += 1
            return x

    module, counter = net(), Counter()
    module.add_module("counter", counter)
    module[2] = Called(lambda x: counter(x))
    with pytest.raises(InputError, match="its copy calls 'counter' of the module itself"):
        recalibrate_module(module, [X])
    assert counter.count == 0


def test_a_call_of_the_module() -> None:
    module = net()
    before = state(module)
    with pytest.raises(InputError, match="or `call`, refers to it"):
        recalibrate_module(module, [X], call=lambda _, batch: module(batch))
    assert state(module) == before
    place = next(module.parameters())
    recalibrate_module(module, [X], call=lambda copy, batch: copy(batch.to(place.device)))


def test_data_of_the_module() -> None:
    """What it computes while the data are read does no harm."""
    module = net().eval()

    class Features:
        def __iter__(self) -> Any:
            with torch.no_grad():
                yield module[0](X)

    recalibrate_module(module, Features())


class Shared(nn.Sequential):
    def __deepcopy__(self, memo: Any) -> Any:
        return self


class Buffers(nn.Module):
    """Is copied over the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(6)

    def __deepcopy__(self, memo: Any) -> Any:
        other = Buffers()
        other.bn.running_mean = self.bn.running_mean
        return other

    def forward(self, x: Any) -> Any:
        return self.bn(x)


@pytest.mark.parametrize(
    ("part", "what"),
    [(lambda: Shared(nn.BatchNorm1d(6), nn.Dropout()), "'0'"), (Buffers, "'0.bn'")],
    ids=["modules", "memory"],
)
def test_copies_that_are_none(part: Any, what: str) -> None:
    module = nn.Sequential(part(), *net())
    before = state(module)
    with pytest.raises(InputError, match=f"Sequential: a copy of it has {what} in common"):
        recalibrate_module(module, [X])
    assert state(module) == before
