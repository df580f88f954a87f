"""A run that is interrupted at any point resumes to bit-identical results."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.views.labelled_crop import LabelledImages
from xcit.engine.loop import Trainer
from xcit.engine.run_folder import RunFolder
from xcit.engine.state import read_state
from xcit.engine.stopping import StopSignals
from xcit.engine.task import Losses
from xcit.errors import InputError, TrainingError
from xcit.signals import SIGNALS

from .older_formats import as_version_2
from .small_run import (
    EPOCHS,
    MOMENTS,
    UPDATES,
    Killed,
    assert_same_batches,
    assert_same_run,
    begin,
    go_on,
    interrupt,
    rows,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[LabelledImages]]:
    """Trains without interruption. Returns the run folder and the batches."""
    path = tmp_path_factory.mktemp("whole") / "run"
    loader, images = go_on(path)
    assert [row["step"] for row in rows(path) if row["split"] == "train"] == [2, 3, 5, 6]
    saved = torch.load(RunFolder(path).last, weights_only=True)
    assert (saved["step"], saved["epoch"], saved["seen"]) == (6, 2, 0)
    assert len(images.loaded) == 48
    return path, loader.batches


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_run_stopped_at_any_moment_resumes_to_the_same_end(
    moment: int, whole: tuple[Path, list[LabelledImages]], tmp_path: Path
) -> None:
    """The run uses repeated augmentation, mixing, drop path and accumulation. Some stops split a log window."""
    path = tmp_path / "run"
    interrupt(path, moment)
    epoch, done = divmod(moment, UPDATES + 1)
    saved = torch.load(RunFolder(path).last, weights_only=True)
    validated = done == UPDATES
    assert (saved["epoch"], saved["seen"]) == ((epoch + 1, 0) if validated else (epoch, 8 * (done + 1)))
    loader, images = go_on(path)
    left = whole[1][2 * saved["step"] :]
    assert_same_batches(loader.batches, left)
    assert len(images.loaded) == sum(len(batch.images) for batch in left), "nothing is loaded to be thrown away"
    assert_same_run(path, whole[0])


def test_a_run_stopped_at_every_update_reaches_the_same_end(
    whole: tuple[Path, list[LabelledImages]], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    for _ in range(EPOCHS * UPDATES):
        interrupt(path, 0)
    go_on(path)
    assert_same_run(path, whole[0])


@pytest.mark.parametrize("place", ["its checkpoint", "its validation", "its validation's checkpoint"])
def test_a_run_killed_between_checkpoints_writes_no_row_twice(
    place: str, whole: tuple[Path, list[LabelledImages]], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with pytest.raises(Killed):
        go_on(path, killed_at=(3, place), save_every=1)
    saved = torch.load(RunFolder(path).last, weights_only=True)
    assert (saved["epoch"], saved["seen"]) == (0, 16 if place == "its checkpoint" else 24)
    assert not RunFolder(path).best.exists() or place == "its validation's checkpoint"
    go_on(path)
    assert_same_run(path, whole[0])


def test_save_every_counts_updates_and_does_not_change_the_best_checkpoint(tmp_path: Path) -> None:
    for save_every, step in ((4, 4), (None, 3)):
        other = tmp_path / str(save_every)
        with pytest.raises(Killed):
            go_on(other, killed_at=(6, "its validation"), save_every=save_every)
        folder = RunFolder(other)
        saved = {file.name: torch.load(file, weights_only=True) for file in (folder.best, folder.last)}
        assert (saved["best.pt"]["step"], saved["last.pt"]["step"]) == (3, step)


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_the_number_of_workers_may_change(
    before: int, after: int, whole: tuple[Path, list[LabelledImages]], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    interrupt(path, 4, workers=before)
    loader, _ = go_on(path, workers=after)
    assert_same_batches(loader.batches, whole[1][8:])
    assert_same_run(path, whole[0])


def test_the_number_of_passes_may_change(whole: tuple[Path, list[LabelledImages]], tmp_path: Path) -> None:
    """The rest of the epoch has the same images in larger batches."""

    def labels(batches: list[LabelledImages]) -> list[Tensor]:
        return [torch.cat([batch.labels for batch in batches]).view(-1, 8).sort().values]

    interrupt(tmp_path / "run", 1)
    loader, _ = go_on(tmp_path / "run", accumulate=1)
    assert [len(batch.images) for batch in loader.batches] == [8] * 4
    assert torch.equal(*labels(loader.batches), *labels(whole[1][4:]))


def test_an_epoch_with_another_order_is_not_resumed(tmp_path: Path) -> None:
    path = tmp_path / "run"
    interrupt(path, 0)
    last = RunFolder(path).last
    other = begin({"train.global_batch_size": 16})
    begun = "stands within epoch 1, which must be finished as it was begun: "
    with pytest.raises(InputError, match=f"{begun}train.global_batch_size was 8 and is 16 now"):
        other.load_state_dict(read_state(last), "last.pt")
    balanced = begin({"train.global_batch_size": 8, "data.sampling": "balanced"})
    with pytest.raises(InputError, match=f"{begun}data.sampling was uniform and is balanced now"):
        balanced.load_state_dict(read_state(last), "last.pt")
    interrupt(path, 2)
    other.load_state_dict(read_state(last), "last.pt")  # between epochs the order may change
    assert other.epoch == 1


def test_a_checkpoint_without_a_position_counts_as_the_end_of_an_epoch(
    whole: tuple[Path, list[LabelledImages]], tmp_path: Path
) -> None:
    path = tmp_path / "run"
    interrupt(path, 3)
    last = RunFolder(path).last
    content = as_version_2(torch.load(last, weights_only=True))
    for key in ("seen", "logged", "loss_sums"):
        del content[key]
    del content["identity"]["order"]
    torch.save(content, last)
    go_on(path)
    assert_same_run(path, whole[0])


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_checkpoint_of_version_2_resumes_to_the_same_end(
    moment: int, whole: tuple[Path, list[LabelledImages]], tmp_path: Path
) -> None:
    """This holds at every moment. If the stop splits a log window, the losses of its first part are kept."""
    path = tmp_path / "run"
    interrupt(path, moment)
    last = RunFolder(path).last
    content = as_version_2(torch.load(last, weights_only=True))
    assert isinstance(content["loss_sums"][0], float)
    torch.save(content, last)
    loader, _ = go_on(path)
    assert_same_batches(loader.batches, whole[1][2 * content["step"] :])
    assert_same_run(path, whole[0])


@pytest.mark.parametrize("what", ["weights are", "the loss is"])
def test_values_that_are_not_finite_reach_no_checkpoint(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Trainer.update

    def astray(self: Trainer, *arguments: Any) -> Losses:
        losses = update(self, *arguments)
        if self.state.step == 5 and what == "weights are":
            self.state.task.model.head.bias.data[0] = float("inf")
        if self.state.step == 4 and what == "the loss is":
            losses["loss"] *= float("nan")
        return losses

    monkeypatch.setattr(Trainer, "update", astray)
    with pytest.raises(TrainingError, match=f"{what} (not finite|nan) by step {5 if what == 'weights are' else 4}"):
        go_on(tmp_path / "run", save_every=1)
    assert torch.load(RunFolder(tmp_path / "run").last, weights_only=True)["step"] == (
        4 if what == "weights are" else 3
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_recorded_and_the_old_handlers_are_restored(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with StopSignals() as signals:
        assert signals.agreed() is None
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert signals.agreed() == number.name
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_resumed_state_knows_its_last_validation(whole: tuple[Path, list[LabelledImages]]) -> None:
    state, content = begin(), read_state(RunFolder(whole[0]).last)
    assert content["validated"].keys() == {"raw", "ema"} and content["best_weights"] in ("raw", "ema")
    state.load_state_dict(content, "last.pt")
    assert (state.validated, state.best_weights) == (content["validated"], content["best_weights"])
