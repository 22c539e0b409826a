"""Confusion counts as pairs: the same numbers as a matrix, in memory that follows the images."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from fedvision.tasks import metrics
from fedvision.tasks.confusion import MATRIX_CLASSES, ConfusionCounts

HAND = [[1, 0, 1], [1, 0, 0], [0, 0, 1]]


def drawn(classes: int, images: int, seed: int = 0) -> ConfusionCounts:
    labels, predicted = np.random.default_rng(seed).integers(0, classes, (2, images))
    return ConfusionCounts.from_predictions(labels, predicted, classes)


def test_counts_by_hand() -> None:
    counted = ConfusionCounts.from_predictions(np.array([0, 0, 2, 1]), np.array([0, 2, 2, 0]), 3)
    assert (counted.cells.tolist(), counted.counts.tolist()) == ([0, 2, 3, 8], [1, 1, 1, 1])
    assert counted.matrix().tolist() == HAND
    assert (counted.images_of.tolist(), counted.predictions_of.tolist()) == ([2, 1, 1], [2, 0, 2])
    assert (counted.right_of.tolist(), counted.examples) == ([1, 0, 1], 4)


def test_counts_of_no_images() -> None:
    nothing = np.empty(0, np.int64)
    for counted in (ConfusionCounts.from_predictions(nothing, nothing, 2), ConfusionCounts.none(2)):
        assert counted.matrix().tolist() == [[0, 0], [0, 0]]
    assert ConfusionCounts.from_record(None).num_classes == 0
    assert ConfusionCounts.none(0).right_of.tolist() == []


@pytest.mark.parametrize(
    ("labels", "predicted", "problem"),
    [
        ([0, 3], [0, 0], "labels must be >= 0 and < 3, not 0 to 3"),
        ([0, 1], [-1, 0], "predictions must be >= 0 and < 3, not -1 to 0"),
        ([0, 1], [0], r"must both be \[N\]"),
    ],
)
def test_what_is_no_class_is_refused(labels: list[int], predicted: list[int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ConfusionCounts.from_predictions(np.array(labels), np.array(predicted), 3)


@pytest.mark.parametrize(
    ("matrix", "problem"), [([[1, 2]], r"must be \[C, C\]"), ([[1, -1], [0, 0]], "must be >= 0, not -1")]
)
def test_what_is_no_matrix_of_counts_is_refused(matrix: list[list[int]], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ConfusionCounts.from_matrix(np.array(matrix))


def test_sums_are_those_of_matrices() -> None:
    parts = [drawn(5, 30, seed) for seed in range(3)] + [ConfusionCounts.none(5)]
    total = ConfusionCounts.total(parts)
    assert np.array_equal(total.matrix(), np.sum([part.matrix() for part in parts], axis=0))
    assert (np.diff(total.cells) > 0).all()
    with pytest.raises(ValueError, match=r"in tables \(1, 2, 2\), \(1, 5, 5\) cannot be summed"):
        ConfusionCounts.total([drawn(5, 3), drawn(2, 3)])


def test_sums_are_exact_beyond_the_precision_of_floats() -> None:
    large = ConfusionCounts.from_matrix(np.array([[2**53]]))
    assert ConfusionCounts.total([large, ConfusionCounts.from_matrix(np.array([[1]]))]).examples == 2**53 + 1


@pytest.mark.parametrize("classes", [3, MATRIX_CLASSES, MATRIX_CLASSES + 1])
def test_a_record_comes_out_as_it_went_in(classes: int) -> None:
    counted = drawn(classes, 40)
    record = counted.to_record()
    assert isinstance(record, list) == (classes <= MATRIX_CLASSES)
    found = ConfusionCounts.from_record(json.loads(json.dumps(record)))
    assert found.num_classes == classes
    assert np.array_equal(found.cells, counted.cells)
    assert np.array_equal(found.counts, counted.counts)


def test_a_record_of_many_classes_by_hand() -> None:
    counted = ConfusionCounts.from_predictions(np.array([7, 7, 500]), np.array([600, 600, 500]), 1000)
    assert counted.to_record() == {"classes": 1000, "pairs": [[7, 600, 2], [500, 500, 1]]}
    nothing = ConfusionCounts.none(1000).to_record()
    assert ConfusionCounts.from_record(nothing).examples == 0


def test_figures_of_both_forms_have_the_same_bits() -> None:
    counted, train = drawn(7, 60), [9, 8, 7, 6, 5, 4, 3]
    extra = {"kappa": metrics.kappa, "geometric-mean": metrics.geometric_mean}
    assert metrics.scores(counted, train, extra) == metrics.scores(counted.matrix(), train, extra)


def test_an_own_metric_gets_a_matrix() -> None:
    seen: list[np.ndarray] = []
    metrics.scores(drawn(4, 9), extra={"own": lambda matrix: seen.append(matrix) or 0.0})
    assert np.array_equal(seen[0], drawn(4, 9).matrix())


def test_memory_follows_the_images_and_not_the_pairs_of_classes() -> None:
    """A matrix of 20,000 classes takes 3.2 GB."""
    tracemalloc.start()
    try:
        total = ConfusionCounts.total([drawn(20_000, 300, seed) for seed in range(3)])
        extra = {"kappa": metrics.kappa, "geometric-mean": metrics.geometric_mean}
        metrics.scores(total, range(20_000), extra)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total.examples == 900
    assert peak < 30 << 20
