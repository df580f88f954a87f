"""Workers that are killed, that meet an error, and their memory."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data.datasets.folder import list_class_folders
from data.datasets.image_files import ImageFiles
from data.examples import Example, View
from data.loader import WorkerKilledError
from data.shared_memory import SharedBuffers
from data.views.labelled_crop import LabelledImages

from ..conftest import ROOT
from .test_faults import Tree, limit, loader


class Nothing(View):
    """A view that returns one pixel for any image, so that a test exercises only the loader."""

    def __init__(self) -> None:
        self.buffers = SharedBuffers()

    def sample(self, example: Example) -> tuple[Tensor, int]:
        return torch.zeros(1, 1, 3, dtype=torch.uint8), example.target

    def collate(self, samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, list[int]]:
        return self.buffers.stack([pixels for pixels, _ in samples]), [label for _, label in samples]

    def to_device(self, collated: tuple[Tensor, list[int]], *_: object) -> LabelledImages:
        labels = torch.tensor(collated[1])
        return LabelledImages(
            collated[0].permute(0, 3, 1, 2).float(), F.one_hot(labels).float(), labels, torch.ones(len(labels))
        )


def many(image_tree: Tree, count: int) -> ImageFiles:
    """Return `count` entries that refer to the same few files."""
    images = list_class_folders(image_tree("mine", {"cat": 4, "dog": 4}))
    return images.take(np.arange(count) % len(images))


@contextmanager
def new_workers() -> Iterator[list[int]]:
    """Yield a list. Iterating over it gives the ids of the processes that were started within the block."""
    before = {process.pid for process in multiprocessing.active_children()}

    class Pids(list[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(
                process.pid
                for process in multiprocessing.active_children()
                if process.pid and process.pid not in before
            )

    yield Pids()


def test_a_worker_that_is_killed_ends_the_run_and_says_so(image_tree: Tree) -> None:
    with new_workers() as pids, limit(30), pytest.raises(WorkerKilledError, match=r"lower data\.workers") as caught:
        for number, _ in enumerate(loader(many(image_tree, 20_000), workers=2, view=Nothing()).epoch(0)):
            if number == 3:
                os.kill(next(iter(pids)), signal.SIGKILL)
    assert "\n" not in str(caught.value)


ENDS_BY_AN_ERROR = """
import torch
from data.datasets.digits import Digits
from data.loader import TrainLoader
from data.samplers import TrainBatches
from data.views.labelled_crop import CenterLabelledCrop
from xcit.preprocessing import Preprocessing
images = Digits().train()
order = TrainBatches(len(images), 8, seed=0)
view = CenterLabelledCrop(Preprocessing(size=(16, 16)), 10)
loader = TrainLoader(images, [view], order, epochs=1, workers=2, device=torch.device("cpu"))
for batch in loader.epoch(0):
    raise RuntimeError("of the training")
"""


def test_an_error_that_a_worker_meets_is_no_killed_worker(image_tree: Tree) -> None:
    class Wrong(Nothing):
        def sample(self, example: Example) -> tuple[Tensor, int]:
            raise RuntimeError("of the view")

    with pytest.raises(RuntimeError, match="of the view") as caught:
        list(loader(many(image_tree, 8), workers=2, view=Wrong()).epoch(0))
    assert not isinstance(caught.value, WorkerKilledError)


def test_workers_do_not_keep_a_program_that_ends_by_an_error() -> None:
    command = [sys.executable, "-c", ENDS_BY_AN_ERROR]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "RuntimeError: of the training")


def private_memory(pids: Iterable[int]) -> float:
    """Return how many MB these processes do not share with any other process."""
    rollups = [Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in pids]
    return sum(int(line.split()[1]) for lines in rollups for line in lines if line.startswith("Private_")) / 1024


def memory_of_epochs(root: Path) -> list[float]:
    """Return the private memory of the workers in MB after each of ten epochs.

    Each epoch reads the next tenth of the entries in order, so that no worker has read them before.
    """
    count, size = 20_000, 50
    images = list_class_folders(root)
    batches = loader(images.take(np.arange(count) % len(images)), workers=2, view=Nothing(), batch_size=size)
    batches.batches.shuffled = lambda _: np.arange(count)
    part = count // size // 10
    after = []
    with new_workers() as pids:
        for epoch in range(10):
            seen = list(islice(batches.epoch(epoch, start=epoch * part), part))
            assert sum(len(batch.images) for batch in seen) == count // 10
            after.append(private_memory(pids))
    return after


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs /proc/self/smaps_rollup")
def test_host_memory_stays_flat(image_tree: Tree) -> None:
    """In a process of its own: workers copy the pages of what they touch, and earlier tests leave much of it."""
    root = image_tree("mine", {"cat": 4, "dog": 4})
    code = f"from tests.data.test_worker_processes import *; print(memory_of_epochs(Path({str(root)!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout.splitlines()[-1])
    assert after[1] > 1
    assert after[-1] - after[1] < 1.5, after
