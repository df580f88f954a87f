"""iNaturalist 2018 and 2019: torchvision reads the tree of images, the official lists divide it."""

import json
from pathlib import Path
from typing import Literal

from torchvision import datasets

from ..images import ImageFiles
from .folder import relabel
from .torchvision_readers import list_samples, read, refuse_missing


class INat:
    """root/YEAR/SUPERCATEGORY/CATEGORY/*.jpg, which the archive calls train_val{YEAR}/, and beside it
    train{YEAR}.json and val{YEAR}.json, whose lists of images are the splits.

    2018: 437,513 images for training and 24,426 for validation, of 8,142 species. 2019: 268,243 in all, of 1,010.
    """

    def __init__(self, *, root: str, year: Literal[2018, 2019] = 2018) -> None:
        self.root, self.year = Path(root), year

    def train(self) -> ImageFiles:
        return self.split("train")

    def val(self, classes: list[str] | None = None) -> ImageFiles:
        return relabel(self.split("val"), classes, self.root / str(self.year))

    def split(self, part: str) -> ImageFiles:
        tree, names = f"{self.year}", f"{part}{self.year}.json"
        source = (
            f"expected {tree}/, which the archive calls train_val{tree}/, and {names} in data.root; "
            f"download iNaturalist {tree} from https://github.com/visipedia/inat_comp"
        )

        def contents() -> tuple[list[str], dict[str, int], list[str]]:
            reader = datasets.INaturalist(self.root, version=tree, loader=str)
            labels = {path.removeprefix(f"{reader.root}/"): label for path, label in list_samples(reader)}
            listed = [image["file_name"] for image in json.loads((self.root / names).read_bytes())["images"]]
            return reader.all_categories, labels, [name.removeprefix(f"train_val{tree}/") for name in listed]

        classes, labels, listed = read(contents, self.root, [tree, names], source)
        missing = [str(self.root / tree / name) for name in listed if name not in labels]
        refuse_missing(missing, len(listed), source)
        return ImageFiles.of([(str(self.root / tree / name), labels[name]) for name in listed], classes)
