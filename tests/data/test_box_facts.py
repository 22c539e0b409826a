"""What is told of boxes before a run."""

from __future__ import annotations

import numpy as np

from fedvision.data.box_facts import box_facts, tiny_boxes
from fedvision.data.boxes import Placement, packed

HALF = Placement(width=200, height=100, scale=(0.5, 0.5))


def rows(*boxes: tuple[float, float, float, int]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Return boxes by width, height, area and whether they are crowds."""
    return np.array([[0, 1, 1, w, h, area, crowd] for w, h, area, crowd in boxes], float).reshape(-1, 7)


def test_numbers_sizes_and_areas() -> None:
    targets = packed(
        [rows((10, 6, 50, 0), (32, 32, 1024, 0), (99, 99, 9216, 0)), rows((3, 3, 9, 1)), rows()], [HALF] * 3
    )
    assert box_facts(targets) == [
        "3 boxes in 3 images: 1 an image (median), 3 at most, 1 image without any; beside them 1 crowd or "
        "ignored objects",
        "the smallest box has 5.0 x 3.0 pixels after decoding, 10 x 6 in its file",
        "by area in the files: 1 small (below 32 x 32 pixels), 1 medium, 1 large (from 96 x 96 on)",
    ]
    assert tiny_boxes(targets, 100) == ()


def test_no_boxes_at_all() -> None:
    assert box_facts(packed([rows()], [HALF])) == [
        "0 boxes in 1 image: 0 an image (median), 0 at most, 1 image without any"
    ]
    assert tiny_boxes(packed([rows()], [HALF]), 8) == ()


def test_what_decoding_leaves_next_to_nothing_of() -> None:
    targets = packed([rows((3.9, 90, 9, 0), (7, 90, 9, 0), (8, 8, 64, 0), (2, 2, 4, 1))], [HALF])
    assert tiny_boxes(targets, 100) == (
        "1 of 3 boxes are under 2 pixels at size = 100, and 2 under 4; raise data.size, or cut the images "
        "with data.tile",
    )
