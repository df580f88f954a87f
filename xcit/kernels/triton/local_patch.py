"""Local patch interaction in Triton: each depthwise convolution and the norm before it in one kernel, in fp32 or bf16.

The backward pass computes two sums for each tap: gradient · x̂ and the gradient alone. The gradients of weight, bias,
scale and shift follow from these eighteen numbers per channel.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..depthwise_gradients import grad_parameters
from .depthwise import convolve, grad_input, sums_over_taps
from .gelu import gelu_statistics as gelu_statistics
from .layer_norm import layer_norm_grad_x, token_statistics

Grid = tuple[int, int]
Gradients = tuple[Tensor | None, ...]
NOTHING = (None,) * 6


def folded_local_patch(
    x: Tensor,
    norm: nn.LayerNorm,
    first: tuple[Tensor, Tensor],
    slope: Tensor,
    shift: Tensor,
    second: tuple[Tensor, Tensor],
    grid: Grid,
    dtype: torch.dtype,
) -> Tensor:
    """Second convolution of (slope · gelu(first convolution of norm(x)) + shift), in dtype, without a graph."""
    statistics = token_statistics(x, norm.eps)
    activated = convolve(x, *first, grid, dtype, True, "layer", *statistics, norm.weight, norm.bias)
    return convolve(activated, *second, grid, dtype, False, "affine", None, None, slope, shift)


class Depthwise(torch.autograd.Function):
    """The convolution over the grid, (B, N, C) → (B, N, C), computed and returned in dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, grid: Grid, dtype: torch.dtype) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.grid = grid
        return convolve(x, weight, bias, grid, dtype, False, "none", *NOTHING[:4])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_weight, grad_inside = sums_over_taps(grad, x, ctx.grid)
        grad_x = grad_input(grad, weight, ctx.grid, x.dtype, *NOTHING)
        return grad_x, grad_weight, grad_inside[:, 0, 1, 1], None, None


class NormDepthwise(torch.autograd.Function):
    """The convolution of the norm of x. Saves x and two numbers per token."""

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
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, scale, shift, weight, mean, rstd = ctx.saved_tensors
        grad = grad.contiguous()
        sums = sums_over_taps(grad, x, ctx.grid, "layer", mean, rstd)
        grad_normed = grad_input(grad, weight, ctx.grid, grad.dtype, *NOTHING)
        grad_x = layer_norm_grad_x(grad_normed, x, mean, rstd, scale)
        return grad_x, *grad_parameters(*sums, weight, scale, shift), *[None] * 3


class GELUBatchNormDepthwise(torch.autograd.Function):
    """The convolution of bn(gelu(x)). Saves x alone.

    activated, mean and rstd: gelu(x) and its statistics. They get no gradients; the gradient of x takes them into
    account.
    """

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
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, rstd, scale, shift, weight)
        ctx.grid = grid
        return convolve(activated, weight, bias, grid, dtype, False, "batch", mean, rstd, scale, shift)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, mean, rstd, scale, shift, weight = ctx.saved_tensors
        grad = grad.contiguous()
        sums = sums_over_taps(grad, F.gelu(x), ctx.grid, "batch", mean, rstd)
        grad_scale, grad_shift, grad_weight, grad_bias = grad_parameters(*sums, weight, scale, shift)
        num_tokens = x.shape[0] * x.shape[1]
        batchnorm = x, mean, rstd, scale * rstd, grad_scale / num_tokens, grad_shift / num_tokens
        grad_x = grad_input(grad, weight, ctx.grid, x.dtype, *batchnorm)
        return grad_x, None, None, None, grad_scale, grad_shift, grad_weight, grad_bias, None, None
