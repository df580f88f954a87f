"""Everything that must survive a crash, in one object."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.optim import Optimizer

from ..checkpoint import FORMAT
from ..errors import InputError
from ..storage import load_exactly, read_tensors
from . import distributed
from .task import Task

# What a parameter group holds by configuration, besides the optimiser's own arguments.
OF_GROUPS = ("params", "initial_lr", "lr_scale", "use_fallback")


@dataclass
class TrainingState:
    """What a run has learnt and where it stands.

    There is no generator state and no schedule in it: order, augmentation, mixing and drop path follow from
    (seed, epoch, step), and the learning rate from the step. Where the epoch under way stands is one number, `seen`,
    whatever the number of processes and of their workers.
    """

    task: Task
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    """Plain data that say which run this is: its configuration, class names, tracker's id, and what the order of an
    epoch follows from."""
    step: int = 0
    """Updates done."""
    epoch: int = 0
    """Epochs done."""
    seen: int = 0
    """Images of the next epoch that are learnt from already, over all processes."""
    logged: int = 0
    """The update that the last row of training metrics was written after."""
    loss_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    """The losses of the updates since then, of this process, where they were computed."""
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
        """What `load_state_dict` takes; all processes make it together, and any one may save it."""
        return {
            "format": FORMAT,
            "task": self.task.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.gathered(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "seen": self.seen,
            "logged": self.logged,
            "loss_sums": distributed.from_all(self.loss_sum.item()),
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
        seen = content.get("seen", 0)  # older checkpoints are of the end of an epoch
        if seen:
            self.require_same_order(content, origin)
        load_exactly(self.task, content["task"], origin)
        if (self.ema is None) != (content["ema"] is None):
            has, wants = ("no", "one") if self.ema else ("an", "none")
            raise InputError(f"{origin}: holds {has} EMA, train.ema_decay asks for {wants}")
        if self.ema:
            load_exactly(self.ema.module, content["ema"], origin)
        self.restore_gathered(content["optimizer"], origin)
        if self.scaler.is_enabled() and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        self.step, self.epoch, self.best = content["step"], content["epoch"], content["best"]
        self.seen, self.logged = seen, content.get("logged", self.step)
        sums = content.get("loss_sums", [0.0])
        same_processes = len(sums) == distributed.world_size()
        self.loss_sum = torch.tensor(sums[distributed.rank()] if same_processes else sum(sums) / len(sums))
        self.identity["tracker"] = content["identity"].get("tracker")

    def require_same_order(self, content: Mapping[str, Any], origin: str) -> None:
        """Refuse to go on within an epoch that is not the one it was: what is left of it could not be told."""
        for key, before in content["identity"]["order"].items():
            now = self.identity["order"].get(key)
            if now != before:
                raise InputError(
                    f"{origin}: stands within epoch {content['epoch'] + 1}, which must be finished as it was begun: "
                    f"{key} was {before} and is {now} now"
                )

    def gathered(self) -> dict[str, Any]:
        """What the optimiser has gathered: by the names of parameters, and what LAMB and others count for all."""
        names = {id(parameter): name for name, parameter in self.task.named_parameters()}
        return {
            "name": type(self.optimizer).__name__,
            "by_parameter": {names[id(parameter)]: state for parameter, state in self.optimizer.state.items()},
            "common": {
                key: value
                for group in self.optimizer.param_groups
                for key, value in group.items()
                if key not in self.optimizer.defaults and key not in OF_GROUPS
            },
        }

    def restore_gathered(self, saved: Mapping[str, Any], origin: str) -> None:
        """Bring it back, however the parameters are grouped now; one that was not trained before starts anew."""
        name = type(self.optimizer).__name__
        if saved["name"] != name:
            raise InputError(f"{origin}: was trained with {saved['name']}, optim.name asks for {name}")
        numbers = {
            id(p): number for number, p in enumerate(p for g in self.optimizer.param_groups for p in g["params"])
        }
        by_number = {
            numbers[id(parameter)]: saved["by_parameter"][name]
            for name, parameter in self.task.named_parameters()
            if id(parameter) in numbers and name in saved["by_parameter"]
        }
        # A copy for each group: LAMB counts in place.
        groups = [group | deepcopy(saved["common"]) for group in self.optimizer.state_dict()["param_groups"]]
        self.optimizer.load_state_dict({"state": by_number, "param_groups": groups})


def read_state(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint that one of our runs wrote."""
    content = read_tensors(path)
    if content.get("format") != FORMAT:
        given = content.get("format", "not given")
        raise InputError(
            f"{path}: not a checkpoint that a run can go on from (its format is {given!r}, not {FORMAT!r})"
        )
    return content


def seed_step(seed: int, step: int, part: int, rank: int) -> None:
    """Seed what is random inside the model for one forward pass, on every device."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, part, rank]).generate_state(1)[0]))
