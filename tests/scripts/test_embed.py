"""scripts/embed.py writes the features of images with their paths; what cannot be read is left out."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import xcit

from ..conftest import Result

Command = Callable[..., Result]
SCRIPT = "scripts/embed.py"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of weights, mine/."""
    torch.manual_seed(0)
    model = xcit.create_model("xcit_n12", patch_size=8, num_classes=3, depth=2, image_size=32)
    model.save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


@torch.no_grad()
def expected(mine: Path, paths: list[Path], resolution: int) -> np.ndarray:
    model, preprocessing, _ = xcit.load(mine)
    images = [Image.open(path).convert("RGB") for path in paths]
    return model.forward_features(preprocessing.at(resolution)(images))[:, 0].numpy()


def test_features_are_written_with_their_paths_and_broken_images_left_out(
    command: Command, image_tree: Callable[..., Path], mine: Path, tmp_path: Path
) -> None:
    root = image_tree("photos", {"red": 3, "green/below": 2})
    (root / "red" / "broken.jpg").write_bytes(b"\xff\xd8no image")
    result = command(SCRIPT, "mine", "photos", "photos/red/002.png", "--batch-size", "2")
    assert result.status == 0, result.stderr
    assert result.stdout == "features.npz: 5 images × 128 features, without 1 image that cannot be read\n"
    assert result.stderr.count("photos/red/broken.jpg: cannot be decoded") == 1
    paths = [*(f"photos/green/below/00{i}.png" for i in (0, 1)), *(f"photos/red/00{i}.png" for i in (0, 1, 2))]
    with np.load(tmp_path / "features.npz") as saved:
        assert saved["paths"].tolist() == paths
        assert (saved["features"].shape, saved["features"].dtype) == ((5, 128), np.float32)
        whole = expected(mine, [tmp_path / path for path in paths], 32)
        np.testing.assert_allclose(saved["features"], whole, atol=2e-4, rtol=1e-3)

    result = command(SCRIPT, "mine", "photos/red", "--resolution=16", "--features=class_and_mean", "--output=b.npz")
    assert result.status == 0, result.stderr
    with np.load(tmp_path / "b.npz") as saved:
        of_token = expected(mine, [tmp_path / path for path in paths[2:5]], 16)
        np.testing.assert_allclose(saved["features"][:, :128], of_token, atol=2e-4, rtol=1e-3)
        assert saved["features"].shape == (3, 256)


def test_parquet_has_a_row_for_each_image(
    command: Command, image_tree: Callable[..., Path], mine: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    image_tree("photos", {"red": 3})
    assert command(SCRIPT, "mine", "photos", "--output=a.parquet").status == 0
    assert command(SCRIPT, "mine", "photos", "--output=a.npz").status == 0
    table = parquet.read_table(tmp_path / "a.parquet")
    with np.load(tmp_path / "a.npz") as saved:
        assert table["path"].to_pylist() == saved["paths"].tolist()
        assert np.array_equal(np.array(table["features"].to_pylist(), dtype=np.float32), saved["features"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("none",), "none: no such file or folder"),
        (("empty",), "empty: holds no images"),
        (("broken.jpg",), "none of the 1 images can be read"),
        (("broken.jpg", "--output=a.csv"), "--output=a.csv: must end in one of .npz, .parquet"),
        (("broken.jpg", "--output=no/a.npz"), "--output=no/a.npz: its folder does not exist"),
        (("broken.jpg", "--batch-size=0"), "--batch-size=0: must be at least 1"),
        (
            ("broken.jpg", "--output=a.parquet"),
            "--output=a.parquet: needs pyarrow, which is not installed; pip install pyarrow, or take .npz",
        ),
    ],
)
def test_a_mistake_ends_in_one_line_and_writes_nothing(
    command: Command, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple, line: str
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "pyarrow" else find_spec(name, *a)
    )
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "empty").mkdir()
    result = command(SCRIPT, "mine", *arguments)
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == f"error: {line}"
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "broken.jpg", "empty"}
