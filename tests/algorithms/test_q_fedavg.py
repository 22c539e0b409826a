"""q-FedAvg: the paper's sums by hand, the plain mean at q = 0, and the loss that clients send."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedvision import registry, simulate
from fedvision.algorithms.q_fedavg import QFedAvg, QFedAvgClient
from fedvision.data.partition.client_shards import ClientShards
from fedvision.errors import ClientError, RunError
from fedvision.experiment import Experiment
from fedvision.models.parameter_groups import ParameterGroups
from fedvision.models.state import get_state, load_state
from fedvision.training.client_state import ClientStateStore
from fedvision.training.client_trainer import ClientTrainer
from fedvision.types import ClientUpdate, State, TrainRequest
from tests.double import doubled
from tests.experiments import tiny


def update(values: list[float], loss: float, rate: float = 0.1, place: int = 0) -> ClientUpdate:
    numbers = {"loss": loss, "rate": rate}
    return ClientUpdate(
        client=place,
        position=place,
        examples=1 + 10 * place,
        state={"w": torch.tensor(values), "bn.running_mean": torch.tensor(values)},
        tensors={"fairness": {n: torch.tensor(v, dtype=torch.float64) for n, v in numbers.items()}},
    )


START: State = {"w": torch.tensor([1.0, -1.0]), "bn.running_mean": torch.tensor([1.0, -1.0])}


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("lipschitz", [0.0, 3.0])
def test_the_step_is_the_papers(q: float, lipschitz: float) -> None:
    """W - sum_k D_k / sum_k h_k, written as in Algorithm 2."""
    models, losses = [[1.5, -1.0], [0.5, -0.2], [1.0, -1.4]], [0.3, 2.0, 0.9]
    step, total = np.zeros(2), 0.0
    for model, loss in zip(models, losses, strict=True):
        inverse = lipschitz or 1 / 0.1
        change = inverse * (np.array([1.0, -1.0]) - np.array(model))
        step += loss**q * change
        total += q * loss ** (q - 1) * float(change @ change) + inverse * loss**q
    updates = [update(m, f, place=k) for k, (m, f) in enumerate(zip(models, losses, strict=True))]
    new = QFedAvg(q=q, lipschitz=lipschitz).combine(START, iter(updates))
    assert new["w"].tolist() == pytest.approx((np.array([1.0, -1.0]) - step / total).tolist(), rel=1e-6)
    weights = np.array(losses) ** q
    mean = (weights[:, None] * np.array(models)).sum(0) / weights.sum()
    assert new["bn.running_mean"].tolist() == pytest.approx(mean.tolist(), rel=1e-6)


def test_q_0_is_the_plain_mean_whatever_the_losses_and_sizes() -> None:
    updates = [update([float(k), 2.0 * k], loss, place=k) for k, loss in enumerate([0.0, 1e9, 3.0, 0.1])]
    new = QFedAvg(q=0).combine(START, iter(updates))
    assert new["w"].tolist() == [1.5, 3.0]


def test_a_larger_q_follows_the_client_that_is_worst() -> None:
    found = [
        float(
            QFedAvg(q=q, lipschitz=1e-9).combine(
                START, iter([update([0.0, 0.0], 0.5), update([1.0, 1.0], 2.0)])
            )["w"][0]
        )
        for q in (0.0, 1.0, 4.0)
    ]
    assert found == pytest.approx([0.5, 0.8, 256 / 257], rel=1e-5)


@given(
    losses=st.lists(st.sampled_from([0.0, 1e-12, 1e-3, 1.0, 50.0, 1e12]), min_size=1, max_size=5),
    q=st.sampled_from([0.0, 1e-3, 0.5, 1.0, 5.0, 20.0]),
)
def test_no_loss_makes_a_model_infinite(losses: list[float], q: float) -> None:
    """Between the old model and the farthest of the clients', in any order of losses."""
    updates = [update([2.0 + k, -2.0 - k], loss, place=k) for k, loss in enumerate(losses)]
    new = QFedAvg(q=q).combine(START, iter(updates))["w"]
    assert bool(torch.isfinite(new).all())
    assert 1.0 - 1e-6 <= float(new[0]) <= 2.0 + len(losses)


