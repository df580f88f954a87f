"""The passes over the tokens of local_patch.cpp, as operators, for what `takes_tokens` lets by.

local_patch.py puts them together. Maps are tokens (B, N, C) of the grid (H, W), weights (C, 1, 3, 3).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..custom_op import opaque
from ..depthwise_weights import of_parameters
from .library import call_dense


def like_norm_depthwise(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, weight: Tensor, bias: Tensor, grid: Sequence[int]
) -> tuple[Tensor, ...]:
    mean, rstd = (x.new_empty(x.shape[:2]) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd, torch.empty_like(scale), torch.empty_like(scale)


@opaque("xcit::norm_depthwise_pass", like_norm_depthwise)
def norm_depthwise_pass(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, weight: Tensor, bias: Tensor, grid: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The convolution of the tokens' norm; mean and rstd of each token, (B, N); mean and biased variance of each
    channel of the result's GELU, (C,).
    """
    B, N, C = x.shape
    y, mean, rstd = x.new_empty(x.shape), x.new_empty(B, N), x.new_empty(B, N)
    sums = x.new_empty(2, C, dtype=torch.float64)
    call_dense("norm_depthwise", x, scale, shift, eps, weight, bias, y, mean, rstd, sums, B, *grid, C)
    middle, squares = sums / (B * N)
    variance = (squares - middle.square()).clamp_min_(0)
    return y, mean, rstd, middle.float(), variance.float()


def like_x(a: Tensor, *others: object) -> Tensor:
    return a.new_empty(a.shape)


@opaque("xcit::gelu_affine_depthwise_pass", like_x)
def gelu_affine_depthwise_pass(
    a: Tensor,
    slope: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    shares: Tensor | None,
    grid: Sequence[int],
) -> Tensor:
    """x + shares · convolution of slope · gelu(a) + shift; shares: (B,)."""
    B, _, C = a.shape
    y = a.new_empty(a.shape)
    call_dense("gelu_affine_depthwise", a, slope, shift, weight, bias, x, shares, y, B, *grid, C)
    return y


def like_gradients(
    gradient: Tensor,
    shares: Tensor | None,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    shift: Tensor,
    first: Tensor,
    *others: object,
) -> tuple[Tensor, ...]:
    of_part = scale, shift, first, shift
    return tuple(given.new_empty(given.shape) for given in (x, *of_part, *of_part))


@opaque("xcit::local_patch_backward_pass", like_gradients)
def local_patch_backward_pass(
    gradient: Tensor,
    shares: Tensor | None,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    shift: Tensor,
    first: Tensor,
    a: Tensor,
    bn_mean: Tensor,
    bn_rstd: Tensor,
    bn_scale: Tensor,
    bn_shift: Tensor,
    second: Tensor,
    grid: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `local_patch.local_patch_backward` returns."""
    B, N, C = x.shape
    of_x, sums = x.new_empty(x.shape), x.new_empty(2, 9, C, dtype=torch.float64)
    call_dense("gelu_affine_taps", gradient, shares, a, bn_mean, bn_rstd, sums, B, *grid, C)
    of_second = of_parameters(*by_channel(sums), second, bn_scale, bn_shift)
    off_hat, off = (of / (B * N) for of in of_second[:2])
    norm = x, mean, rstd, scale, first
    bn = a, bn_mean, bn_rstd, bn_scale, off, off_hat, second
    call_dense("local_patch_gradient", gradient, shares, *norm, *bn, of_x, sums, B, *grid, C)
    of_first = of_parameters(*by_channel(sums), first, scale, shift)
    return of_x, *of_first, *of_second


@opaque("xcit::local_patch_pass", like_x)
def local_patch_pass(
    x: Tensor,
    branch: Tensor,
    scale: Tensor,
    shift: Tensor,
    eps: float,
    first_weight: Tensor,
    first_bias: Tensor,
    slope: Tensor,
    bn_shift: Tensor,
    second_weight: Tensor,
    second_bias: Tensor,
    grid: Sequence[int],
) -> Tensor:
    """t + second convolution of slope · gelu(first convolution of the norm of t) + bn_shift, where t = x + branch."""
    B, _, C = x.shape
    y = x.new_empty(x.shape)
    first, second = (first_weight, first_bias), (second_weight, second_bias)
    call_dense("local_patch", x, branch, scale, shift, eps, *first, slope, bn_shift, *second, y, B, *grid, C)
    return y


def by_channel(sums: Tensor) -> tuple[Tensor, Tensor]:
    """(2, 9, C) in fp64 → two of (C, 1, 3, 3) in fp32."""
    of_taps, of_inside = sums.float().mT.contiguous().unflatten(-1, (1, 3, 3))
    return of_taps, of_inside
