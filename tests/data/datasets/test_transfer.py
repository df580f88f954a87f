"""The paper's transfer data sets: torchvision's readers read small data sets in the official file layouts."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.datasets import DATASETS
from data.datasets.inaturalist import INat
from data.datasets.transfer import CIFAR10, CIFAR100, Cars, Flowers
from data.examples import DataSource
from data.loader import EvalLoader
from data.views.labelled_crop import CenterLabelledCrop
from xcit.encoded_image import rgb
from xcit.errors import InputError
from xcit.preprocessing import Preprocessing

from ..as_distributed import ANIMALS, CAR_NAMES, write_cars, write_cifar, write_flowers, write_inat


def levels(images: Any) -> list[int]:
    """Return the gray level of each image, rounded to tens because JPEG is lossy."""
    return [round(np.asarray(rgb(images[index].image)).mean() / 10) * 10 for index in range(len(images))]


def labels(images: Any) -> list[int]:
    return [images[index].target for index in range(len(images))]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DataSource]:
    """Return a function: make("cars") writes the small data set below tmp_path and opens it."""
    writers = {
        "cifar10": lambda: write_cifar(tmp_path, monkeypatch, hundred=False),
        "cifar100": lambda: write_cifar(tmp_path, monkeypatch, hundred=True),
        "flowers": lambda: write_flowers(tmp_path, monkeypatch),
        "cars": lambda: write_cars(tmp_path),
        "inat": lambda: write_inat(tmp_path, 2018),
    }
    return lambda name: DATASETS[name](root=str(writers[name]()))


NAMES = ["cifar10", "cifar100", "flowers", "cars", "inat"]


@pytest.mark.parametrize(("name", "count"), [("cifar10", 10), ("cifar100", 2)])
def test_cifar_is_read_from_its_batches(make: Callable[[str], DataSource], name: str, count: int) -> None:
    source = make(name)
    train, val = source.train(), source.val()
    assert train.classes == val.classes == ANIMALS
    assert labels(train) == [number % 4 for number in range(count)]
    assert labels(val) == [count % 4, (count + 1) % 4]
    image = val[1].image
    assert (image.size, image.mode) == ((32, 32), "RGB")
    assert image.getpixel((5, 5)) == (10 * (count + 1), 0, 0)


def test_flowers_train_on_train_and_val_and_are_judged_on_the_test(make: Callable[[str], DataSource]) -> None:
    source = make("flowers")
    train, val = source.train(), source.val()
    assert (levels(train), labels(train)) == ([80, 160, 40, 200], [0, 0, 2, 1])
    assert (levels(val), labels(val)) == ([120, 80], [101, 0])
    assert (train.classes[0], len(train.classes)) == ("pink primrose", 102)


def test_cars_are_read_from_their_annotations(make: Callable[[str], DataSource]) -> None:
    source = make("cars")
    train, val = source.train(), source.val()
    assert train.classes == val.classes == CAR_NAMES
    assert (levels(train), labels(train)) == ([160, 80, 120], [2, 0, 1])
    assert (levels(val), labels(val)) == ([120, 160], [1, 2])
    assert all(type(label) is int for label in labels(train))


@pytest.mark.parametrize("year", [2018, 2019])
def test_inat_is_divided_by_the_official_lists(tmp_path: Path, year: Any) -> None:
    source = INat(root=str(write_inat(tmp_path, year)), year=year)
    train, val = source.train(), source.val()
    assert train.classes == val.classes == ["Plantae/0", "Aves/1", "Aves/2"]
    assert (levels(train), labels(train)) == ([90, 40, 80, 120], [1, 0, 1, 2]), "the order is that of the JSON list"
    assert (levels(val), labels(val)) == ([130], [2])


@pytest.mark.parametrize("name", NAMES)
def test_validation_is_numbered_as_in_training(make: Callable[[str], DataSource], name: str) -> None:
    source = make(name)
    own = source.val()
    turned = source.val([*own.classes[::-1], "another"])
    assert [turned.classes[label] for label in labels(turned)] == [own.classes[label] for label in labels(own)]
    assert labels(turned) != labels(own)
    with pytest.raises(InputError, match=r"split \(\d+ such classes\); known classes: wolf, bear; move them"):
        source.val(["wolf", "bear"])


@pytest.mark.parametrize("name", NAMES)
def test_workers_read_what_one_process_reads(make: Callable[[str], DataSource], name: str) -> None:
    """Items are RGB images. The data set can be pickled, and forked workers can use it."""
    val = make(name).val()
    assert all(rgb(val[index].image).mode == "RGB" for index in range(len(val)))
    assert levels(pickle.loads(pickle.dumps(val))) == levels(val)
    view = CenterLabelledCrop(Preprocessing(size=(8, 8)), len(val.classes))
    alone, helped = (list(EvalLoader(val, view, 4, workers=workers, device=torch.device("cpu"))) for workers in (0, 2))
    assert torch.equal(alone[0].images, helped[0].images)
    assert torch.equal(alone[0].labels, helped[0].labels)
    assert alone[0].labels.tolist() == labels(val)


HOMES = {
    "cifar10": "download CIFAR-10 from https://www.cs.toronto.edu/~kriz/cifar.html",
    "cifar100": "download CIFAR-100 from https://www.cs.toronto.edu/~kriz/cifar.html",
    "flowers": "download Oxford 102 Flower from https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
    "cars": "download Stanford Cars from https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
    "inat": "download iNaturalist 2018 from https://github.com/visipedia/inat_comp",
}
FIRST = {
    "cifar10": "cifar-10-batches-py/data_batch_1",
    "cifar100": "cifar-100-python/train",
    "flowers": "flowers-102/jpg",
    "cars": "stanford_cars/cars_train",
    "inat": "2018",
}


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        read()
    assert "\n" not in str(caught.value)
    assert "download=True" not in str(caught.value), "torchvision's advice does not apply here"
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_absent_data_are_told_with_what_is_expected_and_where_it_is(tmp_path: Path, name: str) -> None:
    for root, start in (
        (tmp_path / "nowhere", f"{tmp_path}/nowhere: no such folder (expected {FIRST[name].split('/')[0]}"),
        (tmp_path, f"{tmp_path}/{FIRST[name]}: no such file or folder (expected {FIRST[name].split('/')[0]}"),
    ):
        for split in (DATASETS[name](root=str(root)).train, DATASETS[name](root=str(root)).val):
            assert HOMES[name] in refusal(split)
        assert refusal(DATASETS[name](root=str(root)).train).startswith(start)
    assert not list(tmp_path.iterdir()), "reading writes no files"


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_3"),
        ("cifar10", "cifar-10-batches-py/batches.meta"),
        ("cifar100", "cifar-100-python/test"),
        ("flowers", "flowers-102/setid.mat"),
        ("flowers", "flowers-102/jpg/image_00004.jpg"),
        ("cars", "stanford_cars/devkit/cars_meta.mat"),
        ("cars", "stanford_cars/devkit/cars_train_annos.mat"),
        ("cars", "stanford_cars/cars_train/00002.jpg"),
        ("inat", "train2018.json"),
        ("inat", "2018/Aves/1/a.jpg"),
    ],
)
def test_what_is_missing_is_named(make: Callable[[str], DataSource], tmp_path: Path, name: str, needed: str) -> None:
    source = make(name)
    source.train()
    (tmp_path / needed).unlink()
    message = refusal(source.train)
    assert message.startswith(f"{tmp_path / needed}: no such file")
    assert HOMES[name] in message


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("cifar10", "cifar-10-batches-py/test_batch"),
        ("cifar100", "cifar-100-python/meta"),
        ("flowers", "flowers-102/imagelabels.mat"),
        ("cars", "stanford_cars/devkit/cars_train_annos.mat"),
        ("cars", "stanford_cars/devkit/cars_meta.mat"),
        ("inat", "train2018.json"),
    ],
)
@pytest.mark.parametrize("damage", ["cut", "spoilt", "junk", "empty"])
def test_what_is_damaged_is_told(
    make: Callable[[str], DataSource], tmp_path: Path, name: str, needed: str, damage: str
) -> None:
    source, path = make(name), tmp_path / needed
    whole, middle = path.read_bytes(), path.stat().st_size // 2
    spoilt = whole[:middle] + b"\xff" * 20 + whole[middle + 20 :]
    path.write_bytes({"cut": whole[:middle], "spoilt": spoilt, "junk": b"junk\n" * 99, "empty": b""}[damage])
    message = refusal(source.train)
    assert message.startswith(f"{tmp_path}: cannot be read (")
    assert HOMES[name] in message


@pytest.mark.parametrize("content", ["[]", "{}", '{"images": [{"id": 0}]}', '{"images": null}'])
def test_a_list_of_another_form_is_told(make: Callable[[str], DataSource], tmp_path: Path, content: str) -> None:
    source = make("inat")
    (tmp_path / "train2018.json").write_text(content)
    assert refusal(source.train).startswith(f"{tmp_path}: cannot be read (")


def test_a_stray_file_in_the_tree_is_named(make: Callable[[str], DataSource], tmp_path: Path) -> None:
    source = make("inat")
    (tmp_path / "2018" / ".DS_Store").write_bytes(b"")
    assert f"{tmp_path}/2018/.DS_Store" in refusal(source.train)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("flowers", "flowers-102/jpg/image_00003.jpg"),
        ("cars", "stanford_cars/cars_test/00001.jpg"),
        ("inat", "2018/Aves/2/b.jpg"),
    ],
)
def test_an_image_that_cannot_be_decoded_is_named(
    make: Callable[[str], DataSource], tmp_path: Path, name: str, broken: str
) -> None:
    """The error is raised when the image is decoded. Opening a data set decodes no image."""
    source = make(name)
    (tmp_path / broken).write_bytes(b"broken")
    val = source.val()
    with pytest.raises(InputError, match=f"{broken}: cannot be decoded") as caught:
        rgb(val[0].image)
    assert getattr(caught.value, "of_one_process", False)


def test_the_table_has_them_under_their_names() -> None:
    assert [DATASETS[name] for name in NAMES] == [CIFAR10, CIFAR100, Flowers, Cars, INat]
