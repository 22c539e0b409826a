"""What a step costs: the device's own numbers, and the larger batch costs more."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.deployment.client.step_profile import step_cost
from fedvision.errors import ConfigError
from fedvision.training.allocator import keep_freed_memory

EXPERIMENT = ExperimentConfig.from_toml(
    '[data]\nuse = "npz"\n[model]\nuse = "cnn"\nwidth = 32\n[training]\nbatch_size = 256\n'
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (256, 32, 32, 3), np.uint8)
    return Dataset(
        train=ImageSet(images=images, labels=np.arange(256, dtype=np.int64) % 4), classes=tuple("abcd")
    )


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux reports a process's peak")
def test_a_large_batch_takes_the_memory_of_its_activations(dataset: Dataset) -> None:
    keep_freed_memory()  # As a process does that has trained.
    training = dataclasses.replace(EXPERIMENT.training, batch_size=1)
    step_cost(EXPERIMENT, dataset, "cpu")  # What the first step allocates for good.
    small = step_cost(dataclasses.replace(EXPERIMENT, training=training), dataset, "cpu")
    large = step_cost(EXPERIMENT, dataset, "cpu")
    assert small.peak is not None
    assert large.peak is not None
    # 256 images x 32 channels x 32 x 32 pixels x 4 bytes: one activation alone.
    assert large.peak - small.peak > 256 * 32 * 32 * 32 * 4
    assert large.device == torch.device("cpu")
    assert large.model > 0


def test_a_device_that_is_not_there_is_a_sentence(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match="is not available on this machine"):
        step_cost(EXPERIMENT, dataset, "cuda:99")
