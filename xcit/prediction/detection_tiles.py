"""Detection in a large image: in overlapping tiles, whose objects are merged."""

from collections.abc import Callable
from itertools import product

import torch
from PIL import Image
from torchvision.ops import batched_nms

from ..models.dense.mask_rcnn import Detections
from ..models.dense.windows import starts

FAR = float("inf")


def detect_in_tiles(
    detect: Callable[[Image.Image], Detections], picture: Image.Image, tile: int, overlap: int, nms_threshold: float
) -> Detections:
    """The objects in an image, in its pixels, by score. Each tile is predicted as an image of its own.

    An object counts in a tile if its center is at least a quarter of the overlap away from the tile's borders inside
    the image. So parts of an object of up to half of the overlap do not count; the next tile has it whole. Then, if
    boxes of one class have a larger IoU than the threshold, one is kept: uncut boxes first, then the higher score. Its
    mask stays with it.

    Args:
        detect: the objects in a tile, in pixels of the tile.
        picture: the image.
        tile: side of a tile in pixels.
        overlap: of neighboring tiles in pixels.
        nms_threshold: the IoU.
    """
    width, height = picture.size
    found, whole = [], []
    for top, left in product(starts(height, tile, tile - overlap), starts(width, tile, tile - overlap)):
        right, bottom = min(left + tile, width), min(top + tile, height)
        objects = detect(picture.crop((left, top, right, bottom)))
        boxes = objects.boxes + objects.boxes.new_tensor([left, top, left, top])
        # The borders that lie inside the image; the image's own borders cut nothing.
        low = boxes.new_tensor([left or -FAR, top or -FAR])
        high = boxes.new_tensor([right if right < width else FAR, bottom if bottom < height else FAR])
        centers = (boxes[:, :2] + boxes[:, 2:]) / 2
        counts = ((centers >= low + overlap / 4) & (centers <= high - overlap / 4)).all(1)
        found.append(Detections(*(part[counts] for part in objects._replace(boxes=boxes))))
        whole.append(((boxes[:, :2] > low + 1) & (boxes[:, 2:] < high - 1)).all(1)[counts])
    merged = Detections(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    kept = batched_nms(merged.boxes, merged.scores + torch.cat(whole), merged.labels, nms_threshold)
    kept = kept[merged.scores[kept].argsort(descending=True, stable=True)]
    return Detections(*(part[kept] for part in merged))
