"""Measures of skew against numbers worked out by hand, and scipy where it has them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from fedvision.data.partition.skew_metrics import Spread, measure
from tests.work import lines_of


def test_two_clients_by_hand() -> None:
    skew = measure(np.array([[4, 0], [2, 2]]))
    assert skew.sizes.tolist() == [4, 4]
    assert skew.classes.tolist() == [1, 2]
    np.testing.assert_allclose(skew.effective_classes, [1, 2])
    np.testing.assert_allclose(skew.imbalance, [1, 1])
    # q = (3/4, 1/4): half of |1 - 3/4| + |0 - 1/4| is 1/4, for both clients.
    np.testing.assert_allclose(skew.total_variation, [0.25, 0.25])
    # Client 0: m = (7/8, 1/8), H(m) = 3 - 7/8 log2 7, H(p) = 0, H(q) = 2 - 3/4 log2 3.
    expected = 3 - 7 / 8 * math.log2(7) - (2 - 3 / 4 * math.log2(3)) / 2
    assert skew.jensen_shannon[0] == pytest.approx(expected)
    assert skew.gini == 0
    assert skew.global_imbalance == 3


def test_entropy_and_imbalance_of_three_classes_by_hand() -> None:
    skew = measure(np.array([[8, 4, 4, 0]]))
    # H = 1/2 * 1 + 2 * 1/4 * 2 = 1.5 bits.
    assert skew.effective_classes[0] == pytest.approx(2**1.5)
    assert skew.imbalance[0] == 2
    assert skew.jensen_shannon[0] == skew.total_variation[0] == 0


def test_clients_with_nothing_in_common() -> None:
    skew = measure(np.array([[10, 0], [0, 10]]))
    np.testing.assert_allclose(skew.total_variation, [0.5, 0.5])
    # m = (3/4, 1/4), H(q) = 1 bit, H(p) = 0: 2 - 3/4 log2 3 - 1/2.
    np.testing.assert_allclose(skew.jensen_shannon, 1.5 - 0.75 * math.log2(3))


def test_gini_by_hand() -> None:
    assert measure(np.array([[1], [1], [1], [1]])).gini == 0
    assert measure(np.array([[0], [0], [0], [9]])).gini == pytest.approx(3 / 4)
    # Mean absolute difference of 1, 2, 3 is 8/9, over twice the mean 2: 2/9.
    assert measure(np.array([[3], [1], [2]])).gini == pytest.approx(2 / 9)


def test_summary_is_median_minimum_maximum() -> None:
    skew = measure(np.array([[1, 0], [3, 4], [20, 0]]))
    assert skew.summary["sizes"] == Spread(7, 1, 20)
    assert skew.summary["classes"] == Spread(1, 1, 2)
    assert set(skew.summary) == {
        "sizes",
        "classes",
        "effective_classes",
        "imbalance",
        "jensen_shannon",
        "total_variation",
    }


def test_a_client_without_images_has_zeros_and_disturbs_nobody() -> None:
    skew = measure(np.array([[0, 0], [6, 2]]))
    for name in skew.summary:
        assert getattr(skew, name)[0] == 0
    assert skew.imbalance[1] == skew.global_imbalance == 3
    assert skew.jensen_shannon[1] == 0
    assert measure(np.zeros((2, 3), np.int64)).gini == 0


@settings(max_examples=50)
@given(
    rows=st.lists(st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any), min_size=1, max_size=6)
)
def test_agrees_with_scipy_and_stays_in_range(rows: list[list[int]]) -> None:
    counts = np.array(rows)
    skew = measure(counts)
    mixture = counts.sum(axis=0)
    for client, row in enumerate(counts):
        assert skew.effective_classes[client] == pytest.approx(math.exp(entropy(row)))
        # scipy's distance is the root; its own rounding may fall below 0 where both are equal.
        p, q = row / row.sum(), mixture / mixture.sum()
        distance = 0.0 if np.allclose(p, q) else jensenshannon(p, q, base=2)
        assert skew.jensen_shannon[client] == pytest.approx(distance**2, abs=1e-9)
    assert ((skew.total_variation >= 0) & (skew.total_variation <= 1)).all()
    assert 0 <= skew.gini <= (len(rows) - 1) / len(rows) + 1e-12


@pytest.mark.parametrize("counts", [np.zeros(3), np.zeros((0, 3)), np.array([[1, -1]])])
def test_what_is_no_table_of_counts_is_refused(counts: np.ndarray) -> None:
    with pytest.raises(ValueError, match="counts must be"):
        measure(counts)


def test_clients_are_not_gone_through_one_by_one() -> None:
    counts = np.random.default_rng(0).integers(0, 5, (10_000, 100))
    # 0.1 s for ten thousand on one core.
    assert lines_of(lambda: measure(counts)) == lines_of(lambda: measure(counts[:10]))


def test_a_sample_is_measured_against_the_whole() -> None:
    sample = np.array([[4, 0], [0, 4]])
    own, whole = measure(sample), measure(sample, np.array([30, 10]))
    assert own.total_variation.tolist() == [0.5, 0.5]
    # p = (1, 0) and (0, 1) against q = (3/4, 1/4).
    assert whole.total_variation.tolist() == [0.25, 0.75]
    assert (own.global_imbalance, whole.global_imbalance) == (1, 3)
    assert whole.gini == own.gini
