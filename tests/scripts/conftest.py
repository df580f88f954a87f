"""A small tree of images for scripts/make_shards.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

COUNTS = {"train/green": 13, "train/red": 10, "val/green": 3, "val/red": 4}


@pytest.fixture
def tree(image_tree: Callable[..., Path]) -> Path:
    return image_tree("tree", COUNTS, ".JPEG")
