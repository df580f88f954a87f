"""Local patch interaction (LPI): convolutions that exchange information between neighboring patches."""

from torch import Tensor, nn


class LocalPatchInteraction(nn.Module):
    """Two depthwise 3 × 3 convolutions over the token grid (paper, section 3.3).

    XCA mixes tokens only through their covariance; LPI adds the exchange between neighbors. The order is convolution,
    GELU, BatchNorm, convolution, as in the published weights.

    Input and output: (B, N, C) with N = H · W, the tokens in row-major order of the grid (H, W).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.act = nn.GELU()
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x.mT.unflatten(-1, grid)  # (B, C, H, W)
        x = self.conv2(self.bn(self.act(self.conv1(x))))
        return x.flatten(2).mT
