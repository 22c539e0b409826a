"""FedNTD: the loss by hand, its gradient, and what the teacher is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedntd import FedNTD, FedNTDClient, not_true_divergence
from fedvision.errors import ClientError
from fedvision.types import ClientConfig, TrainRequest


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _model(classes: int = 4, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, classes))


def _begun(model: nn.Module, **numbers: float) -> FedNTDClient:
    algorithm = FedNTDClient()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    request = TrainRequest(round=1, client=3, state=state, client_config=ClientConfig(numbers=numbers))
    algorithm.begin(model, dict(model.named_parameters()), request, {})
    return algorithm


def test_the_divergence_is_that_of_the_definition() -> None:
    """Classes 0 and 2 of label 1: student (1/4, 3/4), teacher (1/2, 1/2), whatever class 1 has."""
    student = torch.tensor([[0.0, 9.0, math.log(3.0)]])
    teacher = torch.tensor([[2.0, -5.0, 2.0]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    found = not_true_divergence(student, teacher, torch.tensor([1]), tau=1.0)
    assert found.tolist() == pytest.approx([expected], rel=1e-6)
    # At tau = 2 both are of halved logits: the student is 1 : sqrt(3).
    share = 1 / (1 + math.sqrt(3))
    expected = 0.5 * math.log(0.5 / share) + 0.5 * math.log(0.5 / (1 - share))
    found = not_true_divergence(student, teacher, torch.tensor([1]), tau=2.0)
    assert found.tolist() == pytest.approx([expected], rel=1e-6)


def test_the_true_class_has_no_part_in_the_divergence() -> None:
    generator = torch.Generator().manual_seed(2)
    logits, teacher = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (6,), generator=generator)
    logits.requires_grad_()
    not_true_divergence(logits, teacher, labels, 3.0).sum().backward()
    assert torch.equal(logits.grad[range(6), labels], torch.zeros(6, dtype=torch.float64))
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad.abs().sum(1) > 0).all()
    moved = teacher.clone()
    moved[range(6), labels] += 50.0
    first, second = (not_true_divergence(logits, one, labels, 3.0) for one in (teacher, moved))
    assert torch.equal(first, second)


def test_the_divergence_is_least_where_both_agree() -> None:
    generator = torch.Generator().manual_seed(4)
    logits, teacher = 3 * torch.randn(2, 50, 7, generator=generator)
    labels = torch.randint(7, (50,), generator=generator)
    assert (not_true_divergence(logits, teacher, labels, 1.5) > 0).all()
    assert not_true_divergence(teacher + 2.0, teacher, labels, 1.5).abs().max() < 1e-6


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_logits_stay_finite(size: float) -> None:
    logits = torch.tensor([[size, 0.0, -size, 1.0]], requires_grad=True)
    found = not_true_divergence(logits, torch.tensor([[0.0, size, 0.0, -size]]), torch.tensor([0]), 1.0)
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert torch.isfinite(logits.grad).all()


def test_fedntd_loss_formula() -> None:
    """The loss adds beta tau squared times the divergence to the global model."""
    model = _model()
    algorithm = _begun(model, beta=0.7, tau=2.0)
    teacher = _model().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.randn(8, 3, generator=generator), torch.randint(4, (8,), generator=generator)
    model.eval()  # so that the expected forward pass is the same
    found = algorithm.loss(model, x, labels, _cross_entropy)
    logits = model(x)
    divergence = not_true_divergence(logits, teacher(x), labels, 2.0)
    assert divergence.min() > 1e-5
    torch.testing.assert_close(found, _cross_entropy(logits, labels) + 0.7 * 4.0 * divergence)


def test_the_teacher_stays_as_the_round_began() -> None:
    """Training passes move the student's statistics of batch norm and none of the teacher's."""
    model = _model().train()
    algorithm = _begun(model, beta=1.0, tau=1.0)
    before = {name: tensor.clone() for name, tensor in algorithm._teacher.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, labels = torch.randn(8, 3), torch.randint(4, (8,))
    algorithm.loss(model, x, labels, _cross_entropy).mean().backward()
    optimizer.step()
    after = algorithm._teacher.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None for p in algorithm._teacher.parameters())
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


def test_beta_zero_is_the_tasks_loss_to_the_bit() -> None:
    model = _model().eval()
    algorithm = _begun(model, beta=0.0, tau=3.0)
    x, labels = torch.randn(8, 3), torch.randint(4, (8,))
    assert torch.equal(algorithm.loss(model, x, labels, _cross_entropy), _cross_entropy(model(x), labels))


@pytest.mark.parametrize("missing", ["beta", "tau"])
def test_both_numbers_are_needed(missing: str) -> None:
    numbers = {"beta": 1.0, "tau": 1.0}
    del numbers[missing]
    with pytest.raises(ClientError, match=f"client 3, training: FedNTD got no number '{missing}'"):
        _begun(_model(), **numbers)


def test_two_classes_and_several_labels_are_refused() -> None:
    two = _begun(_model(classes=2), beta=1.0, tau=1.0)
    with pytest.raises(ClientError, match="three classes or more, not logits"):
        two.loss(_model(classes=2), torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), _cross_entropy)
    many = _begun(_model(), beta=1.0, tau=1.0)
    with pytest.raises(ClientError, match="needs one label an image"):
        many.loss(_model(), torch.randn(4, 3), torch.zeros(4, 4), _cross_entropy)


def test_the_server_is_fedavgs_and_sends_beta_and_tau() -> None:
    strategy = FedNTD(beta=0.5, tau=2.0, fraction=0.5, min_clients=3)
    assert FedNTD.combine is FedAvg.combine
    assert FedNTD.client is FedNTDClient
    assert dict(strategy.configure(1, {}, 0).numbers) == {"beta": 0.5, "tau": 2.0}
    assert (strategy.fraction, strategy.min_clients) == (0.5, 3)


@pytest.mark.parametrize(
    ("args", "message"),
    [({"beta": -1.0}, "beta must be >= 0"), ({"tau": 0.0}, "tau must be > 0"), ({"tau": math.inf}, "finite")],
)
def test_arguments_out_of_range(args: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FedNTD(**args)
