"""Weight decay falls where it belongs, the rate goes as the recipe has it."""

import math

import pytest
import torch

import xcit
from xcit.engine.optimizer import make_optimizer, peak_lr
from xcit.engine.schedule import make_schedule
from xcit.errors import InputError
from xcit.tasks import TASKS


def test_decay_falls_on_matrices_and_kernels_alone() -> None:
    task = TASKS["classify"](xcit.create_model("xcit_n12", num_classes=10), 10)
    optimizer = make_optimizer(task, name="adamw", lr=1e-3, weight_decay=0.05, options={"betas": [0.8, 0.9]})
    names = {id(p): name for name, p in task.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decay) == set(names.values())
    for name, parameter in task.named_parameters():
        exempt = parameter.ndim == 1 or name.endswith(("cls_token", "temperature"))
        assert decay[name] == (0.0 if exempt else 0.05), name
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_the_learning_rate_grows_with_the_global_batch() -> None:
    assert peak_lr(5e-4, 1024) == pytest.approx(1e-3)


def test_an_argument_that_the_optimiser_does_not_take_is_named() -> None:
    with pytest.raises(InputError, match=r"optim\.options=.*not accepted by sgd"):
        make_optimizer(torch.nn.Linear(1, 1), name="sgd", lr=0.1, weight_decay=0, options={"momentun": 0.9})


def rates(epochs: int, *, warmup: float = 5, cooldown: float = 10, updates: int = 4, peak: float = 1e-3) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = make_schedule(
        optimizer,
        epochs=epochs,
        updates_per_epoch=updates,
        warmup_epochs=warmup,
        warmup_lr=1e-6,
        cooldown_epochs=cooldown,
        min_lr=1e-5,
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


def test_a_peak_below_the_floor_is_itself_the_floor() -> None:
    lr = rates(4, warmup=1, cooldown=1, peak=5e-6)
    assert max(lr) == pytest.approx(5e-6)
    assert lr[-1] == pytest.approx(5e-6)


@pytest.mark.parametrize("epochs", [1, 2, 10])
def test_a_short_run_keeps_half_of_itself_for_the_cosine(epochs: int) -> None:
    lr = rates(epochs, updates=12)
    assert max(lr) > 0.8e-3
    assert lr[0] == pytest.approx(1e-6)
    assert lr[-1] == pytest.approx(1e-5)
    assert sum(rate == pytest.approx(1e-5) for rate in lr) == pytest.approx(epochs * 12 / 3, abs=1)
