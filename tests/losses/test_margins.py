"""LDAM by hand: margins, scale, and weights that wait for their round."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from fedvision.losses.margins import ldam
from fedvision.losses.weighting import class_weights

LABELS = torch.tensor([0, 1, 2, 3])


def test_margins_by_hand() -> None:
    # Equal logits: s CE = log(1 + 3 e^(s D)), so the margin of each label can be read off its loss.
    values = ldam(torch.tensor([16, 1, 81, 0]), max_margin=0.5, scale=4.0)(torch.zeros(4, 4), LABELS)
    margins = [math.log((math.exp(4 * value) - 1) / 3) / 4 for value in values.tolist()]
    assert margins == pytest.approx([0.5 / 2, 0.5, 0.5 / 3, 0.5], rel=1e-5)


def test_the_rarest_class_with_images_has_the_largest_margin() -> None:
    values = ldam(torch.tensor([160, 10, 0, 10]), scale=1.0)(torch.zeros(4, 4), LABELS)
    expected = [math.log(1 + 3 * math.exp(d)) for d in (0.25, 0.5, 0.5, 0.5)]
    assert values.tolist() == pytest.approx(expected)


def test_value_and_gradient_are_those_of_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    margins = 0.3 * (2 / torch.tensor([50.0, 2.0, 9.0, 30.0], dtype=torch.float64)) ** 0.25
    held_back = logits - torch.diag(margins)
    plain = F.cross_entropy(5 * held_back, LABELS, reduction="none") / 5
    ours = ldam(torch.tensor([50, 2, 9, 30]), max_margin=0.3, scale=5.0)(logits, LABELS)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours.sum(), logits), torch.autograd.grad(plain.sum(), logits)
    )


@pytest.mark.parametrize("scale", [0.5, 1.0, 30.0, 300.0])
def test_no_scale_makes_steps_longer_than_those_of_cross_entropy(scale: float) -> None:
    logits = torch.tensor([[-2.0, 3.0, 0.0, 0.0]], requires_grad=True)
    loss = ldam(torch.tensor([16, 1, 81, 0]), scale=scale)(logits, torch.tensor([0]))
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert float(slope.abs().sum()) <= 2 + 1e-6


@pytest.mark.parametrize(
    ("drw_round", "round", "weighs"),
    [(0, 1, False), (0, 99, False), (5, 4, False), (5, 5, True), (1, 1, True)],
)
def test_weights_begin_in_their_round(drw_round: int, round: int, weighs: bool) -> None:
    counts, logits = torch.tensor([50, 2, 9, 0]), torch.zeros(4, 4)
    plain = ldam(counts)(logits, LABELS)
    weights = class_weights(counts, "effective-number", 0.9) if weighs else torch.ones(4)
    values = ldam(counts, drw_round=drw_round, beta=0.9, round=round)(logits, LABELS)
    torch.testing.assert_close(values, weights.float() * plain)
