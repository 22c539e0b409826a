"""Calibrated logits: the softmax gets the frequency of each class, so that the logits need not hold it.

Which counts the losses get decides what they correct: the federation's sum the long tail, a client's own its
label skew too. A client often lacks classes, and the logarithm of a count of 0 would take such a class out of
the softmax: nothing then holds its logit down while the features move beneath it, and the average of such
clients predicts classes that few of them have. So a count below ``floor`` images is taken as ``floor``. One
image, the default, gives up little on either side; balanced accuracy in % of ``logit_adjusted`` on clients'
own counts:

=====================  =============  ============  ============  ============  =============
Dirichlet, imbalance   cross-entropy  floor 1e-6    floor 0.1     floor 1       floor 10
=====================  =============  ============  ============  ============  =============
0.05, 1                75.2 +- 2.0    73.4 +- 1.8   73.7 +- 2.4   74.7 +- 2.7   75.8 +- 2.3
0.1, 1                 76.9 +- 2.3    77.3 +- 3.6   77.5 +- 3.5   77.9 +- 3.4   77.8 +- 3.0
0.1, 50                62.9 +- 6.3    68.7 +- 4.6   68.9 +- 4.6   68.8 +- 4.8   67.9 +- 5.0
0.5, 50                70.9 +- 2.3    76.0 +- 0.8   76.0 +- 0.8   75.9 +- 0.8   74.9 +- 1.4
=====================  =============  ============  ============  ============  =============

Mean and sample deviation of 10 seeds, which also draw the split: Fashion-MNIST at 14x14, 1500 images of the
most frequent class, 10 clients less those with under 10 images, all in each of 30 rounds, 2 local epochs,
batches of 32, SGD at 0.05, one hidden layer of 64; 5000 test images, mean of the last 5 rounds; torch 2.14.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fedvision.losses.counts import at_least, images
from fedvision.losses.logits import PerClass, cross_entropy_after
from fedvision.ranges import check_range

if TYPE_CHECKING:
    from fedvision.types import LossFn


def balanced_softmax(counts: torch.Tensor, *, floor: float = 1.0) -> LossFn:
    """Return ``-log softmax(z + log n)_y``: [B, C], [B] -> [B], in nats.

    Ren, Yu, Sheng, Ma, Zhao, Yi, Li 2020, "Balanced Meta-Softmax for Long-Tailed Visual Recognition", arXiv
    2007.10740; here without its meta-learned sampler. It is ``logit_adjusted`` with tau = 1. Equal counts
    make it cross-entropy.

    Args:
        counts: Images per class [C].
        floor: Images that a class counts as at least, > 0.

    Raises:
        ValueError: The floor is out of range.
    """
    return logit_adjusted(counts, tau=1.0, floor=floor)


def logit_adjusted(counts: torch.Tensor, *, tau: float = 1.0, floor: float = 1.0) -> LossFn:
    """Return ``-log softmax(z + tau log p)_y`` with ``p = n / sum(n)``: [B, C], [B] -> [B], in nats.

    Menon, Jayasumana, Rawat, Jain, Veit, Kumar 2021, "Long-Tail Learning via Logit Adjustment", arXiv
    2007.07314: with tau = 1 the argmax of z alone aims at the balanced accuracy. tau = 0 and equal counts
    make it cross-entropy.

    Args:
        counts: Images per class [C].
        tau: Strength of the adjustment, >= 0.
        floor: Images that a class counts as at least, > 0.

    Raises:
        ValueError: tau or the floor is out of range.
    """
    # log n for log p: a softmax does not see what is added to all logits alike.
    return _shifted(_strength(tau) * at_least(counts, floor).log())


def fedlc(counts: torch.Tensor, *, tau: float = 1.0, floor: float = 1.0) -> LossFn:
    """Return ``-log softmax(z - tau n^(-1/4))_y``: [B, C], [B] -> [B], in nats.

    Zhang, Li, Li, Xu, Wu, Ding, Wu 2022, "Federated Learning with Label Distribution Skew via Logits
    Calibration", arXiv 2209.00189; there a vacant class leaves the softmax. The paper's denominator leaves
    out the label's own class, which makes a loss without a lower bound; here it is a softmax over all
    classes. tau = 0 and equal counts make it cross-entropy.

    Args:
        counts: Images per class [C], in the paper the client's own.
        tau: Strength of the calibration, >= 0: no logit moves by more than tau where the floor is 1.
        floor: Images that a class counts as at least, > 0.

    Raises:
        ValueError: tau or the floor is out of range.
    """
    return _shifted(-_strength(tau) * at_least(counts, floor) ** -0.25)


def fedrs(counts: torch.Tensor, *, alpha: float = 0.5, min_count: int = 1) -> LossFn:
    """Return ``-log softmax(a z)_y``, a = 1 for a class that is present and alpha for one that is not.

    [B, C], [B] -> [B], in nats. Li, Zhan 2021, "FedRS: Federated Learning with Restricted Softmax for Label
    Distribution Non-IID Data", KDD 2021. alpha < 1 slows the pull of a client on classes that it lacks;
    alpha = 1, or no such class, makes it cross-entropy.

    Args:
        counts: Images per class [C], in the paper the client's own.
        alpha: Factor of absent classes' logits, 0 <= alpha <= 1.
        min_count: Images from which on a class is present, >= 1.

    Raises:
        ValueError: alpha or min_count is out of range.
    """
    check_range(at_least=0, at_most=1, alpha=alpha)
    check_range(at_least=1, min_count=min_count)
    return _scaled(torch.where(images(counts) >= min_count, 1.0, alpha))


def fedlf(counts: torch.Tensor, *, alpha: float = 0.5) -> LossFn:
    """Return ``-log softmax(a z)_y``, ``a_c = alpha + (1 - alpha) n_c / max n``: [B, C], [B] -> [B], in nats.

    Lu, Li, Jiang 2024, "FedLF: Adaptive Logit Adjustment and Feature Optimization in Federated Long-Tailed
    Learning", arXiv 2409.12105: its adaptive logit adjustment, on the client's own counts. The other two
    parts of FedLF are about features and are the strategy of that name. Here the whole logit is scaled, bias
    and all; the authors' code (github.com/18sym/FedLF) leaves the head's bias out in training and predicts
    with it. It gives alpha no value; 0.5 is that of ``fedrs``. alpha = 1, or equal counts, makes it
    cross-entropy.

    Args:
        counts: Images per class [C], in the paper the client's own.
        alpha: Factor of the logit of a class without images, 0 <= alpha <= 1.

    Raises:
        ValueError: alpha is out of range.
    """
    check_range(at_least=0, at_most=1, alpha=alpha)
    n = images(counts)
    most = n.amax(-1, keepdim=True)
    share = torch.where(most > 0, n / most.clamp(min=1), 1.0)
    return _scaled(alpha + (1 - alpha) * share)


def _scaled(values: torch.Tensor) -> LossFn:
    """Return the cross-entropy of logits times a factor per class [C]."""
    factors = PerClass(values)
    return cross_entropy_after(lambda z: factors.beside(z) * z)


def _shifted(offsets: torch.Tensor) -> LossFn:
    """Return the cross-entropy of logits to which offsets per class [C] are added."""
    shift = PerClass(offsets)
    return cross_entropy_after(lambda z: z + shift.beside(z))


def _strength(tau: float) -> float:
    check_range(at_least=0, tau=tau)
    return tau
