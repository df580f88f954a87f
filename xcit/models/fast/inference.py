"""A copy of a model for inference: LayerScale and BatchNorm are folded into the weights before them."""

from collections.abc import Callable
from copy import deepcopy
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...kernels import (
    BATCHNORMS,
    add_folded_local_patch,
    attend,
    attend_by_covariance,
    by_onednn,
    compute_dtype,
    convolution,
    is_cheaper,
    is_unmodified,
    pack_weight,
    product,
)
from ..layer import XCiTLayer
from ..patch_embed import ConvPatchEmbed
from ..position import LearnedPositionEncoding, SinePositionEncoding
from ..xcit import XCiT
from .derived import CachesDerived
from .training import FastConvPatchEmbed, FastXCiTLayer, channels_last, is_scripting, is_whole, plain

Grid = tuple[int, int]

AFFINE_IN_EVALUATION = (nn.BatchNorm2d, nn.SyncBatchNorm)
"""The BatchNorm classes that can be folded. A class derived from them may compute something else."""


def fuse_for_inference(model: nn.Module) -> XCiT:
    """A copy of an XCiT for faster inference, in evaluation mode. Its outputs are the model's within rounding.

    LayerScale and the stem's BatchNorm are folded into the weights before them, each GELU runs inside the matrix
    product before it, weights are packed once in the layout of the CPU's library, and the position encoding of the last
    grid is cached.

    The copy has the model's parameters and state dict. The folded tensors are computed at the first call, and again
    after a parameter was changed, moved or cast. Writes through `.data` are not detected. The folded tensors take half
    as much memory as the parameters, or as much as the parameters on x86 CPUs, for each dtype that the model computes
    in.

    The copy gives no gradients in evaluation mode. Its layers run without folding in training mode, under
    torch.compile, torch.export, torch.jit.trace and torch.func, and under a FLOP counter or with hooks on submodules.
    Layers of the paper's ablation, and layers with a part that was replaced, are never folded.

    Raises:
        InputError: the model is not an XCiT.
    """
    if not isinstance(model, XCiT):
        raise InputError(f"fuse_for_inference: must be given an XCiT, not a {type(model).__name__}")
    copy = deepcopy(model).eval().requires_grad_(False)
    for part in copy.modules():
        fold(part)
    return copy


def ready_for_inference(model: nn.Module) -> nn.Module:
    """The folded copy of an XCiT; any other model unchanged."""
    return fuse_for_inference(model) if isinstance(model, XCiT) else model


def fold(part: nn.Module) -> nn.Module:
    """Switch a layer, a stem or a position encoding to its folded form, in place, if it has one. Returns the part."""
    folded = FOLDED.get(type(part))
    if folded is not None and can_be_folded(part):
        part.__class__ = folded
    return part


def can_be_folded(part: nn.Module) -> bool:
    """Whether no submodule was replaced, and all BatchNorms have statistics that can be folded."""
    if isinstance(part, (SinePositionEncoding, LearnedPositionEncoding)):
        return True
    norms = [inner for inner in part.modules() if isinstance(inner, BATCHNORMS)]
    affine = all(type(norm) in AFFINE_IN_EVALUATION and norm.affine and norm.running_mean is not None for norm in norms)
    return affine and is_unmodified(part) and (not isinstance(part, XCiTLayer) or is_whole(part))


