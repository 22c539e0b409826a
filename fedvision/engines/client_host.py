"""What answers messages in one process, and the recipe that makes it there.

A carrier of messages (an engine) gets a recipe and opens it in whichever processes do the work: this one, or
workers on this or other machines. A recipe can be pickled, with its images by reference where they are
memory-mapped.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from fedvision import seeding
from fedvision.algorithms.mean import summable
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset
from fedvision.data.partition.client_shards import ClientShards
from fedvision.data.partition.split import Split
from fedvision.data.shards import Shard
from fedvision.data.transforms import input_shape
from fedvision.engines.partial_aggregation import PartialAggregator
from fedvision.flower import client_app
from fedvision.flower.client_registry import SimulatedClientRegistry
from fedvision.flower.strategy import FlowerStrategy, build_strategy
from fedvision.models import weights_file
from fedvision.models.build import build_model
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.state import get_state
from fedvision.models.weights import begin
from fedvision.tasks.base import build_task
from fedvision.training.client_state import ClientStateStore
from fedvision.training.client_trainer import ClientTrainer
from fedvision.types import TrainRequest
from fedvision.updates import chain


@dataclass(frozen=True, kw_only=True)
class ClientHost:
    """What answers messages in one process."""

    app: ClientApp
    """Answers one message."""
    trainer: ClientTrainer | None = None
    """Trains several clients at once, where the carrier can make use of it."""

    def answer(self, message: Message, context: Context) -> Message:
        """Answer one message.

        Raises:
            Exception: Whatever the client's work raised; its text names client, stage and cause.
        """
        return self.app(message, context)


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What is ahead of a run."""

    seconds: float
    """Training of all rounds in one process, measured on a few steps."""
    cohort: int
    """Clients that work in a round."""


class ClientHostFactory(Protocol):
    """Makes a host; can be pickled."""

    @property
    def clients(self) -> int:
        """Number of clients that a host answers for."""

    @property
    def device(self) -> str:
        """Where the arithmetic is to run: ``"auto"``, or a torch device."""

    def profile(self) -> None:
        """Train the costliest client once and keep nothing, so that it can be measured."""

    def estimate_cost(self) -> CostEstimate:
        """Measure a few steps and return how long the whole run would train in one process."""

    def open(self) -> ClientHost:
        """Make what answers messages, in the process that calls."""

    def aggregator(self) -> PartialAggregator | None:
        """Make what sums updates, where the strategy needs no more than sums."""

    def cost(self, client: int) -> float:
        """Return how much work a client's training is beside the others', in any unit."""


@dataclass(frozen=True, kw_only=True)
class SimulatedClientHosts:
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
    threads: int = 1
    """Threads of a process's arithmetic. The bits of a result depend on it, so all engines have the same."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out a model that cannot be pickled, as with parametrised layers: workers build it again."""
        state = dict(vars(self))
        try:
            pickle.dumps(self.model)
        except Exception:
            del state["model"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the model where it was left out; the same seed gives the same bits."""
        vars(self).update(state)
        if "model" not in state:
            channels, height, width = input_shape(self.config.transforms, self.dataset.train.images.shape[1:])
            vars(self)["model"] = build_model(
                self.config.model,
                task=build_task(self.config.task),
                num_classes=len(self.dataset.classes),
                in_channels=channels,
                image_size=(height, width),
                seed=self.config.seed,
            )
            begin(self.model, weights_file.read_all(self.config.model), self.dataset.classes)

    @property
    def clients(self) -> int:
        """Number of clients."""
        return len(self.split.clients)

    @property
    def device(self) -> str:
        """The experiment's device."""
        return self.config.training.device

    def profile(self) -> None:
        """Train the client with most images of the first thousand once and keep nothing."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._aside(folder).trainer()
            state = get_state(trainer.model, ParameterGroups.of(trainer.model, self.config.model).shared)
            client = max(self._sample(), key=self.split.size)
            trainer.train(TrainRequest(round=1, client=client, state=state))

    def estimate_cost(self) -> CostEstimate:
        """Time a few batches of a large client and multiply by the images of all rounds.

        It is a forecast of the work, not a promise: schedules of steps, early stops and other programs on the
        machine are not in it.
        """
        with tempfile.TemporaryDirectory() as folder:
            trainer = self._aside(folder).trainer()
            seconds = trainer.seconds_per_image(max(self._sample(), key=self.split.size))
        sample, cohort = self._sample(), self._cohort()
        images = sum(map(self.cost, sample)) / len(sample)
        return CostEstimate(seconds=seconds * images * cohort * self.config.rounds, cohort=cohort)

    def _aside(self, folder: str) -> SimulatedClientHosts:
        """Return the recipe of a host whose training leaves no trace."""
        return replace(self, memory=Path(folder), model=copy.deepcopy(self.model))

    def _sample(self) -> range:
        return range(min(self.clients, 1000))

    def _cohort(self) -> int:
        """Return how many clients work in a round; of a stock strategy, all are taken to."""
        strategy = build_strategy(self.config.strategy, seed=self.config.seed)
        if not isinstance(strategy, FlowerStrategy):
            return self.clients
        rng = seeding.numpy_stream(self.config.seed, "select", 1)
        return len(strategy.inner.select(1, range(self.clients), rng))

    def cost(self, client: int) -> float:
        """Return the images that a client's training sees in a round, repeats counted.

        A set number of steps is the same work for all, and no sizes are needed.
        """
        training = self.config.training
        if training.steps:
            return float(training.steps * training.batch_size)
        return float(self.split.size(client) * training.epochs)

    def client_registry(self) -> SimulatedClientRegistry:
        """Return the members, with the counts of the images that they train on."""
        return SimulatedClientRegistry(clients=self.clients, counts=tuple(self.split.distinct.tolist()))

    def trainer(self) -> ClientTrainer:
        """Make what trains and measures, on the experiment's device."""
        memory = ClientStateStore(self.memory, self.config.checkpoint_every)
        return ClientTrainer.open(self.config, self.model, len(self.dataset.classes), self._shards(), memory)

    def _shards(self) -> ClientShards:
        return ClientShards(self.dataset.train, self.split)

    def open(self) -> ClientHost:
        """Make the host; its process then uses as many arithmetic threads as configured."""
        torch.set_num_threads(self.threads)
        trainer = self.trainer()
        test = None if self.dataset.test is None else Shard.whole(self.dataset.test)
        return ClientHost(app=client_app.build(trainer, test), trainer=trainer)

    def aggregator(self) -> PartialAggregator | None:
        """Make what sums updates; None where the server needs each: for the strategy, the time or masks."""
        updates = chain.build(self.config, self.model)
        if self.config.timed or updates.sum_only:
            return None
        strategy = build_strategy(self.config.strategy, seed=self.config.seed)
        mean = summable(strategy.inner) if isinstance(strategy, FlowerStrategy) else None
        return None if mean is None else PartialAggregator(mean, updates)
