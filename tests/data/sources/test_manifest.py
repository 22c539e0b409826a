"""CSV files of images: columns, labels, parts, and an error with its line for every wrong row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedvision.data.dataset import Dataset
from fedvision.data.sources.manifest import manifest
from fedvision.errors import DataError
from tests.data.pictures import save, shades, spoil


def read(here: Path, text: str | bytes, images: str = "abcd", **keys: Any) -> Dataset:
    """Write the table and images a.png, b.png, ... of shades 0, 1, ...; read them."""
    (here / "list.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    for shade, name in enumerate(images):
        save(here / f"{name}.png", shade)
    return manifest(**{"path": str(here / "list.csv"), "size": 4, "channels": 1, "workers": 1} | keys)


def labelled(dataset: Dataset) -> dict[int, str]:
    names = [dataset.classes[label] for label in dataset.train.labels]
    return dict(zip(shades(dataset.train.images), names, strict=True))


def test_labels_and_columns(tmp_path: Path) -> None:
    dataset = read(
        tmp_path, "file,label,hospital,age\na.png,flu,north,40\nb.png,cold,south,\nc.png,flu,north,7\n"
    )
    assert dataset.classes == ("cold", "flu")
    assert labelled(dataset) == {0: "flu", 1: "cold", 2: "flu"}
    found = shades(dataset.train.images)
    assert [dataset.train.columns["hospital"][found.index(shade)] for shade in range(3)] == [
        "north",
        "south",
        "north",
    ]
    assert [dataset.train.columns["age"][found.index(shade)] for shade in range(3)] == ["40", "", "7"]
    assert set(dataset.train.columns) == {"hospital", "age"}


def test_parts(tmp_path: Path) -> None:
    dataset = read(tmp_path, "file,label,split\na.png,x,train\nb.png,y,TEST\nc.png,y,val\nd.png,y,Training\n")
    assert labelled(dataset) == {0: "x", 3: "y"}
    assert dataset.test
    assert shades(dataset.test.images) == [1]
    assert dataset.notices[0].startswith("1 validation images are left out")


def test_a_share_makes_the_test_set(tmp_path: Path) -> None:
    rows = "".join(f"{name}.png,{name in 'ab'}\n" for name in "abcd")
    dataset = read(tmp_path, "file,label\n" + rows, validation=0.5)
    assert dataset.test
    assert sorted(dataset.test.labels.tolist()) == [0, 1]


def test_other_names_of_columns_and_another_folder(tmp_path: Path) -> None:
    save(tmp_path / "images/deep/e.png", 9)
    text = "path;label;diagnosis;fold\ndeep/e.png;7;flu;train\n"
    dataset = read(
        tmp_path,
        text,
        root=str(tmp_path / "images"),
        file="path",
        label="diagnosis",
        split="fold",
        delimiter=";",
    )
    assert labelled(dataset) == {9: "flu"}
    assert dataset.train.columns["label"].tolist() == ["7"]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("10", "9", "2"), ("2", "9", "10")),
        (("10", "9", "2b"), ("10", "2b", "9")),
        (("-1", "1", "0"), ("-1", "0", "1")),
    ],
)
def test_whole_numbers_are_sorted_by_value(tmp_path: Path, labels: tuple[str, ...], classes: object) -> None:
    rows = "".join(f"{name}.png,{label}\n" for name, label in zip("abc", labels, strict=True))
    dataset = read(tmp_path, "file,label\n" + rows)
    assert dataset.classes == classes
    assert labelled(dataset) == dict(enumerate(labels))


def test_named_classes(tmp_path: Path) -> None:
    text = "file,label\na.png,dog\n"
    assert read(tmp_path, text, classes=["emu", "dog"]).train.labels.tolist() == [1]
    with pytest.raises(DataError, match=r"list\.csv: class 'dog' is not in data\.classes"):
        read(tmp_path, text, classes=["emu"])


def test_as_spreadsheets_write_it(tmp_path: Path) -> None:
    text = b'\xef\xbb\xbffile, label \r\n"a.png", x \r\n\r\nb.png,"y, z"\r\n'
    dataset = read(tmp_path, text)
    assert labelled(dataset) == {0: "x", 1: "y, z"}


def test_pixels_are_shared_with_an_image_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedvision.data.sources.image_folder import image_folder

    for shade, name in enumerate("ab"):
        save(tmp_path / "x" / f"{name}.png", shade)
    image_folder(path=str(tmp_path), size=4, channels=1, workers=1)
    monkeypatch.setattr("fedvision.data.decoding.decode.decode_all", None)
    dataset = read(tmp_path, "file,label\nx/a.png,x\nx/b.png,x\n", images="")
    assert sorted(shades(dataset.train.images)) == [0, 1]


def test_notice_on_unreadable_files(tmp_path: Path) -> None:
    spoil(tmp_path / "z.png")
    dataset = read(tmp_path, "file,label\na.png,x\nz.png,x\n", max_unreadable=0.5)
    assert dataset.notices == (
        "1 of 2 image files cannot be read and are left out: z.png (no known image format)",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"list\.csv: there is no column 'file'"),
        ("file,label\n", r"list\.csv: there are no rows below the header"),
        ("files,label\na.png,x\n", r"no column 'file'; did you mean 'files'\?; data\.file names it"),
        ("file,class\na.png,x\n", r"no column 'label'; known: class, file; data\.label names it"),
        ("file,label,label\na.png,x,y\n", r"column 'label' stands there twice; rename one"),
        ("file,label\na.png,x\nb.png\n", r"list\.csv, line 3: it has 1 cells, but the header 2"),
        ("file,label\na.png,x\nb.png,x,y\n", r"line 3: it has 3 cells, but the header 2"),
        ("file,label\na.png,x\nb.png, \n", r"line 3: label is empty; fill it in or remove the line"),
        ("file,label\n,x\n", r"line 2: file is empty"),
        (
            "file,label\na.png,x\nb.png,x\n./a.png,y\n",
            r"line 4: \./a\.png stands in line 2 already; keep one",
        ),
        ("file,label,split\na.png,x,fold3\n", r"line 2: split must be train, val or test, not 'fold3'"),
        (
            "file,label\na.png,x\ne.png,x\nf.png,x\n",
            r"2 of 3 files are not in .*: e\.png \(line 3\), f\.png \(line 4\); correct them or data\.root",
        ),
        ('file,label\n"a.png,x\n', r"list\.csv: this is no CSV file in UTF-8: unexpected end of data"),
        (b"file,label\n\xff\xfe,x\n", r"list\.csv: this is no CSV file in UTF-8: 'utf-8' codec"),
    ],
)
def test_wrong_tables(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


def test_a_missing_table_and_a_named_split_column_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: this file cannot be read: No such file .*data\.path"):
        manifest(path=str(tmp_path / "none.csv"), size=4)
    with pytest.raises(DataError, match=r"no column 'fold'.*data\.split names it"):
        read(tmp_path, "file,label\na.png,x\n", split="fold")
    with pytest.raises(ValueError, match="delimiter must be one character, not ''"):
        read(tmp_path, "file,label\na.png,x\n", delimiter="")


def test_missing_labels_are_no_class(tmp_path: Path) -> None:
    for text in ("nan", "NA", "None"):
        with pytest.raises(DataError, match=rf"line 3: label is '{text}', which stands for a missing value"):
            read(tmp_path, f"file,label\na.png,x\nb.png,{text}\n")
    assert read(tmp_path, "file,label\na.png,x\nb.png,NA\n", classes=["NA", "x"]).classes == ("NA", "x")


def test_numbers_with_a_point_are_sorted_by_value(tmp_path: Path) -> None:
    assert read(tmp_path, "file,label\na.png,10.0\nb.png,2.0\n").classes == ("2.0", "10.0")
    with pytest.raises(DataError, match=r"classes '2' and '2\.0' are one number"):
        read(tmp_path, "file,label\na.png,2\nb.png,2.0\n")


def test_composed_and_decomposed_labels_are_one(tmp_path: Path) -> None:
    dataset = read(tmp_path, "file,label\na.png,caf\u00e9\nb.png,cafe\u0301\n")
    assert dataset.classes == ("caf\u00e9",)


def test_a_file_is_found_under_its_other_spellings(tmp_path: Path) -> None:
    """Names are unpacked decomposed on macOS, and written with backslashes on Windows."""
    for disk in ("cafe\u0301", "na\u00efve", "\u00ef-e\u0301"):
        save(tmp_path / f"sub/{disk}.png", 7)
    names = ["sub/caf\u00e9", "sub\\cafe\u0301", "sub/nai\u0308ve", "sub/\u00ef-e\u0301"]
    for name in names:
        assert shades(read(tmp_path, f"file,label\n{name}.png,x\n").train.images) == [7]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("a", r'a\.png is there: set data\.suffix = "\.png"'),
        ("A.PNG", r"a\.png is there: names must agree in capitals and suffix"),
        ("a.jpg", r"a\.png is there: names must agree"),
        ("e.png", r'deep/e\.png is there: set data\.root = ".*/deep"'),
        ("/old/machine/deep/e.png", r"deep/e\.png is there: remove //?old/machine/ from the names"),
        ("z.png", r"correct them or data\.root"),
    ],
)
def test_misnamed_files_come_with_what_mends_them(tmp_path: Path, name: str, hint: str) -> None:
    save(tmp_path / "deep/e.png")
    with pytest.raises(DataError, match=rf"1 of 1 files are not in .*; .*{hint}"):
        read(tmp_path, f"file,label\n{name},x\n")


def test_a_suffix_is_added(tmp_path: Path) -> None:
    assert shades(read(tmp_path, "file,label\nb,x\n", suffix=".png").train.images) == [1]


def test_notice_on_other_delimiters(tmp_path: Path) -> None:
    for delimiter, written in ((";", ";"), ("\t", r"\\t")):
        with pytest.raises(DataError, match=rf'set data\.delimiter = "{written}"'):
            read(tmp_path, f"file{delimiter}label\na.png{delimiter}x\n")


def test_notice_on_other_encodings(tmp_path: Path) -> None:
    text = "file,label\na.png,caf\u00e9\n"
    for encoding in ("cp1252", "utf-16"):
        with pytest.raises(DataError, match=rf'no CSV file in UTF-8: .*set data\.encoding = "{encoding}"'):
            read(tmp_path, text.encode(encoding))
        assert read(tmp_path, text.encode(encoding), encoding=encoding).classes == ("caf\u00e9",)
    with pytest.raises(ValueError, match="encoding = 'klingon': there is no such encoding"):
        read(tmp_path, text, encoding="klingon")


def test_blank_columns_are_left_out(tmp_path: Path) -> None:
    dataset = read(tmp_path, ",file,label,,\n0,a.png,x,,\n1,b.png,y,,\n , , ,,\n")
    assert labelled(dataset) == {0: "x", 1: "y"}
    assert dataset.train.columns == {}
    with pytest.raises(DataError, match="column 3 has no name, but cells"):
        read(tmp_path, "file,label,\na.png,x,1\n")
    assert labelled(read(tmp_path, "file,label\na.png,x,,\n")) == {0: "x"}


def test_one_hot_labels(tmp_path: Path) -> None:
    text = "file,MEL,NV,age\na.png,1.0,0.0,40\nb.png,0,1,50\n"
    with pytest.raises(DataError, match=r'the labels seem to be one-hot: set data\.label = \["MEL", "NV"\]'):
        read(tmp_path, text)
    dataset = read(tmp_path, text, label=["NV", "MEL"])
    assert dataset.classes == ("NV", "MEL")
    assert labelled(dataset) == {0: "MEL", 1: "NV"}
    assert set(dataset.train.columns) == {"age"}
    for cells in ("1,1", "0,0", "1,2"):
        with pytest.raises(DataError, match=r"line 2: exactly one of the columns in data\.label must be 1"):
            read(tmp_path, f"file,MEL,NV\na.png,{cells}\n", label=["MEL", "NV"])
