"""A run of DINO from the command line: what it writes, what others load from it, and that it resumes exactly."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import xcit
from xcit.storage import read_tensors

from .conftest import Result, call_here, launch, launch_forks
from .test_resuming import AT_STEP_14

Command = Callable[..., Result]
# Two epochs of eleven updates.
TINY_DINO = (
    "recipe=dino_digits",
    "model.depth=1",
    "data.image_size=16",
    "data.workers=0",
    "task.loss=dino",
    "task.teacher_warmup_epochs=2",
    "task.prototypes=16",
    "task.hidden_dim=16",
    "task.bottleneck_dim=8",
    "optim.lr=1e-3",
    "augment.local_crops=1",
    "augment.local_size=8",
    "train.global_batch_size=128",
    "train.epochs=2",
    "train.log_every=1",
    "train.save_every=1",
    "resolutions=[16]",
)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def untimed(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows(folder)]


@pytest.fixture(scope="module")
def trained(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino") / "run"
    result = call_here("train.py", *TINY_DINO, f"run_dir={folder}", cwd=folder.parent)
    assert result.status == 0, result.stderr
    for name in ("teacher_entropy", "batch_entropy", "feature_std", "knn_val_top1", "rankme"):
        assert f"  {name} " in result.stderr + result.stdout, "the progress line tells of a collapse"
    return folder


def test_a_run_records_what_tells_of_a_collapse(trained: Path) -> None:
    train, val = ([row for row in rows(trained) if row["split"] == split] for split in ("train", "val"))
    assert len(train) == 22 and len(val) == 2
    assert {"loss", "teacher_entropy", "batch_entropy", "feature_std", "lr"} <= train[0].keys()
    assert {"knn_val_top1", "rankme", "feature_std", "teacher_entropy", "batch_entropy"} <= val[0].keys()
    (result,) = json.loads((trained / "results.json").read_text())
    assert 0 <= result["knn_val_top1"] <= 100 and result["weights"] == "raw"
    assert (trained / "curves.png").is_file()


def test_a_killed_run_goes_on_exactly(trained: Path, command: Command, tmp_path: Path) -> None:
    """Teacher, center, temperatures and schedules are restored: every row is the same to the last digit."""
    arguments = ("train.py", *TINY_DINO, "run_dir=run", "resume=auto")
    before = AT_STEP_14.format("signal.raise_signal(signal.SIGKILL)")
    assert launch(*arguments, cwd=tmp_path, before=before).status == -9
    result = command(*arguments)
    assert result.status == 0, result.stderr
    assert untimed(tmp_path / "run") == untimed(trained)
    ours, theirs = (read_tensors(path / "checkpoints/last.pt")["task"] for path in (tmp_path / "run", trained))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_two_processes_learn_what_one_learns(trained: Path, tmp_path: Path) -> None:
    """The center and the entropies are of all processes."""
    result = launch_forks("train.py", *TINY_DINO, "run_dir=run", cwd=tmp_path)
    assert result.status == 0, result.stderr
    for one, two in zip(untimed(trained), untimed(tmp_path / "run"), strict=True):
        assert one.keys() == two.keys()
        for name in {"loss", "teacher_entropy", "batch_entropy"} & one.keys():
            assert two[name] == pytest.approx(one[name], rel=1e-3), (name, one["step"])
    centers = [read_tensors(path / "checkpoints/last.pt")["task"]["center"] for path in (tmp_path / "run", trained)]
    torch.testing.assert_close(centers[0], centers[1], rtol=1e-2, atol=1e-3)


def test_others_load_the_teacher(trained: Path, command: Command, tmp_path: Path) -> None:
    task = read_tensors(trained / "checkpoints/last.pt")["task"]
    teacher, student = (
        {key.removeprefix(prefix): value for key, value in task.items() if key.startswith(prefix)}
        for prefix in ("teacher.backbone.", "model.")
    )
    assert not torch.equal(teacher["blocks.0.mlp.fc1.weight"], student["blocks.0.mlp.fc1.weight"])
    loaded = xcit.load(trained)
    assert all(torch.equal(value, teacher[key]) for key, value in loaded.model.state_dict().items())
    assert loaded.classes is None, "there is no classifier"

    for network, expected in (("student", student), ("teacher", teacher)):
        result = command(
            "scripts/convert_weights.py", str(trained), f"{network}.pth", "--to", "timm", "--network", network
        )
        assert result.status == 0, result.stderr
        written = read_tensors(tmp_path / f"{network}.pth")
        assert written.keys() == expected.keys()
        assert all(torch.equal(value, expected[key]) for key, value in written.items())

    tiny = ("model.depth=1", "data.image_size=16", "data.workers=0", "train.global_batch_size=1024", "train.epochs=1")
    frozen = ("optim.lr=1e-12", "optim.warmup_lr=0", "optim.min_lr=0", "resolutions=[16]")
    result = command("train.py", *tiny, *frozen, f"pretrained={trained}", "run_dir=labels")
    assert result.status == 0, result.stderr
    assert "has no classifier" in result.stderr
    labels = read_tensors(tmp_path / "labels/checkpoints/last.pt")["task"]
    torch.testing.assert_close(labels["model.blocks.0.mlp.fc1.weight"], teacher["blocks.0.mlp.fc1.weight"])


def test_pretraining_goes_on_from_a_run_with_student_and_teacher(
    trained: Path, command: Command, tmp_path: Path
) -> None:
    still = ("optim.lr=1e-12", "optim.weight_decay=0", "optim.weight_decay_end=null", "train.updates=1")
    result = command("train.py", *TINY_DINO, *still, f"pretrained={trained}", "run_dir=on")
    assert result.status == 0, result.stderr
    before = read_tensors(trained / "checkpoints/last.pt")["task"]["teacher.backbone.blocks.0.mlp.fc1.weight"]
    after = read_tensors(tmp_path / "on/checkpoints/last.pt")["task"]
    for part in ("model", "teacher.backbone"):
        torch.testing.assert_close(after[f"{part}.blocks.0.mlp.fc1.weight"], before)


@pytest.mark.parametrize("evaluate", ["knn", "linear", "retrieval", "task"])
def test_a_run_is_evaluated(trained: Path, command: Command, tmp_path: Path, evaluate: str) -> None:
    result = command("eval.py", f"checkpoint={trained}", f"evaluate={evaluate}", "run_dir=out")
    assert result.status == 0, result.stderr
    (row,) = json.loads((tmp_path / "out/results.json").read_text())
    headline = {"knn": "knn_top1", "linear": "linear_top1", "retrieval": "retrieval_map", "task": "knn_val_top1"}[
        evaluate
    ]
    assert headline in row


def test_a_run_on_images_without_labels(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "any" / "depth"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(random.integers(0, 255, (20, 24, 3), np.uint8)).save(folder / f"{number}.jpg")
    result = command(
        "train.py",
        "data=images",
        f"data.root={tmp_path / 'photos'}",
        *TINY_DINO,
        "train.global_batch_size=16",
        "run_dir=run",
    )
    assert result.status == 0, result.stderr
    assert "without labels" in result.stderr
    (row,) = json.loads((tmp_path / "run/results.json").read_text())
    assert "knn_val_top1" not in row and row["rankme"] >= 1
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["data"]["name"] == "images"
    result = command("eval.py", "checkpoint=run", "evaluate=knn", "run_dir=out")
    assert result.status == 2 and "Traceback" not in result.stderr


def test_a_run_that_collapses_is_told_so(command: Command) -> None:
    """Without centering, the teacher's output becomes the same for all images."""
    result = command("train.py", *TINY_DINO, "task.centering=none", "optim.lr=0.1", "run_dir=run")
    assert result.status == 0, result.stderr
    assert "note: collapse: the teacher's output hardly depends on the image " in result.stderr
    assert "task.centering=center, task.centering=sinkhorn" in result.stderr
