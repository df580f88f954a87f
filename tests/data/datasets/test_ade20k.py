"""ADE20k in its standard layout: 0 is ignored, and 1 to 150 are the classes."""

from pathlib import Path

import numpy as np
import pytest

from data.datasets.ade20k import ADE20k
from data.index_mask import IGNORED
from xcit.errors import InputError

from ..small_ade import IGNORED as STRIP
from ..small_ade import picture, write_small_ade


def test_the_classes_are_those_of_the_benchmark(tmp_path: Path) -> None:
    classes = write_small_ade(tmp_path, 2, validation=1) and ADE20k(root=str(tmp_path)).train().classes
    assert len(classes) == len(set(classes)) == 150
    places = {"wall": 0, "person": 12, "chest of drawers": 44, "television receiver": 89, "lake": 128, "flag": 149}
    assert {name: classes.index(name) for name in places} == places


def test_values_are_shifted_and_0_is_ignored(tmp_path: Path) -> None:
    source = ADE20k(root=str(write_small_ade(tmp_path, 3, (64, 96), validation=2)))
    train, val = source.train(), source.val(source.train().classes)
    assert (len(train), len(val), train.target_kind) == (3, 2, "mask")
    assert (train.about.folder, val.about.folder) == (
        f"{tmp_path}/images/training",
        f"{tmp_path}/images/validation",
    )
    for split, name, first in ((train, "train", 0), (val, "val", 3)):
        for index in range(len(split)):
            image, target, key, _ = split[index]
            assert image.origin == key == f"{split.about.folder}/ADE_{name}_{first + index:08}.jpg"
            _, mask = picture(first + index, (64, 96))
            assert np.array_equal(target.decode(), np.where(mask == STRIP, IGNORED, mask.astype(np.int16)))


def test_bad_input_is_named(tmp_path: Path) -> None:
    root = write_small_ade(tmp_path / "ade", 2, validation=2)
    with pytest.raises(InputError, match=r"^data=ade20k: has 150 classes; the model has 1$"):
        ADE20k(root=str(root)).val(["wall"])
    for path in (root / "annotations/validation").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"00000002.jpg: has no mask in .*/validation; there are 2 such images$"):
        ADE20k(root=str(root)).val()
    with pytest.raises(InputError, match=f"^{tmp_path}/images/training: no such folder"):
        ADE20k(root=str(tmp_path)).train()
