"""Small experiments that many tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fedvision.config import ExperimentConfig

FEDPER: dict[str, Any] = {
    "strategy": {"use": "fedper"},
    "model": {"use": "cnn", "width": 4, "dense": 8, "personal": ["head.*"]},
}
"""Tables of a run whose clients keep their heads."""
BALANCED = {"use": "distribution-balanced", "prior": "global"}
"""A loss of several labels that rests on the federation's counts."""
SKEW: list[dict[str, Any]] = [
    *({"strategy": {"use": use}} for use in ("q-fedavg", "ditto", "apfl", "fedrep")),
    {"strategy": {"use": "fedbn"}, "model": {"use": "resnet8", "norm": "batch", "width": 4}},
]
"""Tables of runs with methods for unlike clients and personal models."""


def digits_of_several_labels(folder: Path) -> Path:
    """Write real digits, 500 and 200, whose labels are: even, above 4, nine. A quarter has none of them."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels, digit = (found.images * 15).astype(np.uint8), found.target
    labels = np.stack([digit % 2 == 0, digit > 4, digit == 9], axis=1).astype(np.uint8)
    arrays = {}
    for part, rows in (("train", slice(0, 500)), ("test", slice(500, 700))):
        arrays |= {f"{part}_images": pixels[rows], f"{part}_labels": labels[rows]}
    path = folder / "digits.npz"
    np.savez(path, **arrays)
    return path


def several_labels(archive: Path) -> dict[str, Any]:
    """Return the tables of a run on ``digits_of_several_labels``."""
    return {
        "task": {"use": "multi-label"},
        "data": {"use": "npz", "path": str(archive), "classes": ["even", "high", "nine"]},
        "loss": {"use": "class-balanced"},
    }


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
