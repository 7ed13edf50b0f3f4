"""A trained residual network with 21 BatchNormalizations, and images for it.

It is the ResNet-20 that is customary for images of 32 x 32 (stages of 16, 32 and 64 channels; projections on
the two shortcuts that change the shape), with one input channel. The images are the handwritten digits of
`fixtures/digits.npz`, enlarged: it is trained on the 360 that the fixture is tested with, and calibrated with
the others, which it has never seen.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FIXTURE = Path(__file__).parent.parent / "fixtures" / "digits.npz"
CACHE = Path(__file__).parent / "models"

INPUT = "image"
SIZE = 32
SEED = 5
EPOCHS, BATCH, RATE = 12, 24, 0.1

F32 = NDArray[np.float32]


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        stride = 1 if channels == out_channels else 2
        self.body = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False),
                norm1=nn.BatchNorm2d(out_channels),
                relu=nn.ReLU(),
                conv2=nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                norm2=nn.BatchNorm2d(out_channels),
            )
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            conv = nn.Conv2d(channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(out_channels)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def network(width: int = 1) -> nn.Sequential:
    """Maps images (N, 1, 32, 32) to logits (N, 10); weights are random. `width` multiplies the channels."""
    channels = 16 * width
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Conv2d(1, channels, 3, padding=1, bias=False),
        stem_norm=nn.BatchNorm2d(channels),
        stem_relu=nn.ReLU(),
    )
    for number, factor in enumerate((1, 1, 1, 2, 2, 2, 4, 4, 4), 1):
        out_channels = 16 * width * factor
        parts[f"block{number}"] = Residual(channels, out_channels)
        channels = out_channels
    parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "classifier": nn.Linear(channels, 10)}
    return nn.Sequential(parts)


def enlarged(digits: NDArray[np.uint8]) -> F32:
    """Digits (n, 8, 8) of 0 to 16 as images (n, 1, 32, 32) of 0 to 1."""
    small = torch.from_numpy(digits[:, None].astype(np.float32) / 16)
    large = nn.functional.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    result: F32 = large.numpy()
    return result


def varied(images: F32, count: int) -> F32:
    """So many images: those given over and over, each shifted a little and with some noise."""
    random = np.random.default_rng(SEED)
    made = images[np.arange(count) % len(images)]
    shifts = random.integers(-3, 4, (count, 2))
    moved = [np.roll(image, shift, axis=(1, 2)) for image, shift in zip(made, shifts, strict=True)]
    return (np.stack(moved) + 0.05 * random.standard_normal(made.shape)).astype(np.float32)


def training_images() -> tuple[F32, NDArray[np.int64]]:
    """360 images and their digits."""
    return _images("test")


def calibration_images() -> tuple[F32, NDArray[np.int64]]:
    """256 others."""
    return _images("calibration")


def _images(part: str) -> tuple[F32, NDArray[np.int64]]:
    with np.load(FIXTURE) as file:
        return enlarged(file[f"{part}_images"]), file[f"{part}_labels"].astype(np.int64)


def train(model: nn.Module, images: F32, labels: NDArray[np.int64]) -> None:
    """In place; each batch is shifted by up to three pixels either way."""
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            shift = [int(s) for s in torch.randint(-3, 4, (2,))]
            loss = nn.functional.cross_entropy(model(x[rows].roll(shift, (2, 3))), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def trained() -> nn.Sequential:
    """The network after training, in evaluation mode; trained on the first call."""
    path, model = CACHE / "residual.pt", network().eval()
    if not path.exists():
        CACHE.mkdir(exist_ok=True)
        with torch.random.fork_rng([]):
            torch.manual_seed(SEED)
            fresh = network()
            train(fresh, *training_images())
        torch.save(fresh.state_dict(), path)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model


def exported(model: nn.Module, name: str = "residual") -> Path:
    """A network as an ONNX file that has all of its BatchNormalizations; N is free."""
    import bnfold

    path = CACHE / f"{name}.onnx"
    if not path.exists():
        bnfold.export(model, path, inputs=[f"{INPUT}:float32[N,1,{SIZE},{SIZE}]"], fold=False)
    return path


def accuracy(model: nn.Module, images: F32, labels: NDArray[np.int64]) -> float:
    """Share of the images whose digit is found."""
    with torch.no_grad():
        found = model(torch.from_numpy(images)).argmax(1).numpy()
    return float((found == labels).mean())
