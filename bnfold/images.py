"""A folder of images as the input of a model: found, decoded, brought to its size and scale.

An image becomes 8 bits per channel, grey or RGB as the model has 1 or 3 channels; turned upright as its EXIF
data say; scaled, antialiased and bilinear, until it just covers the wanted size (its shorter side fits, if
that is a square), and cropped to its centre. Transparency is dropped, and of several pictures in a file the
first is taken. Models of unsigned bytes get pixels as they are, those of floats (pixel / 255 - mean) / std.
Only this module knows Pillow.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn, get_args

import numpy as np

from .errors import InputError
from .feeds import Array, Input
from .given import listed, reading

if TYPE_CHECKING:
    from PIL.Image import Image

Layout = Literal["nchw", "nhwc"]

# Pictures made of pixels; of the other kinds that Pillow reads, some start other programs.
_SUFFIXES = (
    *(
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
    ),
    *(".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)

_MOST_PIXELS = 2**27  # of a sample
_SMALLEST = 1e-9  # standard deviation


@dataclass(frozen=True)
class ImageOptions:
    """What the model does not tell about the images that it takes.

    Attributes:
        size: Height and width in pixels; None for those of the model's input.
        mean: Subtracted from pixels of 0 to 1, one for all channels or one for each; None for 0.
        std: What they are divided by then; None for 1.
        layout: Whether channels come before or after the pixels; None where the model's shape tells.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: Layout | None = None


@dataclass(frozen=True)
class Preparation:
    """How an image becomes a sample.

    Attributes:
        target: The input that it is for.
        layout: Order of the axes.
        channels: 1 or 3.
        size: Height and width in pixels.
        mean: Per channel or for all.
        std: Per channel or for all.
    """

    target: Input
    layout: Layout
    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, inputs: Sequence[Input], options: ImageOptions) -> Preparation:
        """What the model's input and the options say together.

        Raises:
            InputError: The model takes no images or something besides, the two contradict each other, or they
                leave something open; or Pillow is missing.
        """
        try:
            import PIL.Image  # noqa: F401  # here, so that nothing else is looked at in vain
        except ImportError as error:
            raise InputError(
                "images need Pillow, which is not installed; pip install 'bnfold[images]'"
            ) from error
        if len(inputs) != 1:
            raise InputError(
                f"a folder of images is for a model with one input, but this one has {len(inputs)}: "
                f"{listed(i.name for i in inputs)}; give .npz files with an array for each"
            )
        layout, channels = _layout(inputs[0], options)
        mean, std = _scale(inputs[0], channels, options)
        return cls(inputs[0], layout, channels, _size(inputs[0], layout, options), mean, std)

    def read(self, path: Path) -> Array:
        """The image as a batch of one sample: [1, C, H, W] or [1, H, W, C], in the input's type.

        Raises:
            InputError: The file is missing, no image, corrupt, or has too many pixels.
        """
        from PIL import Image, ImageOps

        height, width = self.size
        with reading(path), warnings.catch_warnings(action="ignore"):  # of odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                with Image.open(path) as file:
                    image = _eight_bits(path, ImageOps.exif_transpose(file), self.channels)
                image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
            except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
                raise InputError(
                    f"{path}: has too many pixels to be a picture for calibration ({error}); make it smaller"
                ) from error
            pixels = np.asarray(image).reshape(1, height, width, self.channels)
        if self.layout == "nchw":
            pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        if self.target.dtype == np.uint8:
            return pixels
        per_channel = (-1, 1, 1) if self.layout == "nchw" else (-1,)
        mean, std = (np.reshape(values, per_channel) for values in (self.mean, self.std))
        scaled: Array = ((pixels / 255 - mean) / std).astype(self.target.dtype)
        return scaled


def find(folder: Path) -> list[Path]:
    """The images in a folder and the folders below it, sorted by path; hidden files and folders are left out.

    Raises:
        InputError: A folder cannot be listed.
    """

    def fail(error: OSError) -> NoReturn:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}") from error

    found = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in _SUFFIXES)


