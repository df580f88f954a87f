"""ImageNet-1k in its standard folder layout."""

import re
import tarfile
from pathlib import Path
from typing import IO

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from ..errors import DataError
from ..images import ImageFiles, require_folder
from .folder import list_classes

DEVKIT = "ILSVRC2012_devkit_t12"


class ImageNet:
    """root/train/WNID/*.JPEG, and for validation either of

    - root/val/WNID/*.JPEG, sorted into class folders;
    - root/val/ILSVRC2012_val_*.JPEG, flat as they are distributed, with the development kit beside it
      (root/ILSVRC2012_devkit_t12/ or the .tar.gz of that name), which holds their labels.
    """

    def __init__(self, *, root: str) -> None:
        self.root = require_folder(Path(root), "data.root")

    def train(self) -> ImageFiles:
        return list_classes(self.root / "train")

    def val(self, classes: list[str] | None = None) -> ImageFiles:
        folder = require_folder(self.root / "val", "expected class folders, or the images with the devkit beside it")
        flat = sorted(folder.glob("ILSVRC2012_val_*.JPEG"))
        if not flat:
            return list_classes(folder, classes)
        wnids, truth = read_devkit(self.root)
        classes = classes or sorted(wnids.values())
        numbers = {wnid: number for number, wnid in enumerate(classes)}
        samples = []
        for path in flat:
            image_number = re.search(r"(\d+)$", path.stem)
            position = int(image_number[1]) if image_number else 0
            if not 1 <= position <= len(truth):
                raise DataError(f"{path}: the devkit has labels for images 1 to {len(truth)}")
            wnid = wnids.get(truth[position - 1], f"ILSVRC2012_ID {truth[position - 1]}")
            if wnid not in numbers:
                raise DataError(f"{path}: its class {wnid} is one that training lacks")
            samples.append((str(path), numbers[wnid]))
        return ImageFiles.of(samples, classes)


def read_devkit(root: Path) -> tuple[dict[int, str], list[int]]:
    """(WNID of each ILSVRC2012_ID, the ILSVRC2012_ID of each validation image in order)."""
    members = (f"{DEVKIT}/data/meta.mat", f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt")
    archive = root / f"{DEVKIT}.tar.gz"
    try:
        if (root / DEVKIT).is_dir():
            with (root / members[0]).open("rb") as meta, (root / members[1]).open("rb") as truth:
                return parse_devkit(meta, truth)
        if archive.is_file():
            with tarfile.open(archive) as tar:
                meta_member, truth_member = tar.extractfile(members[0]), tar.extractfile(members[1])
                if meta_member and truth_member:
                    return parse_devkit(meta_member, truth_member)
    except (OSError, LookupError, ValueError, TypeError, tarfile.TarError, MatReadError) as error:
        damaged = root / DEVKIT if (root / DEVKIT).is_dir() else archive
        raise DataError(f"{damaged}: cannot be read ({error}); must hold {members[0]} and {members[1]}") from None
    raise DataError(f"{root / 'val'}: is flat, so {DEVKIT}/ or {archive.name} must lie in {root} for its labels")


def parse_devkit(meta: IO[bytes], truth: IO[bytes]) -> tuple[dict[int, str], list[int]]:
    synsets = loadmat(meta, squeeze_me=True)["synsets"]
    wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
    return wnids, [int(line) for line in truth.read().split()]
