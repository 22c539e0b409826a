"""Masks out of COCO: order of objects, crowds, background, bars, objects that vanish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision.data.dataset import Dataset
from fedvision.data.sources.annotations.coco_masks import coco_masks
from fedvision.errors import DataError
from tests.data.annotated import box, coco_folder, document, image, picture


def read(path: Path, **keys: Any) -> Dataset:
    given = {"path": str(path), "size": 8, "channels": 1, "workers": 1, "cache": str(path) + "-c"}
    return coco_masks(**given | keys)


def square(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def shape(number: int, segmentation: Any, category: int = 2, **fields: Any) -> dict[str, Any]:
    return box(number, 1, [0, 0, 1, 1], category, segmentation=segmentation, **fields)


def mask_of(dataset: Dataset) -> np.ndarray[Any, Any]:
    (mask,) = np.asarray(dataset.train.labels)
    return mask


def test_small_lies_on_large_and_crowds_below(tmp_path: Path) -> None:
    crowd = {"size": [8, 8], "counts": [0, 16, 48]}
    annotations = [
        shape(1, square(3, 3, 5, 5), 7),
        shape(2, square(1, 1, 7, 7)),
        shape(3, crowd, iscrowd=1),
    ]
    dataset = read(coco_folder(tmp_path, document([image(1)], annotations)))
    assert dataset.classes == ("background", "dog", "cat")
    wanted = np.zeros((8, 8), np.uint8)
    wanted[:, :2] = 255
    wanted[1:7, 1:7] = 1
    wanted[3:5, 3:5] = 2
    assert np.array_equal(mask_of(dataset), wanted)
    assert dataset.train.labels.dtype == np.uint8


def test_of_equal_ones_the_later_is_on_top(tmp_path: Path) -> None:
    annotations = [shape(1, square(0, 0, 4, 4)), shape(2, square(2, 0, 6, 4), 7)]
    found = mask_of(read(coco_folder(tmp_path, document([image(1)], annotations))))
    assert found[0].tolist() == [1, 1, 2, 2, 2, 2, 0, 0]


def test_bars_are_of_no_class_and_two_polygons_one_object(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", 16, 8)
    both = square(0, 0, 4, 8) + square(12, 0, 16, 8)
    found = read(coco_folder(tmp_path, document([image(1, width=16)], [shape(1, both)])))
    assert mask_of(found)[2].tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
    assert np.unique(mask_of(found)[[0, 1, 6, 7]]).tolist() == [255]
    cut = mask_of(read(tmp_path / "boxes.json", fit="crop"))
    assert np.unique(cut).tolist() == [0]
    assert found.notices == ()


def test_a_hidden_or_vanished_object_is_told(tmp_path: Path) -> None:
    annotations = [
        shape(1, square(0, 0, 1, 1)),
        shape(2, square(2, 2, 6, 6)),
        shape(3, square(2, 2, 6, 6), 7),
    ]
    dataset = read(coco_folder(tmp_path, document([image(1)], annotations)), size=2)
    assert dataset.notices == ("2 of 3 objects have no pixel at size = 2, as they are hidden or too small",)


def test_the_background_by_another_name_and_place(tmp_path: Path) -> None:
    path = coco_folder(tmp_path, document([image(1)], [shape(1, square(0, 0, 8, 4), 7)]))
    dataset = read(path, background="dog", classes=["cat", "dog"])
    assert mask_of(dataset)[:, 0].tolist() == [0] * 4 + [1] * 4
    with pytest.raises(DataError, match=r"class 'background' is not in data.classes"):
        read(path, classes=["cat", "dog"])


def test_a_rare_class_is_spread_by_validation(tmp_path: Path) -> None:
    annotations = [box(n, n, [0, 0, 1, 1], 7, segmentation=square(0, 0, 4, 4)) for n in (3, 7, 9, 11)]
    path = coco_folder(tmp_path, document([image(n) for n in range(1, 13)], annotations))
    dataset = read(path, validation=0.5)
    assert dataset.test is not None
    assert [int((part.labels == 2).any((1, 2)).sum()) for part in (dataset.train, dataset.test)] == [2, 2]
