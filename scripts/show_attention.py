"""Draw where a model looks: the attention of its class token to the patches of an image, one map for each head.

    python scripts/show_attention.py runs/mine photo.jpg                              # writes attention.png
    python scripts/show_attention.py runs/mine photo.jpg --resolution 960 --mass 0.6 --output photo_attention.png
    python scripts/show_attention.py xcit_small_12_p8_384_dist photos/ --output maps  # a picture for each image
    python scripts/show_attention.py runs/dino walk.mp4 --output walk_attention.mp4   # each frame; needs PyAV

The first argument is anything that `xcit.load` takes: a run folder, a checkpoint, the name of published weights. It may
also be timm/NAME for a ViT of timm. The maps are those of the last layer with a class token. A brighter patch has a
larger weight; each map has its own scale. With --mass each map shows the smallest set of patches that holds this share
of its attention, as in DINO's figure. An XCiT takes any image size, and a larger --resolution gives finer maps.

Of an image the center is shown, as the model is evaluated. Of a video the whole frame is shown, with the mean map of
the heads over it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # because data/ and scripts/ are not installed

if __name__ == "__main__":  # answers --help and mistakes before torch is imported
    from scripts.options import of_show_attention
    from xcit.start import answer_options

    answer_options(lambda: of_show_attention(__doc__))

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

import xcit
from scripts.options import of_show_attention
from xcit.command import guarded
from xcit.device import default_device
from xcit.encoded_image import EncodedImage
from xcit.engine.progress import Progress
from xcit.errors import InputError, print_note
from xcit.evaluation.attention import class_attention_maps, draw, keep_mass, overlay_on_frames
from xcit.evaluation.video import FORMATS, VIDEOS, change_video, import_av
from xcit.models.load import Loaded
from xcit.models.timm_models import timm_model
from xcit.preprocessing import Preprocessing
from xcit.signals import stop_at_signals
from xcit.storage import write_atomically

PICTURES = (".png", ".jpg", ".pdf", ".svg")


@guarded
def main() -> None:
    arguments = of_show_attention(__doc__)
    source, mass = arguments.images, arguments.mass

    # Whatever is wrong with the files is said before the model is loaded.
    is_video = source.suffix.lower() in VIDEOS
    output = arguments.output or Path("attention" + ("" if source.is_dir() else ".mp4" if is_video else ".png"))
    require_writable(output, () if source.is_dir() else FORMATS if is_video else PICTURES)
    if not source.exists():
        raise InputError(f"{source}: cannot be read (No such file or directory)")
    if is_video:
        import_av()
    picture = None if is_video or source.is_dir() else read_image(source)

    model, preprocessing, classes = load(arguments.model)
    if arguments.resolution is not None:
        preprocessing = preprocessing.at(arguments.resolution)

    def draw_image(picture: Image.Image, output: Path) -> str:
        with torch.inference_mode():
            images = preprocessing([picture]).to(next(model.parameters()).device)
            maps = class_attention_maps(model, images)[0].cpu()
            title = prediction(model(images)[0], classes) if getattr(model, "num_classes", 0) else ""
        figure = draw(preprocessing.denormalize(images)[0], maps if mass is None else keep_mass(maps, mass), title)
        write_atomically(output, lambda file: figure.savefig(file, format=output.suffix[1:]))
        heads, height, width = maps.shape
        return f"{heads} maps of {height} × {width} patches"

    with Progress() as progress, stop_at_signals():
        if picture is not None:
            print(f"{output}: {draw_image(picture, output)}")
        elif is_video:
            change = overlay_on_frames(model, preprocessing, mass)
            frames, width, height = change_video(source, output, change, progress)
            print(f"{output}: {frames} frames of {width} × {height} pixels")
        else:
            draw_folder(source, output, draw_image, progress)


def require_writable(output: Path, suffixes: tuple[str, ...] | dict[str, str]) -> None:
    """suffixes: those that the file may have; none for a folder."""
    if not output.absolute().parent.is_dir():
        raise InputError(f"--output={output}: its folder does not exist")
    if suffixes and output.suffix not in suffixes:
        raise InputError(f"--output={output}: must end in one of {', '.join(suffixes)}")
    if output.exists() and output.is_dir() == bool(suffixes):
        raise InputError(f"--output={output}: is a {'folder' if suffixes else 'file'} already")


def read_image(path: Path) -> Image.Image:
    try:
        return EncodedImage(path.read_bytes(), str(path)).rgb()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def load(name: str) -> Loaded:
    """The model, on the GPU if there is one."""
    if name.startswith("timm/"):
        model = timm_model(name=name, num_classes=0, pretrained=True).eval()
        loaded = Loaded(model, Preprocessing.of_model(model), None)
    else:
        loaded = xcit.load(name)
    loaded.model.to(default_device())
    return loaded


def prediction(logits: Tensor, classes: list[str] | None) -> str:
    probability, best = logits.softmax(dim=0).max(dim=0)
    return f"{classes[int(best)] if classes else f'class {int(best)}'}: {probability:.0%}"


def draw_folder(source: Path, output: Path, draw_image: Callable[[Image.Image, Path], str], progress: Progress) -> None:
    """A picture for each image. A file that cannot be read has a note, and the others are drawn."""
    paths = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    drawn = 0
    for path in progress.track(paths, str(output), "images"):
        try:
            picture = read_image(path)
        except InputError as error:
            print_note(str(error))
        else:
            output.mkdir(exist_ok=True)
            draw_image(picture, output / f"{path.name}.png")
            drawn += 1
    if not drawn:
        raise InputError(f"{source}: holds no image that can be read; images in its subfolders are not drawn")
    print(f"{output}: {drawn} of {len(paths)} files")


if __name__ == "__main__":
    main()
