"""Batches: their one shape, and that what is in them depends on nothing but (seed, epoch, sample)."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torchvision.transforms.functional import pil_to_tensor

from data.datasets.digits import Digits
from data.datasets.folder import list_class_folders
from data.examples import Examples
from data.loader import EvalLoader, TrainLoader
from data.mixing import Mixing, rows_of_draws
from data.samplers import TrainBatches
from data.transforms import TrainTransform
from data.views.labelled_crop import CenterLabelledCrop, LabelledImages, RandomLabelledCrop
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing

from .test_transforms import whole

CPU = torch.device("cpu")
DEIT = {
    "scale": (0.08, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "hflip": 0.5,
    "color_jitter": 0.4,
    "rand_augment": "rand-m9-mstd0.5-inc1",
    "erase_prob": 0.25,
}
BOTH = {"mixup": 0.8, "cutmix": 1.0, "switch_prob": 0.5, "label_smoothing": 0.1}
NEITHER = BOTH | {"mixup": 0.0, "cutmix": 0.0}


def loader(
    images: Examples,
    *,
    workers: int = 0,
    batch_size: int = 16,
    mixing: dict | None = None,
    sizes: tuple[int, ...] = (24,),
    epochs: int = 1,
    device: torch.device = CPU,
    erase_prob: float = 0.25,
    **shares: int,
) -> TrainLoader:
    return TrainLoader(
        images,
        [
            RandomLabelledCrop(
                TrainTransform(Preprocessing(size=(size, size)), **DEIT | {"erase_prob": erase_prob}),
                Mixing(len(images.classes), **(mixing or BOTH)),
            )
            for size in sizes
        ],
        TrainBatches(len(images), batch_size, seed=3, repeats=3, **shares),
        epochs=epochs,
        workers=workers,
        device=device,
    )


def first(batches: TrainLoader, epoch: int, count: int = 4) -> list[LabelledImages]:
    iterator = batches.epoch(epoch)
    return [next(iterator) for _ in range(count)]


def test_a_training_batch_has_its_one_shape() -> None:
    (batch,) = first(loader(Digits().train()), epoch=0, count=1)
    assert batch.images.shape == (16, 3, 24, 24)
    assert batch.images.dtype == batch.targets.dtype == torch.float32
    assert batch.targets.shape == (16, 10)
    torch.testing.assert_close(batch.targets.sum(1), torch.ones(16))
    assert batch.labels.shape == (16,)
    assert batch.labels.dtype == torch.int64


def test_augmentation_does_not_depend_on_workers_or_on_what_was_loaded_before() -> None:
    images = Digits().train()
    alone, helped = loader(images), loader(images, workers=2)
    first(alone, epoch=0, count=2)  # history that must not matter
    torch.manual_seed(99)
    for mine, other in zip(first(alone, epoch=1), first(helped, epoch=1), strict=True):
        for a, b in zip(mine, other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_a_gpu_come_through_pinned_memory_and_are_those_on_the_cpu(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: set[tuple[str, bool]] = set()
    to_device = RandomLabelledCrop.to_device

    def noted(self: RandomLabelledCrop, collated: Any, device: torch.device, *seeds: Any) -> LabelledImages:
        pinned.add((device.type, collated.pixels.is_pinned()))
        return to_device(self, collated, device, *seeds)

    monkeypatch.setattr(RandomLabelledCrop, "to_device", noted)
    # Without erasing, whose noise comes from the generator of the device.
    here, there = (
        loader(Digits().train(), workers=workers, device=torch.device(name), erase_prob=0.0) for name in ("cpu", "cuda")
    )
    for mine, other in zip(first(here, epoch=0), first(there, epoch=0), strict=True):
        for a, b in zip(mine, other, strict=True):
            assert b.is_cuda
            torch.testing.assert_close(a, b.cpu())
    assert pinned == {("cpu", False), ("cuda", True)}


def test_two_processes_see_what_one_sees_mixed_the_same() -> None:
    images = Digits().train()
    shares = [first(loader(images, batch_size=8, rank=rank, world_size=2), epoch=2) for rank in range(2)]
    for number, undivided in enumerate(first(loader(images), epoch=2)):
        together = [torch.cat(parts) for parts in zip(*(share[number] for share in shares), strict=True)]
        order, own_order = together[0].flatten(1).sum(1).argsort(), undivided.images.flatten(1).sum(1).argsort()
        for mine, theirs in zip(undivided, together, strict=True):
            torch.testing.assert_close(mine[own_order], theirs[order])


def test_each_epoch_and_each_copy_is_augmented_anew() -> None:
    batches = loader(Digits().train(), mixing=NEITHER)
    before, after = (first(batches, epoch, count=1)[0] for epoch in (0, 1))
    assert not torch.equal(before.images, after.images)
    flat = before.images.flatten(1)
    assert all(not torch.equal(flat[i], flat[j]) for i in range(16) for j in range(i))


@pytest.mark.parametrize(
    ("sizes", "epochs", "seen"),
    [
        ((16,), 3, [16, 16, 16, 16]),
        ((16, 24), 4, [16, 16, 24, 24, 24, 24]),
        ((16, 20, 24), 3, [16, 20, 24, 24]),
        ((16, 20, 24), 7, [16, 16, 16, 20, 20, 24, 24, 24]),
    ],
)
def test_image_sizes_share_the_epochs_out_and_the_last_one_stays(
    sizes: tuple[int, ...], epochs: int, seen: list[int]
) -> None:
    batches = loader(Digits().train(), sizes=sizes, epochs=epochs, batch_size=4)
    assert [first(batches, epoch, count=1)[0].images.shape[-1] for epoch in range(len(seen))] == seen


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resume_in_a_later_epoch_sees_what_an_uninterrupted_run_sees(workers: int) -> None:
    images = Digits().train()
    through, resumed = (loader(images, sizes=(16, 24), epochs=4, workers=workers) for _ in range(2))
    for epoch in range(3):
        first(through, epoch, count=2)
    for mine, other in zip(first(through, epoch=3), first(resumed, epoch=3), strict=True):
        for a, b in zip(mine, other, strict=True):
            assert torch.equal(a, b)
    assert other.images.shape[-1] == 24


def test_workers_stay_for_one_image_size_and_end_with_it() -> None:
    def workers_after(epoch: int) -> set[int | None]:
        first(batches, epoch, count=1)
        return {process.pid for process in multiprocessing.active_children()} - others

    others = {process.pid for process in multiprocessing.active_children()}
    batches = loader(Digits().train(), sizes=(16, 24), epochs=4, workers=2)
    before, same, after = (workers_after(epoch) for epoch in (0, 1, 2))
    assert len(before) == len(after) == 2
    assert before == same
    assert not before & after


@pytest.mark.parametrize("sizes", [(16, 20, 24), ()])
def test_image_sizes_that_the_epochs_cannot_share_are_refused(sizes: tuple[int, ...]) -> None:
    message = rf"augment\.image_sizes: holds {len(sizes)} sizes; must be 1 to 2, the epochs of the run"
    with pytest.raises(InputError, match=message):
        loader(Digits().train(), sizes=sizes, epochs=2)


def test_mixing_is_timms_with_both_kinds() -> None:
    """Soft targets hold two classes; over some batches both a global lambda and pasted boxes occur."""
    images, labels = torch.zeros(8, 3, 16, 16), torch.arange(8)
    images += labels.view(-1, 1, 1, 1)
    mixing = Mixing(10, **BOTH | {"label_smoothing": 0.0})
    kinds = set()
    for step in range(20):
        mixed, targets, _ = mixing(images.clone(), labels, torch.ones(8), [0, 0, step], range(8))
        torch.testing.assert_close(targets.sum(1), torch.ones(8))
        values = mixed[0].unique()
        assert targets[0].nonzero().flatten().tolist() in ([0], [7], [0, 7])
        kinds.add("box" if len(values) > 1 else "blend")
        if len(values) == 1:
            assert values.item() == pytest.approx(7 * targets[0, 7].item(), abs=1e-5)
    assert kinds == {"box", "blend"}


def mixed_by(world_size: int, mix_draws: int) -> dict[int, list[float]]:
    """Mix two global batches of 32 images on several processes: label of an image → its targets."""
    shares: dict[int, list[float]] = {}
    for rank in range(world_size):
        order = TrainBatches(64, 32 // world_size, seed=3, rank=rank, world_size=world_size)
        mixing = Mixing(64, **BOTH | {"label_smoothing": 0.0}, mix_draws=mix_draws)
        for number, batch in enumerate(order):
            labels = torch.tensor([index for index, _ in batch])
            images = labels.float().view(-1, 1, 1, 1).expand(-1, 3, 16, 16).clone()
            weights = torch.ones(len(labels))
            images, targets, _ = mixing(images, labels, weights, [3, 0, number], [seed for _, seed in batch])
            # What the images show is what the targets say.
            torch.testing.assert_close(images.mean((1, 2, 3)), targets @ torch.arange(64.0), rtol=1e-4, atol=1e-4)
            shares |= zip(labels.tolist(), targets.tolist(), strict=True)
    return shares


@pytest.mark.parametrize("world_size", [2, 4, 8, 16])
@pytest.mark.parametrize("mix_draws", [1, 4])
def test_images_are_mixed_alike_by_any_number_of_processes(mix_draws: int, world_size: int) -> None:
    alone, together = mixed_by(1, mix_draws), mixed_by(world_size, mix_draws)
    assert alone.keys() == together.keys()
    for label, targets in alone.items():
        assert together[label] == pytest.approx(targets, abs=1e-6), label


def test_a_batch_has_as_many_draws_as_it_is_told() -> None:
    def draws(mix_draws: int) -> int:
        return len({round(max(targets), 4) for targets in mixed_by(1, mix_draws).values()})

    assert draws(1) == 2, "one for each of the two batches"
    assert draws(3) == 6


def test_draws_have_about_equal_shares_and_keep_partners_together() -> None:
    seeds = np.random.default_rng(0).integers(2**32, size=1024).tolist()
    rows = rows_of_draws(seeds, 8)
    assert sorted(rows) == list(range(8))
    assert sorted(row for of_draw in rows.values() for row in of_draw) == list(range(1024))
    assert all(80 <= len(of_draw) <= 176 for of_draw in rows.values())
    assert all(of_draw[i] + of_draw[-1 - i] == 1023 for of_draw in rows.values() for i in range(len(of_draw)))


def test_without_mixing_targets_are_smoothed_labels() -> None:
    weights = torch.tensor([0.5, 1.5])
    images, targets, same = Mixing(5, **NEITHER)(torch.ones(2, 3, 4, 4), torch.tensor([1, 4]), weights, [0], [0, 0])
    assert torch.equal(same, weights)
    torch.testing.assert_close(targets[0], torch.tensor([0.02, 0.92, 0.02, 0.02, 0.02]))
    assert torch.equal(images, torch.ones(2, 3, 4, 4))


def test_mixing_one_class_is_a_contradiction() -> None:
    with pytest.raises(
        InputError, match=r"^data: the training images have one class, .* \(augment\.cutmix=1\.0 mixes them\)"
    ):
        Mixing(1, **BOTH).check_kind("class")
    Mixing(1, **BOTH).check_kind("values")  # one number can be mixed


def test_mixing_an_odd_batch_is_a_contradiction() -> None:
    with pytest.raises(InputError, match="gives 7 images per process; mixup and CutMix need an even number"):
        loader(Digits().train(), batch_size=7)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_in_one_line_from_any_process(image_tree: Callable[..., Path], workers: int) -> None:
    root = image_tree("mine", {"train/cat": 8, "train/dog": 8})
    broken = root / "train" / "dog" / "003.png"
    broken.write_bytes(b"broken")
    images = list_class_folders(root / "train")
    with pytest.raises(InputError) as caught:
        list(loader(images, workers=workers).epoch(0))
    assert str(caught.value).startswith(f"{broken}: cannot be decoded")
    assert "\n" not in str(caught.value)


def test_evaluation_takes_the_last_part_batch_and_one_hot_targets() -> None:
    view = CenterLabelledCrop(Preprocessing(size=(20, 20)), 10)
    batches = list(EvalLoader(Digits().val(), view, 128, workers=0, device=CPU))
    assert [len(batch.images) for batch in batches] == [128, 128, 104]
    assert torch.equal(batches[0].targets.argmax(1), batches[0].labels)
    assert torch.equal(batches[0].targets.sum(1), torch.ones(128))
    assert batches[0].targets.shape == (128, 10)


def test_the_evaluation_crop_is_the_centre(image_tree: Callable[..., Path]) -> None:
    """Full crop: the short side becomes the image size, and the middle of the long side is kept."""
    images = list_class_folders(image_tree("mine", {"cat": 1}))
    picture = images[0].image.rgb()
    assert picture.size == (24, 20)
    kept = whole(CenterLabelledCrop(Preprocessing(size=(20, 20)), 1), picture)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    pixels = pil_to_tensor(picture.crop((2, 0, 22, 20)))
    torch.testing.assert_close(kept * std + mean, pixels / 255, atol=1e-5, rtol=0)
    wider = whole(CenterLabelledCrop(Preprocessing(size=(20, 20), crop_ratio=0.5), 1), picture)
    assert wider.shape == (3, 20, 20)
    assert not torch.allclose(wider, kept)
