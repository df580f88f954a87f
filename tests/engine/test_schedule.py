"""The learning rate and the weight decay follow their schedules, in closed form."""

import math
from typing import Any

import pytest
import torch

from xcit.engine.schedule import LrEvery, make_schedule


def rates(
    epochs: int,
    *,
    warmup: float = 5,
    cooldown: float = 10,
    updates: int = 4,
    peak: float = 1e-3,
    warmup_lr: float = 1e-6,
    min_lr: float = 1e-5,
    lr_every: LrEvery = "update",
    **options: Any,
) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = make_schedule(
        optimizer,
        num_updates=epochs * updates,
        updates_per_epoch=updates,
        warmup_epochs=warmup,
        warmup_lr=warmup_lr,
        cooldown_epochs=cooldown,
        min_lr=min_lr,
        lr_every=lr_every,
        **options,
    )
    values = []
    for step in range(epochs * updates):
        schedule.step_update(step)
        values.append(optimizer.param_groups[0]["lr"])
    return values


def test_warmup_cosine_and_cooldown() -> None:
    lr = rates(40)
    assert lr[0] == pytest.approx(1e-6)
    assert lr[10] == pytest.approx(1e-6 + (1e-3 - 1e-6) / 2)
    for step in (20, 60, 119):
        assert lr[step] == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * step / 120)) / 2)
    assert lr[120:] == [pytest.approx(1e-5)] * 40


def test_the_cosine_can_start_after_the_warmup() -> None:
    """DINO's schedule in closed form."""
    lr = rates(40, warmup=10, cooldown=0, warmup_lr=0.0, min_lr=1e-6, warmup_prefix=True)
    for step in range(160):
        decay = 1e-6 + (1e-3 - 1e-6) * (1 + math.cos(math.pi * (step - 40) / 120)) / 2
        assert lr[step] == pytest.approx(1e-3 * step / 40 if step < 40 else decay)


def test_steps_begin_exactly_after_the_milestones() -> None:
    """Mask R-CNN's: a warm-up in updates, then two steps."""
    lr = rates(12, cooldown=0, warmup_lr=1e-6, schedule="step", milestones=[8, 11], warmup_updates=6)
    assert lr[:6] == pytest.approx([1e-6 + (1e-3 - 1e-6) * step / 6 for step in range(6)])
    assert lr[6:] == pytest.approx([1e-3] * 26 + [1e-4] * 12 + [1e-5] * 4)


@pytest.mark.parametrize("power", [1.0, 0.9])
def test_a_polynomial_ends_at_the_lowest_rate(power: float) -> None:
    """UperNet's: linear to 0 over all updates, the warm-up included."""
    lr = rates(10, cooldown=0, warmup_lr=1e-9, min_lr=0.0, schedule="poly", power=power, warmup_updates=5)
    assert lr[:5] == pytest.approx([1e-9 + (1e-3 - 1e-9) * step / 5 for step in range(5)])
    assert lr[5:] == pytest.approx([1e-3 * (1 - step / 40) ** power for step in range(5, 40)])


@pytest.mark.parametrize("lr_every", ["update", "epoch"])
def test_the_weight_decay_follows_a_cosine_where_there_is_any(lr_every: LrEvery) -> None:
    decayed, exempt = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.AdamW([{"params": [decayed]}, {"params": [exempt], "weight_decay": 0.0}], weight_decay=0.04)
    schedule = make_schedule(
        optimizer,
        num_updates=40,
        updates_per_epoch=4,
        warmup_epochs=0,
        warmup_lr=0.0,
        cooldown_epochs=0,
        min_lr=1e-6,
        lr_every=lr_every,
        weight_decay_end=0.4,
    )
    for step in range(40):
        schedule.step_update(step)
        expected = 0.4 + (0.04 - 0.4) * (1 + math.cos(math.pi * step / 40)) / 2
        assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx(expected), 0.0]


def test_a_rate_that_changes_once_per_epoch_is_one_epoch_late() -> None:
    """The numbers of a whole run are in tests/test_authors_runs.py."""
    every_update, every_epoch = rates(40), rates(40, lr_every="epoch")
    for step, lr in enumerate(every_epoch):
        assert lr == every_update[4 * max(0, step // 4 - 1)]


@pytest.mark.parametrize(("epochs", "noted"), [(1, True), (2, True), (3, False)])
def test_a_run_that_would_never_leave_the_warmups_first_rate_is_noted(
    epochs: int, noted: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    lr = rates(epochs, cooldown=0, lr_every="epoch")
    assert (max(lr) == pytest.approx(1e-6)) == noted
    assert (
        "note: optim.lr_every=epoch: the first two epochs have the learning rate 1e-06" in capsys.readouterr().err
    ) == noted


def test_a_peak_below_min_lr_replaces_min_lr() -> None:
    lr = rates(4, warmup=1, cooldown=1, peak=5e-6)
    assert max(lr) == pytest.approx(5e-6)
    assert lr[-1] == pytest.approx(5e-6)


@pytest.mark.parametrize("epochs", [1, 2, 10])
def test_a_short_run_spends_half_of_its_updates_on_the_cosine(epochs: int) -> None:
    lr = rates(epochs, updates=12)
    assert max(lr) > 0.8e-3
    assert lr[0] == pytest.approx(1e-6)
    assert lr[-1] == pytest.approx(1e-5)
    assert sum(rate == pytest.approx(1e-5) for rate in lr) == pytest.approx(epochs * 12 / 3, abs=1)
