"""Small experiments that many tests share."""

from __future__ import annotations

from typing import Any

from fedvision.config import ExperimentConfig

FEDPER: dict[str, Any] = {
    "strategy": {"use": "fedper"},
    "model": {"use": "cnn", "width": 4, "dense": 8, "personal": ["head.*"]},
}
"""Tables of a run whose clients keep their heads."""


def tiny(**tables: Any) -> ExperimentConfig:
    """Return digits on five clients for three rounds, some tables replaced; a run takes about a second."""
    base: dict[str, Any] = {
        "name": "tiny",
        "seed": 3,
        "rounds": 3,
        "data": {"use": "digits"},
        "partition": {"use": "dirichlet", "clients": 5, "alpha": 0.5, "imbalance": 10},
        "model": {"use": "cnn", "width": 4, "dense": 8},
        "training": {"batch_size": 32, "lr": 0.1},
    }
    return ExperimentConfig.from_dict(base | tables)
