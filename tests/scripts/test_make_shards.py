"""scripts/make_shards.py writes reproducible shards with the contents of the folder."""

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.datasets.image_files import ImageFiles
from data.datasets.imagenet_shards import ImageNetShards
from data.shards import writing
from data.shards.index import INDEX, parse_index

from ..conftest import Result
from .shards import SCRIPT, files, members

Command = Callable[..., Result]


def test_the_bytes_do_not_depend_on_the_number_of_processes(command: Command, tree: Path, tmp_path: Path) -> None:
    for workers in ("1", "3"):
        result = command(SCRIPT, str(tree), f"s{workers}", "--samples", "4", "--workers", workers)
        assert result.status == 0, result.stderr
        assert result.stdout.startswith(f"s{workers}/train: 6 shards, 23 images of 2 classes, ")
        os.utime(tree / "train" / "red" / "000.JPEG")  # shards do not depend on the files' times
    assert files(tmp_path / "s1") == files(tmp_path / "s3")
    with tarfile.open(tmp_path / "s1/train/000000.tar") as tar:
        assert {(member.mtime, member.uid, member.uname, member.mode) for member in tar} == {(0, 0, "", 0o444)}
    assert set(files(tmp_path / "s1")) == {
        *(f"train/{number:06}.tar" for number in range(6)),
        *(f"val/{number:06}.tar" for number in range(2)),
        "train/index.json",
        "val/index.json",
    }
    assert command(SCRIPT, str(tree), "other", "--samples", "4", "--seed", "1").status == 0
    assert files(tmp_path / "other")["train/000000.tar"] != files(tmp_path / "s1")["train/000000.tar"]


