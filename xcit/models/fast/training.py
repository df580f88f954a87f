"""The layers with fused operations, for training and for inference without folding.

Each class computes what its parent computes, in fewer passes over the tokens, and saves less for the backward pass. It
has the parent's parameters. `runs_fast_form` (xcit/kernels/dispatch.py) decides in each call whether the fused
operations can run; if not, the parent's `forward` runs.
"""

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...kernels import (
    add_local_patch,
    allows_fast_operations,
    attend,
    attend_by_covariance,
    attend_class,
    batchnorm_gelu,
    check_triton_kernels,
    gelu_linear,
    is_cheaper,
    norm_linear,
    parts_of,
    runs_fast_form,
    scaled_linear,
)
from ..class_attention import ClassAttention
from ..cross_covariance import CrossCovarianceAttention
from ..layer import XCiTLayer
from ..patch_embed import ConvPatchEmbed, LinearPatchEmbed

Module = TypeVar("Module", bound=nn.Module)


def fuse_for_training(model: Module) -> Module:
    """Switch every layer that has a fused form to it, in place. Returns the model.

    Only the classes of the layers change: parameters, hooks and names stay. Layers of the paper's ablation and
    subclasses of the layers stay as they are. Call it before you replace parts of a layer: the fused forms rely on the
    parts that the layer was made with.
    """
    part: Any
    for part in model.modules():
        fused = FUSED.get(type(part))
        if fused is not None and has_fused_form(part):
            part.__class__ = fused
            # dispatch.py compares the layer's parts with this record: fused operations must not run after a part was
            # replaced.
            part.original_parts = parts_of(part)
    return model


def has_fused_form(part: nn.Module) -> bool:
    """False for the XCiT layers of the paper's ablation."""
    return not isinstance(part, XCiTLayer) or is_whole(part)


def is_whole(layer: XCiTLayer) -> bool:
    """Whether the layer is the paper's, without changes for the ablation."""
    attention = layer.attn
    whole = isinstance(attention, CrossCovarianceAttention) and attention.l2_norm and attention.temperature is not None
    return whole and layer.local_mp is not None


class FastXCiTLayer(XCiTLayer):
    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if not runs_fast_form(self, x):
            return super().forward(x, grid)
        attention, local, mlp = self.attn, self.local_mp, self.mlp
        assert isinstance(attention, CrossCovarianceAttention) and attention.temperature is not None
        assert local is not None
        # XCA. For many tokens, attention through the covariance of the tokens needs fewer multiplications.
        if is_cheaper(x, attention.heads, training=torch.is_grad_enabled()):
            scaled = self.gamma1[:, None] * attention.proj.weight, self.gamma1 * attention.proj.bias
            linear = attention.qkv.weight, attention.qkv.bias
            branch = attend_by_covariance(self.norm1(x), attention.temperature, *linear, *scaled)
        else:
            x, qkv = norm_linear(x, self.norm1, attention.qkv)
            branch = scaled_linear(attend(qkv, attention.temperature), attention.proj, self.gamma1)
        x = x + self.drop_path(branch)
        # LPI, with its norm, LayerScale, drop path and residual connection.
        scales = self.drop_path.sample_scales(x)
        x = add_local_patch(x, self.norm3, local.conv1, local.bn, local.conv2, self.gamma3, grid, scales)
        # FFN.
        x, hidden = norm_linear(x, self.norm2, mlp.fc1)
        return x + self.drop_path(gelu_linear(hidden, mlp.fc2, self.gamma2))


class FastClassAttention(ClassAttention):
    """Projects the class token's query and the result instead of all keys and values."""

    def forward(self, x: Tensor) -> Tensor:
        if not runs_fast_form(self, x):
            return super().forward(x)
        return self.proj(attend_class(x, self.q, self.k, self.v, self.heads))


class FastConvPatchEmbed(ConvPatchEmbed):
    """Each BatchNorm runs together with the GELU after it."""

    def forward(self, images: Tensor) -> Tensor:
        images = channels_last(images)
        if not runs_fast_form(self, images):
            return super().forward(images)
        *steps, last = [step for step in self.proj if isinstance(step, nn.Sequential)]
        x = images
        for convolution, bn in steps:
            x = batchnorm_gelu(convolution(x), bn)
        return last(x)


class FastLinearPatchEmbed(LinearPatchEmbed):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(channels_last(images))


def channels_last(images: Tensor) -> Tensor:
    """The images in channels-last memory format, if fused operations can run.

    Convolutions are faster then, and the stem's output becomes tokens (B, N, C) without a copy. The first images on a
    GPU also start the self-check of the Triton kernels.
    """
    check_triton_kernels(images)
    return images.contiguous(memory_format=torch.channels_last) if allows_fast_operations(images) else images


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    XCiTLayer: FastXCiTLayer,
    ClassAttention: FastClassAttention,
    ConvPatchEmbed: FastConvPatchEmbed,
    LinearPatchEmbed: FastLinearPatchEmbed,
}
