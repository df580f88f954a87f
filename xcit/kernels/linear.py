"""Linear layers with the norm or the activation before them, which is computed again instead of being kept."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .cpu.library import gelu_pass
from .dispatch import by_triton_uncompiled
from .gelu import gelu_backward
from .layer_norm import layer_norm, layer_norm_backward
from .matmul import bias_gradient, input_gradient, product, weight_gradient
from .precision import compute_dtype

Gradients = tuple[Tensor | None, ...]


def scaled_linear(x: Tensor, layer: nn.Linear, scale: Tensor) -> Tensor:
    """scale · layer(x), (…, I) → (…, O). The scale goes with the weight: no pass over the tokens, nothing to keep."""
    return Linear.apply(x, scale[:, None] * layer.weight, scale * layer.bias, compute_dtype(x))


def gelu_linear(x: Tensor, layer: nn.Linear, scale: Tensor) -> Tensor:
    """scale · layer(gelu(x)), (…, I) → (…, O). Keeps x alone."""
    return GELULinear.apply(x, scale[:, None] * layer.weight, scale * layer.bias, compute_dtype(x))


def norm_linear(x: Tensor, norm: nn.LayerNorm, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """x and layer(norm(x)), (…, C) → (…, C), (…, O). Keeps x alone.

    What else is done with x is better done with the x returned, though not in place: its gradient is added in the pass
    of the norm's.
    """
    return NormLinear.apply(x, norm.weight, norm.bias, layer.weight, layer.bias, norm.eps, compute_dtype(x))


class Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        gradient = gradient.to(x.dtype).contiguous()
        return of_input(ctx, gradient, weight), *of_weight_and_bias(ctx, 1, gradient, x), None


class GELULinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.by_triton = by_triton_uncompiled(x)
        return product(gelu_pass(x), weight, bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        gradient = gradient.to(x.dtype).contiguous()
        of_activated = of_input(ctx, gradient, weight)
        if of_activated is None:
            activated, of_x = gelu_pass(x), None
        else:
            activated, of_x = gelu_backward(x, of_activated, ctx.by_triton)
        return of_x, *of_weight_and_bias(ctx, 1, gradient, activated), None


class NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, scale, shift, weight)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.dtype, ctx.by_triton = eps, dtype, by_triton_uncompiled(x)
        normed, *_ = layer_norm(x, scale, shift, eps, dtype, ctx.by_triton)
        return x, product(normed, weight.to(dtype), bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, residual: Tensor | None, gradient: Tensor | None) -> Gradients:
        if gradient is None:
            return residual, *[None] * 6
        x, scale, shift, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        normed, mean, rstd = layer_norm(x, scale, shift, ctx.eps, ctx.dtype, ctx.by_triton)
        weight_and_bias = of_weight_and_bias(ctx, 3, gradient, normed)
        del normed
        of_norm: Gradients = (None, None, None)
        if any(ctx.needs_input_grad[:3]):
            of_normed = input_gradient(gradient, weight.to(ctx.dtype))
            wanted = list(ctx.needs_input_grad[:3])
            of_norm = layer_norm_backward(of_normed, x, mean, rstd, scale, shift, residual, wanted, ctx.by_triton)
        return *of_norm, *weight_and_bias, None, None


def of_input(ctx: Any, gradient: Tensor, weight: Tensor) -> Tensor | None:
    return input_gradient(gradient, weight) if ctx.needs_input_grad[0] else None


def of_weight_and_bias(ctx: Any, place: int, gradient: Tensor, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """place: where the weight stands among the inputs; the bias follows it."""
    weight, bias = ctx.needs_input_grad[place : place + 2]
    return (
        weight_gradient(gradient, x) if weight else None,
        bias_gradient(gradient) if bias else None,
    )
