"""A client's training process, in the process of the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.deployment.client.trainer import Trainer


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (40, 8, 8), np.uint8)
    np.savez(tmp_path / "own.npz", train_images=images, train_labels=np.arange(40) % 3)
    client = ClientMachineConfig.from_dict(
        {
            "name": "north",
            "superlink": {"address": "localhost:1", "key": "k"},
            "data": {"use": "npz", "path": str(tmp_path / "own.npz")},
            "state": str(tmp_path / "state"),
        }
    )
    return Trainer(client, tmp_path)
