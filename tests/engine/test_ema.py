"""The EMA's decay warms up: a short run's EMA is alive, and the paper's runs end at the EMA that they always had."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from xcit.engine.ema import make_ema
from xcit.engine.run_folder import RunFolder

from ..test_recipes import composed
from .toy import ToyLoader, ToyTask, run

IMAGENET = 1_281_167


def shares(decays: np.ndarray) -> np.ndarray:
    """The share of the weights after each update in the final EMA; the first one is that of the initial weights."""
    after = np.concatenate([np.cumprod(decays[::-1])[::-1], [1.0]])
    return np.concatenate([[1.0], 1 - decays]) * after


def decays_of(decay: float, num_updates: int) -> np.ndarray:
    ema = make_ema(ToyTask(), decay)
    assert ema is not None
    return np.array([ema.get_decay(step) for step in range(1, num_updates + 1)])


def test_the_decay_rises_with_the_updates_to_the_configured_one() -> None:
    decays = decays_of(0.9, 100)
    assert decays[:4] == pytest.approx([0, 1 / 4, 2 / 5, 3 / 6])
    assert all(later >= earlier for earlier, later in pairwise(decays))
    assert decays[-1] == 0.9
    assert make_ema(ToyTask(), None) is None


@pytest.mark.parametrize("recipe", ["paper_p16", "paper_p8", "imagenet", "distill_hard"])
def test_the_papers_runs_end_at_the_ema_of_a_constant_decay(recipe: str) -> None:
    """Half the sum of the differences bounds the change of the EMA, relative to how far the weights ever moved."""
    train = composed("data=imagenet", "data.root=/path", f"recipe={recipe}").train
    assert train.epochs is not None and train.ema_decay is not None
    num_updates = train.epochs * (IMAGENET // train.global_batch_size)
    constant = shares(np.full(num_updates, train.ema_decay))
    warmed_up = shares(decays_of(train.ema_decay, num_updates))
    assert warmed_up.sum() == pytest.approx(constant.sum()) == pytest.approx(1)
    assert np.abs(warmed_up - constant).sum() / 2 < torch.finfo(torch.float32).eps / 2


def test_the_ema_of_a_short_run_follows_it(tmp_path: Path) -> None:
    """With a constant decay of 0.999 the EMA would keep 98 % of the initial weights after 20 updates."""
    state, _ = run(tmp_path, ToyLoader(1), epochs=20, ema_decay=0.999)
    start, end = ToyTask().model.weight, state.task.model.weight
    assert state.ema is not None
    left = (state.ema.module.model.weight - end).norm() / (start - end).norm()
    assert left < 0.25
    saved = torch.load(RunFolder(tmp_path / "run").last, weights_only=True)
    assert torch.equal(saved["ema"]["model.weight"], state.ema.module.state_dict()["model.weight"])
