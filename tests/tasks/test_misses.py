"""What went wrong in each image, by hand and beside what is measured, and how it is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from fedvision.data import boxes
from fedvision.data.boxes import Placement, packed
from fedvision.errors import ConfigError
from fedvision.tasks import detection_misses, drawings, mask_misses
from fedvision.tasks import detection_rows as form
from fedvision.tasks.base import build_task
from fedvision.tasks.classification import Classification
from fedvision.tasks.detection import Detection
from fedvision.tasks.detection_matching import Detections, match
from fedvision.tasks.drawings import NEITHER, RIGHT, WRONG, Drawings
from fedvision.tasks.segmentation import Segmentation
from fedvision.tasks.stats import MetricStats
from fedvision.types import PluginSpec

GRAY = np.arange(2 * 4 * 6, dtype=np.uint8).reshape(2, 4, 6, 1)


def truth(label: int, *place: float, crowd: bool = False) -> list[float]:
    return [label, *place, place[2] * place[3], crowd]


def targets(*images: list[list[float]], **placed: Any) -> boxes.Boxes:
    rows = [np.array(own, np.float64).reshape(-1, boxes.COLUMNS) for own in images]
    return packed(rows, [Placement(width=60, height=60, **placed)] * len(rows))


def detections(*found: tuple[float, ...]) -> Detections:
    """Return detections (image, class, score, x, y, width, height)."""
    rows = np.array(found, np.float64).reshape(-1, 7)
    return Detections(
        images=rows[:, 0].astype(np.int64),
        classes=rows[:, 1].astype(np.int64),
        boxes=rows[:, 3:],
        scores=rows[:, 2].astype(np.float32),
    )


OWN = targets(
    [
        truth(0, 0, 0, 10, 10),
        truth(0, 20, 0, 10, 10),
        truth(1, 0, 20, 10, 10),
        truth(2, 30, 30, 20, 20, crowd=True),
    ],
    [],
)
"""Class 0 twice, class 1 once, a crowd of class 2; then an image of nothing."""
FOUND = detections(
    (0, 0, 0.9, 0, 0, 10, 10),  # finds the first object
    (0, 0, 0.8, 0, 0, 10, 9),  # which is taken
    (0, 0, 0.29, 20, 0, 10, 10),  # of too low a score
    (0, 1, 0.5, 20, 0, 10, 10),  # of another class
    (0, 2, 0.4, 35, 35, 5, 5),  # in the crowd
    (1, 2, 0.75, 0, 0, 5, 5),  # nothing is there
)


def test_misses_are_lost_objects_and_scores_of_false_boxes() -> None:
    rows, _ = match(FOUND, OWN, 3)
    wrong = detection_misses.misses(rows, OWN, 3)
    assert wrong.dtype == np.float64
    assert wrong == pytest.approx(np.array([[1 + 0.8, 1 + 0.5, 0], [0, 0, 0.75]]))
    nothing = detection_misses.misses(rows[:0], OWN, 4)
    assert nothing.tolist() == [[2, 1, 0, 0], [0, 0, 0, 0]]


def test_a_box_at_the_least_score_is_looked_at() -> None:
    low = detections(
        (1, 0, 0.3, 0, 0, 5, 5), (1, 0, np.nextafter(np.float32(0.3), np.float32(0)), 9, 9, 5, 5)
    )
    wrong = detection_misses.misses(match(low, OWN, 1 + 2)[0], OWN, 3)
    assert wrong[1].tolist() == [float(np.float32(0.3)), 0, 0]
    assert detection_misses.draw(GRAY, low, OWN).captions[1] == "0 of 0 objects missed, 1 false box"


def test_boxes_are_drawn_where_they_are_in_the_decoded_image() -> None:
    own = targets([truth(0, 10, 20, 20, 10)], [], scale=(0.1, 0.05), shift=(1.0, 0.5))
    found = detections((0, 0, 0.25, 0, 0, 9, 9), (0, 0, 0.5, 10, 20, 20, 20), (0, 1, np.nan, 0, 0, 9, 9))
    drawn = detection_misses.draw(GRAY, found, own)
    assert drawn.panels.tolist() == np.repeat(GRAY, 3, axis=3)[:, None].tolist()
    assert drawn.boxes[:, drawings.IMAGE].tolist() == [0, 0]
    assert drawn.boxes[:, drawings.VERDICT].tolist() == [RIGHT, RIGHT]
    assert np.isnan(drawn.boxes[:, drawings.SCORE]).tolist() == [False, True]
    assert drawn.boxes[:, drawings.LEFT :] == pytest.approx(np.array([[2, 1.5, 4, 2.5], [2, 1.5, 4, 2.0]]))
    assert drawn.captions == ["0 of 1 object missed, 0 false boxes", "0 of 0 objects missed, 0 false boxes"]


def test_verdicts_by_hand() -> None:
    drawn = detection_misses.draw(GRAY, FOUND, OWN)
    first = drawn.boxes[drawn.boxes[:, drawings.IMAGE] == 0]
    said = {
        (int(row[drawings.LABEL]), round(float(row[drawings.SCORE]), 2)): int(row[drawings.VERDICT])
        for row in first
        if not np.isnan(row[drawings.SCORE])
    }
    assert said == {(0, 0.9): RIGHT, (0, 0.8): WRONG, (1, 0.5): WRONG, (2, 0.4): NEITHER}
    annotated = first[np.isnan(first[:, drawings.SCORE])]
    assert annotated[:, drawings.VERDICT].tolist() == [RIGHT, WRONG, WRONG, NEITHER]
    assert drawn.captions == ["2 of 3 objects missed, 2 false boxes", "0 of 0 objects missed, 1 false box"]


def test_of_many_false_boxes_the_surest_are_drawn() -> None:
    false = [(0, 2, 0.35 + place / 100, place, 40, 3, 3) for place in range(8)]
    drawn = detection_misses.draw(GRAY, detections((0, 0, 0.31, 0, 0, 10, 10), *false), OWN)
    scored = drawn.boxes[~np.isnan(drawn.boxes[:, drawings.SCORE])]
    assert scored[:, drawings.SCORE] == pytest.approx([0.42, 0.41, 0.4, 0.39, 0.38, 0.31])
    assert scored[:, drawings.VERDICT].tolist() == [WRONG] * 5 + [RIGHT]
    assert drawn.captions[0] == "2 of 3 objects missed, 8 false boxes, the surest 5 drawn"


def test_of_equally_near_objects_the_last_is_found() -> None:
    truths = np.array([truth(0, 5, 0, 20, 20), truth(0, 15, 0, 20, 20)])
    found, own = detection_misses.verdicts(np.array([0]), np.array([[10.0, 0, 20, 20]]), truths)
    assert (found.tolist(), own.tolist()) == ([RIGHT], [WRONG, RIGHT])


@given(st.integers(0, 2**32))
def test_what_is_drawn_is_what_is_measured(seed: int) -> None:
    """Boxes on a coarse grid, so that overlaps and scores are often equal."""
    rng = np.random.default_rng(seed)

    def places(count: int) -> np.ndarray:
        return rng.integers(0, 4, (count, 4)) * 5 + np.array([0, 0, 5, 5])

    images = [
        [
            truth(int(rng.integers(3)), *place, crowd=bool(rng.random() < 0.2))
            for place in places(rng.integers(7))
        ]
        for _ in range(2)
    ]
    own = targets(*images)
    own_boxes = places(count := int(rng.integers(25)))
    rows = np.column_stack(
        [rng.integers(0, 2, count), rng.integers(0, 3, count), rng.integers(1, 10, count) / 10]
    )
    found = detections(*np.hstack([rows, own_boxes]).tolist())
    measured, _ = match(found, own, 3)
    with pytest.MonkeyPatch.context() as all_of_them:
        all_of_them.setattr(detection_misses, "FALSE_DRAWN", count)
        drawn = detection_misses.draw(GRAY, found, own).boxes
    is_found = ~np.isnan(drawn[:, drawings.SCORE])
    looked = measured[form.unpacked_scores(measured[:, form.SCORE]) >= detection_misses.SHOWN]
    matched, ignored = (form.unpacked_bits(looked[:, c])[:, 0, 0] for c in (form.MATCHED, form.IGNORED))
    # By image and class in the order of scores, as rows are.
    order = np.lexsort(
        (-drawn[is_found, drawings.SCORE], drawn[is_found, drawings.LABEL], drawn[is_found, 0])
    )
    verdicts = np.where(ignored, NEITHER, np.where(matched, RIGHT, WRONG))
    assert drawn[is_found][order, drawings.VERDICT].tolist() == verdicts.tolist()
    wrong = detection_misses.misses(measured, own, 3)
    for image in range(2):
        for label in range(3):
            rest = drawn[(drawn[:, 0] == image) & (drawn[:, drawings.LABEL] == label)]
            rest = rest[rest[:, drawings.VERDICT] == WRONG, drawings.SCORE]
            assert wrong[image, label] == pytest.approx(np.isnan(rest).sum() + np.nansum(rest))


MASKS = np.array([[[0, 0], [1, 255]], [[0, 1], [1, 1]]], np.uint8)
NAMED = torch.tensor([[[0, 1], [1, 1]], [[0, 0], [1, 2]]])
LOGITS = 9 * F.one_hot(NAMED, 4).movedim(-1, 1).float()


def pixels_of(task: Segmentation) -> MetricStats:
    found = task.observe(LOGITS, torch.from_numpy(MASKS), 4)
    assert found.rows is not None
    return MetricStats.from_cells(found.cells.numpy(), task.stats_shape(4), found.rows.numpy())


def test_misses_of_pixels_by_hand() -> None:
    """Image 0: class 0 has TP 1, FN 1, class 1 TP 1, FP 1; then class 0 TP 1, FP 1, class 1 TP 1, FN 2."""
    plain = Segmentation()
    wrong = plain.misses(pixels_of(plain), MASKS, 4)
    assert wrong is not None
    assert wrong == pytest.approx(np.array([[1 / 3, 1 / 3, 0, 0], [1 / 3, 1 / 2, 0, 0]]))
    without = Segmentation(background=0)
    wrong = without.misses(pixels_of(without), MASKS, 4)
    assert wrong is not None
    assert wrong == pytest.approx(np.array([[0, 1 / 3, 0, 0], [0, 1 / 2, 0, 0]]))
    empty = without.misses(MetricStats.empty((1, 4, 4)), MASKS[:0], 4)
    assert empty is not None
    assert empty.shape == (0, 4)


def test_masks_are_drawn_beside_each_other() -> None:
    images = np.full((2, 2, 2, 3), 7, np.uint8)
    drawn = Segmentation().draw(images, LOGITS, MASKS, np.array([1, 2]), ("none", "road", "car", "tree"))
    assert (drawn.titles, drawn.panels.shape) == (("image", "true mask", "predicted mask"), (2, 3, 2, 2, 3))
    assert (drawn.panels[:, 0] == 7).all()
    black, red, green, white = [0, 0, 0], [128, 0, 0], [0, 128, 0], [255] * 3
    assert drawn.panels[0, 1].tolist() == [[black, black], [red, white]]
    assert drawn.panels[0, 2].tolist() == [[black, red], [red, white]]
    assert drawn.panels[1, 2].tolist() == [[black, black], [red, green]]
    assert drawn.captions == ["Dice 66.7%", "Dice 0.0%"]
    assert drawn.key == {"#000000": "none", "#800000": "road", "#008000": "car", "#ffffff": "ignored"}


def test_large_images_are_drawn_smaller_with_their_boxes() -> None:
    images = np.zeros((1, 700, 350, 2), np.uint8)
    images[0, :3, :3, 0] = 90
    own = targets([truth(0, 30, 60, 30, 90)])
    drawn = detection_misses.draw(images, detections(), own)
    assert drawn.panels.shape == (1, 1, 234, 117, 3)
    assert drawn.panels[0, 0, 0, :2].tolist() == [[90] * 3, [0] * 3]
    assert drawn.boxes[0, drawings.LEFT :].tolist() == [10, 20, 20, 50]
    masks = np.zeros((1, 700, 350), np.uint8)
    masks[0, 3, 6] = 1
    found = mask_misses.draw(images, masks.astype(np.int64), masks, np.array([1]), ("a", "b"))
    assert found.panels.shape == (1, 3, 234, 117, 3)
    assert found.panels[0, 1, 1, 2].tolist() == [128, 0, 0]
    assert found.panels[0, 1].any(axis=2).sum() == 1


def test_a_task_that_does_not_draw_says_so() -> None:
    plain = build_task(PluginSpec(use="classification"))
    assert (plain.draws, Detection().draws, Segmentation().draws) == (False, True, True)
    assert plain.misses(MetricStats.empty((1, 2, 2)), np.zeros(0, np.int64), 2) is None
    with pytest.raises(ConfigError, match="'classification' does not draw"):
        Classification().draw(GRAY, None, np.zeros(2, np.int64), np.zeros(2, np.int64), ("a",))


def test_where_single_images_are_not_told_nothing_is_known() -> None:
    for task, shape in ((Detection(), (4, 3, 2)), (Segmentation(), (1, 2, 2))):
        stats = MetricStats(shape=shape, cells=np.empty(0, np.int64), counts=np.empty(0, np.int64), rows=None)
        assert task.misses(stats, OWN, 2) is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"panels": np.zeros((1, 1, 2, 2, 3))}, "uint8"),
        ({"captions": ["a", "b"]}, "as many captions"),
        ({"titles": ["a", "b"]}, "as many captions"),
        ({"boxes": np.zeros((1, 7))}, r"float64 \[K, 8\]"),
        ({"boxes": np.array([[1, 0, 0.5, 0, 0, 0, 1, 1.0]])}, "of images that there are"),
        ({"boxes": np.array([[0, 0, 0.5, 3, 0, 0, 1, 1.0]])}, "three verdicts"),
        ({"boxes": np.array([[0, 0, 0.5, 0, 0, 0, np.inf, 1.0]])}, "finite"),
        ({"key": {"red; background: url(x)": "a"}}, "#rrggbb"),
    ],
)
def test_drawings_must_fit(change: dict[str, Any], why: str) -> None:
    whole: dict[str, Any] = {
        "panels": np.zeros((1, 1, 2, 2, 3), np.uint8),
        "titles": ["a"],
        "captions": ["b"],
    }
    Drawings(about="", **whole)
    with pytest.raises(ValueError, match=why):
        Drawings(about="", **whole | change)
