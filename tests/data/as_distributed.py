"""Small data sets in the official file layouts."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

GRAY = (40, 80, 120, 160, 200)
ANIMALS = ["cat", "dog", "frog", "horse"]


def write_image(path: Path, level: int) -> None:
    """Write a gray image. Tests identify an image by its gray level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (12, 10), level).save(path, quality=100)


def write_pickle(path: Path, content: dict[str, Any]) -> str:
    path.write_bytes(pickle.dumps(content, protocol=2))
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch, hundred: bool) -> Path:
    """Write pickled batches of two images each. Image n has label n % 4.

    An image is a row of 3,072 bytes, the red plane first. The red plane is 10 * n, the other planes are 0.
    """
    reader = datasets.CIFAR100 if hundred else datasets.CIFAR10
    folder = root / reader.base_folder
    folder.mkdir(parents=True)
    number = 0
    for attribute in ("train_list", "test_list"):
        listed = []
        for name, _ in getattr(reader, attribute):
            planes = np.zeros((2, 3, 1024), np.uint8)
            planes[:, 0] = [[10 * number], [10 * number + 10]]
            truth = [number % 4, (number + 1) % 4]
            fine = {"fine_labels": truth, "coarse_labels": [0, 0]} if hundred else {"labels": truth}
            listed.append([name, write_pickle(folder / name, {"data": planes.reshape(2, 3072), **fine})])
            number += 2
        monkeypatch.setattr(reader, attribute, listed)
    meta = reader.meta
    md5 = write_pickle(folder / meta["filename"], {meta["key"]: ANIMALS})
    monkeypatch.setattr(reader, "meta", {**meta, "md5": md5})
    return root


def write_flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write five images. Image numbers and labels count from 1, as in the official files."""
    folder = root / "flowers-102"
    for number, level in enumerate(GRAY, start=1):
        write_image(folder / "jpg" / f"image_{number:05}.jpg", level)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[3, 1, 102, 1, 2]], np.uint8)})
    ids = {"trnid": [[2, 4]], "valid": [[1, 5]], "tstid": [[3, 2]]}
    savemat(folder / "setid.mat", {name: np.array(value, np.uint16) for name, value in ids.items()})
    files = {"label": "imagelabels.mat", "setid": "setid.mat"}
    listed = {key: (name, hashlib.md5((folder / name).read_bytes()).hexdigest()) for key, name in files.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", listed)
    return root


CAR_NAMES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"]


def write_cars(root: Path) -> Path:
    """Write images and MATLAB structs of box, class and file name. The test's annotations are outside devkit/."""
    folder = root / "stanford_cars"
    (folder / "devkit").mkdir(parents=True)
    box = [(name, "O") for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    for part, where, truth in (
        ("train", "devkit/cars_train_annos.mat", [3, 1, 2]),
        ("test", "cars_test_annos_withlabels.mat", [2, 3]),
    ):
        rows = []
        for number, label in enumerate(truth, start=1):
            write_image(folder / f"cars_{part}" / f"{number:05}.jpg", GRAY[label])
            rows.append((*map(np.uint8, (1, 1, 9, 9, label)), f"{number:05}.jpg"))
        savemat(folder / where, {"annotations": np.array([rows], dtype=box)}, do_compression=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array([CAR_NAMES], dtype=object)})
    return root


def write_inat(root: Path, year: int) -> Path:
    """Write folders of images, named by numbers, and the JSON list of each split. Class Aves/2 is in both splits."""
    files = {"train": ["Aves/1/b.jpg", "Plantae/0/a.jpg", "Aves/1/a.jpg", "Aves/2/a.jpg"], "val": ["Aves/2/b.jpg"]}
    for part, names in files.items():
        for name in names:
            write_image(root / str(year) / name, GRAY[int(name.split("/")[1])] + (10 if name.endswith("b.jpg") else 0))
        images = [{"id": n, "file_name": f"train_val{year}/{name}", "width": 12} for n, name in enumerate(names)]
        truth = [{"id": n, "image_id": n, "category_id": int(name.split("/")[1])} for n, name in enumerate(names)]
        content = {"info": {"year": year}, "images": images, "annotations": truth, "categories": [], "licenses": []}
        (root / f"{part}{year}.json").write_text(json.dumps(content))
    return root
