"""SCAFFOLD: the server's formulas by hand, and the optimum that FedAvg misses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from fedvision.algorithms.base import RoundStrategy
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.scaffold import Scaffold, ScaffoldClient
from fedvision.errors import RunError
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.types import ClientUpdate, TrainRequest

State = dict[str, torch.Tensor]


def _update(position: int, model: list[float], change: list[float], examples: int = 1) -> ClientUpdate:
    return ClientUpdate(
        client=position,
        position=position,
        examples=examples,
        state={"w": torch.tensor(model)},
        tensors={"control": {"w": torch.tensor(change)}},
    )


def test_plain_means_and_c_scaled_by_the_share_of_replies() -> None:
    strategy = Scaffold(fraction=0.5)
    cohort = strategy.select(1, range(8), np.random.default_rng(0))
    assert len(cohort) == 4
    # Two of the four replied, of eight in all.
    updates = [_update(0, [2.0], [4.0], examples=100), _update(3, [6.0], [-1.0])]
    assert strategy.combine({"w": torch.tensor([0.0])}, iter(updates))["w"].tolist() == [4.0]
    assert strategy.control["w"].tolist() == [2 / 8 * 1.5]
    strategy.combine({"w": torch.tensor([0.0])}, iter([_update(1, [1.0], [8.0])]))
    assert strategy.control["w"].tolist() == [2 / 8 * 1.5 + 1 / 8 * 8.0]


def test_server_lr_steps_from_the_old_model() -> None:
    updates = [_update(0, [2.0], [0.0]), _update(1, [6.0], [0.0])]
    assert Scaffold(server_lr=0.5).combine({"w": torch.tensor([1.0])}, iter(updates))["w"].tolist() == [2.5]
    assert Scaffold(server_lr=2.0).combine({"w": torch.tensor([1.0])}, iter(updates))["w"].tolist() == [7.0]


def test_statistics_are_averaged_whatever_the_server_lr() -> None:
    updates = [
        ClientUpdate(
            client=0,
            position=0,
            examples=1,
            state={"bn.running_var": torch.tensor([0.5])},
            tensors={"control": {}},
        )
    ]
    new = Scaffold(server_lr=3.0).combine({"bn.running_var": torch.tensor([1.0])}, iter(updates))
    assert new["bn.running_var"].tolist() == [0.5]


def test_c_is_sent_to_the_client_half() -> None:
    strategy = Scaffold()
    assert dict(strategy.configure(1, {}, 0).tensors) == {"control": {}}
    strategy.combine({"w": torch.zeros(1)}, iter([_update(0, [1.0], [3.0])]))
    client_config = strategy.configure(2, {}, 0)
    assert Scaffold.client is ScaffoldClient
    assert client_config.tensors["control"]["w"].tolist() == [3.0]


def test_c_covers_only_what_clients_send() -> None:
    strategy = Scaffold()
    update = _update(0, [1.0], [3.0])
    with_buffer = ClientUpdate(
        client=0, position=0, examples=1, state=update.state | {"b": torch.ones(2)}, tensors=update.tensors
    )
    new = strategy.combine({"w": torch.zeros(1), "b": torch.zeros(2)}, iter([with_buffer]))
    assert set(strategy.control) == {"w"}
    assert new["b"].tolist() == [1.0, 1.0]


def test_a_client_without_control_is_named() -> None:
    update = ClientUpdate(client=7, position=0, examples=1, state={"w": torch.ones(1)})
    with pytest.raises(RunError, match="client 7 sent no 'control' tensors"):
        Scaffold().combine({"w": torch.zeros(1)}, iter([update]))


def test_server_lr_out_of_range() -> None:
    with pytest.raises(ValueError, match=r"server_lr must be > 0, not 0\.0"):
        Scaffold(server_lr=0.0)


class _Quadratics:
    """Four clients that disagree: client k's loss is 1/2 sum_d a_kd (w_d - t_kd)^2, all of one weight."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        self.curvatures = 0.2 + 4 * torch.rand(4, 3, generator=generator, dtype=torch.float64)
        self.targets = 3 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
        self.optimum = (self.curvatures * self.targets).sum(0) / self.curvatures.sum(0)

    def train(
        self, request: TrainRequest, algorithm: ClientAlgorithm, memory: State, momentum: float
    ) -> tuple[ClientUpdate, State]:
        parameter = nn.Parameter(request.state["w"].clone())
        optimizer = torch.optim.SGD([parameter], lr=0.05, momentum=momentum)
        algorithm.begin(nn.Module(), {"w": parameter}, request, memory)
        for _ in range(20):
            optimizer.zero_grad()
            offset = parameter - self.targets[request.client]
            (0.5 * self.curvatures[request.client] * offset**2).sum().backward()
            algorithm.after_backward()
            optimizer.step()
        tensors, memory_out = algorithm.finish(20, 0.05)
        state = {"w": parameter.detach().clone()}
        return ClientUpdate(
            client=request.client, position=0, examples=1, state=state, tensors=tensors
        ), memory_out

    def distance(self, strategy: RoundStrategy, rounds: int, momentum: float = 0.0) -> float:
        """Return how far from the optimum a federation ends."""
        state: State = {"w": torch.zeros(3, dtype=torch.float64)}
        memories: dict[int, State] = {}
        for round in range(1, rounds + 1):
            updates = []
            cohort = strategy.select(round, range(4), np.random.default_rng(round))
            for position, client in enumerate(cohort):
                client_config = strategy.configure(round, state, client)
                request = TrainRequest(round=round, client=client, state=state, client_config=client_config)
                update, memories[client] = self.train(
                    request, strategy.client(), memories.get(client, {}), momentum
                )
                updates.append(
                    ClientUpdate(
                        client=client,
                        position=position,
                        examples=1,
                        state=update.state,
                        tensors=update.tensors,
                    )
                )
            state = strategy.combine(state, iter(updates))
        return float((state["w"] - self.optimum).norm())


@pytest.mark.parametrize(
    ("build", "momentum", "rounds"),
    [
        (lambda: Scaffold(), 0.0, 20),
        (lambda: Scaffold(fraction=0.5), 0.0, 60),
        (lambda: Scaffold(), 0.5, 30),
    ],
)
@pytest.mark.slow
def test_scaffold_reaches_the_optimum_that_fedavg_misses(
    build: Callable[[], RoundStrategy], momentum: float, rounds: int
) -> None:
    federation = _Quadratics()
    assert federation.distance(FedAvg(), 10, momentum) > 0.3
    assert federation.distance(build(), rounds, momentum) < 1e-3


@pytest.mark.long
def test_scaffold_stands_high_momentum() -> None:
    # The paper's (x - y) / (steps * lr) is up to ten times the gradient here, and the model runs away.
    federation = _Quadratics()
    assert federation.distance(Scaffold(), 120, momentum=0.9) < 0.1
    assert federation.distance(FedAvg(), 10, momentum=0.9) > 0.15
