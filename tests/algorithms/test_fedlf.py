"""FedLF: centres, margin, centre loss and decorrelation by hand; what it refuses; where it is FedAvg."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fedvision import simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedlf import (
    FedLF,
    FedLFClient,
    centre_loss,
    class_centres,
    decorrelation,
    largest_distance,
)
from fedvision.errors import ClientError, ConfigError
from fedvision.experiment import Experiment
from fedvision.models.base import ImageModel
from fedvision.types import ClientConfig, TrainRequest
from tests.experiments import digits_of_several_labels, several_labels, tiny


def plain(num_classes: int) -> nn.Module:
    """Return a network without halves."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _model() -> ImageModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ImageModel(nn.Linear(3, 5), nn.Linear(5, 4))


def _begun(model: nn.Module, counts: tuple[int, ...] | None = (3, 0, 2, 0), **numbers: float) -> FedLFClient:
    algorithm = FedLFClient()
    request = TrainRequest(
        round=1, client=3, state={}, client_config=ClientConfig(numbers=numbers), own_counts=counts
    )
    algorithm.begin(model, dict(model.named_parameters()), request, {})
    return algorithm


def _batch(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, generator=generator), torch.tensor([0, 2] * (size // 2))


def test_centres_are_means_over_batches_and_zero_without_images() -> None:
    batches = [
        (torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([0, 2])),
        (torch.tensor([[5.0, 4.0]]), torch.tensor([0])),
    ]
    assert class_centres(batches, 4).tolist() == [[3.0, 3.0], [0.0, 0.0], [3.0, 6.0], [0.0, 0.0]]


def test_the_largest_distance_of_centres() -> None:
    assert float(largest_distance(torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]]))) == pytest.approx(5.0)
    assert float(largest_distance(torch.tensor([[2.0, 1.0]]))) == 0.0


def test_the_centre_loss_by_hand() -> None:
    """Distances 5 and 0 from centres (0, 0) and (3, 4), a margin of 2: to class 0 they are 7 and 0."""
    features, centres = torch.tensor([[3.0, 4.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    found = centre_loss(features, torch.tensor([0, 1]), centres, torch.tensor(2.0))
    first = 7 + math.log(math.exp(-7) + math.exp(0))
    second = 2 + math.log(math.exp(-5) + math.exp(-2))
    assert found.tolist() == pytest.approx([first, second], rel=1e-5)


def test_the_centre_loss_draws_an_image_to_its_centre_and_from_others() -> None:
    features = torch.tensor([[1.0, 1.0]], requires_grad=True)
    centres = torch.tensor([[0.0, 1.0], [3.0, 1.0]])
    centre_loss(features, torch.tensor([0]), centres, torch.tensor(3.0)).sum().backward()
    # Slopes (1 - p) to the own centre and p from the other, both along the first number.
    own = math.exp(-4) / (math.exp(-4) + math.exp(-2))
    assert features.grad.flatten().tolist() == pytest.approx([2 * (1 - own), 0.0], abs=1e-6)


@pytest.mark.parametrize("distance", [0.0, 1e-4, 1e4])
def test_distances_have_finite_slopes(distance: float) -> None:
    """At its own centre an image has no direction; the root's slope there would be infinite."""
    features = torch.tensor([[1.0, 2.0], [1.0 + distance, 2.0]], requires_grad=True)
    centres = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0]])
    found = centre_loss(features, torch.tensor([0, 1]), centres, largest_distance(centres))
    found.sum().backward()
    assert found.isfinite().all()
    assert features.grad.isfinite().all()


def test_centres_and_distances_are_exact_under_lower_precision() -> None:
    h, labels = 100 + torch.randn(8, 5, generator=torch.Generator().manual_seed(3)), torch.arange(8) % 3
    centres = class_centres([(h, labels)], 4)
    expected = centre_loss(h, labels, centres, largest_distance(centres))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = class_centres([(h, labels)], 4)
        assert torch.equal(found, centres)
        torch.testing.assert_close(
            centre_loss(h, labels, found, largest_distance(found)), expected, rtol=1e-5, atol=1e-5
        )


def test_decorrelation_by_hand() -> None:
    """Standardised columns (-1, 1) / sqrt(2) and their opposite: products -1 off the diagonal, B = 2."""
    found = decorrelation(torch.tensor([[0.0, 5.0], [2.0, 1.0]]))
    assert float(found) == pytest.approx(1 / 2, rel=1e-5)


def test_decorrelation_is_that_of_the_correlations() -> None:
    h = torch.randn(20, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float32)
    correlations = torch.corrcoef(h.T)
    off = correlations[~torch.eye(6, dtype=torch.bool)]
    assert float(decorrelation(h)) == pytest.approx(float(off.square().mean()) * 19**2 / 20, rel=1e-4)


