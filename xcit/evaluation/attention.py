"""Attention maps: how much the class token attends to each patch of an image, in numbers and over the image."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..device import in_float64
from ..errors import InputError
from ..models.xcit import XCiT
from ..preprocessing import Preprocessing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 5
"""Pictures in a row: the image and the maps."""
KEPT = (255.0, 160.0, 40.0)
"""The color of the patches of a mask."""


def class_attention_maps(model: nn.Module, images: Tensor) -> Tensor:
    """The attention of the class token to the patches in the last layer, (B, heads, ⌈H / p⌉, ⌈W / p⌉).

    The class token attends to itself and to all patches, in the last class-attention layer of an XCiT or the last
    self-attention layer of a ViT. The weights of a head are at least 0 and sum to 1. The maps lack the weight of the
    class token itself (and of a ViT's register tokens), so they sum to less than 1.

    Args:
        model: an XCiT of this library or a VisionTransformer of timm, on the device of the images.
        images: (B, C, H, W), normalized.

    Raises:
        InputError: the model has no class token that attends to patches, or does not take images of this size.
    """
    is_xcit = isinstance(model, XCiT) and model.pool == "class_attention"
    if not is_xcit and not is_vit(model):
        raise InputError(
            f"{type(model).__name__}: only an XCiT with pool=class_attention has class-attention maps, "
            "or timm's VisionTransformer with a class token"
        )
    network: Any = model
    last = network.cls_attn_blocks[-1] if is_xcit else network.blocks[-1].attn
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        network.forward_features(images)
    except AssertionError as error:  # how timm refuses a size
        raise InputError(f"{type(model).__name__}: does not take these images ({error})") from None
    finally:
        handle.remove()
    # The fast forms of the layers never compute the weights of all heads, so they are computed here.
    height, width = (-(-side // patch_size_of(model)) for side in images.shape[-2:])
    q, k = (xcit_query_and_keys if is_xcit else vit_query_and_keys)(last, seen[0])
    weights: Tensor = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)  # (B, heads, 1, tokens)
    return weights[:, :, 0, -height * width :].unflatten(-1, (height, width))


def is_vit(model: nn.Module) -> bool:
    """Whether it is timm's plain ViT with a class token. Told by names, so that timm need not be imported."""
    attention = getattr(getattr(model, "blocks", [None])[-1], "attn", None)
    names = (type(model).__name__, type(attention).__name__)
    return names == ("VisionTransformer", "Attention") and getattr(model, "cls_token", None) is not None


def patch_size_of(model: Any) -> int:
    return model.patch_size if isinstance(model, XCiT) else model.patch_embed.patch_size[0]


def xcit_query_and_keys(layer: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(B, heads, 1, d) and (B, heads, 1 + N, d), of a class-attention layer's input."""
    tokens, attention = layer.norm1(tokens), layer.attn
    return attention.split_heads(attention.q(tokens[:, :1])), attention.split_heads(attention.k(tokens))


def vit_query_and_keys(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the input of timm's Attention; the class token comes first."""
    q, k, _ = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return attention.q_norm(q[:, :, :1]), attention.k_norm(k)


def keep_mass(maps: Tensor, mass: float) -> Tensor:
    """The smallest set of patches that holds at least this share of a map's sum, as a mask (…, H, W).

    DINO's figure 1 (arXiv 2104.14294) shows it for a mass of 0.6.

    Args:
        maps: (…, H, W), at least 0. Each map is thresholded on its own.
        mass: greater than 0 and less than 1.
    """
    if not 0 < mass < 1:
        raise InputError(f"mass={mass}: must be greater than 0 and less than 1")
    values, order = in_float64(maps).flatten(-2).sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values  # the sum of all larger patches: a patch is kept until they suffice
    kept = before < mass * values.sum(dim=-1, keepdim=True)
    return torch.zeros_like(kept).scatter(-1, order, kept).view(maps.shape).to(maps.device)


def overlay(pixels: Tensor, patches: Tensor) -> Tensor:
    """A map or a mask drawn over an image, (H, W, 3), uint8.

    A map is drawn as colors, from dark for its smallest value to bright for its largest, over the image in gray. Of a
    mask the patches that are kept are drawn in orange, over the image in gray.

    Args:
        pixels: (H, W, 3), uint8.
        patches: (h, w), a map, or a mask if it is boolean. The patches are stretched to the image.
    """
    height, width, _ = pixels.shape
    rows, columns = (torch.arange(side) * num // side for side, num in zip((height, width), patches.shape, strict=True))
    patches = patches.cpu()
    gray = pixels.float().mean(dim=-1, keepdim=True)
    if patches.dtype == torch.bool:
        kept = (0.5 * pixels + 0.5 * torch.tensor(KEPT)).byte()
        return torch.where(patches[rows][:, columns, None], kept, (0.5 * gray).byte())
    from matplotlib import colormaps  # here, since `import xcit` must not need it

    span = (patches - patches.min()) / (patches.max() - patches.min()).clamp(min=torch.finfo(patches.dtype).tiny)
    colors = torch.from_numpy(colormaps["inferno"](span.numpy())[..., :3]).float()  # (h, w, 3)
    return (0.3 * gray + 0.7 * 255 * colors[rows][:, columns]).round().byte()


def draw(pixels: Tensor, maps: Tensor, title: str) -> "Figure":
    """The image with its title, and each head's map or mask over the image.

    pixels: (H, W, 3), uint8. maps: (heads, h, w), as `overlay` takes them.
    """
    from matplotlib.figure import Figure

    height, width, _ = pixels.shape
    rows = -(-(1 + len(maps)) // COLUMNS)
    dpi = max(100, 2 * maps.shape[-1])  # at least four pixels for each patch
    figure = Figure(figsize=(2 * COLUMNS, 2.3 * rows * height / width), dpi=dpi, layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    panels[0].imshow(pixels.numpy())
    panels[0].set_title(title, fontsize=9, parse_math=False)
    for number, (panel, patches) in enumerate(zip(panels[1:], maps, strict=False), start=1):
        panel.imshow(overlay(pixels, patches).numpy())
        panel.set_title(f"head {number}", fontsize=9)
    return figure


def overlay_on_frames(model: nn.Module, preprocessing: Preprocessing, mass: float | None) -> Callable[[Tensor], Tensor]:
    """A function that draws the heads' mean map, or its mask, over a frame: (H, W, 3), uint8.

    The model sees the whole frame. The shorter side of its input is the one of `preprocessing`; both sides are
    multiples of the patch size.
    """
    short, patch = min(preprocessing.size), patch_size_of(model)

    @torch.inference_mode()
    def change(pixels: Tensor) -> Tensor:
        from PIL import Image  # here, since `import xcit` must not need it

        scale = short / min(pixels.shape[:2]) / patch
        height, width = (patch * max(1, round(side * scale)) for side in pixels.shape[:2])
        images = preprocessing.at((height, width), crop_ratio=1.0)([Image.fromarray(pixels.numpy())])
        mean = class_attention_maps(model, images.to(next(model.parameters()).device))[0].mean(dim=0)
        return overlay(pixels, mean if mass is None else keep_mass(mean, mass))

    return change
