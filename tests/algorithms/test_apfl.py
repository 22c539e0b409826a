"""APFL: steps of v and alpha by hand, the personal model, and both ends of alpha."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fedvision.algorithms.apfl import APFL, APFLClient
from fedvision.algorithms.fedavg import FedAvg
from fedvision.errors import ClientError, ConfigError
from fedvision.experiment import Experiment
from fedvision.training.client_algorithm import ClientAlgorithm
from fedvision.training.loop import TrainResult, fit
from fedvision.types import ClientConfig, State, TrainRequest
from tests.algorithms.test_ditto import BATCH_NORM, request
from tests.experiments import tiny
from tests.test_simulation import same
from tests.training.client_cases import Cohort, make_shards, network, noise, settings


def trained(
    model: nn.Module, algorithm: ClientAlgorithm, memory: State | None = None, k: int = 2, **options: Any
) -> TrainResult:
    numbers = {"alpha": options.pop("alpha", 0.4), "adaptive": float(options.pop("adaptive", False))}
    return fit(
        model,
        make_shards()[k],
        request(model, **numbers),
        loss=Cohort().build_loss(torch.ones(4)),
        algorithm=algorithm,
        settings=settings(**options),
        memory=memory,
    )


def kept(own: State, alpha: float) -> State:
    """Return a client's memory."""
    return {"alpha": torch.tensor(alpha, dtype=torch.float64)} | {f"own.{n}": t for n, t in own.items()}


