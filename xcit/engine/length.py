"""How long a run is: a number of epochs or of updates, or until its validations get no better."""

from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class Length:
    """One of the two is given. A run of updates may end within an epoch; that epoch then counts as done."""

    epochs: int | None = None
    updates: int | None = None
    patience: int | None = None
    """Validations without a better one after which the run ends before that; None: it never does."""
    warmup_epochs: float = 0
    """Epochs at the start whose validations do not count for that, since the learning rate is still low."""
    warmup_updates: int | None = None
    """Updates before which the run does not end for that, instead of warmup_epochs."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.updates is None):
            raise InputError(f"train.epochs={self.epochs}, train.updates={self.updates}: exactly one must be given")

    def num_updates(self, updates_per_epoch: int) -> int:
        """Updates of the whole run."""
        return self.updates if self.epochs is None else self.epochs * updates_per_epoch  # type: ignore[return-value]

    def num_epochs(self, updates_per_epoch: int) -> int:
        """Number of epochs, including a partial last one."""
        return -(-self.num_updates(updates_per_epoch) // updates_per_epoch)

    def is_reached(self, *, step: int, epoch: int, seen: int, best_epoch: int | None = None) -> bool:
        """Whether the run is complete after `step` updates, `epoch` epochs and `seen` images of the next epoch.

        best_epoch: the epoch with the best validation so far, None if that is unknown.
        """
        if self.is_stale(step, epoch, best_epoch):
            return True
        if self.epochs is not None:
            return epoch >= self.epochs
        # A run that was stopped between its last update and the validation must still validate.
        return self.updates is not None and step >= self.updates and not seen

    def limit_updates(self, num_updates: int, *, step: int) -> int:
        """Limit an epoch's remaining updates to those of the run."""
        return num_updates if self.updates is None else min(num_updates, self.updates - step)

    def is_stale(self, step: int, epoch: int, best_epoch: int | None) -> bool:
        """Whether `patience` validations have followed the warm-up and the best one: there is one after each epoch."""
        if self.patience is None or best_epoch is None:
            return False
        if self.warmup_updates is not None:
            return step > self.warmup_updates and epoch - best_epoch >= self.patience
        return epoch - max(best_epoch, self.warmup_epochs) >= self.patience
