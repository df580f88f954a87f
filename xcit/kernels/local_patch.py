"""Local patch interaction (LPI): in C++ for fp32 tokens on an x86 CPU, elsewhere as a sequence of operations.

The C++ kernels compute in fp32 even under autocast, which is faster than torch's convolutions in bf16.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .batchnorm import update_running_statistics, uses_batch_statistics
from .cpu.local_patch import (
    fits,
    folded_local_patch,
    gelu_affine_depthwise,
    local_patch_backward,
    norm_depthwise_statistics,
)
from .depthwise import (
    Grid,
    as_map,
    as_tokens,
    gelu_batchnorm_depthwise,
    gelu_batchnorm_depthwise_backward,
    norm_depthwise,
    norm_depthwise_backward,
    scale_convolution,
)
from .dispatch import backend_for, compute_dtype
from .matmul import convolution

Gradients = tuple[Tensor | None, ...]


def add_local_patch(
    x: Tensor,
    norm: nn.LayerNorm,
    first: nn.Conv2d,
    bn: nn.Module,
    second: nn.Conv2d,
    scale: Tensor,
    grid: Grid,
    keep_scale: Tensor | None = None,
) -> Tensor:
    """x + keep_scale · scale · second(bn(gelu(first(norm(x))))) over the grid, (B, N, C) → (B, N, C).

    Saves x and the output of the first convolution.

    keep_scale: the factor of stochastic depth for each image's branch, (B,), 0 or 1 / (1 - rate); None for 1.
    """
    parameters = [parameter for part in (norm, first, bn, second) for parameter in part.parameters()]
    backend = backend_for("local_patch", x, keep_scale, scale, *parameters)
    on_cpu = backend == "cpu" and fits(x, grid, keep_scale, scale, *parameters)
    if on_cpu and uses_batch_statistics(bn, x):
        return add_local_patch_on_cpu(x, norm, first, bn, second, scale, grid, keep_scale)
    branch = gelu_batchnorm_depthwise(norm_depthwise(x, norm, first, grid), bn, second, scale, grid)
    return x + (branch if keep_scale is None else branch * keep_scale[:, None, None].to(branch.dtype))


def add_local_patch_on_cpu(
    x: Tensor,
    norm: nn.LayerNorm,
    first: nn.Conv2d,
    bn: nn.BatchNorm2d,
    second: nn.Conv2d,
    scale: Tensor,
    grid: Grid,
    keep_scale: Tensor | None,
) -> Tensor:
    assert first.bias is not None
    inputs = x, norm.weight, norm.bias, norm.eps, first.weight, first.bias
    # The first convolution, and the statistics of its GELU for the BatchNorm.
    with torch.no_grad():
        convolved, mean, rstd, bn_mean, bn_var = norm_depthwise_statistics(*inputs, grid)
    update_running_statistics(bn, bn_mean, bn_var, x.shape[:2].numel())
    # The rest of the branch, as a function with gradients for the whole branch.
    parameters = norm.weight, norm.bias, first.weight, first.bias, bn.weight, bn.bias
    saved = convolved, mean, rstd, bn_mean, (bn_var + bn.eps).rsqrt()
    return LocalPatch.apply(x, *parameters, *scale_convolution(second, scale), *saved, keep_scale, grid)


class LocalPatch(torch.autograd.Function):
    """LPI in C++. convolved and the statistics are functions of x, which the gradient of x takes into account."""

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
        keep_scale: Tensor | None,
        grid: Grid,
    ) -> Tensor:
        norm = x, mean, rstd, scale, shift, first
        ctx.save_for_backward(keep_scale, *norm, convolved, bn_mean, bn_rstd, bn_scale, bn_shift, second)
        ctx.grid = grid
        slope = bn_scale * bn_rstd
        affine = slope, bn_shift - bn_mean * slope
        return gelu_affine_depthwise(convolved, *affine, second, second_bias, x, keep_scale, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        keep_scale, *saved = ctx.saved_tensors
        # Check again: the gradient's dtype may differ from x's, and hooks may replace saved tensors.
        on_cpu = backend_for("local_patch", grad, keep_scale, *saved) == "cpu"
        backward: Callable[..., Gradients] = local_patch_backward if on_cpu else torch_backward
        return *backward(grad, keep_scale, *saved, ctx.grid), *[None] * 7


def torch_backward(
    grad: Tensor,
    keep_scale: Tensor | None,
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
    """The gradients of x; of the norm's scale and shift and the first convolution's weight and bias; of bn's scale and
    shift and the second convolution's weight and bias.
    """
    grad_branch = grad if keep_scale is None else grad * keep_scale[:, None, None]
    bn = bn_mean, bn_rstd, bn_scale, bn_shift, second
    grad_convolved, *grad_second = gelu_batchnorm_depthwise_backward(grad_branch, convolved, *bn, 0.0, grid)
    mean, rstd = mean[..., None], rstd[..., None]
    norm = torch.addcmul(shift, (x - mean) * rstd, scale), mean, rstd, scale, shift, first
    return *norm_depthwise_backward(grad_convolved, grad, x, *norm, grid), *grad_second


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
    """t + second convolution of (slope · gelu(first convolution of norm(t)) + shift), where t = x + branch.

    (B, N, C), (B, N, C) → (B, N, C), without a graph. first, second: weight (C, 1, 3, 3) and bias (C,).
    """
    parameters = norm.weight, norm.bias, *first, slope, shift, *second
    if backend_for("folded_local_patch", x, *parameters) == "cpu" and fits(x, grid, None, *parameters):
        inputs = x, branch.to(x.dtype), norm.weight, norm.bias, norm.eps
        return folded_local_patch(*inputs, *first, slope, shift, *second, grid)
    x = x + branch
    dtype = compute_dtype(x)
    if backend_for("folded_local_patch", x) == "triton":
        from .triton.local_patch import folded_local_patch as triton_folded

        return x + triton_folded(x, norm, first, slope, shift, second, grid, dtype)
    (weight, bias), (second_weight, second_bias) = first, second
    normed = as_map(norm(x).to(dtype), grid)
    activated = convolution(normed, weight.to(dtype), bias.to(dtype), stride=1, gelu=True)
    normed = torch.addcmul(shift.to(dtype), as_tokens(activated), slope.to(dtype))
    convolved = convolution(as_map(normed, grid), second_weight.to(dtype), second_bias.to(dtype), stride=1, gelu=False)
    return x + as_tokens(convolved)
