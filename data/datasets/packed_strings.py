"""Stores many short strings in two arrays, whose memory forked workers share without copies.

A list of a million strings is a million Python objects. Reading one changes its reference count, and this write makes
the operating system copy the memory page that a forked worker shares with its parent. So host memory would grow with
every epoch.
"""

from collections.abc import Iterable, Iterator

import numpy as np


class PackedStrings:
    """A sequence of strings. They may share a prefix, which is stored once."""

    def __init__(self, content: np.ndarray, ends: np.ndarray, prefix: str = "") -> None:
        """content: all strings in UTF-8, concatenated, uint8. ends: where each string ends in content, int64."""
        self.content, self.ends, self.prefix = content, ends, prefix

    @classmethod
    def pack(cls, strings: Iterable[str], prefix: str = "") -> "PackedStrings":
        """Pack strings, which are given without the prefix."""
        encoded = [string.encode(errors="surrogateescape") for string in strings]
        content = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return cls(content, np.cumsum([len(data) for data in encoded], dtype=np.int64), prefix)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        if not -len(self) <= index < len(self):
            raise IndexError(f"{index}: there are {len(self)}")
        index %= len(self)
        start = self.ends[index - 1] if index else 0
        return self.prefix + self.content[start : self.ends[index]].tobytes().decode(errors="surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))

    def take(self, indices: np.ndarray) -> "PackedStrings":
        """Return the strings at these indices."""
        return PackedStrings.pack((self[index][len(self.prefix) :] for index in indices), self.prefix)
