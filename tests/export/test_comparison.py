"""Versions of a model on the same images: scores by hand, and latency by a clock of the test's own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from fedvision.data.shards import Shard
from fedvision.export import comparison
from fedvision.export.comparison import latencies, measure


def shard(labels: list[int] | list[list[int]]) -> Shard:
    """Return images whose first pixel is their number."""
    array = np.array(labels, np.uint8 if labels and isinstance(labels[0], list) else np.int64)
    numbers = np.arange(len(labels))
    images = numbers.astype(np.uint8).reshape(-1, 1, 1, 1)
    return Shard(images=images, labels=array, indices=numbers.astype(np.int64))


class Table:
    """Predicts what a table says of each image, and notes the sizes of its batches."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows, self.sizes = np.array(rows, np.float32), list[int]()

    def __call__(self, images: NDArray[np.uint8], further: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Return [N, C]."""
        self.sizes.append(len(images))
        return self.rows[images[:, 0, 0, 0]]


def test_scores_of_one_class_an_image() -> None:
    predict = Table([[0.9, 0.1, 0], [0.2, 0.7, 0.1], [0.6, 0.4, 0], [0.1, 0.8, 0.1], [0.9, 0, 0.1]])
    found = measure(predict, shard([0, 0, 0, 1, 1]), 3, 2)
    assert predict.sizes == [2, 2, 1]
    assert found.decided.tolist() == [0, 1, 0, 1, 0]
    assert found.accuracy == pytest.approx(3 / 5)
    assert found.balanced_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert (found.worst_class, found.worst_recall) == (1, 0.5), "class 2 has no images"


def test_scores_of_several_labels_an_image() -> None:
    predict = Table([[0.9, 0.1, 0.5], [0.4, 0.6, 0], [0.2, 0.5, 0], [0.7, 0.1, 0]])
    found = measure(predict, shard([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]]), 3, 3)
    assert found.decided.tolist() == [
        [True, False, True],
        [False, True, False],
        [False, True, False],
        [True, False, False],
    ]
    assert (found.accuracy, found.balanced_accuracy) == (None, None)
    assert (found.worst_class, found.worst_recall) == (0, 0.5), "label 2 has no images"


def test_without_images_nothing_is_the_worst() -> None:
    found = measure(Table([[1, 0]]), shard([]), 2, 3)
    assert (found.worst_class, found.worst_recall) == (None, None)
    assert found.decided.tolist() == []


@pytest.mark.parametrize(("patience", "turns"), [(1e9, 31), (-1.0, 6)])
def test_latency_is_the_median_of_turns_an_image(
    patience: float, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is asked before and after each call, so that every one takes a second."""
    monkeypatch.setattr(comparison, "_SECONDS", patience)
    first, second = Table([[1, 0]] * 4), Table([[1, 0]] * 4)
    ticks = itertools.count()
    found = latencies(
        {"first": first, "second": second}, np.zeros((4, 1, 1, 1), np.uint8), clock=lambda: float(next(ticks))
    )
    assert first.sizes == second.sizes == [1] * turns + [32] * turns
    assert found == {name: {"1": 1000.0, "32": 1000 / 32} for name in ("first", "second")}
