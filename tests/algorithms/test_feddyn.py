"""FedDyn: the formulas by hand, and the optimum that FedAvg misses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedvision.algorithms.base import RoundStrategy
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.feddyn import FedDyn, FedDynClient
from fedvision.errors import ClientError, ConfigError
from fedvision.experiment import Experiment
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.types import ClientConfig, ClientUpdate, State, TrainRequest
from tests.experiments import tiny


def _update(place: int, model: list[float], examples: int = 1) -> ClientUpdate:
    return ClientUpdate(client=place, position=place, examples=examples, state={"w": torch.tensor(model)})


def _request(state: State, alpha: float) -> TrainRequest:
    return TrainRequest(round=1, client=3, state=state, client_config=ClientConfig(numbers={"alpha": alpha}))


def test_the_server_by_hand() -> None:
    """Two of four clients: h = -1/2 * 3 = -1.5 and x = 4 + 1.5; then h = -1.5 - 1/4 * (-2.5) = -0.875."""
    strategy = FedDyn(fraction=0.5)
    assert len(strategy.select(1, range(4), np.random.default_rng(0))) == 2
    first = strategy.combine({"w": torch.tensor([1.0])}, iter([_update(0, [2.0], 100), _update(1, [6.0])]))
    assert first["w"].tolist() == [5.5]
    assert strategy.behind["w"].tolist() == [-1.5]
    second = strategy.combine(first, iter([_update(2, [3.0])]))
    assert strategy.behind["w"].tolist() == [-0.875]
    assert second["w"].tolist() == [3.875]


def test_statistics_are_averaged() -> None:
    update = ClientUpdate(client=0, position=0, examples=1, state={"bn.running_var": torch.tensor([0.5])})
    new = FedDyn().combine({"bn.running_var": torch.tensor([1.0])}, iter([update]))
    assert new["bn.running_var"].tolist() == [0.5]


def test_a_step_and_the_memory_by_hand() -> None:
    """The gradient is 3 - g 2 + alpha 0.5 (w 5 - x 1) = 3; then g = 2 - 0.5 (5 - 1) = 0."""
    parameter = nn.Parameter(torch.tensor([1.0]))
    algorithm = FedDynClient()
    request = _request({"w": torch.tensor([1.0])}, 0.5)
    algorithm.begin(nn.Module(), {"w": parameter}, request, {"w": torch.tensor([2.0])})
    with torch.no_grad():
        parameter.fill_(5.0)
    parameter.grad = torch.tensor([3.0])
    algorithm.after_backward()
    assert parameter.grad.tolist() == [3.0]
    tensors, memory = algorithm.finish(1, 0.1)
    assert tensors == {}
    assert memory["w"].tolist() == [0.0]
    assert not memory["w"].requires_grad


def test_the_first_step_is_fedavgs_to_the_bit() -> None:
    """Nothing is kept and nothing was moved: there is nothing to add."""
    parameter = nn.Parameter(torch.randn(5))
    state = {"w": parameter.detach().clone()}
    algorithm = FedDynClient()
    algorithm.begin(nn.Module(), {"w": parameter}, _request(state, 0.3), {})
    parameter.grad = gradient = torch.randn(5)
    before = gradient.clone()
    algorithm.after_backward()
    assert torch.equal(parameter.grad, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_memory_stays_when_the_model_is_lost(value: float) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    algorithm = FedDynClient()
    own = {"w": torch.tensor([1.0, 2.0])}
    algorithm.begin(nn.Module(), {"w": parameter}, _request({"w": torch.zeros(2)}, 0.5), own)
    with torch.no_grad():
        parameter[1] = value
    assert torch.equal(algorithm.finish(1, 0.1)[1]["w"], own["w"])


def test_alpha_is_needed_and_not_zero() -> None:
    with pytest.raises(ClientError, match="client 3, training: FedDyn got no number 'alpha'"):
        FedDynClient().begin(nn.Module(), {}, TrainRequest(round=1, client=3, state={}), {})
    with pytest.raises(ValueError, match=r"alpha must be > 0, not 0\.0"):
        FedDyn(alpha=0.0)


def _distance(strategy: RoundStrategy, rounds: int, decay: float = 0.0) -> float:
    """Return how far four clients end from the optimum of 1/2 sum a_kd (w_d - t_kd)^2 + decay/2 |w|^2."""
    generator = torch.Generator().manual_seed(5)
    curvatures = 0.2 + 4 * torch.rand(4, 3, generator=generator, dtype=torch.float64)
    targets = 3 * torch.randn(4, 3, generator=generator, dtype=torch.float64)
    optimum = (curvatures * targets).sum(0) / (curvatures + decay).sum(0)
    state: State = {"w": torch.zeros(3, dtype=torch.float64)}
    memories: dict[int, State] = {}
    for round in range(1, rounds + 1):
        updates = []
        for place, client in enumerate(strategy.select(round, range(4), np.random.default_rng(round))):
            parameter = nn.Parameter(state["w"].clone())
            request = TrainRequest(
                round=round,
                client=client,
                state=state,
                client_config=strategy.configure(round, state, client),
            )
            optimizer = torch.optim.SGD([parameter], lr=0.1, weight_decay=decay)
            algorithm: ClientAlgorithm = strategy.client()
            algorithm.begin(nn.Module(), {"w": parameter}, request, memories.get(client, {}))
            for _ in range(20):
                parameter.grad = (curvatures[client] * (parameter - targets[client])).detach()
                algorithm.after_backward()
                optimizer.step()
            _, memories[client] = algorithm.finish(20, 0.1)
            updates.append(
                ClientUpdate(client=client, position=place, examples=1, state={"w": parameter.detach()})
            )
        state = strategy.combine(state, iter(updates))
    return float((state["w"] - optimum).norm())


@pytest.mark.slow
@pytest.mark.parametrize(("fraction", "decay"), [(1.0, 0.0), (0.5, 0.0), (1.0, 0.5)])
def test_feddyn_reaches_the_optimum_that_fedavg_misses(fraction: float, decay: float) -> None:
    assert _distance(FedAvg(), 20, decay) > 0.2
    assert _distance(FedDyn(alpha=1.0, fraction=fraction), 120, decay) < 1e-3


@pytest.mark.parametrize(
    "training",
    [
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"optimizer": {"use": "adam", "decoupled_weight_decay": True}, "weight_decay": 0.1},
    ],
)
def test_decay_beside_the_gradients_is_refused(training: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"'feddyn' keeps gradients, .* set training\.weight_decay = 0"):
        Experiment.build(tiny(strategy={"use": "feddyn"}, training=training))
    allowed = {**training, "weight_decay": 0.0}
    Experiment.build(tiny(strategy={"use": "feddyn"}, training=allowed))
