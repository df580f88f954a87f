"""Files of every kind give the pixels that were written: bands and pages, 8 and 16 bits, floats."""

import io
import sys
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from xcit.encoded_image import BrokenImageError, EncodedImage
from xcit.errors import InputError
from xcit.orientation import EXIF_ORIENTATION
from xcit.preprocessing import Preprocessing

from .test_preprocessing import noise, resampled, statistics


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    planes = {"planarconfig": "contig"} if array.ndim == 3 and array.shape[-1] > 1 else {}
    tifffile.imwrite(file, array.squeeze(), **{"photometric": "minisblack", **planes, **options})
    return file.getvalue()


def pillow(array: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array.squeeze()).save(file, kind)
    return file.getvalue()


def turned(orientation: int) -> bytes:
    """A PNG with 16 bits and an EXIF orientation."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(noise(8, 9, 1, bit_depth=16).squeeze()).save(file, "PNG", exif=exif)
    return file.getvalue()


def pages(array: np.ndarray) -> bytes:
    return tiff(np.moveaxis(array, -1, 0), planarconfig=None, compression="deflate")


def bands(array: np.ndarray) -> bytes:
    return tiff(array, compression="lzw")


def planes(array: np.ndarray) -> bytes:
    return tiff(np.moveaxis(array, -1, 0), planarconfig="separate")


def channels_first(array: np.ndarray) -> bytes:
    return npy(np.moveaxis(array, -1, 0))


def big_endian(array: np.ndarray) -> bytes:
    return npy(array.astype(array.dtype.newbyteorder(">")))


def png(array: np.ndarray) -> bytes:
    return bytes(imagecodecs.png_encode(array.squeeze()))


KINDS = [
    (1, 8, npy),
    (1, 8, lambda array: pillow(array, "PNG")),
    (1, 16, lambda array: pillow(array, "PNG")),
    (1, 16, lambda array: pillow(array, "TIFF")),
    (1, 12, npy),
    (3, 8, lambda array: pillow(array, "TIFF")),
    (3, 8, pages),
    (3, 16, png),
    (3, 16, bands),
    (4, 8, lambda array: pillow(array, "PNG")),
    (4, 8, bands),
    (4, 16, png),
    (6, 16, bands),
    (6, 16, planes),
    (6, 16, pages),
    (13, 16, channels_first),
    (5, 16, big_endian),
]


@pytest.mark.parametrize(("channels", "bit_depth", "write"), KINDS)
def test_pixels_are_those_that_were_written_and_resized_within_rounding(
    channels: int, bit_depth: int, write: Any
) -> None:
    picture = noise(41, 57, channels, bit_depth=bit_depth)
    image = EncodedImage(write(picture), "image")
    kept = Preprocessing(size=(41, 57), bit_depth=bit_depth, resize="squash", **statistics(channels))
    assert torch.equal(image.pixels(kept).long(), torch.from_numpy(picture.astype(np.int64)))

    smaller = Preprocessing(size=(20, 30), bit_depth=bit_depth, resize="squash", **statistics(channels))
    exact = resampled(picture.astype(np.float64), (20, 30), "bicubic").clip(0, 2**bit_depth - 1)
    rounding = 2 if bit_depth == 8 and channels in (1, 3) else 1  # Pillow rounds once for each direction
    assert np.abs(image.pixels(smaller).numpy() - exact).max() <= rounding * (0.5 + 2**bit_depth * 4e-6)


@pytest.mark.parametrize("colors", [1, 3])
def test_transparency_of_a_deep_png_is_ignored_unless_it_is_a_channel(colors: int) -> None:
    picture = noise(20, 30, colors + 1, bit_depth=16)
    preprocessing = Preprocessing(size=(20, 30), bit_depth=16, **statistics(colors))
    found = EncodedImage(png(picture), "image").pixels(preprocessing)
    assert torch.equal(found.long(), torch.from_numpy(picture[..., :colors].astype(np.int64)))


@pytest.mark.parametrize("write", [npy, tiff, big_endian])
@pytest.mark.parametrize("channels", [1, 4])
def test_floats_are_scaled_by_their_range_and_never_cut_off(channels: int, write: Any) -> None:
    """A reflectance from -1 to 3, where a few values are out of the declared range."""
    picture = np.random.default_rng(0).uniform(-2, 5, size=(20, 30, channels)).astype(np.float32)
    preprocessing = Preprocessing(size=(20, 30), value_range=(-1.0, 3.0), **statistics(channels))
    pixels = EncodedImage(write(picture), "image").pixels(preprocessing)
    assert torch.equal(pixels, torch.from_numpy(picture))

    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    expected = (((picture.astype(np.float64) + 1) / 4 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(preprocessing.normalize(pixels[None])[0].numpy(), expected, atol=2e-6)


def test_integers_of_another_range() -> None:
    """16-bit scans that use the values from 1,000 to 5,000."""
    picture = np.random.default_rng(0).integers(1000, 5000, size=(20, 30, 1)).astype(np.uint16)
    preprocessing = Preprocessing(size=(20, 30), channels=1, mean=(0.0,), std=(1.0,), value_range=(1000.0, 5000.0))
    scaled = preprocessing.normalize(EncodedImage(tiff(picture), "image").pixels(preprocessing)[None])[0, 0]
    np.testing.assert_allclose(scaled.numpy(), (picture[..., 0] - 1000) / 4000, atol=1e-6)


def test_a_palette_gives_its_colors_with_a_range_too() -> None:
    colors = Image.fromarray(noise(8, 8, 3)).quantize(16)
    preprocessing = Preprocessing(size=(8, 8), value_range=(0.0, 255.0))
    assert torch.equal(preprocessing.pixels(colors), torch.from_numpy(np.array(colors.convert("RGB"))).float())


DEEP = {"channels": 1, "bit_depth": 16, "mean": (0.5,), "std": (0.5,)}


@pytest.mark.parametrize(
    ("data", "own", "line"),
    [
        (bands(noise(8, 8, 6)), statistics(5), "it has 6 channels, not the 5 of data.channels"),
        (npy(np.zeros((2, 8, 8, 3))), statistics(5), r"it has the shape \(2, 8, 8, 3\), not the 5 of data.channels"),
        (pages(noise(8, 8, 3)), statistics(1), "it has 3 channels, not the 1 of data.channels"),
        (pillow(noise(8, 8, 1), "PNG"), DEEP, "holds 8 bits, not the 16 of bit_depth"),
        (npy(noise(8, 8, 1)), DEEP, "holds 8 bits, not the 16 of bit_depth"),
        (
            npy(np.full((8, 8), 5000, np.uint16)),
            DEEP | {"bit_depth": 12},
            "from 5000 to 5000: must be 0 to 4095",
        ),
        (
            npy(np.zeros((8, 8), np.float32)),
            DEEP,
            "must hold integers from 0 to 65535; only a run with data.value_range takes floats",
        ),
        (npy(np.full((8, 8), np.nan)), DEEP | {"value_range": (0.0, 1.0)}, "infinite or not a number"),
        (
            npy(noise(8, 8, 3, bit_depth=16)),
            {},
            r"it holds uint16 of shape \(8, 8, 3\), not uint8 with 1 or 3 channels; data.value_range takes floats,",
        ),
        (npy(noise(8, 8, 6))[:-7], statistics(6), r"its data is cut off; its header says \(8, 8, 6\) of uint8"),
        (npy(np.array([[object()]])), statistics(6), "Object arrays cannot be loaded"),
        (bands(noise(8, 8, 6))[:60], statistics(6), ""),
        (b"II*\x00 no TIFF", statistics(6), ""),
        (npy(noise(200, 200, 6)), statistics(6), "it has more pixels than data.max_pixels=1000 allows"),
        (bands(noise(200, 200, 6)), statistics(6), "it has more pixels than data.max_pixels=1000 allows"),
        (png(noise(200, 200, 3, bit_depth=16)), {"bit_depth": 16}, "it has more pixels than data.max_pixels=1000"),
        (
            tiff(noise(8, 8, 6), extratags=[(274, 3, 1, 6, True)]),
            statistics(6),
            "orientation is 6; save it upright",
        ),
        (turned(6), DEEP, "orientation is 6; save it upright"),
    ],
)
def test_what_does_not_fit_is_named(data: bytes, own: dict[str, Any], line: str) -> None:
    with pytest.raises(BrokenImageError, match=rf"^scan\.x: cannot be decoded \(.*{line}"):
        EncodedImage(data, "scan.x", max_pixels=1000).pixels(Preprocessing(**own))


def test_a_deep_png_whose_exif_data_say_upright_is_read() -> None:
    expected = noise(8, 9, 1, bit_depth=16)
    np.testing.assert_array_equal(EncodedImage(turned(1), "scan.png").whole(Preprocessing(**DEEP)), expected)


def test_pages_that_are_not_used_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a few kilobytes may hold thousands of empty pages."""
    monkeypatch.setattr(tifffile.TiffPageSeries, "asarray", lambda _: pytest.fail("all pages are decoded"))
    with pytest.raises(BrokenImageError, match="it has 2000 channels, not the 4"):
        EncodedImage(pages(np.zeros((8, 8, 2000), np.uint8)), "scan.tif").pixels(Preprocessing(**statistics(4)))


