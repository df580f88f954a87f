"""The layers in the form that is exported: for inference in fp32, made of operations that other programs run fast."""

from copy import deepcopy

import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels import attend_class
from ..class_attention import ClassAttention
from ..cross_covariance import CrossCovarianceAttention
from ..xcit import XCiT


class ExportedAttention(CrossCovarianceAttention):
    """XCA in one product instead of two after the attention map.

    The map A of each head and the output projection become one C × C matrix M for each image, and the output is V · M.
    So the values stay (B, N, C), and neither they nor the output are transposed, which other programs do by copying.
    """

    def forward(self, x: Tensor) -> Tensor:
        B, _, C = x.shape
        q, k, v = self.qkv(x).split(C, dim=-1)
        q, k = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k))  # (B, heads, N, d)
        if self.l2_norm:
            q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
        scores = q.mT @ k
        if self.temperature is not None:
            scores = scores * self.temperature
        projection = self.proj.weight.mT.unflatten(0, (self.heads, -1))  # (heads, d, C)
        matrix = (scores.softmax(dim=-1).mT @ projection).reshape(B, C, C)
        return v @ matrix + self.proj.bias


class ExportedClassAttention(ClassAttention):
    """Class attention without the keys and values of the patches."""

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend_class(x, self.q, self.k, self.v, self.heads))


FORMS: dict[type[nn.Module], type[nn.Module]] = {
    CrossCovarianceAttention: ExportedAttention,
    ClassAttention: ExportedClassAttention,
}


def exported_form(model: XCiT) -> XCiT:
    """A copy of the model, in evaluation mode, with its attention in the form that is exported."""
    copy = deepcopy(model).eval()
    for part in copy.modules():
        for layer, form in FORMS.items():
            if isinstance(part, layer):
                part.__class__ = form
    return copy
