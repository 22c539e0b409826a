"""The network around a detector's backbone and head."""

from __future__ import annotations

import torch
from torch import nn

from fedvision.models.base import ImageModel
from fedvision.models.detection.outputs import DetectorOutput
from fedvision.models.pyramid import PyramidBackbone


class Detector(ImageModel):
    """Images [B, in_channels, H, W] -> ``DetectorOutput``.

    Args:
        backbone: Images -> ``Pyramid``.
        head: ``Pyramid`` -> ``DetectorOutput``.
    """

    def __init__(self, backbone: PyramidBackbone, head: nn.Module) -> None:
        super().__init__(backbone, head)

    def forward(self, images: torch.Tensor) -> DetectorOutput:  # type: ignore[override]
        """Return what can give losses and detections."""
        output: DetectorOutput = self.head(self.backbone(images))
        return output
