"""A table of the user's own images: kinds of labels, splits and weights are what a careful person expects."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from data.datasets.table import LabelTable, TableImages
from data.examples import HELD_OUT, NONE_HELD_OUT
from data.start_up import data_facts
from xcit.errors import InputError

NAMES = [f"{number}.png" for number in range(10)]
Write = Callable[..., LabelTable]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write("image,label\\n0.png,cat\\n…", labels=["label"]) writes a table beside images, and opens it."""
    (tmp_path / "more").mkdir()
    for number, name in enumerate([*NAMES, "more/a b, c.png"]):
        Image.fromarray(photographs.astronaut()[20 * number : 20 * number + 24, :32]).save(tmp_path / name)

    def make(text: str | bytes, name: str = "labels.csv", **options: Any) -> LabelTable:
        (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return LabelTable(path=str(tmp_path / name), **{"labels": ["label"], **options})

    return make


def csv(*columns: Sequence[object], header: str = "image,label") -> str:
    return "\n".join([header, *(",".join(map(str, row)) for row in zip(*columns, strict=True))])


def targets(images: TableImages) -> dict[str, Any]:
    """File name → target."""
    return {Path(images[i].key).name: images[i].target for i in range(len(images))}


def everything(source: LabelTable) -> dict[str, Any]:
    return targets(source.everything())


# Kinds of labels


def test_one_column_of_names_is_a_class(write: Write) -> None:
    source = write(csv(NAMES, ["dog", "cat"] * 5))
    train, val = source.train(), source.val()
    assert (train.target_kind, train.classes, len(train), len(val)) == ("class", ["cat", "dog"], 8, 2)
    assert sorted(targets(val).values()) == [0, 1], "one of each class"
    assert {**targets(train), **targets(val)} == {name: (number + 1) % 2 for number, name in enumerate(NAMES)}
    assert train.class_counts is not None
    assert train.class_counts.tolist() == [4, 4]
    assert (val[0].image.rgb().size, val[0].weight) == ((32, 24), 1.0)
    table = source.table.path
    assert data_facts({"training": train, "validation": val}) == [
        (
            "data",
            f"8 training images and 2 validation images in 2 classes from {table} "
            "(kind class, as column label holds names; held out: 20 % of each class)",
        )
    ]


def test_whole_numbers_as_classes_are_sorted_by_value(write: Write) -> None:
    source = write(csv(NAMES, [10, 9] * 5), kind="class")
    assert source.train().classes == ["9", "10"]


def test_several_columns_of_0_and_1_are_labels(write: Write) -> None:
    source = write(
        csv(NAMES, [0, 1] * 5, ["TRUE", "false", "", "0", "1.0"] * 2, header="image,sky,sea"), labels=["sky", "sea"]
    )
    images = source.everything()
    assert (images.target_kind, images.classes) == ("classes", ["sky", "sea"])
    found = targets(images)
    np.testing.assert_array_equal(found["0.png"], np.float32([0, 1]))
    np.testing.assert_array_equal(found["2.png"], np.float32([0, np.nan]), "an empty cell is unknown")
    assert found["0.png"].dtype == np.float32
    assert images.class_counts is not None
    assert images.class_counts.tolist() == [5, 4]
    assert "2 of 20 labels unknown; 2 images have no label; held out: 20 % of each class" in source.train().about.choice
    np.testing.assert_array_equal(targets(source.everything(["sea", "sky"]))["0.png"], np.float32([1, 0]))
    with pytest.raises(InputError, match=r"data.labels=\[sky,sea\]: must be the labels of the model: sky, sun"):
        source.everything(["sky", "sun"])


def test_one_column_may_hold_several_labels(write: Write) -> None:
    source = write(csv(NAMES, ["sky; sea", "sea", "", "sun", "sky"] * 2), separator=";")
    images = source.everything()
    assert (images.target_kind, images.classes) == ("classes", ["sea", "sky", "sun"])
    assert {name: row.tolist() for name, row in list(targets(images).items())[:3]} == {
        "0.png": [1, 1, 0],
        "1.png": [1, 0, 0],
        "2.png": [0, 0, 0],
    }


def test_columns_of_numbers_are_values(write: Write) -> None:
    source = write(csv(NAMES, [1, 2.5, "-3e2", "", 0] * 2, [5] * 10, header="image,x,y"), labels=["x", "y"])
    images = source.everything()
    assert (images.target_kind, images.classes, images.class_counts) == ("values", ["x", "y"], None)
    np.testing.assert_array_equal(targets(images)["2.png"], np.float32([-300, 5]))
    np.testing.assert_array_equal(targets(images)["3.png"], np.float32([np.nan, 5]))
    assert (len(source.train()), len(source.val())) == (8, 2)
    assert "in 2 values" in data_facts({"training": source.train(), "validation": source.val()})[0][1]


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        ([0, 1] * 5, {}, "column label holds only 0 and 1, or true and false; give data.kind=class if these are"),
        ([0, 7] * 5, {}, "data.kind=auto: column label holds whole numbers; give data.kind=class if"),
        (["7", "cat"] * 5, {}, "data.kind=auto: column label holds numbers and names; give data.kind=class if"),
        ([""] * 10, {}, "column label is empty"),
        (["a", ""] * 5, {}, "labels.csv: row 3, column label: is empty; must hold the name of a class"),
        (["a;;b"] * 10, {"separator": ";"}, "row 2, column label: 'a;;b' holds an empty label between two ';'"),
        (["1.5", "1_0"] * 5, {"kind": "values"}, "row 3, column label: '1_0' is not a number; expected one such as"),
        (["1.5", "nan"] * 5, {"kind": "values"}, "row 3, column label: 'nan' is not a number"),
        (["1.5", "1e39"] * 5, {"kind": "values"}, "row 3, column label: 1e39 is too large for 32-bit"),
        (
            ["1", "-9,135"] * 5,
            {"kind": "values"},
            "row 3, column label: '-9,135' is not a number; .*, with a decimal point",
        ),
        (["7", "9,135"] * 5, {}, "data.kind=auto: column label holds numbers with a decimal comma; give data.kind=cl"),
        (["1.5", ""] * 5, {}, "row 3, column label: is empty; a row needs a label at least"),
        (["a;b"] * 10, {"kind": "classes"}, "row 2, column label: 'a;b' is not 0, 1, true or false; for a column that"),
        (["a"] * 10, {"kind": "values", "separator": ";"}, "data.separator=';': must be a text that separates"),
        (["a"] * 10, {"labels": ["labl"]}, r"data.labels=labl: no such column in .*; did you mean label\? \(its col"),
        (["a"] * 10, {"labels": ["label", "label"]}, r"data.labels=\[label,label\]: must name at least one column"),
        (["a"] * 10, {"labels": ["label", "image"]}, "column label holds names; several label columns must all hold"),
        (["a"] * 10, {"labels": ["label", "image"], "kind": "class"}, "data.kind=class: takes one label column"),
        (["a"] * 10, {"image": "path"}, "data.image=path: no such column"),
        (["a"] * 10, {"folds": 5}, "data.fold: must be given with data.folds=5; it is a number from 0 to 4"),
        (["a"] * 10, {"folds": 5, "fold": 5}, "data.fold=5: must be less with data.folds=5"),
        (["a"] * 10, {"fold": 0}, "data.fold=0: needs data.folds"),
        (["a"] * 10, {"folds": 5, "fold": 0, "split": "label"}, "data.folds=5: data.split=label divides the images"),
        (["a"] * 10, {"root": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_what_is_unclear_or_wrong_is_one_line(
    write: Write, cells: list[object], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        write(csv(NAMES, [f'"{cell}"' for cell in cells]), **options).train()
    assert "\n" not in str(error.value)


def test_columns_of_different_kinds_are_unclear(write: Write) -> None:
    with pytest.raises(InputError, match="column a holds only 0 and 1, but other columns hold other numbers; give"):
        write(csv(NAMES, [0, 1] * 5, [3, 4] * 5, header="image,a,b"), labels=["b", "a"]).train()


# Files


def test_a_csv_file_is_read_as_spreadsheets_write_it(write: Write) -> None:
    """With a byte order mark, quoted cells, Windows' line ends, blank lines and spaces around cells."""
    text = 'image , label,id\r\n"more/a b, c.png","a ""big"" cat",1\r\n\r\n,,\r\n ./1.png,dog,2\r\n'
    source = write(b"\xef\xbb\xbf" + text.encode())
    assert source.classes == ['a "big" cat', "dog"]
    assert everything(source) == {"a b, c.png": 0, "1.png": 1}
    assert source.table.rows == [2, 5]


def test_another_delimiter_and_root(write: Write, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    options = {"name": "tables/labels.csv", "root": str(tmp_path)}
    assert everything(write("image;label\n0.png;a,b\n", delimiter=";", **options)) == {"0.png": 0}
    assert everything(write("image\tlabel\n0.png\ta,b\n", name="t.tsv")) == {"0.png": 0}
    with pytest.raises(InputError, match=r"data.labels=label: no such column .*: image;label; data.delimiter= names"):
        write("image;label\n0.png;a\n", **options)


def test_a_parquet_file_has_types(write: Write, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "image": pa.array(NAMES[:4]).dictionary_encode(),
        "label": pa.array(["a", "b", "a", "b"]),
        "flag": pa.array([True, False, None, True]),
        "size": pa.array([0.5, float("nan"), None, 2.0], pa.float32()),
        "number": pa.array([3, 4, 5, 6]),
        "other": pa.array([[1], [2], [3], None]),
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    path = str(tmp_path / "t.parquet")
    assert everything(LabelTable(path=path, labels=["label"])) == dict(zip(NAMES[:4], [0, 1, 0, 1], strict=True))
    images = LabelTable(path=path, labels=["size", "number"]).everything()
    np.testing.assert_array_equal(targets(images)["1.png"], np.float32([np.nan, 4]))
    with pytest.raises(InputError, match="row 3, column flag: is empty"):
        LabelTable(path=path, labels=["flag"], kind="classes").train()
    with pytest.raises(InputError, match="row 2, column size: is empty"):
        LabelTable(path=path, labels=["size"]).train()
    with pytest.raises(InputError, match=r"data.labels=other: this column of .* holds list<.*>; must hold text or num"):
        LabelTable(path=path, labels=["other"])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="is not a Parquet file"):
        LabelTable(path=str(tmp_path / "broken.parquet"), labels=["label"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "labels.csv: is empty; must have a line with the names of its columns"),
        ("image,label\n", "labels.csv: holds no rows"),
        ("image,label\n0.png,a\n1.png,b,c\n", "labels.csv: row 3: has 3 cells, but the table has 2 columns"),
        ("image,label,label\n0.png,a,a\n", "labels.csv: has two columns 'label'"),
        ('image,label\n0.png,"a\n', r"labels.csv: line 2: is not valid CSV \(unexpected end of data\)"),
        ("image,label\n0.png,\udce9\n", r"labels.csv: is not UTF-8 text \(byte 18"),
        ("image,label\n,a\n", "labels.csv: row 2, column image: is empty; must hold the path of an image"),
        (
            "image,label\n0.png,a\nx/y.png,a\nz.png,a\n",
            r"labels.csv: row 3, column image: .*/x/y.png: no such file \(and 1 other\)",
        ),
        (
            "image,label\n0.png,a\n1.png,b\n./0.png,b\n",
            "row 4, column label: holds 'b', but row 2 has the same image with 'a'; several labels of an image",
        ),
    ],
)
def test_a_faulty_file_is_one_line(write: Write, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(text.encode(errors="surrogateescape"))


def test_other_files_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must end in .csv, .tsv or .parquet"):
        write("", name="labels.xlsx")
    with pytest.raises(InputError, match="cannot be read"):
        LabelTable(path=str(tmp_path / "no.csv"), labels=["label"])


# Splits


def test_a_column_says_the_split(write: Write) -> None:
    splits = ["train", "Training", "valid", "dev", "test", "train", "TRAIN", "val", "train", "testing"]
    source = write(csv(NAMES, ["a", "b"] * 5, splits, header="image,label,set"), split="set")
    assert sorted(targets(source.val())) == ["2.png", "3.png", "7.png"]
    assert sorted(targets(source.train())) == ["0.png", "1.png", "5.png", "6.png", "8.png"]
    assert source.val().about.choice.endswith("column set divides them; 2 test images not used")
    assert source.val().order[HELD_OUT] == "by the column set"
    without_val = write(
        csv(NAMES, ["a", "b"] * 4 + ["a", "c"], ["train"] * 8 + ["test"] * 2, header="image,label,set"), split="set"
    )
    with pytest.raises(InputError, match=r"row 11, column label: 'c' is not a class of the training split \(its clas"):
        without_val.val()


def test_a_split_without_validation_rows_is_divided(write: Write) -> None:
    source = write(csv(NAMES, ["a", "b"] * 5, ["train"] * 10, header="image,label,set"), split="set")
    assert (len(source.train()), len(source.val())) == (8, 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("0.png,a,trian\n", "row 2, column set: 'trian' is no split; expected train or val or test, or a usual"),
        ("0.png,a,\n", "row 2, column set: is empty; data.split needs a value in each row"),
        ("0.png,a,val\n", "column set gives no row to training; expected train in some"),
        ("0.png,a,train\n1.png,a,val\n./0.png,a,val\n", "row 4, column set: holds 'val', but row 2 has the same image"),
    ],
)
def test_a_faulty_split_is_one_line(write: Write, rows: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write(f"image,label,set\n{rows}", split="set").train()


def test_groups_stay_together_and_apart(write: Write) -> None:
    patients = ["p1", "p1", "p2", "p2", "p3", "p3", "p4", "p4", "p5", "p5"]
    text = csv(NAMES, ["a", "b"] * 5, patients, header="image,label,patient")
    held = [set(targets(write(text, group="patient", folds=5, fold=fold).val())) for fold in range(5)]
    pairs = [{f"{number}.png", f"{number + 1}.png"} for number in range(0, 10, 2)]
    assert sorted(held, key=min) == pairs
    given = csv(NAMES, ["a", "b"] * 5, patients, ["train"] * 9 + ["val"], header="image,label,patient,set")
    with pytest.raises(InputError, match="row 11, column patient: 'p5' is for validation here and for training in row"):
        write(given, group="patient", split="set").train()
    with pytest.raises(InputError, match="holds too few groups of patient to hold some out"):
        write(csv(NAMES, ["a"] * 10, [1] * 10, header="image,label,patient"), group="patient").train()


def test_rows_of_one_image_stay_together(write: Write) -> None:
    text = csv(NAMES * 3, ["a", "b"] * 15)
    source = write(text)
    assert not set(targets(source.train())) & set(targets(source.val()))
    assert (len(source.train()), len(source.val())) == (24, 6)


def test_the_division_depends_on_names_and_seed_alone(write: Write) -> None:
    rows = list(zip(NAMES, ["a", "b"] * 5, strict=True))
    first = write(csv(*zip(*rows, strict=True)))
    again = write(csv(*zip(*reversed(rows), strict=True)))
    assert set(targets(first.val())) == set(targets(again.val()))
    assert first.val().order == again.val().order == first.train().order
    others = [write(csv(*zip(*rows, strict=True)), split_seed=seed).val() for seed in range(1, 5)]
    assert len({tuple(sorted(targets(images))) for images in [first.val(), *others]}) > 1
    gone = next(iter(targets(first.val())))
    fewer = write(csv(*zip(*[row for row in rows if row[0] != gone], strict=True)))
    assert fewer.val().order != first.val().order, "a resume is told if the validation images are others"


def test_all_images_are_evaluated_unless_the_table_divides_them(write: Write) -> None:
    text = csv(NAMES, ["a", "b"] * 5)
    assert len(write(text).everything()) == 10
    assert write(text).everything().order == {HELD_OUT: NONE_HELD_OUT}
    assert len(write(text, folds=5, fold=1).everything()) == 2


# Weights


def test_weights_have_mean_1_over_the_training_split(write: Write) -> None:
    text = csv(NAMES, ["a", "b"] * 5, range(10), header="image,label,w")
    source = write(text, weight="w")
    train, val = source.train(), source.val()
    assert np.mean([train[i].weight for i in range(8)]) == pytest.approx(1)
    found = {Path(images[i].key).stem: images[i].weight for images in (train, val) for i in range(len(images))}
    assert found["8"] / found["4"] == pytest.approx(2)
    assert found["0"] == 0


def test_weights_may_be_0_for_validation_but_not_for_all_of_training(write: Write) -> None:
    splits = ["train"] * 6 + ["val"] * 4
    text = csv(NAMES, ["a", "b"] * 5, splits, [1] * 6 + [0] * 4, header="image,label,split,w")
    assert write(text, split="split", weight="w").val()[0].weight == 0
    text = csv(NAMES, ["a", "b"] * 5, splits, [0] * 6 + [1] * 4, header="image,label,split,w")
    with pytest.raises(InputError, match="column w: all weights of the training images are 0"):
        write(text, split="split", weight="w").train()


@pytest.mark.parametrize(
    ("weight", "message"),
    [("-1", "row 3, column w: -1: must be a number that is 0 or more"), ("", "row 3, column w: an empty cell: must")],
)
def test_a_faulty_weight_is_one_line(write: Write, weight: str, message: str) -> None:
    text = csv(NAMES, ["a", "b"] * 5, ["1", weight, *["1"] * 8], header="image,label,w")
    with pytest.raises(InputError, match=message):
        write(text, weight="w").train()
