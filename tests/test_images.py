"""Images as samples: which are found, what is made of their pixels, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.data import open_data
from bnfold.errors import InputError
from bnfold.feeds import Array, Input
from bnfold.images import ImageOptions, Preparation, find

Image = pytest.importorskip("PIL.Image")

BYTES, FLOAT = np.dtype(np.uint8), np.dtype(np.float32)
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 6, 3), np.uint8)
GREY = RNG.integers(0, 256, (6, 6), np.uint8)


def target(*shape: int | str, dtype: np.dtype[Any] = FLOAT) -> list[Input]:
    return [Input("x", dtype, shape)]


def preparation(
    height: int = 6, width: int = 6, channels: int = 3, dtype: np.dtype[Any] = BYTES
) -> Preparation:
    return Preparation.of(target("N", height, width, channels, dtype=dtype), ImageOptions(layout="nhwc"))


def saved(path: Path, pixels: Array, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


class TestPixels:
    def test_bytes_as_they_are(self, tmp_path: Path) -> None:
        found = preparation().read(saved(tmp_path / "a.png", RGB))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found[0], RGB)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
    def test_floats_are_scaled_per_channel_and_rounded_once(self, dtype: Any, tmp_path: Path) -> None:
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        options = ImageOptions(mean=mean, std=std)
        prepared = Preparation.of(target("N", 3, 6, 6, dtype=np.dtype(dtype)), options)
        found = prepared.read(saved(tmp_path / "a.png", RGB))
        expected = ((RGB / 255 - mean) / std).transpose(2, 0, 1)[None].astype(dtype)
        assert found.dtype == expected.dtype and found.shape == (1, 3, 6, 6) and found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected)

    def test_the_range_without_options(self, tmp_path: Path) -> None:
        ends = np.array([[0, 255]], np.uint8)
        found = preparation(1, 2, 1, FLOAT).read(saved(tmp_path / "a.png", ends))
        assert found.tolist() == [[[[0], [1]]]]

    def test_one_mean_for_all_channels(self, tmp_path: Path) -> None:
        prepared = Preparation.of(target("N", 6, 6, 3), ImageOptions(mean=(0.5,), std=(0.5,)))
        found = prepared.read(saved(tmp_path / "a.png", RGB))
        np.testing.assert_array_equal(found[0], (RGB / 127.5 - 1).astype(np.float32))

    @pytest.mark.parametrize("layout", ["nchw", "nhwc"])
    def test_grey_for_models_of_one_channel(self, layout: str, tmp_path: Path) -> None:
        shape = ("N", 1, 6, 6) if layout == "nchw" else ("N", 6, 6, 1)
        prepared = Preparation.of(target(*shape, dtype=BYTES), ImageOptions())
        np.testing.assert_array_equal(prepared.read(saved(tmp_path / "a.png", GREY)).reshape(6, 6), GREY)
        from_colours = prepared.read(saved(tmp_path / "b.png", RGB)).reshape(6, 6)
        luma = RGB @ np.array([0.299, 0.587, 0.114])
        assert abs(from_colours - luma).max() <= 1  # Pillow computes luma in integers

    def test_grey_for_models_of_colours(self, tmp_path: Path) -> None:
        found = preparation().read(saved(tmp_path / "a.png", GREY))
        np.testing.assert_array_equal(found[0], np.stack([GREY] * 3, -1))

    def test_transparency_is_dropped(self, tmp_path: Path) -> None:
        alpha = np.concatenate([RGB, np.zeros((6, 6, 1), np.uint8)], -1)
        np.testing.assert_array_equal(preparation().read(saved(tmp_path / "a.png", alpha))[0], RGB)

    @pytest.mark.parametrize("transparency", [{}, {"transparency": 0}, {"transparency": b"\0\x80"}])
    def test_palettes_are_looked_up(self, transparency: dict[str, Any], tmp_path: Path) -> None:
        image = Image.fromarray(GREY % 4, "L")
        image = Image.frombytes("P", (6, 6), image.tobytes())
        colours = RNG.integers(0, 256, (4, 3), np.uint8)
        image.putpalette(colours.tobytes())
        image.save(tmp_path / "a.png", **transparency)
        np.testing.assert_array_equal(preparation().read(tmp_path / "a.png")[0], colours[GREY % 4])

    def test_black_and_white(self, tmp_path: Path) -> None:
        found = preparation().read(saved(tmp_path / "a.png", GREY > 127))
        np.testing.assert_array_equal(found[0, :, :, 0], (GREY > 127) * 255)

    def test_cmyk(self, tmp_path: Path) -> None:
        Image.new("CMYK", (6, 6), (0, 255, 255, 0)).save(tmp_path / "a.tif")
        assert preparation().read(tmp_path / "a.tif")[0, 0, 0].tolist() == [255, 0, 0]

    @pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
    def test_sixteen_bits_are_scaled_not_clipped(self, name: str, tmp_path: Path) -> None:
        deep = RNG.integers(0, 65536, (6, 6), np.uint16)
        deep[0, :2] = 0, 65535
        found = preparation(channels=1).read(saved(tmp_path / name, deep))
        np.testing.assert_array_equal(found[0, :, :, 0], (deep / 257).round())

    @pytest.mark.parametrize(
        ("pixels", "message"),
        [
            (np.full((6, 6), 70000, np.int32), r"a\.tif: has more than 16 bits per pixel"),
            (np.full((6, 6), 0.5, np.float32), r"a\.tif: holds floats, whose scale nobody knows"),
        ],
    )
    def test_scales_that_nobody_knows(self, pixels: Array, message: str, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=message):
            preparation().read(saved(tmp_path / "a.tif", pixels))

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation(self, orientation: int, tmp_path: Path) -> None:
        """What EXIF's numbers say is to be done with what is stored."""
        s = RNG.integers(0, 256, (4, 6), np.uint8)
        upright = {
            **{1: s, 2: s[:, ::-1], 3: s[::-1, ::-1], 4: s[::-1]},
            **{5: s.T, 6: np.rot90(s, -1), 7: s[::-1, ::-1].T, 8: np.rot90(s)},
        }[orientation]
        exif = Image.Exif()
        exif[0x0112] = orientation
        height, width = upright.shape
        found = preparation(height, width, 1).read(saved(tmp_path / "a.png", s, exif=exif))
        np.testing.assert_array_equal(found[0, :, :, 0], upright)

    def test_the_first_of_several_pictures(self, tmp_path: Path) -> None:
        first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
        first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
        np.testing.assert_array_equal(preparation(channels=1).read(tmp_path / "a.tif")[0, :, :, 0], GREY)


