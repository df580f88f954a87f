"""A data set in shards is the data set in files: the same bytes, each once, wherever the shards are."""

import io
import json
import multiprocessing
import pickle
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from data import DataError, EvalBatches, Folder, ImageNetShards, Mixing, TrainBatches, TrainLoader, TrainTransform
from data.images import ImageFiles, TransformedImages
from data.loader import batches_of, make_loader
from data.shard_index import INDEX, Index, Shard, ShardError
from data.shards import Recent, ShardImages

from ..conftest import ROOT, TINY, Result
from .servers import Faults, serving

Command = Callable[..., Result]
QUICK: dict[str, Any] = {"timeout": 20.0, "backoff": 0.001}
SMALL = (
    *TINY,
    "+model.depth=1",
    "data=imagenet_shards",
    "data.shuffle_shards=2",
    "train.global_batch_size=16",
    "train.ema_decay=null",
    "resolutions=[16]",
)
COUNTS = {"train/green": 26, "train/red": 20, "val/green": 3, "val/red": 8}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def tree(image_tree: Callable[..., Path]) -> Path:
    return image_tree("tree", COUNTS)


@pytest.fixture
def shards(command: Command, tree: Path, tmp_path: Path) -> Path:
    """The tree in shards of 5: ten of training, three of validation."""
    result = command("scripts/make_shards.py", str(tree), str(tmp_path / "shards"), "--samples", "5", "--workers", "1")
    assert result.status == 0, result.stderr
    return tmp_path / "shards"


def source(base: object, **options: Any) -> ImageNetShards:
    return ImageNetShards(urls=f"{base}/train", val_urls=f"{base}/val", **QUICK | options)


def contents(images: ShardImages | ImageFiles) -> Counter[tuple[bytes, int]]:
    return Counter((image.data, label) for image, label in (images[index] for index in range(len(images))))


def test_the_images_are_those_of_the_folder(shards: Path, tree: Path) -> None:
    ours, theirs = source(shards), Folder(root=str(tree))
    train, val = ours.train(), ours.val(["green", "red"])
    assert (train.classes, len(train), len(val)) == (["green", "red"], 46, 11)
    assert contents(train) == contents(theirs.train())
    assert contents(val) == contents(theirs.val())
    image, _ = train[0]
    assert image.origin.startswith(f"{shards}/train/000000.tar/00000000_0")
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
        with pytest.raises(DataError, match=r"^s3://images/else/train/index\.json: no such file; shards are used by"):
            source("s3://images/else").train()
    finally:
        server.stop()


def seen(images: ShardImages, shares: list[Any], workers: int) -> Counter[tuple[bytes, int]]:
    """What the processes of a run get to see in an epoch."""

    class AsItIs:
        def __call__(self, image: Any) -> torch.Tensor:
            return torch.frombuffer(bytearray(image.data.ljust(8000, b"\0")), dtype=torch.uint8)

        def on_device(self, images: torch.Tensor, seeds: Any) -> torch.Tensor:
            return images

    found: Counter[tuple[bytes, int]] = Counter()
    samples = TransformedImages(images, AsItIs(), replace=False)
    for batches in shares:
        loader = make_loader(samples, batches, workers, torch.device("cpu"), keep_workers=False)
        for batch in batches_of(loader):
            found.update(
                (bytes(p.numpy()).rstrip(b"\0"), int(label))
                for p, label in zip(batch.pixels, batch.labels, strict=True)
            )
    return found


