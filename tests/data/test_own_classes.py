"""Boxes and maps under other numbers, and which classes they hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvision.data.boxes import CLASS, COUNT, Boxes, Placement, packed
from fedvision.data.masks import is_masks
from fedvision.data.own_classes import holds_boxes, images_with, in_words, renumbered
from fedvision.errors import DataError

PLACE = Placement(width=8, height=8)


def boxes(*classes: list[int]) -> Boxes:
    """Return targets of images with boxes of these classes, told apart by x, crowds where it is odd."""
    rows = [
        np.array([[label, x, 0, 1, 1, 1, x % 2] for x, label in enumerate(own)], float).reshape(-1, 7)
        for own in classes
    ]
    return packed(rows, [PLACE] * len(rows))


def labels_of(targets: Boxes) -> list[list[tuple[int, int]]]:
    """Return class and x of the boxes of each image."""
    return [[(int(row[0]), int(row[1])) for row in one[1 : 1 + int(one[0, COUNT])]] for one in targets]


def test_a_class_without_a_number_is_dropped_and_images_stay() -> None:
    own = boxes([0, 1, 2, 1], [1], [])
    moved = renumbered(own, np.array([4, -1, 0]), 5)
    assert labels_of(moved) == [[(4, 0), (0, 2)], [], []]
    assert moved.shape == own.shape
    assert not moved[0, 3:].any()
    assert moved[:, 0, 1:].tolist() == own[:, 0, 1:].tolist()
    assert labels_of(own)[0][1] == (1, 1)


@given(st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=4), st.permutations(range(4)))
def test_back_and_forth(classes: list[list[int]], order: list[int]) -> None:
    own, table = boxes(*classes), np.array(order)
    there = renumbered(own, table, 4)
    assert images_with(there, 4)[table].tolist() == images_with(own, 4).tolist()
    assert np.array_equal(renumbered(there, np.argsort(table), 4), own)


def test_pixels_without_a_number_are_of_no_class() -> None:
    maps = np.array([[[0, 1], [2, 255]]], np.uint8)
    moved = renumbered(maps, np.array([1, -1, 0]), 2)
    assert moved.tolist() == [[[1, 255], [0, 255]]]
    assert moved.dtype == np.uint8
    assert images_with(maps, 4).tolist() == [1, 1, 1, 0]


def test_images_of_each_class() -> None:
    assert images_with(boxes([0, 0, 2], [2], []), 4).tolist() == [1, 0, 2, 0]
    assert images_with(np.array([0, 2, 2]), 3).tolist() == [1, 0, 2]
    with pytest.raises(DataError, match="this task does not count"):
        images_with(np.zeros((2, 3, 4), np.int64), 2)


def test_a_map_of_seven_columns_is_no_list_of_boxes() -> None:
    assert holds_boxes(boxes([0]))
    maps = np.zeros((2, 7, 7), np.uint8)
    assert is_masks(maps)
    assert not holds_boxes(maps)
    assert [in_words(one) for one in (boxes([0]), maps, np.array([1]), np.zeros((1, 2), np.uint8))] == [
        "boxes",
        "a class for each pixel",
        "one class each",
        "any number of labels",
    ]
    assert in_words(np.zeros((1, 2, 3), np.int64)) == "targets int64 [N, 2, 3]"
    assert boxes([3])[0, 1, CLASS] == 3
