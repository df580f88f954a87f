"""Addresses and patterns find the right shards. Missing and invalid shards are reported in one line."""

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.datasets.imagenet_shards import ImageNetShards
from data.shards.index import INDEX, Index, Shard, ShardError, parse_index
from xcit.errors import InputError

from .servers import serving
from .sharded import contents, located, source


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
            "BASE/test/index.json: no such file; shards need an index.json beside them; create it with `py",
        ),
        ("BASE/{1..", "BASE/{1..: cannot be read (Unbalanced braces"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(shards: Path, urls: str | None, line: str) -> None:
    with serving(shards) as http:
        for base in (str(shards), http):
            with pytest.raises(InputError) as caught:
                ImageNetShards(urls=urls and urls.replace("BASE", base)).train()
            assert str(caught.value).startswith(line.replace("BASE", base))


@pytest.mark.parametrize(
    "tail",
    ["train?signature=x", "train/000001.tar?a=b&c=d", "train/{000001..000002}.tar?a=/b", "train#top", "a?b/1.tar"],
)
def test_queries_and_fragments_are_refused(tail: str) -> None:
    with pytest.raises(
        InputError, match=r"^data\.urls=https://host/.*: has a query .*; must be an address without them"
    ):
        ImageNetShards(urls=f"https://host/{tail}").train()


@pytest.mark.parametrize("url", ["ftp://host/train", "htp://host/train", "http://", "s3:///"])
def test_addresses_of_other_kinds_are_refused_at_once(url: str) -> None:
    with pytest.raises(InputError, match=rf"^data\.urls={url}: must be a path, or an address that begins with http://"):
        ImageNetShards(urls=url).train()


def test_a_question_mark_alone_is_a_pattern_over_http(shards: Path) -> None:
    with serving(shards) as base:
        assert len(ImageNetShards(urls=f"{base}/train/00000?.tar").train().shards) == 10


@pytest.mark.parametrize("name", ["train[v2]", "what?", "all*", "set.tar"])
def test_a_folder_whose_name_looks_like_shards_is_a_folder(shards: Path, name: str) -> None:
    folder = (shards / "train").rename(shards / name)
    for url in (f"{folder}", f"{folder}/", f"{folder}/*"):
        assert len(ImageNetShards(urls=url).train().shards) == 10


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"shuffle_shards": 0}, "data.shuffle_shards=0: must be at least 1, and finite"),
        ({"retries": -1}, "data.retries=-1: must be at least 0, and finite"),
        ({"cache_gb": 0.0}, "data.cache_gb=0.0: must be greater than 0, and finite"),
        ({"cache_gb": float("inf")}, "data.cache_gb=inf: must be greater than 0, and finite"),
        ({"backoff": float("inf")}, "data.backoff=inf: must be at least 0, and finite"),
        ({"timeout": float("nan")}, "data.timeout=nan: must be greater than 0, and finite"),
    ],
)
def test_options_out_of_range(option: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=f"^{line}$"):
        ImageNetShards(urls="x", **option)


def test_validation_is_numbered_as_training(shards: Path) -> None:
    val = source(shards).val(["blue", "red", "green"])
    assert {label for _, label in contents(val)} == {1, 2}
    with pytest.raises(InputError, match="val/green: class is not in the training split"):
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
        ({"a.cls": b"7", "a.jpg": b"x"}, "is class 7, but the index has only the classes 0 to 1"),
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
    images = [source(shards).train() for _ in range(2)]
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(ShardError, match=r"000000\.tar: has 0 samples where index\.json has 5"):
        source(shards).train()[0]
    path.write_bytes(whole[:-512])
    # When a data set is opened, all processes raise the error. During an epoch, the process that reads the shard does.
    for error, look in ((InputError, source(shards).train), (ShardError, lambda: images[0][0])):
        with pytest.raises(error, match=r"000000\.tar: has .* bytes where index\.json has "):
            look()
    path.unlink()
    for error, look in ((InputError, source(shards).train), (ShardError, lambda: images[1][0])):
        with pytest.raises(error, match=r"000000\.tar: cannot be read \(No such file"):
            look()


def test_what_others_put_into_shards_is_read(tmp_path: Path) -> None:
    """Shards may contain long names in folders, additional members, metadata, and the class after the image."""
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
    assert [(example.image.data, example.target) for example in (images[0], images[1])] == [(b"one", 1), (b"two", 0)]
    assert images[1].image.origin == f"{tmp_path}/a.tar/b.PNG"


def test_a_damaged_index_is_never_used_in_silence(shards: Path) -> None:
    """Of 100 random damages each leaves the content as it was, or is an error of one line."""
    path = shards / "train" / INDEX
    whole = path.read_bytes()
    expected = parse_index(whole, "x")
    random = np.random.default_rng(0)
    refused = 0
    for number in range(100):
        damaged = bytearray(whole)
        at = int(random.integers(len(whole)))
        match number % 5:
            case 0 | 1:
                damaged[at] ^= 1 << int(random.integers(8))
            case 2:
                damaged[at] = int(random.integers(32, 127))  # still readable as JSON in most places
            case 3:
                damaged[at : at + 20] = bytes(20)
            case 4:
                del damaged[at:]
        path.write_bytes(damaged)
        try:
            images = source(shards).train()
        except InputError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
            refused += 1
        else:
            assert parse_index(path.read_bytes(), "x") == expected
            assert len(images) == 46
    assert refused > 50
    # Digits, names and classes that were changed to other valid ones are what the checksum alone finds.
    for before, after in ((b"green", b"greem"), (b'"samples": 5', b'"samples": 4'), (b'"seed": 0', b'"seed": 1')):
        assert before in whole
        with pytest.raises(InputError, match=r"^x: differs from its checksum, so it is damaged or was edited; "):
            parse_index(whole.replace(before, after, 1), "x")


def test_an_index_without_a_checksum_is_read(shards: Path) -> None:
    """Older commits and other programs write none."""
    path = shards / "train" / INDEX
    content = json.loads(path.read_text())
    expected = parse_index(path.read_text(), "x")
    assert len(content.pop("sha256")) == 64
    path.write_text(json.dumps(content))
    assert parse_index(path.read_text(), "x") == expected
    assert len(source(shards).train()) == 46


def test_json_of_an_index_is_what_it_was() -> None:
    index = Index(["a", "ü", os.fsdecode(b"caf\xe9")], [located("", 1).shard], {"seed": 3})
    assert parse_index(index.text().encode(), "x") == index
    for broken in ("{", "[]", '{"classes": []}', json.dumps({"classes": ["a"], "shards": []})):
        with pytest.raises(InputError, match=r"^x: not an index of shards"):
            parse_index(broken, "x")
    evil = index.text().replace("1.tar", "../1.tar")
    with pytest.raises(InputError, match=r"^x: not an index of shards"):
        parse_index(evil, "x")
