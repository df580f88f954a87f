"""The stem's BatchNorm with the GELU behind it; and, of a BatchNorm that a kernel computes itself, how it counts."""

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .cpu.library import batchnorm_gelu_gradient_pass, batchnorm_gelu_pass, moments_pass, takes_channels


def counts_ordinarily(bn: nn.Module, x: Tensor) -> TypeGuard[nn.BatchNorm2d]:
    """Whether bn is the ordinary one in training, without a complaint (of a single value a channel) of x, (…, C)."""
    if type(bn) is not nn.BatchNorm2d or not bn.training or not bn.affine or x.shape[:-1].numel() < 2:
        return False
    return all(value is not None for value in (bn.running_mean, bn.running_var, bn.num_batches_tracked))


def count_batch(bn: nn.BatchNorm2d) -> float:
    """Counts one batch more. Returns its weight in the running statistics."""
    assert bn.num_batches_tracked is not None
    bn.num_batches_tracked += 1
    return bn.momentum if bn.momentum is not None else 1 / int(bn.num_batches_tracked)


def count_statistics(bn: nn.BatchNorm2d, mean: Tensor, variance: Tensor, places: int) -> None:
    """Counts one batch more, of so many places, and moves the running statistics towards its own.

    variance: biased; the running one is not.
    """
    momentum = count_batch(bn)
    with torch.no_grad():
        for running, found in zip(statistics(bn), (mean, variance * (places / (places - 1))), strict=True):
            running.lerp_(found.to(running.dtype), momentum)


def batchnorm_gelu(image: Tensor, bn: nn.Module) -> Tensor:
    """gelu(bn(image)), (B, C, H, W) → (B, C, H, W). Keeps its input alone, where there are passes for it."""
    x = image.permute(0, 2, 3, 1)
    if not counts_ordinarily(bn, x) or not takes_channels(x, *bn.parameters(), *statistics(bn)):
        return F.gelu(bn(image))
    mean, var = moments_pass(x)
    count_statistics(bn, mean, var, x.shape[:-1].numel())
    y = BatchNormGELU.apply(x, bn.weight, bn.bias, mean, (var + bn.eps).rsqrt())
    return y.permute(0, 3, 1, 2)


def statistics(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The running mean and variance of one that tracks them."""
    assert bn.running_mean is not None and bn.running_var is not None
    return bn.running_mean, bn.running_var


class BatchNormGELU(torch.autograd.Function):
    """Of the batch's own mean and 1 / deviation, `rstd`, which get no gradients: their shares are in that of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        ctx.save_for_backward(x, mean, rstd, scale, shift)
        return batchnorm_gelu_pass(x, mean, scale * rstd, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *batchnorm_gelu_gradient_pass(gradient, *ctx.saved_tensors), None, None
