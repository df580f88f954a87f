"""What this room raises when the data themselves are at fault."""


class DataError(ValueError):
    """A data set cannot be used as it is: exit status 2. The message names the path and what would be accepted."""


class BrokenImageError(DataError):
    """An image that cannot be decoded. Of several processes only the one whose share it is in gets to know."""

    of_one_process = True


class WorkerKilledError(RuntimeError):
    """A process that decodes images is gone: the machine is at fault, by lack of memory say, not the data."""
