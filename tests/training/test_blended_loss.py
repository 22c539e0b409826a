"""Mixup's loss by hand, and another loss in its place."""

from __future__ import annotations

import torch

from fedvision.losses.logits import sharpened, sharpness
from fedvision.training.blended_loss import BlendedLoss, instead


def _label(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return labels.float()


def _tenfold(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return 10.0 * labels


def test_a_loss_in_the_place_of_mixups_counts_the_same_labels() -> None:
    """0.75 of the image's own label and 0.25 of the other's."""
    blended = BlendedLoss(_label, torch.tensor([4, 0]), 0.75)
    logits, labels = torch.zeros(2, 5), torch.tensor([2, 4])
    assert blended(logits, labels).tolist() == [2.5, 3.0]
    assert instead(blended, _tenfold)(logits, labels).tolist() == [25.0, 30.0]
    assert instead(_label, _tenfold) is _tenfold


def test_the_blend_has_the_scale_of_its_loss() -> None:
    def scaled(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return labels.float()

    assert sharpness(BlendedLoss(sharpened(scaled, 7.0), torch.tensor([0]), 0.5)) == 7.0
    assert sharpness(BlendedLoss(_label, torch.tensor([0]), 0.5)) == 1.0
