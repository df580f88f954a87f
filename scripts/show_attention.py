"""Draw where a trained XCiT looks: its class-attention maps for one image, one for each head.

    python scripts/show_attention.py runs/mine photo.jpg                              # writes attention.png
    python scripts/show_attention.py runs/mine photo.jpg --resolution 448 --output photo_attention.png
    python scripts/show_attention.py xcit_small_12_p8_384_dist photo.jpg

The first argument is anything that `xcit.load` takes: a run folder, a checkpoint, the name of published weights. The
maps are those of the last class-attention layer. A brighter patch has a larger weight; each map has its own scale. An
XCiT takes any image size, and a larger --resolution gives finer maps.
"""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # because data/ is not installed

import xcit
from data.encoded_image import EncodedImage
from xcit.command import ArgumentParser, guarded
from xcit.errors import InputError
from xcit.evaluation.attention import class_attention_maps
from xcit.storage import write_atomically

FORMATS = (".png", ".jpg", ".pdf", ".svg")
COLUMNS = 5
"""Pictures in a row: the image and the maps."""


@guarded
def main() -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("model", help="a run folder, a checkpoint or a name of published weights")
    parser.add_argument("image", type=Path, help="an image file")
    parser.add_argument("--resolution", type=int, help="image size in pixels; default: the training size")
    parser.add_argument("--output", type=Path, default=Path("attention.png"), help="file of the picture")
    arguments = parser.parse_args()
    require_writable(arguments.output)
    picture = read_image(arguments.image)
    model, preprocessing, classes = xcit.load(arguments.model)
    if arguments.resolution is not None:
        preprocessing = preprocessing.at(arguments.resolution)
    with torch.inference_mode():
        images = preprocessing([picture])
        maps = class_attention_maps(model, images)[0]
        probability, best = model(images)[0].softmax(dim=0).max(dim=0)
    name = classes[int(best)] if classes else f"class {int(best)}"
    figure = draw(preprocessing.denormalize(images)[0], maps, f"{name}: {probability:.0%}")
    write_atomically(arguments.output, lambda file: figure.savefig(file, format=arguments.output.suffix[1:]))
    heads, height, width = maps.shape
    print(f"{arguments.output}: {heads} maps of {height} × {width} patches")


def require_writable(output: Path) -> None:
    if not output.absolute().parent.is_dir():
        raise InputError(f"--output={output}: its folder does not exist")
    if output.suffix not in FORMATS:
        raise InputError(f"--output={output}: must end in one of {', '.join(FORMATS)}")


def read_image(path: Path) -> object:
    try:
        return EncodedImage(path.read_bytes(), str(path)).rgb()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def draw(pixels: Tensor, maps: Tensor, title: str) -> Figure:
    """The image with its title, and each head's map over the image in gray.

    pixels: (H, W, 3), uint8. maps: (heads, H / p, W / p).
    """
    height, width, _ = pixels.shape
    rows = -(-(1 + len(maps)) // COLUMNS)
    figure = Figure(figsize=(2 * COLUMNS, 2.3 * rows * height / width), dpi=100, layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel in panels:
        panel.axis("off")
    panels[0].imshow(pixels.numpy())
    panels[0].set_title(title, fontsize=9, parse_math=False)
    gray = pixels.float().mean(dim=-1).numpy()
    for number, (panel, weights) in enumerate(zip(panels[1:], maps, strict=False), start=1):
        panel.imshow(gray, cmap="gray", vmin=0, vmax=255)
        panel.imshow(weights.numpy(), cmap="inferno", alpha=0.7, extent=(0, width, height, 0), interpolation="nearest")
        panel.set_title(f"head {number}", fontsize=9)
    return figure


if __name__ == "__main__":
    main()
