"""Modules that are compared with modules and with ONNX models, as a test does it."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import bnfold
from bnfold import InputError, Verdict
from bnfold.testing import UndecidedError, assert_equivalent

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two outputs; one of them is no tensor of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(torch.relu(self.bn(self.conv(x))).mean((2, 3)))
        return {"logits": logits, "best": logits.argmax(1)}


class Returns(nn.Module):
    """Whatever a function makes of its input."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(x)


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.bn.running_mean.normal_()
        net.bn.running_var.uniform_(0.5, 2)
        net.bn.weight.uniform_(0.5, 2)
    return net


@pytest.fixture(scope="module")
def exported(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    bnfold.export(copy.deepcopy(net), path, inputs=["x:float32[N,3,H,W]"])
    return path


@pytest.fixture(scope="module")
def wrong(net: Net) -> Net:
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.head.bias[3] += 1e-3
    return other


def said(*models: Any, **how: Any) -> str:
    with pytest.raises(AssertionError) as error:
        assert_equivalent(*models, **how)
    return str(error.value)


def test_a_folded_module(net: Net, wrong: Net) -> None:
    folded, _ = bnfold.fold_module(copy.deepcopy(net).eval(), X)
    report = assert_equivalent(net, folded, inputs=X)
    assert report.verdict is Verdict.PASS
    logits, best = report.algebra.outputs
    assert logits.check is not None and 0 < logits.check.ratio < 2 and logits.metrics is not None
    assert best.check is not None and best.check.error == 0
    message = said(wrong, folded, inputs=(X,))
    assert message.startswith("the two models are not equivalent\n")
    assert "Worst output: 'logits': " in message and "times its rounding noise" in message
    assert "Greatest absolute difference: 0.001" in message
    assert "Candidate: Net\n" in message


@pytest.mark.parametrize("reverse", [False, True])
def test_an_exported_module_either_way(reverse: bool, net: Net, wrong: Net, exported: Path) -> None:
    def pair(module: Net) -> tuple[Any, Any]:
        return (exported, module) if reverse else (module, exported)

    report = assert_equivalent(*pair(net))
    assert len(report.algebra.feeds) > 2 and report.algebra.draws
    assert "'logits' (Gemm 'head') differs by" in said(*pair(wrong))
    assert_equivalent(*pair(net), inputs=X)
    assert_equivalent(*pair(net), inputs=[{"x": X}, {"x": X[:1].numpy()}])
    assert_equivalent(*pair(wrong), atol=1e-2)
    assert "beyond atol 1e-05" in said(*pair(wrong), inputs=(X,), atol=1e-5)


def test_the_module_is_left_as_it_was(net: Net, exported: Path) -> None:
    """Its mode, its numbers, what its hooks keep and everybody's random numbers."""
    net.train()
    calls: list[int] = []
    hook = net.bn.register_forward_hook(lambda *_: calls.append(1))
    before, state = copy.deepcopy(net.state_dict()), (torch.get_rng_state(), np.random.get_state())
    assert_equivalent(net, net, inputs=X)
    assert_equivalent(net, exported)
    hook.remove()
    assert net.training and net.bn.training and not calls
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert torch.equal(state[0], torch.get_rng_state())
    assert str(state[1]) == str(np.random.get_state())


def doubled(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output * 2


class Scales:
    """A hook with a state of its own."""

    def __init__(self) -> None:
        self.factor = 2.0

    def __call__(self, *given: Any) -> Any:
        return given[-1] * self.factor

    def growing(self, *given: Any) -> Any:
        self.factor += 0.5
        return given[-1] * self.factor


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "function": lambda m: m.register_forward_hook(doubled),
    "closure": lambda m: m.register_forward_hook(lambda _, i, o: o * sum(p.numel() for p in m.parameters())),
    "partial": lambda m: m.register_forward_hook(partial(lambda k, _, i, o: o * k, 3)),
    "object": lambda m: m.register_forward_hook(Scales()),
    "method": lambda m: m.register_forward_hook(Scales().growing),
    "named": lambda m: m.register_forward_hook(lambda _, i, k, o: o * 2, with_kwargs=True),
    "before": lambda m: m.register_forward_pre_hook(lambda _, i: (i[0] * 2,)),
    "decorated": lambda m: m.register_forward_hook(torch.no_grad()(doubled)),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=list(HOOKS))
@pytest.mark.parametrize("root", [False, True])
def test_hooks_are_part_of_what_a_module_computes(register: Any, root: bool) -> None:
    plain = nn.Sequential(nn.Linear(8, 8))
    hooked = copy.deepcopy(plain)
    register(hooked if root else hooked[0])
    x = torch.randn(2, 8)
    assert assert_equivalent(hooked, hooked, inputs=x).verdict is Verdict.PASS
    for pair in ((plain, hooked), (hooked, plain)):
        assert "times its rounding noise" in said(*pair, inputs=x)


def test_a_hook_that_keeps_the_original_works_on_the_copy() -> None:
    """What it closes over is copied along, the parts of the module among it."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    seen = [net(torch.randn(1, 8))]  # with a history

    def note(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output)
        net[1].bias.data += 1
        return output * len(seen)

    net[0].register_forward_hook(note)
    before = copy.deepcopy(net.state_dict())
    assert assert_equivalent(net, net, inputs=torch.randn(2, 8)).verdict is Verdict.PASS
    assert len(seen) == 1
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    other = copy.deepcopy(net)  # whose hook is that of `net`, which shifts nothing here
    assert "times its rounding noise" in said(net, other, inputs=torch.randn(2, 8))


GLOBAL = nn.Linear(8, 8)
LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        (lambda m, i, o: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda m, i, o: o + sum(GLOBAL.bias for _ in range(1)), "they use 'GLOBAL', which is a part of it"),
        (lambda m, i, o, lock=LOCK: o, "they keep a .*: cannot pickle"),
    ],
)
def test_a_hook_that_cannot_be_run_on_a_copy_is_undecided(hook: Any, told: str) -> None:
    plain = copy.deepcopy(GLOBAL)
    handle = GLOBAL.register_forward_hook(hook)
    try:
        for pair, role in (((GLOBAL, plain), "reference"), ((plain, GLOBAL), "candidate")):
            why = rf"the {role} \(Linear\) has hooks that cannot be run on a copy: {told}"
            with pytest.raises(UndecidedError, match=why):
                assert_equivalent(*pair, inputs=torch.randn(2, 8))
    finally:
        handle.remove()


def test_a_module_with_a_hook_and_onnx_models(net: Net, exported: Path) -> None:
    hooked = copy.deepcopy(net)
    hooked.conv.register_forward_hook(doubled)
    assert "times its rounding noise" in said(hooked, exported)
    assert "times its rounding noise" in said(exported, hooked)


class Position(nn.Module):
    """As decoders count it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.table = nn.Linear(8, 8), nn.Embedding(64, 8)
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layer(x) + self.table(self.position)
        self.position += 1
        return y


class Count(Position):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return self.layer(x) * self.calls


class Cache(Position):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.kept = [*getattr(self, "kept", []), self.layer(x)]
        return torch.stack(self.kept).sum(0)


class Stream(Position):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(2, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x) + 0.5 * self.last
        self.last.copy_(y)
        return y


@pytest.mark.parametrize("kind", [Position, Count, Cache, Stream])
def test_every_run_begins_in_the_state_that_the_module_is_in(kind: type[Position]) -> None:
    one, x = kind(), torch.randn(2, 8)
    other = copy.deepcopy(one)
    assert assert_equivalent(one, other, inputs=x).verdict is Verdict.PASS
    assert not one.position and not hasattr(one, "calls") and not hasattr(one, "kept")
    with torch.no_grad():
        other.layer.weight *= 1.01
    assert "times its rounding noise" in said(one, other, inputs=x)


GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.rand(8, generator=GENERATOR),
        lambda: os.urandom(1)[0] / 256,
        partial(next, iter(range(999))),
    ],
)
def test_a_module_that_is_no_function_is_undecided(draw: Any) -> None:
    layer = nn.Linear(8, 8)
    one = nn.Sequential(layer, Returns(lambda x: x * (1 + draw())))
    with pytest.raises(
        UndecidedError, match=r"the reference \(Sequential\) gives other results for the same"
    ):
        assert_equivalent(one, copy.deepcopy(one), inputs=torch.randn(2, 8))


