"""A client measures on patients that it did not train on."""

from __future__ import annotations

import numpy as np

from fedvision.data.group_holdout import holdout_groups
from fedvision.data.shards import Shard, holdout

GROUPS = np.repeat(np.arange(20), 3)
SHARD = Shard(
    images=np.zeros((60, 1, 1, 1), np.uint8),
    labels=(GROUPS % 2).astype(np.int64),
    indices=np.arange(60, dtype=np.int64),
)


def test_whole_groups_are_held_out_of_each_class() -> None:
    train, test = holdout_groups(SHARD, GROUPS, 0.2, np.random.default_rng(1))
    assert not set(GROUPS[train.indices].tolist()) & set(GROUPS[test.indices].tolist())
    assert test.counts(2).tolist() == [6, 6]
    assert sorted([*train.indices.tolist(), *test.indices.tolist()]) == list(range(60))


def test_each_image_is_held_out_with_the_share() -> None:
    held = np.zeros(60)
    for seed in range(400):
        held[holdout_groups(SHARD, GROUPS, 0.25, np.random.default_rng(seed))[1].indices] += 1
    np.testing.assert_allclose(held / 400, 0.25, atol=0.09)


def test_without_groups_and_of_one_group() -> None:
    plain = holdout(SHARD, 0.2, np.random.default_rng(1))[1].indices
    same = holdout_groups(SHARD, None, 0.2, np.random.default_rng(1))[1].indices
    np.testing.assert_array_equal(same, plain)
    assert len(holdout_groups(SHARD, np.zeros(60, np.int64), 0.9, np.random.default_rng(1))[1]) == 0
