"""A batch's pixels stay as they are until the next batch is asked for, in memory that is used again."""

import time

import torch
from PIL import Image

from data import EvalBatches
from data.images import Transform, TransformedImages
from data.loader import batches_of, make_loader
from data.shared_memory import PREFETCHED

IMAGES, BATCH, WORKERS = 61, 4, 2


class Numbers:
    """The image's number in each of its pixels."""

    def __init__(self) -> None:
        self.classes = ["one"]

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (1, 1), (index, index, index)), 0


class Square(Transform):
    """Sizes change from image to image of a later batch on: the memory has to change with them."""

    def __init__(self, grows_at: int = IMAGES) -> None:
        self.grows_at = grows_at

    def __call__(self, image: Image.Image) -> torch.Tensor:
        number = image.getpixel((0, 0))[0]
        side = 8 if number < self.grows_at else 12
        return torch.full((side, side, 3), number, dtype=torch.uint8)

    def on_device(self, images: torch.Tensor, seeds: object) -> torch.Tensor:
        return images


def loader(transform: Square, workers: int = WORKERS) -> torch.utils.data.DataLoader:
    samples = TransformedImages(Numbers(), transform, replace=False)
    return make_loader(samples, EvalBatches(IMAGES, BATCH), workers, torch.device("cpu"), keep_workers=False)


def numbers_in(pixels: torch.Tensor) -> list[int]:
    assert (pixels == pixels[:, :1, :1, :1]).all()
    return pixels[:, 0, 0, 0].tolist()


def test_pixels_stay_until_the_next_batch_is_asked_for() -> None:
    seen = []
    for batch in batches_of(loader(Square())):
        time.sleep(0.02)  # the workers are as far ahead as they may be
        seen += numbers_in(batch.pixels)
    assert seen == list(range(IMAGES))


def test_memory_is_used_again_and_grows_with_the_images() -> None:
    addresses = [batch.pixels.data_ptr() for batch in batches_of(loader(Square()))]
    assert WORKERS < len(set(addresses)) <= WORKERS * (PREFETCHED + 1) < len(addresses)
    grown = [(batch.pixels.shape[1], numbers_in(batch.pixels)) for batch in batches_of(loader(Square(32)))]
    assert [number for _, numbers in grown for number in numbers] == list(range(IMAGES))
    assert [side for side, _ in grown] == [8] * 8 + [12] * 8


def test_two_loops_over_one_loader_do_not_share_memory() -> None:
    both = loader(Square())
    for one, other in zip(batches_of(both), batches_of(both), strict=True):
        assert numbers_in(one.pixels) == numbers_in(other.pixels)
        assert one.pixels.data_ptr() != other.pixels.data_ptr()


def test_without_workers_each_batch_has_its_own() -> None:
    seen = [number for batch in list(batches_of(loader(Square(), workers=0))) for number in numbers_in(batch.pixels)]
    assert seen == list(range(IMAGES))
