"""Preprocessing gives timm's pixels, for any number of channels and any bit depth."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from data.normalize import Normalize
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing

INTERPOLATIONS = ("bicubic", "bilinear")


def noise(height: int, width: int, *channels: int, bit_depth: int = 8, seed: int = 0) -> np.ndarray:
    """Returns noise over the whole range of values, so that any wrong pixel shows."""
    random = np.random.default_rng(seed)
    dtype = np.uint8 if bit_depth == 8 else np.uint16
    return random.integers(0, 2**bit_depth, size=(height, width, *channels), dtype=dtype)


def statistics(channels: int) -> dict[str, Any]:
    """Returns a mean and a standard deviation that differ between channels."""
    values = [0.3 + 0.1 * channel for channel in range(channels)]
    return {"channels": channels, "mean": tuple(values), "std": tuple(value / 2 for value in values)}


def uint8(image: Image.Image) -> Tensor:
    """Returns the pixels of a Pillow image as (H, W, C)."""
    return pil_to_tensor(image).permute(1, 2, 0)


# Pillow images: the pixels are timm's.


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_of_a_square_are_timms_bit_for_bit(interpolation: str, mode: str) -> None:
    """This holds for many image sizes, target sizes and crop ratios, and for very long and very small images."""
    random = np.random.default_rng(1)
    sizes = [tuple(random.integers(8, 130, size=2).tolist()) for _ in range(60)]
    for number, (height, width) in enumerate([*sizes, (3, 200), (200, 3), (1, 1), (64, 64), (97, 48), (48, 97)]):
        size, crop_ratio = int(random.integers(4, 90)), float(random.choice([1.0, 0.95, 0.875, random.uniform(0.3, 1)]))
        image = Image.fromarray(noise(height, width, 3, seed=number)).convert(mode)
        timms = create_transform(size, crop_pct=crop_ratio, crop_mode="center", interpolation=interpolation)
        resize, crop = timms.transforms[:2]
        ours = Preprocessing((size, size), crop_ratio=crop_ratio, interpolation=interpolation, **statistics(len(mode)))
        found = ours.pixels(image)
        assert torch.equal(found, uint8(crop(resize(image)))), (height, width, size, crop_ratio)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("resize", "crop_mode"), [("squash", "squash"), ("letterbox", "border")])
@pytest.mark.parametrize("size", [(32, 32), (20, 44), (44, 20)])
def test_squash_and_letterbox_are_timms_bit_for_bit(
    size: tuple[int, int], resize: Any, crop_mode: str, interpolation: str
) -> None:
    """The crop ratio is 1 and the sides divide evenly, because timm rounds sizes and Preprocessing truncates them."""
    for number, (height, width) in enumerate([(64, 64), (44, 88), (88, 44), (44, 44), (22, 11)]):
        image = Image.fromarray(noise(height, width, 3, seed=number))
        timms = create_transform(size, crop_pct=1.0, crop_mode=crop_mode, interpolation=interpolation).transforms[:2]
        ours = Preprocessing(size=size, resize=resize, interpolation=interpolation)
        assert torch.equal(ours.pixels(image), uint8(timms[1](timms[0](image)))), (height, width)


@pytest.mark.parametrize(
    ("image", "size", "resized"),
    [
        ((60, 80), (30, 20), (30, 40)),  # the height decides, and columns are cut off
        ((60, 80), (15, 60), (45, 60)),  # the width decides, and rows are cut off
        ((60, 80), (90, 120), (90, 120)),  # the same shape: nothing is cut off
        ((61, 79), (30, 20), (30, 38)),  # 38.85 columns: the fraction is dropped, as timm does for squares
    ],
)
def test_a_size_that_is_not_square_gets_a_center_crop(
    image: tuple[int, int], size: tuple[int, int], resized: tuple[int, int]
) -> None:
    picture = Image.fromarray(noise(*image, 3))
    whole = uint8(picture.resize(resized[::-1], Image.Resampling.BICUBIC))
    top, left = round((resized[0] - size[0]) / 2), round((resized[1] - size[1]) / 2)
    expected = whole[top : top + size[0], left : left + size[1]]
    found = Preprocessing(size=size).pixels(picture)
    assert found.shape == (*size, 3)
    assert torch.equal(found, expected)


def test_a_crop_ratio_below_1_keeps_less_of_the_image() -> None:
    picture = Image.fromarray(noise(60, 60, 3))
    whole = uint8(picture.resize((40, 40), Image.Resampling.BICUBIC))
    assert torch.equal(Preprocessing(size=(30, 20), crop_ratio=0.75).pixels(picture), whole[5:35, 7:33][:, 3:23])


# Letterbox and squash.


@pytest.mark.parametrize("bit_depth", [8, 12])
@pytest.mark.parametrize(
    ("image", "inside"),
    [
        ((30, 60), (slice(12, 36), slice(0, 48))),  # wide: rows of padding above and below
        ((60, 30), (slice(0, 48), slice(12, 36))),  # tall: columns of padding left and right
        ((10, 10), (slice(0, 48), slice(0, 48))),  # square: none
    ],
)
def test_letterbox_keeps_the_whole_image_and_pads_with_zero(
    image: tuple[int, int], inside: tuple[slice, slice], bit_depth: int
) -> None:
    preprocessing = Preprocessing(size=(48, 48), bit_depth=bit_depth, resize="letterbox")
    picture = noise(*image, 3, bit_depth=bit_depth)
    given = Image.fromarray(picture) if bit_depth == 8 else picture
    made = preprocessing([given])[0]
    outside = torch.ones(48, 48, dtype=torch.bool)
    outside[inside] = False
    rounding = 0.5 / preprocessing.bounds[1] / min(preprocessing.std)
    assert made[:, outside].abs().le(rounding * 1.001).all()

    shape = tuple(part.stop - part.start for part in inside)
    squashed = Preprocessing(size=shape, bit_depth=bit_depth, resize="squash")([given])[0]
    assert torch.equal(made[:, *inside], squashed)


def test_letterbox_in_a_size_that_is_not_square() -> None:
    picture = Image.fromarray(noise(30, 30, 3))
    made = Preprocessing(size=(20, 50), resize="letterbox").pixels(picture)
    assert torch.equal(made[:, 15:35], uint8(picture.resize((20, 20), Image.Resampling.BICUBIC)))
    assert len(torch.cat([made[:, :15], made[:, 35:]], dim=1).reshape(-1, 3).unique(dim=0)) == 1


def test_squash_ignores_the_aspect_ratio() -> None:
    picture = Image.fromarray(noise(30, 70, 3))
    made = Preprocessing(size=(40, 24), resize="squash").pixels(picture)
    assert torch.equal(made, uint8(picture.resize((24, 40), Image.Resampling.BICUBIC)))


# Channels and bit depths.


def resampled(values: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resizes (H, W, C) in float64 with antialiasing, first rows, then columns, as Pillow and torch do."""
    for axis, wanted in enumerate(size):
        values = np.moveaxis(
            np.tensordot(kernels(values.shape[axis], wanted, interpolation), values, (1, axis)), 0, axis
        )
    return values