def unpadded(counted: Counter[tuple[bytes, int]]) -> dict[tuple[bytes, int], int]:
    return {(data.rstrip(b"\0"), label): count for (data, label), count in counted.items()}


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
    windows = [set(images.order[start : start + 3].tolist()) for start in range(0, 10, 3)]
    sizes = [sum(images.shards[shard].shard.samples for shard in window) for window in windows]
    ends = np.cumsum(sizes).tolist()
    for window, start, end in zip(windows, [0, *ends], ends, strict=False):
        assert set(visited[start:end]) == window
        changes = sum(one != other for one, other in pairwise(visited[start:end]))
        assert changes > len(window) or len(window) == 1, "its samples are mixed"
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
    """What fetches and what waits must leave alone the random numbers of the augmentation."""
    options = {"scale": (0.1, 1.0), "ratio": (0.7, 1.4), "hflip": 0.5, "color_jitter": 0.4, "erase_prob": 0.3}

    def first_epoch(images: ShardImages, workers: int) -> list[torch.Tensor]:
        transform = TrainTransform(16, rand_augment="rand-m9-mstd0.5-inc1", **options)
        mixing = Mixing(2, mixup=0.8, cutmix=1.0, switch_prob=0.5, label_smoothing=0.1)
        order = TrainBatches(len(images), 4, seed=2, shuffled=images.shuffled)
        loader = TrainLoader(images, [transform], mixing, order, epochs=1, workers=workers, device=torch.device("cpu"))
        return [batch.images for batch in loader.epoch(0)]

    local = first_epoch(source(shards, shuffle_shards=2).train(), 0)
    with serving(shards, Faults("503", times=1)) as base:
        for workers in (0, 2):
            remote = source(base, cache_dir=str(tmp_path / str(workers)), shuffle_shards=2).train()
            assert all(map(torch.equal, local, first_epoch(remote, workers)))


def test_the_next_window_is_fetched_ahead(shards: Path, tmp_path: Path) -> None:
    faults = Faults()
    with serving(shards, faults) as base:
        images = source(base, cache_dir=str(tmp_path / "cache"), shuffle_shards=2).train()
        order = images.shuffled(np.random.default_rng(0))
        images[int(order[0])]
        expected = {f"/train/{images.shards[number].shard.name}" for number in images.order[:4].tolist()}
        for _ in range(1000):
            if expected <= faults.requests.keys():
                break
            time.sleep(0.005)  # the thread that fetches ahead tells nobody when it has
        assert {path for path in faults.requests if path.endswith(".tar")} == expected


def test_a_window_must_fit_into_the_cache_and_the_cache_keeps_to_its_bound(shards: Path, tmp_path: Path) -> None:
    sizes = sorted(path.stat().st_size for path in (shards / "train").glob("*.tar"))
    needed = sum(sizes[-4:])
    with serving(shards) as base:
        cache: dict[str, Any] = {"cache_dir": str(tmp_path / "cache"), "shuffle_shards": 2}
        with pytest.raises(DataError, match=r"^data\.cache_gb=1e-06: must be at least .* for data\.shuffle_shards=2"):
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


def test_patterns_name_shards_by_the_index(shards: Path, tree: Path) -> None:
    def names(urls: str | list[str]) -> list[str]:
        return [located.shard.name for located in ImageNetShards(urls=urls).train().shards]

    base = f"{shards}/train"
    assert names(f"{base}/00000[0-2].tar") == ["000000.tar", "000001.tar", "000002.tar"]
    assert names(f"{base}/{{000003..000005}}.tar") == ["000003.tar", "000004.tar", "000005.tar"]
    assert names([f"{base}/000007.tar", f"{base}/*7.tar"]) == ["000007.tar"]
    assert len(names(f"{base}/")) == 10
    both = ImageNetShards(urls=f"{shards}/{{train,val}}").train()
    assert len(both) == 57


