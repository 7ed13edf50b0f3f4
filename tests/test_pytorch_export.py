"""PyTorch to ONNX: what is written, that it is what the module computes, that the module stays as it is."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import bnfold
from bnfold import InputError, NotEquivalent, OutputError, Undecided, Verdict, wire

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402  # torch comes first
from torch.nn import functional as F  # noqa: E402

from bnfold.pytorch import export as exporting  # noqa: E402
from bnfold.pytorch import tidy as tidying  # noqa: E402
from bnfold.pytorch.against import OWN_TOLERANCE  # noqa: E402

IMAGE = "x:float32[N,3,H,W]"


class Block(nn.Module):  # type: ignore[misc]  # it is Any here
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()

    def forward(self, x: Any) -> Any:
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):  # type: ignore[misc]  # it is Any here
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.layer1 = nn.Sequential(Block())
        self.head = nn.Linear(4, 5)

    def forward(self, x: Any) -> Any:
        return {"logits": self.head(self.layer1(self.stem(x)).mean((2, 3)))}


class Rest(nn.Module):  # type: ignore[misc]  # it is Any here
    """A module from a function."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def trained(module: Any) -> Any:
    """With numbers as training leaves them, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            part.running_mean.normal_(generator=generator)
            part.running_var.uniform_(0.5, 2.0, generator=generator)
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 1.5, generator=generator)
                nn.init.normal_(part.bias, generator=generator)
    return module.eval()


def exported(module: Any, *inputs: str, **how: Any) -> bnfold.ExportReport:
    """What becomes of it; onnxruntime is asked where a test says so."""
    options: dict[str, Any] = {"dry_run": True, "verify": "fast"} | how
    return bnfold.export(module, inputs=inputs, **options)


def unfolded(module: Any, *inputs: str) -> onnx.ModelProto:
    """The model before the fold."""
    model: onnx.ModelProto = ir.to_proto(exporting.to_onnx(module, inputs=inputs).model)
    return model


def snapshot(module: nn.Module) -> list[Any]:
    """All that a user could see of a module."""
    found: list[Any] = []
    for path, part in module.named_modules():
        hooks = [list(part._forward_hooks.items()), list(part._forward_pre_hooks.items())]
        found.append((path, id(part), part.training, hooks, sorted(vars(part))))
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        bits = tensor.detach().clone().numpy().tobytes()
        facts = tensor.dtype, tensor.requires_grad, tensor.grad, tensor._version, tensor.data_ptr()
        found.append((name, id(tensor), bits, *facts))
    return found


class TestWhatIsWritten:
    def test_a_small_network(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        net = trained(Net())
        report = bnfold.export(net, tmp_path / "net.onnx", inputs=[IMAGE])
        assert report.fold is not None and report.verification is not None and report.module is not None
        assert (report.fold.before.batchnorms, report.fold.after.batchnorms, report.batchnorms) == (2, 0, 0)
        assert report.inputs == ("x: float32[N, 3, H, W]",)
        assert report.outputs == ("logits: float32[N, 5]",)
        assert report.target == str(tmp_path / "net.onnx")
        assert report.module.verdict is report.verification.verdict is Verdict.PASS
        assert report.module.precision == "double"
        runtime = report.verification.runtime
        assert runtime is not None and runtime.verdict is Verdict.PASS
        model = onnx.load(tmp_path / "net.onnx")
        onnx.checker.check_model(model, full_check=True)
        feed = np.random.default_rng(0).standard_normal((3, 3, 8, 9)).astype(np.float32)
        ours: Any
        (ours,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": feed})
        theirs = net(torch.from_numpy(feed))["logits"].detach().numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)  # two float32 runtimes

    def test_names(self) -> None:
        model = unfolded(trained(Net()), IMAGE)
        nodes = {node.name: node.op_type for node in model.graph.node}
        assert nodes["layer1.0.bn1"] == "BatchNormalization" and nodes["stem"] == "Conv"
        assert nodes["layer1.0/Add"] == "Add" and {"layer1.0.relu/Relu", "layer1.0.relu/Relu_1"} <= set(nodes)
        weights = {t.name for t in model.graph.initializer} - {"Constant"}  # the axes of the mean
        state = {k for k in Net().state_dict() if not k.endswith("num_batches_tracked")}
        assert weights == state

    def test_names_of_untouched_weights_survive_the_fold(self, tmp_path: Path) -> None:
        bnfold.export(trained(Net()), tmp_path / "net.onnx", inputs=[IMAGE], verify="none")
        names = {t.name for t in onnx.load(tmp_path / "net.onnx").graph.initializer}
        assert {"stem.weight", "stem.bias", "head.weight", "head.bias"} <= names

    def test_decisions_speak_of_modules(self) -> None:
        report = exported(trained(Net()), IMAGE)
        assert report.fold is not None
        assert [(d.nodes, d.into) for d in report.fold.decisions] == [
            (("layer1.0.bn1",), ("layer1.0.conv1",)),
            (("layer1.0.bn2",), ("layer1.0.conv2",)),
        ]

    def test_nothing_of_the_exporter_and_no_path_of_the_user_is_left(self, tmp_path: Path) -> None:
        for fold in (True, False):
            bnfold.export(
                trained(Net()), tmp_path / "net.onnx", inputs=[IMAGE], fold=fold, verify="none", force=True
            )
            content = (tmp_path / "net.onnx").read_bytes()
            for trace in (b"pkg.torch", b"namespace", b"test_pytorch_export", b".py"):
                assert trace not in content

    def test_an_absent_bias_is_none(self) -> None:
        """torch writes it as an expanded zero, for Conv3d of a wrong shape that onnxruntime rejects."""
        given = "x:float32[N,2,4,4,4]"
        net = Rest(lambda m, x: m.bn(m.conv(x)), conv=nn.Conv3d(2, 3, 2, bias=False), bn=nn.BatchNorm3d(3))
        report, model = exported(trained(net), given, verify="full"), unfolded(net, given)
        assert [node.op_type for node in model.graph.node] == ["Conv", "BatchNormalization"]
        assert len(model.graph.node[0].input) == 2
        assert report.verification is not None and report.verification.runtime is not None
        assert report.verification.runtime.verdict is Verdict.PASS and report.batchnorms == 0

    def test_a_bias_that_is_zero_but_stored_stays(self) -> None:
        net = nn.Conv2d(3, 2, 1)
        nn.init.zeros_(net.bias)
        model = unfolded(net.eval(), "input:float32[N,3,4,4]")
        assert list(model.graph.node[0].input) == ["input", "weight", "bias"]

    def test_chunks_are_a_split(self) -> None:
        def forward(m: Any, x: Any) -> Any:
            first, second = m.conv(x).chunk(2, 1)
            a, b = torch.split(m.conv(x), [1, 5], 1)
            c, d = torch.split(m.conv(x), 4, 1)
            return m.bn(first), second, b, a, d, c

        net = trained(Rest(forward, conv=nn.Conv2d(3, 6, 1), bn=nn.BatchNorm2d(3)))
        report, model = exported(net, IMAGE), unfolded(net, IMAGE)
        types = [node.op_type for node in model.graph.node]
        assert types.count("Split") == 3 and not {"SplitToSequence", "SequenceAt"} & set(types)
        assert report.batchnorms == 0

    def test_numbers_in_the_code_are_constants(self) -> None:
        """torch writes a linspace as a dozen of nodes; rounded once, it is exact."""
        net = Rest(lambda m, x: (x + torch.linspace(-1, 1, 7)).sum((1, 2))).eval()
        model = unfolded(net, "x:float32[N,5,7]")
        assert [n.op_type for n in model.graph.node if n.op_type != "Constant"] == ["Add", "ReduceSum"]
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
        np.testing.assert_array_equal(constants["Constant"], (np.arange(7) / 3 - 1).astype(np.float32))

    def test_numbers_that_depend_on_a_rounding_stay(self) -> None:
        model = unfolded(Rest(lambda m, x: x * torch.full((3,), 0.1).half().float()).eval(), "x:float32[N,3]")
        assert "Cast" in {node.op_type for node in model.graph.node}

    def test_what_is_computed_from_weights_stays(self) -> None:
        net = Rest(lambda m, x: x @ (m.fc.weight * 2).T, fc=nn.Linear(3, 4, bias=False)).eval()
        model = unfolded(net, "x:float32[N,3]")
        assert "fc.weight" in {t.name for t in model.graph.initializer}

    def test_a_weight_with_the_name_of_an_input(self) -> None:
        class Clash(nn.Module):  # type: ignore[misc]  # it is Any here
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(3))

            def forward(self, weight: Any) -> Any:
                return weight * self.weight, self.weight, weight, weight

        net = Clash().eval()
        report, model = exported(net, "weight:float32[N,3]"), unfolded(net, "weight:float32[N,3]")
        assert report.module is not None and report.module.verdict is Verdict.PASS
        assert [v.name for v in model.graph.input] == ["weight"]
        assert [t.name for t in model.graph.initializer] == ["weight_1"]
        assert [v.name for v in model.graph.output] == ["output_0", "output_1", "output_2", "output_3"]

    def test_outputs_are_called_by_their_keys(self) -> None:
        def forward(m: Any, x: Any) -> Any:
            return {"logits": m.fc(x), "more": (x + 1, None, [x.argmax(-1)])}

        report = exported(Rest(forward, fc=nn.Linear(4, 2)).eval(), "x:float32[N,4]")
        assert report.outputs == (
            "logits: float32[N, 2]",
            "more.0: float32[N, 4]",
            "more.2.0: int64[N]",
        )

    def test_several_inputs(self) -> None:
        class Two(nn.Module):  # type: ignore[misc]  # it is Any here
            def __init__(self) -> None:
                super().__init__()
                self.table = nn.Embedding(11, 4)

            def forward(self, ids: Any, mask: Any = None, scale: Any = None) -> Any:
                rows = self.table(ids) * scale
                return rows if mask is None else rows * mask[..., None]

        given = ["scale:float32[]", "ids:int64[N,L]", "mask:bool[N,L]"]
        report = exported(Two().eval(), *given)
        assert report.inputs == ("ids: int64[N, L]", "mask: bool[N, L]", "scale: float32[]")
        assert report.module is not None and report.module.verdict is Verdict.PASS

    @pytest.mark.parametrize("opset", [18, 20, 23])
    def test_opsets(self, opset: int, tmp_path: Path) -> None:
        report = bnfold.export(trained(Net()), tmp_path / "net.onnx", inputs=[IMAGE], opset=opset)
        assert onnx.load(tmp_path / "net.onnx").opset_import[0].version == report.opset == opset

    @pytest.mark.parametrize("opset", [7, 17, 24])
    def test_opsets_that_torch_only_pretends_to_write(self, opset: int) -> None:
        with pytest.raises(InputError, match=f"Net: torch cannot write opset {opset}; it can write 18 to 23"):
            bnfold.export(Net(), dry_run=True, inputs=[IMAGE], opset=opset)

    def test_the_same_bytes_twice(self, tmp_path: Path) -> None:
        net = trained(Net())
        for name in ("a.onnx", "b.onnx"):
            bnfold.export(net, tmp_path / name, inputs=[IMAGE], verify="none")
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    def test_without_folding(self, tmp_path: Path) -> None:
        report = bnfold.export(trained(Net()), tmp_path / "net.onnx", inputs=[IMAGE], fold=False)
        assert (report.fold, report.verification, report.batchnorms) == (None, None, 2)
        assert report.module is not None and report.module.verdict is Verdict.PASS

    def test_large_models_have_their_weights_beside(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The limit is that of a protobuf message; here a lower one."""
        monkeypatch.setattr(wire, "MESSAGE_LIMIT", 3000)
        net = trained(nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64)))
        report = bnfold.export(net, tmp_path / "net.onnx", inputs=["x:float32[N,64]"])
        assert report.module is not None and report.module.verdict is Verdict.PASS
        data, model = sorted(path.name for path in tmp_path.iterdir())[::-1]
        assert model == "net.onnx" and data.startswith("net.onnx.") and data.endswith(".data")
        whole = onnx.load(tmp_path / "net.onnx")
        onnx.checker.check_model(str(tmp_path / "net.onnx"))
        assert {t.name for t in whole.graph.initializer} >= {"2.weight", "2.bias"}

    def test_what_fold_can_do_to_float64(self) -> None:
        """An epsilon is a float32 in ONNX: 2e-13 of 1e-5 lost, which is 1,000 roundings of a float64."""
        net = trained(nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3))).double()
        for fold in (True, False):
            report = exported(net, "input:float64[N,2,L]", fold=fold)
            assert report.module is not None and report.module.verdict is Verdict.PASS
            assert report.module.note == ""


