"""What a federation does with networks whose state is not a set of independent averages."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedvision import ExperimentConfig, simulate
from fedvision.data.partition.client_shards import ClientShards
from fedvision.data.shards import Shard
from fedvision.engines.client_host import SimulatedClientHosts
from fedvision.errors import ConfigError, DataError
from fedvision.experiment import Experiment
from fedvision.models.state import get_state
from fedvision.training.client_state import ClientStateStore
from fedvision.training.client_trainer import ClientTrainer
from fedvision.types import TrainRequest
from tests.experiments import tiny


def _batch_norm(momentum: float | None = 0.1, vectors: bool = False) -> Any:
    """A factory of a small network with batch norm."""

    def factory(num_classes: int, in_channels: int) -> nn.Module:
        pool = nn.AdaptiveAvgPool2d(1) if vectors else nn.AdaptiveAvgPool2d(2)
        body = nn.Sequential(
            nn.Conv2d(in_channels, 4, 3), pool, nn.BatchNorm2d(4, momentum=momentum), nn.ReLU()
        )
        return nn.Sequential(body, nn.Flatten(), nn.LazyLinear(num_classes))

    return factory


def _spectral(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    """A network that cannot be pickled."""
    pixels = in_channels * image_size[0] * image_size[1]
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(pixels, num_classes))
    return nn.Sequential(nn.Flatten(), layer)


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of networks beside the experiment."""
    module = ModuleType("networks")
    for name, factory in {
        "plain": _batch_norm(),
        "cumulative": _batch_norm(None),
        "vectors": _batch_norm(vectors=True),
        "spectral": _spectral,
    }.items():
        setattr(module, name, factory)
    monkeypatch.setitem(sys.modules, "networks", module)


@pytest.mark.usefixtures("networks")
def test_a_model_of_which_clients_keep_a_part_is_measured_by_clients_alone(tmp_path: Path) -> None:
    """The server would measure it with the statistics of round 0."""
    model = {"use": "networks:plain", "shared": "no-batch-norm-statistics"}
    result = simulate(tiny(model=model, evaluation={"holdout": 0.2}), out=tmp_path / "run")
    assert all(record["server"] is None for record in result.rounds)
    assert result.scores == result.rounds[-1]["local"]["scores"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    sentence = "the server has no whole model, and each client measures its personal model"
    assert any(sentence in notice for notice in summary["notices"])


@pytest.mark.usefixtures("networks")
def test_a_client_begins_with_the_models_counters(tmp_path: Path) -> None:
    """With momentum = None batch norm averages over all batches it counted: of this client, in this round."""
    config = tiny(model={"use": "networks:cumulative"})
    whole = simulate(config, out=tmp_path / "whole")
    worker = ClientTrainer.open(
        config, Experiment.build(config).model, 10, _shards(config), ClientStateStore(tmp_path / "memory", 1)
    )
    task = TrainRequest(round=1, client=0, state=dict(whole.state))
    alone = worker.train(task)
    worker.train(replace(task, client=1))
    after = worker.train(task)
    assert all(torch.equal(alone.state[name], after.state[name]) for name in alone.state)


def _shards(config: ExperimentConfig) -> ClientShards:
    federation = Experiment.build(config)
    return ClientShards(federation.dataset.train, federation.split)


@pytest.mark.usefixtures("networks")
def test_batches_that_a_network_cannot_train_on_are_refused() -> None:
    model = {"use": "networks:vectors"}
    with pytest.raises(ConfigError, match=r"training.batch_size = 1: .* set it to 2 or more"):
        Experiment.build(tiny(model=model, training={"batch_size": 1}))
    single = {"use": "tests.test_experiment:lonely", "clients": 4}
    with pytest.raises(ConfigError, match="client 1, client 3 has no more to train on"):
        Experiment.build(tiny(model=model, partition=single))
    population = {"use": "population", "clients": 50, "mean_images": 2.0, "alpha": 1.0}
    with pytest.raises(ConfigError, match=r"client \d+, client \d+, .* more has no more to train on"):
        Experiment.build(tiny(model=model, partition=population))
    Experiment.build(tiny(model=model))


def across_the_batch(num_classes: int) -> nn.Module:
    """A network without batch norm that needs a batch of two: it takes each batch's mean off."""

    class Centred(nn.Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if self.training and len(images) < 2:
                raise ValueError("a batch of one")
            flat = images.flatten(1)
            return super().forward(flat - flat.mean(0))

    return Centred(64, num_classes)


def test_last_batch_of_networks_that_need_two_images(tmp_path: Path) -> None:
    """65 images in batches of 32; a client with a single one raises alone, as no other is known here."""
    config = tiny(model={"use": f"{__name__}:across_the_batch"})
    experiment = Experiment.build(config)
    train = experiment.dataset.train
    shards = {n: Shard(images=train.images, labels=train.labels, indices=np.arange(n)) for n in (65, 1)}

    class Own:
        def train(self, client: int) -> Shard:
            return shards[client]

        test = train

    shards[0] = shards[65]
    memory = ClientStateStore(tmp_path)
    trainer = ClientTrainer.open(config, experiment.model, 10, Own(), memory)
    state = get_state(experiment.model, ["weight", "bias"])
    assert trainer.train(TrainRequest(round=1, client=65, state=state)).steps == 2
    with pytest.raises(DataError, match="there is one image to train on, and the network cannot"):
        trainer.train(TrainRequest(round=1, client=1, state=state))


@pytest.mark.usefixtures("networks")
def test_a_recipe_whose_model_cannot_be_pickled_builds_it_again(tmp_path: Path) -> None:
    config = tiny(model={"use": "networks:spectral"})
    federation = Experiment.build(config)
    host_factory = SimulatedClientHosts(
        config=config,
        dataset=federation.dataset,
        split=federation.split,
        model=federation.model,
        memory=tmp_path,
    )
    again = pickle.loads(pickle.dumps(host_factory)).model.state_dict()
    first = federation.model.state_dict()
    assert set(again) == set(first)
    assert all(torch.equal(again[name], first[name]) for name in first)


class Forgetless(nn.Linear):
    """A linear network that takes off a running mean, which no state has."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(64, num_classes)
        self.mean = torch.zeros(())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, C]."""
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * images.mean()
        return super().forward(images.flatten(1) - self.mean)


def test_a_network_that_remembers_outside_its_state_is_refused_before_a_run() -> None:
    with pytest.raises(ConfigError, match=r"Forgetless': used once, it answers the same images otherwise in"):
        Experiment.build(tiny(model={"use": f"{__name__}:Forgetless"}))
