"""Margins: the rarer a class, the further its examples must lie from the border."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fedvision.losses.counts import occupied
from fedvision.losses.logits import PerClass, cross_entropy_of, is_label, precise, sharpened
from fedvision.losses.weighting import class_weights
from fedvision.ranges import check_range

if TYPE_CHECKING:
    from fedvision.types import LossFn


def ldam(
    counts: torch.Tensor,
    *,
    max_margin: float = 0.5,
    scale: float = 30.0,
    drw_round: int = 0,
    beta: float = 0.9999,
    round: int = 1,
) -> LossFn:
    """Return the label-distribution-aware margin loss, [B, C], [B] -> [B].

    ::

        loss = -(w_y / s) log softmax(s (z - D_y e_y))_y        D_c = max_margin (n_min / n_c)^(1/4)

    e_y is 1 at the label and 0 elsewhere; n_min is the count of the rarest class that has images, and a
    vacant class has its margin. max_margin = 0, scale = 1 without weights is cross-entropy.

    Source: Cao, Wei, Gaidon, Arechiga, Ma 2019, "Learning Imbalanced Datasets with Label-Distribution-Aware
    Margin Loss", arXiv 1906.07413. Its deferred re-weighting (DRW) trains without weights first, then from
    ``drw_round`` on with those of ``effective-number``. The paper's logits are cosines, and it does not
    divide by s. On a plain linear head that makes steps s times as long, and federated training breaks at
    the learning rate of cross-entropy; divided, it needs no other one. Nothing else differs.

    Args:
        counts: Images per class [C].
        max_margin: Margin of the rarest class, in units of a logit, >= 0.
        scale: Sharpness s > 0; the network's probabilities are softmax(s z).
        drw_round: First round with weights, from 1; 0 never weighs.
        beta: For the weights' effective numbers, 0 <= beta < 1.
        round: The round, from 1 (known to the program).

    Raises:
        ValueError: An argument is out of range.
    """
    check_range(at_least=0, max_margin=max_margin, drw_round=drw_round)
    check_range(above=0, scale=scale)
    n = occupied(counts)
    margins = PerClass(max_margin * (n.amin(-1, keepdim=True) / n) ** 0.25)
    deferred = drw_round == 0 or round < drw_round
    weights = PerClass(class_weights(counts, "none" if deferred else "effective-number", beta))

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        z = precise(logits)
        held_back = torch.where(is_label(z, labels), z - margins.beside(z), z)
        return weights.at(labels, z) * cross_entropy_of(scale * held_back, labels) / scale

    return sharpened(loss, scale)
