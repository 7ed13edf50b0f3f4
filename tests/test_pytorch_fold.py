"""`fold_module`: BatchNorms leave PyTorch modules, and nothing else changes."""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bnfold
from bnfold.pytorch.duplicate import cloned, duplicate
from bnfold.pytorch.fold import fold_module
from bnfold.report import FoldReport, Outcome, Reason

Norm = nn.modules.batchnorm._BatchNorm
IMAGE = (2, 3, 9, 11)


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with statistics and affine parameters as training leaves them, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for inner in module.modules():
        if not isinstance(inner, Norm):
            continue
        for tensor, low, high in (
            (inner.running_mean, -2.0, 2.0),
            (inner.running_var, 0.2, 3.0),
            (inner.weight, 0.3, 2.0),
            (inner.bias, -2.0, 2.0),
        ):
            if tensor is not None:
                tensor.data.uniform_(low, high, generator=generator)
    return module.eval()


def data(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def copied(module: nn.Module) -> nn.Module:
    return duplicate(module, "copy", cloned)


def norms(module: nn.Module) -> int:
    return sum(isinstance(m, Norm) for m in module.modules())


def need_same(module: nn.Module, folded: nn.Module, *arguments: torch.Tensor) -> None:
    """In float64 only the rounding of the stored weights is left, 6e-8 each; a wrong fold is off by O(1)."""
    wide = [a.double() if a.is_floating_point() else a for a in arguments]
    with torch.no_grad():
        ours = copied(module).double()(*wide)
        theirs = copied(folded).double()(*wide)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5 * float(ours.abs().max()))


def check(module: nn.Module, *arguments: torch.Tensor, left: int = 0) -> tuple[nn.Module, FoldReport]:
    """Fold with and without examples; the original must not notice."""
    trained(module)
    state = {k: v.clone() for k, v in module.state_dict().items()}
    text = str(module)
    folded, report = fold_module(module, arguments)
    assert report.after.batchnorms == left, report.decisions
    need_same(module, folded, *arguments)
    assert str(module) == text
    assert list(module.state_dict()) == list(state)
    assert all(torch.equal(v, state[k]) for k, v in module.state_dict().items())
    blind, _ = fold_module(module)
    need_same(module, blind, *arguments)
    again, second = fold_module(folded, arguments)
    assert not second.modified
    if not isinstance(folded, torch.fx.GraphModule):  # copies of which forget the name of their class
        assert str(again) == str(folded)
    return folded, report