@pytest.mark.parametrize(
    ("urls", "line"),
    [
        (None, "data.urls: must be given: a folder of shards, or shards, as data.urls=/path/{000..146}.tar"),
        (
            "BASE/train/77.tar",
            "data.urls=BASE/train/77.tar: no such shard in BASE/train/index.json, which has 10: 000000",
        ),
        (
            "BASE/train/x*",
            "data.urls=BASE/train/x*: no such shard in BASE/train/index.json, which has 10: 000000.tar, 0",
        ),
        (
            "BASE/test",
            "BASE/test/index.json: no such file; shards are used by the index beside them, which `python scr",
        ),
        ("BASE/{1..", "BASE/{1..: cannot be read (Unbalanced braces"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(shards: Path, urls: str | None, line: str) -> None:
    with serving(shards) as http:
        for base in (str(shards), http):
            with pytest.raises(DataError) as caught:
                ImageNetShards(urls=urls and urls.replace("BASE", base)).train()
            assert str(caught.value).startswith(line.replace("BASE", base))


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"shuffle_shards": 0}, "data.shuffle_shards=0: must be at least 1"),
        ({"retries": -1}, "data.retries=-1: must be at least 0"),
        ({"cache_gb": 0.0}, "data.cache_gb=0.0: must be greater than 0"),
        ({"timeout": float("nan")}, "data.timeout=nan: must be greater than 0"),
    ],
)
def test_options_out_of_range(option: dict[str, Any], line: str) -> None:
    with pytest.raises(DataError, match=f"^{line}$"):
        ImageNetShards(urls="x", **option)


def test_validation_is_numbered_as_training(shards: Path) -> None:
    val = source(shards).val(["blue", "red", "green"])
    assert {label for _, label in contents(val)} == {1, 2}
    with pytest.raises(DataError, match="val/green: a class that training lacks"):
        source(shards).val(["red"])


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ({"a.jpg": b"x"}, "a has jpg; must have one image and its class, .cls"),
        ({"a.cls": b"0"}, "a has cls; must have one image and its class, .cls"),
        ({"a.cls": b"0", "a.jpg": b"x", "a.png": b"x"}, "a has cls, jpg, png; must have one image"),
        ({"a.cls": b"cat", "a.jpg": b"x"}, "holds b'cat'; must be the number of a class"),
        ({"a.cls": b"7", "a.jpg": b"x"}, "is class 7, and the index has 2, from 0"),
        ({"a.cls": b"1", "a.jpg": b"x", "b.jpg": b"x", "b.cls": b"1"}, "has 2 samples where index.json has 1"),
        ({}, "has 0 samples where index.json has 1"),
    ],
)
def test_a_shard_that_is_not_what_it_should_be(tmp_path: Path, members: dict[str, bytes], line: str) -> None:
    write_tar(tmp_path / "a.tar", members)
    size = (tmp_path / "a.tar").stat().st_size
    (tmp_path / INDEX).write_text(Index(["cat", "dog"], [Shard("a.tar", 1, size, "0" * 64)]).text())
    with pytest.raises(ShardError) as caught:
        ImageNetShards(urls=str(tmp_path)).train()[0]
    assert str(caught.value).startswith(f"{tmp_path}/a.tar")
    assert line in str(caught.value)


def test_a_local_shard_that_was_changed_or_is_gone(shards: Path) -> None:
    path = shards / "train" / "000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-512])
    with pytest.raises(ShardError, match=r"000000\.tar: has .* bytes where index\.json has "):
        source(shards).train()[0]
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(ShardError, match=r"000000\.tar: has 0 samples where index\.json has 5"):
        source(shards).train()[0]
    path.unlink()
    with pytest.raises(ShardError, match=r"000000\.tar: cannot be read \(No such file"):
        source(shards).train()[0]


def test_what_others_put_into_shards_is_read(tmp_path: Path) -> None:
    """Long names in folders, further members, metadata, the class after the image."""
    deep = "d" * 90 + ".x/" + "e" * 120
    write_tar(
        tmp_path / "a.tar",
        {
            "__meta": b"?",
            f"{deep}.jpeg": b"one",
            f"{deep}.json": b"{}",
            f"{deep}.cls": b"1\n",
            "b.cls": b"0",
            "b.PNG": b"two",
        },
    )
    size = (tmp_path / "a.tar").stat().st_size
    (tmp_path / INDEX).write_text(Index(["cat", "dog"], [Shard("a.tar", 2, size, "0" * 64)]).text())
    images = ImageNetShards(urls=str(tmp_path / "a.tar")).train()
    assert [(image.data, label) for image, label in (images[0], images[1])] == [(b"one", 1), (b"two", 0)]
    assert images[1][0].origin == f"{tmp_path}/a.tar/b.PNG"


