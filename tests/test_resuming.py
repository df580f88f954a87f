"""A run that is stopped or killed resumes within its epoch. The tests use real processes and signals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from xcit.engine.run_lock import RunLock
from xcit.preprocessing import Preprocessing

from .conftest import TINY, Result, call_here, launch, launch_forks
from .engine.older_formats import as_version_2

Command = Callable[..., Result]

# Uses all of DeiT's augmentation, with repeated augmentation and mixing, so that any difference shows in the losses.
SMALL = (
    *TINY,
    *("augment=deit", "train.epochs=2", "train.accumulate=2", "train.ema_decay=0.9", "resolutions=[16]"),
    *("+model.depth=1", "+model.class_depth=1", "data.workers=2"),
)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl without images_per_second, which differs in every run."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "images_per_second"} for line in lines]


def assert_same_run(folder: Path, other: Path) -> None:
    assert metrics(folder) == metrics(other)
    states = [torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in (other, folder)]
    for part in ("task", "ema"):
        assert all(torch.equal(states[1][part][key], value) for key, value in states[0][part].items())


@pytest.fixture(scope="module")
def whole(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption. Each epoch has 11 updates."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = call_here("train.py", *SMALL, f"run_dir={folder}", cwd=folder.parent)
    assert result.status == 0, result.stderr
    return folder


# Python that each process runs first. It sends a signal right before update 14; {} is the call that sends it.
AT_STEP_14 = """
import signal
from xcit.engine.loop import Trainer
update = Trainer.update
def update_or_not(self, batches, position):
    if self.state.step == 13 and os.environ.get("RANK", "1") == "1":
        {}
    return update(self, batches, position)
Trainer.update = update_or_not
"""


def test_a_run_killed_within_an_epoch_resumes_from_its_last_update(
    whole: Path, command: Command, tmp_path: Path
) -> None:
    arguments = ("train.py", *SMALL, "run_dir=run", "resume=auto", "train.save_every=1")
    before = AT_STEP_14.format("signal.raise_signal(signal.SIGKILL)")
    assert launch(*arguments, cwd=tmp_path, before=before).status == -9
    result = command(*arguments)
    assert result.status == 0, result.stderr
    assert "resuming run/checkpoints/last.pt after epoch 1 and 256 images of the next\n" in result.stderr
    assert_same_run(tmp_path / "run", whole)


@pytest.fixture(scope="module")
def stopped(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, stopped by SIGTERM in the second epoch. Its data workers get it, too, as on some clusters."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    # setsid puts the run and its workers in a process group without pytest, and killpg sends the signal to that group.
    before = "os.setsid()\n" + AT_STEP_14.format("os.killpg(0, signal.SIGTERM)")
    result = launch("train.py", *SMALL, f"run_dir={folder}", cwd=folder.parent, before=before)
    messages = result.stderr
    assert result.status == 1, messages
    step = metrics(folder)[-1]["step"]
    assert 12 <= step < 22
    assert f"error: stopped by SIGTERM after update {step}; checkpoint: {folder}/checkpoints/last.pt; " in messages
    assert messages.endswith(f"to continue, run python train.py resume={folder}\n")
    assert "Traceback" not in messages
    return folder


def test_a_run_resumes_with_its_own_configuration(stopped: Path, whole: Path, command: Command, tmp_path: Path) -> None:
    """Nothing of the first command is repeated: model, augmentation, length and EMA are the run's."""
    folder = shutil.copytree(stopped, tmp_path / "run")
    result = command("train.py", "resume=run", "data.workers=0")
    assert result.status == 0, result.stderr
    assert "; changed since: data.workers 2 → 0\n" in result.stderr
    assert_same_run(folder, whole)


def test_another_recipe_cannot_continue_a_run(stopped: Path, command: Command) -> None:
    result = command("train.py", f"resume={stopped}", "recipe=cifar10")
    assert (result.status, result.stderr) == (2, "error: recipe=cifar10: the run to continue has recipe=digits\n")


def test_a_second_process_is_refused(stopped: Path, command: Command, tmp_path: Path) -> None:
    folder = shutil.copytree(stopped, tmp_path / "run")
    lock = RunLock(folder)
    lock.acquire()
    before = contents(folder)
    for how in ("resume=run", "resume=auto"):
        result = command("train.py", how, *(() if how == "resume=run" else ("run_dir=run",)))
        assert result.status == 2
        assert result.stderr.startswith("error: run_dir=run: another process is writing to it (host ")
    assert contents(folder) == before
    lock.release()


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_stays_as_it_is_and_is_continued_elsewhere(
    whole: Path, command: Command, tmp_path: Path
) -> None:
    before = contents(whole)
    for how in ((f"resume={whole}",), ("resume=auto", f"run_dir={whole}")):
        result = command("train.py", *how)
        assert result.status == 0, result.stderr
        assert result.stderr.startswith(f"note: {whole}: its run is finished; a larger train.epochs continues it")
    result = command("train.py", f"resume={whole}", "optim.lr=1e-9", "crop_ratio=0.5")
    assert result.status == 0, result.stderr
    assert result.stderr.endswith("; without effect: crop_ratio 1.0 → 0.5, optim.lr 0.016 → 1e-09\n")
    result = command("train.py", "resume=auto", f"run_dir={whole}", "train.epochs=3")
    assert result.status == 2
    assert "its run is finished; to train it longer, give resume=" in result.stderr
    # It is killed before its first update, and continued as the longer run that it is.
    kill = AT_STEP_14.format("signal.raise_signal(signal.SIGKILL)").replace("== 13", "== 22")
    longer_run = ("train.py", f"resume={whole}", "run_dir=longer", "train.epochs=3")
    assert launch(*longer_run, cwd=tmp_path, before=kill).status == -9
    result = command("train.py", "resume=longer")
    assert result.status == 0, result.stderr
    assert contents(whole) == before
    longer = metrics(tmp_path / "longer")
    assert longer[: len(metrics(whole))] == metrics(whole)
    assert longer[-1]["epoch"] == 3
    assert (tmp_path / "longer/checkpoints/best.pt").exists()
    assert json.loads((tmp_path / "longer/results.json").read_text())[0]["checkpoint"] == "longer/checkpoints/last.pt"


