"""Draws predictions on images: boxes and masks of objects, and the classes of all pixels."""

import colorsys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
GOLDEN_RATIO = 0.618034
"""Hues that are multiples of it differ, however many there are."""
OPACITY = 0.5
"""Of masks. The image must remain visible below them."""
SMALLEST_FONT, FONT_SHARE = 10, 1 / 40
"""The font's size in pixels at least, and relative to the longer side of the image."""
LINE_SHARE = 1 / 400
"""The width of lines relative to the longer side of the image."""


def color_of(label: int) -> Color:
    """Return the color of a class, which depends on its number alone. Neighboring numbers differ most."""
    value, saturation = ((1.0, 0.85), (0.65, 1.0), (0.85, 0.55))[label % 3]
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN_RATIO % 1, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_objects(
    picture: Image.Image,
    boxes: Any,
    labels: Iterable[int],
    scores: Iterable[float] | None,
    masks: Iterable[Any] | None,
    classes: Sequence[str],
    crowd: Iterable[bool] | None = None,
) -> Image.Image:
    """Return a copy of the picture with boxes, names and masks of objects.

    Args:
        picture: The image, (H, W).
        boxes: (N, 4), as left, top, right, bottom in pixels, the best ones first.
        labels: (N,), indices into `classes`.
        scores: (N,), from 0 to 1; None: not shown.
        masks: N masks, (H, W), bool, in the order of the boxes; None: not shown. A generator may make one at a time,
            since only one is used at a time.
        classes: The names of the classes.
        crowd: (N,), whether it is a group of objects, whose name says so; None: there are no groups.
    """
    numbers = [int(label) for label in labels]
    names = [name_of(label, classes) for label in numbers]
    if crowd is not None:
        names = [f"{name} (crowd)" if group else name for name, group in zip(names, crowd, strict=True)]
    if scores is not None:
        names = [f"{name} {float(score):.2f}" for name, score in zip(names, scores, strict=True)]
    pixels = np.array(picture.convert("RGB"))
    # Masks first, so that they hide no text.
    if masks is not None:
        for label, mask in zip(numbers, masks, strict=True):
            blend(pixels, np.asarray(mask, dtype=bool), color_of(label))
    drawn = Image.fromarray(pixels)
    pen, font, width = ImageDraw.Draw(drawn), font_for(drawn), line_width(drawn)
    # The best objects last, so that their boxes and names are not hidden.
    objects = list(zip(np.asarray(boxes, dtype=float).reshape(-1, 4), numbers, names, strict=True))
    for box, label, name in reversed(objects):
        left, top, right, bottom = (float(value) for value in box)
        # The lines are within the box, whose right and bottom edges are those of its last pixels.
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        pen.rectangle(corners, outline=color_of(label), width=width)
        draw_name(pen, drawn.size, (left, top), name, color_of(label), font)
    return drawn


def draw_segments(picture: Image.Image, mask: Any, classes: Sequence[str]) -> Image.Image:
    """Return a copy of the picture with the class of each pixel as a color, and a legend of these classes below it.

    Args:
        picture: The image, (H, W).
        mask: (H, W), indices into `classes`. Pixels with negative numbers stay as they are. A mask of another size is
            resized to that of the picture.
        classes: The names of the classes.
    """
    labels = np.asarray(mask).astype(np.int32)
    if labels.shape != (picture.height, picture.width):
        labels = np.asarray(Image.fromarray(labels).resize(picture.size, Image.Resampling.NEAREST))
    pixels = np.array(picture.convert("RGB"))
    areas = {int(label): int(area) for label, area in zip(*np.unique(labels, return_counts=True), strict=True)}
    present = sorted((label for label in areas if label >= 0), key=lambda label: (-areas[label], label))
    for label in present:
        blend(pixels, labels == label, color_of(label))
    return with_legend(Image.fromarray(pixels), [(name_of(label, classes), color_of(label)) for label in present])


