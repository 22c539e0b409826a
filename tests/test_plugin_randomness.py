"""Plug-ins may draw from the global generators of torch, NumPy and Python: the run's own numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fedvision
from fedvision import ExperimentConfig, registry, simulate
from fedvision.data.dataset import Dataset, ImageSet
from fedvision.data.partition.client_shards import ClientShards
from fedvision.experiment import Experiment, read_data
from fedvision.training.client_plugins import client_plugins, may_draw
from fedvision.training.client_state import ClientStateStore
from fedvision.training.client_trainer import ClientTrainer
from fedvision.types import PluginSpec, State, TrainRequest
from fedvision.updates.base import UpdateTransform
from fedvision.updates.schema import UpdateSchema
from tests.experiments import tiny


def draw() -> float:
    """Return the sum of a number from each of the three."""
    return random.random() + float(np.random.random()) + float(torch.rand(()))  # noqa: NPY002


class Noisy(nn.Module):
    """A linear network that draws in training and in evaluation."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, num_classes)
        self.register_buffer("first", torch.tensor(draw()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, C] of dimmed images."""
        logits: torch.Tensor = self.head(F.dropout(images.flatten(1), 0.2) * (1 + draw()))
        return logits


def noisy(num_classes: int) -> nn.Module:
    """Return the network."""
    return Noisy(num_classes)


def shaken(counts: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A loss whose factory and whose calls draw."""
    once = draw()
    return lambda logits, labels: F.cross_entropy(logits, labels, reduction="none") * (once + draw())


def scattered() -> Callable[..., list[Any]]:
    """A partition that draws from NumPy's generator instead of the one that it is given."""

    def partition(labels: Any, clients: int, rng: np.random.Generator) -> list[Any]:
        owner = np.random.randint(0, clients, len(labels))  # noqa: NPY002
        return [np.flatnonzero(owner == client) for client in range(clients)]

    return partition


def made_up() -> Dataset:
    """Images that are drawn when they are read."""
    pixels = (np.random.random((60, 8, 8, 1)) * 255).astype(np.uint8)  # noqa: NPY002
    train = ImageSet(images=pixels, labels=np.array([random.randrange(2) for _ in range(60)]))
    return Dataset(train=train, test=train, classes=("no", "yes"))


class Jitter(UpdateTransform):
    """Adds drawn numbers to what is sent."""

    def encode(self, tensors: State, residual: State, rng: np.random.Generator) -> tuple[State, State]:
        """Return the tensors, a little away from what they are."""
        return {name: tensor + draw() for name, tensor in tensors.items()}, {}

    def decode(self, tensors: State, schema: UpdateSchema) -> State:
        """Return them as they came."""
        return tensors


OWN = {"model": {"use": f"{__name__}:noisy"}, "loss": {"use": f"{__name__}:shaken"}}
JITTER = [{"use": f"{__name__}:Jitter"}]


def trainer(config: ExperimentConfig, memory: Path) -> ClientTrainer:
    experiment = Experiment.build(config)
    shards = ClientShards(experiment.dataset.train, experiment.split)
    return ClientTrainer.open(config, experiment.model, 10, shards, ClientStateStore(memory))


def test_what_a_client_trains_and_counts_depends_on_nothing_before_it(tmp_path: Path) -> None:
    """Serial clients drew from one stream, one after the other, and Ray's workers from their own."""
    config = tiny(**OWN, evaluation={"holdout": 0.2}, update=JITTER)
    seen = []
    for number in range(2):
        worker = trainer(config, tmp_path / str(number))
        state = {name: tensor.clone() for name, tensor in worker.model.state_dict().items()}
        task = TrainRequest(round=1, client=2, state=state)
        draw()
        if number:
            worker.train(TrainRequest(round=1, client=1, state=state))
        seen.append((state, worker.train(task), worker.evaluate(2, 1, state)))
    (first, update, measured), (again, later, counted) = seen
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(update.state[name], later.state[name]) for name in update.state)
    assert update.loss == later.loss
    assert measured.loss_sum == counted.loss_sum


def test_clients_and_rounds_draw_their_own_numbers(tmp_path: Path) -> None:
    worker = trainer(tiny(**OWN), tmp_path)
    drawn = []
    for round, client in ((1, 1), (1, 2), (2, 1)):
        with worker._streams("plug-ins", round, client):
            drawn.append(draw())
    assert len(set(drawn)) == 3


@pytest.mark.parametrize("seeds", [(1, 1), (1, 2)])
def test_a_partition_follows_the_seed(seeds: tuple[int, int]) -> None:
    table = {"use": f"{__name__}:scattered", "clients": 4}
    one, other = (Experiment.build(tiny(partition=table, seed=seed)).split for seed in seeds)
    assert (one.digest == other.digest) == (seeds[0] == seeds[1])


def test_images_and_what_factories_draw_are_the_same_each_time() -> None:
    config = tiny(data={"use": f"{__name__}:made_up"})
    one, other = read_data(config), read_data(config)
    assert np.array_equal(one.train.images, other.train.images)
    assert np.array_equal(one.train.labels, other.train.labels)
    losses = [
        registry.build("loss", PluginSpec(use=f"{__name__}:shaken"), counts=torch.ones(2)) for _ in "ab"
    ]
    random.seed(1)
    assert all(callable(loss) for loss in losses)
    assert losses[0].__closure__[0].cell_contents == losses[1].__closure__[0].cell_contents


def test_a_finished_model_that_draws_has_the_runs_own_scores(tmp_path: Path) -> None:
    config = tiny(**OWN, rounds=2, evaluation={"batch_size": 64})
    result = simulate(config, out=tmp_path / "run")
    scores = fedvision.load(tmp_path / "run").evaluate(read_data(config))
    assert scores.scores["accuracy"] == result.scores["accuracy"]
    assert scores.loss == result.rounds[-1]["server"]["loss"]


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({}, False),
        ({"training": {"optimizer": {"use": "adam"}}}, False),
        ({"model": {"use": "torchvision/resnet18"}}, False),
        ({"model": OWN["model"]}, True),
        ({"loss": OWN["loss"]}, True),
        ({"update": [{"use": "mine:Cut"}]}, True),
        ({"training": {"optimizer": {"use": "mine:Optimizer"}}}, True),
    ],
)
def test_experiments_with_code_of_others(tables: dict[str, Any], expected: bool) -> None:
    assert may_draw(client_plugins(tiny(**tables))) == expected
