"""Ditto: the personal model's steps by hand, and what is left of the global one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedvision import simulate
from fedvision.algorithms.ditto import Ditto, DittoClient
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedprox import FedProxClient
from fedvision.errors import ClientError, ConfigError
from fedvision.experiment import Experiment
from fedvision.models.state import get_state, shared_names
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.loop import TrainResult, fit
from fedvision.types import ClientConfig, State, TrainRequest
from tests.experiments import tiny
from tests.test_simulation import same
from tests.training.client_cases import Cohort, make_shards, network, noise, settings


def request(model: nn.Module, **numbers: float) -> TrainRequest:
    state = get_state(model, shared_names(model, "all"))
    return TrainRequest(round=2, client=3, state=state, client_config=ClientConfig(numbers=numbers))


def trained(
    model: nn.Module, algorithm: ClientAlgorithm, memory: State | None = None, k: int = 2, **options: Any
) -> TrainResult:
    numbers = {"lam": options.pop("lam", 0.7), "personal_epochs": options.pop("personal_epochs", 0)}
    return fit(
        model,
        make_shards()[k],
        request(model, mu=numbers["lam"], **numbers),
        loss=Cohort().build_loss(torch.ones(4)),
        algorithm=algorithm,
        settings=settings(**options),
        memory=memory,
    )


BATCH_NORM = {"use": "resnet8", "norm": "batch"}


@pytest.mark.parametrize("net", [{"use": "cnn", "dropout": 0.3}, BATCH_NORM])
def test_the_global_model_is_fedavgs_to_the_bit(net: dict[str, Any]) -> None:
    options = {"momentum": 0.9, "clip_norm": 1.0, "epochs": 2}
    memory = noise(request(network(**net)).state, 1)
    found = trained(network(**net), DittoClient(), memory, **options)
    wanted = trained(network(**net), ClientAlgorithm(), **options)
    assert same(found.state, wanted.state)
    assert (found.loss, found.examples, found.tensors) == (wanted.loss, wanted.examples, {})
    assert found.steps == 2 * wanted.steps


@pytest.mark.parametrize("net", [{"use": "cnn", "dropout": 0.3}, BATCH_NORM])
def test_without_a_pull_the_first_personal_model_is_the_trained_one(net: dict[str, Any]) -> None:
    """Both begin alike, see the same batches, and drop the same values."""
    found = trained(network(**net), DittoClient(), lam=0.0, momentum=0.9)
    assert same(found.memory, found.state)


def test_a_step_of_the_personal_model_by_hand() -> None:
    """V - lr (grad loss(v) + lam (v - x)), one step on all images of a client."""
    lam, lr, start = 0.7, 0.5, request(network()).state
    own = {name: tensor + noise(start, 4)[name] for name, tensor in start.items()}
    found = trained(network(), DittoClient(), own, k=0, lam=lam, lr=lr).memory
    twin, shard = network().train(), make_shards()[0]
    twin.load_state_dict(own, strict=False)
    x, labels = settings().forward.batch(shard, torch.arange(5).numpy())
    nn.functional.cross_entropy(twin(x), labels).backward()
    for name, p in twin.named_parameters():
        expected = own[name] - lr * (p.grad + lam * (own[name] - start[name]))
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)


def test_the_first_personal_model_is_fedproxs() -> None:
    """The model of a client without one begins as the global model, to which FedProx pulls as well."""
    found = trained(network(), DittoClient(), lam=0.3, momentum=0.9, epochs=2)
    wanted = trained(network(), FedProxClient(), lam=0.3, momentum=0.9, epochs=2)
    assert same(found.memory, wanted.state)


def test_a_stronger_pull_keeps_the_personal_model_nearer() -> None:
    start, distances = request(network()).state, []
    for lam in (0.0, 1.0, 5.0):
        own = trained(network(), DittoClient(), lam=lam, epochs=5).memory
        distances.append(sum(float((own[name] - start[name]).square().sum()) for name in start))
    assert distances[0] > distances[1] > distances[2] > 0


def test_personal_epochs_are_counted_apart() -> None:
    found = trained(network(), DittoClient(), personal_epochs=3)
    assert found.steps == 3 + 3 * 3
    assert trained(network(), DittoClient(), steps=4).steps == 8


def test_each_round_goes_on_from_the_personal_model() -> None:
    first = trained(network(), DittoClient(), lam=0.0).memory
    second = trained(network(), DittoClient(), first, lam=0.0)
    alone = network()
    alone.load_state_dict(first, strict=False)
    wanted = trained(alone, ClientAlgorithm())
    assert same(second.memory, wanted.state)


def test_a_lost_personal_model_is_not_kept_and_spoils_no_global_one() -> None:
    lost = {name: torch.full_like(tensor, torch.inf) for name, tensor in request(network()).state.items()}
    found = trained(network(), DittoClient(), lost)
    assert found.memory is lost
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.state.values())


def test_what_is_kept_is_the_clients_own() -> None:
    model = network()
    kept = trained(model, DittoClient()).memory
    before = {name: tensor.clone() for name, tensor in kept.items()}
    trained(model, DittoClient(), kept)
    assert same(kept, before)
    assert DittoClient.personal_state({"a": torch.ones(1)}, {"a": torch.zeros(1), "b": torch.zeros(1)}) == {
        "a": torch.ones(1),
        "b": torch.zeros(1),
    }


@pytest.mark.parametrize("missing", ["lam", "personal_epochs"])
def test_both_numbers_are_needed(missing: str) -> None:
    numbers = {"lam": 1.0, "personal_epochs": 0.0}
    del numbers[missing]
    model = network()
    with pytest.raises(ClientError, match=f"client 3, training: Ditto got no number '{missing}'"):
        DittoClient().begin(model, dict(model.named_parameters()), request(model, **numbers), {})


def test_the_server_is_fedavgs_and_sends_the_numbers() -> None:
    assert Ditto.combine is FedAvg.combine
    assert Ditto.finalize is FedAvg.finalize
    sent = Ditto(lam=0.5, personal_epochs=2).configure(1, {}, 0)
    assert dict(sent.numbers) == {"lam": 0.5, "personal_epochs": 2}


@pytest.mark.parametrize("strategy", ["ditto", "apfl"])
@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"personal": ["head.*"]}, r"and model\.personal keeps 'head\.weight' of both on the clients"),
        (
            {"use": "resnet8", "norm": "batch", "shared": "no-batch-norm-statistics"},
            r"model\.shared = 'no-batch-norm-statistics' keeps '.*running_mean' of both",
        ),
    ],
)
def test_tensors_that_stay_beside_a_whole_personal_model_are_refused(
    strategy: str, model: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(
        ConfigError, match=f"use = '{strategy}' has each client keep a whole model .*{sentence}"
    ):
        Experiment.build(tiny(strategy={"use": strategy}, model={"use": "cnn", "width": 4, **model}))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ditto", "apfl"])
def test_the_global_model_of_a_run_is_fedavgs_to_the_bit(strategy: str) -> None:
    tables = {"rounds": 2, "model": {"use": "cnn", "width": 4, "dropout": 0.3}}
    own, other = (simulate(tiny(strategy={"use": use}, **tables)) for use in (strategy, "fedavg"))
    assert same(own.state, other.state)
    assert [one["train_loss"] for one in own.rounds] == [one["train_loss"] for one in other.rounds]
