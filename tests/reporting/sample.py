"""Records made by hand: three classes, two clients, figures that can be worked out in the head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fedvision.runs.folder import RunFolder
from fedvision.tasks import metrics

MakeRun = Callable[..., RunFolder]
COUNTS = [[8, 4, 0], [2, 4, 2]]
"""Training images of three classes on two clients: 10, 8 and 2 in all."""


def server_confusion(number: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the server's confusion counts of a round: ten images a class, one more right every round."""
    return np.array([[5 + number, 5 - number, 0], [4, 6, 0], [9 - number, 0, 1 + number]])


def local_confusion() -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the clients' confusion counts, the same in every round."""
    return np.array([[2, 0, 0], [1, 1, 0], [1, 0, 0]])


def record(number: int, counts: list[list[int]] = COUNTS, **changes: Any) -> dict[str, Any]:
    """Return a round's record."""
    train = np.sum(counts, 0)
    server, local = server_confusion(number), local_confusion()
    facts = {
        "round": number,
        "clients": [0, 1],
        "examples": 20,
        "lr": 0.05,
        "train_loss": 1.0 / number,
        "client_loss": {"0": 0.5, "1": 1.5},
        "refused": [],
        "bytes": {"down": 1000, "up": 500},
        "server": {"loss": 2.0 / number, "confusion": server, "scores": metrics.scores(server, train)},
        "local": {
            "loss": 0.7,
            "confusion": local,
            "scores": metrics.scores(local, train),
            "spread": {"worst_client": 1, "worst": 0.5},
            "accuracy": {"0": 0.5 + number / 10, "1": 0.5},
        },
    }
    return {**facts, **changes}
