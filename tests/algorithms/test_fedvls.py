"""FedVLS: both terms by hand, their gradients, and what vacant classes must not do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvision import simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedvls import FedVLS, FedVLSClient, suppression, vacant_divergence
from fedvision.errors import ClientError
from fedvision.types import ClientConfig, TrainRequest
from tests.experiments import tiny


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _model(classes: int = 4) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def _begun(model: nn.Module, counts: tuple[int, ...] | None, **numbers: float) -> FedVLSClient:
    algorithm = FedVLSClient()
    request = TrainRequest(
        round=1, client=3, state={}, client_config=ClientConfig(numbers=numbers), own_counts=counts
    )
    algorithm.begin(model, dict(model.named_parameters()), request, {})
    return algorithm


def test_the_divergence_is_that_of_the_definition() -> None:
    """Vacant classes 0 and 2: student (1/4, 3/4), teacher (1/2, 1/2), whatever class 1 has."""
    student, teacher = torch.tensor([[0.0, 9.0, math.log(3.0)]]), torch.tensor([[2.0, -5.0, 2.0]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    found = vacant_divergence(student, teacher, torch.tensor([0, 2]))
    assert found.tolist() == pytest.approx([expected], rel=1e-6)


def test_the_suppression_by_hand() -> None:
    """Class 0 (2/3): log((e^1 + 0) / 2), its own image left out; class 1 (1/3): log((0 + e^5) / 2)."""
    logits = torch.tensor([[7.0, 5.0, 3.0], [1.0, 2.0, 4.0]])
    found = suppression(logits, torch.tensor([0, 1]), torch.tensor([2 / 3, 1 / 3, 0.0]))
    expected = 2 / 3 * (1 - math.log(2)) + 1 / 3 * (5 - math.log(2))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_own_and_vacant_logits_are_not_suppressed() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 1, 0])
    suppression(logits, labels, torch.tensor([0.5, 0.5, 0.0, 0.0])).backward()
    assert not logits.grad[:, 2:].any()
    assert not logits.grad[range(6), labels].any()
    assert (logits.grad[range(6), 1 - labels] > 0).all()
    assert float(logits.grad.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_a_batch_of_one_class_and_extreme_logits_stay_finite(size: float) -> None:
    logits = torch.tensor([[size, 0.0, -size], [size, -size, 0.0]], requires_grad=True)
    vacant, shares = torch.tensor([1, 2]), torch.tensor([1.0, 0.0, 0.0])
    found = suppression(logits, torch.tensor([0, 0]), shares)
    assert found.item() == 0.0
    total = found + vacant_divergence(logits, -logits.detach(), vacant).sum()
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()


def test_the_loss_adds_both_terms() -> None:
    model = _model().eval()
    algorithm = _begun(model, (3, 0, 1, 0), vacant=0.7, suppression=0.2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    x, labels = torch.randn(8, 3), torch.tensor([0, 2] * 4)
    found = algorithm.loss(model, x, labels, _cross_entropy)
    logits, teacher = model(x), _model().eval()(x)
    distilled = vacant_divergence(logits, teacher, torch.tensor([1, 3]))
    assert distilled.min() > 1e-6
    suppressed = suppression(logits, labels, torch.tensor([0.75, 0.0, 0.25, 0.0]))
    torch.testing.assert_close(found, _cross_entropy(logits, labels) + 0.7 * distilled + 0.2 * suppressed)


@pytest.mark.parametrize("counts", [(1, 2, 3, 4), (0, 2, 3, 4)])
def test_without_two_vacant_classes_there_is_nothing_to_distil(counts: tuple[int, ...]) -> None:
    model = _model().eval()
    x, labels = torch.randn(8, 3), torch.tensor([1, 2] * 4)
    found = _begun(model, counts, vacant=5.0, suppression=0.0).loss(model, x, labels, _cross_entropy)
    assert torch.equal(found, _cross_entropy(model(x), labels))


def test_weights_of_zero_are_fedavg_to_the_bit() -> None:
    off = {"use": "fedvls", "vacant": 0.0, "suppression": 0.0}
    own, other = (simulate(tiny(rounds=2, strategy=strategy)).state for strategy in (off, {"use": "fedavg"}))
    assert all(torch.equal(own[name], other[name]) for name in other)


def test_clients_of_few_classes_train_with_any_loss() -> None:
    """Each client lacks eight of ten classes."""
    config = tiny(
        strategy={"use": "fedvls", "vacant": 1.0, "suppression": 1.0},
        loss={"use": "logit-adjusted", "prior": "local"},
        partition={"use": "shards", "clients": 5, "classes_per_client": 2},
    )
    result = simulate(config)
    assert all(torch.isfinite(tensor).all() for tensor in result.state.values())
    assert all(math.isfinite(record["train_loss"]) for record in result.rounds)


@pytest.mark.parametrize("missing", ["vacant", "suppression"])
def test_numbers_and_counts_are_needed(missing: str) -> None:
    numbers = {"vacant": 1.0, "suppression": 1.0}
    with pytest.raises(ClientError, match="client 3, training: FedVLS got no class counts"):
        _begun(_model(), None, **numbers)
    del numbers[missing]
    with pytest.raises(ClientError, match=f"FedVLS got no number '{missing}'"):
        _begun(_model(), (1, 0, 0, 0), **numbers)


def test_several_labels_are_refused() -> None:
    algorithm = _begun(_model(), (1, 0, 0, 0), vacant=1.0, suppression=1.0)
    with pytest.raises(ClientError, match=r"FedVLS is about .* it needs one label an image"):
        algorithm.loss(_model(), torch.randn(4, 3), torch.zeros(4, 4), _cross_entropy)


def test_the_server_is_fedavgs_and_sends_both_weights() -> None:
    assert FedVLS.combine is FedAvg.combine
    sent = FedVLS(vacant=0.5, suppression=0.1).configure(1, {}, 0)
    assert dict(sent.numbers) == {"vacant": 0.5, "suppression": 0.1}
