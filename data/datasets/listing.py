"""The images below a folder with a folder for each class: looked up once, and again only when a folder has changed."""

import hashlib
import json
import os
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..caches import cache_folder
from ..errors import DataError, tell
from .packed_texts import PackedTexts

SETTLED = 2.0
"""Seconds: a folder changed later than so long ago may change again without a trace in its time stamp."""


class Listing(NamedTuple):
    classes: list[str]
    paths: PackedTexts
    labels: np.ndarray
    """(images,), int32: the number of each image's class."""


def list_images(root: Path) -> Listing:
    """Every image below root/CLASS/, classes and paths sorted; from the cache where no folder has changed since."""
    cache = cache_folder("listings") / f"{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:32]}.npz"
    known = read_cache(cache, root)
    if known is not None:
        return known
    looked_at = time.time()
    folders: dict[str, int] = {}
    try:
        listing = look_through(root, folders)
    except OSError as error:  # of a folder that may not be read, or of links that lead in a circle
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror})") from None
    if looked_at - max(folders.values()) / 1e9 > SETTLED:
        write_cache(cache, listing, folders)
    return listing


def look_through(root: Path, folders: dict[str, int]) -> Listing:
    """The listing, and each folder's time stamp."""
    classes = sorted(entry.name for entry in scan(root, "", folders) if is_class(entry))
    found: list[str] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        paths = walk(root, name, folders)
        found += paths
        labels += [number] * len(paths)
    return Listing(classes, PackedTexts.of(found, f"{root}/"), np.array(labels, dtype=np.int32))


def is_class(entry: os.DirEntry) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def walk(root: Path, top: str, folders: dict[str, int]) -> list[str]:
    """The images in root/top and below, relative to root: folder by folder, each sorted."""
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
    """What is in root/folder, whose time stamp (ns) is noted before."""
    folders[folder] = changed_at(root, folder)
    with os.scandir(root / folder) as entries:
        return list(entries)


def changed_at(root: Path, folder: str) -> int:
    """In nanoseconds, by the system's clock: unpacking an archive may set the other time stamp back."""
    return (root / folder).stat().st_ctime_ns


def read_cache(cache: Path, root: Path) -> Listing | None:
    """What was listed before, if every folder's time stamp is still the same."""
    try:
        with np.load(cache) as saved:
            about = json.loads(str(saved["about"]))
            if any(changed_at(root, name) != at for name, at in about["folders"].items()):
                return None
            paths = PackedTexts(saved["content"], saved["ends"], f"{root}/")
            return Listing(about["classes"], paths, saved["labels"])
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        zipfile.BadZipFile,
    ):  # none yet, or a folder is gone, or it is no longer what was written
        return None


def write_cache(cache: Path, listing: Listing, folders: dict[str, int]) -> None:
    """In one step, so that another process reads it whole; where it cannot be written the next run lists again."""
    about = json.dumps({"classes": listing.classes, "folders": folders})
    aside = cache.with_suffix(f".{os.getpid()}.tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                np.savez(
                    file, about=about, content=listing.paths.content, ends=listing.paths.ends, labels=listing.labels
                )
            aside.replace(cache)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        tell(f"{cache}: the list of images cannot be kept ({error.strerror})")
