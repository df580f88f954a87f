"""Data sets are read from their files as documented. Anything unexpected is reported in one line."""

import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from data.datasets import DATASETS
from data.datasets.digits import Digits
from data.datasets.folder import Folder
from data.datasets.imagenet import ImageNet
from xcit.config.composition import require_declared_kind
from xcit.errors import InputError

Tree = Callable[..., Path]


def test_every_data_set_but_a_table_says_its_kind_of_target_before_it_is_read() -> None:
    """A task that learns from other targets is then refused before its missing augment options are named."""
    task = "none of them"
    for name in set(DATASETS) - {"table"}:
        with pytest.raises(InputError, match=f"^task=t: learns from targets of kind {task}; those of data={name} are"):
            require_declared_kind("t", [task], name, {"data": DATASETS})
    require_declared_kind("t", [task], "table", {"data": DATASETS})


def test_a_fraction_of_the_digits_has_the_same_share_of_each_class() -> None:
    whole, tenth = Digits().train(), Digits(train_fraction=0.1).train()
    labels = np.array([tenth[index].target for index in range(len(tenth))])
    assert len(tenth) == 143 and set(np.bincount(labels)) <= {13, 14, 15}
    assert len(Digits(train_fraction=0.1).val()) == len(Digits().val()) == 360
    pixels = {whole[index].image.tobytes() for index in range(len(whole))}
    assert all(tenth[index].image.tobytes() in pixels for index in range(len(tenth)))


def test_digits_are_split_once_and_for_all() -> None:
    train, val = Digits().train(), Digits().val()
    assert (len(train), len(val)) == (1437, 360)
    assert train.classes == [str(digit) for digit in range(10)]
    image, label, key, weight = val[0]
    assert (image.size, image.mode, label, key, weight) == ((32, 32), "RGB", 7, "digit 0", 1.0)
    with pytest.raises(InputError, match="not those of the model"):
        Digits().val(["cat", "dog"])
    counts = Counter(val[i].target for i in range(len(val)))
    assert min(counts.values()) >= 34, "the split is stratified"
    fingerprints = [
        {val_or_train[i].image.tobytes() for i in range(len(val_or_train))} for val_or_train in (train, val)
    ]
    assert not fingerprints[0] & fingerprints[1]


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_a_root_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}/nowhere: no such folder"):
        DATASETS[name](root=str(tmp_path / "nowhere"))


def test_an_empty_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: holds no class folders"):
        Folder(root=str(tmp_path)).train()
    with pytest.raises(InputError, match=f"{tmp_path}/train: no such folder"):
        ImageNet(root=str(tmp_path)).train()


WNIDS = {1: "n02119789", 2: "n02100735", 3: "n02110185"}


def write_flat_imagenet(image_tree: Tree, truth: list[int]) -> Path:
    """Write ImageNet as in the official archives: val/ has no class folders, its labels are in the development kit."""
    root = image_tree("imagenet", {f"train/{wnid}": 1 for wnid in WNIDS.values()} | {"loose": len(truth)}, ".JPEG")
    (root / "val").mkdir()
    for number, path in enumerate(sorted((root / "loose").iterdir()), start=1):
        path.rename(root / "val" / f"ILSVRC2012_val_{number:08}.JPEG")
    (root / "loose").rmdir()
    kit = root / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    kind = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "i4")]
    leaves = [(number, wnid, "w", "g", 0) for number, wnid in WNIDS.items()]
    savemat(kit / "meta.mat", {"synsets": np.array([*leaves, (1001, "n00001740", "entity", "g", 3)], dtype=kind)})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{label}\n" for label in truth))
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_flat_imagenet_takes_its_labels_from_the_devkit(image_tree: Tree, packed: bool) -> None:
    truth = [3, 1, 2, 3]
    root = write_flat_imagenet(image_tree, truth)
    if packed:
        with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
            tar.add(root / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
        (root / "ILSVRC2012_devkit_t12").rename(root / "elsewhere")
    train = ImageNet(root=str(root)).train()
    assert train.classes == sorted(WNIDS.values())
    for classes in (train.classes, None):
        val = ImageNet(root=str(root)).val(classes)
        assert [val.classes[label] for _, label in val.samples] == [WNIDS[number] for number in truth]


def test_flat_imagenet_without_its_devkit_says_what_is_needed(image_tree: Tree) -> None:
    root = write_flat_imagenet(image_tree, [1])
    (root / "ILSVRC2012_devkit_t12").rename(root / "elsewhere")
    with pytest.raises(InputError, match="no class folders, so the labels must come from ILSVRC2012_devkit_t12/ or"):
        ImageNet(root=str(root)).val()


def test_a_devkit_that_cannot_be_read_is_named(image_tree: Tree) -> None:
    root = write_flat_imagenet(image_tree, [1])
    (root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat").write_text("junk\n")
    with pytest.raises(InputError, match="ILSVRC2012_devkit_t12: cannot be read"):
        ImageNet(root=str(root)).val()


def test_flat_imagenet_with_more_images_than_labels_names_the_image(image_tree: Tree) -> None:
    root = write_flat_imagenet(image_tree, [1, 2])
    (root / "val" / "ILSVRC2012_val_00000002.JPEG").rename(root / "val" / "ILSVRC2012_val_00000009.JPEG")
    with pytest.raises(InputError, match=r"00000009\.JPEG: the devkit has labels for images 1 to 2"):
        ImageNet(root=str(root)).val()


def test_imagenet_in_class_folders(image_tree: Tree) -> None:
    root = image_tree("imagenet", {"train/n01": 2, "train/n02": 2, "val/n02": 3}, ".JPEG")
    val = ImageNet(root=str(root)).val(["n01", "n02"])
    assert [label for _, label in val.samples] == [1, 1, 1]
