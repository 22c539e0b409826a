"""What a strategy does between a round's training and its measurement rests on the round's streams alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fedvision.algorithms.base import ServerContext
from fedvision.algorithms.fedavg import FedAvg
from fedvision.flower.client_registry import SimulatedClientRegistry
from fedvision.flower.strategy import FlowerStrategy
from fedvision.server.refinement import StatisticsPhase
from fedvision.types import State
from tests.experiments import tiny
from tests.flower.test_strategy import Nodes


class Dropping(FedAvg):
    """Drops half of the model, as the head's dropout would while it is trained."""

    def refine(self, state: State, server: ServerContext) -> State:
        return {name: nn.functional.dropout(tensor) for name, tensor in state.items()}


def test_dropout_in_a_refinement_is_the_rounds_own() -> None:
    phase = StatisticsPhase(
        grid=Nodes(),
        client_registry=SimulatedClientRegistry(clients=4, counts=(1, 1)),
        config=tiny(),
        excluded=frozenset(),
        make_model=lambda state: nn.Identity(),
    )

    def refined(round: int) -> list[float]:
        record: dict[str, Any] = {"changed": True}
        strategy = FlowerStrategy(Dropping(), seed=0)
        return phase.after_training(strategy, round, {"w": torch.ones(64)}, record)["w"].tolist()

    first = refined(1)
    torch.rand(5)  # whatever was drawn in this process meanwhile
    assert refined(1) == first
    assert refined(2) != first
