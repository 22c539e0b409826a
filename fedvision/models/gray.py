"""Gray images for networks that are made for colour."""

from __future__ import annotations

import torch
from torch import nn

from fedvision.models.base import ImageModel

LEVEL = "network."
"""What comes before the names of the tensors inside."""


class Gray(nn.Module):
    """Shows gray images [B, 1, H, W] as colour [B, 3, H, W] to a network or backbone made for colour."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return what the network makes of them."""
        # Behind a cut (``frozen_front``) there are no images, but what the layers before it made of them.
        shown = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        output: torch.Tensor = self.network(shown)
        return output


def shown_gray(model: nn.Module) -> nn.Module:
    """Return a network that takes gray images as colour; one of backbone and head stays one."""
    if not isinstance(model, ImageModel):
        return Gray(model)
    model.backbone = Gray(model.backbone)
    return model