class TestTheModuleStays:
    def hooked(self) -> nn.Module:
        net = trained(Net())
        net.layer1[0].train()
        net.head.weight.requires_grad_(False)
        net.stem.register_forward_hook(lambda module, given, made: made * 2)
        net.stem.register_forward_pre_hook(lambda module, given: None)
        return net

    def test_as_it_was(self) -> None:
        net = self.hooked()
        before = snapshot(net)
        report = exported(net, IMAGE)
        assert snapshot(net) == before
        assert report.notes[0] == "6 of 10 modules were in training mode; exported in evaluation mode"

    def test_when_torch_export_fails(self) -> None:
        net = self.hooked()
        before = snapshot(net)
        with pytest.raises(InputError):
            exported(net, "x:float32[N,4,H,W]")
        assert snapshot(net) == before

    def test_when_forward_counts(self) -> None:
        """What `forward` does to buffers happens to a copy."""

        def forward(m: Any, x: Any) -> Any:
            m.bn.num_batches_tracked += 1
            if x.dtype is torch.float64:  # so that it is run in its own precision, too
                raise TypeError("no doubles")
            return m.bn(x)

        net = Rest(forward, bn=nn.BatchNorm1d(3)).eval()
        before = snapshot(net)
        exported(net, "x:float32[N,3]")
        assert snapshot(net) == before

    def test_eval_is_not_called(self) -> None:
        """Adapters merge their weights there, in place."""

        class Merging(nn.Linear):  # type: ignore[misc]  # it is Any here
            def train(self, mode: bool = True) -> Any:
                if not mode:
                    self.weight.data += 1
                return super().train(mode)

        net = Merging(3, 3).train()
        before = snapshot(net)
        exported(net, "input:float32[N,3]")
        assert snapshot(net) == before

    def test_what_deepcopy_alone_refuses(self) -> None:
        """The old weight_norm leaves a tensor with a history behind."""
        with pytest.warns(FutureWarning, match="weight_norm"):
            layer = nn.utils.weight_norm(nn.Conv1d(2, 3, 1))
        net = trained(nn.Sequential(layer, nn.BatchNorm1d(3)))
        net(torch.ones(1, 2, 4))
        with pytest.raises(RuntimeError, match="deepcopy"):
            copy.deepcopy(net)
        before = snapshot(net)
        report = exported(net, "input:float32[N,2,L]")
        assert report.module is not None and report.module.verdict is Verdict.PASS
        assert snapshot(net) == before

    def test_what_cannot_be_copied_is_named(self) -> None:
        class Locked:
            def __deepcopy__(self, memo: object) -> None:
                raise TypeError("there can be only one")

        net = nn.Linear(2, 2)
        net.lock = Locked()
        with pytest.raises(InputError, match=r"Linear: cannot be copied.*there can be only one"):
            exported(net, "input:float32[N,2]")


