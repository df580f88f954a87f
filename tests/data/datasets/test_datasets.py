"""Data sets are read from their files as documented. Anything unexpected is reported in one line."""

import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from data.datasets import DATASETS
from data.datasets.digits import Digits
from data.datasets.folder import Folder
from data.datasets.imagenet import ImageNet
from xcit.errors import InputError

Tree = Callable[..., Path]


def test_digits_are_split_once_and_for_all() -> None:
    train, val = Digits().train(), Digits().val()
    assert (len(train), len(val)) == (1437, 360)
    assert train.classes == [str(digit) for digit in range(10)]
    image, label, key = val[0]
    assert (image.size, image.mode, label, key) == ((32, 32), "RGB", 7, "digit 0")
    with pytest.raises(InputError, match="not those of the model"):
        Digits().val(["cat", "dog"])
    counts = Counter(val[i].target for i in range(len(val)))
    assert min(counts.values()) >= 34, "the split is stratified"
    fingerprints = [
        {val_or_train[i].image.tobytes() for i in range(len(val_or_train))} for val_or_train in (train, val)
    ]
    assert not fingerprints[0] & fingerprints[1]


def test_a_folder_with_train_and_val(image_tree: Tree) -> None:
    root = image_tree("mine", {"train/cat": 3, "train/dog": 4, "val/dog": 2})
    train = Folder(root=str(root)).train()
    val = Folder(root=str(root)).val(train.classes)
    assert train.classes == val.classes == ["cat", "dog"]
    assert (len(train), len(val)) == (7, 2)
    assert [val[i].target for i in range(2)] == [1, 1], "labels are indices into the classes of training"
    assert val[0].image.rgb().mode == "RGB"
    assert val[0].key == str(root / "val" / "dog" / "000.png")


def test_an_undivided_folder_sets_a_share_of_each_class_aside(image_tree: Tree) -> None:
    root = image_tree("mine", {"cat": 10, "dog": 5})
    source = Folder(root=str(root), val_fraction=0.2)
    train, val = source.train(), source.val()
    assert Counter(label for _, label in val.samples) == {0: 2, 1: 1}
    assert sorted(train.samples + val.samples) == sorted({*train.samples, *val.samples})
    assert len(train) + len(val) == 15
    assert Folder(root=str(root), val_fraction=0.2).val().samples == val.samples


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_a_root_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}/nowhere: no such folder"):
        DATASETS[name](root=str(tmp_path / "nowhere"))


def test_an_empty_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: holds no class folders"):
        Folder(root=str(tmp_path)).train()
    with pytest.raises(InputError, match=f"{tmp_path}/train: no such folder"):
        ImageNet(root=str(tmp_path)).train()


def test_a_class_folder_without_images_is_named(image_tree: Tree) -> None:
    root = image_tree("mine", {"train/cat": 1, "train/dog": 0})
    with pytest.raises(InputError, match="train/dog: holds no images"):
        Folder(root=str(root)).train()


def test_a_class_that_training_lacks_is_named(image_tree: Tree) -> None:
    root = image_tree("mine", {"train/cat": 1, "train/dog": 1, "val/cat": 1, "val/wolf": 1})
    with pytest.raises(InputError, match="val/wolf: class is not in the training split"):
        Folder(root=str(root)).val(["cat", "dog"])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_a_share_out_of_range_is_refused(image_tree: Tree, fraction: float) -> None:
    with pytest.raises(InputError, match=r"data\.val_fraction"):
        Folder(root=str(image_tree("mine", {"cat": 1})), val_fraction=fraction)


@pytest.mark.parametrize("damage", [b"", b"not an image", None])
def test_an_image_that_cannot_be_decoded_is_named(image_tree: Tree, damage: bytes | None) -> None:
    root = image_tree("mine", {"train/cat": 1}, suffix=".jpg")
    path = root / "train" / "cat" / "000.jpg"
    path.write_bytes(path.read_bytes()[:300] if damage is None else damage)
    with pytest.raises(InputError, match=f"{path}: cannot be decoded"):
        Folder(root=str(root)).train()[0].image.rgb()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_any_mode_is_read_as_rgb(tmp_path: Path, mode: str) -> None:
    gray = Image.fromarray(np.full((8, 8), 90, np.uint8))
    image = Image.fromarray(np.full((8, 8), 90 * 257, np.uint16)) if mode == "I;16" else gray.convert(mode)
    (tmp_path / "train" / "cat").mkdir(parents=True)
    image.save(tmp_path / "train" / "cat" / ("a.jpg" if mode == "CMYK" else "a.png"))
    found = Folder(root=str(tmp_path)).train()[0].image.rgb()
    assert found.mode == "RGB"
    assert np.abs(np.asarray(found).astype(int) - 90).max() <= 2


def test_an_image_is_upright_as_its_exif_has_it(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new("RGB", (12, 8)).save(tmp_path / "train" / "cat" / "a.jpg", exif=exif)
    assert Folder(root=str(tmp_path)).train()[0].image.rgb().size == (8, 12)


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
