"""A folder of the user's own images: which classes, splits and images are read is what a careful person expects."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from data.about import Skipped
from data.datasets.folder import Folder, list_class_folders
from data.datasets.imagenet import ImageNet
from data.datasets.splits import split_named
from xcit.errors import InputError

Tree = Callable[..., Path]


# Splits


def test_a_folder_with_train_and_val(image_tree: Tree) -> None:
    root = image_tree("mine", {"train/cat": 3, "train/dog": 4, "val/dog": 2})
    train = Folder(root=str(root)).train()
    val = Folder(root=str(root)).val(train.classes)
    assert train.classes == val.classes == ["cat", "dog"]
    assert (len(train), len(val)) == (7, 2)
    assert [val[i].target for i in range(2)] == [1, 1], "labels are indices into the classes of training"
    assert val[0].image.rgb().mode == "RGB"
    assert val[0].key == str(root / "val" / "dog" / "000.png")


SPELLED = {
    "train": (
        "train",
        "Train",
        "TRAIN",
        "training",
        "Training_Set",
        "train_images",
        "images_train",
        "trainset",
        "train2017",
    ),
    "val": ("val", "Val", "valid", "VALIDATION", "validation-set", "val_images", "dev", "eval", "val2017"),
    "test": ("test", "Test", "testing", "test_set", "TestImages"),
    None: (
        "cat",
        "trains",
        "training ground",
        "test strip",
        "valley",
        "train_val2018",
        "trainer",
        "protest",
        "data",
        "set",
    ),
}


@pytest.mark.parametrize(("split", "name"), [(split, name) for split, names in SPELLED.items() for name in names])
def test_names_of_splits_are_recognized(split: str | None, name: str) -> None:
    assert split_named(name) == split


@pytest.mark.parametrize("names", [("Train", "Val"), ("training", "valid"), ("TRAIN_IMAGES", "validation_images")])
@pytest.mark.parametrize("kind", [Folder, ImageNet])
def test_splits_are_never_classes(image_tree: Tree, names: tuple[str, str], kind: type[Folder]) -> None:
    root = image_tree("mine", {f"{names[0]}/cat": 3, f"{names[0]}/dog": 4, f"{names[1]}/dog": 2})
    train, val = kind(root=str(root)).train(), kind(root=str(root)).val()
    assert (train.classes, len(train), len(val)) == (["cat", "dog"], 7, 2)
    assert (train.about.folder, val.about.folder) == (str(root / names[0]), str(root / names[1]))


def test_without_a_validation_split_the_test_split_serves(image_tree: Tree) -> None:
    root = image_tree("mine", {"Train/cat": 3, "Train/dog": 4, "Test/dog": 2})
    source = Folder(root=str(root))
    assert (len(source.train()), len(source.val())) == (7, 2)
    assert source.val().about.folder == str(root / "Test")
    assert source.val().about.choice == "there is no validation folder"


def test_beside_a_validation_split_the_test_split_is_not_read_and_told_of(image_tree: Tree) -> None:
    root = image_tree("mine", {"train/cat": 3, "val/cat": 2, "test/cat": 1, "extra": 1})
    (root / "readme.md").write_text("mine")
    source = Folder(root=str(root))
    assert (len(source.train()), len(source.val())) == (3, 2)
    for images in (source.train(), source.val()):
        skipped = images.about.skipped[str(root)]
        assert (skipped.folders, skipped.others) == (["extra", "test"], Counter({".md": 1}))


def test_a_training_split_alone_is_divided(image_tree: Tree) -> None:
    root = image_tree("mine", {"train/cat": 20, "train/dog": 20})
    source = Folder(root=str(root))
    train, val = source.train(), source.val(["cat", "dog"])
    assert sorted(train.samples + val.samples) == list_class_folders(root / "train").samples
    assert source.everything().samples == val.samples, "an evaluation uses the validation split"
    assert val.about.choice == "held out by file name: 15 % for data.val_fraction=0.2"


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ({"train/cat": 1, "Training/cat": 1}, "holds two folders for the split train, Training and train; keep one"),
        (
            {"val/cat": 1, "train/cat": 1, "valid/cat": 1},
            "holds two folders for the split val, val and valid; keep one",
        ),
        ({"test/cat": 1}, "holds test but no training split; expected CLASS/IMAGE, or train/CLASS/IMAGE and val/CLASS"),
        ({"train/new": 1, "train/old": 1, "bus": 1}, "train may be a split or a class, because it stands beside bus"),
    ],
)
def test_splits_that_names_do_not_tell_are_refused(image_tree: Tree, counts: dict[str, int], line: str) -> None:
    root = image_tree("mine", counts)
    with pytest.raises(InputError) as caught:
        Folder(root=str(root)).train()
    assert str(caught.value).startswith(f"{root}: {line}") and "\n" not in str(caught.value)


def test_a_train_may_be_a_class_beside_others(image_tree: Tree) -> None:
    root = image_tree("mine", {"bus": 5, "car": 5, "train": 5})
    source = Folder(root=str(root))
    assert source.train().classes == ["bus", "car", "train"]
    for images in (source.train(), source.everything()):
        reason = "it stands beside others and holds no class folders"
        assert images.about.choice.endswith(f"; train is a class, because {reason}")


@pytest.mark.parametrize("folder", ["", "train"])
def test_images_without_class_folders_say_what_is_expected(image_tree: Tree, folder: str) -> None:
    root = image_tree("mine", {folder or ".": 3, **({"val/cat": 1} if folder else {})})
    with pytest.raises(InputError) as caught:
        Folder(root=str(root)).train()
    expected = "expected CLASS/IMAGE, or train/CLASS/IMAGE and val/CLASS/IMAGE in it"
    assert str(caught.value) == f"{root / folder}: holds no class folders, but 3 images; {expected}"


def test_classes_that_hold_splits_are_refused(image_tree: Tree) -> None:
    for name in ("photos", "cat"):
        root = image_tree(name, {f"{name}/train/x": 1, f"{name}/Val/x": 1})
        with pytest.raises(InputError) as caught:
            Folder(root=str(root)).train()
        assert str(caught.value).startswith(
            f"{root / name}: holds folders of splits (train, val) and is no class; give data.root={root / name}, or"
        )


def test_a_class_folder_without_images_is_named_with_what_is_there(image_tree: Tree) -> None:
    root = image_tree("mine", {"train/cat": 1, "train/dog": 0, "val/cat": 1})
    for name in ("dog/more/a.heic", "cat/b.heic", "cat/notes.txt"):
        (root / "train" / name).parent.mkdir(exist_ok=True)
        (root / "train" / name).write_bytes(b"x")
    message = (
        r"train/dog: holds no images \(skipped in it: 1 file that Pillow cannot read as an image \(1 \.heic\)\); "
        r"each folder"
    )
    with pytest.raises(InputError, match=message):
        Folder(root=str(root)).train()


def test_a_class_that_training_lacks_is_named(image_tree: Tree) -> None:
    root = image_tree("mine", {"train/cat": 1, "train/dog": 1, "val/cat": 1, "val/wolf": 1})
    with pytest.raises(InputError, match="val/wolf: class is not in the training split"):
        Folder(root=str(root)).val(["cat", "dog"])


# What is skipped


def test_system_files_are_no_images_and_no_classes(image_tree: Tree) -> None:
    root = image_tree("mine", {"cat": 3, "dog/old": 2, ".ipynb_checkpoints": 1, "__MACOSX/cat": 2, "dog/@eaDir": 2})
    for name in ("cat/._000.png", "cat/Thumbs.db", "dog/desktop.ini", "dog/old/.hidden.png", ".DS_Store"):
        (root / name).write_bytes(b"x")
    images = list_class_folders(root)
    assert images.classes == ["cat", "dog"]
    assert len(images) == 5
    assert images.about.skipped == {str(root): Skipped(system=8)}


def test_a_split_folder_with_system_files_beside_it(image_tree: Tree) -> None:
    root = image_tree("mine", {"Train/cat": 2, "Val/cat": 1, "__MACOSX/Train/cat": 1, ".Trash": 1})
    source = Folder(root=str(root))
    assert (source.train().classes, len(source.train()), len(source.val())) == (["cat"], 2, 1)
    assert source.train().about.skipped[str(root)] == Skipped(system=2)


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".JPG", ".jp2", ".qoi", ".Tga", ".avif"])
def test_every_format_that_pillow_decodes_is_read(image_tree: Tree, suffix: str) -> None:
    root = image_tree("mine", {"cat": 2}, suffix)
    images = list_class_folders(root)
    assert len(images) == 2
    assert images[0].image.rgb().size == (24, 20)


def test_what_is_no_image_is_counted_by_extension(image_tree: Tree) -> None:
    root = image_tree("mine", {"cat": 2, "dog": 1, "dog/raw": 0})
    for name in ("cat/a.txt", "dog/b.TXT", "dog/raw/c.heic", "dog/README", "dog/scan.pdf", "film.mpg"):
        (root / name).write_bytes(b"x")
    (root / "loose.png").write_bytes(b"x")
    skipped = list_class_folders(root).about.skipped[str(root)]
    assert skipped.others == {".txt": 2, ".heic": 1, "": 1, ".pdf": 1, ".mpg": 1}
    assert skipped.loose == 1
