"""A run of epochs or of updates ends at its length, and resumes to the same end from any update."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data.views.labelled_crop import LabelledImages
from xcit.engine.length import Length
from xcit.engine.run_folder import RunFolder

from ..conftest import TINY, Result
from .small_run import UPDATES, assert_same_batches, assert_same_run, go_on, interrupt, rows

FIVE = Length(updates=5)
"""An epoch has three updates, so this run ends within its second epoch."""
MOMENTS_OF_FIVE = 5 + 2  # after each update and each of the two validations


def test_a_run_of_epochs_ends_with_an_epoch() -> None:
    length = Length(epochs=3)
    assert (length.num_updates(4), length.num_epochs(4)) == (12, 3)
    assert [length.limit_updates(left, step=11) for left in (1, 4)] == [1, 4], "an epoch is never cut short"
    assert [epoch for epoch in range(5) if length.is_reached(step=4 * epoch, epoch=epoch, seen=0)] == [3, 4]


def test_a_run_of_updates_rounds_up_to_whole_epochs() -> None:
    assert [Length(updates=updates).num_epochs(4) for updates in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]
    assert Length(updates=9).num_updates(4) == 9
    assert [Length(updates=9).limit_updates(4, step=step) for step in (0, 4, 8)] == [4, 4, 1]
    assert [step for step in (7, 8, 9) if Length(updates=8).is_reached(step=step, epoch=2, seen=0)] == [8, 9]
    assert not Length(updates=7).is_reached(step=7, epoch=1, seen=24), "its last epoch is not validated yet"


@pytest.mark.parametrize(
    ("warmup", "best_epoch", "ends_after"),
    [
        ({}, 1, 3),
        ({"warmup_epochs": 5}, 1, 7),
        ({"warmup_epochs": 2.5}, 1, 5),
        ({"warmup_epochs": 5}, 6, 8),
        ({"warmup_updates": 18}, 1, 5),
        ({"warmup_epochs": 5, "warmup_updates": 2}, 1, 3),
    ],
)
def test_patience_begins_after_the_warm_up(warmup: dict[str, Any], best_epoch: int, ends_after: int) -> None:
    length = Length(epochs=20, patience=2, **warmup)
    epochs = range(best_epoch, 20)
    reached = [e for e in epochs if length.is_reached(step=4 * e, epoch=e, seen=0, best_epoch=best_epoch)]
    assert reached == [*range(ends_after, 20)]


@pytest.fixture(scope="module")
def by_epochs(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledImages]:
    """Returns the batches of a run of two epochs."""
    loader, _ = go_on(tmp_path_factory.mktemp("epochs") / "run")
    return loader.batches


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[LabelledImages]]:
    """Trains five updates without interruption. Returns the run folder and the batches."""
    path = tmp_path_factory.mktemp("whole") / "run"
    loader, _ = go_on(path, length=FIVE)
    return path, loader.batches


def test_a_run_of_updates_ends_within_an_epoch_and_is_validated_and_saved_there(
    whole: tuple[Path, list[LabelledImages]], by_epochs: list[LabelledImages]
) -> None:
    path, batches = whole
    assert [(row["split"], row["step"], row["epoch"]) for row in rows(path)] == [
        ("train", 2, 1),
        ("train", 3, 1),
        ("val", 3, 1),
        ("val", 3, 1),
        ("train", 5, 2),
        ("val", 5, 2),
        ("val", 5, 2),
    ]
    saved = torch.load(RunFolder(path).last, weights_only=True)
    assert (saved["step"], saved["epoch"], saved["seen"]) == (5, 2, 0)
    assert_same_batches(batches, by_epochs[: 2 * 5])


@pytest.mark.parametrize("moment", range(MOMENTS_OF_FIVE))
def test_a_run_of_updates_resumes_from_any_moment_to_the_same_end(
    moment: int, whole: tuple[Path, list[LabelledImages]], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    interrupt(path, moment, length=FIVE)
    saved = torch.load(RunFolder(path).last, weights_only=True)
    loader, _ = go_on(path, length=FIVE)
    assert_same_batches(loader.batches, whole[1][2 * saved["step"] :])
    assert_same_run(path, whole[0])


def test_a_run_of_updates_stopped_at_every_moment_reaches_the_same_end(
    whole: tuple[Path, list[LabelledImages]], tmp_path: Path
) -> None:
    for _ in range(MOMENTS_OF_FIVE):
        interrupt(tmp_path / "run", 0, length=FIVE)
    go_on(tmp_path / "run", length=FIVE)
    assert_same_run(tmp_path / "run", whole[0])


def test_epochs_and_the_same_number_of_updates_give_the_same_run(tmp_path: Path) -> None:
    go_on(tmp_path / "epochs")
    go_on(tmp_path / "updates", length=Length(updates=2 * UPDATES))
    assert_same_run(tmp_path / "updates", tmp_path / "epochs")


def test_a_finished_run_can_be_made_longer(whole: tuple[Path, list[LabelledImages]], tmp_path: Path) -> None:
    """The epoch in which the run ended counts as complete. The next images are those of the next epoch."""
    path = tmp_path / "run"
    go_on(path, length=FIVE)
    loader, _ = go_on(path, length=FIVE)
    assert loader.batches == [], "a finished run trains no more"
    assert_same_run(path, whole[0])
    go_on(path, length=Length(updates=7))
    saved = torch.load(RunFolder(path).last, weights_only=True)
    assert (saved["step"], saved["epoch"], saved["seen"]) == (7, 3, 0)


def test_train_updates_replaces_train_epochs_in_a_configuration(command: Callable[..., Result], tmp_path: Path) -> None:
    """One epoch of the digits has 11 updates."""
    small = (*TINY, "+model.depth=1", "+model.class_depth=1", "resolutions=[16]", "train.ema_decay=null")
    assert "train.epochs=1" in small
    result = command("train.py", *small, "train.updates=13", "run_dir=run")
    assert result.status == 0, result.stderr
    assert "epoch 2/2" in result.stderr
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]
    assert (written["epochs"], written["updates"]) == (None, 13)
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics if row["split"] == "train"] == list(range(1, 14))
    assert [(row["step"], row["epoch"]) for row in metrics if row["split"] == "val"] == [(11, 1), (13, 2)]
    rates = [row["lr"] for row in metrics if row["split"] == "train"]
    assert rates[-2:] == pytest.approx([1e-5, 1e-5]), "the cool-down of an epoch is cut to a share of 13 updates"
    assert rates[-3] > 5e-5

    again = command(
        "train.py", f"--config-path={tmp_path / 'run'}", "--config-name=config", "run_dir=again", "train.updates=2"
    )
    assert again.status == 0, again.stderr
    assert torch.load(RunFolder(tmp_path / "again").last, weights_only=True)["step"] == 2
