"""Everything that must survive a crash, in one object."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch.optim import Optimizer

from ..checkpoint import FORMAT, is_checkpoint
from ..errors import InputError
from ..storage import load_exactly, read_tensors
from .task import Task


@dataclass
class TrainingState:
    """What a run has learnt and where it stands.

    There is no generator state and no schedule in it: order, augmentation, mixing and drop path follow from
    (seed, epoch, step), and the learning rate from the step.
    """

    task: Task
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    """Plain data that say which run this is: its configuration, class names, tracker's id."""
    step: int = 0
    """Updates done."""
    epoch: int = 0
    """Epochs done."""
    best: float | None = None
    """The best value of the task's headline metric so far, of the EMA weights where there are any."""

    @property
    def headline(self) -> str:
        """The metric by which the task wants to be judged; higher is better."""
        return str(self.task.headline)

    def weights(self) -> dict[str, Task]:
        """The task with the weights as trained, and with their moving average."""
        return {"raw": self.task} | ({"ema": self.ema.module} if self.ema else {})

    def state_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "task": self.task.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": {"name": type(self.optimizer).__name__, **self.optimizer.state_dict()},
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "best": self.best,
            "identity": self.identity,
        }

    def load_state_dict(self, content: Mapping[str, Any], origin: str) -> None:
        """Continue where `content` stood. `origin` names it in the errors.

        What the optimiser has gathered is restored; its rates and decays are those configured now.
        """
        for now, before in zip(self.identity["classes"], content["identity"]["classes"], strict=False):
            if now != before:
                raise InputError(f"{origin}: was trained with the class {before} where the data now have {now}")
        load_exactly(self.task, content["task"], origin)
        if (self.ema is None) != (content["ema"] is None):
            has, wants = ("no", "one") if self.ema else ("an", "none")
            raise InputError(f"{origin}: holds {has} EMA, train.ema_decay asks for {wants}")
        if self.ema:
            load_exactly(self.ema.module, content["ema"], origin)
        name = type(self.optimizer).__name__
        if content["optimizer"]["name"] != name:
            raise InputError(f"{origin}: was trained with {content['optimizer']['name']}, optim.name asks for {name}")
        self.restore_optimizer(content["optimizer"], origin)
        if self.scaler.is_enabled() and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        self.step, self.epoch, self.best = content["step"], content["epoch"], content["best"]
        self.identity["tracker"] = content["identity"].get("tracker")

    def restore_optimizer(self, saved: Mapping[str, Any], origin: str) -> None:
        """Bring back what the optimiser has gathered: by parameter, and by group as LAMB counts its steps."""
        now = self.optimizer.state_dict()["param_groups"]
        before = saved["param_groups"]
        if [len(group["params"]) for group in now] != [len(group["params"]) for group in before]:
            raise InputError(
                f"{origin}: groups its parameters otherwise; optim.layer_decay, optim.weight_decay=0 and train.freeze "
                "must be as they were"
            )
        gathered = [
            {key: value for key, value in group.items() if key not in fresh and key != "initial_lr"} | fresh
            for group, fresh in zip(before, now, strict=True)
        ]
        self.optimizer.load_state_dict({"state": saved["state"], "param_groups": gathered})


def read_state(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint that one of our runs wrote."""
    content = read_tensors(path)
    if not is_checkpoint(content):
        raise InputError(f"{path}: not a checkpoint of a run (its format is {content.get('format', 'not given')!r})")
    return content


def seed_step(seed: int, step: int, part: int, rank: int) -> None:
    """Seed what is random inside the model for one forward pass, on every device."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, part, rank]).generate_state(1)[0]))
