"""Writes a shard from image files and verifies it. The same images give the same bytes at any time."""

import hashlib
import io
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from xcit.encoded_image import EncodedImage
from xcit.errors import InputError

from .index import Shard, find_samples


@dataclass(frozen=True, slots=True)
class ShardJob:
    """A shard that is to be written."""

    path: Path
    """The file to write."""
    first_number: int
    """The number of its first sample, counted over all shards. The key of each sample begins with its number."""
    samples: list[tuple[str, int]]
    """The (path, label) of each image."""
    short_side: int | None
    """In pixels. Images with a longer short side are resized to it; None keeps all files as they are."""
    decode: bool
    """Whether to decode each image when the shard is verified."""


def make_shard(job: ShardJob, temporary_folder: Path, previous: Shard | None = None) -> tuple[Shard, bool]:
    """Write a shard under a temporary name, verify it, and move it to its place.

    Args:
        job: The shard to write.
        temporary_folder: The folder of the temporary file, on the same disk as the shard.
        previous: The shard that an earlier call wrote. If its file is unchanged, it is kept.

    Returns:
        The shard, and whether the earlier one was kept.

    Raises:
        InputError: An image cannot be read or decoded, or the file differs from what was written.
    """
    if previous and job.path.is_file():
        with job.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        # All fields are compared, since the record of an earlier call may be damaged.
        if previous == Shard(job.path.name, len(job.samples), job.path.stat().st_size, digest):
            return previous, True
    temporary = temporary_folder / f"{job.path.name}.{os.getpid()}.tmp"
    try:
        with HashedFile(temporary, "w+") as written:
            sizes = write_samples(written, job)
            os.fsync(written.fileno())
            digest = written.digest.hexdigest()
            shard = Shard(job.path.name, len(sizes), written.tell(), digest)
        verify(temporary, job, sizes, digest)
        temporary.replace(job.path)
    finally:
        temporary.unlink(missing_ok=True)
    return shard, False


class HashedFile(io.FileIO):
    """A file that computes the SHA-256 of the data while it is written. It must be written sequentially."""

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.digest.update(data)
        return super().write(data)


def write_samples(file: HashedFile, job: ShardJob) -> list[int]:
    """Write all samples as a tar. Return the size of each image in bytes.

    Raises:
        InputError: An image cannot be read or decoded.
    """
    sizes = []
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.USTAR_FORMAT) as tar:
        for number, (path, label) in enumerate(job.samples, start=job.first_number):
            try:
                image = EncodedImage(Path(path).read_bytes(), path)
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror})") from None
            content, kind = shrink(image, job.short_side)
            stem = re.sub(r"[^A-Za-z0-9_-]", "_", Path(path).stem)[:60]  # without dots, since a dot ends the key
            for suffix, data in (("cls", str(label).encode()), (kind, content)):
                member = tarfile.TarInfo(f"{number:08}_{stem}.{suffix}")
                # Time and owner keep their defaults, so that the bytes depend on the images alone.
                member.size, member.mode = len(data), 0o444
                tar.addfile(member, io.BytesIO(data))
            sizes.append(len(content))
    return sizes


def shrink(image: EncodedImage, short_side: int | None) -> tuple[bytes, str]:
    """Resize an image whose short side is longer than `short_side`, and encode it as JPEG. Keep others as they are.

    Returns:
        The content of the file and its kind, the suffix of the member's name.

    Raises:
        BrokenImageError: The image cannot be decoded.
    """
    kind = Path(image.origin).suffix.lower().removeprefix(".")
    kind = "jpg" if kind == "jpeg" else kind
    if short_side is None:
        return image.data, kind
    # Keep the file if the image is small enough. Its size is read from the header.
    with image.opened() as opened:
        size = opened.size
    if min(size) <= short_side:
        return image.data, kind
    # Decode, resize and encode it.
    pixels = image.rgb()
    scale = short_side / min(pixels.size)
    smaller = pixels.resize((round(pixels.width * scale), round(pixels.height * scale)), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    smaller.save(content, "JPEG", quality=95)
    return content.getvalue(), "jpg"


def verify(path: Path, job: ShardJob, sizes: list[int], digest: str) -> None:
    """Read a shard and compare it with what was written: its hash and its samples. Decode its images if required.

    Args:
        path: The file of the shard.
        job: What was to be written.
        sizes: The size of each image in bytes.
        digest: The SHA-256 of the data that was written, in hexadecimal.

    Raises:
        InputError: The file differs from what was written, or an image cannot be decoded.
    """
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            raise InputError(f"{job.path}: the data read back differs from the data written; the disk may be damaged")
        positions = find_samples(file, str(job.path))
        if positions.sizes.tolist() != sizes or positions.labels.tolist() != [label for _, label in job.samples]:
            raise InputError(f"{job.path}: the samples read back differ from the samples written")
        if job.decode:
            for (source, _), offset, size in zip(job.samples, positions.offsets.tolist(), sizes, strict=True):
                file.seek(offset)
                EncodedImage(file.read(size), source).rgb()
