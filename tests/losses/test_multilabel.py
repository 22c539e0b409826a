"""Losses of several labels: values by hand, gradients, extreme logits, and when they are each other."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.func import grad, vmap
from torch.nn import functional as F

from fedvision import registry
from fedvision.errors import PluginError
from fedvision.losses.multilabel import (
    asymmetric,
    binary_cross_entropy,
    class_balanced,
    distribution_balanced,
)
from fedvision.types import LossFn, PluginSpec

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("binary-cross-entropy", {}),
    ("class-balanced", {}),
    ("class-balanced", {"beta": 0.9}),
    ("asymmetric", {}),
    ("asymmetric", {"gamma_pos": 1.0, "gamma_neg": 1.0, "margin": 0.0}),
    ("asymmetric", {"gamma_pos": 2.0, "gamma_neg": 0.0, "margin": 0.2}),
    ("distribution-balanced", {}),
    ("distribution-balanced", {"gamma": 2.0, "tolerance": 5.0}),
    ("distribution-balanced", {"gamma": 0.5, "kappa": 1.0, "mu": 0.0}),
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


def test_distribution_balanced_by_hand() -> None:
    """Counts 1 and 3: 1/n are 1 and 1/3, so of an image with the second alone the shares are 3 and 1.

    The weights are 1/10 + s(2 (3 - 1/2)) and 1/10 + s(2 (1 - 1/2)); with kappa = 1 and t = 2 the logits move
    by -log(3) / 2 and +log(3) / 2.
    """
    loss = distribution_balanced(torch.tensor([1, 3]), beta=2.0, mu=0.5, kappa=1.0)
    found = loss(torch.tensor([[1.0, -0.5]]), torch.tensor([[0, 1]]))
    negative = math.log(1 + math.exp(2 * (1 - math.log(3) / 2))) / 2
    positive = math.log(1 + math.exp(0.5 - math.log(3) / 2))
    expected = (0.1 + sigmoid(5)) * negative + (0.1 + sigmoid(1)) * positive
    assert float(found) == pytest.approx(expected / 2)


def test_labels_shown_together_share_the_weight_of_an_image() -> None:
    """With counts 1 and 3 and both labels the shares are 3/4 and 1/4, without labels the weights are 1.1."""
    loss = distribution_balanced(torch.tensor([1, 3]), beta=4.0, kappa=0.0, tolerance=1.0)
    found = loss(torch.zeros(2, 2), torch.tensor([[1, 1], [0, 0]]))
    weights = (0.2 + sigmoid(4 * (0.75 - 0.2)) + sigmoid(4 * (0.25 - 0.2))) / 2
    assert found.tolist() == pytest.approx([weights * math.log(2), 1.1 * math.log(2)])


def test_distribution_balanced_focuses_on_what_is_not_learned() -> None:
    """A right answer of probability p costs (1 - p)^2 of what it costs without, p that of the moved logit."""
    plain, focal = (distribution_balanced(torch.tensor([4, 4]), gamma=gamma) for gamma in (0.0, 2.0))
    for z, y, p in ((1.5, 1, sigmoid(1.5)), (1.5, 0, sigmoid(-3.0))):
        logits, targets = torch.full((1, 2), z), torch.full((1, 2), y)
        assert float(focal(logits, targets)) == pytest.approx(
            (1 - p) ** 2 * float(plain(logits, targets)), rel=1e-5
        )


def test_an_only_label_is_moved_nowhere() -> None:
    loss = distribution_balanced(torch.tensor([5]), alpha=0.5, beta=0.0, kappa=3.0, tolerance=1.0)
    found = loss(torch.tensor([[0.3], [0.3]]), torch.tensor([[1], [0]]))
    assert found.tolist() == pytest.approx([-math.log(sigmoid(0.3)), -math.log(sigmoid(-0.3))])


def test_few_positives_are_not_outvoted() -> None:
    """At the logit -2 a negative of a rare label pulls less than half as hard as in binary cross-entropy."""

    def pull(loss: LossFn) -> float:
        logits = torch.full((1, 2), -2.0, requires_grad=True)
        loss(logits, torch.tensor([[0, 1]])).sum().backward()
        assert logits.grad is not None
        return float(logits.grad[0, 0])

    counts = torch.tensor([10, 1000])
    plain = pull(binary_cross_entropy(counts))
    assert 0 < pull(distribution_balanced(counts, alpha=0.0)) < plain / 2
    assert pull(distribution_balanced(counts, alpha=0.0, tolerance=1.0, kappa=0.0)) == pytest.approx(plain)


@pytest.mark.parametrize(
    "counts", [[0, 0, 0, 0], [0, 5, 0, 0], [9, 9, 9, 9], [10**9, 1, 0, 3], [2.6, -4.0, 0.2, 7.0]]
)
@every
def test_any_counts_give_finite_losses(name: str, args: dict[str, Any], counts: list[float]) -> None:
    logits, _ = batch(16)
    logits.requires_grad_()
    targets = torch.tensor([[n >> bit & 1 for bit in range(4)] for n in range(16)])
    losses = build(name, args, torch.tensor(counts))(logits, targets)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@every
def test_clients_under_vmap_are_as_one_by_one(name: str, args: dict[str, Any]) -> None:
    logits, targets = batch(3, 5)
    counts = torch.tensor([[9, 1, 0, 4], [0, 0, 0, 0], [50, 2, 8, 0]])

    def mean(z: torch.Tensor, y: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        return build(name, args, n)(z, y).mean()

    slopes = torch.stack([grad(mean)(*one) for one in zip(logits, targets, counts, strict=True)])
    torch.testing.assert_close(vmap(grad(mean))(logits, targets, counts), slopes)


@pytest.mark.parametrize(
    ("name", "args", "counts"),
    [
        ("asymmetric", {"gamma_neg": 0.0, "margin": 0.0}, COUNTS),
        ("class-balanced", {"beta": 0.0}, COUNTS),
        ("class-balanced", {}, torch.tensor([7, 7, 7, 7])),
        ("distribution-balanced", {"alpha": 0.5, "beta": 0.0, "kappa": 0.0, "tolerance": 1.0}, COUNTS),
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
    ("name", "args", "problem"),
    [
        ("asymmetric", {"gamma_neg": 0.5}, "gamma_neg must be 0 or >= 1"),
        ("asymmetric", {"margin": 1.0}, "margin must be >= 0 and < 1"),
        ("distribution-balanced", {"tolerance": 0.5}, "tolerance must be >= 1"),
        ("distribution-balanced", {"kappa": -1.0}, "kappa must be >= 0"),
        ("distribution-balanced", {"gamma": float("inf")}, "gamma must be >= 0 and finite"),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, args: dict[str, Any], problem: str) -> None:
    with pytest.raises(PluginError, match=problem):
        build(name, args)


def test_a_loss_of_another_task_is_refused_with_the_nearest_that_fits() -> None:
    with pytest.raises(
        PluginError, match=r"is for classification, detection, not for .*did you mean 'binary-cross-entropy'"
    ):
        registry.check_task("loss", "cross-entropy", "multi-label")
    with pytest.raises(PluginError, match=r"is for multi-label, not for .*known: .*cross-entropy"):
        registry.check_task("loss", "asymmetric", "classification")
    registry.check_task("loss", "asymmetric", "multi-label")
