"""Write the features of images to a file, with their paths: for search, clustering or duplicates.

    python scripts/embed.py runs/mine ~/photos                               # writes features.npz
    python scripts/embed.py runs/mine photo.jpg ~/photos --output photos.parquet --resolution 320
    python scripts/embed.py xcit_small_12_p8_224_dist ~/photos --features class_and_mean

The first argument is anything that `xcit.load` takes: a run folder, a checkpoint, the name of published weights.
Folders are read with their subfolders; quoted patterns as '~/photos/**/*.jpg' work, too. A line tells of each image
that cannot be read; it is left out.

An NPZ file has the arrays `paths` (N,) and `features` (N, D), fp32: numpy.load("features.npz")["features"]. A Parquet
file has the columns `path` and `features`, a list of D floats.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # because data/ and scripts/ are not installed

if __name__ == "__main__":  # answers --help and mistakes before torch is imported
    from scripts.options import of_embed
    from xcit.start import answer_options

    answer_options(lambda: of_embed(__doc__))

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from glob import glob, has_magic
from importlib.util import find_spec
from typing import IO

import numpy as np
import torch
from torch import Tensor, nn

import xcit
from data.about import counted
from data.datasets.listing import images_below
from data.workers import default_workers
from scripts.options import of_embed
from xcit.command import guarded
from xcit.device import default_device
from xcit.encoded_image import EncodedImage
from xcit.engine.progress import Progress
from xcit.errors import InputError, print_note
from xcit.evaluation.features import Kind, features_of
from xcit.models.fast.inference import ready_for_inference
from xcit.preprocessing import Preprocessing
from xcit.signals import stop_at_signals
from xcit.storage import write_atomically

FORMATS = (".npz", ".parquet")


@guarded
def main() -> None:
    arguments = of_embed(__doc__)
    require_writable(arguments.output)
    device = default_device()
    with Progress() as progress, stop_at_signals():
        progress.begin("listing the images")
        paths = [path for given in arguments.images for path in files_of(given)]
        progress.begin(f"reading {arguments.model}")
        model, preprocessing, _ = xcit.load(arguments.model)
        if arguments.resolution is not None:
            preprocessing = preprocessing.at(arguments.resolution)
        model = ready_for_inference(model.to(device))
        paths = list(dict.fromkeys(paths))  # a folder and an image in it may be given
        batches = [paths[start : start + arguments.batch_size] for start in range(0, len(paths), arguments.batch_size)]
        embedded = list(embed(model, preprocessing, progress.track(batches, "embedding"), arguments.features, device))
    known = [path for found, _ in embedded for path in found]
    if not known:
        raise InputError(f"none of the {len(paths)} images can be read")
    features = torch.cat([vectors for _, vectors in embedded]).numpy()
    write(arguments.output, known, features)
    left_out = f", without {counted(len(paths) - len(known), 'image')} that cannot be read"
    summary = f"{counted(len(known), 'image')} × {features.shape[1]} features"
    print(f"{arguments.output}: {summary}{left_out if len(known) < len(paths) else ''}")


def require_writable(output: Path) -> None:
    if not output.absolute().parent.is_dir():
        raise InputError(f"--output={output}: its folder does not exist")
    if output.suffix not in FORMATS:
        raise InputError(f"--output={output}: must end in one of {', '.join(FORMATS)}")
    if output.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise InputError(f"--output={output}: needs pyarrow, which is not installed; pip install pyarrow, or take .npz")


def files_of(given: Path) -> list[str]:
    """The path of an image file, or those of all images in a folder, or of the files that match a pattern."""
    if not given.is_dir():
        if given.exists():
            return [str(given)]
        if not has_magic(str(given)):
            raise InputError(f"{given}: no such file or folder")
        matching = glob(str(given.expanduser()), recursive=True)  # noqa: PTH207  # which would also match hidden files
        found = sorted(path for path in matching if Path(path).is_file())
        if not found:
            raise InputError(f"{given}: matches no files")
        return found
    found = images_below(given.absolute())
    if not found:
        raise InputError(f"{given}: holds no images")
    return [str(given / Path(path).relative_to(given.absolute())) for path in found]


@torch.inference_mode()
def embed(
    model: nn.Module, preprocessing: Preprocessing, batches: Iterator[Sequence[str]], kind: Kind, device: torch.device
) -> Iterator[tuple[list[str], Tensor]]:
    """The paths of each batch that can be read, and their features, (B, D), fp32, on the CPU."""

    def read(path: str) -> Tensor | None:
        try:
            return EncodedImage(Path(path).read_bytes(), path).pixels(preprocessing)
        except OSError as error:
            print_note(f"{path}: cannot be read ({error.strerror}); left out")
        except InputError as error:
            print_note(f"{error}; left out")
        return None

    with ThreadPoolExecutor(default_workers()) as pool:  # Pillow decodes and resizes without Python's lock
        for batch in batches:
            pixels = dict(zip(batch, pool.map(read, batch), strict=True))
            readable = {path: image for path, image in pixels.items() if image is not None}
            if readable:
                images = preprocessing.normalize(torch.stack(list(readable.values())).to(device))
                yield list(readable), features_of(model, images, kind).float().cpu()


def write(output: Path, paths: Sequence[str], features: np.ndarray) -> None:
    """Write the file in the format of its suffix. It is never half-written."""

    def fill(file: IO[bytes]) -> None:
        if output.suffix == ".npz":
            np.savez(file, paths=np.array(paths), features=features)
            return
        import pyarrow as pa  # here, because it is not needed for NPZ
        from pyarrow import parquet

        lists = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
        text = [path.encode(errors="surrogateescape").decode(errors="replace") for path in paths]  # Parquet needs UTF-8
        parquet.write_table(pa.table({"path": text, "features": lists}), file)

    write_atomically(output, fill)


if __name__ == "__main__":
    main()
