"""Rounds without a federation: made-up updates, and Flower's own strategies fed by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedvision.types import ClientUpdate

State = dict[str, torch.Tensor]


@pytest.fixture
def start() -> State:
    """A model of three tensors and a batch normalisation's statistics."""
    generator = torch.Generator().manual_seed(11)
    return {
        "conv.weight": torch.randn(4, 3, generator=generator),
        "bn.running_mean": torch.randn(3, generator=generator),
        "bn.running_var": torch.rand(3, generator=generator),
        "scale": torch.randn((), generator=generator),
    }


@pytest.fixture
def cohort() -> Callable[[State, int], list[ClientUpdate]]:
    """``cohort(state, round)``: updates of ten unequal clients that moved a little, with further tensors."""

    def make(state: State, round: int) -> list[ClientUpdate]:
        generator = torch.Generator().manual_seed(round)

        def near(tensor: torch.Tensor) -> torch.Tensor:
            return tensor + 0.05 * torch.rand(tensor.shape, generator=generator).to(tensor.dtype)

        return [
            ClientUpdate(
                client=place,
                position=place,
                examples=examples,
                state={name: near(tensor) for name, tensor in state.items()},
                tensors={
                    "control": {"conv.weight": torch.randn(4, 3, generator=generator)},
                    "steps": {"norm": torch.tensor(1.0 + examples // 8, dtype=torch.float64)},
                    "generator": {"w": torch.ones(2)},
                    "fairness": {
                        "loss": torch.tensor(examples / 100, dtype=torch.float64),
                        "rate": torch.tensor(0.1, dtype=torch.float64),
                    },
                    "support": {"counts": torch.tensor([examples / 2, 0.0], dtype=torch.float64)},
                },
            )
            for place, examples in enumerate([5, 17, 1, 230, 8, 8, 90, 4, 33, 12])
        ]

    return make


@pytest.fixture
def stock_round(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Any, int, State, Sequence[ClientUpdate]], State]:
    """``stock_round(strategy, round, state, updates)``: one round of a Flower strategy, without messages.

    The strategy must have ``fraction_train=0``: it then takes note of the model and sends nothing.
    """
    from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

    # Some collect garbage after each reply, which takes 0.1 s with torch loaded.
    monkeypatch.setattr("gc.collect", lambda: 0)

    def play(strategy: Any, round: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        assert list(strategy.configure_train(round, ArrayRecord(state), ConfigRecord(), None)) == []
        replies = [
            SimpleNamespace(
                has_error=lambda: False,
                content=RecordDict(
                    {
                        "arrays": ArrayRecord(update.state),
                        "metrics": MetricRecord({"num-examples": update.examples, "train_loss": 1.5}),
                    }
                ),
            )
            for update in updates
        ]
        arrays, _ = strategy.aggregate_train(round, replies)
        new: State = arrays.to_torch_state_dict()
        return new

    return play
