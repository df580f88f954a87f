"""Index masks: every way to store indices is read exactly, masks follow the image's orientation, bad ones are named."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.index_mask import IGNORED, IndexMask, Labels
from xcit.encoded_image import BrokenImageError, EncodedImage
from xcit.orientation import EXIF_ORIENTATION, upright

INDICES = np.arange(12, dtype=np.uint8).reshape(3, 4)
PLAIN = Labels({value: value for value in range(12)}, [255])


def encoded(image: Image.Image, name: str, kind: str = "PNG", **options: Any) -> EncodedImage:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return EncodedImage(file.getvalue(), name)


def photograph(height: int, width: int, orientation: int = 1) -> EncodedImage:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return encoded(Image.new("RGB", (width, height)), "a.jpg", "JPEG", exif=exif)


def mask_of(image: Image.Image, labels: Labels = PLAIN, of: EncodedImage | None = None, **options: Any) -> IndexMask:
    file = encoded(image, "a.png", **options)
    return IndexMask(file, labels, of or photograph(image.height, image.width))


def gray_png(bits: int, values: np.ndarray) -> bytes:
    """A PNG with gray values of 1, 2 or 4 bits, which Pillow does not write."""
    rows = []
    for row in values:
        packed = np.unpackbits(row[:, None], axis=1)[:, 8 - bits :]
        rows.append(b"\0" + np.packbits(packed.reshape(-1)).tobytes())

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_gray_palette_and_16_bit_masks_give_their_indices() -> None:
    palette = Image.fromarray(INDICES)
    palette.putpalette([(37 * step) % 256 for step in range(768)])
    for image in (Image.fromarray(INDICES), palette, Image.fromarray(INDICES.astype(np.uint16))):
        found = mask_of(image).decode()
        assert found.dtype == np.int16 and np.array_equal(found, INDICES)
    few = palette.quantize(4) if palette.mode != "P" else palette
    few = Image.fromarray(INDICES % 4)
    few.putpalette([0, 0, 0, 9, 9, 9, 0, 200, 0, 1, 2, 3])
    assert np.array_equal(mask_of(few, bits=2).decode(), INDICES % 4)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_gray_values_of_few_bits_are_not_scaled(bits: int) -> None:
    values = INDICES % 2**bits
    mask = IndexMask(EncodedImage(gray_png(bits, values), "a.png"), PLAIN, photograph(3, 4))
    assert np.array_equal(mask.decode(), values)


def test_values_are_mapped_exactly() -> None:
    labels = Labels({7: 0, 8: 1, 40_000: 2}, [255, 0])
    values = np.array([[7, 8, 40_000], [0, 255, 7]], dtype=np.uint16)
    assert mask_of(Image.fromarray(values), labels).decode().tolist() == [[0, 1, 2], [IGNORED, IGNORED, 0]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn_upright", [True, False])
def test_a_mask_follows_the_orientation_of_its_image(orientation: int, drawn_upright: bool) -> None:
    """The size says whether the mask was drawn on the stored image. If it does not, the mask is upright."""
    stored = Image.fromarray(INDICES)
    stored.getexif()[EXIF_ORIENTATION] = orientation
    turned = upright(stored)
    drawn = turned if drawn_upright else Image.fromarray(INDICES)
    found = mask_of(drawn, of=photograph(3, 4, orientation)).decode()
    ambiguous = orientation <= 4
    assert np.array_equal(found, np.asarray(drawn if ambiguous else turned))


def refusal(mask: IndexMask) -> str:
    with pytest.raises(BrokenImageError) as refused:
        mask.decode()
    return str(refused.value)


def test_a_mask_of_another_size_is_named_with_both_sizes() -> None:
    image = Image.fromarray(INDICES)
    line = "a.png: has 3 × 4 pixels (height × width); must be {}, as a.jpg has"
    assert refusal(mask_of(image, of=photograph(3, 5))) == line.format("3 × 5")
    assert refusal(mask_of(image, of=photograph(6, 8))) == line.format("6 × 8")
    # The sides are swapped, but the image is not turned.
    assert refusal(mask_of(image, of=photograph(4, 3))) == line.format("4 × 3")


def test_a_value_out_of_range_is_named_with_what_is_accepted() -> None:
    ade = Labels({value: value - 1 for value in range(1, 151)}, [0])
    values = np.full((2, 2), 5, dtype=np.uint8)
    values[1, 1] = 151
    line = "a.png: holds the value 151; must be 1 to 150, or 0, which is ignored"
    assert refusal(mask_of(Image.fromarray(values), ade)) == line
    line = "a.png: holds the value 8 and 3 other wrong values; must be 0, 2 to 4 or 7"
    some = Labels({0: 0, 2: 1, 3: 2, 4: 3, 7: 4}, [])
    wrong = np.array([[0, 2, 8], [9, 10, 11]], dtype=np.uint8)
    assert refusal(mask_of(Image.fromarray(wrong), some)) == line


def test_what_is_no_index_mask_is_refused() -> None:
    rgb = Image.new("RGB", (4, 3))
    must = "a mask must hold one index a pixel, as palette or gray values"
    assert refusal(mask_of(rgb)) == f"a.png: is an image of mode RGB; {must}"
    assert refusal(mask_of(Image.new("LA", (4, 3)))) == f"a.png: is an image of mode LA; {must}"
    broken = IndexMask(EncodedImage(b"no image", "a.png"), PLAIN, photograph(3, 4))
    assert refusal(broken) == "a.png: cannot be decoded (unknown image format)"
    whole = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64), dtype=np.uint8)), "a.png").data
    cut = IndexMask(EncodedImage(whole[: len(whole) // 2], "a.png"), PLAIN, photograph(64, 64))
    assert refusal(cut).startswith("a.png: cannot be decoded (")
