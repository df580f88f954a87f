"""Finds the shards of a folder by its index.json, and the samples of a shard by the headers of its tar file."""

import fnmatch
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from xcit.errors import InputError

from ..image_formats import image_extensions

INDEX = "index.json"
HEADER = 512
"""The size of a tar header in bytes. It is directly before the data of its member."""
PROTOCOLS = ("http", "https", "s3", "file")
SAMPLE_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")
"""KEY.KIND. As in webdataset, the first dot of a member's file name separates the key from the kind."""


class ShardError(InputError):
    """A shard is missing, cannot be fetched or read, or does not match its index."""

    of_one_process = True
    """Under DDP only the process that reads the shard raises it."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The entry of a shard in the index."""

    name: str
    """The file name of the tar."""
    samples: int
    """The number of samples in it."""
    bytes: int
    """The size of the tar."""
    sha256: str
    """The SHA-256 of the tar, in hexadecimal."""


@dataclass(frozen=True, slots=True)
class Index:
    """The content of an index.json."""

    classes: list[str]
    """The name of each class."""
    shards: list[Shard]
    """All shards of the folder."""
    made: dict[str, Any] = field(default_factory=dict)
    """The options with which scripts/make_shards.py made the shards; empty for shards that others made."""

    def text(self) -> str:
        """Return the index as JSON with its checksum, in ASCII: names of folders may not be valid UTF-8."""
        return json.dumps(asdict(self) | {"sha256": self.checksum()}, indent=1) + "\n"

    def checksum(self) -> str:
        """Return the SHA-256 of the content, in hexadecimal. It does not depend on the layout of the file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class LocatedShard(NamedTuple):
    """A shard and its address."""

    address: str
    """A path, or an address with a scheme such as https://."""
    shard: Shard
    decoded: bool = False
    """Whether its index says that make_shards.py decoded each image."""

    @property
    def is_remote(self) -> bool:
        return is_remote(self.address)


def is_remote(address: str) -> bool:
    return "://" in address


