"""COCO's numbers of pooled detections: by hand, beside pycocotools to the bit, over any split of images."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvision.data import boxes
from fedvision.tasks import average_precision
from fedvision.tasks import detection_rows as form
from fedvision.tasks.average_precision import Curves, accumulate
from fedvision.tasks.detection_matching import match
from fedvision.tasks.stats import MetricStats
from tests.tasks.coco_reference import NAMES, Scene, evaluated, reference, scene

NAN = float("nan")


def measured(images: Scene, classes: int, edges: list[int], batch: int = 1000) -> MetricStats:
    """Return what clients that have the images between edges measured, pooled in their order."""
    parts = []
    for first, last in itertools.pairwise(edges):
        rows, cells = [np.empty((0, form.WIDTH), np.int64)], [np.empty(0, np.int64)]
        for start in range(first, last, batch):
            end = min(start + batch, last)
            found, where = match(images.detections(start, end), images.targets(start, end), classes)
            found[:, form.IMAGE] += start - first
            rows.append(found)
            cells.append(where)
        shape = (len(form.AREAS), classes + 1, 2)
        parts.append(MetricStats.from_cells(np.concatenate(cells), shape, np.concatenate(rows)))
    pooled = MetricStats.total(parts)
    for stats in (*parts, pooled):
        assert form.rows_problem(rows_of(stats), stats.tables()) is None
    return pooled


def rows_of(stats: MetricStats) -> np.ndarray:
    assert stats.rows is not None
    return stats.rows


def pooled(images: Scene, classes: int, edges: list[int], batch: int = 1000) -> Curves:
    stats = measured(images, classes, edges, batch)
    return accumulate(stats.tables(), rows_of(stats))


def curves(images: Scene, classes: int) -> Curves:
    return pooled(images, classes, [0, len(images.truths)])


def one_class(truths: list[list[float]], found: list[list[float]]) -> Scene:
    """Return an image with boxes (x, y, width, height) and detections (score, x, y, width, height)."""
    own = np.zeros((len(truths), boxes.COLUMNS))
    own[:, boxes.X : boxes.HEIGHT + 1] = np.array(truths).reshape(-1, 4)
    own[:, boxes.AREA] = own[:, boxes.WIDTH] * own[:, boxes.HEIGHT]
    rows = np.zeros((len(found), 6))
    rows[:, 1:] = np.array(found).reshape(-1, 5)
    return Scene([own], [rows])


def test_numbers_by_hand() -> None:
    """Two boxes; found, missed, found at IoU 0.5 alone: precision 1 up to recall 0.5, then 2/3 at IoU 0.5."""
    images = one_class(
        [[0, 0, 20, 20], [100, 0, 20, 20]],
        [[0.9, 0, 0, 20, 20], [0.8, 200, 0, 20, 20], [0.7, 100, 0, 20, 10]],
    )
    found = curves(images, 1)
    at_half = (51 * 1 + 50 * 2 / 3) / 101
    above = 51 / 101
    summary = found.summary()
    assert summary["ap50"] == pytest.approx(at_half)
    assert summary["ap75"] == pytest.approx(above)
    assert summary["ap"] == summary["ap_small"] == pytest.approx((at_half + 9 * above) / 10)
    assert (summary["ar1"], summary["ar10"]) == pytest.approx((0.5, 0.55))
    assert np.isnan([summary[name] for name in ("ap_medium", "ap_large", "ar_medium", "ar_large")]).all()
    assert found.points(0)[[0, 50, 51, 100]] == pytest.approx([1, 1, 2 / 3, 2 / 3])
    assert found.points(0, 0.75)[[50, 51]] == pytest.approx([1, 0])


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_the_twelve_numbers_are_those_of_pycocotools_over_any_split(data: st.DataObject) -> None:
    """To the bit, for 1 to 50 clients of which some have no images, and any batch size."""
    classes, size = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 25))
    images = scene(
        data.draw(st.integers(0, 2**32)),
        images=size,
        classes=classes,
        most=data.draw(st.integers(0, 8)),
        detections=data.draw(st.integers(0, 20)),
        whole=data.draw(st.booleans()),
        ties=data.draw(st.booleans()),
        crowds=data.draw(st.sampled_from([0.0, 0.2, 1.0])),
    )
    cuts = data.draw(st.lists(st.integers(0, size), max_size=49))
    summary = pooled(images, classes, [0, *sorted(cuts), size], data.draw(st.integers(1, 25))).summary()
    assert list(summary) == list(NAMES)
    np.testing.assert_array_equal(list(summary.values()), list(reference(images, classes).values()))


@pytest.mark.parametrize("seed", range(3))
def test_more_than_a_hundred_detections_of_a_class(seed: int) -> None:
    """The hundred with the highest scores count, ties in the order in which they came."""
    images = scene(seed, images=4, classes=2, most=30, detections=400, whole=True, ties=seed > 0)
    images.found[0] = np.concatenate([images.found[0]] * 3)
    assert rows_of(measured(images, 2, [0, 4]))[:, form.RANK].max() == form.MOST - 1
    found, wanted = curves(images, 2).summary(), reference(images, 2)
    np.testing.assert_array_equal(list(found.values()), list(wanted.values()))


@pytest.mark.parametrize("seed", range(4))
def test_every_point_of_every_curve_is_that_of_pycocotools(seed: int) -> None:
    images = scene(seed, images=20, classes=4, ties=seed > 1)
    found, wanted = curves(images, 4), evaluated(images, 4).eval
    precision, recall = wanted["precision"][..., 2], wanted["recall"]
    np.testing.assert_array_equal(found.precision, np.where(precision == -1, np.nan, precision))
    np.testing.assert_array_equal(found.recall, np.where(recall == -1, np.nan, recall))


def test_a_class_has_the_mean_of_its_curve_and_one_without_boxes_nothing() -> None:
    images = scene(3, images=30, classes=4)
    found = curves(images, 4)
    by_class, summary = found.by_class(), found.summary()
    counted = np.concatenate(images.truths)
    counted = counted[counted[:, boxes.CROWD] == 0]
    assert by_class["boxes"].tolist() == [*(int((counted[:, 0] == c).sum()) for c in range(3)), 0]
    for name in ("ap", "ap50", "ap75", "ar100"):
        assert np.isnan(by_class[name]).tolist() == [False, False, False, True]
        assert by_class[name][:3].mean() == pytest.approx(summary[name])
    assert by_class["ap50"][1] == pytest.approx(found.points(1).mean())


def test_nothing_to_find_is_nan_and_nothing_found_is_zero() -> None:
    nothing = curves(one_class([], [[0.9, 0, 0, 5, 5]]), 2)
    assert np.isnan(list(nothing.summary().values())).all()
    missed = curves(one_class([[0, 0, 5, 5]], []), 2)
    assert [missed.summary()[name] for name in ("ap", "ap50", "ar1", "ar100", "ap_small")] == [0] * 5
    assert missed.by_class()["ap"].tolist() == pytest.approx([0, NAN], nan_ok=True)
    no_images = accumulate(np.zeros((4, 3, 2), np.int64), np.empty((0, form.WIDTH), np.int64))
    assert np.isnan(list(no_images.summary().values())).all()


def test_the_mean_of_clients_is_another_number() -> None:
    """One finds all of its boxes with low scores, the other one nothing with high scores."""
    box = [0.0, 0.0, 20.0, 20.0]
    right = one_class([box], [[0.3, *box]])
    wrong = one_class([box], [[0.9, 200, 200, 20, 20], [0.8, 300, 300, 20, 20]])
    both = Scene(right.truths + wrong.truths, right.found + wrong.found)
    alone = [curves(one, 1).summary()["ap"] for one in (right, wrong)]
    together = pooled(both, 1, [0, 1, 2]).summary()["ap"]
    assert np.mean(alone) == pytest.approx(0.5)
    assert together == reference(both, 1)["ap"] == pytest.approx(51 / 101 / 3)


def test_a_threshold_that_is_none_is_refused() -> None:
    assert [average_precision.threshold_index(value) for value in (0.5, 0.75, 0.95)] == [0, 5, 9]
    with pytest.raises(ValueError, match=r"0\.6[0-9]+ is none of the thresholds"):
        average_precision.threshold_index(0.62)


def test_the_example_of_the_documentation_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "average-precision.md").read_text(encoding="utf-8")
    code, printed = re.search(r"```python\n(.*?)```\n+```text\n(.*?)```", page, re.S).groups()  # type: ignore[union-attr]
    exec(code, {})
    assert capsys.readouterr().out == printed
