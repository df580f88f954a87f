"""Images for scripts: a small tree for make_shards.py, and photographs of all kinds for predict.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from .predicting import write_photos

COUNTS = {"train/green": 13, "train/red": 10, "val/green": 3, "val/red": 4}


@pytest.fixture
def tree(image_tree: Callable[..., Path]) -> Path:
    return image_tree("tree", COUNTS, ".JPEG")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with images of all kinds, one broken image and a text file."""
    return write_photos(tmp_path / "photos")
