"""Pictures of predicted images: any image in RGB, and a contact sheet of many."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..evaluation.drawing import font_of
from ..preprocessing import Preprocessing

MOST = 60
"""Images on a contact sheet."""
SIDE, GAP = 160, 10
"""Of the squares for the images, and the space between them, in pixels."""
FONT_SIZE, LINE = 13, 18
MOST_CAPTIONS = 4
"""Lines below an image, besides its name."""


def as_rgb(image: Image.Image | np.ndarray, preprocessing: Preprocessing) -> Image.Image:
    """An image as people can see it: the range of its values is black to white, and of its channels the first three are
    red, green and blue; of two channels the first one is shown. image: from `EncodedImage.picture`."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    low, high = preprocessing.bounds
    seen = image[..., : 3 if image.shape[-1] >= 3 else 1].astype(np.float32)
    pixels = ((seen - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy())


class ContactSheet:
    """Small pictures of at most `MOST` of all images, evenly spread, each above its captions and its name.

    Args:
        images: the number of all images.
    """

    def __init__(self, images: int) -> None:
        self.every = max(1, math.ceil(images / MOST))
        self.cells: list[tuple[Image.Image, list[str], str]] = []

    def takes(self, number: int) -> bool:
        """Whether the image with this number, from 0, is on the sheet."""
        return number % self.every == 0

    def add(self, picture: Image.Image, captions: Sequence[str], name: str) -> None:
        """captions: of too many, the last line says how many are left out."""
        if len(captions) > MOST_CAPTIONS:
            kept = MOST_CAPTIONS - 1
            captions = [*captions[:kept], f"+{len(captions) - kept}"]
        small = picture.convert("RGB")
        small.thumbnail((SIDE, SIDE))
        self.cells.append((small, list(captions), name))

    def draw(self) -> Image.Image:
        columns = max(1, min(len(self.cells), math.ceil(math.sqrt(len(self.cells) * 1.5))))
        lines = max((len(captions) for _, captions, _ in self.cells), default=1) + 1
        width, height = SIDE + GAP, SIDE + GAP + lines * LINE
        sheet = Image.new("RGB", (GAP + columns * width, GAP + math.ceil(len(self.cells) / columns) * height), "white")
        pen, font = ImageDraw.Draw(sheet), font_of(FONT_SIZE)
        for number, (picture, captions, name) in enumerate(self.cells):
            left, top = GAP + number % columns * width, GAP + number // columns * height
            # The image is centered, and stands on its captions.
            sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + SIDE - picture.height))
            texts = [(caption, "black") for caption in captions] + [(name, "gray")]
            for line, (text, color) in enumerate(texts):
                pen.text((left, top + SIDE + 2 + LINE * line), shortened(text, font), color, font)
        return sheet


def shortened(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text on one line, cut to the width of an image: in the middle, since names of files differ at their ends."""
    text = " ".join(text.encode(errors="replace").decode().split())
    if font.getlength(text) <= SIDE:
        return text
    kept = len(text)
    while kept > 2 and font.getlength(cut(text, kept)) > SIDE:
        kept -= 1
    return cut(text, kept)


def cut(text: str, kept: int) -> str:
    return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
