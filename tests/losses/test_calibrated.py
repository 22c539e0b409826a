"""Calibrated logits by hand, against the plain formulas, and what they do with vacant classes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from fedvision.losses.calibrated import balanced_softmax, fedlc, fedlf, fedrs, logit_adjusted
from fedvision.losses.weighting import cross_entropy
from fedvision.types import LossFn

LABELS = torch.tensor([0, 1, 2])
ZEROS = torch.zeros(3, 3)


def _slopes(loss: LossFn, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    leaf = logits.clone().requires_grad_()
    loss(leaf, labels).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def _random() -> torch.Tensor:
    return torch.randn(3, 3, generator=torch.Generator().manual_seed(6), dtype=torch.float64)


def test_balanced_softmax_of_equal_logits_is_the_log_of_the_prior() -> None:
    values = balanced_softmax(torch.tensor([6, 3, 1]))(ZEROS, LABELS)
    assert values.tolist() == pytest.approx([-math.log(0.6), -math.log(0.3), -math.log(0.1)])


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_logit_adjustment_is_the_plain_formula(tau: float) -> None:
    logits, prior = _random(), torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    ours = logit_adjusted(torch.tensor([60, 30, 10]), tau=tau)

    def plain(z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(z + tau * prior.log(), y, reduction="none")

    torch.testing.assert_close(ours(logits, LABELS), plain(logits, LABELS))
    torch.testing.assert_close(_slopes(ours, logits, LABELS), _slopes(plain, logits, LABELS))


def test_balanced_softmax_is_logit_adjustment_with_tau_one() -> None:
    counts = torch.tensor([70, 0, 3])
    ours, theirs = balanced_softmax(counts, floor=0.3), logit_adjusted(counts, floor=0.3)
    assert torch.equal(ours(_random(), LABELS), theirs(_random(), LABELS))


def test_logits_that_hold_the_prior_are_freed_of_it() -> None:
    # The best plain classifier without features has logits log p; the adjusted one zeros.
    counts = torch.tensor([60, 30, 10])
    prior = (counts / 100).log().expand(1, 3)
    images = torch.repeat_interleave(LABELS, counts)
    plain = _slopes(cross_entropy(counts), prior.expand(100, 3), images).sum(0)
    adjusted = _slopes(logit_adjusted(counts), torch.zeros(100, 3), images).sum(0)
    torch.testing.assert_close(plain, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(adjusted, torch.zeros(3), atol=1e-5, rtol=0)


def test_fedlc_by_hand() -> None:
    # 16^(-1/4) = 1/2, 81^(-1/4) = 1/3, and a vacant class counts as one image.
    values = fedlc(torch.tensor([16, 81, 0]), tau=6.0)(ZEROS, LABELS)
    weights = [math.exp(-3), math.exp(-2), math.exp(-6)]
    assert values.tolist() == pytest.approx([-math.log(w / sum(weights)) for w in weights])


def test_fedrs_by_hand() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    values = fedrs(torch.tensor([5, 4, 0]), alpha=0.5)(logits, torch.tensor([1]))
    assert values.tolist() == pytest.approx([-2 + math.log(math.exp(1) + math.exp(2) + math.exp(1.5))])


def test_fedrs_slows_the_pull_on_absent_classes_alone() -> None:
    counts, labels = torch.tensor([5, 4, 0]), torch.tensor([0, 1, 0])
    restricted = _slopes(fedrs(counts, alpha=0.25), ZEROS, labels)
    plain = _slopes(cross_entropy(counts), ZEROS, labels)
    torch.testing.assert_close(restricted, plain * torch.tensor([1, 1, 0.25]))


def test_fedrs_counts_a_class_as_present_from_min_count_on() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]])
    label = torch.tensor([0])
    assert torch.equal(
        fedrs(torch.tensor([5, 3, 2]), min_count=3)(logits, label),
        fedrs(torch.tensor([5, 5, 0]))(logits, label),
    )


def test_fedlf_by_hand() -> None:
    """Of 8, 4 and 0 images at alpha 0.2 the logits count 1, 0.6 and 0.2 times."""
    values = fedlf(torch.tensor([8, 4, 0]), alpha=0.2)(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1]))
    assert values.tolist() == pytest.approx([-1.2 + math.log(math.exp(1) + math.exp(1.2) + math.exp(0.6))])


def test_fedlf_with_alpha_one_is_cross_entropy_to_the_bit() -> None:
    counts = torch.tensor([8, 4, 0])
    assert torch.equal(fedlf(counts, alpha=1.0)(_random(), LABELS), cross_entropy(counts)(_random(), LABELS))


@pytest.mark.parametrize("factory", [balanced_softmax, logit_adjusted, fedlc])
def test_a_vacant_class_counts_as_one_image_and_stays_in_the_softmax(
    factory: Callable[..., LossFn],
) -> None:
    vacant, single = torch.tensor([50, 9, 0]), torch.tensor([50, 9, 1])
    assert torch.equal(factory(vacant)(_random(), LABELS), factory(single)(_random(), LABELS))
    # Its logit is held down the more, the higher it has drifted.
    drifted = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 3.0], [0.0, 0.0, 9.0]])
    pull = _slopes(factory(vacant), drifted, torch.tensor([0, 0, 0]))[:, 2]
    assert 0 < pull[0] < pull[1] < pull[2] <= 1


@pytest.mark.parametrize("factory", [balanced_softmax, logit_adjusted, fedlc])
def test_the_floor_is_the_count_of_a_vacant_class(factory: Callable[..., LossFn]) -> None:
    vacant, ten = torch.tensor([50, 20, 0]), torch.tensor([50, 20, 10])
    ours = factory(vacant, floor=10.0)(_random(), LABELS)
    assert torch.equal(ours, factory(ten)(_random(), LABELS))
