"""What lies where: the shards of a folder, by its index.json; the samples of a shard, by the headers of its tar."""

import fnmatch
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import DataError

INDEX = "index.json"
HEADER = 512
"""Bytes of a tar's header, which stands right before the data of its member."""
PROTOCOLS = ("http", "https", "s3", "file")
IMAGE_KINDS = frozenset(suffix.removeprefix(".") for suffix in IMG_EXTENSIONS)
SAMPLE_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")
"""key.kind, as webdataset divides the name of a member: at the first dot of its last part."""


class ShardError(DataError):
    """A shard that cannot be had, or is not what it should be. Only the process whose share it is in gets to know."""

    of_one_process = True


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar of samples, as the index describes it."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Index:
    """The content of an index.json; `made` is what scripts/make_shards.py made the shards by."""

    classes: list[str]
    shards: list[Shard]
    made: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"  # ASCII: names of folders need not be UTF-8


class Located(NamedTuple):
    """A shard and where it is: a path, or an address with a scheme."""

    address: str
    shard: Shard

    @property
    def is_remote(self) -> bool:
        return is_remote(self.address)


def is_remote(address: str) -> bool:
    return "://" in address


def parse_index(text: str | bytes, origin: str) -> Index:
    """The index in a text.

    Raises:
        DataError: it is not one.
    """
    try:
        content = json.loads(text)
        index = Index(content["classes"], [Shard(**shard) for shard in content["shards"]], content.get("made", {}))
        for shard in index.shards:
            if not re.fullmatch(r"[^/\\]+", shard.name) or not re.fullmatch("[0-9a-f]{64}", shard.sha256):
                raise ValueError(f"shard {shard.name!r}")
            if type(shard.samples) is not int or type(shard.bytes) is not int or min(shard.samples, shard.bytes) < 1:
                raise ValueError(f"shard {shard.name!r}")
        if not index.shards or not index.classes or not all(isinstance(name, str) for name in index.classes):
            raise ValueError("no shards, or no classes")
        if len({shard.name for shard in index.shards}) < len(index.shards):
            raise ValueError("a shard stands there twice")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(f"{origin}: not an index of shards ({error}); scripts/make_shards.py writes one") from None
    return index


def locate(urls: str | list[str], option: str, read_index: Callable[[str], Index]) -> tuple[list[str], list[Located]]:
    """(classes, shards) that addresses name: folders, whose shards are meant all, or shards, by *, ?, […] and {a..b}.

    Args:
        option: what the addresses were given as.
        read_index: the index of a folder.

    Raises:
        DataError: an address is of another kind, or has a query or a fragment, a shard is not in the index beside it,
            or two folders have different classes.
    """
    found: dict[str, Located] = {}
    indices: dict[str, Index] = {}
    for url in [urls] if isinstance(urls, str) else urls:
        for expanded in expand_braces(url):
            protocol, remote, path = expanded.partition("://")
            if remote and (protocol not in PROTOCOLS or not path.strip("/")):
                raise DataError(
                    f"{option}={expanded}: must be a path, or an address that begins with http://, https:// or s3://"
                )
            if has_query(expanded):
                raise DataError(
                    f"{option}={expanded}: has a query (?…=…) or a fragment (#…); must be an address without them, "
                    "of a folder or of shards by *, ?, […] and {a..b}"
                )
            folder, name = divide(expanded)
            if folder not in indices:
                indices[folder] = read_index(folder)
            matching = list(matches(indices[folder], name))
            if not matching:
                names = [shard.name for shard in indices[folder].shards]
                raise DataError(
                    f"{option}={expanded}: no such shard in {join(folder, INDEX)}, which has {len(names)}: "
                    f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
                )
            found |= {address: Located(address, s) for s in matching for address in [join(folder, s.name)]}
    if not found:
        raise DataError(f"{option}={urls}: must be an address of shards, or several")
    first, *others = indices
    for other in others:
        if indices[other].classes != indices[first].classes:
            raise DataError(f"{option}: {join(first, INDEX)} and {join(other, INDEX)} have different classes")
    return indices[first].classes, list(found.values())


def expand_braces(url: str) -> list[str]:
    if "{" not in url:
        return [url]
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise DataError(f"{url}: {{…}} needs braceexpand; install this project's extra: shards") from None
    try:
        return list(braceexpand(url))
    except ValueError as error:
        raise DataError(f"{url}: cannot be read ({error})") from None


