"""docs/extending.md is right: its blocks, written into a copy of the checkout, train, resume and evaluate."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from .conftest import ROOT, TINY

SHAPES = ("data=shapes", "data.count=24", "model.patch_size=4", "+model.depth=1", "resolutions=[24,40]")
# Eight updates of two forward passes over 24 images: two epochs and two thirds.
SHORT = (*SHAPES, "train.updates=8", "train.global_batch_size=8", "train.accumulate=2", "train.save_every=1")


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout with everything that the page adds."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("train.py", "eval.py", "conf", "xcit", "data", "scripts"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    page = (ROOT / "docs" / "extending.md").read_text()
    files = re.findall(r"^`(\S+)`\n\n```\w+\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(files) == 13
    for name, content in files:
        assert not (folder / name).exists()
        (folder / name).write_text(content)
    added = re.findall(
        r"^The line in `(\S+)`, in (\w+), with `(.+?)`:\n\n```python\n(.*?)\n```", page, re.MULTILINE | re.DOTALL
    )
    assert len(added) == page.count("The line in ") == 6
    for name, table, imported, line in added:
        add_to_table(folder / name, table, line, imported)
    return folder


def add_to_table(path: Path, table: str, line: str, imported: str) -> None:
    """As one would by hand: the import beside the others, the line at the head of the table."""
    source, added = re.subn(rf"^({table}\b[^\n]*= \{{\n)", rf"\1    {line}\n", path.read_text(), flags=re.MULTILINE)
    assert added == 1
    first_import = re.search(r"^from \.", source, re.MULTILINE)
    assert first_import
    path.write_text(f"{source[: first_import.start()]}{imported}\n{source[first_import.start() :]}")


# Python that runs the commands of a JSON list one after the other, because a process for each would import torch again.
# It prints a line of JSON for each command: its exit status and what it wrote to stderr.
ONE_AFTER_THE_OTHER = """
import contextlib, io, json, runpy, sys
for command in json.loads(sys.argv[1]):
    sys.argv, status = command, 0
    with contextlib.redirect_stderr(io.StringIO()) as messages, contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_path(command[0], run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
    print(json.dumps([status, messages.getvalue()]), flush=True)
"""


def call(extended: Path, *commands: Sequence[str], status: int = 0) -> list[str]:
    """Run scripts of the copy in one process; returns what each wrote to stderr."""
    done = run(extended, "-c", ONE_AFTER_THE_OTHER, json.dumps(commands))
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [ended for ended, _ in found] == [status] * len(commands), found
    return [messages for _, messages in found]


def run(extended: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=extended, check=False, capture_output=True, text=True, env=environment
    )


def rows(folder: Path, split: str) -> list[dict]:
    return [row for row in map(json.loads, (folder / "metrics.jsonl").open()) if row["split"] == split]


def test_the_small_examples_train_and_evaluate(extended: Path) -> None:
    tiny = [argument for argument in TINY if not argument.startswith("model.")]
    choices = ["task=poly", "task.epsilon=1.5", "model=pooled", "model.width=48", "data=photographs", "recipe=digits"]
    call(
        extended,
        ["train.py", *choices, *tiny, "train.epochs=16", "train.global_batch_size=32", "run_dir=run"],
        ["eval.py", "checkpoint=run", "run_dir=evaluated", "resolutions=[40]", "weights=raw"],
    )
    (row,) = json.loads((extended / "evaluated" / "results.json").read_text())
    assert (row["model"], row["eval_set"], row["images"]) == ("pooled", "photographs", 64)
    assert row["top1"] > 70
    assert "epsilon: 1.5" in (extended / "run" / "config.yaml").read_text()


def test_their_options_are_checked_like_all_others(extended: Path) -> None:
    refused = (
        (("task=poly", "task.epsilon=hard"), "task.epsilon=hard: must be a number"),
        (("task=poly", "task.epsilom=1"), "task.epsilom: unknown key; did you mean task.epsilon?"),
        (("model=poled",), "model=poled: unknown; did you mean pooled?"),
        ((*SHAPES, "augment.hflip=2"), "augment.hflip=2: must be a number from 0 to 1"),
        ((*SHAPES, "augment.mixup=1"), "augment.mixup: not a key of what is chosen for augment"),
    )
    found = call(extended, *(["train.py", *arguments] for arguments, _ in refused), status=2)
    for (_, message), stderr in zip(refused, found, strict=True):
        assert stderr.count("\n") == 1
        assert message in stderr


def test_their_options_are_explained_like_all_others(extended: Path) -> None:
    (extended / "docs").mkdir()
    call(extended, ["scripts/write_reference.py"], ["scripts/write_reference.py", "--check"])
    for name, line in (
        ("task/poly", "epsilon: 1.0 # weight of 1 - p beside the cross-entropy; 0: cross-entropy"),
        ("model/pooled", "width: 32 # channels of the convolution"),
        ("data/photographs", "piece: 40 # height and width of a piece in pixels"),
        ("augment/joint_crop", "hflip: 0.5 # probability of a horizontal flip"),
        ("recipe/shapes", "  epochs: null # passes over the training images; auto: 100, or more until there are 1,000"),
    ):
        assert f"\n{line}" in f"\n{(extended / f'conf/{name}.yaml').read_text()}"
    page = (extended / "docs/configuration.md").read_text()
    assert "| `task.dice` | a number | `0.5` | Share of the Dice loss at the end of the run. |" in page
    assert "With `task=segment_shapes`:\n\n| key |" in page


def test_a_task_of_another_target_view_evaluator_and_schedule_trains(extended: Path) -> None:
    call(
        extended,
        ["train.py", "data=shapes", "model.patch_size=4", "+model.depth=2", "run_dir=segment"],
        ["eval.py", "checkpoint=segment", "run_dir=segment-eval"],
    )
    folder = extended / "segment"
    trained = rows(folder, "train")
    assert [row["step"] for row in trained] == list(range(1, 61))
    assert {"loss", "cross_entropy", "dice"} <= set(trained[0])
    assert trained[0]["loss"] == trained[0]["cross_entropy"], "the Dice loss begins with no share"
    share = 0.5 * 30 / 60
    at_30 = trained[30]
    assert at_30["loss"] == pytest.approx((1 - share) * at_30["cross_entropy"] + share * at_30["dice"], rel=1e-5)
    assert at_30["dice"] < trained[0]["dice"]
    results = json.loads((folder / "results.json").read_text())
    assert [(row["resolution"], row["images"]) for row in results] == [(32, 16), (48, 16)]
    assert results[0]["miou"] > 40, "background alone makes 30 at most"
    assert (folder / "miou_vs_resolution.png").is_file()
    evaluated = json.loads((extended / "segment-eval" / "results.json").read_text())
    assert [row["miou"] for row in evaluated] == pytest.approx([row["miou"] for row in results], abs=0.2)


@pytest.fixture(scope="module")
def whole(extended: Path) -> Path:
    """A run of the new task in one process."""
    call(extended, ["train.py", *SHORT, "run_dir=whole"])
    return extended / "whole"


def test_it_resumes_exactly(extended: Path, whole: Path) -> None:
    """A run killed after its third update, within its first epoch, ends with the weights of one that was not."""
    kill = f"""
import os, runpy, sys
from xcit.engine.run_folder import RunFolder
save = RunFolder.save

def save_and_die(self, state, *recorder, **score):
    save(self, state, *recorder, **score)
    if state.step == 2:
        os.kill(os.getpid(), {int(signal.SIGKILL)})

RunFolder.save = save_and_die
sys.argv = sys.argv[1:]
runpy.run_path("train.py", run_name="__main__")
"""
    (extended / "killed.py").write_text(kill)
    assert run(extended, "killed.py", "train.py", *SHORT, "run_dir=parts").returncode == -signal.SIGKILL
    assert len(rows(extended / "parts", "train")) == 2
    (messages,) = call(extended, ["train.py", *SHORT, "run_dir=parts", "resume=auto"])
    assert "after epoch 0 and 16 images of the next" in messages
    one, parts = (torch.load(path / "checkpoints/last.pt", weights_only=True) for path in (whole, extended / "parts"))
    assert (one["step"], one["epoch"]) == (parts["step"], parts["epoch"]) == (8, 3)
    assert set(one["task"]) == set(parts["task"]) and "dice_share" in one["task"]
    assert all(torch.equal(one["task"][key], parts["task"][key]) for key in one["task"])
    losses = [[row["loss"] for row in rows(path, "train")] for path in (whole, extended / "parts")]
    assert losses[0] == losses[1]


def test_two_processes_learn_what_one_learns(extended: Path, whole: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = run(extended, *torchrun, "train.py", *SHORT, "run_dir=two")
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (rows(path, "train") for path in (whole, extended / "two"))
    for name in ("loss", "cross_entropy", "dice"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=2e-4)
    one, two = (json.loads((path / "results.json").read_text()) for path in (whole, extended / "two"))
    assert [row["images"] for row in two] == [row["images"] for row in one] == [6, 6, 6]
    assert [row["pixel_accuracy"] for row in two] == pytest.approx([row["pixel_accuracy"] for row in one], abs=0.5)


def test_a_data_set_with_other_targets_is_refused(extended: Path) -> None:
    refused = (
        (("data=shapes", "recipe=digits"), "task=classify: learns from targets of kind class; those of data=shapes"),
        (("data=digits", "recipe=shapes"), "task=segment_shapes: learns from targets of kind mask; those of data=dig"),
    )
    more = ("model.patch_size=4", "run_dir=refused")
    found = call(extended, *(["train.py", *arguments, *more] for arguments, _ in refused), status=2)
    for (_, message), stderr in zip(refused, found, strict=True):
        assert stderr.startswith(f"error: {message}") and stderr.count("\n") == 1
        assert not (extended / "refused").exists()
