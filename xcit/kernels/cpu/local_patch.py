"""Local patch interaction in C++ (local_patch.cpp). ../local_patch.py calls these functions.

Maps are tokens (B, N, C) of the grid (H, W); weights are (C, 1, 3, 3).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..depthwise_gradients import grad_parameters
from .library import TILE, call_dense, custom_op


def fits(x: Tensor, grid: Sequence[int], keep_scale: Tensor | None, *parameters: Tensor) -> bool:
    """Whether the kernels accept tensors of these shapes. They copy tensors that are not contiguous."""
    B, N, C = x.shape
    if grid[0] * grid[1] != N or C % TILE or (keep_scale is not None and keep_scale.shape != (B,)):
        return False
    return all(parameter.shape in ((C,), (C, 1, 3, 3)) for parameter in parameters)


def norm_depthwise_statistics_fake(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, weight: Tensor, bias: Tensor, grid: Sequence[int]
) -> tuple[Tensor, ...]:
    mean, rstd = (x.new_empty(x.shape[:2]) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd, torch.empty_like(scale), torch.empty_like(scale)


@custom_op("xcit::norm_depthwise_statistics", norm_depthwise_statistics_fake)
def norm_depthwise_statistics(
    x: Tensor, scale: Tensor, shift: Tensor, eps: float, weight: Tensor, bias: Tensor, grid: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, the convolution of the norm of x; the mean and rstd of each token, (B, N); the mean and biased variance of
    each channel of gelu(y), (C,).
    """
    B, N, C = x.shape
    y, mean, rstd = x.new_empty(x.shape), x.new_empty(B, N), x.new_empty(B, N)
    sums = x.new_empty(2, C, dtype=torch.float64)
    call_dense("norm_depthwise", x, scale, shift, eps, weight, bias, y, mean, rstd, sums, B, *grid, C)
    gelu_mean, gelu_squares = sums / (B * N)
    gelu_var = (gelu_squares - gelu_mean.square()).clamp_min_(0)
    return y, mean, rstd, gelu_mean.float(), gelu_var.float()


def first_argument_fake(x: Tensor, *others: object) -> Tensor:
    return x.new_empty(x.shape)


@custom_op("xcit::gelu_affine_depthwise", first_argument_fake)
def gelu_affine_depthwise(
    a: Tensor,
    slope: Tensor,
    shift: Tensor,
    weight: Tensor,
    bias: Tensor,
    x: Tensor,
    keep_scale: Tensor | None,
    grid: Sequence[int],
) -> Tensor:
    """x + keep_scale · convolution of (slope · gelu(a) + shift). keep_scale: (B,)."""
    B, _, C = a.shape
    y = a.new_empty(a.shape)
    call_dense("gelu_affine_depthwise", a, slope, shift, weight, bias, x, keep_scale, y, B, *grid, C)
    return y


def local_patch_backward_fake(
    grad: Tensor,
    keep_scale: Tensor | None,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor,
    shift: Tensor,
    first: Tensor,
    *others: object,
) -> tuple[Tensor, ...]:
    affine_and_convolution = scale, shift, first, shift
    return tuple(t.new_empty(t.shape) for t in (x, *affine_and_convolution, *affine_and_convolution))


@custom_op("xcit::local_patch_backward", local_patch_backward_fake)
def local_patch_backward(
    grad: Tensor,
    keep_scale: Tensor | None,
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
    """See `torch_backward` in ../local_patch.py."""
    B, N, C = x.shape
    grad_x, sums = x.new_empty(x.shape), x.new_empty(2, 9, C, dtype=torch.float64)
    # The second convolution and the BatchNorm before it.
    call_dense("gelu_affine_sums", grad, keep_scale, a, bn_mean, bn_rstd, sums, B, *grid, C)
    grad_second = grad_parameters(*by_channel(sums), second, bn_scale, bn_shift)
    mean_grad_hat, mean_grad = (total / (B * N) for total in grad_second[:2])
    # Everything before it, down to x, and the first convolution.
    norm = x, mean, rstd, scale, first
    bn = a, bn_mean, bn_rstd, bn_scale, mean_grad, mean_grad_hat, second
    call_dense("local_patch_backward", grad, keep_scale, *norm, *bn, grad_x, sums, B, *grid, C)
    grad_first = grad_parameters(*by_channel(sums), first, scale, shift)
    return grad_x, *grad_first, *grad_second


@custom_op("xcit::folded_local_patch", first_argument_fake)
def folded_local_patch(
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
    """t + second convolution of (slope · gelu(first convolution of the norm of t) + bn_shift), where t = x + branch."""
    B, _, C = x.shape
    y = x.new_empty(x.shape)
    first, second = (first_weight, first_bias), (second_weight, second_bias)
    call_dense("local_patch", x, branch, scale, shift, eps, *first, slope, bn_shift, *second, y, B, *grid, C)
    return y


def by_channel(sums: Tensor) -> tuple[Tensor, Tensor]:
    """(2, 9, C) in fp64 → two of (C, 1, 3, 3) in fp32."""
    grad_taps, grad_inside = sums.float().mT.contiguous().unflatten(-1, (1, 3, 3))
    return grad_taps, grad_inside
