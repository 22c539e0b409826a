"""What detectors with anchors share: boxes relative to them, and the loss of these per image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from fedvision.models.detection.geometry import encoded, of_boxes
from fedvision.models.detection.outputs import Truth

SCALE = 4.0
"""Side of an anchor in strides of its map, as RetinaNet's (32 pixels at stride 8)."""

WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""What the numbers of a box are multiplied by before a network predicts them, so that their losses weigh as
much as those of classes (Girshick et al. 2014, arXiv 1311.2524; as SSD's variances of 0.1 and 0.2)."""


def shapes(scales: Sequence[float], ratios: Sequence[float]) -> torch.Tensor:
    """Return anchors' sides [A, 2], width and height in strides: each scale with each ratio of the two."""
    sides = [
        (SCALE * scale / math.sqrt(ratio), SCALE * scale * math.sqrt(ratio))
        for scale in scales
        for ratio in ratios
    ]
    return torch.tensor(sides)


def box_losses(
    deltas: torch.Tensor,
    around: torch.Tensor,
    truth: Truth,
    found: torch.Tensor,
    *,
    beta: float,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the smooth L1 loss of each image [B], added up over anchors and the four numbers of a box.

    Args:
        deltas: [B, P, 4], as ``geometry.encoded`` gives them.
        around: Anchors [P, 4] or [B, P, 4].
        truth: The objects.
        found: int64 [B, P]: the object of each anchor, negative where there is none.
        beta: Where L2 becomes L1; 0 is L1.
        weights: [4], by which the numbers are multiplied on both sides; None is 1.
    """
    objects = found >= 0
    box, anchor = of_boxes(truth.corners, found)[objects], around.expand(len(found), -1, -1)[objects]
    own = deltas.float()[objects]
    # A box without area has no logarithm of its sides.
    wanted = encoded(torch.cat([box[:, :2], torch.maximum(box[:, 2:], box[:, :2] + 1e-3)], 1), anchor)
    if weights is not None:
        own, wanted = own * weights, wanted * weights
    losses = (
        F.smooth_l1_loss(own, wanted, reduction="none", beta=beta)
        if beta
        else F.l1_loss(own, wanted, reduction="none")
    )
    sums = deltas.new_zeros(found.shape, dtype=torch.float32)
    sums[objects] = losses.sum(1)
    return sums.sum(1)
