"""Losses of whole masks: how far a predicted region of each class overlaps the true one.

Every factory here returns a loss ``(logits [B, C, H, W], masks [B, H, W]) -> [B]``: per image, not reduced.
With p = softmax(z) of a pixel and g = 1 where the pixel is of a class, else 0, the sums of each class over an
image's pixels are

    TP = sum p g,    FP = sum p (1 - g),    FN = sum (1 - p) g

and pixels of value 255 are in none of them. An image's loss is a mean over classes. A class that the image
does not have is one of them, as in the sources: with the smoothing term its loss is 0 where nothing of it is
predicted and grows with what is. ``absent = false`` leaves such classes out.

Cross-entropy of pixels, plain or weighted, is a loss of classification; the task applies it to each pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional as F

from fedvision.losses.logits import precise
from fedvision.losses.weighting import class_weights
from fedvision.ranges import check_range

if TYPE_CHECKING:
    from collections.abc import Callable

    from fedvision.types import LossFn

MASKS = "takes_masks"
"""Attribute, true, of a loss of whole masks; others get the pixels one by one."""
_IGNORED = 255
_LEAST = 1e-6
"""Below it a focal loss is flat: the slope of a root is infinite at 0."""


class Sums(NamedTuple):
    """What the pixels of each image add up to, by class, each [B, C]."""

    both: torch.Tensor
    """TP."""
    predicted: torch.Tensor
    """TP + FP, the sum of p."""
    true: torch.Tensor
    """TP + FN, the pixels of the class."""
    squares: torch.Tensor
    """The sum of p squared."""


def takes_masks(loss: LossFn) -> bool:
    """Return whether a loss is one of whole masks."""
    return bool(getattr(loss, MASKS, False))


def dice(
    counts: torch.Tensor,
    *,
    smooth: float = 1.0,
    absent: bool = True,
    scheme: str = "none",
    beta: float = 0.9999,
    cross_entropy: float = 0.0,
) -> LossFn:
    """Return ``1 - (2 TP + s) / (sum p^2 + sum g + s)``, the mean over classes.

    Milletari, Navab, Ahmadi 2016, "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
    Segmentation", arXiv 1606.04797, with squares in the denominator as there; it is for one class against the
    background there, and has no smoothing term. ``tversky`` with ``alpha = beta = 0.5`` has sums without
    squares.

    Args:
        counts: Pixels of each class [C]; used by the weights alone.
        smooth: s, pixels that are added to both sides, > 0.
        absent: Whether classes that an image does not have count.
        scheme: Class weights of the mean: ``none``, ``inverse``, ``square-root`` or ``effective-number``; see
            ``weighting.class_weights``.
        beta: For effective numbers, 0 <= beta < 1.
        cross_entropy: By what factor the mean cross-entropy of the image's pixels is added, >= 0.

    Raises:
        ValueError: A number is out of range, or the scheme is unknown.
    """
    check_range(above=0, smooth=smooth)

    def each(sums: Sums) -> torch.Tensor:
        return 1 - (2 * sums.both + smooth) / (sums.squares + sums.true + smooth)

    return _over_classes(each, class_weights(counts, scheme, beta), absent, cross_entropy)


def tversky(
    counts: torch.Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    smooth: float = 1.0,
    absent: bool = True,
    scheme: str = "none",
    cross_entropy: float = 0.0,
) -> LossFn:
    """Return ``1 - (TP + s) / (TP + alpha FP + beta FN + s)``, the mean over classes.

    Salehi, Erdogmus, Gholipour 2017, "Tversky loss function for image segmentation using 3D fully
    convolutional deep networks", arXiv 1706.05721. A beta above alpha makes what is missed cost more than
    what is found beside it, so that small regions are not given up. alpha = beta = 0.5 is soft Dice,
    alpha = beta = 1 soft IoU.

    Args:
        counts: Pixels of each class [C]; used by the weights alone.
        alpha: Weight of false positives, >= 0.
        beta: Weight of false negatives, >= 0.
        smooth: As of ``dice``.
        absent: As of ``dice``.
        scheme: As of ``dice``.
        cross_entropy: As of ``dice``.

    Raises:
        ValueError: As of ``dice``.
    """
    return focal_tversky(
        counts,
        alpha=alpha,
        beta=beta,
        gamma=1.0,
        smooth=smooth,
        absent=absent,
        scheme=scheme,
        cross_entropy=cross_entropy,
    )


def focal_tversky(
    counts: torch.Tensor,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
    gamma: float = 4 / 3,
    smooth: float = 1.0,
    absent: bool = True,
    scheme: str = "none",
    cross_entropy: float = 0.0,
) -> LossFn:
    """Return ``(1 - T)^(1 / gamma)`` of the Tversky index T of each class, the mean over classes.

    Abraham and Khan 2018, "A Novel Focal Tversky loss function with improved Attention U-Net for lesion
    segmentation", arXiv 1810.07842; their code has these defaults, with the exponent 0.75 for 1 / gamma
    and 0.7 for false negatives. They add the classes up, here it is their mean. gamma = 1 is ``tversky``.

    Args:
        counts: Pixels of each class [C]; used by the weights alone.
        alpha: As of ``tversky``.
        beta: As of ``tversky``.
        gamma: > 0; above 1 the loss of a class falls the faster the better it is found.
        smooth: As of ``dice``.
        absent: As of ``dice``.
        scheme: As of ``dice``.
        cross_entropy: As of ``dice``.

    Raises:
        ValueError: As of ``dice``.
    """
    check_range(at_least=0, alpha=alpha, beta=beta)
    check_range(above=0, gamma=gamma, smooth=smooth)

    def each(sums: Sums) -> torch.Tensor:
        wrong = alpha * (sums.predicted - sums.both) + beta * (sums.true - sums.both)
        missed = 1 - (sums.both + smooth) / (sums.both + wrong + smooth)
        return missed if gamma == 1 else missed.clamp(min=_LEAST).pow(1 / gamma)

    return _over_classes(each, class_weights(counts, scheme), absent, cross_entropy)


def _over_classes(
    each: Callable[[Sums], torch.Tensor], weights: torch.Tensor, absent: bool, cross_entropy: float
) -> LossFn:
    """Return the loss that is the weighted mean over classes of ``each`` of their sums, [B, C] -> [B]."""
    check_range(at_least=0, cross_entropy=cross_entropy)

    def loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        if masks.shape != logits.shape[:-3] + logits.shape[-2:]:
            shape = [*logits.shape[:-3], *logits.shape[-2:]]
            raise ValueError(f"masks must be {shape} as the logits' pixels, not {list(masks.shape)}")
        z = precise(logits)
        sums = sums_of(z, masks)
        share = weights.to(z).expand_as(sums.true)
        share = share if absent else share.where(sums.true > 0, torch.zeros_like(share))
        total = share.sum(-1).clamp(min=torch.finfo(z.dtype).tiny)
        found = (share * each(sums)).sum(-1) / total
        return found + cross_entropy * _of_pixels(z, masks) if cross_entropy else found

    setattr(loss, MASKS, True)
    return loss


def sums_of(logits: torch.Tensor, masks: torch.Tensor) -> Sums:
    """Return the sums [B, C] of logits [B, C, H, W] and masks [B, H, W]."""
    known = (masks != _IGNORED).unsqueeze(-3)
    p = logits.softmax(-3) * known
    classes = torch.arange(logits.shape[-3], device=logits.device)[:, None, None]
    g = (masks.unsqueeze(-3) == classes).to(p.dtype)
    return Sums(*(part.flatten(-2).sum(-1) for part in (p * g, p, g, p * p)))


def _of_pixels(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of each image's pixels [B]; 0 of an image without any class."""
    found = F.cross_entropy(logits, masks.long(), ignore_index=_IGNORED, reduction="none")
    return found.flatten(-2).sum(-1) / (masks != _IGNORED).flatten(-2).sum(-1).clamp(min=1)