def has_query(url: str) -> bool:
    """Whether an address over HTTP goes on after its path. A ? alone in its last part is a pattern's."""
    folder, _, name = url.rpartition("/")
    return url.startswith(("http://", "https://")) and ("#" in url or "?" in folder or bool(re.search(r"\?.*=", name)))


def divide(url: str) -> tuple[str, str]:
    """(folder, pattern of names) of an address; a folder's own address means all that is in it."""
    folder, slash, name = url.rpartition("/")
    is_pattern = name.endswith(".tar") or any(letter in name for letter in "*?[")
    if is_pattern and not is_local_folder(url):
        return (folder or slash or ".", name)
    return (url.rstrip("/") or slash or ".", "*")


def is_local_folder(url: str) -> bool:
    return not is_remote(url) and os.path.isdir(Path(url).expanduser())  # noqa: PTH112  (Path.is_dir raises)


def join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if is_remote(folder) else str(Path(folder).expanduser() / name)


def matches(index: Index, name: str) -> Iterator[Shard]:
    return (shard for shard in index.shards if shard.name == name or fnmatch.fnmatchcase(shard.name, name))


@dataclass(frozen=True, slots=True)
class Positions:
    """Where the samples of a shard lie: 20 bytes for each."""

    offsets: np.ndarray
    """int64: of the image's data in the tar."""
    sizes: np.ndarray
    """int64: of the image, in bytes."""
    labels: np.ndarray
    """int32: numbers in the index's classes."""

    def __len__(self) -> int:
        return len(self.labels)


def scan(file: IO[bytes], origin: str, classes: int | None = None) -> Positions:
    """The samples of a shard, in their order; reads headers and labels, not images.

    Args:
        origin: what to call the shard in an error.
        classes: how many there are, if that is known.

    Raises:
        ShardError: it is no tar, or a sample is not an image with a class.
    """
    samples: list[tuple[int, int, int]] = []
    try:
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for key, members in samples_of(tar):
                pictures = [member for kind, member in members if kind in IMAGE_KINDS]
                labels = [member for kind, member in members if kind == "cls"]
                if len(pictures) != 1 or len(labels) != 1:
                    kinds = ", ".join(kind for kind, _ in members)
                    raise ShardError(f"{origin}: {key} has {kinds}; must have one image and its class, .cls")
                label = read_label(tar.extractfile(labels[0]), f"{origin}/{key}.cls", classes)
                samples.append((pictures[0].offset_data, pictures[0].size, label))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ShardError(f"{origin}: cannot be read as a tar that is not compressed ({error})") from None
    columns = zip(*samples, strict=True) if samples else ((), (), ())
    return Positions(*(np.array(c, dtype=t) for c, t in zip(columns, (np.int64, np.int64, np.int32), strict=True)))


def samples_of(tar: tarfile.TarFile) -> Iterator[tuple[str, list[tuple[str, tarfile.TarInfo]]]]:
    """(key, its members by kind): members that follow one another and have the same key are a sample."""
    key = ""
    members: list[tuple[str, tarfile.TarInfo]] = []
    for member in members_of(tar):
        named = SAMPLE_NAME.fullmatch(member.name)
        if not named or not member.isreg():
            continue
        if named[1] != key and members:
            yield key, members
            members = []
        key = named[1]
        members.append((named[2].lower(), member))
    if members:
        yield key, members


def members_of(tar: tarfile.TarFile) -> Iterable[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # else the tar would remember them all
        yield member


def read_label(file: IO[bytes] | None, origin: str, classes: int | None) -> int:
    text = file.read(32) if file else b""
    if not re.fullmatch(rb"\s*\d{1,9}\s*", text):
        raise ShardError(f"{origin}: holds {text!r}; must be the number of a class")
    if classes is not None and int(text) >= classes:
        raise ShardError(f"{origin}: is class {int(text)}, and the index has {classes}, from 0")
    return int(text)


def member_name(header: bytes) -> str:
    """The name in a member's header: what tells a person which image it was."""
    name, prefix = (part.split(b"\0")[0].decode(errors="replace") for part in (header[:100], header[345:500]))
    return f"{prefix}/{name}" if prefix and header[257:262] == b"ustar" else name
