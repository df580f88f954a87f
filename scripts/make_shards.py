"""Write a tree of images as webdataset shards for data=imagenet_shards, with an index.json.

    python scripts/make_shards.py IMAGENET SHARDS                       # 1,000 images a shard
    python scripts/make_shards.py TREE SHARDS --bytes 500MB --short-side 256
    python scripts/make_shards.py --index-only SHARDS                   # for existing shards
    python scripts/make_shards.py --check SHARDS                        # compares shards with their index

TREE holds train/CLASS/ and val/CLASS/ (or a flat val/ with ImageNet's devkit), which become SHARDS/train/ and
SHARDS/val/. Without val/, test/CLASS/ becomes SHARDS/test/. Or TREE holds CLASS/ alone, which becomes SHARDS/. The
order of the images follows from --seed, so the bytes of the shards depend only on the images and the options. A shard
is written to a temporary file, read back, checked, and renamed. After an interruption, run the script again: it keeps
the finished shards."""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # because data/ is not installed

from data.datasets.folder import list_class_folders
from data.datasets.image_files import ImageFiles, require_folder
from data.datasets.imagenet import ImageNet
from data.datasets.splits import find_splits_or_classes
from data.shards.index import INDEX, Index, Shard
from data.shards.planning import UNFINISHED, divide, fingerprint, is_finished, known_shards, read_record, size_of
from data.shards.writing import ShardJob, make_shard
from data.workers import end_with_parent
from scripts.existing_shards import check_existing, index_existing
from xcit.command import ArgumentParser, guarded
from xcit.engine.progress import Progress
from xcit.errors import InputError, TrainingError, print_note
from xcit.storage import write_text


@guarded
def main() -> None:
    with Progress() as progress:
        make_or_check(parse_arguments(), progress)


def make_or_check(arguments: argparse.Namespace, progress: Progress) -> None:
    if arguments.index_only:
        if arguments.source:
            raise InputError(f"{arguments.source}: --index-only takes a folder of shards, and no SOURCE")
        index_existing(Path(arguments.index_only), arguments.classes, progress)
        return
    if arguments.check:
        check_existing(Path(arguments.check), progress)
        return
    if not arguments.source or not arguments.target:
        raise InputError("SOURCE and TARGET: must be given (or --index-only FOLDER)")
    if arguments.classes:
        raise InputError(f"--classes={arguments.classes}: requires --index-only (SOURCE's folders name the classes)")
    if Path(arguments.target).resolve().is_relative_to(Path(arguments.source).resolve()):
        raise InputError(f"{arguments.target}: is inside SOURCE, {arguments.source}; must be a folder outside it")
    # List all splits before the first is written, so that errors come early.
    progress.begin(f"listing the images in {arguments.source}")
    splits = dict(find_splits(Path(arguments.source), Path(arguments.target)))
    for folder, images in splits.items():
        make_split(folder, images, arguments, progress)


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("source", nargs="?", help="a tree of images")
    parser.add_argument("target", nargs="?", help="a folder for the shards")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--samples", type=whole, default=1000, help="images in a shard (default: 1000)")
    size.add_argument("--bytes", type=amount, help="size of a shard's images in SOURCE, instead of --samples: 500MB")
    parser.add_argument(
        "--short-side", type=whole, metavar="N", help="shrink larger images to this short side, as JPEG of quality 95"
    )
    parser.add_argument("--seed", type=whole_or_zero, default=0, help="seed of the order of the images (default: 0)")
    parser.add_argument(
        "--workers", type=whole, default=os.cpu_count() or 1, help="processes (default: one for each core)"
    )
    parser.add_argument(
        "--no-decode-check", action="store_true", help="do not decode the images of a shard to check it"
    )
    parser.add_argument("--index-only", metavar="FOLDER", help="only write the index of existing shards in a folder")
    parser.add_argument("--check", metavar="FOLDER", help="only compare the shards in a folder with its index.json")
    parser.add_argument("--classes", metavar="FILE", help="for --index-only: class names, one a line; default: numbers")
    return parser.parse_args()


def whole(text: str, least: int = 1) -> int:
    if not re.fullmatch(r"\d+", text) or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least {least}")
    return int(text)


def whole_or_zero(text: str) -> int:
    return whole(text, 0)


def amount(text: str) -> int:
    """Read a size in bytes: 5000, 500MB or 2GB."""
    parts = re.fullmatch(r"(\d+)(|kB|MB|GB)", text)
    if not parts or not int(parts[1]):
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number of at least 1; kB, MB or GB may follow")
    return int(parts[1]) * {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}[parts[2]]


