"""The checksum of a whole file, which is written into the file and verified on every read.

torch.save writes a CRC for each entry of its zip archive, but torch.load does not check it. Our files therefore carry a
checksum of all their bytes. It is where other programs ignore it: in the comment of the zip archive, or in the metadata
of a safetensors file. Files without it are checked as far as they allow: a zip archive by its CRCs, others not at all.
"""

import json
import re
import sys
import zipfile
from pathlib import Path
from typing import IO

import xxhash

BLOCK = 1 << 20
"""Bytes that are read at once."""
NAME = b"xxh3_128="
DIGITS = 32
"""Hexadecimal digits of the checksum."""
COMMENT = len(NAME) + DIGITS
"""The length of the zip comment: NAME and the digits."""
END_OF_ZIP = 22
"""The length of the last record of a zip archive without its comment. Its last two bytes are the comment's length."""
METADATA_KEY = "xxh3_128"
IN_METADATA = re.compile(rb'"xxh3_128":"([0-9a-f]{32})"')


class DamagedFileError(ValueError):
    """The content of a file differs from its checksum."""


def seal_zip(file: IO[bytes]) -> None:
    """Append the checksum to a zip archive without comment, as its comment. `file` is open for reading and writing."""
    file.seek(-2, 2)
    file.write(COMMENT.to_bytes(2, "little"))
    file.seek(0)
    digits = digest(file)
    file.seek(0, 2)
    file.write(NAME + digits)


def seal_safetensors(content: bytes) -> bytes:
    """Add the checksum to the metadata of a safetensors file.

    The header is written here, because safetensors writes several metadata in a random order: the same tensors would
    give different files.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"][METADATA_KEY] = "0" * DIGITS
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
    content = len(text).to_bytes(8, "little") + text + content[end:]
    place = IN_METADATA.search(content)
    assert place
    return content[: place.start(1)] + xxhash.xxh3_128_hexdigest(content).encode() + content[place.end(1) :]


def verify_zip(path: Path) -> None:
    """Verify a zip archive by our checksum, or by the CRC of each entry if another program wrote it.

    A file that is not a zip archive is not checked.

    Raises:
        DamagedFileError: The content is not what was written.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return
        size = file.seek(0, 2)
        file.seek(max(0, size - END_OF_ZIP - COMMENT))
        tail = file.read()
        if is_end(tail[:END_OF_ZIP], COMMENT) and tail[END_OF_ZIP:].startswith(NAME):
            file.seek(0)
            if digest(file, size - COMMENT) != tail[-DIGITS:]:
                raise DamagedFileError("its content differs from its checksum")
        elif is_end(tail[-END_OF_ZIP:], 0):
            verify_entries(file)
        else:
            raise DamagedFileError("its end is missing or damaged")


def is_end(record: bytes, comment: int) -> bool:
    """Whether the bytes are the last record of a zip archive whose comment has this length."""
    return record.startswith(b"PK\5\6") and record[20:] == comment.to_bytes(2, "little")


def verify_entries(file: IO[bytes]) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DamagedFileError(str(error)) from None
    if broken:
        raise DamagedFileError(f"the entry {broken} differs from its CRC")


def verify_safetensors(path: Path) -> None:
    """Verify a safetensors file by our checksum, if it has one.

    Raises:
        DamagedFileError: The content is not what was written.
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = file.read(min(header_size, BLOCK))
        place = IN_METADATA.search(header)
        if not place:
            if METADATA_KEY.encode() in header:
                raise DamagedFileError("its checksum is damaged")
            return
        # The checksum is that of the file with zeros in its place.
        file.seek(0)
        hashed = xxhash.xxh3_128(file.read(8 + place.start(1)) + b"0" * DIGITS)
        file.seek(DIGITS, 1)
        while block := file.read(BLOCK):
            hashed.update(block)
        if hashed.hexdigest().encode() != place[1]:
            raise DamagedFileError("its content differs from its checksum")


def digest(file: IO[bytes], size: int | None = None) -> bytes:
    """The checksum of the next `size` bytes of a file, or of all that are left, in hexadecimal."""
    hashed = xxhash.xxh3_128()
    left = sys.maxsize if size is None else size
    while block := file.read(min(BLOCK, left)):
        hashed.update(block)
        left -= len(block)
    return hashed.hexdigest().encode()
