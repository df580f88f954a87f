"""Where this room keeps what it can find out again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xcit" / name
