"""A machine's own images as a client's shards, and what is told of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fedvision.deployment.client.config import ClientMachineConfig, ShareConfig
from fedvision.deployment.client.local_shards import on_this_machine, own_shards, reported_counts
from fedvision.deployment.run_manifest import RunManifest
from fedvision.errors import ConfigError, DataError
from tests.experiments import tiny

EXPERIMENT = tiny(evaluation={"holdout": 0.25})


def client(folder: Path, **tables: object) -> ClientMachineConfig:
    images = np.arange(8 * 4, dtype=np.uint8).reshape(8, 2, 2)
    np.savez(folder / "own.npz", train_images=images, train_labels=np.arange(8) % 2)
    table = {
        "name": "north",
        "superlink": {"address": "localhost:1", "key": "k"},
        "data": {"use": "npz", "path": str(folder / "own.npz"), "classes": ["cat", "hound"]},
    }
    return ClientMachineConfig.from_dict(table | tables)


def facts(classes: tuple[str, ...], image: tuple[int, int, int] = (2, 2, 1)) -> RunManifest:
    return RunManifest(run="r", experiment=EXPERIMENT.to_toml(), classes=classes, image=image)


def test_own_labels_become_the_experiments_and_a_part_is_held_out(tmp_path: Path) -> None:
    client(tmp_path)
    mapped = ClientMachineConfig.from_dict(
        {
            "name": "north",
            "superlink": {"address": "localhost:1", "key": "k"},
            "data": {
                "use": "npz",
                "path": str(tmp_path / "own.npz"),
                "classes": ["cat", "hound"],
                "label_map": {"hound": "dog"},
            },
        }
    )
    shards = own_shards(mapped, facts(("dog", "cat")), EXPERIMENT)
    assert shards.train(0).counts(2).tolist() == [3, 3]
    assert shards.test(0).counts(2).tolist() == [1, 1]
    assert sorted([*shards.train(0).indices, *shards.test(0).indices]) == list(range(8))
    assert shards.images.labels.tolist() == [1, 0] * 4


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="gives images of 2 x 2 with 1 channel and the experiment has 3 x 2 with 3"
    ):
        own_shards(client(tmp_path), facts(("cat", "hound"), (3, 2, 3)), EXPERIMENT)


def test_the_owner_chooses_the_device(tmp_path: Path) -> None:
    config = tiny(training={"device": "cuda:5", "lr": 0.3})
    here = on_this_machine(client(tmp_path, device="cpu"), config)
    assert (here.training.device, here.training.lr) == ("cpu", 0.3)


def test_counts_are_reported_as_the_owner_allows(tmp_path: Path) -> None:
    memo = tmp_path / "run/counts.json"
    counts = (5, 0, 300)
    assert reported_counts(counts, ShareConfig(), memo, needed=False) == (0, 0, 0)
    assert reported_counts(counts, ShareConfig(counts="plain"), memo, needed=True) == counts
    with pytest.raises(ConfigError, match=r"set share\.counts"):
        reported_counts(counts, ShareConfig(), memo, needed=True)
    masked = ShareConfig(counts="masked", certificate="client.crt")
    assert reported_counts(counts, masked, memo, needed=True) == (0, 0, 0), "they come in a sum"


def test_noise_is_drawn_once_for_a_run(tmp_path: Path) -> None:
    share = ShareConfig(counts="noisy", epsilon=0.1)
    first = reported_counts((100,) * 50, share, tmp_path / "a/counts.json", needed=True)
    assert reported_counts((100,) * 50, share, tmp_path / "a/counts.json", needed=True) == first
    assert reported_counts((100,) * 50, share, tmp_path / "b/counts.json", needed=True) != first
    # Laplace of scale 10: the mean of |noise| is 10; 50 draws lie within 4 standard errors (1.4 each).
    assert 4 < np.abs(np.array(first) - 100).mean() < 16


@pytest.mark.parametrize("epsilon", [1.0, 0.5, 0.1])
def test_noise_does_not_raise_the_sum_over_many_clients(epsilon: float, tmp_path: Path) -> None:
    """100 clients x 200 classes with no image: the mean sum is 0 within 5 standard errors."""
    share = ShareConfig(counts="noisy", epsilon=epsilon)
    reported = [reported_counts((0,) * 200, share, tmp_path / f"{n}.json", needed=True) for n in range(100)]
    error = math.sqrt(2 * 100 / 200) / epsilon
    assert abs(np.sum(reported, axis=0).mean()) < 5 * error
    assert np.min(reported) < 0
