"""Compare every XCiT with timm's: the number of parameters, and the logits for the same random weights.

    python scripts/parity.py

Prints a line for each of the 14 architectures: parameters in millions, and the difference of the logits relative to
their norm, in fp32 and evaluation mode, for a square image and for one that is not square.
"""

import timm
import torch
from torch import Tensor, nn

import xcit
from xcit.command import ArgumentParser, guarded
from xcit.engine.progress import Progress
from xcit.weights.published import long_name

IMAGE_SIZES = ((224, 224), (192, 272))


def timm_name(name: str, patch_size: int) -> str:
    """xcit_s12 at patch 16 → xcit_small_12_p16_224."""
    return f"{long_name(name, patch_size)}_224"


@torch.no_grad()
def make_weights_tell(model: nn.Module) -> None:
    """Set every parameter and statistic to a value that changes the logits.

    At initialisation BatchNorm is the identity, and a LayerScale of 1e-5 hides the branch that it scales.
    """
    generator = torch.Generator().manual_seed(0)
    for key, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if "gamma" in key or key.endswith(("running_var", "temperature")) or "norm" in key or ".bn." in key:
            value.copy_(1 + 0.3 * noise.clamp(-2, 2) if not key.endswith("bias") else 0.2 * noise)
        elif key.endswith("running_mean") or value.ndim == 1:
            value.add_(0.2 * noise)


def pair(name: str, patch_size: int) -> tuple[nn.Module, nn.Module]:
    """(timm's model, ours) with the same random weights, in evaluation mode."""
    theirs = timm.create_model(timm_name(name, patch_size), pretrained=False)
    make_weights_tell(theirs)
    ours = xcit.create_model(name, patch_size=patch_size)
    xcit.load_weights(ours, theirs.state_dict())
    return theirs.eval(), ours.eval()


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@guarded
def main() -> None:
    ArgumentParser(__doc__).parse_args()
    with Progress() as progress:
        print_table(progress)


def print_table(progress: Progress) -> None:
    print(f"{'model':<9} {'patch':>5} {'M params':>9}", *(f"{f'{h}x{w}':>9}" for h, w in IMAGE_SIZES))
    for name in xcit.list_models():
        for patch_size in (16, 8):
            progress.begin(f"comparing {name} at patch {patch_size}")
            theirs, ours = pair(name, patch_size)
            parameters = sum(p.numel() for p in ours.parameters()) / 1e6
            with torch.inference_mode():
                images = [torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1)) for size in IMAGE_SIZES]
                differences = [relative_difference(ours(image), theirs(image)) for image in images]
            print(f"{name:<9} {patch_size:>5} {parameters:>9.2f}", *(f"{d:>9.1e}" for d in differences), flush=True)


if __name__ == "__main__":
    main()
