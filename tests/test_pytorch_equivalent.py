"""Modules that are compared with modules and with ONNX models, as a test does it."""

from __future__ import annotations

import copy
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
    """Its mode, its numbers, its hooks and everybody's random numbers."""
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


def test_what_cannot_be_called(net: Net, exported: Path) -> None:
    with pytest.raises(InputError, match="two modules need inputs="):
        assert_equivalent(net, net)
    with pytest.raises(InputError, match=r"the reference \(Net\) does not take the inputs: RuntimeError"):
        assert_equivalent(net, net, inputs=X[:, :1])
    with pytest.raises(InputError, match="axis 1 has to be 3"):
        assert_equivalent(net, exported, inputs=X[:, :1])
    with pytest.raises(InputError, match="no such file"):
        assert_equivalent(net, exported.with_name("other.onnx"))