def test_a_given_input_that_the_reference_does_not_take(tmp_path: Path) -> None:
    def picky(x: torch.Tensor) -> torch.Tensor:
        if len(x) == 3:
            raise ValueError("not three")
        return x

    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y) { y = Identity(x) }'
    )
    assert assert_equivalent(Returns(picky), model).verdict is Verdict.PASS
    feeds = [{"x": torch.randn(n, 2)} for n in (2, 3)]
    for given, number in ((feeds, 1), (feeds[::-1], 0)):
        why = rf"does not take the inputs: inputs/{number}.npz, N=3: ValueError: not three"
        with pytest.raises(InputError, match=why):
            assert_equivalent(Returns(picky), model, inputs=given)


def test_outputs_go_by_name_where_they_have_the_same() -> None:
    def net(make: Any) -> nn.Module:
        return Returns(make)

    right, swapped = net(lambda x: {"b": x * 2, "a": x}), net(lambda x: {"b": x, "a": x * 2})
    assert assert_equivalent(right, net(lambda x: {"a": x, "b": x * 2}), inputs=X).verdict is Verdict.PASS
    assert said(right, swapped, inputs=X)
    head = '<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => '
    text = head + "(float[N,2] {0}, float[N,2] {1}) {{ {0} = Identity(x) {1} = Add(x, x) }}"
    model, numbered = (
        onnx.parser.parse_model(text.format(*names)) for names in ("ab", ("output_1", "output_0"))
    )
    for pair in ((right, model), (model, right)):
        assert assert_equivalent(*pair).verdict is Verdict.PASS
    assert said(swapped, model) and said(model, swapped)
    # a tuple has no names
    assert assert_equivalent(net(lambda x: (x, x * 2)), numbered).verdict is Verdict.PASS


