"""The sums that a client may share are those of explanations of its images, and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedvision import seeding, simulate
from fedvision.data.shards import Shard
from fedvision.errors import ConfigError
from fedvision.explanation.explainer import Explainer
from fedvision.explanation.scored_network import ScoredNetwork
from fedvision.training.statistics import LocalData, compute_statistic
from fedvision.types import PluginSpec
from tests.experiments import tiny
from tests.explanation.networks import CLASSES, built, picture

KEYS = ("deletion", "insertion", "random_deletion", "random_insertion")


def of(images: int, network: ScoredNetwork, held_out: int | None = None) -> LocalData:
    def shard(count: int) -> Shard:
        pictures = np.stack([picture((1, 8, 8), seed) for seed in range(max(1, count))])[:count]
        return Shard(images=pictures, labels=np.zeros(count, np.int64), indices=np.arange(count))

    return LocalData(
        shard=shard(images),
        settings=network.settings,
        num_classes=CLASSES,
        sharpness=2.0,
        held_out=None if held_out is None else shard(held_out),
    )


def test_sums_are_over_images_drawn_by_chance_by_the_class_that_is_explained() -> None:
    network = built({"use": "cnn", "width": 4, "dense": 8}, (1, 8, 8))
    found = compute_statistic(PluginSpec(use="faithfulness"), network.network, of(11, network))
    sharp = ScoredNetwork(
        network=network.network, settings=network.settings, num_classes=CLASSES, sharpness=2.0
    )
    expected = {key: torch.zeros(CLASSES, dtype=torch.float64) for key in KEYS}
    images = torch.zeros(CLASSES, dtype=torch.int64)
    for place in seeding.numpy_stream(0, "explained", 11).permutation(11)[:8]:
        one = Explainer(sharp).explain(picture((1, 8, 8), int(place)))
        images[one.label] += 1
        for key in KEYS:
            expected[key][one.label] += getattr(one.scores, key)
    assert set(found) == {"images", *KEYS}
    assert torch.equal(found["images"], images)
    assert images.sum() == 8
    for key in KEYS:
        torch.testing.assert_close(found[key], expected[key])


def test_held_out_images_come_first_and_nobody_has_zeros() -> None:
    network = built({"use": "cnn", "width": 4, "dense": 8}, (1, 8, 8))
    for held_out, count in ((2, 2), (0, 0), (None, 5)):
        found = compute_statistic(PluginSpec(use="faithfulness"), network.network, of(5, network, held_out))
        assert int(found["images"].sum()) == count
        assert all(found[key].shape == (CLASSES,) for key in KEYS)


def test_what_cannot_be_explained_is_one_sentence() -> None:
    network = built({"use": "cnn", "width": 4, "dense": 8}, (1, 8, 8))
    features = Shard(
        images=np.zeros((1, 1, 1, 4), np.float32), labels=np.zeros(1, np.int64), indices=np.arange(1)
    )
    with pytest.raises(ConfigError, match="only images can be explained"):
        compute_statistic(PluginSpec(use="faithfulness"), network.network, of(1, network).of(features))


def test_a_run_records_the_sums(tmp_path: object) -> None:
    config = tiny(rounds=1, evaluation={"holdout": 0.2, "statistics": ["faithfulness"]})
    found = simulate(config, out=f"{tmp_path}/run")
    note = found.rounds[-1]["statistics"]["faithfulness"]
    assert note["clients"] == [0, 1, 2, 3, 4]
    images = np.array(note["sums"]["images"])
    assert 0 < images.sum() <= 5 * 8
    for key in KEYS:
        sums = np.array(note["sums"][key])
        assert ((sums >= 0) & (sums <= images)).all()
        assert sums.sum() > 0
