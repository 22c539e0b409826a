"""Focal loss by hand, against the plain formula, and where that formula breaks."""

from __future__ import annotations

import math

import pytest
import torch

from fedvision.losses.focal import focal
from fedvision.losses.weighting import class_weights

COUNTS = torch.tensor([40, 5, 0])


def test_by_hand() -> None:
    logits = torch.tensor([[math.log(3), 0.0, -1e9], [0.0, 0.0, -1e9]])
    values = focal(COUNTS, gamma=2.0)(logits, torch.tensor([0, 1]))
    assert values.tolist() == pytest.approx([-math.log(0.75) / 16, math.log(2) / 4])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("scheme", ["none", "square-root"])
def test_value_and_gradient_are_those_of_the_plain_formula(gamma: float, scheme: str) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(12, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (12,), generator=generator)
    p = logits.softmax(1)[torch.arange(12), labels]
    plain = -class_weights(COUNTS, scheme)[labels] * (1 - p) ** gamma * p.log()
    ours = focal(COUNTS, gamma=gamma, scheme=scheme)(logits, labels)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), logits), torch.autograd.grad(plain.sum(), logits)
    )


def test_a_learned_example_has_a_gradient_where_the_plain_power_has_none() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0]], requires_grad=True)
    p = logits.softmax(1)[:, 0]
    (plain,) = torch.autograd.grad(((1 - p) ** 0.5 * -p.log()).sum(), logits)
    assert plain.isnan().any()
    loss = focal(COUNTS, gamma=0.5)(logits, torch.tensor([0]))
    (ours,) = torch.autograd.grad(loss.sum(), logits)
    assert ours.isfinite().all()
    assert (loss >= 0).all()


def test_easy_examples_weigh_less_the_larger_gamma() -> None:
    easy, labels = torch.tensor([[3.0, 0.0, 0.0]]), torch.tensor([0])
    values = [float(focal(COUNTS, gamma=gamma)(easy, labels)) for gamma in (0.0, 1.0, 2.0, 4.0)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 50 * values[2]
