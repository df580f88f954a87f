"""train.py and eval.py work as a user calls them."""

import csv
import json
import shutil
from collections.abc import Callable
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import xcit

from .conftest import TINY, Result, launch

Command = Callable[..., Result]

# Uses all of DeiT's augmentation, with repeated augmentation and mixing, so that any difference shows in the losses.
OF_MODEL = ("model.patch_size=8", "+model.depth=1", "+model.class_depth=1")
SHALLOW = (*TINY, *OF_MODEL[1:])
DEIT = (*SHALLOW, "augment=deit", "train.epochs=2", "train.accumulate=2", "train.ema_decay=0.9")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trains with `python train.py` in one process. Returns the run folder."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    result = launch("train.py", *DEIT, f"run_dir={folder}", cwd=folder.parent)
    assert result.status == 0, result.stderr
    assert f"run folder: {folder}" in result.stdout
    return folder


def test_a_run_folder_holds_the_documented_files(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    reports = {"results.json", "results.csv", "top1_vs_resolution.png", "metrics.csv", "curves.png"}
    kept = {"config.yaml", "environment.json", "classes.json", "metrics.jsonl", "checkpoints", "predictions"}
    assert names == kept | reports
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"last.pt", "last-1.pt", "best.pt"}
    assert json.loads((trained / "classes.json").read_text()) == [str(digit) for digit in range(10)]
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert (config["model"]["name"], config["model"]["patch_size"], config["seed"]) == ("xcit_n12", 8, 0)
    environment = json.loads((trained / "environment.json").read_text())
    assert environment["packages"]["torch"] == metadata.version("torch")


def test_metrics_have_a_line_for_each_update_and_each_validation(trained: Path) -> None:
    rows = metrics(trained)
    train = [row for row in rows if row["split"] == "train"]
    assert [row["step"] for row in train] == list(range(1, 23))
    assert [row["epoch"] for row in train] == [1] * 11 + [2] * 11
    assert all(row["loss"] > 0 and row["images_per_second"] > 0 for row in train)
    assert train[0]["lr"] == pytest.approx(1e-6)
    val = [row for row in rows if row["split"] == "val"]
    assert [(row["step"], row["weights"]) for row in val] == [(11, "raw"), (11, "ema"), (22, "raw"), (22, "ema")]
    assert all(row["images"] == 360 for row in val)
    assert any(a["top1"] != b["top1"] for a, b in pairwise(val))


def test_the_final_results_are_those_of_the_last_validation(trained: Path) -> None:
    rows = json.loads((trained / "results.json").read_text())
    assert [(row["resolution"], row["weights"]) for row in rows] == [(16, "raw"), (16, "ema"), (24, "raw"), (24, "ema")]
    for row, validated in zip(rows[:2], metrics(trained)[-2:], strict=True):
        assert (row["top1"], row["loss"]) == (validated["top1"], validated["loss"])


def test_evaluation_of_a_run_folder_equals_that_of_training(command: Command, trained: Path, tmp_path: Path) -> None:
    result = command("eval.py", f"checkpoint={trained}", "run_dir=out", "batch_size=100")
    assert result.status == 0
    keys = ("resolution", "weights", "top1", "top5", "images", "eval_set", "crop_ratio", "model")
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    expected = json.loads((trained / "results.json").read_text())
    assert [[row[key] for key in keys] for row in found] == [[row[key] for key in keys] for row in expected]
    with (tmp_path / "out" / "results.csv").open() as file:
        assert [row["resolution"] for row in csv.DictReader(file)] == ["16", "16", "24", "24"]
    assert (tmp_path / "out" / "top1_vs_resolution.png").stat().st_size > 10_000
    assert "16 (training)" in result.stdout


def test_evaluation_accepts_other_weights_resolutions_and_crop_ratios(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    checkpoint = trained / "checkpoints" / "best.pt"
    arguments = ("weights=raw", "resolutions=[40,9]", "crop_ratio=0.8", "precision=bf16")
    assert command("eval.py", f"checkpoint={checkpoint}", *arguments, "run_dir=out").status == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(row["resolution"], row["weights"], row["crop_ratio"]) for row in rows] == [
        (40, "raw", 0.8),
        (9, "raw", 0.8),
    ]


def test_evaluation_of_bare_weights_needs_the_model_and_the_data(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    content = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)
    bare = {key.removeprefix("model."): value for key, value in content["ema"].items()}
    torch.save({"model": bare}, tmp_path / "bare.pth")
    command_line = ("eval.py", "checkpoint=bare.pth", "run_dir=out", "resolutions=[16]")
    for given, missing in (((), "model"), (("model=xcit_n12",), "data"), (("data=digits",), "model")):
        result = command(*command_line, *given)
        assert (result.status, result.stderr) == (
            2,
            f"error: {missing}: must be given, because bare.pth does not say which one in conf/{missing}\n",
        )
    assert command(*command_line, "model=xcit_n12", *OF_MODEL, "data=digits").status == 0
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
    ema = [row for row in metrics(trained) if row.get("weights") == "ema"][-1]
    assert (row["weights"], row["top1"]) == ("raw", ema["top1"])