def parse_index(text: str | bytes, origin: str) -> Index:
    """Parse the content of an index.json and compare it with its checksum, which older indices do not have.

    Args:
        text: The content.
        origin: The address of the file, for the error message.

    Raises:
        InputError: The text is not a valid index, or it differs from its checksum.
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
            raise ValueError("a shard is listed twice")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{origin}: not an index of shards ({error}); scripts/make_shards.py writes one") from None
    if content.get("sha256", index.checksum()) != index.checksum():
        raise InputError(
            f"{origin}: differs from its checksum, so it is damaged or was edited; get it from its source again, or "
            "create it with `python scripts/make_shards.py --index-only FOLDER`"
        )
    return index


def locate(urls: list[str], option: str, read_index: Callable[[str], Index]) -> tuple[list[str], list[LocatedShard]]:
    """Find the shards that addresses stand for. Return the classes and the shards.

    Args:
        urls: The addresses. An address is a folder, which stands for all its shards, or a pattern of shards
            with *, ?, […] and {a..b}.
        option: The configuration key of the addresses, for error messages.
        read_index: Returns the index of a folder.

    Raises:
        InputError: An address has an unknown protocol, a query or a fragment; no shard of the index matches it; or two
            folders have different classes.
    """
    found: dict[str, LocatedShard] = {}
    indices: dict[str, Index] = {}
    for url in urls:
        for expanded in expand_braces(url):
            # Check the form of the address.
            protocol, remote, path = expanded.partition("://")
            if remote and (protocol not in PROTOCOLS or not path.strip("/")):
                raise InputError(
                    f"{option}={expanded}: must be a path, or an address that begins with http://, https:// or s3://"
                )
            if has_query(expanded):
                raise InputError(
                    f"{option}={expanded}: has a query (?…=…) or a fragment (#…); must be an address without them, "
                    "of a folder or of shards by *, ?, […] and {a..b}"
                )
            # Look up the shards in the index of the folder, which is read once.
            folder, name = split_address(expanded)
            if folder not in indices:
                indices[folder] = read_index(folder)
            matching = list(matches(indices[folder], name))
            if not matching:
                names = [shard.name for shard in indices[folder].shards]
                raise InputError(
                    f"{option}={expanded}: no such shard in {join(folder, INDEX)}, which has {len(names)}: "
                    f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
                )
            decoded = indices[folder].made.get("decoded") is True
            found |= {a: LocatedShard(a, s, decoded) for s in matching for a in [join(folder, s.name)]}
    if not found:
        raise InputError(f"{option}={urls}: must be an address of shards, or several")
    # All folders must have the same classes.
    first, *others = indices
    for other in others:
        if indices[other].classes != indices[first].classes:
            raise InputError(f"{option}: {join(first, INDEX)} and {join(other, INDEX)} have different classes")
    return indices[first].classes, list(found.values())


def expand_braces(url: str) -> list[str]:
    """Expand {a..b} and {a,b} in an address as a shell does."""
    if "{" not in url:
        return [url]
    try:
        from braceexpand import braceexpand
    except ImportError:
        raise InputError(f"{url}: {{…}} needs braceexpand; install this project's extra: shards") from None
    try:
        return list(braceexpand(url))
    except ValueError as error:
        raise InputError(f"{url}: cannot be read ({error})") from None


def has_query(url: str) -> bool:
    """Return whether an HTTP address has a query or a fragment. A ? without = in a file name belongs to a pattern."""
    folder, _, name = url.rpartition("/")
    return url.startswith(("http://", "https://")) and ("#" in url or "?" in folder or bool(re.search(r"\?.*=", name)))


def split_address(url: str) -> tuple[str, str]:
    """Split an address into the folder and a pattern of file names, which is "*" for the address of a folder."""
    folder, slash, name = url.rpartition("/")
    is_pattern = name.endswith(".tar") or any(character in name for character in "*?[")
    if is_pattern and not is_local_folder(url):
        return (folder or slash or ".", name)
    return (url.rstrip("/") or slash or ".", "*")


def is_local_folder(url: str) -> bool:
    return not is_remote(url) and os.path.isdir(Path(url).expanduser())  # noqa: PTH112  (Path.is_dir raises)


def join(folder: str, name: str) -> str:
    """Return the address of a file in a folder."""
    return f"{folder}/{name}" if is_remote(folder) else str(Path(folder).expanduser() / name)


def matches(index: Index, pattern: str) -> Iterator[Shard]:
    """Yield the shards whose name is the pattern or matches it."""
    return (s for s in index.shards if s.name == pattern or fnmatch.fnmatchcase(s.name, pattern))


@dataclass(frozen=True, slots=True)
class Positions:
    """The positions of a shard's samples in its tar file. Each sample takes 20 bytes."""

    offsets: np.ndarray
    """(num_samples,), int64. Where the image's data begins, in bytes."""
    sizes: np.ndarray
    """(num_samples,), int64. The size of the image's data in bytes."""
    labels: np.ndarray
    """(num_samples,), int32. Indices into the classes of the index."""

    def __len__(self) -> int:
        return len(self.labels)


def find_samples(file: IO[bytes], origin: str, classes: int | None = None) -> Positions:
    """Find the samples of a shard, in their order. Only headers and labels are read, not the images.

    Args:
        file: The open shard.
        origin: The address of the shard, for error messages.
        classes: The number of classes, to check the labels. None skips the check.

    Raises:
        ShardError: The file is not an uncompressed tar, or a sample is not one image with one class.
    """
    samples: list[tuple[int, int, int]] = []
    try:
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for key, members in samples_of(tar):
                pictures = [member for kind, member in members if f".{kind}" in image_extensions()]
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
    """Yield the samples as (key, [(kind, member), …]). Consecutive members with the same key form a sample.

    Other members of the tar are skipped.
    """
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
    """Yield the members of a tar without keeping them in memory."""
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]
        yield member


def read_label(file: IO[bytes] | None, origin: str, classes: int | None) -> int:
    """Read the label in a .cls member, or raise a ShardError if it is not the index of a class."""
    text = file.read(32) if file else b""
    if not re.fullmatch(rb"\s*\d{1,9}\s*", text):
        raise ShardError(f"{origin}: holds {text!r}; must be the number of a class")
    if classes is not None and int(text) >= classes:
        raise ShardError(f"{origin}: is class {int(text)}, but the index has only the classes 0 to {classes - 1}")
    return int(text)


def member_name(header: bytes) -> str:
    """Return the name in a tar header. Error messages use it to identify an image."""
    name, prefix = (part.split(b"\0")[0].decode(errors="replace") for part in (header[:100], header[345:500]))
    return f"{prefix}/{name}" if prefix and header[257:262] == b"ustar" else name
