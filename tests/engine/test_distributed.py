"""A run on systems other than Linux."""

import ctypes

import pytest

from xcit.engine import distributed


def test_a_system_without_prctl_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("there is no prctl"))
    distributed.end_with_parent()
