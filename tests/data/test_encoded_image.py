"""Every image that a person can open is read as it looks. Any other is named in one line, whatever Pillow raises."""

import io
import random
import struct
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from data.crops import random_resized_crop
from data.examples import Example
from data.viewed_examples import ViewedExamples
from xcit.encoded_image import BrokenImageError, EncodedImage, NotEnoughMemoryError, rgb
from xcit.orientation import upright
from xcit.preprocessing import Preprocessing

from .test_crops import encoded, photograph

RATIONAL, SIGNED_RATIONAL = 5, 10


def exif(orientation: int, value: tuple[int, int] = (1, 1), kind: int = SIGNED_RATIONAL) -> bytes:
    """EXIF data with an orientation and a rational number, the shutter speed."""
    after = 8 + 2 + 2 * 12 + 4
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0) + struct.pack(">HHII", 0x9201, kind, 1, after)
    number = struct.pack(">ii", *value)
    return b"Exif\x00\x00MM\x00*\x00\x00\x00\x08" + struct.pack(">H", 2) + entries + bytes(4) + number


def with_xmp(image: Image.Image, orientation: int) -> EncodedImage:
    return encoded(image, quality=95, xmp=f'<x tiff:Orientation="{orientation}"/>'.encode())


def whole(image: EncodedImage) -> torch.Tensor:
    """The whole image as training sees it, 12 × 12."""
    return random_resized_crop(image, Preprocessing(size=(12, 12)), (1, 1), (0.01, 100)).float()


def evaluated(image: EncodedImage) -> torch.Tensor:
    return Preprocessing(size=(12, 12), resize="squash").pixels(image.rgb()).float()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("value", [(-1, 0), (0, 0), (-(2**31), -1)])
def test_a_rotated_image_with_odd_exif_data_is_turned(kind: str, value: tuple[int, int]) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    odd = encoded(photograph(24, 16), kind, exif=exif(6, value), **options)
    plain = encoded(photograph(24, 16), kind, **options).rgb().transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(odd.rgb(), plain)
    assert torch.equal(Preprocessing(size=(8, 8)).pixels(Image.open(io.BytesIO(odd.data))), evaluated_at(plain, 8))
    assert whole(odd).shape == (12, 12, 3)


def evaluated_at(image: Image.Image, size: int) -> torch.Tensor:
    return Preprocessing(size=(size, size)).pixels(image)


@pytest.mark.parametrize("orientation", [0, *range(1, 10)])
def test_each_orientation_is_applied_once(orientation: int) -> None:
    stored = encoded(photograph(24, 16), "PNG", exif=exif(orientation))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(stored.data)))
    assert np.array_equal(stored.rgb(), expected)
    assert np.array_equal(upright(stored.rgb()), expected), "an upright image is not turned again"


@pytest.mark.parametrize("orientation", [1, 6])
def test_training_turns_an_image_as_evaluation_does(orientation: int) -> None:
    """XMP data may hold the orientation, too."""
    image = with_xmp(photograph(320, 160), orientation)
    assert image.rgb().size == ((160, 320) if orientation == 6 else (320, 160))
    assert (whole(image) - evaluated(image)).abs().mean() < 2


