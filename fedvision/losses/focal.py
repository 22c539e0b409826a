"""Focal loss: examples that the model already gets right count for little."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fedvision.losses.logits import PerClass, is_label, of_label, precise
from fedvision.losses.weighting import class_weights
from fedvision.ranges import check_range

if TYPE_CHECKING:
    from fedvision.types import LossFn


def focal(counts: torch.Tensor, *, gamma: float = 2.0, scheme: str = "none", beta: float = 0.9999) -> LossFn:
    """Return ``-w_y (1 - p_y)^gamma log p_y`` with ``p = softmax(z)``: [B, C], [B] -> [B], in nats.

    Lin, Goyal, Girshick, He, Dollar 2017, "Focal Loss for Dense Object Detection", arXiv 1708.02002, for one
    softmax over C classes instead of a sigmoid each. With weights it is the class-balanced focal loss of Cui
    et al. 2019, arXiv 1901.05555. gamma = 0 without weights is cross-entropy.

    Args:
        counts: Images per class [C]; used by the weights alone.
        gamma: How fast an example loses weight as it is learned, >= 0.
        scheme: Class weights: ``none``, ``inverse``, ``square-root`` or ``effective-number``; see
            ``class_weights``.
        beta: For effective numbers, 0 <= beta < 1.

    Raises:
        ValueError: gamma or beta is out of range, or the scheme is unknown.
    """
    check_range(at_least=0, gamma=gamma)
    weights = PerClass(class_weights(counts, scheme, beta))

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        log_p = precise(logits).log_softmax(-1)
        focus = (gamma * _log_miss(log_p, labels)).exp()
        return -weights.at(labels, log_p) * focus * of_label(log_p, labels)

    return loss


def _log_miss(log_p: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return ``log(1 - p_y)`` [..., B] from ``log p`` [..., B, C], as the log of the others' sum.

    Its gradient is bounded whatever the logits are, where a power of ``1 - p_y`` has an infinite one for
    gamma < 1 as p_y reaches 1. The least finite number stands for a probability of 0, so that a model with a
    single class, which leaves no others, gives 0 and not NaN.
    """
    least = torch.finfo(log_p.dtype).min
    return log_p.masked_fill(is_label(log_p, labels), least).logsumexp(-1)