class TestSize:
    @given(*[st.integers(1, 40)] * 4)
    def test_any_size_becomes_any_size(self, height: int, width: int, to_height: int, to_width: int) -> None:
        """A plain colour stays what it is; nothing of a border comes in."""
        with TemporaryDirectory() as folder:
            path = saved(Path(folder) / "a.png", np.full((height, width), 77, np.uint8))
            found = preparation(to_height, to_width, 1).read(path)
        assert found.shape == (1, to_height, to_width, 1)
        assert (found == 77).all()

    @pytest.mark.parametrize("transposed", [False, True])
    def test_the_longer_side_is_cropped_to_its_centre(self, transposed: bool, tmp_path: Path) -> None:
        wide = np.zeros((4, 12), np.uint8)
        wide[:, 4:8] = GREY[:4, :4]
        path = saved(tmp_path / "a.png", np.ascontiguousarray(wide.T) if transposed else wide)
        found = preparation(4, 4, 1).read(path)[0, :, :, 0]
        np.testing.assert_array_equal(found.T if transposed else found, GREY[:4, :4])

    def test_all_pixels_count_when_it_shrinks(self, tmp_path: Path) -> None:
        """Without antialiasing, stripes of one pixel would vanish or fill the image."""
        stripes = np.zeros((64, 64), np.uint8)
        stripes[:, ::2] = 200
        found = preparation(8, 8, 1).read(saved(tmp_path / "a.png", stripes))
        assert abs(found.astype(int) - 100).max() <= 8  # a filter of 16 pixels, cut off at the borders

    def test_a_long_strip_is_not_blown_up(self, tmp_path: Path) -> None:
        found = preparation(200, 200, 1).read(saved(tmp_path / "a.png", np.full((1, 60000), 9, np.uint8)))
        assert (found == 9).all()


