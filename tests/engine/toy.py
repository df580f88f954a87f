"""A task small enough to see through: linear regression of the labels from the mean pixel."""

from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch import Tensor, nn


class ToyTask(nn.Module):
    headline = "score"

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.3, -0.2, 0.1, 0.4]]))
            self.layer.bias.fill_(0.1)
        self.drop = nn.Dropout(noise)

    def forward(self, batch: SimpleNamespace) -> Tensor:
        return (self.layer(self.drop(batch.x)) - batch.y).square().mean()


class ToyLoader:
    """`batches` equal parts of the same 24 samples in every epoch; `spoilt` names a batch that holds a NaN."""

    def __init__(self, batches: int, spoilt: int | None = None) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(24, 4, generator=generator)
        self.y = self.x.sum(1, keepdim=True)
        self.batches, self.spoilt = batches, spoilt

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[SimpleNamespace]:
        parts = list(zip(self.x.chunk(self.batches), self.y.chunk(self.batches), strict=True))
        for number, (x, y) in enumerate(parts[start:], start):
            yield SimpleNamespace(x=x * float("nan") if number == self.spoilt else x, y=y)