KILLED_AT_STEP_14 = """
import os, signal
from xcit.engine.loop import Trainer
update = Trainer.update
def update_or_die(self, batches, position):
    if self.state.step == 14:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, batches, position)
Trainer.update = update_or_die
"""


def test_a_killed_run_resumes_to_what_it_would_have_been(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL ends the run in the second epoch, and the same command resumes it."""
    arguments = ("train.py", *DEIT, "run_dir=run", "resume=auto", "logger=wandb")
    folder = tmp_path / "run"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    killed = launch(*arguments, cwd=tmp_path, before=KILLED_AT_STEP_14)
    assert killed.status == -9
    assert "warning: logger" not in killed.stderr
    assert torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["epoch"] == 1
    assert metrics(folder)[-1]["step"] == 14

    monkeypatch.delenv("WANDB_PROJECT")
    result = launch(*arguments, cwd=tmp_path)
    assert result.status == 0, result.stderr
    assert "resuming run/checkpoints/last.pt after epoch 1\n" in result.stderr
    assert "warning: logger" not in result.stderr
    assert untimed(metrics(folder)) == untimed(metrics(trained))
    states = [torch.load(run / "checkpoints" / "last.pt", weights_only=True) for run in (trained, folder)]
    for part in ("task", "ema"):
        assert all(torch.equal(states[1][part][key], value) for key, value in states[0][part].items())
    tracked = {path.name for path in folder.glob("wandb/offline-run-*/*.wandb")}
    assert tracked == {f"run-{states[1]['identity']['tracker']}.wandb"}, "both halves are one run of the tracker"
    assert states[1]["identity"]["tracker_home"] == {"project": "theirs"}


def test_settings_changed_at_a_resume_take_effect(trained: Path, command: Command, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    changed = ("optim.lr=1e-4", "optim.weight_decay=0.3", "train.epochs=3")
    result = command("train.py", *DEIT, f"resume={folder}", "run_dir=longer", *changed)
    assert result.status == 0, result.stderr
    assert "changed since: optim.lr 0.016 → 0.0001, optim.weight_decay 0.05 → 0.3, train.epochs 2 → 3" in result.stderr
    later = [row["lr"] for row in metrics(tmp_path / "longer") if row["step"] > 22 and row["split"] == "train"]
    assert len(later) == 11
    assert max(later) <= 1e-4 * 128 / 512
    content = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    content["identity"]["classes"][3] = "drei"
    torch.save(content, folder / "checkpoints" / "last.pt")
    result = command("train.py", *DEIT, f"resume={folder}", "train.epochs=3")
    assert (result.status, "was trained with the class drei where the data now have 3" in result.stderr) == (2, True)
    result = command("train.py", *DEIT, f"resume={trained}", "optim=lamb", "train.epochs=3")
    assert (result.status, "was trained with AdamW, optim.name asks for Lamb" in result.stderr) == (2, True)


def test_two_processes_learn_what_one_learns(trained: Path, command: Command, tmp_path: Path) -> None:
    """Under torchrun with the same global batch size, losses agree within rounding. Each image is validated once.

    One process measures what the two measured at the end of their run.
    """
    result = launch("train.py", *DEIT, "run_dir=run", processes=2, cwd=tmp_path)
    assert result.status == 0, result.stderr
    for one, two in zip(metrics(trained), metrics(tmp_path / "run"), strict=True):
        assert one.keys() == two.keys()
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4), one
        assert two.get("images") == one.get("images")
    result = command("eval.py", "checkpoint=run", "run_dir=out")
    assert result.status == 0, result.stderr
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    expected = json.loads((tmp_path / "run" / "results.json").read_text())
    assert [(row["top1"], row["images"]) for row in rows] == [(row["top1"], row["images"]) for row in expected]


def test_a_finished_run_is_not_overwritten_and_a_resume_does_not_train_it(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    result = command("train.py", *TINY, f"run_dir={trained}")
    assert (result.status, result.stdout) == (2, "")
    line = f"error: run_dir={trained}: is not empty (it has checkpoints); choose a new folder"
    assert result.stderr == f"{line}, or continue its run with resume={trained}\n"
    result = command("eval.py", f"checkpoint={trained}", f"run_dir={trained}")
    assert (result.status, result.stdout, result.stderr) == (2, "", f"{line}\n")
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    folder = shutil.copytree(trained, tmp_path / "run")
    assert command("train.py", *DEIT, f"resume={folder}").status == 0
    assert (folder / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()


def test_the_written_configuration_runs_again(command: Command, trained: Path, tmp_path: Path) -> None:
    result = command("train.py", f"--config-path={trained}", "--config-name=config", "run_dir=again", "train.epochs=1")
    assert result.status == 0, result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"again"}
    assert untimed(metrics(tmp_path / "again"))[0]["loss"] == metrics(trained)[0]["loss"]


def test_a_users_own_images_train_with_their_class_names(
    command: Command, image_tree: Callable[..., Path], tmp_path: Path
) -> None:
    root = image_tree("mine", {"train/red": 12, "train/green": 12, "val/green": 3})
    arguments = (
        "data=folder",
        "pretrained=null",
        f"data.root={root}",
        "data.image_size=32",
        "data.workers=1",
        "model.patch_size=8",
    )
    loop = (
        "train.epochs=2",
        "train.global_batch_size=8",
        "train.accumulate=2",
        "resolutions=[32]",
        "optim.clip_norm=1",
    )
    switches = ("train.precision=bf16", "train.channels_last=true", "logger=tensorboard", "train.ema_decay=null")
    result = command("train.py", *arguments, *loop, *switches, "run_dir=run")
    assert result.status == 0, result.stderr
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == ["green", "red"]
    assert {row.get("weights") for row in metrics(tmp_path / "run")} == {None, "raw"}
    # The validation folder has only one of the classes, which keeps its label.
    assert command("eval.py", "checkpoint=run", "run_dir=out", "weights=ema").status == 2
    result = command("eval.py", "checkpoint=run", "run_dir=out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())[0]["images"] == 3


def test_imagenet_composes_the_papers_recipe_and_starts(
    command: Command, image_tree: Callable[..., Path], tmp_path: Path
) -> None:
    root = image_tree("imagenet", {"train/n01": 6, "train/n02": 6, "val/n01": 2, "val/n02": 2}, ".JPEG")
    small = ("train.global_batch_size=4", "train.epochs=1", "data.workers=0", "data.image_size=32", "resolutions=[32]")
    result = command("train.py", "model=xcit_n12", "data=imagenet", f"data.root={root}", *small, "run_dir=run")
    assert result.status == 0, result.stderr
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["augment"]["repeats"], config["optim"]["lr"], config["train"]["ema_decay"]) == (3, 5e-4, 0.99996)


def test_a_model_can_be_compiled(command: Command, image_tree: Callable[..., Path]) -> None:
    root = image_tree("mine", {"red": 8, "green": 8})
    arguments = (
        "data=folder",
        "pretrained=null",
        f"data.root={root}",
        "data.image_size=16",
        "data.workers=0",
        "model.patch_size=8",
    )
    loop = (
        "train.epochs=1",
        "train.global_batch_size=8",
        "train.compile=true",
        "deterministic=true",
        "resolutions=[16]",
    )
    shallow = ("+model.depth=1", "+model.class_depth=1")  # the numbers of a variant are options, too
    result = command("train.py", *arguments, *loop, *shallow, "run_dir=run")
    assert result.status == 0, result.stderr


def test_training_starts_from_published_weights(command: Command, trained: Path, tmp_path: Path) -> None:
    content = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)
    torch.save({key.removeprefix("model."): value for key, value in content["task"].items()}, tmp_path / "start.pth")
    frozen = ("optim.lr=1e-30", "optim.warmup_lr=0", "optim.min_lr=0", "optim.weight_decay=0")
    result = command("train.py", *SHALLOW, *frozen, "pretrained=start.pth", "run_dir=run")
    assert result.status == 0, result.stderr
    raw = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)["task"]
    assert torch.equal(raw["model.head.weight"], content["task"]["model.head.weight"])


def test_cfg_job_shows_the_configuration_and_stops(command: Command, tmp_path: Path) -> None:
    result = command("train.py", "model=xcit_s12", "data=imagenet", "data.root=/path", "--cfg", "job")
    assert result.status == 0
    shown = yaml.safe_load(result.stdout)
    assert shown["model"]["drop_path_rate"] == 0.05
    assert shown["train"]["epochs"] == 400
    assert shown["augment"]["rand_augment"] == "rand-m9-mstd0.5-inc1"
    assert not any(tmp_path.iterdir())


def test_evaluation_reads_the_model_from_a_hub_folder(command: Command, tmp_path: Path) -> None:
    model = xcit.create_model("xcit_n12", patch_size=8, num_classes=10, lpi=False, image_size=16)
    model.save_pretrained(tmp_path / "mine")
    result = command("eval.py", "checkpoint=mine", "data=digits", "run_dir=eval")
    assert result.status == 0, result.stderr
    assert {row["resolution"] for row in json.loads((tmp_path / "eval/results.json").read_text())} == {8, 16, 24}
    config = yaml.safe_load((tmp_path / "eval/config.yaml").read_text())["model"]
    assert (config["name"], config["patch_size"], config["lpi"]) == ("xcit_n12", 8, False)


def test_a_resume_does_not_need_the_pretrained_weights(command: Command, tmp_path: Path) -> None:
    model = xcit.create_model("xcit_n12", patch_size=8, num_classes=10, depth=1)
    torch.save(model.state_dict(), tmp_path / "start.pth")
    arguments = (*TINY, "+model.depth=1", "pretrained=start.pth", "run_dir=run", "train.ema_decay=null")
    assert command("train.py", *arguments).status == 0
    (tmp_path / "start.pth").unlink()
    result = command("train.py", "resume=run", "train.epochs=2", "run_dir=longer")
    assert result.status == 0, result.stderr
