"""Before a run begins, it says what is read and what is skipped, and finds broken validation images."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import start_up
from data.about import About, Skipped
from data.datasets.digits import Digits
from data.datasets.folder import Folder, list_class_folders
from data.datasets.image_files import ImageFiles
from data.examples import Examples, examples_to_evaluate
from data.loader import EvalLoader
from data.look import Look, look_through, require_sound
from data.start_up import data_facts, large_batch_notes, warn_of_other_split
from data.views.labelled_crop import CenterLabelledCrop
from xcit.encoded_image import NotEnoughMemoryError
from xcit.errors import InputError, Notice
from xcit.preprocessing import Preprocessing

from ..conftest import TINY, Result
from .test_faults import CPU, truncate

Tree = Callable[..., Path]


def facts_of(source: Folder) -> list[tuple[str, str]]:
    return data_facts({"training": source.train(), "validation": source.val()})


# What is said


def test_a_divided_folder_is_described_with_all_that_is_skipped(image_tree: Tree) -> None:
    root = image_tree("mine", {"cat": 30, "dog": 30})
    for name in ("cat/a.txt", "dog/b.txt", "dog/c.heic", "dog/._a.jpg", "Thumbs.db"):
        (root / name).write_bytes(b"x")
    source = Folder(root=str(root))
    train, val = len(source.train()), len(source.val())
    from_root = f"in 2 classes from {root} (held out by file name: 20 %)"
    assert facts_of(source) == [
        ("data", f"{train} training images and {val} validation images {from_root}"),
        ("skipped", "3 files that Pillow cannot read as images (2 .txt, 1 .heic), 2 hidden or system files"),
    ]


def test_splits_are_described(image_tree: Tree) -> None:
    root = image_tree("mine", {"Train/cat": 2, "Train/dog": 1, "Test/cat": 1, "extra": 2})
    assert facts_of(Folder(root=str(root))) == [
        (
            "data",
            f"3 training images from {root}/Train and 1 validation image (of 1 class) from {root}/Test "
            "(there is no validation folder) in 2 classes",
        ),
        ("skipped", "the folder extra"),
    ]


def test_only_the_classes_that_have_images_are_counted(image_tree: Tree) -> None:
    images = list_class_folders(image_tree("mine", {"cat": 2, "dog": 1}), ["ant", "bee", "cat", "dog"])
    assert data_facts({"evaluation": images})[0][1].startswith("3 evaluation images in 2 of the 4 classes from ")


def test_a_batch_that_is_larger_than_the_data_is_told_of() -> None:
    (note,) = large_batch_notes(24, 128)
    assert note.startswith("train.global_batch_size=128: is more than the 24 training images, so each epoch is one")
    assert large_batch_notes(128, 128) == []


def test_other_data_sets_are_counted() -> None:
    assert data_facts({"training": Digits().train(), "validation": Digits().val()}) == [
        ("data", "1,437 training images and 360 validation images in 10 classes")
    ]


def test_many_extensions_take_no_more_than_a_line() -> None:
    images = Digits().train()
    images.about = About("there", "", {"there": Skipped()})
    images.about.skipped["there"].others.update({f".x{n}": 10 - n for n in range(10)})
    assert data_facts({"training": images})[1] == (
        "skipped",
        "55 files that Pillow cannot read as images (10 .x0, 9 .x1, 8 .x2, 7 .x3, 6 .x4, 5 others)",
    )


# What is evaluated


def test_a_model_of_elsewhere_is_evaluated_on_all_images_of_a_folder_without_splits(image_tree: Tree) -> None:
    root = image_tree("mine", {"cat": 8, "dog": 8})
    source = Folder(root=str(root))
    assert len(examples_to_evaluate(source, None, of_run=False)) == 16
    assert len(examples_to_evaluate(source, None, of_run=True)) == len(source.val()) < 16
    assert len(examples_to_evaluate(Digits(), None, of_run=False)) == 360


def split(order: dict[str, object]) -> ImageFiles:
    return ImageFiles.from_samples([("a.png", 0)], ["a"]).described(order=order)


BY_NAME: dict[str, object] = {start_up.HELD_OUT: "by file name", "data.val_fraction": 0.2}
FOLD: dict[str, object] = {start_up.HELD_OUT: "in fold 0 of 5", start_up.DIGEST: "0"}
OTHER = "the run held out other images for validation than those that are held out"


@pytest.mark.parametrize(
    ("before", "now", "warned"),
    [
        ({}, {}, None),
        (BY_NAME, BY_NAME, None),
        ({}, BY_NAME, f"{OTHER} by file name now"),
        (BY_NAME, {**BY_NAME, "data.val_fraction": 0.3}, "data.val_fraction was 0.2 in training and is 0.3 now"),
        (BY_NAME, {**BY_NAME, "data.val_fraction": 0.1}, None),
        (BY_NAME, {start_up.HELD_OUT: start_up.NONE_HELD_OUT}, "all images of the folder are evaluated"),
        (FOLD, FOLD, None),
        (FOLD, {**FOLD, start_up.HELD_OUT: "in fold 1 of 5"}, f"{OTHER} in fold 1 of 5 now"),
        (FOLD, {**FOLD, start_up.DIGEST: "1"}, f"{OTHER} in fold 0 of 5 now"),
        (BY_NAME, FOLD, f"{OTHER} in fold 0 of 5 now"),
    ],
)
def test_images_that_a_run_was_trained_on_are_told_of(
    before: dict[str, object], now: dict[str, object], warned: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    warn_of_other_split(before, split(now), same_data=False)
    assert not recwarn
    warn_of_other_split(before, split(now))
    messages = [str(warning.message) for warning in recwarn if issubclass(warning.category, Notice)]
    consequence = "so the run was trained on some of them: its metrics are too good"
    assert messages == ([f"data: {warned}, {consequence}"] if warned else [])
    if warned:
        with pytest.raises(InputError, match="so the run cannot continue within an epoch; begin a new run"):
            warn_of_other_split(before, split(now), within_epoch=True)


# The look through the validation images


def loader_of(images: Examples, workers: int = 0, rank: int = 0, world_size: int = 1) -> EvalLoader:
    view = CenterLabelledCrop(Preprocessing(size=(16, 16)), len(images.classes))
    return EvalLoader(images, view, 64, workers=workers, device=CPU, rank=rank, world_size=world_size)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_validation_image_is_found_and_the_line_says_what_can_be_done(image_tree: Tree, workers: int) -> None:
    root = image_tree("mine", {"cat": 6, "dog": 6}, ".jpg")
    truncate(root / "dog" / "004.jpg")
    images = list_class_folders(root)
    look = look_through(loader_of(images, workers))
    with pytest.raises(InputError) as caught:
        require_sound([Look(3, []), look], 12)
    assert str(caught.value).startswith(f"{root}/dog/004.jpg: cannot be decoded (")
    assert str(caught.value).endswith("; every validation image must be readable: remove or convert this file")


@pytest.mark.parametrize("workers", [0, 2])
def test_all_broken_validation_images_are_listed_at_once(image_tree: Tree, workers: int) -> None:
    root = image_tree("mine", {"cat": 16, "dog": 16}, ".jpg")
    broken = [root / folder / f"{number:03}.jpg" for folder in ("cat", "dog") for number in range(11)]
    for path in broken:
        truncate(path)
    look = look_through(loader_of(list_class_folders(root), workers))
    with pytest.raises(InputError) as caught:
        require_sound([look, Look(8, ["/x.jpg: cannot be decoded (y)"])], 40)
    first, *lines, last = str(caught.value).splitlines()
    assert first == "data: 23 broken images among 40 validation images; remove or convert these files:"
    assert [line.partition(":")[0] for line in lines] == [f"  {path}" for path in broken[:20]]
    assert last == "  and 3 others"


def test_a_look_ends_where_every_image_is_broken(image_tree: Tree) -> None:
    root = image_tree("mine", {"cat": 3}, ".jpg")
    for path in root.rglob("*.jpg"):
        truncate(path)
    with pytest.raises(InputError, match=r"cannot be decoded"):
        require_sound([look_through(loader_of(list_class_folders(root)))], 3)


def test_an_error_of_the_machine_keeps_its_exit_status(image_tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", opened)
    count, _, error = look_through(loader_of(list_class_folders(image_tree("mine", {"cat": 2, "dog": 2}))))
    sent = pickle.loads(pickle.dumps(error))  # as to the other processes
    with pytest.raises(NotEnoughMemoryError, match="memory is too short") as caught:
        require_sound([Look(count, [], sent)], 4)
    assert (caught.value.exit_status, caught.value.of_one_process) == (1, False)


def test_the_processes_share_the_look(image_tree: Tree) -> None:
    images = list_class_folders(image_tree("mine", {"cat": 5, "dog": 6}))
    looks = [look_through(loader_of(images, rank=rank, world_size=2)) for rank in range(2)]
    assert looks == [Look(6, []), Look(5, [])]
    assert require_sound(looks, 11) == []


def test_a_look_that_ran_out_of_time_says_how_far_it_came(image_tree: Tree) -> None:
    few = list_class_folders(image_tree("mine", {"cat": 9, "dog": 9}))
    many = few.take(np.arange(200) % len(few))
    look = look_through(loader_of(many), seconds=-1)
    assert look == Look(64, [])
    assert require_sound([look], 200) == [
        "64 of 200 validation images were decoded in 5 s, and none is broken; "
        "the others are decoded after the first epoch, and training images when they are used"
    ]


def facts_in(stderr: str) -> dict[str, str]:
    """The aligned lines that a command has printed: label → text."""
    found = [re.fullmatch(r"([a-z]+) +  (\S.*)|([a-z]{10,})  (\S.*)", line) for line in stderr.splitlines()]
    return {match[1] or match[3]: match[2] or match[4] for match in found if match and match[0][12:13] != " "}


SMALL = (*TINY, "data=folder", "recipe=digits", "+model.depth=1", "data.workers=0", "train.global_batch_size=8")


def test_a_run_says_what_it_reads_and_an_evaluation_too(
    command: Callable[..., Result], image_tree: Tree, tmp_path: Path
) -> None:
    root = image_tree("mine", {"cat": 12, "dog": 12})
    (root / "cat" / "notes.txt").write_text("mine")
    (root / "cat" / "._000.png").write_text("macOS")
    val = len(Folder(root=str(root), split_by="stratified").val())
    skipped = "1 file that Pillow cannot read as an image (1 .txt), 1 hidden or system file"
    from_root = f"in 2 classes from {root} (held out: 20 % of each class)"

    result = command("train.py", *SMALL, f"data.root={root}", "resolutions=[16]", "run_dir=run")
    assert result.status == 0, result.stderr
    expected = f"{24 - val} training images and {val} validation images {from_root}"
    said = facts_in(result.stderr)
    assert list(said) == ["device", "model", "task", "data", "skipped", "training", "evaluation", "start", "folder"]
    assert said["device"].startswith("CPU (") and said["device"].endswith(", fp32")
    assert re.fullmatch(r"xcit_n12, 0\.\d\d M parameters, patches of 8 pixels, images of 16 pixels", said["model"])
    assert (said["task"], said["data"], said["skipped"]) == ("classify", expected, skipped)
    learning = "learning rate 0.00025 (optim.lr=0.016 × 8 / 512)"
    assert said["training"] == f"1 epoch of {(24 - val) // 8} updates, 8 images per update, {learning}"
    assert (said["evaluation"], said["start"], said["folder"]) == ("at 16 pixels", "from scratch", "run")

    result = command("eval.py", "checkpoint=run", "run_dir=own", "weights=raw")
    said = facts_in(result.stderr)
    assert list(said) == ["device", "model", "task", "weights", "data", "skipped", "evaluation", "folder"]
    assert said["weights"] == "raw of run/checkpoints/last.pt"
    assert (said["data"], said["skipped"]) == (f"{val} evaluation images {from_root}", skipped)

    given = ("data=folder", f"data.root={root}", "data.workers=0", "weights=raw")
    result = command("eval.py", "checkpoint=run", *given, "run_dir=given")
    note = result.stderr.splitlines()[0]
    assert note.startswith("note: data: all images of the folder are evaluated, so the run was trained on some of them")
    evaluated = f"24 evaluation images in 2 classes from {root} (all, because the folder has no splits)"
    assert facts_in(result.stderr)["data"] == evaluated

    # Runs of earlier versions held images out by their names; the first ones did not say so in the checkpoint.
    content = dict(torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True))
    del content["identity"]["config"]["data"]["split_by"]
    (tmp_path / "old" / "checkpoints").mkdir(parents=True)
    for order, note in ((BY_NAME, ""), ({"data": "folder"}, f"note: data: {OTHER} by file name now")):
        content["identity"]["order"] = order
        torch.save(content, tmp_path / "old/checkpoints/last.pt")
        result = command("eval.py", "checkpoint=old/checkpoints/last.pt", f"run_dir=old_{len(order)}", "weights=raw")
        assert result.stderr.startswith(note or "device")
        assert "(held out by file name: 25 % for data.val_fraction=0.2)" in result.stderr


def test_a_broken_validation_image_ends_a_run_before_it_begins(
    command: Callable[..., Result], image_tree: Tree, tmp_path: Path
) -> None:
    root = image_tree("mine", {"train/cat": 8, "train/dog": 8, "val/cat": 4, "val/dog": 4})
    truncate(root / "val" / "dog" / "003.png")
    result = command("train.py", *SMALL, f"data.root={root}", "run_dir=run")
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"error: {root}/val/dog/003.png: cannot be decoded (")
    assert line.endswith("remove or convert this file")
    assert (result.status, (tmp_path / "run").exists()) == (2, False)
