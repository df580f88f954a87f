"""A copy of a model for inference: what follows a product or a convolution is folded into its weights."""

from copy import deepcopy
from typing import Any

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
    is_watched,
    packed,
    product,
    untouched,
)
from ..cross_covariance import CrossCovarianceAttention
from ..layer import XCiTLayer
from ..patch_embed import ConvPatchEmbed
from ..xcit import XCiT

Grid = tuple[int, int]

AFFINE_IN_EVALUATION = (nn.BatchNorm2d, nn.SyncBatchNorm)
"""BatchNorms that are known to do no more than that; what is derived from them may do more."""


def fuse_for_inference(model: nn.Module) -> XCiT:
    """A copy of an XCiT that infers faster, in evaluation mode; its outputs are the model's within rounding.

    LayerScale and the stem's BatchNorm go into the weights before them, GELUs into the products, weights are laid out
    once as the CPU's library wants them, and the positions of the last grid are kept. The copy gives no gradients and
    its state dict is its own: keep the model to train or to save. What is written to its weights by way of `.data` it
    does not see. Under autocast it computes in the type asked for.

    Layers of the paper's ablation stay as they are, and those with a part that is not the one they were made with.

    Raises:
        InputError: the model is not an XCiT.
    """
    if not isinstance(model, XCiT):
        raise InputError(f"fuse_for_inference: must be given an XCiT, not a {type(model).__name__}")
    copy = deepcopy(model).eval().requires_grad_(False)
    if isinstance(copy.patch_embed, ConvPatchEmbed) and can_be_folded(copy.patch_embed):
        copy.patch_embed = FusedPatchEmbed(copy.patch_embed)
    if not any(is_watched(part) for part in copy.pos_embed.modules()):
        copy.pos_embed = KeptPositions(copy.pos_embed)
    for i, layer in enumerate(copy.blocks):
        if isinstance(layer, XCiTLayer) and can_be_folded(layer):
            copy.blocks[i] = FusedLayer(layer)
    return copy


def can_be_folded(part: nn.Module) -> bool:
    """Whether it is a layer or a stem as they are made, with statistics in its BatchNorms, that nobody listens to."""
    known = untouched(part) and (part.is_whole if isinstance(part, XCiTLayer) else type(part) is ConvPatchEmbed)
    norms = [inner for inner in part.modules() if isinstance(inner, BATCHNORMS)]
    ordinary = all(type(norm) in AFFINE_IN_EVALUATION and norm.affine for norm in norms)
    return known and ordinary and not is_watched(part) and all(norm.running_mean is not None for norm in norms)


def ready_for_inference(model: nn.Module) -> nn.Module:
    """The folded copy of an XCiT; any other model itself."""
    return fuse_for_inference(model) if isinstance(model, XCiT) else model


class FusedLayer(nn.Module):
    """An `XCiTLayer` in evaluation mode. Input and output: (B, N, C), the tokens of the grid in row-major order."""

    def __init__(self, layer: XCiTLayer) -> None:
        super().__init__()
        attention, local, mlp = layer.attn, layer.local_mp, layer.mlp
        assert isinstance(attention, CrossCovarianceAttention) and attention.temperature is not None and local
        self.norm1, self.norm2, self.norm3 = layer.norm1, layer.norm2, layer.norm3
        self.qkv, self.temperature = FusedLinear(attention.qkv), attention.temperature
        self.proj = FusedLinear(attention.proj, layer.gamma1)
        self.conv1 = FusedConv(local.conv1)
        # Not folded into the convolution after it: that pads with zeros, and BatchNorm would not make them zeros.
        slope, shift = affine(local.bn)
        self.slope, self.shift = constant(slope), constant(shift)
        self.conv2 = FusedConv(local.conv2, slope=layer.gamma3)
        self.fc1, self.fc2 = FusedLinear(mlp.fc1, gelu=True), FusedLinear(mlp.fc2, layer.gamma2)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        with torch.no_grad():
            x = self.add_local_patch(x, self.attention(self.norm1(x)), grid)  # a tensor of our own
            x += self.fc2(self.fc1(self.norm2(x)))
            return x

    def add_local_patch(self, x: Tensor, branch: Tensor, grid: Grid) -> Tensor:
        first, second = (self.conv1.weight, self.conv1.bias), (self.conv2.weight, self.conv2.bias)
        return add_folded_local_patch(x, branch, self.norm3, first, self.slope, self.shift, second, grid)

    def attention(self, x: Tensor) -> Tensor:
        if is_cheaper(x, len(self.temperature), training=False):
            qkv, proj = self.qkv, self.proj
            return attend_by_covariance(x, self.temperature, qkv.weight, qkv.bias, proj.weight, proj.bias)
        qkv = self.qkv(x)
        if qkv.dtype == torch.float16:  # products over the tokens leave its range
            with torch.autocast(x.device.type, enabled=False):
                attended = attend(qkv.float(), self.temperature.float())
            return self.proj(attended.to(qkv.dtype))
        return self.proj(attend(qkv, self.temperature))


