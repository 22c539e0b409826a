"""A federation in this process whose rounds have no messages: what a method does to the numbers alone.

Everything else is the package's own: the experiment with its checks, clients' training, queries and their
sums, the strategy. It serves tests that need very many small rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from fedvision import registry, seeding
from fedvision.aggregation.fixed_point import FixedPointSum, to_fixed_point
from fedvision.algorithms.base import Answer, RoundStrategy, ServerContext
from fedvision.config import ExperimentConfig
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.partition.client_shards import ClientShards
from fedvision.experiment import Experiment
from fedvision.flower.strategy import FlowerStrategy
from fedvision.models.base import ImageModel
from fedvision.models.meta import model_with
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.state import get_state
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.client_trainer import ClientTrainer
from fedvision.types import ClientUpdate, Query, State, TrainRequest

SIDE = 4


def network(*, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """Return the smallest network of a backbone and a head."""
    height, width = image_size
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * height * width, 6), nn.Tanh())
    return ImageModel(backbone, nn.Linear(6, num_classes))


def federation(counts: Sequence[Sequence[int]], **config: Any) -> Federation:
    """Return a federation of clients that have so many images of each class.

    Args:
        counts: [K][C], at least one image a client.
        config: Tables of the experiment.

    Raises:
        ConfigError: The experiment is refused.
    """
    labels = np.concatenate([np.repeat(np.arange(len(row)), row) for row in counts])
    owner = np.repeat([f"{k:03}" for k in range(len(counts))], [sum(row) for row in counts])
    images = np.random.default_rng(0).integers(0, 256, (len(labels), SIDE, SIDE, 1), np.uint8)
    train = ImageSet(images=images, labels=labels, columns={"owner": owner})
    base = {
        "name": "small",
        "rounds": 2,
        "data": {"use": "digits"},
        "partition": {"use": "column", "name": "owner"},
        "model": {"use": f"{__name__}:network"},
        "training": {"lr": 0.1, "batch_size": 3, "device": "cpu"},
    }
    dataset = Dataset(train=train, test=None, classes=tuple(f"class {c}" for c in range(len(counts[0]))))
    return Federation(Experiment.build(ExperimentConfig.from_dict({**base, **config}), dataset=dataset))


class _Memory:
    """What clients keep, without a disk."""

    def __init__(self) -> None:
        self.kept: dict[int, dict[str, State]] = {}

    def load(self, client: int, round: int, silent_since: int | None = None) -> dict[str, State]:
        return self.kept.get(client, {})

    def save(
        self, client: int, round: int, groups: dict[str, State], silent_since: int | None = None
    ) -> None:
        self.kept[client] = groups


@dataclass
class Round:
    """What a round made."""

    state: State
    """The new model."""
    updates: list[ClientUpdate]
    """What the clients sent."""
    gradients: list[torch.Tensor]
    """Of each client's last step."""


class Federation:
    """Clients and a server that call each other.

    Args:
        experiment: What they do, on all of its clients in every round.
    """

    def __init__(self, experiment: Experiment) -> None:
        assert isinstance(experiment.strategy, FlowerStrategy)
        self.config, self.model, self.dataset = experiment.config, experiment.model, experiment.dataset
        self.strategy: RoundStrategy = experiment.strategy.inner
        self.classes = len(experiment.dataset.classes)
        shards = ClientShards(experiment.dataset.train, experiment.split)
        self.clients = range(len(shards))
        self.trainer = ClientTrainer.open(
            self.config,
            model_with(self.model, {}),
            self.classes,
            shards,
            _Memory(),  # type: ignore[arg-type]
        )
        counts = sum(shards.train(client).counts(self.classes) for client in self.clients)
        self.counts = tuple(int(count) for count in np.asarray(counts))
        self.state = get_state(self.model, ParameterGroups.of(self.model, self.config.model).shared)

    def play(self, round: int) -> Round:
        """Play a round (from 1) and return what it made; the model is then the new one."""
        updates: list[ClientUpdate] = []
        gradients: list[torch.Tensor] = []
        if self.strategy.trains:
            chosen = self.strategy.select(
                round, self.clients, seeding.numpy_stream(self.config.seed, "select", round)
            )
            for position, client in enumerate(chosen):
                updates.append(self._train(round, client, position))
                gradients += [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
            self.state = self.strategy.combine(self.state, iter(updates))
        self.state = self._refined(round)
        return Round(self.state, updates, gradients)

    def _train(self, round: int, client: int, position: int) -> ClientUpdate:
        half = self.strategy.client
        sent = self.strategy.configure(round, self.state, client)
        request = TrainRequest(
            round=round,
            client=client,
            state=self.state,
            client_config=replace(sent, constants=self.strategy.constant_tensors()),
            algorithm=None if half is ClientAlgorithm else registry.name_of("client_algorithm", half),
            counts=self.counts,
        )
        result = self.trainer.train(request)
        return ClientUpdate(
            client=client,
            position=position,
            examples=result.examples,
            state=result.state,
            loss=result.loss,
            tensors=result.tensors,
        )

    def _refined(self, round: int) -> State:
        answers: list[Answer] = []
        while (query := self.strategy.query(round, self.config.rounds, tuple(answers))) is not None:
            answers.append(self._answer(round, query))
        context = ServerContext(
            round=round,
            rounds=self.config.rounds,
            answers=tuple(answers),
            class_counts=self.counts,
            make_model=partial(model_with, self.model),
            generator=seeding.torch_stream(self.config.seed, "refine", round),
        )
        return self.strategy.refine(self.state, context)

    def _answer(self, round: int, query: Query) -> Answer:
        total = FixedPointSum()
        for client in self.clients:
            found, _ = self.trainer.statistic(client, round, self.state, query)
            total.add(to_fixed_point(found))
        return total.total.values()
