"""What answers messages in one process, and the recipe that makes it there.

A carrier of messages (an engine) gets a recipe and opens it in whichever processes do the work: this one, or
workers on this or other machines. A recipe can be pickled, with its images by reference where they are
memory-mapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from fedvision.config import ExperimentConfig
from fedvision.data.images import Dataset
from fedvision.data.shards import ClientShards, Shard
from fedvision.data.split import Split
from fedvision.flower import client_app
from fedvision.flower.folding import Folding
from fedvision.flower.roster import NumberedRoster
from fedvision.flower.strategy import FlowerStrategy, build_strategy
from fedvision.strategies.mean import summable
from fedvision.training.memory import ClientMemory
from fedvision.training.worker import Worker


@dataclass(frozen=True, kw_only=True)
class Host:
    """What answers messages in one process."""

    app: ClientApp
    """Answers one message."""
    worker: Worker | None = None
    """Trains several clients at once, where the carrier can make use of it."""
    folding: Folding | None = None
    """Sums updates, where the strategy needs no more than sums."""

    def answer(self, message: Message, context: Context) -> Message:
        """Answer one message.

        Raises:
            Exception: Whatever the client's work raised; its text names client, stage and cause.
        """
        return self.app(message, context)


class Recipe(Protocol):
    """Makes a host; can be pickled."""

    @property
    def clients(self) -> int:
        """Number of clients that a host answers for."""

    def open(self) -> Host:
        """Make what answers messages, in the process that calls."""

    def cost(self, client: int) -> float:
        """Return how much work a client's training is beside the others', in any unit."""


@dataclass(frozen=True, kw_only=True)
class SimulatedClients:
    """The recipe of a simulation: every process can answer for every client."""

    config: ExperimentConfig
    """The experiment."""
    dataset: Dataset
    """All images."""
    split: Split
    """Which client has which images."""
    model: nn.Module
    """The network as it begins."""
    memory: Path
    """Folder of what the clients keep between rounds; the same for all processes."""

    @property
    def clients(self) -> int:
        """Number of clients."""
        return len(self.split.clients)

    def cost(self, client: int) -> float:
        """Return the client's number of images."""
        return float(len(self.split.clients[client]))

    def roster(self) -> NumberedRoster:
        """Return the members, with the counts of the images that they train on."""
        counts = self.split.counts.sum(0)
        if self.config.evaluation.holdout:
            shards, classes = self._shards(), len(self.dataset.classes)
            counts = np.sum([shards.train(client).counts(classes) for client in range(self.clients)], axis=0)
        return NumberedRoster(clients=self.clients, counts=tuple(counts.tolist()))

    def worker(self) -> Worker:
        """Make what trains and measures, on the experiment's device."""
        memory = ClientMemory(self.memory, self.config.checkpoint_every)
        return Worker.open(self.config, self.model, len(self.dataset.classes), self._shards(), memory)

    def _shards(self) -> ClientShards:
        evaluation, seed = self.config.evaluation, self.config.seed
        return ClientShards(self.dataset.train, self.split, holdout=evaluation.holdout, seed=seed)

    def open(self) -> Host:
        """Make the host."""
        worker = self.worker()
        test = None if self.dataset.test is None else Shard.whole(self.dataset.test)
        strategy = build_strategy(self.config.strategy, seed=self.config.seed)
        mean = summable(strategy.inner) if isinstance(strategy, FlowerStrategy) else None
        return Host(
            app=client_app.build(worker, test), worker=worker, folding=None if mean is None else Folding(mean)
        )
