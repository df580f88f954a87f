"""Workers reuse shared memory for their batches, and no batch changes before the next one is asked for."""

import weakref
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from PIL import Image

from data.examples import Example, Examples, View
from data.loader import batches_of, make_loader
from data.samplers import EvalBatches
from data.shared_memory import PREFETCHED, SharedBuffers
from data.viewed_examples import ViewedExamples

IMAGES, BATCH, WORKERS = 61, 4, 2


class Numbers(Examples):
    """The image's number in each of its pixels."""

    classes: ClassVar = ["one"]

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> Example:
        return Example(Image.new("RGB", (1, 1), (index, index, index)), 0, str(index))


class Square(View):
    """Buffers are reallocated when image sizes change between batches."""

    def __init__(self, grows_at: int = IMAGES) -> None:
        self.grows_at = grows_at
        self.buffers = SharedBuffers()

    def sample(self, example: Example) -> torch.Tensor:
        assert isinstance(example.image, Image.Image)
        number = example.image.getpixel((0, 0))[0]  # type: ignore[index]
        side = 8 if number < self.grows_at else 12
        return torch.full((side, side, 3), number, dtype=torch.uint8)

    def collate(self, samples: Sequence[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        return {"nested": [self.buffers.stack(samples)]}


def loader(view: Square, workers: int = WORKERS) -> torch.utils.data.DataLoader:
    viewed = ViewedExamples(Numbers(), view, replace=False)
    return make_loader(viewed, EvalBatches(IMAGES, BATCH), workers, torch.device("cpu"), keep_workers=False)


def pixels_of(view: Square, workers: int = WORKERS) -> Iterator[torch.Tensor]:
    """The pixels of each batch; a batch lives until the next one is asked for."""
    for batch in batches_of(loader(view, workers)):
        yield batch.samples["nested"][0]


def numbers_in(pixels: torch.Tensor) -> list[int]:
    assert (pixels == pixels[:, :1, :1, :1]).all()
    return pixels[:, 0, 0, 0].tolist()


def test_pixels_stay_until_the_next_batch_is_asked_for() -> None:
    seen = []
    for pixels in pixels_of(Square()):
        seen += numbers_in(pixels)
    assert seen == list(range(IMAGES))


def test_memory_is_used_again_and_grows_with_the_images() -> None:
    addresses = [pixels.data_ptr() for pixels in pixels_of(Square())]
    assert WORKERS < len(set(addresses)) <= WORKERS * (PREFETCHED + 1) < len(addresses)
    grown = [(pixels.shape[1], numbers_in(pixels)) for pixels in pixels_of(Square(32))]
    assert [number for _, numbers in grown for number in numbers] == list(range(IMAGES))
    assert [side for side, _ in grown] == [8] * 8 + [12] * 8


def test_two_loops_over_one_loader_do_not_share_memory() -> None:
    both = loader(Square())
    for batches in zip(batches_of(both), batches_of(both), strict=True):
        one, other = (batch.samples["nested"][0] for batch in batches)
        assert numbers_in(one) == numbers_in(other)
        assert one.data_ptr() != other.data_ptr()


def test_without_workers_each_batch_has_its_own() -> None:
    seen = [number for pixels in list(pixels_of(Square(), workers=0)) for number in numbers_in(pixels)]
    assert seen == list(range(IMAGES))


class Ragged(Square):
    """A view that does not use `SharedBuffers`: its batches are lists of tensors."""

    def collate(self, samples: Sequence[torch.Tensor]) -> list[torch.Tensor]:  # type: ignore[override]
        return list(samples)


def test_old_batches_of_any_view_are_released() -> None:
    """Otherwise shared memory would fill up during an epoch."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0
    for batch in batches_of(loader(Ragged())):
        alive.update(batch.samples)
        del batch
        most = max(most, len(alive))
    assert most <= BATCH * (WORKERS * (PREFETCHED + 1) + 1) < IMAGES