def blend(pixels: np.ndarray, mask: np.ndarray, color: Color) -> None:
    """Mix the color into the pixels of a mask, in place. pixels: (H, W, 3), uint8; mask: (H, W), bool."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not rows.size:
        return
    # Only the rectangle around the mask is read, since a small object in a large photograph should take little time.
    part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside, near = mask[part], pixels[part]
    for channel, value in enumerate(color):
        table = ((1 - OPACITY) * np.arange(256) + OPACITY * value).round().astype(np.uint8)
        near[inside, channel] = table[near[inside, channel]]


def draw_name(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[float, float],
    text: str,
    color: Color,
    font: Any,
) -> None:
    """Write a name above the top left corner of a box, or within the box where the image ends.

    size: (width, height) of the image.
    """
    width, height = text_size(font, text)
    left = max(0, min(corner[0], size[0] - width))
    top = corner[1] - height if corner[1] >= height else max(0, min(corner[1], size[1] - height))
    pen.rectangle((left, top, left + width - 1, top + height - 1), fill=color)
    write(pen, (left, top), text, readable_on(color), font)


def with_legend(picture: Image.Image, entries: Sequence[tuple[str, Color]]) -> Image.Image:
    """Return the picture with (name, color) of each class below it, in as many lines as are needed."""
    font = font_for(picture)
    lines: list[list[tuple[str, Color, int]]] = []
    used = picture.width
    for text, color in entries:
        width, _ = text_size(font, text)
        if used + width > picture.width:
            lines.append([])
            used = 0
        lines[-1].append((text, color, used))
        used += width
    line_height = text_size(font, "")[1]
    drawn = Image.new("RGB", (picture.width, picture.height + line_height * len(lines)), "white")
    drawn.paste(picture)
    pen = ImageDraw.Draw(drawn)
    for number, line in enumerate(lines):
        top = picture.height + number * line_height
        for text, color, left in line:
            pen.rectangle((left, top, left + text_size(font, text)[0] - 1, top + line_height - 1), fill=color)
            write(pen, (left, top), text, readable_on(color), font)
    return drawn


def side_by_side(pictures: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Return pictures beside each other, each below its caption. pictures: (caption, picture)."""
    font = font_for(pictures[0][1])
    top = text_size(font, "")[1]
    widths = [max(picture.width, text_size(font, caption)[0]) for caption, picture in pictures]
    drawn = Image.new("RGB", (sum(widths), top + max(picture.height for _, picture in pictures)), "white")
    pen, left = ImageDraw.Draw(drawn), 0
    for width, (caption, picture) in zip(widths, pictures, strict=True):
        write(pen, (left, 0), caption, "black", font)
        drawn.paste(picture, (left, top))
        left += width
    return drawn


def write(pen: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, fill: str, font: Any) -> None:
    """Write text whose area, as `text_size` gives it, begins at a corner."""
    pad = padding(font)
    pen.text((corner[0] + pad, corner[1] + pad), text, fill=fill, font=font)


def text_size(font: Any, text: str) -> tuple[int, int]:
    """(width, height) of a text with a border. The height is the same for all texts."""
    ascent, descent = font.getmetrics()
    pad = padding(font)
    return round(font.getlength(text)) + 2 * pad + 1, ascent + descent + 2 * pad


def padding(font: Any) -> int:
    return max(1, round(font.size / 6))


def font_for(picture: Image.Image) -> Any:
    """The font in a size that is readable when the picture is shown as a whole."""
    return font_of(max(SMALLEST_FONT, round(FONT_SHARE * max(picture.size))))


def font_of(size: float) -> ImageFont.FreeTypeFont:
    """The font of all text that Pillow draws: DejaVu Sans, which matplotlib ships.

    It has the letters of Latin, Greek, Cyrillic, Hebrew and Arabic. Others, as Chinese, become boxes. Pillow's own font
    has ASCII alone.
    """
    import matplotlib  # here, because the import takes time, and most predictions draw nothing

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def line_width(picture: Image.Image) -> int:
    return max(1, round(LINE_SHARE * max(picture.size)))


def name_of(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else str(label)


def readable_on(color: Color) -> str:
    """Black or white, whichever has the larger contrast to the color."""
    red, green, blue = color
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"
