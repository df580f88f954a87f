"""Makes small data sets for segmentation: photographs with flat shapes on them, and exact masks."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage import data as photographs
from sklearn.datasets import load_sample_images

SHAPES = {"disc": (220, 40, 40), "square": (40, 90, 220), "triangle": (250, 210, 30)}
CLASSES = ["background", *SHAPES]
"""The classes of the masks that `picture` makes: 0 is the photograph, 1 to 3 are the shapes."""
IGNORED = 255
"""The value of the strip at the bottom of each mask, which belongs to no class."""


def picture(number: int, size: tuple[int, int] = (96, 128), seed: int = 0) -> tuple[Image.Image, np.ndarray]:
    """One photograph with a shape of each class, and its mask: (H, W), uint8. size: (H, W), at least (32, 32)."""
    random = np.random.default_rng([seed, number])
    height, width = size
    image = background(number, size, random)
    mask = Image.new("L", image.size)
    # Each shape has a column of its own, so that none covers another one.
    for column, label in enumerate(random.permutation(len(SHAPES))):
        radius = int(random.integers(min(size) // 8, min(size) // 6 + 1))
        left = column * width // 3 + radius + 1
        x = int(random.integers(left, max(left + 1, (column + 1) * width // 3 - radius)))
        y = int(random.integers(radius, height - height // 8 - radius))
        draw(image, list(SHAPES)[label], (x, y), radius, list(SHAPES.values())[label])
        draw(mask, list(SHAPES)[label], (x, y), radius, int(label) + 1)
    labels = np.array(mask)
    labels[height - height // 16 :] = IGNORED
    return image, labels


def background(number: int, size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """A random part of one of the photographs that scikit-image and scikit-learn ship."""
    names = ("astronaut", "chelsea", "coffee", "rocket")
    shipped = [lambda name=name: getattr(photographs, name)() for name in names]
    shipped += [lambda index=index: load_sample_images().images[index] for index in range(2)]
    photograph = Image.fromarray(shipped[number % len(shipped)]())
    side = min(photograph.size)
    scale = random.uniform(0.6, 1.0) * side / max(size)
    height, width = (int(scale * length) for length in size)
    left, top = (int(random.integers(0, free + 1)) for free in (photograph.width - width, photograph.height - height))
    return photograph.resize(size[::-1], box=(left, top, left + width, top + height))


def draw(image: Image.Image, shape: str, center: tuple[int, int], radius: int, fill: object) -> None:
    """Draw a shape without antialiasing, so that the same call on a mask marks exactly its pixels."""
    (x, y), pen = center, ImageDraw.Draw(image)
    if shape == "disc":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif shape == "square":
        pen.rectangle((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        pen.polygon([(x, y - radius), (x - radius, y + radius), (x + radius, y + radius)], fill=fill)


def write_small_ade(
    folder: Path, images: int = 8, size: tuple[int, int] = (96, 128), seed: int = 0, *, validation: int = 4
) -> Path:
    """Write a data set in ADE20k's layout. Return its root.

    Class k of `CLASSES` has the value k + 1, as "wall", "building", "sky" and "floor" have. 0 is ignored.

    Args:
        images: The number of training images.
        size: (H, W) of the images.
        validation: The number of validation images, which are others; 0: the training images again.
    """
    for split, numbers in splits_of(images, validation, ("training", "validation")).items():
        for number in numbers:
            image, mask = picture(number, size, seed)
            name = f"ADE_{'train' if split == 'training' else 'val'}_{number:08}"
            save(image, folder / "images" / split / f"{name}.jpg")
            of_ade = np.where(mask == IGNORED, 0, mask + 1).astype(np.uint8)
            save(Image.fromarray(of_ade), folder / "annotations" / split / f"{name}.png")
    return folder


def write_small_masks(
    folder: Path,
    images: int = 8,
    size: tuple[int, int] = (96, 128),
    seed: int = 0,
    *,
    validation: int | None = None,
) -> Path:
    """Write a data set for data=masks with data.classes=ROOT/classes.txt. Return its root.

    The masks have a palette, and `CLASSES` are 0 to 3; 255 is ignored.

    Args:
        images: The number of images, of training images if there are splits.
        size: (H, W) of the images.
        validation: The number of validation images; 0: the training images again; None: the folder has no splits.
    """
    splits = {"": range(images)} if validation is None else splits_of(images, validation, ("train", "val"))
    for split, numbers in splits.items():
        for number in numbers:
            image, mask = picture(number, size, seed)
            save(image, folder / "images" / split / f"{number:03}.jpg")
            indices = Image.fromarray(mask)
            indices.putpalette([(40 * step) % 256 for step in range(768)])
            save(indices, folder / "masks" / split / f"{number:03}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


def splits_of(images: int, validation: int, names: tuple[str, str]) -> dict[str, range]:
    """Split → the numbers of its images."""
    return {names[0]: range(images), names[1]: range(images, images + validation) if validation else range(images)}


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"quality": 95, "subsampling": 0} if path.suffix == ".jpg" else {}))
