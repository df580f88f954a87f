"""Shards in forked processes, and whole runs on shards."""

import json
import multiprocessing
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.datasets.imagenet_shards import ShardImages
from data.shards.reader import LRUCache
from xcit.engine.loop import Trainer

from ...conftest import ROOT, launch_forks
from .servers import Faults, serving
from .sharded import SMALL, Command, source


def test_images_go_to_other_processes_and_back(shards: Path) -> None:
    images = source(shards).train()
    images[3]
    assert pickle.loads(pickle.dumps(images))[3] == images[3]


def read_in_a_fork(images: ShardImages) -> None:
    images[1]
    assert images.reader and images.reader.prefetcher and images.reader.prefetcher.thread
    sys.exit(0 if images.reader.prefetcher.thread.is_alive() else 1)


def test_a_fork_of_a_process_that_has_read_gets_a_thread_of_its_own(shards: Path, tmp_path: Path) -> None:
    with serving(shards) as base:
        images = source(base, cache_dir=str(tmp_path / "cache")).train()
        images[0]
        process = multiprocessing.get_context("fork").Process(target=read_in_a_fork, args=(images,))
        process.start()
        process.join(30)
        assert process.exitcode == 0


def test_what_is_kept_stays_within_its_weight() -> None:
    cache: LRUCache[str] = LRUCache(5)
    for key in (1, 2, 3):
        cache.keep(key, str(key), 2)
    assert cache.get(1) is None
    assert cache.get(2) == "2"
    cache.keep(4, "4", 2)
    assert (cache.get(3), cache.get(2), cache.weight) == (None, "2", 4)


ENDS_WHILE_FETCHING = """
import sys
from data.datasets.imagenet_shards import ImageNetShards
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
    assert result.stderr.count("HTTP 503") < 5, "after the failure nothing is tried again"


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_with_two_workers_learn_what_one_learns(command: Command, shards: Path, tmp_path: Path) -> None:
    with serving(shards, Faults("dropped", times=1)) as base:
        urls = (f"data.urls={base}/train", f"data.val_urls={base}/val", f"data.cache_dir={tmp_path}/cache")
        arguments = (*SMALL, *urls, "data.backoff=0.001", "data.workers=2", "train.global_batch_size=12")
        arguments += ("train.precision=fp32",)  # bf16 rounds differently for other batch sizes
        together = launch_forks("train.py", *arguments, "run_dir=two", cwd=tmp_path)
        assert together.status == 0, together.stderr
        alone = command("train.py", *arguments, "run_dir=one")
        assert alone.status == 0, alone.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["images"] == 11


def test_an_epoch_of_shards_is_finished_as_it_was_begun(command: Command, shards: Path, tmp_path: Path) -> None:
    update = Trainer.update

    def stopped_update(trainer: Trainer, *given: Any) -> Any:
        if trainer.state.step == 1:
            signal.raise_signal(signal.SIGTERM)
        return update(trainer, *given)

    arguments = (*SMALL, f"data.urls={shards}/train", f"data.val_urls={shards}/val", "data.workers=0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "update", stopped_update)
        stopped = command("train.py", *arguments, "run_dir=run")
    assert "stopped by SIGTERM after update 2" in stopped.stderr
    result = command("train.py", *arguments, "resume=run", "data.shuffle_shards=3")
    assert result.status == 2
    assert result.stderr.splitlines()[-1].endswith(
        "must be finished as it was begun: data.shuffle_shards was 2 and is 3 now"
    )
    result = command("train.py", *arguments, "resume=run")
    assert result.status == 0, result.stderr
