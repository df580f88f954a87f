"""Fast random resized crops have the distribution of RandomResizedCrop and the pixels of Pillow's full decoding."""

import io
import random
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from scipy.stats import ks_2samp
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor

from data import crops
from data.crops import Box, random_box, random_resized_crop
from data.jpeg import Jpeg, read_jpeg
from data.transforms import TrainTransform
from xcit.encoded_image import BrokenImageError, EncodedImage
from xcit.preprocessing import Preprocessing

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def photograph(width: int, height: int) -> Image.Image:
    """Make an image of smooth colors with some grain, like a real one. Two decoders would differ on pure noise."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, size=(height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    return Image.fromarray((smooth + generator.integers(-6, 7, size=smooth.shape)).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> EncodedImage:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return EncodedImage(file.getvalue(), "mine/a.jpg")


def crop(image: EncodedImage, size: int, seed: int) -> Tensor:
    random.seed(seed)
    return random_resized_crop(image, Preprocessing(size=(size, size)), SCALE, RATIO).int()


@pytest.mark.parametrize("size", [(375, 500), (500, 333), (40, 400)])
def test_boxes_have_the_distribution_of_timms(size: tuple[int, int]) -> None:
    height, width = size
    random.seed(0)
    ours = [random_box(height, width, SCALE, RATIO) for _ in range(4000)]
    picture = Image.new("RGB", (width, height))
    theirs = [RandomResizedCropAndInterpolation.get_params(picture, SCALE, RATIO) for _ in range(4000)]
    assert all(box.top >= 0 and box.top + box.height <= height and box.left + box.width <= width for box in ours)
    for number in range(4):
        found = ks_2samp([box[number] for box in ours], [box[number] for box in theirs])
        assert found.pvalue > 1e-4, Box._fields[number]


FORMS: dict[str, dict[str, Any]] = {
    "4:2:0": {"subsampling": 2},
    "4:2:2": {"subsampling": 1},
    "4:4:4": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 2},
    "a thumbnail": {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00\x00\x00\x00\x00"},
}


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_those_of_the_whole_image(form: str) -> None:
    """The rows are equal bit for bit, down to the last row that was requested."""
    image = encoded(photograph(117, 93), quality=95, **FORMS[form])
    jpeg, whole = read_jpeg(image), simplejpeg.decode_jpeg(image.data)
    assert jpeg is not None
    assert (jpeg.height_offset is None) == (form == "progressive")
    for bottom in (1, 15, 16, 31, 32, 80, 92, 93):
        rows = jpeg.decode_rows(bottom, 1)
        assert rows is not None
        assert np.array_equal(rows[:bottom], whole[:bottom])
        assert len(rows) < bottom + 33 or form == "progressive"


@pytest.mark.parametrize("form", FORMS)
def test_pixels_are_the_plain_ways(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels differ by at most 2 of 255. simplejpeg or Pillow decodes; the resize is the same."""
    image = encoded(photograph(213, 161), quality=95, **FORMS[form])
    fast = [crop(image, 48, seed) for seed in range(20)]
    monkeypatch.setattr(crops, "read_jpeg", lambda image: None)
    for seed, pixels in enumerate(fast):
        assert (pixels - crop(image, 48, seed)).abs().max() <= 2


