"""scripts/measure_data.py measures the mean and the standard deviation that data.mean and data.std take."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ..conftest import Result

Command = Callable[..., Result]
SCRIPT = "scripts/measure_data.py"
GRAY_16_BITS = ("data=folder", "data.root=scans", "data.channels=1", "data.bit_depth=16")
LARGEST = 2**16 - 1


def write(path: Path, *rows: float, width: int = 6) -> None:
    """Writes a PNG with 16 bits, whose rows have these shares of the largest value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.round(LARGEST * np.repeat(np.array(rows)[:, None], width, axis=1)).astype(np.uint16)
    Image.fromarray(values).save(path)


def test_images_of_16_bits_count_the_same_at_any_size(command: Command, tmp_path: Path) -> None:
    """The means of the images are 0.4 and 0.8, and those of their squares 0.2 and 0.64."""
    write(tmp_path / "scans/train/a/large.png", 0.2, 0.6, 0.2, 0.6, width=30)
    write(tmp_path / "scans/train/b/small.png", 0.8)
    (tmp_path / "scans/train/b/also.png").write_bytes(b"no image")
    write(tmp_path / "scans/val/a/other.png", 0.1)
    write(tmp_path / "scans/val/b/other.png", 0.1)
    result = command(SCRIPT, *GRAY_16_BITS)
    assert result.status == 0, result.stderr
    assert result.stdout.splitlines()[-2:] == ["data.mean=[0.6000]", f"data.std=[{(0.42 - 0.36) ** 0.5:.4f}]"]
    assert "2 images of 3, 1 channel\n" in result.stdout
    assert f"values from {round(0.2 * LARGEST)} to {round(0.8 * LARGEST)}; 0 to {LARGEST} are scaled" in result.stdout
    assert "height × width (images): 4 × 30 (1), 1 × 6 (1)\n" in result.stdout
    assert "also.png: cannot be decoded (unknown image format); left out\n" in result.stderr


def test_a_constant_channel_cannot_be_normalized(command: Command, tmp_path: Path) -> None:
    for path in ("train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"):
        write(tmp_path / "scans" / path, 0.5)
    result = command(SCRIPT, *GRAY_16_BITS)
    assert (result.status, result.stderr) == (
        2,
        "error: channel 0: has the same value everywhere, so it cannot be normalized\n",
    )
