"""Commands limit how long OpenMP's idle threads spin, unless the user has chosen it."""

import sys
from pathlib import Path

import pytest

from xcit.openmp import limit_spinning

from .conftest import launch


@pytest.mark.parametrize("chosen", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_what_the_user_has_chosen_stays(chosen: dict[str, str]) -> None:
    environment = chosen.copy()
    limit_spinning(environment)
    assert environment == chosen


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has GNU's OpenMP on Linux only")
def test_a_command_sets_it_before_openmp_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")  # OpenMP prints its settings when it is loaded
    result = launch("eval.py", "checkpoint=nowhere.pt", cwd=tmp_path)
    assert "error: checkpoint=nowhere.pt: no such file" in result.stderr
    printed = [line.strip() for line in result.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert set(printed) == {"GOMP_SPINCOUNT = '10000'"}
