"""Fashion-MNIST, the real one: the loss finds the rare classes, and a fusion trains, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedvision import ExperimentConfig, RunResult, simulate

pytestmark = [pytest.mark.real_data, pytest.mark.long]


def run(root: Path, out: Path, **tables: Any) -> RunResult:
    base: dict[str, Any] = {
        "name": "real",
        "seed": 1,
        "rounds": 8,
        "data": {"use": "fashion-mnist", "root": str(root)},
        "partition": {"use": "dirichlet", "clients": 50, "alpha": 0.5, "imbalance": 100},
        "training": {"lr": 0.05, "epochs": 2},
        "strategy": {"use": "fedavg", "fraction": 0.2},
        "evaluation": {"every": 8},
    }
    return simulate(ExperimentConfig.from_dict(base | tables), out=out)


def test_a_global_prior_finds_the_rare_classes(fashion_mnist_root: Path, tmp_path: Path) -> None:
    plain = run(fashion_mnist_root, tmp_path / "plain").scores
    aware = run(
        fashion_mnist_root, tmp_path / "aware", loss={"use": "logit-adjusted", "prior": "global"}
    ).scores
    assert aware["tail"] > plain["tail"] + 0.2
    assert aware["balanced_accuracy"] > plain["balanced_accuracy"] + 0.05


def test_a_fusion_trains_in_the_federation(fashion_mnist_root: Path, tmp_path: Path) -> None:
    result = run(
        fashion_mnist_root,
        tmp_path / "fusion",
        rounds=6,
        model={"use": "fusion", "extractor": "cnn", "join": "gated", "patch": 7, "dim": 32, "depth": 1},
        training={"optimizer": "adamw", "lr": 0.002, "clip_norm": 1.0},
        partition={"use": "iid", "clients": 100},
        strategy={"use": "fedavg", "fraction": 0.05},
        evaluation={"every": 6},
    )
    assert result.scores["accuracy"] > 0.6
    assert result.rounds[-1]["train_loss"] < 0.7 * result.rounds[0]["train_loss"]