class FusedPatchEmbed(nn.Module):
    """A `ConvPatchEmbed` in evaluation mode."""

    def __init__(self, embed: ConvPatchEmbed) -> None:
        super().__init__()
        steps = [step for step in embed.proj if isinstance(step, nn.Sequential)]
        self.convolutions = nn.Sequential()
        for convolution_, bn in steps:
            assert isinstance(convolution_, nn.Conv2d)
            self.convolutions.append(FusedConv(convolution_, *affine(bn), gelu=bn is not steps[-1][1]))

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return self.convolutions(images)


class FusedConv(nn.Module):
    """slope · layer(x) + shift, and a GELU behind it if so told. The layer is 3 × 3 with padding 1."""

    def __init__(
        self, layer: nn.Conv2d, slope: Tensor | None = None, shift: Tensor | None = None, gelu: bool = False
    ) -> None:
        super().__init__()
        assert layer.kernel_size == (3, 3) and layer.padding == (1, 1)
        zeros = layer.weight.new_zeros(layer.out_channels)
        slope = zeros + 1 if slope is None else slope
        bias = zeros if layer.bias is None else layer.bias
        self.weight = constant(slope[:, None, None, None] * layer.weight)
        self.bias = constant(slope * bias + (zeros if shift is None else shift))
        self.stride, self.gelu = layer.stride[0], gelu

    def forward(self, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        return convolution(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype), self.stride, self.gelu)


class FusedLinear(nn.Module):
    """scale · layer(x), and a GELU behind it if so told. (…, I) → (…, O).

    On x86 CPUs it holds a second copy of the weight, packed, for each type that it was called with.
    """

    def __init__(self, layer: nn.Linear, scale: Tensor | None = None, gelu: bool = False) -> None:
        super().__init__()
        self.weight = constant(layer.weight if scale is None else scale[:, None] * layer.weight)
        self.bias = constant(layer.bias if scale is None else scale * layer.bias)
        self.gelu = gelu
        self.packed: dict[torch.dtype, tuple[object, Tensor]] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(compute_dtype(x))
        weight, bias = self.weight_for(x), self.bias.to(x.dtype)
        return product(x, weight, bias, self.gelu)

    def weight_for(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not by_onednn(x):
            return self.weight.to(x.dtype)
        edition = edition_of(self)
        known = self.packed.get(x.dtype)
        if known is None or known[0] != edition:
            self.packed[x.dtype] = known = edition, packed(self.weight.to(x.dtype))
        return known[1]

    def _apply(self, *args: Any, **kwargs: Any) -> "FusedLinear":
        self.packed.clear()  # the weight moves, or changes its type
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"packed": {}}  # what is packed can be neither copied nor saved


class KeptPositions(nn.Module):
    """A position encoding that keeps what it returned last, as long as the grid is the same."""

    def __init__(self, encoding: nn.Module) -> None:
        super().__init__()
        self.encoding = encoding
        self.kept: tuple[Any, Tensor] | None = None

    def forward(self, grid: Grid) -> Tensor:
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return self.encoding(grid)
        parameter = next(self.parameters(), torch.empty(0))
        wanted, kept = (grid, compute_dtype(parameter), edition_of(self)), self.kept
        if kept is None or kept[0] != wanted:
            self.kept = kept = wanted, self.encoding(grid)
        return kept[1]

    def _apply(self, *args: Any, **kwargs: Any) -> "KeptPositions":
        self.kept = None
        return super()._apply(*args, **kwargs)


def edition_of(module: nn.Module) -> object:
    """Changes when a parameter is written to, by load_state_dict say."""
    return tuple(
        (parameter.data_ptr(), None if parameter.is_inference() else parameter._version)
        for parameter in module.parameters()
    )


def affine(bn: Any) -> tuple[Tensor, Tensor]:
    """What a BatchNorm does in evaluation mode: slope · x + shift."""
    slope = bn.weight * (bn.running_var + bn.eps).rsqrt()
    return slope, bn.bias - bn.running_mean * slope


def constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=False)
