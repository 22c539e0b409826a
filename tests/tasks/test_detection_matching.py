"""Matching by hand, case by case of COCO's rules, and IoU beside pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask

from fedvision.data import boxes
from fedvision.tasks import detection_rows as form
from fedvision.tasks.detection_matching import Detections, match, overlap
from fedvision.tasks.stats import MetricStats
from tests.tasks.coco_reference import scene

ALL, SMALL, MEDIUM, LARGE = range(4)


def truth(*place: float, label: int = 0, area: float | None = None, crowd: bool = False) -> list[float]:
    """Return an annotated box of a place (x, y, width, height)."""
    return [label, *place, place[2] * place[3] if area is None else area, crowd]


def detections(*found: tuple[float, ...], images: list[int] | None = None) -> Detections:
    """Return detections (class, score, x, y, width, height), by default all of the first image."""
    rows = np.array(found, np.float64).reshape(-1, 6)
    return Detections(
        images=np.array(images or [0] * len(rows), np.int64),
        classes=rows[:, 0].astype(np.int64),
        boxes=rows[:, 2:],
        scores=rows[:, 1].astype(np.float32),
    )


def targets(*images: list[list[float]]) -> boxes.Boxes:
    rows = [np.array(own, np.float64).reshape(-1, boxes.COLUMNS) for own in images]
    return boxes.packed(rows, [boxes.Placement(width=200, height=200)] * len(rows))


def flags(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what matched and what is ignored, bool [M, A, T]."""
    return form.unpacked_bits(rows[:, form.MATCHED]), form.unpacked_bits(rows[:, form.IGNORED])


def test_rows_are_by_image_class_and_falling_score() -> None:
    """Ties stay in the order in which they came; scores come back to the bit."""
    found = detections(
        *[(1, 0.1, 0, 0, 4, 4), (0, 0.3, 0, 0, 4, 4), (0, 0.3, 9, 0, 4, 4), (0, 0.7, 0, 0, 4, 4)],
        *[(0, -2.5, 0, 0, 4, 4)],
        images=[1, 1, 1, 0, 1],
    )
    rows, _ = match(found, targets([], [truth(9, 0, 4, 4)]), 2)
    assert rows[:, : form.SCORE].tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 1], [1, 0, 2], [1, 1, 0]]
    scores = form.unpacked_scores(rows[:, form.SCORE])
    assert scores.tolist() == [*np.array([0.7, 0.3, 0.3, -2.5, 0.1], np.float32).tolist()]
    matched, _ = flags(rows)
    assert matched.any(axis=(1, 2)).tolist() == [False, False, True, False, False]


def test_thresholds_are_inclusive() -> None:
    """IoU 10/20 = 0.5 matches at the first threshold alone, 15/20 = 0.75 at the first six."""
    found = detections((0, 0.9, 0, 0, 10, 10), (1, 0.9, 0, 0, 10, 15))
    own = targets([truth(0, 0, 10, 20), truth(0, 0, 10, 20, label=1)])
    matched, _ = flags(match(found, own, 2)[0])
    assert matched[:, ALL].sum(axis=1).tolist() == [1, 6]
    assert matched[1, ALL].tolist() == [True] * 6 + [False] * 4


def test_a_box_is_found_once_by_the_higher_score() -> None:
    found = detections((0, 0.8, 0, 0, 10, 10), (0, 0.9, 0, 0, 10, 9))
    matched, ignored = flags(match(found, targets([truth(0, 0, 10, 10)]), 1)[0])
    # IoU 0.9 of the higher score is enough at nine thresholds; at the last one the other has the box.
    assert matched[0, ALL].tolist() == [True] * 9 + [False]
    assert matched[1, ALL].tolist() == [False] * 9 + [True]
    assert not ignored[:, ALL].any()


def test_the_nearest_box_is_taken() -> None:
    """With any other choice one of both detections would have IoU 0.9, too little at 0.95."""
    near = targets([truth(0, 0, 10, 9), truth(0, 0, 10, 10)])
    matched, _ = flags(match(detections((0, 0.9, 0, 0, 10, 9), (0, 0.8, 0, 0, 10, 10)), near, 1)[0])
    assert matched[:, ALL].all()


@pytest.mark.parametrize("reverse", [False, True])
def test_of_equally_near_boxes_the_last_is_taken(reverse: bool) -> None:
    """The first detection lies halfway; the second is near one box alone, and finds it if it is not last."""
    own = [truth(8, 0, 10, 10), truth(12, 0, 10, 10)]
    found = detections((0, 0.9, 10, 0, 10, 10), (0, 0.8, 14, 0, 10, 10))
    matched, _ = flags(match(found, targets(own[::-1] if reverse else own), 1)[0])
    assert matched[:, ALL, 0].tolist() == [True, reverse]


def test_what_is_out_of_range_is_taken_last_and_ignored() -> None:
    """A detection prefers a box in range with less overlap; matched with one out of range it is ignored."""
    own = targets([truth(0, 0, 40, 40), truth(0, 0, 40, 40, area=900.0)])
    found = detections((0, 0.9, 0, 0, 40, 40), (0, 0.8, 0, 0, 40, 40), (0, 0.7, 0, 0, 40, 40))
    matched, ignored = flags(match(found, own, 1)[0])
    assert matched[:, :, 0].T.tolist() == [[True, True, False]] * 4
    # All: two are right, the third is wrong. Small and medium: the second has the box that does not count.
    assert ignored[:, ALL, 0].tolist() == [False, False, False]
    assert ignored[:, SMALL, 0].tolist() == [False, True, True]
    assert ignored[:, MEDIUM, 0].tolist() == [False, True, False]
    assert ignored[:, LARGE, 0].tolist() == [True, True, True]


