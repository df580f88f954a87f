"""What the tests of scripts/predict.py share: images of all kinds, and what the command wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from skimage import data as photographs

from xcit.encoded_image import EncodedImage
from xcit.orientation import EXIF_ORIENTATION

from ..conftest import Result

Command = Callable[..., Result]
SCRIPT = "scripts/predict.py"
READABLE = ["a/same.png", "b/cmyk.jpg", "b/same.png", "deep.png", "turned.jpg"]


def write_photos(folder: Path) -> Path:
    """A folder with images of all kinds, one broken image and a text file."""
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
    picture = Image.fromarray(photographs.astronaut()).resize((90, 70))
    picture.save(folder / "a" / "same.png")
    Image.fromarray(photographs.coffee()).resize((64, 80)).save(folder / "b" / "same.png")
    picture.convert("CMYK").save(folder / "b" / "cmyk.jpg")
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # stored turned by 90° to the left
    picture.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif, quality=95)
    (folder / "a" / "broken.jpg").write_bytes(b"\xff\xd8no image")
    (folder / "notes.txt").write_text("no image")
    return folder


def read(folder: Path) -> Any:
    return json.loads((folder / "predictions.json").read_text())


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def opened(photos: Path, name: str) -> Image.Image:
    return EncodedImage((photos / name).read_bytes(), name).rgb()


def check(result: Result) -> None:
    assert result.status == 0, result.stderr
    assert result.stderr.count("photos/a/broken.jpg: cannot be decoded") == 1
    assert result.stderr.count("photos: skipped 1 file that Pillow cannot read as an image (1 .txt)\n") == 1
    assert "out: predictions of 5 images, without 1 image that cannot be read or predicted\n" in result.stdout
