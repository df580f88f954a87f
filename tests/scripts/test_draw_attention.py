"""scripts/draw_attention.py draws the same figure each time, and the figure needs no fonts."""

from collections.abc import Callable
from pathlib import Path

from ..conftest import Result

Command = Callable[..., Result]
SCRIPT = "scripts/draw_attention.py"


def test_the_figure_is_the_same_each_time(command: Command, tmp_path: Path) -> None:
    for name in ("first.svg", "second.svg"):
        result = command(SCRIPT, "--output", name)
        assert (result.status, result.stdout, result.stderr) == (0, "", "")
    first = (tmp_path / "first.svg").read_text()
    assert first == (tmp_path / "second.svg").read_text()
    assert "<text" not in first


def test_a_file_that_cannot_be_written_is_one_line(command: Command) -> None:
    for name in ("nowhere/a.svg", "a.unknown"):
        result = command(SCRIPT, "--output", name)
        assert (result.status, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith(f"error: --output={name}: cannot be written")
