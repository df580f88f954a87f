"""A tiny data set in COCO's format: photographs that packages ship, with pasted shapes and their exact masks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as coder
from PIL import Image, ImageDraw
from skimage import data as photographs
from sklearn.datasets import load_sample_images

CATEGORIES = {"circle": 2, "rectangle": 5, "triangle": 9}
"""Name → id. The ids have gaps, and begin above 1."""
COLORS = {"circle": (230, 30, 40), "rectangle": (20, 200, 60), "triangle": (30, 60, 235)}
Change = Callable[[dict[str, Any]], object]
"""Changes the content of a JSON file in place."""


def write_small_coco(folder: Path, images: int = 8, size: int = 128, seed: int = 0) -> Path:
    """Write `images` training and as many validation images with their annotations, in COCO 2017's layout.

    Each image has one to three shapes, mostly apart, in a color for each category. The second image of a split has a
    crowd, and the last one of the training split no object. Masks are polygons, uncompressed and compressed run-length
    encodings in turn.

    Args:
        folder: Where it is written. It is returned.
        images: Images of each split.
        size: Longer side of the images in pixels; the shorter one is 3/4 of it.
        seed: Determines the shapes.
    """
    random = np.random.default_rng(seed)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        (folder / f"{split}2017").mkdir(exist_ok=True)
        listed, annotations = [], []
        for number in range(images):
            image_id = 10 * number + 7
            picture = background(number + (split == "val"), size, upright=number % 3 == 2)
            last_of_training = split == "train" and images > 2 and number == images - 1
            if not last_of_training:
                annotations += paste_shapes(picture, image_id, random)
            if number == 1:
                annotations.append(crowd(picture, image_id))
            name = f"{image_id:012d}.jpg"
            picture.save(folder / f"{split}2017" / name, quality=95, subsampling=0)
            listed.append({"id": image_id, "file_name": name, "height": picture.height, "width": picture.width})
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number
        write_json(folder, split, listed, annotations)
    return folder


def write_json(folder: Path, split: str, images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> None:
    categories = [{"id": number, "name": name, "supercategory": "shape"} for name, number in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def background(number: int, size: int, upright: bool) -> Image.Image:
    """A photograph in gray and low contrast, so that the shapes stand out."""
    shipped = [photographs.astronaut(), photographs.coffee(), photographs.chelsea(), *load_sample_images().images]
    sides = (size * 3 // 4, size) if upright else (size, size * 3 // 4)
    gray = Image.fromarray(shipped[number % len(shipped)]).convert("L").resize(sides, Image.Resampling.BICUBIC)
    return Image.fromarray(np.stack([np.asarray(gray) // 2 + 64] * 3, -1))


def paste_shapes(picture: Image.Image, image_id: int, random: np.random.Generator) -> list[dict[str, Any]]:
    """Draw one to three shapes, each in a cell of its own, and return their annotations."""
    width, height = picture.size
    columns = random.permutation(3)[: random.integers(1, 4)]
    annotations = []
    for column in columns:
        name = str(random.choice(list(CATEGORIES)))
        cell = width / 3
        side = random.uniform(0.55, 0.95) * min(cell, height)
        left = column * cell + random.uniform(0, cell - side)
        top = random.uniform(0, height - side)
        mask, polygon = drawn(name, (left, top, side), picture.size)
        picture.paste(COLORS[name], (0, 0), Image.fromarray(255 * mask))
        rle = coder.encode(np.asfortranarray(mask))
        # In turn: an uncompressed encoding, a compressed one, and polygons, which cover the same pixels nearly.
        form = (image_id // 10 + int(column)) % 3
        segmentation: Any = [polygon] if form == 0 else {"size": [height, width], "counts": rle["counts"].decode()}
        if form == 1:
            segmentation = {"size": [height, width], "counts": uncompressed(mask)}
        rows, cells = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [int(cells[0]), int(rows[0]), int(cells[-1] - cells[0] + 1), int(rows[-1] - rows[0] + 1)]
        annotations.append(
            {
                "image_id": image_id,
                "category_id": CATEGORIES[name],
                "bbox": box,
                "area": float(mask.sum()),
                "iscrowd": 0,
                "segmentation": segmentation,
            }
        )
    return annotations


def drawn(name: str, place: tuple[float, float, float], size: tuple[int, int]) -> tuple[np.ndarray, list[float]]:
    """The mask of a shape, (H, W), uint8, and its outline as a polygon. place: left, top, side."""
    left, top, side = place
    if name == "circle":
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        points = np.stack([left + side / 2 * (1 + np.cos(angles)), top + side / 2 * (1 + np.sin(angles))], 1)
    elif name == "rectangle":
        points = np.array([[0, 0.15], [1, 0.15], [1, 0.85], [0, 0.85]]) * side + [left, top]
    else:
        points = np.array([[0.5, 0], [1, 1], [0, 1]]) * side + [left, top]
    polygon = [round(float(value), 2) for value in points.ravel()]
    return coder.decode(coder.segmToRle([polygon], *size)), polygon


def crowd(picture: Image.Image, image_id: int) -> dict[str, Any]:
    """A strip of small circles at the lower edge, as one crowd."""
    width, height = picture.size
    image = Image.new("L", picture.size)
    side = max(4, height // 12)
    for left in range(0, width - side, 2 * side):
        ImageDraw.Draw(image).ellipse((left, height - side, left + side - 1, height - 1), fill=1)
    mask = np.asarray(image)
    picture.paste(COLORS["circle"], (0, 0), Image.fromarray(255 * mask))
    return {
        "image_id": image_id,
        "category_id": CATEGORIES["circle"],
        "bbox": [0, height - side, width, side],
        "area": float(mask.sum()),
        "iscrowd": 1,
        "segmentation": {"size": [height, width], "counts": uncompressed(mask)},
    }


def uncompressed(mask: np.ndarray) -> list[int]:
    """The lengths of the runs of 0 and 1, column by column, beginning with 0."""
    pixels = mask.T.ravel()
    edges = [0, *(np.flatnonzero(np.diff(pixels)) + 1).tolist(), pixels.size]
    runs = np.diff(edges).tolist()
    return runs if pixels[0] == 0 else [0, *runs]


def annotations_of(root: Path, split: str = "train") -> Path:
    return root / "annotations" / f"instances_{split}2017.json"


def change(root: Path, by: Change, split: str = "train") -> None:
    """Apply a change to the JSON file of a split."""
    path = annotations_of(root, split)
    content = json.loads(path.read_text())
    by(content)
    path.write_text(json.dumps(content))
