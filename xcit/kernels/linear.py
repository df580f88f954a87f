"""Linear layers with a norm or activation before them, or a LayerScale after them.

The backward pass recomputes norms and activations instead of saving their outputs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .dispatch import backend_for, compute_dtype
from .gelu import gelu, gelu_backward
from .layer_norm import layer_norm, layer_norm_backward
from .matmul import grad_bias, grad_input, grad_weight, product

Gradients = tuple[Tensor | None, ...]


def scaled_linear(x: Tensor, layer: nn.Linear, scale: Tensor) -> Tensor:
    """scale · layer(x), (…, I) → (…, O). The scale multiplies the weight, so nothing is saved for it."""
    return Linear.apply(x, scale[:, None] * layer.weight, scale * layer.bias, compute_dtype(x))


def gelu_linear(x: Tensor, layer: nn.Linear, scale: Tensor) -> Tensor:
    """scale · layer(gelu(x)), (…, I) → (…, O). Saves x alone."""
    return GELULinear.apply(x, scale[:, None] * layer.weight, scale * layer.bias, compute_dtype(x))


def norm_linear(x: Tensor, norm: nn.LayerNorm, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """x and layer(norm(x)), (…, C) → (…, C), (…, O). Saves x alone.

    Use the returned x for the residual connection, and do not change it in place. The backward pass then adds the
    gradient of the residual connection while it computes that of the norm.
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
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        grad = grad.to(x.dtype).contiguous()
        grad_x = grad_input(grad, weight) if ctx.needs_input_grad[0] else None
        return grad_x, *parameter_gradients(ctx, 1, grad, x), None


class GELULinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
        x, weight = x.to(dtype), weight.to(dtype)
        ctx.save_for_backward(x, weight)
        ctx.backend = backend_for("gelu_backward", x)
        return product(gelu(x), weight, bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, weight = ctx.saved_tensors
        grad = grad.to(x.dtype).contiguous()
        if ctx.needs_input_grad[0]:
            activated, grad_x = gelu_backward(x, grad_input(grad, weight), ctx.backend)
        else:
            activated, grad_x = gelu(x), None
        return grad_x, *parameter_gradients(ctx, 1, grad, activated), None


class NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, scale, shift, weight)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.dtype, ctx.backend = eps, dtype, backend_for("layer_norm", x)
        normed, *_ = layer_norm(x, scale, shift, eps, dtype, ctx.backend)
        return x, product(normed, weight.to(dtype), bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, residual: Tensor | None, grad: Tensor | None) -> Gradients:
        if grad is None:  # the product was not used
            return residual, *[None] * 6
        x, scale, shift, weight = ctx.saved_tensors
        grad = grad.contiguous()
        # The parameters of the linear layer.
        normed, mean, rstd = layer_norm(x, scale, shift, ctx.eps, ctx.dtype, ctx.backend)
        grad_parameters = parameter_gradients(ctx, 3, grad, normed)
        del normed
        # The input, and the parameters of the norm.
        grad_norm: Gradients = (None, None, None)
        if any(ctx.needs_input_grad[:3]):
            grad_normed = grad_input(grad, weight.to(ctx.dtype))
            needed = list(ctx.needs_input_grad[:3])
            grad_norm = layer_norm_backward(grad_normed, x, mean, rstd, scale, shift, residual, needed, ctx.backend)
        return *grad_norm, *grad_parameters, None, None


def parameter_gradients(ctx: Any, index: int, grad: Tensor, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the weight, input number `index`, and of the bias, the input after it, if they are needed."""
    weight, bias = ctx.needs_input_grad[index : index + 2]
    return grad_weight(grad, x) if weight else None, grad_bias(grad) if bias else None
