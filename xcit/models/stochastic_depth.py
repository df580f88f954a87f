"""Stochastic depth (drop path): every residual branch of an XCiT layer passes through it."""

import torch
from torch import Tensor, nn

RATES = ("rate", "attn_drop_rate", "proj_drop_rate", "p", "drop_prob")
"""The attributes with rates of our modules, of torch's Dropout and of timm's DropPath."""


class StochasticDepth(nn.Module):
    """Drop a residual branch for whole samples of a training batch (Huang et al., arXiv 1603.09382).

    Each sample's branch is dropped with probability `rate`, and multiplied by 1 / (1 - rate) if it is kept. timm and
    torchvision have the same function; this one exists so that the models need torch alone.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = float(rate)

    def forward(self, branch: Tensor) -> Tensor:
        scales = self.sample_scales(branch)
        return branch if scales is None else branch * scales.view([-1] + [1] * (branch.ndim - 1))

    def sample_scales(self, branch: Tensor) -> Tensor | None:
        """The factor of each sample's branch, (B,): 0 or 1 / (1 - rate). None if nothing is dropped."""
        if not self.training or self.rate == 0:
            return None
        return draw_scales(branch, self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


@torch.fx.wrap  # torch.fx calls it as a whole: torch.rand cannot be traced with an unknown batch size
def draw_scales(branch: Tensor, rate: float) -> Tensor:
    kept = torch.rand(branch.shape[0], device=branch.device) >= rate
    return (kept / (1 - rate)).to(branch.dtype)


def switch_off_dropout(module: nn.Module) -> None:
    """Set the rates of dropout and stochastic depth to 0, in place; in timm's layers, too."""
    for part in module.modules():
        for name in RATES:
            if isinstance(vars(part).get(name), float):
                setattr(part, name, 0.0)
