"""The federation for those who test their own plug-ins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedvision.errors import ConfigError, PluginError
from fedvision.losses.weighting import cross_entropy
from fedvision.testing import experiment, run, tiny_images
from fedvision.types import LossFn

SEEN: list[list[int]] = []


def spying_loss(*, counts: torch.Tensor) -> LossFn:
    """Cross-entropy that notes the class counts for which it was built."""
    SEEN.append(counts.tolist())
    return cross_entropy(counts)


def test_images_have_the_documented_frequencies_and_differ_by_a_quarter() -> None:
    found = tiny_images()
    labels = np.concatenate([found.train.labels, found.test.labels])  # type: ignore[union-attr]
    assert np.bincount(labels).tolist() == [45, 30, 15]
    for label, (top, left) in enumerate([(0, 0), (0, 4), (4, 0)]):
        own = found.train.images[found.train.labels == label]
        assert own[:, top : top + 4, left : left + 4].min() >= 150
        assert (own >= 150).sum() == len(own) * 16


def test_a_run_learns_the_three_classes(tmp_path: Path) -> None:
    result = run(folder=tmp_path, rounds=4)
    assert result.scores["balanced_accuracy"] > 0.9
    assert (tmp_path / "run/report.html").is_file()
    assert not run(rounds=1).folder.path.exists(), "a temporary folder is gone"


def test_a_plug_in_is_tried_and_its_faults_named() -> None:
    SEEN.clear()
    run(loss=f"{__name__}:spying_loss", rounds=1)
    clients = [counts for counts in SEEN if counts != [1, 1, 1]]  # which it is tried with first
    assert np.sum(clients, axis=0).tolist() == np.bincount(tiny_images().train.labels).tolist()
    with pytest.raises(PluginError, match="has no 'spying_los'; did you mean 'spying_loss'"):
        run(loss=f"{__name__}:spying_los")
    with pytest.raises(ConfigError, match=r"training\.lr must be > 0"):
        experiment(training={"lr": 0})


def test_a_table_changes_what_it_names() -> None:
    found = experiment(training={"lr": 0.5}, partition={"use": "iid", "clients": 2})
    assert (found.training.lr, found.training.batch_size) == (0.5, 8)
    assert (found.partition.use, found.partition.clients, dict(found.partition.args)) == ("iid", 2, {})