class TestWhatTheModelTells:
    @pytest.mark.parametrize(
        ("shape", "options", "layout", "channels", "size"),
        [
            (("N", 3, 8, 9), ImageOptions(), "nchw", 3, (8, 9)),
            ((1, 1, 8, 9), ImageOptions(), "nchw", 1, (8, 9)),
            (("N", 8, 9, 3), ImageOptions(), "nhwc", 3, (8, 9)),
            (("N", 3, "H", "W"), ImageOptions(size=(8, 9)), "nchw", 3, (8, 9)),
            (("N", 3, 8, "W"), ImageOptions(size=(8, 9)), "nchw", 3, (8, 9)),
            (("N", 3, 8, 9), ImageOptions(size=(8, 9)), "nchw", 3, (8, 9)),
            (("N", "C", 8, 9), ImageOptions(layout="nchw"), "nchw", 3, (8, 9)),
            (("N", 3, 8, 3), ImageOptions(layout="nchw"), "nchw", 3, (8, 3)),
            (("N", 3, 8, 3), ImageOptions(layout="nhwc"), "nhwc", 3, (3, 8)),
        ],
    )
    def test_with_the_options(
        self,
        shape: tuple[int | str, ...],
        options: ImageOptions,
        layout: str,
        channels: int,
        size: tuple[int, int],
    ) -> None:
        found = Preparation.of(target(*shape), options)
        assert (found.layout, found.channels, found.size) == (layout, channels, size)

    @pytest.mark.parametrize(
        ("inputs", "options", "message"),
        [
            ([*target("N", 3, 8, 8), *target("N", 2)], ImageOptions(), "has 2: 'x', 'x'"),
            ([], ImageOptions(), "one input, but this one has 0"),
            ([Input("x", FLOAT, None)], ImageOptions(), "'x' has any rank"),
            (target("N", 3, 8), ImageOptions(), "'x' has rank 3"),
            (target("N", 4, 8, 8), ImageOptions(), r"\[N, 4, 8, 8\], where no axis has the 1 or 3 channels"),
            (target("N", "C", 8, 8), ImageOptions(), "does not tell where channels are; give --layout"),
            (target("N", 3, 8, 1), ImageOptions(), "does not tell where channels are; give --layout"),
            (target("N", 3, 8, 8), ImageOptions(layout="nhwc"), "would be 8 channels"),
            (target("N", 3, 8, 8), ImageOptions(layout="hwc"), "--layout hwc: is none"),  # type: ignore[arg-type]
            (target("N", 3, "H", "W"), ImageOptions(), "H x W pixels, .* choose with --image-size"),
            (target("N", 3, 8, "W"), ImageOptions(size=(9, 9)), r"8 x W pixels .*, not 9 x 9"),
            (target("N", 3, "H", "W"), ImageOptions(size=(0, 9)), "0 x 9 pixels are empty"),
            (target("N", 3, 8, 8), ImageOptions(mean=(0.5, 0.5)), "--mean: has 2 numbers, .* 3 channels"),
            (
                target("N", 3, 8, 8),
                ImageOptions(mean=(123.7,)),
                "--mean: 123.7 is above 1; .* divide it by 255",
            ),
            (target("N", 3, 8, 8), ImageOptions(std=(0.2, 0.2, 0.0)), "--std: 0.0 is not above 1e-09"),
            (target("N", 3, 8, 8), ImageOptions(std=(float("nan"),)), "--std: .* not all numbers"),
            (target("N", 3, 8, 8), ImageOptions(mean=()), "--mean: has 0 numbers"),
            (
                target("N", 3, 8, 8, dtype=BYTES),
                ImageOptions(mean=(0.5,)),
                "is uint8 and takes pixels as they are",
            ),
            (
                target("N", 3, 8, 8, dtype=np.dtype(np.int8)),
                ImageOptions(),
                "is int8; images are for uint8 or",
            ),
        ],
    )
    def test_what_does_not_go_together(
        self, inputs: list[Input], options: ImageOptions, message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            Preparation.of(inputs, options)


class TestFolders:
    def test_all_below_in_order(self, tmp_path: Path) -> None:
        for name in ("b/2.PNG", "b/1.jpeg", "a.bmp", ".hidden.png", ".cache/x.png", "c/d/e.tiff"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(tmp_path / name)
        (tmp_path / "labels.csv").write_text("1,2")
        (tmp_path / "folder.png").mkdir()
        assert [str(p.relative_to(tmp_path)) for p in find(tmp_path)] == [
            *("a.bmp", "b/1.jpeg", "b/2.PNG", "c/d/e.tiff")
        ]

    def test_as_data(self, tmp_path: Path) -> None:
        for i in range(3):
            saved(tmp_path / f"{i}.png", np.full((4, 4, 3), i, np.uint8))
        data = open_data(tmp_path, target(1, 3, "H", "W", dtype=BYTES), images=ImageOptions(size=(2, 2)))
        assert data.count == 3 and data.name == str(tmp_path)
        for _ in range(2):
            batches = [batch["x"] for batch in data]
            assert [batch.shape for batch in batches] == [(1, 3, 2, 2)] * 3
            assert [int(batch[0, 0, 0, 0]) for batch in batches] == [0, 1, 2]

    def test_arrays_come_first(self, tmp_path: Path) -> None:
        saved(tmp_path / "preview.png", RGB)
        np.save(tmp_path / "a.npy", np.zeros((5, 3, 2, 2), np.float32))
        assert open_data(tmp_path, target("N", 3, 2, 2)).count == 5

    def test_one_that_vanishes(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "a.png", RGB)
        data = open_data(tmp_path, target("N", 6, 6, 3))
        path.unlink()
        with pytest.raises(InputError, match=r"a\.png: cannot be read: No such file"):
            list(data)

    @pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.gif", "a.tif", "a.webp"])
    def test_corrupt_ones(self, name: str, tmp_path: Path) -> None:
        whole = saved(tmp_path / name, RNG.integers(0, 256, (64, 64, 3), np.uint8)).read_bytes()
        prepared = preparation(64, 64)
        for content in (b"", b"no image at all", whole[:20], whole[: len(whole) // 2]):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(InputError, match=f"{name}: (cannot be read|is corrupt)") as refusal:
                prepared.read(tmp_path / name)
            assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize("pixels", [90_000_000, 200_000_000])
    def test_decompression_bombs(self, pixels: int, tmp_path: Path) -> None:
        """Refused by what the header says, before anything is decoded."""
        header = f"P5 {pixels // 1000} 1000 255\n".encode()
        (tmp_path / "a.pgm").write_bytes(header + b"\0" * 100)
        with pytest.raises(InputError, match=r"a\.pgm: has too many pixels .*exceeds limit"):
            preparation().read(tmp_path / "a.pgm")

    def test_without_pillow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        saved(tmp_path / "a.png", RGB)
        monkeypatch.setitem(sys.modules, "PIL.Image", None)
        with pytest.raises(InputError, match=r"need Pillow, .* pip install 'bnfold\[images\]'"):
            open_data(tmp_path, target("N", 6, 6, 3))
