"""Models as ``fedvision.load`` gives them, without a run: a network as it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedvision.config import ExperimentConfig
from fedvision.data.transforms import input_shape, prepare
from fedvision.models.build import build_model
from fedvision.runs.model_description import (
    FileDecoding,
    ImageShape,
    Inference,
    ModelDescription,
    Normalisation,
)
from fedvision.tasks.base import build_task
from fedvision.trained_model import TrainedModel
from fedvision.training.forward import ForwardSettings
from fedvision.types import PluginSpec


def untrained(
    model: dict[str, Any],
    shape: tuple[int, int, int] = (8, 8, 1),
    *,
    classes: int = 5,
    task: str = "classification",
    fit: str = "",
    scale: float = 1.0,
    transforms: dict[str, Any] | None = None,
    **keys: Any,
) -> TrainedModel:
    """Return a model.

    Args:
        model: Its ``[model]``.
        shape: (H, W, channels) of its images.
        classes: How many.
        task: Its task.
        fit: How files became images; empty where they came as arrays.
        scale: Its ``probability_scale``.
        transforms: Its normalisation.
        **keys: Further keys of its description.
    """
    height, width, channels = shape
    decoding = FileDecoding(size=height, fit=fit) if fit else None  # type: ignore[arg-type]
    description = ModelDescription(
        task=PluginSpec(use=task),
        rounds=1,
        classes=tuple(f"class {number}" for number in range(classes)),
        image=ImageShape(height=height, width=width, channels=channels),
        decoding=decoding,
        transforms=Normalisation(**({"mean": (0.4,), "std": (0.2,)} | (transforms or {}))),
        probability_scale=scale,
        inference=Inference(batch_size=16, precision="float32", channels_last=True),
        model=ExperimentConfig.from_dict({"data": "digits", "model": model}).model,
        dtypes=("float32",),
        sha256="0" * 64,
        **keys,
    )
    seen = input_shape(description.transforms.config, shape)
    own = build_task(description.task)
    network = build_model(
        description.model, task=own, num_classes=classes, in_channels=seen[0], image_size=seen[1:], seed=1
    )
    settings = ForwardSettings(
        task=own, transform=prepare(description.transforms.config, channels), device=torch.device("cpu")
    )
    return TrainedModel(
        path=Path("run"),
        description=description,
        network=settings.place(network).eval(),
        task=own,
        settings=settings,
    )


def noise(count: int, shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Return images uint8 [count, H, W, channels]."""
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)
