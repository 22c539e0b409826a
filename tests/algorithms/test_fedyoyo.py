"""FedYoYo: the divergence by hand, both views, the warm-up, the logits that a loss sees, what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fedvision import registry, simulate
from fedvision.algorithms.fedavg import FedAvg
from fedvision.algorithms.fedyoyo import FedYoYo, FedYoYoClient, self_distillation
from fedvision.data.strong_view import strong_view
from fedvision.errors import ClientError, ConfigError
from fedvision.experiment import Experiment
from fedvision.inputs import Inputs
from fedvision.losses.calibrated import fedlf, logit_adjusted
from fedvision.losses.logits import adjusted
from fedvision.losses.margins import ldam
from fedvision.losses.weighting import cross_entropy
from fedvision.types import ClientConfig, PluginSpec, TrainRequest
from tests.experiments import digits_of_several_labels, several_labels, tiny


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


def _model(classes: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, classes))


def _begun(model: nn.Module, **numbers: float) -> FedYoYoClient:
    algorithm = FedYoYoClient()
    request = TrainRequest(round=1, client=3, state={}, client_config=ClientConfig(numbers=numbers))
    algorithm.begin(model, dict(model.named_parameters()), request, {})
    algorithm.generator = torch.Generator().manual_seed(5)
    return algorithm


def _batch(size: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 1, 4, 4, generator=generator), torch.arange(size) % 3


def test_the_divergence_by_hand() -> None:
    """Teacher (1/2, 1/4, 1/4) and student (1/4, 1/4, 1/2) of two known images out of three."""
    teacher = torch.tensor([[2.0, 1.0, 1.0]] * 3).log()
    student = torch.tensor([[1.0, 1.0, 2.0], [2.0, 1.0, 1.0], [1.0, 1.0, 2.0]]).log()
    labels = torch.tensor([0, 0, 2])  # the teacher says 0 of each
    found = self_distillation(teacher, student, labels, 1.0)
    kl = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert found.tolist() == pytest.approx([1.5 * kl, 0.0, 0.0], abs=1e-6)
    assert float(found.mean()) == pytest.approx(kl / 2), "the mean over the images that it knows"


def test_the_temperature_divides_both_and_multiplies_nothing() -> None:
    teacher, student = torch.tensor([[3.0, 1.0]]), torch.tensor([[0.0, 1.0]])
    found = self_distillation(teacher, student, torch.tensor([0]), 2.0)
    assert torch.equal(found, self_distillation(teacher / 2, student / 2, torch.tensor([0]), 1.0))


def test_the_teacher_has_no_gradient_and_unknown_images_teach_nothing() -> None:
    teacher, student = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    wrong = (teacher.argmax(1) + 1) % 3
    self_distillation(teacher, student, wrong, 1.5).sum().backward()
    assert not student.grad.any()
    self_distillation(teacher, student, teacher.argmax(1), 1.5).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_the_loss_is_the_mean_of_both_views_plus_the_divergence() -> None:
    model = _model()
    x, labels = _batch()
    loss = logit_adjusted(torch.tensor([8, 2, 0]), tau=1.5)
    found = _begun(model, weight=0.7, tau=1.5, strength=0.8).loss(model, x, labels, loss)
    weak, strong = model(x), model(strong_view(x, 0.8, torch.Generator().manual_seed(5)))
    shift = 1.5 * torch.tensor([8.0, 2.0, 1.0]).log()
    taught = self_distillation(weak + shift, strong + shift, labels, 1.5)
    assert taught.abs().sum() > 1e-4
    expected = (_cross_entropy(weak + shift, labels) + _cross_entropy(strong + shift, labels)) / 2
    torch.testing.assert_close(found, expected + 0.7 * taught)


def test_both_views_go_through_the_network_at_once_with_the_inputs_beside_them() -> None:
    seen: list[Any] = []

    class _Reading(nn.Module):
        def forward(self, batch: Inputs) -> torch.Tensor:
            seen.append(batch)
            return batch.images.flatten(1)[:, :2] + batch.further

    x, labels = _batch(2)
    further = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    request = TrainRequest(
        round=1,
        client=3,
        state={},
        client_config=ClientConfig(numbers={"weight": 1.0, "tau": 1.0, "strength": 1.0}),
    )
    algorithm = FedYoYoClient()
    algorithm.generator = torch.Generator().manual_seed(5)
    algorithm.begin(_Reading(), {}, request, {})
    algorithm.loss(_Reading(), Inputs(x, further), labels, _cross_entropy)
    (both,) = seen
    assert torch.equal(both.images[:2], x)
    assert not torch.equal(both.images[2:], x)
    assert torch.equal(both.further, torch.cat([further, further]))


def test_the_logits_that_losses_see() -> None:
    z = torch.tensor([[1.0, -2.0, 0.5]])
    counts = torch.tensor([6, 3, 0])
    assert torch.equal(adjusted(cross_entropy(counts), z), z)
    torch.testing.assert_close(adjusted(logit_adjusted(counts), z), z + torch.tensor([6.0, 3.0, 1.0]).log())
    torch.testing.assert_close(adjusted(fedlf(counts), z), z * torch.tensor([1.0, 0.75, 0.5]))
    assert torch.equal(adjusted(ldam(counts, round=1, scale=4.0), z), 4 * z)


@pytest.mark.parametrize("use", ["balanced-softmax", "logit-adjusted", "fedlc", "fedrs", "fedlf"])
def test_what_a_loss_adjusts_is_what_its_softmax_gets(use: str) -> None:
    spec = PluginSpec(use=use)
    loss = registry.build("loss", spec, counts=torch.tensor([9, 2, 0]), round=1, rounds=2)
    z, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    assert torch.equal(loss(z, labels), _cross_entropy(adjusted(loss, z), labels))
    assert not torch.equal(adjusted(loss, z), z)


def test_the_weight_rises_over_the_warm_up() -> None:
    strategy = FedYoYo(distillation=2.0, tau=3.0, warmup=4, strength=0.5)
    sent = [dict(strategy.configure(round, {}, 0).numbers) for round in (1, 2, 4, 9)]
    assert [one["weight"] for one in sent] == [0.5, 1.0, 2.0, 2.0]
    assert all((one["tau"], one["strength"]) == (3.0, 0.5) for one in sent)
    assert FedYoYo(distillation=2.0, warmup=1).configure(1, {}, 0).numbers["weight"] == 2.0
    assert FedYoYo.combine is FedAvg.combine


def test_a_strength_of_zero_is_fedavg_to_the_bit() -> None:
    off = {"use": "fedyoyo", "strength": 0.0}
    own, other = (simulate(tiny(rounds=2, strategy=strategy)).state for strategy in (off, {"use": "fedavg"}))
    assert all(torch.equal(own[name], other[name]) for name in other)


def test_equal_views_leave_the_loss_of_one() -> None:
    """What is left out at strength 0 is nothing: of equal views the mean is the loss, the divergence 0."""
    model, (x, labels) = _model(), _batch()
    logits = model(x)
    taught = self_distillation(logits, logits, labels, 1.5)
    assert not taught.any()
    slopes = torch.autograd.grad(taught.sum(), model.parameters())
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-6


@settings(max_examples=30)
@given(counts=st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any), tau=st.floats(0.05, 5))
def test_classes_without_images_stay_finite(counts: list[int], tau: float) -> None:
    model = _model()
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    x = 30 * torch.randn(len(labels), 1, 4, 4, generator=torch.Generator().manual_seed(sum(counts)))
    loss = logit_adjusted(torch.tensor(counts), tau=1.5)
    found = _begun(model, weight=2.0, tau=tau, strength=1.0).loss(model, x, labels, loss)
    found.mean().backward()
    assert found.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_clients_of_few_classes_train_with_the_papers_loss() -> None:
    config = tiny(
        strategy={"use": "fedyoyo", "warmup": 1},
        loss={"use": "logit-adjusted", "tau": 1.5, "prior": "mixed", "local_share": 0.1},
        partition={"use": "shards", "clients": 5, "classes_per_client": 2},
        training={"lr": 0.1, "precision": "bfloat16", "accumulate": 2},
    )
    one, two = (simulate(config) for _ in range(2))
    assert all(torch.isfinite(tensor).all() for tensor in one.state.values())
    assert all(torch.equal(one.state[name], two.state[name]) for name in one.state)


@pytest.mark.parametrize("missing", ["weight", "tau", "strength"])
def test_numbers_are_needed(missing: str) -> None:
    numbers = {"weight": 1.0, "tau": 1.0, "strength": 1.0}
    del numbers[missing]
    with pytest.raises(ClientError, match=f"client 3, training: FedYoYo got no number '{missing}'"):
        _begun(_model(), **numbers)


def test_mixup_and_several_labels_are_refused_before_the_start(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"transforms\.mixup gives images two labels; set it to 0"):
        Experiment.build(tiny(strategy={"use": "fedyoyo"}, transforms={"mixup": 0.2}))
    tables = several_labels(digits_of_several_labels(tmp_path))
    with pytest.raises(ConfigError, match=r"'fedyoyo': FedYoYo distils .* it needs one label an image"):
        Experiment.build(tiny(strategy={"use": "fedyoyo"}, **tables))


def test_behind_frozen_layers_images_take_both_views_each_time() -> None:
    model = {"use": "cnn", "width": 4, "dense": 8, "frozen": ["backbone.*"]}
    result = simulate(tiny(rounds=1, strategy={"use": "fedyoyo"}, model=model))
    assert "'fedyoyo' looks at the images themselves" in str(result.folder.summary()["notices"])
