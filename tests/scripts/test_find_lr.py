"""scripts/find_lr.py raises the learning rate, finds where the loss falls fastest, and writes a picture alone."""

import math
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import xcit.engine.loop
from scripts.find_lr import has_diverged, rate, smoothed, suggest
from xcit.errors import InputError

from ..conftest import TINY, Result

Command = Callable[..., Result]
SMALL = (*TINY, "+model.depth=1", "+model.class_depth=1", "train.ema_decay=null")


def test_the_rate_rises_exponentially_and_the_loss_is_smoothed() -> None:
    assert [rate(update, 4) for update in range(4)] == pytest.approx([1e-6, 1e-4, 1e-2, 1.0])
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    peak = smoothed([0.0] * 10 + [1.0] + [0.0] * 10)
    assert (peak, sum(peak)) == (peak[::-1], pytest.approx(1.0)), "it does not lag"
    assert peak[10] == pytest.approx(1 / 7) and peak[3] == 0


def test_the_suggestion_is_where_the_loss_falls_fastest_before_it_rises() -> None:
    rates = [rate(update, 101) for update in range(101)]
    losses = [3 - 1 / (1 + math.exp(40 - n)) + 10 * max(0, n - 70) for n in range(101)]
    suggested = suggest(rates, losses)
    assert rates[39] <= suggested <= rates[41]
    with pytest.raises(InputError, match="the loss does not fall"):
        suggest(rates, [float(n) for n in range(101)])


def test_the_test_ends_where_the_loss_diverges() -> None:
    assert not has_diverged([2.0] * 20 + [3.0])
    assert has_diverged([2.0] * 20 + [100.0])
    assert has_diverged([2.0, float("nan")])


def test_a_run_of_the_test_prints_a_rate_of_optim_lr_and_writes_a_picture_alone(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rates of the updates are optim.lr × 128 / 512."""
    rates = []
    update = xcit.engine.loop.Trainer.update

    def noted(self, batches, position):  # type: ignore[no-untyped-def]
        rates.append(self.state.optimizer.param_groups[0]["lr"])
        return update(self, batches, position)

    monkeypatch.setattr(xcit.engine.loop.Trainer, "update", noted)
    before = torch.get_rng_state()
    result = command("scripts/find_lr.py", *SMALL, "train.updates=16")
    torch.set_rng_state(before)
    assert result.status == 0, result.stderr
    found = re.fullmatch(r"lr_finder.png: the loss falls fastest at optim.lr=([\d.e+-]+)\n", result.stdout)
    assert found and 1e-5 < float(found[1]) < 1
    assert rates == pytest.approx([rate(n, 16, 1e-6 / 4, 1 / 4) for n in range(len(rates))])
    assert len(rates) > 11, "an epoch has 11 updates"
    assert [path.name for path in tmp_path.iterdir()] == ["lr_finder.png"]
    assert Image.open(tmp_path / "lr_finder.png").size == (600, 400)


@pytest.mark.parametrize("wrong", ["train.updates=9", "resume=auto", "train.batch_size=auto"])
def test_what_the_test_cannot_do_is_refused(wrong: str, command: Command, tmp_path: Path) -> None:
    result = command("scripts/find_lr.py", *SMALL, wrong)
    assert (result.status, result.stderr.splitlines()[-1].startswith(f"error: {wrong}: ")) == (2, True)
    assert not list(tmp_path.iterdir())


def test_a_test_that_is_stopped_draws_what_it_has_measured(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update, done = xcit.engine.loop.Trainer.update, []

    def interrupted(*arguments):  # type: ignore[no-untyped-def]
        if len(done) == 3:
            signal.raise_signal(signal.SIGINT)
        done.append(1)
        return update(*arguments)

    monkeypatch.setattr(xcit.engine.loop.Trainer, "update", interrupted)
    result = command("scripts/find_lr.py", *SMALL, "train.updates=16", "run_dir=found")
    assert result.status == 1
    assert "error: stopped by SIGINT after 3 of 16 updates; found/lr_finder.png shows them\n" in result.stderr
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["lr_finder.png"]
