"""What one machine does for the clients it hosts: recall, build the loss, train, keep, measure."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import nn

from fedvision import registry
from fedvision.config import ExperimentConfig
from fedvision.data.shards import Shard
from fedvision.data.transforms import prepare
from fedvision.models.state import get_state, kept, load_state, travelling
from fedvision.training import device
from fedvision.training.evaluate import Evaluation, evaluate
from fedvision.training.loop import LocalUpdate, LoopSettings, build_optimizer, fit, learning_rate
from fedvision.training.memory import ClientMemory
from fedvision.training.objectives import Objective
from fedvision.types import LossFn, PluginSpec, State, Task

_OBJECTIVE, _PERSONAL = "objective", "personal"


class Shards(Protocol):
    """Where clients' images come from: a split of one data set, or the machine's own folder."""

    def train(self, client: int) -> Shard:
        """Return the client's training images."""

    def test(self, client: int) -> Shard:
        """Return the images that the client keeps for measurement; may be empty."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """One model on one device that serves many clients, one after the other."""

    config: ExperimentConfig
    """The experiment."""
    settings: LoopSettings
    """Transforms, device and seed of the local loop."""
    model: nn.Module
    """The network, on the device."""
    num_classes: int
    """C."""
    shards: Shards
    """The clients' images."""
    memory: ClientMemory
    """What the clients keep between rounds."""
    initial: State
    """The tensors that do not travel, as the model began."""

    @classmethod
    def open(
        cls,
        config: ExperimentConfig,
        model: nn.Module,
        num_classes: int,
        shards: Shards,
        memory: ClientMemory,
    ) -> Worker:
        """Put the model on its device and make ready what all its clients share."""
        settings = loop_settings(config, channels(shards.train(0)))
        model = place(model, settings)
        initial = get_state(model, kept(model, travelling(model, config.model.travel)))
        return cls(
            config=config,
            settings=settings,
            model=model,
            num_classes=num_classes,
            shards=shards,
            memory=memory,
            initial=initial,
        )

    def counts(self, client: int) -> tuple[int, ...]:
        """Return a client's training images per class [C]."""
        return tuple(self.shards.train(client).counts(self.num_classes).tolist())

    def train(self, task: Task) -> LocalUpdate:
        """Train one client on its task and keep what it must remember."""
        shard = self.shards.train(task.client)
        memory = self._recall(task.client, task.round)
        name = task.instruction.objective
        objective = registry.build("objective", PluginSpec(use=name)) if name else Objective()
        update = fit(
            self.model,
            shard,
            task,
            loss=self._loss(task, shard),
            objective=objective,
            settings=self.settings,
            memory=memory.get(_OBJECTIVE, {}),
        )
        personal = get_state(self.model, tuple(self.initial))
        self.memory.save(task.client, task.round, {_OBJECTIVE: update.memory, _PERSONAL: personal})
        return update

    def evaluate(self, client: int, round: int, state: State) -> Evaluation:
        """Measure a state on the images that a client kept for it, with the client's personal tensors."""
        self._recall(client, round + 1)
        load_state(self.model, state)
        return self._measure(self.shards.test(client))

    def measure(self, state: State, shard: Shard) -> Evaluation:
        """Measure a state on a shard of no client, such as the server's test images."""
        load_state(self.model, {**self.initial, **state})
        return self._measure(shard)

    def seconds_per_image(self, client: int, batches: int = 4) -> float:
        """Return how long training takes for an image, measured on a client's first batches.

        Args:
            client: Whose images are used; nothing of it is kept, but the model is overwritten.
            batches: How many are timed, after one that warms up.
        """
        shard, size = self.shards.train(client), self.settings.training.batch_size
        names = travelling(self.model, self.config.model.travel)
        task = Task(round=1, client=client, state=get_state(self.model, names))
        settings = replace(self.settings, training=replace(self.settings.training, epochs=1, steps=0))
        seconds = float("inf")
        for count in (size, size * batches):
            part = shard.take(np.arange(min(count, len(shard))))
            start = time.perf_counter()
            fit(self.model, part, task, loss=self._loss(task, part), objective=Objective(), settings=settings)
            seconds = min(seconds, (time.perf_counter() - start) / len(part))
        return seconds

    def _measure(self, shard: Shard) -> Evaluation:
        batch_size = self.config.evaluation.batch_size
        return evaluate(self.model, shard, self.settings, batch_size=batch_size, num_classes=self.num_classes)

    def _recall(self, client: int, round: int) -> dict[str, State]:
        """Return what a client kept before a round, its personal tensors already in the model."""
        memory = self.memory.load(client, round)
        if self.initial:
            load_state(self.model, memory.get(_PERSONAL, self.initial))
        return memory

    def _loss(self, task: Task, shard: Shard) -> LossFn:
        shared = task.counts if self.config.loss.prior == "global" else None
        counts = torch.tensor(shared) if shared else torch.from_numpy(shard.counts(self.num_classes))
        return build_loss(self.config, counts, task.round)


def build_loss(config: ExperimentConfig, counts: torch.Tensor, round: int = 1) -> LossFn:
    """Build the experiment's loss from class counts [C].

    Raises:
        PluginError: The loss is unknown or its arguments do not fit.
    """
    loss: LossFn = registry.build("loss", config.loss, counts=counts, round=round, rounds=config.rounds)
    return loss


def loop_settings(config: ExperimentConfig, channels: int) -> LoopSettings:
    """Make ready what the local loop needs in every round.

    Raises:
        ConfigError: The device is not there, or the transforms do not fit the channels.
    """
    return LoopSettings(
        training=config.training,
        transform=prepare(config.transforms, channels),
        device=device.choose(config.training.device),
        seed=config.seed,
        rounds=config.rounds,
    )


def place(model: nn.Module, settings: LoopSettings) -> nn.Module:
    """Move a model to the settings' device and memory layout."""
    layout = torch.channels_last if settings.training.channels_last else torch.contiguous_format
    return model.to(device=settings.device, memory_format=layout)  # type: ignore[call-overload, no-any-return]


def channels(shard: Shard) -> int:
    """Return the number of channels of a shard's images."""
    return int(shard.images.shape[-1])


def check_training(config: ExperimentConfig, channels: int, num_classes: int) -> None:
    """Build once what every client will build, so that a wrong key ends the run before it starts.

    Raises:
        ConfigError: The device, transforms, loss, schedule or optimiser cannot be built.
    """
    loop_settings(config, channels)
    build_loss(config, torch.ones(num_classes, dtype=torch.int64))
    lr = learning_rate(config.training, 1, config.rounds)
    build_optimizer(config.training, [nn.Parameter(torch.zeros(1))], lr)
