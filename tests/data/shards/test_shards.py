"""A data set in shards equals the data set in files, on a local disk, over HTTP and in a bucket."""

from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.datasets.folder import Folder
from data.datasets.imagenet_shards import ShardImages
from data.loader import TrainLoader
from data.mixing import Mixing
from data.samplers import EvalBatches, TrainBatches
from data.transforms import TrainTransform
from data.views.labelled_crop import RandomLabelledCrop
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing

from .servers import Faults, serving
from .sharded import contents, record_requests, seen, source, unpadded


def test_the_images_are_those_of_the_folder(shards: Path, tree: Path) -> None:
    ours, theirs = source(shards), Folder(root=str(tree))
    train, val = ours.train(), ours.val(["green", "red"])
    assert (train.classes, len(train), len(val)) == (["green", "red"], 46, 11)
    assert contents(train) == contents(theirs.train())
    assert contents(val) == contents(theirs.val())
    image, key = train[0].image, train[0].key
    assert image.origin.startswith(f"{shards}/train/000000.tar/00000000_0")
    assert key == image.origin
    assert image.rgb().size == (24, image.rgb().height)
    with pytest.raises(IndexError):
        train[46]


@pytest.mark.parametrize("fault", ["dropped", "503"])
def test_over_http_they_are_the_same_whatever_the_server_does(
    shards: Path, tree: Path, tmp_path: Path, fault: str
) -> None:
    faults = Faults(fault, times=2, suffix="")
    with serving(shards, faults) as base:
        ours = source(base, cache_dir=str(tmp_path / "cache"))
        assert contents(ours.train()) == contents(Folder(root=str(tree)).train())
    assert faults.requests["/train/index.json"] == 3
    assert {count for path, count in faults.requests.items() if path.startswith("/train/0")} == {3}