def test_named_arguments() -> None:
    layer = nn.Bilinear(3, 4, 5)
    given = {"input1": torch.ones(2, 3), "input2": torch.ones(2, 4)}
    assert assert_equivalent(layer, copy.deepcopy(layer), inputs=given).verdict is Verdict.PASS


def test_inputs_by_name_or_place(tmp_path: Path) -> None:
    """The ONNX model has its inputs in another order than the module has its parameters."""
    text = (
        "(float[N,4] input2, float[N,3] input1) => (float[N,2] y) { a = Neg(input1)  b = ReduceSum(input2) "
    )
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g {text} c = Add(a, b)  y = Slice(c, s, e, l) }}'
    )
    for name, number in (("s", 0), ("e", 2), ("l", 1)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([number]), name))

    class Same(nn.Module):
        def forward(self, input1: torch.Tensor, input2: torch.Tensor) -> torch.Tensor:
            return (-input1 + input2.sum())[:, :2]

    assert assert_equivalent(Same(), model).verdict is Verdict.PASS


def test_half_precision_and_casts_are_exact_in_double(net: Net) -> None:
    """What a module casts on its way is no rounding here."""
    first = nn.Linear(4, 4).half()
    half = nn.Sequential(first, Returns(lambda x: x.float() * 2))
    other = nn.Sequential(copy.deepcopy(first), Returns(lambda x: x.float() + x.float()))
    report = assert_equivalent(half, other, inputs=torch.randn(3, 4).half())
    assert report.tolerance == 4
    assert report.algebra.outputs[0].check is not None


def test_a_module_that_insists_on_its_types(net: Net) -> None:
    def picky(x: torch.Tensor) -> torch.Tensor:
        assert x.dtype is torch.float32
        return x

    layer = nn.Linear(8, 8)
    moved = copy.deepcopy(layer)
    one, other = nn.Sequential(Returns(picky), layer), nn.Sequential(Returns(picky), moved)
    report = assert_equivalent(one, other, inputs=torch.randn(3, 8))
    assert report.tolerance == 64
    assert report.algebra.feeds == ("the inputs that were given, the module in its own types",)
    with torch.no_grad():
        moved.bias += 1e-3
    assert said(one, other, inputs=torch.randn(3, 8))


