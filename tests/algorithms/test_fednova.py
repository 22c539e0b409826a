"""FedNova: the norms against the gradients' factors, the server by hand, the optimum that FedAvg misses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fednova import FedNova, FedNovaClient, steps_norm
from fedvision.algorithms.mean import MeanStrategy
from fedvision.errors import ConfigError, RunError
from fedvision.experiment import Experiment
from fedvision.training.sgd import SGD
from fedvision.types import ClientConfig, ClientUpdate, State, TrainRequest
from tests.experiments import tiny


def _update(place: int, model: list[float], examples: int, norm: float, **more: torch.Tensor) -> ClientUpdate:
    return ClientUpdate(
        client=place,
        position=place,
        examples=examples,
        state={"w": torch.tensor(model), **more},
        tensors={"steps": {"norm": torch.tensor(norm, dtype=torch.float64)}},
    )


def _trained(mu: float, momentum: float, lr: float, gradients: list[float]) -> tuple[float, float]:
    """Return how far a client goes on given gradients, and its ||a||_1."""
    parameter = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    numbers = {"mu": mu, "momentum": momentum}
    request = TrainRequest(
        round=1, client=0, state={"w": torch.zeros(1)}, client_config=ClientConfig(numbers=numbers)
    )
    algorithm = FedNovaClient()
    algorithm.begin(nn.Module(), {"w": parameter}, request, {})
    optimizer = SGD([parameter], lr=lr, momentum=momentum)
    for gradient in gradients:
        parameter.grad = torch.full_like(parameter, gradient)
        algorithm.after_backward()
        optimizer.step()
    tensors, memory = algorithm.finish(len(gradients), lr)
    assert memory == {}
    return parameter.item(), float(tensors["steps"]["norm"])


@pytest.mark.parametrize(("mu", "momentum"), [(0.0, 0.0), (0.0, 0.5), (0.0, 0.9), (0.7, 0.0), (10.0, 0.0)])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_norm_is_how_far_equal_gradients_carry(mu: float, momentum: float, steps: int) -> None:
    """With gradients of 1 the change is minus lr times the sum of their factors."""
    moved, norm = _trained(mu, momentum, 0.1, [1.0] * steps)
    assert norm == pytest.approx(-moved / 0.1, rel=1e-12)
    assert norm >= 1


def test_norms_by_hand() -> None:
    assert steps_norm(5) == 5.0
    assert steps_norm(2, momentum=0.5) == pytest.approx(1.0 + 1.5)
    assert steps_norm(3, alpha=0.25) == pytest.approx(1 + 0.75 + 0.75**2)
    assert steps_norm(9, alpha=1.0) == 1.0
    assert steps_norm(1000, alpha=1e-12) == pytest.approx(1000, rel=1e-8)


def test_the_mean_of_normalised_changes_by_hand() -> None:
    """With p = (1/4, 3/4), norms 2 and 4: d = -1/4 * 4/2 + 3/4 * 8/4 = 1, tau_eff = 1/2 + 3 = 3.5."""
    updates = [_update(0, [10.0 - 4.0], 10, 2.0), _update(1, [10.0 + 8.0], 30, 4.0)]
    new = FedNova().combine({"w": torch.tensor([10.0])}, iter(updates))
    assert new["w"].tolist() == pytest.approx([10.0 + 3.5], rel=1e-6)


def test_equal_steps_are_fedavg_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(1)
    state = {"w": torch.randn(50, generator=generator)}
    # Whole multiples of 2^-8, whose sums round nowhere whatever the weights' common factor.
    models = [(torch.randn(50, generator=generator) * 256).round() / 256 for _ in range(4)]
    for norm in (1.0, 4.0):
        updates = [
            ClientUpdate(
                client=k,
                position=k,
                examples=8 * (k + 1),
                state={"w": model},
                tensors={"steps": {"norm": torch.tensor(norm, dtype=torch.float64)}},
            )
            for k, model in enumerate(models)
        ]
        own, other = FedNova().combine(state, iter(updates)), FedAvg().combine(state, iter(updates))
        assert torch.equal(own["w"], other["w"])


def test_statistics_are_averaged_by_images() -> None:
    statistics = {"bn.running_var": torch.tensor([1.0])}
    updates = [
        _update(0, [1.0], 10, 1.0, **{"bn.running_var": torch.tensor([2.0])}),
        _update(1, [1.0], 30, 9.0, **{"bn.running_var": torch.tensor([6.0])}),
    ]
    new = FedNova().combine({"w": torch.tensor([0.0]), **statistics}, iter(updates))
    assert new["bn.running_var"].tolist() == [5.0]
    assert list(new) == ["w", "bn.running_var"]


def _distance(strategy: MeanStrategy, momentum: float = 0.0) -> float:
    """Return how far from the optimum two quadratics of one curvature end, 2 and 20 steps a round."""
    state: State = {"w": torch.zeros(1, dtype=torch.float64)}
    for round in range(1, 200):
        updates = []
        for client, (target, steps) in enumerate(((-1.0, 2), (1.0, 20))):
            parameter = nn.Parameter(state["w"].clone())
            numbers = {"mu": 0.0, "momentum": momentum}
            request = TrainRequest(
                round=round, client=client, state=state, client_config=ClientConfig(numbers=numbers)
            )
            algorithm = FedNovaClient()
            algorithm.begin(nn.Module(), {"w": parameter}, request, {})
            optimizer = SGD([parameter], lr=0.001, momentum=momentum)
            for _ in range(steps):
                parameter.grad = (parameter - target).detach()
                algorithm.after_backward()
                optimizer.step()
            tensors, _ = algorithm.finish(steps, 0.001)
            updates.append(
                ClientUpdate(
                    client=client,
                    position=client,
                    examples=5,
                    state={"w": parameter.detach()},
                    tensors=tensors,
                )
            )
        state = strategy.combine(state, iter(updates))
    return abs(float(state["w"]))


@pytest.mark.slow
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_fednova_reaches_the_optimum_that_fedavg_misses(momentum: float) -> None:
    """FedAvg goes to where the client with more steps wants it; both weigh the same."""
    assert _distance(FedAvg(), momentum) > 0.5
    assert _distance(FedNova(), momentum) < 0.02


@pytest.mark.parametrize("norm", [0.0, 0.5, -3.0, float("nan"), float("inf"), 2.0**50])
def test_a_norm_that_is_none_is_named(norm: float) -> None:
    with pytest.raises(RunError, match="client 7 sent no number 'norm' >= 1 of its local steps"):
        FedNova().contribute({}, _update(7, [1.0], 3, norm))
    with pytest.raises(RunError, match="client 7 sent no number"):
        FedNova().contribute({}, ClientUpdate(client=7, position=0, examples=1, state={}))


@pytest.mark.parametrize(
    ("strategy", "training", "sentence"),
    [
        ({}, {"optimizer": "adam"}, r"set training\.optimizer = 'sgd'"),
        ({}, {"momentum": 0.9, "optimizer": {"use": "sgd", "nesterov": True}}, "without nesterov"),
        ({"mu": 0.1}, {"momentum": 0.9}, "of momentum and of a proximal term, not of both"),
        ({"mu": 20.0}, {"lr": 0.1}, r"strategy\.mu \* training\.lr <= 1, not 2"),
    ],
)
def test_what_has_no_formula_is_refused(
    strategy: dict[str, Any], training: dict[str, Any], sentence: str
) -> None:
    tables = {"strategy": {"use": "fednova", **strategy}, "training": {"batch_size": 32, **training}}
    with pytest.raises(ConfigError, match=sentence):
        Experiment.build(tiny(**tables))


def test_the_momentum_is_sent() -> None:
    experiment = Experiment.build(tiny(strategy={"use": "fednova"}, training={"momentum": 0.9}))
    strategy = experiment.strategy.inner
    assert dict(strategy.configure(1, {}, 0).numbers) == {"mu": 0.0, "momentum": 0.9}
