"""Networks whose outputs are logits of each pixel: what brings those of a library to the image's size."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Enlarged(nn.Module):
    """A head whose logits are brought to the images' size, features -> logits [B, C, H, W].

    Args:
        head: Features [B, D, h, w] -> logits [B, C, h', w'] of the padded images.
        size: (H, W).
        padded: (H, W) of the images as the backbone sees them; what is beyond ``size`` is cut off.
    """

    def __init__(self, head: nn.Module, size: tuple[int, int], padded: tuple[int, int]) -> None:
        super().__init__()
        self.logits, self.size, self.padded = head, size, padded

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return logits of each pixel, bilinear between those that the head makes."""
        found: torch.Tensor = self.logits(features)
        if tuple(found.shape[2:]) != self.padded:
            found = F.interpolate(found, size=self.padded, mode="bilinear", align_corners=False)
        height, width = self.size
        return found[:, :, :height, :width]


class Padded(nn.Module):
    """A backbone that sees images with their right and lower edges repeated to a multiple of its stride.

    Args:
        network: Images [B, channels, H', W'] -> features [B, D, h, w].
        size: (H, W) of the images.
        stride: Divides H' and W'.
    """

    def __init__(self, network: nn.Module, size: tuple[int, int], stride: int) -> None:
        super().__init__()
        self.network = network
        self.padded = (size[0] + -size[0] % stride, size[1] + -size[1] % stride)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        height, width = (full - side for full, side in zip(self.padded, images.shape[2:], strict=True))
        if height or width:
            images = F.pad(images, (0, width, 0, height), mode="replicate")
        features: torch.Tensor = self.network(images)
        return features
