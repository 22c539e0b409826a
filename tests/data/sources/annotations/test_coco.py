"""COCO JSON: boxes, crowds, areas, classes in the order of ids, columns, parts, true negatives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedvision.data.boxes import IMAGE_HEIGHT, IMAGE_WIDTH, X_SCALE, Y_SHIFT
from fedvision.data.dataset import Dataset
from fedvision.data.sources.annotations.coco import coco
from fedvision.errors import DataError
from tests.data.annotated import box, coco_folder, document, image, picture, rows_of


def read(path: Path, **keys: Any) -> Dataset:
    return coco(
        **{"path": str(path), "size": 8, "channels": 1, "workers": 1, "cache": str(path) + "-c"} | keys
    )


def test_boxes_classes_and_true_negatives(tmp_path: Path) -> None:
    content = document(
        [image(1), image(2)],
        [
            box(1, 1, [1, 2, 3, 4], category=7, area=5.5),
            box(2, 1, [0.25, 0, 8, 8], iscrowd=1, area=40),
            box(3, 1, [2, 2, 2, 2]),
        ],
    )
    dataset = read(coco_folder(tmp_path, content))
    assert dataset.classes == ("dog", "cat")
    assert rows_of(dataset.train) == {
        "1.png": [[1, 1, 2, 3, 4, 5.5, 0], [0, 0.25, 0, 7.75, 8, 40, 1], [0, 2, 2, 2, 2, 4, 0]],
        "2.png": [],
    }
    assert dataset.notices == ("1 of 3 boxes stick out of their image and are clipped to it",)


def test_placement_goes_with_the_boxes(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", 16, 8)
    dataset = read(coco_folder(tmp_path, document([image(1, width=16)], [box(1, 1, [0, 0, 16, 8])])))
    head = np.asarray(dataset.train.labels)[0, 0]
    assert head[[IMAGE_WIDTH, IMAGE_HEIGHT, X_SCALE, Y_SHIFT]].tolist() == [16, 8, 0.5, 2]


def test_fields_of_images_are_columns_and_a_group(tmp_path: Path) -> None:
    images = [image(n, camera=f"c{n % 2}", night=n > 2, coco_url="http://x", gps=[1]) for n in range(1, 5)]
    path = coco_folder(tmp_path, document(images, [box(n, n, [0, 0, 2, 2]) for n in range(1, 5)]))
    dataset = read(path, group="camera", validation=0.5)
    assert set(dataset.train.columns) == {"camera", "night"}
    assert dataset.test is not None
    assert len(set(dataset.train.columns["camera"])) == len(set(dataset.test.columns["camera"])) == 1
    assert set(dataset.train.columns["camera"]) != set(dataset.test.columns["camera"])


def test_a_pattern_makes_columns(tmp_path: Path) -> None:
    for name in ("north/p1_a.png", "south/p2_b.png"):
        picture(tmp_path / name)
    images = [image(1, file_name="north/p1_a.png"), image(2, file_name="south/p2_b.png")]
    path = coco_folder(tmp_path, document(images, []))
    found = read(path, pattern=r"^(?P<site>\w+)/(?P<patient>p\d+)_").train.columns
    assert {name: sorted(values.tolist()) for name, values in found.items()} == {
        "site": ["north", "south"],
        "patient": ["p1", "p2"],
    }
    with pytest.raises(DataError, match=r"^north/p1_a.png: data.pattern = 'q\(\?P<x>.\)' does not match"):
        read(path, pattern="q(?P<x>.)")
    for wrong, problem in (("(", "is no regular expression"), ("a", "has no named group")):
        with pytest.raises(ValueError, match=problem):
            read(path, pattern=wrong)


def test_parts_by_a_field_and_by_files(tmp_path: Path) -> None:
    images = [image(1, split="train"), image(2, split="val"), image(3, split="test")]
    one = read(coco_folder(tmp_path / "one", document(images, [])), val="test")
    assert list(one.train.names) == ["1.png"]
    assert one.test is not None
    assert sorted(one.test.names) == ["2.png", "3.png"]
    train = coco_folder(tmp_path / "two/a", document([image(1)], [box(1, 1, [1, 1, 2, 2])]))
    test = coco_folder(tmp_path / "two/b", document([image(1)], [box(1, 1, [3, 3, 2, 2])]))
    two = read(train, test=str(test))
    assert two.test is not None
    assert (list(two.train.names), list(two.test.names)) == (["a/1.png"], ["b/1.png"])
    assert rows_of(two.test)["b/1.png"][0][1] == 3
    other = coco_folder(tmp_path / "other", document([image(9)], [], [{"id": 2, "name": "cat"}]))
    with pytest.raises(DataError, match="its categories are not those of"):
        read(train, test=str(other))
    with pytest.raises(DataError, match=r"1.png is in .* as well"):
        read(train, test=str(train))
    for key, keys in (("path", {"path": "none.json"}), ("test", {"test": "none.json"})):
        with pytest.raises(
            DataError, match=rf"none\.json: this file cannot be read: .*; correct data\.{key}$"
        ):
            coco(**{"path": str(train), "size": 8, **keys})


def test_a_rare_class_is_spread_by_validation(tmp_path: Path) -> None:
    """Four images of twenty have the rare class beside the frequent one: half of them are measured on."""
    annotations = [box(n, n, [0, 0, 2, 2]) for n in range(1, 21)]
    annotations += [box(100 + n, n, [0, 0, 2, 2], category=7) for n in (3, 7, 11, 19)]
    path = coco_folder(tmp_path, document([image(n) for n in range(1, 21)], annotations))
    dataset = read(path, validation=0.5)
    assert dataset.test is not None
    rare = [
        sum(row[0] == 1 for rows in rows_of(part).values() for row in rows)
        for part in (dataset.train, dataset.test)
    ]
    assert rare == [2, 2]


def test_classes_reorder_and_unused_categories_need_no_place(tmp_path: Path) -> None:
    path = coco_folder(tmp_path, document([image(1)], [box(1, 1, [0, 0, 2, 2], category=7)]))
    dataset = read(path, classes=["cow", "cat"])
    assert dataset.classes == ("cow", "cat")
    assert rows_of(dataset.train)["1.png"][0][0] == 1
    with pytest.raises(DataError, match=r"class 'cat' is not in data.classes"):
        read(path, classes=["cow", "dog"])


def test_repair_clips_and_leaves_out(tmp_path: Path) -> None:
    annotations = [box(1, 1, [6, 6, 4, 1], area=4), box(2, 1, [9, 9, 2, 2]), box(3, 1, [1, 1, 0, 2])]
    path = coco_folder(tmp_path, document([image(1)], annotations))
    dataset = read(path, repair=True)
    assert rows_of(dataset.train) == {"1.png": [[0, 6, 6, 2, 1, 2, 0]]}
    assert dataset.notices[:3] == (
        "1 of 1 boxes stick out of their image and are clipped to it",
        "1 boxes have no area and are left out",
        "1 boxes lie outside of their image and are left out",
    )


def test_an_unreadable_image_is_left_out_with_its_boxes(tmp_path: Path) -> None:
    path = coco_folder(tmp_path, document([image(1), image(2)], [box(1, 1, [0, 0, 2, 2])]))
    (tmp_path / "1.png").write_bytes(b"no image")
    dataset = read(path, max_unreadable=0.5)
    assert rows_of(dataset.train) == {"2.png": []}
    assert "1 of 2 image files cannot be read" in dataset.notices[0]


def test_crop_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'^fit = "crop" would cut boxes'):
        read(coco_folder(tmp_path, document([image(1)], [])), fit="crop")


def test_what_is_odd_is_told(tmp_path: Path) -> None:
    annotations = [box(1, 1, [1, 1, 2, 2], area=9), box(2, 1, [1, 1, 2, 2])]
    notices = read(coco_folder(tmp_path, document([image(1)], annotations))).notices
    assert notices == (
        "1 of 2 boxes have an area above width x height, which is taken instead",
        "1 of 2 boxes are there twice: the same class and place in the same image",
    )


def test_tiny_boxes_are_told(tmp_path: Path) -> None:
    path = coco_folder(tmp_path, document([image(1)], [box(1, 1, [1, 1, 3, 2]), box(2, 1, [0, 0, 8, 8])]))
    assert read(path, size=4).notices == (
        "1 of 2 boxes are under 2 pixels at size = 4, and 1 under 4; raise data.size, or cut the images with "
        "data.tile",
    )


def test_it_is_the_file_that_torchvision_reads(tmp_path: Path) -> None:
    """In the layout of COCO's own download: the JSON files in one folder and the images in two others."""
    from torchvision.datasets import CocoDetection

    for part in ("train2017", "val2017"):
        picture(tmp_path / part / "1.png")
        content = document([image(1)], [box(1, 1, [1, 2, 3, 4]), box(2, 1, [0, 0, 8, 8], 7)])
        coco_folder(tmp_path / part, content, f"../instances_{part}.json")
    keys = {name: str(tmp_path / name) for name in ("train2017", "val2017")}
    dataset = read(
        tmp_path / "instances_train2017.json",
        root=keys["train2017"],
        test=str(tmp_path / "instances_val2017.json"),
        test_root=keys["val2017"],
    )
    theirs = CocoDetection(keys["train2017"], str(tmp_path / "instances_train2017.json"))
    assert [row[1:5] for row in rows_of(dataset.train)["train2017/1.png"]] == [
        one["bbox"] for one in theirs[0][1]
    ]
    assert dataset.test is not None
    assert list(dataset.test.names) == ["val2017/1.png"]


