"""Lists the images in class folders. The list is cached until one of the folders changes."""

import hashlib
import io
import json
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xcit.errors import InputError, print_note

from ..about import Skipped
from ..cache_folder import cache_folder
from ..image_formats import extension, image_extensions, is_system_name
from .packed_strings import PackedStrings

MIN_AGE = 2.0
"""In seconds. Two changes of a folder in quick succession may have the same time stamp, so a list is cached only if the
last change is older than this."""
CACHE_FORMAT = "1"
"""To be changed with the content of cached lists, and with the names of system files."""
DIGEST = 32
"""A cached list begins with the SHA-256 of the rest of its file, which has this many bytes."""


class Listing(NamedTuple):
    """The images of a folder with one subfolder per class."""

    classes: list[str]
    paths: PackedStrings
    labels: np.ndarray
    """(num_images,), int32. Indices into classes."""
    folders: dict[str, int]
    """Every folder that was read, relative to the root → its time stamp in ns."""
    skipped: Skipped
    """What was found besides."""


def list_images(root: Path) -> Listing:
    """List all images in root/CLASS/ and its subfolders, with classes and paths sorted.

    Hidden files, those of the operating system and files that Pillow cannot read as images are skipped and counted. The
    list comes from the cache if no folder has changed since it was written.

    Raises:
        InputError: A folder cannot be read.
    """
    cache = cache_folder("listings") / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.list"
    cached = read_cache(cache, root)
    if cached is not None:
        return cached
    started = time.time()
    try:
        listing = list_folders(root)
    except OSError as error:  # a folder without permission to read, or a loop of symbolic links
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror})") from None
    if started - max(listing.folders.values()) / 1e9 > MIN_AGE:
        write_cache(cache, listing)
    return listing


def look_into(folder: Path) -> tuple[list[str], list[str], Skipped]:
    """Return the sorted names of a folder's subfolders and images, and what is skipped in the folder.

    Raises:
        InputError: The folder cannot be read.
    """
    skipped = Skipped()
    try:
        return *read_folder(folder, "", {}, skipped), skipped
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror})") from None


def images_below(folder: Path) -> list[str]:
    """Return the paths of all images in a folder and its subfolders, sorted by folder, then by name; without the cache.

    Raises:
        InputError: A folder cannot be read.
    """
    try:
        return [str(folder.parent / path) for path in walk(folder.parent, folder.name, {}, Skipped())]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror})") from None


def skipped_below(folder: Path) -> Skipped:
    """Return what is skipped in a folder and its subfolders."""
    skipped = Skipped()
    walk(folder.parent, folder.name, {}, skipped)
    return skipped


def list_tree(root: Path) -> tuple[PackedStrings, Skipped]:
    """List all images in a folder and its subfolders, sorted by folder, then by name; and what is skipped there.

    Raises:
        InputError: A folder cannot be read.
    """
    skipped = Skipped()
    try:
        found = [path.removeprefix("./") for path in walk(root, ".", {}, skipped)]
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror})") from None
    return PackedStrings.pack(found, f"{root}/"), skipped


def list_folders(root: Path) -> Listing:
    """List all images in root/CLASS/ and its subfolders, without the cache."""
    folders: dict[str, int] = {}
    skipped = Skipped()
    classes, loose = read_folder(root, "", folders, skipped)
    skipped.loose = len(loose)
    found: list[str] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        paths = walk(root, name, folders, skipped)
        found += paths
        labels += [number] * len(paths)
    packed = PackedStrings.pack(found, f"{root}/")
    return Listing(classes, packed, np.array(labels, dtype=np.int32), folders, skipped)


# In the functions below, `folders` and `skipped` collect what a Listing says of each folder that is read.


def walk(root: Path, top: str, folders: dict[str, int], skipped: Skipped) -> list[str]:
    """Return the images in root/top and its subfolders, as paths relative to root, sorted by folder, then by name."""
    pending, found = [top], []
    while pending:
        folder = pending.pop()
        subfolders, names = read_folder(root, folder, folders, skipped)
        pending += [f"{folder}/{name}" for name in subfolders]
        found.append((folder, names))
    return [f"{folder}/{name}" for folder, names in sorted(found) for name in names]


def read_folder(root: Path, folder: str, folders: dict[str, int], skipped: Skipped) -> tuple[list[str], list[str]]:
    """Return the sorted names of the subfolders and of the images in root/folder."""
    known = image_extensions()
    subfolders, images = [], []
    for entry in scan(root, folder, folders):
        if is_system_name(entry.name):
            skipped.system += 1
        elif entry.is_dir():
            subfolders.append(entry.name)
        elif (suffix := extension(entry.name)) in known:
            images.append(entry.name)
        else:
            skipped.others[suffix] += 1
    return sorted(subfolders), sorted(images)


def scan(root: Path, folder: str, folders: dict[str, int]) -> list[os.DirEntry]:
    """Return the entries of root/folder. Add its time stamp to `folders` first, so that no change is missed."""
    folders[folder] = change_time(root, folder)
    with os.scandir(root / folder) as entries:
        return list(entries)


def change_time(root: Path, folder: str) -> int:
    """Return the ctime of root/folder in ns. Its mtime is not reliable, since unpacking an archive may set it back."""
    return (root / folder).stat().st_ctime_ns


def read_cache(cache: Path, root: Path) -> Listing | None:
    """Return the cached list, or None if there is none, if it is damaged, or if the list may be another one now."""
    try:
        content = cache.read_bytes()
        if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
            return None
        with np.load(io.BytesIO(content[DIGEST:])) as saved:
            about = json.loads(str(saved["about"]))
            if about["rules"] != rules():
                return None
            if any(change_time(root, name) != at for name, at in about["folders"].items()):
                return None
            paths = PackedStrings(saved["content"], saved["ends"], f"{root}/")
            skipped = Skipped.from_dict(about["skipped"])
            return Listing(about["classes"], paths, saved["labels"], about["folders"], skipped)
    except OSError:  # there is no cache file yet, or a listed folder was removed
        return None


def rules() -> list[str]:
    """Return what a list depends on besides the folders. Another version of Pillow may know other formats."""
    return [CACHE_FORMAT, *sorted(image_extensions())]


def write_cache(cache: Path, listing: Listing) -> None:
    """Write the cache file. Print a note if that fails.

    The file is written under a temporary name and renamed, so that no other process reads half of it.
    """
    about = {
        "classes": listing.classes,
        "folders": listing.folders,
        "skipped": listing.skipped.as_dict(),
        "rules": rules(),
    }
    paths, content = listing.paths, io.BytesIO()
    np.savez(content, about=json.dumps(about), content=paths.content, ends=paths.ends, labels=listing.labels)
    temporary = cache.with_suffix(f".{os.getpid()}.tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(hashlib.sha256(content.getbuffer()).digest())
                file.write(content.getbuffer())
            temporary.replace(cache)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        print_note(f"{cache}: the list of images cannot be kept ({error.strerror})")
