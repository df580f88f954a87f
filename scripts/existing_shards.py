"""Writes the index of existing shards, and compares shards with their index, for scripts/make_shards.py."""

import hashlib
from pathlib import Path

from data.shards.cache import find_fault
from data.shards.index import INDEX, Index, Shard, find_samples, parse_index
from xcit.engine.progress import Progress
from xcit.errors import InputError
from xcit.storage import write_text


def index_existing(folder: Path, classes_file: str | None, progress: Progress) -> None:
    """Write the index of existing shards."""
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise InputError(f"{folder}: contains no shards (*.tar)")
    shards, highest = [], 0
    for path in progress.track(paths, str(folder), "shards"):
        with path.open("rb") as file:
            positions = find_samples(file, str(path))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if not len(positions):
            raise InputError(f"{path}: contains no samples; must be images with their classes, KEY.jpg and KEY.cls")
        shards.append(Shard(path.name, len(positions), path.stat().st_size, digest))
        highest = max(highest, int(positions.labels.max()))
    classes = read_classes(classes_file) if classes_file else [str(number) for number in range(highest + 1)]
    if highest >= len(classes):
        raise InputError(
            f"--classes={classes_file}: contains {len(classes)} classes; the shards have numbers up to {highest}"
        )
    try:
        write_text(folder / INDEX, Index(classes, shards).text())
    except OSError as error:
        raise InputError(f"{folder / INDEX}: cannot be written ({error.strerror})") from None
    samples = sum(shard.samples for shard in shards)
    print(f"{folder / INDEX}: {len(shards)} shards, {samples:,} images of {len(classes)} classes")


def check_existing(folder: Path, progress: Progress) -> None:
    """Compare the sizes and the SHA-256 of all shards in a folder with its index.

    Raises:
        InputError: shards are missing or differ, or there is no index.
    """
    found = folder / INDEX
    try:
        index = parse_index(found.read_bytes(), str(found))
    except OSError as error:
        raise InputError(f"{found}: cannot be read ({error.strerror})") from None
    faults = []
    for shard in progress.track(index.shards, str(folder), "shards"):
        try:
            fault = find_fault(folder / shard.name, shard)
        except OSError as error:
            fault = f"cannot be read ({error.strerror})"
        if fault:
            faults.append(f"  {shard.name}: {fault}")
    if faults:
        first = f"{folder}: {len(faults)} of {len(index.shards)} shards are not as {INDEX} has them"
        raise InputError("\n".join([first, *faults]))
    print(f"{folder}: all {len(index.shards)} shards are as {INDEX} has them")


def read_classes(path: str) -> list[str]:
    try:
        names = Path(path).read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--classes={path}: cannot be read ({error})") from None
    names = [name.strip() for name in names if name.strip()]
    if len(set(names)) < len(names):
        raise InputError(f"--classes={path}: contains a class twice")
    return names
