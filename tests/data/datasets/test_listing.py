"""The cached list of images is never stale and uses little memory."""

import os
import pickle
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data.about import Skipped
from data.cache_folder import cache_folder
from data.datasets import listing
from data.datasets.folder import list_class_folders
from data.datasets.listing import list_images
from data.datasets.packed_strings import PackedStrings
from xcit.errors import InputError

Tree = Callable[..., Path]


@pytest.fixture
def root(image_tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a tree of images and an empty cache. The module under test sees a clock that is one hour ahead."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(listing, "time", SimpleNamespace(time=lambda: time.time() + 3600))
    return image_tree("mine", {"cat": 3, "dog": 2, "dog/old": 1})


def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list. Each folder that is read from now on is appended to it."""
    seen: list[str] = []
    scan = listing.scan
    monkeypatch.setattr(
        listing, "scan", lambda root, folder, folders: seen.append(folder) or scan(root, folder, folders)
    )
    return seen


def test_it_is_sorted_and_each_folder_is_looked_through_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scans(monkeypatch)
    found = list_images(root)
    assert found.classes == ["cat", "dog"]
    names = ["cat/000.png", "cat/001.png", "cat/002.png", "dog/000.png", "dog/001.png", "dog/old/000.png"]
    assert list(found.paths) == [f"{root}/{name}" for name in names]
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert sorted(seen) == ["", "cat", "dog", "dog/old"]


def test_it_is_kept_while_no_folder_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = list_images(root)
    seen = scans(monkeypatch)
    again = list_images(root)
    assert not seen
    assert (again.classes, list(again.paths)) == (first.classes, list(first.paths))
    assert np.array_equal(again.labels, first.labels)


@pytest.mark.parametrize("change", ["dog/old/new.png", "new/a.png", "cat/deeper/a.png"])
def test_what_is_added_anywhere_is_found(root: Path, change: str) -> None:
    list_images(root)
    (root / change).parent.mkdir(exist_ok=True)
    (root / change).write_bytes(b"")
    assert f"{root}/{change}" in list(list_images(root).paths)


def test_a_time_stamp_that_is_set_back_hides_no_change(root: Path) -> None:
    """tar and rsync set the time stamps of folders back when they unpack another version of a data set."""
    before = (root / "cat").stat()
    list_images(root)
    (root / "cat" / "000.png").rename(root / "cat" / "other.png")
    os.utime(root / "cat", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert f"{root}/cat/other.png" in list(list_images(root).paths)


def test_links_in_a_circle_are_told_of_in_a_line(root: Path) -> None:
    (root / "dog" / "self").symlink_to(".")
    with pytest.raises(InputError, match=r"self: cannot be listed \(Too many levels of symbolic links\)$"):
        list_images(root)


def test_what_is_gone_is_gone(root: Path) -> None:
    list_images(root)
    (root / "dog" / "old" / "000.png").unlink()
    assert f"{root}/dog/old/000.png" not in list(list_images(root).paths)


def test_a_folder_that_has_just_changed_is_not_relied_upon(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "time", time)
    list_images(root)
    seen = scans(monkeypatch)
    list_images(root)
    assert seen


def test_what_is_skipped_is_kept_with_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cat/a.txt", "cat/b.TXT", "dog/old/c.heic", "dog/Thumbs.db", ".hidden", "loose.png"):
        (root / name).write_bytes(b"x")
    first = list_images(root)
    seen = scans(monkeypatch)
    assert list_images(root).skipped == first.skipped == Skipped(Counter({".txt": 2, ".heic": 1}), system=2, loose=1)
    assert not seen


def test_another_pillow_may_know_other_formats(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "cat" / "a.heic").write_bytes(b"x")
    assert len(list_images(root).labels) == 6
    known = listing.image_extensions() | {".heic"}
    monkeypatch.setattr(listing, "image_extensions", lambda: known)
    assert len(list_images(root).labels) == 7


def test_a_damaged_cache_is_never_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any damage, a single bit of a path for example, the folder is listed anew."""
    expected = list_images(root)
    (cache,) = cache_folder("listings").iterdir()
    content, generator = cache.read_bytes(), random.Random(0)
    seen = scans(monkeypatch)
    for number in range(100):
        damaged = bytearray(content)
        at = generator.randrange(len(damaged))
        if number % 4 == 3:
            del damaged[at : at + generator.choice([1, 16, 512])]
        else:
            damaged[at] ^= 1 << generator.randrange(8)
        cache.write_bytes(damaged)
        seen.clear()
        found = list_images(root)
        assert seen, "the folder was listed"
        assert (list(found.paths), found.skipped) == (list(expected.paths), expected.skipped)
        assert cache.stat().st_size == len(content), "the cache was written anew"
    seen.clear()
    list_images(root)
    assert not seen


@pytest.mark.parametrize("content", [b"", b"PK broken", b"\x93NUMPY"])
def test_a_broken_cache_is_as_good_as_none(root: Path, content: bytes) -> None:
    expected = list(list_images(root).paths)
    (cache,) = cache_folder("listings").iterdir()
    cache.write_bytes(content)
    assert list(list_images(root).paths) == expected
    assert cache.stat().st_size > len(content)


def test_a_cache_that_cannot_be_written_is_told_of(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "file"))
    assert len(list_images(root).labels) == 6
    assert "the list of images cannot be kept" in capsys.readouterr().err


def test_packed_strings_equal_the_originals() -> None:
    strings = ["a", "", "grün/ß.jpg", "odd\udcff.png"]
    packed = PackedStrings.pack(strings, "root/")
    assert list(packed) == [f"root/{string}" for string in strings]
    assert packed[-1] == f"root/{strings[-1]}"
    assert list(packed.take(np.array([2, 0]))) == ["root/grün/ß.jpg", "root/a"]
    with pytest.raises(IndexError):
        packed[4]


def test_a_data_set_holds_no_object_for_each_image(root: Path) -> None:
    """The pickle without its buffers has the same size for any number of images."""
    images = list_class_folders(root)
    buffers: list[pickle.PickleBuffer] = []
    few = len(pickle.dumps(images, protocol=5, buffer_callback=buffers.append))
    many = images.take(np.zeros(100_000, dtype=np.int64))
    assert len(pickle.dumps(many, protocol=5, buffer_callback=buffers.append)) < few + 100


def test_an_image_that_is_gone_is_named(root: Path) -> None:
    images = list_class_folders(root)
    for path, _ in images.samples:
        Path(path).unlink()
    with pytest.raises(InputError, match=r"\.png: cannot be read \(No such file"):
        images[0]