def kernels(given: int, wanted: int, interpolation: str) -> np.ndarray:
    """Returns (wanted, given), the weight of each input pixel in each output pixel. Keys's cubic has a = -1/2."""
    stretch = max(given / wanted, 1.0)
    center = (np.arange(wanted)[:, None] + 0.5) * given / wanted
    x = np.abs(np.arange(given) + 0.5 - center) / stretch
    if interpolation == "bilinear":
        weights = np.maximum(0, 1 - x)
    else:
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(("channels", "bit_depth"), [(1, 8), (1, 16), (2, 16), (3, 12), (4, 8), (4, 16)])
def test_arrays_of_any_channels_and_bit_depth_are_resized_within_rounding(
    channels: int, bit_depth: int, interpolation: str
) -> None:
    picture = noise(41, 57, channels, bit_depth=bit_depth)
    for size in ((20, 20), (60, 48), (30, 62)):
        preprocessing = Preprocessing(
            size=size, bit_depth=bit_depth, resize="squash", interpolation=interpolation, **statistics(channels)
        )
        exact = resampled(picture.astype(np.float64), size, interpolation).clip(0, 2**bit_depth - 1)
        for given in (picture, torch.from_numpy(picture.astype(np.int32))):
            found = preprocessing.pixels(given)
            assert found.dtype == (torch.uint8 if bit_depth == 8 else torch.int32)
            assert np.abs(found.numpy() - exact).max() <= 0.5 + 2**bit_depth * 4e-6, (
                "half a step, and the rounding of fp32"
            )

        mean, std = (np.array(statistics(channels)[key]) for key in ("mean", "std"))
        expected = ((found.numpy() / (2**bit_depth - 1) - mean) / std).transpose(2, 0, 1)
        np.testing.assert_allclose(preprocessing([picture])[0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(41, 57), (24, 24)])
