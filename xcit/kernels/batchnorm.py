"""The stem's BatchNorm with the GELU behind it; and, of a BatchNorm that a kernel computes itself, how it counts."""

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .passes import batchnorm_gelu_gradient_pass, batchnorm_gelu_pass, moments_pass, native, takes_channels


def counts_ordinarily(bn: nn.Module, x: Tensor) -> TypeGuard[nn.BatchNorm2d]:
    """Whether bn is the ordinary one in training, with no complaint to make (of a single value a channel) of (…, C)."""
    ordinary = type(bn) is nn.BatchNorm2d and bn.training and bn.affine and bn.track_running_stats
    return ordinary and x.shape[:-1].numel() > 1


def count_batch(bn: nn.BatchNorm2d) -> float:
    """Counts one batch more. Returns its weight in the running statistics."""
    assert bn.num_batches_tracked is not None
    bn.num_batches_tracked += 1
    return bn.momentum if bn.momentum is not None else 1 / int(bn.num_batches_tracked)


def batchnorm_gelu(image: Tensor, bn: nn.Module) -> Tensor:
    """gelu(bn(image)), (B, C, H, W) → (B, C, H, W). Keeps its input alone, where there are passes for it."""
    x = image.permute(0, 2, 3, 1)
    if not (counts_ordinarily(bn, x) and takes_channels(x) and native(bn.weight, bn.bias)):
        return F.gelu(bn(image))
    mean, var = moments_pass(x.detach())
    momentum, places = count_batch(bn), x.shape[:-1].numel()
    assert bn.running_mean is not None and bn.running_var is not None
    bn.running_mean.lerp_(mean, momentum)
    bn.running_var.lerp_(var * (places / (places - 1)), momentum)
    y = BatchNormGELU.apply(x, bn.weight, bn.bias, mean, (var + bn.eps).rsqrt())
    return y.permute(0, 3, 1, 2)


class BatchNormGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        ctx.save_for_backward(x, mean, rstd, scale, shift)
        return batchnorm_gelu_pass(x, mean, scale * rstd, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *batchnorm_gelu_gradient_pass(gradient, *ctx.saved_tensors), None, None