class FoldedLinear:
    """x → scale · layer(x), then a GELU if `gelu`. (…, I) → (…, O), in `dtype`.

    The weight is packed in oneDNN's layout where oneDNN runs. Elsewhere it is a tensor: the layer's own weight if there
    is no scale and the dtype is the same.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype, scale: Tensor | None = None, gelu: bool = False) -> None:
        self.layer, self.dtype, self.scale, self.gelu = layer, dtype, scale, gelu
        self.bias = (layer.bias if scale is None else scale * layer.bias).detach().to(dtype)

    @cached_property
    def weight(self) -> Tensor:
        return self.compute_weight()

    @cached_property
    def packed_weight(self) -> Tensor:
        return pack_weight(self.compute_weight())

    def compute_weight(self) -> Tensor:
        weight = self.layer.weight.detach()
        return (weight if self.scale is None else self.scale[:, None] * weight).to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        return product(x, self.packed_weight if by_onednn(x) else self.weight, self.bias, self.gelu)


class LayerWeights(NamedTuple):
    """The folded tensors of an XCiT layer."""

    qkv: FoldedLinear
    proj: FoldedLinear
    fc1: FoldedLinear
    fc2: FoldedLinear
    slope: Tensor
    shift: Tensor
    conv2_weight: Tensor
    conv2_bias: Tensor


class FoldedXCiTLayer(CachesDerived, FastXCiTLayer):
    """LayerScale is part of `proj`, `conv2` and `fc2`; the LPI's BatchNorm is `slope` · x + `shift`."""

    @torch.jit.unused
    def fast_forward(self, x: Tensor, grid: Grid) -> Tensor:
        weights: LayerWeights | None = self.derived(x, compute_dtype)
        if weights is None:
            return super().fast_forward(x, grid)
        local = self.local_mp
        assert local is not None and local.conv1.bias is not None
        first, second = (local.conv1.weight, local.conv1.bias), (weights.conv2_weight, weights.conv2_bias)
        with torch.no_grad():
            branch = self.attend(self.norm1(x), weights)
            x = add_folded_local_patch(x, branch, self.norm3, first, weights.slope, weights.shift, second, grid)
            x += weights.fc2(weights.fc1(self.norm2(x)))  # in place, because the line before made a new tensor
            return x

    def attend(self, x: Tensor, weights: LayerWeights) -> Tensor:
        attention: Any = self.attn
        temperature, qkv, proj = attention.temperature, weights.qkv, weights.proj
        if is_cheaper(x, attention.heads, training=False):
            return attend_by_covariance(x, temperature, qkv.weight, qkv.bias, proj.weight, proj.bias)
        return proj(attend(qkv(x), temperature))

    def derive(self, key: torch.dtype) -> LayerWeights:
        attention: Any = self.attn
        local, mlp = self.local_mp, self.mlp
        assert local is not None and local.conv2.bias is not None
        # BatchNorm is not folded into conv2, which pads with zeros: BatchNorm would not map them to zeros.
        slope, shift = affine(local.bn)
        return LayerWeights(
            qkv=FoldedLinear(attention.qkv, key),
            proj=FoldedLinear(attention.proj, key, self.gamma1),
            fc1=FoldedLinear(mlp.fc1, key, gelu=True),
            fc2=FoldedLinear(mlp.fc2, key, self.gamma2),
            slope=slope,
            shift=shift,
            conv2_weight=self.gamma3[:, None, None, None] * local.conv2.weight,
            conv2_bias=self.gamma3 * local.conv2.bias,
        )

    def can_derive(self) -> bool:
        return can_be_folded(self)


class FoldedConvPatchEmbed(CachesDerived, FastConvPatchEmbed):
    """Each BatchNorm is part of the convolution before it."""

    @torch.jit.unused
    def fast_forward(self, images: Tensor) -> Tensor:
        x = channels_last(images)
        steps: list[tuple[Tensor, Tensor]] | None = self.derived(x, compute_dtype)
        if steps is None:
            return super().fast_forward(images)
        with torch.no_grad():
            x = x.to(compute_dtype(x))
            for i, (weight, bias) in enumerate(steps):
                x = convolution(x, weight, bias, stride=2, gelu=i < len(steps) - 1)
            return x

    def derive(self, key: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        steps = []
        for conv, bn in (step for step in self.proj if isinstance(step, nn.Sequential)):
            assert isinstance(conv, nn.Conv2d)
            slope, shift = affine(bn)
            steps.append(((slope[:, None, None, None] * conv.weight).to(key), shift.to(key)))
        return steps

    def can_derive(self) -> bool:
        return can_be_folded(self)


class CachedPositions(CachesDerived):
    """A position encoding that caches its last result."""

    plain_forward: ClassVar[Callable[..., Any]]

    def forward(self, grid: Grid) -> Tensor:
        if is_scripting():
            return self.plain_forward(grid)
        return self.cached_forward(grid)

    @torch.jit.unused
    def cached_forward(self, grid: Grid) -> Tensor:
        parameter = next(self.parameters())
        encoding = self.derived(parameter, lambda parameter: (grid, compute_dtype(parameter)))
        return self.plain_forward(grid) if encoding is None else encoding

    def derive(self, key: tuple[Grid, torch.dtype]) -> Tensor:
        assert self.cache is not None
        self.cache.values.clear()  # only one, because images of many sizes would fill the memory
        return self.plain_forward(key[0])


class CachedSinePositions(CachedPositions, SinePositionEncoding):
    plain_forward = plain(SinePositionEncoding.forward)


class CachedLearnedPositions(CachedPositions, LearnedPositionEncoding):
    plain_forward = plain(LearnedPositionEncoding.forward)


def affine(bn: Any) -> tuple[Tensor, Tensor]:
    """BatchNorm in evaluation mode as slope · x + shift."""
    slope = bn.weight * (bn.running_var + bn.eps).rsqrt()
    return slope, bn.bias - bn.running_mean * slope


FOLDED: dict[type[nn.Module], type[CachesDerived]] = {
    XCiTLayer: FoldedXCiTLayer,
    FastXCiTLayer: FoldedXCiTLayer,
    ConvPatchEmbed: FoldedConvPatchEmbed,
    FastConvPatchEmbed: FoldedConvPatchEmbed,
    SinePositionEncoding: CachedSinePositions,
    LearnedPositionEncoding: CachedLearnedPositions,
}
