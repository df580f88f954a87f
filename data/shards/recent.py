"""An LRU cache whose values have weights."""

from collections import OrderedDict
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """A cache of the most recently used values (LRU), whose total weight is limited."""

    def __init__(self, limit: int) -> None:
        """limit: the largest total weight. The newest value is kept even if it weighs more."""
        self.limit, self.weight = limit, 0
        self.kept: OrderedDict[int, tuple[V, int]] = OrderedDict()

    def get(self, key: int) -> V | None:
        """Return the value of a key and mark it as used, or return None."""
        if key not in self.kept:
            return None
        self.kept.move_to_end(key)
        return self.kept[key][0]

    def keep(self, key: int, value: V, weight: int) -> V:
        """Add a value and return it. Remove the least recently used ones that exceed the limit."""
        self.kept[key] = value, weight
        self.weight += weight
        while self.weight > self.limit and len(self.kept) > 1:
            _, (_, freed) = self.kept.popitem(last=False)
            self.weight -= freed
        return value
