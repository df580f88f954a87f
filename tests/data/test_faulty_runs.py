"""Runs with broken images or killed workers tell the user what happened."""

from collections.abc import Callable
from pathlib import Path

from ..conftest import TINY, Result, launch
from .test_faults import Tree, damaged

RUN = (*TINY, "data=folder", "data.workers=1", "recipe=digits", "+model.depth=1")
RUN += ("train.global_batch_size=2", "resolutions=[16]")


def test_a_run_tells_of_a_broken_image(image_tree: Tree, command: Callable[..., Result], tmp_path: Path) -> None:
    _, (path,) = damaged(image_tree, 1)
    given = (f"data.root={tmp_path}/mine/train", "data.max_broken=0.5", "data.val_fraction=0.4", "data.split_seed=1")
    result = command("train.py", *RUN, *given)
    assert result.status == 0, result.stderr
    assert result.stderr.count(f"note: {path}: cannot be decoded (") == 1


KILLS_A_WORKER = """
import multiprocessing
from xcit.engine.loop import Trainer
update = Trainer.update
def update_without_workers(self, batches, position):
    for process in multiprocessing.active_children():
        process.kill()
    return update(self, batches, position)
Trainer.update = update_without_workers
"""


def test_a_run_whose_worker_is_killed_ends_in_one_line(image_tree: Tree, tmp_path: Path) -> None:
    root = image_tree("mine", {"cat": 20, "dog": 20}, ".jpg")
    result = launch("train.py", *RUN, f"data.root={root}", cwd=tmp_path, before=KILLS_A_WORKER)
    assert result.status == 1
    assert result.stderr.splitlines()[-1].startswith("error: a data worker was killed (")
    assert "Traceback" not in result.stderr
