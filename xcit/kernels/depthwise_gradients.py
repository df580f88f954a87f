"""The gradients of the parameters of a depthwise convolution and of the norm before it, for all backends."""

from torch import Tensor


def grad_parameters(
    grad_taps: Tensor, grad_inside: Tensor, weight: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of scale, shift, weight and bias of y = convolution of (scale · x̂ + shift).

    grad_taps, grad_inside: for each of the nine taps, the sum of y's gradient · x̂ and the sum of y's gradient, over
    the places where the tap is inside the map. They and weight: (C, 1, 3, 3).
    """
    grad_weight = scale[:, None, None, None] * grad_taps + shift[:, None, None, None] * grad_inside
    grad_scale, grad_shift = ((weight * sums).sum((1, 2, 3)) for sums in (grad_taps, grad_inside))
    return grad_scale, grad_shift, grad_weight, grad_inside[:, 0, 1, 1].contiguous()
