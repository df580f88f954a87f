"""The BatchNorm that a kernel computes itself: which it is, and how it counts a batch."""

from typing import TypeGuard

from torch import Tensor, nn


def counts_ordinarily(bn: nn.Module, x: Tensor) -> TypeGuard[nn.BatchNorm2d]:
    """Whether bn is the ordinary one in training, with no complaint to make (of a single value a channel) of x."""
    ordinary = type(bn) is nn.BatchNorm2d and bn.training and bn.affine and bn.track_running_stats
    return ordinary and x.shape[0] * x.shape[1] > 1


def count_batch(bn: nn.BatchNorm2d) -> float:
    """Counts one batch more. Returns its weight in the running statistics."""
    assert bn.num_batches_tracked is not None
    bn.num_batches_tracked += 1
    return bn.momentum if bn.momentum is not None else 1 / int(bn.num_batches_tracked)
