"""Modules that are not what a graph of their calls says: folded rightly, or left alone.

Each case is a module and the calls that tell; a right result is within rounding of the original, in float64.
"""

from __future__ import annotations

import functools
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_pytorch_fold import IMAGE, data, norms, trained
from torch import nn

import bnfold
from bnfold.pytorch.fold import fold_module
from bnfold.report import Reason

X = data(*IMAGE)


class Pair(nn.Module):
    """A convolution and a norm, to be used in ways of their own."""

    def __init__(self, **more: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        for name, part in more.items():
            setattr(self, name, part)

    def forward(self, x: Any) -> Any:
        return self.norm(self.conv(x))


class ByClass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))

    def forward(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
            if isinstance(part, nn.BatchNorm2d):
                x = F.relu(x)
        return x


class ByBias(Pair):
    def __init__(self) -> None:
        super().__init__(conv=nn.Conv2d(3, 3, 1, bias=False))

    def forward(self, x: Any) -> Any:
        y = super().forward(x)
        return y + 5 if self.conv.bias is None else y


class ByStatistics(Pair):
    def forward(self, x: Any) -> Any:
        return super().forward(x) + self.norm.running_mean.view(1, -1, 1, 1) * self.norm.num_features


class Penalized(Pair):
    def forward(self, x: Any) -> Any:
        return super().forward(x) + sum(p.square().sum() for p in self.parameters())


class Listed(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.order = [self.conv, self.norm]

    def forward(self, x: Any) -> Any:
        for part in self.order:
            x = part(x)
        return x


class ListedTwice(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.others = [self.conv]

    def forward(self, x: Any) -> Any:
        return x if x.sum() > 1e9 else self.norm(self.conv(x)) + self.others[0](x)


class ByArgument(Pair):
    def forward(self, x: Any, skip: Any) -> Any:  # type: ignore[override]
        y = self.conv(x)
        return y if skip is None else self.norm(y) + skip


class ByKind(Pair):
    def forward(self, x: Any) -> Any:
        return self.conv(self.norm(x)) if isinstance(x, torch.Tensor) else self.norm(x[0])


class ByAttribute(Pair):
    def forward(self, x: Any) -> Any:
        return super().forward(x.tensors) if hasattr(x, "tensors") else self.conv(x)


class Regardless(Pair):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        try:
            if x.max() > 1:
                y = y / 255
        except Exception:
            return self.norm(y)
        return y


class Counting(Pair):
    count = 0

    def forward(self, x: Any) -> Any:
        self.count += 1
        y = self.conv(x)
        return self.norm(y) if self.count % 2 else y


class Remembering(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.history: list[torch.Tensor] = []

    def forward(self, x: Any) -> Any:
        y = super().forward(x)
        self.history.append(y.mean())
        return y + sum(self.history)


class CountingInABuffer(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Any) -> Any:
        self.count += 1
        return super().forward(x) + self.count


class Drawing(Pair):
    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return y if torch.rand(1) > 0.5 else self.norm(y)


class ByGradients(Pair):
    def forward(self, x: Any) -> Any:
        return self.conv(x) if torch.is_grad_enabled() else super().forward(x)


class Between(Pair):
    """Something happens to the convolution's result after the norm has read it."""

    def __init__(self, happens: Callable[[Any, Any], Any], **more: nn.Module) -> None:
        super().__init__(last=nn.Conv2d(3, 3, 1), **more)
        self.happens = [happens]

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        z = self.norm(y)
        happened = self.happens[0](self, y)
        return self.last(z) + happened


class Clamping(nn.Module):
    def forward(self, x: Any) -> Any:
        if x.sum() > -1e9:
            x.clamp_(0, 1)
        return x.mean()


@torch.fx.wrap  # type: ignore[untyped-decorator]  # at module level, as it has to be
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2.0)


def assigned(m: Any, y: Any) -> Any:
    y.data = y.data * 2
    return y


def hooked_block() -> nn.Module:
    block = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1))
    block.register_forward_hook(lambda m, i, o: None)
    return Between(lambda m, y: m.block(y), block=block)


class TakenApart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.block.register_forward_hook(lambda m, i, o: None)

    def forward(self, x: Any) -> Any:
        return self.block(x) + self.block[0](x)


class CalledTwice(nn.BatchNorm2d):
    def __call__(self, x: Any) -> Any:
        return 2 * super().__call__(x)


class CalledInside(nn.BatchNorm2d):
    def _call_impl(self, x: Any) -> Any:
        return 2 * super()._call_impl(x)


class RootCalled(Pair):
    def __call__(self, x: Any) -> Any:
        return 2 * super().__call__(x)

    def forward(self, x: Any) -> Any:
        return self.conv(super().forward(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Any) -> Any:
        return x if x.sum() > 1e9 else self.block(x) + self.run(x)

    def run(self, x: Any) -> Any:
        return 0.0


class Dispatching(Block):
    def __init__(self) -> None:
        super().__init__()
        self.run = self.fast  # type: ignore[method-assign]

    def fast(self, x: Any) -> Any:
        return self.block[0](x)


class Cached(Block):
    @functools.cached_property
    def kernel(self) -> Any:
        return self.block[0].weight * 2

    def run(self, x: Any) -> Any:
        return F.conv2d(x, self.kernel.to(x.dtype))


def adding_the_raw(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(self: Any, x: Any) -> Any:
        return function(self, x) + self.block[0](x)

    return wrapper


class Decorated(Block):
    @adding_the_raw
    def run(self, x: Any) -> Any:
        return 0.0


class Itemized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(2))

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = x if x.sum() > 1e9 else block(x) + block[0](x)
        return x


class Holder(nn.Module):
    def __init__(self, held: nn.Module) -> None:
        super().__init__()
        self.held = [held]

    def forward(self, x: Any) -> Any:
        return F.conv_transpose2d(x, self.held[0].conv.weight)


class HeldElsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Pair()
        self.head = Holder(self.encoder)

    def forward(self, x: Any) -> Any:
        return x if x.sum() > 1e9 else self.head(self.encoder(x))


class Asked(nn.Module):
    class Inner(Pair):
        scale = None

        def __init__(self) -> None:
            super().__init__()
            self.scale = 2.0

        def forward(self, x: Any) -> Any:
            return self.conv(super().forward(x))

    def __init__(self) -> None:
        super().__init__()
        self.inner = self.Inner()

    def forward(self, x: Any) -> Any:
        return x if x.sum() > 1e9 else self.inner(x) * self.inner.scale


class Exchanged(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Any) -> Any:
        return torch.func.functional_call(self.net, {"0.weight": self.net[0].weight * 2}, x)


class Graph(nn.Module):
    """A product with a matrix for all samples."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(nodes)
        self.register_buffer("adjacency", data(nodes, nodes))

    def forward(self, x: Any) -> Any:
        return self.norm(self.linear(self.adjacency @ x))


def replaced() -> nn.Module:
    module = Pair()
    module.forward = module.conv.forward  # type: ignore[method-assign]
    return module


@dataclass(frozen=True)
class Trap:
    """A module, and the arguments of the calls that tell."""

    make: Callable[[], nn.Module]
    calls: tuple[tuple[Any, ...], ...] = ((X,), (X,))

    def __str__(self) -> str:
        return getattr(self.make, "__name__", "module")


LINES = data(2, 4, 9)
ROWS = data(8, 8)
TRAPS = [
    *map(Trap, (replaced, ByClass, ByBias, ByStatistics, Penalized, Listed, ListedTwice)),
    Trap(ByArgument, ((X, X), (X, None))),
    Trap(ByKind, (([X],), (X,))),
    *map(Trap, (ByAttribute, Regardless, Counting, Remembering, CountingInABuffer)),
    Trap(ByGradients),
    Trap(hooked_block),
    Trap(lambda: Between(lambda m, y: m.inner(y), inner=Clamping())),
    Trap(lambda: Between(lambda m, y: torch.mul(y + 0, 2.0, out=y))),
    Trap(lambda: Between(lambda m, y: torch.ops.aten.mul_.Tensor(y, 2.0))),
    Trap(lambda: Between(lambda m, y: doubled(y))),
    Trap(lambda: Between(assigned)),
    Trap(TakenApart),
    Trap(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), CalledTwice(3))),
    Trap(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), CalledInside(3))),
    *map(Trap, (RootCalled, Itemized, Dispatching, Cached, Decorated, HeldElsewhere, Asked, Exchanged)),
    Trap(lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.MaxPool2d(3, 1, 1), nn.BatchNorm1d(4)), ((LINES,),)),
    Trap(lambda: nn.Sequential(nn.Conv1d(4, 8, 1), nn.MaxPool2d((2, 1)), nn.BatchNorm1d(4)), ((LINES,),)),
    Trap(lambda: nn.Sequential(nn.Linear(8, 8), nn.MaxPool1d(3, 1, 1), nn.BatchNorm1d(8)), ((ROWS,),)),
    Trap(lambda: nn.Sequential(nn.Linear(8, 8), nn.AvgPool1d(2), nn.BatchNorm1d(4)), ((ROWS,),)),
    Trap(
        lambda: nn.Sequential(nn.Linear(8, 8), nn.InstanceNorm1d(8, affine=True), nn.BatchNorm1d(8)),
        ((ROWS,),),
    ),
    Trap(lambda: Graph(6), ((data(2, 6, 4),),)),
    Trap(lambda: Graph(5), ((data(2, 5, 4),),)),
]


def wide(value: Any) -> Any:
    if isinstance(value, list):
        return [wide(item) for item in value]
    return value.double() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("trap", TRAPS, ids=str)
def test_no_trap_is_stepped_into(trap: Trap, inplace: bool) -> None:
    original = trained(trap.make())
    folded, _ = fold_module(trained(trap.make()) if inplace else original, inplace=inplace)
    if inplace:  # two of the same make differ in their random weights
        fresh = trained(trap.make())
        fresh.load_state_dict(original.state_dict())
        folded, _ = fold_module(fresh, inplace=True)
    ours, theirs = original.double(), folded.double()
    for call in trap.calls:
        with torch.no_grad():
            expected = ours(*map(wide, call))
            try:
                found = theirs(*map(wide, call))
            except TypeError:  # a graph for another kind of argument
                assert isinstance(folded, torch.fx.GraphModule)
                continue
        # the rounding of float32 weights; a wrong fold is off by O(1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_random_branches_are_not_decided_once() -> None:
    module = trained(Drawing())
    folded, _ = fold_module(module)
    for seed in range(8):
        torch.manual_seed(seed)
        expected = module(X)
        torch.manual_seed(seed)
        torch.testing.assert_close(folded(X), expected, rtol=1e-4, atol=1e-4)  # float32, before and after


def _legacy() -> Any:
    return np.random.get_state(legacy=False)["state"]["key"].tolist()


def test_nobodys_random_numbers_are_used_up() -> None:
    class Everything(Pair):
        def forward(self, x: Any) -> Any:
            return super().forward(x) * torch.rand(()) * random.random() * np.random.rand()

    module = trained(Everything())
    before = torch.random.get_rng_state(), random.getstate(), _legacy()
    fold_module(module, X)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == _legacy()


SEEN: list[Any] = []


def see(module: Any, inputs: Any, output: Any) -> None:
    SEEN.append(output)


def test_hooks_are_not_run_without_need() -> None:
    module = trained(Pair())
    module.conv.register_forward_hook(see)
    fold_module(module, X)
    assert not SEEN


def test_contexts_are_not_lost() -> None:
    class Cut(Pair):
        def forward(self, x: Any) -> Any:
            with torch.no_grad():
                y = super().forward(x)
            return self.conv(y)

    folded, _ = fold_module(trained(Cut()))
    x = X.clone().requires_grad_()
    assert torch.autograd.grad(folded(x).sum(), x, allow_unused=True) == (None,)


class Again(Pair):
    def forward(self, x: Any) -> Any:
        return self.conv(self.norm(self.conv(x)))


def test_a_rewritten_module_can_be_stored() -> None:
    module = trained(Again())
    folded, _ = fold_module(module)
    assert isinstance(folded, torch.fx.GraphModule)
    stored = pickle.dumps(folded)
    assert b"bnfold" not in stored
    torch.testing.assert_close(pickle.loads(stored)(X), folded(X), rtol=0.0, atol=0.0)


def test_hooks_for_all_modules() -> None:
    handle = nn.modules.module.register_module_forward_hook(lambda m, i, o: None)
    try:
        with pytest.raises(bnfold.InputError, match="hooks for all modules are registered"):
            fold_module(trained(Pair()))
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pair().to("meta"), "has no numbers"),
        (lambda: Pair(norm=nn.LazyBatchNorm2d(affine=False)), "is not initialized"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_what_has_no_numbers(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(bnfold.InputError, match=message):
        fold_module(make().eval())


def test_a_module_that_cannot_be_changed_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from bnfold.pytorch import surgery

    module = trained(Pair())
    state, parts, substitute = module.state_dict(), dict(module.named_modules()), surgery.substitute

    def refuses(root: nn.Module, *rest: nn.Module) -> None:
        if root is module:
            raise AttributeError("locked")
        substitute(root, *rest)

    monkeypatch.setattr(surgery, "substitute", refuses)
    with pytest.raises(bnfold.InputError, match="cannot be changed: AttributeError: locked; it is as it was"):
        fold_module(module, inplace=True)
    assert dict(module.named_modules()) == parts
    assert list(module.state_dict()) == list(state)
    assert all(value.data_ptr() == state[name].data_ptr() for name, value in module.state_dict().items())


def test_scripted_parts_are_left_whole() -> None:
    class Scripted(Pair):
        def forward(self, x: Any) -> Any:
            return self.inner(super().forward(x))

    with pytest.warns(DeprecationWarning):  # as torch calls it
        inner = torch.jit.script(nn.Sequential(nn.ReLU()))
    module = trained(Scripted(inner=inner))
    folded, report = fold_module(module)
    assert report.after.batchnorms == 0
    torch.testing.assert_close(folded(X), module(X), rtol=1e-4, atol=1e-4)


def test_tied_statistics() -> None:
    module = trained(
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    )
    module[3].running_mean = module[1].running_mean
    folded, _ = fold_module(module, X)
    assert norms(folded) == 0


def test_a_deep_net_with_changes_in_place() -> None:
    class Residual(Pair):
        def forward(self, x: Any) -> Any:
            y = super().forward(x)
            y += x
            return F.relu(y, inplace=True)

    module = trained(nn.Sequential(nn.Conv2d(3, 3, 1), *[Residual() for _ in range(250)]))
    _, report = fold_module(module)
    assert report.after.batchnorms == 0


def test_values_that_are_used_again_and_again() -> None:
    class Doubling(Pair):
        def forward(self, x: Any) -> Any:
            w = self.conv.weight
            for _ in range(40):
                w = w * 0.5 + w * 0.5
            y = self.norm(F.conv2d(x, w))
            for _ in range(40):
                y = torch.maximum(y, torch.tanh(y))
            return F.relu(y, inplace=True)

    _, report = fold_module(trained(Doubling()))
    assert report.after.batchnorms == 0


def test_norms_are_counted_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.SiLU(), nn.BatchNorm2d(3))
            self.head = nn.Sequential(nn.SiLU(), nn.BatchNorm2d(3), nn.SiLU())

        def forward(self, x: Any) -> Any:
            return x if x.sum() > 1e9 else self.head(self.stem(x))

    _, report = fold_module(trained(Twice()))
    assert report.before.batchnorms == 2
    assert len(report.decisions) == 2


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what torch.compile imports is deprecated by torch
def test_inside_of_what_is_not_looked_into(wrap: Any) -> None:
    _, report = fold_module(trained(nn.Sequential(wrap(Pair()), nn.ReLU())))
    (decision,) = report.decisions
    assert decision.reason is Reason.UNTRACED
    assert "inside '0'" in decision.detail


def test_a_norm_that_does_more_says_so() -> None:
    _, report = fold_module(trained(nn.Sequential(nn.Conv2d(3, 3, 1), CalledInside(3))))
    (decision,) = report.decisions
    assert decision.reason is Reason.IN_CODE
    assert "does more than torch's own" in decision.detail
