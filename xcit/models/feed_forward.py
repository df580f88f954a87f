"""The feed-forward network (FFN), and the stochastic depth that every residual branch passes through."""

import torch
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, on each token by itself. Input and output: (B, N, C)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class StochasticDepth(nn.Module):
    """Drop a residual branch for whole samples of a training batch (Huang et al., arXiv 1603.09382).

    Each sample's branch is dropped with probability `rate` and scaled by 1 / (1 - rate) when kept. timm's and
    torchvision's are the same function; it stands here so that the models need torch and nothing else.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(branch.shape[0], *[1] * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * (kept / (1 - self.rate)).to(branch.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"