def test_the_list_of_images_is_taken_once_however_many_shards(
    command: Command, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the list decodes every path. Doing so for each image would take days for ImageNet."""
    taken = []
    samples = ImageFiles.samples.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(ImageFiles, "samples", property(lambda images: taken.append(len(images)) or samples(images)))
    assert command(SCRIPT, str(tree), "shards", "--samples", "2").status == 0
    assert taken == [23, 7]


def test_webdataset_reads_them(command: Command, tree: Path, tmp_path: Path) -> None:
    import webdataset

    assert command(SCRIPT, str(tree), "shards", "--samples", "9").status == 0
    pattern = str(tmp_path / "shards" / "train" / "{000000..000002}.tar")
    found = [(int(s["cls"]), s["jpg"]) for s in webdataset.WebDataset(pattern, shardshuffle=False, empty_check=False)]
    there = [(n, p.read_bytes()) for n, c in enumerate(("green", "red")) for p in (tree / "train" / c).iterdir()]
    assert sorted(found) == sorted(there)
    assert found != sorted(found), "the classes are shuffled"


def test_shards_of_so_many_bytes(command: Command, tree: Path, tmp_path: Path) -> None:
    assert command(SCRIPT, str(tree), "shards", "--bytes", "3kB").status == 0
    index = parse_index((tmp_path / "shards/train" / INDEX).read_bytes(), "")
    assert sum(shard.samples for shard in index.shards) == 23
    for shard in index.shards:
        assert (
            1 <= sum(len(d) for n, d in members(tmp_path / "shards/train" / shard.name).items() if "jpg" in n) <= 3000
        )
    assert command(SCRIPT, str(tree), "ones", "--bytes", "1").status == 0
    assert len(parse_index((tmp_path / "ones/val" / INDEX).read_bytes(), "").shards) == 7


def test_large_images_are_shrunk_and_small_ones_left_alone(
    command: Command, image_tree: Callable[..., Path], tmp_path: Path
) -> None:
    root = image_tree("mine", {"red": 8}, ".png")  # 24 pixels wide, 20 to 27 pixels high
    assert command(SCRIPT, str(root), "shards", "--short-side", "22").status == 0
    originals = {path.read_bytes() for path in (root / "red").iterdir()}
    found = {name: data for name, data in members(tmp_path / "shards/000000.tar").items() if not name.endswith("cls")}
    small = {name: data for name, data in found.items() if name.endswith(".png")}
    assert len(small) == 3
    assert set(small.values()) <= originals
    for name in found.keys() - small.keys():
        image = Image.open(io.BytesIO(found[name]))
        assert (image.format, min(image.size)) == ("JPEG", 22)
        number = int(name.split("_")[1].split(".")[0])
        assert max(image.size) == round(22 * max(24, 20 + number) / min(24, 20 + number))
        before = np.asarray(Image.open(root / "red" / f"{number:03}.png").resize(image.size), dtype=float)
        assert abs(before - np.asarray(image, dtype=float)).mean() < 12


def test_an_image_that_cannot_be_decoded_is_named(command: Command, tree: Path, tmp_path: Path) -> None:
    broken = tree / "train" / "red" / "003.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    result = command(SCRIPT, str(tree), "shards", "--samples", "100")
    assert result.status == 2
    assert result.stderr.startswith(f"error: {broken}: cannot be decoded (")
    assert result.stderr.count("\n") == 1
    assert not list((tmp_path / "shards").rglob("*.tar*"))
    assert command(SCRIPT, str(tree), "shards", "--samples", "100", "--no-decode-check").status == 0
    assert not decoded_before(tmp_path / "shards")


def decoded_before(shards: Path) -> bool:
    return ImageNetShards(urls=str(shards / "train")).train().decoded_before


def test_the_index_says_whether_the_images_were_decoded(command: Command, tree: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    assert command(SCRIPT, str(tree), "shards", "--samples", "4").status == 0
    assert decoded_before(shards)
    # A shard is made again, and the others are of an older version, which did not record it.
    path = shards / "train" / INDEX
    index = parse_index(path.read_bytes(), "")
    del index.made["decoded"]
    path.write_text(index.text())
    (shards / "train" / "000000.tar").unlink()
    assert command(SCRIPT, str(tree), "shards", "--samples", "4").status == 0
    assert not decoded_before(shards)
    assert command(SCRIPT, "--index-only", "shards/train").status == 0
    assert not decoded_before(shards)


def test_a_class_whose_name_is_not_utf_8(command: Command, tree: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    for part in ("train", "val"):
        (tree / part / "red").rename(tree / part / name)
    result = command(SCRIPT, str(tree), "shards")
    assert result.status == 0, result.stderr
    assert parse_index((tmp_path / "shards/train" / INDEX).read_bytes(), "").classes == [name, "green"]
    assert command(SCRIPT, str(tree), "shards").stdout.startswith("shards/train: already finished\n")


def test_splits_formats_and_system_files_are_those_of_the_folder(
    command: Command, image_tree: Callable[..., Path], tmp_path: Path
) -> None:
    tree = image_tree("tree", {"Training/cat": 3, "Test/cat": 2, "__MACOSX/Test/cat": 1}, ".gif")
    (tree / "Training" / "cat" / "._000.gif").write_bytes(b"macOS")
    (tree / "Training" / "cat" / "a.txt").write_text("mine")
    result = command(SCRIPT, str(tree), "shards")
    assert result.status == 0, result.stderr
    skipped = "skipped 1 file that Pillow cannot read as an image (1 .txt), 1 hidden or system file"
    assert result.stderr == f"note: {tree}/Training: {skipped}\n"
    for split, samples in (("train", 3), ("test", 2)):
        (shard,) = parse_index((tmp_path / "shards" / split / INDEX).read_bytes(), "").shards
        assert shard.samples == samples
        assert sum(name.endswith(".gif") for name in members(tmp_path / "shards" / split / shard.name)) == samples


def test_a_link_to_nothing_is_named(command: Command, tree: Path, tmp_path: Path) -> None:
    dangling = tree / "train" / "red" / "link.JPEG"
    dangling.symlink_to("nowhere")
    result = command(SCRIPT, str(tree), "shards")
    assert (result.status, result.stderr) == (2, f"error: {dangling}: cannot be read (No such file or directory)\n")
    assert not (tmp_path / "shards").exists()


def test_a_disk_that_does_not_give_back_what_was_written(
    command: Command, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = writing.verify

    def after_damage(path: Path, *rest: object) -> None:
        content = path.read_bytes()
        path.write_bytes(content[:700] + bytes([content[700] ^ 1]) + content[701:])
        verify(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(writing, "verify", after_damage)
    result = command(SCRIPT, str(tree), "shards")
    assert result.status == 2
    assert result.stderr == (
        "error: shards/train/000000.tar: the data read back differs from the data written; the disk may be damaged\n"
    )
    assert not list((tmp_path / "shards").rglob("*.tar*"))


def test_what_cannot_be_done_is_said_in_a_line(command: Command, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "zip").mkdir()
    with tarfile.open(tmp_path / "zip" / "a.tar", "w:gz"):
        pass
    (tmp_path / "one").write_text("green\n")
    (tmp_path / "twice").write_text("green\ngreen\n")
    assert command(SCRIPT, str(tree), "made").status == 0
    for arguments, message in (
        ((), "SOURCE and TARGET: must be given (or --index-only FOLDER)"),
        (("nowhere", "new"), "nowhere: no such folder"),
        (("empty", "new"), "empty: holds no class folders"),
        ((str(tree), "new", "--workers", "0"), "--workers: 0: must be a whole number of at least 1"),
        ((str(tree), "new", "--samples", "5kB"), "--samples: 5kB: must be a whole number of at least 1"),
        ((str(tree), "new", "--bytes", "0MB"), "--bytes: 0MB: must be a whole number of at least 1; kB, MB or GB may"),
        ((str(tree), "new", "--seed", "-1"), "--seed: -1: must be a whole number of at least 0"),
        ((str(tree), "new", "--classes", "one"), "--classes=one: requires --index-only"),
        ((str(tree), f"{tree}/train/new"), f"{tree}/train/new: is inside SOURCE"),
        ((str(tree), "--index-only", "made/train"), f"{tree}: --index-only takes a folder of shards, and no SOURCE"),
        ((str(tree), "one"), "one/train/.unfinished: cannot be written (Not a directory)"),
        (("--index-only", "empty"), "empty: contains no shards (*.tar)"),
        (("--index-only", "zip"), "zip/a.tar: cannot be read as a tar that is not compressed"),
        (("--index-only", "made/train", "--classes", "one"), "--classes=one: contains 1 classes; the shards have "),
        (("--index-only", "made/train", "--classes", "twice"), "--classes=twice: contains a class twice"),
        (("--index-only", "made/train", "--classes", "none"), "--classes=none: cannot be read"),
    ):
        result = command(SCRIPT, *arguments)
        assert (result.status, result.stdout) == (2, "")
        assert result.stderr.startswith(f"error: {message}")
        assert result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_flat_validation_images_of_imagenet_get_labels_from_the_devkit(
    command: Command, image_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_tree("imagenet", {"train/n01": 3, "train/n02": 3}, ".JPEG")
    (root / "val").mkdir()
    for number, source in enumerate(sorted((root / "train").rglob("*.JPEG"))[1:4], start=1):
        shutil.copy(source, root / "val" / f"ILSVRC2012_val_{number:08}.JPEG")
    monkeypatch.setattr("data.datasets.imagenet.read_devkit", lambda _: ({1: "n01", 2: "n02"}, [1, 1, 2]))
    assert command(SCRIPT, str(root), "shards", "--workers", "1").status == 0
    labels = [data for name, data in members(tmp_path / "shards/val/000000.tar").items() if name.endswith("cls")]
    assert sorted(labels) == [b"0", b"0", b"1"]
