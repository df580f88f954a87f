"""Counts broken images, lists them, and says what can be done about them."""

from collections.abc import Sequence

from xcit.encoded_image import BrokenImageError
from xcit.errors import print_note

MOST_LISTED = 20
"""How many broken images are listed; the others are counted."""


class BrokenImages:
    """Counts the undecodable images that this process met. Warns once per image, up to the limit."""

    def __init__(self, share: float, images: int) -> None:
        self.share, self.images, self.limit = share, images, share * images
        self.known: list[str] = []

    @property
    def are_too_many(self) -> bool:
        return len(self.known) > self.limit

    def add(self, found: Sequence[str]) -> None:
        for description in dict.fromkeys(found):
            if description not in self.known:
                self.known.append(description)
                if not self.are_too_many:
                    print_note(f"{description}; replaced by another image ({len(self.known)} so far)")

    def error(self) -> BrokenImageError:
        """Return the error that lists all of them."""
        count = f"{len(self.known)}, of {self.images:,}; data.max_broken={self.share:g} allows {int(self.limit)}"
        advice = f"{remedy(self.known, 'these files')}, or raise data.max_broken"
        if len(self.known) == 1:
            return BrokenImageError(f"{self.known[0]}; broken images so far: {count}; {advice}")
        return BrokenImageError(listing(f"data: broken training images so far: {count}; {advice}:", self.known))


def listing(first: str, broken: Sequence[str]) -> str:
    """A first line, and a line for each broken image."""
    others = [f"  and {len(broken) - MOST_LISTED} others"] if len(broken) > MOST_LISTED else []
    return "\n".join([first, *(f"  {description}" for description in broken[:MOST_LISTED]), *others])


def remedy(broken: Sequence[str], files: str) -> str:
    """What can be done about broken images. If their descriptions name settings of pixels, these may be wrong."""
    reasons = "".join(description.rpartition(": cannot be decoded (")[2] for description in broken)
    settings = [f"data.{key}" for key in ("bit_depth", "channels", "value_range") if key in reasons]
    return (f"correct {' or '.join(settings)}, or " if settings else "") + f"remove or convert {files}"
