"""A recipe for one's own images fits their number: enough updates, and a batch that the images fill."""

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml

import xcit
from data.datasets.image_files import ImageFiles
from data.start_up import few_images_notes
from data.views import VIEWS
from xcit.preprocessing import Preprocessing
from xcit.storage import read_tensors

from .conftest import ROOT, Result
from .test_recipes import composed

Command = Callable[..., Result]
FOLDER = ("data=folder", "data.root=/mine")


@pytest.mark.parametrize(
    ("num_images", "epochs", "batch"),
    [
        (1, 1000, 2),
        (10, 500, 4),  # two updates an epoch
        (192, 334, 64),  # three
        (2_040, 334, 512),
        (8_144, 100, 512),  # fifteen, which are 1,500
        (50_000, 100, 512),
    ],
)
def test_the_length_and_the_batch_follow_from_the_number_of_images(num_images: int, epochs: int, batch: int) -> None:
    for recipe in ("folder", "folder_from_scratch"):
        train = composed(*FOLDER, f"recipe={recipe}").scaled(num_images, 1).train
        assert (train.epochs, train.global_batch_size) == (epochs, batch)
        assert epochs * max(1, num_images // batch) >= 1000


@pytest.mark.parametrize(
    ("num_images", "processes", "accumulate", "batch"),
    [
        (192, 8, 1, 64),
        (192, 3, 1, 60),
        (192, 2, 3, 60),
        (192, 1, 64, 128),  # two images in each pass
        (192, 8, 16, 256),
        (50_000, 6, 1, 504),
    ],
)
def test_each_process_gets_a_batch_that_can_be_mixed(
    num_images: int, processes: int, accumulate: int, batch: int
) -> None:
    config = composed(*FOLDER, f"train.accumulate={accumulate}").scaled(num_images, processes)
    assert config.train.global_batch_size == batch
    view = VIEWS["labelled_crop"].training(Preprocessing(size=(16, 16)), ["a", "b"], "cpu", **config.augment.options)
    view.check_batch_size(config.train.images_per_pass(processes))


def test_numbers_on_the_command_line_win() -> None:
    train = composed(*FOLDER, "train.epochs=2", "train.global_batch_size=8").scaled(192, 1).train
    assert (train.epochs, train.updates, train.global_batch_size) == (2, None, 8)
    train = composed(*FOLDER, "train.updates=7").scaled(192, 1).train
    assert (train.epochs, train.updates, train.global_batch_size) == (None, 7, 64)
    other = composed("data=imagenet", "data.root=/path")
    assert other.scaled(192, 1).model_dump() == other.model_dump(), "recipes with numbers keep them"


def test_a_folder_starts_from_published_weights_as_the_recipe_transfer_does() -> None:
    folder, transfer = composed(*FOLDER), composed(*FOLDER, "recipe=transfer")
    assert folder.pretrained == "fb_dist_in1k"
    assert composed(*FOLDER, "pretrained=null").pretrained is None
    assert composed(*FOLDER, "recipe=folder_from_scratch").pretrained is None
    assert folder.optim.model_dump() == transfer.optim.model_dump()
    assert folder.augment.model_dump() == transfer.augment.model_dump()


SMALL = ("data.image_size=16", "data.workers=0", "train.updates=2", "train.precision=fp32", "resolutions=[16]")


def test_a_folder_trains_from_the_downloaded_weights_of_its_model(
    command: Command, image_tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = image_tree("mine", {"train/red": 8, "train/green": 8, "val/red": 2, "val/green": 2})
    cache = tmp_path / "cache" / "checkpoints"
    cache.mkdir(parents=True)
    published = xcit.create_model("xcit_n12").state_dict()
    torch.save({"model": published}, cache / "xcit_nano_12_p16_224_dist.pth")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    result = command("train.py", "data=folder", f"data.root={root}", *SMALL, "optim.lr=1e-12", "run_dir=run")
    assert result.status == 0, result.stderr
    assert "its classifier of 1000 classes is not loaded" in result.stderr
    assert "from scratch" not in result.stderr
    content = read_tensors(tmp_path / "run/checkpoints/last.pt")
    torch.testing.assert_close(content["task"]["model.blocks.3.gamma1"], published["blocks.3.gamma1"])
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["train"]["global_batch_size"] == content["identity"]["config"]["train"]["global_batch_size"] == 8
    assert "auto" not in json.dumps(config), "the run's configuration has the numbers"


def test_weights_that_cannot_be_downloaded_end_the_run_with_a_way_out(
    command: Command, image_tree: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_tree("mine", {"train/red": 8, "train/green": 8, "val/red": 2})
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "getaddrinfo", Mock(side_effect=OSError("no network")))
    result = command("train.py", "data=folder", f"data.root={root}", *SMALL, "run_dir=run")
    assert result.status == 2
    assert re.fullmatch(
        r"error: pretrained=\S+xcit_nano_12_p16_224_dist\.pth: cannot be downloaded \(.*\); if you have the file, pass "
        r"its path; pretrained=null trains from scratch",
        result.stderr.splitlines()[-1],
    )
    assert not (tmp_path / "run").exists()


def photographs(number: int) -> ImageFiles:
    return ImageFiles.from_samples([(f"{n}.jpg", 0) for n in range(number)], ["a"])


@pytest.mark.parametrize(("num_images", "image_size", "told"), [(192, 224, 1), (3_000, 224, 0), (1_437, 32, 0)])
def test_a_run_from_scratch_on_few_photographs_is_told_of(num_images: int, image_size: int, told: int) -> None:
    assert len(few_images_notes(photographs(num_images), image_size, None)) == told


def test_the_note_names_the_recipe_for_training_from_scratch() -> None:
    (line,) = few_images_notes(photographs(192), 224, 0.75)
    assert line.startswith("training from scratch on 192 images: a good model needs some thousands, or pretrained")
    (recipe,) = re.findall(r"recipe=(\w+)", line)
    assert (ROOT / f"conf/recipe/{recipe}.yaml").is_file()
