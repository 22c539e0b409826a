"""The two halves of an image network: ``forward(images) == head(backbone(images))``.

A method that works on features or trains a second head takes the halves by these names. All built-in networks
have them, so their tensors are named ``backbone.*`` and ``head.*``. A network without them trains all the
same; ``halves`` refuses it where they are needed.

Shape letters: B batch, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import nn

from fedvision.errors import ConfigError
from fedvision.models.init import glorot


class Backbone(nn.Module):
    """A network without its head, images [B, in_channels, H, W] -> features [B, D]."""

    out_features: int
    """D."""


class ImageModel(nn.Module):
    """A backbone and a head, images [B, in_channels, H, W] -> logits [B, C].

    Args:
        backbone: Images -> features [B, D]; what drops features before the head is a part of it.
        head: Features -> logits.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits [B, C]."""
        logits: torch.Tensor = self.head(self.backbone(images))
        return logits


def with_linear_head(backbone: Backbone, num_classes: int) -> ImageModel:
    """Return a backbone with a linear head, Glorot's weights and zero bias at first."""
    return ImageModel(backbone, glorot(nn.Linear(backbone.out_features, num_classes)))


def halves(model: nn.Module, needed_by: str) -> ImageModel:
    """Return a network as one of two halves.

    Args:
        model: The network.
        needed_by: What takes the halves, for the error: ``"[algorithm] use = 'fedrod'"``.

    Raises:
        ConfigError: The network has no halves.
    """
    if isinstance(model, ImageModel):
        return model
    raise ConfigError(
        f"{needed_by} needs a network of backbone and head, and [model] use builds a {type(model).__name__}; "
        "let its factory return fedvision.models.base.ImageModel(backbone, head)"
    )
