"""How long a run is: a number of epochs, or a number of updates."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Length:
    """One of the two is given. A run of updates may end within an epoch; that epoch then counts as done."""

    epochs: int | None = None
    updates: int | None = None

    def num_updates(self, updates_per_epoch: int) -> int:
        """Updates of the whole run."""
        return (self.epochs or 0) * updates_per_epoch if self.updates is None else self.updates

    def num_epochs(self, updates_per_epoch: int) -> int:
        """Epochs that the run begins."""
        return self.epochs or 0 if self.updates is None else -(-self.updates // updates_per_epoch)

    def is_reached(self, *, step: int, epoch: int, seen: int) -> bool:
        """Whether a run with so many updates and epochs done, and images seen of the next epoch, is at its end."""
        if self.updates is None:
            return epoch >= (self.epochs or 0)
        # A run that was stopped between its last update and the validation still has that to do.
        return step >= self.updates and not seen

    def cut(self, num_updates: int, *, step: int) -> int:
        """As many of the updates that are left of an epoch as the run still makes."""
        return num_updates if self.updates is None else min(num_updates, self.updates - step)
