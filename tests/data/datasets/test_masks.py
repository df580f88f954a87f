"""data=masks reads images and index masks in any folders, pairs them by path, and names what does not fit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.datasets.masks import Masks
from data.examples import HELD_OUT, NONE_HELD_OUT
from data.index_mask import IGNORED
from xcit.errors import InputError

from ..small_ade import CLASSES, picture, write_small_masks
from ..small_ade import IGNORED as STRIP


def masks(root: Path, **options: Any) -> Masks:
    return Masks(root=str(root), **({"classes": str(root / "classes.txt")} | options))


def names(split: Any) -> set[str]:
    return {Path(split[index].key).stem for index in range(len(split))}


def test_a_folder_without_splits_is_divided_by_file_name(tmp_path: Path) -> None:
    root = write_small_masks(tmp_path, 12, (32, 48))
    source = masks(root, val_fraction=0.3)
    train, val = source.train(), source.val(source.train().classes)
    assert train.classes == CLASSES and train.target_kind == "mask"
    assert not names(train) & names(val) and len(train) + len(val) == 12 and len(val) > 0
    assert val.about.choice == "held out by file name: 33.3 % for data.val_fraction=0.3"
    assert names(source.everything()) == names(train) | names(val)
    assert source.everything().order == {HELD_OUT: NONE_HELD_OUT}
    for split in (train, val):
        for example in (split[index] for index in range(len(split))):
            _, mask = picture(int(Path(example.key).stem), (32, 48))
            assert np.array_equal(example.target.decode(), np.where(mask == STRIP, IGNORED, mask.astype(np.int16)))


def test_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    root = write_small_masks(tmp_path, 3, (32, 48), validation=2)
    source = masks(root)
    assert names(source.train()) == {"000", "001", "002"} and names(source.val()) == {"003", "004"}
    assert names(source.everything()) == names(source.val())
    for folder in ("images", "masks"):
        (root / folder / "val").rename(root / folder / "Test")
    assert masks(root).val().about.choice == "there is no validation folder"
    for folder in ("images", "masks"):
        shutil.rmtree(root / folder / "Test")
    alone = masks(root, val_fraction=0.5)
    assert names(alone.train()) | names(alone.val()) == {"000", "001", "002"}


def test_folders_and_subfolders_may_have_any_name(tmp_path: Path) -> None:
    root = write_small_masks(tmp_path, 2, (32, 48))
    for old, new in (("images", "photos"), ("masks", "labels")):
        (root / old / "a.b").mkdir()
        for path in (root / old).glob("*.*g"):
            path.rename(root / old / "a.b" / path.name.replace(".png", ".PNG"))
        (root / old).rename(root / new)
    found = masks(root, images="photos", masks="labels").everything()
    assert found[1].key == f"{root}/photos/a.b/001.jpg"
    assert found[1].target.file.origin == f"{root}/labels/a.b/001.PNG"


def test_numbered_classes_and_mapped_values(tmp_path: Path) -> None:
    root = write_small_masks(tmp_path, 2, (32, 48))
    found = masks(root, classes=2, labels={1: 0, 2: 1}, ignore=[0, 3, 255]).everything()
    assert found.classes == ["0", "1"]
    _, mask = picture(0, (32, 48))
    expected = np.select([mask == 1, mask == 2], [0, 1], IGNORED)
    assert np.array_equal(found[0].target.decode(), expected)


def test_a_million_paths_are_two_arrays(tmp_path: Path) -> None:
    """Forked workers share arrays. They would copy a list of strings."""
    found = masks(write_small_masks(tmp_path, 2, (32, 48))).everything()
    for packed in (found.images, found.masks):
        assert isinstance(packed.content, np.ndarray) and isinstance(packed.ends, np.ndarray)


def without_mask(root: Path) -> None:
    (root / "masks/001.png").unlink()


def without_image(root: Path) -> None:
    (root / "images/000.jpg").unlink()
    (root / "images/001.jpg").unlink()


def with_jpeg(root: Path) -> None:
    Image.open(root / "masks/001.png").convert("L").save(root / "masks/001.jpg")
    (root / "masks/001.png").unlink()


def without_images(root: Path) -> None:
    for path in (root / "images").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (without_mask, "{root}/images/001.jpg: has no mask in {root}/masks"),
        (without_image, "{root}/masks/000.png: is the mask of no image in {root}/images; there are 2 such masks"),
        (with_jpeg, "{root}/masks/001.jpg: must be a PNG file, as every mask"),
        (without_images, "{root}/images: holds no images, subfolders included"),
        (
            lambda root: shutil.rmtree(root / "masks"),
            "{root}/masks: no such folder (data.masks: the masks within data.root)",
        ),
        (
            lambda root: (root / "images").rename(root / "i"),
            "{root}/images: no such folder (data.images: the images within data.root)",
        ),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path: Path, spoil: Callable[[Path], object], line: str) -> None:
    root = write_small_masks(tmp_path, 3, (32, 48))
    spoil(root)
    with pytest.raises(InputError) as refused:
        masks(root).train()
    assert str(refused.value) == line.format(root=root)


@pytest.mark.parametrize(
    ("options", "content", "line"),
    [
        ({"labels": {1: 4}}, None, "data.labels: 1 stands for class 4; the classes are 0 to 3"),
        ({"classes": 300}, None, "data.ignore=[255]: 255 is also the label of class 255"),
        (
            {"val_fraction": 1.0},
            None,
            "data.val_fraction=1.0: must be greater than 0 and less than 1, because a run needs training and "
            "validation images; data that come with both are divided as they are",
        ),
        ({}, b"", "data.classes={file}: it is empty; must hold the name of a class in each line"),
        ({}, b"a\n\nb\n", "data.classes={file}: line 2 is empty; must hold the name of a class in each line"),
        ({}, b"a\nb\na\n", "data.classes={file}: holds the name a twice; each class needs a name of its own"),
        ({}, b"\xff\xfe\x00", "data.classes={file}: cannot be read (it is no UTF-8 text); {expected}"),
        (
            {"classes": "nowhere.txt"},
            None,
            "data.classes=nowhere.txt: cannot be read (No such file or directory); {expected}",
        ),
    ],
)
def test_options_that_do_not_fit_are_named(
    tmp_path: Path, options: dict[str, Any], content: bytes | None, line: str
) -> None:
    root = write_small_masks(tmp_path, 2, (32, 48))
    if content is not None:
        (root / "classes.txt").write_bytes(content)
    with pytest.raises(InputError) as refused:
        masks(root, **options)
    expected = "must be the number of classes or a text file below data.root"
    assert str(refused.value) == line.format(file=root / "classes.txt", expected=expected)


def test_the_file_of_the_classes_is_below_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_small_masks(tmp_path / "root", 2, (32, 48))
    (tmp_path / "classes.txt").write_text("not\nthese\n")
    (root / "classes.txt").rename(tmp_path / "older.txt")
    (root / "lists").mkdir()
    (root / "lists" / "classes.txt").write_text("\n".join(CLASSES))
    monkeypatch.chdir(tmp_path)
    assert masks(root, classes="lists/classes.txt").classes == CLASSES
    assert masks(root, classes="older.txt").classes == CLASSES, "a path from the working directory, as before"
    (root / "classes.txt").write_text("\n".join(CLASSES))
    assert masks(root, classes="classes.txt").classes == CLASSES


def test_the_classes_of_another_model_are_refused(tmp_path: Path) -> None:
    source = masks(write_small_masks(tmp_path, 2, (32, 48)))
    with pytest.raises(InputError, match=r"^data=masks: class 1 is disc; the model's is square$"):
        source.val(["background", "square", "disc", "triangle"])


def test_splits_must_have_a_training_split(tmp_path: Path) -> None:
    root = write_small_masks(tmp_path, 2, (32, 48), validation=1)
    shutil.rmtree(root / "images/train")
    with pytest.raises(InputError, match=f"^{root}/images: holds val but no training split$"):
        masks(root).train()
