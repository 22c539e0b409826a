"""VOC's XML: pixels from 1, difficult objects, lists of parts, XML beside images, torchvision's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedvision.data.dataset import Dataset
from fedvision.data.sources.annotations.voc import voc
from fedvision.errors import DataError
from tests.data.annotated import picture, rows_of, voc_xml


def read(path: Path, **keys: Any) -> Dataset:
    given = {"path": str(path), "size": 8, "channels": 1, "workers": 1, "cache": str(path) + "-c"}
    return voc(**given | keys)


def devkit(root: Path) -> Path:
    """Make what torchvision's VOCDetection unpacks."""
    base = root / "VOCdevkit/VOC2012"
    for name in ("a", "b", "c"):
        picture(base / f"JPEGImages/{name}.jpg")
        voc_xml(
            base / f"Annotations/{name}.xml", f"{name}.jpg", [("dog", (1, 1, 8, 4)), ("cat", (2, 3, 2, 5))]
        )
    picture(base / "SegmentationClass/a.jpg")
    (base / "ImageSets/Main").mkdir(parents=True)
    for part, names in (("train", "a\n"), ("val", "b\n"), ("trainval", "a\nb\n"), ("dog_train", "a  1\n")):
        (base / f"ImageSets/Main/{part}.txt").write_text(names)
    return base


def test_pixels_are_counted_from_1_and_the_last_belongs_to_the_box(tmp_path: Path) -> None:
    dataset = read(devkit(tmp_path))
    assert dataset.classes == ("cat", "dog")
    whole, thin = [1, 0, 0, 8, 4, 32, 0], [0, 1, 2, 1, 3, 3, 0]
    assert rows_of(dataset.train) == {"JPEGImages/a.jpg": [whole, thin]}
    assert dataset.test is not None
    assert list(dataset.test.names) == ["JPEGImages/b.jpg"]
    assert dataset.notices[0] == "1 XML files are in no list of ImageSets/Main and left out: c.xml"


def test_a_folder_above_is_named(tmp_path: Path) -> None:
    base = devkit(tmp_path)
    for above in (tmp_path, base.parent):
        with pytest.raises(DataError, match=f": Annotations/ lies deeper; set data.path to {base}$"):
            read(above)


def test_plain_coordinates(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    voc_xml(tmp_path / "a.xml", "a.png", [("dog", (0, 1, 8, 4.5))])
    assert rows_of(read(tmp_path, origin=0).train) == {"a.png": [[0, 0, 1, 8, 3.5, 28, 0]]}
    with pytest.raises(
        DataError, match=r"a.xml, object 1: its bndbox begins at pixel 0.*set data.origin = 0"
    ):
        read(tmp_path)


def test_difficult_objects(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    voc_xml(tmp_path / "a.xml", "a.png", [("dog", (1, 1, 2, 2))], extra="<difficult>1</difficult>")
    assert rows_of(read(tmp_path).train)["a.png"][0][-1] == 1
    assert rows_of(read(tmp_path, difficult="keep").train)["a.png"][0][-1] == 0
    with pytest.raises(ValueError, match="difficult must be one of ignore, keep"):
        read(tmp_path, difficult="drop")


def test_beside_images_in_parts_with_true_negatives(tmp_path: Path) -> None:
    for name in ("train/p1_a", "train/p2_b", "valid/p3_c"):
        picture(tmp_path / f"{name}.png")
        voc_xml(tmp_path / f"{name}.xml", "elsewhere.jpg", [("dog", (1, 1, 2, 2))] if "b" not in name else ())
    picture(tmp_path / "train/d.png")
    dataset = read(tmp_path, pattern="(?P<patient>p[0-9]+)_")
    assert {name: len(rows) for name, rows in rows_of(dataset.train).items()} == {
        "train/p1_a.png": 1,
        "train/p2_b.png": 0,
    }
    assert dataset.test is not None
    assert dataset.test.columns["patient"].tolist() == ["p3"]
    assert dataset.notices[0].startswith("1 images have no XML file and are left out: train/d.png")


def test_of_two_images_of_one_name_the_file_says_which(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "a.bmp")
    voc_xml(tmp_path / "a.xml", "a.bmp", [("dog", (1, 1, 2, 2))])
    assert list(read(tmp_path).train.names) == ["a.bmp"]
    voc_xml(tmp_path / "a.xml", "b.bmp", [("dog", (1, 1, 2, 2))])
    with pytest.raises(DataError, match=r"it may belong to a.bmp or a.png"):
        read(tmp_path)


def test_it_is_the_folder_that_torchvision_reads(tmp_path: Path) -> None:
    """The same files and the same objects; its corners are as the file has them."""
    from torchvision.datasets import VOCDetection

    base = devkit(tmp_path)
    theirs, ours = VOCDetection(str(tmp_path), year="2012", image_set="train"), rows_of(read(base).train)
    assert [Path(file).name for file in theirs.images] == [Path(name).name for name in ours]
    (_, target), (rows,) = theirs[0], ours.values()
    for one, row in zip(target["annotation"]["object"], rows, strict=True):
        left, top, right, bottom = (int(one["bndbox"][key]) for key in ("xmin", "ymin", "xmax", "ymax"))
        assert row[1:5] == [left - 1, top - 1, right - left + 1, bottom - top + 1]


def test_hidden_files_of_other_systems_do_not_count(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    voc_xml(tmp_path / "a.xml", "a.png", [("dog", (1, 1, 2, 2))])
    (tmp_path / "._a.xml").write_bytes(b"\x00\xff")
    assert len(rows_of(read(tmp_path).train)["a.png"]) == 1
