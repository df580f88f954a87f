"""One shard, from files to a tar that was read back; the same images give the same bytes on any day."""

import hashlib
import io
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..encoded_image import EncodedImage
from ..errors import DataError
from .index import Shard, scan


@dataclass(frozen=True, slots=True)
class ShardJob:
    """A shard to be written."""

    path: Path
    first: int
    """The number of its first sample among those of all shards: keys begin with such a number."""
    samples: list[tuple[str, int]]
    """(path, label)."""
    short_side: int | None
    """In pixels: larger images are shrunk to it."""
    decode: bool
    """Whether each image is decoded when it is read back."""


def make_shard(job: ShardJob, aside: Path, before: Shard | None = None) -> tuple[Shard, bool]:
    """Write a shard in the folder `aside`, check it, and rename it; unless it is there as it was `before`.

    Returns (the shard, whether it was there).

    Raises:
        DataError: an image cannot be read or decoded, or the disk does not give back what was written.
    """
    if before and job.path.is_file():
        with job.path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == before.sha256:
                return before, True
    temporary = aside / f"{job.path.name}.{os.getpid()}.tmp"
    try:
        with HashedFile(temporary, "w+") as written:
            sizes = write_samples(written, job)
            os.fsync(written.fileno())
            digest = written.digest.hexdigest()
            shard = Shard(job.path.name, len(sizes), written.tell(), digest)
        check(temporary, job, sizes, digest)
        temporary.replace(job.path)
    finally:
        temporary.unlink(missing_ok=True)
    return shard, False


class HashedFile(io.FileIO):
    """A file that is written from its start to its end, and the hash of what was written."""

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.digest.update(data)
        return super().write(data)


def write_samples(file: HashedFile, job: ShardJob) -> list[int]:
    """Write all samples; returns the bytes of each image."""
    sizes = []
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        for number, (path, label) in enumerate(job.samples, start=job.first):
            try:
                image = EncodedImage(Path(path).read_bytes(), path)
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error.strerror})") from None
            content, kind = shrunk(image, job.short_side)
            stem = re.sub(r"[^A-Za-z0-9_-]", "_", Path(path).stem)[:60]  # a dot would end the key
            for suffix, data in (("cls", str(label).encode()), (kind, content)):
                member = tarfile.TarInfo(f"{number:08}_{stem}.{suffix}")  # of no time and no owner
                member.size, member.mode = len(data), 0o444
                tar.addfile(member, io.BytesIO(data))
            sizes.append(len(content))
    return sizes


def shrunk(image: EncodedImage, short_side: int | None) -> tuple[bytes, str]:
    """(bytes, kind): the image as it lies there, or if its short side is longer than `short_side`, a smaller one.

    Raises:
        BrokenImageError: it cannot be decoded.
    """
    kind = Path(image.origin).suffix.lower().removeprefix(".")
    kind = "jpg" if kind == "jpeg" else kind
    if short_side is None:
        return image.data, kind
    try:
        with Image.open(io.BytesIO(image.data)) as opened:
            size = opened.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise image.broken(str(error)) from None
    if min(size) <= short_side:
        return image.data, kind
    pixels = image.rgb()
    scale = short_side / min(pixels.size)
    smaller = pixels.resize((round(pixels.width * scale), round(pixels.height * scale)), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    smaller.save(content, "JPEG", quality=95)
    return content.getvalue(), "jpg"


def check(path: Path, job: ShardJob, sizes: list[int], digest: str) -> None:
    """Read a shard back: its hash, its samples, the pixels of its images.

    Raises:
        DataError: something is not as it was written, or an image cannot be decoded.
    """
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise DataError(f"{job.path}: what is read back is not what was written; the disk may be damaged")
        positions = scan(file, str(job.path))
        if positions.sizes.tolist() != sizes or positions.labels.tolist() != [label for _, label in job.samples]:
            raise DataError(f"{job.path}: the samples that are read back are not those that were written")
        if job.decode:
            for (source, _), offset, size in zip(job.samples, positions.offsets.tolist(), sizes, strict=True):
                file.seek(offset)
                EncodedImage(file.read(size), source).rgb()
