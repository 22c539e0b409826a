"""Losses of what a detector says of a place: which class the object there has, or that there is none.

Detectors ask in one of two forms. Dense ones (FCOS, RetinaNet) have a sigmoid for each class, and a place
without object has no class: ``(logits [..., C], wanted [..., C]) -> [...]``, wanted being 1 at the object's
class, the losses of the classes added. Others (Faster R-CNN, SSDLite) have a softmax over the classes and the
background, the last of them: ``(logits [..., C + 1], labels [...]) -> [...]`` with the label C for
background. A factory here returns a loss that says which forms it has (``forms``); ``form`` takes the one
that a network needs. Both are in nats, not reduced; how places are added up is the network's.

Counts [C] are boxes of each class, crowds left out, from the client or the federation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from fedvision.errors import ConfigError
from fedvision.losses.counts import images, occupied
from fedvision.losses.logits import SIGMOID, PerClass, cross_entropy_of, is_label, of_label, precise
from fedvision.losses.weighting import class_weights
from fedvision.ranges import check_range

if TYPE_CHECKING:
    from fedvision.types import HeadForm, LossFn

_FORMS = "forms"
_WHAT: Mapping[HeadForm, str] = {
    "sigmoid": "a sigmoid for each class (fcos, retinanet)",
    "softmax": "a softmax over classes and background (ssdlite, faster-rcnn)",
}
_LEAST_SCORE = 1e-2
"""Below which a score divides others no further in seesaw's compensation, as its authors' code has it."""


def form(criterion: LossFn, wanted: HeadForm) -> LossFn:
    """Return a loss in the form that a head needs; one that says nothing of forms is taken as it is.

    Raises:
        ConfigError: It has another form.
    """
    forms: Mapping[str, LossFn] = getattr(criterion, _FORMS, {})
    if wanted in forms:
        return forms[wanted]
    if forms:
        (other,) = forms
        raise ConfigError(
            f"[loss] is for a network with {_WHAT['softmax' if other == 'softmax' else 'sigmoid']}, and this "
            f"one has {_WHAT[wanted]}; take one of these networks, or 'cross-entropy' or 'weighted', which "
            "serve both"
        )
    return getattr(criterion, SIGMOID, criterion) if wanted == "sigmoid" else criterion


def sigmoid_focal(
    counts: torch.Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    scheme: str = "none",
    beta: float = 0.9999,
) -> LossFn:
    """Return ``-sum_c w_c a_c (1 - p_c)^gamma log p_c``, p_c the probability of what is wanted of class c.

    p_c = s(z_c) and a_c = alpha where class c is wanted, s(-z_c) and 1 - alpha where it is not. Lin, Goyal,
    Girshick, He, Dollar 2017, "Focal Loss for Dense Object Detection", arXiv 1708.02002. With weights the
    terms of rare classes weigh more, those of their negatives as well (class-balanced focal loss; Cui et al.
    2019, arXiv 1901.05555, who weigh an example by its class). gamma = 0 with alpha = 0.5 is half the binary
    cross-entropy.

    Args:
        counts: Boxes per class [C]; used by the weights alone.
        alpha: Weight of what is there, 0 < alpha < 1; what is not weighs 1 - alpha.
        gamma: How fast a place loses weight as it is learned, >= 0.
        scheme: Class weights: ``none``, ``inverse``, ``square-root`` or ``effective-number``; see
            ``class_weights``.
        beta: For effective numbers, 0 <= beta < 1.

    Raises:
        ValueError: A number is out of range, or the scheme is unknown.
    """
    check_range(above=0, below=1, alpha=alpha)
    check_range(at_least=0, gamma=gamma)
    weights = PerClass(class_weights(counts, scheme, beta))

    def loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        z = precise(logits)
        turned = torch.where(wanted > 0, z, -z)  # so that the probability of what is wanted is s(turned)
        share = torch.full_like(z, 1 - alpha).masked_fill(wanted > 0, alpha)
        # log(1 - p) = logsigmoid(-turned): its gradient is bounded for any gamma, that of a power is not.
        focus = (gamma * F.logsigmoid(-turned)).exp()
        return -(weights.beside(z) * share * focus * F.logsigmoid(turned)).sum(-1)

    return _of("sigmoid", loss)


def equalization(counts: torch.Tensor, *, rare_share: float = 0.1) -> LossFn:
    """Return binary cross-entropy in which objects of other classes do not push rare classes down.

    ``sum_c (1 - E T_c (1 - y_c)) BCE(z_c, y_c)`` with E = 1 at a place with an object and 0 at background,
    and T_c = 1 for a rare class c. Tan, Wang, Li, Li, Ouyang, Yin, Yan 2020, "Equalization Loss for
    Long-Tailed Object Recognition", arXiv 2003.05176. Which classes are rare is a threshold on a class's
    frequency there; here it follows from the share of all boxes that the rare classes have together, which
    suits any number of classes: the rarest ones as long as that share is not exceeded. A vacant class is
    rare.

    Args:
        counts: Boxes per class [C].
        rare_share: Of all boxes, that of the rare classes together at most, 0 <= rare_share < 1.

    Raises:
        ValueError: It is out of range.
    """
    check_range(at_least=0, below=1, rare_share=rare_share)
    rare = PerClass(_rarest(counts, rare_share).to(torch.float32))

    def loss(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        z, y = precise(logits), wanted.to(torch.promote_types(logits.dtype, torch.float32))
        spared = rare.beside(z) * (1 - y) * y.amax(-1, keepdim=True)
        return ((1 - spared) * F.binary_cross_entropy_with_logits(z, y, reduction="none")).sum(-1)

    return _of("sigmoid", loss)


def seesaw(counts: torch.Tensor, *, p: float = 0.8, q: float = 2.0) -> LossFn:
    """Return the seesaw loss: cross-entropy in which an object pushes rarer classes down less.

    ``-log softmax(z + log S_y)_y``, S_yj = M_yj C_yj for another class j and 1 for the object's own y: M_yj =
    min(1, (n_j / n_y)^p) from the counts mitigates what frequent classes do to rarer ones, and C_yj = max(1,
    (p_j / p_y)^q) from the predicted probabilities, without gradient, takes that back where j is what the
    network says. Wang, Zhang, Zang, Cao, Pang, Gong, Chen, Liu, Loy, Lin 2021, "Seesaw Loss for Long-Tailed
    Instance Segmentation", arXiv 2008.10032.

    The paper counts what was sampled so far; here counts are boxes, of the client or of the federation as
    ``loss.prior`` says, which no order of batches changes. Its head tells objects from background by two
    logits of their own; here the background is one more class of the softmax, with S = 1 on either side.

    Args:
        counts: Boxes per class [C].
        p: Strength of the mitigation, >= 0.
        q: Strength of the compensation, >= 0; p = q = 0 is cross-entropy.

    Raises:
        ValueError: A number is out of range.
    """
    check_range(at_least=0, p=p, q=q)
    n = occupied(counts)
    ratio = (n.unsqueeze(-2) / n.unsqueeze(-1)).clamp(max=1).log() * p  # log M [C, C], row y
    mitigation = F.pad(ratio, (0, 1, 0, 1))  # [C + 1, C + 1]: 0 for the background

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        z = precise(logits)
        log_m = mitigation.to(z.dtype).to(z.device)[labels]
        return cross_entropy_of(z + log_m + _compensation(z.detach(), labels, q), labels)

    return _of("softmax", loss)


def _compensation(z: torch.Tensor, labels: torch.Tensor, q: float) -> torch.Tensor:
    """Return log C [..., C + 1], 0 for the object's own class and wherever background is on a side."""
    shares = z.softmax(-1)
    own = of_label(shares, labels).clamp(min=_LEAST_SCORE).unsqueeze(-1)
    log_c = q * (shares / own).clamp(min=1).log()
    background = z.shape[-1] - 1
    none = is_label(z, labels) | (labels == background).unsqueeze(-1)
    none |= torch.arange(background + 1, device=z.device) == background
    return log_c.masked_fill(none, 0)


def _rarest(counts: torch.Tensor, share: float) -> torch.Tensor:
    """Return which classes [..., C] are the rarest ones that together have at most a share of all boxes."""
    n = images(counts)
    # Classes of one count are rare together or not at all.
    below = torch.where(n.unsqueeze(-2) <= n.unsqueeze(-1), n.unsqueeze(-2), 0.0).sum(-1)
    return (below <= share * n.sum(-1, keepdim=True)) | (n == 0)


def _of(only: HeadForm, loss: LossFn) -> LossFn:
    setattr(loss, _FORMS, {only: loss})
    return loss
