"""Masks out of COCO: order of objects, crowds, background, bars, objects that vanish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvision.data.dataset import Dataset
from fedvision.data.sources.annotations import coco_masks as module
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


def test_a_second_start_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations = [
        shape(1, square(2, 2, 4, 4)),
        shape(2, square(2, 2, 4, 4), 7),
        shape(3, square(0, 0, 1, 1)),
    ]
    path = coco_folder(tmp_path, document([image(1)], annotations))
    first = read(path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_draw", None)
        second = read(path)
    assert np.array_equal(mask_of(first), mask_of(second))
    assert first.notices == second.notices
    assert first.notices == ("1 of 3 objects have no pixel at size = 8, as they are hidden or too small",)
    # What is drawn depends on the annotations, the classes' numbers, the geometry and the images' sizes.
    turned = mask_of(read(path, classes=["cat", "dog", "background"]))
    assert np.array_equal(turned, np.array([2, 1, 0], np.uint8)[mask_of(first)])
    assert read(path, size=4).train.labels.shape == (1, 4, 4)
    coco_folder(tmp_path, document([image(1)], annotations[:1]))
    assert mask_of(read(path))[2, 2] == 1
    assert mask_of(first)[2, 2] == 2
    picture(tmp_path / "1.png", 16, 8)
    with pytest.raises(DataError, match="16 x 8"):
        read(path)


def test_what_a_drawn_mask_depends_on_is_in_its_key(tmp_path: Path) -> None:
    """Which class the background is, and the size of an image of which the annotations say nothing."""
    entry = {key: value for key, value in image(1).items() if key not in ("width", "height")}
    path = coco_folder(tmp_path, document([entry], [shape(1, square(0, 0, 4, 4))]))
    classes = ["dog", "cat"]
    assert mask_of(read(path, classes=classes, background="cat"))[7, 7] == 1
    assert mask_of(read(path, classes=classes, background="dog"))[7, 7] == 0
    assert mask_of(read(path))[0, 7] == 0
    picture(tmp_path / "1.png", 16, 8)
    assert mask_of(read(path))[0, 7] == 255, "a bar of the wider image"


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