def turned(path: Path, width: int, height: int, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("L", (width, height)).save(path, exif=exif)


def test_annotations_are_those_of_the_upright_image(tmp_path: Path) -> None:
    """A file of 12 x 8 pixels that lies on its side is one of 8 x 12."""
    turned(tmp_path / "1.png", 12, 8, 6)
    upright = document([image(1, width=8, height=12)], [box(1, 1, [0, 10, 8, 2])])
    dataset = read(coco_folder(tmp_path, upright), fit="stretch")
    assert np.asarray(dataset.train.labels)[0, 0].tolist() == [1, 1, 8 / 12, 0, 0, 8, 12]
    assert dataset.notices[0].endswith("raise data.size, or cut the images with data.tile")
    lying = document([image(1, width=12, height=8)], [box(1, 1, [0, 0, 2, 2])])
    with pytest.raises(DataError) as found:
        read(coco_folder(tmp_path, lying))
    assert str(found.value) == (
        f"{tmp_path}/boxes.json, image 1: it says 12 x 8 pixels, and upright, as its EXIF orientation asks, "
        "1.png has 8 x 12: it was annotated lying on its side; save the file turned and without that tag, "
        "and its annotations with it, or remove the tag"
    )


def test_an_orientation_that_no_size_shows_is_told(tmp_path: Path) -> None:
    turned(tmp_path / "1.png", 8, 8, 8)
    turned(tmp_path / "2.png", 8, 8, 3)
    dataset = read(coco_folder(tmp_path, document([image(1), image(2)], [])))
    assert dataset.notices == (
        "2 images with an EXIF orientation: annotations are taken as drawn on the upright image; look at one",
    )
