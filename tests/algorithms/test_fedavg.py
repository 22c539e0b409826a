"""FedAvg by hand and against Flower's, and which tensors are statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fedvision.algorithms.fedavg import FedAvg, only_averaged
from fedvision.types import ClientUpdate

State = dict[str, torch.Tensor]


def test_by_hand() -> None:
    updates = [
        ClientUpdate(client=4, position=0, examples=30, state={"w": torch.tensor([1.0, 2.0])}),
        ClientUpdate(client=7, position=1, examples=10, state={"w": torch.tensor([5.0, -2.0])}),
    ]
    new = FedAvg().combine({"w": torch.zeros(2)}, iter(updates))
    assert new["w"].tolist() == [2.0, 1.0]


def test_agrees_with_flowers(
    start: State, cohort: Callable[[State, int], list[ClientUpdate]], stock_round: Callable[..., State]
) -> None:
    from flwr.serverapp.strategy import FedAvg as Stock

    stock: Any = Stock(fraction_train=0.0)
    updates = cohort(start, 1)
    new = FedAvg().combine(start, iter(updates))
    for name, value in stock_round(stock, 1, start, updates).items():
        torch.testing.assert_close(new[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "statistic"),
    [
        ("running_mean", True),
        ("layers.3.bn.running_var", True),
        ("layers.3.bn.weight", False),
        ("running_mean.weight", False),
        ("head.not_running_mean", False),
    ],
)
def test_statistics_are_known_by_name(name: str, statistic: bool) -> None:
    assert only_averaged(name) is statistic


def test_torchs_batch_normalisation_has_these_names() -> None:
    buffers = {name for name, tensor in torch.nn.BatchNorm2d(2).named_buffers() if tensor.is_floating_point()}
    assert buffers == {"running_mean", "running_var"}
    assert all(only_averaged(name) for name in buffers)
