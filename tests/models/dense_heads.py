"""Maps as of a pyramid, and heads in which every weight changes the output."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcit.models.dense.pyramid import STRIDES

WIDTH = 8


def maps(height: int, width: int, batch: int = 2) -> list[Tensor]:
    """The maps of images whose sides are multiples of 32."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, WIDTH, height // s, width // s, generator=generator) for s in STRIDES]


def with_telling_norms(head: nn.Module) -> nn.Module:
    """The head in evaluation mode, with norms that do something and weights that are not tiny."""
    torch.manual_seed(1)
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return head.eval()


def block(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """ConvBNReLU, from the names of the authors' files."""
    weight = state[f"{name}.conv.weight"]
    x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    mean, var = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
    return F.batch_norm(x, mean, var, state[f"{name}.bn.weight"], state[f"{name}.bn.bias"]).clamp(min=0)


def bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
