"""iNaturalist 2018 and 2019. torchvision reads the image folders; the official JSON files define the splits."""

import json
from pathlib import Path
from typing import Literal

from torchvision import datasets

from .image_files import ImageFiles
from .torchvision_readers import list_samples, read, refuse_missing


class INat:
    """iNaturalist. The images are root/YEAR/SUPERCATEGORY/CATEGORY/*.jpg; rename the archive's train_valYEAR/ to YEAR/.

    root/trainYEAR.json and root/valYEAR.json list the images of each split. 2018 has 8,142 species, with 437,513 images
    for training and 24,426 for validation. 2019 has 1,010 species, with 268,243 images in total.

    Args:
        root: Folder that holds the data set.
        year: Year of the competition.
    """

    def __init__(self, *, root: str, year: Literal[2018, 2019] = 2018) -> None:
        self.root, self.year = Path(root), year

    def train(self) -> ImageFiles:
        return self.split("train")

    def val(self, classes: list[str] | None = None) -> ImageFiles:
        return self.split("val").relabel(classes, self.root / str(self.year))

    def split(self, part: str) -> ImageFiles:
        """Return the split "train" or "val"."""
        tree, names = f"{self.year}", f"{part}{self.year}.json"
        source = (
            f"expected {tree}/, which the archive calls train_val{tree}/, and {names} in data.root; "
            f"download iNaturalist {tree} from https://github.com/visipedia/inat_comp"
        )

        def contents() -> tuple[list[str], dict[str, int], list[str]]:
            """Return the classes, the label of each file in the tree, and the files that the JSON file lists."""
            reader = datasets.INaturalist(self.root, version=tree, loader=str)
            labels = {path.removeprefix(f"{reader.root}/"): label for path, label in list_samples(reader)}
            listed = [image["file_name"] for image in json.loads((self.root / names).read_bytes())["images"]]
            return reader.all_categories, labels, [name.removeprefix(f"train_val{tree}/") for name in listed]

        classes, labels, listed = read(contents, self.root, [tree, names], source)
        missing = [str(self.root / tree / name) for name in listed if name not in labels]
        refuse_missing(missing, len(listed), source)
        return ImageFiles.from_samples([(str(self.root / tree / name), labels[name]) for name in listed], classes)
