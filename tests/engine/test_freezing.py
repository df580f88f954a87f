"""Frozen parameters and buffers stay bit-identical in training, and all others change."""

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import xcit
from xcit.engine.freezing import freeze, frozen_parts
from xcit.engine.length import Length
from xcit.engine.loop import Trainer, fit
from xcit.engine.numerics import grad_scaler
from xcit.engine.optimizer import make_optimizer
from xcit.engine.recorder import Recorder
from xcit.engine.run_folder import RunFolder
from xcit.engine.schedule import make_schedule
from xcit.engine.state import TrainingState
from xcit.engine.trackers import NullTracker
from xcit.tasks import TASKS

from .toy import target_of

CPU = torch.device("cpu")


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return xcit.create_model("xcit_n12", depth=2, patch_size=8, num_classes=3, drop_path_rate=0.2)


class Images:
    """Yields two batches of noise in every epoch."""

    def __len__(self) -> int:
        return 2

    def epoch(self, epoch: int, start: int = 0) -> Iterator[SimpleNamespace]:
        generator = torch.Generator().manual_seed(epoch)
        for _ in range(start, 2):
            targets = torch.eye(3)[torch.randint(3, (4,), generator=generator)]
            yield SimpleNamespace(
                images=torch.randn(4, 3, 16, 16, generator=generator), targets=targets, weights=torch.ones(4)
            )


def trained(
    folder: Path,
    names: list[str],
    weight_decay: float = 0.1,
    *,
    checkpointing: bool = False,
    freeze_batchnorm: bool = False,
) -> nn.Module:
    """Trains a model for two epochs in the real loop. The validation after each epoch changes the mode."""
    model = tiny()
    if checkpointing:
        model.set_grad_checkpointing()
    task = TASKS["classify"](model, target_of(3))
    freeze(model, names)
    frozen = frozen_parts(model, names, batchnorms=freeze_batchnorm)
    optimizer = make_optimizer(task, name="adamw", lr=1e-2, weight_decay=weight_decay, options={})
    state = TrainingState(task, optimizer, grad_scaler(CPU, "fp32"))
    schedule = make_schedule(
        optimizer, num_updates=4, updates_per_epoch=2, warmup_epochs=0, warmup_lr=0, cooldown_epochs=0, min_lr=1e-2
    )
    trainer = Trainer(
        state, task, schedule, CPU, "fp32", 4, 1, None, log_every=1, seed=0, length=Length(epochs=2), frozen=frozen
    )
    run_folder = RunFolder(folder)
    run_folder.create()

    def validate(judged: nn.Module) -> dict[str, float]:
        judged.eval()
        judged.train()
        return {"top1": 0.0}

    with Recorder(run_folder.metrics, NullTracker(), after_step=0, epochs_done=0) as recorder:
        fit(trainer, Images(), validate, folder=run_folder, recorder=recorder)
    return model


CASES = [
    ["patch_embed"],
    ["blocks.0", "cls_token"],
    ["patch_embed", "pos_embed", "blocks", "cls_attn_blocks", "cls_token", "norm"],
    ["blocks.1.local_mp.bn"],
    ["head.weight"],
]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("names", CASES, ids=", ".join)
def test_frozen_parts_stay_and_all_others_change(names: list[str], checkpointing: bool, tmp_path: Path) -> None:
    """This includes BatchNorm's statistics and counters. Weight decay and stochastic depth are on."""
    before, model = tiny().state_dict(), trained(tmp_path / "run", names, checkpointing=checkpointing)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    frozen = {key for key in before if any(key == name or key.startswith(f"{name}.") for name in names)}
    assert frozen
    assert changed == set(before) - frozen


def test_without_freezing_everything_changes(tmp_path: Path) -> None:
    before, model = tiny().state_dict(), trained(tmp_path / "run", [])
    assert not [key for key, value in model.state_dict().items() if torch.equal(value, before[key])]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_batchnorms_keep_their_statistics_and_learn_their_scales(checkpointing: bool, tmp_path: Path) -> None:
    before = tiny().state_dict()
    model = trained(tmp_path / "run", [], checkpointing=checkpointing, freeze_batchnorm=True)
    kept = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert kept == {key for key in before if key.endswith(statistics)}
    assert len(kept) == 3 * 5  # of three BatchNorms in the stem and one in each of two layers


def test_frozen_parameters_are_not_in_the_optimizer() -> None:
    model = tiny()
    freeze(model, ["patch_embed", "blocks.0"])
    for options in ({}, {"layer_decay": 0.7}):
        optimizer = make_optimizer(model, name="adamw", lr=1e-3, weight_decay=0.1, options={}, **options)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_frozen_parts_returns_the_frozen_modules() -> None:
    model = tiny()
    freeze(model, ["blocks.0", "cls_token", "norm"])
    assert frozen_parts(model, ["blocks.0", "cls_token", "norm"]) == [model.blocks[0], model.norm]
    assert not model.cls_token.requires_grad
    assert frozen_parts(model, []) == []


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("patch_embd", "patch_embed"),
        ("blocks.2", "blocks.1"),
        ("blocks.0.att", "blocks.0.attn"),
        ("cls_tokn", "cls_token"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name: str, nearest: str) -> None:
    with pytest.raises(xcit.InputError) as caught:
        freeze(tiny(), ["norm", name])
    message = str(caught.value)
    assert message.startswith(f"train.freeze={name}: not a part of the model; did you mean ")
    assert nearest in message


@pytest.mark.parametrize("name", ["", "zzz", ".", "blocks."])
def test_an_unknown_name_without_a_near_one_is_refused(name: str) -> None:
    with pytest.raises(xcit.InputError, match=r"train\.freeze=.*: not a part of the model.*(blocks|did you mean)"):
        freeze(tiny(), [name])


def test_freezing_everything_is_refused() -> None:
    model = tiny()
    parts = [name for name, _ in model.named_children()] + ["cls_token"]
    with pytest.raises(xcit.InputError, match=r"train\.freeze=\[.*\]: leaves nothing to train"):
        freeze(copy.deepcopy(model), parts)
    freeze(model, [part for part in parts if part != "head"])
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]
