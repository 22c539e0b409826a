"""A client measures on patients that it did not train on."""

from __future__ import annotations

import numpy as np

from fedvision.config import PartitionConfig
from fedvision.data.dataset import ImageSet
from fedvision.data.partition import split
from fedvision.data.partition.group_holdout import held_out_groups
from fedvision.data.partition.holdout import held_out

GROUPS = np.repeat(np.arange(20), 3)
LABELS = (GROUPS % 2).astype(np.int64)


def test_whole_groups_are_held_out_of_each_class() -> None:
    held = held_out_groups(LABELS, GROUPS, 0.2, np.random.default_rng(1))
    assert not set(GROUPS[held].tolist()) & set(GROUPS[~held].tolist())
    assert np.bincount(LABELS[held]).tolist() == [6, 6]


def test_each_image_is_held_out_with_the_share() -> None:
    times = sum(
        held_out_groups(LABELS, GROUPS, 0.25, np.random.default_rng(seed)).astype(int) for seed in range(400)
    )
    np.testing.assert_allclose(np.asarray(times) / 400, 0.25, atol=0.09)


def test_without_groups_and_of_one_group() -> None:
    plain = held_out(LABELS, 0.2, np.random.default_rng(1))
    np.testing.assert_array_equal(held_out_groups(LABELS, None, 0.2, np.random.default_rng(1)), plain)
    assert not held_out_groups(LABELS, np.zeros(60, np.int64), 0.9, np.random.default_rng(1)).any()


def test_no_client_of_a_split_trains_on_a_patient_that_it_measures_on() -> None:
    images = ImageSet(
        images=np.zeros((60, 1, 1, 1), np.uint8), labels=LABELS, columns={"patient": GROUPS}, group="patient"
    )
    made = split.make(images, PartitionConfig(clients=3), num_classes=2, seed=1, holdout=0.3)
    assert made.held_out > 0
    for client, part in enumerate(made.clients):
        assert not set(GROUPS[part].tolist()) & set(GROUPS[made.test(client)].tolist())
