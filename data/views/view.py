"""TEMPORARY."""

from ..examples import View

__all__ = ["View"]
