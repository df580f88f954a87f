"""Local patch interaction in Triton: what local_patch.py does, each convolution and the norm before it in one kernel.

In fp32 or bf16. The backward pass gathers the sums of gradient · x̂ and of the gradient alone over every tap. From these
eighteen numbers a channel follow the gradients of weight, bias, scale and shift.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..batchnorm import count_statistics, counts_ordinarily
from ..depthwise_weights import of_parameters, scaled
from ..precision import compute_dtype
from .depthwise import convolve, of_input, sums_over_taps
from .layer_norm import gelu_statistics, of_layer_norm, token_statistics

Grid = tuple[int, int]
Gradients = tuple[Tensor | None, ...]
NOTHING = (None,) * 6


def norm_depthwise(x: Tensor, norm: nn.LayerNorm, conv: nn.Conv2d, grid: Grid) -> Tensor:
    """conv(norm(x)) over the grid, (B, N, C) → (B, N, C). Keeps x and two numbers a token."""
    return NormDepthwise.apply(x, norm.weight, norm.bias, conv.weight, conv.bias, norm.eps, grid, compute_dtype(x))


def gelu_batchnorm_depthwise(x: Tensor, bn: nn.Module, conv: nn.Conv2d, scale: Tensor, grid: Grid) -> Tensor:
    """scale · conv(bn(gelu(x))) over the grid, (B, N, C) → (B, N, C). Keeps x alone where bn counts."""
    weight, bias = scaled(conv, scale)
    if not counts_ordinarily(bn, x):
        return depthwise(bn(F.gelu(x).mT.unflatten(-1, grid)).flatten(2).mT, weight, bias, grid)
    activated, mean, variance = gelu_statistics(x.detach())
    count_statistics(bn, mean, variance, x.shape[:2].numel())
    rstd = (variance + bn.eps).rsqrt()
    return GELUBatchNormDepthwise.apply(x, activated, mean, rstd, bn.weight, bn.bias, weight, bias, grid)


def folded_local_patch(
    x: Tensor,
    norm: nn.LayerNorm,
    first: tuple[Tensor, Tensor],
    slope: Tensor,
    shift: Tensor,
    second: tuple[Tensor, Tensor],
    grid: Grid,
) -> Tensor:
    """As in local_patch.py; the weights and what else is of the channels may be of another type than x."""
    dtype, statistics = compute_dtype(x), token_statistics(x, norm.eps)
    activated = convolve(x, *first, grid, dtype, True, "layer", *statistics, norm.weight, norm.bias)
    return convolve(activated, *second, grid, dtype, False, "affine", None, None, slope, shift)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor, grid: Grid) -> Tensor:
    """A 3 × 3 convolution of each channel by itself, (B, N, C) → (B, N, C), in the type of x."""
    return Depthwise.apply(x, weight, bias, grid, compute_dtype(x))


class Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.grid = grid
        return convolve(x, weight, bias, grid, dtype, False, "none", *NOTHING[:4])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_weight, of_inside = sums_over_taps(gradient, x, ctx.grid)
        of_x = of_input(gradient, weight, ctx.grid, x.dtype, *NOTHING)
        return of_x, of_weight, of_inside[:, 0, 1, 1], None, None


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
        x = x.contiguous()
        mean, rstd = token_statistics(x, eps)
        ctx.save_for_backward(x, scale, shift, weight, mean, rstd)
        ctx.grid = grid
        return convolve(x, weight, bias, grid, dtype, False, "layer", mean, rstd, scale, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, scale, shift, weight, mean, rstd = ctx.saved_tensors
        gradient = gradient.contiguous()
        sums = sums_over_taps(gradient, x, ctx.grid, "layer", mean, rstd)
        of_normed = of_input(gradient, weight, ctx.grid, gradient.dtype, *NOTHING)
        return of_layer_norm(of_normed, x, mean, rstd, scale), *of_parameters(*sums, weight, scale, shift), *[None] * 3


class GELUBatchNormDepthwise(torch.autograd.Function):
    """activated, mean and rstd are gelu(x) and its statistics, and count as made of x in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        activated: Tensor,
        mean: Tensor,
        rstd: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
        grid: Grid,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, rstd, scale, shift, weight)
        ctx.grid = grid
        return convolve(activated, weight, bias, grid, compute_dtype(x), False, "batch", mean, rstd, scale, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, mean, rstd, scale, shift, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        sums = sums_over_taps(gradient, F.gelu(x), ctx.grid, "batch", mean, rstd)
        of_scale, of_shift, of_weight, of_bias = of_parameters(*sums, weight, scale, shift)
        count = x.shape[0] * x.shape[1]
        batchnorm = x, mean, rstd, scale * rstd, of_scale / count, of_shift / count
        of_x = of_input(gradient, weight, ctx.grid, x.dtype, *batchnorm)
        return of_x, None, None, None, of_scale, of_shift, of_weight, of_bias, None
