"""JPEGs, decoded no further than needed: down to a crop's last row, at a half, a quarter or an eighth of the size.

Decoding is most of what an augmented image costs, and most of decoding is to undo the Huffman code, which can be left
off only at the end. So the frame's height is set to what is wanted, and the decoder stops there.
"""

import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from .encoded_image import MAX_PIXELS, EncodedImage

UPRIGHT, ORIENTATION = 1, 0x0112
SCALES = (8, 4, 2)
BLOCK_ROWS = 16
"""A baseline image is decoded in rows of blocks that are as high at most."""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A JPEG of three components (YCbCr) and eight bits that lies upright and is not cut off."""

    image: EncodedImage
    width: int
    height: int
    height_at: int | None
    """Where the frame's height stands, in an image that can be decoded in part: one scan, from top to bottom."""

    def rows(self, bottom: int, scale: int) -> np.ndarray | None:
        """The rows from 0 to `bottom` at least, of the image at 1 / scale: (rows / scale, width / scale, 3), uint8.

        None where the decoder has something to object: then what is right is Pillow's to say.
        """
        data: bytes | bytearray = self.image.data
        height = self.height
        wanted = -(-(bottom + 1) // BLOCK_ROWS) * BLOCK_ROWS  # the last row's colours are mixed with the next one's
        in_part = self.height_at is not None and wanted < height
        if in_part:
            assert self.height_at is not None
            height = wanted
            data = bytearray(data)
            struct.pack_into(">H", data, self.height_at, height)
        try:
            # In part the decoder objects to what is left over, so that it may not be strict.
            return simplejpeg.decode_jpeg(
                data, min_height=-(-height // scale), min_width=-(-self.width // scale), strict=not in_part
            )
        except ValueError:
            return None


def read_jpeg(image: EncodedImage) -> Jpeg | None:
    """The header alone; None for other formats and for the JPEGs that go the plain way."""
    data = image.data
    if data[:2] != b"\xff\xd8" or b"\xff\xd9" not in data[-64:]:
        return None
    try:
        return read_header(image)
    except (struct.error, IndexError, SyntaxError, ValueError, OSError):  # of a header, or an EXIF, that breaks off
        return None


def read_header(image: EncodedImage) -> Jpeg | None:
    data, at, frame = image.data, 2, None
    while True:
        marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if data[at] != 0xFF:
            return None
        if marker == 0xDA:  # the first scan: of all components, or of one of several
            if frame is None:
                return None
            kind, height, width, height_at = frame
            whole = kind != 0xC2 and data[at + 4] == 3
            return Jpeg(image, width, height, height_at if whole else None)
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            precision, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if precision != 8 or components != 3 or not 0 < height * width <= MAX_PIXELS:
                return None
            frame = marker, height, width, at + 5
        elif marker == 0xE1 and data[at + 4 : at + 8] == b"Exif":
            exif = Image.Exif()
            exif.load(data[at + 4 : at + 2 + length])
            if exif.get(ORIENTATION, UPRIGHT) != UPRIGHT:
                return None
        elif marker == 0xEE and data[at + 4 : at + 9] == b"Adobe" and data[at + 15] != 1:  # not YCbCr
            return None
        at += 2 + length
