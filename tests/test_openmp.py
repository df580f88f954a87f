"""Commands limit how long OpenMP's idle threads spin, unless the user has chosen it."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xcit.openmp import limit_spinning

from .conftest import Result, launch


@pytest.mark.parametrize("chosen", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_what_the_user_has_chosen_stays(chosen: dict[str, str]) -> None:
    environment = chosen.copy()
    limit_spinning(environment)
    assert environment == chosen


@pytest.mark.parametrize("script", ["find_lr", "predict", "embed", "export", "demo", "show_attention"])
def test_scripts_set_it_before_they_import_torch(
    script: str, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake on the command line ends them before that: see test_torch_is_not_loaded_for_an_answer."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert command(f"scripts/{script}.py", "--hlep").status == 2
    assert os.environ["GOMP_SPINCOUNT"] == "10000"


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has GNU's OpenMP on Linux only")
def test_a_command_sets_it_before_openmp_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_DISPLAY_ENV", "verbose")  # OpenMP prints its settings when it is loaded
    result = launch("eval.py", "checkpoint=nowhere.pt", cwd=tmp_path)
    assert "error: checkpoint=nowhere.pt: no such file" in result.stderr
    printed = [line.strip() for line in result.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
    assert set(printed) == {"GOMP_SPINCOUNT = '10000'"}
