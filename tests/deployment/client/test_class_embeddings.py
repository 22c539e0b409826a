"""A client whose network classifies by class embeddings needs no file of them: they come with the head."""

from __future__ import annotations

import pytest
import torch

from fedvision.deployment.client.trainer import Trainer
from fedvision.models.cosine_head import EMBEDDINGS
from fedvision.models.parameter_groups import ParameterGroups
from tests.deployment.client import test_trainer


@pytest.mark.parametrize("nearest", [0, 2])
def test_embeddings_come_with_the_model(nearest: int, trainer: Trainer) -> None:
    """Features are not negative: they are nearest to the one embedding of ones, whatever the image shows."""
    head = {"use": "cosine", "embeddings": "/the/servers/own.npy", "size": 8, "sha256": "ab" * 32}
    model = {"use": "cnn", "width": 4, "dense": 8, "frozen": ["backbone.*"], "head": head}
    trainer.open(test_trainer.frozen_facts("r1", model))
    embeddings = -torch.ones(3, 8)
    embeddings[nearest] = 1
    worker = trainer._worker
    assert worker is not None
    assert EMBEDDINGS in ParameterGroups.of(worker.model, worker.config.model).shared
    found = worker.evaluate(0, 1, {EMBEDDINGS: embeddings}).stats
    assert found.examples > 0
    assert set((found.cells % 3).tolist()) == {nearest}
