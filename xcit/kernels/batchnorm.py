"""The stem's BatchNorm with the GELU after it, and functions that update the running statistics of any BatchNorm."""

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .cpu.batchnorm import batchnorm_gelu as cpu_batchnorm_gelu
from .cpu.batchnorm import batchnorm_gelu_backward as cpu_backward
from .cpu.batchnorm import fits
from .cpu.batchnorm import moments as cpu_moments
from .dispatch import backend_for


def batchnorm_gelu(image: Tensor, bn: nn.Module) -> Tensor:
    """gelu(bn(image)), (B, C, H, W) → (B, C, H, W). If a kernel runs, it saves only the input for the backward pass."""
    x = image.permute(0, 2, 3, 1)
    if not uses_batch_statistics(bn, x) or not runs_on_cpu(x, *bn.parameters(), *running_statistics(bn)):
        return F.gelu(bn(image))
    mean, var = moments(x)
    update_running_statistics(bn, mean, var, x.shape[:-1].numel())
    y = BatchNormGELU.apply(x, bn.weight, bn.bias, mean, (var + bn.eps).rsqrt())
    return y.permute(0, 3, 1, 2)


class BatchNormGELU(torch.autograd.Function):
    """mean and rstd are functions of x. They get no gradients; the gradient of x takes them into account."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        ctx.save_for_backward(x, mean, rstd, scale, shift)
        return normalize_gelu(x, mean, scale * rstd, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *batchnorm_gelu_backward(grad, *ctx.saved_tensors), None, None


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel, without a graph: (…, C) → (C,), (C,)."""
    if runs_on_cpu(x):
        return cpu_moments(x)
    var, mean = torch.var_mean(x.flatten(0, -2), 0, correction=0)
    return mean, var


def normalize_gelu(x: Tensor, mean: Tensor, slope: Tensor, shift: Tensor) -> Tensor:
    """gelu(slope · (x - mean) + shift), without a graph: (…, C) and three of (C,) → (…, C)."""
    if runs_on_cpu(x, mean, slope, shift):
        return cpu_batchnorm_gelu(x, mean, slope, shift)
    return F.gelu((x - mean) * slope + shift)


def batchnorm_gelu_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, scale and shift, given that of gelu(scale · (x - mean) · rstd + shift)."""
    grad = grad.contiguous()
    if runs_on_cpu(x, mean, rstd, scale, shift) and runs_on_cpu(grad):
        return cpu_backward(grad, x, mean, rstd, scale, shift)
    x_hat = (x - mean) * rstd
    grad_normed = torch.ops.aten.gelu_backward(grad, x_hat * scale + shift)
    grad_scale, grad_shift = ((grad_normed * by).sum(tuple(range(x.dim() - 1))) for by in (x_hat, 1))
    num_places = x.shape[:-1].numel()
    return (grad_normed - (grad_shift + x_hat * grad_scale) / num_places) * (rstd * scale), grad_scale, grad_shift


def runs_on_cpu(x: Tensor, *parameters: Tensor) -> bool:
    return backend_for("batchnorm_gelu", x, *parameters) == "cpu" and fits(x, *parameters)


def uses_batch_statistics(bn: nn.Module, x: Tensor) -> TypeGuard[nn.BatchNorm2d]:
    """Whether bn is an nn.BatchNorm2d in training mode with all parameters and buffers, and accepts x, (…, C).

    BatchNorm raises an error for one value per channel.
    """
    if type(bn) is not nn.BatchNorm2d or not bn.training or not bn.affine or x.shape[:-1].numel() < 2:
        return False
    return all(value is not None for value in (bn.running_mean, bn.running_var, bn.num_batches_tracked))


def count_batch(bn: nn.BatchNorm2d) -> float:
    """Add one to num_batches_tracked. Returns the weight of the new batch in the running statistics."""
    assert bn.num_batches_tracked is not None
    bn.num_batches_tracked += 1
    return bn.momentum if bn.momentum is not None else 1 / int(bn.num_batches_tracked)


def update_running_statistics(bn: nn.BatchNorm2d, mean: Tensor, var: Tensor, num_places: int) -> None:
    """Update the running statistics with those of a batch. var is biased; the running variance is not."""
    momentum = count_batch(bn)
    with torch.no_grad():
        for running, found in zip(running_statistics(bn), (mean, var * (num_places / (num_places - 1))), strict=True):
            running.lerp_(found.to(running.dtype), momentum)


def running_statistics(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The running mean and variance."""
    assert bn.running_mean is not None and bn.running_var is not None
    return bn.running_mean, bn.running_var
