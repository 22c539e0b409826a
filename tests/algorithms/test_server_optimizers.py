"""Server optimisers against formulas written down again in NumPy, and against Flower's where they map."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedvision.algorithms.base import RoundStrategy
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.server_optimizers import FedAdagrad, FedAdam, FedAvgM, FedYogi
from fedvision.types import ClientUpdate

State = dict[str, torch.Tensor]
Cohort = Callable[[State, int], list[ClientUpdate]]
Array = NDArray[np.float64]

LEARNED = ("conv.weight", "scale")


def _update(values: list[float], examples: int = 1, position: int = 0) -> ClientUpdate:
    state = {"w": torch.tensor(values, dtype=torch.float64)}
    return ClientUpdate(client=position, position=position, examples=examples, state=state)


def _rounds(strategy: RoundStrategy, start: list[float], ends: list[list[float]]) -> list[list[float]]:
    """Let one client answer each round with old + end, and return the models."""
    state = {"w": torch.tensor(start, dtype=torch.float64)}
    models = []
    for change in ends:
        moved = (state["w"] + torch.tensor(change, dtype=torch.float64)).tolist()
        state = strategy.combine(state, iter([_update(moved)]))
        models.append(state["w"].tolist())
    return models


def test_fedavgm_by_hand() -> None:
    first, second = _rounds(FedAvgM(server_lr=0.5, momentum=0.9), [0.0, 1.0], [[2.0, 0.0], [0.0, -1.0]])
    assert first == pytest.approx([1.0, 1.0])  # m = [2, 0]
    assert second == pytest.approx([1.0 + 0.5 * 1.8, 1.0 - 0.5])  # m = [1.8, -1]


def test_fedadam_by_hand() -> None:
    strategy = FedAdam(server_lr=0.1, beta1=0.5, beta2=0.75, tau=0.1)
    (first,) = _rounds(strategy, [0.0], [[2.0]])
    # m = 1, v = 0.75 * 0.01 + 0.25 * 4 = 1.0075
    assert first == pytest.approx([0.1 * 1 / (math.sqrt(1.0075) + 0.1)])


def test_fedyogi_takes_a_bounded_step_down_in_v() -> None:
    strategy = FedYogi(server_lr=0.1, beta1=0.0, beta2=0.5, tau=2.0)
    _rounds(strategy, [0.0], [[1.0]])
    # v = 4 - 0.5 * 1 * sign(4 - 1) = 3.5, where Adam's would be 2.5.
    assert strategy.second_moment["w"].tolist() == [3.5]
    _rounds(strategy, [0.0], [[10.0]])
    assert strategy.second_moment["w"].tolist() == [3.5 + 0.5 * 100]


def test_fedadagrad_by_hand() -> None:
    strategy = FedAdagrad(server_lr=0.1, tau=1.0)
    first, second = _rounds(strategy, [0.0], [[2.0], [2.0]])
    assert first == pytest.approx([0.1 * 2 / (math.sqrt(5) + 1)])
    assert second == pytest.approx([first[0] + 0.1 * 2 / (3 + 1)])


def _reference(
    kind: str, x: Array, changes: list[Array], lr: float, b1: float, b2: float, tau: float
) -> Array:
    """Algorithm 2 of arXiv 2003.00295, element by element in plain Python numbers."""
    out = x.astype(np.float64).copy()
    for index in np.ndindex(x.shape):
        m, v, value = 0.0, tau * tau, float(x[index])
        for change in changes:
            d = float(change[index])
            m = b1 * m + (1 - b1) * d
            if kind == "adagrad":
                v = v + d * d
            elif kind == "adam":
                v = b2 * v + (1 - b2) * d * d
            else:
                v = v - (1 - b2) * d * d * float(np.sign(v - d * d))
            value += lr * m / (math.sqrt(v) + tau)
        out[index] = value
    return out


@pytest.mark.parametrize("kind", ["adagrad", "adam", "yogi"])
def test_three_rounds_of_unequal_clients_against_the_paper(kind: str, start: State, cohort: Cohort) -> None:
    lr, b1, b2, tau = 0.03, 0.8, 0.9, 0.02
    strategy: RoundStrategy = {
        "adagrad": lambda: FedAdagrad(server_lr=lr, beta1=b1, tau=tau),
        "adam": lambda: FedAdam(server_lr=lr, beta1=b1, beta2=b2, tau=tau),
        "yogi": lambda: FedYogi(server_lr=lr, beta1=b1, beta2=b2, tau=tau),
    }[kind]()
    state, changes = start, {name: [] for name in LEARNED}
    for round in (1, 2, 3):
        updates = cohort(state, round)
        counts = np.array([update.examples for update in updates], dtype=np.float64)
        for name in LEARNED:
            ends = np.stack([update.state[name].double().numpy() for update in updates])
            mean = np.tensordot(counts / counts.sum(), ends, axes=1)
            changes[name].append(mean - state[name].double().numpy())
        state = strategy.combine(state, iter(updates))
    for name in LEARNED:
        expected = _reference(kind, start[name].double().numpy(), changes[name], lr, b1, b2, tau)
        np.testing.assert_allclose(state[name].numpy(), expected, rtol=0, atol=2e-6)


def _agree(ours: RoundStrategy, stock: Any, start: State, cohort: Cohort, play: Callable[..., State]) -> None:
    state = start
    for round in (1, 2, 3):
        updates = cohort(state, round)
        theirs = play(stock, round, state, updates)
        state = ours.combine(state, iter(updates))
        for name in LEARNED:
            torch.testing.assert_close(state[name], theirs[name].float(), rtol=1e-5, atol=1e-6)


def test_fedavgm_agrees_with_flowers(start: State, cohort: Cohort, stock_round: Callable[..., State]) -> None:
    from flwr.serverapp.strategy import FedAvgM as Stock

    learned = {name: start[name] for name in LEARNED}
    stock = Stock(fraction_train=0.0, server_learning_rate=0.7, server_momentum=0.9)
    _agree(FedAvgM(server_lr=0.7, momentum=0.9), stock, learned, cohort, stock_round)


@pytest.mark.parametrize("kind", ["FedAdam", "FedYogi", "FedAdagrad"])
def test_adaptive_ones_agree_with_flowers_from_the_same_second_moment(
    kind: str, start: State, cohort: Cohort, stock_round: Callable[..., State]
) -> None:
    import flwr.serverapp.strategy as flower

    learned = {name: start[name] for name in LEARNED}
    lr, tau = 0.05, 1e-2
    betas = {} if kind == "FedAdagrad" else {"beta_1": 0.9, "beta_2": 0.99}
    stock = getattr(flower, kind)(fraction_train=0.0, eta=lr, tau=tau, **betas)
    # Flower begins at 0; begin where the paper does.
    stock.v_t = {name: np.full(tuple(value.shape), tau**2, np.float32) for name, value in learned.items()}
    ours: RoundStrategy = {"FedAdam": FedAdam, "FedYogi": FedYogi, "FedAdagrad": FedAdagrad}[kind](
        server_lr=lr, tau=tau
    )
    if kind == "FedAdam":
        stock = _without_bias_correction(stock, lr)
    _agree(ours, stock, learned, cohort, stock_round)


def _without_bias_correction(stock: Any, lr: float) -> Any:
    """Undo Flower's factor sqrt(1 - beta_2^(t + 1)) / (1 - beta_1^(t + 1)) in round t."""
    corrected = stock.aggregate_train

    def aggregate_train(round: int, replies: Any) -> Any:
        stock.eta = lr * (1 - 0.9 ** (round + 1)) / math.sqrt(1 - 0.99 ** (round + 1))
        return corrected(round, replies)

    stock.aggregate_train = aggregate_train
    return stock


