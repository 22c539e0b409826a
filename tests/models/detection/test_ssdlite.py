"""SSDLite's loss of boxes, computed by hand."""

from __future__ import annotations

import pytest
import torch

from fedvision.models.detection.anchored import WEIGHTS
from fedvision.models.detection.outputs import Settings, Truth
from fedvision.models.detection.ssdlite import SsdLiteOutput


def test_a_box_loses_by_tenths_of_its_anchor() -> None:
    """A tenth of a side is a whole unit of the loss: as SSD's variances, so that boxes weigh like classes."""
    said = SsdLiteOutput(
        logits=torch.zeros(1, 1, 3),
        deltas=torch.tensor([[[0.3, 0.0, 0.1, 0.0]]]),
        weights=torch.tensor(WEIGHTS),
        around=torch.tensor([[0.0, 0.0, 10.0, 10.0]]),
        size=(16, 16),
        settings=Settings(score_threshold=0.1, nms_threshold=0.5),
    )
    truth = Truth(
        corners=torch.tensor([[[1.0, 0.0, 11.0, 10.0]]]),
        classes=torch.tensor([[1]]),
        present=torch.tensor([[True]]),
    )
    losses = said.losses(truth, lambda logits, labels: torch.zeros(labels.shape))
    # 10 (0.3 - 0.1) = 2 loses 1.5; 5 x 0.1 = 0.5 loses 0.125.
    assert losses.tolist() == pytest.approx([1.625])
