"""The location of this package's caches. Deleting them loses nothing but time."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Return the folder of the cache `name`: $XDG_CACHE_HOME/xcit/name, or ~/.cache/xcit/name."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xcit" / name
