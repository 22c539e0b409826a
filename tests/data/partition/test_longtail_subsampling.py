"""The long tail against the published class counts of the long-tailed CIFAR sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvision.data.partition.longtail_subsampling import profile, subsample


def retained_counts(counts: list[int], imbalance: float, seed: int = 0) -> list[int]:
    labels = np.random.default_rng(9).permutation(np.repeat(np.arange(len(counts)), counts))
    retained = subsample(labels, imbalance, np.random.default_rng(seed), len(counts))
    assert (np.diff(retained) > 0).all()
    return np.bincount(labels[retained], minlength=len(counts)).tolist()


def test_balanced_data_gets_the_published_profile() -> None:
    # CIFAR-10-LT with ratio 100: 12,406 images in all.
    published = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert retained_counts([5000] * 10, 100) == published
    # CIFAR-100-LT with ratio 100: 10,847 images in all.
    assert profile(np.full(100, 500), 100).sum() == 10_847


def test_whole_numbers_of_the_profile_stay_whole() -> None:
    # 32 ** 0.8 comes out a hair above 16 in floating point, and 160 / 16 a hair below 10.
    assert profile(np.full(6, 160), 32).tolist() == [160, 80, 40, 20, 10, 5]


def test_unbalanced_data_is_cut_from_its_own_head() -> None:
    # By frequency: 400, 300, 100, 40 against 400, 400 / 2, 400 / 4, 400 / 8; the last keeps what it has.
    assert retained_counts([100, 400, 40, 300], 8) == [100, 400, 40, 200]


def test_vacant_classes_stay_vacant_and_take_no_rank() -> None:
    assert retained_counts([0, 100, 0, 100, 100], 4) == [0, 100, 0, 50, 25]
    assert retained_counts([0, 7], 50) == [0, 7]


def test_every_class_keeps_an_image() -> None:
    assert retained_counts([10, 10, 10], 1000) == [10, 1, 1]


def test_ratio_one_keeps_all_and_the_choice_is_the_generators() -> None:
    labels = np.repeat(np.arange(3), [5, 50, 20])
    assert len(subsample(labels, 1, np.random.default_rng(0), 3)) == 75
    one, same, other = (subsample(labels, 20, np.random.default_rng(seed), 3) for seed in (1, 1, 2))
    assert one.tolist() == same.tolist() != other.tolist()
    assert one.dtype == np.int64


@pytest.mark.parametrize("imbalance", [0.5, 0.0, -1.0, float("nan"), float("inf")])
def test_a_ratio_below_one_is_refused(imbalance: float) -> None:
    with pytest.raises(ValueError, match="imbalance must be >= 1"):
        subsample(np.zeros(3, np.int64), imbalance, np.random.default_rng(0), 1)


@given(counts=st.lists(st.integers(0, 500), min_size=1, max_size=15), imbalance=st.floats(1, 1e6))
def test_never_more_than_there_is_and_at_least_the_given_ratio(counts: list[int], imbalance: float) -> None:
    there = np.array(counts)
    retained = profile(there, imbalance)
    assert (retained <= there).all()
    assert ((retained > 0) == (there > 0)).all()
    assert retained.max() == there.max()
    present = retained[retained > 0]
    if len(present) > 1 and present.min() > 1:
        assert present.max() / present.min() >= imbalance * (1 - 1e-6)
