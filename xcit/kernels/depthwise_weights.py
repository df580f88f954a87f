"""The weights of a 3 × 3 convolution of each channel by itself and their gradients, whatever convolves."""

from torch import Tensor, nn


def scaled(conv: nn.Conv2d, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of scale · conv. Their gradients have the strides that DDP wants."""
    assert conv.bias is not None
    return (scale[:, None] * conv.weight.flatten(1)).view_as(conv.weight), scale * conv.bias


def of_parameters(
    of_taps: Tensor, of_inside: Tensor, weight: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of scale, shift, weight and bias, where y = convolution of scale · x̂ + shift.

    of_taps, of_inside: the sums of y's gradient · x̂ and of y's gradient alone, over the places whose tap is within the
    map. They and weight: (C, 1, 3, 3).
    """
    of_weight = scale[:, None, None, None] * of_taps + shift[:, None, None, None] * of_inside
    of_scale, of_shift = ((weight * sums).sum((1, 2, 3)) for sums in (of_taps, of_inside))
    return of_scale, of_shift, of_weight, of_inside[:, 0, 1, 1].contiguous()
