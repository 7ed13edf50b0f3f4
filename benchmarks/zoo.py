"""Networks that people deploy, from the packages that they take them from, as small as those make them.

Weights are random; each BatchNormalization has random scales and shifts, and then the statistics of what it
gets to see on random data, as after training.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

SEED = 3
BATCHES, ROWS = 3, 8  # of data that statistics are taken from

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Architecture:
    """A network.

    Attributes:
        name: As shown.
        kind: What about it is of interest to a fold.
        make: Builds it, with weights as it initializes them.
        shape: Of its input, without the batch.
        negative: The share of scales that are below 0.
        stays: How many BatchNormalizations have to stay, by the algebra that bnfold knows.
        why: They have to.
    """

    name: str
    kind: str
    make: Callable[[], nn.Module]
    shape: Shape = (3, 64, 64)
    negative: float = 0.1
    stays: int = 0
    why: str = ""

    def module(self) -> nn.Module:
        """The network in evaluation mode, with statistics."""
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            torch.manual_seed(SEED)
            module = self.make()
            _learn(module, [torch.randn(ROWS, *self.shape) for _ in range(BATCHES)], self.negative)
        return module.eval()

    def input(self) -> Tensor:
        """A batch of one."""
        return torch.randn(1, *self.shape, generator=torch.Generator().manual_seed(SEED))


def _learn(module: nn.Module, batches: list[Tensor], negative: float) -> None:
    """Random scales and shifts; then statistics that are true of the batches."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    module.eval()
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        norm.weight.data *= torch.where(torch.rand_like(norm.weight) < negative, -1.0, 1.0)
        nn.init.normal_(norm.bias, std=0.3)
        norm.train()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    with torch.no_grad():
        for batch in batches:
            module(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: _package("torchvision").models.get_model(name, weights=None, **options)


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: _package("timm").create_model(name, **options)


def _smp(name: str, encoder: str) -> Callable[[], nn.Module]:
    return lambda: getattr(_package("segmentation_models_pytorch"), name)(encoder, encoder_weights=None)


def _monai(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(_package("monai").networks.nets, name)(**options)


def _transformers(name: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        package = _package("transformers")
        return getattr(package, name)(getattr(package, config)(**options))

    return make


def _package(name: str) -> Any:
    """A package of networks, imported when one of its networks is made."""
    _need_torchvision()  # which all others import where it is installed
    module = import_module(name)
    if name == "monai":
        import_module("monai.networks.nets")
    return module


_library: list[Any] = []  # a declaration lasts as long as its library


def _need_torchvision() -> None:
    """Import it, even where its compiled half cannot be loaded because torch is built otherwise.

    Networks do not need that half, but the Python half asks for two of its operators when it is imported.
    """
    try:
        import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library.append(library)
        import_module("torchvision")


def _conv_mixer() -> nn.Module:
    make = _package("timm").models.convmixer.ConvMixer
    return make(dim=64, depth=6, kernel_size=7, patch_size=4, num_classes=10)


_UNET = {"channels": (8, 16, 32), "strides": (2, 2), "num_res_units": 2, "norm": "batch", "act": "relu"}

_resnet_v2 = _timm("resnetv2_18")
_densenet = _torchvision("densenet121")
_densenet_1d = _monai("DenseNet", spatial_dims=1, in_channels=2, out_channels=3, block_config=(3, 6, 4))

PRE_ACTIVATION = (
    "Others read what they normalize, and behind them is a Relu, which lets only positive scales pass."
)

ARCHITECTURES = (
    Architecture("ResNet-18", "residual", _torchvision("resnet18")),
    Architecture("ResNet-V2-18 (timm)", "pre-activation", _resnet_v2, stays=9, why=PRE_ACTIVATION),
    Architecture("ResNet-V2-18 positive", "pre-activation", _resnet_v2, negative=0),
    Architecture("DenseNet-121", "dense", _densenet, stays=62, why=PRE_ACTIVATION),
    Architecture("DenseNet-121 positive", "dense", _densenet, negative=0),
    Architecture("GoogLeNet", "inception", _torchvision("googlenet", init_weights=False, aux_logits=False)),
    Architecture("MobileNet-V2", "inverted residual", _torchvision("mobilenet_v2")),
    Architecture("MobileNet-V3", "squeeze and excitation", _torchvision("mobilenet_v3_small")),
    Architecture("EfficientNet-B0 (timm)", "inverted residual", _timm("efficientnet_b0")),
    Architecture("RegNet-X-400MF", "grouped", _torchvision("regnet_x_400mf")),
    Architecture("ShuffleNet-V2", "channel shuffle", _torchvision("shufflenet_v2_x0_5")),
    Architecture("GhostNet (timm)", "concatenated halves", _timm("ghostnet_050")),
    Architecture("HRNet (timm)", "many resolutions", _timm("hrnet_w18_small")),
    Architecture(
        "RepVGG-A0 (timm)",
        "parallel branches",
        _timm("repvgg_a0"),
        stays=17,
        why="They are branches of their own, from a Relu to an Add.",
    ),
    Architecture(
        "ConvMixer (timm)",
        "norm after activation",
        _conv_mixer,
        stays=12,
        why="They are between a Gelu and a padded Conv, or an Add with something else.",
    ),
    Architecture("Visformer (timm)", "norm before attention", _timm("visformer_tiny", img_size=64)),
    Architecture(
        "LeViT (transformers)",
        "linear",
        _transformers("LevitForImageClassification", "LevitConfig"),
        (3, 224, 224),
    ),
    Architecture("LeViT-128S (timm)", "linear", _timm("levit_128s"), (3, 224, 224)),
    Architecture(
        "U-Net (monai)",
        "transposed convs",
        _monai("UNet", spatial_dims=2, in_channels=3, out_channels=2, **_UNET),
    ),
    Architecture("U-Net of VGG-11 (smp)", "plain, upsampling", _smp("Unet", "vgg11_bn")),
    Architecture("LinkNet (smp)", "transposed convs", _smp("Linknet", "resnet18")),
    Architecture("DeepLab-V3+ (smp)", "dilated, pyramid", _smp("DeepLabV3Plus", "resnet18")),
    Architecture(
        "U-Net 3-D (monai)",
        "3-D, transposed convs",
        _monai("UNet", spatial_dims=3, in_channels=1, out_channels=2, **_UNET),
        (1, 16, 16, 16),
    ),
    Architecture("R3D-18", "3-D", _torchvision("r3d_18"), (3, 4, 32, 32)),
    Architecture("DenseNet 1-D (monai)", "1-D, dense", _densenet_1d, (2, 256), stays=16, why=PRE_ACTIVATION),
    Architecture("DenseNet 1-D positive", "1-D, dense", _densenet_1d, (2, 256), negative=0),
    Architecture(
        "ResNet 1-D (monai)",
        "1-D",
        _monai(
            "ResNet",
            block="basic",
            layers=[1, 1, 1, 1],
            block_inplanes=[16, 32, 64, 128],
            spatial_dims=1,
            n_input_channels=2,
            num_classes=3,
        ),
        (2, 256),
    ),
    Architecture(
        "Conformer (transformers)",
        "1-D, audio",
        _transformers(
            "Wav2Vec2ConformerModel",
            "Wav2Vec2ConformerConfig",
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=128,
            conv_dim=(32, 32, 32),
            conv_stride=(5, 4, 4),
            conv_kernel=(10, 8, 4),
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            conv_depthwise_kernel_size=15,
            attn_implementation="eager",
        ),
        (4000,),
    ),
    Architecture(
        "PatchTST (transformers)",
        "norm after residual",
        _transformers(
            "PatchTSTForClassification",
            "PatchTSTConfig",
            num_input_channels=3,
            num_targets=4,
            context_length=64,
            patch_length=8,
            patch_stride=8,
            use_cls_token=True,
            norm_type="batchnorm",
        ),
        (64, 3),
    ),
)
