"""FedAvg by support: rows by hand, what it has in common with FedAvg, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedvision import simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedavg_support import FedAvgSupport, SupportClient
from fedvision.deployment.client.config import ClientMachineConfig
from fedvision.errors import ClientError, ConfigError, RunError
from fedvision.experiment import Experiment
from fedvision.models.base import ImageModel
from fedvision.types import ClientUpdate, State, TrainRequest
from tests.experiments import tiny


def _update(place: int, state: State, counts: list[float], examples: int | None = None) -> ClientUpdate:
    return ClientUpdate(
        client=place,
        position=place,
        examples=int(sum(counts)) if examples is None else examples,
        state=state,
        tensors={"support": {"counts": torch.tensor(counts, dtype=torch.float64)}},
    )


def _state(base: float, rows: list[list[float]], bias: list[float]) -> State:
    return {
        "backbone.w": torch.tensor([base]),
        "head.weight": torch.tensor(rows),
        "head.bias": torch.tensor(bias),
    }


def test_rows_by_hand() -> None:
    """Class 0 is of the first client alone, class 1 of both (1 and 3 images), class 2 of none."""
    old = _state(0.0, [[9.0], [9.0], [9.0]], [8.0, 8.0, 8.0])
    updates = [
        _update(0, _state(1.0, [[2.0], [4.0], [5.0]], [1.0, 2.0, 3.0]), [3.0, 1.0, 0.0]),
        _update(1, _state(5.0, [[-7.0], [8.0], [6.0]], [-7.0, 6.0, 3.0]), [0.0, 3.0, 0.0]),
    ]
    new = FedAvgSupport().combine(old, iter(updates))
    assert list(new) == list(old)
    assert new["head.weight"].tolist() == [[2.0], [7.0], [9.0]]
    assert new["head.bias"].tolist() == [1.0, 5.0, 8.0]
    assert new["backbone.w"].tolist() == pytest.approx([(4 * 1.0 + 3 * 5.0) / 7], rel=1e-6)


def test_clients_of_one_mixture_are_fedavg_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(2)
    # Whole multiples of 2^-8, so that no sum rounds.
    models = [{"head.weight": (torch.randn(2, 5, generator=generator) * 256).round() / 256} for _ in range(4)]
    updates = [_update(k, model, [6.0 * 2**k, 2.0 * 2**k]) for k, model in enumerate(models)]
    own, other = (one.combine(models[0], iter(updates)) for one in (FedAvgSupport(), FedAvg()))
    assert torch.equal(own["head.weight"], other["head.weight"])


@pytest.mark.parametrize(
    "counts", [[3.0, 1.0], [-1.0, 3.0, 1.0], [float("nan"), 1.0, 1.0], [9.0, 0.0, 0.0], [[1.0], [1.0], [1.0]]]
)
def test_counts_that_do_not_fit_are_named(counts: Any) -> None:
    state = _state(0.0, [[1.0]] * 3, [0.0] * 3)
    sentence = "client 7 sent no class counts that fit its 5 images"
    with pytest.raises(RunError, match=sentence):
        FedAvgSupport().contribute(state, _update(7, state, counts, 5))
    with pytest.raises(RunError, match=sentence):
        FedAvgSupport().contribute(state, ClientUpdate(client=7, position=0, examples=5, state=state))


def test_a_client_sends_its_counts() -> None:
    model = ImageModel(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    half = SupportClient()
    request = TrainRequest(round=1, client=0, state=dict(model.state_dict()), own_counts=(4, 0, 2))
    half.begin(model, {}, request, {})
    tensors, memory = half.finish(1, 0.1)
    assert tensors["support"]["counts"].tolist() == [4.0, 0.0, 2.0]
    assert memory == {}
    with pytest.raises(ClientError, match="client 0, training: 'fedavg-support' got no class counts"):
        half.begin(model, {}, TrainRequest(round=1, client=0, state={}), {})


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"use": "tests.algorithms.test_moon:plain"}, "needs a network of backbone and head"),
        (
            {"use": "cnn", "width": 4, "personal": ["head.bias"]},
            r"'head\.bias' stays on the clients; use 'fedper'",
        ),
    ],
)
def test_heads_without_shared_rows_are_refused(model: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Experiment.build(tiny(strategy={"use": "fedavg-support"}, model=model))


def test_a_head_alone_is_trained() -> None:
    """All else is frozen and does not travel."""
    result = simulate(
        tiny(
            rounds=2,
            strategy={"use": "fedavg-support"},
            model={"use": "cnn", "width": 4, "dense": 8, "train": "head"},
        )
    )
    assert result.rounds[-1]["train_loss"] < result.rounds[0]["train_loss"]


@pytest.mark.parametrize("half", ["fedavg-support", "q-fedavg"])
@pytest.mark.parametrize("counts", ["none", "noisy", "masked", "plain"])
def test_an_owner_who_does_not_share_counts_takes_no_part(counts: str, half: str) -> None:
    share = {"counts": counts, "certificate": "client.crt", "authority": "ca.crt"}
    tables = {
        "name": "one",
        "superlink": {"address": "127.0.0.1:1", "insecure": True, "key": "client.key"},
        "data": {"use": "digits"},
        "share": share if counts == "masked" else {"counts": counts},
    }
    client = ClientMachineConfig.from_dict(tables)
    client.permit_algorithm("fedvls", ())
    if counts == "plain":
        client.permit_algorithm(half, ())
        return
    with pytest.raises(ConfigError, match=rf"'{half}' .* share\.counts is '{counts}'; set it to"):
        client.permit_algorithm(half, ())
