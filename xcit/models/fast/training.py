"""The layers with fused operations, for training and for inference without folding.

Each class computes what its parent computes, in fewer passes over the tokens, and saves less for the backward pass. It
has the parent's parameters. `runs_fast_form` (xcit/kernels/dispatch.py) decides in each call whether the fused
operations can run; if not, the parent's `forward` runs, which is here named `plain_forward`: see `plain`.
"""

from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._jit_internal import is_scripting as is_scripting

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

    Only the classes of the layers change: parameters, hooks and names stay. Layers of the paper's ablation, layers with
    dropout and subclasses of the layers stay as they are. Call it before you replace parts of a layer: the fused forms
    rely on the parts that the layer was made with.
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
    """False for the XCiT layers of the paper's ablation, and for layers with dropout."""
    return not has_dropout(part) and (not isinstance(part, XCiTLayer) or is_whole(part))


def has_dropout(part: nn.Module) -> bool:
    return any(getattr(inner, key, 0) for inner in part.modules() for key in ("attn_drop_rate", "proj_drop_rate"))


def is_whole(layer: XCiTLayer) -> bool:
    """Whether the layer is the paper's, without changes for the ablation."""
    attention = layer.attn
    whole = isinstance(attention, CrossCovarianceAttention) and attention.l2_norm and attention.temperature is not None
    return whole and layer.local_mp is not None


def plain(forward: Any) -> Any:
    """A copy of a plain layer's `forward` with the name plain_forward, for the fast form of the layer.

    TorchScript knows no `super()`, and compiles a method under the name of its function. So each fast form has the
    plain one as a second method, which its `forward` calls where `is_scripting()` is true.
    """
    copy = FunctionType(forward.__code__, forward.__globals__, "plain_forward", forward.__defaults__)
    copy.__annotations__ = forward.__annotations__
    return copy


class FastXCiTLayer(XCiTLayer):
    plain_forward = plain(XCiTLayer.forward)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if is_scripting():
            return self.plain_forward(x, grid)
        return self.fast_forward(x, grid)

    @torch.jit.unused
    def fast_forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        if not runs_fast_form(self, x):
            return self.plain_forward(x, grid)
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

    plain_forward = plain(ClassAttention.forward)

    def forward(self, x: Tensor) -> Tensor:
        if is_scripting():
            return self.plain_forward(x)
        return self.fast_forward(x)

    @torch.jit.unused
    def fast_forward(self, x: Tensor) -> Tensor:
        if not runs_fast_form(self, x):
            return self.plain_forward(x)
        return self.proj(attend_class(x, self.q, self.k, self.v, self.heads))


class FastConvPatchEmbed(ConvPatchEmbed):
    """Each BatchNorm runs together with the GELU after it."""

    plain_forward = plain(ConvPatchEmbed.forward)

    def forward(self, images: Tensor) -> Tensor:
        if is_scripting():
            return self.plain_forward(images)
        return self.fast_forward(images)

    @torch.jit.unused
    def fast_forward(self, images: Tensor) -> Tensor:
        images = channels_last(images)
        if not runs_fast_form(self, images):
            return self.plain_forward(images)
        *steps, last = [step for step in self.proj if isinstance(step, nn.Sequential)]
        x = images
        for convolution, bn in steps:
            x = batchnorm_gelu(convolution(x), bn)
        return last(x)


class FastLinearPatchEmbed(LinearPatchEmbed):
    plain_forward = plain(LinearPatchEmbed.forward)

    def forward(self, images: Tensor) -> Tensor:
        if is_scripting():
            return self.plain_forward(images)
        return self.plain_forward(channels_last(images))


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
