"""Depthwise 3 × 3 convolutions of tokens, with the norm before them, by torch or by Triton.

Tokens (B, N, C) are a map in channels-last memory format, which torch convolves without a copy. The backward pass
recomputes the norms and the GELU.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .batchnorm import count_batch, update_running_statistics, uses_batch_statistics
from .dispatch import backend_for, compute_dtype
from .gelu import gelu, gelu_grad_x
from .layer_norm import layer_norm, layer_norm_backward

Grid = tuple[int, int]
Gradients = tuple[Tensor | None, ...]


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, grid: Grid) -> Tensor:
    """The convolution over the grid, (B, N, C) → (B, N, C). weight: (C, 1, 3, 3), bias: (C,)."""
    if backend_for("depthwise", x) == "triton":
        from .triton.local_patch import Depthwise as TritonDepthwise

        return TritonDepthwise.apply(x, weight, bias, grid, compute_dtype(x))
    return convolve(x, weight, bias, grid)


def norm_depthwise(x: Tensor, norm: nn.LayerNorm, conv: nn.Conv2d, grid: Grid) -> Tensor:
    """conv(norm(x)) over the grid, (B, N, C) → (B, N, C). Saves x; with Triton also two numbers per token."""
    function: Any = NormDepthwise
    if backend_for("depthwise", x) == "triton":
        from .triton.local_patch import NormDepthwise as TritonNormDepthwise

        function = TritonNormDepthwise
    return function.apply(x, norm.weight, norm.bias, conv.weight, conv.bias, norm.eps, grid, compute_dtype(x))


def gelu_batchnorm_depthwise(x: Tensor, bn: nn.Module, conv: nn.Conv2d, scale: Tensor, grid: Grid) -> Tensor:
    """scale · conv(bn(gelu(x))) over the grid, (B, N, C) → (B, N, C). Saves only x if bn is an ordinary nn.BatchNorm2d.

    Any other bn is called as a module, and so is one that raises an error for x.
    """
    weight, bias = scale_convolution(conv, scale)
    if not uses_batch_statistics(bn, x):
        return depthwise(as_tokens(bn(as_map(F.gelu(x), grid))), weight, bias, grid)
    if backend_for("depthwise", x) == "triton":
        from .triton.local_patch import GELUBatchNormDepthwise as TritonFunction
        from .triton.local_patch import gelu_statistics

        activated, mean, var = gelu_statistics(x.detach())
        update_running_statistics(bn, mean, var, x.shape[:2].numel())
        statistics = mean, (var + bn.eps).rsqrt()
        parameters = bn.weight, bn.bias, weight, bias
        return TritonFunction.apply(x, activated, *statistics, *parameters, grid, compute_dtype(x))
    momentum = count_batch(bn)
    return GELUBatchNormDepthwise.apply(
        x, bn.weight, bn.bias, weight, bias, bn.running_mean, bn.running_var, momentum, bn.eps, grid
    )


class NormDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        grid: Grid,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(x, scale, shift, weight)
        ctx.eps, ctx.grid, ctx.dtype = eps, grid, dtype
        normed, *_ = layer_norm(x, scale, shift, eps, dtype, "torch")
        return convolve(normed, weight, bias, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, scale, shift, weight = ctx.saved_tensors
        normed, mean, rstd = layer_norm(x, scale, shift, ctx.eps, ctx.dtype, "torch")
        norm = normed, mean, rstd, scale, shift
        return *norm_depthwise_backward(grad, None, x, *norm, weight, ctx.grid), None, None, None


class GELUBatchNormDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        grid: Grid,
    ) -> Tensor:
        rows = gelu(x).flatten(0, 1)  # torch's BatchNorm is faster on (B N, C) than on a map
        running = running_mean, running_var
        normed, mean, rstd = torch.native_batch_norm(rows, scale, shift, *running, True, momentum, eps)
        ctx.save_for_backward(x, scale, shift, weight, mean, rstd)
        ctx.eps, ctx.grid = eps, grid
        return convolve(normed.view(x.shape), weight, bias, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, scale, shift, weight, mean, rstd = ctx.saved_tensors
        bn = mean, rstd, scale, shift, weight
        return *gelu_batchnorm_depthwise_backward(grad, x, *bn, ctx.eps, ctx.grid), *[None] * 5


def norm_depthwise_backward(
    grad: Tensor,
    residual: Tensor | None,
    x: Tensor,
    normed: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    grid: Grid,
) -> Gradients:
    """The gradients of x, with the residual added to it, scale, shift, weight and bias. mean and rstd: (B, N, 1)."""
    grad_normed, grad_weight, grad_bias = convolve_backward(grad, normed, weight, grid)
    norm = mean, rstd, scale, shift
    grad_norm = layer_norm_backward(grad_normed, x, *norm, residual, [True] * 3, "torch")
    return *grad_norm, grad_weight, grad_bias


def gelu_batchnorm_depthwise_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    eps: float,
    grid: Grid,
) -> tuple[Tensor, ...]:
    """The gradients of x, scale, shift, weight and bias. mean and rstd: those of gelu(x), (C,)."""
    # Recompute the normalized map.
    activated, slope = gelu(x), scale * rstd
    normed = torch.addcmul((shift - mean * slope).to(x.dtype), activated, slope.to(x.dtype))
    # Go back through the convolution, the BatchNorm and the GELU.
    grad_normed, grad_weight, grad_bias = convolve_backward(grad, normed, weight, grid)
    rows = grad_normed.flatten(0, 1), activated.flatten(0, 1)
    grad_activated, grad_scale, grad_shift = torch.ops.aten.native_batch_norm_backward(
        *rows, scale, None, None, mean, rstd, True, eps, [True, True, True]
    )
    return gelu_grad_x(x, grad_activated.view(x.shape)), grad_scale, grad_shift, grad_weight, grad_bias


def scale_convolution(conv: nn.Conv2d, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of scale · conv. Their gradients have the strides of the parameters, which DDP expects."""
    assert conv.bias is not None
    return (scale[:, None] * conv.weight.flatten(1)).view_as(conv.weight), scale * conv.bias


def convolve(x: Tensor, weight: Tensor, bias: Tensor, grid: Grid) -> Tensor:
    """torch's depthwise 3 × 3 convolution, (B, N, C) → (B, N, C), in the type of x."""
    y = F.conv2d(as_map(x, grid), weight.to(x.dtype), bias.to(x.dtype), padding=1, groups=len(weight))
    return as_tokens(y)


def convolve_backward(grad: Tensor, x: Tensor, weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    C = len(weight)
    maps = as_map(grad.to(x.dtype), grid), as_map(x, grid)
    options = ([C], [1, 1], [1, 1], [1, 1], False, [0, 0], C, [True, True, True])
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(*maps, weight.to(x.dtype), *options)
    return as_tokens(grad_x), grad_weight.flatten(1).view_as(weight), grad_bias


def as_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, N, C) → (B, C, H, W), a view whose strides are channels-last even for a single image."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def as_tokens(image: Tensor) -> Tensor:
    """(B, C, H, W) → (B, N, C), a view where the channels are last."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)
