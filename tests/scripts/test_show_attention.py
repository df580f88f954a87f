"""scripts/show_attention.py draws the maps of a run for one image, at any resolution."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.show_attention import draw

from ..conftest import TINY, Result

Command = Callable[..., Result]
SCRIPT = "scripts/show_attention.py"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)).save(path)
    return path


def test_the_maps_of_a_run_at_its_own_and_another_resolution(command: Command, picture: Path, tmp_path: Path) -> None:
    assert command("train.py", *TINY, "run_dir=run").status == 0
    result = command(SCRIPT, "run", picture.name)
    assert (result.status, result.stdout) == (0, "attention.png: 4 maps of 2 × 2 patches\n"), result.stderr
    result = command(SCRIPT, "run", picture.name, "--resolution", "44", "--output", "finer.png")
    assert (result.status, result.stdout) == (0, "finer.png: 4 maps of 6 × 6 patches\n"), result.stderr
    assert Image.open(tmp_path / "finer.png").size == Image.open(tmp_path / "attention.png").size
    result = command(SCRIPT, "run", picture.name, "--resolution", "4")
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.endswith("error: image of 4×4 pixels: must hold one patch of 8×8\n")


def test_each_map_is_drawn_where_its_patches_are() -> None:
    maps = torch.zeros(1, 2, 2)
    maps[0, 0, 1] = 1
    figure = draw(torch.full((16, 16, 3), 128, dtype=torch.uint8), maps, "a $title")
    drawn = figure.axes[1].images[1]
    assert np.array_equal(drawn.get_array(), [[0, 1], [0, 0]])
    assert drawn.get_extent() == [0, 16, 16, 0]
    assert drawn.origin == "upper"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("nowhere", "photo.png"), "nowhere: "),
        (("nowhere", "none.png"), "none.png: cannot be read (No such file or directory)"),
        (("nowhere", "text.jpg"), "text.jpg: "),
        (("nowhere", "photo.png", "--output", "a/b.png"), "--output=a/b.png: its folder does not exist"),
        (("nowhere", "photo.png", "--output", "b.xyz"), "--output=b.xyz: must end in one of .png, .jpg, .pdf, .svg"),
        (("nowhere", "photo.png", "--resolution", "big"), "--resolution: invalid int value: 'big'"),
    ],
)
def test_bad_input_is_one_line(
    command: Command, picture: Path, tmp_path: Path, arguments: tuple[str, ...], line: str
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    result = command(SCRIPT, *arguments)
    assert (result.status, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr
    assert result.stderr.startswith(f"error: {line}")
    assert {path.name for path in tmp_path.iterdir()} == {"photo.png", "text.jpg"}
