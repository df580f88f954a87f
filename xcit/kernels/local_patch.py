"""Local patch interaction (LPI): of tokens in fp32 on an x86 CPU in few passes, elsewhere step by step.

The passes compute in fp32 also where autocast asks for less: that is faster than torch's convolutions in bf16.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .batchnorm import count_statistics, counts_ordinarily
from .cpu.library import takes_tokens
from .cpu.local_patch import (
    gelu_affine_depthwise_pass,
    local_patch_backward_pass,
    local_patch_pass,
    norm_depthwise_pass,
)
from .depthwise import (
    Grid,
    as_map,
    as_tokens,
    gelu_batchnorm_depthwise,
    gelu_batchnorm_depthwise_backward,
    norm_depthwise,
    norm_depthwise_backward,
)
from .depthwise_weights import scaled
from .dispatch import by_triton
from .matmul import convolution
from .precision import compute_dtype

Gradients = tuple[Tensor | None, ...]


def add_local_patch(
    x: Tensor,
    norm: nn.LayerNorm,
    first: nn.Conv2d,
    bn: nn.Module,
    second: nn.Conv2d,
    scale: Tensor,
    grid: Grid,
    shares: Tensor | None = None,
) -> Tensor:
    """x + shares · scale · second(bn(gelu(first(norm(x))))) over the grid, (B, N, C) → (B, N, C).

    shares: what each image's branch is multiplied by, (B,), in the type of x, if by anything. Keeps x and what the
    first convolution makes of it.
    """
    parameters = [parameter for part in (norm, first, bn, second) for parameter in part.parameters()]
    if counts_ordinarily(bn, x) and takes_map(x, grid, shares, scale, *parameters):
        return local_patch_by_passes(x, norm, first, bn, second, scale, grid, shares)
    branch = gelu_batchnorm_depthwise(norm_depthwise(x, norm, first, grid), bn, second, scale, grid)
    return x + (branch if shares is None else branch * shares[:, None, None].to(branch.dtype))


def takes_map(x: Tensor, grid: Grid, shares: Tensor | None, *parameters: Tensor) -> bool:
    """Whether the passes take the tokens of the grid, and shares and parameters that are each for them."""
    B, N, C = x.shape
    if by_triton(x) or grid[0] * grid[1] != N or not takes_tokens(x, shares, *parameters):
        return False
    if shares is not None and shares.shape != (B,):
        return False
    return all(parameter.shape in ((C,), (C, 1, 3, 3)) for parameter in parameters)


def local_patch_by_passes(
    x: Tensor,
    norm: nn.LayerNorm,
    first: nn.Conv2d,
    bn: nn.BatchNorm2d,
    second: nn.Conv2d,
    scale: Tensor,
    grid: Grid,
    shares: Tensor | None,
) -> Tensor:
    assert first.bias is not None
    of_norm, of_first = (x, norm.weight, norm.bias), (first.weight, first.bias)
    with torch.no_grad():
        convolved, mean, rstd, bn_mean, variance = norm_depthwise_pass(*of_norm, norm.eps, *of_first, grid)
    count_statistics(bn, bn_mean, variance, x.shape[:2].numel())
    made = convolved, mean, rstd, bn_mean, (variance + bn.eps).rsqrt()
    return LocalPatch.apply(*of_norm, *of_first, bn.weight, bn.bias, *scaled(second, scale), *made, shares, grid)


class LocalPatch(torch.autograd.Function):
    """By the passes in C++. convolved and the statistics are made of x and count as made here."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor,
        first: Tensor,
        first_bias: Tensor,
        bn_scale: Tensor,
        bn_shift: Tensor,
        second: Tensor,
        second_bias: Tensor,
        convolved: Tensor,
        mean: Tensor,
        rstd: Tensor,
        bn_mean: Tensor,
        bn_rstd: Tensor,
        shares: Tensor | None,
        grid: Grid,
    ) -> Tensor:
        norm = x, mean, rstd, scale, shift, first
        ctx.save_for_backward(shares, *norm, convolved, bn_mean, bn_rstd, bn_scale, bn_shift, second)
        ctx.grid = grid
        slope = bn_scale * bn_rstd
        affine = slope, bn_shift - bn_mean * slope
        return gelu_affine_depthwise_pass(convolved, *affine, second, second_bias, x, shares, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        shares, *saved = ctx.saved_tensors
        takes = takes_tokens(gradient, shares, *saved)
        backward: Callable[..., Gradients] = local_patch_backward_pass if takes else local_patch_backward
        return *backward(gradient, shares, *saved, ctx.grid), *[None] * 7


def local_patch_backward(
    gradient: Tensor,
    shares: Tensor | None,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    shift: Tensor,
    first: Tensor,
    convolved: Tensor,
    bn_mean: Tensor,
    bn_rstd: Tensor,
    bn_scale: Tensor,
    bn_shift: Tensor,
    second: Tensor,
    grid: Grid,
) -> Gradients:
    """The gradients of x and, for each convolution, of the scale and shift before it, of its weight and its bias."""
    of_branch = gradient if shares is None else gradient * shares[:, None, None]
    bn = bn_mean, bn_rstd, bn_scale, bn_shift, second
    of_convolved, *of_second = gelu_batchnorm_depthwise_backward(of_branch, convolved, *bn, 0.0, grid)
    mean, rstd = mean[..., None], rstd[..., None]
    norm = torch.addcmul(shift, (x - mean) * rstd, scale), mean, rstd, scale, shift, first
    return *norm_depthwise_backward(of_convolved, gradient, x, *norm, grid), *of_second


def add_folded_local_patch(
    x: Tensor,
    branch: Tensor,
    norm: nn.LayerNorm,
    first: tuple[Tensor, Tensor],
    slope: Tensor,
    shift: Tensor,
    second: tuple[Tensor, Tensor],
    grid: Grid,
) -> Tensor:
    """t + second convolution of slope · gelu(first convolution of norm(t)) + shift, where t = x + branch.

    (B, N, C), (B, N, C) → (B, N, C), without a graph; first, second: weight (C, 1, 3, 3) and bias (C,).
    """
    if takes_map(x, grid, None, norm.weight, norm.bias, *first, slope, shift, *second):
        given = x, branch.to(x.dtype), norm.weight, norm.bias, norm.eps
        return local_patch_pass(*given, *first, slope, shift, *second, grid)
    x = x + branch
    if by_triton(x):
        from .triton.local_patch import folded_local_patch as twin

        return x + twin(x, norm, first, slope, shift, second, grid)
    dtype = compute_dtype(x)
    (weight, bias), (second_weight, second_bias) = first, second
    normed = as_map(norm(x).to(dtype), grid)
    activated = convolution(normed, weight.to(dtype), bias.to(dtype), stride=1, gelu=True)
    normed = torch.addcmul(shift.to(dtype), as_tokens(activated), slope.to(dtype))
    convolved = convolution(as_map(normed, grid), second_weight.to(dtype), second_bias.to(dtype), stride=1, gelu=False)
    return x + as_tokens(convolved)
