"""Save the picture that a script draws."""

from collections.abc import Callable
from pathlib import Path
from typing import IO

from xcit.errors import InputError
from xcit.storage import write_atomically


def save_picture(run_dir: str | None, name: str, write: Callable[[IO[bytes]], object]) -> Path:
    """Write a picture to the folder run_dir, or to the current one; it is never half-written.

    Args:
        run_dir: The folder, which is made.
        name: Of the file.
        write: Writes the picture to an open file.

    Raises:
        InputError: It cannot be written.
    """
    path = Path(run_dir or ".") / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    return path