def test_in_a_bucket_they_are_the_same(
    shards: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        client = boto3.client("s3")
        client.create_bucket(Bucket="images")
        for path in shards.rglob("*.*"):
            client.upload_file(str(path), "images", f"in/{path.relative_to(shards)}")
        ours = source("s3://images/in", cache_dir=str(tmp_path / "cache"))
        theirs = Folder(root=str(tree))
        assert contents(ours.val()) == contents(theirs.val())
        images = ours.train()
        assert seen(images, [TrainBatches(46, 1, seed=0, shuffled=images.shuffled)], workers=2) == dict.fromkeys(
            unpadded(contents(theirs.train())), 1
        )
        with pytest.raises(InputError, match=r"^s3://images/else/train/index\.json: no such file; shards need"):
            source("s3://images/else").train()
    finally:
        server.stop()


def test_three_processes_with_two_workers_each_see_each_image_once(shards: Path, tree: Path, tmp_path: Path) -> None:
    faults = Faults("dropped", times=1)
    with serving(shards, faults) as base:
        ours = source(base, cache_dir=str(tmp_path / "cache"), shuffle_shards=2)
        train, val = ours.train(), ours.val()
        shares = [TrainBatches(46, 2, seed=1, rank=rank, world_size=3, shuffled=train.shuffled) for rank in range(3)]
        found = seen(train, shares, workers=2)
        evaluated = seen(val, [EvalBatches(len(val), 2, rank=rank, world_size=3) for rank in range(3)], workers=2)
    theirs = Folder(root=str(tree))
    assert found.total() == 42, "whole batches of 6"
    assert set(found.values()) == {1}
    assert found.keys() <= unpadded(contents(theirs.train())).keys()
    assert evaluated == unpadded(contents(theirs.val()))


def test_the_order_is_a_permutation_in_windows_of_shards(shards: Path) -> None:
    images = source(shards, shuffle_shards=3).train()
    order = images.shuffled(np.random.default_rng(5))
    assert sorted(order.tolist()) == list(range(46))
    visited = [int(np.searchsorted(images.ends, index, side="right")) for index in order]
    windows = [set(images.shard_order[start : start + 3].tolist()) for start in range(0, 10, 3)]
    sizes = [sum(images.shards[shard].shard.samples for shard in window) for window in windows]
    ends = np.cumsum(sizes).tolist()
    for window, start, end in zip(windows, [0, *ends], ends, strict=False):
        assert set(visited[start:end]) == window
        changes = sum(one != other for one, other in pairwise(visited[start:end]))
        assert changes > len(window) or len(window) == 1, "the samples of a window are shuffled"
    assert sorted(chain.from_iterable(windows)) == list(range(10))
    again = images.shuffled(np.random.default_rng(5))
    assert (order == again).all()
    assert (order != images.shuffled(np.random.default_rng(6))).any()


def test_the_order_follows_from_seed_and_epoch_for_any_number_of_processes(shards: Path) -> None:
    def batches(rank: int, world_size: int) -> list[list[tuple[int, int]]]:
        images = source(shards, shuffle_shards=3).train()
        made = TrainBatches(46, 12 // world_size, seed=1, rank=rank, world_size=world_size, shuffled=images.shuffled)
        made.epoch = 4
        return list(made)

    shares = [batches(rank, 3) for rank in range(3)]
    for number, batch in enumerate(batches(0, 1)):
        assert sorted(batch) == sorted(chain.from_iterable(share[number] for share in shares))


def test_augmented_batches_are_the_same_from_a_failing_server(shards: Path, tmp_path: Path) -> None:
    """Fetching and waiting must not use the random numbers of the augmentation."""
    options = {"scale": (0.1, 1.0), "ratio": (0.7, 1.4), "hflip": 0.5, "color_jitter": 0.4, "erase_prob": 0.3}

    def first_epoch(images: ShardImages, workers: int) -> list[torch.Tensor]:
        transform = TrainTransform(Preprocessing(size=(16, 16)), rand_augment="rand-m9-mstd0.5-inc1", **options)
        mixing = Mixing(2, mixup=0.8, cutmix=1.0, switch_prob=0.5, label_smoothing=0.1)
        order = TrainBatches(len(images), 4, seed=2, shuffled=images.shuffled)
        view = RandomLabelledCrop(transform, mixing)
        loader = TrainLoader(images, [view], order, epochs=1, workers=workers, device=torch.device("cpu"))
        return [batch.images for batch in loader.epoch(0)]

    local = first_epoch(source(shards, shuffle_shards=2).train(), 0)
    with serving(shards, Faults("503", times=1)) as base:
        for workers in (0, 2):
            remote = source(base, cache_dir=str(tmp_path / str(workers)), shuffle_shards=2).train()
            assert all(map(torch.equal, local, first_epoch(remote, workers)))


def test_the_next_window_is_fetched_ahead(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = record_requests(monkeypatch)
    faults = Faults()
    with serving(shards, faults) as base:
        images = source(base, cache_dir=str(tmp_path / "cache"), shuffle_shards=2).train()
        order = images.shuffled(np.random.default_rng(0))
        images[int(order[0])]
        expected = {f"/train/{images.shards[number].shard.name}" for number in images.shard_order[:4].tolist()}
        assert {finished.get(timeout=30) for _ in range(4)} == {f"{base}{path}" for path in expected}
        assert {path for path in faults.requests if path.endswith(".tar")} == expected


def test_a_window_must_fit_into_the_cache_and_the_cache_keeps_to_its_bound(shards: Path, tmp_path: Path) -> None:
    sizes = sorted(path.stat().st_size for path in (shards / "train").glob("*.tar"))
    needed = sum(sizes[-4:])
    with serving(shards) as base:
        cache: dict[str, Any] = {"cache_dir": str(tmp_path / "cache"), "shuffle_shards": 2}
        with pytest.raises(InputError, match=r"^data\.cache_gb=1e-06: must be at least .* for data\.shuffle_shards=2"):
            source(base, cache_gb=1e-6, **cache).train()
        images = source(base, cache_gb=needed / 1e9, **cache).train()
        for index in images.shuffled(np.random.default_rng(0)).tolist():
            images[index]
            taken = [
                int(path.suffixes[0][1:]) if path.suffix == ".part" else path.stat().st_size
                for path in (tmp_path / "cache").glob("*.*")
                if path.exists()
            ]
            assert sum(taken) <= needed


def test_few_shards_of_the_cache_are_held_open(shards: Path, tmp_path: Path) -> None:
    """A shard that was removed from the cache takes disk space until it is closed."""
    with serving(shards) as base:
        for place, most in ((base, 4), (shards, 10)):
            images = source(place, cache_dir=str(tmp_path / "cache"), shuffle_shards=2).train()
            contents(images)
            assert images.reader
            assert len(images.reader.files.kept) == most
