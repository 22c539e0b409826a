"""Losses of several labels: values by hand, gradients, extreme logits, and when they are each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fedvision import registry
from fedvision.errors import PluginError
from fedvision.losses.multilabel import asymmetric, binary_cross_entropy, class_balanced
from fedvision.types import LossFn, PluginSpec

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("binary-cross-entropy", {}),
    ("class-balanced", {}),
    ("class-balanced", {"beta": 0.9}),
    ("asymmetric", {}),
    ("asymmetric", {"gamma_pos": 1.0, "gamma_neg": 1.0, "margin": 0.0}),
    ("asymmetric", {"gamma_pos": 2.0, "gamma_neg": 0.0, "margin": 0.2}),
]
every = pytest.mark.parametrize(("name", "args"), VARIANTS, ids=str)
COUNTS = torch.tensor([1000, 10, 0, 3])


def build(name: str, args: dict[str, Any], counts: torch.Tensor = COUNTS) -> LossFn:
    loss: LossFn = registry.build("loss", PluginSpec(use=name, args=args), counts=counts, round=1, rounds=2)
    return loss


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    targets = (torch.rand(*shape, 4, generator=generator) < 0.4).to(torch.uint8)
    return logits.to(dtype), targets


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def test_binary_cross_entropy_by_hand() -> None:
    loss = binary_cross_entropy(COUNTS[:2])(torch.tensor([[2.0, -1.0]]), torch.tensor([[1, 1]]))
    assert float(loss) == pytest.approx(-(math.log(sigmoid(2)) + math.log(sigmoid(-1))) / 2)


def test_asymmetric_by_hand() -> None:
    """With p = s(1) and q = p - 0.05: -(1 - p)^2 log p where the label is there, else -q^4 log(1 - q)."""
    p = sigmoid(1)
    loss = asymmetric(COUNTS[:2], gamma_pos=2.0)(torch.tensor([[1.0, 1.0]]), torch.tensor([[1, 0]]))
    q = p - 0.05
    assert float(loss) == pytest.approx(
        (-((1 - p) ** 2) * math.log(p) - q**4 * math.log(1 - q)) / 2, rel=1e-5
    )


def test_a_negative_below_the_margin_costs_nothing() -> None:
    logits = torch.tensor([[-3.0, -3.0]], requires_grad=True)
    loss = asymmetric(COUNTS[:2], margin=0.05)(logits, torch.tensor([[0, 0]]))
    loss.sum().backward()
    assert logits.grad is not None
    assert (loss.tolist(), logits.grad.tolist()) == ([0.0], [[0.0, 0.0]])


def test_class_balanced_by_hand() -> None:
    """Beta = 1/2: effective numbers of 1 and 2 images are 1 and 3/2, so the weights are 6/5 and 4/5."""
    logits, targets = torch.tensor([[2.0, -1.0]]), torch.tensor([[1, 0]])
    loss = class_balanced(torch.tensor([1, 2]), beta=0.5)(logits, targets)
    terms = [-math.log(sigmoid(2)), -math.log(sigmoid(1))]
    assert float(loss) == pytest.approx((1.2 * terms[0] + 0.8 * terms[1]) / 2)


@pytest.mark.parametrize(
    ("name", "args", "counts"),
    [
        ("asymmetric", {"gamma_neg": 0.0, "margin": 0.0}, COUNTS),
        ("class-balanced", {"beta": 0.0}, COUNTS),
        ("class-balanced", {}, torch.tensor([7, 7, 7, 7])),
    ],
)
def test_when_it_is_binary_cross_entropy(name: str, args: dict[str, Any], counts: torch.Tensor) -> None:
    logits, targets = batch(9)
    expected = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none").mean(1)
    assert torch.allclose(build(name, args, counts)(logits, targets), expected, atol=1e-6)


@every
def test_values_and_gradients_are_finite_at_extreme_logits(name: str, args: dict[str, Any]) -> None:
    cases = [(y, z) for y in (0, 1) for z in (-1e4, -100.0, -30.0, 0.0, 30.0, 100.0, 1e4)]
    logits = torch.tensor([[z] * 4 for _, z in cases], requires_grad=True)
    losses = build(name, args)(logits, torch.tensor([[y] * 4 for y, _ in cases]))
    losses.sum().backward()
    assert losses.shape == (len(cases),)
    assert losses.isfinite().all()
    assert (losses >= 0).all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@every
def test_gradients_are_those_of_differences(name: str, args: dict[str, Any]) -> None:
    logits, targets = batch(5, dtype=torch.float64)
    loss = build(name, args)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets), logits.requires_grad_())


@every
def test_stacked_clients_have_the_losses_of_each(name: str, args: dict[str, Any]) -> None:
    logits, targets = batch(3, 5)
    counts = torch.tensor([[9, 1, 0, 4], [1, 1, 1, 1], [50, 2, 8, 0]])
    together = build(name, args, counts)(logits, targets)
    one_by_one = [build(name, args, n)(z, y) for n, z, y in zip(counts, logits, targets, strict=True)]
    assert torch.allclose(together, torch.stack(one_by_one), atol=1e-6)


@every
def test_one_class_an_image_is_refused(name: str, args: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"targets must be \[2, 4\] as the logits, not \[2\]"):
        build(name, args)(torch.zeros(2, 4), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("args", "problem"),
    [({"gamma_neg": 0.5}, "gamma_neg must be 0 or >= 1"), ({"margin": 1.0}, "margin must be >= 0 and < 1")],
)
def test_numbers_out_of_range_are_refused(args: dict[str, Any], problem: str) -> None:
    with pytest.raises(PluginError, match=problem):
        build("asymmetric", args)


def test_a_loss_of_another_task_is_refused_with_the_nearest_that_fits() -> None:
    with pytest.raises(
        PluginError, match=r"is for classification, not for .*did you mean 'binary-cross-entropy'"
    ):
        registry.check_task("loss", "cross-entropy", "multi-label")
    with pytest.raises(PluginError, match=r"is for multi-label, not for .*known: .*cross-entropy"):
        registry.check_task("loss", "asymmetric", "classification")
    registry.check_task("loss", "asymmetric", "multi-label")