class Calls(nn.Module):
    """A module whose forward is the function given, and whose parts are the modules given."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


class TestIntoWeights:
    @pytest.mark.parametrize(
        ("layer", "norm", "shape"),
        [
            (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 9)),
            (nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), IMAGE),
            (nn.Conv3d(3, 4, 3, dilation=2), nn.BatchNorm3d(4), (2, 3, 7, 6, 5)),
            (nn.Conv2d(6, 4, 3, groups=2, padding="same"), nn.BatchNorm2d(4), (2, 6, 5, 7)),
            (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4), IMAGE),
            (nn.ConvTranspose1d(3, 6, 3, groups=3, stride=2), nn.BatchNorm1d(6), (2, 3, 9)),
            (nn.ConvTranspose2d(4, 4, 3, output_padding=1, stride=2), nn.BatchNorm2d(4), (2, 4, 5, 7)),
            (nn.ConvTranspose3d(4, 6, 2, groups=2), nn.BatchNorm3d(6), (2, 4, 3, 4, 5)),
            (nn.Linear(5, 4), nn.BatchNorm1d(4), (3, 5)),
            (nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), (3, 5)),
            (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), IMAGE),
            (nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4), IMAGE),
            (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.5), IMAGE),
        ],
        ids=str,
    )
    def test_pulled(self, layer: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
        folded, report = check(nn.Sequential(layer, norm, nn.ReLU(inplace=True)), data(*shape))
        assert isinstance(folded, nn.Sequential)
        assert type(folded[0]) is type(layer)
        assert isinstance(folded[1], nn.Identity)
        assert [d.outcome for d in report.decisions] == [Outcome.PULLED]
        assert report.decisions[0].nodes == ("1",)
        assert report.decisions[0].into == ("0",)

    @pytest.mark.parametrize(
        ("norm", "layer", "shape"),
        [
            (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), IMAGE),
            (nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 7)),
            (nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), IMAGE),
            (nn.BatchNorm1d(5), nn.Linear(5, 4), (3, 5)),
            (nn.BatchNorm2d(3), nn.ConvTranspose2d(3, 4, 1), IMAGE),
        ],
        ids=str,
    )
    def test_pushed(self, norm: nn.Module, layer: nn.Module, shape: tuple[int, ...]) -> None:
        folded, report = check(nn.Sequential(norm, layer), data(*shape))
        assert norms(folded) == 0
        assert report.decisions[0].outcome is Outcome.PUSHED

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_types(self, dtype: torch.dtype) -> None:
        module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).to(dtype)
        folded, report = fold_module(module, data(*IMAGE).to(dtype))
        assert report.after.batchnorms == 0
        assert {p.dtype for p in folded.parameters()} == {dtype}
        exact = copy.deepcopy(module).double()
        conv, norm = exact[0], exact[1]
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight = (conv.weight * scale[:, None, None, None]).detach()
        # half a unit of rounding, and for float64 what this computation itself rounds (four operations)
        units = 0.5 if dtype is not torch.float64 else 3.0
        bound = units * torch.finfo(dtype).eps * weight.abs()
        assert ((folded[0].weight.double() - weight).abs() <= bound).all()

    def test_half_convolution_with_norm_in_float32(self) -> None:
        module = trained(nn.Sequential(nn.Conv2d(3, 4, 3).half(), nn.BatchNorm2d(4)))
        folded, report = fold_module(module, data(*IMAGE).half())
        assert report.after.batchnorms == 0
        assert {p.dtype for p in folded.parameters()} == {torch.float16}

    def test_requires_grad_and_names_stay(self) -> None:
        module = trained(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
        module[0].weight.requires_grad_(False)
        folded, _ = fold_module(module)
        assert list(folded.state_dict()) == ["0.weight", "0.bias"]
        assert not folded[0].weight.requires_grad

    def test_the_result_needs_nothing_but_torch(self) -> None:
        module = trained(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU()))
        folded, report = fold_module(module)
        assert report.decisions[0].left == ("Add",)
        kinds = {type(m).__module__.split(".")[0] for m in folded.modules()}
        assert kinds == {"torch"}
        with io.BytesIO() as file:
            torch.save(folded, file)
            file.seek(0)
            loaded = torch.load(file, weights_only=False)
        need_same(folded, loaded, data(*IMAGE))


class TestThroughTheNet:
    def test_residual_add_with_in_place_operations(self) -> None:
        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            y = m.a(x)
            y += m.b(x)
            return m.relu(m.norm(y))

        parts = {"a": nn.Conv2d(3, 4, 3, padding=1), "b": nn.Conv2d(3, 4, 1), "norm": nn.BatchNorm2d(4)}
        folded, _ = check(Calls(forward, **parts, relu=nn.ReLU(inplace=True)), data(*IMAGE))
        assert isinstance(folded, Calls)

    def test_concat(self) -> None:
        def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
            return m.norm(torch.cat([m.a(x), m.b(x)], 1))

        parts = {"a": nn.Conv2d(3, 4, 1), "b": nn.Conv2d(3, 2, 1), "norm": nn.BatchNorm2d(6)}
        check(Calls(forward, **parts), data(*IMAGE))

    @pytest.mark.parametrize(
        "between",
        [
            nn.MaxPool2d(2),
            nn.AvgPool2d(2, padding=1, count_include_pad=False),
            nn.AdaptiveAvgPool2d((2, 3)),
            nn.AdaptiveAvgPool2d(1),
            nn.AdaptiveMaxPool2d(1),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.UpsamplingNearest2d(scale_factor=2),
            nn.ReflectionPad2d(1),
            nn.ReplicationPad2d((1, 0, 2, 1)),
            nn.Dropout2d(),
            nn.Identity(),
        ],
        ids=str,
    )
    def test_pools_and_sizes(self, between: nn.Module) -> None:
        check(nn.Sequential(nn.Conv2d(3, 4, 1), between, nn.BatchNorm2d(4)), data(*IMAGE))

    def test_pixel_shuffle(self) -> None:
        check(nn.Sequential(nn.Conv2d(3, 8, 1), nn.PixelShuffle(2), nn.BatchNorm2d(2)), data(*IMAGE))

    def test_padding_that_is_averaged_stops_the_shift(self) -> None:
        module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(3, padding=1), nn.BatchNorm2d(4))
        check(module, data(*IMAGE), left=1)

    @pytest.mark.parametrize(
        "flat",
        [
            lambda x: torch.flatten(x, 1),
            lambda x: x.flatten(1),
            lambda x: x.view(x.size(0), -1),
            lambda x: x.reshape(x.shape[0], -1),
        ],
    )
    def test_flatten_for_every_size(self, flat: Callable[[torch.Tensor], torch.Tensor]) -> None:
        def forward(m: Any, x: torch.Tensor) -> Any:
            return m.last(m.linear(flat(m.norm(torch.relu(m.conv(x))))))

        parts = {
            "conv": nn.Conv2d(3, 4, 3),
            "norm": nn.BatchNorm2d(4),
            "linear": nn.Linear(4 * 7 * 9, 5),
            "last": nn.BatchNorm1d(5),
        }
        check(Calls(forward, **parts), data(*IMAGE))

    def test_tokens(self) -> None:
        """As LeViT does it: Linear on (N, L, C), BatchNorm on the flattened rows."""

        def forward(m: Any, x: torch.Tensor) -> Any:
            y = m.linear(x)
            return m.norm(y.flatten(0, 1)).reshape_as(y)

        check(Calls(forward, linear=nn.Linear(5, 4, bias=False), norm=nn.BatchNorm1d(4)), data(3, 7, 5))

    def test_tokens_transposed(self) -> None:
        def forward(m: Any, x: torch.Tensor) -> Any:
            return m.norm(m.linear(x).transpose(1, 2))

        check(Calls(forward, linear=nn.Linear(5, 4), norm=nn.BatchNorm1d(4)), data(3, 7, 5))

    def test_several_readers(self) -> None:
        def forward(m: Any, x: torch.Tensor) -> Any:
            y = m.norm(x)
            return m.a(y) + m.b(y)

        folded, report = check(
            Calls(forward, norm=nn.BatchNorm2d(3), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1)), data(*IMAGE)
        )
        assert set(report.decisions[0].into) == {"a", "b"}
        assert isinstance(folded, Calls)

    def test_norm_after_norm(self) -> None:
        check(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)), data(*IMAGE))

    def test_norm_after_norm_without_a_sink(self) -> None:
        module = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False), nn.Sigmoid())
        folded, report = check(module, data(*IMAGE), left=1)
        assert report.decisions[0].outcome is Outcome.MERGED
        assert norms(folded) == 1

    def test_one_half_of_a_chunk(self) -> None:
        def forward(m: Any, x: torch.Tensor) -> Any:
            a, b = m.conv(x).chunk(2, 1)
            return m.norm(a) * b

        check(Calls(forward, conv=nn.Conv2d(3, 8, 1), norm=nn.BatchNorm2d(4)), data(*IMAGE))

    @pytest.mark.parametrize("channels", [slice(1, 3), slice(None, -2), slice(-3, None)], ids=str)
    def test_some_of_the_channels(self, channels: slice) -> None:
        def forward(m: Any, x: torch.Tensor) -> Any:
            return m.norm(m.conv(x)[:, channels])

        count = len(range(4)[channels])
        check(Calls(forward, conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(count)), data(*IMAGE))

    @pytest.mark.parametrize(
        "norm", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.LayerNorm(11)], ids=str
    )
    def test_other_normalizations_stay(self, norm: nn.Module) -> None:
        folded, _ = check(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm), data(*IMAGE))
        assert type(folded[1]) is type(norm)


class TestCode:
    """Folds for which a forward would have to change make a GraphModule."""

    def test_functional_norm(self) -> None:
        def forward(m: Any, x: torch.Tensor) -> Any:
            n = m.norm
            return F.relu(
                F.batch_norm(m.conv(x), n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, 1e-3)
            )

        folded, _ = check(Calls(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)), data(*IMAGE))
        assert isinstance(folded, torch.fx.GraphModule)
        assert type(folded).__name__ == "Calls"
        assert norms(folded) == 0

    def test_functional_layers(self) -> None:
        class Functional(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.w, self.v = nn.Parameter(data(4, 3, 3, 3)), nn.Parameter(data(5, 4))
                self.norm, self.last = nn.BatchNorm2d(4), nn.BatchNorm1d(5)

            def forward(self, x: torch.Tensor) -> Any:
                y = self.norm(F.conv2d(x, self.w, padding=1)).mean((2, 3))
                return self.last(F.linear(y, weight=self.v))

        check(Functional(), data(*IMAGE))

    def test_a_module_that_is_called_twice(self) -> None:
        """Wrong in torch.fx.experimental.optimization.fuse: both calls would get the folded weights."""

        def forward(m: Any, x: torch.Tensor) -> Any:
            return m.conv(m.norm(m.conv(x)))

        check(Calls(forward, conv=nn.Conv2d(3, 3, 3), norm=nn.BatchNorm2d(3)), data(*IMAGE))

    def test_a_norm_that_is_called_twice(self) -> None:
        def forward(m: Any, x: torch.Tensor) -> Any:
            return m.norm(m.b(m.norm(m.a(x))))

        folded, _ = check(
            Calls(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)), data(*IMAGE)
        )
        assert isinstance(folded, Calls)

    def test_tied_weights(self) -> None:
        module = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))
        module[2].weight = module[0].weight
        folded, _ = check(module, data(*IMAGE))
        assert folded[2].weight is not folded[0].weight

    def test_a_weight_that_others_read(self) -> None:
        def forward(m: Any, x: torch.Tensor) -> Any:
            return m.norm(m.conv(x)) * m.conv.weight.sum()

        folded, _ = check(Calls(forward, conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4)), data(*IMAGE))
        assert isinstance(folded, torch.fx.GraphModule)

    def test_a_weight_that_is_computed_from_a_parameter(self) -> None:
        class Clamped(nn.Conv2d):
            def forward(self, x: torch.Tensor) -> Any:
                return F.conv2d(x, self.weight.clamp(-0.1, 0.1), self.bias)

        check(nn.Sequential(Clamped(3, 4, 3), nn.BatchNorm2d(4)), data(*IMAGE))

    def test_a_weight_that_is_drawn(self) -> None:
        class Noisy(nn.Conv2d):
            def forward(self, x: torch.Tensor) -> Any:
                return F.conv2d(x, self.weight + torch.rand_like(self.weight), self.bias)

        _, report = fold_module(trained(nn.Sequential(Noisy(3, 4, 3), nn.BatchNorm2d(4))))
        assert report.after.batchnorms == 1

    def test_optional_arguments(self) -> None:
        class Optional(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

            def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, scale: bool = False) -> Any:
                y = self.conv(x)
                if mask is not None:
                    y = torch.cat([y, mask], 1)[:, 1:]
                return self.norm(2 * y if scale else y)

        module = trained(Optional())
        folded, report = fold_module(module, data(*IMAGE))
        assert report.after.batchnorms == 0
        need_same(module, folded, data(*IMAGE))
        with pytest.raises(AssertionError, match="mask"):
            folded(data(*IMAGE), mask=data(2, 1, 9, 11))
        x, mask = data(*IMAGE), data(2, 1, 9, 11)
        with_mask, _ = fold_module(module, {"x": x, "mask": mask})
        need_same(module, with_mask, x, mask)
        untouched, report = fold_module(module, x, inplace=True)
        assert report.decisions[0].reason is Reason.UNTRACED
        assert untouched is module

    def test_tensors_made_on_the_way_are_not_frozen(self) -> None:
        def forward(m: Any, x: torch.Tensor) -> Any:
            return F.batch_norm(m.conv(x), m.mean, m.var) + torch.rand(4, 1, 1)

        parts = {"conv": nn.Conv2d(3, 4, 1), "mean": frozen(data(4)), "var": frozen(data(4) ** 2)}
        module = Calls(forward, **parts).eval()
        folded, report = fold_module(module)
        assert folded(data(*IMAGE)).ne(folded(data(*IMAGE))).any()
        assert report.decisions[0].reason is Reason.IN_CODE

    def test_keyword_arguments_keep_their_names(self) -> None:
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.mean = nn.Conv2d(3, 4, 1), frozen(data(4))

            def forward(self, image: torch.Tensor, size: None = None) -> dict[str, torch.Tensor]:
                return {"y": F.batch_norm(self.conv(image), self.mean, self.mean**2)}

        module = Two().eval()
        folded, _ = fold_module(module, {"image": data(*IMAGE)})
        assert isinstance(folded, torch.fx.GraphModule)
        torch.testing.assert_close(
            folded(image=data(*IMAGE), size=None), module(data(*IMAGE)), rtol=1e-4, atol=1e-4
        )


class TestReparametrized:
    def test_weight_norm(self) -> None:
        layer = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        module = nn.Sequential(layer, nn.BatchNorm2d(4))
        folded, _ = check(module, data(*IMAGE))
        assert type(folded[0]) is nn.Conv2d
        assert torch.nn.utils.parametrize.is_parametrized(module[0])
        module(data(*IMAGE))  # its class still has its property

    def test_weight_norm_of_old(self) -> None:
        with warnings.catch_warnings(action="ignore"):  # deprecated, and still in many models
            layer = torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
        folded, _ = check(nn.Sequential(layer, nn.BatchNorm2d(4)), data(*IMAGE))
        assert list(folded.state_dict()) == ["0.bias", "0.weight"]

    @pytest.mark.parametrize(
        "wrap", [torch.nn.utils.spectral_norm, torch.nn.utils.parametrizations.spectral_norm]
    )
    def test_spectral_norm(self, wrap: Any) -> None:
        with warnings.catch_warnings(action="ignore"):
            layer = wrap(nn.Conv2d(3, 4, 3))
        check(nn.Sequential(layer, nn.BatchNorm2d(4)), data(*IMAGE))

    def test_one_that_draws_numbers(self) -> None:
        class Noise(nn.Module):
            def forward(self, w: torch.Tensor) -> torch.Tensor:
                return w + torch.rand_like(w)

        layer = torch.nn.utils.parametrize.register_parametrization(nn.Conv2d(3, 4, 3), "weight", Noise())
        _, report = fold_module(trained(nn.Sequential(layer, nn.BatchNorm2d(4))))
        assert report.after.batchnorms == 1


class TestSubclasses:
    def test_that_change_nothing(self) -> None:
        class Mine(nn.BatchNorm2d):
            def __init__(self, c: int) -> None:
                super().__init__(c, eps=1e-3)

            def extra_repr(self) -> str:
                return "mine"

        check(nn.Sequential(nn.Conv2d(3, 4, 3), Mine(4)), data(*IMAGE))

    def test_norm_and_activation_in_one(self) -> None:
        """Removed like a plain BatchNorm2d, the activation would be lost."""

        class NormAct(nn.BatchNorm2d):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                torch._assert(x.ndim == 4, "images are needed")
                x = F.batch_norm(
                    x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1
                )
                return F.relu(x)

        check(nn.Sequential(nn.Conv2d(3, 4, 3), NormAct(4)), data(*IMAGE))

    def test_that_do_more_than_meets_the_eye(self) -> None:
        class Doubled(nn.Conv2d):
            def _conv_forward(self, x: Any, weight: Any, bias: Any) -> Any:
                return 2 * super()._conv_forward(x, weight, bias)

        check(nn.Sequential(Doubled(3, 4, 3), nn.BatchNorm2d(4)), data(*IMAGE), left=1)

    def test_a_forward_that_was_replaced(self) -> None:
        module = trained(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
        inner = module[0]
        inner.forward = lambda x: 2 * nn.Conv2d.forward(inner, x)
        _, report = fold_module(module)
        assert report.after.batchnorms == 1


class TestStays:
    @pytest.mark.parametrize(
        ("module", "shape", "reason"),
        [
            (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), (3, 4, 4 + 1), Reason.UNKNOWN_SHAPE),
            (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), (3, 4, 4), Reason.UNKNOWN_SHAPE),
            (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), IMAGE, Reason.PADDING),
            (nn.Sequential(nn.Conv2d(3, 4, 1), nn.SiLU(), nn.BatchNorm2d(4)), IMAGE, Reason.NOT_LINEAR),
            (
                nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
                IMAGE,
                Reason.TRAINING_MODE,
            ),
        ],
        ids=["linear on (N, C, L)", "the same, equal sizes", "padding", "SiLU", "no statistics"],
    )
    def test_reason(self, module: nn.Module, shape: tuple[int, ...], reason: Reason) -> None:
        folded, report = check(module, data(*shape), left=1)
        assert report.decisions[0].reason is reason
        assert not report.modified
        assert norms(folded) == 1

    def test_a_norm_in_training_mode(self) -> None:
        module = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
        module[1].train()
        folded, report = fold_module(module, data(*IMAGE))
        assert report.decisions[0].reason is Reason.TRAINING_MODE
        assert folded[1].training

    def test_hooks_see_what_they_saw(self) -> None:
        module = trained(
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        )
        seen: list[torch.Tensor] = []
        module[0].register_forward_hook(lambda m, i, o: seen.append(o))
        folded, report = fold_module(module, data(*IMAGE))
        assert not seen  # not while folding either
        assert [d.outcome for d in report.decisions] == [Outcome.PUSHED, Outcome.PULLED]
        module(data(*IMAGE))
        folded(data(*IMAGE))
        torch.testing.assert_close(*seen, rtol=0.0, atol=0.0)

    def test_code_that_needs_what_a_hook_keeps(self) -> None:
        def keep(module: Any, inputs: Any, output: torch.Tensor) -> None:
            module.kept = output

        parts = {"conv": nn.Conv2d(3, 4, 1), "norm": nn.BatchNorm2d(4)}
        module = trained(Calls(lambda m, x: m.norm(m.conv(x)) + m.conv.kept, **parts))
        module.conv.register_forward_hook(keep)
        _, report = fold_module(module, data(*IMAGE))
        assert report.after.batchnorms == 1
        assert not hasattr(module.conv, "kept")

    def test_a_hooked_block_is_folded_inside(self) -> None:
        block = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        module = nn.Sequential(block, nn.BatchNorm2d(4), nn.Sigmoid())
        seen: list[torch.Tensor] = []
        block.register_forward_hook(lambda m, i, o: seen.append(o))
        folded, report = check(module, data(*IMAGE), left=1)
        assert report.decisions[0].nodes == ("0.1",)
        seen.clear()
        module(data(*IMAGE))
        folded(data(*IMAGE))
        torch.testing.assert_close(*seen, rtol=1e-5, atol=1e-5)  # float32, before and after

    def test_a_value_that_is_changed_in_place_and_read_again(self) -> None:
        def forward(m: Any, x: torch.Tensor) -> Any:
            y = m.conv(x)
            z = m.norm(y)
            y += 100.0  # norm has read it before
            return z * y

        check(Calls(forward, conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4)), data(*IMAGE), left=1)

    def test_in_place_before_the_norm(self) -> None:
        def forward(m: Any, x: torch.Tensor) -> Any:
            skip = y = m.conv(x)
            y += x
            return m.norm(skip)

        module = Calls(forward, conv=nn.Conv2d(3, 3, 1), norm=nn.BatchNorm2d(3))
        _, report = check(module, data(*IMAGE), left=1)
        assert report.decisions[0].reason is Reason.MUTATED

    def test_an_input_is_not_changed_in_place_for_want_of_the_norm(self) -> None:
        norm = nn.BatchNorm2d(3)
        module = nn.Sequential(norm, nn.ReLU(inplace=True), nn.Conv2d(3, 4, 1)).eval()
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0 - norm.eps)
        x = data(*IMAGE)
        before = x.clone()
        folded, _ = fold_module(module, x)
        folded(x)
        torch.testing.assert_close(x, before, rtol=0.0, atol=0.0)

    def test_invalid(self) -> None:
        module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(5)).eval()
        with pytest.raises(bnfold.InputError, match="takes data with 5 channels, and is given 4"):
            fold_module(module)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(2))
        self.taken = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        if x.sum() > 0:
            return self.norm(x)
        return self.taken[0](x)


class TestControlFlow:
    def test_the_rest_folds(self) -> None:
        module = trained(Branches())
        folded, report = fold_module(module, data(*IMAGE))
        assert report.before.batchnorms == 5
        kept = {d.nodes[0]: d for d in report.kept}
        assert set(kept) == {"norm", "taken.1"}
        assert all(d.reason is Reason.UNTRACED for d in kept.values())
        assert "if x.sum() > 0:" in kept["norm"].detail
        for seed in range(6):  # both branches
            need_same(module, folded, data(*IMAGE, seed=seed))

    def test_inside_another_module(self) -> None:
        module = trained(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Branches(), nn.BatchNorm2d(3)))
        folded, report = fold_module(module)
        assert {d.nodes[0] for d in report.decisions if d.outcome is Outcome.PULLED} == {
            "1",
            "2.stem.1",
            "2.blocks.0.1",
            "2.blocks.1.1",
        }
        need_same(module, folded, data(*IMAGE))

    def test_parts_that_are_taken_apart(self) -> None:
        class Features(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

            def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
                features = []
                for layer in self.body:
                    x = layer(x)
                    if x.sum() > -math.inf:
                        features.append(x)
                return features

        module = trained(Features())
        folded, report = fold_module(module, data(*IMAGE))
        assert report.after.batchnorms == 1
        for ours, theirs in zip(module(data(*IMAGE)), folded(data(*IMAGE)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0)

    def test_a_norm_that_nobody_calls(self) -> None:
        module = Calls(lambda m, x: m.conv(x), conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4)).eval()
        _, report = fold_module(module)
        assert report.decisions[0].reason is Reason.UNREAD


class TestInPlace:
    def test_the_module_itself(self) -> None:
        module = trained(Branches())
        original = copy.deepcopy(module)
        folded, report = fold_module(module, data(*IMAGE), inplace=True)
        assert folded is module
        assert report.after.batchnorms == 2
        assert norms(module) == 2
        need_same(original, module, data(*IMAGE))

    def test_code_stays(self) -> None:
        def forward(m: Any, x: torch.Tensor) -> Any:
            y = F.batch_norm(m.a(x), m.mean, m.var)
            return m.norm(m.b(y))

        parts = {"mean": frozen(data(4)), "var": frozen(data(4) ** 2)}
        module = trained(
            Calls(forward, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4), **parts)
        )
        original = copy.deepcopy(module)
        _, report = fold_module(module, inplace=True)
        assert [d.reason for d in report.kept] == [Reason.IN_CODE]
        assert isinstance(module.norm, nn.Identity)
        need_same(original, module, data(*IMAGE))

    def test_training_mode(self) -> None:
        module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        with pytest.raises(bnfold.InputError, match=r"in training mode; call its eval\(\)"):
            fold_module(module, inplace=True)
        folded, _ = fold_module(module)
        assert module.training
        assert not folded.training
        assert norms(folded) == 0


class TestBadInput:
    def test_no_module(self) -> None:
        with pytest.raises(bnfold.InputError, match=r"a torch\.nn\.Module is needed, and this is a dict"):
            fold_module({})

    def test_lazy(self) -> None:
        with warnings.catch_warnings(action="ignore"):  # torch says that the feature is new
            module = nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)).eval()
        with pytest.raises(bnfold.InputError, match=r"'0\.weight' is not initialized; call the module once"):
            fold_module(module)

    def test_examples_that_do_not_fit(self) -> None:
        module = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
        with pytest.raises(bnfold.InputError, match="does not take the example inputs"):
            fold_module(module, (data(*IMAGE), data(*IMAGE)))
        with pytest.raises(bnfold.InputError, match="does not take the example inputs: RuntimeError"):
            fold_module(module, data(2, 5, 9, 9))

    def test_what_cannot_be_copied(self) -> None:
        module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
        module.stream = (n for n in range(3))
        with pytest.raises(bnfold.InputError, match="cannot be copied"):
            fold_module(module)


class TestNeedEqual:
    def test_a_fold_that_is_wrong_is_noticed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from bnfold.pytorch import surgery

        give = surgery._give
        monkeypatch.setattr(surgery, "_give", lambda m, n, a: give(m, n, a * 1.0001))
        module = trained(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
        with pytest.raises(bnfold.NotEquivalent, match="result 0 of the folded module is"):
            fold_module(module, data(*IMAGE), inplace=True)
        assert norms(module) == 1  # nothing was changed

    def test_code_that_insists_on_float32(self) -> None:
        module = Calls(
            lambda m, x: m.norm(m.conv(x.float())), conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4)
        )
        _, report = fold_module(trained(module), data(*IMAGE))
        assert report.after.batchnorms == 0


class Dynamic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.second, self.last = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.third, self.kept = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> Any:
        if x.mean() > 0:
            x = F.relu(self.norm(self.conv(x)))
        x = self.second(x)
        x = self.last(x)
        y = self.third(x)
        x = self.kept(y)
        return x, y


class TestRuns:
    """Parts that untraceable code calls one on the result of the other."""

    @pytest.mark.parametrize("inplace", [False, True])
    def test_what_nobody_else_sees_folds(self, inplace: bool) -> None:
        module = trained(Dynamic())
        original = copied(module)
        folded, report = fold_module(module, data(*IMAGE), inplace=inplace)
        assert (folded is module) is inplace
        assert {d.nodes[0]: d.into for d in report.decisions if d.outcome is Outcome.PULLED} == {
            "norm": ("conv",),
            "last": ("second",),
        }
        assert [d.nodes[0] for d in report.kept] == ["kept"]
        for seed in range(6):
            for ours, theirs in zip(
                original(data(*IMAGE, seed=seed)), folded(data(*IMAGE, seed=seed)), strict=True
            ):
                torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)  # float32, before and after

    def test_a_part_that_is_registered_elsewhere_as_well(self) -> None:
        module = trained(Dynamic())
        module.other = nn.ModuleList([module.conv])
        _, report = fold_module(module, data(*IMAGE))
        assert {d.nodes[0] for d in report.kept} == {"norm", "kept"}