FORMATS = {
    "JPEG": "RGB",
    "PNG": "RGB",
    "WEBP": "RGB",
    "TIFF": "RGB",
    "AVIF": "RGB",
    "GIF": "P",
    "BMP": "RGB",
    "ICO": "RGB",
    "TGA": "RGB",
    "JPEG2000": "RGB",
    "PPM": "RGB",
    "QOI": "RGB",
    "DDS": "RGB",
    "BLP": "P",
    "ICNS": "RGB",
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_damaged_image_is_read_or_named_whatever_pillow_raises(kind: str) -> None:
    generator, file = random.Random(0), io.BytesIO()
    try:
        more = {"exif": exif(6)} if kind in ("JPEG", "PNG", "WEBP") else {}
        photograph(64, 64).convert(FORMATS[kind]).save(file, kind, **more)
    except (OSError, KeyError):
        pytest.skip(f"this Pillow cannot write {kind}")
    whole_file, failed = file.getvalue(), 0
    for _ in range(60):
        content = bytearray(whole_file[: generator.choice([len(whole_file), generator.randrange(len(whole_file))])])
        for _ in range(generator.choice([1, 2, 5])):
            if content:
                content[generator.randrange(min(len(content), generator.choice([64, 10**9])))] = generator.randrange(
                    256
                )
        for look in (EncodedImage.rgb, whole):
            try:
                look(EncodedImage(bytes(content), "mine/a"))
            except BrokenImageError as error:
                assert str(error).startswith("mine/a: cannot be decoded (") and "\n" not in str(error)
                failed += 1
    assert failed


GRAY = np.linspace(0, 255, 64).astype(np.uint8).reshape(8, 8)


def of_mode(mode: str) -> Image.Image:
    gray = Image.fromarray(GRAY)
    match mode:
        case "I;16":
            return Image.fromarray(GRAY.astype(np.uint16) * 257)
        case "I":
            return Image.fromarray(GRAY.astype(np.int32) * 257)
        case "LA":
            return Image.merge("LA", (gray, Image.new("L", (8, 8))))
        case "PA":
            return gray.convert("P").convert("PA")
        case "RGBA":
            return Image.merge("RGBA", (gray, gray, gray, Image.new("L", (8, 8))))
        case "LAB":
            return Image.merge("LAB", (gray, Image.new("L", (8, 8), 128), Image.new("L", (8, 8), 128)))
        case _:
            return gray.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I;16", "I", "LAB"])
def test_each_mode_is_read_with_its_colors(mode: str) -> None:
    """Transparency is ignored. Of LAB, Pillow takes the lightness for a gray level."""
    kind = "TIFF" if mode in ("PA", "CMYK", "I", "LAB") else "PNG"
    image = encoded(of_mode(mode), kind, **({"transparency": bytes(range(256))} if mode == "P" else {}))
    found = np.asarray(image.rgb()).astype(int)
    expected = np.asarray(of_mode("1")).astype(int) * 255 if mode == "1" else GRAY.astype(int)
    assert np.abs(found - expected[..., None]).max() <= (10 if mode == "LAB" else 0)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (
            np.full((8, 8), 0.5, np.float32),
            "it has floating-point pixels, whose range is unknown; give data.value_range, or",
        ),
        (np.full((8, 8), 70_000, np.int32), "its pixels are from 70000 to 70000;"),
        (np.full((8, 8), -1, np.int32), "its pixels are from -1 to -1;"),
    ],
)
def test_pixels_whose_range_nothing_tells_are_refused(pixels: np.ndarray, reason: str) -> None:
    image = encoded(Image.fromarray(pixels), "TIFF")
    for look in (EncodedImage.rgb, whole):
        with pytest.raises(BrokenImageError) as caught:
            look(image)
        assert str(caught.value) == f"mine/a.jpg: cannot be decoded ({reason} convert it to 8 or 16 bits)"


@pytest.mark.parametrize(
    ("kind", "dtype", "bits"), [("PNG", np.uint16, 16), ("TIFF", np.uint16, 16), ("TIFF", np.int32, 32)]
)
def test_8_bit_values_in_more_bits_do_not_become_a_black_image(kind: str, dtype: type, bits: int) -> None:
    for look in (EncodedImage.rgb, whole):
        with pytest.raises(BrokenImageError) as caught:
            look(encoded(Image.fromarray((GRAY // 4 * 4).astype(dtype)), kind))
        reason = f"its {bits}-bit pixels are at most 252, as 8-bit values; convert it to 8 bits"
        assert str(caught.value) == f"mine/a.jpg: cannot be decoded ({reason})"
        black = encoded(Image.fromarray(np.zeros_like(GRAY, dtype)), kind)
        assert not np.asarray(black.rgb()).any(), "a black image is one"


class One:
    """One example, whose image is `image`."""

    def __init__(self, image: EncodedImage) -> None:
        self.image = image

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Example:
        return Example(self.image, 0, self.image.origin)


class Decoded:
    def sample(self, example: Example) -> Image.Image:
        return rgb(example.image)


def test_an_image_is_not_broken_because_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    image = encoded(photograph(8, 8), "PNG")
    monkeypatch.setattr(Image, "open", fail)
    found = ViewedExamples(One(image), Decoded(), replace=True)[0, 0]  # type: ignore[arg-type]
    assert isinstance(found, NotEnoughMemoryError)
    assert str(found).startswith("mine/a.jpg: memory is too short to decode it; lower data.workers")
