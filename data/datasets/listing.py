"""Lists the images in class folders. The list is cached until one of the folders changes."""

import hashlib
import json
import os
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from xcit.errors import InputError, print_note

from ..cache_folder import cache_folder
from .packed_strings import PackedStrings

MIN_AGE = 2.0
"""In seconds. Two changes of a folder in quick succession may have the same time stamp, so a list is cached only if the
last change is older than this."""


class Listing(NamedTuple):
    """The images of a folder with one subfolder per class."""

    classes: list[str]
    paths: PackedStrings
    labels: np.ndarray
    """(num_images,), int32. Indices into classes."""


def list_images(root: Path) -> Listing:
    """List all images in root/CLASS/ and its subfolders, with classes and paths sorted.

    The list comes from the cache if no folder has changed since it was written.

    Raises:
        InputError: A folder cannot be read.
    """
    cache = cache_folder("listings") / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.npz"
    cached = read_cache(cache, root)
    if cached is not None:
        return cached
    started = time.time()
    folders: dict[str, int] = {}
    try:
        listing = list_folders(root, folders)
    except OSError as error:  # a folder without permission to read, or a loop of symbolic links
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror})") from None
    if started - max(folders.values()) / 1e9 > MIN_AGE:
        write_cache(cache, listing, folders)
    return listing


# In the functions below, `folders` collects the time stamp of each folder that was read: path relative to root → ns.


def list_folders(root: Path, folders: dict[str, int]) -> Listing:
    """List all images in root/CLASS/ and its subfolders, without the cache."""
    classes = sorted(entry.name for entry in scan(root, "", folders) if is_class(entry))
    found: list[str] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        paths = walk(root, name, folders)
        found += paths
        labels += [number] * len(paths)
    return Listing(classes, PackedStrings.pack(found, f"{root}/"), np.array(labels, dtype=np.int32))


def is_class(entry: os.DirEntry) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def walk(root: Path, top: str, folders: dict[str, int]) -> list[str]:
    """Return the images in root/top and its subfolders, as paths relative to root, sorted by folder, then by name."""
    pending, found = [top], []
    while pending:
        folder = pending.pop()
        names = []
        for entry in scan(root, folder, folders):
            if entry.is_dir():
                pending.append(f"{folder}/{entry.name}")
            elif entry.name.lower().endswith(IMG_EXTENSIONS):
                names.append(entry.name)
        found.append((folder, sorted(names)))
    return [f"{folder}/{name}" for folder, names in sorted(found) for name in names]


def scan(root: Path, folder: str, folders: dict[str, int]) -> list[os.DirEntry]:
    """Return the entries of root/folder. Add its time stamp to `folders` first, so that no change is missed."""
    folders[folder] = change_time(root, folder)
    with os.scandir(root / folder) as entries:
        return list(entries)


def change_time(root: Path, folder: str) -> int:
    """Return the ctime of root/folder in ns. Its mtime is not reliable, since unpacking an archive may set it back."""
    return (root / folder).stat().st_ctime_ns


def read_cache(cache: Path, root: Path) -> Listing | None:
    """Return the cached list, or None if there is none or a folder's time stamp has changed."""
    try:
        with np.load(cache) as saved:
            about = json.loads(str(saved["about"]))
            if any(change_time(root, name) != at for name, at in about["folders"].items()):
                return None
            paths = PackedStrings(saved["content"], saved["ends"], f"{root}/")
            return Listing(about["classes"], paths, saved["labels"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        # There is no cache file yet, a listed folder was removed, or the cache file is damaged.
        return None


def write_cache(cache: Path, listing: Listing, folders: dict[str, int]) -> None:
    """Write the cache file. Print a note if that fails.

    The file is written under a temporary name and renamed, so that no other process reads half of it.
    """
    about = json.dumps({"classes": listing.classes, "folders": folders})
    temporary = cache.with_suffix(f".{os.getpid()}.tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                np.savez(
                    file, about=about, content=listing.paths.content, ends=listing.paths.ends, labels=listing.labels
                )
            temporary.replace(cache)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        print_note(f"{cache}: the list of images cannot be kept ({error.strerror})")
