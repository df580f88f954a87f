"""The initial values of linear layers, of the class token and of learned positions."""

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


def truncated_normal(tensor: Tensor) -> Tensor:
    """Fill the tensor, in place, with a normal distribution of std 0.02 that is cut off at -2 and 2.

    The fake tensors of FakeTensorMode have no values, which PyTorch's function would ask for.
    """
    return tensor if isinstance(tensor, FakeTensor) else nn.init.trunc_normal_(tensor, std=0.02)


def initialize_linear(layer: nn.Linear) -> None:
    truncated_normal(layer.weight)
    nn.init.zeros_(layer.bias)
