"""Networks and what explains them, as the tests of explanations need them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedvision.config import ModelConfig, TransformConfig
from fedvision.data.transforms import prepare
from fedvision.explanation.scored_network import ScoredNetwork
from fedvision.models.build import build_model
from fedvision.tables import build
from fedvision.tasks.base import Task
from fedvision.tasks.classification import Classification
from fedvision.training.forward import ForwardSettings

CLASSES = 5


def scored(
    network: nn.Module,
    channels: int = 1,
    *,
    classes: int = CLASSES,
    task: Task | None = None,
    transforms: TransformConfig | None = None,
) -> ScoredNetwork:
    """Return a network whose images are normalised by 128 / 255 and 1 / 4, if nothing else is said."""
    config = transforms or TransformConfig(mean=(128 / 255,), std=(0.25,))
    settings = ForwardSettings(
        task=task or Classification(), transform=prepare(config, channels), device=torch.device("cpu")
    )
    return ScoredNetwork(network=settings.place(network), settings=settings, num_classes=classes)


def built(table: dict[str, object], shape: tuple[int, int, int], task: Task | None = None) -> ScoredNetwork:
    """Return a built-in network for images (channels, H, W)."""
    network = build_model(
        build(ModelConfig, table, "model"),
        task=task or Classification(),
        num_classes=CLASSES,
        in_channels=shape[0],
        image_size=shape[1:],
        seed=0,
    )
    return scored(network, shape[0], task=task)


def picture(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Return an image uint8 [H, W, channels] of noise."""
    return np.random.default_rng(seed).integers(0, 256, (*shape[1:], shape[0]), np.uint8)
