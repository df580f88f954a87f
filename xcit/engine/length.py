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
        if self.is_stale(epoch, best_epoch):
            return True
        if self.epochs is not None:
            return epoch >= self.epochs
        # A run that was stopped between its last update and the validation must still validate.
        return self.updates is not None and step >= self.updates and not seen

    def limit_updates(self, num_updates: int, *, step: int) -> int:
        """Limit an epoch's remaining updates to those of the run."""
        return num_updates if self.updates is None else min(num_updates, self.updates - step)

    def is_stale(self, epoch: int, best_epoch: int | None) -> bool:
        """Whether `patience` validations have followed the best one: there is one after each epoch."""
        return self.patience is not None and best_epoch is not None and epoch - best_epoch >= self.patience