class TestAgainstTheModule:
    def test_a_wrong_export_is_caught(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fold and unfolded agree, for both come from the same wrong export."""

        def swap(model: Any, *rest: Any) -> None:
            tidying.tidy(model, *rest)
            weights = model.graph.initializers
            one, two = weights["layer1.0.conv1.weight"], weights["layer1.0.conv2.weight"]
            one.const_value, two.const_value = two.const_value, one.const_value

        monkeypatch.setattr(exporting, "tidy", swap)
        torch.manual_seed(0)
        with pytest.raises(
            NotEquivalent, match=r"Net: the exported model is not equivalent.*output 'logits'"
        ) as info:
            bnfold.export(trained(Net()), tmp_path / "net.onnx", inputs=[IMAGE])
        assert list(tmp_path.iterdir()) == []
        report = info.value.report
        assert isinstance(report, bnfold.ExportReport) and report.module is not None
        assert report.module.outputs[0].ratio > 1e4
        assert report.verification is not None and report.verification.verdict is Verdict.PASS

    @pytest.mark.parametrize("fold", [True, False])
    def test_one_channel_slightly_off_is_caught(self, fold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        def shift(model: Any, *rest: Any) -> None:
            tidying.tidy(model, *rest)
            value = model.graph.initializers["head.bias"]
            bias = value.const_value.numpy().copy()
            bias[2] *= 1 + 2e-5
            value.const_value = ir.Tensor(bias, name=value.name)

        monkeypatch.setattr(exporting, "tidy", shift)
        torch.manual_seed(0)
        net = trained(Net())
        nn.init.constant_(net.head.bias, 3.0)
        with pytest.raises(NotEquivalent, match="times its rounding noise off"):
            bnfold.export(net, dry_run=True, inputs=[IMAGE], fold=fold)

    @pytest.mark.parametrize(
        "forward",
        [
            lambda m, x: m.fc(x.float()).to(torch.float32) * torch.tensor(0.3),
            lambda m, x: m.fc(x) + torch.linspace(-1, 1, 4) + torch.arange(0, 0.4, 0.1),
            lambda m, x: m.fc(x) @ torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 4, dtype=torch.float32),
            lambda m, x: m.fc(x).masked_fill(x > 0, torch.finfo(torch.float32).min).softmax(-1),
            lambda m, x: m.fc(x).masked_fill(x > 0, torch.finfo(x.dtype).min).softmax(-1),
            lambda m, x: F.softmax(m.fc(x), -1, dtype=torch.float32),
            lambda m, x: F.leaky_relu(x, 0.01) * 0.1,
            lambda m, x: F.gelu(m.fc(x)) + F.layer_norm(x, (4,)),
            lambda m, x: F.interpolate(m.fc(x)[:, None], scale_factor=1.3),
            lambda m, x: (m.fc(x).half().float(), x.bfloat16()),
        ],
        ids=[
            "float",
            "factories",
            "constant",
            "mask",
            "own mask",
            "softmax",
            "slope",
            "gelu",
            "resize",
            "half",
        ],
    )
    def test_code_that_names_float32_is_no_false_alarm(self, forward: Callable[..., Any]) -> None:
        torch.manual_seed(0)
        report = exported(Rest(forward, fc=nn.Linear(4, 4)).eval(), "x:float32[N,4]")
        assert report.module is not None
        assert (report.module.verdict, report.module.precision) == (Verdict.PASS, "double")

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_coarse_types(self, dtype: str) -> None:
        net = trained(nn.Sequential(nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3))).to(getattr(torch, dtype))
        report = bnfold.export(net, dry_run=True, inputs=[f"input:{dtype}[N,2,L]"], verify="fast")
        assert report.module is not None and report.module.verdict is Verdict.PASS

    def test_numbers_in_float64_code(self) -> None:
        net = Rest(lambda m, x: F.leaky_relu(m.norm(m.fc(x)), 0.3), fc=nn.Linear(4, 4), norm=nn.LayerNorm(4))
        report = exported(net.double().eval(), "x:float64[N,4]")
        assert report.module is not None and report.module.verdict is Verdict.PASS
        assert "taken as float32" in report.module.note

    @pytest.mark.parametrize(
        ("forward", "note"),
        [
            (lambda m, x: m.fc(x) * (2 if x.dtype is torch.float64 else 1), "computes something else"),
            (
                lambda m, x: m.fc(x) if x.dtype is torch.float32 else x.unknown,
                "does not run in double precision",
            ),
        ],
        ids=["another function", "not at all"],
    )
    def test_own_precision(
        self, forward: Callable[..., Any], note: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(0)
        net = Rest(forward, fc=nn.Linear(4, 4)).eval()
        report = exported(net, "x:float32[N,4]")
        assert report.module is not None
        assert (report.module.verdict, report.module.precision) == (Verdict.PASS, "own")
        assert note in report.module.note and report.module.tolerance == OWN_TOLERANCE

        def negate(model: Any, *rest: Any) -> None:
            tidying.tidy(model, *rest)
            value = model.graph.initializers["fc.weight"]
            value.const_value = ir.Tensor(-value.const_value.numpy(), name=value.name)

        monkeypatch.setattr(exporting, "tidy", negate)
        with pytest.raises(NotEquivalent):
            exported(net, "x:float32[N,4]")

    def test_random_numbers_are_undecided(self, tmp_path: Path) -> None:
        net = Rest(lambda m, x: F.dropout(m.fc(x), 0.5), fc=nn.Linear(4, 4)).eval()
        with pytest.raises(Undecided, match=r"random.*nothing was written"):
            bnfold.export(net, tmp_path / "net.onnx", inputs=["x:float32[N,4]"])
        assert list(tmp_path.iterdir()) == []
        bnfold.export(net, tmp_path / "net.onnx", inputs=["x:float32[N,4]"], verify="none")

    def test_integers_are_exact(self) -> None:
        report = exported(
            Rest(lambda m, x: (m.fc(x).argmax(-1), x > 0), fc=nn.Linear(4, 9)).eval(), "x:float32[N,4]"
        )
        assert report.module is not None and [c.error for c in report.module.outputs] == [0, 0]

    def test_sizes_that_the_program_does_not_take_are_not_fed(self) -> None:
        def forward(m: Any, x: Any) -> Any:
            return torch.cat([x, F.interpolate(F.avg_pool2d(m.conv(x), 2), scale_factor=2)], 1)

        report = exported(Rest(forward, conv=nn.Conv2d(3, 3, 1)).eval(), IMAGE)
        assert report.module is not None and report.module.verdict is Verdict.PASS
        assert any("== H: the module asks for it" in note for note in report.notes)

    def test_statistics_of_the_batch(self) -> None:
        """Without running statistics a normalization is no affine map, whatever the mode."""
        net = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)).eval()
        report = exported(net, "input:float32[N,3,H,W]")
        assert report.module is not None and report.module.verdict is Verdict.PASS


class TestPrograms:
    def test_an_exported_program(self) -> None:
        net = trained(Net())
        free = torch.export.Dim.DYNAMIC
        program = torch.export.export(net, (torch.randn(2, 3, 9, 8),), dynamic_shapes=({0: free, 3: free},))
        report = exported(program)
        assert report.inputs == ("x: float32[x_dim_0, 3, 9, x_dim_3]",)
        assert report.batchnorms == 0
        assert report.module is not None and report.module.verdict is Verdict.PASS
        with pytest.raises(InputError, match="has inputs of its own; leave out --input"):
            exported(program, IMAGE)

    def test_arguments_that_are_no_tensors(self) -> None:
        class Scaled(nn.Module):  # type: ignore[misc]  # it is Any here
            def forward(self, xs: Any, times: int, more: Any = None) -> Any:
                return xs[0] * times + xs[1]["b"]

        given = ([torch.randn(2, 3), {"b": torch.randn(2, 3)}], 3)
        report = exported(torch.export.export(Scaled().eval(), given))
        assert len(report.inputs) == 2
        assert report.module is not None and report.module.verdict is Verdict.PASS

    @pytest.mark.filterwarnings(
        "ignore:.*torch.jit.*:DeprecationWarning"
    )  # it is why --torchscript is a flag
    @pytest.mark.parametrize("traced", [True, False])
    def test_torchscript(self, traced: bool) -> None:
        net = trained(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()))
        script = torch.jit.trace(net, torch.randn(1, 3, 8, 8)) if traced else torch.jit.script(net)
        before = {k: v.clone() for k, v in script.state_dict().items()}
        report = exported(script, IMAGE.replace("x", "input"))
        assert report.fold is not None and (report.fold.before.batchnorms, report.batchnorms) == (1, 0)
        assert report.module is not None and report.module.verdict is Verdict.PASS
        assert all(torch.equal(before[k], v) for k, v in script.state_dict().items())

    def test_what_is_no_model(self) -> None:
        with pytest.raises(InputError, match="a dict cannot be exported"):
            bnfold.export({"weight": 1}, dry_run=True)

    def test_inspect(self) -> None:
        report = bnfold.inspect_module(trained(Net()), inputs=[IMAGE])
        assert [(b.node, b.channels) for b in report.batchnorms] == [("layer1.0.bn1", 4), ("layer1.0.bn2", 4)]
        assert report.fold.after.batchnorms == 0


class TestFailures:
    """One line that says what torch says, and where the user's code is."""

    @pytest.mark.parametrize(
        ("forward", "given", "message"),
        [
            (
                lambda m, x: x + 1 if x.sum() > 0 else x,
                "x:float32[N,4]",
                r"data-dependent .*use torch\.where",
            ),
            (
                lambda m, x: m.fc(x),
                "x:float32[N,5]",
                r"does not take --input x:float32\[N,5\]: .*in 'fc' \(Linear\), at ",
            ),
            (
                lambda m, x: torch.linalg.svd(x)[1],
                "x:float32[N,4]",
                "cannot translate it: No ONNX function .*svd",
            ),
            (
                lambda m, x: x.nothing,
                "x:float32[N,4]",
                "AttributeError: 'FakeTensor' object has no attribute 'nothing'",
            ),
        ],
        ids=["control flow", "shapes", "operator", "mistake"],
    )
    def test_with_the_users_line(self, forward: Callable[..., Any], given: str, message: str) -> None:
        with pytest.raises(InputError, match=message) as info:
            bnfold.export(Rest(forward, fc=nn.Linear(4, 4)), dry_run=True, inputs=[given])
        assert f"at {__file__}:" in str(info.value)
        assert "\n" not in str(info.value) and "site-packages" not in str(info.value)

    def test_a_size_that_the_module_fixes(self) -> None:
        net = Rest(lambda m, x: m.fc(x.flatten(1)), fc=nn.Linear(224, 2))
        with pytest.raises(
            InputError, match="input 'x' axis 2 must be 224: the module fixes it; write 224 instead of H"
        ):
            exported(net, "x:float32[N,1,H,1]")

    def test_sizes_that_must_be_equal(self) -> None:
        report = exported(Rest(lambda m, x: x + x.transpose(1, 2)).eval(), "x:float32[N,H,W]")
        assert "sizes H and W must be equal: the module asks for it" in report.notes

    def test_torch_is_silent(self, capfd: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(InputError):
            bnfold.export(
                Rest(lambda m, x: x + 1 if x.sum() > 0 else x), dry_run=True, inputs=["x:float32[N,4]"]
            )
        bnfold.export(trained(Net()), dry_run=True, inputs=[IMAGE], verify="none")
        assert capfd.readouterr() == ("", "")

    def test_targets_are_looked_at_before_the_long_work(self, tmp_path: Path) -> None:
        (tmp_path / "net.onnx").write_bytes(b"mine")
        never = Rest(lambda m, x: 1 / 0)
        with pytest.raises(OutputError, match="exists already; choose another name, or pass --force"):
            bnfold.export(never, tmp_path / "net.onnx", inputs=["x:float32[1]"])
        with pytest.raises(OutputError, match="folder does not exist"):
            bnfold.export(never, tmp_path / "no" / "net.onnx", inputs=["x:float32[1]"])
        with pytest.raises(OutputError, match="name a target"):
            bnfold.export(never, inputs=["x:float32[1]"])
        assert (tmp_path / "net.onnx").read_bytes() == b"mine"


class TestFreeSizes:
    """A branch on a size is decided once; where the module goes the other way, the file would be wrong."""

    @pytest.mark.parametrize(
        ("function", "guard"),
        [
            (lambda m, x: m.conv(x) if x.shape[2] == x.shape[3] else -m.conv(x), "H != W"),
            (lambda m, x: m.conv(x) * 2 if x.shape[0] > 5 else m.conv(x), "N <= 5"),
            (lambda m, x: m.conv(x) * 2 if x.shape[2] > 40 else m.conv(x), "H >= 41"),
            (lambda m, x: m.conv(x) * 2 if x.shape[3] % 2 else m.conv(x), "W % 2 == 0"),
        ],
    )
    def test_a_branch_is_refused(self, function: Callable[..., Any], guard: str) -> None:
        net = Rest(function, conv=nn.Conv2d(3, 4, 3)).eval()
        with pytest.raises(InputError, match=f"where not {guard},.*test_pytorch_export.py:"):
            exported(net, IMAGE)

    def test_guards_that_divide_by_nothing(self) -> None:
        """Where a convolution leaves no position, the guards of what reads them divide by zero."""
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.BatchNorm1d(4)).eval()
        assert exported(net, IMAGE).batchnorms == 0

    def test_where_both_sides_agree_there_is_nothing_to_say(self) -> None:
        net = Rest(lambda m, x: m.conv(x)[:, :, : min(x.shape[2], 50)], conv=nn.Conv2d(3, 4, 3, padding=1))
        report = exported(net.eval(), IMAGE)
        assert not any("traced for sizes" in note for note in report.notes)

    def test_unchecked_it_is_a_note(self) -> None:
        net = Rest(lambda m, x: x + 1 if x.shape[2] == x.shape[3] else x - 1).eval()
        notes = exported(net, IMAGE, verify="none").notes
        assert notes == ("traced for sizes with H != W: the module asks for it",)


class TestSignature:
    def test_a_type_that_the_module_does_not_compute_with(self) -> None:
        """Traced, addmm takes what it refuses to compute."""
        with pytest.raises(InputError, match="Double and Float"):
            exported(nn.Linear(6, 5).eval(), "x:float64[N,6]", verify="none")

    @staticmethod
    def cast_output(model: ir.Model) -> None:
        node = ir.node("Cast", [model.graph.outputs[0]], {"to": int(ir.DataType.FLOAT16)})
        node.outputs[0].dtype = ir.DataType.FLOAT16
        model.graph.append(node)
        model.graph.outputs[0] = node.outputs[0]

    @staticmethod
    def cast_input(model: ir.Model) -> None:
        model.graph.inputs[0].dtype = ir.DataType.DOUBLE

    @staticmethod
    def fix_input(model: ir.Model) -> None:
        model.graph.inputs[0].shape = ir.Shape([2, 6])

    @staticmethod
    def drop_input(model: ir.Model) -> None:
        first, second = model.graph.inputs
        ir.convenience.replace_all_uses_with(second, first)
        model.graph.inputs.pop()

    @staticmethod
    def repeat_output(model: ir.Model) -> None:
        model.graph.outputs.append(model.graph.outputs[0])

    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (cast_output, "output 0 is float16, and the module's is float32"),
            (cast_input, "input 0 is float64, and the module's is float32"),
            (fix_input, "axis 0 of input 0 is 2, and it was to be free"),
            (drop_input, "has 1 inputs, the module 2"),
            (repeat_output, "has 2 outputs, the module 1"),
        ],
    )
    def test_what_an_exporter_gets_wrong(
        self, monkeypatch: pytest.MonkeyPatch, fault: Any, message: str
    ) -> None:
        right = torch.onnx.export

        def wrong(*args: Any, **how: Any) -> Any:
            made = right(*args, **how)
            fault.__func__(made.model) if isinstance(fault, staticmethod) else fault(made.model)
            return made

        class Sum(nn.Module):  # type: ignore[misc]  # it is Any here
            def forward(self, x: Any, y: Any) -> Any:
                return x + 2 * y

        monkeypatch.setattr(torch.onnx, "export", wrong)
        with pytest.raises(NotEquivalent, match=message):
            exported(Sum(), "x:float32[N,6]", "y:float32[N,6]", verify="none")

    @pytest.mark.parametrize(
        ("result", "message"),
        [(lambda x: (x, 3), "output 1 .* constant 3"), (lambda x: torch.fft.fft(x), "output 0 .* complex64")],
    )
    def test_outputs_that_onnx_does_not_have(self, result: Callable[..., Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            exported(Rest(lambda m, x: result(x)), "x:float32[N,6]")

    @pytest.mark.parametrize("verify", ["none", "fast"])
    def test_torchscript_keeps_inputs_that_nothing_reads(self, verify: str) -> None:
        class Second(nn.Module):  # type: ignore[misc]  # it is Any here
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(6, 5)

            def forward(self, unused: Any, x: Any) -> Any:
                return self.linear(x)

        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # there is no other way
            script = torch.jit.trace(Second().eval(), (torch.zeros(2, 9), torch.zeros(2, 6)))
        report = exported(script, "unused:float32[N,9]", "x:float32[N,6]", verify=verify)
        assert report.inputs == ("unused: float32[N, 9]", "x: float32[N, 6]")


class TestTables:
    """Integers made of floats in the code are those that torch makes; a bit may decide about them."""

    @pytest.mark.parametrize(
        "table",
        [
            lambda: (torch.arange(0, 2, 0.1) / 0.1).long(),
            lambda: (torch.log(torch.arange(1, 65).float() / 8) / np.log(8) * 8).long(),
            lambda: (torch.linspace(0, 1, 11) * 10).long(),
            lambda: (torch.arange(20) * 0.1 >= 0.3).float(),
            lambda: torch.arange(20) * 0.1 * 3 == 0.3 * torch.arange(20),
            lambda: torch.floor(torch.arange(0, 2, 0.1) / 0.1),
        ],
    )
    def test_as_torch_computes_them(self, table: Callable[[], Any], tmp_path: Path) -> None:
        net = Rest(lambda m, x: x * table()).eval()
        bnfold.export(net, tmp_path / "net.onnx", inputs=["x:float32[N,1]"], verify="fast")
        session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
        (found,) = session.run(None, {"x": np.ones((1, 1), np.float32)})
        np.testing.assert_array_equal(found[0], table().float().numpy())


class TestCodeThatKeepsThings:
    def test_tensors_in_plain_attributes_stay(self) -> None:
        class Counting(nn.Module):  # type: ignore[misc]  # it is Any here
            def __init__(self) -> None:
                super().__init__()
                self.plain, self.some = torch.zeros(3), [torch.zeros(3), {"k": (torch.zeros(2),)}]

            def forward(self, x: Any) -> Any:
                self.plain.add_(1)
                self.some[0].add_(1)
                self.some[1]["k"][0].add_(1)
                return x + 1

        net = Counting()
        with contextlib.suppress(InputError):
            exported(net, "x:float32[N,6]")
        assert not (net.plain.any() or net.some[0].any() or net.some[1]["k"][0].any())

    def test_a_tensor_that_is_made_at_the_first_call(self) -> None:
        def cached(m: Any, x: Any) -> Any:
            if not hasattr(m, "table"):
                m.table = torch.arange(6.0)
            return x + m.table

        report = exported(Rest(cached), "x:float32[N,6]")
        assert report.module is not None and report.module.verdict is Verdict.PASS

    def test_extra_state(self) -> None:
        class Extra(nn.Linear):  # type: ignore[misc]  # it is Any here
            def get_extra_state(self) -> Any:
                return {"version": 2}

        report = exported(Extra(6, 5), "x:float32[N,6]")
        assert report.module is not None and report.module.verdict is Verdict.PASS

    def test_no_inputs(self) -> None:
        class Constant(nn.Module):  # type: ignore[misc]  # it is Any here
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.ones(3))

            def forward(self) -> Any:
                return self.weight * 2

        report = exported(Constant())
        assert report.inputs == () and report.outputs == ("output: float32[3]",)

    def test_infinities_warn_of_nothing(self) -> None:
        report = exported(Rest(lambda m, x: (x, x.exp() * float("inf"))), "x:float32[N,6]")
        assert report.module is not None and report.module.verdict is Verdict.PASS

    def test_code_that_ends_the_process(self) -> None:
        with pytest.raises(InputError, match="SystemExit: 0"):
            exported(Rest(lambda m, x: sys.exit(0)), "x:float32[N,6]")

    def test_what_native_code_prints_is_no_data(self, capfd: pytest.CaptureFixture[str]) -> None:
        def loud(m: Any, x: Any) -> Any:
            os.write(1, b"loud\n")
            return x + 1

        exported(Rest(loud), "x:float32[N,6]")
        os.write(1, b"after\n")
        assert capfd.readouterr().out == "after\n"
