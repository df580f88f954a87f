"""ImageNet-1k in its standard folder layout."""

import re
import tarfile
from pathlib import Path
from typing import IO

from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from xcit.errors import InputError

from ..about import About
from .folder import list_class_folders
from .image_files import ImageFiles, require_folder
from .listing import look_into
from .splits import find_splits

DEVKIT = "ILSVRC2012_devkit_t12"


class ImageNet:
    """ImageNet-1k. The training images are root/train/WNID/*.JPEG. The validation images have one of two layouts.

    The folders of the splits may have any name that data/datasets/splits.py lists, Train and validation for example.

    - root/val/WNID/*.JPEG: one folder per class.
    - root/val/ILSVRC2012_val_*.JPEG: a flat folder, as in the official archive. The labels are read from the
      development kit, which must be in root: the folder ILSVRC2012_devkit_t12/ or ILSVRC2012_devkit_t12.tar.gz.

    Args:
        root: Folder that holds the data set.
    """

    def __init__(self, *, root: str) -> None:
        self.root = require_folder(Path(root), "data.root")
        self.splits = find_splits(self.root)

    def train(self) -> ImageFiles:
        return list_class_folders(self.splits.train or self.root / "train")

    def val(self, classes: list[str] | None = None) -> ImageFiles:
        val = self.splits.val or self.root / "val"
        folder = require_folder(val, "expected class folders, or the images with the devkit beside it")
        _, images, skipped = look_into(folder)
        flat = [folder / name for name in images if re.fullmatch(r"ILSVRC2012_val_\d+\.JPEG", name)]
        if not flat:
            return list_class_folders(folder, classes)
        # A flat folder: look up the label of each image by the number in its file name.
        wnids, truth = read_devkit(self.root)
        classes = classes or sorted(wnids.values())
        labels = {wnid: label for label, wnid in enumerate(classes)}
        samples = []
        for path in flat:
            position = int(path.stem.rpartition("_")[2])
            if not 1 <= position <= len(truth):
                raise InputError(f"{path}: the devkit has labels for images 1 to {len(truth)}")
            wnid = wnids.get(truth[position - 1], f"ILSVRC2012_ID {truth[position - 1]}")
            if wnid not in labels:
                raise InputError(f"{path}: its class {wnid} is not in the training split")
            samples.append((str(path), labels[wnid]))
        skipped.loose = len(images) - len(flat)
        return ImageFiles.from_samples(samples, classes, About(str(folder), skipped={str(folder): skipped}))


def read_devkit(root: Path) -> tuple[dict[int, str], list[int]]:
    """Read the development kit in root, from its folder or its archive.

    Returns:
        A dictionary ILSVRC2012_ID → WNID, and the ILSVRC2012_ID of each validation image in order.

    Raises:
        InputError: The kit is missing or cannot be read.
    """
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
        raise InputError(f"{damaged}: cannot be read ({error}); must hold {members[0]} and {members[1]}") from None
    raise InputError(
        f"{root / 'val'}: has no class folders, so the labels must come from {DEVKIT}/ or {archive.name} in {root}"
    )


def parse_devkit(meta: IO[bytes], truth: IO[bytes]) -> tuple[dict[int, str], list[int]]:
    """Parse meta.mat and the ground truth of the validation images. Returns what `read_devkit` returns."""
    synsets = loadmat(meta, squeeze_me=True)["synsets"]
    # The synsets without children are the classes.
    wnids = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in synsets if int(s["num_children"]) == 0}
    return wnids, [int(line) for line in truth.read().split()]
