"""scripts/show_batch.py shows the first batch as the model gets it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

import train
from data.loader import TrainLoader
from data.views.labelled_crop import LabelledImages, RandomLabelledCrop
from scripts.show_batch import FONT, GAP, LINE, caption, shortened

from ..conftest import TINY, Result

Command = Callable[..., Result]
SCRIPT = "scripts/show_batch.py"
FEW = (*TINY, "train.global_batch_size=6")
MIXED = ("augment.mixup=0.8", "augment.cutmix=1", "augment.erase_prob=0.5", "augment.label_smoothing=0")


class EnoughError(Exception):
    """Ends a run."""


def first_batch(monkeypatch: pytest.MonkeyPatch) -> list[LabelledImages]:
    """A list for the first batch that a run of train.py trains on. The run ends there."""
    seen: list[LabelledImages] = []

    def fit(trainer: object, batches: TrainLoader, *rest: object, **more: object) -> None:
        seen.append(next(batches.epoch(0)))
        raise EnoughError

    monkeypatch.setattr(train, "fit", fit)
    return seen


def cells(path: Path, images: int, columns: int, side: int, lines: int) -> list[np.ndarray]:
    sheet = np.asarray(Image.open(path))
    rows = -(-images // columns)
    assert sheet.shape == (GAP + rows * (side + GAP + LINE * lines), GAP + columns * (side + GAP), 3)
    tops = [GAP + number // columns * (side + GAP + LINE * lines) for number in range(images)]
    lefts = [GAP + number % columns * (side + GAP) for number in range(images)]
    return [sheet[top : top + side, left : left + side] for top, left in zip(tops, lefts, strict=True)]


def test_the_sheet_shows_the_pixels_that_training_sees(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = command(SCRIPT, *FEW, *MIXED)
    assert (result.status, result.stdout) == (0, "batch.png: 6 of the 6 images of the first batch\n"), result.stderr
    assert result.stderr == "data  1,437 training images and 360 validation images in 10 classes\n"
    assert [path.name for path in tmp_path.iterdir()] == ["batch.png"]
    seen = first_batch(monkeypatch)
    with pytest.raises(EnoughError):
        train.train(composed(*FEW, *MIXED), {}, [])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    shown = cells(tmp_path / "batch.png", images=6, columns=3, side=128, lines=2)
    for cell, image in zip(shown, seen[0].images, strict=True):
        expected = (255 * (image * std + mean)).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        assert np.array_equal(cell, expected.repeat(8, axis=0).repeat(8, axis=1))


def composed(*overrides: str) -> DictConfig:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(Path(train.__file__).parent / "conf"), version_base="1.3"):
        return compose("train", list(overrides))


def test_at_most_64_images_and_another_folder(command: Command, tmp_path: Path) -> None:
    result = command(SCRIPT, *TINY, "run_dir=a/b", "augment=none")
    assert (result.status, result.stdout) == (0, "a/b/batch.png: 64 of the 128 images of the first batch\n")
    assert len(cells(tmp_path / "a/b/batch.png", images=64, columns=8, side=128, lines=1)) == 64


def test_images_from_files_and_odd_class_names(command: Command, image_tree: Callable[..., Path]) -> None:
    root = image_tree("mine", {"train/Katze – $x$ mit einem sehr langen Namen": 4, "train/b\udcff": 4})
    result = command(SCRIPT, *FEW, "data=folder", f"data.root={root}", "data.workers=3", "augment=deit")
    assert (result.status, result.stdout.split(":")[0]) == (0, "batch.png"), result.stderr


def test_batches_of_another_kind_are_refused(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RandomLabelledCrop, "to_device", lambda *_: ("images", "boxes"))
    result = command(SCRIPT, *FEW)
    assert (result.status, result.stdout, result.stderr) == (
        2,
        "",
        "error: task=classify: learns from the view labelled_crop; "
        "only batches of images with class probabilities can be drawn\n",
    )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        ([1.0, 0.0, 0.0], [("cat", "")]),
        ([0.3, 0.0, 0.7], [("owl", ": 70%"), ("cat", ": 30%")]),
        ([0.04, 0.92, 0.04], [("dog", "")]),
        ([0.2, 0.76, 0.04], [("dog", ": 76%"), ("cat", ": 20%")]),
    ],
)
def test_a_caption_names_the_classes_of_a_target(target: list[float], lines: list[tuple[str, str]]) -> None:
    values: Tensor = torch.tensor(target)
    assert caption(values, ["cat", "dog", "owl"], smoothed=float(values.min())) == lines


def test_one_class_alone_has_a_caption() -> None:
    assert caption(torch.ones(1), ["cat"], smoothed=0.0) == [("cat", "")]


def test_a_long_name_is_cut() -> None:
    assert shortened("cat", 128) == "cat"
    cut = shortened("ring-necked snake, ring snake", 128)
    assert cut.startswith("ring-necked") and cut.endswith("…") and FONT.getlength(cut) <= 128


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("data=imagenet", "data.root: must be given"),
        ("agument=deit", "agument: unknown key; did you mean augment?"),
        ("augment.hflip=2", "augment.hflip=2: must be a number from 0 to 1"),
        (
            "train.global_batch_size=7",
            "train.global_batch_size: gives 7 images per process; mixup and CutMix need an even number",
        ),
        ("run_dir=file/there", "file/there/batch.png: cannot be written (Not a directory)"),
    ],
)
def test_bad_options_end_with_one_line(command: Command, tmp_path: Path, argument: str, line: str) -> None:
    (tmp_path / "file").write_text("precious")
    result = command(SCRIPT, *TINY, "augment.mixup=0.8", argument)
    assert (result.status, result.stdout, result.stderr) == (2, "", f"error: {line}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_help_is_the_scripts_own(command: Command) -> None:
    result = command("scripts/show_batch.py", "--help")
    assert result.status == 0
    assert result.stdout.startswith("Save the first batch of a training run as a picture")
