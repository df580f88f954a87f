"""Decodes only the part of a JPEG that a crop needs: the rows above its lower edge, at reduced size where possible.

Decoding takes most of the time of an augmented image, and Huffman decoding most of that. Huffman decoding must start at
the top of the image, but it may stop early. So this module writes a smaller height into the JPEG's frame header, and
the decoder stops there.
"""

import re
import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from xcit.encoded_image import EncodedImage
from xcit.orientation import EXIF_ORIENTATION

UPRIGHT = 1
"""The value of EXIF's orientation for an upright image."""
XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
"""The orientation in XMP data, which counts for Pillow if the EXIF data have none."""
SCALES = (8, 4, 2)
"""libjpeg-turbo can decode at 1/8, 1/4 or 1/2 of the size."""
BLOCK_ROWS = 16
"""The largest height of a row of blocks in a baseline JPEG. The decoder works on whole rows of blocks."""


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A complete, upright JPEG with three components (YCbCr) of 8 bits, and what its header says."""

    image: EncodedImage
    width: int
    """In pixels."""
    height: int
    """In pixels."""
    height_offset: int | None
    """Offset in bytes of the frame's height. None if the JPEG has several scans: it cannot be decoded in part."""

    def decode_rows(self, bottom: int, scale: int) -> np.ndarray | None:
        """Decode the rows from 0 to at least `bottom`, at 1 / scale of the size.

        Args:
            bottom: Number of rows that are needed, in pixels of the full size.
            scale: 1, or one of SCALES.

        Returns:
            (rows / scale, width / scale, 3), uint8; or None if the decoder reports an error. The caller should then
            use Pillow, which decodes some of these images and has an error message for the others.
        """
        data: bytes | bytearray = self.image.data
        height = self.height
        # Decode one row more than needed, since chroma upsampling of the last row also reads the next one.
        needed = -(-(bottom + 1) // BLOCK_ROWS) * BLOCK_ROWS
        in_part = self.height_offset is not None and needed < height
        if in_part:
            assert self.height_offset is not None
            height = needed
            data = bytearray(data)
            struct.pack_into(">H", data, self.height_offset, height)
        try:
            # After the last row the decoder finds data left over. In strict mode it would report that as an error.
            return simplejpeg.decode_jpeg(
                data, min_height=-(-height // scale), min_width=-(-self.width // scale), strict=not in_part
            )
        except ValueError:
            return None


def read_jpeg(image: EncodedImage) -> Jpeg | None:
    """Read the header of a JPEG. Return None for other formats and for JPEGs that Pillow should decode."""
    data = image.data
    # A JPEG starts with the marker SOI, and a complete one ends with EOI.
    if data[:2] != b"\xff\xd8" or b"\xff\xd9" not in data[-64:]:
        return None
    try:
        return read_header(image)
    except Exception:  # the header or its EXIF data are damaged, and the error depends on the damage
        return None


def read_header(image: EncodedImage) -> Jpeg | None:
    """Read the segments of a JPEG up to the first scan. Return None as soon as one rules out fast decoding."""
    data, at, frame = image.data, 2, None
    while True:
        # Each segment is 0xFF, its marker, its length, its content.
        marker, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if data[at] != 0xFF:
            return None
        # Start of scan: all segments of the header have been read.
        if marker == 0xDA:
            if frame is None:
                return None
            kind, height, width, height_offset = frame
            is_only_scan = kind != 0xC2 and data[at + 4] == 3  # not progressive, and with all three components
            return Jpeg(image, width, height, height_offset if is_only_scan else None)
        # Start of frame (baseline, extended, progressive): the size, and whether there are three components of 8 bits.
        if marker in (0xC0, 0xC1, 0xC2):
            precision, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
            if precision != 8 or components != 3 or not 0 < height * width <= image.max_pixels:
                return None
            frame = marker, height, width, at + 5
        # EXIF: Pillow decodes images that must be rotated or flipped.
        elif marker == 0xE1 and data[at + 4 : at + 8] == b"Exif":
            exif = Image.Exif()
            exif.load(data[at + 4 : at + 2 + length])
            if exif.get(EXIF_ORIENTATION, UPRIGHT) != UPRIGHT:
                return None
        elif marker == 0xE1 and (found := XMP_ORIENTATION.search(data, at + 4, at + 2 + length)):
            if int(found[1]) != UPRIGHT:
                return None
        # Adobe: a transform other than 1 means that the components are not YCbCr.
        elif marker == 0xEE and data[at + 4 : at + 9] == b"Adobe" and data[at + 15] != 1:
            return None
        at += 2 + length
