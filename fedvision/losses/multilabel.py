"""Losses of several labels an image: each label is a question of its own, answered by sigmoid(z).

Every factory here returns a loss ``(logits [B, L], targets [B, L]) -> [B]`` with targets of 0 and 1: per
example, the mean over its L labels, in nats. Stacked clients have [K, B, L], with counts [K, L].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from fedvision.losses.counts import occupied
from fedvision.losses.logits import PerClass, precise
from fedvision.losses.weighting import class_weights
from fedvision.ranges import check_range

if TYPE_CHECKING:
    from fedvision.types import LossFn

_NOTHING = 1e-20
"""Less than the rarity of any label."""


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


def distribution_balanced(
    counts: torch.Tensor,
    *,
    alpha: float = 0.1,
    beta: float = 10.0,
    mu: float = 0.2,
    kappa: float = 0.05,
    tolerance: float = 2.0,
    gamma: float = 0.0,
) -> LossFn:
    """Return the distribution-balanced loss: weights for what an image shows beside, and tolerant negatives.

    Mean over labels of ``w_l (y log(1 + exp(-u)) + (1 - y) log(1 + exp(t u)) / t)`` with

    - ``w_l = alpha + s(beta (r_l - mu))``, where ``r_l = (1 / n_l) / sum of 1 / n_m over the image's labels
      m``: the share of a label in what sampling by class would draw of this image. A frequent label of an
      image that is drawn for a rare one weighs little; of an image without labels ``w_l = alpha + 1``,
    - ``u = z_l - (kappa / t) log(1 / p_l - 1)``: a rare label's logit need not fall as low where the label is
      absent. The slope of that is s(t u), which fades t times as early as s(u): few positives are not
      outvoted by many negatives that are settled.

    Wu, Huang, Liu, Wang, Lin 2020, "Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
    Datasets", arXiv 2007.09654; the defaults are those of their code for COCO (wutong16/
    DistributionBalancedLoss), which calls mu ``map_gamma``, kappa ``init_bias`` and t ``neg_scale``, and
    which has ``gamma = 2``, doubles the focal loss and samples by class. Here p_l is the label's share of all
    labels, as losses are not told the number of images: with m labels an image u is lower by ``(kappa / t)
    log m``. With ``alpha = 1/2, beta = 0, kappa = 0, tolerance = 1`` it is binary cross-entropy.

    Args:
        counts: Images that have each label [L].
        alpha: The least weight, >= 0.
        beta: How steep the weight is in r, >= 0.
        mu: At which r the weight is alpha + 1/2, >= 0.
        kappa: How far a label's frequency moves its logit, >= 0.
        tolerance: t, >= 1.
        gamma: Focal exponent, >= 0, of 1 - p of what is so (Lin et al. 2017, arXiv 1708.02002).

    Raises:
        ValueError: A number is out of range.
    """
    check_range(at_least=0, alpha=alpha, beta=beta, mu=mu, kappa=kappa, gamma=gamma)
    check_range(at_least=1, tolerance=tolerance)
    n = occupied(counts)
    others = n.sum(-1, keepdim=True) - n
    inverse = PerClass(n.amin(-1, keepdim=True) / n)  # small numbers, whatever the counts are
    # The share of an only label says nothing.
    shift = PerClass(kappa / tolerance * torch.where(others > 0, others / n, 1.0).log())

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        z = precise(logits)
        y, rarity = _checked(z, targets), inverse.beside(z)
        # Of an image without labels the share is so large that the sigmoid is 1.
        share = rarity / (y * rarity).sum(-1, keepdim=True).clamp(min=_NOTHING)
        weight = alpha + (beta * (share - mu)).sigmoid()
        slope = 1 + (tolerance - 1) * (1 - y)
        right = (2 * y - 1) * slope * (z - shift.beside(z))
        focus = (gamma * F.logsigmoid(-right)).exp() if gamma else 1.0
        return (weight * focus * -F.logsigmoid(right) / slope).mean(-1)

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
