"""The orientation of photographs, as their EXIF data say it."""

from typing import Any

EXIF_ORIENTATION = 0x0112
"""The number of EXIF's tag for the orientation. Its value is 1 for an upright image."""


MARKS = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""A PNG whose orientation is not upright holds one of these."""


def orientation_of(image: Any) -> int:
    """The EXIF orientation of a Pillow image; 1, upright, if it has none, an invalid one, or damaged EXIF data."""
    image.load()  # in some formats the EXIF data follow the pixels
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # depends on the kind of damage
        return 1
    return orientation if orientation in range(2, 9) else 1


def upright(image: Any) -> Any:
    """A Pillow image, turned and flipped as its EXIF orientation says, because cameras store photographs rotated.

    Only the orientation is read. Damaged EXIF data are ignored, as viewers do. (ImageOps.exif_transpose writes all
    EXIF data anew, and raises an error for values that it cannot write.)
    """
    from PIL.Image import Transpose  # here, since `import xcit` must not need it

    orientation = orientation_of(image)
    if orientation == 1:
        return image
    turns = (
        Transpose.FLIP_LEFT_RIGHT,
        Transpose.ROTATE_180,
        Transpose.FLIP_TOP_BOTTOM,
        Transpose.TRANSPOSE,
        Transpose.ROTATE_270,
        Transpose.TRANSVERSE,
        Transpose.ROTATE_90,
    )
    turned = image.transpose(turns[orientation - 2])
    # The copy is upright, so it must not keep what says otherwise.
    for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):
        turned.info.pop(key, None)
    return turned