def gradient(state: State) -> State:
    """Return the gradient of client 0's loss at a model."""
    twin, shard = network().train(), make_shards()[0]
    twin.load_state_dict(state, strict=False)
    x, labels = settings().forward.batch(shard, torch.arange(5).numpy())
    nn.functional.cross_entropy(twin(x), labels).backward()
    return {name: p.grad.clone() for name, p in twin.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_by_hand(accumulate: int) -> None:
    """V - lr alpha g and alpha - lr <v - w, g>, g the gradient at alpha v + (1 - alpha) w before the step."""
    alpha, lr, start = 0.4, 0.5, request(network()).state
    own = {name: tensor + noise(start, 4)[name] for name, tensor in start.items()}
    found = trained(
        network(), APFLClient(), kept(own, alpha), k=0, adaptive=True, lr=lr, accumulate=accumulate
    )
    g = gradient({name: alpha * own[name] + (1 - alpha) * start[name] for name in start})
    for name in start:
        expected = own[name] - lr * alpha * g[name]
        torch.testing.assert_close(found.memory[f"own.{name}"], expected, rtol=1e-4, atol=1e-5)
    slope = sum(float(((own[name] - start[name]).double() * g[name]).sum()) for name in start)
    assert abs(slope) > 1e-3
    assert float(found.memory["alpha"]) == pytest.approx(alpha - lr * slope, rel=1e-4)


def test_alpha_moves_once_a_round_and_only_where_it_adapts() -> None:
    start = request(network()).state
    own = {name: tensor + noise(start, 4)[name] for name, tensor in start.items()}
    one = trained(network(), APFLClient(), kept(own, 0.4), adaptive=True, steps=1)
    four = trained(network(), APFLClient(), kept(own, 0.4), adaptive=True, steps=4)
    assert float(one.memory["alpha"]) == float(four.memory["alpha"]) != 0.4
    fixed = trained(network(), APFLClient(), kept(own, 0.4), steps=4)
    assert float(fixed.memory["alpha"]) == 0.4


def test_alpha_stays_between_0_and_1() -> None:
    start = request(network()).state
    g = gradient(start)
    for sign, end in ((1.0, 0.0), (-1.0, 1.0)):
        own = {name: tensor + sign * 10 * g[name] for name, tensor in start.items()}
        # Near alpha = 0 the mixture is the global model, whose gradient is g: the slope has its sign.
        found = trained(network(), APFLClient(), kept(own, 1e-6), k=0, adaptive=True, lr=1e3)
        assert float(found.memory["alpha"]) == end


@pytest.mark.parametrize("net", [{"use": "cnn", "dropout": 0.3}, BATCH_NORM])
def test_the_global_model_is_fedavgs_to_the_bit(net: dict[str, Any]) -> None:
    options: dict[str, Any] = {"momentum": 0.9, "clip_norm": 1.0, "epochs": 2}
    own = noise(request(network(**net)).state, 1)
    memory = kept({n: t for n, t in own.items() if "running" not in n}, 0.6)
    found = trained(network(**net), APFLClient(), memory, adaptive=True, **options)
    wanted = trained(network(**net), ClientAlgorithm(), **options)
    assert same(found.state, wanted.state)
    assert (found.loss, found.steps, found.tensors) == (wanted.loss, wanted.steps, {})


@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_alpha_1_trains_the_clients_own_model_alone(clip_norm: float) -> None:
    """V takes FedAvg's steps from where it was, and is the personal model whatever the global one is."""
    start = request(network()).state
    own = {name: tensor + noise(start, 4)[name] for name, tensor in start.items()}
    options: dict[str, Any] = {"momentum": 0.9, "clip_norm": clip_norm}
    found = trained(network(), APFLClient(), kept(own, 1.0), alpha=1.0, **options)
    alone = network()
    alone.load_state_dict(own, strict=False)
    wanted = trained(alone, ClientAlgorithm(), **options)
    mine = {name: found.memory[f"own.{name}"] for name in start}
    for name in start:
        torch.testing.assert_close(mine[name], wanted.state[name], rtol=1e-5, atol=1e-6)
    assert same(APFLClient.personal_state(found.memory, start), mine)


def test_alpha_0_leaves_the_personal_model_the_global_one() -> None:
    start = request(network()).state
    found = trained(network(), APFLClient(), alpha=0.0, momentum=0.9)
    assert all(torch.equal(found.memory[f"own.{name}"], start[name]) for name in start)
    assert same(APFLClient.personal_state(found.memory, found.state), found.state)


def test_the_personal_model_mixes_parameters_and_keeps_what_the_mixture_measured() -> None:
    memory = kept({"a": torch.tensor([4.0])}, 0.25) | {"measured.b": torch.tensor([7.0])}
    state = {name: torch.tensor([2.0]) for name in "abc"}
    found = APFLClient.personal_state(memory, state)
    assert {name: float(tensor) for name, tensor in found.items()} == {"a": 2.5, "b": 7.0, "c": 2.0}


def test_the_mixture_measures_its_own_batches() -> None:
    start = request(network(**BATCH_NORM)).state
    own = {n: t + noise(start, 4)[n] for n, t in start.items() if "running" not in n}
    first = trained(network(**BATCH_NORM), APFLClient(), kept(own, 1.0), alpha=1.0)
    statistic = next(name for name in start if name.endswith("running_mean"))
    assert not torch.equal(first.memory[f"measured.{statistic}"], first.state[statistic])
    assert first.memory.keys() == {"alpha"} | {
        ("measured." if "running" in name else "own.") + name for name in start
    }
    # They are where the next round begins.
    second = trained(network(**BATCH_NORM), APFLClient(), first.memory, alpha=1.0, lr=1e-12, steps=1)
    fresh = trained(network(**BATCH_NORM), APFLClient(), kept(own, 1.0), alpha=1.0, lr=1e-12, steps=1)
    name = f"measured.{statistic}"
    assert not torch.allclose(second.memory[name], fresh.memory[name])


def test_a_lost_model_is_not_kept() -> None:
    start = request(network()).state
    lost = kept({name: torch.full_like(t, torch.nan) for name, t in start.items()}, 0.5)
    found = trained(network(), APFLClient(), lost)
    assert found.memory is lost
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.state.values())


@pytest.mark.parametrize("missing", ["alpha", "adaptive"])
def test_both_numbers_are_needed(missing: str) -> None:
    numbers = {"alpha": 0.5, "adaptive": 1.0}
    del numbers[missing]
    model = network()
    with pytest.raises(ClientError, match=f"client 3, training: APFL got no number '{missing}'"):
        APFLClient().begin(model, dict(model.named_parameters()), request(model, **numbers), {})


def test_float16_is_refused() -> None:
    training = {"lr": 0.1, "batch_size": 32, "precision": "float16"}
    with pytest.raises(ConfigError, match=r"'apfl' .* set training\.precision = 'bfloat16'"):
        Experiment.build(tiny(strategy={"use": "apfl"}, training=training))


def test_the_server_is_fedavgs_and_sends_the_numbers() -> None:
    assert APFL.combine is FedAvg.combine
    assert APFL.finalize is FedAvg.finalize
    sent: ClientConfig = APFL(alpha=0.25, adaptive=False).configure(1, {}, 0)
    assert dict(sent.numbers) == {"alpha": 0.25, "adaptive": 0.0}
    assert isinstance(request(network()), TrainRequest)
