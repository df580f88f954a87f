"""What this room raises, and what it tells of."""

import sys


class DataError(ValueError):
    """A data set cannot be used as it is: exit status 2. The message names the path and what would be accepted."""


class BrokenImageError(DataError):
    """An image that cannot be decoded. Of several processes only the one whose share it is in gets to know."""

    of_one_process = True


class WorkerKilledError(RuntimeError):
    """A process that decodes images is gone: the machine is at fault, by lack of memory say, not the data."""

    of_one_process = True
    exit_status = 1


def tell(line: str) -> None:
    """Say what the user should know and need not mend."""
    print(f"note: {line}", file=sys.stderr, flush=True)
