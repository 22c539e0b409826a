"""Losses of several labels an image: each label is a question of its own, answered by sigmoid(z).

Every factory here returns a loss ``(logits [B, L], targets [B, L]) -> [B]`` with targets of 0 and 1: per
example, the mean over its L labels, in nats. Stacked clients have [K, B, L], with counts [K, L].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from fedvision.losses.logits import PerClass, precise
from fedvision.losses.weighting import class_weights
from fedvision.ranges import check_range

if TYPE_CHECKING:
    from fedvision.types import LossFn


def binary_cross_entropy(counts: torch.Tensor) -> LossFn:
    """Return the mean over labels of ``-y log s(z) - (1 - y) log s(-z)``, s the sigmoid.

    Args:
        counts: Images that have each label [L]; not used.
    """

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _terms(logits, targets).mean(-1)

    return loss


def class_balanced(counts: torch.Tensor, *, beta: float = 0.9999) -> LossFn:
    """Return binary cross-entropy whose terms are weighed by label: rare labels weigh more.

    The weights are those of effective numbers, ``w_l ~ (1 - beta) / (1 - beta^n_l)`` with n_l images that
    have label l, and have mean 1 over labels that occur (``weighting.class_weights``). Cui, Jia, Lin, Song,
    Belongie 2019, "Class-Balanced Loss Based on Effective Number of Samples", arXiv 1901.05555, weigh the
    sigmoid cross-entropy of an image by its only label; here each label's own term is weighed, whether the
    image has the label or not. Equal counts, or beta = 0, make it binary cross-entropy.

    Args:
        counts: Images that have each label [L].
        beta: 0 <= beta < 1.

    Raises:
        ValueError: beta is out of range.
    """
    weights = PerClass(class_weights(counts, "effective-number", beta))

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        terms = _terms(logits, targets)
        return (weights.beside(terms) * terms).mean(-1)

    return loss


def asymmetric(
    counts: torch.Tensor, *, gamma_pos: float = 0.0, gamma_neg: float = 4.0, margin: float = 0.05
) -> LossFn:
    """Return the asymmetric loss: easy negatives, which are most, count less, and very easy ones nothing.

    Mean over labels of ``-y (1 - p)^g+ log p - (1 - y) q^g- log(1 - q)`` with p = s(z), q = max(p - m, 0).
    Ridnik et al. 2021, "Asymmetric Loss For Multi-Label Classification", arXiv 2009.14119, who sum over
    labels; the gradient goes through the focusing factors, as their formula has it. Without focusing and
    margin it is binary cross-entropy.

    Args:
        counts: Images that have each label [L]; not used.
        gamma_pos: g+, 0 or >= 1.
        gamma_neg: g-, 0 or >= 1; below 1 its gradient would be infinite where q = 0.
        margin: m, >= 0 and < 1.

    Raises:
        ValueError: A number is out of range.
    """
    for name, gamma in (("gamma_pos", gamma_pos), ("gamma_neg", gamma_neg)):
        if not (gamma == 0 or 1 <= gamma < float("inf")):
            raise ValueError(f"{name} must be 0 or >= 1, and finite, not {gamma}")
    check_range(at_least=0, below=1, margin=margin)

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        z = precise(logits)
        y = _checked(z, targets)
        positive = F.logsigmoid(z)
        if gamma_pos:
            positive = positive * (gamma_pos * F.logsigmoid(-z)).exp()
        negative = F.logsigmoid(-z) if margin == 0 else (z.neg().sigmoid() + margin).clamp(max=1).log()
        if gamma_neg:
            negative = negative * (z.sigmoid() - margin).clamp(min=0).pow(gamma_neg)
        return -torch.where(y > 0, positive, negative).mean(-1)

    return loss


def _terms(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy of each label [..., B, L]."""
    z = precise(logits)
    return F.binary_cross_entropy_with_logits(z, _checked(z, targets), reduction="none")


def _checked(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return targets in the logits' type; one class an image would be broadcast in silence."""
    if logits.shape != targets.shape:
        raise ValueError(f"targets must be {list(logits.shape)} as the logits, not {list(targets.shape)}")
    return targets.to(logits.dtype)