def _layout(target: Input, options: ImageOptions) -> tuple[Layout, int]:
    """Order of the axes, and number of channels."""
    told = f"the model's input '{target.name}'"
    if target.shape is None or len(target.shape) != 4:
        rank = "any rank" if target.shape is None else f"rank {len(target.shape)}"
        raise InputError(f"{told} has {rank}; images are for inputs of rank 4; give arrays instead")
    shape = f"[{', '.join(map(str, target.shape))}]"
    if options.layout not in (None, *get_args(Layout)):
        raise InputError(f"--layout {options.layout}: is none; give {' or '.join(get_args(Layout))}")
    channels = {"nchw": target.shape[1], "nhwc": target.shape[3]}
    if options.layout is not None:
        count = channels[options.layout]
        if isinstance(count, int) and count not in (1, 3):
            raise InputError(
                f"--layout {options.layout}: {told} is {shape}, which would be {count} channels; "
                "images have 1 or 3"
            )
        return options.layout, count if isinstance(count, int) else 3
    fitting: list[Layout] = [layout for layout in get_args(Layout) if channels[layout] in (1, 3)]
    if len(fitting) == 1:
        return fitting[0], 1 if channels[fitting[0]] == 1 else 3
    if not fitting and not any(isinstance(count, str) for count in channels.values()):
        raise InputError(f"{told} is {shape}, where no axis has the 1 or 3 channels of images")
    raise InputError(f"{told} is {shape}, which does not tell where channels are; give --layout nchw or nhwc")


def _size(target: Input, layout: Layout, options: ImageOptions) -> tuple[int, int]:
    """Height and width."""
    declared = (target.shape or ())[2:] if layout == "nchw" else (target.shape or ())[1:3]
    told = f"the model's input '{target.name}' takes images of {' x '.join(map(str, declared))} pixels"
    height, width = options.size or declared
    if not isinstance(height, int) or not isinstance(width, int):
        raise InputError(f"{told}, which may be any number; choose with --image-size")
    if min(height, width) < 1:
        raise InputError(f"images of {height} x {width} pixels are empty; give another --image-size")
    if height * width > _MOST_PIXELS:
        raise InputError(f"images of {height} x {width} pixels are too large; give another --image-size")
    for size, own in zip((height, width), declared, strict=True):
        if isinstance(own, int) and size != own:
            raise InputError(f"{told} (height x width), not {height} x {width}; drop --image-size")
    return height, width


def _scale(
    target: Input, channels: int, options: ImageOptions
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels between 0 and 1."""
    told = f"the model's input '{target.name}'"
    if target.dtype == np.uint8:
        if options.mean is not None or options.std is not None:
            raise InputError(f"{told} is uint8 and takes pixels as they are; drop --mean and --std")
    elif "float" not in target.dtype.name:
        raise InputError(
            f"{told} is {target.dtype.name}; images are for uint8 or floats; give arrays instead"
        )
    mean = (0.0,) if options.mean is None else options.mean
    std = (1.0,) if options.std is None else options.std
    for option, values in (("--mean", mean), ("--std", std)):
        if len(values) not in (1, channels):
            raise InputError(f"{option}: has {len(values)} numbers, but the images have {channels} channels")
        if not all(map(math.isfinite, values)):
            raise InputError(f"{option}: {listed(values)} are not all numbers to compute with")
    if max(mean) > 1:
        raise InputError(f"--mean: {max(mean)} is above 1; pixels are between 0 and 1, so divide it by 255")
    if min(std) < _SMALLEST:
        raise InputError(f"--std: {min(std)} is not above {_SMALLEST:g}, and pixels are divided by it")
    return mean, std


def _eight_bits(path: Path, image: Image, channels: int) -> Image:
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip at 255
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise InputError(f"{path}: has more than 16 bits per pixel; save it with 8 or 16")
        image = Image.fromarray((grey / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise InputError(f"{path}: holds floats, whose scale nobody knows; save it with 8 or 16 bits")
    return image.convert("L" if channels == 1 else "RGB")