@pytest.mark.parametrize("shape", [(1, 5), (7, 1), (1, 1)])
def test_one_image_or_one_feature_has_no_correlation(shape: tuple[int, int]) -> None:
    h = torch.randn(shape, requires_grad=True)
    found = decorrelation(h)
    assert found.item() == 0.0
    (found + 0 * h.sum()).backward()
    assert h.grad.isfinite().all()


def test_features_that_do_not_vary_stay_finite() -> None:
    h = torch.ones(6, 4, requires_grad=True)
    decorrelation(h).backward()
    assert h.grad.isfinite().all()


def test_the_loss_adds_both_terms() -> None:
    model = _model()
    algorithm = _begun(model, centre=0.7, decorrelation=0.2)
    x, labels = _batch()
    with torch.no_grad():
        algorithm.survey(model, [(x, labels)])
        centres = class_centres([(model.backbone(x), labels)], 4)
        for parameter in model.parameters():
            parameter.add_(0.3)
    found = algorithm.loss(model, x, labels, _cross_entropy)
    features = model.backbone(x)
    apart = centre_loss(features, labels, centres, largest_distance(centres))
    assert apart.min() > 1e-6
    expected = _cross_entropy(model(x), labels) + 0.7 * apart + 0.2 * decorrelation(features)
    torch.testing.assert_close(found, expected)


def test_the_margin_is_at_most_a_hundred() -> None:
    model = _model()
    algorithm = _begun(model, centre=1.0, decorrelation=0.0)
    x, labels = _batch()
    with torch.no_grad():
        algorithm.survey(model, [(1e4 * x, labels)])
    features, centres = model.backbone(x), class_centres([(model.backbone(1e4 * x).detach(), labels)], 4)
    assert largest_distance(centres) > 100
    expected = _cross_entropy(model(x), labels) + centre_loss(features, labels, centres, torch.tensor(100.0))
    torch.testing.assert_close(algorithm.loss(model, x, labels, _cross_entropy), expected)


@settings(max_examples=30)
@given(counts=st.lists(st.integers(0, 4), min_size=4, max_size=4).filter(any))
def test_classes_without_images_stay_finite(counts: list[int]) -> None:
    model = _model()
    algorithm = _begun(model, tuple(counts), centre=1.0, decorrelation=1.0)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))
    x = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(sum(counts)))
    with torch.no_grad():
        algorithm.survey(model, [(x, labels)])
    found = algorithm.loss(model, x, labels, _cross_entropy)
    found.mean().backward()
    assert found.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_weights_of_zero_are_fedavg_to_the_bit() -> None:
    off = {"use": "fedlf", "centre": 0.0, "decorrelation": 0.0}
    own, other = (simulate(tiny(rounds=2, strategy=strategy)).state for strategy in (off, {"use": "fedavg"}))
    assert all(torch.equal(own[name], other[name]) for name in other)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_clients_of_few_classes_train_with_the_papers_loss(precision: str) -> None:
    """Each client lacks eight of ten classes; features come in the forward pass's precision."""
    config = tiny(
        strategy={"use": "fedlf", "centre": 0.1, "decorrelation": 0.1},
        loss={"use": "fedlf", "prior": "local"},
        partition={"use": "shards", "clients": 5, "classes_per_client": 2},
        training={"lr": 0.1, "precision": precision, "accumulate": 3},
    )
    result = simulate(config)
    assert all(torch.isfinite(tensor).all() for tensor in result.state.values())
    assert all(math.isfinite(record["train_loss"]) for record in result.rounds)


@pytest.mark.parametrize("missing", ["centre", "decorrelation"])
def test_numbers_and_counts_are_needed(missing: str) -> None:
    numbers = {"centre": 1.0, "decorrelation": 1.0}
    with pytest.raises(ClientError, match="client 3, training: FedLF got no class counts"):
        _begun(_model(), None, **numbers)
    del numbers[missing]
    with pytest.raises(ClientError, match=f"FedLF got no number '{missing}'"):
        _begun(_model(), **numbers)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"use": f"{__name__}:plain"}, "use = 'fedlf' needs a network of backbone and head, .* a Sequential"),
        ({"use": "cnn", "width": 4, "frozen": ["backbone.*"]}, "nothing of the backbone is trained"),
    ],
)
def test_a_network_whose_features_are_not_trained_is_refused(model: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Experiment.build(tiny(strategy={"use": "fedlf"}, model=model))


def test_several_labels_are_refused_before_the_start(tmp_path: Any) -> None:
    tables = several_labels(digits_of_several_labels(tmp_path))
    with pytest.raises(ConfigError, match=r"'fedlf': FedLF draws .* it needs one label an image"):
        Experiment.build(tiny(strategy={"use": "fedlf"}, **tables))


def test_the_server_is_fedavgs_and_sends_both_weights() -> None:
    assert FedLF.combine is FedAvg.combine
    sent = FedLF(centre=0.5, decorrelation=0.1).configure(1, {}, 0)
    assert dict(sent.numbers) == {"centre": 0.5, "decorrelation": 0.1}
