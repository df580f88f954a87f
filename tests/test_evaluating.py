"""eval.py uses the settings of the checkpoint, and the command line can change them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

import eval as evaluation
from train import TABLES
from xcit.config import TrainConfig
from xcit.config.composition import read_config
from xcit.storage import read_tensors
from xcit.weights import sources

from .conftest import ROOT, TINY, Result

Command = Callable[..., Result]


@pytest.fixture
def trained(command: Command, tmp_path: Path) -> Path:
    """Trains a run whose crop ratio differs from the default. Returns the run folder."""
    result = command("train.py", *TINY, "+model.depth=1", "crop_ratio=0.8", "run_dir=run")
    assert result.status == 0, result.stderr
    return tmp_path / "run"


def rows(folder: Path) -> list[dict]:
    return json.loads((folder / "results.json").read_text())


def test_the_crop_ratio_is_the_runs_own_unless_one_is_given(command: Command, trained: Path, tmp_path: Path) -> None:
    def measured(rows: list[dict]) -> list[tuple]:
        return [(row["crop_ratio"], row["resolution"], row["weights"], row["top1"], row["images"]) for row in rows]

    assert command("eval.py", "checkpoint=run", "run_dir=same").status == 0
    assert measured(rows(tmp_path / "same")) == measured(rows(trained))
    assert command("eval.py", "checkpoint=run", "crop_ratio=1.0", "run_dir=other").status == 0
    assert {row["crop_ratio"] for row in rows(tmp_path / "other")} == {1.0}


def test_a_file_of_weights_is_evaluated_as_the_task_that_is_given(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    """Both tasks measure the same model in the same way, so their numbers agree."""
    weights = read_tensors(trained / "checkpoints" / "last.pt")["task"]
    torch.save({key.removeprefix("model."): value for key, value in weights.items()}, tmp_path / "bare.pth")
    model = ("model=xcit_n12", "model.patch_size=8", "+model.depth=1", "data=digits", "resolutions=[16]")
    for name, task in (("default", ()), ("classify", ("task=classify",)), ("distill", ("task=distill",))):
        result = command("eval.py", "checkpoint=bare.pth", *model, *task, f"run_dir={name}")
        assert result.status == 0, result.stderr
        (row,) = rows(tmp_path / name)
        assert row["top1"] == rows(tmp_path / "default")[0]["top1"]
    weights["model.head.weight"][3, 5] = torch.nan
    torch.save({key.removeprefix("model."): value for key, value in weights.items()}, tmp_path / "nan.pth")
    for script in (("eval.py", "checkpoint=nan.pth"), ("train.py", *TINY, "pretrained=nan.pth")):
        result = command(*script, *model, "run_dir=none")
        assert result.status == 2
        assert "nan.pth: 1 of its " in result.stderr and "tensors hold NaN, " in result.stderr
        assert "training diverged; take an earlier checkpoint" in result.stderr
        assert not (tmp_path / "none").exists()
    result = command("eval.py", "checkpoint=bare.pth", *model, "task=segmentation", "run_dir=none")
    assert result.status == 2 and result.stderr.startswith("error: task=segmentation: unknown")
    assert not (tmp_path / "none").exists()


def test_a_number_of_updates_that_replaces_epochs_is_noted(command: Command) -> None:
    result = command("train.py", *TINY, "+model.depth=1", "train.updates=2", "run_dir=run")
    assert result.status == 0, result.stderr
    assert result.stderr.count("note: train.updates=2: sets the length of the run; train.epochs=1 has no effect") == 1


def composed(root: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return compose(root, list(overrides))


@pytest.mark.parametrize(
    ("arguments", "run", "resolutions"),
    [
        (["checkpoint=xcit_small_12_p16_224"], None, [160, 192, 224, 256, 288, 320, 384]),
        (["checkpoint=xcit_small_12_p16_384_dist"], None, [288, 320, 384, 448, 480, 544, 672]),  # made for 384
        (["checkpoint=weights.pth", "model=xcit_n12_p8", "data=digits"], None, [24, 32, 40, 48, 56]),
        (["checkpoint=timm/cait_xxs24_224.fb_dist_in1k"], None, [224]),
        (["checkpoint=run"], ["recipe=paper_p16", "data.image_size=64"], [48, 64, 80, 96, 112]),
        (["checkpoint=run"], ["resolutions=[64,20]"], [64, 20]),
        (["checkpoint=run", "resolutions=[96,32]"], ["resolutions=[64,20]"], [96, 32]),
    ],
)
def test_the_resolutions_are_the_given_ones_the_runs_or_those_of_the_training_size(
    arguments: list[str], run: list[str] | None, resolutions: list[int]
) -> None:
    images = [] if run is not None or "data=digits" in arguments else ["data=imagenet", "data.root=/images"]
    trained = read_config(TrainConfig, composed("train", *run), TABLES) if run is not None else None
    whole = evaluation.completed(composed("eval", *arguments, *images), trained, Path("weights"))
    assert whole.resolutions == resolutions


def test_keys_without_a_choice_change_what_the_run_was_trained_with(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    changes = ("data.workers=1", "model.image_size=24", "model.drop_rate=0.1", "task.loss=binary_cross_entropy")
    assert command("eval.py", "checkpoint=run", *changes, "resolutions=[16]", "run_dir=same").status == 0
    assert rows(tmp_path / "same")[0]["top1"] == rows(trained)[0]["top1"]
    config = yaml.safe_load((tmp_path / "same/config.yaml").read_text())
    assert (config["data"]["name"], config["data"]["workers"], config["task"]["name"]) == ("digits", 1, "classify")
    assert (config["model"]["depth"], config["model"]["drop_rate"]) == (1, 0.1)


def test_the_images_of_a_run_may_have_moved(command: Command, image_tree: Callable[..., Path], tmp_path: Path) -> None:
    root = image_tree("mine", {"train/red": 6, "train/green": 6, "val/green": 3})
    small = ("data.image_size=16", "data.workers=0", "model.patch_size=8", "model.depth=1", "train.epochs=1")
    mine = ("data=folder", f"data.root={root}", "pretrained=null", "resolutions=[16]")
    result = command("train.py", *mine, *small, "train.global_batch_size=6", "run_dir=run")
    assert result.status == 0, result.stderr
    root.rename(tmp_path / "moved")
    result = command("eval.py", "checkpoint=run", "data.root=moved", "run_dir=out")
    assert result.status == 0, result.stderr
    assert rows(tmp_path / "out")[0]["images"] == 3, "the validation images, as in training"


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("data.workers=x", "data.workers=x: must be an integer of at least 0 or null"),
        ("model.heads=3", "model.heads=3: must divide dim=128"),
        ("data.root=/x", "data.root: unknown key"),
        ("model.dpeth=3", "model.dpeth: unknown key; did you mean model.depth?"),
    ],
)
def test_a_wrong_change_of_the_run_is_refused(command: Command, trained: Path, typed: str, line: str) -> None:
    result = command("eval.py", "checkpoint=run", typed, "run_dir=none")
    assert (result.status, result.stderr.startswith(f"error: {line}")) == (2, True), result.stderr


@pytest.mark.parametrize("checkpoint", ["xcit_small_12_p16_224", "timm/resnet50.a1_in1k", "hf-hub:me/mine"])
def test_published_weights_without_data_are_refused_before_the_download(
    command: Command, monkeypatch: pytest.MonkeyPatch, checkpoint: str
) -> None:
    monkeypatch.setattr(sources, "locate", None)
    result = command("eval.py", f"checkpoint={checkpoint}", "data.workers=0")
    line = f"error: data: must be given, because {checkpoint} does not say which one in conf/data\n"
    assert (result.status, result.stderr) == (2, line)