def test_a_run_of_an_older_version_resumes_and_gets_the_same_evaluation(
    stopped: Path, whole: Path, command: Command, tmp_path: Path
) -> None:
    """Its checkpoint has format 2, which has one loss, no backbone and no preprocessing."""
    folders = {run: shutil.copytree(run, tmp_path / run.parent.name) for run in (stopped, whole)}
    for run, folder in folders.items():
        last = folder / "checkpoints" / "last.pt"
        content = torch.load(last, weights_only=True)
        assert (content["format"], content["backbone"]) == ("xcit training state, version 3", "model"), run
        torch.save(as_version_2(content), last)

    result = command("train.py", *SMALL, "data.workers=0", f"run_dir={folders[stopped]}", "resume=auto")
    assert result.status == 0, result.stderr
    assert_same_run(folders[stopped], whole)

    found = []
    for number, checkpoint in enumerate((folders[whole], whole)):
        evaluated = ("resolutions=[16,24]", "crop_ratio=0.9", "batch_size=100", f"run_dir=eval{number}")
        assert command("eval.py", f"checkpoint={checkpoint}", *evaluated).status == 0
        rows = json.loads((tmp_path / f"eval{number}" / "results.json").read_text())
        found.append(
            [[row[key] for key in ("resolution", "weights", "top1", "top5", "loss", "images")] for row in rows]
        )
    assert found[0] == found[1]
    assert len(found[0]) == 4


def test_a_checkpoint_holds_the_preprocessing_as_plain_data(whole: Path, stopped: Path) -> None:
    """The size and crop ratio are those of the validation. This holds at the end of an epoch and within one."""
    for run in (whole, stopped):
        content = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
        plain = content["preprocessing"]
        assert json.loads(json.dumps(plain)) == plain
        assert plain["size"] == [16, 16]
        assert Preprocessing.from_dict(plain) == Preprocessing(size=(16, 16), crop_ratio=1.0)


def test_an_evaluation_uses_the_preprocessing_of_the_checkpoint(whole: Path, command: Command, tmp_path: Path) -> None:
    """eval.py uses the statistics saved in the checkpoint."""
    folder = shutil.copytree(whole, tmp_path / "run")
    last = folder / "checkpoints" / "last.pt"
    content = torch.load(last, weights_only=True)
    content["preprocessing"] |= {"mean": [0.1, 0.9, 0.5], "interpolation": "bilinear"}
    torch.save(content, last)
    losses = []
    for number, checkpoint in enumerate((folder, whole)):
        assert command("eval.py", f"checkpoint={checkpoint}", "resolutions=[16]", f"run_dir=eval{number}").status == 0
        losses.append(json.loads((tmp_path / f"eval{number}" / "results.json").read_text())[0]["loss"])
    assert losses[0] != losses[1]


def test_a_run_resumes_with_more_processes(stopped: Path, whole: Path, tmp_path: Path) -> None:
    """Losses agree within rounding: two processes train on the same images, each once."""
    folder = shutil.copytree(stopped, tmp_path / "run")
    result = launch_forks("train.py", *SMALL, "resume=run", cwd=tmp_path)
    assert result.status == 0, result.stderr
    for one, two in zip(metrics(whole), metrics(folder), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4), one


def test_processes_stop_together_and_their_run_resumes_with_fewer(
    whole: Path, command: Command, tmp_path: Path
) -> None:
    """One of two processes gets the signal. The checkpoint keeps the losses of the unfinished log window."""
    arguments = (*SMALL, "train.log_every=4", "run_dir=run", "resume=auto")
    before = AT_STEP_14.format("signal.raise_signal(signal.SIGUSR1)")
    result = launch("train.py", *arguments, processes=2, cwd=tmp_path, before=before)
    assert "error: stopped by SIGUSR1 after update 14; checkpoint: run/checkpoints/last.pt" in result.stderr
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert (saved["step"], saved["seen"], saved["logged"], len(saved["loss_sums"])) == (14, 384, 11, 2)
    result = command("train.py", *arguments)
    assert result.status == 0, result.stderr
    losses = {row["step"]: row["loss"] for row in metrics(whole) if row["split"] == "train"}
    found = {row["step"]: row["loss"] for row in metrics(tmp_path / "run") if row["split"] == "train"}
    windows = {4: 4, 8: 4, 11: 3, 15: 4, 19: 4, 22: 3}
    assert found == pytest.approx(
        {step: sum(losses[step - n] for n in range(size)) / size for step, size in windows.items()}, rel=1e-4
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.global_batch_size=64", "train.global_batch_size was 128 and is 64 now"),
        ("seed=1", "seed was 0 and is 1 now"),
    ],
)
def test_settings_of_the_order_cannot_change_within_an_epoch(
    stopped: Path, command: Command, change: str, message: str
) -> None:
    before = (stopped / "metrics.jsonl").read_bytes()
    result = command("train.py", *SMALL, f"resume={stopped}", change)
    start = f"error: {stopped}/checkpoints/last.pt: stands within epoch 2, which must be finished as it was begun: "
    assert (result.status, result.stdout, result.stderr) == (2, "", f"{start}{message}\n")
    assert (stopped / "metrics.jsonl").read_bytes() == before
