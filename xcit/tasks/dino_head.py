"""DINO's projection head: from a backbone's features to scores of prototypes (arXiv 2104.14294, section 3.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DinoHead(nn.Module):
    """Three linear layers to a bottleneck, L2 normalization, and a weight-normalized linear layer without bias.

    Args:
        dim: Features of the backbone, C.
        out_dim: Number of prototypes, K. With 0 there is no last layer, and the result is the normalized bottleneck.
        hidden_dim: Width of the two hidden layers.
        bottleneck_dim: Width of the bottleneck, D.
        batch_norm: Whether each hidden layer is followed by BatchNorm.
        norm_last_layer: Whether the prototypes keep length 1. Otherwise each one learns its length.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width_out in ((dim, hidden_dim), (hidden_dim, hidden_dim)):
            norm = [nn.BatchNorm1d(width_out)] if batch_norm else []
            layers += [nn.Linear(width_in, width_out, bias=not batch_norm), *norm, nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.empty(out_dim, bottleneck_dim)) if out_dim else None
        self.length = nn.Parameter(torch.ones(out_dim, 1), requires_grad=not norm_last_layer) if out_dim else None
        if self.prototypes is not None:
            nn.init.kaiming_uniform_(self.prototypes, a=5**0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(…, C) → scores, (…, K), fp32; without a last layer vectors of length 1, (…, D), fp32."""
        flat = self.mlp(features.flatten(0, -2))  # BatchNorm wants (N, C)
        x = F.normalize(flat.float(), dim=-1).unflatten(0, features.shape[:-1])
        if self.prototypes is None or self.length is None:
            return x
        return F.linear(x, self.length * F.normalize(self.prototypes, dim=-1)).float()

    def last_layer(self) -> list[nn.Parameter]:
        """The parameters of the last layer."""
        return [parameter for parameter in (self.prototypes, self.length) if parameter is not None]

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parameters that do not decay. The lengths are a vector, though they have two dimensions."""
        return {"length"}
