"""Divides images into shards, and finds the shards that an earlier call of scripts/make_shards.py has finished."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xcit.errors import InputError

from .index import INDEX, Shard, parse_index

UNFINISHED = ".unfinished"
"""A folder beside the shards for temporary files, and for a record of each finished shard."""


def divide(order: list[int], sizes: list[int], samples: int | None, size: int | None) -> Iterator[list[int]]:
    """Cut the order into shards of `samples` images, or of as many images as fit into `size` bytes."""
    members: list[int] = []
    taken = 0
    for member in order:
        full = len(members) == samples if samples else size is not None and taken + sizes[member] > size
        if full and members:
            yield members
            members, taken = [], 0
        members.append(member)
        taken += sizes[member]
    yield members


def size_of(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def fingerprint(classes: list[str], samples: list[tuple[str, int]], sizes: list[int], source: Path) -> str:
    """A hash of the names, labels, sizes and classes. It changes if the source files change."""
    names = [(os.path.relpath(path, source), label) for path, label in samples]
    return hashlib.sha256(json.dumps([classes, names, sizes]).encode()).hexdigest()


def known_shards(folder: Path, made: dict[str, Any]) -> dict[str, Shard]:
    """The shards in the folder's index, if it has one.

    Raises:
        InputError: the folder contains other files, or shards of other images or options than `made`.
    """
    found = folder / INDEX
    plan = folder / UNFINISHED / "plan.json"
    if found.is_file():
        index = parse_index(found.read_bytes(), str(found))
        if not is_continued(index.made, made):
            raise InputError(f"{folder}: contains shards of other images or options; give a new folder")
        return {shard.name: shard for shard in index.shards}
    if plan.is_file():
        if not is_continued(read_json(plan), made):
            raise InputError(
                f"{folder}: contains unfinished shards of other images or options; remove it, or give a new folder"
            )
    elif folder.exists() and any(entry.name != UNFINISHED for entry in folder.iterdir()):
        raise InputError(f"{folder}: is not empty; give a new folder")
    return {}


def is_continued(before: Any, made: dict[str, Any]) -> bool:
    """Whether earlier shards are of the same images and options, so that they are kept.

    Then `made` says that all images were decoded only if the earlier call decoded them, too. Older versions did not
    record it.
    """
    if not isinstance(before, dict) or before | {"decoded": None} != made | {"decoded": None}:
        return False
    made["decoded"] = made["decoded"] and before.get("decoded") is True
    return True


def is_finished(folder: Path, known: dict[str, Shard]) -> bool:
    """Whether all shards of the index exist with the right size, and no earlier call was interrupted."""
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.tar")}
    whole = all(sizes.get(shard.name) == shard.bytes for shard in known.values())
    return bool(known) and whole and not (folder / UNFINISHED).exists()


def read_record(path: Path) -> Shard | None:
    """The record of a shard that an earlier call finished, or None."""
    try:
        return Shard(**read_json(path))
    except TypeError:
        return None


def read_json(path: Path) -> Any:
    """The content of a file, or None if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