def test_statistics_are_averaged_and_never_optimised(start: State, cohort: Cohort) -> None:
    # A step far past the mean would make this variance negative.
    updates = cohort(start, 1)
    shrunk = [
        ClientUpdate(
            client=u.client,
            position=u.position,
            examples=u.examples,
            state=u.state | {"bn.running_var": small},
        )
        for u in updates
        for small in [torch.full((3,), 0.01)]
    ]
    mean = FedAvg().combine(start, iter(shrunk))
    for strategy in (
        FedAvgM(server_lr=3.0),
        FedAdam(server_lr=5.0),
        FedYogi(server_lr=5.0),
        FedAdagrad(server_lr=5.0),
    ):
        new = strategy.combine(start, iter(shrunk))
        assert torch.equal(new["bn.running_var"], mean["bn.running_var"])
        assert torch.equal(new["bn.running_mean"], mean["bn.running_mean"])
        assert not torch.allclose(new["conv.weight"], mean["conv.weight"])
        assert "bn.running_var" not in getattr(
            strategy, "first_moment", strategy.__dict__.get("direction", {})
        )


def test_fedavgm_without_momentum_is_fedavg(start: State, cohort: Cohort) -> None:
    updates = cohort(start, 1)
    plain, ours = FedAvg().combine(start, iter(updates)), FedAvgM(momentum=0.0).combine(start, iter(updates))
    for name in start:
        torch.testing.assert_close(ours[name], plain[name], rtol=1e-6, atol=1e-6)


def test_moments_of_halves_are_float32() -> None:
    strategy = FedAdam()
    old, new = torch.ones(2, dtype=torch.bfloat16), torch.full((2,), 1.5, dtype=torch.bfloat16)
    combined = strategy.combine(
        {"w": old}, iter([ClientUpdate(client=0, position=0, examples=1, state={"w": new})])
    )
    assert combined["w"].dtype == torch.bfloat16
    assert strategy.first_moment["w"].dtype == strategy.second_moment["w"].dtype == torch.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FedAvgM(server_lr=0.0), "server_lr must be > 0, not 0.0"),
        (lambda: FedAvgM(momentum=1.0), "momentum must be >= 0 and < 1, not 1.0"),
        (lambda: FedAdam(beta1=-0.1), "beta1 must be >= 0 and < 1, not -0.1"),
        (lambda: FedYogi(beta2=1.0), "beta2 must be >= 0 and < 1, not 1.0"),
        (lambda: FedAdagrad(tau=0.0), "tau must be > 0, not 0.0"),
        (lambda: FedAdagrad(server_lr=-1.0), "server_lr must be > 0, not -1.0"),
    ],
)
def test_arguments_out_of_range(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
