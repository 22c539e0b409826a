"""What one training step costs here: the real local loop on real images, for one step."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

import torch

from fedvision import memory
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset
from fedvision.data.shards import Shard
from fedvision.data.transforms import input_shape
from fedvision.models.build import build_model
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.state import get_state, size_in_bytes
from fedvision.training.allocator import give_back_freed_memory
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.client_trainer import build_loss, loop_settings
from fedvision.training.loop import fit
from fedvision.types import TrainRequest

_STEPS = 2
"""The optimiser's moments appear at the end of the first step."""


class StepCost(NamedTuple):
    """What a step took."""

    peak: int | None
    """Bytes above what was in use before; None where the system does not report it."""
    free: int | None
    """Bytes that were free before, on the device or in main memory."""
    seconds: float
    """Time of a step, the first ones included."""
    model: int
    """Bytes of the tensors that travel."""
    device: torch.device
    """Where it ran."""


def step_cost(config: ExperimentConfig, dataset: Dataset, device: str) -> StepCost:
    """Train for two steps and measure.

    Args:
        config: The experiment.
        dataset: The client's images under the experiment's labels.
        device: The client's ``device``.

    Raises:
        ConfigError: Something in the experiment cannot be built on these images or this machine.
    """
    training = dataclasses.replace(config.training, steps=_STEPS, device=device)
    config = dataclasses.replace(config, training=training)
    channels, height, width = input_shape(config.transforms, dataset.train.images.shape[1:])
    classes = len(dataset.classes)
    settings = loop_settings(config, dataset.train.images.shape[3])
    model = build_model(
        config.model,
        task=settings.task,
        num_classes=classes,
        in_channels=channels,
        image_size=(height, width),
        seed=config.seed,
    )
    shard = Shard.whole(dataset.train)
    loss = build_loss(config, torch.from_numpy(shard.counts(classes, settings.task.class_counts)))
    free = free_memory(settings.device)
    meter = _Meter(settings.device)
    model = settings.forward.place(model)
    state = get_state(model, ParameterGroups.of(model, config.model).shared)
    request = TrainRequest(round=1, client=0, state=state)
    began = time.perf_counter()
    fit(model, shard, request, loss=loss, algorithm=ClientAlgorithm(), settings=settings)
    seconds = (time.perf_counter() - began) / _STEPS
    return StepCost(meter.peak(), free, seconds, size_in_bytes(state), settings.device)


def free_memory(device: torch.device) -> int | None:
    """Return free bytes of a GPU, or of main memory within this process's control group; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory.available()


class _Meter:
    """Peak memory from its making on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = int(torch.cuda.memory_reserved(device))
        else:
            give_back_freed_memory()
            # Linux: 5 makes the highest resident size so far the present one (man 5 proc).
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
            self._before = memory.resident()

    def peak(self) -> int | None:
        """Return bytes above the beginning."""
        cuda = self._device.type == "cuda"
        highest = int(torch.cuda.max_memory_reserved(self._device)) if cuda else memory.highest_resident()
        return None if highest is None or self._before is None else max(0, highest - self._before)
