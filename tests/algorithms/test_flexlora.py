"""FlexLoRA: means of products by hand, as near as their rank allows, else FedAvg."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedvision import simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.flexlora import FlexLora, factors
from fedvision.types import ClientUpdate, State
from tests.experiments import tiny

VIT = {"use": "vit", "patch": 4, "dim": 16, "depth": 1, "train": "lora"}


def state(b: list[list[float]], a: list[list[float]], head: float) -> State:
    return {
        "backbone.x.lora_a": torch.tensor(a),
        "backbone.x.lora_b": torch.tensor(b),
        "backbone.x.weight": torch.tensor([head]),
    }


def combined(strategy: FedAvg | FlexLora, *clients: tuple[State, int]) -> State:
    updates = (
        ClientUpdate(client=number, position=number, state=own, examples=images, loss=0.0)
        for number, (own, images) in enumerate(clients)
    )
    return strategy.combine(clients[0][0], updates)


def product(found: State) -> torch.Tensor:
    return found["backbone.x.lora_b"].flatten(1) @ found["backbone.x.lora_a"].flatten(1)


FIRST = state([[1.0], [0.0]], [[1.0, 0.0]], 1.0)
SECOND = state([[0.0], [1.0]], [[0.0, 2.0]], 5.0)


def test_the_mean_of_products_by_hand() -> None:
    """3/4 diag(1, 0) + 1/4 diag(0, 2) = diag(3/4, 1/2); of rank 1 diag(3/4, 0) is the nearest."""
    found = combined(FlexLora(), (FIRST, 3), (SECOND, 1))
    torch.testing.assert_close(product(found), torch.tensor([[0.75, 0.0], [0.0, 0.0]]))
    assert float(found["backbone.x.weight"]) == 2.0
    assert list(found) == list(FIRST)
    # FedAvg's factors are ([3/4, 1/4], [3/4, 1/2]), whose product is no client's and no mean.
    averaged = product(combined(FedAvg(), (FIRST, 3), (SECOND, 1)))
    torch.testing.assert_close(averaged, torch.tensor([[0.5625, 0.375], [0.1875, 0.125]]))


def test_a_rank_that_suffices_gives_the_mean_itself() -> None:
    generator = torch.Generator().manual_seed(1)
    clients = []
    shared = torch.randn(2, 3, 2, 2, generator=generator)  # a convolution's A, alike on all clients
    for images in (2, 5, 4):
        own = {"c.lora_a": shared, "c.lora_b": torch.randn(4, 2, 1, 1, generator=generator)}
        clients.append((own, images))
    found = combined(FlexLora(), *clients)
    mean = sum(n * own["c.lora_b"].flatten(1) @ own["c.lora_a"].flatten(1) for own, n in clients) / 11
    assert [found[name].shape for name in found] == [(2, 3, 2, 2), (4, 2, 1, 1)]
    torch.testing.assert_close(found["c.lora_b"].flatten(1) @ found["c.lora_a"].flatten(1), mean)


def test_factors_are_the_nearest_and_of_one_sign() -> None:
    matrix = torch.randn(6, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    left, right = factors(matrix, 3)
    values = torch.linalg.svdvals(matrix)
    assert float((left @ right - matrix).norm()) == pytest.approx(float(values[3:].norm()))
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1))
    assert (right.gather(1, right.abs().argmax(1, keepdim=True)) > 0).all()
    zero = factors(torch.zeros(2, 3), 1)
    assert not any(factor.any() for factor in zero)


@pytest.mark.slow
def test_without_two_trained_factors_it_is_fedavg(tmp_path: Path) -> None:
    for number, keys in enumerate(({"train": "head"}, {"lora": {"rank": 2, "exact": True}})):
        runs = [
            simulate(
                tiny(rounds=1, model={**VIT, **keys}, strategy={"use": use}), out=tmp_path / f"{number}-{use}"
            )
            for use in ("fedavg", "flexlora")
        ]
        assert all(torch.equal(runs[0].state[name], tensor) for name, tensor in runs[1].state.items())


@pytest.mark.slow
def test_a_run_ends_alike_where_clients_are_stacked(tmp_path: Path) -> None:
    config = tiny(rounds=2, model={**VIT, "lora": {"rank": 2}}, strategy={"use": "flexlora"})
    serial = simulate(config, out=tmp_path / "serial")
    vectorized = simulate(config, engine="vectorized", out=tmp_path / "vectorized")
    for name, tensor in serial.state.items():
        torch.testing.assert_close(vectorized.state[name], tensor, rtol=1e-3, atol=1e-4)
