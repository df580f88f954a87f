"""COCO (Lin et al., arXiv 1405.0312), and any data set in its format: images, and a JSON file with their objects."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from xcit.errors import InputError

from ..about import About, counted, listed
from ..examples import Example
from .coco_json import CocoJson, name_with_id, read_coco_json
from .image_files import ImageFiles, missing_files, require_folder
from .packed_strings import PackedStrings

EXPECTED = "expected COCO's images and annotations in data.root"


class CocoImages(ImageFiles):
    """Image files with their `Objects`. An image's label is its number in the JSON file."""

    target_kind = "boxes"

    def __init__(self, annotations: CocoJson, folder: Path, images: np.ndarray, about: About) -> None:
        """
        Args:
            annotations: What the JSON file says.
            folder: The folder with the images.
            images: Which images of the JSON file belong to the split.
            about: Where the images are from.
        """
        paths = PackedStrings.pack(str(folder / annotations.file_names[image]) for image in images)
        super().__init__(paths, images, annotations.classes, about)
        self.annotations = annotations

    def __getitem__(self, index: int) -> Example:
        example = super().__getitem__(index)
        return example._replace(target=self.annotations.objects(example.target))

    @property
    def num_present(self) -> int:
        return len(np.unique(self.annotations.labels))


class COCO:
    """COCO 2017 in its standard layout, or your own data in COCO's format.

    Categories may have gaps in their ids; classes are the categories in the order of their ids. Masks are polygons or
    run-length encodings; polygons of fewer than three points are ignored and counted. For training, boxes are clipped
    to their images, and objects without area there are dropped and counted.

    Args:
        root: Folder that holds annotations/, train2017/ and val2017/, or what the other options name.
        train_annotations: JSON file of the training images, below data.root.
        val_annotations: JSON file of the validation images, below data.root.
        train_images: Folder of the training images, below data.root.
        val_images: Folder of the validation images, below data.root.
        empty: Whether training images without objects, or with crowds alone, are left out (drop) or used (keep).
    """

    def __init__(
        self,
        *,
        root: str,
        train_annotations: str = "annotations/instances_train2017.json",
        val_annotations: str = "annotations/instances_val2017.json",
        train_images: str = "train2017",
        val_images: str = "val2017",
        empty: Literal["drop", "keep"] = "drop",
    ) -> None:
        self.root, self.empty = require_folder(Path(root), EXPECTED), empty
        self.train_annotations, self.val_annotations = self.root / train_annotations, self.root / val_annotations
        self.train_images, self.val_images = self.root / train_images, self.root / val_images

    def train(self) -> CocoImages:
        require_folder(self.train_images, "data.train_images")
        annotations = read_coco_json(self.train_annotations, for_training=True)
        trainable, every = annotations.trainable(), np.arange(len(annotations.sizes))
        if not len(trainable):
            raise InputError(f"{self.train_annotations}: holds no object to learn from: each is a crowd or has no area")
        images = trainable if self.empty == "drop" else every
        return examples_of(annotations, self.train_images, images, len(every) - len(images))

    def val(self, classes: list[str] | None = None) -> CocoImages:
        require_folder(self.val_images, "data.val_images")
        annotations = read_coco_json(self.val_annotations, for_training=False)
        if classes is not None:
            annotations = relabelled(annotations, classes)
        return examples_of(annotations, self.val_images, np.arange(len(annotations.sizes)))


def examples_of(annotations: CocoJson, folder: Path, images: np.ndarray, empty: int = 0) -> CocoImages:
    """Make the examples of a split, and say what was left out. empty: the number of images that were."""
    notes = []
    if empty:
        notes.append(f"{counted(empty, 'image')} without objects dropped")
    if annotations.renamed:
        notes.append(f"categories of the same name are told apart by their ids: {listed(annotations.renamed)}")
    if annotations.ignored:
        polygons = counted(len(annotations.ignored), "polygon")
        notes.append(f"{polygons} with fewer than 3 points ignored, the first in annotation {annotations.ignored[0]}")
    if annotations.without_area:
        notes.append(f"{counted(annotations.without_area, 'object')} without area in the image dropped")
    if annotations.clipped:
        notes.append(f"{counted(annotations.clipped, 'box', 'boxes')} clipped to the image")
    said = f"{annotations.path.name}: {counted(len(annotations.labels), 'object')}"
    examples = CocoImages(annotations, folder, images, About(str(folder), said, notes=notes))
    require_files(examples.paths, annotations.path)
    return examples


def relabelled(annotations: CocoJson, classes: list[str]) -> CocoJson:
    """Return the same objects with labels that are indices into `classes`, the training split's.

    A category is the class of its name, or of its name and id if the training split tells classes apart so.
    """
    indices = {name: index for index, name in enumerate(classes)}
    own = [
        name if name in indices else name_with_id(name, number)
        for name, number in zip(annotations.classes, annotations.category_ids, strict=True)
    ]
    unknown = [name for name, class_ in zip(annotations.classes, own, strict=True) if class_ not in indices]
    if unknown:
        known = f"{', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}"
        raise InputError(
            f"{annotations.path}: category {unknown[0]} is not a class of the training split "
            f"({counted(len(unknown), 'such category', 'such categories')}); known classes: {known}"
        )
    labels = np.array([indices[class_] for class_ in own], dtype=np.int64)[annotations.labels]
    return replace(annotations, classes=classes, labels=labels)


def require_files(paths: Sequence[str] | PackedStrings, annotations: Path) -> None:
    """Raise an InputError if image files are missing."""
    missing = missing_files(paths)
    if missing:
        several = f" and {counted(len(missing) - 1, 'other')}" if len(missing) > 1 else ""
        raise InputError(f"{paths[missing[0]]}: no such image{several}; {annotations} lists it")
