"""MOON: the contrast by hand, what a client remembers, and which networks it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvision import simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.moon import Moon, MoonClient, contrast
from fedvision.errors import ClientError, ConfigError
from fedvision.experiment import Experiment
from fedvision.models.base import ImageModel
from fedvision.types import ClientConfig, State, TrainRequest
from tests.experiments import tiny


def plain(num_classes: int) -> nn.Module:
    """Return a network without halves."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _model(seed: int = 0) -> ImageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))
        return ImageModel(backbone, nn.Linear(4, 3))


def _begun(model: nn.Module, memory: State, **numbers: float) -> MoonClient:
    algorithm = MoonClient()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    request = TrainRequest(round=2, client=3, state=state, client_config=ClientConfig(numbers=numbers))
    algorithm.begin(model, dict(model.named_parameters()), request, memory)
    return algorithm


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, generator=generator), torch.randint(3, (8,), generator=generator)


def test_the_contrast_is_that_of_the_definition() -> None:
    """Similarities 1 and 0 at tau 0.5: -log(e^2 / (e^2 + e^0)); then 0 and 1; then equal ones."""
    features = torch.tensor([[2.0, 0.0], [2.0, 0.0], [1.0, 1.0]])
    wanted = torch.tensor([[3.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    former = torch.tensor([[0.0, 1.0], [5.0, 0.0], [0.0, 1.0]])
    expected = [-math.log(math.exp(2) / (math.exp(2) + 1)), -math.log(1 / (1 + math.exp(2))), math.log(2)]
    assert contrast(features, wanted, former, 0.5).tolist() == pytest.approx(expected, rel=1e-6)


def test_features_of_zero_and_small_temperatures_stay_finite() -> None:
    features = torch.zeros(2, 3, requires_grad=True)
    found = contrast(features, torch.ones(2, 3), -torch.ones(2, 3), 1e-6)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(features.grad).all()


def test_the_loss_adds_mu_times_the_contrast() -> None:
    model = _model().eval()
    memory = _begun(_model(1), {}, mu=1.0, tau=0.5).finish(1, 0.1)[1]
    algorithm = _begun(model, memory, mu=0.7, tau=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    x, labels = _batch()
    expected = contrast(model.backbone(x), _model().eval().backbone(x), _model(1).eval().backbone(x), 0.5)
    assert (expected - math.log(2)).abs().min() > 1e-4
    found = algorithm.loss(model, x, labels, _cross_entropy)
    torch.testing.assert_close(found, _cross_entropy(model(x), labels) + 0.7 * expected)


def test_a_client_without_memory_has_the_tasks_loss() -> None:
    model = _model().eval()
    x, labels = _batch()
    found = _begun(model, {}, mu=5.0, tau=0.5).loss(model, x, labels, _cross_entropy)
    assert torch.equal(found, _cross_entropy(model(x), labels))


def test_what_is_kept_is_the_trained_backbone() -> None:
    model = _model()
    algorithm = _begun(model, {}, mu=1.0, tau=0.5)
    model.backbone[0].weight.requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    tensors, memory = algorithm.finish(1, 0.1)
    assert tensors == {}
    statistics = {"1.running_mean", "1.running_var"}
    assert memory.keys() == {"0.bias", "1.weight", "1.bias", "2.weight", "2.bias"} | statistics
    assert torch.equal(memory["2.bias"], model.backbone[2].bias)
    with torch.no_grad():
        model.backbone[2].bias.zero_()
    assert memory["2.bias"].any(), "it shares the model's memory"


def test_a_lost_model_is_not_kept() -> None:
    model = _model()
    memory = _begun(model, {}, mu=1.0, tau=0.5).finish(1, 0.1)[1]
    algorithm = _begun(model, memory, mu=1.0, tau=0.5)
    with torch.no_grad():
        model.backbone[2].bias[0] = float("nan")
    assert algorithm.finish(1, 0.1)[1] is memory


@pytest.mark.parametrize("missing", ["mu", "tau"])
def test_both_numbers_are_needed(missing: str) -> None:
    numbers = {"mu": 1.0, "tau": 1.0}
    del numbers[missing]
    with pytest.raises(ClientError, match=f"client 3, training: MOON got no number '{missing}'"):
        _begun(_model(), {}, **numbers)


def test_mu_zero_is_fedavg_to_the_bit() -> None:
    own, other = (
        simulate(tiny(rounds=2, strategy=strategy)).state
        for strategy in ({"use": "moon", "mu": 0.0}, {"use": "fedavg"})
    )
    assert all(torch.equal(own[name], other[name]) for name in other)


def test_the_server_is_fedavgs_and_sends_mu_and_tau() -> None:
    assert Moon.combine is FedAvg.combine
    assert dict(Moon(mu=0.5, tau=2.0).configure(1, {}, 0).numbers) == {"mu": 0.5, "tau": 2.0}


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"use": f"{__name__}:plain"}, "use = 'moon' needs a network of backbone and head, .* a Sequential"),
        ({"use": "cnn", "width": 4, "frozen": ["backbone.*"]}, "nothing of the backbone is trained"),
    ],
)
def test_a_network_whose_features_are_not_trained_is_refused(model: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Experiment.build(tiny(strategy={"use": "moon"}, model=model))