def test_the_order_of_losses_changes_the_rounding_alone() -> None:
    losses = [1e-8, 3.0, 1e4, 0.2]
    models = [[float(k), -float(k)] for k in range(4)]
    orders = ([0, 1, 2, 3], [2, 3, 0, 1], [3, 2, 1, 0])
    found = [
        QFedAvg(q=2.0).combine(START, iter([update(models[k], losses[k]) for k in order])) for order in orders
    ]
    for other in found[1:]:
        torch.testing.assert_close(other["w"], found[0]["w"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"fairness": {"loss": torch.tensor(1.0)}},
        {"fairness": {"loss": torch.tensor(-1.0), "rate": torch.tensor(0.1)}},
        {"fairness": {"loss": torch.tensor(1.0), "rate": torch.tensor(0.0)}},
        {"fairness": {"loss": torch.ones(2), "rate": torch.tensor(0.1)}},
    ],
)
def test_an_update_without_such_numbers_is_refused(tensors: dict[str, State]) -> None:
    one = ClientUpdate(client=4, position=0, examples=1, state=START, tensors=tensors)
    with pytest.raises(RunError, match="client 4 sent no loss >= 0 and learning rate > 0"):
        QFedAvg().combine(START, iter([one]))


@pytest.mark.parametrize(("loss", "found"), [(None, "no loss"), (-0.5, "the loss -0.5")])
def test_the_client_needs_a_loss(loss: float | None, found: str) -> None:
    model = nn.Linear(1, 1)
    task = TrainRequest(round=1, client=3, state={}, own_loss=loss)
    with pytest.raises(ClientError, match=f"client 3, training: .* of the received model, and got {found}"):
        QFedAvgClient().begin(model, dict(model.named_parameters()), task, {})


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"model": {"use": "cnn", "width": 4, "dropout": 0.5}, "transforms": {"flip": True, "rotation": 20.0}},
        {"loss": {"use": "logit-adjusted", "prior": "local"}},
    ],
)
def test_the_loss_is_that_of_the_received_model_on_all_training_images(
    tables: dict[str, Any], tmp_path: Any
) -> None:
    config = tiny(strategy={"use": "q-fedavg"}, training={"lr": 0.1, "batch_size": 7}, **tables)
    experiment = Experiment.build(config)
    shards = ClientShards(experiment.dataset.train, experiment.split)
    trainer = ClientTrainer.open(config, experiment.model, 10, shards, ClientStateStore(tmp_path, 1))
    state = get_state(experiment.model, ParameterGroups.of(experiment.model, config.model).shared)
    task = TrainRequest(round=1, client=2, state=state, algorithm="q-fedavg")
    sent = trainer.train(task).tensors["fairness"]
    model, shard = experiment.model.eval(), shards.train(2)
    load_state(model, state)
    x = (torch.from_numpy(shard.images[shard.indices]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    counts = torch.from_numpy(shard.counts(10))
    assert int((counts == 0).sum()) > 0, "the client has all classes"
    loss = registry.build("loss", config.loss, counts=counts, round=1, rounds=3)
    with torch.no_grad():
        expected = float(loss(model(x), torch.from_numpy(shard.labels[shard.indices])).mean())
    assert float(sent["loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(sent["rate"]) == 0.1


def test_the_loss_is_measured_with_the_clients_own_head(tmp_path: Any) -> None:
    """Round 2 of a client that keeps its head: the loss with the first head would be another one."""
    tables = {"strategy": {"use": "q-fedavg"}, "model": {"use": "cnn", "width": 4, "personal": ["head.*"]}}
    config = tiny(rounds=2, **tables)
    found = {}
    for engine in ("serial", "vectorized"):
        found[engine] = simulate(doubled(config), engine=engine, out=tmp_path / engine)
    for name, tensor in found["serial"].state.items():
        torch.testing.assert_close(found["vectorized"].state[name], tensor, rtol=1e-7, atol=1e-7)
    experiment = Experiment.build(config)
    shards = ClientShards(experiment.dataset.train, experiment.split)
    trainer = ClientTrainer.open(config, experiment.model, 10, shards, ClientStateStore(tmp_path / "own", 1))
    state = get_state(experiment.model, ParameterGroups.of(experiment.model, config.model).shared)
    losses = []
    for round in (1, 2):
        task = TrainRequest(round=round, client=2, state=state, algorithm="q-fedavg")
        losses.append(float(trainer.train(task).tensors["fairness"]["loss"]))
    assert losses[1] < losses[0]
