"""Many short texts in two arrays: what a worker looks at it does not copy.

A list of a million strings is a million objects with a count of references each. To read one writes its count, and
writing copies the memory page that a forked worker shared with its parent: host memory grows with every epoch.
"""

from collections.abc import Iterable, Iterator

import numpy as np


class PackedTexts:
    """A sequence of texts; `prefix` stands before each of them, and is kept once."""

    def __init__(self, content: np.ndarray, ends: np.ndarray, prefix: str = "") -> None:
        """content: UTF-8 of all of them, one after the other, uint8; ends: where each ends, int64."""
        self.content, self.ends, self.prefix = content, ends, prefix

    @classmethod
    def of(cls, texts: Iterable[str], prefix: str = "") -> "PackedTexts":
        encoded = [text.encode(errors="surrogateescape") for text in texts]
        content = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return cls(content, np.cumsum([len(text) for text in encoded], dtype=np.int64), prefix)

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

    def take(self, indices: np.ndarray) -> "PackedTexts":
        """Those at the indices."""
        return PackedTexts.of((self[index][len(self.prefix) :] for index in indices), self.prefix)