def test_images_go_to_other_processes_and_back(shards: Path) -> None:
    images = source(shards).train()
    images[3]
    assert pickle.loads(pickle.dumps(images))[3] == images[3]


def read_in_a_fork(images: ShardImages) -> None:
    images[1]
    assert images.reader and images.reader.ahead and images.reader.ahead.thread
    sys.exit(0 if images.reader.ahead.thread.is_alive() else 1)


def test_a_fork_of_a_process_that_has_read_gets_a_thread_of_its_own(shards: Path, tmp_path: Path) -> None:
    with serving(shards) as base:
        images = source(base, cache_dir=str(tmp_path / "cache")).train()
        images[0]
        process = multiprocessing.get_context("fork").Process(target=read_in_a_fork, args=(images,))
        process.start()
        process.join(30)
        assert process.exitcode == 0


def test_what_is_kept_stays_within_its_weight() -> None:
    recent: Recent[str] = Recent(5)
    for key in (1, 2, 3):
        recent.keep(key, str(key), 2)
    assert recent.get(1) is None
    assert recent.get(2) == "2"
    recent.keep(4, "4", 2)
    assert (recent.get(3), recent.get(2), recent.weight) == (None, "2", 4)


ENDS_WHILE_FETCHING = """
import sys
from data import ImageNetShards
images = ImageNetShards(urls=sys.argv[1], cache_dir=sys.argv[2], shuffle_shards=2, timeout=60.0).train()
images[0]
print("ends")
"""


def test_a_thread_that_still_waits_for_a_server_holds_up_no_exit(shards: Path, tmp_path: Path) -> None:
    with serving(shards, Faults("silent", times=99, suffix="1.tar")) as base:
        done = subprocess.run(
            [sys.executable, "-c", ENDS_WHILE_FETCHING, f"{base}/train", str(tmp_path / "cache")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")


def test_a_run_on_remote_shards_learns_what_it_learns_on_local_ones(
    command: Command, shards: Path, tmp_path: Path
) -> None:
    with serving(shards, Faults("dropped", times=1)) as base:
        remote = ("data.backoff=0.001", f"data.cache_dir={tmp_path}/cache", "data.workers=2", "run_dir=remote")
        for place, options in ((base, remote), (shards, ("data.workers=0", "run_dir=local"))):
            urls = (f"data.urls={place}/train", f"data.val_urls={place}/val")
            result = command("train.py", *SMALL, *urls, *options)
            assert result.status == 0, result.stderr
    runs = [
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("local", "remote")
    ]
    for one, other in zip(*runs, strict=True):
        assert one["loss"] == other["loss"]
        assert one.get("images") == other.get("images")
    assert runs[0][-1]["images"] == 11
    assert json.loads((tmp_path / "remote" / "classes.json").read_text()) == ["green", "red"]
    config = yaml.safe_load((tmp_path / "remote" / "config.yaml").read_text())
    assert config["augment"]["repeats"] == 3


def test_a_run_whose_server_fails_for_good_ends_in_one_clear_line(
    command: Command, shards: Path, tmp_path: Path
) -> None:
    tiny = (*SMALL, "data.workers=1")
    with serving(shards, Faults("503", times=99)) as base:
        urls = (f"data.urls={base}/train", f"data.val_urls={base}/val", f"data.cache_dir={tmp_path}/cache")
        result = command("train.py", *tiny, *urls, "data.retries=1", "data.backoff=0.001", "run_dir=run")
    assert result.status == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: {base}/train/0000")
    assert last.endswith(".tar: cannot be fetched (HTTP 503 Service Unavailable; tried 2 times)")
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) < 8, "nothing is tried again once it is hopeless"