def find_splits(source: Path, target: Path) -> Iterator[tuple[Path, ImageFiles]]:
    """(folder for the shards, images) for each split of a tree. Both splits have the same class numbers."""
    require_folder(source, "SOURCE")
    splits, _ = find_splits_or_classes(source)
    if not splits.found:
        yield target, list_class_folders(source)
    classes = None
    if splits.train:
        images = list_class_folders(splits.train)
        classes = images.classes
        yield target / "train", images
    if splits.val:
        yield target / "val", ImageNet(root=str(source)).val(classes)
    elif splits.test:
        yield target / "test", list_class_folders(splits.test, classes)


def make_split(folder: Path, images: ImageFiles, arguments: argparse.Namespace, progress: Progress) -> None:
    """Write the missing shards of a split, then its index."""
    for source, skipped in images.about.skipped.items():
        if str(skipped):
            print_note(f"{source}: skipped {skipped}")
    samples = images.samples  # read once, because it decodes all paths
    sizes = [size_of(path) for path, _ in progress.track(samples, f"{folder}: sizes of the files", "images")]
    order = np.random.default_rng(arguments.seed).permutation(len(sizes)).tolist()
    made = {
        "seed": arguments.seed,
        "samples": None if arguments.bytes else arguments.samples,
        "bytes": arguments.bytes,
        "short_side": arguments.short_side,
        "source": fingerprint(images.classes, samples, sizes, Path(arguments.source)),
        "decoded": not arguments.no_decode_check,
    }
    # Find the shards of an earlier call.
    known = known_shards(folder, made)
    if is_finished(folder, known):
        print(f"{folder}: already finished")
        return
    # Plan the shards.
    jobs, first = [], 0
    for number, members in enumerate(divide(order, sizes, made["samples"], made["bytes"])):
        path = folder / f"{number:06}.tar"
        chosen = [samples[member] for member in members]
        jobs.append(ShardJob(path, first, chosen, arguments.short_side, not arguments.no_decode_check))
        first += len(chosen)
    # Write the shards, then the index.
    try:
        (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
        write_text(folder / UNFINISHED / "plan.json", json.dumps(made))
        shards, kept = write_shards(folder, jobs, known, arguments.workers, progress)
        write_text(folder / INDEX, Index(images.classes, shards, made).text())
    except OSError as error:
        raise InputError(f"{error.filename or folder}: cannot be written ({error.strerror or error})") from None
    shutil.rmtree(folder / UNFINISHED)
    total = sum(shard.bytes for shard in shards)
    also = f", {kept} of them kept" if kept else ""
    print(
        f"{folder}: {len(shards)} shards{also}, {len(sizes):,} images of {len(images.classes)} classes, {total:,} bytes"
    )


def write_shards(
    folder: Path, jobs: list[ShardJob], known: dict[str, Shard], workers: int, progress: Progress
) -> tuple[list[Shard], int]:
    """Write the shards with several processes.

    known: the shards of the existing index. The records of an interrupted call are newer and take precedence.

    Returns:
        The shards, and how many of them existed before.
    """
    unfinished = folder / UNFINISHED
    names = [job.path.name for job in jobs]
    before = {name: read_record(unfinished / f"{name}.json") or known.get(name) for name in names}
    done: dict[str, Shard] = {}
    kept = 0
    context = multiprocessing.get_context("fork")  # because importing everything again takes seconds
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=begin_process) as pool:
        try:
            futures = [pool.submit(make_and_record, job, unfinished, before[job.path.name]) for job in jobs]
            step = progress.begin(str(folder), sum(len(job.samples) for job in jobs))
            for future in as_completed(futures):
                shard, was_there = future.result()
                kept += was_there
                done[shard.name] = shard
                step.advance(shard.samples)
            progress.end()
        except BrokenProcessPool:
            raise TrainingError("a process was killed; run the script again to continue") from None
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return [done[name] for name in names], kept


def make_and_record(job: ShardJob, unfinished: Path, before: Shard | None) -> tuple[Shard, bool]:
    """Make a shard and record it in the same process, so that a finished shard is never made again."""
    shard, was_there = make_shard(job, unfinished, before)
    write_text(unfinished / f"{shard.name}.json", json.dumps(asdict(shard)))
    return shard, was_there


def begin_process() -> None:
    """Make a worker ignore interrupts, which its parent handles, and end when its parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


if __name__ == "__main__":
    main()
