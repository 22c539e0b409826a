"""Mixup's loss, in which a client half can put another loss in the place of the experiment's.

A half with a loss of its own, such as the plain cross-entropy of a second head, knows the labels of the
images that it sees and not those of the images blended into them; ``instead`` gives its loss the same blend.
"""

from __future__ import annotations

import torch

from fedvision.losses.logits import sharpened, sharpness
from fedvision.types import LossFn


class BlendedLoss:
    """``weight loss(z, y) + (1 - weight) loss(z, y_other)`` of images into which others are blended.

    Args:
        loss: ``(outputs, targets [B, ...]) -> [B]``.
        others: Targets [B, ...] of the images that are blended in.
        weight: Share of the images themselves, 0 <= weight <= 1.
    """

    def __init__(self, loss: LossFn, others: torch.Tensor, weight: float) -> None:
        self.loss, self.others, self.weight = loss, others, weight
        sharpened(self, sharpness(loss))

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss of each example [B]."""
        own, other = self.loss(outputs, targets), self.loss(outputs, self.others)
        return self.weight * own + (1 - self.weight) * other


def instead(task_loss: LossFn, loss: LossFn) -> LossFn:
    """Return a loss that blends as the loss does which a client half was given, or the loss itself."""
    if isinstance(task_loss, BlendedLoss):
        return BlendedLoss(loss, task_loss.others, task_loss.weight)
    return loss