def test_a_large_image_is_decoded_at_a_part_of_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels differ by less than 2 of 255 on average, and 99.9 % of them by at most 8.

    Decoding at reduced size rounds the edges of a box. This test draws boxes that need no rounding.
    """

    def even_box(*arguments: Any) -> Box:
        return Box(*(8 * (edge // 8) for edge in random_box(*arguments)))

    image, decode_rows, scales = encoded(photograph(1200, 900), quality=95), Jpeg.decode_rows, []

    def recorded(jpeg: Jpeg, bottom: int, scale: int) -> np.ndarray | None:
        scales.append(scale)
        return decode_rows(jpeg, bottom, scale)

    monkeypatch.setattr(crops, "random_box", even_box)
    monkeypatch.setattr(Jpeg, "decode_rows", recorded)
    fast = [crop(image, 48, seed) for seed in range(20)]
    assert set(scales) >= {4, 8}
    monkeypatch.setattr(crops, "read_jpeg", lambda image: None)
    for seed, pixels in enumerate(fast):
        difference = (pixels - crop(image, 48, seed)).abs().float()
        assert difference.mean() < 2
        assert difference.quantile(0.999) <= 8


def turned(image: Image.Image) -> EncodedImage:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image.rotate(90, expand=True), quality=95, exif=exif)


def not_strict(image: Image.Image) -> EncodedImage:
    """Add bytes between two segments. simplejpeg's strict mode refuses them, and Pillow ignores them."""
    data = encoded(image, quality=95).data
    at = data.index(b"\xff\xda")
    return EncodedImage(data[:at] + b"\x00\x00\x00" + data[at:], "mine/a.jpg")


def deep(image: Image.Image) -> EncodedImage:
    gray = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(gray), "PNG")


def odd_exif(image: Image.Image) -> EncodedImage:
    """Add invalid EXIF data, which Pillow ignores."""
    return encoded(image, quality=95, exif=b"Exif\x00\x00neither order of bytes")


OTHERS = {
    "odd EXIF": odd_exif,
    "PNG": lambda image: encoded(image, "PNG"),
    "WebP": lambda image: encoded(image, "WEBP", quality=100),
    "gray JPEG": lambda image: encoded(image.convert("L"), quality=95),
    "CMYK JPEG": lambda image: encoded(image.convert("CMYK"), quality=95),
    "RGB JPEG": lambda image: encoded(image, quality=95, keep_rgb=True),
    "EXIF orientation": turned,
    "16 bits": deep,
    "palette": lambda image: encoded(image.quantize(256), "PNG"),
    "animated": lambda image: encoded(image, "GIF", save_all=True, append_images=[Image.new("RGB", image.size)]),
    "not strict": not_strict,
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_right_too(kind: str) -> None:
    """The output has an eighth of the image's size, so that grain and palettes make little difference."""
    picture = photograph(320, 320)
    expected = torch.from_numpy(np.array(picture.resize((40, 40), Image.Resampling.BICUBIC))).float()
    if kind in ("gray JPEG", "16 bits"):
        expected = torch.from_numpy(np.array(picture.convert("L").resize((40, 40), Image.Resampling.BICUBIC)))
        expected = expected[..., None].expand(40, 40, 3).float()
    transform = TrainTransform(
        Preprocessing(size=(40, 40)),
        scale=(1, 1),
        ratio=(1, 1),
        hflip=0,
        color_jitter=0,
        rand_augment=None,
        erase_prob=0,
    )
    found = transform(OTHERS[kind](picture)).float()
    assert (found - expected).abs().mean() < (6 if kind in ("palette", "animated") else 2)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_jpeg_is_broken_however_little_of_it_is_wanted(share: float) -> None:
    image = encoded(photograph(200, 160), quality=95)
    cut = EncodedImage(image.data[: int(len(image.data) * share)], "mine/a.jpg")
    for seed in range(5):
        with pytest.raises(BrokenImageError, match=r"^mine/a\.jpg: cannot be decoded"):
            crop(cut, 32, seed)


def test_a_bomb_is_refused_by_its_header() -> None:
    data = encoded(photograph(64, 64), quality=95).data
    at = data.index(b"\xff\xc0") + 5
    bomb = EncodedImage(data[:at] + b"\xff\xdc\xff\xdc" + data[at + 4 :], "mine/bomb.jpg")
    with pytest.raises(BrokenImageError, match=r"^mine/bomb\.jpg: cannot be decoded \(it has more pixels"):
        crop(bomb, 32, 0)
