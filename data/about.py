"""What a data set says about its images: from where they are read, and what is skipped there."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_LISTED = 5
"""How many extensions or folders are listed; the others are counted."""


@dataclass
class Skipped:
    """The files and folders in a folder that are not read."""

    others: Counter[str] = field(default_factory=Counter)
    """Extension → number of files that Pillow cannot read as images."""
    system: int = 0
    """Hidden files and folders, and those of the operating system."""
    loose: int = 0
    """Images that are in no class folder."""
    folders: list[str] = field(default_factory=list)
    """Folders beside those of the splits."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "others": dict(self.others)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Skipped":
        """The inverse of `as_dict`."""
        return cls(**{**plain, "others": Counter(plain["others"])})

    def __add__(self, other: "Skipped") -> "Skipped":
        return Skipped(
            self.others + other.others,
            self.system + other.system,
            self.loose + other.loose,
            self.folders + other.folders,
        )

    def __str__(self) -> str:
        """As "3 files that Pillow cannot read as images (2 .txt, 1 .heic), 2 system files"; empty for none."""
        found = []
        if self.others:
            kinds = [f"{number:,} {suffix or 'without extension'}" for suffix, number in self.others.most_common()]
            files = counted(
                self.others.total(),
                "file that Pillow cannot read as an image",
                "files that Pillow cannot read as images",
            )
            found.append(f"{files} ({listed(kinds)})")
        if self.system:
            found.append(counted(self.system, "hidden or system file"))
        if self.loose:
            found.append(f"{counted(self.loose, 'image')} outside of the class folders")
        if self.folders:
            found.append(f"{'the folder' if len(self.folders) == 1 else 'the folders'} {listed(self.folders)}")
        return ", ".join(found)


@dataclass(frozen=True)
class About:
    """What is said about a split besides its size."""

    folder: str = ""
    """The folder with its images."""
    choice: str = ""
    """How its images were chosen, where the folder does not tell."""
    skipped: Mapping[str, Skipped] = field(default_factory=dict)
    """Folder → what is skipped there."""
    notes: Sequence[str] = ()
    """What was mended or left out."""


def counted(number: int, one: str, several: str | None = None) -> str:
    """As "1 image" or "1,437 images"."""
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def listed(names: Sequence[str]) -> str:
    """The names; of many only the first ones, and the number of the others."""
    more = len(names) - MOST_LISTED
    return ", ".join([*names[:MOST_LISTED], *([f"{more} others"] if more > 0 else [])])