def test_both_ends_of_a_range_belong_to_it() -> None:
    found = detections((0, 0.9, 0, 0, 32, 32), (1, 0.9, 0, 0, 96, 96), (2, 0.9, 0, 0, 1e5, 1e5 + 1))
    rows, cells = match(found, targets([truth(100, 100, 32, 32), truth(0, 0, 96, 96, label=1)]), 3)
    _, ignored = flags(rows)
    assert ignored[:, :, 0].tolist() == [
        [False, False, False, True],
        [False, True, False, False],
        [True, True, True, True],
    ]
    tables = MetricStats.from_cells(cells, (4, 4, 2)).tables()
    assert tables[:, :2, form.COUNTS].tolist() == [[1, 1], [1, 0], [1, 1], [0, 1]]


def test_crowds_are_found_by_any_number_and_count_for_nothing() -> None:
    """Two detections inside of a crowd overlap with it whole; one that can have an object takes that."""
    own = targets([truth(0, 0, 100, 100, crowd=True), truth(0, 0, 10, 10)])
    found = detections((0, 0.9, 50, 50, 10, 10), (0, 0.8, 50, 50, 10, 10), (0, 0.7, 0, 0, 10, 10))
    rows, cells = match(found, own, 1)
    matched, ignored = flags(rows)
    assert matched[:, ALL].all()
    assert ignored[:, ALL].all(axis=1).tolist() == [True, True, False]
    tables = MetricStats.from_cells(cells, (4, 2, 2)).tables()
    # One box and one crowd; an image.
    assert tables[ALL].tolist() == [[1, 1], [1, 0]]
    assert tables[SMALL].tolist() == [[1, 1], [1, 0]]
    assert tables[LARGE].tolist() == [[0, 2], [1, 0]]


def test_every_box_and_image_is_counted_once_in_each_table() -> None:
    images = scene(0, images=20, classes=3)
    _, cells = match(images.detections(0, 20), images.targets(0, 20), 3)
    tables = MetricStats.from_cells(cells, (4, 4, 2))
    assert (tables.tables().sum(axis=(1, 2)) == 20 + sum(map(len, images.truths))).all()
    assert form.images_of(tables.tables()) == 20
    crowds = boxes.class_table(images.targets(0, 20), 3).sum(axis=0)
    assert form.boxes_of(tables.tables()).tolist() == crowds.tolist()


def test_what_is_not_finite_is_no_detection() -> None:
    nan, inf = float("nan"), float("inf")
    found = detections(
        (0, nan, 0, 0, 9, 9), (0, 0.5, 0, inf, 9, 9), (0, 0.4, 0, 0, 9, 9), (0, inf, 0, 0, 9, 9)
    )
    rows, _ = match(found, targets([truth(0, 0, 9, 9)]), 1)
    assert len(rows) == 1
    assert flags(rows)[0].all(axis=2)[0, ALL]


def test_nothing_gives_no_rows() -> None:
    rows, cells = match(detections(), targets([], []), 2)
    assert (rows.shape, rows.dtype, len(cells)) == ((0, form.WIDTH), np.int64, 8)
    assert match(detections(), targets([truth(0, 0, 9, 9)]), 1)[0].shape == (0, form.WIDTH)


@pytest.mark.parametrize(("label", "image"), [(2, 0), (-1, 0), (0, 1), (0, -1)])
def test_images_and_classes_that_do_not_exist_are_refused(label: int, image: int) -> None:
    found = detections((label, 0.5, 0, 0, 9, 9), images=[image])
    with pytest.raises(ValueError, match=r"detections are of (images|classes) outside 0 to [01]"):
        match(found, targets([]), 2)


def test_boxes_that_are_many_choose_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images = scene(5, images=30, classes=3, most=20, detections=60)
    given = images.detections(0, 30), images.targets(0, 30), 3
    rows, cells = match(*given)
    monkeypatch.setattr("fedvision.tasks.detection_matching._AT_ONCE", 7)
    again, cells_again = match(*given)
    assert np.array_equal(rows, again)
    assert np.array_equal(cells, cells_again)


@given(st.integers(0, 2**32), st.booleans())
def test_overlap_has_the_bits_of_pycocotools(seed: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    found, own = rng.uniform(0, 50, (6, 4)), rng.uniform(0, 50, (5, 4))
    if whole:
        found, own = found.round(), own.round()
    crowds = rng.random(5) < 0.5
    ours = overlap(found[:, None], own, crowds)
    assert np.array_equal(ours, mask.iou(found, own, crowds.astype(np.uint8)))


def test_overlap_of_nothing_is_zero() -> None:
    """Also of boxes whose areas are below the smallest number, of which the share is undefined."""
    tiny = np.array([0.0, 0.0, 1e-200, 1e-200])
    assert overlap(tiny, tiny, np.array(False)) == 0
    assert overlap(np.array([0.0, 0, 0, 9]), np.array([0.0, 0, 9, 9]), np.array(False)) == 0
    assert overlap(np.array([0.0, 0, 9, 9]), np.array([9.0, 0, 9, 9]), np.array(True)) == 0
