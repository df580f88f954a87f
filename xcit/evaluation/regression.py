"""Numbers for each image: R², MAE and RMSE, on average and in a table of the values."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..device import device_for_float64, in_float64
from ..engine import distributed
from ..engine.task import Details


class ValueMetrics:
    """Metrics over the known values of all images and processes, each image counting once:

    - r2: 1 - the mean squared error / the variance of the value; 1 is perfect, and 0 is as good as the mean.
    - mae, rmse: the mean absolute error, and the root of the mean squared error, in the units of the values.
    - loss: the mean loss of a known value.
    - images.

    Each is the mean over the values. r2 is over those of which the images have two different numbers.

    Args:
        outputs: images → standardised values, (B, K).
        loss: standardised predictions and truth → the loss of each value.
        values: the names of the values.
        mean, std: of the values, (K,), by which they are standardised.
    """

    def __init__(
        self,
        outputs: Callable[[Tensor], Tensor],
        loss: Callable[[Tensor, Tensor], Tensor],
        values: Sequence[str],
        mean: Tensor,
        std: Tensor,
    ) -> None:
        self.outputs, self.loss, self.values, self.mean, self.std = outputs, loss, values, mean, std
        # Standardised values make sums that lose no digits: of known, |error|, error², value, value² and loss.
        self.sums = torch.zeros(6, len(values), dtype=torch.float64, device=device_for_float64(mean.device))
        self.images = torch.zeros((), dtype=torch.int64, device=mean.device)

    def update(self, batch: Any) -> None:
        truth, found = (batch.targets - self.mean) / self.std, self.outputs(batch.images).detach().float()
        known = in_float64(~truth.isnan())
        error, value, loss = (in_float64(x) for x in (found - truth, truth, self.loss(found, truth)))
        of_each = (known, error.abs(), error.square(), value, value.square(), loss)
        self.sums += torch.stack([part.where(known > 0, 0.0).sum(dim=0) for part in of_each])
        self.images += len(truth)

    def compute(self) -> dict[str, float]:
        known, absolute, squared, total, total_squared, loss = distributed.total(self.sums)
        std = in_float64(self.std)
        variation = total_squared - total.square() / known
        different = variation > 1e-9 * total_squared  # what rounding leaves of equal numbers is below
        self.by_value = {
            "r2": (1 - squared / variation).where(different, float("nan")),
            "mae": std * absolute / known,
            "rmse": std * (squared / known).sqrt(),
        }
        self.known = known
        means = {name: numbers.nanmean().item() for name, numbers in self.by_value.items()}
        images = int(distributed.total(self.images))
        return means | {"loss": (loss.sum() / known.sum()).item(), "images": images}

    def details(self) -> Details:
        columns = {name: numbers.tolist() for name, numbers in self.by_value.items()}
        columns["known"] = self.known.long().tolist()
        rows = zip(self.values, *columns.values(), strict=True)
        return Details([{"class": name, **dict(zip(columns, row, strict=True))} for name, *row in rows], [])
