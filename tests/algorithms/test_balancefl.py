"""BalanceFL: each term by hand, the noise's covariance, and clients that lack classes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fedvision import registry, simulate
from fedvision.algorithms.balancefl import BalanceFL, BalanceFLClient, FeatureNoise, entropy, present_logits
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedvls import vacant_divergence
from fedvision.errors import ClientError, ConfigError
from fedvision.experiment import Experiment
from fedvision.models.base import ImageModel
from fedvision.types import ClientConfig, PluginSpec, TrainRequest
from tests.experiments import tiny

OFF = {"vacant": 0.0, "tau": 2.0, "augment": 0.0, "entropy": 0.0}
LOSSES = [name for name, loss in registry.BUILTINS["loss"].items() if "classification" in loss.tasks]


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _model() -> ImageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ImageModel(nn.Sequential(nn.Linear(3, 5), nn.Tanh()), nn.Linear(5, 4))


def _begun(model: nn.Module, counts: tuple[int, ...] | None, **numbers: float) -> BalanceFLClient:
    algorithm = BalanceFLClient()
    config = ClientConfig(numbers=OFF | numbers)
    request = TrainRequest(round=1, client=3, state={}, client_config=config, own_counts=counts)
    algorithm.begin(model, dict(model.named_parameters()), request, {})
    return algorithm


def test_the_loss_is_over_the_clients_classes() -> None:
    """Classes 0 and 2: logits 0 and log 3, so the label 0 costs log 4, whatever the others are."""
    logits = torch.tensor([[0.0, 9.0, math.log(3.0), -9.0]], requires_grad=True)
    kept = present_logits(logits, torch.tensor([False, True, False, True]))
    loss = _cross_entropy(kept, torch.tensor([0]))
    assert loss.tolist() == pytest.approx([math.log(4.0)])
    loss.sum().backward()
    assert logits.grad[0].tolist() == pytest.approx([-0.75, 0.0, 0.75, 0.0])


def test_the_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])
    expected = [math.log(2.0), -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))]
    assert entropy(logits).tolist() == pytest.approx(expected, rel=1e-6)


def test_the_noise_has_the_covariance_within_classes() -> None:
    """Deviations (1, 2), (-1, -2) of class 0 and none of class 1: over three images."""
    noise = FeatureNoise(3)
    noise.see(torch.tensor([[1.0, 2.0], [3.0, 6.0], [50.0, 7.0]]), torch.tensor([0, 0, 1]))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = noise.draw(200_000)
    expected = 2 / 3 * torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    torch.testing.assert_close(drawn.T @ drawn / len(drawn), expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(drawn.mean(0), torch.zeros(2), rtol=0, atol=0.02)


def test_later_images_lie_beside_the_mean_of_all_so_far_and_the_oldest_are_let_go() -> None:
    noise = FeatureNoise(1)
    noise.see(torch.zeros(600, 1), torch.zeros(600, dtype=torch.int64))
    noise.see(torch.full((200, 1), 4.0), torch.zeros(200, dtype=torch.int64))
    # The mean is 1; of the newest 512 images, 200 are 3 above it and 312 were at their mean.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = noise.draw(100_000)
    assert float(drawn.square().mean()) == pytest.approx(200 * 9 / 512, rel=0.03)


def test_noise_is_added_to_rare_classes_alone() -> None:
    """Counts are 4, 1 and 0: no chance for class 0, 3 in 4 for class 1."""
    model = _model()
    algorithm = _begun(model, (4, 1, 0, 0), augment=1.0)
    features, labels = torch.zeros(4000, 5), torch.tensor([0, 1]).repeat(2000)
    algorithm._noise.see(torch.randn(40, 5), torch.tensor([0, 1]).repeat(20))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        moved = (algorithm._augmented(features, labels) != 0).any(1)
    assert not moved[labels == 0].any()
    assert float(moved[labels == 1].float().mean()) == pytest.approx(0.75, abs=0.03)


def test_the_loss_adds_inheritance_and_takes_off_entropy() -> None:
    model = _model()
    algorithm = _begun(model, (3, 0, 1, 0), vacant=0.7, entropy=0.2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    x, labels = torch.randn(8, 3), torch.tensor([0, 2] * 4)
    found = algorithm.loss(model, x, labels, _cross_entropy)
    logits, wanted = model(x), _model()(x)
    inherited = vacant_divergence(logits / 2.0, wanted / 2.0, torch.tensor([1, 3]))
    assert inherited.min() > 1e-7
    own = logits[:, [0, 2]]
    expected = _cross_entropy(own, labels // 2) + 0.7 * inherited - 0.2 * entropy(own)
    torch.testing.assert_close(found, expected)


def test_the_task_loss_alone_sees_the_noise() -> None:
    model = _model()
    algorithm = _begun(model, (9, 1, 0, 0), augment=2.0, entropy=0.5)
    x, labels = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    seen: list[torch.Tensor] = []

    def watching(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(logits)
        return 0.0 * logits.sum(1)

    found = algorithm.loss(model, x, labels, watching)
    plain = model(x)
    torch.testing.assert_close(seen[0][labels == 0, :2], plain[labels == 0, :2])
    assert (seen[0][:, :2] - plain[:, :2]).abs().max() > 1e-3
    torch.testing.assert_close(found, -0.5 * entropy(plain[:, :2]))


@pytest.mark.slow
@pytest.mark.parametrize("use", LOSSES)
@given(counts=st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(any))
def test_any_counts_and_losses_stay_finite(use: str, counts: list[int]) -> None:
    model = _model()
    numbers = {"vacant": 1.0, "augment": 1.0, "entropy": 0.1}
    algorithm = _begun(model, tuple(counts), **numbers)
    present = torch.tensor([c for c, n in enumerate(counts) if n])
    labels = present[torch.arange(8) % len(present)]
    loss = registry.build("loss", PluginSpec(use=use), counts=torch.tensor(counts), round=1, rounds=2)
    for _ in range(2):
        losses = algorithm.loss(model, torch.randn(8, 3), labels, loss)
        losses.mean().backward()
        assert torch.isfinite(losses).all()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.slow
def test_clients_with_all_classes_and_nothing_switched_on_are_fedavg_to_the_bit() -> None:
    tables = {"rounds": 2, "partition": {"use": "iid", "clients": 3}}
    off = {"use": "balancefl", "augment": 0.0, "entropy": 0.0}
    own, other = (simulate(tiny(strategy=one, **tables)).state for one in (off, {"use": "fedavg"}))
    assert all(torch.equal(own[name], other[name]) for name in other)


@pytest.mark.slow
def test_clients_of_few_classes_train_with_a_balanced_sampler_and_mixup() -> None:
    """Each client lacks eight of ten classes."""
    config = tiny(
        strategy={"use": "balancefl"},
        loss={"use": "logit-adjusted", "prior": "local"},
        training={"sampler": "balanced", "lr": 0.1},
        transforms={"mixup": 0.3},
        partition={"use": "shards", "clients": 5, "classes_per_client": 2},
    )
    result = simulate(config)
    assert all(torch.isfinite(tensor).all() for tensor in result.state.values())
    assert all(math.isfinite(record["train_loss"]) for record in result.rounds)


def test_numbers_counts_and_halves_are_needed() -> None:
    with pytest.raises(ClientError, match="client 3, training: BalanceFL got no class counts"):
        _begun(_model(), None)
    with pytest.raises(ClientError, match="BalanceFL got no number 'vacant'"):
        BalanceFLClient().begin(_model(), {}, TrainRequest(round=1, client=3, state={}), {})
    with pytest.raises(ConfigError, match="needs a network of backbone and head"):
        Experiment.build(
            tiny(strategy={"use": "balancefl"}, model={"use": "tests.algorithms.test_moon:plain"})
        )


def test_several_labels_are_refused() -> None:
    with pytest.raises(ClientError, match=r"BalanceFL is about .* it needs one label and a row of features"):
        _begun(_model(), (1, 0, 0, 0)).loss(_model(), torch.randn(2, 3), torch.zeros(2, 4), _cross_entropy)


def test_the_global_model_stays_as_it_was() -> None:
    model = _model()
    algorithm = _begun(model, (9, 1, 0, 0), vacant=1.0, augment=1.0)
    before = copy.deepcopy(algorithm._global.state_dict())
    with torch.no_grad():
        model.head.weight.add_(1.0)
    algorithm.loss(model, torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), _cross_entropy).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in algorithm._global.state_dict().items())


def test_a_notice_names_the_papers_sampler() -> None:
    def told(sampler: str) -> bool:
        config = tiny(strategy={"use": "balancefl"}, training={"sampler": sampler, "lr": 0.1})
        return any("training.sampler" in notice for notice in Experiment.build(config).notices())

    assert told("shuffle")
    assert not told("balanced")


def test_the_server_is_fedavgs_and_sends_four_numbers() -> None:
    assert BalanceFL.combine is FedAvg.combine
    sent = BalanceFL(vacant=0.5, tau=3.0, augment=0.2, entropy=0.1).configure(1, {}, 0)
    assert dict(sent.numbers) == {"vacant": 0.5, "tau": 3.0, "augment": 0.2, "entropy": 0.1}
