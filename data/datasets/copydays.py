"""INRIA Copydays: photographs and copies of them, for copy detection (Douze et al., CIVR 2009)."""

from pathlib import Path

from xcit.errors import InputError

from ..about import About
from ..examples import Examples
from .image_files import ImageFiles, class_indices, require_folder
from .listing import images_below

ORIGINAL, DISTRACTOR = "original", "distractor"
EXPECTED = "expected original/, and strong/, jpegqual/QUALITY/ or crops/PERCENT/ in data.root"


class Copydays:
    """INRIA Copydays, in root/ with original/, and strong/, jpegqual/QUALITY/ or crops/PERCENT/.

    The training split has the originals and the distractors, the validation split the copies. A class is an original
    with its copies: 200301.jpg and 200302.jpg are copies of 200300.jpg, so their class is 2003. Distractors are one
    further class. So `evaluate=retrieval` measures copy detection: each copy looks for its original among the
    distractors.

    Args:
        root: Folder that holds original/ and the folders of the copies.
        part: Folder of the copies: strong, jpegqual, crops, or one level of these, such as jpegqual/15.
        distractors: Folder of images that are no originals, in any subfolders; null: none.
    """

    def __init__(self, *, root: str, part: str = "strong", distractors: str | None = None) -> None:
        self.root, self.part = require_folder(Path(root), EXPECTED), part.strip("/")
        self.distractors = require_folder(Path(distractors), "data.distractors") if distractors else None

    def train(self) -> ImageFiles:
        originals = self.images_in(ORIGINAL)
        samples = [(path, identity_of(path)) for path in originals]
        if self.distractors:
            samples += [(path, DISTRACTOR) for path in images_below(self.distractors.absolute())]
        classes = list(dict.fromkeys(identity for _, identity in samples))
        labels = {name: number for number, name in enumerate(classes)}
        return ImageFiles.from_samples([(p, labels[name]) for p, name in samples], classes, About(str(self.root)))

    def val(self, classes: list[str] | None = None) -> Examples:
        paths = self.images_in(self.part)
        known = classes or self.train().classes
        identities = [identity_of(path) for path in paths]
        labels = dict(zip(identities, class_indices(known, identities, self.root / ORIGINAL), strict=True))
        samples = [(path, labels[identity]) for path, identity in zip(paths, identities, strict=True)]
        return ImageFiles.from_samples(samples, known, About(str(self.root), f"the copies in {self.part}"))

    def images_in(self, part: str) -> list[str]:
        """The images in root/part and its subfolders, sorted.

        Raises:
            InputError: there are none.
        """
        folder = self.root / part
        found = images_below(folder) if folder.is_dir() else []
        if not found:
            folders = {str(Path(path).parent.relative_to(self.root)) for path in images_below(self.root)}
            raise InputError(f"{folder}: holds no images; {EXPECTED}; found {', '.join(sorted(folders)) or 'none'}")
        return found


def identity_of(path: str) -> str:
    """The number of an image without its last two digits, which tell copies of an original apart.

    Raises:
        InputError: the name is no such number.
    """
    number = Path(path).stem
    if not (number.isdigit() and len(number) > 2):
        raise InputError(f"{path}: must be named by a number such as 200301.jpg, of which 2003 is the original's")
    return number[:-2]
