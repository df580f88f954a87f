"""A folder of the user's own images: which classes, splits and images are read is what a careful person expects."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data.about import Skipped
from data.datasets.folder import Folder, list_class_folders
from data.datasets.imagenet import ImageNet
from data.datasets.splits import hash_of, held_out, split_named
from data.datasets.table import LabelTable
from data.examples import HELD_OUT
from data.start_up import warn_of_other_split
from xcit.errors import InputError, Notice

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


# Held-out images


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_a_share_out_of_range_is_refused(image_tree: Tree, fraction: float) -> None:
    with pytest.raises(InputError, match=r"data\.val_fraction"):
        Folder(root=str(image_tree("mine", {"cat": 1})), val_fraction=fraction)


def test_a_folder_without_splits_is_divided_by_the_names_of_its_files(image_tree: Tree) -> None:
    root = image_tree("mine", {"cat": 30, "dog/old": 20, "dog/new": 20, "elk": 2})
    source = Folder(root=str(root), val_fraction=0.25)
    train, val = source.train(), source.val(["ant", "cat", "dog", "elk"])
    assert not {path for path, _ in train.samples} & {path for path, _ in val.samples}
    assert len(train) + len(val) == 72
    counts = Counter(val.classes[label] for _, label in val.samples)
    assert 3 <= counts["cat"] <= 14 and 4 <= counts["dog"] <= 18 and counts["elk"] == 1
    for path, _ in val.samples:
        within = Path(path).relative_to(root)
        if within.parts[0] != "elk":
            assert hash_of("/".join(within.parts[1:])) < 0.25
    assert train.order == val.order == {HELD_OUT: "by file name", "data.val_fraction": 0.25}
    assert source.everything(["cat", "dog", "elk"]).samples == list_class_folders(root).samples


def test_no_image_that_was_trained_on_is_held_out_once_others_are_added(image_tree: Tree) -> None:
    root = image_tree("mine", {"cat": 40, "dog": 40})
    before = {Path(path) for path, _ in Folder(root=str(root)).train().samples}
    for name in ("cat", "dog"):
        for number in range(30):
            source = root / name / f"{number:03}.png"
            (root / name / f"a new one {number}.png").write_bytes(source.read_bytes())
    after = {Path(path) for path, _ in Folder(root=str(root)).val().samples}
    assert after
    assert not before & after


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_class_holds_out_its_share_though_classes_number_their_files_alike(image_tree: Tree, seed: int) -> None:
    root = image_tree("mine", {"ant": 30, "bee": 30, "cat": 11, "dog": 30, "elk": 3})
    source = Folder(root=str(root), split_seed=seed, split_by="stratified")
    train, val = source.train(), source.val()
    assert sorted(train.samples + val.samples) == list_class_folders(root).samples
    held = np.bincount(val.labels)
    assert np.abs(held - 0.2 * np.array([30, 30, 11, 30, 3])).max() <= 1 and held.min() == 1
    table = root / "labels.csv"
    names = [Path(path).relative_to(root) for path, _ in list_class_folders(root).samples]
    table.write_text("\n".join(["image,label", *(f"{name},{name.parts[0]}" for name in names)]))
    alike = LabelTable(path=str(table), labels=["label"], split_seed=seed)
    assert val.samples == sorted(alike.val().samples), "a table of the same images is divided alike"
    assert val.order == alike.val().order
    (root / "ant" / "new.png").write_bytes((root / "ant" / "000.png").read_bytes())
    grown = Folder(root=str(root), split_seed=seed, split_by="stratified").val()
    with pytest.warns(Notice, match="so the run was trained on some of them"):
        warn_of_other_split(val.order, grown)


def names_of(size: int, seed: int) -> list[str]:
    return [f"{seed} {number}.jpg" for number in range(size)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 10, 50])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_what_is_guaranteed_of_held_out_images(size: int, fraction: float) -> None:
    def sides(names: Sequence[str]) -> tuple[set[str], set[str]]:
        chosen = held_out(names, fraction)
        return {n for n, c in zip(names, chosen, strict=True) if not c}, {
            n for n, c in zip(names, chosen, strict=True) if c
        }

    moved_back = leaked = 0
    for seed in range(300):
        first = names_of(size, seed)
        train, val = sides(first)
        assert train and (val or size == 1)
        later = [f"new {n}" for n in names_of(30, seed)]
        train_later, val_later = sides(first + later)
        below = [hash_of(name) < fraction for name in first]
        # Images move only in classes to which an exception applies, and only one image moves.
        if any(below) and not all(below):
            assert train <= train_later and val <= val_later
        moved_back += len(val & train_later)
        leaked += len(train & val_later)
        assert len(train & val_later) <= all(below) and len(val & train_later) <= (not any(below))
    assert size < 50 or leaked + moved_back <= 1, "in a class of some size chance hardly makes an exception"


def test_about_the_fraction_is_held_out() -> None:
    shares = [held_out(names_of(500, seed), 0.2).mean() for seed in range(20)]
    assert 0.19 < np.mean(shares) < 0.21
    assert min(shares) > 0.13 and max(shares) < 0.27


def test_the_unicode_form_of_a_name_does_not_matter() -> None:
    """macOS may store ü as u with a combining mark. A copy on Linux may have the other form."""
    for name in ("grün.jpg", "été/ñ.png"):
        forms = {hash_of(unicodedata.normalize(form, name)) for form in ("NFC", "NFD")}
        assert len(forms) == 1
    assert 0 <= hash_of("odd\udcff.png") < 1


def test_a_class_with_one_image_trains_and_is_told_of(image_tree: Tree) -> None:
    root = image_tree("mine", {"cat": 5, "dog": 1})
    source = Folder(root=str(root))
    assert Counter(source.train().labels.tolist())[1] == 1
    share = "held out by file name: 50 % for data.val_fraction=0.2"
    assert source.val().about.choice == f"{share}; 1 class has a single image, for training"
    even = Folder(root=str(root), split_by="stratified")
    assert even.val().about.choice == "held out: 20 % of each class; 1 class has a single image, for training"
    assert Counter(even.val().labels.tolist()) == {0: 1}
    root = image_tree("few", {"cat": 1, "dog": 1})
    with pytest.raises(InputError, match="few: each class has only one image, so none can be held out for validation"):
        Folder(root=str(root)).val()


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


# Folds


@pytest.mark.parametrize("below", ["", "train/"])
def test_each_image_is_held_out_in_one_fold(image_tree: Tree, below: str) -> None:
    root = image_tree("mine", {f"{below}cat": 7, f"{below}dog": 5, f"{below}owl": 2})
    splits = [Folder(root=str(root), folds=3, fold=fold) for fold in range(3)]
    held = [[path for path, _ in source.val().samples] for source in splits]
    everything = sorted(str(path) for path in root.rglob("*.png"))
    assert sorted(path for paths in held for path in paths) == everything
    for source, paths in zip(splits, held, strict=True):
        assert sorted([*paths, *source.train().paths]) == everything
        assert source.everything().samples == source.val().samples
        assert sum("/cat/" in path for path in paths) in (2, 3)
        assert source.train().classes == source.val().classes == ["cat", "dog", "owl"]
    assert len({str(source.val().order) for source in splits}) == 3
    lacking = next(source for source, paths in zip(splits, held, strict=True) if not any("/owl/" in p for p in paths))
    assert lacking.val().about.choice.endswith("of 3 is held out; 1 class has no image in it")
    other = Folder(root=str(root), folds=3, fold=0, split_seed=1).val()
    assert {path for path, _ in other.samples} != set(held[0])


def test_folds_need_a_folder_that_is_not_divided(image_tree: Tree) -> None:
    root = image_tree("mine", {"train/cat": 2, "val/cat": 2})
    with pytest.raises(InputError, match=r"data.folds=2: .*/mine/val holds the validation images; leave data.folds"):
        Folder(root=str(root), folds=2, fold=0)


def test_another_seed_holds_out_other_images(image_tree: Tree) -> None:
    root = image_tree("mine", {"cat": 30, "dog": 30})
    first, other = (Folder(root=str(root), split_seed=seed).val() for seed in (0, 1))
    assert first.samples != other.samples
    assert other.order[HELD_OUT] == "by file name and data.split_seed=1"
