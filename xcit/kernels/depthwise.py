"""A 3 × 3 convolution of each channel by itself with the norm before it, on the tokens as they lie.

They are a map with its channels last, and need no copy.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .batchnorm import count_batch, counts_ordinarily
from .cpu.library import gelu_gradient_pass, gelu_pass
from .depthwise_weights import scaled
from .dispatch import by_triton
from .layer_norm import layer_norm, layer_norm_backward
from .precision import compute_dtype

Grid = tuple[int, int]
Gradients = tuple[Tensor | None, ...]


def norm_depthwise(x: Tensor, norm: nn.LayerNorm, conv: nn.Conv2d, grid: Grid) -> Tensor:
    """conv(norm(x)) over the grid, (B, N, C) → (B, N, C). Keeps x alone."""
    if by_triton(x):
        from .triton.local_patch import norm_depthwise as twin

        return twin(x, norm, conv, grid)
    return NormDepthwise.apply(x, norm.weight, norm.bias, conv.weight, conv.bias, norm.eps, grid, compute_dtype(x))


def gelu_batchnorm_depthwise(x: Tensor, bn: nn.Module, conv: nn.Conv2d, scale: Tensor, grid: Grid) -> Tensor:
    """scale · conv(bn(gelu(x))) over the grid, (B, N, C) → (B, N, C). Keeps x alone where bn counts.

    A bn that is not the ordinary one, or has a complaint to make (of a single value a channel), is called as it is.
    """
    if by_triton(x):
        from .triton.local_patch import gelu_batchnorm_depthwise as twin

        return twin(x, bn, conv, scale, grid)
    weight, bias = scaled(conv, scale)
    if not counts_ordinarily(bn, x):
        return depthwise(as_tokens(bn(as_map(F.gelu(x), grid))), weight, bias, grid)
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
        normed, *_ = layer_norm(x, scale, shift, eps, dtype, by_triton=False)
        return depthwise(normed, weight, bias, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, scale, shift, weight = ctx.saved_tensors
        normed, mean, rstd = layer_norm(x, scale, shift, ctx.eps, ctx.dtype, by_triton=False)
        norm = normed, mean, rstd, scale, shift
        return *norm_depthwise_backward(gradient, None, x, *norm, weight, ctx.grid), None, None, None


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
        rows = gelu_pass(x).flatten(0, 1)  # of which torch's BatchNorm is sooner done than of a map
        running = running_mean, running_var
        normed, mean, rstd = torch.native_batch_norm(rows, scale, shift, *running, True, momentum, eps)
        ctx.save_for_backward(x, scale, shift, weight, mean, rstd)
        ctx.eps, ctx.grid = eps, grid
        return depthwise(normed.view(x.shape), weight, bias, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, scale, shift, weight, mean, rstd = ctx.saved_tensors
        bn = mean, rstd, scale, shift, weight
        return *gelu_batchnorm_depthwise_backward(gradient, x, *bn, ctx.eps, ctx.grid), *[None] * 5


def norm_depthwise_backward(
    gradient: Tensor,
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
    """The gradients of x, to which the residual is added, scale, shift, weight and bias; mean and rstd: (B, N, 1)."""
    of_normed, of_weight, of_bias = depthwise_backward(gradient, normed, weight, grid)
    of_norm = layer_norm_backward(of_normed, x, mean, rstd, scale, shift, residual, [True] * 3, by_triton=False)
    return *of_norm, of_weight, of_bias


def gelu_batchnorm_depthwise_backward(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    eps: float,
    grid: Grid,
) -> tuple[Tensor, ...]:
    """The gradients of x, scale, shift, weight and bias; mean and rstd: (C,), of gelu(x)."""
    activated, slope = gelu_pass(x), scale * rstd
    normed = torch.addcmul((shift - mean * slope).to(x.dtype), activated, slope.to(x.dtype))
    of_normed, of_weight, of_bias = depthwise_backward(gradient, normed, weight, grid)
    rows = of_normed.flatten(0, 1), activated.flatten(0, 1)
    of_activated, of_scale, of_shift = torch.ops.aten.native_batch_norm_backward(
        *rows, scale, None, None, mean, rstd, True, eps, [True, True, True]
    )
    return gelu_gradient_pass(x, of_activated.view(x.shape)), of_scale, of_shift, of_weight, of_bias


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, grid: Grid) -> Tensor:
    """A 3 × 3 convolution of each channel by itself, (B, N, C) → (B, N, C), in the type of x."""
    y = F.conv2d(as_map(x, grid), weight.to(x.dtype), bias.to(x.dtype), padding=1, groups=len(weight))
    return as_tokens(y)


def depthwise_backward(gradient: Tensor, x: Tensor, weight: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias."""
    C = len(weight)
    maps = as_map(gradient.to(x.dtype), grid), as_map(x, grid)
    options = ([C], [1, 1], [1, 1], [1, 1], False, [0, 0], C, [True, True, True])
    of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(*maps, weight.to(x.dtype), *options)
    return as_tokens(of_x), of_weight.flatten(1).view_as(weight), of_bias


def as_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, N, C) → (B, C, H, W), the same memory, with strides that say so for a single image, too."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def as_tokens(image: Tensor) -> Tensor:
    """(B, C, H, W) → (B, N, C), the same memory where the channels are last."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)
