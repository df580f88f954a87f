"""The feed-forward network (FFN)."""

import torch.nn.functional as F
from torch import Tensor, nn


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, applied to each token. Input and output: (B, N, C).

    proj_drop_rate: dropout after the GELU and after the second layer.
    """

    def __init__(self, dim: int, hidden_dim: int, proj_drop_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.proj_drop_rate = float(proj_drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.dropout(self.act(self.fc1(x)), self.proj_drop_rate, self.training)
        return F.dropout(self.fc2(hidden), self.proj_drop_rate, self.training)