@pytest.mark.parametrize(
    ("one", "other", "told"),
    [
        (lambda x: x, lambda x: (x, x), "has the outputs 'output'; the candidate (Returns) has 'output_0'"),
        (lambda x: {"a": x}, lambda x: {"b": x}, "has the outputs 'a'; the candidate (Returns) has 'b'"),
        (lambda x: x, lambda x: x[:1], "its shape is"),
        (lambda x: x > 0, lambda x: x > 0.5, "'output' differs"),
        (lambda x: (x, 3), lambda x: (x, 4), "'output_1' differs"),
        (
            lambda x: x,
            lambda x: x.half(),
            "output 'output' of the candidate (Returns) is float16 instead of fl",
        ),
        (
            lambda x: (x, 3.0),
            lambda x: (x, torch.tensor(3.0)),
            "'output_1' of the candidate (Returns) is float32",
        ),
        (lambda x: x, lambda x: x / 0, "NaN or infinity"),
        (lambda x: x.to(torch.complex64), lambda x: x + 1j, "'output' differs"),
        (lambda x: x, lambda x: 1 / 0, "cannot be run where the reference (Returns) can: ZeroDivisionError"),
    ],
)
def test_other_functions(one: Any, other: Any, told: str) -> None:
    assert assert_equivalent(Returns(one), Returns(one), inputs=X).verdict is Verdict.PASS
    assert told in said(Returns(one), Returns(other), inputs=X)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: None,
        lambda x: object(),
        lambda x: (x, object()),
        lambda x: x * 0,
        lambda x: x[:0],
        lambda x: x.to_sparse(),
    ],
)
def test_what_compares_nothing_is_undecided(make: Any) -> None:
    with pytest.raises(UndecidedError):
        assert_equivalent(Returns(make), Returns(make), inputs=X)


class Stateless(nn.Linear):
    def state_dict(self, *given: Any, **named: Any) -> Any:
        raise RuntimeError("it has none")


def test_a_module_without_a_state_dict() -> None:
    layer = Stateless(8, 8)
    with pytest.raises(
        InputError, match=r"the reference \(Stateless\) cannot be copied: RuntimeError: it has none"
    ):
        assert_equivalent(layer, layer, inputs=torch.randn(2, 8))


def test_figures_are_those_of_the_worst_input() -> None:
    table = nn.Embedding(4, 3)
    other = copy.deepcopy(table)
    with torch.no_grad():
        other.weight[3] += 0.5
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (int64[N] i) => (float[N,3] y) { y = Gather(t, i) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(table.weight.detach().numpy(), "t"))
    message = said(model, other, inputs=[{"i": np.array(rows)} for rows in ([0, 1], [3])])
    assert "Greatest absolute difference: 0.5\n" in message


@pytest.mark.parametrize("given", ["inputs.npz", Path("inputs.npz"), np.ones((2, 3, 8, 8), np.float32)])
def test_what_two_modules_are_not_called_with(net: Net, given: Any) -> None:
    with pytest.raises(InputError, match=r"inputs: two modules are called with tensors.*, not a \w+"):
        assert_equivalent(net, net, inputs=given)


def test_what_cannot_be_called(net: Net, exported: Path) -> None:
    with pytest.raises(InputError, match="two modules need inputs="):
        assert_equivalent(net, net)
    with pytest.raises(InputError, match=r"the reference \(Net\) does not take the inputs: RuntimeError"):
        assert_equivalent(net, net, inputs=X[:, :1])
    with pytest.raises(InputError, match=r"the candidate \(LazyLinear\) cannot be copied: ValueError"):
        assert_equivalent(nn.Linear(8, 5), nn.LazyLinear(5), inputs=X)
    with pytest.raises(InputError, match="axis 1 has to be 3"):
        assert_equivalent(net, exported, inputs=X[:, :1])
    with pytest.raises(InputError, match="no such file"):
        assert_equivalent(net, exported.with_name("other.onnx"))
