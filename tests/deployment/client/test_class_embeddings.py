"""A client whose network classifies by class embeddings needs no file of them: they come with the head."""

from __future__ import annotations

import pytest
import torch

from fedvision.deployment.client.trainer import Trainer
from fedvision.models.build import build_model
from fedvision.models.cosine_head import EMBEDDINGS
from fedvision.models.freezing import frozen_state
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.state import digest
from fedvision.tasks.classification import Classification
from tests.deployment.client import test_trainer
from tests.experiments import tiny


@pytest.mark.parametrize("nearest", [0, 2])
def test_embeddings_come_with_the_model(nearest: int, trainer: Trainer) -> None:
    """Features are not negative: they are nearest to the one embedding of ones, whatever the image shows."""
    head = {"use": "cosine", "embeddings": "/the/servers/own.npy", "size": 8, "sha256": "ab" * 32}
    model = {"use": "cnn", "width": 4, "dense": 8, "frozen": ["backbone.*"], "head": head}
    network = build_model(
        tiny(model=model).model,
        task=Classification(),
        num_classes=3,
        in_channels=1,
        image_size=(8, 8),
        seed=3,
    )
    trainer.open(test_trainer.facts("r1", model=model) | {"frozen": digest(frozen_state(network))})
    embeddings = -torch.ones(3, 8)
    embeddings[nearest] = 1
    worker = trainer._worker
    assert worker is not None
    assert EMBEDDINGS in ParameterGroups.of(worker.model, worker.config.model).shared
    found = worker.evaluate(0, 1, {EMBEDDINGS: embeddings}).stats
    assert found.examples > 0
    assert set((found.cells % 3).tolist()) == {nearest}
