"""A small data set in COCO's format."""

import shutil
from pathlib import Path

import pytest

from ..small_coco import write_small_coco


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_coco(tmp_path_factory.mktemp("coco"), images=5, size=96)


@pytest.fixture
def coco(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "coco")