# Made while imagecodecs is there.
DEEP_COLORS = png(noise(8, 8, 3, bit_depth=16))
DEEP_GRAY = png(np.arange(2**16, dtype=np.uint16).reshape(256, 256, 1))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tifffile", None)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    for name, package, data, channels in (
        ("scan.tif", "tifffile", bands(noise(8, 8, 6)), 6),
        ("scan.png", "imagecodecs", DEEP_COLORS, 3),
    ):
        with pytest.raises(InputError) as caught:
            EncodedImage(data, name).pixels(Preprocessing(bit_depth=16, **statistics(channels)))
        assert str(caught.value) == f"{name}: needs {package} to be read; pip install 'xcit[images]'"


def test_a_gray_png_with_16_bits_is_read_exactly_without_imagecodecs(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = np.arange(2**16, dtype=np.uint16).reshape(256, 256, 1)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    kept = Preprocessing(size=(256, 256), bit_depth=16, **statistics(1))
    for data in (pillow(picture, "PNG"), DEEP_GRAY):
        pixels = EncodedImage(data, "scan.png").pixels(kept)
        assert torch.equal(pixels.long(), torch.from_numpy(picture.astype(np.int64)))


@pytest.mark.parametrize(("bit_depth", "deep"), [(8, False), (16, True)])
@pytest.mark.parametrize("write", [png, lambda array: tiff(array[..., 0]), lambda array: pillow(array[..., 0], "PNG")])
def test_deep_images_are_known_by_their_header(write: Any, bit_depth: int, deep: bool) -> None:
    assert EncodedImage(write(noise(8, 8, 3, bit_depth=bit_depth)), "image").has_more_than_8_bits() is deep