def test_pillow_images_keep_16_bits(size: tuple[int, int]) -> None:
    picture = noise(41, 57, bit_depth=16)
    image = Image.fromarray(picture)
    assert image.mode == "I;16"
    preprocessing = Preprocessing(size=size, bit_depth=16, **statistics(1))
    assert torch.equal(preprocessing.pixels(image), preprocessing.pixels(picture))
    assert preprocessing.pixels(image).max() > 40_000, "not 8 bits of them"
    if size == (41, 57):
        assert np.array_equal(preprocessing.pixels(image)[..., 0], picture)


def test_images_are_converted_to_the_models_channels() -> None:
    grey = Image.fromarray(noise(9, 9))
    assert torch.equal(Preprocessing(size=(9, 9)).pixels(grey), uint8(grey).expand(9, 9, 3))
    four = Image.fromarray(noise(9, 9, 4), "RGBA")
    assert torch.equal(Preprocessing(size=(9, 9), **statistics(4)).pixels(four), uint8(four))
    assert torch.equal(Preprocessing(size=(9, 9)).pixels(four), uint8(four)[..., :3])


def test_a_list_of_all_kinds_of_pictures_becomes_one_batch() -> None:
    array = noise(30, 20, 3)
    pictures = [Image.fromarray(noise(20, 30, 3)), array, torch.from_numpy(array)]
    batch = Preprocessing(size=(16, 24))(pictures)
    assert (batch.shape, batch.dtype) == ((3, 3, 16, 24), torch.float32)
    assert torch.equal(batch[1], batch[2])
    assert batch.is_contiguous(memory_format=torch.channels_last)


PHOTO = noise(20, 30, 3)


@pytest.mark.parametrize("images", [Image.fromarray(PHOTO), PHOTO, torch.from_numpy(PHOTO), Path("a.jpg"), None])
def test_one_image_in_place_of_a_list_is_refused(images: Any) -> None:
    line = f"images of type {type(images).__name__}: must be a list of images; [image] for one"
    with pytest.raises(InputError, match=re.escape(line)):
        Preprocessing()(images)


@pytest.mark.parametrize(
    ("images", "line"),
    [
        ([], "images: must hold at least one image"),
        ("a.jpg", "image of type str: must be a Pillow image (of a file: PIL.Image.open), an array or a tensor"),
        ([Path("a.jpg")], "image of type PosixPath: must be a Pillow image (of a file: PIL.Image.open)"),
        ([None], "image of type NoneType: must be a Pillow image"),
        ([[[1], [1, 2]]], "image of type list: must be a Pillow image"),
        ([Image.new("RGB", (0, 5))], "image of 5 × 0 pixels: must have at least one"),
        ([PHOTO[:0]], "image of 0 × 30 pixels: must have at least one"),
    ],
)
def test_what_is_no_image_is_refused(images: Any, line: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(line)}"):
        Preprocessing()(images)


# Normalization.


@pytest.mark.parametrize(("channels", "bit_depth"), [(1, 8), (3, 8), (4, 8), (3, 16)])
def test_normalize_is_the_loaders_bit_for_bit(channels: int, bit_depth: int) -> None:
    own = Preprocessing(bit_depth=bit_depth, **statistics(channels))
    pixels = torch.from_numpy(noise(5, 13 * 17, channels, bit_depth=bit_depth).astype(np.int32)).view(
        5, 13, 17, channels
    )
    pixels = pixels.to(torch.uint8) if bit_depth == 8 else pixels
    before = pixels.clone()
    ours, loaders = own.normalize(pixels), Normalize(own)(pixels)
    assert torch.equal(ours, loaders)
    assert ours.stride() == loaders.stride()
    assert torch.equal(pixels, before)


def test_denormalize_inverts_normalize() -> None:
    own = Preprocessing(size=(7, 9))
    pixels = torch.from_numpy(noise(7, 9, 3))[None]
    assert torch.equal(own.denormalize(own.normalize(pixels)), pixels)
    assert own.denormalize(torch.full((1, 3, 2, 2), 99.0)).unique().tolist() == [255], "beyond white is white"
