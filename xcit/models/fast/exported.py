"""The layers in the form that is exported: for inference in fp32, made of operations that other programs run fast."""

from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from ...kernels import attend_class
from ..class_attention import ClassAttention
from ..cross_covariance import CrossCovarianceAttention
from ..layer import XCiTLayer
from ..xcit import XCiT


class ExportedLayer(XCiTLayer):
    """The layer with each LayerScale folded into the weights before it, so that a product can add the residual."""

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if self.attn is not None:
            x = x + self.attn(self.norm1(x))
        if self.local_mp is not None:
            x = x + self.local_mp(self.norm3(x), grid)
        return x + self.mlp(self.norm2(x))

    def fold(self) -> None:
        """Change the weights. To be called once."""
        attention: Any = self.attn
        if attention is not None:
            scale_outputs(attention.proj, self.gamma1)
        if self.local_mp is not None:
            scale_outputs(self.local_mp.conv2, self.gamma3)
        scale_outputs(self.mlp.fc2, self.gamma2)


def scale_outputs(layer: nn.Linear | nn.Conv2d, scale: Tensor) -> None:
    """Multiply each output of a linear layer or convolution with a bias by its scale, (O,), in place."""
    layer.weight *= scale.view(-1, *[1] * (layer.weight.dim() - 1))
    assert layer.bias is not None
    layer.bias *= scale


class ExportedAttention(CrossCovarianceAttention):
    """XCA on (B, heads, N, d) instead of (B, heads, d, N). The other programs cannot transpose as cheaply as torch can.

    The d × d scores are divided by the norms, instead of the queries and keys.
    """

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        scores = q.mT @ k
        if self.l2_norm:
            scores = scores / norms(q)[..., :, None] / norms(k)[..., None, :]
        if self.temperature is not None:
            scores = scores * self.temperature
        attended = v @ scores.softmax(dim=-1).mT
        return self.proj(attended.transpose(1, 2).flatten(2))


def norms(x: Tensor) -> Tensor:
    """The L2 norm of each channel over the tokens, with the smallest value of F.normalize: (…, N, d) → (…, d)."""
    return x.square().sum(dim=-2).sqrt().clamp_min(1e-12)


class ExportedClassAttention(ClassAttention):
    """Class attention without the keys and values of the patches."""

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend_class(x, self.q, self.k, self.v, self.heads))


FORMS: dict[type[nn.Module], type[nn.Module]] = {
    XCiTLayer: ExportedLayer,
    CrossCovarianceAttention: ExportedAttention,
    ClassAttention: ExportedClassAttention,
}


def exported_form(model: XCiT) -> XCiT:
    """A copy of the model for inference, with its layers in the form that is exported."""
    copy = deepcopy(model).eval().requires_grad_(False)
    for part in copy.modules():
        for layer, form in FORMS.items():
            if isinstance(part, layer):
                part.__class__ = form
        if isinstance(part, ExportedLayer):
            part.fold()
    return copy
