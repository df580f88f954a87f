"""The classification loss is cross-entropy with soft targets. Top-5 accuracy of three classes is 100%."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from xcit.tasks import TASKS

from ..engine.toy import target_of


class Table(nn.Linear):
    """Returns its input as the logits."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.4, 0.3]])
SOFT = torch.tensor([[0.7, 0.3, 0.0], [0.1, 0.1, 0.8]])


def test_the_loss_weighs_every_class_by_its_target() -> None:
    losses = TASKS["classify"](Table(), target_of(3))(
        SimpleNamespace(images=LOGITS, targets=SOFT, weights=torch.ones(2))
    )
    assert list(losses) == ["loss"]
    log_p = LOGITS - LOGITS.exp().sum(1, keepdim=True).log()
    assert losses["loss"].item() == pytest.approx(-(SOFT * log_p).sum(1).mean().item())


def test_metrics_cover_all_batches_and_top_5_of_three_classes_is_100() -> None:
    evaluator = TASKS["classify"](Table(), target_of(3)).evaluator()
    for row, label in zip(LOGITS, (0, 2), strict=True):
        targets = nn.functional.one_hot(torch.tensor([label]), 3).float()
        evaluator.update(SimpleNamespace(images=row[None], targets=targets, labels=torch.tensor([label])))
    measured = evaluator.compute()
    assert (measured["top1"], measured["top5"], measured["images"]) == (50.0, 100.0, 2)
    assert measured["loss"] == pytest.approx(nn.functional.cross_entropy(LOGITS, torch.tensor([0, 2])).item(), rel=1e-6)
