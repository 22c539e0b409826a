"""Cross-entropy, plain and weighted by class.

Every factory here returns a loss ``(logits [B, C], labels [B]) -> [B]``: per example, not reduced, in nats.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from fedvision.losses.counts import images, occupied
from fedvision.losses.logits import SIGMOID, PerClass, cross_entropy_of, precise
from fedvision.ranges import check_range

if TYPE_CHECKING:
    from fedvision.types import LossFn

_POWERS = {"none": 0.0, "inverse": -1.0, "square-root": -0.5}
_EFFECTIVE = "effective-number"


def cross_entropy(counts: torch.Tensor) -> LossFn:
    """Return ``-log softmax(z)_y``, whatever the counts are.

    For a detector that has a sigmoid for each class it is the binary cross-entropy, added up over the
    classes.

    Args:
        counts: Images per class [C]; not used.
    """

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy_of(precise(logits), labels)

    setattr(loss, SIGMOID, lambda logits, wanted: _binary(logits, wanted).sum(-1))
    return loss


def _binary(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the binary cross-entropy of each class [..., C]."""
    z = precise(logits)
    return F.binary_cross_entropy_with_logits(z, wanted.to(z.dtype), reduction="none")


def weighted(counts: torch.Tensor, *, scheme: str = "inverse", beta: float = 0.9999) -> LossFn:
    """Return ``-w_y log softmax(z)_y``: rare classes weigh more; see ``class_weights`` for the weights.

    Equal counts make it cross-entropy, and so does ``beta = 0`` with effective numbers. For a detector that
    has a sigmoid for each class it is ``-sum_c w_c log p_c``, p_c the probability of what is wanted of class
    c; the background of a softmax weighs 1, as classes do on average.

    Args:
        counts: Images per class [C], of a detector's boxes.
        scheme: ``none``, ``inverse``, ``square-root`` or ``effective-number``.
        beta: For effective numbers, 0 <= beta < 1.

    Raises:
        ValueError: The scheme is unknown or beta is out of range.
    """
    weights = class_weights(counts, scheme, beta)
    of_classes, with_background = PerClass(weights), PerClass(F.pad(weights, (0, 1), value=1.0))

    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        z = precise(logits)
        own = of_classes if z.shape[-1] == counts.shape[-1] else with_background
        return own.at(labels, z) * cross_entropy_of(z, labels)

    def binary(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        terms = _binary(logits, wanted)
        return (of_classes.beside(terms) * terms).sum(-1)

    setattr(loss, SIGMOID, binary)
    return loss


def class_weights(counts: torch.Tensor, scheme: str, beta: float = 0.9999) -> torch.Tensor:
    """Return a weight per class [C], > 0, with mean 1 over the classes that have images.

    ======================  =================================
    ``none``                ``w_c = 1``
    ``inverse``             ``w_c ~ 1 / n_c``
    ``square-root``         ``w_c ~ 1 / sqrt(n_c)``
    ``effective-number``    ``w_c ~ (1 - beta) / (1 - beta^n_c)``
    ======================  =================================

    The last one is Cui, Jia, Lin, Song, Belongie 2019, "Class-Balanced Loss Based on Effective Number of
    Samples", arXiv 1901.05555: beta = 0 weighs all classes alike, beta -> 1 inversely to their counts, and
    counts far below 1 / (1 - beta), 10000 images by default, are weighed inversely already. A vacant class
    weighs as much as the rarest one that has images. As the mean is over classes and not over examples, the
    weights of a batch average below 1: steps are shorter than with plain cross-entropy, with ``inverse`` 6.2
    times at ten classes whose counts fall geometrically by 100. ``torch.nn.CrossEntropyLoss(weight=...)``,
    which LDAM's own code uses, divides a batch's sum by its weights; here it is divided by its images: a
    batch without rare classes does not move the model as far as one with them. To compare with code that
    divides by weights raise ``training.lr`` by that factor.

    Raises:
        ValueError: The scheme is unknown or beta is out of range.
    """
    if scheme != _EFFECTIVE and scheme not in _POWERS:
        raise ValueError(f"scheme must be one of {', '.join(_POWERS)}, {_EFFECTIVE}, not {scheme!r}")
    check_range(at_least=0, below=1, beta=beta)
    n = occupied(counts)
    raw = _effective(n, beta).reciprocal() if scheme == _EFFECTIVE else n.pow(_POWERS[scheme])
    return _mean_one(raw, images(counts) > 0)


def _effective(n: torch.Tensor, beta: float) -> torch.Tensor:
    """Return ``(1 - beta^n) / (1 - beta)`` without the cancellation where beta^n is near 1."""
    return -torch.expm1(n * math.log(beta)) / (1 - beta) if beta else torch.ones_like(n)


def _mean_one(raw: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Divide by the mean over the classes that are present [..., C], or over all where none is."""
    counted = present | ~present.any(-1, keepdim=True)
    return raw * counted.sum(-1, keepdim=True) / torch.where(counted, raw, 0.0).sum(-1, keepdim=True)
