"""What every client will build for its training, tried once before a run."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from fedvision import seeding
from fedvision.config import ExperimentConfig
from fedvision.data.shards import Shard
from fedvision.errors import ConfigError, FedVisionError, with_kind
from fedvision.training.client_trainer import build_loss, loop_settings
from fedvision.training.loop import LoopSettings


def check_training(config: ExperimentConfig, channels: int, num_classes: int) -> None:
    """Build once what every client will build, so that a wrong key ends the run before it starts.

    Raises:
        ConfigError: The device, transforms, loss, schedule or optimiser cannot be built, or the optimiser
            takes no plain step.
    """
    settings = loop_settings(config, channels)
    build_loss(config, torch.ones(num_classes, dtype=torch.int64))
    _check_sampler(settings, num_classes)
    _check_schedule(settings, config.rounds)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = settings.make_optimizer([parameter], settings.lr(1))
    parameter.grad = torch.zeros(1)
    try:
        optimizer.step()
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"training.optimizer: {config.training.optimizer.use!r} takes no step on gradients alone "
            f"({with_kind(error)}); use another one"
        ) from error


def _check_schedule(settings: LoopSettings, rounds: int) -> None:
    """Ask the schedule for every round's rate."""
    use = settings.training.schedule.use
    for round in range(1, rounds + 1):
        try:
            rate = settings.lr(round)
        except FedVisionError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(
                f"training.schedule: {use!r} must give a function (round, rounds) -> factor, and failed for "
                f"round {round} of {rounds}: {with_kind(error)}"
            ) from error
        # Such a round would be recorded as one that trained.
        if not 0 < rate < math.inf:
            raise ConfigError(
                f"training.schedule: {use!r} gives round {round} of {rounds} the learning rate {rate:g}, "
                "with which nothing is learned; it must be > 0 and finite"
            )


def _check_sampler(settings: LoopSettings, num_classes: int) -> None:
    """Let the sampler draw from an image of each class, in the first round and in the last."""
    targets = settings.task.example_targets(num_classes, (8, 8)).numpy()
    blank = np.zeros((num_classes, 1, 1, 1), np.uint8)
    shard = Shard(images=blank, labels=targets, indices=np.arange(num_classes))
    for round in (1, settings.rounds):
        settings.make_sampler(round)(shard, seeding.numpy_stream(settings.seed, "trial"))
