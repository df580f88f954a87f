"""Everything that must survive a crash, in one object."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3
from torch.optim import Optimizer

from ..checkpoint import FORMAT, shown, upgraded
from ..errors import InputError, print_note
from ..preprocessing import Preprocessing
from ..storage import load_exactly, read_tensors
from . import distributed
from .task import Losses, Task

# Keys of a parameter group that come from the configuration. They are not restored.
OF_GROUPS = ("params", "initial_lr", "lr_scale", "use_fallback")

OLDER_ORDER = {"data.sampling": "uniform"}
"""What the order of an epoch was in runs whose checkpoints do not say it."""


@dataclass
class TrainingState:
    """Weights, optimizer state and position of a run.

    It holds no generator state and no schedule: order, augmentation, mixing and drop path follow from
    (seed, epoch, step), and the learning rate from the step. One number, `seen`, tells where an unfinished epoch
    stands, for any number of processes and workers.
    """

    task: Task
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    """Plain data that identify the run: its configuration, class names, the tracker's id, and what the order of an
    epoch depends on."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """What the model expects of its images; for those who load the checkpoint."""
    select: str | None = None
    """The metric by which the best checkpoint is chosen; None for the task's headline metric."""
    step: int = 0
    """Updates done."""
    epoch: int = 0
    """Epochs done."""
    seen: int = 0
    """Images of the next epoch that the model has learnt from, over all processes."""
    logged: int = 0
    """The update after which the last row of training metrics was written."""
    loss_sums: Losses = field(default_factory=dict)
    """Loss name → this process's sum since the last logged row, on the device."""
    validated: dict[str, float] = field(default_factory=dict)
    """The headline metric in the last validation: of "raw" and, if there is an EMA, "ema"."""
    best_scores: dict[int, tuple[float, str]] = field(default_factory=dict)
    """Epoch → the better of these and its weights, for the epochs whose checkpoints are kept as the best; the best one
    first."""

    @property
    def best(self) -> float | None:
        """The best value of the task's headline metric so far, of raw or EMA weights."""
        return next((score for score, _ in self.best_scores.values()), None)

    @property
    def best_weights(self) -> str | None:
        """The weights that reached it: "raw" or "ema"."""
        return next((weights for _, weights in self.best_scores.values()), None)

    @property
    def best_epoch(self) -> int | None:
        """The epoch with the best validation; None if it is unknown, as in a run of an older version."""
        return next(iter(self.best_scores), None) or None

    @property
    def position(self) -> dict[str, Any]:
        """The arguments of `Length.is_reached`."""
        return {"step": self.step, "epoch": self.epoch, "seen": self.seen, "best_epoch": self.best_epoch}

    def describe_best(self) -> str:
        """As "top1 97.50 with the ema weights"."""
        if not self.best_scores:
            return "none, because no epoch was finished"
        score, weights = next(iter(self.best_scores.values()))
        return f"{self.headline} {shown(self.headline, score)} with the {weights} weights"

    @property
    def headline(self) -> str:
        """The metric by which the best checkpoint is chosen."""
        return self.select or self.task.headline_for(self.task.target)

    def weights(self) -> dict[str, Task]:
        """The task with the weights as trained ("raw") and with their moving average ("ema")."""
        return {"raw": self.task} | ({"ema": self.ema.module} if self.ema else {})

    def add_losses(self, losses: Losses) -> None:
        """Add the losses of one update."""
        for name, loss in losses.items():
            self.loss_sums[name] = self.loss_sums[name] + loss if name in self.loss_sums else loss

    def mean_losses(self) -> dict[str, float]:
        """The mean losses over the updates since the last row and over all processes; "loss" comes first."""
        names = sorted(self.loss_sums, key=lambda name: (name != "loss", name))
        num_updates = max(1, self.step - self.logged)
        return {name: distributed.mean(self.loss_sums[name] / num_updates) for name in names}

    def begin_log_window(self) -> None:
        """Start the sums anew: a row has just been written."""
        self.loss_sums, self.logged = {}, self.step

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes. A collective call: all processes must make it. Any one may save the result."""
        return {
            "format": FORMAT,
            "backbone": self.task.backbone,
            "networks": dict(self.task.networks),
            "preprocessing": self.preprocessing.as_dict(),
            "task": self.task.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer_state(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "seen": self.seen,
            "logged": self.logged,
            "loss_sums": distributed.from_all({name: total.item() for name, total in self.loss_sums.items()}),
            "best": self.best,
            "best_weights": self.best_weights,
            "best_scores": self.best_scores,
            "headline": self.headline,
            "validated": self.validated,
            "identity": self.identity,
        }

    def load_state_dict(self, content: Mapping[str, Any], origin: str) -> None:
        """Restore the state in `content`. `origin` names it in the errors.

        The optimizer's moments are restored; learning rates and weight decay are the configured ones.
        """
        self.load_weights(content, origin)
        seen = content.get("seen", 0)  # older checkpoints are of the end of an epoch
        if seen:
            self.require_same_order(content, origin)
        elif distributed.is_main():
            key = "the number of images"
            before, now = (identity.get("order", {}).get(key) for identity in (content["identity"], self.identity))
            if before != now:
                print_note(f"{origin}: {key} was {before} and is {now} now")
        self.load_optimizer_state(content["optimizer"], origin)
        if self.scaler.is_enabled() and content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        self.step, self.epoch = content["step"], content["epoch"]
        # Older checkpoints have the best value alone, of the EMA if there was one. It then counts as that of epoch 0.
        older = {} if content["best"] is None else {0: (content["best"], "ema" if self.ema else "raw")}
        self.best_scores = dict(content.get("best_scores", older))
        self.validated = dict(content.get("validated", {}))
        self.follow_changed_headline(content.get("headline", self.headline), origin)
        self.seen, self.logged = seen, content.get("logged", self.step)
        self.loss_sums = own_share(content.get("loss_sums", [{}]))
        for key in ("tracker", "tracker_home"):  # older checkpoints do not have the latter
            self.identity[key] = content["identity"].get(key)

    def load_weights(self, content: Mapping[str, Any], origin: str) -> None:
        """Restore the weights in `content` and their moving average, and nothing else."""
        require_classes(content["identity"]["classes"], self.identity["classes"], origin)
        load_exactly(self.task, content["task"], origin)
        if (self.ema is None) != (content["ema"] is None):
            has, wants = ("no", "one") if self.ema else ("an", "none")
            raise InputError(f"{origin}: holds {has} EMA, train.ema_decay asks for {wants}")
        if self.ema:
            load_exactly(self.ema.module, content["ema"], origin)

    def follow_changed_headline(self, before: str, origin: str) -> None:
        """Begin to rank the checkpoints anew if another metric ranked them before."""
        if before == self.headline:
            return
        self.best_scores, self.validated = {}, {}
        if distributed.is_main():
            print_note(
                f"{origin}: its best.pt was chosen by {before}, and is chosen by {self.headline} now; the next "
                "validation writes a new one"
            )

    def require_same_order(self, content: Mapping[str, Any], origin: str) -> None:
        """Refuse to continue within an epoch whose order has changed, because the remaining images would be unknown."""
        orders = (OLDER_ORDER | content["identity"]["order"], OLDER_ORDER | self.identity["order"])
        for key, before in orders[0].items():
            now = orders[1].get(key)
            if now != before:
                raise InputError(
                    f"{origin}: stands within epoch {content['epoch'] + 1}, which must be finished as it was begun: "
                    f"{key} was {before} and is {now} now"
                )

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state by the names of parameters, and group-level counters such as LAMB's step."""
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

    def load_optimizer_state(self, saved: Mapping[str, Any], origin: str) -> None:
        """Load it, whatever the parameter groups are now. A parameter that was frozen before starts without state."""
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


def own_share(sums: Sequence[dict[str, float]]) -> Losses:
    """This process's sums of losses. If the number of processes changed, each gets the mean."""
    if len(sums) == distributed.world_size():
        own = sums[distributed.rank()]
    else:
        own = {name: sum(of_process[name] for of_process in sums) / len(sums) for name in sums[0]}
    return {name: torch.tensor(total) for name, total in own.items()}


def require_classes(before: Sequence[str], now: Sequence[str], origin: str) -> None:
    """Refuse weights from `origin` that were trained with other classes, or with the same in another order."""
    if len(now) != len(before):
        raise InputError(f"{origin}: was trained with {len(before)} classes, the data have {len(now)}")
    for was, name in zip(before, now, strict=True):
        if was != name:
            raise InputError(f"{origin}: was trained with the class {was} where the data now have {name}")


def read_state(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint and convert it to the current format."""
    return upgraded(read_tensors(path), str(path))


def seed_step(seed: int, step: int, part: int, rank: int) -> None:
    """Seed torch on every device for one forward pass (drop path, dropout)."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, part, rank]).generate_state(1)[0]))
