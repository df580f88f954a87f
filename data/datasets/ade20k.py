"""ADE20k's benchmark of 150 classes, in its standard layout (Zhou et al., CVPR 2017)."""

from pathlib import Path

from ..index_mask import Labels
from .image_files import require_folder
from .masks import MaskedFiles, find_masks, require_same_classes

NAMES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, armchair,
seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, chest of drawers,
counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table,
pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench,
countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel,
light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track, apparel,
pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt,
canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball,
food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood,
sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator,
glass, clock, flag
"""
"""The names of the classes 1 to 150, as they are commonly abbreviated from objectInfo150.txt."""


class ADE20k:
    """ADE20k: root/images/training/*.jpg, root/annotations/training/*.png, and the same for validation.

    It is the archive ADEChallengeData2016. In its masks, 1 to 150 are the classes. 0 is everything else, and is
    ignored.

    Args:
        root: Folder ADEChallengeData2016, which holds images/ and annotations/.
    """

    def __init__(self, *, root: str) -> None:
        self.root = require_folder(Path(root), "data.root")
        self.classes = [" ".join(name.split()) for name in NAMES.split(",")]
        self.labels = Labels({index + 1: index for index in range(len(self.classes))}, ignored=[0])

    def train(self) -> MaskedFiles:
        return self.split("training")

    def val(self, classes: list[str] | None = None) -> MaskedFiles:
        require_same_classes("ade20k", self.classes, classes)
        return self.split("validation")

    def split(self, name: str) -> MaskedFiles:
        return find_masks(self.root / "images" / name, self.root / "annotations" / name, self.classes, self.labels)
