"""ADE20k's benchmark of 150 classes, in its standard layout (Zhou et al., CVPR 2017)."""

from pathlib import Path

from xcit.class_names import ADE20K

from ..index_mask import Labels
from .image_files import require_folder
from .masks import MaskedFiles, find_masks, require_same_classes


class ADE20k:
    """ADE20k: root/images/training/*.jpg, root/annotations/training/*.png, and the same for validation.

    It is the archive ADEChallengeData2016. In its masks, 1 to 150 are the classes. 0 is everything else, and is
    ignored.

    Args:
        root: Folder ADEChallengeData2016, which holds images/ and annotations/.
    """

    def __init__(self, *, root: str) -> None:
        self.root = require_folder(Path(root), "data.root")
        self.classes = list(ADE20K)
        self.labels = Labels({index + 1: index for index in range(len(self.classes))}, ignored=[0])

    def train(self) -> MaskedFiles:
        return self.split("training")

    def val(self, classes: list[str] | None = None) -> MaskedFiles:
        require_same_classes("ade20k", self.classes, classes)
        return self.split("validation")

    def split(self, name: str) -> MaskedFiles:
        return find_masks(self.root / "images" / name, self.root / "annotations" / name, self.classes, self.labels)
