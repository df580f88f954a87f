"""The feed-forward network (FFN)."""

from torch import Tensor, nn


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, applied to each token. Input and output: (B, N, C)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))
