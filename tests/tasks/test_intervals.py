"""Intervals: hand-computed ones, and how often they hold the true value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from fedvision.tasks import intervals, metrics
from fedvision.tasks.confusion import ConfusionCounts
from fedvision.tasks.intervals import Interval, mean_interval, score_intervals, wilson


@given(st.integers(0, 60), st.integers(1, 60))
def test_wilson_is_scipys(found: int, more: int) -> None:
    images = found + more
    expected = binomtest(found, images).proportion_ci(method="wilson")
    low, high = wilson(found, images)
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)


def test_wilson_at_its_ends() -> None:
    low, high = wilson([0, 5, 0], [5, 5, 0])
    assert low[0] == 0
    assert high[1] == 1
    # z^2 / (n + z^2) and its complement, with z = 1.959964.
    assert high[0] == pytest.approx(0.434482, abs=1e-6)
    assert low[1] == pytest.approx(0.565518, abs=1e-6)
    assert np.isnan([low[2], high[2]]).all()


def test_intervals_of_means_over_classes() -> None:
    """For many images each is the normal one: half of it is 1.96 standard deviations of the mean."""
    confusion = ConfusionCounts.from_matrix(np.array([[9000, 1000], [4000, 6000]]))
    found = score_intervals(confusion, [100, 10])
    deviation = np.sqrt(0.9 * 0.1 / 10_000 + 0.6 * 0.4 / 10_000) / 2
    balanced = found["balanced_accuracy"]
    assert sum(balanced) / 2 == pytest.approx(0.75, abs=3e-4)
    assert balanced.high - balanced.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    assert found["tail"].high - found["tail"].low == pytest.approx(2 * 1.96 * np.sqrt(0.24 / 1e4), rel=0.1)
    assert found["head"].low < 0.9 < found["head"].high
    assert found["macro_f1"].low < metrics.macro_f1(confusion) < found["macro_f1"].high
    low, high = wilson(15_000, 20_000)
    assert found["accuracy"] == Interval(float(low), float(high))


@pytest.mark.slow
def test_how_often_an_interval_holds_the_true_value() -> None:
    """Also where classes have few images, most of them named right, and resampling holds it in 77 %."""
    rng, sizes = np.random.default_rng(3), np.array([200, 100, 50, 20, 10, 5])
    shares = np.full((6, 6), 0.03 / 5)
    np.fill_diagonal(shares, 0.97)
    named = sizes @ shares
    f1 = 2 * 0.97 * sizes / (sizes + named)
    truth = {"balanced_accuracy": 0.97, "accuracy": 0.97, "macro_f1": float(f1.mean())}
    held, times = dict.fromkeys(truth, 0), 300
    for _ in range(times):
        rows = [rng.multinomial(n, p) for n, p in zip(sizes, shares, strict=True)]
        found = score_intervals(ConfusionCounts.from_matrix(np.array(rows)), sizes)
        for name, value in truth.items():
            held[name] += found[name].low <= value <= found[name].high
    assert all(count / times >= 0.88 for count in held.values()), held


def test_a_mean_of_intervals_by_hand() -> None:
    """Distances 0.1 and 0.2 below and 0.05 and 0.12 above: half of sqrt(0.05) and of 0.13."""
    found = mean_interval(np.array([0.4, 0.8]), np.array([0.3, 0.6]), np.array([0.45, 0.92]))
    assert found == pytest.approx((0.6 - np.sqrt(0.05) / 2, 0.6 + 0.13 / 2))


def test_one_mistake_lowers_two_classes_f1() -> None:
    """Were the classes' F1 independent, the interval would be 0.086 wide; their sum is that of accuracy."""
    found = score_intervals(ConfusionCounts.from_matrix(np.array([[80, 20], [20, 80]])))["macro_f1"]
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.16 / 200), rel=0.08)
    assert found.low < 0.8 - 0.05
    assert found.high > 0.8 + 0.05


def test_scores_of_one_kind_of_answer_have_a_width() -> None:
    """Resampled, nothing would change where all images get one name."""
    confusion = ConfusionCounts.from_matrix(np.array([[40, 0], [40, 0]]))
    found = score_intervals(confusion, [9, 1])
    assert found["tail"] == Interval(0.0, pytest.approx(0.0876, abs=1e-4))  # type: ignore[arg-type]
    assert found["balanced_accuracy"] == pytest.approx((0.4562, 0.5438), abs=1e-4)
    assert found["macro_f1"].high - found["macro_f1"].low > 0.05


def test_classes_without_images() -> None:
    """They are no part of a mean of recalls; one that is predicted is part of macro F1."""
    confusion = ConfusionCounts.from_matrix(np.array([[8, 2, 0], [0, 0, 0], [0, 0, 0]]))
    found = score_intervals(confusion, [5, 4, 3])
    assert set(found) == {"accuracy", "balanced_accuracy", "macro_f1", "head"}
    assert found["balanced_accuracy"] == found["head"]
    assert found["macro_f1"].high <= 1
    assert found["macro_f1"].low < metrics.macro_f1(confusion) < found["macro_f1"].high
    assert score_intervals(ConfusionCounts.none(3)) == {}


def test_resampling_in_blocks_is_the_same_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of many classes are resampled a few at a time and less often."""
    confusion = ConfusionCounts.from_matrix(np.array([[90, 10], [40, 60]]))
    whole = score_intervals(confusion)["macro_f1"]
    monkeypatch.setattr(intervals, "_BLOCK", 200)
    in_blocks = score_intervals(confusion)["macro_f1"]
    assert in_blocks == pytest.approx(whole, abs=0.01)
    assert score_intervals(confusion)["macro_f1"] == in_blocks
    monkeypatch.setattr(intervals, "MOST_CELLS", 1000)
    assert score_intervals(confusion)["macro_f1"] == pytest.approx(whole, abs=0.02)
