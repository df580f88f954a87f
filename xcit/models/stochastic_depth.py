"""Stochastic depth, which every residual branch of an XCiT layer passes through."""

import torch
from torch import Tensor, nn


class StochasticDepth(nn.Module):
    """Drop a residual branch for whole samples of a training batch (Huang et al., arXiv 1603.09382).

    Each sample's branch is dropped with probability `rate` and scaled by 1 / (1 - rate) when kept. timm's and
    torchvision's are the same function; it stands here so that the models need torch and nothing else.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        shares = self.shares(branch)
        return branch if shares is None else branch * shares.view(-1, *[1] * (branch.ndim - 1))

    def shares(self, branch: Tensor) -> Tensor | None:
        """What each sample's branch is multiplied by, (B,), if by anything."""
        if not self.training or self.rate == 0:
            return None
        kept = torch.rand(branch.shape[0], device=branch.device) >= self.rate
        return (kept / (1 - self.rate)).to(branch.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"
