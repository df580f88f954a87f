"""TEMPORARY: old names of errors."""

from xcit.errors import InputError as DataError

from .encoded_image import BrokenImageError
from .loader import WorkerKilledError

__all__ = ["BrokenImageError", "DataError", "WorkerKilledError"]
